"""One false-alarm budget over all features and days: kept in simulation, with power left, and cannot-tell said out loud."""
import json

import numpy as np
import pandas as pd
import pytest

from within.errors import InvalidInput
from within.policies import TriggerPolicy
from within.stats import QuietThresholds, alarm_episodes, quiet_thresholds
from within.verdicts import Phase

BUDGET, YEARS = 0.1, 2


def quiet(rng: np.random.Generator, days: int, features: int, window: int, natural: bool = False, rows: int = 1000, reference: int = 50_000) -> pd.DataFrame:
    "Divergences of rolling windows without drift: squared lengths of moving averages of noise, some features wandering on their own from day to day."
    out = {}
    for f in range(features):
        k = int(rng.integers(2, 22)) - 1
        daily = rng.standard_normal((days + window, k)) / np.sqrt(rows)
        if natural:
            wander = np.zeros(days + window)
            for d, step in enumerate(rng.standard_normal(days + window)): wander[d] = 0.6 * wander[d - 1] + 0.8 * step
            daily[:, 0] += rng.choice([0, 1, 3]) / np.sqrt(rows) * wander
        total = np.cumsum(daily, axis=0)
        moved = (total[window:] - total[:-window]) / window - rng.standard_normal(k) / np.sqrt(reference)
        out[f"f{f}"] = np.maximum((moved**2).sum(1) - k * (1 / rows / window + 1 / reference), 0) / (8 * np.log(2))
    return pd.DataFrame(out, index=pd.date_range("2022-01-01", periods=days))


@pytest.mark.slow
@pytest.mark.parametrize("natural", [False, True])
@pytest.mark.parametrize(("days", "features", "window"), [(90, 5, 7), (90, 40, 7), (180, 40, 1), (180, 5, 7), (360, 20, 30)])
def test_quiet_months_ring_as_rarely_as_the_budget_says(days, features, window, natural):
    rng = np.random.default_rng(days + features)
    rates = []
    for _ in range(40):
        world = quiet(rng, days + window + YEARS * 360, features, window, natural)
        learned = quiet_thresholds(world[:days], BUDGET, window=window)
        assert learned.learned
        rates.append(learned.episodes(world[days + window:]) / (YEARS * 12))
    assert np.mean(rates) <= BUDGET + 1.65 * np.std(rates) / np.sqrt(len(rates)), np.mean(rates)
    assert np.mean(rates) <= 1.2 * BUDGET


def test_fixed_multiples_of_the_spread_would_not():
    rng = np.random.default_rng(1)
    worlds = [quiet(rng, 90 + 7 + 360, 40, 7) for _ in range(5)]
    days = [(w[97:] > w[:90].mean() + 3 * w[:90].std()).any(axis=1).mean() for w in worlds]
    assert np.mean(days) > 0.2, "three standard deviations a feature ring on a good part of all quiet days"


@pytest.mark.parametrize(("window", "bits"), [(1, 0.03), (7, 0.011)])
def test_power_is_kept(window, bits):
    rng, found = np.random.default_rng(2), []
    for _ in range(20):
        world = quiet(rng, 200, 20, window)
        learned = quiet_thresholds(world[:180], BUDGET, window=window)
        alarms = learned.alarms(world.assign(f3=world.f3 + np.where(np.arange(200) >= 190, bits, 0)))
        found.append(alarms["f3"][190:].all() and not alarms.drop(columns="f3")[190:].all().any())
    assert np.mean(found) >= 0.9


def test_a_smaller_budget_and_more_features_ask_for_more():
    world = quiet(np.random.default_rng(3), 180, 30, 7)
    strict, loose, alone = quiet_thresholds(world, 0.02, window=7), quiet_thresholds(world, 1.0, window=7), quiet_thresholds(world[["f0"]], 0.02, window=7)
    assert all(strict.thresholds[f] >= loose.thresholds[f] for f in world) and sum(strict.thresholds.values()) > sum(loose.thresholds.values())
    assert alone.thresholds["f0"] <= strict.thresholds["f0"]


def test_never_below_the_noise():
    world = quiet(np.random.default_rng(4), 180, 3, 7)
    learned = quiet_thresholds(world, window=7, noise={"f0": 0.4, "f1": 1e-9})
    assert learned.thresholds["f0"] >= 0.4 > learned.thresholds["f1"] >= 0.001
    assert max(quiet_thresholds(world * 0 + 0.9, window=7, noise={f: 2.0 for f in world}).thresholds.values()) == 1.0


@pytest.mark.parametrize("figures", [[], [0.1] * 83, [np.nan] * 300, [0.1] + [np.nan] * 300])
def test_too_little_cannot_tell(figures):
    learned = quiet_thresholds(pd.DataFrame({"a": figures}))
    assert learned.phase is Phase.INCONCLUSIVE and learned.thresholds == {} and learned.reason and learned.episodes(pd.DataFrame({"a": [1.0]})) == 0


def test_days_without_rows_and_rare_features():
    world = quiet(np.random.default_rng(5), 200, 4, 7).assign(still=0.0)
    world.iloc[50:55] = np.nan
    world.iloc[::3, 2] = np.nan
    world.iloc[::9, 1] = np.nan
    learned = quiet_thresholds(world, window=7)
    assert set(learned.thresholds) == {"f0", "f1", "f3", "still"} and "no figure at 3" in learned.left_out["f2"] and learned.looks == 195
    assert all(0.001 <= t <= 1 for t in learned.thresholds.values())


@pytest.mark.parametrize(("change", "message"), [
    (lambda w: {"history": w.to_numpy()}, "a frame of looks"), (lambda w: {"history": w.assign(f0="x")}, "not a figure"),
    (lambda w: {"history": w[::-1]}, "in order of time"), (lambda w: {"history": w.assign(f0=np.inf)}, "infinite"),
    (lambda w: {"history": pd.concat([w, w], axis=1)}, "names a feature twice"), (lambda w: {"history": w, "budget": 0}, "budget=0"),
    (lambda w: {"history": w, "budget": np.nan}, "budget=nan"), (lambda w: {"history": w, "window": 0}, "window=0"),
    (lambda w: {"history": w, "looks_per_month": -1}, "looks_per_month=-1")])
def test_misuse_is_refused(change, message):
    with pytest.raises(InvalidInput, match=message): quiet_thresholds(**change(quiet(np.random.default_rng(6), 100, 2, 7)))


def test_kept_as_json_and_the_policy_states_the_budget():
    learned = quiet_thresholds(quiet(np.random.default_rng(7), 180, 3, 7), TriggerPolicy().false_alarms_per_month, window=7, rows=7000)
    assert learned.budget == 0.1 and QuietThresholds.from_dict(json.loads(json.dumps(learned.to_dict()))) == learned
    assert "0.1 false alarms a month" in learned.reason and learned == quiet_thresholds(quiet(np.random.default_rng(7), 180, 3, 7), 0.1, window=7, rows=7000)


def test_episodes():
    assert [alarm_episodes(a, 2) for a in ([], [0, 0], [1, 1, 1], [1, 0, 1], [1, 0, 0, 1], [True, False, False, True])] == [0, 0, 1, 1, 2, 2]
