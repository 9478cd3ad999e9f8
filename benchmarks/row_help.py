"""`within --help` from a cold interpreter: what a person waits before anything is said."""
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.harness import Row, absolute, seconds

NAME, BAR = "within --help", "<= 0.4 s"
COMMAND = [str(Path(sys.executable).parent / "within"), "--help"]


def row() -> Row:
    def ask() -> None: subprocess.run(COMMAND, check=True, capture_output=True)
    ask()   # once for the file cache
    return absolute(NAME, statistics.median(seconds(ask) for _ in range(5)), 0.4)
