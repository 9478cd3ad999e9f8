"""JupyterLab as `make lab` starts it, driven in a real headless Chromium: a chapter and a stage open, run to the end, and show what they should."""
from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
from conftest import on_path
from postgresql import free_port
from test_by_hand import evidence
from test_runs import context, project  # noqa: F401  (project is a fixture)

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


def run_all(browser, address: str, path: str, seconds: float, token: str = TOKEN) -> dict:
    "Opens a notebook, runs every cell through Lab's own command, waits for the last one, and returns the page's state."
    from selenium.common.exceptions import WebDriverException
    from selenium.webdriver.common.by import By

    def state() -> dict:
        with contextlib.suppress(WebDriverException): return browser.execute_script(STATE, path) or {}
        return {}

    browser.get(f"{address}/lab/tree/{path}?token={token}&reset")
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


# `within lab`: a run, and one of its stages by hand

@contextlib.contextmanager
def within_lab(log: Path, *words: str) -> Iterator[tuple[str, str, str]]:
    "`within lab …` as a person starts it; yields its address, the path it opened on, and the token. Ended by Ctrl-C, twice as JupyterLab asks."
    places = {f"JUPYTER_{k}": str(log.parent / "jupyter" / v) for k, v in {"CONFIG_DIR": "config", "DATA_DIR": "data", "RUNTIME_DIR": "run"}.items()}
    env = os.environ | places | {"PYTHONPATH": on_path(ROOT), "IPYTHONDIR": str(log.parent / "ipython"), "JUPYTERLAB_WORKSPACES_DIR": str(log.parent / "ws"),
                                 "JUPYTERLAB_SETTINGS_DIR": str(log.parent / "settings")}
    (config := log.parent / "jupyter" / "config").mkdir(parents=True)
    (config / "jupyter_config.json").write_text(json.dumps({"LabApp": {"expose_app_in_browser": True}}))   # so that a test can ask the page
    with log.open("wb") as out:
        command = [sys.executable, "-c", "from within.cli import main; main()", "lab", *words, "--no-browser"]
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, env=env)
    try:
        def said() -> str:
            assert server.poll() is None, log.read_text()[-3000:]
            return next((line.removeprefix("open ") for line in log.read_text().splitlines() if line.startswith("open http")), "")
        where, _, token = str(wait(said, "the address")).partition("?token=")
        address, _, path = where.partition("/lab/tree/")

        def answers() -> bool:
            assert server.poll() is None, log.read_text()[-3000:]
            with contextlib.suppress(OSError): return bool(api(address, token, "GET", "status"))
            return False
        wait(answers, "JupyterLab to answer", 120)
        yield address, path, token
    finally:
        for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError): os.killpg(server.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(10)
                break
        with contextlib.suppress(ProcessLookupError): os.killpg(server.pid, signal.SIGKILL)


def api(address: str, token: str, method: str, path: str, body: dict | None = None) -> dict | None:
    "One request of Jupyter's REST interface."
    asked = urllib.request.Request(f"{address}/api/{path}", json.dumps(body).encode() if body is not None else None, method=method,
                                   headers={"Authorization": f"token {token}", "Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=60) as answer: return json.loads(answer.read() or b"null")


def refused(*request: object) -> str:
    "The message of a request that is answered 403."
    with pytest.raises(urllib.error.HTTPError) as problem: api(*request)
    assert problem.value.code == 403, problem.value
    return json.loads(problem.value.read())["message"]


def run_over_kernels_api(address: str, token: str, path: str) -> str:
    "Start a kernel for a notebook, execute its cells in order over the kernel's channel; what came out, as text. Fails at the first error."
    import websocket
    body = api(address, token, "GET", f"contents/{path}")["content"]
    session = api(address, token, "POST", "sessions", {"path": path, "name": "", "type": "notebook", "kernel": {"name": "python3"}})
    kernel, shown = session["kernel"]["id"], []
    channel = websocket.create_connection(f"{address.replace('http', 'ws')}/api/kernels/{kernel}/channels?token={token}", timeout=300)
    try:
        for cell in (c for c in body["cells"] if c["cell_type"] == "code"):
            asked = {"code": cell["source"], "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
            about = {"msg_id": uuid.uuid4().hex, "username": "t", "session": "t", "msg_type": "execute_request", "version": "5.3"}
            channel.send(json.dumps({"header": about, "parent_header": {}, "metadata": {}, "channel": "shell", "buffers": [],
                                     "content": asked}))
            while True:
                said = json.loads(channel.recv())
                if said["parent_header"].get("msg_id") != about["msg_id"]: continue
                if said["msg_type"] == "error": pytest.fail("\n".join(said["content"]["traceback"]))
                if said["msg_type"] in ("execute_result", "display_data"): shown.append(json.dumps(said["content"]["data"]))
                if said["msg_type"] == "status" and said["content"]["execution_state"] == "idle": break
    finally:
        channel.close()
        api(address, token, "DELETE", f"sessions/{session['id']}")
    return "\n".join(shown)


def test_a_run_is_read_only_and_a_stage_runs_by_hand(browser, project, tmp_path):  # noqa: F811
    from within.ledger import verify
    from within.runs.walk import retrain
    ctx = context(project)
    retrain("ad_score_predictor", run="r1", sets=["rounds=7"], ctx=ctx)
    before, log = evidence(ctx.settings.home, "r1"), tmp_path / "lab.log"
    with within_lab(log, "r1", "--stage", "train") as (address, path, token):
        assert path == "by_hand/r1/train-1/train.ipynb" and address.startswith("http://127.0.0.1:")
        with pytest.raises(urllib.error.HTTPError): api(address, "a-guess", "GET", "contents/runs")
        cells = api(address, token, "GET", f"contents/{path}")["content"]["cells"]
        assert "stage `train` of run `r1`" in cells[0]["source"] and "rounds = 7  # int, trees" in "".join(c["source"] for c in cells)
        assert "**bit-equal**" in run_over_kernels_api(address, token, path)

        # the evidence is shown and not written, whoever asks and however
        record = "runs/r1/products/train.ipynb"
        kept = api(address, token, "GET", f"contents/{record}")
        assert kept["writable"] is False and not any(m["writable"] for m in api(address, token, "GET", "contents/runs/r1")["content"])
        told = refused(address, token, "PUT", f"contents/{record}", {"type": "notebook", "format": "json", "content": kept["content"]})
        assert "is evidence" in told and "within lab RUN --stage NAME" in told
        refused(address, token, "DELETE", f"contents/{record}")
        refused(address, token, "PATCH", f"contents/{record}", {"path": "by_hand/mine.ipynb"})
        refused(address, token, "POST", "contents/runs/r1", {"type": "notebook"})
        refused(address, token, "POST", f"contents/{record}/checkpoints")

        seen = run_all(browser, address, path, 120, token)
        browser.save_screenshot(str(tmp_path / "by_hand.png"))
        assert not seen["errors"] and seen["ran"] == seen["code"] and "**bit-equal**" in seen["text"]
        browser.get(f"{address}/lab/tree/{record}?token={token}&reset")
        wait(lambda: (browser.execute_script(STATE, record) or {}).get("cells"), "the executed notebook to open")
        browser.save_screenshot(str(tmp_path / "record.png"))
    assert evidence(ctx.settings.home, "r1") == before and verify(ctx).ok
    saved = nbformat.read(ctx.settings.home / path, as_version=4)
    assert any(c.get("outputs") for c in saved.cells), "a working copy keeps what it showed"
    ctx.close()


@pytest.mark.parametrize("words, text", [
    (("r9",), "unknown run"), (("../r1",), "is not a run id"), (("r1", "--stage", "trian"), "train"), (("--stage", "train"), "needs a run"),
    (("r1", "--port", "99999"), "between 1 and 65535")])
def test_what_within_lab_cannot_open_is_said(project, words, text):  # noqa: F811
    from within.runs.walk import retrain
    ctx = context(project)
    retrain("ad_score_predictor", run="r1", until="trigger", ctx=ctx)
    ctx.close()
    done = subprocess.run([sys.executable, "-c", "from within.cli import main; main()", "lab", *words], env=os.environ | {"PYTHONPATH": on_path(ROOT)},
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and text in done.stderr, done.stderr
