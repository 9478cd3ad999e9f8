"""Training and judging: bad rows, tracking that is away, first of its kind, units, and the guide's calls on the small world."""
from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from mlflow_tables import with_tables

from within.clock import FrozenClock, parse_time
from within.context import Context
from within.errors import InvalidInput, UnknownModelVersion
from within.ml.ad_score import AdScorePredictor
from within.ml.base import folder_digest
from within.ml.evaluation import ModelEvaluator, improvement_verdict
from within.ml.metrics import measure, r2, roc_auc
from within.ml.registry import ModelRegistry
from within.ml.training import ModelTrainer
from within.verdicts import Phase

FEATURES, TARGET = ["ctr", "platform"], "effectiveness_score"


@pytest.fixture(scope="module")
def ads() -> pd.DataFrame:
    draw = np.random.default_rng(1)
    rows = pd.DataFrame({"ctr": draw.normal(size=2400), "platform": draw.choice(["a", "b"], 2400), "account_id": draw.integers(0, 150, 2400)})
    rows[TARGET] = (50 + 6 * rows.ctr + 6 * (rows.platform == "b") + draw.normal(0, 5, 2400)).clip(0, 100)
    return rows


@pytest.fixture
def ctx(tmp_path, monkeypatch) -> Context:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Context.open(home=with_tables(tmp_path / "home"), clock=FrozenClock(parse_time("2023-10-01")), user="ana")


def predictor(**config) -> AdScorePredictor: return AdScorePredictor({"n_estimators": 40, "max_depth": 3, "learning_rate": 0.1, "nthread": 1, **config})


def trained(ctx, rows, features=FEATURES, tracking=False, **more):
    return ModelTrainer(predictor(), experiment_tracking=tracking, ctx=ctx).train(rows[:1600], rows[1600:2000], features, TARGET, **more)


@pytest.mark.parametrize("features, target, match", [([], TARGET, "at least one"), ("ctr", TARGET, "list"),
                                                     (["ctr", TARGET], TARGET, "reads its answer"), (["ctr", "ctr"], TARGET, "twice"),
                                                     (["ctr", "cpc"], TARGET, "lack cpc"), (["ctr"], "score", "lack score")])
def test_columns_that_cannot_be_trained_on(ctx, ads, features, target, match):
    with pytest.raises(InvalidInput, match=match): ModelTrainer(predictor(), experiment_tracking=False, ctx=ctx).train(ads[:100], ads[100:], features, target)


def test_rows_that_are_none(ctx, ads):
    trainer = ModelTrainer(predictor(), experiment_tracking=False, ctx=ctx)
    with pytest.raises(InvalidInput, match="no training rows"): trainer.train(ads[:0], ads, FEATURES, TARGET)
    with pytest.raises(InvalidInput, match="no validation rows"): trainer.train(ads, ads[:0], FEATURES, TARGET)
    with pytest.raises(InvalidInput, match="can be trained"): ModelTrainer("model", ctx=ctx)


def test_training_twice_gives_one_digest_and_the_curve(ctx, ads, tmp_path, capsys):
    one, two = trained(ctx, ads, early_stopping_rounds=50, verbose=20), trained(ctx, ads, early_stopping_rounds=50)
    assert folder_digest(one.model.save(tmp_path / "1")) == folder_digest(two.model.save(tmp_path / "2"))
    assert capsys.readouterr().out.count("round") == 3 and set(one.curve) == {"train", "validation"}
    assert one.train_metrics["rmse"] == pytest.approx(one.curve["train"][one.best_iteration - 1], rel=1e-4)
    assert set(one.validation_metrics) == {"rmse", "mae", "r2", "accuracy_at_threshold"} and one.tracking_run_id is None


def test_tracking_is_recorded_in_one_run_and_kept_by_the_registry(ctx, ads):
    result = trained(ctx, ads, tracking=True)
    registry = ModelRegistry(ctx)
    info = registry.register_model(result.model, "ad_score_predictor", "2.2.0")
    assert info.mlflow["run"] == result.tracking_run_id
    assert len(registry.tracking.client.get_metric_history(result.tracking_run_id, "validation.by_round")) == 40


def test_a_tracking_server_that_is_away_costs_no_model(ctx, ads, monkeypatch):
    def away(*_, **__): raise ConnectionError("no route to host")
    monkeypatch.setattr("within.ml.tracking.Tracking.record", away)
    result = trained(ctx, ads, tracking=True)
    assert result.model.fitted and result.tracking_run_id is None and "no route to host" in result.notes[0]


def test_without_tracking_mlflow_is_not_imported(tmp_path):
    code = ("import sys, pandas as pd\nfrom within.ml.training import ModelTrainer\nfrom within.ml.models import AdScorePredictor\n"
            "d = pd.DataFrame({'x': range(50), 'y': range(50)})\n"
            "ModelTrainer(AdScorePredictor({'n_estimators': 2}), experiment_tracking=False).train(d, d, ['x'], 'y')\nassert 'mlflow' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env={"WITHIN_HOME": str(tmp_path), "PATH": ""})


@pytest.mark.parametrize("low, high, phase", [
    (5.0, 9.0, Phase.PASSED), (4.9, 9.0, Phase.INCONCLUSIVE), (-9.0, 4.9, Phase.FAILED), (-3.0, 5.0, Phase.INCONCLUSIVE)])
def test_the_lower_end_decides(low, high, phase):
    verdict = improvement_verdict(6.0, low, high, 5.0, 1000, "2.1.0")
    assert verdict.phase is phase and "5 %" in verdict.reason and f"{low:.2f}" in verdict.reason


def test_a_comparison_on_the_same_rows_each_on_its_own_features(ctx, ads):
    old, new = trained(ctx, ads, ["ctr"]).model, trained(ctx, ads).model
    ModelRegistry(ctx).register_model(old, "ad_score_predictor", "2.1.0")
    found = ModelEvaluator(ctx).compare_models(new, "2.1.0", ads[2000:], FEATURES, TARGET, unit="account_id")
    y = ads[TARGET][2000:]
    expected = (1 - measure(y, new.predict(ads[2000:]))["rmse"] / measure(y, old.predict(ads[2000:]))["rmse"]) * 100
    assert found.improvement_percentage == pytest.approx(expected) and found.low < expected < found.high
    assert found.verdict.passed and found.new_metrics.units <= 150 and found.rows == 400
    assert found == found and str(found) == found.verdict.reason and "| rmse |" in found.new_metrics._repr_markdown_()


def test_the_same_model_is_not_better_than_itself(ctx, ads):
    model = trained(ctx, ads).model
    ModelRegistry(ctx).register_model(model, "ad_score_predictor", "2.1.0")
    found = ModelEvaluator(ctx).compare_models(model, "2.1.0", ads[2000:], FEATURES, TARGET)
    assert (found.improvement_percentage, found.low, found.high) == (0, 0, 0) and found.verdict.phase is Phase.FAILED


def test_rows_the_champion_learned_from_do_not_count(ctx, ads):
    rows = ads.assign(created_at=pd.date_range("2023-01-01", periods=len(ads), freq="2h"))   # to 2023-07-19
    eager = ModelTrainer(predictor(n_estimators=400, max_depth=8), experiment_tracking=False, ctx=ctx)
    seen = eager.train(rows[:1600], rows[1600:1700], FEATURES, TARGET).model
    ModelRegistry(ctx).register_model(seen, "ad_score_predictor", "2.1.0", training_data_info={"end_date": "2023-05-14"})
    new = ModelTrainer(predictor(), experiment_tracking=False, ctx=ctx).train(rows[1000:1800], rows[1800:1900], FEATURES, TARGET).model
    found = ModelEvaluator(ctx).compare_models(new, "2.1.0", rows, FEATURES, TARGET, unit="account_id")
    later = rows[rows.created_at >= "2023-05-15"]
    assert found.rows == len(later) == 792 and "later than 2023-05-14" in found.verdict.reason
    expected = (1 - measure(later[TARGET], new.predict(later))["rmse"] / measure(later[TARGET], seen.predict(later))["rmse"]) * 100
    assert found.improvement_percentage == pytest.approx(expected) and expected > 0
    few = ModelEvaluator(ctx).compare_models(new, "2.1.0", rows[:1700], FEATURES, TARGET, unit="account_id")
    assert few.rows == 1700 and "favours it" in few.verdict.reason


def test_which_model_a_version_belongs_to(ctx, ads):
    model, registry, evaluator = trained(ctx, ads).model, ModelRegistry(ctx), ModelEvaluator(ctx)
    for name in ("upworthy", "hillstrom"): registry.register_model(model, name, "1.0.0")
    with pytest.raises(InvalidInput, match="hillstrom, upworthy"): evaluator.compare_models(model, "1.0.0", ads[2000:], FEATURES, TARGET)
    assert evaluator.compare_models(model, "1.0.0", ads[2000:], FEATURES, TARGET, model_name="upworthy").champion == "1.0.0"
    with pytest.raises(UnknownModelVersion): evaluator.compare_models(model, "9.0.0", ads[2000:], FEATURES, TARGET)


def test_the_baseline_stands_in(ctx, ads):
    model = trained(ctx, ads).model
    first = ModelEvaluator(ctx).compare_models(model, None, ads[2000:], FEATURES, TARGET)
    y = ads[TARGET]
    assert first.champion == "baseline (mean)" and first.champion_metrics["rmse"] == pytest.approx(float(np.sqrt(np.mean((y[2000:] - y[:1600].mean()) ** 2))))
    ModelRegistry(ctx).register_model(trained(ctx, ads, ["ctr"]).model, "ad_score_predictor", "2.1.0")
    second = ModelEvaluator(ctx).compare_models(trained(ctx, ads, ["platform"]).model, "2.1.0", ads[2000:].drop(columns="ctr"), ["platform"], TARGET)
    assert second.champion == "baseline (mean)" and "ctr" in second.notes[0]


def test_units_widen_the_interval(ctx, ads):
    model = trained(ctx, ads).model
    copies = pd.concat([ads[2000:2100]] * 10, ignore_index=True).assign(unit=list(range(100)) * 10)
    wide, narrow = (ModelEvaluator(ctx).evaluate(model, copies, FEATURES, TARGET, unit=u).intervals["rmse"] for u in ("unit", None))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_missing_outcomes_are_not_judged_by(ctx, ads):
    model = trained(ctx, ads).model
    holed = ads[2000:].replace({TARGET: {ads[TARGET][2000]: np.nan}})
    with pytest.raises(InvalidInput, match="1 of 400 outcomes"): ModelEvaluator(ctx).evaluate(model, holed, FEATURES, TARGET)
    with pytest.raises(InvalidInput, match="no rows"): ModelEvaluator(ctx).evaluate(model, ads[:0], FEATURES, TARGET)


def test_figures_at_their_edges():
    assert r2([5, 5], [5, 5]) == 1 and r2([5, 5], [4, 6]) == 0 and roc_auc([1, 1], [0.2, 0.3]) == 0.5
    from sklearn.metrics import log_loss, mean_absolute_error, r2_score, roc_auc_score
    draw = np.random.default_rng(2)
    y, p = draw.integers(0, 2, 300), draw.random(300).round(1)
    assert roc_auc(y, p) == pytest.approx(roc_auc_score(y, p))
    ours = measure(y, p, ["mae", "r2", "log_loss"])
    assert list(ours.values()) == pytest.approx([mean_absolute_error(y, p), r2_score(y, p), log_loss(y, np.clip(p, 1e-7, 1 - 1e-7))])
