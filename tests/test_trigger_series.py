"""Trigger series: windows, levels for many looks, and verdicts beside each other."""
import json

import numpy as np
import pandas as pd
import pytest

from within.errors import InvalidInput
from within.trigger_series import (
    TriggerSeries,
    accuracy_series,
    association_series,
    classifier_on,
    concept_series,
    data_triggers,
    domain_series,
    drift_series,
    evidently_series,
    share_interval,
    volume_series,
    windows_by,
    windows_of,
)
from within.verdicts import Phase

def world(n: int, shift: float = 0.0, rho: float = 0.5, seed: int = 0) -> pd.DataFrame:
    g = np.random.default_rng(seed)
    a, b = g.multivariate_normal([0, shift], [[1, rho], [rho, 1]], n).T
    return pd.DataFrame({"a": a, "b": b, "place": g.choice(["feed", "story"], n), "y": np.where(a + 0.5 * g.normal(size=n) > 0, "yes", "no")})


def phases(verdicts) -> list[str]: return [str(v.phase) for v in verdicts]


def test_windows_hold_every_row_once_and_know_where_they_are():
    frame = pd.DataFrame({"x": range(1050)})
    found = windows_of(frame, 100, start=50)
    assert len(found) == 10 and [w.start for w in found] == list(range(50, 1050, 100))
    assert pd.concat([w.frame for w in found]).x.tolist() == list(range(50, 1050))
    assert len(windows_of(frame, 100)) == 11 and windows_of(frame, 100)[-1].end == 1050 and len(windows_of(frame, 400)) == 3, "a rest of a half or more is kept"
    assert len(windows_of(frame, 800)) == 1 and len(windows_of(frame, 5000)) == 0
    weeks = pd.DataFrame({"week": pd.to_datetime(["2018-01-08", "2018-01-01", "2018-01-08"]), "x": 1})
    assert [(str(w.start)[:10], len(w.frame)) for w in windows_by(weeks, "week", pd.Timedelta("7D"))] == [("2018-01-01", 1), ("2018-01-08", 2)]
    for call in (lambda: windows_of(frame, 0), lambda: windows_of(frame, 1.5), lambda: windows_of(frame, 10, -1), lambda: windows_of(frame, 10, 1050),
                 lambda: windows_by(weeks, "wek", 1), lambda: drift_series(frame, found, ["x"], looks=0)):
        with pytest.raises(InvalidInput): call()


def test_each_change_is_seen_by_its_trigger_and_the_rest_is_quiet():
    stream = pd.concat([world(3000, rho=0.6), world(1000, rho=-0.6, seed=1), world(1000, shift=1.8, rho=-0.6, seed=2)], ignore_index=True)
    before, windows = stream[:2000], windows_of(stream, 500, start=2000)
    found = data_triggers(before, windows, ["a", "b", "place"])
    series = TriggerSeries.of("made", windows, 3000, **found, concept_drift=concept_series(before, windows, "y", ["a", "b"]))
    assert series.fired("data_drift").tolist() == [False] * 4 + [True] * 2
    assert series.fired("correlation").tolist() == series.fired("multivariate").tolist() == [False] * 2 + [True] * 4
    assert not series.fired("concept_drift").any(), "what makes a yes stayed as it was"
    assert (series.delay("correlation"), series.delay("data_drift"), series.delay("concept_drift")) == (500, 1500, None)
    assert series.summary()["fired before the change"].tolist() == ["0 of 2"] * 5 and len(series.table()) == 6 and "| correlation |" in series._repr_markdown_()
    assert series.picture()._repr_png_()[:4] == b"\x89PNG" and json.dumps(series.to_dict())
    with pytest.raises(InvalidInput, match="did you mean 'data_drift'"): series.first("data_drft")
    with pytest.raises(InvalidInput, match="verdicts for 6 windows"): TriggerSeries.of("made", windows, x=[])


def test_more_looks_make_wider_intervals():
    windows = windows_of(world(1000, seed=5), 500)
    for ask in (drift_series, association_series, domain_series):
        one, many = (ask(world(1000), windows, ["a", "b"], looks=k)[0] for k in (1, 200))
        assert one.figure == many.figure and many.low <= one.low and many.high > one.high, ask.__name__
    right = np.random.default_rng(0).random(400) < 0.8
    one, many = (accuracy_series(right, [right], looks=k)[0] for k in (1, 200))
    assert many.low < one.low < one.figure < one.high < many.high


def test_accuracy_fires_for_a_drop_passes_without_and_cannot_tell_from_few():
    g = np.random.default_rng(1)
    then, same, worse = g.random(5000) < 0.9, g.random(5000) < 0.9, g.random(5000) < 0.7
    assert phases(accuracy_series(then, [same, worse, worse[:6], worse[:0]])) == ["passed", "failed", "inconclusive", "inconclusive"]
    days = np.arange(5000) // 50
    assert accuracy_series(then, [same], unit_then=days, unit_now=[days])[0].passed
    with pytest.raises(InvalidInput): accuracy_series(then[:0], [same])


def test_no_false_alarm_of_accuracy_in_many_series():
    "Eighteen windows of 300 rows without any change, 200 times: in at most 5 % of the series is a lower bound above zero."
    g, wrong = np.random.default_rng(2), 0
    for _ in range(200):
        found = accuracy_series(g.random(3000) < 0.8, [g.random(300) < 0.8 for _ in range(18)])
        wrong += any(v.low > 0 for v in found)
        assert not any(v.phase is Phase.FAILED for v in found)
    assert wrong <= 0.05 * 200 + 3 * np.sqrt(0.05 * 0.95 * 200)


def test_alike_rows_know_less():
    g, covered = np.random.default_rng(3), {"rows": 0, "days": 0}
    for _ in range(200):
        days = np.repeat(np.arange(40), 25)
        right = g.random(1000) < np.repeat(g.beta(4, 1, 40), 25)
        for how, unit in (("rows", None), ("days", days)):
            _, low, high = share_interval(right, unit)
            covered[how] += low <= 0.8 <= high
    assert covered["rows"] < 150 and covered["days"] >= 180
    assert share_interval(np.ones(10, bool), np.zeros(10))[1:] == (0, 1) and np.isnan(share_interval(np.array([], bool))[0])


def test_volume_up_and_down():
    usual = [2000, 2100, 1900, 2050]
    assert phases(volume_series(usual, [2030, 4000, 200, 0])) == ["passed", "failed", "passed", "passed"]
    assert phases(volume_series(usual, [2030, 4000, 200, 0], loss=True)) == ["passed", "passed", "failed", "failed"]
    assert "a loss of" in volume_series(usual, [200], loss=True)[0].reason and "90.1 %" in volume_series(usual, [200], loss=True)[0].reason
    assert phases(volume_series([20, 30], [29])) == ["inconclusive"]
    for bad in ([], [0, 10]):
        with pytest.raises(InvalidInput): volume_series(bad, [10])


def test_a_classifier_takes_any_columns_and_new_categories():
    frame = world(900).assign(none=np.nan, flag=lambda f: f.a > 0)
    right = classifier_on(frame, "y", ["a", "place", "none", "flag"])
    assert right(frame).mean() > 0.75 and right(frame.assign(place="new")).shape == (900,)
    with pytest.raises(InvalidInput, match="one value"): classifier_on(frame.assign(y="no"), "y", ["a"])


def test_evidently_says_what_its_preset_says():
    from evidently import Report
    from evidently.presets import DataDriftPreset
    then, now = world(1500)[["a", "b", "place"]], world(600, shift=0.5, seed=4)[["a", "b", "place"]]
    verdict = evidently_series(then, windows_of(now, 600), list(then))[0]
    said = Report([DataDriftPreset()]).run(now.sample(600, random_state=0).reset_index(drop=True),
                                           then.sample(1500, random_state=0).reset_index(drop=True)).dict()["metrics"][0]["value"]
    assert (verdict.details["columns"], verdict.figure) == (said["count"], said["share"])
    empty = evidently_series(then.assign(none=np.nan), windows_of(now.assign(none=np.nan), 600), [*then, "none"])[0]
    assert empty.figure == verdict.figure and "of 3 columns" in empty.reason
