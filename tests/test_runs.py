"""The walk over a pipeline of three tiny notebooks: done, declined, waiting, failing, killed, changed, out of disk."""
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import on_path

from within import files as run_files
from within.clock import FrozenClock
from within.context import Context
from within.errors import Conflict, InvalidInput, UnknownDataset, UnknownModel, WithinError
from within.files import read_json, write_json
from within.ledger import entries, verify
from within.runs.folder import RunFolder
from within.runs.walk import create_run, planned, retrain
from within.settings import project_root
from within.verdicts import Phase

ROOT = project_root(Path(__file__).parent)
OPEN = ("stage = open_stage('{name}', run=run, model=model, source=source, upstream=upstream, product=product, params=dict({params}))\n"
        "home = stage.ctx.settings.home")
STAGES = {
    "trigger": ("upstream = None", "ask = 1  # int, what to ask",
                "stage.conclude(Decision('passed', f'asked {ask}', evidence={'answer': 42}, outputs={'n': ask}))"),
    "prepare": ("upstream = ['trigger']", "mode = ''  # str, how to end",
                "(home / 'touched').open('a').write('x')\n"
                "assert not (home / 'break').exists(), 'broken on purpose'\n"
                "time.sleep(60 if (home / 'hang').exists() else 0)\n"
                "outcome = 'waiting' if (home / 'wait').exists() else mode or 'passed'\n"
                "stage.conclude(Decision(outcome, f'prepared {stage.decision(\"trigger\").outputs}', outputs={'until': '2023-10-08T00:00:00+00:00'}))"),
    "train": ("upstream = ['prepare']", "rounds = 5  # int, trees", "stage.conclude(Decision('passed', f'trained <b>{rounds}</b> trees'))"),
}


def write_notebook(path, name, upstream, param, body):
    names = {p.partition(" ")[0]: p.partition(" ")[0] for p in [param]}
    parameters = f"{upstream}\nproduct = None\nrun = ''  # str, run\nmodel = 'ad_score_predictor'  # str, model\nsource = ''  # str, dataset\n{param}"
    cells = [("markdown", f"# {name}\n> Does {name} work?", None),
             ("code", "import time\nfrom within.runs import open_stage\nfrom within.verdicts import Decision", None), ("code", parameters, "parameters"),
             ("code", OPEN.format(name=name, params=", ".join(f"{n}={n}" for n in names)), None), ("code", body, None)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    made = [{"cell_type": kind, "id": f"c{i}", "metadata": {"tags": [tag]} if tag else {}, "source": text,
             **({"outputs": [], "execution_count": None} if kind == "code" else {})} for i, (kind, text, tag) in enumerate(cells)]
    write_json(path, {"nbformat": 4, "nbformat_minor": 5, "metadata": kernel, "cells": made})


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A project of three stages, with a home; the working folder."
    tasks = []
    for i, (name, (upstream, param, body)) in enumerate(STAGES.items()):
        source = f"nbs/stages/s{i}0_{name}.ipynb"
        write_notebook(tmp_path / source, name, upstream, param, body)
        key, _, value = param.partition("  #")[0].partition(" = ")
        tasks.append({"source": source, "name": name, "static_analysis": "strict", "nb_product_key": ["nb", "html"],
                      "product": {"nb": f"{{{{out}}}}/{name}.ipynb", "html": f"{{{{out}}}}/{name}.html", "decision": f"{{{{out}}}}/{name}.decision.json"},
                      "params": {"run": "{{run}}", "model": "{{model}}", "source": "{{source}}", key: eval(value)},
                      **({"upstream": [list(STAGES)[i - 1]]} if i else {})})
    write_json(tmp_path / "pipeline.yaml", {"meta": {"extract_upstream": False, "extract_product": False}, "tasks": tasks})   # JSON is YAML
    write_json(tmp_path / "env.yaml", {"run": "", "model": "ad_score_predictor", "source": "", "out": "products"})
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for name in [n for n in os.environ if n.startswith("WITHIN_")]: monkeypatch.delenv(name)
    monkeypatch.setenv("WITHIN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WITHIN_USER", "author@example.com")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def context(project): return Context.open(home=project / "home", configs=project / "configs", clock=FrozenClock("2023-10-01"))


def test_passes_publishes_and_is_quick_the_second_time(project):
    ctx = context(project)
    seen = []
    first = retrain("ad_score_predictor", run="r1", sets=["rounds=7"], ctx=ctx, progress=lambda *a: seen.append(a[:2]))
    assert (first.phase, first.exit_code, first.executed) == (Phase.PASSED, 0, ("trigger", "prepare", "train"))
    folder = RunFolder(ctx.settings.home, "r1")
    bodies = read_json(folder.path / "decisions.json")
    assert list(bodies) == ["trigger", "prepare", "train"] and bodies["train"]["params"]["rounds"] == 7
    manifest = read_json(folder.path / "manifest.json")
    assert manifest["overrides"] == {"train": {"rounds": 7}} and manifest["packages"]["papermill"] and manifest["code"]["within"]
    assert len([e for e in entries(ctx, "decision", "r1")]) == 3 and verify(ctx).ok
    for file in folder.path.glob("products/*"):
        if not file.name.startswith("."): assert str(project) not in file.read_text(), file
    page = folder.report.read_text()
    assert "override: train.rounds = 7" in page and "trained &lt;b&gt;7&lt;/b&gt; trees" in page and "<b>7" not in page and "Does prepare work?" in page
    assert not Path("home/products").exists() and Path.cwd() == project and "WITHIN_ATTEMPT" not in os.environ

    code = ("import sys, json; from within.runs.walk import retrain;"
            "r = retrain('ad_score_predictor', run='r1');"
            "print(json.dumps([str(r.phase), list(r.executed), 'ploomber' in sys.modules]))")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": on_path(ROOT)}).stdout
    assert json.loads(out) == ["passed", [], False]   # nothing is executed and Ploomber not even imported; its seconds are a bench row


def test_until_then_on(project):
    ctx = context(project)
    stopped = retrain("ad_score_predictor", run="r1", until="prepare", ctx=ctx)
    assert (stopped.phase, stopped.exit_code, stopped.executed) == (Phase.PENDING, 0, ("trigger", "prepare"))
    edited = "raise RuntimeError('edited meanwhile')"
    write_notebook(project / "nbs/stages/s20_train.ipynb", "train", "upstream = ['prepare']", "rounds = 5  # int, trees", edited)
    assert retrain("ad_score_predictor", run="r1", ctx=ctx).executed == ("train",)   # the run's own copy, not the edited one
    with pytest.raises(InvalidInput, match="keeps the parameters"): retrain("ad_score_predictor", run="r1", sets=["rounds=1"], ctx=ctx)
    with pytest.raises(InvalidInput, match="is of ad_score_predictor"): retrain("ad_sentiment_analyzer", run="r1", ctx=ctx)


@pytest.mark.parametrize("outcome, phase", [("failed", Phase.FAILED), ("inconclusive", Phase.INCONCLUSIVE)])
def test_a_no_is_an_answer(project, outcome, phase):
    ctx = context(project)
    ended = retrain("ad_score_predictor", run="r1", sets=[f"mode={outcome}"], ctx=ctx)
    assert (ended.phase, ended.stage, ended.exit_code, ended.executed) == (phase, "prepare", 0, ("trigger", "prepare"))
    again = retrain("ad_score_predictor", run="r1", ctx=ctx)
    assert (again.phase, again.stage, again.executed) == (phase, "prepare", ())
    assert ended.reason in RunFolder(ctx.settings.home, "r1").report.read_text().replace("&#x27;", "'")


def test_waiting_is_75_and_goes_on(project):
    ctx = context(project)
    (ctx.settings.home / "wait").touch()
    waiting = retrain("ad_score_predictor", run="r1", ctx=ctx)
    folder = RunFolder(ctx.settings.home, "r1")
    assert (waiting.phase, waiting.exit_code, waiting.until) == (Phase.WAITING, 75, "2023-10-08T00:00:00+00:00")
    assert folder.product("prepare", ".waiting.json").is_file() and not folder.product("prepare", "decision").exists()
    assert "products/prepare.html" in folder.report.read_text() and ctx.store.get("run", "r1").body["phase"] == "waiting"
    (ctx.settings.home / "wait").unlink()
    after = retrain("ad_score_predictor", run="r1", ctx=ctx)
    assert (after.phase, after.executed) == (Phase.PASSED, ("prepare", "train")) and (folder.path / "attempts/1/prepare.waiting.json").is_file()


def test_an_error_keeps_the_half_run_notebook(project):
    ctx = context(project)
    (ctx.settings.home / "break").touch()
    broken = retrain("ad_score_predictor", run="r1", ctx=ctx)
    folder = RunFolder(ctx.settings.home, "r1")
    assert (broken.phase, broken.exit_code, broken.stage) == (Phase.ERROR, 1, "prepare")
    assert "broken on purpose" in broken.reason and "attempts/1/prepare.ipynb" in broken.reason
    assert 'href="attempts/1/prepare.ipynb"' in folder.report.read_text() and str(project) not in (folder.path / "attempts/1/prepare.ipynb").read_text()
    (ctx.settings.home / "break").unlink()
    assert retrain("ad_score_predictor", run="r1", ctx=ctx).executed == ("prepare", "train")
    assert 'href="attempts/1/prepare.ipynb"' in folder.report.read_text()


def test_a_product_changed_by_hand_runs_again(project):
    ctx = context(project)
    retrain("ad_score_predictor", run="r1", ctx=ctx)
    decision = RunFolder(ctx.settings.home, "r1").product("prepare", "decision")
    decision.write_text(decision.read_text().replace("prepared", "improved"))
    assert not verify(ctx).ok
    (ctx.settings.home / "break").touch()   # the new try ends before it could replace what was moved away
    assert retrain("ad_score_predictor", run="r1", ctx=ctx).exit_code == 1 and verify(ctx).ok
    assert [(e.body["stage"], e.body["intact"]) for e in entries(ctx, "superseded", "r1")] == [("prepare", False), ("train", True)]
    (ctx.settings.home / "break").unlink()
    again = retrain("ad_score_predictor", run="r1", ctx=ctx)
    assert again.executed == ("prepare", "train") and verify(ctx).ok and "improved" in Path(decision.parents[1] / "attempts/1" / decision.name).read_text()


def start(project):
    env = {**os.environ, "PYTHONPATH": on_path(ROOT)}
    return subprocess.Popen([sys.executable, "-c", "from within.runs.walk import retrain; retrain('ad_score_predictor', run='r1')"], env=env, cwd=project)


def wait_for(condition, seconds=40):
    until = time.perf_counter() + seconds
    while not condition():
        assert time.perf_counter() < until, "did not happen"
        time.sleep(0.1)


def test_killed_then_resumed_and_a_second_command_refused(project):
    home = project / "home"
    home.mkdir()
    (home / "hang").touch()
    process = start(project)
    try:
        wait_for((home / "touched").exists)
        ctx = Context.open(home=home, configs=project / "configs")
        with pytest.raises(Conflict, match="run r1, process"): retrain("ad_score_predictor", ctx=ctx)
        assert process.poll() is None and len(list((home / "runs").iterdir())) == 1   # the first is unharmed, the second left nothing
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (home / "hang").unlink()
    resumed = retrain("ad_score_predictor", run="r1", ctx=ctx)                        # at once: the orphaned kernel still lives
    folder = RunFolder(home, "r1")
    assert (resumed.phase, resumed.executed) == (Phase.PASSED, ("prepare", "train")) and (home / "touched").read_text() == "xx"
    assert (folder.path / "attempts/1/prepare.ipynb").is_file() and 'href="attempts/1/prepare.ipynb"' in folder.report.read_text()
    assert [e.body["stage"] for e in entries(ctx, "decision", "r1")] == ["trigger", "prepare", "train"]


def test_a_full_disk_is_an_error_and_resumes(project, monkeypatch):
    ctx, really = context(project), os.fsync

    def full_for_attempts(fd):
        if "attempt.json" in os.readlink(f"/proc/self/fd/{fd}"): raise OSError(errno.ENOSPC, "No space left on device")
        really(fd)

    monkeypatch.setattr(run_files.os, "fsync", full_for_attempts)
    full = retrain("ad_score_predictor", run="r1", ctx=ctx)
    assert (full.phase, full.exit_code) == (Phase.ERROR, 1) and "no space left" in full.reason
    monkeypatch.setattr(run_files.os, "fsync", really)
    assert retrain("ad_score_predictor", run="r1", ctx=ctx).phase is Phase.PASSED


def test_a_full_disk_under_a_decision_loses_nothing(project):
    ctx = context(project)
    full = ("import errno, os\n"
            "def no_space(fd): raise OSError(errno.ENOSPC, 'No space left on device')\n"
            "really, os.fsync = os.fsync, no_space if (home / 'full').exists() else os.fsync\n"
            "stage.conclude(Decision('passed', 'trained'))\n"
            "os.fsync = really")
    write_notebook(project / "nbs/stages/s20_train.ipynb", "train", "upstream = ['prepare']", "rounds = 5  # int, trees", full)
    (ctx.settings.home / "full").touch()
    ended = retrain("ad_score_predictor", run="r1", ctx=ctx)
    folder = RunFolder(ctx.settings.home, "r1")
    assert (ended.exit_code, ended.stage) == (1, "train") and "no space left while writing train.decision.json" in ended.reason
    assert not folder.product("train", "decision").exists() and not list(folder.path.rglob("*train.decision.json*"))
    (ctx.settings.home / "full").unlink()
    assert retrain("ad_score_predictor", run="r1", ctx=ctx).executed == ("train",) and verify(ctx).ok


def test_refused_before_anything_is_made(project):
    ctx = context(project)
    for error, why, call in ((InvalidInput, "not a run id", dict(run="../../etc")), (InvalidInput, "did you mean 'rounds'", dict(sets=["round=1"])),
                             (InvalidInput, "not of type int", dict(sets=["rounds=many"])), (InvalidInput, "unknown stage", dict(until="deploy")),
                             (UnknownDataset, "upworthy", dict(source="upworthy"))):
        with pytest.raises(error, match=re.escape(why)): retrain("ad_score_predictor", ctx=ctx, **call)
    with pytest.raises(UnknownModel, match="ad_score_predictor"): retrain("ad_score_predicter", ctx=ctx)
    assert not (ctx.settings.home / "runs").exists()
    assert planned(ctx, project, "ad_score_predictor", "", ["train.rounds=9"])["params"]["train"]["rounds"] == 9


def test_a_lost_tag_is_noticed(project):
    path = project / "nbs/stages/s20_train.ipynb"
    body = read_json(path)
    for cell in body["cells"]: cell["metadata"] = {}
    write_json(path, body)
    with pytest.raises(WithinError, match="0 cells are tagged"): retrain("ad_score_predictor", ctx=context(project))


def test_plain_ploomber_build_works_and_stops_at_no(project):
    env = {**os.environ, "PYTHONPATH": on_path(ROOT), "PLOOMBER_STATS_ENABLED": "false", "PLOOMBER_VERSION_CHECK_DISABLED": "true"}
    build = [str(Path(sys.executable).parent / "ploomber"), "build"]
    done = subprocess.run(build, capture_output=True, text=True, env=env, cwd=project)
    assert done.returncode == 0, done.stderr[-2000:]
    assert read_json(project / "products/train.decision.json")["decision"]["outcome"] == "passed"
    (project / "home/wait").touch()
    stopped = subprocess.run([*build, "--force"], capture_output=True, text=True, env=env, cwd=project)
    assert stopped.returncode != 0 and "prepare is waiting" in stopped.stdout + stopped.stderr


def test_a_half_made_folder_of_a_killed_process_is_cleared_by_the_next_maker(project):
    ctx = context(project)
    left = RunFolder(ctx.settings.home, "making.0000").path
    left.mkdir(parents=True)
    (left / "run.json").write_text("{")
    made = create_run(ctx, project, planned(ctx, project, "ad_score_predictor", "", []), "r1")
    assert [p.name for p in made.path.parent.iterdir()] == ["r1"]
