"""An experiment of 100,000,000 events in Parquet with its daily trajectory, against pandas + SciPy at a size that pandas holds.

Both go from the files to the difference of two arms and a test of it on each of fourteen days, each day on the units' totals until then. Ours gives bounds
and p values that hold on every day, checks the sample ratio of each day, gives each day's effect alone, and finds units in two arms; the other side does
not."""
import tempfile
from pathlib import Path

from benchmarks.harness import SIZE, Row, in_turns

NAME, BAR = "an experiment of events from Parquet with its daily trajectory against pandas + SciPy: events/s", ">= 20 x events/s"
EVENTS, HELD, DAYS, PART = int(100_000_000 * SIZE), int(10_000_000 * SIZE), 14, 5_000_000


def write(folder: Path, events: int, seed: int = 0) -> None:
    "Parts of events: a unit has ten of them on average, on any days, and keeps its arm."
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(seed)
    for start in range(0, events, PART):
        n = min(PART, events - start)
        unit = rng.integers(0, max(1, events // 10), n)
        treated = (unit * 2_654_435_761 >> 7) & 1
        bought = (rng.random(n) < 0.10 + 0.002 * treated).astype(np.int8)
        arm = pa.DictionaryArray.from_arrays(pa.array(treated.astype(np.int8)), pa.array(["control", "treatment"]))
        columns = {"unit": unit, "variant": arm.cast(pa.string()), "day": rng.integers(0, DAYS, n).astype(np.int16), "bought": bought}
        pq.write_table(pa.table(columns), folder / f"part-{start // PART:04}.parquet")


def by_hand(folder: Path) -> list[tuple[float, float]]:
    "Each day: rows until then, a total a unit, Welch's test of the arms; (difference, p value)."
    import pandas as pd
    from scipy.stats import ttest_ind

    events, out = pd.read_parquet(folder), []
    for day in range(DAYS):
        total = events[events["day"] <= day].groupby(["variant", "unit"])["bought"].sum()
        found = ttest_ind(total["treatment"].to_numpy(float), total["control"].to_numpy(float), equal_var=False)
        out.append((total["treatment"].mean() - total["control"].mean(), float(found.pvalue)))
    return out


def row() -> Row:
    from within.ml.experimentation import analyze

    with tempfile.TemporaryDirectory(prefix="within-bench-") as name:
        large, held, kept = Path(name) / "large", Path(name) / "held", {}
        for folder, events in ((large, EVENTS), (held, HELD)):
            folder.mkdir()
            write(folder, events)

        def analysed(folder: Path): return analyze(folder, "unit", "variant", [{"name": "bought", "of": "total"}], time="day").trajectory["effect"]

        def ours() -> None: kept["ours"] = analysed(large)

        def peer() -> None: kept["peer"] = [d for d, _p in by_hand(held)]

        mine, theirs = in_turns(ours, peer, repeats=2, warm=0)
        off = max(abs(a - b) for a, b in zip(analysed(held), kept["peer"], strict=True))
    if off > 1e-9: return Row(NAME, None, None, "events/s", None, BAR, False, f"the two differ by {off:g}")
    ratio = (EVENTS / mine) / (HELD / theirs)
    why = (f"{EVENTS:,} events of ours in {mine:.1f} s, {HELD:,} of pandas in {theirs:.1f} s, {DAYS} days, file to answer; ratio is ours / peer, in events/s; "
           "on the smaller files the differences of all days agree within 1e-9")
    return Row(NAME, round(EVENTS / mine), round(HELD / theirs), "events/s", round(ratio, 1), BAR, ratio >= 20, why)
