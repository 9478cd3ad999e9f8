"""Data-parallel training by two workers of one thread each against one worker of one thread: the same job, rows a second while it trains."""
import os
import statistics
from pathlib import Path

from benchmarks.harness import SIZE, HardwareAbsent, Row, place

NAME, BAR = "DistributedTrainer, 2 workers against 1: rows/s", "> 1 x"
STEPS, REPEATS = max(4, int(12 * SIZE)), 2
CONFIG = """
model: ad_sentiment_analyzer
parameters: {architecture: transformer}
loop: {batch_size: 32, micro_batch: 8, max_steps: STEPS, learning_rate: 0.0001}
validate_every: 1000
validation_rows: 32
checkpoint_every: 1000
"""


def texts(folder: Path, rows: int) -> str:
    import numpy as np
    import pandas as pd

    rng, words = np.random.default_rng(0), "these shoes are great and fit well but the strap broke after two weeks so I want my money back".split()
    said = [" ".join(rng.choice(words, rng.integers(10, 30))) for _ in range(rows)]
    frame = pd.DataFrame({"text": said, "label": rng.choice(["positive", "negative"], rows)})
    folder.mkdir()
    frame.to_parquet(folder / "part-0.parquet", index=False)
    return str(folder)


def row() -> Row:
    if len(os.sched_getaffinity(0)) < 2: raise HardwareAbsent("two workers need two cores")
    from within.context import Context
    from within.ml.distributed import DistributedTrainer

    with place(WITHIN_CLOCK="system") as home:
        home.mkdir(parents=True, exist_ok=True)
        train, held = texts(home / "train", 1200), texts(home / "val", 64)
        (home / "ddp.yml").write_text(CONFIG.replace("STEPS", str(STEPS)))
        ctx = Context.open(home=home)

        def speed(workers: int) -> float:
            trainer = DistributedTrainer(workers, ctx=ctx)
            return trainer.monitor(trainer.train("AdSentimentAnalyzer", train, held, str(home / "ddp.yml")).id, verbose=False).rows_per_second

        found = {1: [], 2: []}
        for turn in range(REPEATS):
            for workers in ((1, 2) if turn % 2 == 0 else (2, 1)): found[workers].append(speed(workers))
        ctx.close()
    two, one = (statistics.median(found[w]) for w in (2, 1))
    return Row(NAME, round(two, 2), round(one, 2), "rows/s", round(two / one, 3), BAR, two > one,
               why=f"the packaged encoder, float32, {STEPS} steps of 32 texts, 1 thread a worker, gloo on loopback; median of the steps, {REPEATS} jobs each")
