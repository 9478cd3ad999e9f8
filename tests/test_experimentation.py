"""A/B tests: who wins, who does not, and that looking again, starting again and losing traffic are handled."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from within.clock import FrozenClock, iso, parse_time
from within.context import Context
from within.errors import Conflict, InvalidInput, NotApproved, StageNotReady, UnknownModelVersion
from within.ledger import entries
from within.ml.experimentation import ABTest, share_difference, share_of
from within.ml.models import AdScorePredictor
from within.ml.registry import ModelRegistry
from within.observations import PredictionLog
from within.serving.routes import Shadow, Share, change, current
from within.serving.supervisor import release
from within.stats.intervals import proportion_interval
from within.verdicts import Phase
from within.windows import parse_duration

MODEL, START = "ad_score_predictor", parse_time("2023-10-01")
VARIANTS = [{"name": "control", "model_version": "2.1.0", "traffic_percentage": 50}, {"name": "treatment", "model_version": "2.2.0", "traffic_percentage": 50}]
METRICS = [{"name": "accuracy", "priority": "primary"}, {"name": "latency_p95", "priority": "secondary"}, {"name": "user_feedback", "priority": "secondary"}]


def register(ctx, approved=True):
    "Version 2.2.0: a small model of its own, approved or not."
    x = pd.DataFrame({"ad_content.word_count": np.arange(200.0), "platform": ["a", "b"] * 100})
    model = AdScorePredictor({"n_estimators": 3, "max_depth": 2}).fit(x, pd.Series(np.linspace(1, 99, 200), name="effectiveness_score"))
    registry = ModelRegistry(ctx)
    registry.register_model(model, MODEL, "2.2.0", training_data_info={"start_date": "2023-01-01", "end_date": "2023-09-30", "samples": 200})
    if approved: registry.approve(f"{MODEL}@2.2.0", reviewer="reviewer@example.com", note="read the packet")


@pytest.fixture
def frozen(ctx):
    "The small world on a clock that only the test moves; no process runs."
    register(ctx)
    return Context(ctx.settings, ctx.store, FrozenClock(START), 0)


def ab(ctx, **changed):
    return ABTest(**{"name": "v2_2_0_vs_v2_1_0", "variants": VARIANTS, "metrics": METRICS, "duration": "14d", "ctx": ctx, **changed})


def play(ctx, right, content=(0.7, 0.7), failed=(0.0, 0.0), ms=(5.0, 5.0), units=(1500, 1500), each=4, days=14.0, late_days=1.0, seed=0):
    "Write what a gateway would have logged for two arms from now on: shares right, content and failed, mean latency."
    rng, log = np.random.default_rng(seed), PredictionLog(ctx, "production")
    start, lines, feedback = ctx.now(), [], []
    for arm, (name, version) in enumerate((("control", "2.1.0"), ("treatment", "2.2.0"))):
        for u in range(units[arm]):
            for j in range(each):
                at = start + pd.Timedelta(days=float(rng.uniform(0, days)))
                outcome = float(rng.uniform(0, 100))
                good, broke = rng.random() < right[arm], rng.random() < failed[arm]
                output = None if broke else (outcome if good else 100 - outcome if abs(outcome - 50) > 1 else 100.0 * (outcome < 50))
                id = f"{name}-{u}-{j}"
                lines.append({"id": id, "at": iso(at), "environment": "production", "model": MODEL, "version": version, "variant": name, "role": "live",
                              "unit": f"{name}-{u}", "output": output, "latency_ms": float(rng.gamma(4, ms[arm] / 4)), "error": "host gone" if broke else None})
                feedback.append({"id": id, "kind": "outcome", "value": outcome, "at": iso(at + pd.Timedelta(days=late_days))})
                if j == 0: feedback.append({"id": id, "kind": "user_feedback", "value": float(rng.random() < content[arm]), "at": iso(at)})
    log.append(lines), log.append_feedback(feedback), log.close()


def run(ctx, **traffic):
    test = ab(ctx)
    test.start()
    play(ctx, **traffic)
    ctx.clock.advance(parse_duration("14d"))
    return test.get_results()


def test_a_better_treatment_wins_and_the_route_goes_back(frozen):
    result = run(frozen, right=(0.78, 0.86))
    assert (result.winner, result.status, result.phase) == ("treatment", "completed", Phase.PASSED), result.reason
    low, high = result.interval
    assert 0 < low < result.effect < high and result.srm > 0.001
    assert f"{result.effect * 100:+.2f}" in result.reason and "threshold 0" in result.reason
    route = current(frozen, "production", MODEL)
    assert route.default == "2.1.0" and not route.shares
    assert [e.body["event"] for e in entries(frozen, "experiment", "v2_2_0_vs_v2_1_0")] == ["started", "ended"]
    assert {o["labels"]["variant"] for o in frozen.store.observations("experiment:v2_2_0_vs_v2_1_0", "accuracy")} == {"control", "treatment"}
    assert ab(frozen).get_results() == result and ab(frozen).start() == result, "finished: the same for ever"


@pytest.mark.parametrize(("traffic", "winner", "status", "says"), [
    ({"right": (0.86, 0.78)}, "control", "completed", "worse than the control"),
    ({"right": (0.82, 0.82)}, None, "inconclusive", "neither shown better nor worse"),
    ({"right": (0.78, 0.86), "failed": (0.0, 0.05)}, "control", "completed", "error_rate of treatment"),
    ({"right": (0.78, 0.86), "ms": (5.0, 90.0)}, "control", "completed", "latency_p95 of treatment"),
    ({"right": (0.78, 0.86), "content": (0.8, 0.5)}, "control", "completed", "user_feedback of treatment"),
    ({"right": (0.78, 0.90), "units": (1500, 1200)}, None, "inconclusive", "not compatible with the promised shares"),
    ({"right": (0.5, 0.95), "units": (12, 12)}, None, "inconclusive", "neither shown"),
    ({"right": (0.5, 0.95), "units": (0, 0)}, None, "inconclusive", "neither shown"),
    ({"right": (0.78, 0.90), "late_days": 30.0}, None, "inconclusive", "0 and 0 known outcomes")])
def test_every_other_ending(frozen, traffic, winner, status, says):
    result = run(frozen, **traffic)
    assert (result.winner, result.status) == (winner, status), result.reason
    assert says in result.reason
    assert not current(frozen, "production", MODEL).shares
    assert ab(frozen).get_results() == result


def test_before_the_end_it_runs_and_nobody_has_won(frozen):
    test = ab(frozen)
    assert test.start().status == "running"
    play(frozen, right=(0.6, 0.95))
    frozen.clock.advance(parse_duration("7d"))
    early = test.get_results()
    assert (early.status, early.winner, early.phase) == ("running", None, Phase.WAITING) and early.effect > 0.1 and "2023-10-15" in early.reason
    assert current(frozen, "production", MODEL).shares, "still sharing out"


def test_start_is_idempotent_and_leaves_the_shadow_alone(frozen):
    before = current(frozen, "production", MODEL)
    change(frozen, replace(before, shadows=(Shadow("2.2.0", 100, "dep-1"),)), before.revision, by="test")
    test = ab(frozen)
    test.start(), ab(frozen).start()
    route = current(frozen, "production", MODEL)
    assert route.shadows == (Shadow("2.2.0", 100, "dep-1"),) and route.salt == test.name
    assert [(s.variant, s.version, s.percentage) for s in route.shares] == [("control", "2.1.0", 50), ("treatment", "2.2.0", 50)]
    assert len(entries(frozen, "experiment", test.name)) == 1
    with pytest.raises(Conflict, match="other variants"): ab(frozen, duration="7d").start()
    with pytest.raises(Conflict, match="already shared out"): ab(frozen, name="another").start()
    frozen.clock.advance(parse_duration("14d"))
    test.get_results()
    assert current(frozen, "production", MODEL).shadows


def test_a_start_that_was_cut_short_is_finished_by_the_next(frozen, monkeypatch):
    import within.ml.experimentation as module
    def cut(*_, **__): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(module, "change", cut)
        with pytest.raises(KeyboardInterrupt): ab(frozen).start()
    with pytest.raises(StageNotReady, match="call start"): ab(frozen).get_results()
    assert ab(frozen).start().status == "running" and current(frozen, "production", MODEL).shares


def test_a_route_that_somebody_else_changed_stays_theirs(frozen):
    ab(frozen).start()
    route = current(frozen, "production", MODEL)
    theirs = change(frozen, replace(route, shares=(Share("rollout", "2.2.0", 10),), salt="rollout-1"), route.revision, by="somebody")
    frozen.clock.advance(parse_duration("14d"))
    ab(frozen).get_results()
    assert current(frozen, "production", MODEL) == theirs


def test_users_see_nothing_without_an_approval(ctx):
    register(ctx, approved=False)
    before = current(ctx, "production", MODEL)
    with pytest.raises(NotApproved, match=r"2\.2\.0"): ab(ctx).start()
    assert current(ctx, "production", MODEL) == before and ctx.store.get("experiment", "v2_2_0_vs_v2_1_0") is None


@pytest.mark.parametrize(("changed", "error", "says"), [
    ({"variants": [VARIANTS[0], {**VARIANTS[1], "traffic_percentage": 40}]}, InvalidInput, "add up to 90"),
    ({"variants": [VARIANTS[0], {**VARIANTS[1], "name": "control"}]}, InvalidInput, "used twice"),
    ({"variants": [VARIANTS[0], {**VARIANTS[1], "traffic_percentage": float("nan")}]}, InvalidInput, "above 0"),
    ({"variants": [VARIANTS[0], {**VARIANTS[1], "traffic_percentage": -50}]}, InvalidInput, "above 0"),
    ({"variants": VARIANTS[:1]}, InvalidInput, "at least two"),
    ({"variants": [VARIANTS[0], {"name": "treatment", "version": "2.2.0", "traffic_percentage": 50}]}, InvalidInput, "unknown key"),
    ({"variants": [VARIANTS[0], {**VARIANTS[1], "model_version": "9.9.9"}]}, UnknownModelVersion, r"9\.9\.9"),
    ({"model_name": "account_health_predictor"}, UnknownModelVersion, "account_health_predictor has no version"),
    ({"metrics": METRICS[1:]}, InvalidInput, "exactly one"),
    ({"metrics": [*METRICS, {"name": "error_rate", "priority": "primary"}]}, InvalidInput, "exactly one"),
    ({"metrics": [{"name": "revenue", "priority": "primary"}]}, InvalidInput, "unknown metric"),
    ({"duration": "fortnight"}, InvalidInput, "14d|'10m'"),
    ({"name": "../../etc"}, InvalidInput, "not allowed")])
def test_what_cannot_be_meant_is_refused(frozen, changed, error, says):
    with pytest.raises(error, match=says): ab(frozen, **changed)


def test_two_models_with_the_same_versions_must_be_told_apart(frozen):
    registry = ModelRegistry(frozen)
    for version in ("2.1.0", "2.2.0"): registry.register_model(registry.load(MODEL, version), "twin_predictor", version)
    with pytest.raises(InvalidInput, match="ad_score_predictor and twin_predictor"): ab(frozen)
    assert ab(frozen, model_name=MODEL).model == MODEL


def test_results_before_a_start_are_a_misuse(frozen):
    with pytest.raises(StageNotReady, match="call start"): ab(frozen).get_results()


def test_units_that_repeat_themselves_do_not_raise_false_alarms():
    "Two hundred A/A experiments whose units answer alike, looked at twenty times each."
    rng, alarms = np.random.default_rng(12), 0
    for _ in range(200):
        rates = np.clip(rng.beta(8, 2, (2, 600)), 0, 1)
        frames = [pd.DataFrame({"u": np.tile(np.arange(600), 20), "v": (rng.random((20, 600)) < r).astype(float).ravel()}) for r in rates]
        for look in range(1, 21, 3):
            a, b = (share_of(f["v"][: 600 * look], f["u"][: 600 * look]) for f in frames)
            _, low, high = share_difference(a, b, 0.05)
            if low > 0 or high < 0:
                alarms += 1
                break
    assert proportion_interval(alarms, 200).low <= 0.05, alarms


@pytest.mark.slow
def test_two_weeks_pass_through_the_real_gateway(ctx):
    register(ctx)
    test = ab(ctx)
    test.start()
    try: result = test.get_results()
    finally: release(ctx)
    assert ctx.now() == parse_time("2023-10-15") and result.status in ("completed", "inconclusive")
    assert result.srm > 0.001 and result.metrics["control"]["requests"] > 300 and result.metrics["treatment"]["outcomes"] > 200
    assert result.metrics["treatment"]["error_rate"] == 0 and result.metrics["treatment"]["latency_p95"] > 0
    log = PredictionLog(ctx, "production").predictions(START, ctx.now(), MODEL)
    assert log.groupby("unit")["variant"].nunique().max() == 1, "a unit keeps its variant"
    assert test.get_results() == result and not current(ctx, "production", MODEL).shares
