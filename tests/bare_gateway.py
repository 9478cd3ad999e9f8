"""A real gateway process and real host processes without a supervisor: a test decides what the models do and who lives."""
from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from within.context import Context
from within.serving.routes import Route, change
from within.serving.supervisor import child_environment
from within.serving.wire import ask, host_socket, runtime_folder

MODEL, ENVIRONMENT = "toy", "production"

# Answers 1000 x a + the number of rows it got together, after `fixed` + `each` x rows seconds; a row without `a` raises.
HOST = """
import asyncio, sys, time
from pathlib import Path
from types import SimpleNamespace
from within.serving.host import serve

class Toy:
    signature, target = [SimpleNamespace(name="a", kind="number")], "y"
    def predict_records(self, records):
        if any(r["a"] is not None for r in records): time.sleep(float(sys.argv[3]) + float(sys.argv[4]) * len(records))
        return [1000 * r["a"] + len(records) for r in records]

asyncio.run(serve(Toy(), "toy", sys.argv[1], Path(sys.argv[2])))
"""


def eventually(holds, seconds: float = 30.0) -> bool:
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until: return False
        time.sleep(0.02)
    return True


class Bare:
    "One gateway with its hosts."

    def __init__(self, home: Path, batching: dict | None = None):
        configs = home.parent / "configs"
        configs.mkdir()
        (configs / "environments.yml").write_text(yaml.safe_dump({"environments": {ENVIRONMENT: {"batching": batching or {}}}}))
        self.ctx = Context.open(home=home, configs=configs, token="secret")
        self.hosts: dict[str, subprocess.Popen] = {}
        self.gateway: subprocess.Popen | None = None
        self.listening = socket.socket()
        self.listening.bind(("127.0.0.1", 0))
        self.listening.listen(2048)
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        runtime_folder(home, make=True)

    def host(self, version: str, fixed: float = 0.0, each: float = 0.0) -> None:
        place = host_socket(self.ctx.settings.home, MODEL, version)
        argv = [sys.executable, "-c", HOST, version, str(place), str(fixed), str(each)]
        self.hosts[version] = subprocess.Popen(argv, env=child_environment(self.ctx))
        assert eventually(place.exists)

    def start(self, whole: bool = True, **environment: str) -> None: # whole: wait for all versions, not only for the default
        argv = ["-m", "within.serving.gateway", "--environment", ENVIRONMENT, "--fd", str(self.listening.fileno()), "--parent", str(os.getpid())]
        self.gateway = subprocess.Popen([sys.executable, *argv], env=child_environment(self.ctx) | environment, pass_fds=[self.listening.fileno()])
        assert eventually(lambda: ask(self.url, "/v2/health/ready", timeout=20)[0] == 200)
        if whole: assert eventually(lambda: not any(m["awaited"] for m in ask(self.url, "/routes")[1]["routes"].values()))

    def route(self, default: str, **parts) -> None:
        from within.serving.routes import current

        before = current(self.ctx, ENVIRONMENT, MODEL)
        change(self.ctx, Route(ENVIRONMENT, MODEL, default, **parts), before and before.revision, by="test")

    def infer(self, id: str, *a: float | None, unit: str = "u", timeout: float = 20.0) -> tuple[int, dict]:
        body = {"id": id, "parameters": {"unit": unit}, "inputs": [{"name": "a", "data": list(a)}]}
        return ask(self.url, f"/v2/models/{MODEL}/infer", body, timeout=timeout)

    def signal(self, version: str, number: int) -> None: os.kill(self.hosts[version].pid, number)

    def close(self) -> None:
        for process in (self.gateway, *self.hosts.values()):
            if process is None: continue
            with contextlib.suppress(ProcessLookupError): os.kill(process.pid, signal.SIGCONT)
            process.kill()
            process.wait()
        self.listening.close()
        self.ctx.close()
        folder = runtime_folder(self.ctx.settings.home)
        for path in folder.iterdir(): path.unlink()
        folder.rmdir()


@contextlib.contextmanager
def bare(home: Path, batching: dict | None = None) -> Iterator[Bare]:
    made = Bare(home, batching)
    try: yield made
    finally: made.close()
