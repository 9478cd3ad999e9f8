"""Associations: figures that other libraries give too, error rates by simulation, and tables of any shape."""
import json

import ibis
import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from scipy.stats.contingency import association as scipy_association

from within.associations import Associations, fit_associations
from within.errors import InvalidInput
from within.verdicts import Phase

def world(n: int, rho: float = 0.5, seed: int = 0) -> pd.DataFrame:
    "Three numbers (the first two of correlation `rho`), a count, a flag and two related categories."
    g = np.random.default_rng(seed)
    a, b = g.multivariate_normal([0, 0], [[1, rho], [rho, 1]], n).T
    place = g.choice(["feed", "story", "search"], n)
    return pd.DataFrame({"a": a, "b": np.exp(b), "free": g.normal(size=n), "count": g.poisson(np.exp(a / 2)), "flag": g.random(n) < 0.3, "place": place,
                         "device": np.where((place == "search") & (g.random(n) < 0.7), "desk", "phone")})


@pytest.fixture(scope="module")
def reference(): return fit_associations(world(5000))


def figures(associations) -> dict: return {frozenset((p.first, p.second)): p for p in associations.pairs}


def test_the_figures_are_those_of_other_libraries(reference):
    frame, found = world(5000), figures(reference)
    for x, y in (("a", "b"), ("a", "count"), ("count", "flag")):
        assert abs(found[frozenset((x, y))].figure - spearmanr(frame[x], frame[y]).statistic) < 1e-9
    v = found[frozenset(("place", "device"))]
    assert abs(v.raw / 1 - scipy_association(pd.crosstab(frame.place, frame.device).to_numpy(), method="cramer")) < 1e-9, "two columns: φ is V"
    ranks = frame.a.rank()
    eta = found[frozenset(("a", "place"))]
    assert abs(eta.raw - np.sqrt(ranks.groupby(frame.place).transform("mean").var() / ranks.var())) < 1e-9
    assert len(found) == 7 * 6 / 2 and all(0 <= p.figure <= 1 for p in reference.pairs if p.measure != "spearman")


def test_missing_values_are_left_out_pair_by_pair(reference):
    g, frame = np.random.default_rng(9), world(5000)
    holes = frame.assign(a=frame.a.where(g.random(5000) > 0.4), place=frame.place.where(g.random(5000) > 0.4))
    found, full = figures(fit_associations(holes)), figures(reference)
    assert 2800 < found[frozenset("ab")].rows < 3200 and 1600 < found[frozenset(("a", "place"))].rows < 2000
    assert all(abs(found[k].figure - full[k].figure) < 0.05 for k in full)


def test_the_sample_is_bounded_and_the_same_each_time(tmp_path):
    frame = pd.concat([world(30_000, seed=s) for s in range(3)], ignore_index=True)
    path = tmp_path / "t.parquet"
    frame.to_parquet(path)
    first = fit_associations(frame, most_rows=10_000)
    assert first.rows == 90_000 and max(p.rows for p in first.pairs) <= 10_000
    assert first == fit_associations(path, most_rows=10_000) == fit_associations(ibis.memtable(frame), most_rows=10_000)
    assert first.compare(path).largest.shift == 0 and fit_associations(frame, most_rows=10_000, seed=3).pairs != first.pairs


def test_the_file_gives_back_the_same(reference, tmp_path):
    kept = Associations.load(reference.save(tmp_path / "a.json"))
    assert kept == reference and (tmp_path / "a.json").stat().st_size < 5_000
    assert kept.compare(world(3000, seed=4)).to_dict() == reference.compare(world(3000, seed=4)).to_dict()
    json.dumps(reference.compare(world(3000, seed=4)).to_dict())


@pytest.mark.parametrize("damage", [{"protocol": 2}, {"pairs": {}}, {"kinds": None}, {"levels": 3}, {"rows": "many"}])
def test_a_damaged_file_is_refused(reference, tmp_path, damage):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**reference.to_dict(), **damage}))
    with pytest.raises(InvalidInput): Associations.load(path)
    path.write_text("[]")
    with pytest.raises(InvalidInput): Associations.load(path)
    with pytest.raises(InvalidInput): Associations.load(tmp_path / "nothing.json")


def test_a_flip_is_named_with_figure_interval_and_threshold(reference):
    analysis = reference.compare(world(5000, rho=-0.4, seed=1))
    top = analysis.largest
    assert analysis.verdict.phase is Phase.FAILED and analysis.verdict.gate == "trigger.correlation" and {top.first, top.second} == {"a", "b"}
    assert top.then == pytest.approx(0.48, abs=0.05) and top.now == pytest.approx(-0.38, abs=0.05) and top.low > 0.7 and top.high < 1
    for text in ("a ~ b", f"{top.shift:.2f}", f"({top.low:.2f} to {top.high:.2f})", "0.3"): assert text in analysis.verdict.reason
    assert analysis.table().iloc[0]["changed"] and len(analysis.table()) == 21 and "a ~ b" in analysis._repr_markdown_()
    assert {"a ~ b"} <= set(analysis.verdict.details["fired"]) <= {"a ~ b", "b ~ count"}


# --- error rates -----------------------------------------------------------------------------------------------------------------------------------

def rate(rows: int, times: int, fired, rho: float = 0.5, then: int | None = None) -> float:
    "Share of repetitions in which `fired(analysis)` holds, references drawn anew each time."
    found = [fired(fit_associations(world(then or rows, seed=2 * s)).compare(world(rows, rho=rho, seed=2 * s + 1))) for s in range(times)]
    return float(np.mean(found))


def failed(analysis) -> bool: return analysis.verdict.phase is Phase.FAILED


@pytest.mark.parametrize("rows, times", [(60, 60), (500, 60), (5000, 25)])
def test_nothing_fires_when_nothing_changed(rows, times):
    assert rate(rows, times, failed) == 0


def test_the_intervals_hold_for_all_pairs_at_once():
    "Any of 21 lower bounds above zero, without a change: at most 5 % of the time, with 3 standard errors of 150 repetitions."
    assert rate(500, 150, lambda a: any(s.low > 0 for s in a.pairs)) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 150)


@pytest.mark.parametrize("rows, times", [(500, 40), (5000, 15)])
def test_a_flip_is_always_found(rows, times):
    assert rate(rows, times, failed, rho=-0.4) == 1


def test_a_change_just_at_the_threshold_fires_rarely():
    "Spearman's correlation goes from 0.45 to exactly 0.15: the lower bound is above 0.3 in one of forty."
    def pair(n: int, spearman: float, seed: int) -> pd.DataFrame:
        r = 2 * np.sin(np.pi * spearman / 6)
        return pd.DataFrame(np.random.default_rng(seed).multivariate_normal([0, 0], [[1, r], [r, 1]], n), columns=["x", "y"])
    found = [fit_associations(pair(1000, 0.45, 2 * s)).compare(pair(1000, 0.15, 2 * s + 1)).verdict.phase for s in range(200)]
    assert found.count(Phase.FAILED) <= 0.025 * 200 + 3 * np.sqrt(0.025 * 200) and found.count(Phase.PASSED) <= 13, "and 'not changed' is as rare"


def test_few_rows_are_cannot_tell(reference):
    assert reference.compare(world(0)).verdict.phase is Phase.INCONCLUSIVE and reference.compare(world(0)).pairs == ()
    assert reference.compare(world(20)).verdict.phase is Phase.INCONCLUSIVE
    small = reference.compare(world(60, seed=8)).verdict
    assert small.phase is Phase.INCONCLUSIVE and "may have changed" in small.reason


# --- tables of any shape ---------------------------------------------------------------------------------------------------------------------------

def test_what_cannot_be_related_is_listed():
    frame = world(2000).assign(constant=1.5, same="x", none=np.nan, nobody=None, id=[f"u{i}" for i in range(2000)], when=pd.Timestamp("2023-01-01"))
    made = fit_associations(frame)
    assert {k: v.split(":")[0] for k, v in made.unrelated.items()} == {"constant": "constant", "same": "constant", "none": "all missing",
                                                                      "nobody": "all missing", "id": "an identifier"}
    assert len(made.pairs) == 21 and "when" not in made.kinds, "times are not related to anything"
    assert "cannot be related" in made._repr_markdown_() and made.compare(frame.assign(nobody="somebody")).verdict.phase is Phase.PASSED


def test_a_column_that_lost_its_values_is_not_called_unchanged(reference):
    for lost, why in ((None, "all missing"), (3.0, "constant")):
        analysis = reference.compare(world(5000, seed=1).assign(b=lost))
        assert analysis.verdict.phase is Phase.INCONCLUSIVE and analysis.lost["a ~ b"] == f"b is {why}" and len(analysis.lost) == 6
    assert reference.compare(world(5000, rho=-0.4, seed=1).assign(free=None)).verdict.phase is Phase.FAILED


def test_misuse_says_what_to_do(reference):
    frame = world(300)
    for call, words in ((lambda: reference.compare(frame.drop(columns="place")), "lacks column 'place'"),
                        (lambda: reference.compare(frame.assign(a="x")), "was a number .* and is a category"),
                        (lambda: reference.compare(frame.assign(place=1)), "was a category .* and is a number"),
                        (lambda: reference.compare(frame.assign(a=pd.Timestamp("2023-01-01"))), "'a'"),
                        (lambda: reference.compare(frame, threshold=0), "threshold"), (lambda: reference.compare(frame, threshold="x"), "threshold"),
                        (lambda: reference.compare(frame, level=95), "level"), (lambda: reference.compare([1, 2]), "a table is"),
                        (lambda: fit_associations(frame, ["a", "bb"]), "'bb'"), (lambda: fit_associations(frame, "a"), "list of names"),
                        (lambda: fit_associations(frame, ["a"]), "at least two"), (lambda: fit_associations(frame[:0]), "no rows"),
                        (lambda: fit_associations(frame, most_rows=0), "most_rows"), (lambda: fit_associations(frame[["a", "a", "b"]]), "named twice")):
        with pytest.raises(InvalidInput, match=words): call()


def test_hostile_names_and_values():
    g, n = np.random.default_rng(0), 600
    z = g.normal(size=n)
    frame = pd.DataFrame({"a.b": z, 'quote"d': z + g.normal(size=n), "semi;colon -- '": np.where(z > 0, "it's", 'a "b"'), "_turn": g.normal(size=n)})
    frame.loc[:5, "a.b"] = np.inf
    frame.loc[6:10, "a.b"] = -np.inf
    analysis = fit_associations(frame).compare(frame)
    assert analysis.verdict.phase is Phase.PASSED and len(analysis.pairs) == 6 and fit_associations(frame).table().iloc[0]["figure"] > 0.6


def test_one_outlier_hides_nothing(reference):
    now = world(5000, rho=-0.4, seed=1)
    now.loc[0, "b"] = 1e300
    assert reference.compare(now).largest.shift > 0.8


def test_many_categories_are_grouped_by_the_reference():
    g, n = np.random.default_rng(0), 200_000
    many = pd.DataFrame({"who": g.integers(0, 100_000, n).astype(str), "x": g.normal(size=n), "y": g.choice(list("abc"), n)})
    made = fit_associations(many, most_rows=20_000)
    assert "who" in made.unrelated and len(made.pairs) == 1
    fewer = many.assign(who=(g.pareto(1, n) * 50).astype(int).astype(str))
    made = fit_associations(fewer)
    assert len(made.levels["who"]) == 30 and len(made.pairs) == 3
    assert made.compare(fewer.assign(who="new" + fewer.who)).lost, "values that the reference never saw are one value"


def test_a_pair_without_common_rows_is_left_out():
    frame = world(400)
    frame.loc[:199, "a"], frame.loc[200:, "b"] = np.nan, np.nan
    assert frozenset("ab") not in figures(fit_associations(frame)) and len(fit_associations(frame).pairs) == 20


def test_two_hundred_columns():
    g = np.random.default_rng(0)
    common = g.normal(size=(4000, 1))
    wide = pd.DataFrame(common * 0.7 + g.normal(size=(4000, 200)), columns=[f"x{i}" for i in range(200)])
    made = fit_associations(wide)
    flipped = wide.assign(x7=-wide.x7)
    analysis = made.compare(flipped)
    assert len(made.pairs) == 19_900 and len(analysis.changed) == 199 and all("x7" in (s.first, s.second) for s in analysis.changed)
    assert len(json.dumps(analysis.to_dict())) < 60_000
