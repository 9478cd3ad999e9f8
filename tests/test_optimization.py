"""Searches: the guide's block, repeatability, repeats, plateaus, failures, pruning."""
from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import mean_squared_error

from within.errors import InvalidInput, NotBuilt
from within.ml.distributed import DistributedTrainer
from within.ml.models import AdScorePredictor
from within.ml.optimization import HyperparameterOptimizer, cross_validated, folds_of

SPACE = {"max_depth": [3, 5, 7, 9], "learning_rate": [0.01, 0.05, 0.1, 0.2], "n_estimators": [100, 200, 500], "subsample": [0.8, 0.9, 1.0]}


def bowl(params, data=None):
    return (params["max_depth"] - 7) ** 2 + 40 * abs(params["learning_rate"] - 0.1) + abs(params["n_estimators"] - 200) / 100 + 5 * abs(
        params["subsample"] - 0.9)


def points(result) -> list[str]: return [json.dumps(t["params"], sort_keys=True) for t in result.trials]


def test_the_guides_block():
    draw = np.random.default_rng(0)
    x = pd.DataFrame({"a": draw.normal(size=300), "b": draw.choice(["x", "y"], 300)})
    y = (50 + 5 * x.a + draw.normal(size=300)).rename("effectiveness_score")

    def evaluate_model(params, data):
        model = AdScorePredictor(config=params)
        model.fit(data["train_x"], data["train_y"])
        predictions = model.predict(data["val_x"])
        return mean_squared_error(data["val_y"], predictions)

    space = {**SPACE, "n_estimators": [5, 10, 20]}
    optimizer = HyperparameterOptimizer(parameter_space=space, evaluation_function=evaluate_model,
                                        optimization_metric="minimize_mse", max_evaluations=10, strategy="bayesian")
    result = optimizer.optimize(data={"train_x": x[:200], "train_y": y[:200], "val_x": x[200:], "val_y": y[200:]})
    assert set(result.best_params) == set(space) and result.best_score == min(t["score"] for t in result.trials) and result.evaluations == 10


@pytest.mark.parametrize("strategy", ["bayesian", "random", "grid"])
def test_same_seed_same_trials_none_twice(strategy):
    one, two, other = (HyperparameterOptimizer(SPACE, bowl, "minimize_it", 30, strategy, seed=s).optimize() for s in (1, 1, 2))
    assert points(one) == points(two) != points(other) and len(set(points(one))) == one.evaluations <= 30


@pytest.mark.parametrize("strategy", ["bayesian", "random", "grid"])
def test_small_spaces_are_finished_and_no_point_repeated(strategy):
    calls = []
    result = HyperparameterOptimizer({"a": [1, 2, 3], "b": ["x", "y"]}, lambda p, d: calls.append(1) or p["a"], "maximize_a", 50, strategy).optimize()
    assert len(calls) == result.evaluations == 6 and result.best_params["a"] == 3 and result.stopped == "every point of the space was evaluated"


def test_the_bayesian_search_learns():
    wins = sum(HyperparameterOptimizer(SPACE, bowl, "minimize_it", 40, "bayesian", seed=s, patience=None).optimize().best_score
               <= HyperparameterOptimizer(SPACE, bowl, "minimize_it", 40, "random", seed=s, patience=None).optimize().best_score for s in range(5))
    assert wins >= 4


def test_the_plateau_stops_and_can_be_turned_off():
    flat = HyperparameterOptimizer(SPACE, lambda p, d: 1.0, "minimize_it", 100, patience=8).optimize()
    assert flat.evaluations == 12 and "no gain above 0.1% in the last 8 evaluations" in flat.stopped
    assert HyperparameterOptimizer(SPACE, lambda p, d: 1.0, "minimize_it", 40, patience=None).optimize().evaluations == 40


def test_failures_are_kept_and_do_not_win():
    def picky(params, data):
        if params["x"] == 2: raise MemoryError("too deep")
        return float("nan") if params["x"] == 3 else params["x"]
    result = HyperparameterOptimizer({"x": [1, 2, 3, 4, 5, 6]}, picky, "maximize_x", 6, "grid").optimize()
    states = {t["params"]["x"]: t for t in result.trials}
    assert result.best_params == {"x": 6} and "too deep" in states[2]["error"] and "finite" in states[3]["error"]


def test_a_function_that_always_fails_says_why():
    def broken(params, data): return data["val_y"]
    with pytest.raises(KeyError, match="val_y"): HyperparameterOptimizer(SPACE, broken, "minimize_it", 20).optimize({})


def test_interrupting_is_not_a_failed_evaluation():
    def stopped(params, data): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): HyperparameterOptimizer(SPACE, stopped, "minimize_it", 20).optimize()


def test_a_function_that_takes_a_trial_may_prune():
    import optuna
    def slow(params, data, trial):
        for step in range(3):
            trial.report(bowl(params) + step, step)
            if trial.should_prune(): raise optuna.TrialPruned()
        return bowl(params)
    result = HyperparameterOptimizer(SPACE, slow, "minimize_it", 40, seed=0, patience=None).optimize()
    assert {t["state"] for t in result.trials} == {"done", "pruned"} and all(t["score"] is None for t in result.trials if t["state"] == "pruned")


@pytest.mark.parametrize("wrong, match", [
    ({"parameter_space": {}}, "at least one"), ({"parameter_space": {"a": []}}, "list"), ({"parameter_space": {"a": "xyz"}}, "list"),
    ({"parameter_space": {"a": [[1], [2]]}}, "values to try"), ({"evaluation_function": 5}, "callable"), ({"strategy": "bayes"}, "bayesian"),
    ({"optimization_metric": "mse"}, "minimize_"), ({"optimization_metric": "minimise_mse"}, "minimize_"), ({"max_evaluations": 0}, "at least 1"),
    ({"max_evaluations": 2.5}, "whole"), ({"max_evaluations": True}, "whole"), ({"max_evaluations": None}, "whole"), ({"patience": 0}, "at least 1")])
def test_searches_that_cannot_be_meant(wrong, match):
    usual = {"parameter_space": SPACE, "evaluation_function": bowl, "optimization_metric": "minimize_it"}
    with pytest.raises(InvalidInput, match=match): HyperparameterOptimizer(**{**usual, **wrong})


def test_values_keep_their_types():
    result = HyperparameterOptimizer({"a": [True, 1, 1.0, None, "1", np.int64(1)]}, lambda p, d: 0, "minimize_it", 10, patience=None).optimize()
    assert sorted(repr(t["params"]["a"]) for t in result.trials) == sorted(["True", "1", "1.0", "None", "'1'"])


def test_folds_keep_units_together():
    units = np.random.default_rng(0).integers(0, 50, 500)
    fold = folds_of(500, 5, 0, units)
    assert all(len(set(fold[units == u])) == 1 for u in set(units)) and set(fold) == set(range(5))
    with pytest.raises(InvalidInput, match="3 units cannot make 5 folds"): folds_of(100, 5, 0, np.arange(100) % 3)
    with pytest.raises(InvalidInput, match="folds"): folds_of(3, 5, 0)


def test_cross_validation_measures_rows_it_has_not_seen():
    draw = np.random.default_rng(1)
    unit = np.repeat(np.arange(60), 5)
    data = {"x": pd.DataFrame({"who": unit.astype(float)}), "y": pd.Series(draw.uniform(0, 100, 60)[unit], name="score")}
    judge = cross_validated(AdScorePredictor, {"nthread": 1, "min_child_weight": 0.0}, folds=3)
    leaky, honest = judge({"n_estimators": 60, "learning_rate": 0.3}, data), judge({"n_estimators": 60, "learning_rate": 0.3}, {**data, "unit": unit})
    assert honest > 2 * leaky


def test_what_is_not_built_says_so():
    with pytest.raises(NotBuilt, match="not built yet"): DistributedTrainer(num_workers=4, strategy="mirrored", mixed_precision=True).monitor("job")
    for wrong in ({"num_workers": 0}, {"num_workers": "4"}, {"strategy": "mirorred"}):
        with pytest.raises(InvalidInput): DistributedTrainer(**wrong)
