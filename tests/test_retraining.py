"""The decision to retrain: planted changes are found, silence is not health, and misuse says what is allowed."""

from dataclasses import replace

import numpy as np
import pytest

from within.errors import InvalidInput, UnknownDataset, UnknownModel, UnknownModelVersion
from within.ml.retraining import RetrainingEvaluator, concluded, matured_rows
from within.ml.triggers import drift_verdict, judged
from within.verdicts import Phase
from within.warehouse import DatasetInfo
from within.windows import parse_window

MODEL, JUNE = "ad_score_predictor", "2023-06-01_to_2023-06-30"


@pytest.fixture
def evaluator(ctx): return RetrainingEvaluator(model_name=MODEL, ctx=ctx)


def test_the_planted_changes_are_found_and_the_sentence_has_the_figures(evaluator):
    performance = evaluator.analyze_performance(current_version="2.1.0", evaluation_period="rolling_240d")
    drift = evaluator.analyze_drift(reference_period=JUNE, current_period="last_30_days")
    volume = evaluator.analyze_volume()
    decision = evaluator.evaluate_retraining_need(performance_analysis=performance, drift_analysis=drift, volume_analysis=volume)
    assert decision.should_retrain and decision.champion == f"{MODEL}@2.1.0"
    assert {"trigger.data_drift", "trigger.schedule"} <= {v.gate for v in decision.triggers if v.phase is Phase.FAILED}, decision.reason
    for v in decision.triggers:
        assert v.reason in decision.reason or v.phase is Phase.PASSED
    accuracy = decision.triggers[0]   # a fiftieth of the world shows the drop, and not always that it is above 5 %
    assert accuracy.low > 0 and not accuracy.passed
    assert f"{accuracy.figure * 100:.1f} %" in accuracy.reason and "5.0 %" in accuracy.reason
    assert performance.reference_accuracy > performance.accuracy and performance.rows > 1000
    gain = decision.expected_improvement
    assert gain.low > 5 and gain.low < gain.percentage < gain.high and "2.1.0" in str(gain)
    assert volume.growth == pytest.approx(volume.rows_a_day / volume.rows_a_day_then - 1) and 0.1 < volume.growth < 0.4   # 25 % more ads since July
    assert decision.to_dict()["triggers"][0]["gate"] == "trigger.accuracy_drop" and "trigger" in decision._repr_markdown_()


def test_the_same_question_gets_the_same_answer(evaluator):
    first, second = (evaluator.analyze_performance("2.1.0", "last_30_days") for _ in range(2))
    assert first == second


def test_only_outcomes_known_by_now_count(ctx):
    window = parse_window("2023-09-28_to_2023-09-30", ctx.now())
    known, all_rows = (matured_rows(ctx, "ads", t, window) for t in ("effectiveness_score", None))
    assert len(known) < len(all_rows)
    assert (known["outcome_at"] <= ctx.now()).all() and all_rows["effectiveness_score"].notna().sum() == len(known)
    thinned = matured_rows(ctx, "ads", "effectiveness_score", parse_window("rolling_90d", ctx.now()), most=200)
    assert 100 <= len(thinned) <= 400
    assert thinned.equals(matured_rows(ctx, "ads", "effectiveness_score", parse_window("rolling_90d", ctx.now()), most=200))


def test_another_dataset_has_no_champion_and_its_baseline_stands_in(ctx):
    table = ctx.warehouse.raw("ads").filter(lambda t: t.created_at >= "2023-06-01").to_pandas()
    ctx.warehouse.write("own_ads", table, "all", replace(ctx.warehouse.info("ads"), name="own_ads", traffic=None))
    evaluator = RetrainingEvaluator(MODEL, source="own_ads", ctx=ctx)
    performance = evaluator.analyze_performance(evaluation_period="last_30_days")
    assert performance.version == "baseline" and performance.verdict.phase is Phase.INCONCLUSIVE and performance.accuracy is not None
    decision = evaluator.evaluate_retraining_need(performance, evaluator.analyze_drift(JUNE, "last_30_days"), evaluator.analyze_volume())
    assert decision.should_retrain and decision.reason.startswith("first of its kind") and decision.champion is None
    assert decision.expected_improvement.against == "the mean predictor" and decision.expected_improvement.percentage > 0
    with pytest.raises(InvalidInput, match="give reference_period"):
        evaluator.analyze_drift()


def test_data_that_ended_long_ago_is_judged_at_its_own_end(ctx):
    table = ctx.warehouse.raw("ads").filter(lambda t: t.created_at < "2022-09-01").to_pandas()
    ctx.warehouse.write("old_ads", table, "all", replace(ctx.warehouse.info("ads"), name="old_ads", traffic=None))
    evaluator = RetrainingEvaluator(MODEL, source="old_ads", ctx=ctx)
    months = ("2022-05-01_to_2022-05-31", "2022-08-01_to_2022-08-31")
    assert evaluator.analyze_volume(months[1]).rows_now == (table.created_at >= "2022-08-01").sum()
    decision = evaluator.evaluate_retraining_need(evaluator.analyze_performance(evaluation_period=months[1]), evaluator.analyze_drift(*months))
    assert decision.should_retrain and decision.expected_improvement.rows > 100


def test_a_window_without_outcomes_is_undecided_and_not_healthy(evaluator):
    performance = evaluator.analyze_performance("2.1.0", "2021-01-01_to_2021-01-31")
    assert performance.rows == 0 and performance.verdict.phase is Phase.INCONCLUSIVE
    drift = evaluator.analyze_drift(JUNE, "2021-01-01_to_2021-01-31")
    assert drift_verdict(drift, 0.2).phase is Phase.INCONCLUSIVE
    yes, reason = concluded((performance.verdict, drift_verdict(drift, 0.2)))
    assert not yes and "could not be told" in reason


def test_the_threshold_is_the_policys(ctx, evaluator):
    drift = evaluator.analyze_drift(JUNE, "last_30_days")
    assert drift.threshold == ctx.policy(MODEL).triggers.js_divergence
    assert drift_verdict(drift, 0.99).passed and drift_verdict(drift, 0.0001).phase is Phase.FAILED


@pytest.mark.parametrize(("low", "high", "phase"), [
    (0.06, 0.1, Phase.FAILED), (0.05, 0.1, Phase.INCONCLUSIVE), (0.0, 0.051, Phase.INCONCLUSIVE), (0.0, 0.05, Phase.PASSED)])
def test_every_side_of_the_threshold(low, high, phase):
    assert judged("g", "fell by", (low + high) / 2, low, high, 0.05).phase is phase


def test_misuse_says_what_is_allowed(ctx, evaluator):
    with pytest.raises(UnknownModel, match="ad_score_predictor"): RetrainingEvaluator("ad_score_predicter", ctx=ctx)
    with pytest.raises(UnknownDataset, match="ads"): RetrainingEvaluator(MODEL, source="adds", ctx=ctx)
    with pytest.raises(UnknownModelVersion, match=r"2\.1\.0"): evaluator.analyze_performance("9.9.9", "last_30_days")
    with pytest.raises(InvalidInput, match="last_30_days"): evaluator.analyze_performance("2.1.0", "30d_last")
    with pytest.raises(InvalidInput, match="no row"): evaluator.analyze_drift("2020-01-01_to_2020-01-31", "last_30_days")
    performance, drift = evaluator.analyze_performance("2.1.0"), evaluator.analyze_drift(JUNE)
    with pytest.raises(InvalidInput, match="performance_analysis is DriftAnalysis"): evaluator.evaluate_retraining_need(drift, performance)


def test_a_challenger_that_cannot_be_fitted_changes_no_answer(evaluator, monkeypatch):
    def broken(*_, **__): raise MemoryError("no room")
    monkeypatch.setattr("within.ml.challenger.quick_challenger", broken)
    decision = evaluator.evaluate_retraining_need(evaluator.analyze_performance("2.1.0", "rolling_90d"), evaluator.analyze_drift(JUNE))
    assert decision.should_retrain and decision.expected_improvement is None and "no room" in decision.notes[0]


def test_a_missing_column_is_named(ctx):
    table = ctx.warehouse.raw("ads").select("ad_id", "account_id", "created_at", "outcome_at", "platform").to_pandas()
    info = DatasetInfo("thin", "created_at", "account_id", "effectiveness_score", None, "outcome_at")
    ctx.warehouse.write("thin", table.assign(platform=np.array(["x"] * len(table), object)), "all", info)
    with pytest.raises(InvalidInput, match="effectiveness_score"): RetrainingEvaluator(MODEL, source="thin", ctx=ctx)


@pytest.mark.slow
def test_where_nothing_changes_only_the_calendar_speaks(tmp_path, small_configs):
    from within.context import Context
    from within.world import bootstrap
    ctx = Context.open(home=tmp_path / "home", configs=small_configs, clock=None)
    bootstrap("2023-10-01", scale=0.05, ctx=ctx, null=True)
    ctx = Context.open(home=tmp_path / "home", configs=small_configs)
    evaluator = RetrainingEvaluator(MODEL, ctx=ctx)
    performance = evaluator.analyze_performance("2.1.0", "rolling_90d")
    decision = evaluator.evaluate_retraining_need(performance, evaluator.analyze_drift(JUNE), evaluator.analyze_volume())
    assert {v.gate for v in decision.triggers if v.phase is Phase.FAILED} <= {"trigger.schedule"}
    assert decision.expected_improvement is None or decision.expected_improvement.low < 5
