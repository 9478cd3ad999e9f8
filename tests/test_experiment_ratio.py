"The sample ratio of an experiment that is looked at every day: few false alarms, and a real fault is found."

import numpy as np

from within.ml.experimentation_results import SRM_ALARM, ratio_verdict
from within.stats.experiments import ratio_path

def alarmed(split: float, seed: int, days: int = 60, a_day: int = 200) -> bool:
    "Whether any daily look raises the alarm, each look knowing only the totals so far, as an A/B test's does."
    draws = np.random.default_rng(seed).binomial(a_day, split, days).cumsum()
    for day, first in enumerate(draws, 1):
        units = {"a": int(first), "b": int(day * a_day - first)}
        if not ratio_verdict(units, {"a": 50, "b": 50}, ratio_path(list(units.values()), [50, 50])[-1]).passed: return True
    return False


def test_daily_looks_rarely_accuse_a_fair_split():
    assert sum(alarmed(0.5, seed) for seed in range(400)) <= 400 * SRM_ALARM + 3


def test_daily_looks_find_a_broken_split():
    assert sum(alarmed(0.46, seed) for seed in range(50)) >= 48
