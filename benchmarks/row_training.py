"""`ModelTrainer.train` against bare `xgboost.train`: same rows, same parameters, the guide's 500 rounds, both report the validation error of every round."""
from benchmarks.harness import SIZE, Row, at_most, in_turns, place

NAME, BAR = "ModelTrainer.train against xgboost.train: time", "<= 1.05 x"
ROWS, HELD, COLUMNS, ROUNDS = int(100_000 * SIZE), int(20_000 * SIZE), 26, max(20, int(500 * SIZE))


def material():
    "Numbers with some missing, and a target that depends on them; drawn once, by a fixed seed."
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS + HELD, COLUMNS))
    y = np.clip(50 + 12 * x[:, 0] + 8 * np.tanh(x[:, 1] * x[:, 2]) + 5 * (x[:, 3] > 0) + rng.normal(scale=6, size=len(x)), 0, 100)
    x[rng.random(x.shape) < 0.03] = np.nan
    frame = pd.DataFrame(x, columns=[f"f{i:02}" for i in range(COLUMNS)]).assign(effectiveness_score=y)
    return frame.iloc[:ROWS], frame.iloc[ROWS:].reset_index(drop=True)


def row() -> Row:
    import xgboost

    from within.ml.ad_score import AdScorePredictor
    from within.ml.training import ModelTrainer

    train, held = material()
    features, target, depth, rate = [c for c in train.columns if c.startswith("f")], "effectiveness_score", 7, 0.05
    with place():
        def ours() -> None:
            model = AdScorePredictor({"n_estimators": ROUNDS, "max_depth": depth, "learning_rate": rate})
            ModelTrainer(model).train(train, held, features, target)

        def peer() -> None:
            rows, judge = (xgboost.DMatrix(part[features], part[target]) for part in (train, held))
            xgboost.train({"objective": "reg:squarederror", "tree_method": "hist", "max_depth": depth, "learning_rate": rate, "seed": 42, "verbosity": 0},
                          rows, ROUNDS, evals=[(rows, "train"), (judge, "validation")], verbose_eval=False)

        mine, bare = in_turns(ours, peer, repeats=5)
    return at_most(NAME, mine, bare, 1.05, why=f"{ROWS:,} rows x {COLUMNS}, {ROUNDS} rounds; ours includes its metrics and the record in MLflow")
