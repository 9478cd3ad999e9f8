"""Going back: rehearsed, by hand, when the target is broken, when two do it at once, and under traffic."""
# ruff: noqa: F811
from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from test_deployment import NEW, OLD, answered_by, approve, deployer, fails, keep_broken, tamper  # noqa: F401
from test_serving import INFER, NAME, body, eventually, small  # noqa: F401

from within.context import Context
from within.errors import Conflict, InvalidInput, NotApproved, ServingError, UnknownDeployment, UnknownModelVersion, WithinError
from within.ledger import entries, verify
from within.ml import placements
from within.ml.deployment import ModelDeployer, find_deployment
from within.ml.placements import deployments
from within.ml.rollbacks import PATIENCE, roll_back, ways_back
from within.serving.routes import current
from within.serving.supervisor import gateway_url
from within.serving.wire import ask
from within.verdicts import Phase

BROKEN = f"{NAME}@1.2.0"


@pytest.fixture
def second(deployer):
    "1.1.0 has taken over from 1.0.0; 1.2.0 cannot be loaded."
    keep_broken(deployer.ctx, "1.2.0")
    for id in (OLD, NEW, BROKEN): approve(deployer, id)
    deployer.deploy(OLD, "production")
    return deployer, deployer.deploy(NEW, "production", keep_warm="30d")


class Users:
    "People who ask all the time; `failed` are the answers that were none."

    def __init__(self, url, threads=4):
        self.failed, self.asked, self._end = [], 0, threading.Event()
        self._threads = [threading.Thread(target=self.go_on, args=(url, n)) for n in range(threads)]

    def go_on(self, url, n):
        i = 0
        while not self._end.is_set():
            status, answer = ask(url, INFER, body(f"user-{n}-{i}", unit=f"unit-{i % 50}"))
            if status != 200: self.failed.append((status, answer))
            self.asked, i = self.asked + 1, i + 1

    def __enter__(self):
        for t in self._threads: t.start()
        return self

    def __exit__(self, *exc):
        self._end.set()
        for t in self._threads: t.join()


def test_a_rehearsal_checks_loads_scores_and_times_and_nobody_notices(second):
    deployer, done = second
    before = current(deployer.ctx, "production", NAME)
    warm = deployer.rehearse_rollback(done.id, by="on.call@example.com")
    assert warm.passed and warm.target_version == "1.0.0" and warm.measured["start_s"] == 0.0 and warm.measured["load_s"] > 0
    broken = deployer.rehearse_rollback(done.id, "1.2.0")
    assert broken.status is Phase.FAILED and "no way back" in broken.reason and answered_by(deployer) == {"1.1.0"}
    after = current(deployer.ctx, "production", NAME)
    assert placements.answering(after) == placements.answering(before) and not [s for s in after.shadows if s.deployment.startswith("warming")]
    assert entries(deployer.ctx, "rehearsal")[-2].actor == "on.call@example.com"
    with pytest.raises(UnknownModelVersion): deployer.rehearse_rollback(done.id, "9.9.9")
    with pytest.raises(UnknownDeployment): deployer.rehearse_rollback("nothing")


def test_a_rehearsal_of_a_cold_version_starts_a_host_and_lets_it_go(deployer):
    first = deployer.deploy(OLD, "staging")
    cold = deployer.rehearse_rollback(first.id, "1.1.0")
    assert cold.passed and cold.measured["start_s"] > 0 and "came up in" in cold.reason
    assert current(deployer.ctx, "staging", NAME).versions == ("1.0.0",)


def test_nothing_is_promoted_that_cannot_be_taken_back(deployer):
    approve(deployer)
    assert answered_by(deployer) == {"1.0.0"}
    tamper(deployer.ctx, "1.0.0")   # its host has it in memory and goes on
    with pytest.raises(ServingError, match="nothing is promoted that cannot be taken back.*missing or changed"): deployer.progressive_rollout(NEW)
    assert current(deployer.ctx, "production", NAME).versions == ("1.0.0",) and not deployer.ctx.store.find("rollout")
    assert answered_by(deployer) == {"1.0.0"}


def test_going_back_is_written_down_in_order_and_fails_no_request(second):
    deployer, done = second
    with Users(gateway_url(deployer.ctx, "production")) as users:
        back = deployer.rollback(done.id, reason="scores doubled at 02:10", by="on.call@example.com")
        assert answered_by(deployer) == {"1.0.0"}
    assert not users.failed and users.asked > 0
    assert back.target_version == "1.0.0" and back.by == "on.call@example.com" and not back.skipped and 0 < back.seconds < PATIENCE
    told = [e for e in entries(deployer.ctx) if e.kind in ("route", "rollback", "alias") or (e.kind == "deployment" and e.subject == done.id)]
    route, ended, alias, began, confirmed, over = told[-6:]
    assert [e.kind for e in (route, ended, alias, began)] == ["route", "deployment", "alias", "rollback"] and route.body["default"] == "1.0.0"
    assert began.body["phase"] == "running" and began.body["from"] == "1.1.0" and {e.actor for e in told[-6:]} == {"on.call@example.com"}
    assert over.body["phase"] == "passed" and over.body["seconds"] == back.seconds and confirmed.body["rollback"]["phase"] == "passed"
    assert find_deployment(deployer.ctx, done.id)[0].status == "failed" and deployer.registry.champion(NAME).version == "1.0.0" and verify(deployer.ctx).ok


def test_what_is_rolled_back_already_succeeds_and_says_who_did_it(second):
    deployer, done = second
    deployer.rollback(done.id, reason="seen", by="first@example.com")
    said = len(entries(deployer.ctx))
    again = deployer.rollback(done.id, reason="seen too", target_version="1.0.0", by="second@example.com")
    assert again.already and again.target_version == "1.0.0" and "first@example.com" in again.reason and len(entries(deployer.ctx)) == said


def test_any_registered_version_may_be_the_target_if_users_may_see_it(second):
    deployer, done = second
    deployer.rollback(done.id, reason="back")
    forth = deployer.rollback(done.id, reason="it was not the model", target_version="1.1.0")   # it has answered here
    assert forth.target_version == "1.1.0" and answered_by(deployer) == {"1.1.0"}
    deployer.registry.reject(BROKEN, reviewer="reviewer@example.com", note="never")
    with pytest.raises(NotApproved): deployer.rollback(done.id, reason="x", target_version="1.2.0")
    with pytest.raises(UnknownModelVersion, match="9.9.9"): deployer.rollback(done.id, reason="x", target_version="9.9.9")


@pytest.mark.parametrize("wrong", [{"reason": ""}, {"reason": None}, {"reason": 5}, {"reason": "x" * 3000}, {"target_version": 1.0}, {"target_version": ""},
                                   {"target_version": "../1.0.0"}, {"by": " "}, {"by": ["me"]}])
def test_a_rollback_that_cannot_be_meant_changes_nothing(deployer, wrong):
    canary = placements.save_deployment(deployer.ctx, placements.new_deployment(deployer.ctx, deployer.registry.get(NEW), "production", "canary"), "began")
    before = current(deployer.ctx, "production", NAME)
    with pytest.raises(WithinError): deployer.rollback(canary.id, **{"reason": "seen", **wrong})
    assert current(deployer.ctx, "production", NAME) == before


def test_a_target_that_was_tampered_with_is_passed_over_for_the_next_best(second):
    deployer, done = second
    keep_broken(deployer.ctx, "1.3.0")
    approve(deployer, f"{NAME}@1.3.0")
    tamper(deployer.ctx, "1.3.0")
    with Users(gateway_url(deployer.ctx, "production"), 2) as users:
        back = deployer.rollback(done.id, reason="asked for what was changed", target_version="1.3.0")
        again = deployer.rollback(done.id, reason="asked again", target_version="1.3.0")
        tamper(deployer.ctx, "1.0.0")
        forth = deployer.rollback(done.id, reason="it was not the model", target_version="1.1.0")
    assert back.target_version == "1.0.0" and "1.3.0: the files of" in back.skipped[0] and again.already and again.target_version == "1.0.0"
    assert forth.target_version == "1.1.0" and not users.failed and answered_by(deployer) == {"1.1.0"}


def test_a_target_that_was_tampered_with_still_serves_while_its_host_is_up(second):
    deployer, done = second
    tamper(deployer.ctx, "1.0.0")
    assert deployer.rollback(done.id, reason="its host has what it loaded").target_version == "1.0.0" and answered_by(deployer) == {"1.0.0"}


@pytest.mark.slow
def test_a_target_whose_host_does_not_start_is_passed_over_and_then_it_is_over(second):
    deployer, done = second
    with Users(gateway_url(deployer.ctx, "production"), 2) as users:
        back = deployer.rollback(done.id, reason="seen", target_version="1.2.0")
        assert back.target_version == "1.0.0" and "ended 3 times" in back.skipped[0] and "1.2.0 could not serve" in back.reason
        assert answered_by(deployer) == {"1.0.0"} and deployer.registry.champion(NAME).version == "1.0.0"
        before, rows = current(deployer.ctx, "production", NAME), deployments(deployer.ctx)
        with pytest.raises(ServingError, match="no version to go back to.*1.0.0 still answers"):
            roll_back(deployer.ctx, rows[0].id, "once more", "1.2.0")
    after = current(deployer.ctx, "production", NAME)
    assert placements.answering(after) == placements.answering(before) and answered_by(deployer) == {"1.0.0"} and not users.failed
    assert {d.id: d.status for d in deployments(deployer.ctx)} == {d.id: d.status for d in rows} and deployer.registry.champion(NAME).version == "1.0.0"


def test_the_order_of_ways_back_ends_with_the_registered_baseline(deployer):
    row = deployer.ctx.store.model_version(NAME, "1.0.0")
    for version in ("0.1.0", "0.2.0", "1.5.0"):
        labels = {"control": "mean"} if version < "1" else {}
        deployer.ctx.store.add_model_version(NAME, version, row.digest, {**row.body, "labels": labels})
    for version in ("0.1.0", "1.1.0", "1.5.0"): approve(deployer, f"{NAME}@{version}")
    deployer.deploy(f"{NAME}@1.5.0", "production", keep_warm="30d")
    done = deployer.deploy(NEW, "production", keep_warm="30d")
    assert list(ways_back(deployer.ctx, done, "9.9.9", "1.1.0")) == ["9.9.9", "1.5.0", "1.0.0", "0.1.0"]   # 0.2.0 was approved by nobody
    deployer.rollback(done.id, reason="seen")
    earlier = deployments(deployer.ctx, version="1.5.0")[0]
    tried = list(ways_back(deployer.ctx, earlier, "1.0.0", "1.5.0"))
    assert tried == ["1.0.0", "0.1.0"]   # what was taken back as bad is no way back


def test_a_tripped_trigger_says_how_long_it_took(second):
    deployer, done = second
    deployer.configure_rollback_triggers(done.id, triggers=[{"metric": "error_rate", "threshold": 0.02, "window": "5m"}])
    assert deployer.check_rollback_triggers(done.id).outcome is Phase.INCONCLUSIVE   # nothing was observed
    fails(deployer.ctx, "1.1.0")
    found = deployer.check_rollback_triggers(done.id, by="watch@example.com")
    assert found.outcome is Phase.FAILED and "rolled back to 1.0.0" in found.reason and answered_by(deployer) == {"1.0.0"}
    assert 0 < found.measured["of them going back"] <= found.measured["seconds"] < 2 * PATIENCE
    assert entries(deployer.ctx, "rollback")[-1].actor == "watch@example.com"


def test_of_two_rollbacks_at_once_one_wins_and_the_other_is_told(second):
    deployer, done = second
    approve(deployer, OLD)
    results, start = {}, threading.Barrier(2)
    def go(who):
        mine = ModelDeployer(Context.open(home=deployer.ctx.settings.home))
        start.wait()
        try: results[who] = mine.rollback(done.id, reason=f"{who} saw it", by=f"{who}@example.com")
        except WithinError as e: results[who] = e
    threads = [threading.Thread(target=go, args=(who,)) for who in ("ann", "bob")]
    for t in threads: t.start()
    for t in threads: t.join()
    one, other = sorted(results.values(), key=lambda r: r.already)
    assert not one.already and other.already and one.by in other.reason and answered_by(deployer) == {"1.0.0"}


def test_of_two_rollbacks_to_different_versions_the_second_is_told_who_and_when(second, monkeypatch):
    deployer, done = second
    from within.ml import rollbacks
    found, meet, results = rollbacks.find_deployment, threading.Barrier(2), {}
    local = threading.local()
    def both_have_looked(ctx, id):
        seen = found(ctx, id)
        if not getattr(local, "looked", False):
            local.looked = True
            meet.wait(30)
        return seen
    monkeypatch.setattr(rollbacks, "find_deployment", both_have_looked)
    def act(who, target):
        try: results[who] = roll_back(Context.open(home=deployer.ctx.settings.home), done.id, f"{who} saw it", target, f"{who}@example.com")
        except WithinError as e: results[who] = e
    threads = [threading.Thread(target=act, args=a) for a in (("ann", "1.0.0"), ("bob", "1.1.0"))]
    for t in threads: t.start()
    for t in threads: t.join()
    lost = [r for r in results.values() if isinstance(r, Conflict)]
    # 1.1.0 answers already: bob is either told that, or, when ann was first, that she took it back
    assert results["ann"].target_version == "1.0.0" and answered_by(deployer) == {"1.0.0"}
    assert (lost and "ann@example.com rolled" in str(lost[0])) or results["bob"].already


def test_a_rollback_wins_against_a_deployment_that_is_on_its_way(second, monkeypatch):
    deployer, done = second
    third = ModelDeployer(Context.open(home=deployer.ctx.settings.home))
    row = deployer.ctx.store.model_version(NAME, "1.1.0")
    deployer.ctx.store.add_model_version(NAME, "1.4.0", row.digest, row.body)
    approve(deployer, f"{NAME}@1.4.0")
    proven, ready, go = placements.proven, threading.Event(), threading.Event()
    def slowly(*a):
        found = proven(*a)
        ready.set(), go.wait(60)
        return found
    monkeypatch.setattr(placements, "proven", slowly)
    results = []
    def place():
        try: results.append(third.deploy(f"{NAME}@1.4.0", "production", by="slow@example.com"))
        except WithinError as e: results.append(e)
    thread = threading.Thread(target=place)
    thread.start()
    assert ready.wait(60)
    with pytest.raises(Conflict, match="slow@example.com has been at it since"): ModelDeployer(deployer.ctx).deploy(f"{NAME}@1.4.0", "production")
    back = deployer.rollback(done.id, reason="seen", by="quick@example.com")
    go.set(), thread.join()
    assert back.target_version == "1.0.0" and isinstance(results[0], Conflict) and answered_by(deployer) == {"1.0.0"}
    assert current(deployer.ctx, "production", NAME).versions == ("1.0.0",) and deployments(deployer.ctx, version="1.4.0")[0].status in ("error", "failed")


def test_without_a_gateway_the_way_back_is_recorded_and_taken_when_there_is_one(second, monkeypatch):
    deployer, done = second
    from within.ml import rollbacks
    def nothing(*a, **k): raise ServingError("the port is taken")
    with monkeypatch.context() as m:
        m.setattr(rollbacks, "gateway_url", nothing)
        back = deployer.rollback(done.id, reason="seen")
    assert "no gateway runs" in back.reason and current(deployer.ctx, "production", NAME).default == "1.0.0"
    assert eventually(lambda: answered_by(deployer) == {"1.0.0"})


def test_a_time_that_has_passed_lets_the_kept_version_go(second):
    deployer, _ = second
    from within.serving.routes import trimmed
    route = current(deployer.ctx, "production", NAME)
    assert trimmed(route, deployer.ctx.now()).versions == ("1.1.0", "1.0.0") and trimmed(route, deployer.ctx.now() + timedelta(days=31)).versions == ("1.1.0",)


def test_what_replaced_nothing_needs_a_target(deployer):
    first = deployer.deploy(NEW, "staging")
    with pytest.raises(InvalidInput, match="replaced nothing"): deployer.rollback(first.id, reason="seen")
    assert deployer.rollback(first.id, reason="seen", target_version="1.0.0").target_version == "1.0.0"
