"""A store of every earlier revision is opened: it is upgraded once, whole or not at all, and nothing that was known is lost."""
from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import uuid
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from conftest import DATABASE, ROOT
from postgresql import needs_postgres, new_database, statements

from within import ledger, store
from within.backups import back_up, restore
from within.clock import FrozenClock, parse_time
from within.context import Context
from within.doctor import examine
from within.errors import Conflict, InvalidInput, WithinError
from within.store import METADATA, MIGRATIONS, REVISION, REVISIONS, Migration, Store

FORMS = sorted((ROOT / "tests" / "stores").glob("*.sql"))
HEAD = "b82ed575de8b086bbdef73d3034280942b761bcb6c89059e8c30cda6e033cf75"   # of the ledger that all of them hold
AT = parse_time("2023-10-03")
engines = pytest.mark.parametrize("engine", ["sqlite", pytest.param("postgresql", marks=needs_postgres)])


@pytest.fixture
def laid(tmp_path, request):
    "Lays out a home with the store of an earlier revision: laid(engine, revision) gives its URL."
    def lay(engine: str, revision: int = 1) -> str:
        (tmp_path / "home" / "runs" / "r1").mkdir(parents=True)
        (tmp_path / "home" / "runs" / "r1" / "decision.json").write_text('{"verdict": "deploy"}\n')
        text = (ROOT / "tests" / "stores" / f"revision-{revision}.{engine}.sql").read_text()
        if engine == "sqlite":
            with closing(sqlite3.connect(tmp_path / "home" / "within.db")) as c: c.executescript(text)
            return f"sqlite:///{tmp_path / 'home' / 'within.db'}"
        url = new_database(request.getfixturevalue("postgres"), f"laid_{uuid.uuid4().hex[:12]}")
        statements(url, text)
        return url
    return lay


def opened(tmp_path: Path, url: str) -> Context: return Context.open(FrozenClock(AT), home=tmp_path / "home", database_url=url)


def look(url: str) -> tuple[dict, bool]:
    "Every row by table, as the database holds it, without opening it as a store; and whether it says its revision."
    engine = sa.create_engine(url)
    with engine.connect() as c:
        rows = {t.name: sorted(map(tuple, c.execute(sa.select(t))), key=repr) for t in METADATA.sorted_tables if t is not REVISIONS}
        said = sa.inspect(c).has_table("store_revision")
    engine.dispose()
    return rows, said


def child(url: str, code: str = "") -> subprocess.Popen:
    "Another process that opens the store, after some code."
    script = f"from within import store\n{code}\nstore.Store({url!r}).close()"
    return subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("file", [pytest.param(f, marks=needs_postgres) if "postgresql" in f.name else f for f in FORMS], ids=lambda f: f.stem)
def test_every_earlier_form_becomes_todays(laid, tmp_path, monkeypatch, file):
    revision, engine = int(file.stem.split(".")[0].removeprefix("revision-")), file.stem.split(".")[1]
    url = laid(engine, revision)
    before, _ = look(url)
    with monkeypatch.context() as then:
        then.setattr(store, "REVISION", revision)   # as the version of that time would read it
        old = opened(tmp_path, url)
        assert ledger.verify(old).ok and ledger.verify(old).head == HEAD
        old.close()
    ctx = opened(tmp_path, url)
    found = ledger.verify(ctx)
    assert (found.ok, found.entries, found.files, found.head, ctx.store.revision) == (True, 3, 1, HEAD, REVISION)
    assert look(url) == (before, True)
    assert ctx.store.get("run", "r1").body["note"] == "it's 100 % – good;\nsecond line" and ctx.store.alias("ad_score_predictor", "champion") == "1.1.0"
    ledger.append(ctx, "note", "r1", {"after": "the upgrade"})
    assert ctx.store.put("run", "r2", {}, None) == 1 and ledger.verify(ctx).ok
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    with ctx.store.reading() as c: assert compare_metadata(MigrationContext.configure(c, opts={"compare_type": True}), METADATA) == []
    ctx.close()
    kept = tmp_path / "home" / f"within.revision-{revision}.db"
    assert kept.exists() is (engine == "sqlite" and revision < REVISION)
    if kept.exists(): assert look(f"sqlite:///{kept}") == (before, False) and kept.stat().st_mode & 0o777 == 0o600


def test_there_is_a_file_of_every_revision():
    assert {f.name for f in FORMS} == {f"revision-{r}.{e}.sql" for r in range(1, REVISION + 1) for e in ("sqlite", "postgresql")}
    assert [m.revision for m in MIGRATIONS] == list(range(2, REVISION + 1))


@engines
def test_a_newer_store_is_refused_and_left_alone(laid, tmp_path, engine):
    url = laid(engine, REVISION)
    Store(url).close()
    made = sa.create_engine(url)
    with made.begin() as c: c.execute(REVISIONS.insert().values(revision=REVISION + 7, within="9.9.9"))
    made.dispose()
    before = look(url)
    with pytest.raises(InvalidInput, match=rf"revision {REVISION + 7}, written by within 9\.9\.9.*up to {REVISION}: install within 9\.9\.9"):
        opened(tmp_path, url)
    assert look(url) == before and not list(tmp_path.rglob("within.revision-*"))


@pytest.mark.slow
@engines
@pytest.mark.parametrize("start", ["old", "empty"])
def test_of_several_processes_one_does_it(laid, request, tmp_path, engine, start):
    if start == "old": url = laid(engine)
    elif engine == "sqlite": url = f"sqlite:///{tmp_path / 'new.db'}"
    else: url = new_database(request.getfixturevalue("postgres"), f"empty_{uuid.uuid4().hex[:12]}")
    mark = "\n".join(["done = store._note_revision", "def told(c):", "    done(c)", f"    open({str(tmp_path / 'done')!r}, 'a').write('x')",
                      "store._note_revision = told"])
    several = [child(url, mark) for _ in range(4)]
    assert [(p.communicate(timeout=120)[1], p.returncode) for p in several] == [("", 0)] * 4
    assert (tmp_path / "done").read_text() == "x"
    if start == "old": assert ledger.verify(opened(tmp_path, url)).ok


@pytest.mark.slow
@engines
@pytest.mark.parametrize("when", ["during the copy", "in the middle", "before the commit"])
def test_killed_half_way_it_is_the_old_one(laid, tmp_path, engine, when):
    if engine == "postgresql" and when == "during the copy": pytest.skip("only a SQLite file is copied")
    url = laid(engine)
    before = look(url)
    die = "import os, signal\ndef die(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
    code = {"during the copy": "to = store.online_copy\nstore.online_copy = lambda a, b: (to(a, b), die())",
            "in the middle": "first = store.MIGRATIONS[0].change\nstore.MIGRATIONS = (store.Migration(2, 'x', lambda op: (first(op), die())),)",
            "before the commit": "note = store._note_revision\nstore._note_revision = lambda c: (note(c), die())"}[when]
    assert child(url, die + code).wait(120) == -signal.SIGKILL
    assert look(url) == before
    ctx = opened(tmp_path, url)
    assert ctx.store.revision == REVISION and ledger.verify(ctx).ok and not list(tmp_path.rglob("*.draft"))
    ctx.close()


@engines
def test_a_migration_that_fails_or_touches_the_ledger_changes_nothing(laid, tmp_path, monkeypatch, engine):
    url = laid(engine)
    before = look(url)
    def fails(op): op.add_column("state", sa.Column("x", sa.Text)), 1 / 0
    def lies(op): op.execute("update ledger set actor = 'nobody' where seq = 1")
    for change, error in ((fails, ZeroDivisionError), (lies, InvalidInput)):
        monkeypatch.setattr(store, "MIGRATIONS", (Migration(2, "bad", change),))
        with pytest.raises(error): Store(url)
        assert look(url) == before


@engines
def test_alembic_does_what_an_engine_cannot_alter(laid, tmp_path, monkeypatch, engine):
    url = laid(engine)
    def change(op):
        with op.batch_alter_table("observations") as table:
            table.alter_column("n", new_column_name="count")
            table.add_column(sa.Column("unit", sa.Text, nullable=False, server_default="1"))
    monkeypatch.setattr(store, "MIGRATIONS", (*MIGRATIONS, Migration(REVISION + 1, "observations have a unit", change)))
    monkeypatch.setattr(store, "REVISION", REVISION + 1)
    made = Store(url)
    with made.reading() as c:
        rows = c.execute(sa.text('select "count", unit from observations order by seq')).all()
        assert [tuple(r) for r in rows] == [(400, "1"), (None, "1")] and sa.inspect(c).get_indexes("observations")[0]["name"] == "observed"
    assert made.revision == REVISION + 1
    made.close()


@engines
def test_what_is_up_to_date_costs_no_import_and_no_lock(laid, tmp_path, engine):
    url = laid(engine)
    Store(url).close()
    holds = Store(url)
    with holds.transaction() as c:   # somebody writes; opening does not wait for them
        c.execute(store.STATE.update().values(revision=9))
        script = f"import sys; from within.store import Store; Store({url!r}).close(); assert not [m for m in sys.modules if m.startswith('alembic')]"
        subprocess.run([sys.executable, "-c", script], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=20)
    holds.close()


def test_the_doctor_says_the_revision(laid, tmp_path):
    ctx = opened(tmp_path, laid("sqlite"))
    said = {v.gate: v for v in examine(ctx)}["doctor.store"]
    assert f"revision {REVISION}" in said.reason
    ctx.close()


@pytest.mark.skipif(DATABASE == "postgresql", reason="about a store that is a file; a server's has its own below")
def test_an_old_backup_is_restored_and_upgraded_and_a_newer_one_is_not(laid, tmp_path, monkeypatch):
    url = laid("sqlite")
    with monkeypatch.context() as then:
        then.setattr(store, "REVISION", 1)
        ctx = opened(tmp_path, url)
        made = back_up(tmp_path / "old.tar", ctx=ctx)
        ctx.close()
    again = restore(made.path, tmp_path / "again")
    ctx = Context.open(home=again.path)
    assert ctx.store.revision == REVISION and ledger.verify(ctx).head == HEAD == made.head
    assert look(f"sqlite:///{again.path / 'within.revision-1.db'}")[1] is False
    with ctx.store.transaction() as c: c.execute(REVISIONS.insert().values(revision=REVISION + 1, within="9.9.9"))
    with monkeypatch.context() as later:
        later.setattr(store, "REVISION", REVISION + 1)
        back_up(tmp_path / "newer.tar", ctx=ctx)
    ctx.close()
    with pytest.raises(InvalidInput, match=r"install within 9\.9\.9"): restore(tmp_path / "newer.tar", tmp_path / "third")
    assert not (tmp_path / "third").exists() and not list(tmp_path.glob(".third*"))


@needs_postgres
def test_a_server_s_store_is_backed_up_and_restored_to_a_file_or_a_server(laid, tmp_path, monkeypatch, request):
    ctx = opened(tmp_path, url := laid("postgresql"))
    made = back_up(tmp_path / "b.tar", ctx=ctx)
    assert (made.database, made.head) == ("inside", HEAD) and not (tmp_path / "home" / "within.db").exists()
    ctx.close()
    before, _ = look(url)
    monkeypatch.setenv("WITHIN_DATABASE_URL", f"sqlite:///{tmp_path / 'file' / 'within.db'}")
    restore(made.path, tmp_path / "file")
    assert look(f"sqlite:///{tmp_path / 'file' / 'within.db'}") == (before, True)
    monkeypatch.setenv("WITHIN_DATABASE_URL", empty := new_database(request.getfixturevalue("postgres"), f"into_{uuid.uuid4().hex[:12]}"))
    restore(made.path, tmp_path / "server")
    assert look(empty) == (before, True) and not list((tmp_path / "server").glob("within.db*"))
    ctx = Context.open(FrozenClock(AT), home=tmp_path / "server")
    assert ledger.verify(ctx).head == HEAD
    ctx.store.add_observations([{"subject": "a", "metric": "b", "value": 1.0}])   # its number follows the restored ones
    assert [r.revision for r in ctx.store.history("run", "r1")] == [1, 2] and ctx.store.put("run", "r9", {}, None) == 1
    ctx.close()
    with pytest.raises(Conflict, match="is not empty"): restore(made.path, tmp_path / "twice")
    assert not (tmp_path / "twice").exists() and not list(tmp_path.glob(".twice*"))


@needs_postgres
def test_a_connection_that_was_cut(laid, tmp_path, request):
    ctx = opened(tmp_path, url := laid("postgresql"))
    def cut() -> None: statements(request.getfixturevalue("postgres"), "select pg_terminate_backend(pid) from pg_stat_activity where datname = "
                                  f"'{url.rpartition('/')[2]}'")
    cut()
    assert ctx.store.get("run", "r1").revision == 2   # between two transactions nobody notices
    with pytest.raises(WithinError, match="was lost.*look whether it was written"), ctx.store.transaction() as c:
        c.execute(store.STATE.update().values(revision=7))
        cut()
        c.execute(store.STATE.update().values(revision=8))
    assert ctx.store.get("run", "r1").revision == 2 and ledger.verify(ctx).ok
    ctx.close()
