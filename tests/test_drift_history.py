"""Windows as sums of days, thresholds learned from them, and the figures of other tools."""
import datetime
import os
import warnings
from datetime import date, timedelta

import ibis
import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import jensenshannon

from within.drift import Counts, fit_reference
from within.drift_history import as_printed_by, drift_history, learned_thresholds, thresholds_from
from within.errors import InvalidInput
from within.verdicts import Phase

FEATURES = ["x", "heavy", "who", "flag", "holes"]


def rows(days: int, a_day: int = 120, seed: int = 0, start: str = "2023-01-01", **shift: float) -> pd.DataFrame:
    rng, n = np.random.default_rng(seed), days * a_day
    at = pd.Timestamp(start, tz="UTC") + pd.to_timedelta(np.arange(n) * (86_400 // a_day), unit="s")
    moved = {k: np.zeros(n) + v for k, v in shift.items()}
    return pd.DataFrame({"at": at, "x": rng.normal(size=n) + moved.get("x", 0), "heavy": rng.pareto(1.5, n), "flag": rng.random(n) < 0.3,
                         "who": rng.choice(list("abcdefgh"), n), "holes": np.where(rng.random(n) < 0.2 + moved.get("holes", 0), np.nan, rng.random(n))})


@pytest.fixture(scope="module")
def reference(): return fit_reference(rows(300, seed=1, start="2022-01-01"), FEATURES)


@pytest.fixture(scope="module")
def days(reference): return reference.count_days(rows(120), "at")


@pytest.mark.parametrize("window", [1, 7, 30])
def test_a_window_is_what_its_rows_are(reference, days, window):
    history = drift_history(reference, days, window)
    assert len(history) == 120 - window + 1 and list(history) == FEATURES and history.notna().all(axis=None)
    table = rows(120)
    for last in (history.index[0], history.index[-1]):
        held = table[(table["at"] < last.tz_localize("UTC") + pd.Timedelta(days=1)) & (table["at"] >= last.tz_localize("UTC") - pd.Timedelta(days=window - 1))]
        assert history.loc[last].to_dict() == {n: f.js_divergence for n, f in reference.compare(held).features.items()}


def test_days_without_rows_are_days(reference, days):
    gap = {d: c for d, c in days.items() if not date(2023, 2, 1) <= d < date(2023, 2, 20)}
    history = drift_history(reference, gap, window=7)
    assert len(history) == 114 and history.loc["2023-02-07":"2023-02-19"].isna().all(axis=None) and history.loc["2023-02-20":].notna().all(axis=None)
    assert drift_history(reference, {}, 7).empty and drift_history(reference, dict(list(days.items())[:3]), 7).empty


def test_thin_windows_are_left_empty(reference):
    thin = reference.count_days(rows(30, a_day=10), "at")
    assert drift_history(reference, thin, 7).isna().all(axis=None) and drift_history(reference, thin, 7, minimum_rows=50).notna().all(axis=None)
    assert thresholds_from(reference, thin).phase is Phase.INCONCLUSIVE


@pytest.mark.parametrize(("days_given", "window"), [(None, 0), (None, 1.5), (None, True), ({"2023-01-01": 3}, 7),
                                                    ({date(2023, 1, 1): Counts("other", 1, {})}, 7)])
def test_misuse_is_refused(reference, days, days_given, window):
    with pytest.raises(InvalidInput): drift_history(reference, days if days_given is None else days_given, window)


def test_learned_where_the_rows_are(reference, days, tmp_path):
    table = rows(120)
    table.to_parquet(tmp_path / "rows.parquet")
    learned = learned_thresholds(reference, table, "at")
    assert learned.learned and set(learned.thresholds) == set(FEATURES) and learned.rows == 840 and learned == thresholds_from(reference, days)
    for form in (tmp_path / "rows.parquet", ibis.memtable(table)): assert learned_thresholds(reference, form, "at") == learned
    strict = learned_thresholds(reference, table, "at", budget=0.01)
    assert all(strict.thresholds[f] >= learned.thresholds[f] for f in FEATURES)


def test_quiet_stays_quiet_and_a_quarter_deviation_is_found(reference, days):
    learned = thresholds_from(reference, days, window=7)
    assert learned.episodes(drift_history(reference, reference.count_days(rows(300, seed=5, start="2023-06-01"), "at"), 7)) <= 2
    for shift, name in (({"x": 0.4}, "x"), ({"holes": 0.1}, "holes")):
        moved = drift_history(reference, reference.count_days(rows(21, seed=6, start="2024-06-01", **shift), "at"), 7)
        alarms = learned.alarms(moved)
        assert alarms[name].mean() > 0.8 and not alarms.drop(columns=name).any(axis=None)
        week = rows(7, seed=6, start="2024-06-01", **shift)
        assert reference.compare(week, threshold=learned).drifted == [name] and reference.compare(week).drifted == []


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 7])
def test_the_budget_is_kept_by_real_counts(window):
    "Multinomial counts, drawn exactly, through the same functions: quiet half years, then quiet years."
    rng, rates, learned_any = np.random.default_rng(window), [], 0
    reference = fit_reference(rows(300, seed=2), FEATURES)
    shares = {n: np.asarray(c, float) / sum(c) for n, c in reference.counts.items()}
    def world(length: int) -> dict[date, Counts]:
        drawn = {n: rng.multinomial(600, p, size=length) for n, p in shares.items()}
        counts = [{n: tuple(map(int, d[i])) for n, d in drawn.items()} for i in range(length)]
        return {date(2020, 1, 1) + timedelta(days=i): Counts(reference.digest, 600, c) for i, c in enumerate(counts)}
    for _ in range(12):
        days = world(180 + 360)
        first = dict(list(days.items())[:180])
        learned = thresholds_from(reference, first, window)
        learned_any += learned.learned
        rates.append(learned.episodes(drift_history(reference, dict(list(days.items())[180:]), window)) / 12)
    assert learned_any == 12 and np.mean(rates) <= 0.1, np.mean(rates)


# --- what others print -----------------------------------------------------------------------------------------------------------------------------------

def samples() -> dict[str, tuple[pd.Series, pd.Series]]:
    rng = np.random.default_rng(7)
    normal = rng.normal(size=3000), rng.normal(0.4, 1.3, 2000)
    return {"normal": normal, "few values": (rng.poisson(2, 1500).astype(float), rng.poisson(2.5, 1500).astype(float)),
            "outlier": (np.append(normal[0], 1e6), normal[1]),
            "holes": (np.where(rng.random(3000) < 0.2, np.nan, normal[0]), np.append(normal[1], [np.nan] * 50)),
            "infinite": (np.append(normal[0], np.inf), np.append(normal[1], -np.inf)), "texts": (rng.choice(list("abc"), 900), rng.choice(list("bcd"), 700)),
            "constant": (np.ones(400), np.ones(400)), "apart": (np.zeros(300), np.ones(300))}


@pytest.fixture(scope="module")
def evidently():
    os.environ |= {"EVIDENTLY_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "true"}
    from evidently import Report
    from evidently.metrics import ValueDrift

    def printed(before, after) -> float:
        sides = [pd.DataFrame({"v": pd.Series(v)}) for v in (after, before)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")      # it subtracts infinities
            found = Report([ValueDrift(column="v", method="jensenshannon")]).run(*sides).dict()
        return float(found["metrics"][0]["value"])
    return printed


@pytest.mark.parametrize("name", [n for n in samples()])
def test_evidentlys_figure_is_evidentlys(evidently, name):
    before, after = samples()[name]
    assert as_printed_by(before, after)["evidently"] == pytest.approx(evidently(before, after), abs=1e-7)     # the square root of a rounding error


def test_nannymls_and_tfdvs_rules_by_hand():
    a = np.repeat(np.arange(5.0), 400)                     # five values of 2,000 rows: single values, what the reference lacks apart
    printed = as_printed_by(a, np.append(a, [9.0] * 500))
    assert printed["nannyml"] == pytest.approx(jensenshannon([400] * 5 + [0], [400] * 5 + [500], base=2), abs=1e-12)
    x, y = np.arange(0, 1000, 1.0), np.arange(500, 1500, 1.0)      # ten bins each of 99.9 wide, moved by half of the range
    cuts = np.unique(np.append(np.linspace(0, 999, 11), np.linspace(500, 1499, 11)))
    p, q = (np.diff(np.interp(cuts, np.linspace(lo, lo + 999, 11), np.arange(11) * 100)) for lo in (0, 500))
    assert as_printed_by(x, y)["tfdv"] == pytest.approx(jensenshannon(p, q, base=2) ** 2, abs=1e-12)
    edges = np.histogram_bin_edges(x, "doane")
    p, q = (np.histogram(v, edges)[0] / 1000 for v in (x, y))
    assert as_printed_by(x, y)["nannyml"] == pytest.approx(jensenshannon([*p, 0], [*q, 1 - q.sum()], base=2), abs=1e-12)


@pytest.mark.parametrize("name", [n for n in samples()])
def test_every_figure_is_one(name):
    for before, after in (samples()[name], samples()[name][::-1]):
        found = as_printed_by(before, after)
        assert 0 <= found["evidently"] <= np.sqrt(np.log(2)) + 1e-9 and 0 <= found["tfdv"] <= 1 + 1e-9
        assert name == "infinite" or 0 <= found["nannyml"] <= 1 + 1e-9
        same = as_printed_by(before, before)
        assert same["evidently"] < 1e-7 and (name == "infinite" or max(same["tfdv"], same["nannyml"]) < 1e-7)


@pytest.mark.parametrize(("before", "after"), [([], [1.0]), ([1.0], [None, np.nan]), ([1.0, 2.0], ["a"]), (["a"], [datetime.date(2023, 1, 1)] * 0)])
def test_what_no_tool_prints(before, after):
    with pytest.raises(InvalidInput): as_printed_by(before, after)
