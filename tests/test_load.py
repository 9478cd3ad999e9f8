"""A gateway under wrk with 16 connections while routes change, processes are killed and versions are taken back: what was answered, and what is in the log."""
from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from within.context import Context
from within.ml.ad_score import AdScorePredictor
from within.ml.base import folder_digest
from within.observations import PredictionLog
from within.serving.routes import Route, Shadow, Share, change, current, point
from within.serving.supervisor import gateway_url, release, status
from within.serving.wire import ask, runtime_folder

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")]

NAME, UNITS = "ad_score_predictor", 400
FEATURES = [f"f{i}" for i in range(8)]
VERSIONS = ["1.0.0", "1.1.0", "1.2.0", "1.3.0", "1.4.0"]

# Every request has an id of its own and one of 400 units; every answer is kept: its status, and its body as it came.
SCRIPT = """
local name, n, out = "", 0, nil
local threads = 0
function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end
function init(args)
  name = args[2] .. "-" .. number
  out = io.open(args[1] .. "/answers-" .. name .. ".jsonl", "w")
end
function request()
  n = n + 1
  local unit = "u" .. ((n * 7919 + number) % 400)
  local row = string.format("%.3f,%.3f,%.3f,%.3f,0.5,-0.5,1.5,null", n % 7 / 7, n % 11 / 11, n % 13 / 13, n % 17 / 17)
  local body = '{"dataframe_split":{"columns":["f0","f1","f2","f3","f4","f5","f6","f7"],"data":[[' .. row .. ']]},"id":"' .. name .. "-" .. n .. "-" .. unit
               .. '","params":{"unit":"' .. unit .. '"}}'
  return wrk.format("POST", "/invocations", {["content-type"] = "application/json"}, body)
end
function response(status, headers, body)
  out:write('{"status":', status, ',"answer":', body, '}\\n')
end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\\n{"n": %d, "us": %d, "connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d, "p50": %f, "p99": %f, "max": %f}\\n',
           summary.requests, summary.duration, e.connect, e.read, e.write, e.status, e.timeout,
           latency:percentile(50) / 1000, latency:percentile(99) / 1000, latency.max / 1000))
end
"""


class Load(threading.Thread):
    "wrk with 16 connections, again and again until it is stopped."

    def __init__(self, url: str, folder: Path, phase: str, seconds: int = 5):
        super().__init__()
        self.url, self.folder, self.phase, self.seconds, self.told, self.ending = url, folder, phase, seconds, [], threading.Event()
        (folder / "load.lua").write_text(SCRIPT)

    def run(self) -> None:
        while not self.ending.is_set():
            argv = ["wrk", "-t1", "-c16", f"-d{self.seconds}s", "--timeout", "20s", "-s", str(self.folder / "load.lua"), self.url, "--"]
            done = subprocess.run([*argv, str(self.folder), f"{self.phase}.{len(self.told)}"], capture_output=True, text=True, check=True)
            self.told.append(json.loads(done.stdout.strip().splitlines()[-1]))

    def __enter__(self) -> Load:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.ending.set()
        self.join()

    def answers(self) -> list[dict]:
        "Everything that was answered, in order; a line that was cut off when wrk ended is left out."
        found = []
        for k in range(len(self.told)):
            for line in (self.folder / f"answers-{self.phase}.{k}-0.jsonl").read_text().splitlines():
                try: found.append(json.loads(line))
                except ValueError: continue
        return found

    def failed(self) -> int: return sum(t["connect"] + t["read"] + t["write"] + t["status"] + t["timeout"] for t in self.told)

    def figures(self) -> dict:
        n = sum(t["n"] for t in self.told)
        return {"requests": n, "failed": self.failed(), "per_second": round(n / sum(t["us"] for t in self.told) * 1e6),
                "p50_ms": round(float(np.median([t["p50"] for t in self.told])), 2), "p99_ms": round(float(np.median([t["p99"] for t in self.told])), 2),
                "slowest_ms": round(max(t["max"] for t in self.told), 1)}


@pytest.fixture
def served(tmp_path):
    "Five versions in a home on the system clock, the first one routed."
    ctx = Context.open(home=tmp_path / "home")
    rng = np.random.default_rng(0)
    x = pd.DataFrame(rng.normal(size=(600, 8)), columns=FEATURES)
    ctx.path("models").mkdir(exist_ok=True)
    for seed, version in enumerate(VERSIONS):
        y = pd.Series((50 + 10 * x["f0"] + rng.normal(size=600) + seed).clip(0, 100), name="effectiveness_score")
        saved = AdScorePredictor({"n_estimators": 20, "max_depth": 3, "random_state": seed}).fit(x, y).save(ctx.path("saved", version))
        digest = folder_digest(saved)
        saved.rename(ctx.path("models", digest))
        ctx.store.add_model_version(NAME, version, digest, {k: {} for k in ("metrics", "parameters", "labels", "training_data_info", "lineage", "mlflow")})
    change(ctx, Route("production", NAME, "1.0.0"), None, by="test")
    yield ctx
    release(ctx)
    until = time.monotonic() + 10
    while runtime_folder(ctx.settings.home).exists() and time.monotonic() < until: time.sleep(0.05)
    ctx.close()


def reroute(ctx: Context, **parts) -> None:
    route = current(ctx, "production", NAME)
    change(ctx, replace(route, **parts), route.revision, by="test")


def missing(ctx: Context, answers: list[dict]) -> list[str]:
    "Ids that were acknowledged and are not in the log with that version and that output."
    log = PredictionLog(ctx, "production").predictions()
    live = log[(log["role"] == "live") & log["output"].notna()]
    known = set(zip(live["id"], live["version"], live["variant"], live["output"], strict=True))
    acknowledged = [a["answer"] for a in answers if a["status"] == 200]
    assert len({a["id"] for a in acknowledged}) == len(acknowledged)
    return [a["id"] for a in acknowledged if (a["id"], a["version"], a["variant"], a["predictions"][0]) not in known]


def variants(answers: list[dict]) -> dict[str, set[str]]:
    "Which variants each unit got, fallbacks aside."
    found = defaultdict(set)
    for a in answers:
        if a["answer"]["variant"] != "fallback": found[a["answer"]["id"].rpartition("-")[2]].add(a["answer"]["variant"])
    return found


def pid_of(ctx: Context, version: str) -> int | None: return next((h["pid"] for h in status(ctx)["hosts"] if h["version"] == version), None)


def answered_by(url: str, version: str, tries: int = 3000) -> bool:
    "Whether the version answers somebody before long."
    for i in range(tries):
        body = {"dataframe_split": {"columns": ["f0"], "data": [[1.0]]}, "params": {"unit": f"u{i % UNITS}"}}
        if ask(url, "/invocations", body)[1].get("version") == version: return True
        time.sleep(0.01)
    return False


def test_switches_shares_kills_and_rollbacks_fail_no_request_and_lose_no_prediction(served, tmp_path):
    ctx, url, figures, seen = served, gateway_url(served, "production"), {}, []
    salt = current(ctx, "production", NAME).salt

    with Load(url, tmp_path, "switch") as load:
        for i in range(50):   # blue stays warm as a share of nobody
            reroute(ctx, default=VERSIONS[1 - i % 2], shares=(Share("warm", VERSIONS[i % 2], 0.0),))
    seen.append(load)
    assert {v for s in variants(load.answers()).values() for v in s} == {"default"} and {a["answer"]["version"] for a in load.answers()} == set(VERSIONS[:2])

    reroute(ctx, default="1.0.0", shares=(Share("rollout", "1.1.0", 5.0),))
    with Load(url, tmp_path, "share") as load:
        for i in range(50): reroute(ctx, shares=(Share("rollout", "1.1.0", 5.0 + i % 10 * 5),))
    seen.append(load)
    for unit, got in variants(load.answers()).items():   # below the smallest share a unit stays in, above the largest it stays out, others move with the share
        at = point(unit, salt)
        assert got == {"rollout"} if at < 5 else got == {"default"} if at >= 50 else got <= {"rollout", "default"}, (unit, at, got)

    challengers = VERSIONS[1:]
    reroute(ctx, shares=tuple(Share(f"t{v}", v, 15.0) for v in challengers))
    with Load(url, tmp_path, "kill") as load:
        for i in range(20):
            version = challengers[i % 4]
            before = pid_of(ctx, version)
            os.kill(before, signal.SIGKILL)
            while pid_of(ctx, version) in (None, before): time.sleep(0.05)
            assert answered_by(url, version)
    seen.append(load)
    split = variants(load.answers())
    assert all(len(s) == 1 for s in split.values()) and 5 == len({v for s in split.values() for v in s})
    figures["fallbacks while killed"] = sum(a["answer"]["variant"] == "fallback" for a in load.answers())

    reroute(ctx, default="1.0.0", shares=(), shadows=(Shadow("1.1.0"),))
    with Load(url, tmp_path, "rollback") as load:
        took = []
        for _ in range(20):
            reroute(ctx, default="1.1.0", shadows=(Shadow("1.0.0"),))
            start = time.perf_counter()
            reroute(ctx, default="1.0.0", shadows=(Shadow("1.1.0"),))
            took.append(time.perf_counter() - start)
    seen.append(load)
    figures["seconds to roll back, median and slowest"] = [round(float(np.median(took)), 3), round(max(took), 3)]

    for load in seen: print(load.phase, load.figures(), flush=True)
    print(figures, flush=True)
    answers = [a for load in seen for a in load.answers()]
    lost = missing(ctx, answers)
    print({"answers": len(answers), "statuses": dict(Counter(a["status"] for a in answers)), "acknowledged but not in the log": len(lost)}, flush=True)
    assert not lost and {a["status"] for a in answers} == {200} and sum(load.failed() for load in seen) == 0


def test_a_gateway_killed_under_load_has_logged_everything_it_acknowledged(served, tmp_path):
    ctx, url = served, gateway_url(served, "production")
    reroute(ctx, shares=(Share("treatment", "1.1.0", 50.0),), shadows=(Shadow("1.2.0"),))
    answered = tmp_path / "answers-gateway.0-0.jsonl"
    with Load(url, tmp_path, "gateway", seconds=30) as load:
        for _ in range(6):
            before, size = status(ctx)["gateways"]["production"]["pid"], answered.stat().st_size if answered.exists() else 0
            while not answered.exists() or answered.stat().st_size < size + 500_000: time.sleep(0.02)   # some thousand answers later
            os.kill(before, signal.SIGKILL)
            while status(ctx)["gateways"]["production"]["pid"] in (None, before): time.sleep(0.05)
    gateway_url(ctx, "production")
    answers = load.answers()
    log = PredictionLog(ctx, "production").predictions()
    broken = sum(t["read"] + t["write"] + t["connect"] for t in load.told)
    print({"answers": len(answers), "connections broken": broken, "lines": len(log), "torn lines": log.attrs["bad_lines"]}, flush=True)
    assert not missing(ctx, answers) and {a["status"] for a in answers} == {200} and len(answers) > 6000
    assert broken and log.attrs["bad_lines"] <= 6
    assert all(len(s) == 1 for s in variants(answers).values())
