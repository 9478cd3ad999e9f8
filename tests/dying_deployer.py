"""A process that does one thing with a deployer and is killed at its n-th transaction.

Reads lines of JSON, each a list of {act, at, …}; a child is forked for each, so that imports are paid once."""
import contextlib
import json
import os
import signal
import sys

import numpy  # noqa: F401
import pandas  # noqa: F401
import xgboost  # noqa: F401

import within.data  # noqa: F401
import within.ml.ad_score  # noqa: F401
from within.context import Context
from within.ml.deployment import ModelDeployer, take_step
from within.ml.registry import ModelRegistry
from within.store import StoreBase

NAME = "ad_score_predictor"
NEW, LATER = f"{NAME}@1.1.0", f"{NAME}@1.4.0"
ACTS = {
    "blue_green": lambda d, id: d.deploy(NEW, "production"), "shadow": lambda d, id: d.deploy(NEW, "production", "shadow", duration="1d"),
    "canary": lambda d, id: d.deploy(NEW, "production", "canary", percentage=50), "first": lambda d, id: d.deploy(NEW, "staging"),
    "begin": lambda d, id: d.progressive_rollout(NEW, initial_percentage=50), "step": lambda d, id: take_step(d.ctx, id),
    "finalize": lambda d, id: d.finalize_deployment(id), "rollback": lambda d, id: d.rollback(id, reason="planted", target_version="1.0.0"),
    "report": lambda d, id: d.shadow_report(id), "later": lambda d, id: d.deploy(LATER, "production"),
}


def dying(at: int) -> None:
    "From now on, SIGKILL right before the first transaction (0), or right after the n-th."
    transaction, done = StoreBase.transaction, [0]
    @contextlib.contextmanager
    def counted(self):
        if at == 0: os.kill(os.getpid(), signal.SIGKILL)
        with transaction(self) as c: yield c
        done[0] += 1
        if done[0] == at: os.kill(os.getpid(), signal.SIGKILL)
    StoreBase.transaction = counted


def child(wish: dict) -> None:
    ModelRegistry._mirror = lambda *a: None
    deployer = ModelDeployer(Context.open(user=wish.get("user", "mortal@example.com")))
    if wish["at"] is not None: dying(wish["at"])
    try: said = str(getattr(ACTS[wish["act"]](deployer, wish.get("id")), "id", "")) or "done"
    except Exception as e: said = f"{type(e).__name__}: {e}"
    with open(wish["out"], "w") as out: out.write(said)
    os._exit(0)


if __name__ == "__main__":
    print("ready", flush=True)
    for line in sys.stdin:
        wishes = json.loads(line)
        pids = []
        for wish in wishes:
            if (pid := os.fork()) == 0: child(wish)
            pids.append(pid)
        print(json.dumps([os.waitpid(pid, 0)[1] for pid in pids]), flush=True)
