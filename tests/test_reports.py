"""The reports that README shows are whole, portable and nobody's rows; and a page to send needs no other file."""
import base64
import io
import re
import threading
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from within.clock import FrozenClock
from within.context import Context
from within.errors import InvalidInput
from within.ledger import append, entries
from within.rehearsal_faults import creeping
from within.runs.report import lighter, portable, write_copy
from within.runs.walk import fault_notes
from within.settings import project_root

ROOT = project_root(Path(__file__).parent)
SHOWN = ROOT / "docs/reports"
UPWORTHY = ROOT.parent / "shared/data/upworthy_exploratory/upworthy_exploratory.parquet"
NAMES = ("passed", "declined", "rolled_back")


class Links(HTMLParser):
    def __init__(self): super().__init__(), setattr(self, "to", []), setattr(self, "ids", set())

    def handle_starttag(self, tag, attrs):
        told = dict(attrs)
        self.to += [told[k] for k in ("href", "src") if told.get(k)]
        self.ids.add(told.get("id"))


def first_screen(name): return (SHOWN / f"{name}.html").read_text().partition("<nav")[0]


def test_what_readme_and_architecture_link_to_is_there():
    for page in ("README.md", "ARCHITECTURE.md"):
        local = [t for t in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()) if not re.match(r"https?:|#|mailto:", t)]
        assert not [t for t in local if not (ROOT / t.partition("#")[0]).exists()], page


@pytest.mark.parametrize("name", NAMES)
def test_a_shown_report_needs_no_other_file_and_names_no_place_of_a_machine(name):
    page, links = (SHOWN / f"{name}.html").read_text(), Links()
    links.feed(page)
    assert f"docs/reports/{name}.html" in (ROOT / "README.md").read_text() and f"docs/reports/{name}.png" in (ROOT / "README.md").read_text()
    assert links.to and not [t[:80] for t in links.to if not t.startswith(("data:image/", "https://")) and t.removeprefix("#") not in links.ids]
    words = re.sub(r"data:image/[^\"]+", "", page)
    assert not re.findall(r"(?:^|[\s\"'>(=])(?:/(?:home|tmp|root|work|Users|var|opt|mnt)/|[A-Z]:\\)[^\s<]*", words)
    with Image.open(SHOWN / f"{name}.png") as picture: assert picture.width == 1280
    assert (SHOWN / f"{name}.png").stat().st_size <= 150_000


def test_the_first_screens_say_how_it_ended():
    assert "passed every stage" in first_screen("passed") and "demo approval" in first_screen("passed")
    assert "declined at evaluate" in first_screen("declined")
    assert all(words in first_screen("rolled_back") for words in ("rolled back at finalize", "planted on purpose", "shown to be above"))
    assert sum(f.stat().st_size for f in SHOWN.iterdir()) <= 3_000_000


def test_the_shown_reports_hold_no_row_of_the_archive_and_name_its_authors():
    readme = (ROOT / "README.md").read_text()
    assert "Matias, Munger, Aubin Le Quere, Ebersole" in readme and "CC BY 4.0" in readme
    if not UPWORTHY.is_file(): pytest.skip("the Upworthy archive is not here")
    import pandas as pd
    rows = pd.read_parquet(UPWORTHY, columns=["headline", "lede", "excerpt", "clickability_test_id", "eyecatcher_id"])
    page = re.sub(r"data:image/[^\"]+", "", (SHOWN / "declined.html").read_text())
    for column in rows: assert not [v for v in rows[column].dropna().astype(str).unique() if len(v) > 15 and v in page], column


def picture(size=(300, 200)):
    drawn = Image.effect_noise(size, 60).convert("RGB")
    drawn.save(buffer := io.BytesIO(), "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_a_page_to_send_has_lighter_pictures_and_leaves_what_it_cannot_read():
    big = f'<img src="data:image/png;base64,{picture()}">'
    small = lighter(big, 16)
    assert len(small) < len(big) / 2 and Image.open(io.BytesIO(base64.b64decode(small.split(",")[1].split('"')[0]))).size == (300, 200)
    assert lighter(small, 16) == small
    for broken in ("iVBORw0KGgo", "AAAA", "x", picture()[:400], "A" * 41): assert lighter(f'<img src="data:image/png;base64,{broken}">').count(broken) == 1
    assert lighter("no picture") == "no picture"


def test_links_to_other_files_become_words(tmp_path):
    page = portable('<a href="packet.html">read</a> <a href="#x">down</a> <a href="https://example.com">web</a> <a href="../../etc/passwd">up</a></footer>')
    assert page.startswith('read <a href="#x">down</a> <a href="https://example.com">web</a> up') and "This page is a copy" in page


def test_a_copy_is_never_written_over_something(tmp_path):
    class Folder:
        id, report = "20231001-m-0001", tmp_path / "index.html"
    with pytest.raises(InvalidInput, match="no report yet"): write_copy(Folder, tmp_path / "copy.html")
    Folder.report.write_text('<footer><a href="run.log">run.log</a></footer>')
    with pytest.raises(InvalidInput, match=r"NAME\.html"): write_copy(Folder, tmp_path / "copy.txt")
    assert "href" not in write_copy(Folder, tmp_path / "new/copy.html").read_text()
    with pytest.raises(InvalidInput, match="exists"): write_copy(Folder, tmp_path / "new/copy.html")


def test_a_report_says_only_what_was_planted_into_its_own_model_while_it_went_on(tmp_path):
    ctx = Context.open(home=tmp_path / "home", clock=FrozenClock("2023-11-01"))
    try:
        class Folder:
            id, intention = "20231101-ads-0001", {"model": "ads"}
        append(ctx, "fault", "ads", {"event": "latency_creep", "reason": "before"}, actor="demo@example.com")
        assert fault_notes(ctx, Folder) == []
        append(ctx, "intention", Folder.id, {"model": "ads"})
        append(ctx, "fault", "other", {"event": "latency_creep", "reason": "another model"}, actor="demo@example.com")
        assert fault_notes(ctx, Folder) == []
        append(ctx, "fault", "ads", {"event": "latency_creep", "reason": "ads@2.2.0 answers later"}, actor="demo@example.com")
        assert fault_notes(ctx, Folder) == ["a fault was planted on purpose on 2023-11-01: ads@2.2.0 answers later"]
    finally: ctx.close()


def test_a_creep_begins_with_a_rollout_and_ends_with_its_block(tmp_path):
    ctx = Context.open(home=tmp_path / "home", clock=FrozenClock("2023-11-01"))
    try:
        with pytest.raises(KeyError), creeping(ctx, "ads") as accidents:
            assert {"creep", "wires"} <= {t.name for t in threading.enumerate()}
            raise KeyError("the run broke")
        assert not accidents.begun and not entries(ctx, "fault") and not {"creep", "wires"} & {t.name for t in threading.enumerate()}
    finally: ctx.close()
