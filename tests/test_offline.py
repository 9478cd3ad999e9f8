"""Set-up and command in a network namespace that has nothing but loopback: what is current stays current, and nothing is asked of anybody."""
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
INSIDE = "ip link set lo up && exec "

pytestmark = pytest.mark.slow


def offline(*command: str, **env: str) -> subprocess.CompletedProcess:
    "Runs a command where no interface but loopback exists."
    words = ["unshare", "-n", "sh", "-c", INSIDE + '"$@"', "sh", *command]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, env=os.environ | env)


@pytest.fixture(autouse=True)
def needs_a_namespace():
    if not shutil.which("unshare") or not shutil.which("ip"): pytest.skip("no unshare or ip here")
    if offline("true").returncode: pytest.skip("no right to make a network namespace here")


def test_there_is_no_network_in_there():
    probe = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('192.0.2.1', 9))"
    assert "unreachable" in offline(str(ROOT / ".venv/bin/python"), "-c", probe).stderr


def test_setup_is_current_and_says_nothing():
    if not any((ROOT / ".venv").glob(".stamp-*")): pytest.skip("set up without make: there is no stamp to look at")
    done = offline("make", "setup")
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stdout + done.stderr


def test_help_and_check_need_no_network(tmp_path):
    done = offline(str(ROOT / ".venv/bin/within"), "--help", WITHIN_HOME=str(tmp_path))
    assert done.returncode == 0 and "retrain" in done.stdout, done.stderr


def test_small_world_is_furnished_without_network(tmp_path, small_configs):
    code = "from within.world import bootstrap; bootstrap('2023-10-01', scale=0.02)"
    done = offline(str(ROOT / ".venv/bin/python"), "-c", code, WITHIN_HOME=str(tmp_path / "home"), WITHIN_CONFIGS=str(small_configs), WITHIN_CLOCK="replay")
    assert done.returncode == 0, done.stderr[-3000:]
