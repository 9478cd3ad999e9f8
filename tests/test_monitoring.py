"""The monitor: waiting, collecting, alarming once, and telling people where they asked to be told."""

import json

import numpy as np
import pandas as pd
import pytest

from within.clock import FrozenClock, iso, parse_time
from within.context import Context
from within.errors import InvalidInput, StageNotReady, UnknownModel, UnknownModelVersion
from within.ledger import entries
from within.monitoring import PostDeploymentMonitor
from within.observations import PredictionLog
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


def play(ctx, since, days, right=0.9, failed=0.0, ms=5.0, centre=50.0, n=4000, seed=0):
    "Live traffic of 2.1.0 as a gateway would log it; outcomes come at once."
    rng, log = np.random.default_rng(seed), PredictionLog(ctx, "production")
    lines, feedback = [], []
    for i in range(n):
        at, output = since + pd.Timedelta(days=days * i / n), float(np.clip(rng.normal(centre, 12), 0, 100))
        outcome, broke = output if rng.random() < right else (99.0 if output < 50 else 1.0), rng.random() < failed
        lines.append({"id": f"{iso(since)}-{seed}-{i}", "at": iso(at), "environment": "production", "model": MODEL, "version": "2.1.0",
                      "variant": "default", "role": "live", "unit": f"u{i % 500}", "output": None if broke else output,
                      "latency_ms": float(rng.gamma(4, ms / 4)), "error": "boom" if broke else None})
        feedback.append({"id": lines[-1]["id"], "kind": "outcome", "value": outcome, "at": iso(at)})
    log.append(lines), log.append_feedback(feedback), log.close()


def test_without_traffic_it_waits(frozen):
    status = monitor(frozen).start()
    assert status.phase is Phase.WAITING and "no traffic" in status.reason and not status.alerts
    assert frozen.store.get("monitor", status.id).body["phase"] == "waiting"
    assert not frozen.path("outbox").exists()


def test_a_version_that_no_route_serves_waits_whatever_it_did_before(frozen):
    from within.ml.registry import ModelRegistry
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
    frozen.clock.advance(parse_duration("11d"))
    status = m.check()
    assert status.phase is Phase.INCONCLUSIVE, "its time is over, and one metric is not built: a person must look"
    phases = dict(zip(METRICS, [Phase.PASSED] * 4 + [Phase.INCONCLUSIVE], strict=True))
    assert {v.gate: v.phase for v in status.verdicts} == {f"monitor.{n}": p for n, p in phases.items()}, status.reason
    assert not status.alerts and frozen.store.find("alert") == [] and len(status.table()) == 5
    assert frozen.store.observations(f"monitor:{status.id}", "accuracy")


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
