"""Versions served by Ray: what the tests of gateways and hosts ask of one machine, asked again of one home with WITHIN_ENGINE=ray."""
from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import psutil
import pytest
import test_serving
from test_serving import INFER, NAME, START, body, ends, eventually, running

from within.clock import parse_time
from within.context import Context
from within.errors import InvalidInput
from within.ml.placements import checked_resources
from within.serving.bounds import Bounds, bounds_of
from within.serving.health import exchange
from within.serving.on_ray import applications_of
from within.serving.routes import Route, Share, change, current
from within.serving.supervisor import child_environment, gateway_url, release, status
from within.serving.wire import ask, host_socket, runtime_folder
from within.simulation import traffic

pytest.importorskip("ray.serve", reason="Ray with Serve is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def rows(): return traffic(START, days=2, per_day=300, seed=1).assign(unit=lambda t: t["unit"].astype(str))


@pytest.fixture(scope="module")
def served(tmp_path_factory, rows):
    "One home, one Ray, two versions for all tests of this file; the first one answers everybody."
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        ctx = Context.open(home=tmp_path_factory.mktemp("ray") / "home", engine="ray")
        ctx.store.clock_start(parse_time(START))
        ctx = Context.open(home=ctx.settings.home, engine="ray")
        for seed, version in enumerate(("1.0.0", "1.1.0")): test_serving.keep(ctx, version, rows, seed)
        change(ctx, Route("production", NAME, "1.0.0"), None, by="test")
        gateway_url(ctx, "production")
        yield ctx
        release(ctx)
        assert not ends(ctx.settings.home, 15) and not runtime_folder(ctx.settings.home).exists()


@pytest.fixture(autouse=True)
def as_before(request):
    "Every test finds 1.0.0 alone in the route, and one replica of everything."
    yield
    if "served" not in request.fixturenames: return
    ctx = request.getfixturevalue("served")
    route = current(ctx, "production", NAME)
    if (route.default, route.shares, route.shadows) != ("1.0.0", (), ()) and status(ctx)["running"]:
        change(ctx, replace(route, default="1.0.0", shares=(), shadows=()), route.revision, by="test")


def replicas(ctx: Context, version: str) -> list[psutil.Process]:
    "The processes that answer for a version, wherever Ray put them on this machine."
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if f"ServeReplica:{applications_of(ctx.settings.home, NAME, version)}" in " ".join(process.cmdline()): found.append(process)
    return found


def version_of(url: str, id: str) -> str:
    code, answer = ask(url, INFER, body(id))
    assert code == 200, answer
    return answer["model_version"]


def test_statuses_dialects_and_the_log(served): test_serving.test_statuses_dialects_and_the_log(served)


def test_answers_are_those_of_a_host_to_the_bit(served, rows, tmp_path):
    place = tmp_path / "h.sock"
    argv = [sys.executable, "-m", "within.serving.host", "--model", NAME, "--version", "1.0.0", "--socket", str(place), "--parent", str(os.getpid())]
    host = subprocess.Popen(argv, env=child_environment(served))
    try:
        assert eventually(place.exists, 60)
        records = rows[test_serving.FEATURES].head(200).to_dict("records") + [{"platform": None}, {"platform": 3, "ad_content.word_count": "many"}]
        asked = {"id": 1, "records": records}
        (hello, local), (greeting, far) = (asyncio.run(exchange(p, asked, 20)) for p in (place, host_socket(served.settings.home, NAME, "1.0.0")))
    finally:
        host.kill()
        host.wait()
    assert far == local and len(set(far["outputs"])) > 20
    assert {**hello, "pid": 0} == {**greeting, "pid": 0} and hello["pid"] == host.pid and greeting["pid"] in [p.pid for p in replicas(served, "1.0.0")]


def test_a_process_says_what_it_serves_also_while_it_answers(served):
    url = gateway_url(served, "production")
    version_of(url, "first")
    (process,), titles, done = replicas(served, "1.0.0"), set(), threading.Event()
    def look():
        while not done.is_set(): titles.add(" ".join(process.cmdline()).rstrip("\0 "))
    looking = threading.Thread(target=look)
    looking.start()
    try: assert eventually(lambda: version_of(url, f"seen-{time.monotonic()}") and len(titles) > 1, 60), "never seen at work"
    finally:
        done.set()
        looking.join()
    assert all(f"ServeReplica:{applications_of(served.settings.home, NAME, '1.0.0')}" in title for title in titles), titles


def test_changing_routes_under_load_fails_no_request(served): test_serving.test_changing_routes_under_load_fails_no_request(served)


def test_a_killed_replica_of_a_challenger_costs_nobody_an_answer(served):
    url, route = gateway_url(served, "production"), current(served, "production", NAME)
    change(served, replace(route, shares=[Share("treatment", "1.1.0", 100)]), route.revision, by="test", wait=120)
    assert version_of(url, "before") == "1.1.0"
    (killed,) = replicas(served, "1.1.0")
    front = test_serving.host_pid(served, "1.1.0")
    os.kill(killed.pid, signal.SIGKILL)
    seen = [version_of(url, f"after-{n}") for n in range(20)]
    assert "1.0.0" in seen
    assert eventually(lambda: version_of(url, f"again-{time.monotonic()}") == "1.1.0", 60) and replicas(served, "1.1.0")[0].pid != killed.pid
    assert test_serving.host_pid(served, "1.1.0") == front, "Serve brought it back, and its front stayed"


def test_two_replicas_share_the_work_and_one_of_them_can_be_killed(served, rows):
    wish = {"model": NAME, "version": "1.0.0", "resources": {"cpu": "1", "memory": "2Gi", "replicas": "2"}}
    served.store.put("deployment", "d1", wish, None)
    url, (alone,) = gateway_url(served, "production"), replicas(served, "1.0.0")
    def grown():
        now = {p.pid for p in replicas(served, "1.0.0")}
        return version_of(url, f"growing-{time.monotonic()}") == "1.0.0" and len(now) == 2 and alone.pid not in now
    assert eventually(grown, 90)   # other bounds are other processes, and every request meanwhile has an answer
    place, records = host_socket(served.settings.home, NAME, "1.0.0"), rows[test_serving.FEATURES].head(256).to_dict("records")
    spent = lambda: {p.pid: sum(p.cpu_times()[:2]) for p in replicas(served, "1.0.0")}  # noqa: E731
    before = spent()
    def both_worked():
        asyncio.run(exchange(place, {"id": 1, "records": records}, 20))
        return all(now - before.get(pid, 0.0) > 0.5 for pid, now in spent().items())
    assert eventually(both_worked, 60)
    os.kill(replicas(served, "1.0.0")[0].pid, signal.SIGKILL)
    assert {version_of(url, f"default-{n}") for n in range(50)} == {"1.0.0"}
    assert eventually(lambda: len(replicas(served, "1.0.0")) == 2, 60)


def test_changed_bytes_are_never_served(served):
    assert eventually(lambda: not any(h["version"] == "1.1.0" for h in status(served)["hosts"]) and not replicas(served, "1.1.0"), 60)
    test_serving.test_changed_bytes_are_never_served(served)


def test_a_killed_head_takes_its_ray_along(tmp_path):
    home = tmp_path / "home"
    environment = child_environment(Context.open(home=home, engine="ray"))
    head = subprocess.Popen([sys.executable, "-m", "within.serving.on_ray", "--head", "--parent", str(os.getpid())], env=environment,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try: assert eventually(lambda: any("raylet" in line for line in running(home)), 120) and len(running(home)) > 3
    finally:
        head.kill()
        head.wait()
    assert not ends(home, 15)
    (folder := runtime_folder(home)).rmdir()   # nothing is left in it
    assert not folder.exists()


@pytest.mark.parametrize("count", ["0", "-1", "1.5", "two", "1001", "²", True, None, 10**30])
def test_replicas_that_cannot_be_meant_are_refused(count):
    with pytest.raises(InvalidInput, match="number of replicas"): checked_resources({"replicas": count})


def test_the_most_replicas_that_a_living_deployment_asks_for(tmp_path):
    ctx = Context.open(home=tmp_path / "home")
    for n, wanted in enumerate(("3", "2", "many")):
        ctx.store.put("deployment", f"d{n}", {"model": NAME, "version": "1.0.0", "resources": {"replicas": wanted}}, None)
    assert bounds_of(ctx, NAME, "1.0.0") == Bounds(2, 4 << 30, 3) and checked_resources({"replicas": 3}) == {"replicas": "3"}
