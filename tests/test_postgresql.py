"""The parts that keep state and ledger, on a real PostgreSQL server: the same tests, each home with a database of its own."""
import os
import re
import subprocess
import sys

import pytest
from conftest import DATABASE, ROOT, variables
from postgresql import needs_postgres

PARTS = ("ground", "operations", "registry")   # WITHIN_TEST_DATABASE=postgresql pytest tests/test_x.py runs any other


@needs_postgres
@pytest.mark.slow
@pytest.mark.skipif(DATABASE == "postgresql", reason="these tests run there already")
@pytest.mark.parametrize("part", PARTS)
def test_the_same_tests_pass_on_postgresql(part):
    with variables(WITHIN_TEST_DATABASE="postgresql"):
        done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "not slow", f"tests/test_{part}.py"], cwd=ROOT, env=dict(os.environ),
                              capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert re.search(r"on postgresql: [1-9]\d* homes", done.stdout)


def test_an_unknown_engine_is_refused():
    with variables(WITHIN_TEST_DATABASE="oracle"):
        done = subprocess.run([sys.executable, "-m", "pytest", "-q", "tests/test_postgresql.py"], cwd=ROOT, env=dict(os.environ), capture_output=True,
                              text=True, timeout=300)
    assert done.returncode == 4 and "write sqlite or postgresql" in done.stderr
