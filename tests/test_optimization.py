"""Searches: the guide's block, repeatability, any number of workers, killed and resumed, shared studies, plateaus, failures, pruning, the winner's worth."""
from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import search_functions
from conftest import on_path
from sklearn.metrics import mean_squared_error

from within.errors import InvalidInput
from within.ml.models import AdScorePredictor
from within.ml.optimization import HoldoutGain, HyperparameterOptimizer, cross_validated, folds_of, gain_from, gain_over_blocks

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


# --- workers, studies, resuming --------------------------------------------------------------------------------------------------------------------

TESTS = str(Path(search_functions.__file__).parent)


def essence(result) -> list[tuple]: return [(json.dumps(t["params"], sort_keys=True), t["score"], t["state"]) for t in result.trials]


def search(function, evaluations=22, seed=5, **more):
    return HyperparameterOptimizer(search_functions.SPACE, function, "minimize_it", evaluations, seed=seed, patience=None, **more)


@pytest.mark.parametrize("function", [search_functions.uneven, search_functions.stepwise], ids=["fails here and there", "prunes"])
def test_the_number_of_workers_changes_nothing(function, tmp_path):
    alone, two, four = (search(function, workers=n).optimize() for n in (1, 2, 4))
    assert essence(alone) == essence(two) == essence(four) and len({t["state"] for t in alone.trials}) == 2
    assert essence(search(function, workers=2, study="s", storage=f"sqlite:///{tmp_path}/studies.db").optimize()) == essence(alone)


def test_a_worker_that_dies_fails_one_point_only():
    result = search(search_functions.deadly, workers=2).optimize()
    dead = [t for t in result.trials if t["params"]["x"] == 3]
    assert dead and all("exit code -9" in t["error"] for t in dead)
    assert sum(t["state"] == "done" for t in result.trials) == result.evaluations - len(dead)


@pytest.mark.parametrize("function", [lambda p, d: 0.0, functools.partial(lambda a, p, d: 0.0, 1), points], ids=["lambda", "partial", "other signature"])
def test_workers_need_a_function_that_they_can_import(function):
    if function is points:
        with pytest.raises(TypeError): search(function, workers=2).optimize()
    else:
        with pytest.raises(InvalidInput, match="top of a module, or use workers=1"): search(function, workers=2)


def test_a_script_without_a_guard_may_use_workers(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import search_functions as f\nfrom within.ml.optimization import HyperparameterOptimizer\n"
                      "print(HyperparameterOptimizer(f.SPACE, f.bowl, 'minimize_it', 8, workers=2).optimize().evaluations)\n")
    env = {**os.environ, "PYTHONPATH": on_path(TESTS)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, env=env)
    assert done.stdout.split() == ["8"], done.stderr[-1000:]


def killed_at(count: int, log: Path, url: str, evaluations: int = 22) -> None:
    "A search in a process of its own that gets SIGKILL within its so-manieth evaluation."
    code = ("import json, sys, search_functions as f; from within.ml.optimization import HyperparameterOptimizer;"
            "log, url, most, at = sys.argv[1:];"
            "search = HyperparameterOptimizer(f.SPACE, f.logged, 'minimize_it', int(most), seed=5, patience=None, study='s', storage=url);"
            "search.optimize({'log': log, 'stop_at': int(at)})")
    env = {**os.environ, "PYTHONPATH": on_path(TESTS)}
    process = subprocess.Popen([sys.executable, "-c", code, str(log), url, str(evaluations), str(count)], env=env)
    try:
        until = time.monotonic() + 120
        while not Path(f"{log}.there").exists() and process.poll() is None and time.monotonic() < until: time.sleep(0.05)
        assert process.poll() is None and Path(f"{log}.there").exists()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_killed_half_way_and_resumed_is_as_undisturbed(tmp_path):
    log, url = tmp_path / "calls", f"sqlite:///{tmp_path}/studies.db"
    killed_at(10, log, url)
    resumed = search(search_functions.logged, study="s", storage=url).optimize({"log": str(log)})
    calls = log.read_text().splitlines()
    undisturbed = search(search_functions.bowl).optimize()
    assert essence(resumed) == essence(undisturbed) and resumed.resumed == 9
    assert len(calls) == 23 and len(set(calls)) == 22, "only the evaluation that was cut off is made again"
    again = search(search_functions.logged, study="s", storage=url).optimize({"log": str(log)})
    assert essence(again) == essence(resumed) and again.resumed == 22 and len(log.read_text().splitlines()) == 23, "a finished study is only read"


def test_a_longer_search_goes_on_where_a_shorter_one_ended(tmp_path):
    url = f"sqlite:///{tmp_path}/studies.db"
    assert search(search_functions.bowl, 10, study="s", storage=url).optimize().evaluations == 10
    longer = search(search_functions.bowl, 21, study="s", storage=url).optimize()
    assert longer.resumed == 10 and essence(longer) == essence(search(search_functions.bowl, 21).optimize())


def test_two_processes_share_one_study(tmp_path):
    url, env = f"sqlite:///{tmp_path}/studies.db", {**os.environ, "PYTHONPATH": on_path(TESTS)}
    code = ("import sys, search_functions as f; from within.ml.optimization import HyperparameterOptimizer;"
            "o = HyperparameterOptimizer(f.SPACE, f.logged, 'minimize_it', 22, seed=5, patience=None, study='s', storage=sys.argv[1]);"
            "r = o.optimize({'log': sys.argv[2]});"
            "print(r.best_params, r.best_score, r.evaluations)")
    both = [subprocess.Popen([sys.executable, "-c", code, url, str(tmp_path / "calls")], env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [p.communicate(timeout=180)[0] for p in both]
    alone = search(search_functions.bowl).optimize()
    assert said[0] == said[1] == f"{alone.best_params} {alone.best_score} {alone.evaluations}\n"
    assert len((tmp_path / "calls").read_text().splitlines()) == 22, "no point is evaluated by both"


def test_a_study_is_not_continued_as_something_else(tmp_path):
    url = f"sqlite:///{tmp_path}/studies.db"
    search(search_functions.bowl, 4, study="s", storage=url).optimize()
    for changed, match in (({"seed": 6}, "made with seed 5, not 6"), ({"strategy": "random"}, "made with strategy 'bayesian'")):
        with pytest.raises(InvalidInput, match=match): search(search_functions.bowl, 8, study="s", storage=url, **changed).optimize()
    with pytest.raises(InvalidInput, match="made with space"):
        HyperparameterOptimizer({"x": [1]}, search_functions.bowl, "minimize_it", 4, seed=5, study="s", storage=url).optimize()


def test_a_study_without_a_storage_lives_in_the_home(tmp_path):
    from within.context import Context
    ctx = Context.open(home=tmp_path)
    search(search_functions.bowl, 4, study="mine", ctx=ctx).optimize()
    assert (tmp_path / "studies.db").exists() and search(search_functions.bowl, 4, study="mine", ctx=ctx).optimize().resumed == 4
    ctx.close()


@pytest.mark.parametrize("wrong, match", [
    ({"storage": "sqlite:///x.db"}, "name of a study"), ({"study": ""}, "printable"), ({"study": "a\nb"}, "printable"), ({"study": 5}, "printable"),
    ({"workers": 0}, "at least 1"), ({"workers": 10_000}, "at most 256"), ({"seed": -1}, "at least 0"), ({"seed": "x"}, "whole")])
def test_workers_and_studies_that_cannot_be_meant(wrong, match):
    with pytest.raises(InvalidInput, match=match): search(search_functions.bowl, **{"seed": 5, **wrong})


@pytest.mark.parametrize("url", ["studies.db", "nosuch://me:secret@host/db", "sqlite:////nowhere/at/all/studies.db",
                                 "postgresql+psycopg://me:secret@127.0.0.1:1/db"])
def test_storages_that_lead_nowhere_say_so_without_the_password(url):
    with pytest.raises(InvalidInput) as said: search(search_functions.bowl, study="s", storage=url).optimize()
    assert "secret" not in str(said.value) and ("storage" in str(said.value))


def test_absurd_spaces():
    huge = {f"p{i}": list(range(10)) for i in range(9)}
    with pytest.raises(InvalidInput, match="a grid of 1,000,000,000 points is too large"): HyperparameterOptimizer(huge, bowl, "minimize_it", 10, "grid")
    for strategy in ("bayesian", "random"):
        result = HyperparameterOptimizer(huge, lambda p, d: sum(p.values()), "minimize_sum", 16, strategy).optimize()
        assert result.points == 10**9 and result.evaluations == 16


def test_progress_comes_in_the_order_of_proposal(capsys):
    rows: list[dict] = []
    search(search_functions.uneven, 8, workers=4, progress=rows.append).optimize()
    assert [r["number"] for r in rows] == list(range(1, 9))
    HyperparameterOptimizer(SPACE, bowl, "minimize_it", 8, progress=True).optimize()
    assert capsys.readouterr().out == "", "silent under two seconds"


def test_infinity_is_no_score():
    result = HyperparameterOptimizer({"x": [1, 2, 3, 4]}, lambda p, d: -np.inf if p["x"] == 1 else p["x"], "minimize_it").optimize()
    assert result.best_params == {"x": 2} and "finite" in next(t["error"] for t in result.trials if t["params"]["x"] == 1)


# --- what the winner is worth ----------------------------------------------------------------------------------------------------------------------

def blurred(params, data): return (data - params["x"] / 10) ** 2


def test_the_winner_is_judged_on_rows_it_has_not_seen():
    draw = np.random.default_rng(2)
    result = HyperparameterOptimizer({"x": list(range(20))}, blurred, "minimize_mse", 20, "grid").optimize(
        draw.normal(1.0, 0.5, 400), holdout=draw.normal(1.0, 0.5, 400), reference={"x": 0})
    gain = result.holdout
    assert isinstance(gain, HoldoutGain) and gain.rows == 400 and gain.interval.low > 50 and gain.gain in gain.interval
    assert "unseen rows" in result._repr_markdown_()
    near = HyperparameterOptimizer({"x": [9, 10, 11]}, blurred, "minimize_mse", 3, "grid")
    honest = near.optimize(draw.normal(1, 0.5, 400), draw.normal(1, 0.5, 60), {"x": 10})
    assert 0 in honest.holdout.interval or honest.holdout.gain == 0


def test_the_interval_covers_the_true_gain():
    truth, hits = 1 - (0.25 + 0.01) / (0.25 + 0.04), 0   # noise 0.5, off by 0.1 against off by 0.2
    for seed in range(200):
        y = np.random.default_rng(seed).normal(1.0, 0.5, 300)
        hits += 100 * truth in gain_from((y - 1.1) ** 2, (y - 1.2) ** 2, "minimize", False, seed=seed)[1]
    assert hits >= 182, f"{hits} of 200; 190 expected, 181 or fewer has a chance below one in a thousand if the level is 95 %"


def test_a_single_number_has_no_interval_and_blocks_have_one():
    one = HyperparameterOptimizer({"x": [1, 2]}, lambda p, d: d * p["x"], "maximize_it").optimize(1.0, holdout=2.0, reference={"x": 1})
    assert one.holdout.gain == 100 and one.holdout.interval is None and "answers one number" in one.holdout.note
    some = HyperparameterOptimizer({"x": [1, 2]}, lambda p, d: d * p["x"], "maximize_it").optimize(1.0, holdout=[1.0, 2.0, 3.0, 2.5], reference={"x": 1})
    assert some.holdout.rows == 4 and 100 in some.holdout.interval and gain_over_blocks([1, 2], [1, 1], "maximize")[1] is None


def test_the_holdout_is_not_the_data():
    data = {"x": 1}
    with pytest.raises(InvalidInput, match="not seen"): HyperparameterOptimizer({"x": [1, 2]}, lambda p, d: 0, "minimize_it").optimize(data, holdout=data)


def test_cross_validated_settings_are_judged_with_units_kept_together():
    draw = np.random.default_rng(4)
    def world(n):
        x = pd.DataFrame({"a": draw.normal(size=n), "b": draw.normal(size=n)})
        return {"x": x, "y": (50 + 10 * np.sin(3 * x.a) + draw.normal(0, 2, n)).rename("score"), "unit": pd.Series(np.arange(n) // 5)}
    judge = cross_validated(AdScorePredictor, {"nthread": 1, "learning_rate": 0.3, "n_estimators": 40}, folds=3)
    result = HyperparameterOptimizer({"max_depth": [1, 4]}, judge, "minimize_rmse", workers=2).optimize(world(400), world(300), {"max_depth": 1})
    assert result.best_params == {"max_depth": 4} and result.holdout.interval.low > 0 and result.holdout.winner_score < result.holdout.reference_score
