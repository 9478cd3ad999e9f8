"""Performance without outcomes: right under covariate shift, found out under concept drift, silent where nothing is known."""
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from within.errors import InvalidInput
from within.ml.account_health import AccountHealthPredictor
from within.ml.base import BaselineModel
from within.ml.estimation import (
    GATE,
    EstimateCheck,
    EstimatedPerformance,
    check,
    distrust,
    estimate_verdict,
    fit_estimator,
    keep_check,
    kept_checks,
)
from within.ml.registry import ModelRegistry
from within.ml.retraining import matured_rows, reference_accuracy
from within.ml.trees import TreeModel
from within.snapshots import open_split
from within.verdicts import Phase
from within.windows import parse_window

FEATURES = ["x0", "x1", "x2", "x3", "x4", "x5", "cat"]


def rows(n, seed, shift=0.0, turned=False, units=0, classes=False, categories="abc"):
    "Rows of a world whose truth is known: noise grows with x1; `shift` moves x0 and x1 by so many standard deviations, `turned` turns what x0 means."
    rng = np.random.default_rng([seed, 7])
    x = rng.normal(size=(n, 6))
    x[:, :2] += shift
    frame = pd.DataFrame(x, columns=FEATURES[:6])
    frame["cat"] = rng.choice(list(categories), n)
    unit = rng.integers(0, n // units + 1, n) if units else np.arange(n)
    frame["unit"] = [f"{seed}-{u}" for u in unit]
    lasting = rng.normal(0, 6, n + 1)[unit] if units else 0.0
    slope = np.where(turned, -8, 8)
    score = 50 + slope * frame.x0 + 5 * np.sin(2 * frame.x1) + 3 * (frame["cat"] == "a") + lasting + 6 * np.exp(frame.x1 / 3) * rng.normal(size=n)
    frame["y"] = (score >= 50).astype(float) if classes else score
    return frame


@pytest.fixture(scope="module")
def scorer():
    train = rows(3000, 99_999)
    return TreeModel({"n_estimators": 40, "max_depth": 4, "nthread": 1}).fit(train[FEATURES], train["y"])


@pytest.fixture(scope="module")
def classifier():
    train = rows(3000, 99_999, classes=True)
    return AccountHealthPredictor({"n_estimators": 40, "max_depth": 4, "nthread": 1}).fit(train[FEATURES], train["y"])


@pytest.fixture(scope="module")
def champions(scorer, classifier): return {"scores": (scorer, 50.0, False), "classes": (classifier, 0.5, True)}


def realised(model, frame, threshold):
    p = model.predict(frame[FEATURES])
    return float(((p >= threshold) == (frame["y"] >= threshold)).mean()), float(np.sqrt(((p - frame["y"]) ** 2).mean()))


def trials(champion, times, n=800, m=500, shift=0.0, units=0, unit=None):
    "Fit on a fresh reference, estimate fresh rows, look at the truth; a record of each."
    (model, threshold, classes), out = champion, []
    for s in range(times):
        e = fit_estimator(model, rows(n, 1_000 + s, units=units, classes=classes), "y", threshold, unit=unit)
        now = rows(m, 2_000 + s, shift, units=units, classes=classes)
        g, (right, error) = e.estimate(now), realised(model, now, threshold)
        inside = g.rmse is not None and g.rmse_low <= error <= g.rmse_high
        out.append({"inside": g.accuracy_low <= right <= g.accuracy_high, "bias": g.accuracy - right, "naive": e.accuracy - right, "usable": g.verdict.passed,
                    "fires": estimate_verdict(g).phase is Phase.FAILED, "rmse_inside": inside, "width": g.accuracy_high - g.accuracy_low})
    return pd.DataFrame(out)


def at_least(level, times): return level - 3 * np.sqrt(level * (1 - level) / times)   # three standard errors of a simulated share


# --- right where it may be ---------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("task", ["scores", "classes"])
def test_without_a_shift_it_is_right_and_quiet(champions, task):
    found = trials(champions[task], 30)
    assert found["inside"].mean() >= at_least(0.95, 30) and abs(found["bias"].mean()) < 0.01
    assert found["usable"].mean() >= 0.95 and not found["fires"].any()


@pytest.mark.parametrize("task", ["scores", "classes"])
def test_under_covariate_shift_it_follows_the_rows(champions, task):
    found = trials(champions[task], 30, n=1500, m=800, shift=0.9)
    assert abs(found["naive"].mean()) > 0.015, "the shift matters: accuracy at registration is no longer right"
    assert abs(found["bias"].mean()) < 0.5 * abs(found["naive"].mean()) and found["inside"].mean() >= at_least(0.95, 30)
    assert found["usable"].mean() > 0.8


@pytest.mark.slow
@pytest.mark.parametrize(("n", "m", "shift", "units", "of_rmse"), [
    (150, 150, 0.0, 0, 0.95), (300, 2000, 0.5, 0, 0.95), (2000, 200, 0.7, 0, 0.95), (1000, 500, 0.5, 10, 0.95), (1000, 1000, 1.0, 0, 0.88)])
@pytest.mark.parametrize("task", ["scores", "classes"])
def test_the_interval_keeps_its_promise(champions, task, n, m, shift, units, of_rmse):
    "Of accuracy everywhere. Of the RMSE of heavy-tailed errors not quite where the shift nears the limit: there it is known to keep less."
    times = 50 if task == "scores" else 100
    found = trials(champions[task], times, n, m, shift, units, "unit" if units else None)
    assert found["inside"].mean() >= at_least(0.95, times), "accuracy"
    if task == "scores": assert found["rmse_inside"].mean() >= at_least(of_rmse, times), "RMSE"


def test_rows_of_one_unit_err_together(scorer):
    "Every row comes ten times: a tenth of the evidence, and an interval about three times as wide as if nobody had noticed."
    reference, now = (rows(150, s).loc[np.repeat(np.arange(150), 10)].reset_index(drop=True) for s in (1, 2))
    apart, together = (fit_estimator(scorer, reference, "y", 50, unit=u).estimate(now) for u in (None, "unit"))
    assert together.accuracy_high - together.accuracy_low > 2 * (apart.accuracy_high - apart.accuracy_low)


def test_it_knows_where_the_champion_errs(scorer):
    "Only rows near the threshold come: the estimate falls with the truth, and the trigger fires before any outcome is known."
    estimator = fit_estimator(scorer, rows(3000, 5), "y", 50)
    hard = rows(9000, 6)
    hard = hard[np.abs(scorer.predict(hard[FEATURES]) - 50) < 4]
    g, (right, _) = estimator.estimate(hard.drop(columns="y")), realised(scorer, hard, 50)
    assert g.accuracy_low <= right <= g.accuracy_high and right < estimator.accuracy - 0.1
    v = estimate_verdict(g)
    assert v.gate == GATE and v.phase is Phase.FAILED and v.low > v.threshold == 0.05
    assert "5.0%" in v.reason and "if the relationship has not changed" in v.reason


# --- found out where it is wrong ---------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("task", ["scores", "classes"])
def test_concept_drift_is_not_seen_but_found_out_and_remembered(champions, task):
    model, threshold, classes = champions[task]
    estimator = fit_estimator(model, rows(1500, 11, classes=classes), "y", threshold)
    past, phases = [], []
    for month in range(8):
        now = rows(1000, 20 + month, turned=month >= 4, classes=classes)
        g = estimator.estimate(now[FEATURES], period=f"month {month}")
        v = estimate_verdict(g, threshold=0.1, checks=past)
        phases.append(v.phase)
        assert g.verdict.passed, "the rows look like the reference: nothing in them shows that their meaning changed"
        past.append(check(g, now))
    assert phases[:5] == [Phase.PASSED] * 5, "in the first month of the drift it still believes"
    assert phases[5:] == [Phase.INCONCLUSIVE] * 3, "from the first check against the truth on it does not"
    assert [c.phase for c in past] == [Phase.PASSED] * 4 + [Phase.FAILED] * 4 and past[4].accuracy < past[4].low
    fresh = fit_estimator(model, rows(1500, 31, turned=True, classes=classes), "y", threshold)
    again = estimate_verdict(fresh.estimate(rows(1000, 32, turned=True, classes=classes)), threshold=0.1, checks=past)
    assert again.passed and fresh.id != estimator.id, "a reference from after the change starts with a clean sheet"


def test_an_honest_estimator_is_doubted_seldom():
    rng, doubted = np.random.default_rng(0), []
    for _ in range(400):
        done = [EstimateCheck("m", "e", str(i), 500, 0, *[None] * 8, Phase.PASSED if hit else Phase.FAILED, "") for i, hit in enumerate(rng.random(12) < 0.95)]
        doubted.append(bool(distrust(done, "e")))
    assert 0.02 < np.mean(doubted) < 0.13, "5 % miss now, and a few have missed more often than not lately"


def test_checks_of_one_period_count_once_and_the_newest_counts(scorer):
    def done(period, phase): return EstimateCheck("m", "e", period, 500, 0, *[None] * 8, phase, "missed")
    assert distrust([done("May", Phase.PASSED), done("June", Phase.FAILED)], "e")
    assert not distrust([done("May", Phase.PASSED), done("June", Phase.FAILED), done("June", Phase.PASSED)], "e")
    assert not distrust([done("May", Phase.INCONCLUSIVE)] * 9, "e") and not distrust([done("May", Phase.FAILED)], "another")
    assert distrust([done(f"{i}", Phase.PASSED if i % 3 else Phase.FAILED) for i in range(12)], "e").startswith("8 of its last 12")


# --- silent where nothing is known -------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("other", ["far", "category", "missing", "scale"])
def test_rows_beyond_the_reference_are_inconclusive(scorer, other):
    estimator = fit_estimator(scorer, rows(1000, 41), "y", 50)
    now = rows(800, 42, shift=3.0 if other == "far" else 0.0)
    if other == "category": now["cat"] = np.where(np.arange(800) % 4 == 0, "new", now["cat"])
    if other == "missing": now.loc[np.arange(800) % 3 == 0, "x2"] = np.nan
    if other == "scale": now["x3"] *= 1000
    g = estimator.estimate(now)
    assert g.verdict.phase is Phase.INCONCLUSIVE and g.accuracy is not None and g.verdict.gate == "estimate.assumptions"
    v = estimate_verdict(g, then=0.999)
    assert v.phase is Phase.INCONCLUSIVE and "must not be used" in v.reason, "neither passed nor fired, however low the figure"
    assert check(g, now).phase is Phase.INCONCLUSIVE, "it made no claim that could be missed"


def test_few_rows_and_none(scorer):
    estimator = fit_estimator(scorer, rows(500, 51), "y", 50)
    few, none = estimator.estimate(rows(99, 52)), estimator.estimate(rows(300, 52).head(0))
    assert few.verdict.phase is Phase.INCONCLUSIVE and few.accuracy is not None and "99 rows are too few" in few.verdict.reason
    assert none.verdict.phase is Phase.INCONCLUSIVE and none.accuracy is None and none.rows == 0
    assert estimate_verdict(few).phase is estimate_verdict(none).phase is Phase.INCONCLUSIVE
    one = estimator.estimate(rows(1, 53))
    assert 0 <= one.accuracy_low <= one.accuracy_high <= 1


@pytest.mark.parametrize(("change", "says"), [
    (lambda f: f.head(0), "0 rows"), (lambda f: f.head(99), "99 rows"), (lambda f: f.assign(y=[*f["y"].head(50), *[None] * 350]), "50 rows"),
    (lambda f: f.assign(y=np.nan), "0 rows of the reference have a known outcome (400 have none)"), (lambda f: f.assign(y=np.inf), "0 rows"),
    (lambda f: f.assign(y=77.0), "one class only"), (lambda f: f.assign(y=12.0), "below the threshold of 50: one class only"),
    (lambda f: f[f["y"] >= 50], "at or above")])
def test_a_reference_that_teaches_nothing_says_why(scorer, change, says):
    estimator = fit_estimator(scorer, change(rows(400, 61)), "y", 50)
    assert says in estimator.fault and says in repr(estimator)
    g = estimator.estimate(rows(300, 62))
    assert g.accuracy is None and g.rows == 300 and g.verdict.phase is Phase.INCONCLUSIVE and says in g.verdict.reason
    assert estimate_verdict(g).phase is Phase.INCONCLUSIVE and check(g, rows(300, 62)).phase is Phase.INCONCLUSIVE


def test_misuse_says_what_is_allowed(scorer):
    reference = rows(400, 71)
    estimator = fit_estimator(scorer, reference, "y", 50)
    with pytest.raises(InvalidInput, match="unknown target column 'z'"): fit_estimator(scorer, reference, "z", 50)
    with pytest.raises(InvalidInput, match="x0, cat"): fit_estimator(scorer, reference.drop(columns=["x0", "cat"]), "y", 50)
    with pytest.raises(InvalidInput, match="x0"): estimator.estimate(reference.drop(columns="x0"))
    with pytest.raises(InvalidInput, match="threshold is nan"): fit_estimator(scorer, reference, "y", float("nan"))
    with pytest.raises(InvalidInput, match="threshold is '50'"): fit_estimator(scorer, reference, "y", "50")
    with pytest.raises(InvalidInput, match="regression"): fit_estimator(scorer, reference, "y", 50, task="ranking")
    with pytest.raises(InvalidInput, match="level"): fit_estimator(scorer, reference, "y", 50, level=95)
    with pytest.raises(InvalidInput, match="frame"): fit_estimator(scorer, None, "y", 50)
    with pytest.raises(InvalidInput, match="frame"): estimator.estimate([1, 2])
    with pytest.raises(InvalidInput, match="not been fitted"): fit_estimator(TreeModel(), reference, "y", 50)
    with pytest.raises(InvalidInput, match="unknown target"): check(estimator.estimate(reference), reference.drop(columns="y"))
    with pytest.raises(InvalidInput, match="relative drop"): estimate_verdict(estimator.estimate(reference), threshold=5)
    for then in (0, -1, 83, "high"):
        with pytest.raises(InvalidInput, match="accuracy lies between"): estimate_verdict(estimator.estimate(reference), then=then)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_model_that_answers_no_number_is_broken_and_not_bad(scorer, bad):
    class Broken(TreeModel):
        def predict(self, x): return np.where(np.arange(len(x)) % 10 == 0, bad, 50.0)
    train = rows(300, 81)
    broken = Broken({"n_estimators": 2, "nthread": 1}).fit(train[FEATURES], train["y"])
    with pytest.raises(InvalidInput, match="missing or infinite answer for 40 of 400 rows"): fit_estimator(broken, rows(400, 82), "y", 50)


def test_infinite_and_missing_features_are_rows_like_others(scorer):
    def dirty(f): return f.assign(x4=np.where(np.arange(len(f)) % 7 == 0, np.inf, f["x4"]), x5=np.where(np.arange(len(f)) % 5 == 0, np.nan, f["x5"]))
    g = fit_estimator(scorer, dirty(rows(800, 91)), "y", 50).estimate(dirty(rows(500, 92)))
    assert g.verdict.passed and np.isfinite([g.accuracy_low, g.accuracy_high, g.rmse_low, g.rmse_high]).all()


def test_a_perfect_champion_and_one_that_always_says_the_same():
    frame = rows(1000, 101)
    exact = TreeModel({"n_estimators": 300, "max_depth": 8, "learning_rate": 0.5, "nthread": 1}).fit(frame[["y"]].rename(columns={"y": "x0"}), frame["y"])
    ref, now = (f.assign(x0=f["y"])[["x0", "y"]] for f in (rows(1000, 102), rows(500, 103)))
    g = fit_estimator(exact, ref, "y", 50).estimate(now)
    assert g.accuracy > 0.97 and g.accuracy_low < 1 and g.accuracy_high <= 1
    same = BaselineModel({"kind": "mean"}).fit(frame[[]], frame["y"])
    h, last = fit_estimator(same, rows(1000, 104), "y", 50).estimate(rows(500, 105)), rows(500, 105)["y"]
    assert h.verdict.passed and h.accuracy_low <= ((same.answer >= 50) == (last >= 50)).mean() <= h.accuracy_high


# --- the record --------------------------------------------------------------------------------------------------------------------------------------

def test_the_same_reference_gives_the_same_estimator_and_figures(scorer):
    first, second = (fit_estimator(scorer, rows(600, 111), "y", 50, unit="unit") for _ in range(2))
    assert first.id == second.id and first.estimate(rows(400, 112)) == second.estimate(rows(400, 112))
    assert fit_estimator(scorer, rows(600, 113), "y", 50).id != first.id and fit_estimator(scorer, rows(600, 111), "y", 51).id != first.id


def test_outcomes_that_have_come_for_a_part_of_the_rows(scorer):
    estimator, now = fit_estimator(scorer, rows(1500, 121), "y", 50), rows(1000, 122)
    g = estimator.estimate(now, "June")
    partly = now.assign(y=now["y"].where(np.arange(1000) < 400))
    done = check(g, partly)
    assert (done.rows, done.waiting, done.period) == (400, 600, "June") and done.phase is Phase.PASSED
    assert done.high - done.low > g.accuracy_high - g.accuracy_low, "fewer rows, a wider interval: like is compared with like"
    assert check(g, partly.assign(y=np.nan)).phase is Phase.INCONCLUSIVE and check(g, partly.head(50)).phase is Phase.INCONCLUSIVE


def test_records_are_plain_and_come_back(scorer, ctx):
    estimator, now = fit_estimator(scorer, rows(600, 131), "y", 50), rows(400, 132)
    g = estimator.estimate(now, "<b>June</b>")
    done = check(g, now)
    assert "source" not in g.to_dict() and "reference" not in estimator.to_dict() and "<b>" not in g._repr_markdown_()
    keep_check(ctx, done)
    keep_check(ctx, check(estimator.estimate(now.head(0)), now.head(0)))
    assert kept_checks(ctx, done.model, estimator.id)[0] == done and len(kept_checks(ctx, done.model)) == 2 and not kept_checks(ctx, "nobody")
    read = EstimatedPerformance(**{**g.to_dict(), "verdict": g.verdict})
    assert read == g and estimate_verdict(read).phase is estimate_verdict(g).phase
    with pytest.raises(InvalidInput, match="lost its estimator"): check(read, now)


# --- the ad world ------------------------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def ads(ctx):
    "Champion 2.1.0 of the small ad world, its own test rows with January as the reference, and a function to the matured rows of a month."
    info = ModelRegistry(ctx).champion("ad_score_predictor")
    model, policy = ModelRegistry(ctx).load(info.name, info.version), ctx.policy(info.name)
    def month(name): return matured_rows(ctx, "ads", policy.target, parse_window(f"{name}-01_to_{name}-28", ctx.now()))
    test = open_split(ctx, info.lineage["snapshot"], info.lineage["split"], verify=False)[2]
    wanted = [*model.features, policy.target, policy.unit]
    reference = pd.concat([test[wanted], month("2023-01")[wanted]], ignore_index=True)
    estimator = fit_estimator(model, reference, policy.target, policy.score_threshold, unit=policy.unit, seed=ctx.seed)
    return SimpleNamespace(estimator=estimator, month=month, test=test, then=reference_accuracy(ctx, info))


def test_the_ad_worlds_changed_relationship_is_found_out(ads):
    then, then_se, _ = ads.then
    assert ads.estimator.rows > 900 and abs(ads.estimator.accuracy - then) < 0.05
    assert check(ads.estimator.estimate(ads.month("2023-01")), ads.month("2023-01")).phase is Phase.PASSED, "before the change it is right"
    past = []
    for name in ("2023-03", "2023-04", "2023-05"):
        g = ads.estimator.estimate(ads.month(name).drop(columns="effectiveness_score"), name)
        assert g.verdict.passed and estimate_verdict(g, then, then_se, checks=past).phase is not Phase.FAILED, "no estimate sees a changed relationship"
        past.append(check(g, ads.month(name)))
    assert past[0].phase is Phase.FAILED and past[0].accuracy < past[0].low, "the outcomes of March show it"
    doubted = estimate_verdict(ads.estimator.estimate(ads.month("2023-06")), then, then_se, checks=past)
    assert doubted.phase is Phase.INCONCLUSIVE and "not believed" in doubted.reason


def test_the_ad_worlds_feature_drift_is_beyond_the_reference(ads):
    g = ads.estimator.estimate(ads.month("2023-09"))
    assert g.verdict.phase is Phase.INCONCLUSIVE and g.auc > 0.85, "videos shrank by 2.5 standard deviations: the reference has none like them"


def test_a_split_is_as_good_as_a_frame(ads):
    whole, frame = ads.estimator.estimate(ads.test), ads.estimator.estimate(ads.test[[*ads.test.features, "account_id"]])
    assert whole == frame and whole.rows == len(ads.test)


def test_a_text_model_is_judged_by_its_answers(ctx):
    info = ModelRegistry(ctx).champion("ad_sentiment_analyzer") or ModelRegistry(ctx).get("ad_sentiment_analyzer", "3.1.0")
    model = ModelRegistry(ctx).load(info.name, info.version)
    texts = ctx.warehouse.table("texts").order_by("created_at", "text_id").select("text", "label").to_pandas().head(1200)
    g = fit_estimator(model, texts.iloc[::2], "label", 0.5).estimate(texts.iloc[1::2])
    assert g.rmse is None and g.verdict.passed and check(g, texts.iloc[1::2]).phase is Phase.PASSED
