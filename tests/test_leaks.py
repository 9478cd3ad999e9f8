"""The fixtures keep their promise: a copy of the world is independent, and what a test leaves running is named, ended and reported as its failure."""
import os
import subprocess
import sys

import psutil
import pytest
from conftest import assert_nothing_runs, living

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]


def test_leak_is_named_and_ended(tmp_path):
    left = subprocess.Popen(SLEEPER, env=os.environ | {"WITHIN_HOME": str(tmp_path)}, start_new_session=True)
    other = subprocess.Popen(SLEEPER, env=os.environ | {"WITHIN_HOME": str(tmp_path / "another")}, start_new_session=True)
    try:
        assert [p.pid for p in living(tmp_path)] == [left.pid]
        with pytest.raises(AssertionError, match=f"still running: {left.pid} "): assert_nothing_runs(tmp_path, patience=0.3)
        left.wait(5)
        assert_nothing_runs(tmp_path, patience=0)
        assert psutil.pid_exists(other.pid), "only processes of this home are ended"
    finally:
        for process in (left, other):
            process.kill()
            process.wait()


def test_copies_are_independent(ctx, world_home):
    ctx.store.put("event", "only-here", {"why": "a test"}, None)
    (ctx.path("warehouse") / "scratch").mkdir()
    assert ctx.settings.home != world_home and not (world_home / "warehouse" / "scratch").exists()


def test_next_copy_knows_nothing_of_the_one_before(ctx, world_home):
    assert ctx.store.get("event", "only-here") is None and ctx.is_replay
    assert ctx.now().isoformat() == "2023-10-01T00:00:00+00:00"
    files = [p for p in ctx.settings.home.rglob("*") if p.is_file() and p.suffix in (".db", ".yaml", ".json")]
    assert files and not [p.name for p in files if str(world_home).encode() in p.read_bytes()], "a copy must not point back at what it was copied from"
