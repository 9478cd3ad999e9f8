"""The same run again: bit-equal, or where it parts; and two runs side by side."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import on_path
from test_runs import STAGES, project, write_notebook  # noqa: F401  (project is a fixture)

from within.clock import FrozenClock
from within.context import Context
from within.errors import DigestMismatch, InvalidInput, UnknownRun
from within.ledger import entries, verify
from within.runs.compare import LEVELS, number_level, overall, side_by_side, stage_differences, text_level
from within.runs.folder import RunFolder
from within.runs.replay import replay
from within.runs.walk import retrain
from within.verdicts import Phase

BIT, NUMERIC, STATISTIC, OPEN, DIFFERENT = LEVELS


# Comparing

@pytest.mark.parametrize("first, second, level", [
    ("a", "a", BIT), ("a", "b", DIFFERENT), ("", "a", DIFFERENT), ("8.0", "8.1", OPEN), ("8.0 (7.5 to 8.5)", "8.1 (7.6 to 8.6)", STATISTIC),
    ("8.0 (7.5 to 8.5)", "8.6 (8.1 to 9.0)", DIFFERENT), ("1,234 rows", "1,235 rows", OPEN),
    ("+11.29 % (+10.03 to +12.60)", "+11.3 % (+10.0 to +12.6)", STATISTIC), ("model 25369164fa8c69", "model 7776b5eec51085", NUMERIC),
    ("passed 1", "failed 1", DIFFERENT), ("5 of 7", "5 of 7 of 9", DIFFERENT)])
def test_texts_with_figures(first, second, level): assert text_level(first, second, 1e-9) is level


def test_another_snapshot_is_other_data(): assert text_level("ab" * 32, "cd" * 32, 1e-9, "evidence.snapshot") is DIFFERENT


@pytest.mark.parametrize("a, b, low, high, level", [(1, 1.0, None, None, BIT), (1.0, 1.0 + 1e-12, None, None, NUMERIC), (0.0, 1e-30, None, None, OPEN),
                                                    (1.0, 1.1, 0.9, 1.2, STATISTIC), (1.0, 1.3, 0.9, 1.2, DIFFERENT), (-1.0, 1.0, None, None, OPEN)])
def test_numbers(a, b, low, high, level): assert number_level(a, b, 1e-9, low, high) is level


def body(**more): return {"outcome": "passed", "reason": "8.0", "evidence": {}, "measured": {}, "outputs": {}, "verdicts": [], **more}


@pytest.mark.parametrize("one, two", [
    ({"evidence": {"a": 1}}, {"evidence": {}}), ({"evidence": {"a": [1, 2]}}, {"evidence": {"a": [1]}}), ({"evidence": {"a": True}}, {"evidence": {"a": 1}}),
    ({"evidence": {"a": None}}, {"evidence": {"a": 0.0}}), ({"outcome": "passed"}, {"outcome": "failed"}), ({"evidence": {"a": {}}}, {"evidence": {"a": []}}),
    ({"verdicts": [{"gate": "g", "phase": "passed"}]}, {"verdicts": []})])
def test_what_is_of_another_shape_is_different(one, two):
    for a, b in ((one, two), (two, one)):
        (only,) = stage_differences("evaluate", body(**a), body(**b))
        assert only.level is DIFFERENT


def test_what_was_measured_is_not_compared_and_live_verdicts_neither():
    slow = {"gate": "integration.latency_p95", "phase": "failed", "figure": 300.0}
    then, now = body(measured={"seconds": 1}, verdicts=[slow]), body(measured={"seconds": 9}, verdicts=[{**slow, "phase": "passed"}])
    assert stage_differences("validate", then, now) == []
    gate = {"gate": "shadow.skew", "phase": "passed", "figure": 0.1}
    assert stage_differences("shadow", body(verdicts=[gate]), body(verdicts=[{**gate, "figure": 0.2}], reason="other")) == []
    assert stage_differences("shadow", body(), body(outcome="failed"))[0].field == "outcome"
    assert overall([OPEN]) is STATISTIC and overall([OPEN], decided=False) is DIFFERENT and overall([]) is BIT


# Replaying a run of three small notebooks, of which one uses a package

TRAIN = ("upstream = ['prepare']", "rounds = 5  # int, trees",
         "import depend\nfigure = rounds * depend.FACTOR\n"
         "stage.conclude(Decision('passed', f'figure {figure:.3f}', evidence={'figure': figure}, measured={'seconds': time.time()}))")


def depend(place: Path, version: str, factor: float) -> None:
    for old in place.glob("depend*"):
        for file in (old.iterdir() if old.is_dir() else []): file.unlink()
        old.rmdir() if old.is_dir() else old.unlink()
    info = place / f"depend-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: depend\nVersion: {version}\n")
    (place / "depend.py").write_text(f"FACTOR = {factor!r}\n")


@pytest.fixture
def finished(project, tmp_path_factory, monkeypatch):  # noqa: F811
    "A finished run of a project whose last stage uses the package `depend` 1.0; the context and the package's folder."
    place = tmp_path_factory.mktemp("packages")
    depend(place, "1.0", 2.0)
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("PYTHONPATH", on_path(place))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    write_notebook(project / "nbs/stages/s20_train.ipynb", "train", *TRAIN)
    ctx = Context.open(home=project / "home", configs=project / "configs", clock=FrozenClock("2023-10-01"))
    assert retrain("ad_score_predictor", run="r1", sets=["rounds=7"], ctx=ctx).phase is Phase.PASSED
    yield ctx, place
    ctx.close()


def within(*arguments):
    env = {**os.environ, "PYTHONPATH": on_path(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", "from within.cli import main; main()", *arguments], env=env, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_bit_equal_then_other_versions_of_one_package_and_then_a_changed_notebook(finished):
    ctx, place = finished
    before, said = len(entries(ctx)), []
    same = replay("r1", ctx, tell=said.append)
    assert same.level is BIT and same.first is None and list(same.compared) == ["trigger", "prepare", "train"], same
    assert len(entries(ctx)) == before and verify(ctx).ok and "packages are those of the run" in said[0]
    assert (same.home / "runs/r1/products/train.html").is_file()   # the repetition can be looked at

    depend(place, "1.1", 2.0 + 1e-13)
    near = replay("r1", ctx, tell=said.append)
    assert near.level is NUMERIC and near.environment == ("package depend: 1.0 then, 1.1 now",) and near.home != same.home

    depend(place, "2.0", 3.0)
    code, shown, wrong = within("replay", "r1", "--json")
    assert code == 1, wrong
    other = json.loads(shown)
    assert (other["first"]["stage"], other["first"]["field"], other["first"]["before"], other["first"]["after"]) == ("train", "evidence.figure", 14.0, 21.0)
    assert other["compared"] == {"trigger": "bit-equal", "prepare": "bit-equal", "train": "different"}
    assert other["environment"] == ["package depend: 1.0 then, 2.0 now"]
    assert "they part first in train at evidence.figure" in other["sentence"]
    assert within("replay", "r1", "--accept", "roughly")[0] == 2

    # what cannot be replayed is said
    with pytest.raises(UnknownRun): replay("r2", ctx)
    with pytest.raises(InvalidInput, match="is not a run id"): replay("../r1", ctx)
    with pytest.raises(InvalidInput, match="did you mean 'train'"): replay("r1", ctx, until="trian")
    for tolerance in (-1, 1, float("nan")):
        with pytest.raises(InvalidInput, match="tolerance"): replay("r1", ctx, tolerance=tolerance)
    homes, copy = len(list((ctx.settings.home / "replays").iterdir())), RunFolder(ctx.settings.home, "r1").path / "stages" / "s20_train.ipynb"
    copy.write_text(copy.read_text().replace("depend.FACTOR", "1000"))
    with pytest.raises(DigestMismatch, match="s20_train.ipynb.*nothing of run r1 was executed"): replay("r1", ctx)
    assert homes == len(list((ctx.settings.home / "replays").iterdir()))


def test_another_version_put_before_the_installed_one_is_said(finished, tmp_path, monkeypatch):
    ctx, place = finished
    over = tmp_path / "over"
    (info := over / "depend-1.5.dist-info").mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: depend\nVersion: 1.5\n")
    (over / "depend.py").write_text((place / "depend.py").read_text())
    monkeypatch.setenv("PYTHONPATH", on_path(over))
    code, shown, wrong = within("replay", "r1", "--json")
    told = json.loads(shown)
    assert code == 0 and told["level"] == "bit-equal", wrong   # the other version answers the same
    assert told["environment"] == ["package depend: 1.0 then, 1.5 now"], "of two on the path the first is the one that is imported"


def test_two_runs_side_by_side(finished):
    ctx, place = finished
    depend(place, "2.0", 3.0)
    assert retrain("ad_score_predictor", run="r2", sets=["rounds=8"], ctx=ctx).phase is Phase.PASSED
    parted = {(p.section, p.name): (p.first, p.second) for p in side_by_side(ctx, "r1", "r2") if not p.same}
    assert parted[("parameters", "train.rounds")] == (7, 8) and parted[("code", "package depend")] == ("1.0", "2.0")
    assert parted[("decisions", "train: why")] == ("figure 14.000", "figure 24.000") and ("parameters", "trigger.ask") not in parted
    with pytest.raises(InvalidInput, match="same run twice"): side_by_side(ctx, "r1", "r1")
    with pytest.raises(UnknownRun): side_by_side(ctx, "r1", "r9")
    code, shown, _ = within("diff", "r1", "r2")
    assert code == 0 and "train.rounds" in shown and "facts are the same" in shown and "trigger.ask" not in shown
    facts = json.loads(within("diff", "r1", "r2", "--json")[1])
    assert {"section": "parameters", "name": "train.rounds", "first": 7, "second": 8, "same": False} in facts
