"""Transfer from a registered analyzer: what is frozen stays, what is judged was not learned, and what cannot be a base says so."""
from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from test_sentiment import ads, settings, tiny_encoder

from within.errors import DigestMismatch, InvalidInput, UnknownModel, UnknownModelVersion
from within.ml.ad_sentiment import AdSentimentAnalyzer
from within.ml.registry import ModelRegistry
from within.ml.transfer import TransferLearningTrainer, held_texts

pytest.importorskip("torch", reason="the extra `text` is not installed")
pytest.importorskip("transformers", reason="the extra `text` is not installed")


def frame(n: int, seed: int = 0) -> pd.DataFrame:
    x, y = ads(n, seed)
    return x.assign(label=y)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> AdSentimentAnalyzer:
    return AdSentimentAnalyzer(settings(str(tiny_encoder(tmp_path_factory.mktemp("encoder"))), epochs=1)).fit(*ads(200))


@pytest.fixture
def place(tmp_path):
    from within.clock import FrozenClock, parse_time
    from within.context import Context
    ctx = Context.open(home=tmp_path / "home", clock=FrozenClock(parse_time("2023-10-01")), mlflow_tracking_uri=None)
    yield ctx
    ctx.close()


@pytest.fixture
def registered(place, base):
    ModelRegistry(ctx=place).register_model(base, "ad_sentiment_analyzer", "3.1.0")
    return place


def test_frozen_layers_hold_the_same_bits_and_less_is_learned(registered, base):
    rows = frame(120, 5)
    full = TransferLearningTrainer("ad_sentiment_analyzer", "3.1.0", ctx=registered).train(rows, epochs=2, learning_rate=1e-3, batch_size=16)
    part = TransferLearningTrainer("ad_sentiment_analyzer", "3.1.0", ["embeddings", "encoder.0", "encoder.1"], ctx=registered).train(
        rows, epochs=2, learning_rate=1e-3, batch_size=16)
    assert part.frozen == ("embeddings", "encoder.0", "encoder.1") and part.frozen_before == part.frozen_after == base.layer_digests(part.frozen)
    assert part.trained_parameters < 0.5 * full.trained_parameters and full.trained_parameters == full.parameters and part.steps == full.steps
    assert part.model.layer_digests(["encoder.2"]) != base.layer_digests(["encoder.2"]) and full.frozen == ()
    assert base.layer_digests() == ModelRegistry(ctx=registered).load("ad_sentiment_analyzer", "3.1.0").layer_digests()   # the base itself stays
    assert part.rows + part.held_rows == 120 and set(part.metrics) >= {"accuracy", "log_loss", "roc_auc", "base_accuracy"}
    assert part.to_dict()["base"] == "ad_sentiment_analyzer@3.1.0" and "frozen" in part._repr_markdown_()


def test_what_it_made_can_be_registered_and_loaded(registered):
    result = TransferLearningTrainer("ad_sentiment_analyzer", "3.1.0", ["embeddings"], ctx=registered).train(frame(60, 5))
    registry, x = ModelRegistry(ctx=registered), ads(30, 8)[0]
    info = registry.register_model(result.model, "ad_sentiment_analyzer", "3.2.0", metrics=result.metrics)
    assert registry.load("ad_sentiment_analyzer", "3.2.0").predict(x).tolist() == result.model.predict(x).tolist()
    assert info.lineage["base"] == "ad_sentiment_analyzer@3.1.0"


def test_the_same_seed_gives_the_same_model_and_words_are_labels_too(registered):
    trainer, rows = TransferLearningTrainer("ad_sentiment_analyzer", "3.1.0", ["embeddings"], ctx=registered), frame(80, 5)
    one, two = trainer.train(rows), trainer.train(rows.assign(label=rows["label"].map({1: "positive", 0: "negative"})))
    assert one.model.layer_digests() == two.model.layer_digests() and one.metrics == two.metrics


def test_a_transfer_goes_on_from_its_checkpoint(registered, tmp_path):
    trainer, rows = TransferLearningTrainer("ad_sentiment_analyzer", "3.1.0", ["embeddings"], ctx=registered), frame(100, 5)
    def power_cut(step, figures):
        if step == 12: raise KeyboardInterrupt
    base = trainer.base
    def often():
        model = base()
        model.config["checkpoint_every"] = 5
        return model
    trainer.base = often
    with pytest.raises(KeyboardInterrupt): trainer.train(rows, epochs=4, batch_size=16, progress=power_cut, checkpoint=tmp_path / "c")
    again, whole = trainer.train(rows, epochs=4, batch_size=16, checkpoint=tmp_path / "c"), trainer.train(rows, epochs=4, batch_size=16)
    assert again.model.course.resumed_from == 10 and again.model.layer_digests() == whole.model.layer_digests()


def test_patterns_and_bases_that_do_not_fit(registered):
    rows = frame(60)
    def train(name="ad_sentiment_analyzer", version="3.1.0", layers=(), data=rows, **how):
        return TransferLearningTrainer(name, version, layers, ctx=registered).train(data, **how)
    with pytest.raises(InvalidInput, match=r"unknown layer 'encoder.7'.*known: embeddings, encoder.0"): train(layers=["encoder.7"])
    with pytest.raises(InvalidInput, match="leave at least one"): train(layers=["embeddings", "encoder", "head"])
    with pytest.raises(UnknownModelVersion): train(version="9.9.9")
    with pytest.raises(UnknownModel): train(name="nobody")
    for wrong in ({"epochs": 0}, {"learning_rate": -1.0}, {"batch_size": 0}, {"batch_size": 1.5}, {"epochs": float("nan")}):
        with pytest.raises(InvalidInput): train(**wrong)
    for bad, why in ((rows[:10], "at least 20"), (rows.assign(label=1), "all the same"), (rows[["text"]], "lack label"), (None, "no training rows"),
                     (rows.assign(label="angry"), "'angry'")):
        with pytest.raises(InvalidInput, match=why): train(data=bad)
    for layers in ("embeddings", [1]):
        with pytest.raises(InvalidInput, match="list of names"): TransferLearningTrainer("ad_sentiment_analyzer", "3.1.0", layers)


def test_a_linear_base_or_trees_have_no_layers(place):
    from within.ml.ad_score import AdScorePredictor
    registry = ModelRegistry(ctx=place)
    registry.register_model(AdSentimentAnalyzer({"columns": 512}).fit(*ads(60)), "ad_sentiment_analyzer", "3.1.0")
    draw = np.random.default_rng(0)
    trees = AdScorePredictor({"n_estimators": 3}).fit(pd.DataFrame({"a": draw.random(50)}), pd.Series(draw.random(50)))
    registry.register_model(trees, "ad_score_predictor", "1.0.0")
    for name, version, why in (("ad_sentiment_analyzer", "3.1.0", "architecture: transformer"), ("ad_score_predictor", "1.0.0", "has no layers")):
        with pytest.raises(InvalidInput, match=why): TransferLearningTrainer(name, version, ["embeddings"], ctx=place).train(frame(60))


def test_a_base_whose_files_were_changed_is_not_read(registered):
    registry = ModelRegistry(ctx=registered)
    registry.tracking.fetch = lambda *_: (_ for _ in ()).throw(OSError("the copy is gone too"))
    folder = registry.folder("ad_sentiment_analyzer", "3.1.0")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(DigestMismatch): registry.load("ad_sentiment_analyzer", "3.1.0")


def test_the_same_text_is_never_on_both_sides():
    texts = pd.Series([f"Text {i // 3}!" if i % 2 else f"text {i // 3}" for i in range(300)])
    held = held_texts(texts, np.arange(300) % 2, seed=3)
    from within.ml.out_of_domain import normalised
    assert not set(texts[held].map(normalised)) & set(texts[~held].map(normalised)) and 0.1 < held.mean() < 0.3
    assert (held == held_texts(texts, np.arange(300) % 2, seed=3)).all() and (held != held_texts(texts, np.arange(300) % 2, seed=4)).any()


def test_the_guides_transfer_from_the_first_day(ctx):
    "Block 18 of the guide, on the small world's own base."
    from within.world import open_world
    rows = open_world(ctx).sentiment.iloc[:120]
    trainer = TransferLearningTrainer(base_model_name="ad_sentiment_analyzer", base_model_version="3.1.0",
                                      frozen_layers=["embeddings", "encoder.0", "encoder.1"], ctx=ctx)
    result = trainer.train(train_data=rows, epochs=1, learning_rate=3e-5, batch_size=32)
    assert result.frozen == ("embeddings", "encoder.0", "encoder.1") and result.trained_parameters < 0.35 * result.parameters
    assert 0 <= result.metrics["accuracy"] <= 1 and "accuracy" in f"Transfer learning complete: {result.metrics}"
