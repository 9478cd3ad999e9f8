"""Peak memory of the same comparison from two Parquet files, each side in a process of its own."""
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import ROOT, Row
from benchmarks.row_drift import COLUMNS, ROWS

NAME, BAR = "drift on 1,000,000 x 50 against Evidently's DataDriftPreset: peak memory", "<= 1/3 x"

WRITE = """
import sys
from benchmarks.row_drift import material
for frame, name in zip(material(), ("before", "after")): frame.to_parquet(f"{sys.argv[1]}/{name}.parquet", row_group_size=131_072)
"""
OURS = """
import sys
from within.drift import fit_reference
fit_reference(f"{sys.argv[1]}/before.parquet").compare(f"{sys.argv[1]}/after.parquet")
"""
PEER = """
import os, sys
os.environ |= {"EVIDENTLY_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "true"}
import pandas as pd
from evidently import Report
from evidently.presets import DataDriftPreset
before, after = (pd.read_parquet(f"{sys.argv[1]}/{name}.parquet") for name in ("before", "after"))
Report([DataDriftPreset(method="jensenshannon")]).run(after, before).dict()
"""
PEAK = "\nimport resource\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024))\n"


def alone(script: str, folder: Path) -> int:
    "Peak resident bytes of a script in a fresh interpreter; this one stays small, because a child starts with its parent's peak."
    done = subprocess.run([sys.executable, "-c", script + PEAK, str(folder)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode: raise RuntimeError(done.stderr.strip()[-500:])
    return int(done.stdout.strip().splitlines()[-1])


def row() -> Row:
    with tempfile.TemporaryDirectory(prefix="within-bench-") as folder:
        alone(WRITE, Path(folder))
        mine, theirs = alone(OURS, Path(folder)), alone(PEER, Path(folder))
    ratio, why = mine / theirs, f"{ROWS:,} rows x {COLUMNS} on either side, read from Parquet; peak resident memory of the process"
    return Row(NAME, round(mine / 2**20), round(theirs / 2**20), "MiB", round(ratio, 3), BAR, ratio <= 1 / 3, why)
