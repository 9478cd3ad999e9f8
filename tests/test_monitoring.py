"""The monitor: waiting, collecting, alarming once, and telling people where they asked to be told."""

import json
import threading

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from typer.testing import CliRunner

from within.cli import app
from within.clock import FrozenClock, iso, parse_time
from within.context import Context
from within.errors import InvalidInput, StageNotReady, UnknownModel, UnknownModelVersion
from within.ledger import entries
from within.ml.importance import sways
from within.ml.registry import ModelRegistry
from within.monitoring import PostDeploymentMonitor, checked, drift_bounds
from within.observations import PredictionLog
from within.scheduler import Scheduler
from within.stats import js_divergence
from within.store import Store
from within.verdicts import Phase
from within.windows import parse_duration

MODEL, START = "ad_score_predictor", parse_time("2023-10-01")
METRICS = ["accuracy", "latency_p95", "error_rate", "prediction_drift", "feature_importance_stability"]


@pytest.fixture
def frozen(ctx): return Context(ctx.settings, ctx.store, FrozenClock(START), 0)


def monitor(ctx, version="2.1.0", **changed):
    made = PostDeploymentMonitor(model_name=MODEL, version=version, baseline_period="7d", ctx=ctx)
    made.configure_intensive_monitoring(**{"duration": "14d", "metrics": METRICS, "alert_channels": ["slack-ml-team", "email-ml-engineers"], **changed})
    return made


def play(ctx, since, days, right=0.9, failed=0.0, ms=5.0, centre=50.0, n=4000, seed=0, asked=None, variant="default"):
    "Live traffic of 2.1.0 as a gateway would log it; outcomes come at once. `asked`: a list of features, repeated."
    rng, log = np.random.default_rng(seed), PredictionLog(ctx, "production")
    lines, feedback = [], []
    for i in range(n):
        at, output = since + pd.Timedelta(days=days * i / n), float(np.clip(rng.normal(centre, 12), 0, 100))
        outcome, broke = output if rng.random() < right else (99.0 if output < 50 else 1.0), rng.random() < failed
        lines.append({"id": f"{iso(since)}-{seed}-{i}", "at": iso(at), "environment": "production", "model": MODEL, "version": "2.1.0",
                      "variant": variant, "role": "live", "unit": f"u{i % 500}", "output": None if broke else output,
                      "latency_ms": float(rng.gamma(4, ms / 4)), "error": "boom" if broke else None,
                      **({"features": asked[i % len(asked)]} if asked else {})})
        feedback.append({"id": lines[-1]["id"], "kind": "outcome", "value": outcome, "at": iso(at)})
    log.append(lines), log.append_feedback(feedback), log.close()


def test_without_traffic_it_waits(frozen):
    status = monitor(frozen).start()
    assert status.phase is Phase.WAITING and "no traffic" in status.reason and not status.alerts
    assert frozen.store.get("monitor", status.id).body["phase"] == "waiting"
    assert not frozen.path("outbox").exists()


def test_a_version_that_no_route_serves_waits_whatever_it_did_before(frozen):
    registry = ModelRegistry(frozen)
    registry.register_model(registry.load(MODEL, "2.1.0"), MODEL, "2.1.1")
    assert monitor(frozen, "2.1.1").start().phase is Phase.WAITING


def test_a_healthy_version_is_watched_and_nobody_is_woken(frozen):
    m = monitor(frozen)
    m.start()
    play(frozen, START, 14)
    frozen.clock.advance(parse_duration("3d"))
    collecting = m.check()
    assert collecting.phase is Phase.RUNNING and "collecting the baseline" in collecting.reason
    frozen.clock.advance(parse_duration("4d"))
    assert "collecting the baseline" in m.check().reason, "at its very end nothing lies behind it yet"
    frozen.clock.advance(parse_duration("7d"))
    status = m.check()
    assert status.phase is Phase.INCONCLUSIVE, "its time is over, and nothing was logged that importances could be told from: a person must look"
    phases = dict(zip(METRICS, [Phase.PASSED] * 4 + [Phase.INCONCLUSIVE], strict=True))
    assert {v.gate: v.phase for v in status.verdicts} == {f"monitor.{n}": p for n, p in phases.items()}, status.reason
    assert not status.alerts and frozen.store.find("alert") == [] and len(status.table()) == 5
    assert frozen.store.observations(f"monitor:{status.id}", "accuracy")


def test_an_intensive_time_that_ends_with_the_baseline_leaves_no_day_without_traffic(frozen):
    m = monitor(frozen, duration="7d")
    m.start()
    play(frozen, START, 9)
    for after in ("7d", "1h", "12h", "12h", "1h"):
        frozen.clock.advance(parse_duration(after))
        assert "no traffic" not in m.check().reason, after


def test_who_steps_in_for_a_late_version_is_not_blamed_for_the_wait(frozen):
    m = monitor(frozen)
    m.start()
    play(frozen, START, 7)
    play(frozen, START + pd.Timedelta(days=7), 3, n=1000, seed=1)
    play(frozen, START + pd.Timedelta(days=7), 3, n=3000, ms=540.0, right=0.7, seed=2, variant="fallback")
    frozen.clock.advance(parse_duration("10d"))
    status = m.check()
    found = {v.gate.rpartition(".")[2]: v for v in status.verdicts}
    assert found["latency_p95"].passed and found["latency_p95"].rows == 1000 and found["error_rate"].rows == 4000
    assert status.alerts == (f"{m.id}:accuracy",), "what it answered is its own"


@pytest.mark.parametrize(("bad", "metric"), [({"right": 0.75}, "accuracy"), ({"failed": 0.05}, "error_rate"), ({"ms": 900.0}, "latency_p95"),
                                             ({"centre": 72.0}, "prediction_drift")])
def test_what_gets_worse_raises_one_alert(frozen, bad, metric):
    m = monitor(frozen)
    m.start()
    play(frozen, START, 7)
    play(frozen, START + pd.Timedelta(days=7), 3, **bad, seed=1)
    frozen.clock.advance(parse_duration("10d"))
    for _ in range(3): status = m.check()
    alert = f"{m.id}:{metric}"
    assert status.phase is Phase.FAILED and alert in status.alerts
    files = [json.loads(f.read_text()) for f in sorted(frozen.path("outbox").glob("*.json"))]
    assert sorted(f["channel"] for f in files if f["alert"] == alert) == ["email-ml-engineers", "slack-ml-team"], "three looks, one alert a channel"
    opened = [e for e in entries(frozen, "alert", alert) if e.body["event"] == "opened"]
    assert len(opened) == 1 and metric in opened[0].body["reason"]
    assert {e.body["receipt"]["said"] for e in entries(frozen, "delivery", alert)} == {"no address, left in outbox"}


def questions(ctx, n=1500, **flat) -> list[dict]:
    "What users ask: rows of the model's dataset, some features held at one value."
    model, policy = ModelRegistry(ctx).load(MODEL, "2.1.0"), ctx.policy(MODEL)
    frame = ctx.warehouse.table(policy.dataset).select(*model.features).head(n).to_pandas().assign(**flat)
    return json.loads(frame.to_json(orient="records"))


@pytest.mark.parametrize("flat", [False, True])
def test_a_model_that_looks_at_other_features_than_before_is_told_apart_from_one_that_does_not(frozen, flat):
    model, asked = ModelRegistry(frozen).load(MODEL, "2.1.0"), questions(frozen)
    frame = pd.DataFrame(asked)
    order = sways(model, frame[:500]).mean().sort_values(ascending=False).index
    leading = [f for f in order if pd.api.types.is_numeric_dtype(frame[f])][:3]
    now = questions(frozen, **{f: float(frame[f].median()) for f in leading}) if flat else asked[750:]
    m = monitor(frozen, metrics=["feature_importance_stability"])
    m.start()
    play(frozen, START, 7, asked=asked[:750], n=1500)
    play(frozen, START + pd.Timedelta(days=7), 1, asked=now, seed=1, n=2500)
    frozen.clock.advance(parse_duration("6d"))
    early = m.check().verdicts[0]
    assert early.phase is Phase.INCONCLUSIVE and "still being collected" in early.reason
    frozen.clock.advance(parse_duration("2d"))
    status = m.check()
    found = status.verdicts[0]
    assert found.phase is (Phase.FAILED if flat else Phase.PASSED) and found.rows == 2500, found.reason
    assert status.alerts == ((f"{m.id}:feature_importance_stability",) if flat else ()) and "moved most" in found.reason
    assert not flat or any(f in found.reason for f in leading)


def test_a_fixed_baseline_and_a_stream_at_the_limit_raise_no_more_false_alarms_than_stated_over_two_weeks_of_hourly_looks():
    rng, bins, hour, streams = np.random.default_rng(7), 20, 20, 60
    edges = norm.ppf(np.linspace(0, 1, bins + 1)[1:-1])
    before, after = np.full(bins, 1 / bins), np.diff(norm.cdf(np.concatenate([[-np.inf], edges - 1.1, [np.inf]])))
    limit, alarms, caught = js_divergence(before, after), 0, 0
    for _ in range(streams):
        p, q = rng.multinomial(3000, before), rng.multinomial(hour, after, size=336).cumsum(0)
        alarms += any(drift_bounds(p, x)[0] > limit for x in q[5:])
        caught += drift_bounds(p, q[-1])[0] > 0.8 * limit
    assert alarms <= 8, "5 % are stated; more than 8 of 60 have a probability of 0.002 then"
    assert caught >= streams - 3, "a quarter above the limit is found"


def test_a_stream_in_which_nothing_changes_wakes_nobody_over_two_weeks_of_looks(frozen):
    m = monitor(frozen, metrics=["prediction_drift", "error_rate", "latency_p95"], duration="21d")
    m.start()
    play(frozen, START, 21, failed=0.004)
    frozen.clock.advance(parse_duration("7d"))
    for _ in range(14):
        frozen.clock.advance(parse_duration("1d"))
        assert not m.check().alerts
    assert frozen.store.find("alert") == []


# --- how often it looks ----------------------------------------------------------------------------------------------------------------------------

def test_it_looks_every_hour_and_later_every_day_and_the_scheduler_does_it(frozen):
    m, scheduler = monitor(frozen, metrics=["error_rate"]), Scheduler(frozen)
    first = m.start()
    assert first.next_look_at == iso(START + pd.Timedelta(hours=1)) and scheduler.tick() == []
    play(frozen, START, 30)
    frozen.clock.advance(parse_duration("1h"))
    assert scheduler.tick() == [f"monitor:{m.id}"] and scheduler.tick() == []
    assert frozen.store.get("monitor", m.id).body["next_look_at"] == iso(START + pd.Timedelta(hours=2))
    frozen.clock.advance(parse_duration("14d"))
    assert scheduler.tick() == [f"monitor:{m.id}"]
    frozen.clock.advance(parse_duration("23h"))
    assert scheduler.tick() == []
    frozen.clock.advance(parse_duration("1h"))
    assert scheduler.tick() == [f"monitor:{m.id}"]


def test_what_comes_long_after_the_release_is_not_lost_among_the_rows_before_it(frozen):
    m = monitor(frozen, metrics=["error_rate"])
    m.start()
    play(frozen, START, 60, n=6000)
    play(frozen, START + pd.Timedelta(days=60), 2, failed=0.2, n=200, seed=1)
    frozen.clock.advance(parse_duration("60d"))
    assert m.check().phase is Phase.RUNNING
    frozen.clock.advance(parse_duration("2d"))
    status = m.check()
    assert status.phase is Phase.FAILED and 200 < status.rows < 1200


def test_a_version_that_was_replaced_is_no_longer_unwell(frozen):
    m = monitor(frozen, metrics=["error_rate"])
    m.start()
    play(frozen, START, 1, failed=0.2)
    frozen.clock.advance(parse_duration("1d"))
    assert m.check().alerts
    from within.serving.routes import Route, change, current
    route = current(frozen, "production", MODEL)
    change(frozen, Route("production", MODEL, "9.9.9"), route.revision, by="test", wait=0)
    assert m.check().phase is Phase.WAITING and frozen.store.find("alert", phase="open") == []


def test_two_looks_at_once_write_one(frozen):
    m = monitor(frozen, metrics=["error_rate"])
    m.start()
    play(frozen, START, 1)
    frozen.clock.advance(parse_duration("1d"))
    seen = []
    def look():
        mine = Context(frozen.settings, Store(frozen.settings.database_url), frozen.clock, 0)
        try: seen.append(checked(mine, m.id).phase)
        finally: mine.close()
    threads = [threading.Thread(target=look) for _ in range(4)]
    for t in threads: t.start()
    for t in threads: t.join(60)
    assert seen == [Phase.RUNNING] * 4
    written = frozen.store.observations(f"monitor:{m.id}", "error_rate")
    assert 1 <= len(written) <= 4 and {"low", "high", "limit", "phase"} <= written[0]["labels"].keys()


# --- configuration ---------------------------------------------------------------------------------------------------------------------------------

def test_starting_again_keeps_the_start_and_takes_the_new_configuration(frozen):
    monitor(frozen).start()
    frozen.clock.advance(parse_duration("2d"))
    first = monitor(frozen).start()
    assert first.started_at == iso(START) and len(entries(frozen, "monitor", first.id)) == 1
    second = monitor(frozen, metrics=["accuracy"]).start()
    assert second.started_at == iso(START) and frozen.store.get("monitor", second.id).body["metrics"] == ["accuracy"]


@pytest.mark.parametrize(("changed", "says"), [
    ({"alert_channels": ["slack-ml-teem"]}, "did you mean 'slack-ml-team'"), ({"metrics": ["acuracy"]}, "did you mean 'accuracy'"),
    ({"metrics": []}, "no metric is named"), ({"alert_channels": "slack-ml-team"}, "list of names"), ({"duration": "-3d"}, "duration")])
def test_a_configuration_is_checked_when_it_is_made(frozen, changed, says):
    with pytest.raises(InvalidInput, match=says): monitor(frozen, **changed)


def test_misuse(frozen):
    with pytest.raises(UnknownModel): PostDeploymentMonitor("nobody", "1.0.0", ctx=frozen)
    with pytest.raises(UnknownModelVersion): PostDeploymentMonitor(MODEL, "9.9.9", ctx=frozen)
    with pytest.raises(StageNotReady, match="call start"): monitor(frozen).check()


GAPS = ["accuracy", "request_gap", "outcome_lag"]


def test_requests_that_stop_are_told_once_and_resolved_when_they_come_again(frozen):
    m = monitor(frozen, metrics=GAPS)
    m.start()
    play(frozen, START, 9)
    frozen.clock.advance(parse_duration("9d"))
    assert m.check().alerts == ()
    frozen.clock.advance(parse_duration("2d"))
    silent = [m.check() for _ in range(3)][-1]
    assert silent.phase is Phase.FAILED and silent.alerts == (f"{m.id}:request_gap",) and "48" in silent.reason, silent.reason
    assert len(list(frozen.path("outbox").glob("*.json"))) == 2, "one message a channel"
    frozen.clock.advance(parse_duration("10d"))
    assert m.check().phase is Phase.FAILED, "the stretch that is judged has no row at all by now"
    play(frozen, frozen.now(), 0.5, seed=1)
    frozen.clock.advance(parse_duration("12h"))
    assert m.check().alerts == () and frozen.store.get("alert", f"{m.id}:request_gap").body["phase"] == "resolved"


def test_a_version_that_nobody_ever_asks_is_told_after_the_same_time(frozen):
    m = monitor(frozen, metrics=GAPS)
    assert m.start().phase is Phase.WAITING
    frozen.clock.advance(parse_duration("24h"))
    assert m.check().phase is Phase.WAITING
    frozen.clock.advance(parse_duration("1h"))
    assert m.check().phase is Phase.FAILED and "no request has come" in m.check().reason


@pytest.mark.parametrize(("late", "phase"), [(2, Phase.PASSED), (6, Phase.FAILED)])
def test_outcomes_that_come_later_than_they_used_to_are_told(frozen, late, phase):
    m = monitor(frozen, metrics=GAPS)
    m.start()
    play(frozen, START, 7)
    at, log = START + pd.Timedelta(days=7), PredictionLog(frozen, "production")
    rows = [{"id": f"late-{i}", "at": iso(at + pd.Timedelta(hours=i)), "environment": "production", "model": MODEL, "version": "2.1.0", "variant": "default",
             "role": "live", "unit": f"u{i}", "output": 60.0, "latency_ms": 3.0, "error": None} for i in range(24 * 12)]
    log.append(rows), log.append_feedback([{"id": r["id"], "kind": "outcome", "value": 60.0, "at": iso(parse_time(r["at"]) + pd.Timedelta(days=late))}
                                           for r in rows]), log.close()
    frozen.clock.advance(parse_duration("5d"))
    assert [v.phase for v in m.check().verdicts if v.gate == "monitor.outcome_lag"] == [Phase.INCONCLUSIVE], "what is usual is not known yet"
    frozen.clock.advance(parse_duration("10d"))
    found = next(v for v in m.check().verdicts if v.gate == "monitor.outcome_lag")
    assert found.phase is phase and found.rows > 0, found.reason


def test_a_version_that_nothing_watches_is_named_until_somebody_starts_a_monitor(ctx):
    said = lambda *words: CliRunner().invoke(app, words)   # noqa: E731
    assert f"nothing watches {MODEL}@2.1.0 in production: within monitor {MODEL} --start 2.1.0" in said("status").output
    wrong = said("monitor", MODEL, "--start", "<b>9</b>")
    assert wrong.exit_code == 2 and not ctx.store.find("monitor")
    begun = said("monitor", MODEL, "--start", "2.1.0")
    assert begun.exit_code == 0 and "no traffic" in begun.output, begun.output
    assert [r.id for r in ctx.store.find("monitor")] == [f"production/{MODEL}@2.1.0"]
    assert f"nothing watches {MODEL}" not in said("status").output
