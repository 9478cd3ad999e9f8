"""Statistics: agreement with SciPy, coverage, and false alarms under repeated looking. Every simulation has a fixed seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import chisquare

from within.errors import InvalidInput
from within.stats import (
    bootstrap_mean_interval,
    js_divergence,
    js_interval,
    mean_difference_confseq,
    paired_bootstrap,
    proportion_confseq,
    proportion_interval,
    relative_rmse_improvement,
    srm_test,
)
from within.stats.sequential import boundary

histograms = st.integers(1, 40).flatmap(lambda k: st.tuples(*[st.lists(st.integers(0, 10**6), min_size=k, max_size=k).filter(any)] * 2))


@settings(max_examples=200, deadline=None)
@given(histograms)
def test_divergence_agrees_with_scipy(pair):
    p, q = pair
    ours = js_divergence(p, q)
    assert abs(ours - jensenshannon(p, q, base=2) ** 2) < 1e-9
    assert 0 <= ours <= 1
    assert js_divergence(q, p) == pytest.approx(ours, abs=1e-12)
    assert 0 <= js_divergence(p, q, bias_corrected=True) <= ours


def test_probabilities_and_counts_agree_and_an_empty_bin_changes_nothing():
    p, q = [10, 20, 30], [30, 20, 10]
    assert js_divergence(p, q) == pytest.approx(js_divergence(np.array(p) / 60, np.array(q) / 60), abs=1e-12)
    assert js_divergence([*p, 0], [*q, 0], bias_corrected=True) == pytest.approx(js_divergence(p, q, bias_corrected=True), abs=1e-12)


@pytest.mark.parametrize(("p", "q", "says"), [
    ([], [], "shape"), ([1, 2], [1], "2 bins and q has 1"), ([np.nan, 1], [1, 1], "missing or infinite"), ([1, 1], [np.inf, 1], "q holds 1"),
    ([-1, 2], [1, 1], "negative value -1"), ([0, 0], [1, 1], "p is all zero"), (["a", "b"], [1, 1], "not a number"), ([[1, 2]], [[1, 2]], "shape")])
def test_bad_histograms_say_what_is_wrong(p, q, says):
    for call in (js_divergence, js_interval):
        with pytest.raises(InvalidInput, match=says):
            call(p, q)


@pytest.mark.parametrize(("shift", "rows"), [(0.05, 3000), (0.15, 800), (0.0, 1000)])
def test_js_interval_covers(shift, rows):
    rng = np.random.default_rng(11)
    p = np.full(20, 1 / 20)
    q = p * (1 + shift * np.linspace(-3, 3, 20))
    q /= q.sum()
    truth = js_divergence(p, q)
    inside = 0
    for _ in range(200):
        low, high = js_interval(rng.multinomial(rows, p), rng.multinomial(rows, q), draws=300)
        inside += low <= truth <= high
    assert inside >= 180, f"{inside} of 200 at shift {shift}"


def test_wilson_covers_where_the_textbook_formula_does_not():
    rng = np.random.default_rng(2)
    for share, n in ((0.02, 60), (0.5, 30), (0.97, 100)):
        hits = rng.binomial(n, share, 2000)
        covered = np.mean([share in proportion_interval(int(k), n) for k in hits])
        assert covered > 0.92, (share, n, covered)


def test_improvement_interval_covers_and_counts_clusters():
    rng = np.random.default_rng(4)
    inside = 0
    for i in range(150):
        shared = rng.normal(0, 4, 400)                       # both models miss the same things
        new, old = shared + rng.normal(0, 8, 400), shared + rng.normal(0, 9, 400)
        _, low, high = relative_rmse_improvement(np.zeros(400), new, old, seed=i)
        inside += low <= 100 * (1 - np.sqrt(80 / 97)) <= high
    assert inside >= 135, inside
    ids = np.repeat(np.arange(100), 20)
    copies = np.repeat(rng.normal(size=100), 20)
    wide, narrow = bootstrap_mean_interval(copies, clusters=ids), bootstrap_mean_interval(copies)
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


def test_the_same_seed_gives_the_same_interval_and_large_tables_are_cheap():
    rng = np.random.default_rng(6)
    columns = rng.normal(size=(300_000, 2))
    once, again = (paired_bootstrap(lambda m: m[:, 0] - m[:, 1], columns, seed=3) for _ in range(2))
    assert once == again
    se = np.sqrt(2 / 300_000)
    assert (once[1].high - once[1].low) / (2 * 1.96 * se) == pytest.approx(1, abs=0.15)


def test_proportion_sequence_holds_at_every_look():
    rng = np.random.default_rng(8)
    looks = np.arange(20, 4001, 20)
    hits = (rng.random((200, 4000)) < 0.9).cumsum(1)[:, looks - 1]
    low, high = proportion_confseq(hits, np.broadcast_to(looks, hits.shape))
    assert ((low > 0.9) | (high < 0.9)).any(1).mean() <= 0.05
    assert (high - low)[:, -1].mean() < 0.05


def test_difference_sequence_has_few_false_alarms_and_finds_what_is_there():
    rng = np.random.default_rng(9)
    looks = np.arange(100, 8001, 100)
    arms = (rng.random((2, 300, 8000)) < 0.85).cumsum(-1)[..., looks - 1] / looks
    spread = np.sqrt((arms * (1 - arms) / looks).sum(0))
    wide = np.array([boundary(2 * n) for n in looks]) * spread
    assert (np.abs(arms[1] - arms[0]) > wide).any(1).mean() <= 0.05
    better = (rng.random((300, 8000)) < 0.90).cumsum(-1)[..., looks - 1] / looks
    spread = np.sqrt((arms[0] * (1 - arms[0]) + better * (1 - better)) / looks)
    assert ((better - arms[0]) > np.array([boundary(2 * n) for n in looks]) * spread).any(1).mean() > 0.99
    one = mean_difference_confseq(8000, arms[1][0, -1], 0.1275, 8000, arms[0][0, -1], 0.1275)
    assert one[0] < 0 < one[1]


def test_sample_ratio_agrees_with_scipy_and_is_uniform_without_a_fault():
    assert srm_test([480, 520], [50, 50]) == pytest.approx(chisquare([480, 520]).pvalue)
    rng = np.random.default_rng(10)
    first = rng.binomial(5000, 0.3, 2000)
    p = np.array([srm_test([k, 5000 - k], [30, 70]) for k in first])
    assert abs((p < 0.05).mean() - 0.05) < 0.02 and (p < 0.001).mean() < 0.005
    assert srm_test([0, 0], [1, 1]) == 1


@pytest.mark.parametrize("call", [
    lambda: proportion_interval(5, 3), lambda: proportion_interval(-1, 3), lambda: proportion_interval(1, 3, level=2),
    lambda: bootstrap_mean_interval([]), lambda: bootstrap_mean_interval([1, np.nan]), lambda: relative_rmse_improvement([1, 2], [1], [1, 2]),
    lambda: bootstrap_mean_interval([1, 2], clusters=["a"]), lambda: proportion_confseq(np.nan, 3), lambda: proportion_confseq(1, 3, alpha=0),
    lambda: mean_difference_confseq(50, np.nan, 1, 50, 0, 1), lambda: srm_test([1], [1]),
    lambda: srm_test([1, 2, 3], [1, 1]), lambda: srm_test([-1, 2], [1, 1])])
def test_bad_input_is_refused_with_what_is_allowed(call):
    with pytest.raises(InvalidInput, match=r"give|allowed|must|drop"):
        call()
