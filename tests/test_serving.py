"""Gateway, hosts, supervisor and replayer as real processes: what they answer, what they survive, and that nothing is left."""
from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import orjson
import psutil
import pytest

from within.clock import parse_time
from within.context import Context
from within.errors import Conflict, InvalidInput, ServingError
from within.ml.ad_score import AdScorePredictor
from within.ml.base import folder_digest
from within.observations import PredictionLog
from within.serving.replayer import Replayer
from within.serving.routes import Route, Shadow, Share, change, current
from within.serving.supervisor import gateway_url, hold, release, status
from within.serving.wire import ask, host_socket, runtime_folder, token
from within.simulation import traffic
from within.warehouse import DatasetInfo

NAME, START = "ad_score_predictor", "2023-10-01"
FEATURES = ["ad_content.word_count", "ad_content.cta_strength", "historical_metrics.ctr_7d", "platform", "target_audience"]
INFER = f"/v2/models/{NAME}/infer"


def keep(ctx: Context, version: str, rows, seed: int) -> None:
    "A small trained version in the store and the cache, without MLflow."
    model = AdScorePredictor(config={"n_estimators": 20, "max_depth": 3, "random_state": seed}).fit(rows[FEATURES], (rows["outcome"] + seed).clip(0, 100))
    ctx.path("models").mkdir(exist_ok=True)
    digest = folder_digest(folder := model.save(ctx.path("saved", version)))
    folder.rename(ctx.path("models", digest))
    ctx.store.add_model_version(NAME, version, digest, {k: {} for k in ("metrics", "parameters", "labels", "training_data_info", "lineage", "mlflow")})


def running(home: Path) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("WITHIN_HOME") == str(home) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.Error: pass
    return found


def ends(home: Path, seconds: float = 8.0) -> list[str]:
    until = time.monotonic() + seconds
    while (left := running(home)) and time.monotonic() < until: time.sleep(0.05)
    return left


def eventually(holds, seconds: float = 30.0) -> bool:
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until: return False
        time.sleep(0.05)
    return True


@pytest.fixture
def small(tmp_path):
    "A home on the replay clock with 300 requests a day, two trained versions, and the first one routed."
    ctx = Context.open(home=tmp_path / "home", clock=None)
    ctx.store.clock_start(parse_time(START))
    ctx = Context.open(home=tmp_path / "home")
    rows = traffic(START, days=8, per_day=300, seed=1)
    rows["unit"] = rows["unit"].astype(str)
    ctx.warehouse.write("ads_traffic", rows, "all", DatasetInfo("ads_traffic", "at", "unit", "outcome", outcome_time="outcome_at"))
    ctx.warehouse.write("ads", rows.assign(created_at=rows["at"]), "all", DatasetInfo("ads", "created_at", "unit", "outcome", traffic="ads_traffic"))
    for seed, version in enumerate(("1.0.0", "1.1.0")): keep(ctx, version, rows, seed)
    change(ctx, Route("production", NAME, "1.0.0"), None, by="test")
    yield ctx
    release(ctx)
    left = ends(ctx.settings.home)
    folder = runtime_folder(ctx.settings.home)
    assert not left and not folder.exists()


def body(id: str, unit: str = "u", **features) -> dict:
    given = {"platform": "facebook"} | features
    return {"id": id, "parameters": {"unit": unit}, "inputs": [{"name": n, "shape": [1], "data": [v]} for n, v in given.items()]}


def host_pid(ctx: Context, version: str) -> int:
    return next(h["pid"] for h in status(ctx)["hosts"] if h["version"] == version)


def test_statuses_dialects_and_the_log(small):
    url, secret = gateway_url(small, "production"), {"authorization": f"Bearer {token(small.settings)}"}
    code, answer = ask(url, INFER, body("r1"))
    assert code == 200 and answer["id"] == "r1" and answer["model_version"] == "1.0.0" and answer["parameters"]["variant"] == "default"
    seen = PredictionLog(small, "production").predictions()
    assert seen["id"].tolist() == ["r1"] and seen["output"].tolist() == answer["outputs"][0]["data"]
    code, mlflow = ask(url, "/invocations", {"dataframe_split": {"columns": ["platform"], "data": [["facebook"], [None]]}})
    assert code == 200 and mlflow["predictions"][0] == answer["outputs"][0]["data"][0] and len(mlflow["predictions"]) == 2
    column = {"name": "platform", "data": ["x"]}
    one = lambda name, *data: {"inputs": [{"name": name, "data": list(data)}]}  # noqa: E731
    for path, sent, wanted in [(INFER, b"{", 400), (INFER, b"[]", 400), (INFER, {"inputs": []}, 400), (INFER, {"inputs": [column | {"shape": [2]}]}, 400),
                               (INFER, one("ad_content.word_count", "many"), 422), (INFER, one("platform", 3), 422), (INFER, one("nothing_known", 3), 422),
                               (INFER, {"id": "x" * 201, "inputs": [column]}, 400), (INFER, one("platform", *["x"] * 10_001), 413),
                               ("/v2/models/other/infer", body("x"), 404), ("/invocations", {"instances": [], "inputs": []}, 400), ("/feedback", [], 401),
                               ("/nowhere", {}, 404), (INFER, b" " * (17 << 20), 413)]:
        try: code, said = ask(url, path, sent)
        except ServingError: code, said = wanted, {"error": ""}  # the door may close on a body that is far too large
        assert code == wanted and "error" in said, (path, said)
    for kind, value, wanted in (("outcome", 61.5, 200), ("likes", 1, 422), ("outcome", "x", 422)):
        assert ask(url, "/feedback", {"id": "r1", "kind": kind, "value": value}, secret)[0] == wanted
    assert ask(url, INFER, body("r2"), {"within-time": "2023-10-05"})[0] == 401
    assert ask(url, INFER, body("r2"), secret | {"within-time": "2023-10-05T06:00:00Z"})[1]["parameters"]["at"] == "2023-10-05T06:00:00+00:00"
    matured = PredictionLog(small, "production").matured(model=NAME).set_index("id")
    assert matured.loc["r1", "outcome"] == 61.5 and matured.loc["r2", "at"] == parse_time("2023-10-05T06:00")
    assert "within_predictions_total" in ask(url, "/metrics")[1] and ask(url, "/v2/health/ready")[0] == 200


def test_a_killed_and_a_frozen_challenger_cost_nobody_an_answer(small):
    url, route = gateway_url(small, "production"), current(small, "production", NAME)
    change(small, replace(route, shares=[Share("treatment", "1.1.0", 100)]), route.revision, by="test")
    assert ask(url, INFER, body("a"))[1]["model_version"] == "1.1.0"
    os.kill(host_pid(small, "1.1.0"), signal.SIGKILL)
    code, answer = ask(url, INFER, body("b"))
    assert code == 200 and answer["model_version"] == "1.0.0" and answer["parameters"]["variant"] == "fallback"
    assert eventually(lambda: ask(url, INFER, body("c"))[1]["model_version"] == "1.1.0")
    os.kill(frozen := host_pid(small, "1.1.0"), signal.SIGSTOP)
    code, answer = ask(url, INFER, body("d"))
    assert code == 200 and answer["model_version"] == "1.0.0"
    seen = PredictionLog(small, "production").predictions()
    errors = seen[seen["error"].notna()]
    assert set(errors["version"]) == {"1.1.0"} and {"b", "d"} <= set(errors["id"])
    assert eventually(lambda: host_pid(small, "1.1.0") not in (frozen, None), 40)


def test_a_killed_gateway_keeps_its_address(small):
    url = gateway_url(small, "production")
    os.kill(status(small)["gateways"]["production"]["pid"], signal.SIGKILL)
    assert eventually(lambda: ask(url, "/v2/health/ready", timeout=20)[0] == 200)
    assert ask(url, INFER, body("after"))[0] == 200 and gateway_url(small, "production") == url


def test_a_killed_supervisor_takes_its_children_along_and_is_replaced(small):
    gateway_url(small, "production")
    before = status(small)["pid"]
    os.kill(before, signal.SIGKILL)
    assert eventually(lambda: not running(small.settings.home), 8)
    assert ask(gateway_url(small, "production"), INFER, body("x"))[0] == 200 and status(small)["pid"] != before


def test_changing_routes_under_load_fails_no_request(small):
    url, stop, codes = gateway_url(small, "production"), threading.Event(), []
    def load(k):
        link = http.client.HTTPConnection("127.0.0.1", int(url.rpartition(":")[2]), timeout=30)
        while not stop.is_set():
            link.request("POST", INFER, orjson.dumps(body(f"{k}-{len(codes)}", unit=f"u{len(codes)}")))
            answer = link.getresponse()
            answer.read()
            codes.append(answer.status)
    threads = [threading.Thread(target=load, args=(k,)) for k in range(4)]
    for t in threads: t.start()
    try:
        for i in range(12):   # a new default every second time: its predecessor is left with requests on their way
            route = current(small, "production", NAME)
            shares = [Share("rollout", "1.1.0", 8 * i)] if i % 2 else []
            shadows = [Shadow("1.1.0")] if i == 2 else []
            change(small, replace(route, default="1.1.0" if i % 4 == 2 else "1.0.0", shares=shares, shadows=shadows), route.revision, by="test")
    finally:
        stop.set()
        for t in threads: t.join()
    assert len(codes) > 20 and set(codes) == {200}


def test_a_version_that_cannot_be_served_leaves_the_route_as_it_is_followed(small):
    url, route = gateway_url(small, "production"), current(small, "production", NAME)
    with pytest.raises(ServingError, match="9.9.9"): change(small, replace(route, default="9.9.9"), route.revision, by="test", wait=4)
    assert ask(url, INFER, body("x"))[1]["model_version"] == "1.0.0"


def test_changed_bytes_are_never_served(small):
    digest = small.store.model_version(NAME, "1.1.0").digest
    file = next(p for p in small.path("models", digest).iterdir() if p.suffix != ".json")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    url, route = gateway_url(small, "production"), current(small, "production", NAME)
    with pytest.raises(ServingError): change(small, replace(route, shares=[Share("t", "1.1.0", 100)]), route.revision, by="test", wait=4)
    assert ask(url, INFER, body("x"))[1]["model_version"] == "1.0.0"
    assert not host_socket(small.settings.home, NAME, "1.1.0").exists()


HOLDER = """
import sys, time
from within.context import Context
from within.serving.supervisor import hold
h = hold(Context.open(home=sys.argv[1]))
print(h.pid, flush=True)
time.sleep(60)
"""


def test_four_starters_get_one_supervisor_and_their_death_ends_it(small):
    home = small.settings.home
    holders = [subprocess.Popen([sys.executable, "-c", HOLDER, str(home)], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    try: assert len({h.stdout.readline().strip() for h in holders}) == 1
    finally:
        for h in holders:
            h.kill()
            h.wait()
            h.stdout.close()
    assert not ends(home, 5) and not runtime_folder(home).exists()


def test_the_last_holder_ends_everything_within_three_seconds(small):
    with hold(small):
        gateway_url(small, "production")
        release(small)
        assert running(small.settings.home)
    assert not ends(small.settings.home, 3.5)


def test_a_full_log_disk_is_an_error_and_not_an_answer(small, tmp_path):
    url, folder = gateway_url(small, "production"), small.path("log", "production")
    folder.mkdir(parents=True)
    day = folder / "2023-10-01.jsonl"
    day.symlink_to("/dev/full")
    code, said = ask(url, INFER, body("x"))
    assert code == 503 and "could not be logged" in said["error"]
    day.unlink()


def test_a_replay_sends_each_request_once_and_outcomes_when_due(small):
    rows = small.warehouse.raw("ads_traffic").to_pandas()
    route = current(small, "production", NAME)
    shadow = Shadow("1.1.0", 100, until="2023-10-02T12:00:00+00:00")
    change(small, replace(route, shares=[Share("t", "1.1.0", 50)], shadows=[shadow]), route.revision, by="test")
    class Stop(Exception): pass
    def stop(at): raise Stop
    with pytest.raises(Stop): Replayer(small).advance_to("2023-10-03", on_tick=stop)
    assert small.now() == parse_time("2023-10-02")
    day = parse_time("2023-10-01").strftime("%Y-%m-%d")
    lines = small.path("log", "production", f"{day}.jsonl").read_bytes().splitlines()
    again = [orjson.loads(line) for line in lines[:5]]
    PredictionLog(small, "production").append(again)  # what a broken connection would leave
    result = Replayer(small).advance_to("2023-10-05")
    seen = PredictionLog(small, "production").predictions(model=NAME)
    live, shadow = seen[seen["role"] == "live"], seen[seen["role"] == "shadow"]
    at = rows.set_index("request_id")["at"]
    asked = at[(at > parse_time(START)) & (at <= parse_time("2023-10-05"))]
    assert sorted(live["id"]) == sorted(asked.index) and 0 < result.requests < len(asked) and not live["id"].duplicated().any()
    assert (live.set_index("id")["at"] == asked.reindex(live["id"])).all()
    assert 0.35 < (live["version"] == "1.1.0").mean() < 0.65 and live.groupby("unit")["version"].nunique().max() == 1
    assert shadow["at"].max() < parse_time("2023-10-02T12:00") and len(shadow) > 50
    known = PredictionLog(small, "production").feedback("outcome")
    due = rows[(rows["outcome_at"] <= parse_time("2023-10-05")) & rows["request_id"].isin(live["id"])]
    assert sorted(known["id"]) == sorted(due["request_id"]) and (known["at"] <= parse_time("2023-10-05")).all()
    said = PredictionLog(small, "production").feedback("user_feedback")
    assert set(said["value"]) <= {0.0, 1.0} and len(said) == due["feedback_tolerance"].notna().sum()


def test_one_replayer_at_a_time_and_no_way_back(small):
    def second(at):
        with pytest.raises(Conflict): Replayer(Context.open(home=small.settings.home)).advance_to("2023-10-09")
    assert Replayer(small).advance_to("2023-10-02", on_tick=second).ticks == 1
    assert Replayer(small).advance_to(START).requests == 0 and small.now() == parse_time("2023-10-02")


@pytest.mark.parametrize("name", ["../x", "", "a b", ".hidden", "x" * 81])
def test_environments_that_are_no_names_are_refused(small, name):
    with pytest.raises(InvalidInput): gateway_url(small, name)
    with pytest.raises(InvalidInput): Route(name, NAME, "1.0.0")
