"""The gateway against Ray Serve's own minimal deployment: the same trees, the same request bodies, 16 connections; requests a second."""
from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.harness import Row
from benchmarks.load import free_port, gateway, loads_in_turns, middle, requests, server, wrk

NAME, BAR = "gateway against a minimal Ray Serve deployment, 16 connections: rate", "> 1 x"

# What Ray's own introduction shows: a class, a replica, the HTTP proxy as it comes; no check of the request, no log of predictions.
PEER = """
import logging, signal, sys
import numpy as np, ray, xgboost
from ray import serve

@serve.deployment(num_replicas=1, max_ongoing_requests=100)
class Trees:
    def __init__(self, path): self.booster = xgboost.Booster(model_file=path)

    async def __call__(self, request):
        split = (await request.json())["dataframe_split"]
        return {"predictions": self.booster.inplace_predict(np.asarray(split["data"], dtype=float)).tolist()}

port, model, place = int(sys.argv[1]), sys.argv[2], sys.argv[3]
ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False, logging_level=logging.ERROR, _temp_dir=place)
serve.start(http_options={"host": "127.0.0.1", "port": port})
serve.run(Trees.bind(model), route_prefix="/invocations")
signal.pause()
"""


def of_place(place: Path) -> list[psutil.Process]:
    "The processes of a Ray that keeps its files in a folder."
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and any(str(place) in part for part in process.cmdline()): found.append(process)
    return found


@contextlib.contextmanager
def ray_serve(booster, bodies: Path) -> Iterator[str]:
    "Ray Serve on a Ray of its own, which is gone afterwards."
    model, place, port = bodies.with_name("peer.ubj"), bodies.with_name("ray"), free_port()
    booster.save_model(model)
    before = {k: os.environ.get(k) for k in ("RAY_USAGE_STATS_ENABLED", "RAY_ADDRESS")}
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.pop("RAY_ADDRESS", None)
    try:
        argv = [sys.executable, "-c", PEER, str(port), str(model), str(place)]
        with server(argv, port, "/invocations", bodies.read_bytes().splitlines()[0], bodies.with_name("ray.log")) as url: yield url
    finally:
        for k, v in before.items():
            if v is None: os.environ.pop(k, None)
            else: os.environ[k] = v
        until = time.monotonic() + 10
        while (left := of_place(place)) and time.monotonic() < until: time.sleep(0.1)   # they die with their driver
        for process in left:
            with contextlib.suppress(psutil.Error): process.kill()


def row() -> Row:
    from within.ml.registry import ModelRegistry

    with gateway("1.0.0") as (ctx, url, folder):
        bodies = requests(folder)
        with ray_serve(ModelRegistry(ctx).load("ad_score_predictor", "1.0.0").booster, bodies) as peer:
            ours, theirs = loads_in_turns(lambda: wrk(url, bodies), lambda: wrk(peer, bodies))
    mine, other = middle(ours, "rate"), middle(theirs, "rate")
    why = f"500 trees of depth 7, 40 features, one row a request; both median of {len(ours)} turns; the gateway logs every answer and Ray's deployment none"
    return Row(NAME, round(mine), round(other, 1), "req/s", round(mine / other, 1), BAR, mine / other > 1, why)
