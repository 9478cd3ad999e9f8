"""Training and judging: bad rows, tracking that is away, first of its kind, units, and the guide's calls on the small world."""
from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow_tables import with_tables

from within.clock import FrozenClock, parse_time
from within.context import Context
from within.errors import Conflict, InvalidInput, ResourcesLacking, UnknownModelVersion
from within.ml.ad_score import AdScorePredictor
from within.ml.base import folder_digest
from within.ml.evaluation import ModelEvaluator, improvement_verdict
from within.ml.machine import Machine, preflight
from within.ml.metrics import measure, r2, roc_auc
from within.ml.registry import ModelRegistry
from within.ml.training import ModelTrainer
from within.policies import TrainingResources, load_policy
from within.snapshots import Split
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


# --- a training that is killed ------------------------------------------------------------------------------------------------------------------------

KILLED = textwrap.dedent("""
    import os, signal, sys
    import numpy as np, pandas as pd
    from within.ml.ad_score import AdScorePredictor
    from within.ml.base import folder_digest
    folder, dies, config = sys.argv[1], int(sys.argv[2]), eval(sys.argv[3])
    draw = np.random.default_rng(5)
    x = pd.DataFrame({"a": draw.normal(size=900), "b": draw.normal(size=900), "c": draw.choice(list("xyz"), 900)})
    y = (50 + 8 * x.a + 5 * (x.c == "y") + draw.normal(0, 6, 900)).clip(0, 100).rename("score")
    def progress(number, parts):
        if number == dies: os.kill(os.getpid(), signal.SIGKILL)
    model = AdScorePredictor(config).fit(x[:600], y[:600], (x[600:], y[600:]), 60, progress, checkpoints=folder or None)
    print(folder_digest(model.save(folder + "-model" if folder else sys.argv[4])), len(model.curve["validation"]), model.best_iteration)
""")
BOOSTED = {"n_estimators": 460, "learning_rate": 0.02, "max_depth": 3, "subsample": 0.6, "colsample_bytree": 0.7, "nthread": 1}


def fitted_elsewhere(folder: str, dies: int, config: dict, *more: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", KILLED, folder, str(dies), repr(config), *more], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_a_random_round_it_ends_with_the_same_bytes(tmp_path, seed):
    whole = fitted_elsewhere("", 0, BOOSTED, str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr[-2000:]
    rounds = int(whole.stdout.split()[1])
    folder, draw = str(tmp_path / "kept"), np.random.default_rng(seed)
    for dies in sorted(draw.integers(2, rounds, 2).tolist()):   # twice, the second time further on
        done = fitted_elsewhere(folder, dies, BOOSTED)
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    resumed = fitted_elsewhere(folder, 0, BOOSTED)
    assert resumed.stdout == whole.stdout, resumed.stderr[-2000:]


def test_checkpoints_of_another_training_are_refused(ctx, ads, tmp_path):
    class Stop(BaseException): pass
    def stop(number, parts):
        if number == 130: raise Stop
    x, y, kept = ads[FEATURES], ads[TARGET], tmp_path / "kept"
    with pytest.raises(Stop): predictor(n_estimators=150).fit(x[:800], y[:800], progress=stop, checkpoints=kept)
    for model, rows, what in ((predictor(n_estimators=150, max_depth=4), 800, "settings.max_depth: 3, here 4"), (predictor(n_estimators=150), 801, "rows: ")):
        with pytest.raises(Conflict, match=what): model.fit(x[:rows], y[:rows], checkpoints=kept)
    with pytest.raises(Conflict, match="early stopping"): predictor(n_estimators=150).fit(x[:800], y[:800], (x[800:], y[800:]), 5, checkpoints=kept)
    with pytest.raises(InvalidInput, match="is a file"):
        (tmp_path / "file").write_text("")
        predictor().fit(x, y, checkpoints=tmp_path / "file")


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:-1] + b"x", lambda b: b"[]\n" + b, lambda b: b"\x80\x04." + b])
def test_a_damaged_checkpoint_is_passed_over_with_a_note(ctx, ads, tmp_path, damage):
    class Stop(BaseException): pass
    def stop(number, parts):
        if number == 250: raise Stop
    x, y, kept = ads[FEATURES], ads[TARGET], tmp_path / "kept"
    whole = predictor(n_estimators=260).fit(x, y).save(tmp_path / "whole")
    with pytest.raises(Stop): predictor(n_estimators=260).fit(x, y, progress=stop, checkpoints=kept)
    newest = sorted(kept.iterdir())[-1]
    newest.write_bytes(damage(newest.read_bytes()))
    result = ModelTrainer(predictor(n_estimators=260), experiment_tracking=False, ctx=ctx).train(ads, None, FEATURES, TARGET, checkpoints=kept)
    assert folder_digest(result.model.save(tmp_path / "again")) == folder_digest(whole) and not kept.exists()
    assert "step-00000200.checkpoint is damaged" in result.notes[0] and "went on after step 100" in result.notes[1]


# --- rows in batches ----------------------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def splits(ads, tmp_path) -> list[Split]:
    "The ads as lazy splits of a Parquet file, a third of the platforms missing in the first part."
    rows = ads.assign(platform=ads.platform.where(np.arange(len(ads)) > 800, None))
    rows.to_parquet(tmp_path / "rows.parquet")
    common = {"path": tmp_path / "rows.parquet", "snapshot": "0" * 64, "features": tuple(FEATURES), "target": TARGET}
    return [Split(**common, row_ids=np.arange(a, b)) for a, b in ((0, 1800), (1800, 2400))]


def test_streamed_and_in_memory_agree(ctx, splits, monkeypatch):
    def train(streaming):
        return ModelTrainer(predictor(n_estimators=120), experiment_tracking=False, ctx=ctx).train(*splits, FEATURES, TARGET, 20, streaming=streaming)
    real = Split.to_batches
    monkeypatch.setattr(Split, "to_batches", lambda self, columns=None, rows=500: real(self, columns, rows))
    streamed, whole = train(True), train(False)
    assert streamed.streamed and not whole.streamed and streamed.model.signature == whole.model.signature
    assert streamed.validation_metrics["rmse"] == pytest.approx(whole.validation_metrics["rmse"], rel=0.01)
    apart = streamed.model.predict(splits[1][FEATURES]) - whole.model.predict(splits[1][FEATURES])
    assert np.sqrt(np.mean(apart ** 2)) < 0.25 * whole.validation_metrics["rmse"]
    assert not list(Path(ctx.settings.home).glob(".stream-*"))


def test_streaming_begins_by_itself_and_only_where_it_can(ctx, splits, ads, monkeypatch):
    monkeypatch.setattr("within.ml.training.this_machine", lambda home: Machine(2, 1e-5, 10))
    assert ModelTrainer(predictor(), experiment_tracking=False, ctx=ctx).train(*splits, FEATURES, TARGET).streamed
    assert not trained(ctx, ads).streamed
    with pytest.raises(InvalidInput, match="in memory already"): trained(ctx, ads, streaming=True)
    from within.ml.base import BaselineModel
    with pytest.raises(InvalidInput, match="BaselineModel cannot learn from batches"):
        ModelTrainer(BaselineModel(), experiment_tracking=False, ctx=ctx).train(*splits, FEATURES, TARGET, streaming=True)


# --- the machine --------------------------------------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("model, machine, lacks", [
    ("ad_score_predictor", Machine(16, 64, 20), ""), ("ad_score_predictor", Machine(15, 64, 19.9), "15 of 16 cores, 19.9 of 20 GiB of free disk"),
    ("account_health_predictor", Machine(32, 128, 50), ""), ("account_health_predictor", Machine(32, 64, 50), "64 of 128 GiB of memory"),
    ("ad_sentiment_analyzer", Machine(16, 64, 100, 1), ""), ("ad_sentiment_analyzer", Machine(16, 64, 100, 0), "0 of 1 GPUs")])
def test_the_table_of_resources(model, machine, lacks):
    wanted = load_policy(model, ROOT / "configs").resources
    if not lacks:
        assert preflight(wanted, "training", machine).passed
        return
    with pytest.raises(ResourcesLacking, match=lacks): preflight(wanted, "training", machine)
    for profile in ("development", "ci"): assert preflight(wanted, profile, machine).phase is Phase.INCONCLUSIVE


def test_a_small_machine_is_noted_or_refused(ctx, ads, monkeypatch):
    monkeypatch.setattr("within.ml.training.this_machine", lambda home: Machine(2, 24, 500))
    assert "2 of 16 cores" in trained(ctx, ads).notes[-1]
    trainer = ModelTrainer(predictor(), experiment_tracking=False, profile="training", ctx=ctx)
    with pytest.raises(ResourcesLacking, match="24 of 64 GiB"): trainer.train(ads[:100], None, FEATURES, TARGET)
    assert not trainer.model.fitted
    with pytest.raises(InvalidInput, match="did you mean 'development'"): ModelTrainer(predictor(), profile="developement", ctx=ctx)
    monkeypatch.setenv("WITHIN_PROFILE", "prod")
    with pytest.raises(InvalidInput, match="WITHIN_PROFILE"): Context.open(home=ctx.settings.home)


@pytest.mark.parametrize("odd", [{"cores": -1}, {"gpus": 1.5}, {"memory": 64}, {"disk_gib": "much"}])
def test_resources_that_are_none(odd):
    with pytest.raises(ValueError): TrainingResources.model_validate(odd)


def test_every_parameter_is_recorded(ctx, ads):
    run = trained(ctx, ads, tracking=True, early_stopping_rounds=5).tracking_run_id
    told = ModelRegistry(ctx).tracking.client.get_run(run).data
    assert told.params["training.early_stopping_rounds"] == "5" and told.params["max_depth"] == "3" and len(told.tags["code"]) == 16
    from within.ml.tracking import Tracking
    many = Tracking(ctx).record("many", {f"p{i}": i for i in range(250)}, {}, {"loss": list(range(2000))})
    client = Tracking(ctx).client
    assert len(client.get_run(many).data.params) == 250 and len(client.get_metric_history(many, "loss")) == 2000


# --- noise between seeds, and classifiers -------------------------------------------------------------------------------------------------------------

def test_what_the_seed_explains_is_subtracted(ctx, ads):
    restless = ModelTrainer(predictor(subsample=0.5), experiment_tracking=False, ctx=ctx).train(ads[:1600], ads[1600:2000], FEATURES, TARGET).model
    ModelRegistry(ctx).register_model(trained(ctx, ads, ["ctr"]).model, "ad_score_predictor", "2.1.0")
    found = ModelEvaluator(ctx).compare_models(restless, "2.1.0", ads[2000:], FEATURES, TARGET, unit="account_id", train_data=ads[:1600])
    assert found.noise.seeds == 4 and found.noise.rows == 1600 and 0 < found.noise.percent < 5
    assert found.verdict.low == pytest.approx(found.low - found.noise.percent) and found.verdict.details["seed_noise"]["figures"]
    assert "4 refits with other seeds on 1,600 rows" in found.verdict.reason
    still = ModelEvaluator(ctx).compare_models(trained(ctx, ads).model, "2.1.0", ads[2000:], FEATURES, TARGET)
    assert still.noise.percent == 0 and "the seed changes nothing" in still.notes[-1] and still.verdict.low == still.low


def test_how_lucky_a_seed_can_be():
    "One more fit beats the mean of k by more than the bound in one case of twenty, whatever k; checked on 4,000 draws each."
    from within.ml.noise import luck
    draw = np.random.default_rng(0)
    for k in (2, 4, 8):
        refits, more = draw.normal(10, 0.2, (4000, k)), draw.normal(10, 0.2, 4000)
        beyond = np.mean([f.mean() - m > luck(f) for f, m in zip(refits, more, strict=True)])
        assert 0.035 < beyond < 0.065


def test_a_luckier_seed_is_no_better_model(ads):
    "Of twenty models that differ in their seed alone, at most three lie further below the mean than the bound from refits on the same rows."
    from within.ml.noise import seed_noise
    fits = [predictor(subsample=0.5, random_state=s).fit(ads[FEATURES][:1600], ads[TARGET][:1600]) for s in range(100, 120)]
    errors = np.array([measure(ads[TARGET][2000:], m.predict(ads[2000:]))["rmse"] for m in fits])
    noise = seed_noise(fits[0], ads[:1600], ads[2000:]).percent
    assert (100 * (errors.mean() - errors) / errors.mean() > noise).sum() <= 3


@pytest.mark.parametrize("metric", ["brier", "log_loss", None])
def test_a_classifier_is_judged_by_its_own_error(ctx, ads, metric, monkeypatch):
    from within.ml.account_health import AccountHealthPredictor
    rows = ads.assign(goes_dark=(ads[TARGET] > 55).astype(int), day=pd.Timestamp("2023-01-01"))
    real = Context.policy
    def policy(self, name):
        found = real(self, name)
        return found.model_copy(update={"gates": found.gates.model_copy(update={"improvement_metric": metric})})
    monkeypatch.setattr(Context, "policy", policy)
    def fit(columns): return AccountHealthPredictor({"n_estimators": 30, "nthread": 1}).fit(rows[columns][:1600], rows.goes_dark[:1600])
    ModelRegistry(ctx).register_model(fit(["ctr"]), "account_health_predictor", "1.4.0")
    found = ModelEvaluator(ctx).compare_models(fit(FEATURES), "1.4.0", rows[2000:], target="goes_dark", unit="account_id")
    name = metric or "brier"
    assert found.metric == name and "RMSE" not in found.verdict.reason
    assert found.verdict.reason.startswith({"brier": "Brier score", "log_loss": "log loss"}[name])
    old, new = found.champion_metrics[name], found.new_metrics[name]
    assert found.improvement_percentage == pytest.approx(100 * (old - new) / old) and found.low < found.improvement_percentage < found.high
    first = ModelEvaluator(ctx).compare_models(fit(FEATURES), None, rows[2000:], target="goes_dark")
    assert np.isfinite(first.improvement_percentage) and first.verdict.passed


def test_an_early_warning_is_measured_by_what_is_called():
    y, p = [1, 1, 0, 0, 1], [0.9, 0.4, 0.6, 0.1, 0.7]
    found = measure(y, p, ["precision", "recall", "brier"], 0.5)
    assert found == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "brier": (0.01 + 0.36 + 0.36 + 0.01 + 0.09) / 5})
    assert measure(y, p, ["precision", "recall"], 2.0) == {"precision": 0.0, "recall": 0.0} and measure([0, 0], [1, 1], ["recall"], 0.5) == {"recall": 0.0}
