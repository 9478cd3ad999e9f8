"""Backup, restore and the doctor: while others write, when somebody changed the copy, when the machine is not well."""
import io
import json
import os
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from within import ledger
from within.backups import MANIFEST, back_up, restore
from within.clock import FrozenClock
from within.context import Context
from within.doctor import examine, locked, packages, permissions
from within.errors import InvalidInput
from within.files import file_digest
from within.verdicts import Phase

def published(ctx: Context, run: str, text: str = "a report") -> None:
    "A file that the ledger vouches for."
    file = ctx.path("runs", run, "index.html")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    ledger.append(ctx, "decision", run, {"reason": "because"}, files={f"runs/{run}/index.html": file_digest(file)})


@pytest.fixture
def ctx(tmp_path):
    made = Context.open(home=tmp_path / "home", clock=FrozenClock("2024-03-01"), user="ana")
    for i in range(5): published(made, f"r{i}")
    log = made.path("log", "production", "2024-03-01.jsonl")
    log.parent.mkdir(parents=True)
    log.write_bytes(b'{"id": "a"}\n{"id": "b"}\n{"id": "c')     # a line that is being written
    made.path("serving").mkdir()
    made.path("serving", "token").write_text("secret-of-this-machine")
    return made


def test_what_comes_back_is_what_was_there(ctx, tmp_path):
    made = back_up(tmp_path / "b" / "a.tar", ctx=ctx)
    again = restore(made.path, tmp_path / "new")
    there = Context.open(home=tmp_path / "new", clock=FrozenClock("2024-03-01"))
    assert ledger.verify(there).ok and ledger.verify(there).head == ledger.verify(ctx).head == again.head
    assert (tmp_path / "new/log/production/2024-03-01.jsonl").read_bytes() == b'{"id": "a"}\n{"id": "b"}\n'
    assert not (tmp_path / "new/serving").exists() and b"secret-of-this-machine" not in made.path.read_bytes()
    assert made.path.stat().st_mode & 0o777 == 0o600


WRITER = """
import sys
from within import ledger
from within.clock import FrozenClock
from within.context import Context
from within.files import file_digest
ctx, i = Context.open(home=sys.argv[1], clock=FrozenClock("2024-03-02")), 0
print("ready", flush=True)
while True:
    file = ctx.path("runs", f"w{i}", "index.html")
    file.parent.mkdir(parents=True)
    file.write_text(str(i) * 1000)
    ledger.append(ctx, "decision", f"w{i}", {}, files={f"runs/w{i}/index.html": file_digest(file)})
    i += 1
"""


def test_a_backup_of_a_busy_home_is_one_consistent_moment(ctx, tmp_path):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(ctx.settings.home)], stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout.readline() == "ready\n"
        for i in range(4):
            made = back_up(tmp_path / f"{i}.tar", ctx=ctx)
            assert restore(made.path, tmp_path / f"new{i}").entries == made.entries      # `restore` verifies the whole ledger
    finally:
        writer.kill()
        writer.wait(10)
        writer.stdout.close()
    assert made.entries > 5


def test_every_change_of_a_copy_is_found(ctx, tmp_path):
    good, rng = back_up(tmp_path / "a.tar", ctx=ctx).path.read_bytes(), random.Random(0)
    with tarfile.open(tmp_path / "a.tar") as archive:
        places = [(m.name, m.offset_data + rng.randrange(m.size)) for m in archive.getmembers() for _ in range(8) if m.name != MANIFEST and m.size]
    changed = tmp_path / "changed.tar"
    for name, place in places:
        changed.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1:])
        with pytest.raises(InvalidInput, match=rf"{name}.*changed afterwards"): restore(changed, tmp_path / "new")
    for length in (0, 100, len(good) // 2, len(good) - 11_000):
        changed.write_bytes(good[:length])
        with pytest.raises(InvalidInput): restore(changed, tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar", "changed.tar", "home"]     # nothing half-made is left


def test_a_consistent_lie_is_found_by_the_ledger(ctx, tmp_path):
    "Somebody changes a report and writes its digest into the archive's own list: the ledger still knows better."
    with tarfile.open(back_up(tmp_path / "a.tar", ctx=ctx).path) as archive: members = {m.name: archive.extractfile(m).read() for m in archive.getmembers()}
    members["runs/r1/index.html"] = b"a much better report"
    about = json.loads(members.pop(MANIFEST))
    (tmp_path / "x").write_bytes(members["runs/r1/index.html"])
    about["files"]["runs/r1/index.html"] = file_digest(tmp_path / "x")
    with tarfile.open(tmp_path / "lie.tar", "w") as archive:
        for name, data in {**members, MANIFEST: json.dumps(about).encode()}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    with pytest.raises(InvalidInput, match=r"does not verify: runs/r1/index\.html"): restore(tmp_path / "lie.tar", tmp_path / "new")


@pytest.mark.parametrize("kind", ["climbs", "absolute", "link", "device", "unlisted"])
def test_hostile_archives_write_nothing(tmp_path, kind):
    member = tarfile.TarInfo({"climbs": "../evil", "absolute": "/evil", "unlisted": "extra"}.get(kind, "inside"))
    if kind == "link": member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    if kind == "device": member.type = tarfile.CHRTYPE
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        archive.addfile(member, io.BytesIO(b""))
        about = json.dumps({"files": {}, "entries": 0, "head": "", "database": "elsewhere"}).encode()
        listed = tarfile.TarInfo(MANIFEST)
        listed.size = len(about)
        archive.addfile(listed, io.BytesIO(about))
    with pytest.raises(InvalidInput): restore(tmp_path / "evil.tar", tmp_path / "deep" / "new")
    assert not (tmp_path / "evil").exists() and list((tmp_path / "deep").iterdir()) == []


def test_places_that_cannot_be(ctx, tmp_path):
    back_up(tmp_path / "a.tar", ctx=ctx)
    with pytest.raises(InvalidInput, match="exists already"): back_up(tmp_path / "a.tar", ctx=ctx)
    with pytest.raises(InvalidInput, match="lies in the home"): back_up(ctx.path("a.tar"), ctx=ctx)
    with pytest.raises(InvalidInput, match="is not empty"): restore(tmp_path / "a.tar", ctx.settings.home)
    with pytest.raises(InvalidInput, match="cannot read"): restore(tmp_path / "none.tar", tmp_path / "new")
    ctx.path("runs", "r1", "index.html").write_text("changed")
    with pytest.raises(InvalidInput, match="does not verify"): back_up(tmp_path / "b.tar", ctx=ctx)
    assert not (tmp_path / "b.tar").exists()


# ---------------------------------------------------------------- the doctor

def test_each_illness_is_named_with_what_to_do(ctx, monkeypatch, tmp_path):
    def phases(**env: str) -> dict: return {v.gate.partition(".")[2]: v for v in examine(ctx)}
    assert phases()["store"].passed and phases()["home"].passed
    os.chmod(ctx.settings.home, 0o770)
    assert permissions(ctx).phase is Phase.FAILED and "chmod 700" in permissions(ctx).reason
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    assert phases()["telemetry"].phase is Phase.FAILED
    (tmp_path / "requirements.lock").write_text("numpy==0.0.1\nno-such-thing==1.0\n")
    told = packages(tmp_path)
    assert told.figure == 2 and "no-such-thing missing instead of 1.0" in told.reason
    early = Context.open(home=ctx.settings.home, clock=FrozenClock("2020-01-01"))
    assert {v.gate: v for v in examine(early)}["doctor.clock"].phase is Phase.FAILED


def test_the_real_lock_is_read_whole():
    lock = Path(__file__).resolve().parent.parent / "requirements.lock"
    assert len(locked(lock)) == sum("==" in line and not line.startswith("#") for line in lock.read_text().splitlines())


def test_the_command_says_so_by_its_exit_code(ctx):
    from within.cli import app
    sick = CliRunner().invoke(app, ["--home", str(ctx.settings.home), "doctor"], env={"MLFLOW_DISABLE_TELEMETRY": "false"})
    assert sick.exit_code == 1 and "telemetry" in sick.output
