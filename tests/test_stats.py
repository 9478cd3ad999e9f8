"""Statistics: agreement with SciPy, coverage, and false alarms under repeated looking. Every simulation has a fixed seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import chisquare, norm

from within.errors import InvalidInput
from within.stats import (
    bootstrap_mean_interval,
    js_divergence,
    js_interval,
    js_noise,
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


def pair(kind: str, size: float) -> tuple[np.ndarray, np.ndarray]:
    "Two distributions over the same bins."
    if kind == "normal":
        q = np.diff(norm.cdf(norm.ppf(np.linspace(0, 1, 21)) - size))
        return np.full(20, 0.05), q / q.sum()
    p = {"two values": np.array([0.7, 0.3]), "sparse": np.array([0.9, 0.05, 0.02, 0.01, 0.01, 0.005, 0.005])}[kind]
    return p, p + np.eye(p.size)[1] * size - np.eye(p.size)[0] * size


SIZES = [(30, 30), (100, 100), (10_000, 30), (10_000, 100), (10_000, 1_000), (10_000, 10_000)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "size"), [("normal", 0), ("normal", 0.25), ("normal", 1), ("normal", 2), ("two values", 0.05), ("sparse", 0.05)])
def test_js_interval_covers(kind, size):
    rng = np.random.default_rng(11)
    p, q = pair(kind, size)
    truth, missed = js_divergence(p, q), {}
    for n, m in SIZES:
        ends = np.array([js_interval(rng.multinomial(n, p), rng.multinomial(m, q)) for _ in range(150)])
        missed[n, m] = (ends[:, 0] > truth + 1e-9).mean(), (ends[:, 1] < truth - 1e-9).mean()
    assert all(sum(m) <= 0.11 for m in missed.values()), missed     # 0.05 is promised; 0.11 is three standard errors of 150 above it
    assert np.mean([sum(m) for m in missed.values()]) <= 0.065, missed


def test_js_interval_holds_its_figure_and_shrinks():
    rng = np.random.default_rng(3)
    for n, m in SIZES:
        p, q = rng.multinomial(n, np.full(12, 1 / 12)), rng.multinomial(m, rng.dirichlet(np.ones(12)))
        low, high = js_interval(p, q)
        assert 0 <= low <= js_divergence(p, q, bias_corrected=True) <= high <= 1
        wide, narrow = js_interval(p, q, level=0.99), js_interval(p, q, level=0.5)
        assert wide[0] <= narrow[0] and narrow[1] <= wide[1] and js_interval(p, q) == (low, high)
    assert js_interval([5, 0], [0, 5])[1] == 1 and js_interval([10**9, 10**9], [10**9, 10**9])[1] < 1e-6


@pytest.mark.parametrize(("bins", "n", "rows"), [(20, 4000, 30), (20, 4000, 100), (20, 4000, 1000), (20, 100, 100), (2, 4000, 100), (2, 500, 10_000)])
def test_noise_alone_passes_its_bound_as_rarely_as_it_says(bins, n, rows):
    rng = np.random.default_rng(5)
    p = np.full(bins, 1 / bins)
    a, b = (rng.multinomial(k, p, 60_000).astype(float) for k in (n, rows))
    m = (a / n + b / rows) / 2
    terms = sum(np.where(x > 0, x * np.log2(np.where(x > 0, x, 1) / np.where(m > 0, m, 1)), 0) for x in (a / n, b / rows))
    figures = terms.sum(1) / 2 - (((a + b) > 0).sum(1) - 1) / (8 * np.log(2)) * (1 / n + 1 / rows)
    bound = js_noise(a[0], rows, 0.001)
    assert (figures > bound).mean() <= 0.0013, (figures > bound).mean()
    assert bound <= 2 * np.quantile(figures, 0.999)                    # and is not far above


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
