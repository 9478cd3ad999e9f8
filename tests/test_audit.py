"""Evidence that holds: a thousand changes are found, a cut end is seen, and an auditor needs nothing of ours."""
import contextlib
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import sqlalchemy as sa
from conftest import DATABASE, ROOT, on_path
from mlflow_tables import with_tables
from postgresql import copy_database
from test_runs import project, write_notebook  # noqa: F401  (project is a fixture)

from within import ledger
from within.audits import SCRIPT, export
from within.clock import FrozenClock
from within.context import Context
from within.errors import Conflict, InvalidInput
from within.ledger import append, entries, sign, verify
from within.ledger_heads import fingerprint, head_files, make_key
from within.ml.ad_score import AdScorePredictor
from within.ml.registry import ModelRegistry
from within.runs.folder import RunFolder
from within.runs.walk import retrain
from within.verdicts import Phase

NOW = FrozenClock("2023-10-01")


def keys(place: Path) -> Path: return place.with_name(f"{place.name}-keys")   # beside the project, not in it


def opened(place: Path, **more) -> Context:
    known = {"home": place / "home", "configs": place / "configs", "clock": NOW, "user": "author@example.com", "ledger_key": keys(place) / "ledger.key"}
    return Context.open(**{**known, **more})


@pytest.fixture(scope="module")
def template(tmp_path_factory): return tmp_path_factory.mktemp("template")


@pytest.fixture
def furnished(template, tmp_path, request):
    "A copy of a home with a run that ended, a registered, described and approved model, and a signed head; made once."
    if not (template / "home").exists(): build(request.getfixturevalue("project"), template)
    for part in ("home", "configs"): shutil.copytree(template / part, tmp_path / part, dirs_exist_ok=True)
    if DATABASE == "postgresql": copy_database(template / "home", tmp_path / "home")
    shutil.copytree(template / "keys", keys(tmp_path), dirs_exist_ok=True)
    ctx = opened(tmp_path)
    yield ctx
    ctx.close()


def build(project, template):  # noqa: F811
    with_tables(project / "home")
    ctx = opened(project)
    make_key(ctx)
    assert retrain("ad_score_predictor", run="r1", ctx=ctx).exit_code == 0
    assert verify(ctx).ok and verify(ctx).signed == verify(ctx).entries > 5   # a run that ends signs by itself
    registry = ModelRegistry(ctx)
    rows = pd.DataFrame({"ctr": range(40)})
    registry.register_model(AdScorePredictor({"n_estimators": 3, "nthread": 1}).fit(rows, pd.Series(range(40), name="score")), "ads", "1.0.0")
    registry.attach("ads@1.0.0", "notes.json", '{"seen": 40}')
    registry.approve("ads@1.0.0", "reviewer@example.com", "read it")
    sign(ctx)
    ctx.close()
    for part in ("home", "configs"): shutil.copytree(project / part, template / part)
    if DATABASE == "postgresql": copy_database(project / "home", template / "home")
    shutil.copytree(keys(project), template / "keys")


def flipped(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1:]


@contextlib.contextmanager
def changed_file(path: Path, data: bytes | None):
    "The file with other bytes, or gone, for the time of a block."
    before = path.read_bytes() if path.exists() else None
    if data is None: path.unlink()
    else: path.write_bytes(data)
    try: yield
    finally:
        if before is None: path.unlink()
        else: path.write_bytes(before)


def rewritten(ctx: Context, rows: list[dict], table: str = "ledger") -> None:
    "Puts other rows in the place of a table's, past everything that would refuse."
    with ctx.store.transaction() as c:
        c.execute(sa.table(table).delete())
        for row in rows: c.execute(sa.table(table, *map(sa.column, row)).insert().values(**row))


def other(value, draw: random.Random):
    "The same field with one bit, one character or everything else."
    if isinstance(value, int): return value + draw.choice((-1, 1, 1000))
    at = draw.randrange(len(value))
    how = draw.randrange(4)
    if how == 0: return value[:at] + value[at + 1:]
    if how == 1: return value[:at] + draw.choice([c for c in "0aZ \u00fc" if c != value[at]]) + value[at + 1:]
    if how == 2: return value[:at] + draw.choice("xyz{") + value[at:]
    return flipped(value.encode(), draw) if draw.random() < .5 else value + " "


def ledger_change(rows: list[dict], draw: random.Random) -> tuple[list[dict], str]:
    "The ledger's rows after one change, and what it was."
    rows, how, at = [dict(r) for r in rows], draw.choice(("field", "field", "field", "remove", "swap", "copy", "cut", "double")), draw.randrange(len(rows))
    if how == "field":
        field = draw.choice([f for f in (*ledger.FIELDS, "hash")])
        rows[at][field] = other(rows[at][field], draw)
        return (rows if len({r["seq"] for r in rows}) == len(rows) else rows[:at] + rows[at + 1:]), f"{field} of {at + 1}"
    if how == "remove": del rows[at]
    if how == "cut": del rows[at:]
    if how == "swap":
        to = (at + 1 + draw.randrange(len(rows) - 1)) % len(rows)
        rows[at]["seq"], rows[to]["seq"] = rows[to]["seq"], rows[at]["seq"]
    if how == "copy": rows[at]["body"] = rows[at - 1]["body"] if rows[at]["body"] != rows[at - 1]["body"] else "{}"
    if how == "double": rows.append({**rows[at], "seq": len(rows) + 1, "hash": "0" * 64})
    return rows, how


def test_a_thousand_changes_are_found_and_none_where_nothing_was_changed(furnished):
    ctx, draw = furnished, random.Random(7)
    home, rows = ctx.settings.home, ctx.store.ledger_rows()
    whole = verify(ctx)
    assert whole.ok and whole.signed == whole.entries == len(rows), whole
    vouched = sorted(ledger.vouched_files(rows))
    sorts = (".ipynb", ".html", "manifest.json", "decisions.json", "decision.json", "run.json", "configs/", "models/")
    kinds = {k: [p for p in vouched if k in p] for k in sorts}
    assert all(kinds.values()) and len(vouched) >= 25, kinds

    for n in range(500):   # the store's ledger
        changed, what = ledger_change(rows, draw)
        rewritten(ctx, changed)
        found = verify(ctx)
        assert not found.ok and found.first_fault and any(w in found.first_fault for w in ("entry", "ledger")), (n, what)
    rewritten(ctx, rows)
    assert verify(ctx) == whole

    for n in range(420):   # files: of each kind as many, whatever their number
        path = home / draw.choice(kinds[draw.choice(sorted(kinds))])
        data, how = path.read_bytes(), draw.randrange(4)
        elsewhere = home / draw.choice([p for p in vouched if (home / p).read_bytes() != data])
        new = (flipped(data, draw), None, data[:draw.randrange(len(data))], elsewhere.read_bytes())[how]
        with changed_file(path, new): found = verify(ctx)
        assert not found.ok and path.relative_to(home).as_posix() in found.first_fault, (n, path, how)
    assert verify(ctx) == whole

    places = sorted({str(Path(p).parent) for p in vouched if p.startswith(("runs/", "models/"))})
    for n in range(80):    # files added where everything is vouched for
        path = home / draw.choice(places) / draw.choice((f"extra-{n}.html", f"{n}.ipynb", f".hidden{n}", f"model{n}.ubj", f"run.log.{n}"))
        with changed_file(path, b"x"): found = verify(ctx)
        assert not found.ok and found.first_fault == f"{path.relative_to(home).as_posix()} was added: no entry vouches for it", n
    assert verify(ctx) == whole


def test_a_yes_that_no_reviewer_gave_and_other_bytes_under_a_version_are_found(furnished):
    ctx = furnished
    with ctx.store.transaction() as c: before = [dict(r._mapping) for r in c.exec_driver_sql("select * from versions")]
    rewritten(ctx, [{**before[0], "digest": "0" * 64}], "versions")
    assert "ads@1.0.0 has another digest" in verify(ctx).first_fault
    rewritten(ctx, before, "versions")
    row = ctx.store.get("approval", "ads@1.0.0")
    ctx.store.put("approval", "ads@1.0.0", {**row.body, "reviewer": "nobody@example.com"}, row.revision)
    assert "approved otherwise" in verify(ctx).first_fault
    ctx.store.put("approval", "ads@2.0.0", {**row.body, "model_id": "ads@2.0.0"}, None)
    ctx.store.put("approval", "ads@1.0.0", row.body, row.revision + 1)
    assert "ads@2.0.0 is approved, and no entry" in verify(ctx).first_fault


def test_a_finished_run_is_sealed_and_one_that_is_under_way_is_not(project):  # noqa: F811
    ctx = opened(project)
    assert retrain("ad_score_predictor", run="r1", until="trigger", ctx=ctx).exit_code == 0
    folder = RunFolder(ctx.settings.home, "r1")
    (folder.path / "products" / "prepare.html").write_text("half a page")
    assert verify(ctx).ok and verify(ctx).key == ""   # under way; and no key, no signature
    (folder.path / "run.json").write_text((folder.path / "run.json").read_text().replace("author@", "nobody@"))
    assert "run.json is not the file" in verify(ctx).first_fault
    (folder.path / "run.json").write_text((folder.path / "run.json").read_text().replace("nobody@", "author@"))
    assert retrain("ad_score_predictor", run="r1", ctx=ctx).exit_code == 0 and verify(ctx).ok
    assert (folder.path / "attempts/1/prepare.html").is_file()   # what lay there is vouched for now, like the rest
    (folder.path / "attempts/1/prepare.html").write_text("another page")
    assert "attempts/1/prepare.html is not the file" in verify(ctx).first_fault
    ctx.close()


def test_a_command_killed_while_it_closed_a_run_is_closed_by_the_next(project, monkeypatch):  # noqa: F811
    from within.runs import walk
    ctx = opened(project)
    class Killed(BaseException): pass
    def die(*_): raise Killed
    assert retrain("ad_score_predictor", run="r1", until="trigger", ctx=ctx).phase is Phase.PENDING
    with monkeypatch.context() as m:
        m.setattr(walk, "vouching", die)
        with pytest.raises(Killed): retrain("ad_score_predictor", run="r1", ctx=ctx)
    assert not entries(ctx, "run", "r1") and verify(ctx).ok   # unfinished is not changed
    assert retrain("ad_score_predictor", run="r1", ctx=ctx).executed == () and len(entries(ctx, "run", "r1")) == 1 and verify(ctx).ok
    assert retrain("ad_score_predictor", run="r1", ctx=ctx).executed == () and len(entries(ctx, "run", "r1")) == 1
    ctx.close()


# Keys and heads

@pytest.fixture
def small_ledger(tmp_path):
    ctx = opened(tmp_path, configs=Path(__file__).parent.parent / "configs")
    for n in range(5): append(ctx, "decision", f"r{n}", {"n": n})
    yield ctx
    ctx.close()


def cut(ctx, last):
    with ctx.store.transaction() as c: c.exec_driver_sql(f"delete from ledger where seq > {last}")


def test_a_cut_end_is_seen_also_when_the_homes_heads_are_cut_too(small_ledger, tmp_path):
    ctx = small_ledger
    make_key(ctx)
    assert sign(ctx).seq == 6 and verify(ctx).signed == 6
    append(ctx, "decision", "late", {})
    assert verify(ctx).ok and "1 later entry is not signed" in verify(ctx).cover
    rows = ctx.store.ledger_rows()
    inside, _ = head_files(ctx, rows[0]["hash"])
    shutil.copytree(tmp_path / "home" / "audit", tmp_path / "kept")
    for last in (5, 3, 1):
        cut(ctx, last)
        assert f"ends at entry {last}" in verify(ctx).first_fault
        inside.unlink(missing_ok=True)
        assert f"ends at entry {last}" in verify(ctx).first_fault   # the head beside the key knows better
    rewritten(ctx, rows)
    assert "lacks heads" in verify(ctx).first_fault or "holds no head" in verify(ctx).first_fault
    shutil.copytree(tmp_path / "kept", tmp_path / "home" / "audit", dirs_exist_ok=True)
    assert verify(ctx).ok


def test_heads_cannot_be_changed_removed_or_reordered(small_ledger):
    ctx = small_ledger
    make_key(ctx)
    for n in range(3):
        sign(ctx)
        append(ctx, "decision", f"more{n}", {})
    rows, draw = ctx.store.ledger_rows(), random.Random(3)
    inside, beside = head_files(ctx, rows[0]["hash"])
    lines = inside.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3 and verify(ctx).ok
    for file in (inside, beside):
        for wrong in (lines[1:], [lines[0], lines[2]], [lines[0], lines[2], lines[1]], [*lines, lines[0]], [b"{}\n"], [b"\xff\n"], [b"[1]\n"]):
            if file == beside and wrong == lines[1:]: continue
            file.write_bytes(b"".join(wrong))
            assert not verify(ctx).ok, wrong
        for _ in range(40):
            data = b"".join(lines)
            at = draw.randrange(len(data) - 1)
            file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1:])
            assert not verify(ctx).ok, at
        file.write_bytes(b"".join(lines))
    assert verify(ctx).ok


def test_a_foreign_key_is_refused_and_a_new_one_on_purpose_is_written_down(small_ledger, tmp_path):
    ctx = small_ledger
    make_key(ctx)
    sign(ctx)
    stranger = opened(tmp_path, configs=ctx.settings.configs, ledger_key=keys(tmp_path) / "another")
    make_key(stranger)
    with pytest.raises(Conflict, match="--new-key"): sign(stranger)
    assert "a foreign key" in verify(stranger).first_fault and verify(ctx).ok
    sign(stranger, new_key=True)
    assert verify(stranger).ok and "a foreign key" in verify(ctx).first_fault   # whoever holds the old key is told
    assert [e.body["replaces"] != "" for e in entries(ctx, "key")] == [False, True]
    stranger.close()


@pytest.mark.parametrize("content", [b"", b"not a key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", b"\xff" * 100])
def test_what_is_no_key_is_said_and_not_shown(small_ledger, content):
    ctx = small_ledger
    place = ctx.settings.ledger_key
    with pytest.raises(InvalidInput, match="audit keygen"): sign(ctx)
    place.parent.mkdir()
    place.write_bytes(content)
    place.chmod(0o600)
    with pytest.raises(InvalidInput, match="does not hold") as said: sign(ctx)
    assert "AAAA" not in str(said.value)
    place.chmod(0o640)
    with pytest.raises(InvalidInput, match="chmod 600"): sign(ctx)


def test_a_key_of_another_kind_and_one_inside_the_home(small_ledger, tmp_path):
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    ctx = small_ledger
    ctx.settings.ledger_key.parent.mkdir()
    ctx.settings.ledger_key.touch(0o600)
    ctx.settings.ledger_key.write_bytes(ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(InvalidInput, match="another kind"): sign(ctx)
    inside = opened(tmp_path, configs=ctx.settings.configs, ledger_key=tmp_path / "home" / "ledger.key")
    with pytest.raises(InvalidInput, match="inside the home"): make_key(inside)
    inside.close()


def within(env, *arguments):
    done = subprocess.run([sys.executable, "-c", "from within.cli import main; main()", *arguments], env=env, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


def test_the_commands(small_ledger, tmp_path):
    ctx = small_ledger
    key = ctx.settings.ledger_key
    env = {**os.environ, "WITHIN_LEDGER_KEY": str(key), "WITHIN_HOME": str(ctx.settings.home), "PYTHONPATH": on_path(ROOT)}
    code, said = within(env, "audit", "sign")
    assert code == 2 and "within audit keygen" in said
    code, said = within(env, "audit", "keygen")
    assert code == 0 and str(key) in said and stat.S_IMODE(key.stat().st_mode) == 0o600
    secret = "".join(key.read_text().splitlines()[1:-1])
    assert within(env, "audit", "sign")[0] == 0
    code, said = within(env, "audit", "verify")
    assert code == 0 and f"signed up to entry 6 by the key {verify(ctx).key}" in said
    assert within(env, "audit", "keygen")[0] == 1
    code, said = within(env, "audit", "export", str(tmp_path / "audit.zip"))
    assert code == 0 and zipfile.is_zipfile(tmp_path / "audit.zip"), said
    for file in (f for f in tmp_path.rglob("*") if f.is_file()): assert secret.encode() not in file.read_bytes(), file


# The archive

def checked(folder: Path, archive: Path, *more: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-I", "-S", "verify.py", str(archive), *more], cwd=folder, capture_output=True, text=True, env={})
    return done.returncode, done.stdout + done.stderr


def test_an_auditor_verifies_without_within(furnished, tmp_path):
    made, desk = export(tmp_path / "audit.zip", furnished), tmp_path / "desk"
    desk.mkdir()
    assert made.audit.ok and not list(tmp_path.glob(".audit.zip*"))
    (desk / "verify.py").write_bytes(zipfile.ZipFile(made.path).read("verify.py"))
    assert len(SCRIPT.splitlines()) <= 50 and os.listdir(desk) == ["verify.py"]
    mark = fingerprint(json.loads(zipfile.ZipFile(made.path).read("heads.jsonl").splitlines()[-1])["public"])
    assert checked(desk, made.path, mark)[0] == 0
    code, said = checked(desk, made.path)
    assert code == 0 and f"{made.audit.entries} entries, {made.files} files; signed up to entry {made.audit.signed} by {mark}" in said
    assert checked(desk, made.path, "0" * 16)[0] == 1 and checked(desk, tmp_path / "nothing.zip")[0] == 1

    script, draw, content = {}, random.Random(5), {}
    exec(SCRIPT.replace('if __name__ == "__main__":', "if False:"), script)   # the same code, without a process for each of a hundred changes
    with zipfile.ZipFile(made.path) as z: content = {n: z.read(n) for n in z.namelist()}
    def judged(content):
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as z:
            for name, data in content.items(): z.writestr(name, data)
        try: return script["fault"](zipfile.ZipFile(tmp_path / "x.zip"), "")
        except Exception as e: return repr(e)
    assert judged(content) is None
    names = [n for n in content if n not in ("README.txt", "verify.py")]
    lines = content["ledger.jsonl"].splitlines(keepends=True)
    wrong = [{n: d for n, d in content.items() if n != "heads.jsonl"}, {**content, "heads.jsonl": b""}, {**content, "ledger.jsonl": b"".join(lines[:-1])},
             {**content, "ledger.jsonl": b"".join([lines[1], lines[0], *lines[2:]])}, {**content, "files/more": b"x"}, {**content, "elsewhere": b"x"}]
    for _ in range(100):
        name = draw.choice([*names, "ledger.jsonl", "heads.jsonl"])
        changed = {**content, name: flipped(content[name].rstrip(b"\n"), draw)}
        wrong.append(changed if draw.random() < .7 or name.endswith("jsonl") else {n: d for n, d in content.items() if n != name})
    for case in wrong: assert judged(case) is not None


def test_an_archive_of_an_unsigned_and_of_a_broken_home(small_ledger, tmp_path):
    ctx = small_ledger
    page = tmp_path / "home" / "page.html"
    page.write_text("passed")
    append(ctx, "decision", "r", {}, files={"page.html": ledger.file_digest(page)})
    made = export(tmp_path / "a.zip", ctx)
    (tmp_path / "verify.py").write_text(SCRIPT)
    assert "not signed" in checked(tmp_path, made.path)[1] and checked(tmp_path, made.path, "0" * 16)[0] == 1   # asked for a signature, there is none
    page.unlink()
    broken = export(tmp_path / "a.zip", ctx)
    assert not broken.audit.ok and "page.html is gone" in checked(tmp_path, broken.path)[1]
    for bad, why in ((tmp_path / "a.tar", "ends with .zip"), (tmp_path / "no" / "a.zip", "no folder"), (tmp_path / "home" / "runs" / "a.zip", "no folder")):
        with pytest.raises(InvalidInput, match=why): export(bad, ctx)
