"""A rehearsed life: what it may not touch, and that the same days lived twice are the same."""
import os
import re
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import ROOT, assert_nothing_runs

from within.clock import parse_time
from within.context import Context
from within.errors import Conflict, InvalidInput, NotDue, UnknownModel
from within.rehearsal import AUTHOR, Schedule, alone, differences, fitted, lay_out, live, rehearse
from within.rehearsal_faults import Fault, Plant, wrong_outcomes
from within.rehearsal_page import rehearsal_page
from within.serving.replayer import Replayer
from within.soak import planted_for, soak
from within.warehouse import DatasetInfo

MODEL = "ad_score_predictor"


@pytest.fixture
def small(tmp_path):
    "The shipped policies with numbers that a world of a fiftieth can meet."
    configs = Path(shutil.copytree(ROOT / "configs", tmp_path / "small" / "configs"))
    file = configs / f"{MODEL}.yml"
    body = yaml.safe_load(file.read_text())
    body["gates"] = {**body["gates"], "required_suites": ["performance"]}   # a segment of so few rows cannot be judged
    body["training"]["parameters"]["n_estimators"] = 60
    body["search"] |= {"trials": 2, "folds": 3}
    file.write_text(yaml.safe_dump(body, sort_keys=False))
    return configs


def test_a_paced_home_moves_on_only_with_the_one_who_paces_it(tmp_path):
    Context.open(home=tmp_path / "home").store.clock_start(parse_time("2023-10-01"))
    ctx = Context.open(home=tmp_path / "home", configs=ROOT / "configs")
    try:
        assert ctx.moves_on and Replayer(ctx).advance_to("2023-10-02").ticks == 1
        ctx.path("paced").touch()
        with pytest.raises(NotDue) as early: Replayer(ctx).advance_to("2023-10-05")
        assert early.value.until == parse_time("2023-10-05") and ctx.now() == parse_time("2023-10-02") and not ctx.moves_on
        assert Replayer(ctx, paces=True).advance_to("2023-10-03").ticks == 1 and ctx.now() == parse_time("2023-10-03")
    finally: ctx.close()


def test_a_rehearsal_rings_nobody_and_knows_no_other_place(monkeypatch):
    for name in ("WITHIN_ALERT_SLACK_ML_TEAM", "WITHIN_DATABASE_URL", "MLFLOW_TRACKING_URI", "WITHIN_TOKEN", "RAY_ADDRESS"): monkeypatch.setenv(name, "x://y")
    before = dict(os.environ)
    with pytest.raises(ZeroDivisionError), alone(WITHIN_HOME="here"):
        assert {k for k in os.environ if k.startswith(("WITHIN_", "MLFLOW_TRACKING", "RAY_ADDRESS"))} == {"WITHIN_HOME"}
        raise ZeroDivisionError
    assert dict(os.environ) == before


def test_a_policy_file_is_refused_with_file_line_and_key_before_anything_is_made(tmp_path):
    text = (ROOT / f"configs/{MODEL}.yml").read_text()
    for old, new, says in (("minimums:", "alpha: 2\nminimums:", r"mine\.yml:\d+: alpha"),
                           ("model: ad_score_predictor", "model: another", r"mine\.yml:2: model: this is the policy of 'another'"),
                           ("  samples: 50000", "  sampels: 50000", r"mine\.yml:\d+: minimums\.sampels: .*samples"), ("target:", "target: [", r"mine\.yml")):
        mine = tmp_path / "mine.yml"
        mine.write_text(text.replace(old, new))
        with pytest.raises(InvalidInput) as refused: rehearse(MODEL, policy=mine, keep=tmp_path / "home")
        assert re.search(says, str(refused.value)) and not (tmp_path / "home").exists()
    with pytest.raises(InvalidInput, match="no such file"): rehearse(MODEL, policy=tmp_path / "nothing.yml")
    with pytest.raises(UnknownModel): rehearse("../../etc/passwd")
    with pytest.raises(InvalidInput, match="bad_challenger"): rehearse(MODEL, fault="flood")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    with pytest.raises(Conflict, match="holds something"): rehearse(MODEL, keep=tmp_path / "taken")


def test_only_row_counts_shrink_with_the_world_and_the_project_is_a_copy(tmp_path):
    from within.policies import load_policy
    policy, body = load_policy(MODEL, ROOT / "configs"), yaml.safe_load((ROOT / f"configs/{MODEL}.yml").read_text())
    assert fitted(policy, body, 1.0) == body
    here = lay_out(tmp_path, ROOT / "configs", {MODEL: fitted(policy, body, 0.05)})
    assert set(differences(policy, load_policy(MODEL, here))) == {"minimums.samples", "search.rows"}
    assert load_policy(MODEL, here).minimums.samples == 2500 and (tmp_path / "project/nbs/stages/s10_trigger.ipynb").is_file()


def test_wrong_outcomes_are_put_right_also_when_the_run_breaks(tmp_path):
    ctx = Context.open(home=tmp_path / "home", configs=ROOT / "configs")
    try:
        days = pd.date_range("2023-01-01", periods=50, tz="UTC")
        frame = pd.DataFrame({"created_at": days, "account_id": "a", "effectiveness_score": range(50), "x": range(50)})
        for n, part in enumerate(("one", "two")):
            ctx.warehouse.write("ads", frame.iloc[n * 25:(n + 1) * 25], part, DatasetInfo("ads", "created_at", "account_id", "effectiveness_score"))
        def table(): return ctx.warehouse.raw("ads").to_pandas().sort_values("x", ignore_index=True)
        before = table()
        with pytest.raises(ZeroDivisionError), wrong_outcomes(ctx, MODEL, 0):
            during = table()
            raise ZeroDivisionError
        assert (during["effectiveness_score"] != before["effectiveness_score"]).mean() > 0.8
        assert sorted(during["effectiveness_score"][:25]) == list(range(25)) and during["x"].equals(before["x"])
        pd.testing.assert_frame_equal(table(), before)
    finally: ctx.close()


@pytest.mark.slow
@pytest.mark.timeout(2400)   # two whole lives; a few minutes on a machine of its own
def test_the_same_days_lived_twice_are_the_same_and_the_bad_challenger_is_caught(small, tmp_path, monkeypatch):
    monkeypatch.setenv("WITHIN_CONFIGS", str(small))
    monkeypatch.setenv("WITHIN_ALERT_SLACK_ML_TEAM", "json://127.0.0.1:9")   # nobody may be rung
    found = soak([MODEL], 9, 0.02, keep=tmp_path / "kept")
    one = found.one
    assert found.faults == () and len(one.events) > 10, found.faults
    assert one.retrained == 1 and one.released == 0
    caught = one.noticed[f"bad_challenger of {MODEL}"]
    assert caught is not None and caught.kind in ("decision", "run") and (caught.at - parse_time("2023-10-01")) == timedelta(days=7)
    assert "was noticed on day 7" in str(one) and "bad_challenger" in rehearsal_page(one)
    assert one.figures == found.other.figures and one.home != found.other.home
    for n in (1, 2):
        home = tmp_path / f"kept/life-{n}/home"
        assert_nothing_runs(home)
        places = {"WITHIN_HOME": str(home), "WITHIN_CONFIGS": str(home.parent / "project/configs")}
        env = {k: v for k, v in os.environ.items() if not k.startswith("WITHIN_")} | places
        command = [sys.executable, "-c", "from within.cli import main; main()", "audit", "verify"]
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert not [k for k in os.environ if os.environ[k] == AUTHOR]


def test_when_one_life_cannot_begin_the_other_ends_too(tmp_path):
    (tmp_path / "kept/life-1").mkdir(parents=True)
    (tmp_path / "kept/life-1/mine").touch()
    with pytest.raises(Conflict, match="holds something already"): soak([MODEL], 90, 0.02, keep=tmp_path / "kept")
    assert_nothing_runs(tmp_path / "kept/life-2/home")


def test_plants_of_the_soak_begin_within_its_days():
    assert {p.model for p in planted_for([MODEL], 90)} == {MODEL} and all(0 <= p.day < 90 for p in planted_for([MODEL], 90))
    assert Schedule().approve_after is None, "after a rollback nobody gives a standing approval anew unless it is asked for"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_requests_that_stop_are_noticed_by_the_first_versions_monitor(small, tmp_path, monkeypatch):
    monkeypatch.setenv("WITHIN_CONFIGS", str(small))
    plant = Plant(Fault.TRAFFIC_STOP, MODEL, 2)
    found = live((MODEL,), {}, (plant,), 4, 0.02, 0, tmp_path / "kept")
    caught = found.noticed[f"traffic_stop of {MODEL}"]
    assert caught is not None and caught.kind == "alert" and caught.outcome == "opened" and "request" in caught.sentence, found
    assert (caught.at - parse_time("2023-10-01")).days == 3 and found.letters == found.expected >= 2
    assert [e.subject for e in found.events if e.kind == "alert" and e.outcome == "opened"].count(caught.subject) == 1, "told once, looked at every day"
