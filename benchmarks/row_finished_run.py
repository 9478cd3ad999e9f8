"""`within retrain MODEL --run ID` of a run that is finished: every digest is checked, nothing is executed."""
import os
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.harness import ROOT, HardwareAbsent, Row, absolute, seconds

NAME, BAR = "--run ID of a finished run", "<= 6 s"
WITHIN = str(Path(sys.executable).parent / "within")


def finished(home: Path) -> tuple[str, str] | None:
    "A model and the id of a run of it that passed to the end, newest first."
    from within.context import Context

    if not (home / "within.db").exists(): return None
    ctx = Context.open(home=home)
    try: passed = [r for r in ctx.store.find("run") if r.body.get("phase") == "passed"]
    finally: ctx.close()
    return (passed[-1].body["model"], passed[-1].id) if passed else None


def homes() -> list[Path]:
    "Where `make run` leaves its runs."
    home = Path(os.environ.get("WITHIN_HOME") or ROOT / ".within")
    return [home, *sorted((p for p in [*home.parent.glob(f"{home.name}*"), *home.glob("demo-*")] if p.is_dir()), reverse=True)]


def row() -> Row:
    place = next(((home, found) for home in homes() if (found := finished(home))), None)
    if place is None: raise HardwareAbsent("no run has passed in this checkout: `make run` first")
    home, (model, run) = place
    variables = os.environ | {"WITHIN_HOME": str(home), "WITHIN_CLOCK": "replay"}

    def again() -> None:
        done = subprocess.run([WITHIN, "retrain", model, "--run", run], env=variables, capture_output=True, text=True)
        if done.returncode: raise RuntimeError(f"exit {done.returncode}: {done.stderr[-300:]}")
    again()
    return absolute(NAME, statistics.median(seconds(again) for _ in range(5)), 6)
