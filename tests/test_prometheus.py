"""A real Prometheus scrapes a real gateway: the exposition is lint-clean, and every panel of the dashboard has an answer."""
from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from postgresql import free_port
from test_serving import INFER, NAME, body, eventually, small  # noqa: F401  (small is a fixture)

from within.serving.routes import Shadow, change, current
from within.serving.supervisor import gateway_url
from within.serving.wire import ask, token

ROOT = Path(__file__).resolve().parent.parent
PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
pytestmark = pytest.mark.skipif(not (PROMETHEUS and PROMTOOL), reason="no Prometheus here: Debian's package prometheus brings it")


@pytest.fixture
def scraped(small, tmp_path):  # noqa: F811
    "A gateway that answers, refuses and copies to a shadow, and a Prometheus that asks it every 200 ms; yields both addresses."
    url, secret = gateway_url(small, "production"), {"within-token": token(small.settings)}
    route = current(small, "production", NAME)
    change(small, replace(route, shadows=[Shadow("1.1.0", 100)]), route.revision, by="test")
    port, settings = free_port(), tmp_path / "prometheus.yml"
    settings.write_text(yaml.safe_dump({"global": {"scrape_interval": "200ms", "scrape_timeout": "200ms"}, "scrape_configs": [
        {"job_name": "within", "static_configs": [{"targets": [url.removeprefix("http://")]}]}]}))
    argv = [PROMETHEUS, f"--config.file={settings}", f"--storage.tsdb.path={tmp_path / 'tsdb'}", f"--web.listen-address=127.0.0.1:{port}"]
    with open(tmp_path / "prometheus.log", "w") as log, subprocess.Popen(argv, stdout=log, stderr=log) as process:
        try: yield url, secret, f"http://127.0.0.1:{port}"
        finally: process.kill()


def answered(server: str, query: str) -> list:
    "The samples that a query yields now, without those that are no number; raises for a query that Prometheus refuses."
    try: raw = urllib.request.urlopen(f"{server}/api/v1/query?{urllib.parse.urlencode({'query': query})}", timeout=5).read()
    except urllib.error.HTTPError as e:
        if e.code == 503: raise   # it is starting
        raise AssertionError(f"{query}: {e.read()[:200]!r}") from None
    return [s for s in json.loads(raw)["data"]["result"] if s["value"][1] != "NaN"]


def up(server: str) -> bool:
    try: return any(s["value"][1] == "1" for s in answered(server, "up"))
    except OSError: return False


def test_every_panel_has_an_answer(scraped):
    url, secret, server = scraped
    text = urllib.request.urlopen(f"{url}/metrics").read()
    linted = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, timeout=60)
    assert linted.returncode == 0, linted.stdout + linted.stderr
    assert eventually(lambda: up(server)), "Prometheus reaches the gateway"
    board = json.loads((ROOT / "templates" / "grafana" / "within.json").read_text())
    queries = {p["title"]: re.sub(r"\[5m\]", "[1m]", t["expr"].replace("$model", ".*")) for p in board["panels"] for t in p["targets"]}
    told: dict[str, list] = {}
    def drawn() -> bool:
        for i in range(5): assert ask(url, INFER, body(f"r{len(told)}-{i}"), secret)[0] == 200
        ask(url, "/feedback", {"id": "r1", "kind": "likes", "value": 1}, secret)
        ask(url, INFER, {"inputs": []}, secret)
        told.update({title: samples for title, query in queries.items() if (samples := answered(server, query))})
        return told.keys() == queries.keys()
    assert eventually(drawn, 60), f"panels without an answer: {sorted(queries.keys() - told.keys())}"
    roles = {s["metric"]["role"] for s in answered(server, "within_predictions_total")}
    assert roles >= {"live", "shadow"} and {s["metric"]["version"] for s in told["Share of live traffic"]} == {"1.0.0"}
    assert [float(s["value"][1]) for s in told["Share of live traffic"]] == [1.0]
