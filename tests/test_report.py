"""The report as a reviewer opens it: well-formed, accessible, safe with hostile names, and not wider than a phone."""
import shutil
from html.parser import HTMLParser

import pytest

from within.files import write_json
from within.runs.folder import RunFolder
from within.runs.report import RunView, StageView, page, stage_view, write_report

EVIL = "<img src=x onerror=alert(1)>\"'&"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
VOID = {"meta", "img", "br", "line", "rect", "path", "link"}


class Reader(HTMLParser):
    "Collects tags and their attributes, and fails when something is closed that was not open."

    def __init__(self):
        super().__init__()
        self.open, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID: self.open.append(tag)

    def handle_startendtag(self, tag, attrs): self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:])
        self.open.pop()


def read(html):
    reader = Reader()
    reader.feed(html)
    assert not reader.open
    return reader.tags


@pytest.fixture
def view():
    gate = {"gate": "performance.r2", "phase": "passed", "reason": EVIL, "figure": 0.7, "low": 0.6, "high": 0.8, "threshold": 0.3, "rows": 1000}
    figures = (("a very long name of a figure", 1234567.891), ("text", "word " * 60))
    more = {"verdicts": (gate,) * 3, "figures": figures, "measured": (("p95 ms", 1.25),),
            "params": (("override", EVIL),), "overridden": ("override",), "pictures": ((f"data:image/png;base64,{PIXEL}", EVIL),),
            "links": (("notebook", "products/a.ipynb"),)}
    states = {"trigger": "passed", "prepare": "failed", "optimize": "waiting", "train": "error", "evaluate": "inconclusive", "register": "pending"}
    stages = tuple(StageView(n, s, f"Does {n} work?", f"because of {EVIL}", 12.5, **more) for n, s in states.items())
    said = ("failed", "declined at prepare", EVIL, EVIL)
    return RunView("20231001-x-0001", EVIL, EVIL, *said, (("by", EVIL),), (f"prepare.x = {EVIL}",), ("demo approval",), stages)


def test_well_formed_accessible_and_escaped(view):
    html = page(view)
    tags = read(html)
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids)) and not [t for t, _ in tags if t in ("script", "iframe", "link", "object")]
    images = [a for t, a in tags if t == "img"]
    assert len(images) == 6 and all(a.get("alt") and a["src"].startswith("data:image/") for a in images)
    assert not [k for _, a in tags for k in a if k.startswith("on")] and not [a for _, a in tags if "http" in a.get("src", "") + a.get("href", "")]
    assert [t for t, _ in tags if t in ("h1", "h2")][0] == "h1" and ("html", {"lang": "en"}) in tags
    anchors = {a["href"].removeprefix("#") for _, a in tags if a.get("href", "").startswith("#")}
    assert anchors <= set(ids) and len(anchors) == 6


def test_links_of_a_stage_stay_inside_the_run(tmp_path):
    folder = RunFolder(tmp_path, "r1")
    write_json(folder.path / "run.json", {"overrides": {}, "stages": ["trigger"]})
    pages = {"good": "files/evidently.html", "script": "javascript:alert(1)", "far": "https://example.com", "up": "files/../../x", "root": "/etc/passwd"}
    write_json(folder.product("trigger", "decision"), {"params": {}, "decision": {"outcome": "passed", "reason": "yes", "outputs": {"pages": pages}}})
    assert stage_view(folder, "trigger", True).links == (("good", "files/evidently.html"),)


@pytest.mark.skipif(shutil.which("chromium") is None or shutil.which("chromedriver") is None, reason="needs Chromium and its driver")
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_clipped(view, tmp_path, width):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    folder = RunFolder(tmp_path, "r1")
    path = write_report(folder, view)
    options = webdriver.ChromeOptions()
    for a in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"): options.add_argument(a)
    options.add_experimental_option("mobileEmulation", {"deviceMetrics": {"width": width, "height": 900, "pixelRatio": 1}})
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        browser.get(path.as_uri())
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        cut = browser.execute_script("""return [...document.querySelectorAll('table')].filter(t =>
            t.scrollWidth > t.parentElement.clientWidth + 1 && getComputedStyle(t.parentElement).overflowX != 'auto').length""")
        shown = browser.execute_script("return [...document.querySelectorAll('.dag')].filter(d => d.getBoundingClientRect().width > 0).length")
    finally: browser.quit()
    assert wide <= width and cut == 0 and shown == 1


def test_a_shadows_report_cuts_no_verdict_and_no_segment_off():
    from within.ml.shadow import ShadowReport
    from within.verdicts import Phase, Verdict
    long = "latency_p95: " + "0 of 22,400 slower than 300 ms, " * 20 + "not shown to be above 5.0%"
    row = {"segment": "industry", "disagreement": 0.1, "low": 0.05, "high": 0.2, "mean_difference": 0.3}
    segments = tuple(row | {"value": f"a|b<i>{i}", "rows": 100 + i} for i in range(30))
    found = ShadowReport("d", "1.0.0", Phase.PASSED, "fine", 10, 0, verdicts=(Verdict("rollback.latency_p95", Phase.PASSED, long),), segments=segments)
    shown = found._repr_markdown_()
    assert long in shown and "…" not in shown and "<i>" not in shown and "industry | a&#124;b&lt;i&gt;11 | 111 |" in shown
    assert shown.count("industry") == 12 and found.to_dict()["segments"][29]["rows"] == 129, "twelve are shown; the report's data has all"
