"""From staging to everybody and back, over real processes and replayed traffic."""
from __future__ import annotations

from dataclasses import replace

import pytest
from test_serving import NAME, body, small  # noqa: F401  (small is a fixture)

from within.errors import Conflict, InvalidInput, NotApproved, NotDue, UnknownDeployment, UnknownModelVersion
from within.ledger import entries, verify
from within.ml.deployment import ModelDeployer, find_deployment
from within.ml.registry import ModelRegistry
from within.serving.routes import Share, change, current
from within.serving.wire import ask
from within.verdicts import Phase

OLD, NEW = f"{NAME}@1.0.0", f"{NAME}@1.1.0"


@pytest.fixture
def deployer(small, monkeypatch):  # noqa: F811
    monkeypatch.setattr(ModelRegistry, "_mirror", lambda *a: None)
    small.store.set_alias(NAME, "champion", "1.0.0", "test")
    return ModelDeployer(small)


def approve(deployer, id=NEW, note="looked at it"):
    return deployer.registry.approve(id, reviewer="reviewer@example.com", note=note)


def answered_by(deployer, units=40, environment="production"):
    url = deployer.deploy(OLD, environment).url if current(deployer.ctx, environment, NAME) is None else None
    from within.serving.supervisor import gateway_url
    url = url or gateway_url(deployer.ctx, environment)
    return {ask(url, f"/v2/models/{NAME}/infer", body(f"q{i}", unit=f"unit-{i}"))[1]["model_version"] for i in range(units)}


def test_staging_needs_no_approval_and_its_suite_passes(deployer):
    staged = deployer.deploy(NEW, "staging", resource_requirements={"cpu": "2", "memory": "4Gi"})
    assert staged.status == "passed" and staged.url.startswith("http://127.0.0.1:") and deployer.deploy(NEW, "staging").id == staged.id
    result = deployer.run_integration_tests(staged.id, "ad_score_integration")
    assert result.status == "passed" and not result.failures and [v.gate for v in result.verdicts][2] == "integration.skew"
    with pytest.raises(InvalidInput, match="ad_score_integration"): deployer.run_integration_tests(staged.id, "ad_score_integraton")
    with pytest.raises(UnknownDeployment): deployer.run_integration_tests("nothing", "ad_score_integration")
    route = current(deployer.ctx, "staging", NAME)
    change(deployer.ctx, replace(route, default="1.0.0"), route.revision, by="somebody else")
    wrong = deployer.run_integration_tests(staged.id)
    assert wrong.status == "failed" and any("skew" in f for f in wrong.failures) and any("1.0.0" in f for f in wrong.failures)


@pytest.mark.parametrize("call", [lambda d: d.deploy(NEW, "production"), lambda d: d.deploy(NEW, "production", "canary"), lambda d: d.progressive_rollout(NEW)])
def test_users_see_no_answer_without_an_approval(deployer, call):
    with pytest.raises(NotApproved, match="approve"): call(deployer)
    assert current(deployer.ctx, "production", NAME).versions == ("1.0.0",) and not deployer.ctx.store.find("deployment")


@pytest.mark.parametrize(("call", "error"), [
    (lambda d: d.deploy(NEW, "prod"), InvalidInput), (lambda d: d.deploy(NEW, "staging", "big_bang"), InvalidInput),
    (lambda d: d.deploy(NEW, "staging", "shadow"), InvalidInput), (lambda d: d.deploy(f"{NAME}@7.0.0", "staging"), UnknownModelVersion),
    (lambda d: d.deploy(NEW, "production", "shadow", shadow_percentage=0), InvalidInput),
    (lambda d: d.deploy(NEW, "production", "shadow", duration="week"), InvalidInput),
    (lambda d: d.deploy(NEW, "staging", resource_requirements={"gpu": "1"}), InvalidInput),
    (lambda d: d.deploy(NEW, "staging", resource_requirements={"memory": "much"}), InvalidInput),
    (lambda d: d.deploy(NEW, "staging", duration="7d"), InvalidInput),
    (lambda d: d.progressive_rollout(NEW, initial_percentage=120), InvalidInput),
    (lambda d: d.progressive_rollout(NEW, rollback_triggers={"speed": {"threshold": 1}}), InvalidInput),
    (lambda d: d.finalize_deployment("no-such"), UnknownDeployment), (lambda d: d.rollback("no-such", reason="x"), UnknownDeployment)])
def test_calls_that_cannot_be_meant_are_refused_and_change_nothing(deployer, call, error):
    approve(deployer)
    with pytest.raises(error): call(deployer)
    assert current(deployer.ctx, "production", NAME).versions == ("1.0.0",) and not deployer.ctx.store.find("rollout")


def test_a_shadow_is_compared_and_ends_with_its_time(deployer):
    shadow = deployer.deploy(NEW, "production", "shadow", shadow_percentage=100, duration="2d")
    assert shadow.status == "running" and answered_by(deployer) == {"1.0.0"}
    report = deployer.shadow_report(shadow.id)
    assert report.status is Phase.PASSED and report.rows == 600 + 40 and report.figures["matured"] > 100 and "sample" not in report.to_dict()
    assert current(deployer.ctx, "production", NAME).shadows == () and find_deployment(deployer.ctx, shadow.id)[0].status == "passed"
    again = deployer.shadow_report(shadow.id)
    assert again.rows == report.rows and again.figures == report.figures or again.figures["matured"] >= report.figures["matured"]


def test_a_rollout_reaches_everybody_and_is_taken_back(deployer):
    approve(deployer)
    rollout = deployer.progressive_rollout(NEW, initial_percentage=50, increment=50, interval="2d", max_percentage=100)
    assert rollout.percentage == 50 and answered_by(deployer) == {"1.0.0", "1.1.0"} and deployer.progressive_rollout(NEW, interval="2d").id == rollout.id
    done = deployer.finalize_deployment(rollout_id=rollout.id, make_default=True)
    assert done.status == "passed" and answered_by(deployer) == {"1.1.0"} and deployer.registry.champion(NAME).version == "1.1.0"
    assert deployer.finalize_deployment(rollout_id=rollout.id).id == done.id
    deployer.configure_rollback_triggers(done.id, triggers=[{"metric": "error_rate", "threshold": 0.02, "window": "5m"},
                                                            {"metric": "accuracy", "threshold": 0.8, "window": "30m", "direction": "below"}])
    assert deployer.check_rollback_triggers(done.id).outcome is not Phase.FAILED
    back = deployer.rollback(deployment_id=done.id, reason="Performance degradation observed", target_version="1.0.0")
    assert back.target_version == "1.0.0" and not back.already
    assert answered_by(deployer) == {"1.0.0"} and deployer.registry.champion(NAME).version == "1.0.0"
    assert deployer.rollback(done.id, reason="again", target_version="1.0.0").already
    assert find_deployment(deployer.ctx, done.id)[0].status == "failed"
    assert entries(deployer.ctx, "rollback") and entries(deployer.ctx, "rollout") and verify(deployer.ctx).ok


def test_a_trip_gives_everybody_the_previous_version(deployer):
    approve(deployer)
    triggers = {"accuracy": {"threshold": 0.999, "direction": "below"}}
    rollout = deployer.progressive_rollout(NEW, initial_percentage=50, increment=50, interval="4d", rollback_triggers=triggers)
    done = deployer.finalize_deployment(rollout.id)
    assert done.status == "failed" and "accuracy" in done.reason and answered_by(deployer) == {"1.0.0"}
    assert deployer.registry.champion(NAME).version == "1.0.0" and deployer.finalize_deployment(rollout.id).id == done.id


def test_what_is_not_due_says_when_on_the_system_clock(deployer, monkeypatch):
    from within.clock import SystemClock
    approve(deployer)
    object.__setattr__(deployer.ctx, "clock", SystemClock())
    rollout = deployer.progressive_rollout(NEW)
    with pytest.raises(NotDue) as e: deployer.finalize_deployment(rollout.id)
    assert e.value.until == rollout.due


def experiment(deployer, winner):
    variants = [{"name": "control", "model_version": "1.0.0"}, {"name": "treatment", "model_version": "1.1.0"}]
    result = {"name": "t", "winner": winner, "status": "completed" if winner else "inconclusive", "reason": "shown", "looked_at": "2023-10-01T00:00:00+00:00"}
    deployer.ctx.store.put("experiment", "t", {"spec": {"model": NAME, "variants": variants}, "ends_at": "2023-10-01T00:00:00+00:00", "result": result}, None)


def test_a_lost_experiment_refuses_the_rollout_and_a_won_one_does_not(deployer):
    approve(deployer)
    experiment(deployer, "control")
    with pytest.raises(NotApproved, match="lost the experiment"): deployer.progressive_rollout(NEW)
    row = deployer.ctx.store.get("experiment", "t")
    deployer.ctx.store.put("experiment", "t", {**row.body, "result": {**row.body["result"], "winner": "treatment"}}, row.revision)
    assert deployer.progressive_rollout(NEW).percentage == 10


def test_an_inconclusive_experiment_needs_a_note_of_afterwards(deployer):
    approve(deployer)
    experiment(deployer, None)
    row = deployer.ctx.store.get("experiment", "t")
    deployer.ctx.store.put("experiment", "t", {**row.body, "ends_at": "2023-10-02T00:00:00+00:00"}, row.revision)
    with pytest.raises(NotApproved, match="inconclusive"): deployer.progressive_rollout(NEW)
    deployer.ctx.store.clock_start(deployer.ctx.now().replace(day=3))
    approve(deployer, note="the experiment was inconclusive; the RMSE is better, go on")
    assert deployer.progressive_rollout(NEW).percentage == 10


def test_a_route_that_is_shared_out_is_not_taken_over(deployer):
    approve(deployer)
    route = current(deployer.ctx, "production", NAME)
    change(deployer.ctx, replace(route, shares=[Share("treatment", "1.1.0", 50)], salt="an experiment"), route.revision, by="test", wait=0)
    with pytest.raises(Conflict, match="an experiment"): deployer.progressive_rollout(NEW)
