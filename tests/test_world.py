"""The ad world: the same for the same seed, with planted events that can be found, quiet where nothing was planted, and furnished once."""
import json
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest

from within.clock import parse_time
from within.context import Context
from within.drift import fit_reference
from within.errors import Conflict, InvalidInput
from within.simulation import (
    FEATURES,
    MONTHS,
    SEGMENTS,
    accounts_daily,
    accounts_month,
    ads_month,
    generate_ads,
    measure_truth,
    measured_events,
    month_divergence,
    planted,
    texts_month,
    traffic,
    traffic_day,
)

PER_MONTH = 6_000
DRIFTED = {"historical_metrics.cpc_30d", "ad_content.video_seconds"}

DRAWN = {"ads": lambda seed: ads_month("2023-06", 400, seed), "traffic": lambda seed: traffic_day("2023-11-05", 300, seed),
         "accounts": lambda seed: accounts_month("2023-02", 60, seed), "texts": lambda seed: texts_month("2023-05", 300, seed)}


def learned(frame: pd.DataFrame):
    "A quick, plain XGBoost on the features: encoder and booster together as a function of rows."
    import xgboost

    kinds = {c: pd.CategoricalDtype(sorted(frame[c].unique())) for c in ("platform", "target_audience")}

    def matrix(rows, label=None): return xgboost.DMatrix(rows[FEATURES].astype(kinds), label, enable_categorical=True)
    settings = {"max_depth": 6, "eta": 0.1, "subsample": 0.8, "min_child_weight": 5, "nthread": 1, "seed": 1}
    booster = xgboost.train(settings, matrix(frame, frame["effectiveness_score"]), 150)
    return lambda rows: booster.predict(matrix(rows))


def rmse(truth, answer) -> float: return float(np.sqrt(np.mean((np.asarray(truth, float) - answer) ** 2)))
def right(truth, answer) -> float: return float(np.mean((np.asarray(truth) >= 50) == (answer >= 50)))


@pytest.fixture(scope="module")
def june_and_september(): return ads_month("2023-06", PER_MONTH), ads_month("2023-09", PER_MONTH)


@pytest.fixture(scope="module", params=[False, True], ids=["eventful", "null"])
def two_models(request):
    "A model of 2022 and one of 2023, with rows of both years that neither saw."
    ads = generate_ads("2022-04", "2023-09", 3_000, 0, request.param)
    held, early = np.random.default_rng(0).random(len(ads)) < 0.3, ads["created_at"] < pd.Timestamp("2023-01-01", tz="UTC")
    return request.param, learned(ads[early & ~held]), learned(ads[~early & ~held]), ads[early & held], ads[~early & held]


@pytest.mark.parametrize("what", DRAWN)
def test_same_seed_same_values_other_seed_others(what):
    one, again, other = DRAWN[what](3), DRAWN[what](3), DRAWN[what](4)
    pd.testing.assert_frame_equal(one, again)
    assert not one.equals(other)


def test_a_month_does_not_depend_on_its_neighbours():
    alone, among = ads_month("2023-05", 200, 1), generate_ads("2023-04", "2023-06", 200, 1)
    pd.testing.assert_frame_equal(alone, among[among["ad_id"].str.contains("2023-05")].reset_index(drop=True))
    some = traffic("2023-12-30", 3, 50, 1)
    pd.testing.assert_frame_equal(some.iloc[50:100].reset_index(drop=True), traffic_day("2023-12-31", 50, 1))
    few, days = accounts_daily("2023-03-10", 5, 50, 1), accounts_month("2023-03", 50, 1)
    pd.testing.assert_frame_equal(few, days[(days["day"] >= "2023-03-10") & (days["day"] < "2023-03-15")].reset_index(drop=True))


def test_the_messy_parts_are_there():
    ads = ads_month("2023-05", 4_000)
    assert ads[FEATURES].isna().any().sum() >= 8 and ads["historical_metrics.spend_30d"].skew() > 3
    assert "creators" in set(ads["target_audience"]) and "creators" not in set(ads_month("2022-05", 4_000)["target_audience"])
    assert all(ads[s].value_counts(normalize=True).min() > 0.08 for s in SEGMENTS)
    assert ads["effectiveness_score"].between(0, 100).all() and ads["performance_category"].value_counts(normalize=True).between(0.32, 0.35).all()
    texts = texts_month("2023-05", 3_000)
    assert texts["text"].nunique() > 2_900 and 0.45 < texts["label"].mean() < 0.55


@pytest.mark.parametrize("rows, time", [(ads_month("2023-05", 2_000), "created_at"), (traffic_day("2023-10-05", 2_000), "at")], ids=["ads", "traffic"])
def test_outcomes_come_up_to_three_days_late(rows, time):
    late = rows["outcome_at"] - rows[time]
    assert timedelta(0) < late.min() and late.max() <= timedelta(days=3) and late.max() > timedelta(days=1.5)


def test_planted_drift_is_found_and_nothing_else(june_and_september):
    june, september = june_and_september
    found = {c: month_divergence(june[c], september[c]) for c in FEATURES}
    assert {c for c, bits in found.items() if bits > 0.2} == DRIFTED
    assert max(bits for c, bits in found.items() if c not in DRIFTED) < 0.05


def test_the_projects_own_detector_agrees(june_and_september):
    june, september = june_and_september
    assert set(fit_reference(june[FEATURES]).compare(september[FEATURES]).drifted) == DRIFTED


def test_correlation_flips_while_its_columns_stay(june_and_september):
    pair = ["historical_metrics.frequency", "historical_metrics.engagement_rate"]
    before, after = (frame[pair].rank().corr().iloc[0, 1] for frame in june_and_september)
    assert before > 0.4 and after < -0.3
    assert all(month_divergence(june_and_september[0][c], june_and_september[1][c]) < 0.02 for c in pair)


def test_truth_says_what_the_tables_show():
    measured = {(e.what, e.where): e.figure for e in measured_events(per_month=PER_MONTH)}
    drifts = {where: figure for (what, where), figure in measured.items() if what == "feature drift"}
    assert set(drifts) == DRIFTED and min(drifts.values()) > 0.2
    assert measured["volume jump", "ads"] == pytest.approx(0.25, abs=0.01)
    assert measured["changed relationship", "effectiveness_score"] > 0.08 and planted(null=True) == ()


@pytest.mark.parametrize("seed", [0, 1])
def test_null_world_is_quiet(seed):
    figures = measure_truth(seed, 8_000, null=True)
    assert max(v for k, v in figures.items() if k.startswith("js ")) < 0.02
    assert figures["volume growth"] == 0 and figures["rmse truth"] == figures["rmse truth_2022"]
    assert abs(figures["correlation june"] - figures["correlation september"]) < 0.05


def test_a_model_of_2023_is_better_unless_nothing_changed(two_models):
    null, old, new, rows_2022, rows_2023 = two_models
    truth = rows_2023["effectiveness_score"]
    gain = 1 - rmse(truth, new(rows_2023)) / rmse(truth, old(rows_2023))
    september = rows_2023[rows_2023["created_at"] >= pd.Timestamp("2023-09-01", tz="UTC")]
    then, now = right(rows_2022["effectiveness_score"], old(rows_2022)), right(september["effectiveness_score"], old(september))
    if null: assert abs(gain) < 0.015 and abs(now / then - 1) < 0.04
    else: assert gain > 0.10 and now < 0.95 * then and right(truth, new(rows_2023)) > 0.83


def test_errors_are_alike_in_every_segment(two_models):
    _, _, new, _, rows = two_models
    error = (rows["effectiveness_score"] - new(rows)) ** 2
    for segment in SEGMENTS:
        by = np.sqrt(error.groupby(rows[segment]).mean()) / np.sqrt(error.mean()) - 1
        assert by.abs().max() < 0.08, (segment, by.round(3).to_dict())


def test_new_model_wins_in_the_traffic_of_autumn(two_models):
    null, old, new, *_ = two_models
    requests = traffic("2023-10-05", 14, 500, 0, null)
    gain = right(requests["outcome"], new(requests)) - right(requests["outcome"], old(requests))
    assert abs(gain) < 0.02 if null else gain > 0.03


def test_accounts_sink_before_they_go_dark():
    history = accounts_daily(accounts=400)
    assert len(history) == 400 * 450 and history.groupby("account_id").size().eq(450).all()
    awake = history[history["is_active"] == 1]
    usual = awake.groupby("account_id")["spend"].transform("median")
    sunk = (awake["spend"] / usual).groupby(awake["goes_dark"]).mean()
    assert sunk[1.0] < 0.85 * sunk[0.0]
    assert awake["issue_flag"].groupby(awake["goes_dark"]).mean().pipe(lambda by: by[1.0] > 2 * by[0.0])
    assert history.loc[history["is_active"] == 0, "goes_dark"].isna().all()


@pytest.mark.parametrize("call, names", [
    (lambda: ads_month("2025-01"), "2022-04 to 2024-01"), (lambda: ads_month("2023-06", per_month=-3), "per_month"),
    (lambda: ads_month("2023-06", per_month="many"), "per_month"), (lambda: ads_month("2023-06", 10, seed=-1), "seed"),
    (lambda: generate_ads("2023-06", "2023-01"), "backwards"), (lambda: traffic_day("2024-02-01"), "2024-02-01"),
    (lambda: traffic_day("soon"), "not a date"), (lambda: traffic("2024-01-30", 5, 10), "2024-02-01"),
    (lambda: accounts_daily("2021-01-01"), "2022-04-01"), (lambda: accounts_daily(accounts=10_001), "10,000"),
    (lambda: texts_month("June", 5), "2023-06")])
def test_bad_requests_to_the_generator_name_what_is_allowed(call, names):
    with pytest.raises(InvalidInput, match=names): call()


@pytest.mark.parametrize("arguments, names", [
    ({"now": "2021-05-01"}, "2022-10-01"), ({"now": "2024-02-01"}, "2024-01-31"), ({"now": "tomorrow"}, "not a date"), ({"now": None}, "not a date"),
    ({"scale": 0}, "scale"), ({"scale": -1}, "scale"), ({"scale": float("nan")}, "scale"), ({"scale": 1e9}, "scale"), ({"scale": "big"}, "scale"),
    ({"seed": -1}, "seed"), ({"seed": "x"}, "seed")])
def test_bad_bootstrap_leaves_nothing(arguments, names, tmp_path):
    from within.world import bootstrap

    ctx = Context.open(home=tmp_path / "home")
    with pytest.raises(InvalidInput, match=names): bootstrap(**{"now": "2023-10-01", "scale": 0.005, **arguments}, ctx=ctx)
    assert ctx.warehouse.names() == [] and ctx.store.clock_now() is None


def test_first_day(ctx):
    from within.ml.registry import ModelRegistry
    from within.serving.routes import current
    from within.world import open_world

    world, registry = open_world(ctx), ModelRegistry(ctx=ctx)
    assert ctx.is_replay and ctx.now() == world.now == parse_time("2023-10-01")
    champion = registry.champion("ad_score_predictor")
    assert (champion.id, champion.approved) == ("ad_score_predictor@2.1.0", True)
    approval = registry.approval(champion.id)
    assert approval.reviewer != champion.created_by
    assert current(ctx, "production", "ad_score_predictor").default == "2.1.0"
    assert {h.version for n in ("ad_sentiment_analyzer", "account_health_predictor") for h in registry.history(n)} == {"3.1.0", "1.4.0"}
    assert set(world.sentiment) == {"text", "label"} and len(world.truth) == len(planted())
    assert registry.attachment(champion.id, "drift_reference.json").is_file()


def test_champion_saw_2022_only(ctx):
    from within.ml.registry import ModelRegistry
    from within.snapshots import open_snapshot

    data = open_snapshot(ctx, ModelRegistry(ctx=ctx).champion("ad_score_predictor").lineage["snapshot"])
    assert pd.Timestamp(data["created_at"].max()) < pd.Timestamp("2023-01-01", tz="UTC")


def test_the_future_is_hidden(ctx):
    now = pd.Timestamp(ctx.now())
    ads = ctx.warehouse.table("ads").select("created_at", "outcome_at", "effectiveness_score").to_pandas()
    assert ads["created_at"].max() < now
    late = ads["outcome_at"] > now
    assert late.any() and ads.loc[late, "effectiveness_score"].isna().all() and ads.loc[~late, "effectiveness_score"].notna().all()
    accounts = ctx.warehouse.table("accounts_daily").select("day", "goes_dark").to_pandas()
    assert accounts["day"].nunique() == 450 and accounts.loc[accounts["day"] > now - timedelta(days=30), "goes_dark"].isna().all()
    assert ctx.warehouse.raw("ads_traffic").at.min().execute() >= now


def test_second_world_is_refused_and_first_unharmed(ctx):
    from within.world import bootstrap, open_world

    before = open_world(ctx)
    with pytest.raises(Conflict, match="already holds a world"): bootstrap("2023-10-01", scale=0.02, ctx=ctx)
    assert open_world(ctx) == before


def test_interrupted_bootstrap_is_finished_by_the_same_call(tmp_path, small_configs, monkeypatch):
    import within.world as world

    def again(**more):
        ctx = Context.open(home=tmp_path / "home", configs=small_configs)
        try: return world.bootstrap(**{"now": "2023-10-01", "scale": 0.005, "ctx": ctx, **more})
        finally: ctx.close()

    def power_cut(*_): raise KeyboardInterrupt
    with monkeypatch.context() as patched:
        patched.setattr(world, "train_sentiment", power_cut)
        with pytest.raises(KeyboardInterrupt): again()
    assert not (tmp_path / "home" / "world.json").exists()
    with pytest.raises(Conflict, match="same arguments to finish"): again(seed=5)
    made = again()
    assert made.models[0] == "ad_score_predictor@2.1.0" and json.loads((tmp_path / "home" / "world.json").read_text())["rows"] == made.rows
    assert not (tmp_path / "home" / world.BEGUN).exists()


def test_a_home_with_other_ads_is_refused(tmp_path):
    from within.warehouse import DatasetInfo
    from within.world import bootstrap

    ctx = Context.open(home=tmp_path / "home")
    ctx.warehouse.write("ads", pd.DataFrame({"t": [1], "u": [1]}), "mine", DatasetInfo("ads", "t", "u"))
    with pytest.raises(Conflict, match="is in use .dataset ads"): bootstrap("2023-10-01", scale=0.005, ctx=ctx)
    assert ctx.warehouse.raw("ads").count().execute() == 1


def test_two_bootstraps_at_once(tmp_path):
    from within.world import bootstrap, sole_bootstrap

    ctx = Context.open(home=tmp_path / "home")
    with sole_bootstrap(ctx, {"now": "2023-10-01", "seed": 0, "scale": 1.0, "null": False}):
        with pytest.raises(Conflict, match="another bootstrap"): bootstrap("2023-10-01", scale=0.005, ctx=ctx)


def test_null_world_bootstraps_without_events(tmp_path, small_configs):
    from within.world import bootstrap

    world = bootstrap("2023-10-01", scale=0.005, ctx=Context.open(home=tmp_path / "home", configs=small_configs), null=True)
    assert world.null and world.truth == () and MONTHS[0] == "2022-04"


def test_champion_is_deployed_without_a_process(ctx, home):
    from conftest import living

    from within.ml.deployment import deployments

    (placed,) = deployments(ctx, model="ad_score_predictor")
    assert (placed.version, placed.environment, placed.status, placed.live) == ("2.1.0", "production", "passed", True)
    assert not living(home)
