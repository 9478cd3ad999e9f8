"""The pages of a home, served and as files: what they show, what they refuse, and that somebody can click through them."""
import http.client
import json
import shutil
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from within import ledger
from within.clock import FrozenClock
from within.context import Context
from within.errors import InvalidInput
from within.site import PER_PAGE, addresses, build_site, known, life, page_at
from within.ui import Reader, serve_site

EVIL = "<script>alert(1)</script>\"'&"


def run_row(ctx: Context, id: str, phase: str = "failed", reason: str = "too few rows", model: str = "ads", report: bool = False) -> None:
    ctx.store.put("run", id, {"model": model, "phase": phase, "stage": "evaluate", "reason": reason, "needs": "", "until": None}, None)
    if report:
        folder = ctx.path("runs", id)
        (folder / "products").mkdir(parents=True)
        (folder / "index.html").write_text(f'<!doctype html><title>report</title><h1>report of {id}</h1><a href="products/trigger.html">page</a>')
        (folder / "products" / "trigger.html").write_text("<!doctype html><h1>trigger</h1><script>document.title = 'ran'</script>")
        (folder / "model.ubj").write_text("weights")


@pytest.fixture
def ctx(tmp_path):
    "A home with two models, a few turns of their lives and three runs."
    made = Context.open(home=tmp_path / "home", clock=FrozenClock("2024-03-01"), user="ana")
    ledger.append(made, "registration", "ads@1.0.0", {"digest": "ab" * 32})
    run_row(made, "20240301-ads-0001", reason=EVIL, report=True)
    run_row(made, "20240302-ads-0002", "passed", "RMSE improved by 6 %", report=True)
    run_row(made, "20240302-mail-0003", "waiting", "waits for a review", model="mail")
    ledger.append(made, "run", "20240301-ads-0001", {"phase": "failed", "stage": "evaluate", "reason": EVIL})
    ledger.append(made, "approval", "ads@1.0.0", {"note": "read it"}, actor="bob")
    ledger.append(made, "rollback", "production/ads", {"model": "ads", "reason": "worse on video", "target_version": "0.9.0"})
    return made


@pytest.fixture
def served(ctx):
    server = Reader(ctx, needs=lambda: [f"approve {EVIL}"])
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(10)


def get(server, path: str, method: str = "GET", **headers: str) -> tuple[int, str, dict]:
    connection = http.client.HTTPConnection(*server.server_address, timeout=20)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), dict(answer.getheaders())
    finally: connection.close()


def test_a_life_is_told_in_order_with_links_to_what_is_behind_it(ctx):
    told = life(known(ctx), "ads")
    assert [(e.lane, e.phase) for e in told] == [("versions", "pending"), ("runs", "failed"), ("versions", "passed"), ("traffic", "failed")]
    assert told[1].run == "20240301-ads-0001" and told[2].who == "bob" and "0.9.0" in told[3].what
    assert life(known(ctx), "mail") == []


def test_nothing_hostile_becomes_markup(ctx):
    seen = known(ctx, [EVIL])
    for address in (a for a in addresses(seen) if a.endswith(".html")):
        assert "<script>alert" not in page_at(seen, address), address
    assert "<script>alert" not in page_at(seen, "search.html", EVIL)
    data = page_at(seen, "search.js").partition("const query")[0]
    assert "<" not in data and EVIL in [r[4] for r in json.loads(data.partition("= ")[2].rpartition(";")[0])]


def test_served_pages_and_files_say_what_they_may_load(served):
    code, text, headers = get(served, "/site/index.html")
    assert code == 200 and "Needs a person now" in text and headers["Content-Security-Policy"].startswith("default-src 'none'")
    code, text, headers = get(served, "/runs/20240301-ads-0001/products/trigger.html")
    assert code == 200 and headers["Content-Security-Policy"].startswith("sandbox")
    assert get(served, "/site/search.html?q=improved")[1].count("20240302-ads-0002") >= 1


NOWHERE = ["/within.db", "/runs/../within.db", "/runs/20240301-ads-0001/../../within.db", "/runs/%2e%2e%2fwithin.db", "/runs/20240301-ads-0001/model.ubj",
           "/runs/20240301-ads-0001/", "/site/models/..%2f..%2fwithin.html", "/site/runs/page-99.html", "/site/runs/page-01.html", "/runs//etc/passwd",
           "/runs/20240301-ads-0001/x%00.html", "/site/" + "x" * 5000]


@pytest.mark.parametrize("path", NOWHERE)
def test_addresses_that_lead_nowhere(served, path):
    assert get(served, path)[0] in (404, 414)


def test_only_reading_and_only_by_address(served):
    before = ledger.verify(served.ctx).head
    for method in ("POST", "PUT", "DELETE", "PATCH"): assert get(served, "/site/index.html", method)[0] == 501
    assert get(served, "/site/index.html", Host="within.evil.example")[0] == 403 and get(served, "/site/index.html", Host="localhost:1")[0] == 200
    assert get(served, "/site/index.html", "HEAD")[1] == "" and ledger.verify(served.ctx).head == before


def test_many_readers_at_once(served):
    codes = []
    threads = [threading.Thread(target=lambda: codes.append(get(served, "/site/models/ads.html")[0])) for _ in range(20)]
    for t in threads: t.start()
    for t in threads: t.join(30)
    assert codes == [200] * 20


def test_a_taken_port_is_an_error_with_advice(served, ctx):
    with pytest.raises(InvalidInput, match="another --port"): serve_site(port=served.server_address[1], ctx=ctx)
    with pytest.raises(InvalidInput, match="cannot listen"): serve_site(port=99999, ctx=ctx)


def test_the_site_as_files_elsewhere_is_whole_and_has_no_models(ctx, tmp_path):
    first = build_site(tmp_path / "public", ctx=ctx)
    assert (tmp_path / "public/runs/20240301-ads-0001/products/trigger.html").is_file() and not list((tmp_path / "public").rglob("*.ubj"))
    for page in (tmp_path / "public/site").rglob("*.html"):           # every link leads to a file
        for link in (part.split('"')[0] for part in page.read_text().split('href="')[1:]):
            if not link.startswith("#"): assert (page.parent / link.partition("#")[0]).resolve().is_file(), f"{page.name}: {link}"
    old = first.parent / "models" / "gone.html"
    old.write_text("")
    build_site(tmp_path / "public", ctx=ctx)
    assert not old.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="is a file"): build_site(tmp_path / "file", ctx=ctx)


def test_pages_of_somebody_else_are_never_replaced(ctx, tmp_path):
    theirs = tmp_path / "public" / "site" / "blog.html"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    with pytest.raises(InvalidInput, match="not this site"): build_site(tmp_path / "public", ctx=ctx)
    assert theirs.read_text() == "mine" and len(list(theirs.parent.iterdir())) == 1


def test_hundreds_of_runs_stay_light_pages(ctx):
    for i in range(400): run_row(ctx, f"20240303-ads-{i:05}")
    build_site(ctx=ctx)
    pages = sorted((ctx.path("site") / "runs").glob("*.html"))
    assert len(pages) == -(-403 // PER_PAGE) and max(p.stat().st_size for p in pages) < 200_000
    data = page_at(known(ctx), "search.js").partition("const RUNS = ")[2].partition(";\nconst query")[0]
    assert len(json.loads(data)) == 403


def test_the_commands(ctx, tmp_path):
    from within.cli import app
    made = CliRunner().invoke(app, ["--home", str(ctx.settings.home), "site", "build", "--to", str(tmp_path / "out")])
    assert made.exit_code == 0 and Path(made.output.strip().splitlines()[-1]).is_file()


# ---------------------------------------------------------------- with eyes

@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None or shutil.which("chromedriver") is None, reason="needs Chromium and its driver")
@pytest.mark.parametrize("scripts", [True, False], ids=["with JavaScript", "without"])
def test_somebody_clicks_from_home_to_the_notebook(served, ctx, scripts):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.by import By
    options = webdriver.ChromeOptions()
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "window-size=400,900"): options.add_argument(f"--{flag}")
    if not scripts: options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        browser.get(served.url)
        browser.find_element(By.LINK_TEXT, "ads").click()
        assert browser.find_element(By.TAG_NAME, "h1").text == "ads" and len(browser.find_elements(By.CSS_SELECTOR, "svg.life circle")) == 4
        browser.find_element(By.LINK_TEXT, "20240301-ads-0001").click()
        assert browser.find_element(By.TAG_NAME, "h1").text == "report of 20240301-ads-0001"
        browser.find_element(By.LINK_TEXT, "page").click()
        assert browser.find_element(By.TAG_NAME, "h1").text == "trigger"
        browser.get(f"{served.url}site/index.html")
        field = browser.find_element(By.NAME, "q")
        field.send_keys("improved")
        field.submit()
        assert browser.find_element(By.ID, "found").text.count("20240302-ads-0002") == 1
        built = build_site(ctx=ctx)
        browser.get(f"{(built.parent / 'search.html').as_uri()}?q=improved")
        assert ("20240302-ads-0002" in browser.find_element(By.ID, "found").text) is scripts
        wide = browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth") if scripts else True
        assert wide, "the page is wider than a phone"
    finally: browser.quit()
