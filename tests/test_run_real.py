"""The real notebooks on a small world: the demonstration, killed while training, and in the world where nothing changes."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from within.settings import project_root

ROOT = project_root(Path(__file__).parent)
CLI = [sys.executable, "-c", "from within.cli import main; main()"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    "The policies with numbers that fit a small world."
    place = tmp_path_factory.mktemp("small") / "configs"
    shutil.copytree(ROOT / "configs", place)
    policy = place / "ad_score_predictor.yml"
    text = policy.read_text()
    for key, value in (("samples", 500), ("trials", 2), ("rows", 600)): text = re.sub(rf"^  {key}: \d+", f"  {key}: {value}", text, flags=re.MULTILINE)
    policy.write_text(text)
    return place


def world(place, configs, *options):
    env = {k: v for k, v in os.environ.items() if not k.startswith("WITHIN_")}
    env |= {"WITHIN_HOME": str(place), "WITHIN_CONFIGS": str(configs), "WITHIN_USER": "author@example.com", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*CLI, "bootstrap", "--scale", "0.02", *options], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return env


def within(env, *arguments):
    done = subprocess.run([*CLI, *arguments], env=env, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    return done.returncode, done.stdout + done.stderr


def runs_of(env): return sorted((Path(env["WITHIN_HOME"]) / "runs").glob("2*"), key=lambda p: p.stat().st_mtime)


def test_killed_while_training_gives_the_same_model(tmp_path, configs):
    env = world(tmp_path / "home", configs)
    code, said = within(env, "retrain", "ad_score_predictor", "--until", "train")
    assert code == 0, said
    whole = runs_of(env)[-1]

    process = subprocess.Popen([*CLI, "retrain", "ad_score_predictor", "--until", "train"], env=env, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        until = time.perf_counter() + 300
        while not (len(runs_of(env)) == 2 and (runs_of(env)[-1] / "products/train.ipynb").is_file()):
            assert time.perf_counter() < until and process.poll() is None
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    killed = next(r for r in runs_of(env) if r != whole)
    before = {p.name: p.read_bytes() for p in (killed / "products").glob("optimize.*")}
    code, said = within(env, "retrain", "ad_score_predictor", "--run", killed.name, "--until", "train")
    assert code == 0 and said.count("done before") == 3, said
    assert before == {p.name: p.read_bytes() for p in (killed / "products").glob("optimize.*")}
    digests = {json.loads((r / "manifest.json").read_text())["model_digest"] for r in (whole, killed)}
    assert len(digests) == 1 and (killed / "attempts/1/train.ipynb").is_file()
    assert 'href="attempts/1/train.ipynb"' in (killed / "index.html").read_text()
    assert within(env, "audit", "verify")[0] == 0


def test_the_null_world_is_not_released(tmp_path, configs):
    env = world(tmp_path / "home", configs, "--null")
    code, said = within(env, "retrain", "ad_score_predictor")
    assert code == 0 and re.search("declined at|inconclusive at evaluate", said), said   # few rows: no, or nobody can tell, and never a yes
    routes = json.loads(within(env, "status", "--json")[1])["routes"]
    assert [(r["environment"], r["model"], r["default"], r["shares"]) for r in routes] == [("production", "ad_score_predictor", "2.1.0", [])], routes


def left_over(place):
    "Processes that have this home in their environment."
    told = f"WITHIN_HOME={place}".encode()
    found = []
    for process in psutil.process_iter():
        try: found += [process] if told in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0") else []
        except OSError: continue   # somebody else's, or gone meanwhile
    return found


def test_the_demonstration_passes_from_an_empty_home_to_its_report(tmp_path, configs):
    env = {k: v for k, v in os.environ.items() if not k.startswith("WITHIN_")}
    env |= {"WITHIN_HOME": str(tmp_path / "home"), "WITHIN_CONFIGS": str(configs), "WITHIN_USER": "author@example.com", "OMP_NUM_THREADS": "1"}
    code, said = within(env, "demo", "--scale", "0.25")   # the least at which every segment has rows enough to be judged
    assert code == 0, said
    run, = runs_of(env)
    assert str(run / "index.html") in said.splitlines()   # a line of its own says where the report is
    page, first = (run / "index.html").read_text(), (run / "index.html").read_text().partition("<nav")[0]
    assert "passed every stage" in first and "demo approval: given by the demonstration, not by a person" in first and "planted on purpose" not in page
    decisions = json.loads((run / "decisions.json").read_text())
    assert "monitor" in str(decisions) and str(tmp_path) not in page
    code, said = within(env, "audit", "verify")
    assert code == 0, said
    assert not left_over(tmp_path / "home")
