"""The sentiment analyzer with hostile texts, killed trainings, foreign checkpoints and tampered artifacts; and what counts as out of domain."""
from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from within.errors import DigestMismatch, InvalidInput
from within.ml.ad_sentiment import AdSentimentAnalyzer
from within.ml.augmentation import balanced_texts, changed
from within.ml.base import folder_digest
from within.ml.encoders import PACKAGED, checked_description, encoder_folder, layer_digests
from within.ml.fine_tuning import Plan, gradient, rows_of
from within.ml.models import load_model
from within.ml.out_of_domain import evaluate_out_of_domain, normalised, without_shared
from within.ml.text_batches import batches, padded, tokenized
from within.ml.training import ModelTrainer

pytest.importorskip("torch", reason="the extra `text` is not installed")
pytest.importorskip("transformers", reason="the extra `text` is not installed")

ROOT, DATA = Path(__file__).resolve().parent.parent, Path(__file__).resolve().parent.parent.parent / "shared" / "data"
GOOD, BAD = ["lovely", "great", "fine", "best", "happy"], ["awful", "bad", "broken", "worst", "sad"]
FILLER = ["shoes", "the", "a", "train", "hotel", "bread", "very", "and", "is", "was", "our", "new"]


def tiny_encoder(folder: Path, family: str = "bert") -> Path:
    "A folder as a user would have it: a very small encoder with random weights and a tokenizer that knows two dozen words."
    import torch
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, *FILLER]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": len(words),
             "max_position_embeddings": 40, "pad_token_id": 0}
    if family == "distilbert": sizes = {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 64, "vocab_size": len(words), "max_position_embeddings": 40}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        transformers.AutoModel.from_config(transformers.CONFIG_MAPPING[family](**sizes)).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def ads(n: int, seed: int = 0, share: float = 0.5) -> tuple[pd.DataFrame, pd.Series]:
    draw = np.random.default_rng(seed)
    label = (draw.random(n) < share).astype(int)
    text = [" ".join(draw.permutation([draw.choice(GOOD if k else BAD), *draw.choice(FILLER, draw.integers(2, 12))])) for k in label]
    return pd.DataFrame({"text": text}), pd.Series(label, name="label")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str: return str(tiny_encoder(tmp_path_factory.mktemp("encoder")))


def settings(encoder: str, **more) -> dict:
    return {"architecture": "transformer", "encoder": encoder, "epochs": 3, "batch_size": 16, "learning_rate": 3e-3, "precision": "float32", "device": "cpu",
            **more}


@pytest.fixture(scope="module")
def model(encoder) -> AdSentimentAnalyzer: return AdSentimentAnalyzer(settings(encoder)).fit(*ads(300))


# what it answers

def test_it_learns_and_both_ways_of_asking_agree(model):
    x, y = ads(200, seed=9)
    found = model.predict(x)
    assert ((found > 0.5) == y).mean() > 0.95 and found.min() >= 0 and found.max() <= 1 and found.dtype == np.float64
    alone = [model.predict_records([r])[0] for r in x.to_dict("records")[:40]]
    assert np.abs(found[:40] - alone).max() < 1e-6   # the integration suite's tolerance between one by one and all at once


@pytest.mark.parametrize("architecture", ["linear", "transformer"])
def test_odd_texts_are_answered(architecture, model):
    if architecture == "linear": model = AdSentimentAnalyzer({"columns": 1024}).fit(*ads(300))
    odd = ["", "   \n", "👍🔥🔥", "отличные ботинки", "最高の靴です", "!!!", "lovely " * 15_000, "x" * 100_000, "\x00", "‮evil", "<script>", "great"]
    found = np.array(model.predict_records([{"text": t} for t in odd] + [{}, {"text": None}, {"text": float("nan")}]))
    assert np.isfinite(found).all() and ((found >= 0) & (found <= 1)).all()
    assert (found[[0, 1, -3, -2, -1]] == model.target_mean).all()   # nothing to read: the share of positives in training
    assert found[6] > 0.5 and (model.predict(pd.DataFrame({"text": odd})) == pytest.approx(found[: len(odd)], abs=1e-6))
    assert len(model.predict(pd.DataFrame({"text": []}))) == 0


@pytest.mark.parametrize("value", [5, 1.5, ["a"], {"a": 1}, b"bytes", True])
def test_what_is_no_text_is_refused(model, value):
    with pytest.raises(InvalidInput, match="a text must be a string, or missing"): model.predict_records([{"text": value}])
    with pytest.raises(InvalidInput, match="row 1 holds"): AdSentimentAnalyzer().fit(pd.DataFrame({"text": ["a", value]}, dtype=object), [0, 1])


def test_rows_that_cannot_teach(encoder):
    x, y = ads(20)
    for wrong, why in (((x, y * 0), "all the same"), ((x.rename(columns={"text": "t"}), y), "lacks the model's only feature"), ((x, y[:5]), "same rows"),
                       ((x, ["angry"] * 20), "'angry' in row 0")):
        with pytest.raises(InvalidInput, match=why): AdSentimentAnalyzer(settings(encoder)).fit(*wrong)
    with pytest.raises(InvalidInput, match="not been fitted"): AdSentimentAnalyzer(settings(encoder)).predict(x)


@pytest.mark.parametrize("wrong", [{"architecture": "rnn"}, {"frozen_layers": "encoder.0"}, {"frozen_layers": [1]}, {"encoder": ""}, {"encoder": 7},
                                   {"epochs": 0}, {"learning_rate": float("nan")}, {"precision": "int8"}, {"max_tokens": 100_000}, {"threads": 0},
                                   {"batch_size": 2.5}])
def test_settings_out_of_range(wrong):
    with pytest.raises(InvalidInput): AdSentimentAnalyzer({"architecture": "transformer"} | wrong)


# where encoders come from

def test_encoders_that_are_not_there(tmp_path):
    for name in ("roberta-base-of-nobody", "../../of-nobody", "a/b/c", str(tmp_path / "none")):
        with pytest.raises(InvalidInput, match="nothing is downloaded"): encoder_folder(name)
    tiny_encoder(tmp_path / "one")
    (tmp_path / "one" / "model.safetensors").rename(tmp_path / "one" / "pytorch_model.bin")
    with pytest.raises(InvalidInput, match="pickle"): encoder_folder(str(tmp_path / "one"))


def test_a_damaged_encoder_and_a_foreign_tokenizer(tmp_path):
    folder = tiny_encoder(tmp_path / "one")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InvalidInput, match="cannot be opened"): AdSentimentAnalyzer(settings(str(folder))).fit(*ads(30))
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "tokenizer.json").write_bytes((encoder_folder(PACKAGED) / "tokenizer.json").read_bytes())
    with pytest.raises(InvalidInput, match="knows more words"): AdSentimentAnalyzer(settings(str(folder))).fit(*ads(30))


def test_code_in_an_encoder_folder_stays_unread(tmp_path):
    folder = tiny_encoder(tmp_path / "one")
    (folder / "modeling_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Evil"}}))
    AdSentimentAnalyzer(settings(str(folder), max_steps=1)).fit(*ads(30))
    assert not (tmp_path / "ran").exists() and "auto_map" not in checked_description({**config, "auto_map": {}})


@pytest.mark.parametrize("family", ["distilbert", "roberta", "electra"])
def test_layers_have_the_same_names_in_every_family(tmp_path, family):
    x, y = ads(60)
    found = AdSentimentAnalyzer(settings(str(tiny_encoder(tmp_path / family, family)), frozen_layers=["embeddings", "encoder.0"], max_steps=2)).fit(x, y)
    assert list(found.layers()) == ["embeddings", "encoder.0", "encoder.1", "encoder.2", "head"] and found.course.frozen == ("embeddings", "encoder.0")
    assert found.predict(x).tolist() == load_model(found.save(tmp_path / "saved")).predict(x).tolist()


# training

def test_length_buckets_hold_every_row_once_and_waste_little():
    lengths = np.random.default_rng(0).geometric(0.05, 5_000).clip(2, 128)
    made = batches(lengths, 32, seed=3)
    assert sorted(np.concatenate(made)) == list(range(5_000)) and max(map(len, made)) == 32
    paid = sum(len(b) * lengths[b].max() for b in made)
    assert lengths.sum() / paid > 0.9 > lengths.sum() / (5_000 * 128)
    first = [lengths[b].mean() for b in made[:40]]
    assert np.std(first) > 3 and batches([], 8, seed=0) == []   # long and short batches come mixed


def test_tokens_survive_every_length():
    from tokenizers import Tokenizer, models, pre_tokenizers
    tokenizer = Tokenizer(models.WordLevel({"?": 0, "a": 1, "b": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens = tokenized(tokenizer, ["a b", "", None, "b " * 500, "z" * 100_000], most=7, pad=0)
    assert tokens.lengths.tolist() == [2, 1, 1, 7, 1]
    ids, mask = padded(tokens, np.array([3, 0]))
    assert ids.tolist() == [[2] * 7, [1, 2, 0, 0, 0, 0, 0]] and mask.sum(1).tolist() == [7, 2]
    assert tokens.take(np.array([4, 0])).take(np.array([1])).ids.tolist() == [1, 2]


def test_accumulated_gradients_are_those_of_the_whole(model):
    import copy

    import torch
    x, y = ads(32, seed=4)
    rows, grads = rows_of(model.part.tokens(list(x["text"])), y), []
    for size in (4, 32):
        network = copy.deepcopy(model.part.network).eval()
        gradient(network, rows, [np.arange(i, i + size) for i in range(0, 32, size)], Plan(precision="float32", device="cpu"), torch.device("cpu"))
        grads.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    assert torch.allclose(*grads, atol=1e-6)


def test_the_same_seed_gives_the_same_bytes_and_leaves_torch_as_it_was(encoder, tmp_path):
    import torch
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    made = [AdSentimentAnalyzer(settings(encoder, random_state=s, max_steps=10)).fit(*ads(200)) for s in (1, 1, 2)]
    one, two, other = (folder_digest(m.save(tmp_path / str(i))) for i, m in enumerate(made))
    assert one == two != other
    assert torch.equal(state, torch.get_rng_state()) and torch.get_num_threads() == threads


def test_early_stopping_keeps_the_best_and_a_step_limit_holds(encoder):
    x, y = ads(200)
    noisy = pd.Series(np.random.default_rng(0).integers(0, 2, 60), name="label")
    stopped = AdSentimentAnalyzer(settings(encoder, epochs=60, patience=2)).fit(x, y, validation=(ads(60, 5)[0], noisy))
    losses = stopped.curve["validation"]
    assert stopped.course.steps < 60 * 13 and stopped.best_iteration == 13 * (1 + int(np.argmin(losses))) and len(losses) == len(stopped.curve["train"])
    told = []
    limited = AdSentimentAnalyzer(settings(encoder, epochs=50, max_steps=7)).fit(x, y, progress=lambda step, figures: told.append((step, figures)))
    assert limited.course.steps == 7 and [s for s, _ in told] == list(range(1, 8)) and all(np.isfinite(f["train"]) for _, f in told)


def test_model_trainer_trains_it_like_any_other(encoder, ctx):
    x, y = ads(300)
    frame = x.assign(label=y)
    result = ModelTrainer(AdSentimentAnalyzer(settings(encoder)), experiment_tracking=False, ctx=ctx).train(frame[:240], frame[240:], ["text"], "label",
                                                                                                            early_stopping_rounds=5)
    assert result.validation_metrics["accuracy"] > 0.9 and set(result.curve) == {"train", "validation"} and result.best_iteration


def test_frozen_layers_do_not_move_and_patterns_must_match(encoder):
    x, y = ads(100)
    frozen = AdSentimentAnalyzer(settings(encoder, frozen_layers=["embeddings", "encoder.[01]"])).fit(x, y)
    free = AdSentimentAnalyzer(settings(encoder)).fit(x, y)
    untouched = layer_digests(AdSentimentAnalyzer(settings(encoder, frozen_layers=["encoder", "embeddings"])).fit(x, y).part.network)
    assert frozen.course.frozen == ("embeddings", "encoder.0", "encoder.1") and frozen.course.trained_parameters < free.course.trained_parameters
    for layer, digest in untouched.items():
        if layer == "head": continue
        assert (frozen.layer_digests([layer])[layer] == digest) is (layer in frozen.course.frozen)
        assert free.layer_digests([layer])[layer] != digest
    with pytest.raises(InvalidInput, match=r"unknown layer 'encoder.3'.*known: embeddings, encoder.0, encoder.1, encoder.2, head"):
        AdSentimentAnalyzer(settings(encoder, frozen_layers=["encoder.3"])).fit(x, y)
    with pytest.raises(InvalidInput, match="at least one"): AdSentimentAnalyzer(settings(encoder, frozen_layers=["*"])).fit(x, y)


def test_augmentation_is_for_the_smaller_class_and_training_rows_only(encoder):
    x, y = ads(200, share=0.1)
    more, origin = balanced_texts(list(x["text"]), y, seed=1)
    counts = np.bincount(y.to_numpy()[origin])
    assert counts[0] == (y == 0).sum() and counts[1] == min(counts[0], 6 * (y == 1).sum()) and more[:200] == list(x["text"])
    assert all(set(m.split()) <= set(x["text"][i].split()) for m, i in zip(more, origin, strict=True))
    draw = np.random.default_rng(0)
    assert all("not" in changed("this is not a good thing", draw, 0.9, 0.9).split() for _ in range(30))
    held = ads(50, 6)
    steps = {a: AdSentimentAnalyzer(settings(encoder, epochs=1, augmentation=a)).fit(x, y, validation=held).course.steps for a in ("none", "balance")}
    assert steps["none"] == int(np.ceil(200 / 16)) < steps["balance"] == int(np.ceil(len(more) / 16))


def test_class_weights_lift_the_rare_class(encoder):
    x, y = ads(300, share=0.05)
    vague = pd.DataFrame({"text": ["the train", "bread and a hotel", "our new shoes"] * 10})
    means = {w: AdSentimentAnalyzer(settings(encoder, class_weights=w, epochs=1)).fit(x, y).predict(vague).mean() for w in ("none", "balanced")}
    assert means["balanced"] > means["none"]


# killed and resumed

def interrupted(config: dict, checkpoint: Path, at: int, rows: int = 160) -> None:
    def power_cut(step, figures):
        if step == at: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): AdSentimentAnalyzer(config).fit(*ads(rows), validation=ads(40, 3), progress=power_cut, checkpoint=checkpoint)


@pytest.mark.parametrize("at", [4, 11, 23])
def test_a_killed_training_ends_with_the_same_weights(encoder, tmp_path, at):
    config = settings(encoder, checkpoint_every=5, patience=3, evaluate_every=6, accumulation=2, batch_size=4)
    whole = AdSentimentAnalyzer(config).fit(*ads(160), validation=ads(40, 3))
    interrupted(config, tmp_path / "c", at)
    again = AdSentimentAnalyzer(config).fit(*ads(160), validation=ads(40, 3), checkpoint=tmp_path / "c")
    assert again.course.resumed_from == at // 5 * 5 and again.curve == whole.curve and again.best_iteration == whole.best_iteration
    assert folder_digest(again.save(tmp_path / "a")) == folder_digest(whole.save(tmp_path / "w"))
    assert sorted(p.suffix for p in (tmp_path / "c").iterdir()) == [".json", ".safetensors"]


def test_killed_for_real_and_resumed_in_another_process(encoder, tmp_path):
    config = settings(encoder, checkpoint_every=3)
    script = textwrap.dedent(f"""
        import os, signal, sys
        sys.path.insert(0, {str(ROOT / "tests")!r})
        from test_sentiment import ads
        from within.ml.ad_sentiment import AdSentimentAnalyzer
        def cut(step, figures):
            if step == 8: os.kill(os.getpid(), signal.SIGKILL)
        AdSentimentAnalyzer({config!r}).fit(*ads(160), progress=cut, checkpoint={str(tmp_path / "c")!r})
    """)
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    again, whole = AdSentimentAnalyzer(config).fit(*ads(160), checkpoint=tmp_path / "c"), AdSentimentAnalyzer(config).fit(*ads(160))
    assert again.course.resumed_from == 6 and again.layer_digests() == whole.layer_digests()


def test_a_checkpoint_of_another_training_is_refused(encoder, tmp_path):
    config = settings(encoder, checkpoint_every=2)
    interrupted(config, tmp_path / "c", 5)
    held, place = ads(40, 3), tmp_path / "c"
    for other, rows in (({"learning_rate": 1e-3}, 160), ({"random_state": 7}, 160), ({"frozen_layers": ["encoder.0"]}, 160), ({}, 161)):
        with pytest.raises(InvalidInput, match="another training"): AdSentimentAnalyzer(config | other).fit(*ads(rows), validation=held, checkpoint=place)
    elsewhere = str(tiny_encoder(tmp_path / "other", "roberta"))
    config_there = config | {"encoder": elsewhere}
    with pytest.raises(InvalidInput, match="another training"): AdSentimentAnalyzer(config_there).fit(*ads(160), validation=held, checkpoint=place)
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    with pytest.raises(InvalidInput, match="'thesis.txt' and no checkpoint"): AdSentimentAnalyzer(config).fit(*ads(160), checkpoint=full)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "not json", "protocol"])
def test_damaged_checkpoints_are_refused(encoder, tmp_path, damage):
    config, place = settings(encoder, checkpoint_every=2), tmp_path / "c"
    interrupted(config, place, 5)
    (weights,) = place.glob("step-*.safetensors")
    data, told = bytearray(weights.read_bytes()), place / "checkpoint.json"
    if damage == "flip": data[-3] ^= 1
    if damage == "remove": weights.unlink()
    else: weights.write_bytes(bytes(data[: len(data) // 2] if damage == "truncate" else data))
    if damage == "not json": told.write_text("{")
    if damage == "protocol": told.write_text(json.dumps({**json.loads(told.read_text()), "protocol": 9}))
    with pytest.raises((InvalidInput, DigestMismatch)): AdSentimentAnalyzer(config).fit(*ads(160), validation=ads(40, 3), checkpoint=place)


# artifacts

def test_saved_and_loaded_without_its_encoder(model, tmp_path, encoder):
    x, _ = ads(50, seed=2)
    folder = model.save(tmp_path / "m")
    assert {p.name for p in folder.iterdir()} == {"model.json", "tokenizer.json", "weights.safetensors"}
    assert encoder not in (folder / "model.json").read_text()   # no path of this machine
    again = load_model(folder, folder_digest(folder))
    assert again.predict(x).tolist() == model.predict(x).tolist() and again.config["architecture"] == "transformer"


@pytest.mark.parametrize("file", ["model.json", "tokenizer.json", "weights.safetensors"])
def test_tampered_and_truncated_artifacts(model, tmp_path, file):
    folder = model.save(tmp_path / "m")
    digest, data = folder_digest(folder), (folder / file).read_bytes()
    (folder / file).write_bytes(data[: len(data) // 2])
    with pytest.raises(DigestMismatch, match="nothing of it was read"): load_model(folder, digest)
    with pytest.raises(InvalidInput): load_model(folder)
    (folder / file).unlink()
    with pytest.raises(InvalidInput): load_model(folder)


def test_a_pickle_offered_as_weights_does_not_run(model, tmp_path):
    class Evil:
        def __reduce__(self): return os.system, (f"touch {tmp_path / 'ran'}",)
    for name in ("weights.safetensors", "tokenizer.json", "pytorch_model.bin"):
        folder = model.save(tmp_path / name)
        (folder / name).write_bytes(pickle.dumps(Evil()))
        with pytest.raises(InvalidInput): load_model(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("change", [{"model_type": "evil"}, {"hidden_size": 10**9}, {"hidden_size": 33}, {"num_hidden_layers": 4}, {"num_hidden_layers": 10**6},
                                    {"vocab_size": 5}, {"num_attention_heads": 0}, {"hidden_act": "os.system"}])
def test_a_changed_encoder_description_is_refused(model, tmp_path, change):
    folder = model.save(tmp_path / "m")
    body = json.loads((folder / "model.json").read_text())
    body["encoder"]["config"] |= change
    (folder / "model.json").write_text(json.dumps(body))
    with pytest.raises(InvalidInput): load_model(folder)


@pytest.mark.parametrize("change", [lambda b: b.pop("encoder"), lambda b: b["encoder"].update(by_digest=["embeddings"]),
                                    lambda b: b["encoder"].update(by_digest=["?"]), lambda b: b.update(encoder=[1]),
                                   lambda b: b["config"].update(architecture="linear"), lambda b: b.update(target_mean=None)])
def test_a_description_that_does_not_fit_the_weights(model, tmp_path, change):
    folder = model.save(tmp_path / "m")
    body = json.loads((folder / "model.json").read_text())
    change(body)
    (folder / "model.json").write_text(json.dumps(body))
    with pytest.raises(InvalidInput): load_model(folder)


def test_the_packaged_encoder_is_named_not_copied_and_checked(tmp_path):
    x, y = ads(60)
    config = {"architecture": "transformer", "frozen_layers": ["embeddings", "encoder"], "precision": "float32"}
    named = AdSentimentAnalyzer(config).fit(x, y)
    folder = named.save(tmp_path / "named")
    assert (folder / "weights.safetensors").stat().st_size < 20_000 and load_model(folder).predict(x).tolist() == named.predict(x).tolist()
    body = json.loads((folder / "model.json").read_text())
    body["encoder"]["digest"] = "0" * 64
    (folder / "model.json").write_text(json.dumps(body))
    with pytest.raises(DigestMismatch, match="holds other bytes"): load_model(folder)
    named.config["frozen_weights"] = "copied"
    whole = named.save(tmp_path / "copied")
    assert (whole / "weights.safetensors").stat().st_size > 80_000_000 and load_model(whole).predict(x).tolist() == named.predict(x).tolist()


# out of domain

def test_shared_sentences_are_found_in_any_spelling():
    test = pd.DataFrame({"text": ["It's a GEM!", "new", "café", "", None], "label": [1, 0, 1, 0, 1]})
    assert without_shared(test, ["it 's a gem .", "cafe\u0301", ""])["text"].tolist()[0] == "new"
    assert len(without_shared(test, ["it 's a gem .", "cafe\u0301", ""])) == 3 and normalised("ＡＢ c") == "abc"


def test_verdicts_out_of_domain_by_simulation():
    "Of sets drawn from a source where the model is right with probability 0.85 exactly, at most about 2.5 % may pass."
    class Coin:
        def __init__(self, right, seed): self.right, self.draw = right, np.random.default_rng(seed)
        def predict(self, frame): return np.where(self.draw.random(len(frame)) < self.right, 0.9, 0.1)
    rows = pd.DataFrame({"text": ["x"] * 400, "label": [1] * 400})
    verdicts = [evaluate_out_of_domain(Coin(0.85, s), {"a": rows})["verdict"][0] for s in range(400)]
    assert verdicts.count("passed") <= 22 and verdicts.count("failed") <= 22 and verdicts.count("inconclusive") > 350
    assert evaluate_out_of_domain(Coin(0.95, 0), {"a": rows})["verdict"][0] == "passed"
    assert evaluate_out_of_domain(Coin(0.5, 0), {"a": rows, "none": rows[:0]})["verdict"].tolist() == ["failed", "inconclusive"]


@pytest.mark.parametrize("wrong", [{}, None, [1], {"a": pd.DataFrame({"text": ["x"]})}, {"a": None}])
def test_sets_that_are_none(model, wrong):
    with pytest.raises(InvalidInput): evaluate_out_of_domain(model, wrong)


def test_real_film_sets_share_sentences():
    files = [DATA / "sentiment_sst2" / "sst2.parquet", DATA / "sentiment_fdu_mtl" / "fdu_mtl.parquet"]
    if not all(f.exists() for f in files): pytest.skip("../shared/data has no sentiment sets")
    films, shops = (pd.read_parquet(f) for f in files)
    mr = shops[(shops["domain"] == "MR") & (shops["split"] == "test")]
    assert len(without_shared(mr, films["sentence"])) < 0.6 * len(mr)
