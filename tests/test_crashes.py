# ruff: noqa: F811
"""A deployer is killed at every one of its transactions, and two act at once: what answers, what is left, and who finishes it."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_deployment import NEW, OLD, answered_by, approve, deployer  # noqa: F401
from test_rollback import Users
from test_serving import NAME, eventually, small  # noqa: F401

from within.ledger import entries, record, verify
from within.ml import deployment, placements, rollbacks
from within.ml.deployment import ModelDeployer, begin_rollout, read_rollout, run_rollout
from within.ml.placements import WARMING, deployments, save_deployment
from within.ml.registry import ModelRegistry
from within.serving.routes import Route, as_withdrawn, change, current
from within.serving.supervisor import gateway_url
from within.verdicts import Phase

LATER = f"{NAME}@1.4.0"
pytestmark = pytest.mark.slow


class Mortals:
    "Deployers in processes of their own, killed where it is asked for."

    def __init__(self, ctx, folder):
        self.ctx, self.folder = ctx, folder
        s = ctx.settings
        env = {**os.environ, "WITHIN_HOME": str(s.home), "WITHIN_CONFIGS": str(s.configs), "WITHIN_CLOCK": "replay", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen([sys.executable, str(Path(__file__).with_name("dying_deployer.py"))], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, env=env)
        assert self.process.stdout.readline() == "ready\n"

    def act(self, *wishes):
        "The wait status of each, and what it said if it lived."
        outs = [self.folder / f"said-{i}" for i in range(len(wishes))]
        for o in outs: o.unlink(missing_ok=True)
        self.process.stdin.write(json.dumps([{**w, "out": str(o)} for w, o in zip(wishes, outs, strict=True)]) + "\n")
        self.process.stdin.flush()
        return list(zip(json.loads(self.process.stdout.readline()), [o.read_text() if o.exists() else "" for o in outs], strict=True))

    def close(self):
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


@pytest.fixture
def mortals(deployer, tmp_path):
    gateway_url(deployer.ctx, "production")   # this process holds the supervisor: serving goes on when a deployer dies
    row = deployer.ctx.store.model_version(NAME, "1.1.0")
    deployer.ctx.store.add_model_version(NAME, "1.4.0", row.digest, row.body)
    for id in (OLD, NEW, LATER): approve(deployer, id)
    deployer.deploy(OLD, "production")
    made = Mortals(deployer.ctx, tmp_path)
    yield made
    made.close()


def reset(deployer):
    "1.0.0 answers everybody and nothing else lives; nobody in staging."
    ctx = deployer.ctx
    for row in ctx.store.find("rollout"):
        if read_rollout(ctx, row.id)[0].live: ctx.store.put("rollout", row.id, {**row.body, "phase": "failed", "percentage": 0.0, "asking": ""}, row.revision)
    for d in deployments(ctx):
        if d.live: save_deployment(ctx, replace(d, status="retired", ended_at=ctx.now()), "reset")
    route = current(ctx, "production", NAME)
    change(ctx, Route("production", NAME, "1.0.0"), route.revision, by="reset")
    if (staged := current(ctx, "staging", NAME)) is not None:
        row, told = as_withdrawn(staged, "reset")
        record(ctx, [row], [told])
    ctx.store.set_alias(NAME, "champion", "1.0.0", "reset")


def prepare(act, deployer):
    "What the act begins with; its id if it is about something."
    if act == "rollback": return deployer.deploy(NEW, "production", keep_warm="30d").id
    if act == "report":
        shadow = deployer.deploy(NEW, "production", "shadow", duration="1d")
        deployer.ctx.store.clock_start(shadow.until)
        return shadow.id
    if act in ("step", "finalize"):
        info = deployer.registry.get(NEW)
        state = begin_rollout(deployer.ctx, info, None, initial_percentage=100.0 if act == "finalize" else 50.0, interval="1d", triggers=())
        if act == "finalize": return run_rollout(deployer.ctx, state.id).id
        deployer.ctx.store.clock_start(state.due)
        return state.id
    return None


def legal(deployer):
    "What must hold after whatever happened, once a deployer was made again."
    ctx = deployer.ctx
    route, rows = current(ctx, "production", NAME), deployments(ctx)
    assert route.default in ("1.0.0", "1.1.0") and all(s.version == "1.1.0" for s in route.shares)
    assert not [s for r in (route, current(ctx, "staging", NAME)) if r for s in r.shadows if s.deployment.startswith(WARMING)]
    assert not [d.id for d in rows if d.status == "pending" or d.rollback.get("phase") == "running"]
    assert ctx.store.alias(NAME, "champion") == route.default
    whole = [d for d in rows if d.live and d.environment == "production" and d.strategy in ("blue_green", "rollout") and d.status == "passed"]
    assert {d.version for d in whole} <= {route.default, *(s.version for s in route.shares)}
    live = [read_rollout(ctx, r.id)[0] for r in ctx.store.find("rollout")]
    for state in (s for s in live if s.live):
        assert (route.salt, route.shares[0].percentage, state.previous) == (state.id, state.percentage, route.default)
    assert verify(ctx).ok
    return route


@pytest.mark.parametrize("act", ["blue_green", "shadow", "canary", "first", "begin", "step", "finalize", "rollback", "report"])
def test_a_deployer_killed_at_any_transaction_leaves_a_legal_state_and_the_next_one_finishes(deployer, mortals, act):
    survived = at = 0
    with Users(gateway_url(deployer.ctx, "production"), 2) as users:
        while not survived:
            reset(deployer)
            id = prepare(act, deployer)
            ((status, said),) = mortals.act({"act": act, "at": at, "id": id})
            survived = not os.WIFSIGNALED(status)
            assert survived or os.WTERMSIG(status) == signal.SIGKILL
            answers = answered_by(deployer, 10)
            assert answers <= {"1.0.0", "1.1.0"}, f"killed after transaction {at}"
            again = ModelDeployer(deployer.ctx)
            route = legal(again)
            if not survived:
                from dying_deployer import ACTS
                done = ACTS[act](again, id)   # the same wish once more
                route = legal(again)
                if act in ("blue_green", "finalize"): assert route.default == "1.1.0" and done.status == "passed"
                if act == "rollback": assert route.default == "1.0.0" and not route.shares and done.status == "passed"
                if act == "shadow": assert [s.version for s in route.shadows if s.percentage] == ["1.1.0"]
                if act == "first": assert current(deployer.ctx, "staging", NAME).default == "1.1.0"
            at += 1
    assert not users.failed and users.asked > at and at >= {"step": 2, "report": 2}.get(act, 3), said
    assert said and not said.startswith(("Conflict", "ServingError")), said


@pytest.mark.parametrize("broken", [False, True])
def test_an_interrupted_rollback_is_confirmed_or_goes_on_to_the_next_when_its_target_broke(deployer, mortals, monkeypatch, broken):
    deployer.deploy(LATER, "production", keep_warm="30d")
    done = deployer.deploy(NEW, "production", keep_warm="30d")
    ((status, _),) = mortals.act({"act": "rollback", "at": 1, "id": done.id})
    assert os.WIFSIGNALED(status) and current(deployer.ctx, "production", NAME).default == "1.0.0"
    if broken:
        for module in (rollbacks, deployment): monkeypatch.setattr(module, "unfit", lambda c, e, m, version: "1.0.0: planted" if version == "1.0.0" else None)
    (said, *_), wanted = ModelDeployer(deployer.ctx).recovered, "1.4.0" if broken else "1.0.0"
    assert ("went on to 1.4.0" if broken else "confirmed") in said and eventually(lambda: answered_by(deployer) == {wanted})
    assert ModelDeployer(deployer.ctx).recovered == () and deployer.ctx.store.alias(NAME, "champion") == wanted


@pytest.mark.parametrize("act", ["blue_green", "finalize", "rollback"])
def test_mlflow_is_told_of_the_alias_that_a_dead_deployer_moved(deployer, mortals, monkeypatch, act):
    mlflow, held = {}, []
    def mirror(self, what, action): mlflow[what.removeprefix("alias ")] = self.ctx.store.alias(NAME, "champion")
    survived = at = 0
    while not survived:
        reset(deployer)
        id = prepare(act, deployer)
        mlflow["champion"] = before = deployer.ctx.store.alias(NAME, "champion")
        ((status, _),) = mortals.act({"act": act, "at": at, "id": id})
        survived, at, now = not os.WIFSIGNALED(status), at + 1, deployer.ctx.store.alias(NAME, "champion")
        if survived: break
        assert current(deployer.ctx, "production", NAME).default == now   # the store's alias is never behind
        monkeypatch.setattr(ModelRegistry, "_mirror", mirror)
        said = ModelDeployer(deployer.ctx).recovered
        assert mlflow["champion"] == deployer.ctx.store.alias(NAME, "champion")
        if now != before: held.append(any("MLflow was told" in s for s in said))
        assert not any("MLflow was told" in s for s in ModelDeployer(deployer.ctx).recovered), "once"
        monkeypatch.setattr(ModelRegistry, "_mirror", lambda *a: None)
    assert held and all(held), "it died at least once between the route and MLflow"
    assert not list(deployer.ctx.path("serving", "owed").glob("*.json")), "whoever lives owes nothing"


def test_of_two_processes_that_deploy_at_once_one_wins_and_the_other_is_told_who_and_when(deployer, mortals):
    for _ in range(3):
        reset(deployer)
        first, second = mortals.act({"act": "blue_green", "at": None, "user": "ann@example.com"}, {"act": "later", "at": None, "user": "bob@example.com"})
        told = [said for _, said in (first, second) if said.startswith("Conflict")]
        route = current(deployer.ctx, "production", NAME)
        winner = {"1.1.0": "ann@example.com", "1.4.0": "bob@example.com"}[route.default]
        assert len(told) == 1 and winner in told[0] and "changed it at 2023" in told[0], (first, second)
        loser = [d for d in deployments(deployer.ctx, status="error")][-1]
        assert loser.version != route.default and not [s for s in route.shadows if s.deployment.startswith(WARMING)]
        assert answered_by(deployer) == {route.default} and deployer.ctx.store.alias(NAME, "champion") == route.default


def test_of_two_processes_that_step_at_once_one_steps(deployer, mortals):
    id = prepare("step", deployer)
    said = [s for _, s in mortals.act(*[{"act": "step", "at": None, "id": id, "user": u} for u in ("ann@example.com", "bob@example.com")])]
    state = read_rollout(deployer.ctx, id)[0]
    assert state.percentage == 65 and state.step == 2 and sum(e.body.get("action") == "advance" for e in entries(deployer.ctx, "rollout", id)) == 1
    assert all(s == "done" or "moved on" in s or "changed it at" in s for s in said), said


def test_a_living_deployer_is_left_alone_by_the_next_one(deployer, mortals, monkeypatch):
    proven, seen = placements.proven, []
    def meanwhile(*a):
        seen.append(ModelDeployer(deployer.ctx).recovered)
        found = proven(*a)
        seen.append(ModelDeployer(deployer.ctx).recovered)
        return found
    monkeypatch.setattr(placements, "proven", meanwhile)
    assert deployer.deploy(NEW, "production").status == "passed" and seen == [(), ()]


def test_what_a_crash_leaves_of_a_first_version_depends_on_its_bytes(deployer, mortals, monkeypatch):
    ((status, _),) = mortals.act({"act": "first", "at": 2})   # the route is there, the word that it passed is not
    assert os.WIFSIGNALED(status) and current(deployer.ctx, "staging", NAME).default == "1.1.0"
    again = ModelDeployer(deployer.ctx)
    assert any("finished after an interruption" in s for s in again.recovered) and deployments(deployer.ctx, environment="staging")[-1].status == "passed"
    reset(deployer)
    mortals.act({"act": "first", "at": 2})
    left = current(deployer.ctx, "staging", NAME)
    monkeypatch.setattr(deployment, "unfit", lambda ctx, environment, model, version: "planted: its host is gone and its bytes are not those")
    ModelDeployer(deployer.ctx)
    assert left.default == "1.1.0" and current(deployer.ctx, "staging", NAME) is None
    assert deployments(deployer.ctx, environment="staging")[-1].status == "error"


def test_phases_are_of_the_closed_vocabulary(deployer, mortals):
    id = prepare("step", deployer)
    mortals.act({"act": "step", "at": 1, "id": id})
    assert read_rollout(deployer.ctx, id)[0].phase is Phase.RUNNING
