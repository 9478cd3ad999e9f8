"""The registry with races, kills half-way, damage and hostile names."""
from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
from mlflow_tables import with_tables

from within import ledger
from within.clock import FrozenClock, parse_time
from within.context import Context
from within.errors import Conflict, DigestMismatch, InvalidInput, NotApproved, UnknownModel, UnknownModelVersion
from within.ml.ad_score import AdScorePredictor
from within.ml.base import folder_digest
from within.ml.registry import ModelRegistry

ROWS = pd.DataFrame({"ctr": range(40)})


def small(trees: int = 3) -> AdScorePredictor: return AdScorePredictor({"n_estimators": trees, "nthread": 1}).fit(ROWS, pd.Series(range(40), name="score"))


def opened(home, **more) -> Context: return Context.open(home=home, clock=FrozenClock(parse_time("2023-10-01")), user="ana", **more)


@pytest.fixture
def registry(tmp_path, monkeypatch) -> ModelRegistry:
    for name in ("MLFLOW_TRACKING_URI", "WITHIN_HOME"): monkeypatch.delenv(name, raising=False)
    return ModelRegistry(opened(with_tables(tmp_path / "home")))


@pytest.mark.parametrize("version", ["2.2", "v2.2.0", "2.2.0.0", "", None, 2, "2.2.0-rc1", "2.2.0 ", "2.2.0\n", "٢.٢.٠", "1.0.00", "9999999.0.0"])
def test_versions_that_are_none(registry, version):
    with pytest.raises(InvalidInput, match="three whole numbers"): registry.register_model(small(), "ads", version)


@pytest.mark.parametrize("name", ["../ads", "a/b", "ads'; drop table versions; --", "<script>alert(1)</script>", "",
                                  "a" * 101, "ads\n", "ads@1.0.0", "Ä", ".hidden", "-x", None])
def test_names_that_are_hostile(registry, name):
    with pytest.raises(InvalidInput, match="not allowed"): registry.register_model(small(), name, "1.0.0")
    assert registry.names() == [] and not any(registry.ctx.path().rglob("*.ubj"))


@pytest.mark.parametrize("facts", [{"metrics": {"rmse": float("nan")}}, {"metrics": {"rmse": "low"}}, {"metrics": [1]}, {"labels": "staging"},
                                   {"training_data_info": {"x": "y" * 2_000_000}}])
def test_facts_that_are_none(registry, facts):
    with pytest.raises(InvalidInput): registry.register_model(small(), "ads", "1.0.0", **facts)


def test_unfitted_and_foreign_models(registry):
    with pytest.raises(InvalidInput, match="not been fitted"): registry.register_model(AdScorePredictor(), "ads", "1.0.0")
    with pytest.raises(InvalidInput, match="only a within"): registry.register_model({"a": "model"}, "ads", "1.0.0")


def test_a_version_keeps_its_bytes(registry):
    first = registry.register_model(small(3), "ads", "1.0.0", metrics={"rmse": 2.0})
    again = registry.register_model(small(3), "ads", "1.0.0", metrics={"rmse": 9.0})
    assert again.metrics == {"rmse": 2.0} and first.digest == again.digest
    with pytest.raises(Conflict, match="never reused"): registry.register_model(small(4), "ads", "1.0.0")
    assert [i.version for i in registry.history("ads")] == ["1.0.0"] and len(ledger.entries(registry.ctx, "registration")) == 1
    assert len(registry.tracking.client.search_model_versions("name='ads'")) == 1


@pytest.mark.parametrize("dies_in", ["keep", "_claim", "_vouch"])
def test_a_kill_half_way_loses_nothing(registry, monkeypatch, dies_in):
    class Killed(BaseException): pass
    def die(*_, **__): raise Killed
    from within.ml.tracking import Tracking
    with monkeypatch.context() as m:
        m.setattr(Tracking if dies_in == "keep" else ModelRegistry, dies_in, die)
        with pytest.raises(Killed): registry.register_model(small(), "ads", "1.0.0")
    info = ModelRegistry(registry.ctx).register_model(small(), "ads", "1.0.0")
    assert registry.load("ads", "1.0.0").predict(ROWS).tolist() == small().predict(ROWS).tolist() and registry.get(info.id) == info
    assert len(ledger.entries(registry.ctx, "registration")) == 1 and len(registry.tracking.client.search_model_versions("name='ads'")) == 1
    assert ledger.verify(registry.ctx).ok


def compete(home: str, trees: int, answers) -> None:
    try: answers.put((trees, ModelRegistry(opened(home)).register_model(small(trees), "ads", "1.0.0").digest))
    except Conflict as e: answers.put((trees, str(e)))


def test_two_processes_cannot_both_win(registry):
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    racers = [spawn.Process(target=compete, args=(str(registry.ctx.settings.home), trees, answers)) for trees in (3, 4)]
    for r in racers: r.start()
    said = dict(answers.get(timeout=120) for _ in racers)
    for r in racers: r.join(30)
    won = registry.get("ads", "1.0.0").digest
    assert sorted("never reused" in s for s in said.values()) == [False, True] and won in said.values()


def test_the_author_cannot_approve_and_a_note_is_needed(registry):
    info = registry.register_model(small(), "ads", "1.0.0")
    for reviewer in ("ana", " Ana "):
        with pytest.raises(NotApproved, match="somebody else"): registry.approve(info.id, reviewer, "fine")
    for reviewer, note in (("", "fine"), (None, "fine"), ("bo", ""), ("bo", "  "), ("b\0o", "fine")):
        with pytest.raises(InvalidInput): registry.approve(info.id, reviewer, note)
    with pytest.raises(UnknownModelVersion): registry.approve("ads@9.9.9", "bo", "fine")
    with pytest.raises(UnknownModel): registry.approve("adz@1.0.0", "bo", "fine")
    assert registry.approval(info.id) is None and not registry.get(info.id).approved


def test_an_approval_is_bound_to_the_bytes(registry):
    info = registry.register_model(small(), "ads", "1.0.0")
    registry.approve(info.id, "bo@example.com", "read it")
    assert registry.require_approval(info.id).digest == info.digest
    row = registry.ctx.store.get("approval", info.id)
    registry.ctx.store.put("approval", info.id, {**row.body, "digest": "0" * 64}, row.revision)
    with pytest.raises(NotApproved): registry.require_approval(info.id)


def test_the_last_word_counts(registry):
    info = registry.register_model(small(), "ads", "1.0.0")
    registry.approve(info.id, "bo", "yes")
    registry.reject(info.id, "cy", "no: segments differ")
    with pytest.raises(NotApproved, match="cy rejected it: no: segments differ"): registry.require_approval(info.id)
    registry.approve(info.id, "bo", "they do not")
    assert registry.get("ads", "1.0.0").approved
    assert [e.kind for e in ledger.entries(registry.ctx, subject=info.id)] == ["registration", "approval", "rejection", "approval"]


def test_aliases_move_and_are_remembered(registry):
    for version, trees in (("1.0.0", 3), ("1.10.0", 4), ("1.9.0", 5)): registry.register_model(small(trees), "ads", version)
    registry.set_alias("ads", "champion", "1.0.0")
    registry.set_alias("ads", "champion", "1.10.0")
    registry.set_alias("ads", "champion", "1.10.0")
    assert registry.champion("ads").version == "1.10.0" and registry.next_version("ads") == "1.11.0"
    assert [h["version"] for h in registry.ctx.store.alias_history("ads", "champion")] == ["1.0.0", "1.10.0"]
    assert registry.tracking.client.get_model_version_by_alias("ads", "champion").tags["within.version"] == "1.10.0"
    for wrong in ("v9", "latest", "a.b", "", None, "Champion"):
        with pytest.raises(InvalidInput): registry.set_alias("ads", wrong, "1.0.0")
    with pytest.raises(UnknownModelVersion): registry.set_alias("ads", "champion", "3.0.0")


def test_an_alias_moves_although_mlflow_is_away(registry, monkeypatch):
    registry.register_model(small(), "ads", "1.0.0")
    def away(*_, **__): raise ConnectionError("no route to host")
    monkeypatch.setattr("within.ml.tracking.Tracking.point", away)
    registry.set_alias("ads", "champion", "1.0.0")
    assert registry.champion("ads").version == "1.0.0"


def test_damage_is_healed_from_the_other_copy_or_refused(registry):
    registry.register_model(small(), "ads", "1.0.0")
    place = registry.folder("ads", "1.0.0")
    (place / "model.ubj").write_bytes(b"damaged")
    assert folder_digest(registry.folder("ads", "1.0.0")) == registry.get("ads", "1.0.0").digest
    for copy in registry.ctx.path().rglob("model.ubj"): copy.write_bytes(b"damaged")
    with pytest.raises(DigestMismatch): registry.load("ads", "1.0.0")
    with pytest.raises(DigestMismatch): registry.approve("ads@1.0.0", "bo", "fine")


def test_attachments_are_vouched_for(registry):
    info = registry.register_model(small(), "ads", "1.0.0")
    path = registry.attach(info.id, "drift_reference.json", '{"a": 1}')
    registry.attach(info.id, "drift_reference.json", b'{"a": 2}')
    assert registry.attachment(info.id, "drift_reference.json").read_text() == '{"a": 2}' and registry.get(info.id).digest == info.digest
    assert registry.attachment(info.id, "nothing.json") is None and ledger.verify(registry.ctx).ok
    with pytest.raises(InvalidInput): registry.attach(info.id, "../../evil", b"")
    path.write_text("{}")
    assert "drift_reference.json" in ledger.verify(registry.ctx).first_fault


def test_loading_needs_no_mlflow(registry):
    registry.register_model(small(), "ads", "1.0.0")
    registry.set_alias("ads", "champion", "1.0.0")
    code = ("import sys\nfrom within.ml.registry import ModelRegistry\nr = ModelRegistry()\n"
            "assert r.load('ads', 'champion').predict_records([{'ctr': 3}])\nassert not {'mlflow', 'optuna', 'torch'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120,
                   env={**os.environ, "WITHIN_HOME": str(registry.ctx.settings.home), "WITHIN_CLOCK": "system"})


# --- the drift reference of a version --------------------------------------------------------------------------------------------------------------------

def snapshot_of(ctx, rows: int, features: tuple[str, ...], text: bool = False):
    "A snapshot of made-up rows, and its training side."
    import numpy as np
    import pyarrow as pa

    from within.snapshots import keep_snapshot, open_snapshot
    rng = np.random.default_rng(0)
    columns = {"ctr": rng.normal(size=rows), "who": rng.choice(list("abc"), rows), "score": rng.random(rows) * 100,
               "text": [f"text {i} " + "word " * (30 if text else 1) for i in range(rows)]}
    roles = {"features": list(features), "target": "score"}
    name, _ = keep_snapshot(ctx, [pa.RecordBatch.from_pandas(pd.DataFrame(columns))], roles, {})
    return open_snapshot(ctx, name).split(seed=3)[0]


def learned_from(part, model):
    model.lineage = {**{k: v for k, v in part.lineage.items() if k != "part"}, "features": ["ctr"], "rows": len(part)}
    return model


def test_the_reference_comes_with_the_version(registry):
    from within.drift import fit_reference
    part = snapshot_of(registry.ctx, 3000, ("ctr", "who"))
    info = registry.register_model(learned_from(part, small()), "ads", "1.0.0")
    kept = registry.reference("ads", "1.0.0")
    assert kept.rows == len(part) and kept.source == part.snapshot and list(kept.slots) == ["ctr"]
    assert kept.counts == fit_reference(part[["ctr"]]).counts and kept.compare(part[["ctr"]]).verdict.passed
    registry.set_alias("ads", "champion", "1.0.0")
    assert registry.reference("ads", "champion") == registry.reference("ads@1.0.0") == kept
    registry.register_model(learned_from(part, small()), "ads", "1.0.0")
    assert len(ledger.entries(registry.ctx, "attachment", info.id)) == 1 and ledger.verify(registry.ctx).ok
    registry.attachment(info.id, "drift_reference.json").write_text("{}")
    assert "drift_reference.json" in ledger.verify(registry.ctx).first_fault
    with pytest.raises(InvalidInput, match="not a drift reference"): registry.reference("ads", "1.0.0")


def test_without_a_snapshot_there_is_no_reference(registry):
    registry.register_model(small(), "ads", "1.0.0")
    assert registry.reference("ads", "1.0.0") is None and not ledger.entries(registry.ctx, "attachment")
    with pytest.raises(UnknownModelVersion): registry.reference("ads", "1.0.1")


@pytest.mark.parametrize("lineage", [{"snapshot": "0" * 64}, {"snapshot": "nonsense", "split": {"by": "random"}}, {"snapshot": 7}])
def test_a_reference_that_cannot_be_made_is_noted_and_not_fatal(registry, lineage):
    model = small()
    model.lineage = lineage
    info = registry.register_model(model, "ads", "1.0.0")
    assert registry.reference("ads", "1.0.0") is None and registry.load("ads", "1.0.0").features == ["ctr"]
    (note,) = ledger.entries(registry.ctx, "note", info.id)
    assert "no drift reference" in note.body and ledger.verify(registry.ctx).ok


def test_a_model_of_long_texts_is_cheap_to_refer_to(registry):
    from within.ml.registry import reference_of
    part = snapshot_of(registry.ctx, 100_000, ("text",), text=True)
    found = reference_of(registry.ctx, part.lineage, ["text"])
    assert found.rows == len(part) and len(found.to_json()) < 2_000
def test_who_was_champion_when(registry, monkeypatch):
    for version, trees in (("1.0.0", 3), ("1.1.0", 4)): registry.register_model(small(trees), "ads", version)
    home = registry.ctx.settings.home
    for day, version in (("2023-10-02", "1.0.0"), ("2023-11-01", "1.1.0"), ("2023-11-20", "1.1.0"), ("2023-12-01", "1.0.0")):
        ModelRegistry(Context.open(home=home, clock=FrozenClock(parse_time(day)), user="ops")).set_alias("ads", "champion", version)
    told = registry.champions("ads")
    assert [(t.version, f"{t.since:%m-%d}", t.until and f"{t.until:%m-%d}", t.by) for t in told] == [
        ("1.0.0", "10-02", "11-01", "ops"), ("1.1.0", "11-01", "12-01", "ops"), ("1.0.0", "12-01", None, "ops")]
    asked = {"2023-10-01": None, "2023-10-02": "1.0.0", "2023-10-31T23:59:59": "1.0.0", "2023-11-01": "1.1.0", "2024-05-01": "1.0.0"}
    assert {day: (c and c.version) for day in asked for c in [registry.champion_at("ads", day)]} == asked
    assert registry.champions("other") == []
    for wrong in ("../ads", "", None):
        with pytest.raises(InvalidInput): registry.champions(wrong)
    with pytest.raises(InvalidInput): registry.champion_at("ads", "last week")


def test_a_version_says_where_it_came_from(registry, monkeypatch):
    from within.ml.machine import code_digest
    monkeypatch.setenv("WITHIN_RUN", "20231001-ads-1a2b")
    model = small()
    model.lineage = {"snapshot": "ab" * 32, "split": {"by": "time"}, "rows": 40}
    info = registry.register_model(model, "ads", "1.0.0", training_data_info={"samples": 40})
    assert info.origin["run"] == "20231001-ads-1a2b" and info.origin["code"] == code_digest() and info.origin["within"]
    assert info.lineage == model.lineage and info.parameters["n_estimators"] == 3
    monkeypatch.delenv("WITHIN_RUN")
    assert registry.register_model(small(), "ads", "1.0.0").origin["run"] == "20231001-ads-1a2b"   # the same bytes again change nothing


@pytest.mark.parametrize("file", ["model.json", "model.ubj"])
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b + b"\n", lambda b: b"\x80\x04\x95" + b[3:]])
def test_tampered_and_truncated_files_are_never_parsed(registry, monkeypatch, file, damage):
    registry.register_model(small(), "ads", "1.0.0")
    for copy in registry.ctx.path().rglob(file): copy.write_bytes(damage(copy.read_bytes()))
    def never(*_, **__): raise AssertionError("parsed")
    monkeypatch.setattr("within.ml.base.json", SimpleNamespace(loads=never))
    monkeypatch.setattr(AdScorePredictor, "read_weights", never)
    with pytest.raises(DigestMismatch, match="nothing|not those"): registry.load("ads", "1.0.0")


def test_a_pickle_is_no_model(registry, tmp_path):
    import pickle
    touched = tmp_path / "touched"
    class Hostile:
        def __reduce__(self): return (touched.touch, ())
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(Hostile()))
    folder = small().save(tmp_path / "m")
    (folder / "model.ubj").write_bytes((tmp_path / "model.pkl").read_bytes())
    argv = [sys.executable, "-c", "from within.cli import main; main()", "register", "ads"]
    env = {**os.environ, "WITHIN_HOME": str(registry.ctx.settings.home), "WITHIN_CLOCK": "system"}
    for offered in (tmp_path / "model.pkl", folder):
        done = subprocess.run([*argv, str(offered), "--version", "1.0.0"], capture_output=True, text=True, env=env, timeout=120)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    for version in ("2.2", "v2.2.0"):
        (folder / "model.ubj").unlink(missing_ok=True)
        small().booster.save_model(folder / "model.ubj")
        done = subprocess.run([*argv, str(folder), "--version", version], capture_output=True, text=True, env=env, timeout=120)
        assert done.returncode == 2 and "three whole numbers" in done.stderr
    assert not touched.exists() and registry.names() == []


# --- a fourth model is one chapter and one config -----------------------------------------------------------------------------------------------------

CHAPTER = '''
"""How much will this campaign cost a day?"""
import json
import numpy as np
import pandas as pd
from within.errors import InvalidInput
from within.ml.base import Model, Setting, feature_spec, matrix

class DailyCost(Model):
    "Ridge regression over the features it is given."
    name, task = "daily_cost", "regression"
    settings = {"strength": Setting(1.0, 0.0, 1e6)}

    def fit(self, x, y, validation=None, early_stopping_rounds=None, progress=None):
        self.signature = [feature_spec(x[c]) for c in x.columns]
        rows, y = np.nan_to_num(matrix(x, self.signature)).astype(float), np.asarray(y, float)
        full = np.column_stack([rows, np.ones(len(rows))])
        self.weights = np.linalg.solve(full.T @ full + self.config["strength"] * np.eye(full.shape[1]), full.T @ y)
        self.target, self.target_mean = "cost", float(y.mean())
        return self

    def predict(self, x):
        self.require_fitted()
        return np.nan_to_num(matrix(x, self.signature)).astype(float) @ self.weights[:-1] + self.weights[-1]

    def describe(self): return {**super().describe(), "weights": self.weights.tolist()}

    def read_weights(self, folder, body):
        if len(body.get("weights", ())) != len(self.signature) + 1: raise InvalidInput("model.json lacks its weights")
        self.weights = np.array(body["weights"], float)
'''
CONFIG = """
model: daily_cost
class: campaign_costs:DailyCost
dataset: campaigns
target: cost
unit: account_id
score_threshold: 20
minimums: {samples: 100}
"""


def test_a_fourth_model_is_trained_registered_and_served(tmp_path, monkeypatch):
    import shutil
    from pathlib import Path

    import numpy as np
    from conftest import assert_nothing_runs

    from within.errors import UnknownModel
    from within.ml.evaluation import ModelEvaluator
    from within.ml.models import model_class
    from within.ml.training import ModelTrainer
    from within.serving.routes import Route, change
    from within.serving.supervisor import gateway_url, release
    from within.serving.wire import ask
    root = Path(__file__).resolve().parent.parent
    configs = Path(shutil.copytree(root / "configs", tmp_path / "configs"))
    (tmp_path / "chapters").mkdir()
    (tmp_path / "chapters" / "campaign_costs.py").write_text(CHAPTER)
    monkeypatch.syspath_prepend(tmp_path / "chapters")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'chapters'}{os.pathsep}{os.environ.get('PYTHONPATH', root)}")   # the host process imports it too
    with pytest.raises(UnknownModel): model_class("daily_cost", configs)
    (configs / "daily_cost.yml").write_text(CONFIG)
    ctx = Context.open(home=with_tables(tmp_path / "home"), configs=configs, clock=FrozenClock(parse_time("2023-10-01")), user="ana")
    draw = np.random.default_rng(0)
    rows = pd.DataFrame({"reach": draw.normal(10, 2, 400), "bids": draw.normal(5, 1, 400), "account_id": draw.integers(0, 50, 400)})
    rows["cost"] = 2 * rows.reach - rows.bids + draw.normal(0, 0.5, 400)
    result = ModelTrainer(model_class("daily_cost", configs)({"strength": 0.1}, ctx=ctx), ctx=ctx).train(rows[:300], rows[300:], ["reach", "bids"], "cost")
    assert result.validation_metrics["rmse"] < 0.7 and result.tracking_run_id and set(result.validation_metrics) >= {"accuracy_at_threshold"}
    compared = ModelEvaluator(ctx).compare_models(result.model, None, rows[300:], target="cost", unit="account_id")
    assert compared.verdict.passed and compared.champion == "baseline (mean)"
    info = ModelRegistry(ctx).register_model(result.model, "daily_cost", "1.0.0", metrics=compared.new_metrics)
    ModelRegistry(ctx).approve(info.id, "bo@example.com", "read it")
    assert ModelRegistry(ctx).load("daily_cost", "1.0.0").predict(rows).tolist() == result.model.predict(rows).tolist()
    change(ctx, Route("staging", "daily_cost", "1.0.0"), None, by="test", wait=0)
    try:
        given = {"inputs": [{"name": n, "shape": [1], "data": [float(rows[n][0])]} for n in ("reach", "bids")]}
        code, answer = ask(gateway_url(ctx, "staging"), "/v2/models/daily_cost/infer", given)
        assert code == 200 and answer["outputs"][0]["data"][0] == pytest.approx(result.model.predict(rows[:1])[0])
    finally: release(ctx)
    assert_nothing_runs(ctx.settings.home, patience=30.0)
