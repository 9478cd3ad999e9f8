"""Models with bad input, hostile folders, and rows from another day."""
from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from within.errors import DigestMismatch, InvalidInput
from within.ml.base import BaselineModel, folder_digest
from within.ml.models import AccountHealthPredictor, AdScorePredictor, AdSentimentAnalyzer, load_model

TREES = {"n_estimators": 12, "max_depth": 4, "nthread": 1}


@pytest.fixture(scope="module")
def ads() -> tuple[pd.DataFrame, pd.Series]:
    "600 ads with numbers, categories and holes."
    draw = np.random.default_rng(0)
    x = pd.DataFrame({"ad_content.word_count": draw.integers(3, 60, 600).astype(float), "historical_metrics.ctr_7d": draw.gamma(2, 0.01, 600),
                      "platform": draw.choice(["facebook", "google", "tiktok"], 600), "has_price": draw.random(600) < 0.5})
    y = (40 + 900 * x["historical_metrics.ctr_7d"] + 5 * (x.platform == "google") + draw.normal(0, 4, 600)).clip(0, 100).rename("effectiveness_score")
    return x.mask(draw.random(x.shape) < 0.03), y


@pytest.fixture(scope="module")
def model(ads) -> AdScorePredictor: return AdScorePredictor(TREES).fit(*ads)


def test_the_same_seed_gives_the_same_bytes(ads, tmp_path):
    config = {**TREES, "subsample": 0.7, "colsample_bytree": 0.7, "nthread": 2}
    one, two, other = (AdScorePredictor({**config, "random_state": seed}).fit(*ads) for seed in (3, 3, 4))
    digests = [folder_digest(m.save(tmp_path / str(i))) for i, m in enumerate((one, two, other))]
    assert digests[0] == digests[1] != digests[2]


def test_column_order_and_extra_columns_do_not_matter(model, ads):
    x, _ = ads
    shuffled = x[x.columns[::-1]].assign(extra="anything")
    assert (model.predict(shuffled) == model.predict(x)).all()


def test_records_and_frames_agree_to_the_bit(model, ads):
    x, _ = ads
    assert model.predict_records(x.to_dict("records")) == model.predict(x).tolist()
    assert model.predict_records([{k: v for k, v in r.items() if v == v and v is not None} for r in x.to_dict("records")]) == model.predict(x).tolist()


@pytest.mark.parametrize("odd", [{}, {"platform": "mars"}, {"platform": None}, {"ad_content.word_count": math.inf}, {"ad_content.word_count": math.nan},
                                 {"ad_content.word_count": 10**300}, {"platform": ["a"]}, {"platform": "x" * 100_000},
                                 {"unknown": 1}, {"has_price": True}, {"platform": 7}])
def test_odd_requests_are_answered_within_bounds(model, odd):
    (answer,) = model.predict_records([odd])
    assert 0 <= answer <= 100


@pytest.mark.parametrize("wrong", [{"ad_content.word_count": "many"}, {"ad_content.word_count": [1]}, {"ad_content.word_count": {"a": 1}},
                                   {"ad_content.word_count": 10**400}, None, 5, []])
def test_requests_that_are_none_are_refused_by_name(model, wrong):
    with pytest.raises(InvalidInput, match="word_count|mapping"): model.predict_records([wrong])


def test_no_rows_no_answers(model, ads):
    assert model.predict(ads[0][:0]).shape == (0,) and model.predict_records([]) == []


def test_a_missing_column_is_named(model, ads):
    with pytest.raises(InvalidInput, match="platform"): model.predict(ads[0].drop(columns="platform"))


@pytest.mark.parametrize("column, match", [(pd.Series(pd.date_range("2023-01-01", periods=600)), "datetime"), (pd.Series([[1]] * 600), "must be numbers"),
                                           (pd.Series([f"id{i}" for i in range(600)] * 4)[:600], None)])
def test_columns_that_cannot_be_features(ads, column, match):
    x, y = ads
    if match is None: AdScorePredictor(TREES).fit(x.assign(odd=column.values), y)
    else:
        with pytest.raises(InvalidInput, match=match): AdScorePredictor(TREES).fit(x.assign(odd=column.values), y)


def test_an_identifier_is_not_a_category(ads):
    x, y = pd.concat([ads[0]] * 5, ignore_index=True), pd.concat([ads[1]] * 5, ignore_index=True)
    with pytest.raises(InvalidInput, match="exclude"): AdScorePredictor(TREES).fit(x.assign(internal_id=[f"id{i}" for i in range(len(x))]), y)


def test_constant_and_empty_features_are_carried(ads):
    x, y = ads
    odd = x.assign(constant=1.0, empty=np.nan, nothing=None)
    fitted = AdScorePredictor(TREES).fit(odd, y)
    importance = fitted.feature_importance().set_index("feature").share
    assert importance["constant"] == importance["empty"] == importance["nothing"] == 0 and abs(importance.sum() - 1) < 1e-9


@pytest.mark.parametrize("change, match", [(lambda y: y * np.nan, "missing"), (lambda y: y * 0 + 5, "every row"), (lambda y: y + 100, "outside 0..100"),
                                           (lambda y: y[:10], "10 of effectiveness_score"), (lambda y: y.astype(str) + "x", "numbers"),
                                           (lambda y: y.where(y.index > 0, np.inf), "infinite")])
def test_targets_that_cannot_teach(ads, change, match):
    with pytest.raises(InvalidInput, match=match): AdScorePredictor(TREES).fit(ads[0], change(ads[1]))


@pytest.mark.parametrize("config, match", [({"max_depht": 3}, "max_depth"), ({"max_depth": 0}, "between"), ({"max_depth": 3.5}, "whole"),
                                           ({"learning_rate": "fast"}, "number"),
                                           ({"subsample": float("nan")}, "number"),
                                           ({"n_estimators": True}, "number"), ({"architecture": "forest"}, "gradient_boosting"),
                                           ([1], "mapping")])
def test_configurations_that_cannot_be_meant(config, match):
    with pytest.raises(InvalidInput, match=match): AdScorePredictor(config=config)


def test_early_stopping_keeps_only_useful_rounds(ads):
    x, y = ads
    eager = AdScorePredictor({**TREES, "n_estimators": 400, "learning_rate": 0.3})
    fitted = eager.fit(x[:400], y[:400], validation=(x[400:], y[400:]), early_stopping_rounds=5)
    assert fitted.booster.num_boosted_rounds() == fitted.best_iteration == int(np.argmin(fitted.curve["validation"])) + 1 < 400


def saved(model, folder): return model.save(folder), folder_digest(folder)


@pytest.mark.parametrize("name", ["model.pkl", "x.py", "sub/model.bin", ".hidden"])
def test_folders_with_anything_unexpected_are_refused(model, tmp_path, name):
    folder, _ = saved(model, tmp_path / "m")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"\x80\x04.")
    with pytest.raises(InvalidInput, match="exactly"): load_model(folder)


def test_links_are_refused(model, tmp_path):
    folder, _ = saved(model, tmp_path / "m")
    (folder / "model.ubj").rename(tmp_path / "elsewhere")
    (folder / "model.ubj").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidInput, match="plain files"): load_model(folder)


@pytest.mark.parametrize("change", [lambda b: b.update(protocol=2), lambda b: b.update({"class": "os:system"}),
                                    lambda b: b.update({"class": "within.ml.base:BaselineModel"}),
                                    lambda b: b.pop("config"), lambda b: b.pop("signature"), lambda b: b["signature"].pop(),
                                    lambda b: b["config"].update(evil=1), lambda b: b.update(signature=[1])])
def test_a_description_that_does_not_fit(model, tmp_path, change):
    folder, _ = saved(model, tmp_path / "m")
    body = json.loads((folder / "model.json").read_text())
    change(body)
    (folder / "model.json").write_text(json.dumps(body))
    with pytest.raises(InvalidInput): load_model(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000])
def test_a_description_that_is_no_object(model, tmp_path, text):
    folder, _ = saved(model, tmp_path / "m")
    (folder / "model.json").write_text(text)
    with pytest.raises(InvalidInput): load_model(folder)


def test_damaged_weights(model, tmp_path):
    folder, digest = saved(model, tmp_path / "m")
    data = (folder / "model.ubj").read_bytes()
    (folder / "model.ubj").write_bytes(data[: len(data) // 2])
    with pytest.raises(DigestMismatch, match="nothing of it was read"): load_model(folder, digest)
    with pytest.raises(InvalidInput, match="model.ubj"): load_model(folder)


def test_every_class_survives_saving(ads, tmp_path):
    x, y = ads
    texts = pd.DataFrame({"text": ["good shoes", "bad shoes", None, "great"] * 20})
    fitted = [(AdScorePredictor(TREES).fit(x, y), x), (AccountHealthPredictor(TREES).fit(x, (y > 50).astype(int)), x),
              (AdSentimentAnalyzer({"columns": 1024}).fit(texts, pd.Series([1, 0, 0, 1] * 20, name="label")), texts), (BaselineModel().fit(x, y), x)]
    for i, (one, rows) in enumerate(fitted):
        folder, digest = saved(one, tmp_path / str(i))
        again = load_model(folder, digest)
        assert type(again) is type(one) and again.target_mean == one.target_mean and (again.predict(rows) == one.predict(rows)).all()
        assert again.predict_records(rows.to_dict("records")) == again.predict(rows).tolist()


def test_saving_never_overwrites(model, tmp_path):
    model.save(tmp_path / "m")
    with pytest.raises(InvalidInput, match="not empty"): model.save(tmp_path / "m")
