"""The page of a model's monitors, and the dashboard file: what they show is what was written down, and every metric that is asked for exists."""
from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest

from within.alerts import acknowledge, open_alert, resolve_alert
from within.clock import FrozenClock, parse_time
from within.context import Context
from within.errors import InvalidInput
from within.monitor_page import alarms, last_look, monitor_page, monitor_picture, seen, write_monitor_page
from within.serving.gateway import gauges
from within.serving.metrics import Metrics
from within.verdicts import Phase, Verdict

ROOT = Path(__file__).resolve().parent.parent
ID, EVIL = "production/ads@2.2.0", "<script>alert(1)</script>\"'&"
BAD, WELL = Verdict("monitor.error_rate", Phase.FAILED, f"error_rate is 0.06 {EVIL}"), Verdict("monitor.error_rate", Phase.PASSED, "error_rate is 0.001")


@pytest.fixture
def ctx(tmp_path):
    made = Context.open(home=tmp_path / "home", clock=FrozenClock("2023-11-01"))
    body = {"model": "ads", "version": "2.2.0", "environment": "production", "phase": "failed", "started_at": "2023-11-01T00:00:00+00:00", "reason": EVIL,
            "next_look_at": "2023-11-02T00:00:00+00:00"}
    made.store.put("monitor", ID, body, None)
    yield made
    made.close()


def looks(ctx, n: int) -> None:
    for i in range(n):
        at, phase = parse_time("2023-11-01") + timedelta(hours=i), "failed" if i == n - 1 else "passed"
        for metric, value in (("error_rate", 0.001 * i), ("latency_p95", 5.0 + i)):
            labels = {"low": value / 2, "high": None if metric == "latency_p95" else value * 2, "limit": 0.03, "phase": phase}
            ctx.store.add_observations([{"subject": f"monitor:{ID}", "metric": metric, "value": value, "n": 100 * i, "at": at, "labels": labels}])


class Tags(HTMLParser):
    def __init__(self): super().__init__(), setattr(self, "open", []), setattr(self, "seen", [])
    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "link", "input"): self.open.append(tag)
    def handle_endtag(self, tag): assert self.open.pop() == tag


def test_the_page_shows_figures_alerts_and_who_was_told(ctx):
    looks(ctx, 30)
    open_alert(ctx, ID, BAD, ["slack-ml-team"])
    acknowledge(ctx, f"{ID}:error_rate", "ann <b>", "looking")
    page, tags = monitor_page(ctx, "ads"), Tags()
    tags.feed(page)
    assert not tags.open and "script" not in {t for t, _ in tags.seen} and not [a for _, a in tags.seen if any(k.startswith("on") for k in a)]
    assert all(a["src"].startswith("data:image/png;base64,") and a["alt"] for t, a in tags.seen if t == "img")
    assert "2.2.0 is not well" in page and "acknowledged" in page and "ann &lt;b&gt;" in page and "no address, left in outbox" in page and EVIL not in page
    assert [r[0] for r in last_look(ctx, ID)] == ["error_rate", "latency_p95"] and last_look(ctx, ID)[1][3].endswith("unbounded")
    assert [e for _, _, e, _ in alarms(ctx, ID)] == ["opened", "acknowledged"] and len(seen(ctx, ID)["error_rate"]) == 30
    assert write_monitor_page(ctx, "ads").read_text() == page
    resolve_alert(ctx, ID, WELL)
    assert "resolved" in monitor_page(ctx, "ads")


def test_a_metric_that_cannot_be_told_yet_has_its_row(ctx):
    row = ctx.store.get("monitor", ID)
    ctx.store.put("monitor", ID, {**row.body, "metrics": ["error_rate", "accuracy", EVIL]}, row.revision)
    looks(ctx, 3)
    told = {r[0]: r for r in last_look(ctx, ID)}
    assert list(told) == ["error_rate", "latency_p95", "accuracy", EVIL] and told["accuracy"][2] is None and "cannot tell yet" in told["accuracy"][1]
    assert monitor_page(ctx, "ads").count("cannot tell yet") == 2 and EVIL not in monitor_page(ctx, "ads")


def test_a_panel_a_metric_with_a_line_where_it_was_alarmed(ctx):
    looks(ctx, 10)
    before = [len(a.lines) for a in monitor_picture(ctx, ID).axes]
    open_alert(ctx, ID, BAD, ["slack-ml-team"])
    axes = monitor_picture(ctx, ID).axes
    assert [a.get_title(loc="left") for a in axes] == ["error_rate", "latency_p95"]
    assert [len(a.lines) - n for a, n in zip(axes, before, strict=True)] == [1, 0] and len(axes[0].lines[0].get_xdata()) == 10


def test_nothing_seen_yet_and_nobody_watched(ctx):
    assert monitor_picture(ctx, ID) == "no look has found figures yet" and "no look has found figures yet" in monitor_page(ctx, "ads")
    with pytest.raises(InvalidInput, match="did you mean 'ads'"): monitor_page(ctx, "adss")
    with pytest.raises(InvalidInput, match="unknown watched model"): write_monitor_page(ctx, "../../etc/x")


def test_the_command_shows_the_figures_and_writes_the_page(ctx):
    looks(ctx, 3)
    def within(*arguments):
        env = {**os.environ, "WITHIN_HOME": str(ctx.settings.home), "COLUMNS": "200"}
        argv = [sys.executable, "-c", "from within.cli import main; main()", *arguments]
        return subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=env, timeout=60)
    shown, written, nobody = within("monitor", "ads"), within("monitor", "ads", "--page"), within("monitor", "nobody")
    assert shown.returncode == 0 and "latency_p95" in shown.stdout and "unbounded" in shown.stdout and "2.2.0 is failed: " in shown.stdout, shown.stderr
    assert Path(written.stdout.strip()).read_text().startswith("<!doctype html>") and nobody.returncode == 2 and "Traceback" not in nobody.stderr


def exposed() -> dict[str, set[str]]:
    "Every metric that a gateway exposes, with its labels."
    metrics, link = Metrics(), SimpleNamespace(ready=True, waiting=0)
    metrics.count(("m", "1", "default", "live"), 2.0, True), metrics.refused(503)
    route = SimpleNamespace(route=SimpleNamespace(revision=1))
    predictor = SimpleNamespace(follower=SimpleNamespace(links={("m", "1"): link}, routes={"m": route}), shadows_waiting=0)
    gateway = SimpleNamespace(room=SimpleNamespace(requests=0, rows=0, size=0), predictor=predictor)
    found: dict[str, set[str]] = {}
    for line in metrics.text(gauges(gateway)).splitlines():
        if m := re.match(r"(within_\w+)(?:\{(.*)\})? ", line): found.setdefault(m[1], set()).update(re.findall(r'(\w+)="', m[2] or ""))
    return found


def test_every_query_of_the_dashboard_names_metrics_and_labels_that_exist():
    board, known = json.loads((ROOT / "templates" / "grafana" / "within.json").read_text()), exposed()
    queries = [t["expr"] for p in board["panels"] for t in p["targets"]] + [v["query"] for v in board["templating"]["list"] if v["type"] == "query"]
    assert len(queries) > 10 and len({p["id"] for p in board["panels"]}) == len(board["panels"])
    asked = {n for q in queries for n in re.findall(r"within_\w+", q)}
    assert asked <= known.keys(), asked - known.keys()
    for name, inside in (m for q in queries for m in re.findall(r"(within_\w+)\{([^}]*)\}", q)):
        assert set(re.findall(r"(\w+)\s*=~?", inside)) <= known[name], name
    for q in queries: assert q.count("(") == q.count(")") and q.count("{") == q.count("}")
    unused = known.keys() - asked - {"within_requests_in_flight", "within_body_bytes_in_flight"}
    assert not unused, f"the gateway says {unused}, and no panel shows it"
