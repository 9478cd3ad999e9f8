# ruff: noqa: F811
"""A scheduler that is killed (SIGKILL) at random moments and after chosen writes of its life ends where an undisturbed one ends.

The life: over three weeks of the replay clock, of one home. Continuous training with a standing approval of one a month: a run that goes on alone; a
missed date and a run that stands for two, which asks a person because the month's one is used; the person's yes. A rollout that walks its steps and asks
at the last; a monitor that opens an alert and resolves it; the outbox. Stages are small notebooks, everything else is real:
the scheduler is a process of its own, its runs are `within retrain`, their stages have kernels.

`TEST_KILLS=200` kills at 200 random moments (20 otherwise); `TEST_SWEEP=1` kills after each write of a life in turn, `TEST_SWEEP=5` after
every fifth (every 23rd otherwise).

What is compared: the ledger as (simulated time, kind, subject, outcome), in order of time; the rows of the store; what monitors measured; the outbox;
the uses of the standing approval; the chain; processes left over. Left out of the ledger, because a second attempt is by nature another one:
`superseded` (the files of a stage's attempt that was cut off were set aside)."""
from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from test_continuous import GUIDES, MODEL, project, register  # noqa: F401
from test_serving import eventually

from within.clock import iso, parse_time
from within.context import Context
from within.ledger import entries, verify
from within.ml.approvals import give_standing, uses_of
from within.ml.continuous import ContinuousTrainer
from within.ml.deployment import ModelDeployer
from within.ml.registry import ModelRegistry
from within.ml.rollouts import RolloutState
from within.monitoring import PostDeploymentMonitor
from within.observations import PredictionLog
from within.serving.routes import Route, change

OUTCOME = ("event", "action", "outcome", "phase", "stage", "channel", "percentage", "count", "missed_count")
KILLS, SWEEP = int(os.environ.get("TEST_KILLS", 20)), int(os.environ.get("TEST_SWEEP", 23))
ROLLOUT, EVERY = "rollout-1", 61
LIFE = {"2023-10-01T01:00": "2.2.0", "2023-10-04T02:00": "2.2.0", "2023-10-07T03:00": "2.2.0", "2023-10-08T00:00:10": "2.2.0", "2023-10-09T12:00": "2.2.0",
        "2023-10-11T12:00": "2.2.0", "2023-10-22T00:00:10": "2.3.0", "2023-10-24T00:00": "2.3.0"}
PERSON = "ann@example.com"
pytestmark = pytest.mark.slow


def traffic(ctx: Context) -> None:
    "Two weeks of 2.1.0: every third answer of the eighth and ninth day is an error."
    log = PredictionLog(ctx, "production")
    start, lines = parse_time("2023-10-01"), []
    for i in range(4200):
        at = start + pd.Timedelta(days=i / 300)
        broke = 7 <= i / 300 < 9 and i % 3 == 0
        lines.append({"id": f"p{i}", "at": at.isoformat(), "environment": "production", "model": MODEL, "version": "2.1.0", "variant": "default",
                      "role": "live", "unit": f"u{i % 500}", "output": None if broke else 50.0 + i % 7, "latency_ms": 5.0, "error": "boom" if broke else None})
    log.append(lines)
    log.close()


@pytest.fixture
def born(project):
    "A home at the beginning of the life; the context."
    ctx = project
    register(ctx, "2.1.0", "2.2.0", "2.3.0", "2.5.0")
    registry = ModelRegistry(ctx)
    for version in ("2.1.0", "2.5.0"): registry.approve(f"{MODEL}@{version}", PERSON, "read")
    change(ctx, Route("production", MODEL, "2.1.0"), None, by="test", wait=0)
    state = RolloutState(ROLLOUT, MODEL, "2.5.0", "2.1.0", "production", (), initial_percentage=10.0, increment=45.0, interval="3d", approve_from=100.0)
    ctx.store.put("rollout", ROLLOUT, state.to_dict(), None, ctx.now())
    traffic(ctx)
    monitor = PostDeploymentMonitor(MODEL, "2.1.0", "7d", ctx)
    monitor.configure_intensive_monitoring("21d", ["error_rate"], ["slack-ml-team", "email-ml-engineers"]).start()
    ContinuousTrainer(MODEL, **GUIDES, missed="once", ctx=ctx).enable()
    give_standing(ctx, MODEL, PERSON, 1, "2023-12-31", "eight releases read")
    return ctx


class Life:
    "One home's life, driven from outside: the clock, a person, and looks of a scheduler until two of them came to their end."

    def __init__(self, born: Context, folder: Path, killed: dict | None = None, moments: tuple[float, ...] = ()):
        self.home = folder / "home"
        shutil.copytree(born.settings.home, self.home)
        self.ctx = Context.open(home=self.home, configs=born.settings.configs, user="author@example.com")
        self.out, self.killed, self.moments = folder / "looks.log", killed or {}, list(moments)
        self.lived, self.kills, self.told = 0.0, [], Counter()
        env = {**os.environ, "WITHIN_HOME": str(self.home), "OMP_NUM_THREADS": "1"}
        path = Path(__file__).with_name("mortal_scheduler.py")
        self.process = subprocess.Popen([sys.executable, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env,
                                        cwd=born.settings.configs.parent)
        assert self.process.stdout.readline() == "ready\n"

    def look(self, at: str) -> bool:
        "One look; whether it came to its end."
        die = max(0.0, self.moments[0] - self.lived) if self.moments else None
        began = time.monotonic()
        self.process.stdin.write(json.dumps({"out": str(self.out), "die": die, "killed": self.killed}) + "\n")
        self.process.stdin.flush()
        status = json.loads(self.process.stdout.readline())
        self.lived += time.monotonic() - began
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0, self.out.read_text()
            return True
        assert os.WTERMSIG(status) == signal.SIGKILL
        self.kills.append(at)
        if self.moments: self.moments.pop(0)
        return False

    def live(self) -> Life:
        for at, challenger in LIFE.items():
            self.ctx.clock.advance_to(parse_time(at))
            self.ctx.store.clock_release("replayer")
            (self.home / "challenger").write_text(f"{MODEL}@{challenger}")
            if at.startswith("2023-10-11"): ModelDeployer(self.ctx).operate(ROLLOUT, "approve", by=PERSON, note="looked at it")
            if at.startswith("2023-10-24"): ModelRegistry(self.ctx).approve(f"{MODEL}@2.3.0", PERSON, "read the packet")
            ended = 0
            for _ in range(200):
                ended += self.look(at)
                if ended == 2: break   # the second tells people what the first led to
            assert ended == 2, self.out.read_text()
        return self

    def left_over(self) -> list[int]:
        mine = f"WITHIN_HOME={self.home}".encode()
        found = []
        for p in Path("/proc").glob("[0-9]*"):
            try: theirs = (p / "environ").read_bytes().split(b"\0")
            except OSError: continue
            if mine in theirs and int(p.name) not in (self.process.pid, os.getpid()): found.append(int(p.name))
        return found

    def end(self) -> dict:
        "What came of it."
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()
        assert eventually(lambda: not self.left_over()), self.left_over()
        ctx, said = self.ctx, []
        for e in entries(ctx):
            outcome = [str(e.body[k]) for k in OUTCOME if k in e.body]
            if e.kind != "superseded": said.append((e.at.isoformat(), e.kind, e.subject, " ".join(outcome)))
        rows = {}
        for kind in ("run", "schedule", "rollout", "route", "standing", "alert", "monitor", "approval", "deployment"):
            for r in ctx.store.find(kind): rows[f"{kind} {r.id}"] = r.body
        whole = verify(ctx)
        assert whole.ok, whole.first_fault
        looked = [(o["metric"], iso(o["at"]), o["value"], o["n"]) for r in ctx.store.find("monitor") for o in ctx.store.observations(f"monitor:{r.id}")]
        letters = sorted(p.name for p in ctx.path("outbox").glob("*"))
        runs = sorted(p.name for p in ctx.path("runs").glob("*") if p.is_dir())
        uses = uses_of(ctx, MODEL)
        ctx.close()
        return {"ledger": sorted(said), "rows": rows, "outbox": letters, "runs": runs, "uses": uses, "looked": sorted(looked)}


def differences(calm: dict, other: dict) -> list[str]:
    "What differs between two lives, in lines."
    found = []
    if calm["ledger"] != other["ledger"]:
        a, b = Counter(calm["ledger"]), Counter(other["ledger"])
        found += [f"missing {n}x {x}" for x, n in (a - b).items()] + [f"too many {n}x {x}" for x, n in (b - a).items()]
    for id in calm["rows"].keys() | other["rows"].keys():
        x, y = calm["rows"].get(id, {}), other["rows"].get(id, {})
        found += [f"{id}: {k}: {x.get(k)!r} / {y.get(k)!r}" for k in x | y if x.get(k) != y.get(k)]
    return found + [f"{k}: {calm[k]} / {other[k]}" for k in ("outbox", "runs", "uses", "looked") if calm[k] != other[k]]


def lived(born: Context, folder: Path, **how) -> tuple[dict, Life]:
    folder.mkdir()
    life = Life(born, folder, **how)
    try: life.live()
    finally:
        if life.process.poll() is None and sys.exc_info()[0]: life.process.kill()
    return life.end(), life


@pytest.mark.timeout(900 + 20 * KILLS)   # a life with ten kills lasts a minute or two
def test_killed_at_random_moments_it_ends_where_an_undisturbed_one_ends(born, tmp_path):
    calm, first = lived(born, tmp_path / "calm")
    assert [u["model_id"][-5:] for u in calm["uses"]] == ["2.2.0"] and len(calm["runs"]) == 2
    assert {b["phase"] for k, b in calm["rows"].items() if k.startswith("run ")} == {"passed"}
    assert calm["rows"][f"rollout {ROLLOUT}"]["phase"] == "passed" and {e[3].split()[0] for e in calm["ledger"] if e[1] == "alert"} == {"opened", "resolved"}
    rng, kills, n, faults = random.Random(7), 0, 0, []
    while kills < KILLS:
        moments = tuple(sorted(rng.uniform(0.0, first.lived) for _ in range(min(10, KILLS - kills))))
        other, life = lived(born, tmp_path / f"life{n}", moments=moments)
        kills, n = kills + len(life.kills), n + 1
        faults += [f"life {n}, killed at {life.kills}: {d}" for d in differences(calm, other)]
        print(f"life {n}: {len(life.kills)} kills, {life.lived:.1f} s, {len(faults)} faults", flush=True)
        if not faults: shutil.rmtree(life.home)
    assert not faults, "\n".join(faults)
    print(f"{kills} kills in {n} lives; undisturbed {first.lived:.1f} s")


@pytest.mark.timeout(900 + 100 * EVERY // SWEEP)
def test_killed_right_after_chosen_writes_it_ends_where_an_undisturbed_one_ends(born, tmp_path):
    calm, _ = lived(born, tmp_path / "calm")
    kills, faults = [], []
    for rest in range(0, EVERY, SWEEP):
        count = tmp_path / f"count{rest}"
        other, life = lived(born, tmp_path / f"rest{rest}", killed={"KILLED_COUNT": str(count), "KILLED_EVERY": str(EVERY), "KILLED_REST": str(rest)})
        where = Path(f"{count}.log").read_text().splitlines()
        kills += where
        faults += [f"rest {rest}, killed after {where}: {d}" for d in differences(calm, other)]
        print(f"rest {rest}: {len(where)} kills of {count.stat().st_size} writes, {life.lived:.1f} s, {len(faults)} faults", flush=True)
        if not faults: shutil.rmtree(life.home)
    assert not faults, "\n".join(faults)
    assert kills
