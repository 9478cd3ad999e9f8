"""The domain classifier: an AUC that others compute too, error rates by simulation, and tables of any shape."""
import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from within.domain_classifier import averaged_auc, domain_classifier
from within.drift import fit_reference
from within.errors import InvalidInput
from within.verdicts import Phase

def world(n: int, rho: float = 0.6, seed: int = 0) -> pd.DataFrame:
    "Two correlated numbers, a free one, a count and a category."
    g = np.random.default_rng(seed)
    a, b = g.multivariate_normal([0, 0], [[1, rho], [rho, 1]], n).T
    return pd.DataFrame({"a": a, "b": b, "c": g.normal(size=n), "count": g.poisson(3, n), "place": g.choice(["feed", "story", "search"], n)})


def fired(analysis) -> bool: return analysis.verdict.phase is Phase.FAILED


# --- the figure ------------------------------------------------------------------------------------------------------------------------------------

def test_the_area_is_scikit_learns_with_ties():
    g = np.random.default_rng(0)
    today, scores = g.random(500) < 0.3, np.round(g.normal(size=500), 1)
    found = averaged_auc(scores, today, np.zeros(500, int))
    assert abs(found.auc - roc_auc_score(today, scores)) < 1e-12 and found.low < found.auc < found.high
    fold = g.integers(0, 3, 500)
    assert averaged_auc(scores, today, fold).folds == pytest.approx([roc_auc_score(today[fold == f], scores[fold == f]) for f in range(3)])


def test_the_interval_covers_the_true_area():
    "Two normals one standard deviation apart: AUC Φ(1/√2)."
    from scipy.stats import norm
    truth, missed = norm.cdf(1 / np.sqrt(2)), 0
    for seed in range(400):
        g = np.random.default_rng(seed)
        today = np.arange(260) < 60
        found = averaged_auc(g.normal(size=260) + today, today, np.zeros(260, int))
        missed += not found.low <= truth <= found.high
    assert missed <= 0.05 * 400 + 3 * np.sqrt(0.05 * 0.95 * 400)


def test_rows_written_down_often_know_no_more():
    g = np.random.default_rng(1)
    today = np.arange(200) < 90
    scores, unit = g.normal(size=200) + 0.5 * today, np.arange(200)
    once, rows, units = (averaged_auc(np.repeat(scores, k), np.repeat(today, k), np.zeros(200 * k, int), u)
                         for k, u in ((1, None), (9, None), (9, np.repeat(unit, 9))))
    assert rows.high - rows.low < 0.4 * (once.high - once.low) and units.high - units.low == pytest.approx(once.high - once.low, rel=0.02)


def test_a_perfect_separation_still_has_an_interval():
    today = np.arange(300) < 150
    found = averaged_auc(today * 1.0, today, np.arange(300) % 5)
    assert found.auc == 1 and 0.95 < found.low < 1
    analysis = domain_classifier(world(300), world(300, seed=1).assign(c=lambda f: f.c + 100))
    assert analysis.auc > 0.99 and list(analysis.features)[0] == "c" and fired(analysis)


# --- error rates -----------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("rows, times", [(100, 40), (500, 30), (2000, 10)])
def test_quiet_when_nothing_changed(rows, times):
    found = [domain_classifier(world(rows, seed=2 * s), world(rows, seed=2 * s + 1)) for s in range(times)]
    assert not any(map(fired, found)) and abs(np.mean([a.auc for a in found]) - 0.5) < 0.03
    assert np.mean([a.low > 0.5 for a in found]) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / times)


@pytest.mark.parametrize("rows, times", [(500, 15), (5000, 3)])
def test_a_turned_correlation_is_caught_that_no_column_shows(rows, times):
    for s in range(times):
        then, now = world(rows, seed=2 * s), world(rows, rho=-0.6, seed=2 * s + 1)
        analysis = domain_classifier(then, now)
        assert fired(analysis) and set(list(analysis.features)[:2]) == {"a", "b"} and analysis.features["a"] + analysis.features["b"] > 0.6
        assert fit_reference(then).compare(now, minimum_rows=100).drifted == []


def test_units_that_have_habits_are_not_a_change():
    def accounts(seed: int) -> pd.DataFrame:
        g = np.random.default_rng(seed)
        return pd.DataFrame(np.repeat(g.normal(size=(60, 3)), 20, 0) + 0.1 * g.normal(size=(1200, 3)), columns=list("xyz")).assign(
            account=np.repeat([f"{seed}-{i}" for i in range(60)], 20))
    mixed = [domain_classifier(accounts(2 * s), accounts(2 * s + 1), columns=["x", "y", "z"]) for s in range(5)]
    apart = [domain_classifier(accounts(2 * s), accounts(2 * s + 1), unit="account") for s in range(20)]
    assert all(map(fired, mixed)) and not any(map(fired, apart)), "mixed, it recognises accounts"
    assert all("account" not in a.features for a in apart)


def test_a_unit_on_both_sides_stays_in_one_fold():
    g = np.random.default_rng(0)
    units = g.integers(0, 30, 2000)
    frame = world(2000).assign(a=g.normal(size=30)[units], unit=units)
    analysis = domain_classifier(frame[:1000], frame[1000:], unit="unit")
    assert analysis.auc is not None and not fired(analysis)


# --- the answer ------------------------------------------------------------------------------------------------------------------------------------

def test_the_verdict_has_figure_interval_threshold_and_names():
    analysis = domain_classifier(world(2000), world(2000, seed=1).assign(c=lambda f: f.c + 2))
    verdict = analysis.verdict
    assert verdict.gate == "trigger.multivariate_drift" and fired(analysis)
    assert (verdict.figure, verdict.low, verdict.high) == (analysis.auc, analysis.low, analysis.high)
    for text in (f"{analysis.auc:.3f}", f"({analysis.low:.3f} to {analysis.high:.3f})", "0.65", "c ("): assert text in verdict.reason
    assert sum(analysis.features.values()) == pytest.approx(1) and analysis.table().iloc[0]["feature"] == "c" and "| c |" in analysis._repr_markdown_()
    assert json.loads(json.dumps(analysis.to_dict()))["auc"] == analysis.auc and len(analysis.folds) == 5
    assert domain_classifier(world(2000), world(2000, seed=1).assign(c=lambda f: f.c + 2)).to_dict() == analysis.to_dict(), "the same each time"
    near = domain_classifier(world(150), world(150, seed=1).assign(c=lambda f: f.c + 0.8)).verdict
    assert near.phase is Phase.INCONCLUSIVE and "too uncertain" in near.reason


def test_time_and_units_are_never_features():
    days = pd.date_range("2023-01-01", periods=600, freq="h")
    then, now = world(600).assign(when=days, stamp=days.astype("int64"), row=range(600)), world(600, seed=1).assign(
        when=days + pd.Timedelta("90D"), stamp=(days + pd.Timedelta("90D")).astype("int64"), row=range(600, 1200))
    analysis = domain_classifier(then, now, time="stamp")
    assert set(analysis.features) == {"a", "b", "c", "count", "place"} and list(analysis.left_out) == ["row"] and analysis.verdict.passed
    assert "row" in domain_classifier(then.sample(frac=1, random_state=0), now, columns=["a", "row"]).features, "out of order it cannot be known for a clock"
    only = domain_classifier(then[["row", "stamp"]], now[["row", "stamp"]])
    assert only.verdict.phase is Phase.INCONCLUSIVE and "clock" in only.verdict.reason
    with pytest.raises(InvalidInput, match="no column is left"): domain_classifier(then[["when", "stamp"]], now, time="stamp")


def test_few_rows_and_few_units_are_cannot_tell():
    frame = world(1000).assign(u=np.arange(1000) // 400)
    for analysis in (domain_classifier(frame, frame[:0]), domain_classifier(frame, frame[:40]), domain_classifier(frame[:40], frame),
                     domain_classifier(frame, frame, unit="u")):
        assert analysis.verdict.phase is Phase.INCONCLUSIVE and analysis.auc is None and analysis.verdict.reason
        analysis._repr_markdown_()


def test_the_same_rows_on_both_sides_are_no_change():
    analysis = domain_classifier(world(1000), world(1000))
    assert analysis.auc < 0.55 and analysis.verdict.passed


@pytest.mark.parametrize("changes, words", [
    ({"folds": 1}, "folds"), ({"folds": 2.5}, "folds"), ({"most_rows": 10}, "most_rows"), ({"threshold": 0.4}, "threshold"), ({"threshold": "x"}, "threshold"),
    ({"level": 95}, "level"), ({"unit": "accont"}, "accont"), ({"time": "whne"}, "whne"), ({"columns": "a"}, "list of names"), ({"columns": ["a", "zz"]}, "zz"),
    ({"columns": []}, "no column is left")])
def test_misuse_says_what_to_do(changes, words):
    with pytest.raises(InvalidInput, match=words): domain_classifier(world(300), world(300, seed=1), **changes)


def test_changed_columns_are_misuse():
    frame = world(300)
    for now, words in ((frame.drop(columns="c"), "lacks column 'c'"), (frame.assign(a="x"), "'a' was a number"),
                       (frame.assign(place=3), "'place' was a category")):
        with pytest.raises(InvalidInput, match=words): domain_classifier(frame, now)
    assert domain_classifier(frame, world(300, seed=1).assign(appeared=1.0)).auc is not None, "a column that appeared is not compared"


def test_any_values_and_names():
    g, n = np.random.default_rng(0), 800
    then = pd.DataFrame({"a.b": g.normal(size=n), 'q"t': g.integers(0, 2**62, n), "semi;colon": g.choice(["it's", None, 'a "b"'], n), "none": np.nan, "one": 1,
                         "id": [f"u{i}" for i in range(n)], "[x]<y": g.normal(size=n)})
    now = then.sample(frac=1, random_state=1).assign(id=[f"v{i}" for i in range(n)])
    then.loc[:5, "a.b"], now.iloc[:5, 0] = np.inf, -np.inf
    then.loc[6, "a.b"] = 1e300
    analysis = domain_classifier(then, now)
    assert analysis.verdict.passed and "id" in analysis.features, "30 of 800 names are told apart, so names are not learned by heart"
    gone = domain_classifier(world(800), world(800, seed=1).assign(c=None))
    assert fired(gone) and list(gone.features)[0] == "c", "all missing now is a change"


def test_many_rows_are_sampled_and_read_from_parquet(tmp_path):
    path = tmp_path / "now.parquet"
    world(60_000, rho=-0.6, seed=1).to_parquet(path)
    analysis = domain_classifier(world(50_000), path, most_rows=2_000)
    assert fired(analysis) and (analysis.reference_rows, analysis.current_rows) == (50_000, 60_000)
    assert analysis.low > 0.7 and analysis.high - analysis.low > 0.015, "the interval is that of the sample"
