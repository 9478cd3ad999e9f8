"""Drift on 1,000,000 x 50 against Evidently's `DataDriftPreset` with jensenshannon.

Both get the same two frames; ours fits the reference, counts both, and gives intervals."""
import os

from benchmarks.harness import SIZE, Row, in_turns

NAME, BAR = "drift on 1,000,000 x 50 against Evidently's DataDriftPreset: time", ">= 30 x faster"
ROWS, COLUMNS = int(1_000_000 * SIZE), 50


def material(rows: int = ROWS, columns: int = COLUMNS):
    "Two frames of numbers, every fifth column moved a little, some values missing; drawn once, by a fixed seed."
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(0)
    frames = []
    for moved in (0.0, 0.3):
        x = rng.normal(size=(rows, columns))
        x[:, ::5] += moved
        x[:, 1::10] = np.exp(x[:, 1::10])
        x[rng.random(rows) < 0.02, 2] = np.nan
        frames.append(pd.DataFrame(x, columns=[f"f{i:02}" for i in range(columns)]))
    return frames


def row() -> Row:
    os.environ |= {"EVIDENTLY_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "true"}
    from evidently import Report
    from evidently.presets import DataDriftPreset

    from within.drift import fit_reference

    before, after = material()

    def ours() -> None: fit_reference(before).compare(after)

    def peer() -> None: Report([DataDriftPreset(method="jensenshannon")]).run(after, before).dict()

    ours()
    mine, theirs = in_turns(ours, peer, repeats=2, warm=0)
    why = f"{ROWS:,} rows x {COLUMNS} on either side, frames in memory; ratio is peer / ours"
    return Row(NAME, round(mine, 3), round(theirs, 3), "s", round(theirs / mine, 1), BAR, theirs / mine >= 30, why)
