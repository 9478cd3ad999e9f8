"""One stage of a run again, by hand: the working copy runs to its end in a fresh kernel, answers as the original did, and leaves the evidence as it was."""
import fcntl
import json
import os
import shutil
import threading
from pathlib import Path

import nbclient
import nbformat
import pytest
from conftest import on_path
from test_runs import ROOT, context, project  # noqa: F401  (project is a fixture)

from within.errors import Conflict, DigestMismatch, InvalidInput, UnknownRun
from within.files import file_digest, read_json
from within.ledger import entries, verify
from within.runs.by_hand import beside_original, by_hand, enter, filled_in
from within.runs.compare import Equality
from within.runs.folder import RunFolder
from within.runs.walk import retrain
from within.verdicts import Phase

def execute(notebook: Path, monkeypatch, **changed: str) -> str:
    "Run All in a fresh kernel started elsewhere, as JupyterLab does; the text of all outputs. `changed`: values written over the parameters cell's."
    monkeypatch.setenv("PYTHONPATH", on_path(ROOT))
    body = nbformat.read(notebook, as_version=4)
    (cell,) = [c for c in body.cells if "parameters" in c.metadata.get("tags", ())]
    cell.source = filled_in(cell.source, changed)
    nbclient.NotebookClient(body, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(notebook.parent)}}).execute()
    nbformat.write(body, notebook)
    return "\n".join(json.dumps(o.get("data", o.get("text", ""))) for c in body.cells if c.cell_type == "code" for o in c.outputs)


def evidence(home: Path, run: str) -> dict:
    "Digest and time of writing of every file that a run, the models and the logs consist of."
    files = [p for part in (f"runs/{run}", "models", "snapshots", "warehouse", "routes", "log") for p in (home / part).rglob("*") if p.is_file()]
    return {str(p): (file_digest(p), p.stat().st_mtime_ns) for p in files}


@pytest.fixture
def ended(project, monkeypatch):  # noqa: F811
    "A run of three small stages that ended, with a parameter of a person's own."
    ctx = context(project)
    assert retrain("ad_score_predictor", run="r1", sets=["rounds=7", "ask=3"], ctx=ctx).phase is Phase.PASSED
    yield ctx
    ctx.close()


def test_runs_to_the_end_and_is_equal_to_the_bit(ended, monkeypatch):
    before, count = evidence(ended.settings.home, "r1"), len(entries(ended))
    for stage in ("trigger", "prepare", "train"):
        copy = by_hand("r1", stage, ended)
        assert copy.notebook == ended.settings.home / f"by_hand/r1/{stage}-1/{stage}.ipynb" and copy.parameters["run"] == "r1"
        shown = execute(copy.notebook, monkeypatch)
        assert "**bit-equal**" in shown and beside_original(copy.place).level is Equality.BIT, shown
        assert (ended.settings.home / "touched").read_text() == "x"   # prepare's own mark: only the run itself ever touched the real home
    cells = nbformat.read(copy.notebook, as_version=4).cells
    assert "stage `train` of run `r1`" in cells[0].source and "within replay r1" in cells[0].source
    assert "rounds = 7  # int, trees" in next(c.source for c in cells if "parameters" in c.metadata.get("tags", ()))
    assert evidence(ended.settings.home, "r1") == before and len(entries(ended)) == count and verify(ended).ok


def test_the_executed_notebook_itself_refuses_to_run_again(ended, monkeypatch):
    before, record = evidence(ended.settings.home, "r1"), RunFolder(ended.settings.home, "r1").product("train", "nb")
    body = nbformat.read(record, as_version=4)
    monkeypatch.setenv("PYTHONPATH", on_path(ROOT))
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="r1, which is evidence; run the stage in a copy: within lab r1 --stage"):
        nbclient.NotebookClient(body, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(record.parent)}}).execute()
    assert evidence(ended.settings.home, "r1") == before and verify(ended).ok


def test_a_changed_parameter_parts_from_the_original(ended, monkeypatch):
    copy = by_hand("r1", "trigger", ended)
    assert "different" in execute(copy.notebook, monkeypatch, ask=9)
    seen = beside_original(copy.place)
    assert seen.level is Equality.DIFFERENT and "parts first at outputs.n: 3 then, 9 by hand" in seen.sentence and "asked 9" in seen.by_hand
    kept = read_json(RunFolder(ended.settings.home, "r1").product("trigger", "decision"))
    assert kept["decision"]["outputs"] == {"n": 3} and verify(ended).ok
    assert "bit-equal" in execute(copy.notebook, monkeypatch, ask=3)   # the same copy again, as it was


@pytest.mark.parametrize("run, stage, error, text", [
    ("../r1", "train", InvalidInput, "is not a run id"), ("r1/..", "train", InvalidInput, "is not a run id"), ("", "train", InvalidInput, "is not a run id"),
    ("r1\n", "train", InvalidInput, "is not a run id"), ("r2", "train", UnknownRun, "r1"), ("r1", "trian", InvalidInput, "did you mean 'train'"),
    ("r1", "../train", InvalidInput, "unknown stage|train"), ("r1", "", InvalidInput, "stage")])
def test_what_cannot_be_copied_is_said_and_leaves_nothing(ended, run, stage, error, text):
    with pytest.raises(error, match=text): by_hand(run, stage, ended)
    assert not (ended.settings.home / "by_hand").exists()


def test_a_stage_that_has_not_run_and_one_that_acts(project):  # noqa: F811
    ctx = context(project)
    retrain("ad_score_predictor", run="r1", until="prepare", ctx=ctx)
    with pytest.raises(InvalidInput, match="has not decided anything; stages that can be run by hand: trigger, prepare"): by_hand("r1", "train", ctx)
    want = RunFolder(ctx.settings.home, "r1")
    body = want.intention
    (want.path / "run.json").write_text(json.dumps({**body, "stages": [*body["stages"], "shadow"]}))
    with pytest.raises(InvalidInput, match="shadow acts on gateways.*products/shadow.ipynb.*within replay r1"): by_hand("r1", "shadow", ctx)
    ctx.close()


def test_a_run_at_work_is_left_alone(ended):
    path = ended.settings.home / "locks" / "retrain-ad_score_predictor.lock"
    with open(path, "a+", encoding="utf-8") as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(Conflict, match="run r1 is at work"): by_hand("r1", "train", ended)
        held.truncate(0)
        held.write("run other, process 1")
        held.flush()
        assert by_hand("r1", "train", ended).place.name == "train-1"   # another run of the same model is at work: none of our business
    assert by_hand("r1", "train", ended).place.name == "train-2"


def test_changed_evidence_is_not_copied(ended):
    product = RunFolder(ended.settings.home, "r1").product("prepare", "decision")
    product.write_text(product.read_text().replace("passed", "failed"))
    with pytest.raises(DigestMismatch, match="no stage of run r1 was copied"): by_hand("r1", "train", ended)
    assert not (ended.settings.home / "by_hand").exists()


def test_two_at_once_get_a_copy_each_and_one_that_fails_is_removed(ended, monkeypatch):
    made, wrong = [], []

    def ask() -> None:
        try: made.append(by_hand("r1", "train", context(ended.settings.home.parent)).place.name)
        except Exception as error: wrong.append(error)   # shown below
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert not wrong and sorted(made) == ["train-1", "train-2", "train-3", "train-4"]
    monkeypatch.setattr(shutil, "copyfile", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"): by_hand("r1", "train", ended)
    assert not (ended.settings.home / "by_hand/r1/train-5").exists()


def test_what_is_no_working_copy_is_not_entered(ended, tmp_path):
    before = dict(os.environ)
    with pytest.raises(InvalidInput, match="is not a working copy"): enter(tmp_path)
    copy = by_hand("r1", "train", ended)
    with pytest.raises(InvalidInput, match="has not decided anything here yet"): beside_original(copy.place)
    assert dict(os.environ) == before
