"""The packet and the report for people who cannot see well, read at night, on a phone or on paper: no serious fault by axe, and nothing cut off."""
import base64
import shutil
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from within.ml.explain import explained
from within.ml.reviews import sign_offs
from within.runs.packet import CARD, packet_page
from within.runs.report import RunView, StageView, page

pytestmark = pytest.mark.skipif(shutil.which("chromium") is None or shutil.which("chromedriver") is None, reason="needs Chromium and its driver")

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
LONG = "historical_metrics.a_feature_with_a_rather_long_name"
PHASES = ("failed", "inconclusive", "error", "passed", "waiting", "running", "pending")
GATES = tuple({"gate": f"fairness.some_metric_of_{p}", "phase": p, "reason": "it cannot be told from these rows, " * 4, "figure": -0.123456, "low": -0.1763,
               "high": 0.01602, "threshold": 0.1, "rows": 123456} for p in PHASES)


class Line:
    "Answers with a column."
    cheap, features, task = True, [LONG, "b"], "regression"

    def predict(self, x): return x[LONG].to_numpy(float)


def packet() -> str:
    rng = np.random.default_rng(5)
    rows = pd.DataFrame({LONG: rng.normal(size=300), "b": rng.normal(size=300), "industry": rng.choice(["food", "health"], 300)})
    rows["y"] = rows[LONG] + rng.normal(size=300)
    told = {s: {"entry": n, "reason": "the reason " * 20, "evidence": {}, "verdicts": []} for n, s in enumerate(dict.fromkeys(c[1] for c in CARD), 1)}
    told["register"]["evidence"] = {"model": "ads@2.2.0", "digest": "ab" * 32, "parameters": {"max_depth": 5}}
    told["prepare"]["evidence"] = {"rows": {"train": 400}, "window": "2023", "snapshot": "cd" * 32, "problems": ["a column is missing in most rows " * 5]}
    told["evaluate"]["evidence"] = {"new": {"rmse": "1.0 (0.9 to 1.1)"}, "champion": {"version": "2.1.0", "rmse": "1.2 (1.1 to 1.3)"}}
    told["validate"]["verdicts"] = list(GATES)
    yes = {"digest": "ab", "approved": True, "reviewer": "bo@example.com", "at": datetime(2023, 10, 1, tzinfo=UTC), "note": "looked"}
    words = {"segments": yes, "edge_cases": {**yes, "digest": "cd"}, "model_card": {**yes, "approved": False}}
    signed = sign_offs({review: SimpleNamespace(**w) for review, w in words.items()}, "ab")
    drift = [{"feature": LONG, "bits": 0.31, "low": 0.2, "high": 0.4, "drifted": True}]
    found = {**explained(Line(), Line(), rows, rows, "y", "rmse", ["industry"]), "drift": drift, "champion settings": {"max_depth": 7}}
    return packet_page("r1", told, found, signed, [("run report", "index.html")])


def report() -> str:
    more = {"verdicts": GATES, "figures": (("a figure", 1234567.891), ("text", "word " * 60)), "measured": (("p95 ms", 1.25),),
            "params": (("override", "x"),), "overridden": ("override",), "links": (("notebook", "products/a.ipynb"),),
            "pictures": ((f"data:image/png;base64,{PIXEL}", "what the picture shows"),)}
    stages = tuple(StageView(f"stage{i}", p, "Does it work?", "because " * 30, 12.5, **more) for i, p in enumerate(PHASES))
    said = ("waiting", "waiting at review", "no reviewer has approved it", "Next: within approve RUN")
    return page(RunView("r1", "ads", "shop", *said, (("by", "ana"),), ("prepare.x = 1",), ("demo approval",), stages, (("review packet", "packet.html"),)))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    options = webdriver.ChromeOptions()
    for a in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path_factory.mktemp('profile')}"): options.add_argument(a)
    opened = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield opened
    opened.quit()


def show(browser, path, width, **media):
    features = [{"name": "prefers-color-scheme", "value": media.pop("scheme", "light")}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features, **media})
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 700 and not media})
    browser.get(path.as_uri())


@pytest.mark.parametrize("make", [packet, report], ids=["packet", "report"])
def test_axe_finds_no_serious_fault_and_nothing_is_cut_off(browser, tmp_path, make):
    from axe_core_python.selenium import Axe
    (path := tmp_path / "page.html").write_text(make(), encoding="utf-8")
    for scheme in ("light", "dark"):
        for width in (1280, 400):
            show(browser, path, width, scheme=scheme)
            found = Axe().run(browser)
            bad = [(v["impact"], v["id"], v["nodes"][0]["html"][:120]) for v in found["violations"] if v["impact"] in ("serious", "critical")]
            assert not bad and len(found["passes"]) > 20, (scheme, width, bad)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    show(browser, path, 703, scheme="dark", media="print")   # A4 less its margins
    assert browser.execute_script("return [...document.querySelectorAll('table, img, svg')].filter(t => t.getBoundingClientRect().right > 705).length") == 0
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)", "no black pages"
    assert base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})["data"]).startswith(b"%PDF")


def test_axe_would_find_a_fault(browser, tmp_path):
    from axe_core_python.selenium import Axe
    bad = packet().replace('<html lang="en">', "<html>").replace("--soft:#55606b", "--soft:#c9c9c9")
    (path := tmp_path / "page.html").write_text(bad, encoding="utf-8")
    show(browser, path, 1280)
    assert {v["id"] for v in Axe().run(browser)["violations"]} >= {"html-has-lang", "color-contrast"}
