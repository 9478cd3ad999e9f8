"""Batches as a client sees them: they form under load and not otherwise, every bound holds, and answers go to those who asked."""
from __future__ import annotations

import signal
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from bare_gateway import MODEL, bare, eventually

from within.context import Context
from within.errors import ConfigError
from within.observations import PredictionLog
from within.policies import BatchingPolicy, load_environments
from within.serving.batches import Lane
from within.serving.links import Follower
from within.serving.routes import Route, Shadow, Share
from within.serving.wire import ask

def together(place, wanted: dict[str, tuple]) -> dict[str, tuple[int, dict]]:
    "Send requests (id -> values) at once, each from a thread of its own; what came back by id."
    found, start = {}, threading.Barrier(len(wanted))
    def one(id, values):
        start.wait()
        found[id] = place.infer(id, *values, unit=id)
    workers = [threading.Thread(target=one, args=item) for item in wanted.items()]
    for w in workers: w.start()
    for w in workers: w.join()
    return found


def sizes(answers) -> list[int]: return [round(v) % 1000 for _, a in answers.values() for v in a["outputs"][0]["data"]]


def test_what_arrives_while_the_host_is_busy_is_one_batch_and_answers_find_their_askers(tmp_path):
    with bare(tmp_path / "home") as place:
        place.host("1.0.0", fixed=0.05)
        place.route("1.0.0")
        place.start()
        for turn in range(3): answers = together(place, {f"r{turn}-{i}": (i, i + 0.5) for i in range(30)})
        for id, (code, answer) in answers.items():
            first, second = answer["outputs"][0]["data"]
            i = int(id.partition("-")[2])
            assert code == 200 and answer["id"] == id and first // 1000 == i and second // 500 == 2 * i + 1
        assert max(sizes(answers)) >= 8   # 30 requests of two rows, on a host that takes as long for one as for all
        log = PredictionLog(place.ctx, "production").predictions()
        assert len(log) == 180 and log["id"].is_unique


def test_a_lone_request_waits_for_nobody(tmp_path):
    with bare(tmp_path / "home", {"wait_ms": 1000}) as place:
        place.host("1.0.0")
        place.route("1.0.0")
        place.start()
        start = time.perf_counter()
        for i in range(20): assert sizes({"": place.infer(f"r{i}", i)}) == [1]
        assert time.perf_counter() - start < 1.0   # one such wait would already be as long


def test_bounds_on_rows_and_on_work_hold(tmp_path):
    with bare(tmp_path / "home", {"rows": 16, "work_ms": 40}) as place:
        place.host("1.0.0")
        place.host("2.0.0", each=0.01)
        place.route("1.0.0")
        place.start()
        assert max(sizes({"": place.infer("many", *range(100))})) == 16
        place.route("2.0.0")
        place.infer("learn", *range(20))
        assert 1 <= max(sizes({"": place.infer("slow", *range(30))})) <= 4   # 10 ms a row, 40 ms a batch


def test_one_bad_row_does_not_fail_those_that_share_its_batch(tmp_path):
    with bare(tmp_path / "home") as place:
        place.host("1.0.0", fixed=0.05)
        place.route("1.0.0")
        place.start()
        answers = together(place, {f"r{i}": (i if i % 5 else None,) for i in range(20)})
        assert {id for id, (code, _) in answers.items() if code != 200} == {"r0", "r5", "r10", "r15"}
        assert all(a["outputs"][0]["data"][0] // 1000 == int(id[1:]) for id, (code, a) in answers.items() if code == 200)


def test_nobody_waits_longer_than_the_patience_and_others_are_served_again_at_once(tmp_path):
    with bare(tmp_path / "home", {"patience_ms": 600}) as place:
        place.host("1.0.0")
        place.route("1.0.0")
        place.start()
        place.signal("1.0.0", signal.SIGSTOP)
        got = {}
        later = threading.Timer(0.4, lambda: got.update(later=place.infer("later", 2)))
        later.start()
        code, said = place.infer("hung", 1)
        assert code == 503 and "no answer within 0.6 s" in said["error"]
        place.signal("1.0.0", signal.SIGCONT)
        later.join()
        assert got["later"][0] == 200 and place.infer("after", 3)[0] == 200   # it went on waiting, and the connection was made anew
        log = PredictionLog(place.ctx, "production").predictions().set_index("id")
        assert log["latency_ms"].max() < 2 * 600


@pytest.mark.parametrize("how", ["hangs", "dies", "is slow"])
def test_a_failing_challenger_costs_a_bounded_moment_and_then_nothing(tmp_path, how):
    with bare(tmp_path / "home", {"fallback_ms": 1000, "fence_s": 600}) as place:
        place.host("1.0.0")
        place.host("2.0.0", fixed=9.0 if how == "is slow" else 0.0)
        place.route("1.0.0", shares=[Share("treatment", "2.0.0", 100)])
        place.start()
        if how != "is slow": place.signal("2.0.0", signal.SIGSTOP if how == "hangs" else signal.SIGKILL)
        answers = together(place, {f"r{i}": (i,) for i in range(20)}) | {f"later{i}": place.infer(f"later{i}", i) for i in range(20)}
        assert {code for code, _ in answers.values()} == {200}
        assert {a["model_version"] for _, a in answers.values()} == {"1.0.0"} and {a["parameters"]["variant"] for _, a in answers.values()} == {"fallback"}
        log = PredictionLog(place.ctx, "production").predictions()
        live = log[log["output"].notna()].set_index("id")["latency_ms"]
        assert len(live) == 40 and live.max() < 3 * 1000             # the bound, and time to be answered by the default
        assert live[[f"later{i}" for i in range(1, 20)]].max() < 1000   # fenced: nobody waits for it any more
        assert set(log.loc[log["version"] == "2.0.0", "error"].notna()) == {True}


@pytest.mark.parametrize("how", ["hangs", "dies", "is slow", "is gone"])
def test_a_failing_shadow_costs_live_answers_nothing(tmp_path, how):
    with bare(tmp_path / "home", {"patience_ms": 1500}) as place:
        place.host("1.0.0")
        place.host("2.0.0", fixed=4.0 if how == "is slow" else 0.0)
        place.route("1.0.0", shadows=[Shadow("2.0.0")])
        place.start()
        if how == "is gone": place.signal("2.0.0", signal.SIGKILL)
        answers = together(place, {f"r{i}": (i,) for i in range(20)})
        if how in ("hangs", "dies"): place.signal("2.0.0", signal.SIGSTOP if how == "hangs" else signal.SIGKILL)
        answers |= {f"later{i}": place.infer(f"later{i}", i) for i in range(20)} | together(place, {f"more{i}": (i,) for i in range(20)})
        assert {(code, a["model_version"]) for code, a in answers.values()} == {(200, "1.0.0")}
        log = PredictionLog(place.ctx, "production").predictions()
        live = log[log["role"] == "live"]
        assert len(live) == 60 and live["error"].isna().all() and live["latency_ms"].max() < 1500


def test_a_version_that_is_shadow_and_share_answers_its_users_first(tmp_path):
    with bare(tmp_path / "home") as place:
        place.host("1.0.0")
        place.host("2.0.0", fixed=0.02)
        place.route("1.0.0", shares=[Share("treatment", "2.0.0", 10)], shadows=[Shadow("2.0.0")])
        place.start()
        answers = together(place, {f"r{i}": (i,) for i in range(60)})
        assert {code for code, _ in answers.values()} == {200} and "treatment" in {a["parameters"]["variant"] for _, a in answers.values()}
        log = lambda: PredictionLog(place.ctx, "production").predictions()  # noqa: E731
        while len(found := log()) < 60 + (len(answers) - sum(a["model_version"] == "2.0.0" for _, a in answers.values())): time.sleep(0.05)
        assert not set(found.loc[found["role"] == "shadow", "id"]) & set(found.loc[(found["role"] == "live") & (found["version"] == "2.0.0"), "id"])


class Arms(Follower):
    "A follower whose hosts are up when the test says so."

    def __init__(self, patience: float = 20.0):
        super().__init__(None, lambda: None, patience=patience)
        self.up: set[str] = set()

    def link(self, model: str, version: str) -> SimpleNamespace:
        made = self.links.setdefault((model, version), SimpleNamespace(serve_as=lambda default: None, waiting=0, close=lambda: None))
        made.ready = version in self.up
        made.hello = {"features": [{"name": version, "kind": "number"}]} if made.ready else None
        return made

    def at(self, now: float, route: Route, *up: str) -> tuple | None:
        self.up = set(up)
        self.look([route], now)
        found = self.routes.get("toy")
        return found and (found.route.revision, sorted(found.awaited), sorted(found.kinds))


def test_a_fresh_gateway_follows_as_soon_as_the_default_answers_and_awaits_the_others():
    route = Route("production", "toy", "1", [Share("treatment", "2", 50)], [Shadow("3")], revision=7)
    arms = Arms()
    assert arms.at(0, route) is None and arms.at(1, route, "2", "3") is None, "the default is what it cannot do without"
    assert arms.at(2, route, "1") == (7, ["2", "3"], ["1"])
    assert arms.at(3, route, "1", "2") == (7, ["3"], ["1", "2"]), "its features are known when it comes"
    assert arms.at(4, route, "1", "2", "3") == (7, [], ["1", "2", "3"])
    assert arms.at(5, route, "1", "3") == (7, [], ["1", "2", "3"]), "a host that goes later is not awaited: its failures count"
    late = Arms()
    assert late.at(0, route, "1") == late.at(20, route, "1") == (7, ["2", "3"], ["1"])
    assert late.at(20.1, route, "1") == (7, [], ["1"]), "nor is one that does not come"


def test_a_gateway_that_follows_something_waits_for_the_hosts_of_a_new_revision():
    before, after = Route("production", "toy", "1", revision=7), Route("production", "toy", "1", [Share("treatment", "2", 50)], revision=8)
    arms = Arms()
    assert arms.at(0, before, "1") == arms.at(1, after, "1") == arms.at(21, after, "1") == (7, [], ["1"])
    assert arms.at(21.1, after, "1") == (8, [], ["1"])
    arms = Arms()
    arms.at(0, after, "1")
    assert arms.at(1, replace(before, revision=9), "1") == (9, [], ["1"]), "a rollback does not wait for who is left"


def test_a_fresh_gateways_users_are_answered_by_the_default_until_the_challenger_comes(tmp_path):
    with bare(tmp_path / "home") as place:
        place.host("1.0.0")
        place.route("1.0.0", shares=[Share("treatment", "2.0.0", 100)], shadows=[Shadow("3.0.0")])
        place.start(whole=False)
        early = [place.infer(f"r{i}", i, unit=f"u{i}") for i in range(20)]
        assert {(code, a["parameters"]["variant"], a["model_version"]) for code, a in early} == {(200, "default", "1.0.0")}
        code, said = ask(place.url, f"/v2/models/{MODEL}/versions/2.0.0/infer", {"inputs": [{"name": "a", "data": [1]}]})
        assert code == 503 and "not come up yet" in said["error"]
        log = PredictionLog(place.ctx, "production").predictions()
        assert len(log) == 20 and log["error"].isna().all() and set(log["version"]) == {"1.0.0"}   # nothing is held against who was not there
        place.host("2.0.0")
        assert eventually(lambda: ask(place.url, "/routes")[1]["routes"][MODEL]["awaited"] == ["3.0.0"])
        code, said = place.infer("late", 1)
        assert (code, said["parameters"]["variant"], said["model_version"]) == (200, "treatment", "2.0.0")


def test_the_figures_come_from_the_environment_and_nonsense_is_refused(tmp_path):
    file = tmp_path / "environments.yml"
    file.write_text("environments:\n  production: {batching: {rows: 32, wait_ms: 0}}\n  staging: {}\n")
    found = load_environments(tmp_path)
    assert found["production"].batching == BatchingPolicy(rows=32, wait_ms=0) and found["staging"].batching == BatchingPolicy()
    for wrong in ("rows: 0", "wait_ms: -1", "wait_ms: .nan", "work_ms: 0", "patience_ms: soon", "rowz: 3"):
        file.write_text(f"environments:\n  production: {{batching: {{{wrong}}}}}\n")
        with pytest.raises(ConfigError, match=wrong.partition(":")[0]): load_environments(tmp_path)


def test_a_lane_keeps_order_and_gives_up_only_what_is_late():
    lane = Lane(rows=4, wait=0.0, work=1.0, patience=2.0)
    lane.queue.extend((b"%d" % i, print, float(i)) for i in range(10))
    assert [w[0] for w in lane.late(now=4.0)] == [b"0", b"1", b"2"]
    assert [w[0] for w in lane.take()] == [b"3", b"4", b"5", b"6"] and len(lane.queue) == 3


def test_an_environment_that_no_file_names_gets_the_defaults(tmp_path):
    from within.serving.gateway import batching

    ctx = Context.open(home=tmp_path / "home", configs=tmp_path)
    assert batching(ctx, "production") == BatchingPolicy()
    (tmp_path / "environments.yml").write_text("environments:\n  staging: {}\n")
    assert batching(ctx, "production") == BatchingPolicy()
    ctx.close()
