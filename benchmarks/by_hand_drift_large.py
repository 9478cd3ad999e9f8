"""`python -m benchmarks.by_hand_drift_large [ROWS] [COLUMNS]`: drift on 10,000,000 x 200 float32 from Parquet, in bounded memory.

Not a row of the table: it writes 8 GB a side to a temporary folder and takes minutes. Prints seconds and peak resident memory of the process that fits
and compares."""
from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import ROOT, machine, seconds

PART = 250_000      # rows a file


def write(folder: Path, rows: int, columns: int, shift: float, seed: int) -> None:
    "Parts of normal numbers, every tenth column moved by `shift`."
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(seed)
    folder.mkdir()
    for start in range(0, rows, PART):
        n = min(PART, rows - start)
        made = {f"f{i:03}": rng.standard_normal(n, dtype=np.float32) + np.float32(shift if i % 10 == 0 else 0) for i in range(columns)}
        pq.write_table(pa.table(made), folder / f"part-{start // PART:04}.parquet", compression="none", row_group_size=65_536, use_dictionary=False)


def measured(folder: Path) -> dict:
    "Fit on `before`, compare `after`; to be called in a process of its own."
    import resource

    from within.drift import fit_reference

    kept: dict = {}
    fit = seconds(lambda: kept.update(reference=fit_reference(folder / "before")))
    compare = seconds(lambda: kept.update(analysis=kept["reference"].compare(folder / "after")))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {"fit s": round(fit, 1), "compare s": round(compare, 1), "peak MiB": round(peak), "verdict": kept["analysis"].verdict.reason,
            "reference bytes": len(kept["reference"].to_json())}


def main(words: list[str]) -> None:
    if words[:1] == ["--measure"]: return print(json.dumps(measured(Path(words[1]))))
    rows, columns = (int(words[i]) if len(words) > i else default for i, default in enumerate((10_000_000, 200)))
    with tempfile.TemporaryDirectory(prefix="within-large-") as name:
        folder = Path(name)
        wrote = seconds(lambda: [write(folder / part, rows, columns, shift, seed) for part, shift, seed in (("before", 0.0, 1), ("after", 1.5, 2))])
        size = sum(f.stat().st_size for f in folder.rglob("*.parquet")) / 2**30
        print(f"wrote 2 x {rows:,} x {columns} float32, {size:.1f} GiB, in {wrote:.0f} s", flush=True)
        again = [sys.executable, "-m", "benchmarks.by_hand_drift_large", "--measure", name]
        done = subprocess.run(again, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        print(json.dumps({**machine(), **json.loads(done.stdout.strip().splitlines()[-1])}, indent=1))


if __name__ == "__main__": main(sys.argv[1:])
