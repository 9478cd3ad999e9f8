"""What the rows of the gateway share: a home with one model served, other servers beside it, and wrk's figures."""
from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import SIZE, HardwareAbsent, place

NAME, COLUMNS, ROWS = "ad_score_predictor", 40, 20_000
SECONDS, REPEATS = max(1.0, 4 * SIZE), max(2, int(5 * SIZE))
NAMES = [f"f{i:02}" for i in range(COLUMNS)]

# A thousand different requests, each of another unit, built once a thread; the summary comes as one line of JSON.
SCRIPT = """
local requests, at = {}, 0
function init(args)
  for line in io.lines(args[1]) do
    requests[#requests + 1] = wrk.format("POST", args[2], {["content-type"] = "application/json"}, line)
  end
  at = math.random(#requests)
end
function request()
  at = at % #requests + 1
  return requests[at]
end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\\n{"n": %d, "us": %d, "failed": %d, "p50": %f, "p99": %f}\\n', summary.requests, summary.duration,
           e.connect + e.read + e.write + e.status + e.timeout, latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
"""


@dataclass(frozen=True)
class Load:
    "What wrk saw: requests a second, milliseconds, requests that failed."
    rate: float
    p50: float
    p99: float
    failed: int


def need_wrk() -> str:
    if (found := shutil.which("wrk")) is None: raise HardwareAbsent("wrk is not installed (Debian: apt install wrk)")
    return found


def requests(folder: Path, n: int = 1000) -> Path:
    "A file of request bodies, one a line, in the form that MLflow and the gateway both read."
    import numpy as np

    values = np.random.default_rng(1).normal(size=(n, COLUMNS)).round(4).tolist()
    lines = [json.dumps({"dataframe_split": {"columns": NAMES, "data": [row]}, "params": {"unit": f"u{i}"}}) for i, row in enumerate(values)]
    path = folder / "requests.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def wrk(url: str, bodies: Path, path: str = "/invocations", connections: int = 16, seconds: float = SECONDS) -> Load:
    "A closed loop of so many connections, by one thread of wrk."
    script = bodies.with_name("load.lua")
    script.write_text(SCRIPT)
    options = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s", "-s", str(script)]
    done = subprocess.run([need_wrk(), *options, url, "--", str(bodies), path], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.strip().splitlines()[-1])
    return Load(told["n"] / told["us"] * 1e6, told["p50"], told["p99"], told["failed"])


def loads_in_turns(*sides: Callable[[], Load], repeats: int = REPEATS) -> list[list[Load]]:
    "What each side saw; the sides alternate and swap who goes first, and the first turn only warms."
    seen: list[list[Load]] = [[] for _ in sides]
    for turn in range(1 + repeats):
        for i in range(len(sides)) if turn % 2 else reversed(range(len(sides))):
            load = sides[i]()
            if load.failed: raise RuntimeError(f"{load.failed} of the requests of side {i} failed")
            if turn: seen[i].append(load)
    return seen


def middle(loads: list[Load], what: str) -> float: return statistics.median(getattr(load, what) for load in loads)


def model(trees: int = 500, seed: int = 0):
    "Trees of depth 7 over 40 numbers; drawn once, by a fixed seed."
    import numpy as np
    import pandas as pd

    from within.ml.ad_score import AdScorePredictor

    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, COLUMNS))
    y = pd.Series(np.clip(50 + 10 * x[:, 0] + 6 * np.tanh(x[:, 1] * x[:, 2]) + rng.normal(scale=6, size=ROWS) + seed, 0, 100), name="effectiveness_score")
    return AdScorePredictor({"n_estimators": trees, "max_depth": 7, "random_state": seed}).fit(pd.DataFrame(x, columns=NAMES), y)


@contextlib.contextmanager
def gateway(*versions: str) -> Iterator[tuple]:
    "A home on the system clock whose gateway serves the first version; yields its context, its address and the folder. Nothing is left afterwards."
    need_wrk()
    with place(WITHIN_CLOCK="system") as home:
        from within.context import Context
        from within.ml.base import folder_digest
        from within.serving.routes import Route, change
        from within.serving.supervisor import gateway_url, release

        ctx = Context.open(home=home)
        ctx.path("models").mkdir()
        for seed, version in enumerate(versions):
            folder = model(seed=seed).save(ctx.path("saved", version))
            digest = folder_digest(folder)
            folder.rename(ctx.path("models", digest))
            ctx.store.add_model_version(NAME, version, digest, {k: {} for k in ("metrics", "parameters", "labels", "training_data_info", "lineage", "mlflow")})
        change(ctx, Route("production", NAME, versions[0]), None, by="bench")
        try: yield ctx, gateway_url(ctx, "production"), home.parent
        finally:
            release(ctx)
            ctx.close()
            time.sleep(2)   # the supervisor ends its children before the folder goes


ECHO = """
import socket, sys, uvicorn

async def app(scope, receive, send):
    message = await receive()
    body = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})

listening = socket.socket()
listening.bind(("127.0.0.1", int(sys.argv[1])))
listening.listen(2048)
config = uvicorn.Config(app, loop="uvloop", http="httptools", lifespan="off", log_level="warning", access_log=False, proxy_headers=False,
                        timeout_graceful_shutdown=2, timeout_keep_alive=75, backlog=2048, server_header=False, date_header=False)
uvicorn.Server(config).run(sockets=[listening])
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def server(argv: list[str], port: int, path: str, body: bytes, log: Path, patience: float = 90.0) -> Iterator[str]:
    "Another server as a process of its own session; its address once it answers."
    here = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"   # mlflow calls uvicorn by its name
    quiet = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | {"MLFLOW_DISABLE_TELEMETRY": "true", "PATH": here}
    with open(log, "wb") as out: process = subprocess.Popen(argv, stdout=out, stderr=out, start_new_session=True, env=quiet)
    try:
        until = time.monotonic() + patience
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                link = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
                link.request("POST", path, body, {"content-type": "application/json"})
                answer = link.getresponse()
                said = answer.read()
                link.close()
                if answer.status == 200: break
                raise RuntimeError(f"{argv[0]} answers {answer.status}: {said[:300]!r}")
            if process.poll() is not None or time.monotonic() > until: raise RuntimeError(f"it does not answer: {log.read_text()[-500:]}")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError): os.killpg(process.pid, 9)
        process.wait()


@contextlib.contextmanager
def echo(bodies: Path) -> Iterator[str]:
    "An ASGI app that sends back what came, under the gateway's server and its settings."
    port, first = free_port(), bodies.read_bytes().splitlines()[0]
    with server([sys.executable, "-c", ECHO, str(port)], port, "/invocations", first, bodies.with_name("echo.log")) as url: yield url


@contextlib.contextmanager
def mlflow(booster, bodies: Path) -> Iterator[str]:
    "`mlflow models serve` of the same trees, as it comes; the model has its signature, so that both sides check what they are asked."
    import mlflow.xgboost
    import numpy as np
    import pandas as pd
    from mlflow.models import infer_signature

    folder, port = bodies.with_name("mlflow-model"), free_port()
    mlflow.xgboost.save_model(booster, folder, signature=infer_signature(pd.DataFrame([[0.5] * COLUMNS], columns=NAMES), np.array([0.5])))
    argv = [str(Path(sys.executable).parent / "mlflow"), "models", "serve", "-m", str(folder), "--env-manager", "local", "-h", "127.0.0.1", "-p", str(port)]
    with server(argv, port, "/invocations", bodies.read_bytes().splitlines()[0], bodies.with_name("mlflow.log")) as url: yield url


