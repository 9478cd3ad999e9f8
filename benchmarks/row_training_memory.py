"""Peak memory of `ModelTrainer.train` against bare `xgboost.train`, each in a process of its own, from the frame to the fitted model."""
import statistics
import subprocess
import sys

from benchmarks.harness import ROOT, SIZE, Row, at_most, place

NAME, BAR = "ModelTrainer.train against xgboost.train: peak memory", "<= 1.3 x"
ROWS, ROUNDS = int(1_000_000 * SIZE), 10

MATERIAL = f"""
import resource
import numpy as np, pandas as pd
rng = np.random.default_rng(0)
frame = pd.DataFrame(rng.normal(size=({ROWS}, 26)), columns=[f"f{{i:02}}" for i in range(26)])
frame["effectiveness_score"] = np.clip(50 + 12 * frame.f00 + rng.normal(scale=6, size={ROWS}), 0, 100)
features, target, cut = [c for c in frame.columns if c.startswith("f")], "effectiveness_score", int({ROWS} * 0.85)
train, held = frame.iloc[:cut], frame.iloc[cut:].reset_index(drop=True)
del frame
"""
OURS = MATERIAL + f"""
from within.ml.ad_score import AdScorePredictor
from within.ml.training import ModelTrainer
ModelTrainer(AdScorePredictor({{"n_estimators": {ROUNDS}, "max_depth": 7}})).train(train, held, features, target, streaming=False)
"""
PEER = MATERIAL + f"""
import xgboost
parts = [(xgboost.DMatrix(part[features], part[target]), name) for part, name in ((train, "train"), (held, "validation"))]
xgboost.train({{"tree_method": "hist", "max_depth": 7, "learning_rate": 0.05, "verbosity": 0}}, parts[0][0], {ROUNDS}, evals=parts, verbose_eval=False)
"""
TOLD = "\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)\n"


def peak(script: str) -> float:
    "MiB at most."
    done = subprocess.run([sys.executable, "-c", script + TOLD], capture_output=True, text=True, cwd=ROOT, timeout=900)
    if done.returncode: raise RuntimeError(done.stderr[-2000:])
    return float(done.stdout.split()[-1])


def row() -> Row:
    with place(): sides = [[peak(script) for script in (OURS, PEER)] for _ in range(3)]
    mine, bare = (statistics.median(side) for side in zip(*sides, strict=True))
    return at_most(NAME, mine, bare, 1.3, "MiB", why=f"{ROWS:,} rows x 26, {ROUNDS} rounds; the frame and all imports are in both figures, MLflow's in ours")
