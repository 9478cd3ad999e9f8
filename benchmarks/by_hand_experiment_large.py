"""`python -m benchmarks.by_hand_experiment_large [EVENTS]`: an experiment of 100,000,000 events from Parquet, with its daily trajectory.

Not a row of the table: it writes about 1 GB to a temporary folder in parts. Prints seconds, events a second
and the peak resident memory of the process that analyses."""
from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import ROOT, machine, seconds
from benchmarks.row_experiment import write

def measured(folder: Path) -> dict:
    "Analyse once; to be called in a process of its own."
    import resource

    from within.ml.experimentation import analyze

    kept: dict = {}
    took = seconds(lambda: kept.update(result=analyze(folder, "unit", "variant", [{"name": "bought", "of": "total"}], time="day")))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {"analyze s": round(took, 1), "peak MiB": round(peak), "reason": kept["result"].reason}


def main(words: list[str]) -> None:
    if words[:1] == ["--measure"]: return print(json.dumps(measured(Path(words[1]))))
    events = int(words[0]) if words else 100_000_000
    with tempfile.TemporaryDirectory(prefix="within-large-") as name:
        wrote = seconds(lambda: write(Path(name), events))
        print(f"wrote {events:,} events in {wrote:.0f} s", flush=True)
        again = [sys.executable, "-m", "benchmarks.by_hand_experiment_large", "--measure", name]
        done = subprocess.run(again, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
        print(json.dumps({**machine(), "events/s": round(events / found["analyze s"]), **found}, indent=1))


if __name__ == "__main__": main(sys.argv[1:])
