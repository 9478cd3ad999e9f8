"""JupyterLab as `make lab` starts it, driven in a real headless Chromium: a chapter and a stage open, run to the end, and show what they should."""
from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
TOKEN = "a-token-for-one-test"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600),
              pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="no chromium and chromedriver on this machine")]

# a notebook's state as the page knows it: is the kernel busy, is anything queued, what came out
STATE = """
const panel = [...window.jupyterapp.shell.widgets('main')].find(w => w.context && w.context.path === arguments[0]);
const session = panel && panel.sessionContext && panel.sessionContext.session;
const kernel = session && session.kernel;
const cells = panel && panel.content && panel.content.widgets || [];
const code = cells.map(c => c.model.sharedModel).filter(m => m.cell_type === 'code');
return {path: panel && panel.context && panel.context.path, kernel: kernel ? kernel.status : 'none', cells: cells.length,
        ran: code.filter(m => m.execution_count !== null).length, code: code.filter(m => m.source.trim()).length,
        errors: code.flatMap(m => m.outputs).filter(o => o.output_type === 'error').map(o => o.ename + ': ' + o.evalue),
        text: code.flatMap(m => m.outputs).map(o => JSON.stringify(o.data || o.text || '')).join('\\n')};
"""
SAVE = "const done = arguments[0]; window.jupyterapp.commands.execute('docmanager:save').then(() => done(true), e => done(String(e)))"


def wait(question: Callable[[], object], what: str, seconds: float = 120) -> object:
    "Asks until the answer is true."
    until = time.monotonic() + seconds
    while not (answer := question()):
        if time.monotonic() > until: pytest.fail(f"waited {seconds:g} s for {what}")
        time.sleep(0.2)
    return answer


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    "Copies of the notebooks in the project's layout, so that a test can run and save them and the checkout stays as it is."
    made = tmp_path_factory.mktemp("lab") / "project"
    shutil.copytree(ROOT / "nbs", made / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copytree(ROOT / "configs", made / "configs")
    for name in ("settings.ini", "pipeline.yaml", "env.yaml"):
        if (ROOT / name).exists(): shutil.copy(ROOT / name, made / name)
    return made


@contextlib.contextmanager
def lab(folder: Path, log: Path, **env: str) -> Iterator[str]:
    "`make lab` serving `folder`; yields its address. Ended as a person would: by an interrupt to the whole group."
    port = free_port()
    arguments = f"--no-browser --port={port} --ServerApp.port_retries=0 --IdentityProvider.token={TOKEN} --LabApp.expose_app_in_browser=True " \
                f"--ServerApp.root_dir={folder} --allow-root"
    home = folder.parent / "jupyter"
    places = {"JUPYTER_CONFIG_DIR": home, "JUPYTER_DATA_DIR": home / "data", "JUPYTER_RUNTIME_DIR": home / "run", "JUPYTERLAB_WORKSPACES_DIR": home / "ws",
              "JUPYTERLAB_SETTINGS_DIR": home / "settings", "IPYTHONDIR": home / "ipython"}
    with log.open("wb") as out:
        server = subprocess.Popen(["make", "lab", f"LAB_ARGS={arguments}"], cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
                                  env=os.environ | {k: str(v) for k, v in places.items()} | env)
    try:
        def answers() -> bool:
            assert server.poll() is None, log.read_text()[-3000:]
            with contextlib.suppress(OSError):
                return urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status?token={TOKEN}", timeout=2).status == 200
            return False
        wait(answers, "JupyterLab to answer", 60)
        yield f"http://127.0.0.1:{port}"
    finally:
        for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError): os.killpg(server.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(10)
                break
        with contextlib.suppress(ProcessLookupError): os.killpg(server.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking", "disable-component-update",
                 "disable-sync", "disable-dev-shm-usage", "window-size=1280,1000", f"user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


def run_all(browser, address: str, path: str, seconds: float) -> dict:
    "Opens a notebook, runs every cell through Lab's own command, waits for the last one, and returns the page's state."
    from selenium.common.exceptions import WebDriverException
    from selenium.webdriver.common.by import By

    def state() -> dict:
        with contextlib.suppress(WebDriverException): return browser.execute_script(STATE, path) or {}
        return {}

    browser.get(f"{address}/lab/tree/{path}?token={TOKEN}&reset")
    wait(lambda: browser.execute_script("return !!window.jupyterapp"), "JupyterLab's page")
    wait(lambda: state().get("path") == path and state().get("cells"), f"{path} to open")
    wait(lambda: state().get("kernel") == "idle", "a kernel")
    browser.find_element(By.CSS_SELECTOR, ".jp-NotebookPanel .jp-Notebook .jp-MarkdownCell").click()   # Lab's commands act on what has the focus
    browser.execute_script("window.jupyterapp.commands.execute('notebook:run-all-cells')")

    def finished() -> dict | None:
        now = state()
        return now if now.get("kernel") == "idle" and (now["ran"] >= now["code"] or now["errors"]) else None
    wait(finished, f"{path} to run", seconds)
    assert browser.execute_async_script(SAVE) is True
    return state()


def test_chapter_opens_and_runs(browser, workplace, tmp_path):
    with lab(workplace, tmp_path / "lab.log") as address:
        seen = run_all(browser, address, "nbs/lib/010_windows.ipynb", 120)
        browser.save_screenshot(str(tmp_path / "chapter.png"))
    assert not seen["errors"]
    saved = nbformat.read(workplace / "nbs/lib/010_windows.ipynb", as_version=4)
    assert {c.get("execution_count") for c in saved.cells} == {None}, "a notebook saved from Lab is a clean one"
    assert seen["ran"] == seen["code"] and "Window" in seen["text"], (tmp_path / "lab.log").read_text()[-2000:]
    assert " 500 " not in (tmp_path / "lab.log").read_text(), "a server extension answers 500: is Ploomber's switched off?"


def test_stage_opens_and_runs(browser, workplace, home, small_configs, tmp_path):
    variables = {"WITHIN_HOME": str(home), "WITHIN_CONFIGS": str(small_configs), "WITHIN_CLOCK": "replay"}
    with lab(workplace, tmp_path / "lab.log", **variables) as address:
        seen = run_all(browser, address, "nbs/stages/s10_trigger.ipynb", 300)
        browser.save_screenshot(str(tmp_path / "stage.png"))
    assert not seen["errors"]
    assert seen["ran"] == seen["code"] and "Decision" in seen["text"]
    saved = nbformat.read(workplace / "nbs/stages/s10_trigger.ipynb", as_version=4)
    assert not any(c.get("outputs") for c in saved.cells), "stages are committed without outputs"
    assert ["parameters"] in [c.metadata.get("tags") for c in saved.cells]
