"""Hosts as real processes: held to their bounds, looked after, restarted with patience, fenced when they loop; and live answers go on."""
from __future__ import annotations

import os
import random
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import moody_model
import pandas as pd
import pytest
import yaml
from conftest import on_path
from test_serving import ends, eventually

from within.context import Context
from within.errors import InvalidInput, ServingError
from within.ledger import entries, verify
from within.ml.base import FeatureSpec, folder_digest
from within.serving.bounds import Bounds, Groups, Watch, bounds_of, cores_for, cpu_cores, delegated, enforcement, memory_bytes, own_group
from within.serving.restarts import CRASH_LOOP, LONGEST_PAUSE, Tries, fences, lift_fence, pause, set_fence
from within.serving.routes import Route, Shadow, Share, change, current
from within.serving.supervisor import Host, Needed, Note, Supervisor, gateway_url, release, status
from within.serving.wire import ask, runtime_folder

ROOT, TESTS, NAME = Path(__file__).resolve().parent.parent, str(Path(__file__).resolve().parent), "moody"
INFER = f"/v2/models/{NAME}/infer"
POLICY = {"model": NAME, "class": "moody_model:Moody", "dataset": "ads", "target": "y", "unit": "u", "release": {"resources": {"cpu": "1", "memory": "700Mi"}}}


def keep(ctx: Context, version: str, answer: float) -> None:
    "A version that always answers one number."
    model = moody_model.Moody().fit(pd.DataFrame({"x": [0.0]}), pd.Series([answer], name="y"))
    model.signature = [FeatureSpec("x", "number")]
    ctx.path("models").mkdir(exist_ok=True)
    digest = folder_digest(folder := model.save(ctx.path("saved", version)))
    folder.rename(ctx.path("models", digest))
    ctx.store.add_model_version(NAME, version, digest, {k: {} for k in ("metrics", "parameters", "labels", "training_data_info", "lineage", "mlflow")})


@pytest.fixture
def moody(tmp_path, monkeypatch):
    "A home on the system clock with two versions of a model that can misbehave; 1.0.0 answers everybody."
    configs = Path(shutil.copytree(ROOT / "configs", tmp_path / "configs"))
    (configs / f"{NAME}.yml").write_text(yaml.safe_dump(POLICY))
    (tmp_path / "moods").mkdir()
    for name, value in {"PYTHONPATH": on_path(TESTS), "MOODY_FOLDER": tmp_path / "moods",
                        "WITHIN_HOME": tmp_path / "home", "WITHIN_CONFIGS": configs}.items(): monkeypatch.setenv(name, str(value))
    ctx = Context.open()
    for version, answer in (("1.0.0", 10.0), ("1.1.0", 11.0)): keep(ctx, version, answer)
    change(ctx, Route("production", NAME, "1.0.0"), None, by="test")
    yield ctx
    release(ctx)
    assert not ends(ctx.settings.home) and not runtime_folder(ctx.settings.home).exists()


def say(ctx: Context, answer: int, mood: str) -> None: (ctx.settings.home.parent / "moods" / str(answer)).write_text(mood)


def asked(url: str, x: float = 0.0, n: int = 0) -> tuple[int, str, str]:
    "Status, version and variant of one answer."
    code, answer = ask(url, INFER, {"id": f"q{n}-{x}", "parameters": {"unit": f"u{n}"}, "inputs": [{"name": "x", "data": [x]}]})
    return (code, answer["model_version"], answer["parameters"]["variant"]) if code == 200 else (code, str(answer), "")


def host(ctx: Context, version: str) -> dict:
    return next((h for h in status(ctx)["hosts"] if h["version"] == version), {"pid": None, "phase": "none", "restarts": 0, "fence": None})


def share(ctx: Context, **changes) -> None:
    route = current(ctx, "production", NAME)
    change(ctx, replace(route, **changes), route.revision, by="test")


# --- bounds ----------------------------------------------------------------------------------------------------------------------------------------

def test_a_host_that_leaks_is_ended_and_restarted_and_nobody_waits_for_it(moody):
    url = gateway_url(moody, "production")
    share(moody, shares=[Share("treatment", "1.1.0", 100)])
    first = host(moody, "1.1.0")["pid"]
    answers = []
    while host(moody, "1.1.0")["pid"] == first and len(answers) < 60: answers.append(asked(url, 150, len(answers)))
    assert {a[0] for a in answers} == {200} and answers[0][1] == "1.1.0" and len(answers) < 60
    assert eventually(lambda: asked(url)[1] == "1.1.0") and host(moody, "1.1.0")["pid"] not in (None, first)
    seen = host(moody, "1.1.0")
    assert seen["restarts"] == 1 and "bound 700 MiB" in seen["said"] and seen["memory"] < seen["memory_bound"] == 700 << 20
    assert eventually(lambda: entries(moody, "host", f"{NAME}@1.1.0"), 5)
    (noted,) = moody.store.observations(f"host:{NAME}@1.1.0", "host_ended")
    assert noted["value"] > 500 << 20 and "bound 700 MiB" in noted["labels"]["reason"] and verify(moody).ok


def test_cores_and_priorities_are_seen_in_proc(moody):
    gateway_url(moody, "production")
    share(moody, shadows=[Shadow("1.1.0")])
    assert eventually(lambda: host(moody, "1.1.0")["phase"] == "ready")
    pids = {v: host(moody, v)["pid"] for v in ("1.0.0", "1.1.0")}
    lines = {v: Path(f"/proc/{p}/status").read_text().splitlines() for v, p in pids.items()}
    allowed = {v: next(line.split()[1] for line in found if line.startswith("Cpus_allowed_list")) for v, found in lines.items()}
    available = os.sched_getaffinity(0)
    if status(moody)["enforcement"] == Watch.kind:
        assert all(c.isdigit() and int(c) in available for c in allowed.values()) and (len(available) < 2 or allowed["1.0.0"] != allowed["1.1.0"])
    assert os.sched_getscheduler(pids["1.1.0"]) == os.SCHED_BATCH and os.sched_getscheduler(pids["1.0.0"]) == os.SCHED_OTHER
    share(moody, default="1.1.0", shadows=())
    assert eventually(lambda: os.sched_getscheduler(pids["1.1.0"]) == os.SCHED_OTHER) and os.getpriority(os.PRIO_PROCESS, pids["1.1.0"]) == 0
    wish = {"model": NAME, "version": "1.1.0", "resources": {"cpu": "64", "memory": "1Gi"}}
    moody.store.put("deployment", "d1", wish, None)
    assert eventually(lambda: host(moody, "1.1.0")["memory_bound"] == 1 << 30 and os.sched_getaffinity(pids["1.1.0"]) == available, 10)
    assert host(moody, "1.1.0")["pid"] == pids["1.1.0"]


@pytest.mark.parametrize("text", ["", "-1", "4 Gi", "four", "1e3Gi", "½Gi", "٤Gi", "4gi", "4Gi\n", "nan"])
def test_quantities_that_cannot_be_meant_are_refused(text):
    with pytest.raises(InvalidInput, match="4Gi"): memory_bytes(text)
    if text not in ("4gi", "4Gi\n"):
        with pytest.raises(InvalidInput, match="500m"): cpu_cores(text)


def test_a_broken_wish_in_the_store_keeps_no_host_from_starting(moody):
    moody.store.put("deployment", "d1", {"model": NAME, "version": "1.0.0", "resources": {"cpu": "lots", "memory": None}}, None)
    moody.store.put("deployment", "d2", {"model": NAME, "version": "1.0.0", "resources": {"memory": "900Mi"}}, None)
    moody.store.put("deployment", "d3", {"model": NAME, "version": "1.0.0", "resources": {"memory": "9Gi"}, "ended_at": "2023-01-01"}, None)
    assert bounds_of(moody, NAME, "1.0.0") == Bounds(1, 900 << 20)
    assert bounds_of(moody, "no_such_model", "1.0.0") == Bounds(2, 4 << 30)


def test_cores_are_spread_before_they_are_shared():
    taken, available = {}, {0, 1, 2, 3}
    for n in range(8): taken[f"h{n}"] = cores_for(1, available, taken)
    counts = [sum(c in t for t in taken.values()) for c in available]
    assert counts == [2, 2, 2, 2] and cores_for(100, available, taken) == available


def tree(folder: Path, own: str, controllers: str = "cpuset cpu io memory pids") -> tuple[Path, Path]:
    "A folder in the shape of cgroup v2, and the file that says where this process is in it."
    (file := folder / "self").write_text(own)
    root = folder / "root"
    for group in (root, root / "system.slice", root / "system.slice" / "within.service"):
        group.mkdir()
        (group / "cgroup.controllers").write_text(controllers + "\n")
        (group / "cgroup.procs").write_text(f"{os.getpid()}\n")
        (group / "cgroup.subtree_control").write_text("")
    return file, root


@pytest.mark.parametrize(("own", "found"), [
    ("0::/system.slice/within.service\n", "system.slice/within.service"), ("0::/system.slice/within.service/own\n", "system.slice/within.service"),
    ("12:memory:/x\n1:name=systemd:/y\n0::/system.slice\n", "system.slice"), ("4:memory:/x\n", None), ("", None), ("0::/gone.service\n", None),
    ("0::/../outside\n", None)])
def test_where_this_process_is_in_the_tree(tmp_path, own, found):
    file, root = tree(tmp_path, own)
    assert own_group(file, root) == (root / found if found else None)
    assert own_group(tmp_path / "no-such-file", root) is None


def test_a_tree_without_the_controllers_or_that_nobody_gave_us_is_left_alone(tmp_path):
    file, root = tree(tmp_path, "0::/system.slice/within.service\n", controllers="hugetlb")
    assert own_group(file, root) is None and enforcement(file, root).kind == Watch.kind
    shutil.rmtree(root), file.unlink()
    file, root = tree(tmp_path, "0::/system.slice/within.service\n")
    top = root / "system.slice" / "within.service"
    if os.geteuid() == 0: assert not delegated(top) and enforcement(file, root).kind == Watch.kind
    (top / "cgroup.procs").write_text("1\n")  # somebody else lives there
    if os.geteuid() != 0: assert not delegated(top)
    assert not (top / "own").exists()


def test_a_delegated_tree_is_divided_and_written_to(tmp_path):
    file, root = tree(tmp_path, "0::/system.slice/within.service\n")
    top = root / "system.slice" / "within.service"
    try: os.setxattr(top, "user.delegate", b"1")
    except OSError: pytest.skip("this file system keeps no extended attributes")
    groups = enforcement(file, root) if not (top / "own").mkdir() else None
    assert isinstance(groups, Groups) and (top / "cgroup.subtree_control").read_text() == "+cpu +memory"
    assert (top / "own" / "cgroup.procs").read_text() == str(os.getpid())
    group = top / "host-m-1.0.0"
    groups.admit("host-m-1.0.0", 2**22 + 1, Bounds(2.5, 4 << 30), "shadow")
    wrote = {f.name: f.read_text() for f in group.iterdir()}
    assert wrote == {"cpu.max": "250000 100000", "memory.max": str(4 << 30), "memory.swap.max": "0", "memory.oom.group": "1", "cpu.weight": "10",
                     "cgroup.procs": str(2**22 + 1)}
    assert groups.fault("host-m-1.0.0", 1, Bounds(1, 1 << 20)) is None
    (group / "memory.events").write_text("low 0\nhigh 0\nmax 12\noom 1\noom_kill 2\n")
    (group / "memory.current").write_text("12345\n")
    (group / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\n")
    assert "bound of 1 MiB" in groups.fault("host-m-1.0.0", 1, Bounds(1, 1 << 20)) and groups.fault("host-m-1.0.0", 1, Bounds(1, 1 << 20)) is None
    assert groups.spent("host-m-1.0.0", 1).memory == 12345 and groups.spent("host-m-1.0.0", 1).cpu_seconds == 2.5


# --- health ----------------------------------------------------------------------------------------------------------------------------------------

def test_a_frozen_host_and_a_frozen_gateway_are_replaced(moody):
    url = gateway_url(moody, "production")
    share(moody, shares=[Share("treatment", "1.1.0", 100)])
    frozen = host(moody, "1.1.0")["pid"]
    os.kill(frozen, signal.SIGSTOP)
    assert asked(url)[:2] == (200, "1.0.0") and eventually(lambda: host(moody, "1.1.0")["pid"] not in (frozen, None), 10)
    assert "stopped" in host(moody, "1.1.0")["said"] and eventually(lambda: asked(url)[1] == "1.1.0")
    gateway = status(moody)["gateways"]["production"]["pid"]
    os.kill(gateway, signal.SIGSTOP)
    assert eventually(lambda: status(moody)["gateways"]["production"]["pid"] not in (gateway, None), 10)
    assert eventually(lambda: asked(url)[0] == 200) and gateway_url(moody, "production") == url


def test_a_version_that_does_not_score_is_not_ready(moody):
    say(moody, 11, "mute")
    url = gateway_url(moody, "production")
    share(moody, shares=[Share("treatment", "1.1.0", 100)])
    assert eventually(lambda: "does not score" in (host(moody, "1.1.0").get("unready") or ""), 15)
    assert host(moody, "1.1.0")["phase"] == "not ready" and host(moody, "1.1.0")["restarts"] == 0 and asked(url)[:2] == (200, "1.0.0")
    say(moody, 11, "")
    assert eventually(lambda: host(moody, "1.1.0")["phase"] == "ready", 15) and asked(url)[1] == "1.1.0"


def test_a_killed_host_gateway_and_supervisor_come_back_at_the_same_address(moody):
    url = gateway_url(moody, "production")
    for victim in ("host", "gateway", "supervisor"):
        now = status(moody)
        pid = {"host": now["hosts"][0]["pid"], "gateway": now["gateways"]["production"]["pid"], "supervisor": now["pid"]}[victim]
        os.kill(pid, signal.SIGKILL)
        if victim == "supervisor": assert eventually(lambda: not status(moody)["running"], 5)
        assert gateway_url(moody, "production") == url and eventually(lambda: _fine(url)), victim
    assert current(moody, "production", NAME).revision == 1 and not fences(moody)
    assert not entries(moody, "host")   # somebody else killed them: that is no fault of theirs


def _fine(url: str) -> bool:
    try: return asked(url)[:2] == (200, "1.0.0")
    except ServingError: return False


def test_a_port_is_one_environments(moody):
    url = gateway_url(moody, "production")
    port = int(url.rpartition(":")[2])
    with pytest.raises(ServingError, match=f"port {port} already"): gateway_url(moody, "production", port=port + 1 if port < 65535 else port - 1)
    with pytest.raises(ServingError, match="is not free for staging.*--port"): gateway_url(moody, "staging", port=port)
    assert gateway_url(moody, "production", port=port) == url


# --- restarts and fences ---------------------------------------------------------------------------------------------------------------------------

def test_a_crash_loop_ends_behind_a_fence_and_lifting_it_gives_another_chance(moody):
    say(moody, 11, "breaks")
    url = gateway_url(moody, "production")
    route = current(moody, "production", NAME)
    change(moody, replace(route, shares=[Share("treatment", "1.1.0", 100)]), route.revision, by="test", wait=0)
    assert eventually(lambda: host(moody, "1.1.0")["phase"] == "fenced", 60)
    seen = host(moody, "1.1.0")
    assert seen["restarts"] == CRASH_LOOP and seen["pid"] is None and "not what they were" in seen["fence"] and asked(url)[:2] == (200, "1.0.0")
    assert eventually(lambda: entries(moody, "fence", f"{NAME}@1.1.0"), 5) and entries(moody, "fence")[0].actor == "supervisor" and fences(moody)
    say(moody, 11, "")
    lift_fence(moody, NAME, "1.1.0", "the weights are back", by="ana@example.com")
    assert eventually(lambda: _version(url) == "1.1.0") and eventually(lambda: host(moody, "1.1.0")["phase"] == "ready")
    assert [e.body["standing"] for e in entries(moody, "fence")] == [True, False] and verify(moody).ok


def test_a_fence_outlives_the_supervisor(moody):
    route = current(moody, "production", NAME)
    change(moody, replace(route, shadows=[Shadow("1.1.0")]), route.revision, by="test")
    set_fence(moody, NAME, "1.1.0", "it leaked yesterday", by="ana")
    for killed in (True, False):
        gateway_url(moody, "production", ready=False)
        assert eventually(lambda: host(moody, "1.1.0")["phase"] == "fenced") and eventually(lambda: host(moody, "1.0.0")["phase"] == "ready")
        assert host(moody, "1.1.0")["restarts"] == 0 and host(moody, "1.1.0")["pid"] is None
        if killed: os.kill(status(moody)["pid"], signal.SIGKILL)
        assert not killed or eventually(lambda: not status(moody)["running"], 5)


def _version(url: str) -> str: return asked(url)[1]


def test_placing_a_fenced_version_anew_gives_it_a_chance(moody):
    url = gateway_url(moody, "production")
    set_fence(moody, NAME, "1.1.0", "it leaked yesterday", by="ana")
    share(moody, shares=[Share("treatment", "1.1.0", 100)])
    assert asked(url)[1] == "1.1.0" and not fences(moody) and "placed anew" in entries(moody, "fence")[-1].body["reason"]
    set_fence(moody, NAME, "1.1.0", "again", by="ana")   # a person may fence what runs
    assert eventually(lambda: host(moody, "1.1.0")["phase"] == "fenced") and eventually(lambda: host(moody, "1.1.0")["pid"] is None)
    assert eventually(lambda: asked(url)[:2] == (200, "1.0.0"))


def test_a_fence_that_cannot_be_written_yet_holds_already(moody):
    supervisor = Supervisor(moody)
    wanted = lambda: Needed(set(), {(NAME, "1.1.0"): "share"}, {(NAME, "1.1.0"): Bounds(1, 1 << 30)}, {})  # noqa: E731
    supervisor.look(wanted())
    supervisor.notes.append(Note("fenced", NAME, "1.1.0", "5 ends"))
    supervisor.look(wanted())
    assert supervisor.hosts[NAME, "1.1.0"].held
    supervisor.notes[:] = []
    supervisor.look(wanted())
    assert not supervisor.hosts[NAME, "1.1.0"].held


@pytest.mark.parametrize("seed", range(20))
def test_pauses_grow_stay_bounded_and_are_the_seeds(seed):
    draws = [random.Random(f"{seed}/x") for _ in range(2)]
    waits = [[pause(n, d) for n in (1, 2, 3, 5, 8, 30, 10_000)] for d in draws]
    assert waits[0] == waits[1] and all(0 < w <= LONGEST_PAUSE * 1.2 for w in waits[0]) and waits[0][0] < waits[0][2] < waits[0][4]
    assert pause(8, random.Random("a/x")) != pause(8, random.Random("b/x"))


@pytest.mark.parametrize("seed", range(10))
def test_no_sequence_of_faults_is_a_storm(seed):
    "Whatever a host does, more than five faults within ten minutes never go unnoticed, and no two starts are closer than the shortest pause."
    draw, tries, now, faults = random.Random(seed), Tries(seed, "h"), 0.0, []
    for _ in range(200):
        now = max(now, tries.not_before)
        since, now = now, now + draw.choice([0.0, 0.5, 20.0, 70.0, 400.0])
        tries.steady(since, now)
        tries.ended(now, "x")
        faults.append(now)
        assert tries.not_before - now >= 0.2 and tries.looping(now) == (sum(now - f <= 600 for f in faults) >= CRASH_LOOP)


def test_fences_need_words_and_are_lifted_once(moody):
    with pytest.raises(InvalidInput, match="reason"): set_fence(moody, NAME, "1.1.0", " ", by="x")
    for bad in ("../x", "", "a b", "<script>"):
        with pytest.raises(InvalidInput): set_fence(moody, bad, "1.1.0", "why", by="x")
    with pytest.raises(InvalidInput, match="known: none"): lift_fence(moody, NAME, "1.1.0", "note", by="x")
    set_fence(moody, NAME, "1.1.0", "why", by="x")
    lift_fence(moody, NAME, "1.1.0", "note", by="x")
    with pytest.raises(InvalidInput): lift_fence(moody, NAME, "1.1.0", "note", by="x")


def test_a_host_that_was_large_when_it_was_killed_is_to_blame(moody):
    "The kernel's own killer sends the same signal as a person: what tells them apart is the size."
    for large, loops in ((True, True), (False, False)):
        child = Host(moody, NAME, "1.0.0", SimpleNamespace())
        for n in range(CRASH_LOOP):
            child.process, child.large = SimpleNamespace(returncode=-9, poll=lambda: -9), large
            child.bury(float(n))
        assert child.tries.looping(CRASH_LOOP) is loops and "signal 9" in child.tries.last
