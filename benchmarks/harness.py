"""What every row needs: timing two sides in turns, a place to run, a small furnished world."""
from __future__ import annotations

import contextlib
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIZE = float(os.environ.get("WITHIN_BENCH_SIZE", "1"))   # a fraction, for trying a row out; results at another size than 1 are no results


class HardwareAbsent(Exception):
    "This machine cannot measure the row; its `ok` is null, and the message says what is absent."


@dataclass(frozen=True)
class Row:
    name: str                  # what was measured, as in the design's table
    ours: float | None         # median
    peer: float | None         # median of the other side, in the same run; None for an absolute budget
    unit: str
    ratio: float | None        # ours / peer, or as the bar says
    bar: str                   # e.g. "<= 0.4 s"
    ok: bool | None            # None: could not be measured here
    why: str = ""              # when not ok, or what the reader must know

    def to_dict(self) -> dict: return {k: v for k, v in asdict(self).items() if k != "why" or v}


def absolute(name: str, ours: float, most: float, unit: str = "s", why: str = "") -> Row:
    "A budget in its own unit."
    return Row(name, round(ours, 3), None, unit, None, f"<= {most:g} {unit}", ours <= most, why)


def at_most(name: str, ours: float, peer: float, most: float, unit: str = "s", why: str = "") -> Row:
    "A budget as a ratio, ours / peer, of at most `most`."
    return Row(name, round(ours, 3), round(peer, 3), unit, round(ours / peer, 3), f"<= {most:g} x", ours / peer <= most, why)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def in_turns(*sides: Callable[[], object], repeats: int = 5, warm: int = 1) -> list[float]:
    "Median seconds of each side; the sides alternate and swap who goes first, so that a slow minute of the machine is shared."
    taken: list[list[float]] = [[] for _ in sides]
    for turn in range(warm + repeats):
        order = range(len(sides)) if turn % 2 else reversed(range(len(sides)))
        for i in order:
            took = seconds(sides[i])
            if turn >= warm: taken[i].append(took)
    return [statistics.median(t) for t in taken]


@contextlib.contextmanager
def place(**variables: str) -> Iterator[Path]:
    "A home in a temporary folder, on the replay clock, gone afterwards."
    folder = Path(tempfile.mkdtemp(prefix="within-bench-"))
    given = {"WITHIN_HOME": str(folder / "home"), "WITHIN_CLOCK": "replay", **variables}
    before = {k: os.environ.get(k) for k in given}
    os.environ.update(given)
    try: yield folder / "home"
    finally:
        for k, v in before.items():
            if v is None: os.environ.pop(k, None)
            else: os.environ[k] = v
        shutil.rmtree(folder, ignore_errors=True)


def machine() -> dict:
    "What the figures were taken on."
    model, memory = platform.processor(), None
    with contextlib.suppress(OSError):
        model = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), model)
        memory = round(int(next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal")).split()[1]) / 2**20, 1)
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "memory_gib": memory, "system": platform.platform(), "python": platform.python_version()}
