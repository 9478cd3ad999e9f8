"""The deep network behind the same interface as the trees: odd rows, saved bytes, kills, the registry."""
from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pytest
from mlflow_tables import with_tables

from within.clock import FrozenClock, parse_time
from within.context import Context
from within.errors import Conflict, DigestMismatch, InvalidInput
from within.ml.ad_score import AdScorePredictor
from within.ml.base import folder_digest
from within.ml.checkpoints import Checkpoints
from within.ml.evaluation import ModelEvaluator
from within.ml.models import load_model
from within.ml.noise import seed_noise
from within.ml.registry import ModelRegistry
from within.ml.training import ModelTrainer

DEEP = {"architecture": "deep_neural_network", "epochs": 12, "hidden": 32, "batch_size": 128, "nthread": 1, "random_state": 3}


@pytest.fixture(scope="module")
def ads() -> tuple[pd.DataFrame, pd.Series]:
    draw = np.random.default_rng(0)
    x = pd.DataFrame({"words": draw.integers(3, 60, 900).astype(float), "ctr": draw.gamma(2, 0.01, 900), "platform": draw.choice(["facebook", "google"], 900),
                      "has_price": draw.random(900) < 0.5})
    y = (40 + 700 * x.ctr + 8 * (x.platform == "google") + draw.normal(0, 4, 900)).clip(0, 100).rename("effectiveness_score")
    return x.mask(draw.random(x.shape) < 0.03), y


@pytest.fixture(scope="module")
def model(ads) -> AdScorePredictor:
    x, y = ads
    return AdScorePredictor(DEEP).fit(x[:700], y[:700], (x[700:], y[700:]), early_stopping_rounds=6)


def test_it_learns(model, ads):
    x, y = ads
    error = np.sqrt(np.mean((model.predict(x[700:]) - y[700:]) ** 2))
    assert error < 0.75 * y[700:].std() and model.best_iteration == int(np.argmin(model.curve["validation"])) + 1
    assert set(model.feature_importance().feature[:2]) == {"ctr", "platform"} and model.feature_importance().share.sum() == pytest.approx(1)


@pytest.mark.parametrize("odd", [{}, {"platform": "mars"}, {"platform": None}, {"ctr": math.inf}, {"ctr": -math.inf}, {"ctr": math.nan},
                                 {"words": 10**300}, {"platform": "x" * 100_000}, {"platform": ["a"]}, {"unknown": 1},
                                 {"has_price": True}, {"platform": 7}])
def test_odd_requests_are_answered_within_bounds(model, odd):
    (answer,) = model.predict_records([odd])
    assert 0 <= answer <= 100


def test_new_missing_and_unseen(model, ads):
    x, _ = ads
    assert model.predict_records([{"platform": "mars", "ctr": 0.02}]) == model.predict_records([{"ctr": 0.02}])
    assert model.predict_records(x.to_dict("records")) == model.predict(x).tolist()
    assert model.predict(x[:0]).shape == (0,)
    with pytest.raises(InvalidInput, match="lacks 1 of the model's 4 features: platform"): model.predict(x.drop(columns="platform"))
    with pytest.raises(InvalidInput, match="ctr"): model.predict_records([{"ctr": "high"}])


def test_the_unseen_answer_lies_between_the_seen_ones(model):
    seen = [model.predict_records([{"platform": p, "ctr": 0.02, "words": 30, "has_price": 1}])[0] for p in ("facebook", "google", "mars")]
    assert min(seen[:2]) - 3 < seen[2] < max(seen[:2]) + 3


@pytest.mark.parametrize("change, match", [(lambda y: y * np.nan, "missing"), (lambda y: y * 0 + 5, "every row"), (lambda y: y + 100, "outside 0..100")])
def test_targets_that_cannot_teach(ads, change, match):
    with pytest.raises(InvalidInput, match=match): AdScorePredictor(DEEP).fit(ads[0], change(ads[1]))


@pytest.mark.parametrize("config, match", [({"epochs": 0}, "between"), ({"hidden": 1.5}, "whole"), ({"dropout": 1.0}, "between"),
                                           ({"layer": 2}, "did you mean"),
                                           ({"architecture": "deep"}, "deep_neural_network")])
def test_configurations_that_cannot_be_meant(config, match):
    with pytest.raises(InvalidInput, match=match): AdScorePredictor({**DEEP, **config})


def test_constant_empty_and_lonely_features_are_carried(ads):
    x, y = ads
    odd = x.assign(constant=1.0, empty=np.nan, nothing=None)
    assert np.isfinite(AdScorePredictor({**DEEP, "epochs": 2}).fit(odd, y).predict(odd)).all()
    only = AdScorePredictor({**DEEP, "epochs": 2}).fit(x[["platform"]], y)
    assert np.isfinite(only.predict(x)).all()


def test_the_same_seed_gives_the_same_bytes(ads, model, tmp_path):
    x, y = ads
    state = np.random.get_state()[1].tolist()
    again = AdScorePredictor(DEEP).fit(x[:700], y[:700], (x[700:], y[700:]), early_stopping_rounds=6)
    other = AdScorePredictor({**DEEP, "random_state": 4}).fit(x[:700], y[:700], (x[700:], y[700:]), early_stopping_rounds=6)
    digests = [folder_digest(m.save(tmp_path / str(i))) for i, m in enumerate((model, again, other))]
    assert digests[0] == digests[1] != digests[2] and np.random.get_state()[1].tolist() == state
    assert (load_model(tmp_path / "0", digests[0]).predict(x) == model.predict(x)).all()


def test_damage_and_disguise_are_refused(model, tmp_path):
    folder = model.save(tmp_path / "m")
    digest, weights = folder_digest(folder), (folder / "model.safetensors").read_bytes()
    for bad in (weights[: len(weights) // 2], b"", b"\x80\x04\x95.", weights[:8] + b"{}" + weights[10:]):
        (folder / "model.safetensors").write_bytes(bad)
        with pytest.raises(DigestMismatch, match="nothing of it was read"): load_model(folder, digest)
        with pytest.raises(InvalidInput, match="safetensors"): load_model(folder)
    (folder / "model.safetensors").write_bytes(weights)
    body = json.loads((folder / "model.json").read_text())
    for change in ({"hidden": 64}, {"layers": 3}):   # a description that asks for another network than the weights are of
        (folder / "model.json").write_text(json.dumps({**body, "config": {**body["config"], **change}}))
        with pytest.raises(InvalidInput, match="does not fit"): load_model(folder)
    (folder / "model.json").write_text(json.dumps({**body, "config": {**body["config"], "architecture": "gradient_boosting"}}))
    with pytest.raises(InvalidInput, match="exactly"): load_model(folder)


KILLED = textwrap.dedent("""
    import os, signal, sys
    import numpy as np, pandas as pd
    from within.ml.ad_score import AdScorePredictor
    from within.ml.base import folder_digest
    folder, dies, config = sys.argv[1], int(sys.argv[2]), eval(sys.argv[3])
    draw = np.random.default_rng(5)
    x = pd.DataFrame({"a": draw.normal(size=400), "c": draw.choice(list("xyz"), 400)})
    y = (50 + 8 * x.a + 5 * (x.c == "y") + draw.normal(0, 6, 400)).clip(0, 100).rename("score")
    def progress(number, parts):
        if number == dies: os.kill(os.getpid(), signal.SIGKILL)
    model = AdScorePredictor(config).fit(x[:300], y[:300], (x[300:], y[300:]), 20, progress, checkpoints=folder + "/kept" if dies >= 0 else None)
    print(folder_digest(model.save(folder + ("/again" if dies >= 0 else "/whole"))))
""")


def test_killed_at_a_random_epoch_it_ends_with_the_same_weights(tmp_path):
    def fitted(dies): return subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(dies), repr(DEEP)], capture_output=True, text=True, timeout=300)
    whole, dies = fitted(-1), int(np.random.default_rng(7).integers(3, 12))
    assert whole.returncode == 0, whole.stderr[-2000:]
    assert fitted(dies).returncode == -signal.SIGKILL
    resumed = fitted(0)
    assert resumed.stdout == whole.stdout, resumed.stderr[-2000:]


def test_a_checkpoint_of_the_trees_is_none_of_the_network(ads, tmp_path):
    class Stop(BaseException): pass
    def stop(number, parts):
        if number == 120: raise Stop
    x, y = ads
    with pytest.raises(Stop): AdScorePredictor({"n_estimators": 150, "nthread": 1}).fit(x, y, progress=stop, checkpoints=tmp_path / "c")
    with pytest.raises(Conflict, match="settings.architecture: gradient_boosting, here deep_neural_network"):
        AdScorePredictor(DEEP).fit(x, y, checkpoints=tmp_path / "c")
    assert Checkpoints(tmp_path / "c").files()


def test_trained_registered_compared_with_its_seed_noise(ads, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    ctx = Context.open(home=with_tables(tmp_path / "home"), clock=FrozenClock(parse_time("2023-10-01")), user="ana")
    rows = ads[0].assign(effectiveness_score=ads[1])
    features, registry = list(ads[0].columns), ModelRegistry(ctx)
    result = ModelTrainer(AdScorePredictor(DEEP), ctx=ctx).train(rows[:500], rows[500:700], features, "effectiveness_score", early_stopping_rounds=5)
    info = registry.register_model(result.model, "ad_score_predictor", "2.2.0")
    assert info.parameters["epochs"] == 12 and "max_depth" not in info.parameters and not result.streamed
    assert len(registry.tracking.client.get_metric_history(result.tracking_run_id, "validation.by_round")) == len(result.curve["validation"])
    loaded = registry.load("ad_score_predictor", "2.2.0")
    assert (loaded.predict(rows) == result.model.predict(rows)).all()
    noise = seed_noise(loaded, rows[:500], rows[700:])
    assert noise.percent > 0 and len(noise.figures) == 4
    compared = ModelEvaluator(ctx).compare_models(loaded, None, rows[700:], target="effectiveness_score", train_data=rows[:500])
    assert compared.noise.percent == noise.percent and compared.verdict.low == pytest.approx(compared.low - noise.percent)
    assert f"explains up to {noise.percent:.2f} %" in compared.verdict.reason
    blind = ModelEvaluator(ctx).compare_models(loaded, None, rows[700:], target="effectiveness_score")
    assert not blind.noise.measured and "was not measured: its training rows are not at hand" in blind.verdict.reason and blind.verdict.low == blind.low
