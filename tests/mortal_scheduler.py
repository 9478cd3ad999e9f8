"""Looks of a scheduler, each in a process of its own that may be killed; forked, so that imports are paid once.

Reads lines of JSON: {out, die: seconds or null, killed: environment of killed_at or {}}; answers with the wait status."""
import importlib.util
import json
import os
import signal
import sys
import time
import traceback

import pandas  # noqa: F401

import within.ml.deployment  # noqa: F401
import within.monitoring  # noqa: F401
from within.scheduler import main

HOOK = os.path.join(os.path.dirname(os.path.abspath(__file__)), "killed_at")


def child(wish: dict, parent: int) -> None:
    out = os.open(wish["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(out, 1), os.dup2(out, 2)
    if wish["killed"]:
        os.environ.update(wish["killed"], KILLED_SCHEDULER=str(os.getpid()), PYTHONPATH=os.pathsep.join([HOOK, os.environ.get("PYTHONPATH", "")]))
        spec = importlib.util.spec_from_file_location("killed_at", os.path.join(HOOK, "sitecustomize.py"))
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    code = 0
    try: main(["--parent", str(parent), "--once"])
    except SystemExit as e: code = e.code if isinstance(e.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)


def waited(pid: int, until: float | None) -> int:
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended: return status
        if until is not None and time.monotonic() >= until:
            os.kill(pid, signal.SIGKILL)
            return os.waitpid(pid, 0)[1]
        time.sleep(0.01)


if __name__ == "__main__":
    print("ready", flush=True)
    for line in sys.stdin:
        wish, me = json.loads(line), os.getpid()
        began = time.monotonic()
        if (pid := os.fork()) == 0: child(wish, me)
        print(json.dumps(waited(pid, None if wish["die"] is None else began + wish["die"])), flush=True)
