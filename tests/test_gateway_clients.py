"""Clients of others, unchanged, against the real gateway: tritonclient, MLflow's, Prometheus' parser; and what every wrong request is told."""
from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import orjson
import pandas as pd
import psutil
import pytest
from conftest import assert_nothing_runs

from within.clock import parse_time
from within.context import Context
from within.ledger import entries
from within.ml.ad_score import AdScorePredictor
from within.ml.base import folder_digest
from within.observations import PredictionLog
from within.serving.access import issue, revoke
from within.serving.bodies import LIMITS
from within.serving.paths import OPERATIONS
from within.serving.routes import Route, Shadow, Share, change, current
from within.serving.supervisor import gateway_url, status
from within.serving.wire import ask, token

START = "2023-10-01"
WIDE, PAIR, ONE, WORDS = "wide", "pair", "one", "words"   # models by what they read
NUMBERS = ["number.a", "number.b"]


def made(ctx: Context, name: str, version: str, frame: pd.DataFrame, seed: int = 0) -> None:
    "A small trained version in the store and the cache, without MLflow."
    target = pd.Series(np.random.default_rng(seed).uniform(0, 100, len(frame)))
    model = AdScorePredictor(config={"n_estimators": 10, "max_depth": 3, "random_state": seed}).fit(frame, target)
    ctx.path("models").mkdir(exist_ok=True)
    digest = folder_digest(folder := model.save(ctx.path("saved", f"{name}-{version}")))
    folder.rename(ctx.path("models", digest))
    ctx.store.add_model_version(name, version, digest, {k: {} for k in ("metrics", "parameters", "labels", "training_data_info", "lineage", "mlflow")})


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    "A gateway with four models: two numbers and a category, two numbers, one number, two texts. The first has a share for 1.1.0 and a shadow 1.2.0."
    home = tmp_path_factory.mktemp("gateway") / "home"
    ctx = Context.open(home=home, clock=None)
    ctx.store.clock_start(parse_time(START))
    ctx = Context.open(home=home)
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"number.a": rng.normal(size=300), "number.b": rng.normal(size=300), "place": rng.choice(["here", "there", "ünder <b>"], 300),
                          "a": rng.normal(size=300), "b": rng.normal(size=300), "question": rng.choice(["What?", "Who?"],
                              300), "context": rng.choice(["x", "y"], 300)})
    for seed, version in enumerate(("1.0.0", "1.1.0", "1.2.0")): made(ctx, WIDE, version, frame[[*NUMBERS, "place"]], seed)
    made(ctx, PAIR, "1.0.0", frame[["a", "b"]])
    made(ctx, ONE, "1.0.0", frame[["a"]])
    made(ctx, WORDS, "1.0.0", frame[["question", "context"]])
    change(ctx, Route("production", WIDE, "1.0.0", [Share("treatment", "1.1.0", 40)], [Shadow("1.2.0")]), None, by="test")
    for name in (PAIR, ONE, WORDS): change(ctx, Route("production", name, "1.0.0"), None, by="test")
    change(ctx, Route("solo", PAIR, "1.0.0"), None, by="test")   # as with `mlflow models serve`: one model, which nobody has to name
    for environment in ("production", "solo"): gateway_url(ctx, environment)
    yield ctx
    assert_nothing_runs(home)


@pytest.fixture
def url(served) -> str: return gateway_url(served, "production")


@pytest.fixture
def secret(served) -> dict: return {"authorization": f"Bearer {token(served.settings)}"}


def whole(url: str, method: str, path: str, body: bytes | None = None, headers: dict | None = None) -> tuple[int, dict, bytes]:
    "Status, headers and body of one request."
    link = http.client.HTTPConnection("127.0.0.1", int(url.rpartition(":")[2]), timeout=30)
    with contextlib.closing(link):
        link.request(method, path, body, headers or {})
        answer = link.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()


def infer(*columns: tuple, **more) -> dict:
    return {"inputs": [{"name": n, "shape": [len(v)], "datatype": "BYTES" if isinstance(v[0], str) else "FP64", "data": list(v)} for n, v in columns], **more}


# --- the Open Inference Protocol, by its usual client ----------------------------------------------------------------------------------------------

@pytest.fixture
def triton(url):
    tritonhttp = pytest.importorskip("tritonclient.http", reason="tritonclient is a development dependency")
    client = tritonhttp.InferenceServerClient(url.removeprefix("http://"))
    yield tritonhttp, client
    client.close()


def tensors(tritonhttp, binary: bool = True, **columns: np.ndarray) -> list:
    found = []
    for name, values in columns.items():
        kind = {"f8": "FP64", "f4": "FP32", "f2": "FP16", "i8": "INT64", "i4": "INT32", "u1": "UINT8", "b1": "BOOL"}.get(values.dtype.str[1:], "BYTES")
        found.append(tritonhttp.InferInput(name, list(values.shape), kind))
        found[-1].set_data_from_numpy(values, binary_data=binary)
    return found


def test_an_unmodified_tritonclient_finds_everything(triton):
    _, client = triton
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(WIDE) and client.is_model_ready(WIDE, "1.1.0")
    assert not client.is_model_ready("nobody") and not client.is_model_ready(WIDE, "9.9.9")
    server, model, version = client.get_server_metadata(), client.get_model_metadata(WIDE), client.get_model_metadata(WIDE, "1.2.0")
    assert server["name"] == "within" and server["extensions"] == ["binary_tensor_data"] and model["versions"] == ["1.0.0", "1.1.0", "1.2.0"]
    assert [i["name"] for i in model["inputs"]] == [*NUMBERS, "place"] == [i["name"] for i in version["inputs"]]
    assert [i["datatype"] for i in model["inputs"]] == ["FP64", "FP64", "BYTES"] and model["outputs"][0]["name"] == "output"


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("number", ["float64", "float32", "int64", "int32"])
def test_tritonclient_gets_the_same_numbers_either_way(url, triton, binary, number):
    tritonhttp, client = triton
    a, b = np.array([1, 0, -2], dtype=number), np.array([0, 3, 1], dtype=number)
    place = np.array(["here", "ünder <b>", "nowhere"], dtype=object)
    given = tensors(tritonhttp, binary, **{"number.a": a, "number.b": b, "place": place})
    found = client.infer(WIDE, given, request_id="t1", parameters={"unit": "u1"})
    code, plain = ask(url, f"/v2/models/{WIDE}/infer", infer(("number.a", a.tolist()), ("number.b", b.tolist()),
        ("place", place.tolist()), parameters={"unit": "u1"}))
    assert code == 200 and found.as_numpy("output").tolist() == plain["outputs"][0]["data"] and found.get_response()["id"] == "t1"
    for flag in (True, False):
        asked = client.infer(WIDE, given, outputs=[tritonhttp.InferRequestedOutput("output", binary_data=flag)], parameters={"unit": "u1"})
        assert asked.as_numpy("output").tolist() == plain["outputs"][0]["data"]
    with pytest.raises(tritonhttp.InferenceServerException, match="outputs") if hasattr(tritonhttp, "InferenceServerException") else pytest.raises(Exception,
        match="outputs"):
        client.infer(WIDE, given, outputs=[tritonhttp.InferRequestedOutput("score")])


def test_tritonclient_sends_a_matrix_row_by_row(url, triton):
    tritonhttp, client = triton
    rows = np.array([[1.0, 2.0], [3.0, 4.0], [-1.0, 0.5]])
    for binary in (True, False):
        for kind in ("float64", "float32"):
            found = client.infer(PAIR, tensors(tritonhttp, binary, **{"input-0": rows.astype(kind)})).as_numpy("output").tolist()
            assert found == ask(url, f"/v2/models/{PAIR}/infer", infer(("a", rows[:, 0].tolist()), ("b", rows[:, 1].tolist())))[1]["outputs"][0]["data"]
    nested = {"inputs": [{"name": "x", "shape": [3, 2], "datatype": "FP32", "data": rows.tolist()}]}
    assert ask(url, f"/v2/models/{PAIR}/infer", nested)[1]["outputs"][0]["data"] == found
    columns = tensors(tritonhttp, True, a=rows[:, :1], b=rows[:, 1:])   # [n, 1]
    assert client.infer(PAIR, columns).as_numpy("output").tolist() == found
    missing = client.infer(PAIR, tensors(tritonhttp, True, a=np.array([np.nan]), b=np.array([1.0]))).as_numpy("output").tolist()
    assert missing == ask(url, f"/v2/models/{PAIR}/infer", infer(("a", [None]), ("b", [1.0])))[1]["outputs"][0]["data"]
    with pytest.raises(Exception, match="a: a finite number or null, given inf"): client.infer(PAIR, tensors(tritonhttp, True, a=np.array([np.inf])))


def test_one_version_is_asked_by_name_or_nobody_answers(served, url, triton):
    tritonhttp, client = triton
    given = tensors(tritonhttp, True, place=np.array(["here"], dtype=object))
    for version in ("1.0.0", "1.1.0"):
        said = client.infer(WIDE, given, model_version=version, request_id=f"pin-{version}").get_response()
        assert said["model_version"] == version and said["parameters"]["variant"] == "pinned"
    with pytest.raises(Exception, match="takes no traffic"): client.infer(WIDE, given, model_version="1.2.0")   # a shadow: nobody approved it for users
    seen = PredictionLog(served, "production").predictions(model=WIDE)
    seen = seen[seen["id"].str.startswith("pin-")]
    assert set(seen["variant"]) == {"pinned"} and set(seen["role"]) == {"live"} and len(seen) == 2


@pytest.mark.parametrize("head, tail, header, wanted", [
    ({"datatype": "FP64", "shape": [2], "parameters": {"binary_data_size": 16}}, struct.pack("<d", 1), None, "binary_data_size 16"),
    ({"datatype": "FP64", "shape": [1], "parameters": {"binary_data_size": 7}}, b"1234567", None, "no whole number"),
    ({"datatype": "FP64", "shape": [1], "parameters": {"binary_data_size": -8}}, b"", None, "binary_data_size -8"),
    ({"datatype": "FP64", "shape": [1], "parameters": {"binary_data_size": True}}, b"", None, "binary_data_size True"),
    ({"datatype": "FP80", "shape": [1], "parameters": {"binary_data_size": 8}}, b"12345678", None, "given 'FP80'"),
    ({"datatype": "FP64", "shape": [3], "parameters": {"binary_data_size": 8}}, b"12345678", None, "is 3 values"),
    ({"datatype": "FP64", "shape": [1], "data": [1], "parameters": {"binary_data_size": 8}}, b"12345678", None, "two answers"),
    ({"datatype": "FP64", "shape": [1], "data": [1]}, b"12345678", None, "belong to no tensor"),
    ({"datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}}, b"\xff\xff\xff\xff..", None, "ends behind"),
    ({"datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}}, b"\x02\0\0\0\xff\xfe", None, "not UTF-8"),
    ({"datatype": "FP64", "shape": [1], "parameters": {"shared_memory_region": "x"}}, b"", None, "shared memory"),
    ({}, b"", "0", "inference-header-content-length"), ({}, b"", "-1", "inference-header-content-length"),
    ({}, b"", "9" * 30, "inference-header-content-length"),
    ({}, b"", "1e3", "inference-header-content-length")])
def test_bad_binary_tensors_are_refused_by_name(url, head, tail, header, wanted):
    start = orjson.dumps({"inputs": [{"name": "a", **head}]})
    said = whole(url, "POST", f"/v2/models/{PAIR}/infer", start + tail, {"inference-header-content-length": header or str(len(start)),
        "content-type": "application/octet-stream"})
    assert said[0] == 400 and wanted in orjson.loads(said[2])["error"], said


# --- MLflow ----------------------------------------------------------------------------------------------------------------------------------------

DOCUMENTED = [   # request bodies of MLflow's documentation and command line, as they stand there
    ('{"dataframe_records": [{"a":1, "b":2}, {"a":3, "b":4}, {"a":5, "b":6}]}', "application/json"),
    ('{"dataframe_split": {"columns": ["a", "b"], "index": [0, 1, 2], "data": [[1, 2], [3, 4], [5, 6]]}}', "application/json"),
    ('{"inputs": [[1, 2], [3, 4], [5, 6]]}', "application/json;"),
    ('{"inputs": [[1, 2], [3, 4], [5, 6]]}', "application/json"),
    ('{"instances": [{"a": 1, "b": 2}, {"a": 3, "b": 4}, {"a": 5, "b": 6}]}', "application/json; charset=utf-8"),
    ('{"inputs": {"a": [1, 3, 5], "b": [2, 4, 6]}}', "application/json"),
    ('[{"a": 1, "b": 2}, {"a": 3, "b": 4}, {"a": 5, "b": 6}]', "application/json"),
    ("a,b\n1,2\n3,4\n5,6\n", "text/csv"), ("a,b\r\n1,2\r\n3,4\r\n5,6", "application/csv"), ('"b","a"\n2,1\n4,3\n6,5', "text/csv; charset=utf-8"),
    ("1,2\n3,4\n5,6", "application/csv")]


@pytest.mark.parametrize("body, media", DOCUMENTED)
def test_the_bodies_of_mlflows_documentation_work_unchanged(served, url, body, media):
    want = ask(url, f"/v2/models/{PAIR}/infer", infer(("a", [1, 3, 5]), ("b", [2, 4, 6])))[1]["outputs"][0]["data"]
    for place, more in ((gateway_url(served, "solo"), {}), (url, {"within-model": PAIR})):
        code, _, said = whole(place, "POST", "/invocations", body.encode(), {"content-type": media, **more})
        assert code == 200 and orjson.loads(said)["predictions"] == want, said


def test_more_of_mlflows_documentation(url):
    params = {"params": {"model": ONE, "max_answer_len": 10, "temperature": 0.5}}
    one = ask(url, "/invocations", {"instances": [1.0, 2.0, 5.0], **params})
    assert one[0] == 200 and len(one[1]["predictions"]) == 3
    assert ask(url, "/invocations", {"dataframe_split": {"columns": ["a"], "data": [1.0, 2.0, 5.0]}, **params})[1]["predictions"] == one[1]["predictions"]
    words = {"inputs": {"question": ["What color is it?"], "context": ["Some people said it was green but I know that it is pink."]},
        "params": {"max_answer_len": 10, "model": WORDS}}
    assert ask(url, "/invocations", words)[0] == 200
    assert ask(url, "/invocations", {"inputs": {"question": "What?", "context": "x"}, "params": {"model": WORDS}})[0] == 200


def test_mlflows_own_client(served, url):
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient
    client = ScoringServerClient("127.0.0.1", int(url.rpartition(":")[2]))
    client.ping()
    assert client.get_version()
    frame = pd.DataFrame({"a": [1.0, np.nan], "b": [2.0, 3.0]})
    want = ask(url, f"/v2/models/{PAIR}/infer", infer(("a", [1.0, None]), ("b", [2.0, 3.0])))[1]["outputs"][0]["data"]
    assert client.invoke(frame, params={"model": PAIR}).get_predictions().iloc[:, 0].tolist() == want   # it writes NaN for what is missing
    assert client.invoke(np.array([[1.0, 2.0]]), params={"model": PAIR}).get_predictions().iloc[0, 0] != want[1]


# --- what wrong requests are told ------------------------------------------------------------------------------------------------------------------

HERE = f"/v2/models/{WIDE}/infer"
NAN = b'{"inputs":[{"name":"number.a","shape":[2],"datatype":"FP64","data":[1,%b]}]}'
HUGE = NAN.replace(b"1,", b"").replace(b"[2]", b"[1]")


@pytest.mark.parametrize("path, body, wanted, words", [
    (HERE, NAN % b"NaN", 422, ["number.a", "row 1", "nan", "finite number or null"]), (HERE, NAN % b"-Infinity", 422, ["number.a", "row 1", "-inf"]),
    (HERE, NAN % b"1e999", 422, ["number.a", "row 1", "inf"]), (HERE, HUGE % (b"9" * 400), 422, ["number.a", "inf"]),
    (HERE, NAN % b'"2"', 422, ["number.a", "row 1", "'2'"]),
    (HERE, NAN % b"[1]", 422, ["number.a", "row 1", "[1]"]), (HERE, NAN % b"{}", 422, ["number.a", "{}"]),
    (HERE, infer(("place", [3.0])), 422, ["place", "a text or null", "3.0", "row 0"]),
    (HERE, infer(("plaze", ["here"]), ("number.a", [1.0])), 422, ["plaze", "place", "missing"]),
    (HERE, infer(("foreign", [1.0])), 422, ["none of the model's features", "number.a"]),
    (HERE, infer(("<img src=x onerror=1>", [1.0])), 422, ["none of the model's features"]), (HERE, b'{"id":"x","id":"y","inputs":[]}', 400, ["'id'", "twice"]),
    (HERE, b'{"inputs":[{"name":"place","data":["x"],"data" :["y"]}]}', 400, ["'data'", "twice"]), (HERE, infer(("place", ["x"]),
    ("place", ["y"])), 400, ["inputs.place", "twice"]),
    (HERE, infer(("place", ["x"]), ("number.a", [1.0, 2.0])), 400, ["differ in length", "place has 1"]), (HERE, b'{"inputs":' + b"[" * 5000, 400, ["not JSON"]),
    (HERE, b'{"inputs":' + b"[" * 900 + b"NaN" + b"]" * 900 + b"}", 400, []), (HERE, b'{"a":"\xff\xfe"}', 400, ["UTF-8"]), (HERE, b"", 400, ["not JSON"]),
    (HERE, b"null", 400, ["object"]),
    (HERE, b"\xef\xbb\xbf{}", 400, ["not JSON"]), (HERE, b'{"inputs":[null]}', 400, ["name"]),
    (HERE, infer(("place", ["x"]), id=""), 400, ["id", "1 to 200"]), (HERE, infer(("place", ["x"]), id=7), 400, ["id", "7"]),
    (HERE, infer(("place", ["x"]), parameters=[]) | {"parameters": [1]}, 400, ["parameters"]),
    (HERE, infer(("place", ["x", "y"]), parameters={"unit": ["one"]}), 400, ["parameters.unit", "2 of them"]),
    (HERE, infer(("place", ["x", "y"]), parameters={"ids": ["a", "a"]}), 400, ["parameters.ids"]),
    (HERE, infer(("place", ["x"]), parameters={"segments": {"s": {"deep": 1}}}), 400, ["segments"]),
    (HERE, infer(("place", ["x"] * 10_001)), 413, ["10,001", "10,000"]),
    ("/invocations", {"instances": [[1]] * 10_001, "params": {"model": ONE}}, 413, ["10,001"]),
    ("/v2/models/%3Cscript%3E/infer", infer(("place", ["x"])), 404, ["<script>", "known", WIDE]),
    (f"/v2/models/{WIDE}/versions/9/infer", infer(("place", ["x"])), 404, ["takes no traffic", "1.0.0"]),
    ("/invocations", {"dataframe_split": {"columns": ["a"], "data": [[1]]}}, 400, ["params.model", PAIR]),
    ("/invocations", {"inputs": [[1, 2, 3]], "params": {"model": PAIR}}, 422, ["row 0 has 3 values", "2 features"]),
    ("/invocations", {"inputs": [["Cheese"], ["and", "Crackers"]], "params": {"model": WORDS}}, 422, ["row 0 has 1 values"]),
    ("/invocations", {"inputs": {"messages": [{"role": "user"}]}, "params": {"model": WORDS}}, 422, ["none of the model's features"]),
    ("/invocations", {"inputs": {"question": [{"role": "user"}]}, "params": {"model": WORDS}}, 422, ["question", "row 0", "role"]),
    ("/invocations", b'{"dataframe_records":[{"a":Infinity}],"params":{"model":"one"}}', 422, ["a", "inf", "row 0"]),
    ("/invocations", {"messages": []}, 400, ["exactly one", "messages"]),
    ("/invocations", {"dataframe_records": [{"a": 1}, 2], "params": {"model": ONE}}, 400, ["row 1"]),
    ("/invocations", {"instances": [1], "params": {"model": 3}}, 400, ["params.model"])])
def test_every_wrong_request_is_told_what_and_where(url, path, body, wanted, words):
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    code, headers, said = whole(url, "POST", path, raw, {"content-type": "application/json"})
    error = orjson.loads(said)
    assert code == wanted and headers["content-type"] == "application/json" and headers["x-content-type-options"] == "nosniff", said
    assert all(w in error["error"] for w in words) and len(said) < 2_000, said
    if wanted == 422 and "row" in error: assert f"row {error['row']}" in error["error"]


@pytest.mark.parametrize("body, words", [(b"number.a,place\nmuch,here\n", ["number.a", "'much'", "row 0"]), (b"number.a,place\n1\n", ["row 0 has 1 cells"]),
    (b"number.a,place\n1,here\ninf,x\n", ["number.a", "row 1"]),
                                         (b"number.a,number.a\n1,2\n", ["twice"]), (b"x,y\n1,2\n", ["none of the model's features"]), (b"", ["empty"]),
                                         (b"number.a\n", ["no rows"]), (b'number.a\n"1', ["not CSV"])])
def test_wrong_csv_is_told_what_and_where(url, body, words):
    code, _, said = whole(url, "POST", "/invocations", body, {"content-type": "text/csv", "within-model": WIDE})
    assert code in (400, 422) and all(w in orjson.loads(said)["error"] for w in words), said


def test_what_is_missing_is_null_and_what_nobody_knows_is_named(url):
    code, said = ask(url, HERE, infer(("number.a", [1.0]), ("from_the_next_version", [2.0]), ("zzz", [3.0]), id="i1", parameters={"unit": "u"}))
    bare = ask(url, HERE, infer(("number.a", [1.0]), ("number.b", [None]), ("place", [None]), parameters={"unit": "u"}))[1]
    assert code == 200 and said["parameters"]["ignored"] == ["from_the_next_version",
        "zzz"] and said["outputs"] == bare["outputs"] and "ignored" not in bare["parameters"]
    many = ask(url, HERE, infer(("number.a", [1.0]), *((f"q{i}", [1.0]) for i in range(51))))
    assert many[0] == 422 and "more than 50" in many[1]["error"]


@pytest.mark.parametrize("media, wanted", [("text/xml", 415), ("application/x-parquet", 415), ("application/json; charset=latin-1", 415),
    ("multipart/form-data; boundary=x", 415), ("application/vnd.api+json", 200),
                                           ("application/json", 200), ("APPLICATION/JSON;", 200), ("x" * 300, 415), ("text/csv", 415)])
def test_media_types(url, media, wanted):
    code, _, said = whole(url, "POST", HERE, orjson.dumps(infer(("place", ["here"]))), {"content-type": media})
    assert code == wanted and (wanted == 200 or "application/json" in orjson.loads(said)["error"] or "content-type" in orjson.loads(said)["error"])


def test_a_body_without_a_media_type_is_json_and_a_compressed_one_is_refused(url):
    raw = orjson.dumps(infer(("place", ["here"])))
    assert whole(url, "POST", HERE, raw)[0] == 200
    assert whole(url, "POST", HERE, raw, {"content-encoding": "gzip"})[0] == 415


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda o: o.name)
def test_other_methods_are_answered_with_those_that_work(url, operation):
    path = operation.path.format(model=WIDE, version="1.0.0")
    for method in ("PUT", "DELETE", "PATCH", "TRACE", "GET" if operation.method == "POST" else "POST"):
        code, headers, _ = whole(url, method, path)
        assert code == 405 and operation.method in headers["allow"] and method not in headers["allow"].split(", ")
    code, headers, said = whole(url, "OPTIONS", path)
    assert code == 204 and operation.method in headers["allow"] and said == b""
    code, headers, said = whole(url, "HEAD", path)
    if operation.method == "POST": assert code == 405
    else: assert (code, said) == (401 if operation.role else 200, b"") and int(headers["content-length"]) > 0
    assert whole(url, "BREW", path)[0] == 400 and whole(url, "GET", "/nowhere")[0] == 404


# --- feedback and roles ----------------------------------------------------------------------------------------------------------------------------

def test_feedback_is_late_idempotent_and_can_be_corrected(served, url, secret):
    assert ask(url, HERE, infer(("place", ["here"]), id="fb1"))[0] == 200
    said = {"id": "fb1", "kind": "outcome", "value": 61.5}
    first = ask(url, "/feedback", said, secret)
    assert first == (200, {"accepted": 1}) and ask(url, "/feedback", said, secret) == first == ask(url, "/feedback", [said], secret)
    log = PredictionLog(served, "production")
    known = lambda: log.feedback("outcome").set_index("id")["value"]  # noqa: E731
    assert known()["fb1"] == 61.5 and ask(url, "/feedback", said | {"value": 40}, secret)[0] == 200
    assert known()["fb1"] == 40 and set(log.matured(model=WIDE).query("id == 'fb1'")["outcome"]) == {40}   # the last one counts, and the log keeps all
    lines = [orjson.loads(line) for path in served.path("log", "production").glob("feedback-*.jsonl") for line in path.read_bytes().splitlines()]
    assert [(w["value"], w["by"]) for w in lines if w["id"] == "fb1"] == [(61.5, served.settings.user)] * 3 + [(40.0, served.settings.user)]
    code, error = ask(url, "/feedback", [said, said | {"kind": "user_feedback", "value": 1}, said | {"value": 7}], secret)
    assert code == 409 and error["row"] == 2 and known()["fb1"] == 40
    assert ask(url, "/feedback", said | {"id": "of nobody yet"}, secret)[0] == 200


@pytest.mark.parametrize("body, wanted, words", [({"id": "x", "kind": "outcome", "value": "high"}, 422, ["feedback 0", "value", "high"]),
    ([{"id": "x", "kind": "likes", "value": 1}], 422, ["kind", "likes", "outcome"]),
                                                 (b'{"id":"x","kind":"outcome","value":NaN}', 422, ["value", "nan"]),
                                                 (b'{"id":"x","kind":"outcome","value":1,"value":2}', 400, ["'value'", "twice"]),
                                                 ([1], 422, ["object"]), ("text", 400, []),
                                                 ([{"id": "x", "kind": "outcome", "value": 1}] * 50_001, 413, ["50,000"]),
                                                 ({"id": "x" * 201, "kind": "outcome", "value": 1}, 422, ["id"])])
def test_bad_feedback_is_refused_as_a_whole(url, secret, body, wanted, words):
    code, said = ask(url, "/feedback", body, secret)
    assert code == wanted and all(w in said["error"] for w in words) and len(said["error"]) < 2_000


def test_who_may_do_what(served, url, secret):
    tokens = {role: issue(served, f"a-{role}", role, by="the test") for role in ("read", "operate", "approve")}
    bearer = {role: {"authorization": f"Bearer {text}"} for role, text in tokens.items()}
    said = {"id": "r", "kind": "outcome", "value": 1}
    assert [ask(url, "/feedback", said, bearer[r])[0] for r in ("read", "operate", "approve")] == [403, 200, 403]
    assert [ask(url, "/whoami", headers=bearer[r]) for r in ("read", "approve")] == [(200, {"name": f"a-{r}", "role": r}) for r in ("read", "approve")]
    assert ask(url, "/whoami", headers=secret)[1] == {"name": served.settings.user, "role": "operate"}
    for wrong in ({}, {"authorization": "Bearer "}, {"authorization": "Bearer " + tokens["operate"][:-1]}, {"authorization": "Basic " + tokens["operate"]},
        {"authorization": "Bearer \xff"}):
        code, headers, _ = whole(url, "POST", "/feedback", orjson.dumps(said), wrong)
        assert code == 401 and headers["www-authenticate"] == "Bearer"
    assert ask(url, HERE, infer(("place", ["here"])), bearer["read"] | {"within-time": "2023-10-05"})[0] == 403
    assert ask(url, HERE, infer(("place", ["here"])), bearer["operate"] | {"within-time": "2023-10-05"})[1]["parameters"]["at"] == "2023-10-05T00:00:00+00:00"
    revoke(served, "a-operate", by="the test")
    assert ask(url, "/feedback", said, bearer["operate"])[0] == 401
    found = [(e.actor, e.subject, e.body["issued"]) for e in entries(served, "token")]
    assert found == [("the test", "a-read", True), ("the test", "a-operate", True), ("the test", "a-approve", True), ("the test", "a-operate", False)]
    for role in ("read", "approve"): revoke(served, f"a-{role}")
    database = served.settings.home / "within.db"
    assert not any(text.encode() in path.read_bytes() for text in tokens.values() for path in database.parent.glob("within.db*"))


# --- what others read of it ------------------------------------------------------------------------------------------------------------------------

def test_the_metrics_are_valid_and_count(url):
    from prometheus_client.parser import text_string_to_metric_families
    def now():
        code, headers, said = whole(url, "GET", "/metrics")
        assert code == 200 and headers["content-type"].startswith("text/plain; version=0.0.4")
        return said.decode()
    def value(name, **labels):
        return sum(s.value for f in text_string_to_metric_families(now()) for s in f.samples if s.name == name and labels.items() <= s.labels.items())
    before = value("within_predictions_total", model=PAIR), value("within_refusals_total", status="422")
    ask(url, f"/v2/models/{PAIR}/infer", infer(("a", [1.0, 2.0]), ("b", [1.0, 2.0])))
    ask(url, f"/v2/models/{PAIR}/infer", infer(("a", ["x"])))
    assert (value("within_predictions_total", model=PAIR), value("within_refusals_total", status="422")) == (before[0] + 2, before[1] + 1)
    text = now()
    families = list(text_string_to_metric_families(text))
    assert all(f.documentation and f.type in ("counter", "gauge", "histogram") for f in families) and len({f.name for f in families}) == len(families)
    heads = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    owner = [max((h for h in heads if line.startswith(h)), key=len) for line in text.splitlines() if not line.startswith("#")]
    assert [o for i, o in enumerate(owner) if i == 0 or owner[i - 1] != o] == heads   # each family is one block
    without = lambda sample: tuple(sorted((k, v) for k, v in sample.labels.items() if k != "le"))  # noqa: E731
    for f in (f for f in families if f.type == "histogram"):
        for labels in {without(s) for s in f.samples}:
            buckets = [s.value for s in f.samples if s.name.endswith("_bucket") and without(s) == labels]
            assert buckets == sorted(buckets) and buckets[-1] == next(s.value for s in f.samples if s.name.endswith("_count") and without(s) == labels)
    assert value("within_host_ready", model=WIDE) == 3 and value("within_route_revision", model=WIDE) == 1


def test_labels_of_any_text_stay_labels(served, url):
    from prometheus_client.parser import text_string_to_metric_families
    route, odd = current(served, "solo", PAIR), 'a"b\\n\nwithin_predictions_total{} 9 <b>'
    change(served, replace(route, shares=[Share(odd, "1.0.0", 100)]), route.revision, by="test")
    place = gateway_url(served, "solo")
    assert ask(place, "/invocations", {"inputs": [[1, 2]]})[1]["variant"] == odd
    samples = [s for f in text_string_to_metric_families(ask(place, "/metrics")[1]) for s in f.samples if s.name == "within_predictions_total"]
    assert odd in {s.labels["variant"] for s in samples} and all(set(s.labels) == {"model", "version", "variant", "role"} for s in samples)
    change(served, replace(route, shares=[]), current(served, "solo", PAIR).revision, by="test")


def test_the_document_is_valid_and_its_examples_work(url, secret):
    from openapi_spec_validator import validate
    code, document = ask(url, "/openapi.json")
    assert code == 200 and document["openapi"].startswith("3.1")
    validate(document)
    assert {(p, m.upper()) for p, ops in document["paths"].items() for m in ops} == {(o.path, o.method) for o in OPERATIONS}
    assert set(document["components"]["schemas"]["Invocations"]["anyOf"][1]["properties"]["dataframe_records"]["items"]["properties"]) >= {*NUMBERS, "place",
        "a", "b"}
    for path, ops in document["paths"].items():
        for method, operation in ops.items():
            example = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
            model = sorted(ask(url, "/routes")[1]["routes"])[0]
            filled = path.format(model=model, version="1.0.0")
            if path == "/invocations": example = example | {"params": {"model": model}}
            code, headers, said = whole(url, method.upper(), filled, orjson.dumps(example) if example else None, secret)
            assert code == 200, (path, said)
            assert headers["content-type"].split(";")[0] in operation["responses"]["200"]["content"]


def test_the_page_loads_nothing_and_escapes(url):
    code, headers, said = whole(url, "GET", "/docs")
    text = said.decode()
    assert code == 200 and headers["content-type"] == "text/html; charset=utf-8" and "default-src 'none'" in headers["content-security-policy"]
    assert not any(w in text for w in ("<script", "http://", "https://", "src=", "@import", "url("))
    assert all(o.path in text for o in OPERATIONS) and "number.a" in text


# --- too slow, too much, too many ------------------------------------------------------------------------------------------------------------------

def raw_connection(url: str) -> socket.socket:
    link = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=LIMITS.seconds + 10)
    return link


def everything(link: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionError):
        while piece := link.recv(65536): found += piece
    return found


def test_slow_requests_are_given_up_and_hold_up_nobody(url):
    start = f"POST {HERE} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n".encode()
    slow = {"nothing": b"", "half a line": b"GET /v2", "half the headers": start, "half the body": start + b"\r\n{"}
    links = {what: raw_connection(url) for what in slow}
    for what, link in links.items(): link.sendall(slow[what])
    drip, stop = raw_connection(url), threading.Event()
    drip.sendall(start + b"\r\n{")
    def drops():   # a byte now and then, which would reset a timeout that starts again with every byte
        with contextlib.suppress(OSError):
            while not stop.wait(0.2): drip.sendall(b" ")
    thread = threading.Thread(target=drops)
    thread.start()
    try:
        assert ask(url, HERE, infer(("place", ["here"])))[0] == 200
        said = {what: everything(link) for what, link in (*links.items(), ("a drip", drip))}
    finally:
        stop.set()
        thread.join()
        for link in (*links.values(), drip): link.close()
    assert all(s.startswith(b"HTTP/1.1 408 ") and b"did not arrive within" in s for s in said.values()), said


def test_large_bodies_are_refused_before_they_are_read(url):
    link = raw_connection(url)
    link.sendall(f"POST {HERE} HTTP/1.1\r\nhost: x\r\ncontent-length: {1 << 40}\r\n\r\n".encode())
    said = everything(link)  # head and body may come in two pieces
    link.close()
    assert said.startswith(b"HTTP/1.1 413 ") and b"16,777,216" in said
    link = raw_connection(url)
    link.sendall(f"POST {HERE} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode())
    with contextlib.suppress(ConnectionError):
        for _ in range(40): link.sendall(b"80000\r\n" + b" " * 0x80000 + b"\r\n")
    assert link.recv(65536).startswith(b"HTTP/1.1 413 ")
    link.close()
    for broken in (b"content-length: -1\r\n", b"content-length: 5\r\ncontent-length: 6\r\n", b"content-length: x\r\n"):
        link = raw_connection(url)
        link.sendall(f"POST {HERE} HTTP/1.1\r\nhost: x\r\n".encode() + broken + b"\r\n{}")
        assert link.recv(65536).startswith(b"HTTP/1.1 400 ")
        link.close()
    assert ask(url, HERE, infer(("place", ["here"])))[0] == 200


FLOOD = """
import http.client, sys, threading, collections
port, path, body, threads, each = int(sys.argv[1]), sys.argv[2], open(sys.argv[3], "rb").read(), int(sys.argv[4]), int(sys.argv[5])
codes, guard = collections.Counter(), threading.Lock()
def work():
    for _ in range(each):
        link = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            link.request("POST", path, body)
            answer = link.getresponse()
            answer.read()
            key = f"{answer.status} {answer.getheader('retry-after')}"
        except OSError as e: key = type(e).__name__
        link.close()
        with guard: codes[key] += 1
running = [threading.Thread(target=work) for _ in range(threads)]
for t in running: t.start()
for t in running: t.join()
print(dict(codes))
"""


def test_a_flood_with_a_stuck_host_meets_503_and_bounded_memory(served, url, tmp_path):
    rows = {"id": "flood", "inputs": [{"name": n, "shape": [2_000], "datatype": "FP64", "data": [0.25] * 2_000} for n in ("a", "b")]}
    body = tmp_path / "body.json"
    body.write_bytes(orjson.dumps(rows))
    gateway = psutil.Process(status(served)["gateways"]["production"]["pid"])
    pid = next(h["pid"] for h in status(served)["hosts"] if h["model"] == PAIR)
    before, most, stop = gateway.memory_info().rss, [0], threading.Event()
    def watch():
        while not stop.wait(0.02): most[0] = max(most[0], gateway.memory_info().rss)
    watcher = threading.Thread(target=watch)
    watcher.start()
    os.kill(pid, signal.SIGSTOP)
    try:
        done = subprocess.run([sys.executable, "-c", FLOOD, url.rpartition(":")[2], f"/v2/models/{PAIR}/infer", str(body), "60", "8"],
            capture_output=True, text=True, timeout=300)
        assert ask(url, f"/v2/models/{ONE}/infer", infer(("a", [1.0])))[0] == 200   # another model's callers are served meanwhile
    finally:
        with contextlib.suppress(ProcessLookupError): os.kill(pid, signal.SIGCONT)
        stop.set()
        watcher.join()
    codes = eval(done.stdout)  # a dict that we printed
    assert sum(codes.values()) == 480 and set(codes) <= {"200 None", "503 1"} and codes.get("503 1", 0) > 100, (codes, done.stderr)
    assert most[0] - before < 300 << 20, f"{(most[0] - before) >> 20} MiB more"
    until = time.monotonic() + 60
    while ask(url, f"/v2/models/{PAIR}/infer", infer(("a", [1.0]), ("b", [1.0])))[0] != 200: assert time.monotonic() < until
    assert "within_requests_in_flight 0" in ask(url, "/metrics")[1] and "within_rows_in_flight 0" in ask(url, "/metrics")[1]


def test_many_open_connections_are_turned_away_and_leave_room_again(url):
    links, said = [], b""
    import resource
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < LIMITS.connections + 600: pytest.skip("this machine allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, LIMITS.connections + 600), hard))
    try:
        for _ in range(LIMITS.connections + 40): links.append(raw_connection(url))
        said = links[-1].recv(65536)
    finally:
        for link in links: link.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert said.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1" in said
    until = time.monotonic() + 20
    while True:
        with contextlib.suppress(Exception):
            if ask(url, HERE, infer(("place", ["here"])))[0] == 200: break
        assert time.monotonic() < until


# --- somebody who asks everything ------------------------------------------------------------------------------------------------------------------

CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance", "response_schema_conformance",
          "unsupported_method", "ignored_auth")


@pytest.mark.slow
@pytest.mark.parametrize("environment", ["solo", "production"])
def test_fuzzing_the_document_meets_no_5xx(served, secret, tmp_path, environment):
    pytest.importorskip("schemathesis", reason="schemathesis is a development dependency")
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{gateway_url(served, environment)}/openapi.json", "--checks", ",".join(CHECKS), "--seed", "7",
               "--max-examples", "60", "--phases", "examples,coverage,fuzzing", "--generation-database", "none", "--no-color",
               "--header", f"Authorization: {secret['authorization']}", "--request-timeout", "30"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, cwd=tmp_path, env=os.environ | {"PYTHONWARNINGS": "ignore"})
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    generated, passed = map(int, re.search(r"(\d+) generated, (\d+) passed", done.stdout).groups())
    assert passed == generated > 500, done.stdout[-2000:]
