"""How often a rollback is false and how long a true one takes, by simulation, beside a plain threshold on the same streams.

The streams are counts: Poisson requests and binomial errors between two looks. What is stated is in `STATED`; the guide `rollback_error_rates` shows it."""
from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from within.clock import parse_time
from within.errors import InvalidInput
from within.ml.rollouts import Action, Observation, RolloutState, Trigger, judge, next_step, tick_times, triggers_from
from within.stats.changes import late_share, log_evidence, share_above, start_weights, worst_start
from within.verdicts import Phase

LIMIT, ALPHA, WINDOW, DAY = 0.01, 0.05, 600, 86_400    # windows and days in seconds
STATED = {"from the start": (2_000, 4_000), "on day 5": (5_500, 9_000)}   # requests until a rate of 2 % is caught: median, nine of ten


def purse(looks: int, every: int) -> np.ndarray:
    "What `judge` puts down before each of so many looks: at the first, and at the first look after each window's end."
    ends = np.arange(WINDOW, looks * every, WINDOW)
    weights, places = np.zeros(looks), ends // every
    given = start_weights(ends / DAY, 1.0)
    weights[0], weights[places] = given[0], given[1:]
    return weights


def streams(rng, a_day: float, rate, looks: int, every: int, many: int) -> tuple[np.ndarray, np.ndarray]:
    "Cumulative errors and requests at each look: two arrays float[many, looks]; the rate is a number or one for each look."
    n = rng.poisson(a_day * every / DAY, (many, looks))
    return rng.binomial(n, rate).cumsum(-1).astype(float), n.cumsum(-1).astype(float)


def first(tripped: np.ndarray) -> np.ndarray:
    "The look at which each stream trips, -1 if it never does."
    return np.where(tripped.any(-1), tripped.argmax(-1), -1)


def ours(k, n, every: int) -> np.ndarray: return first(log_evidence(LIMIT, k, n, purse(k.shape[-1], every)) >= -np.log(ALPHA))


def plain(k, n, every: int, failures: int = 1) -> np.ndarray:
    "The look at which the rate of a window passed the limit for the so-many-th time: a threshold as rollout controllers have it."
    at = np.arange(WINDOW // every - 1, k.shape[-1], WINDOW // every)
    dk, dn = (np.diff(x[..., at], axis=-1, prepend=0) for x in (k, n))
    looked = first((np.divide(dk, dn, out=np.zeros_like(dk), where=dn > 0) > LIMIT).cumsum(-1) >= failures)
    return np.where(looked < 0, -1, at[looked])


# --- what is simulated is what judges ------------------------------------------------------------------------------------------------------------------

def test_the_simulation_trips_where_judge_does():
    rng, every, began = np.random.default_rng(3), 300, parse_time("2023-10-22")
    k, n = streams(rng, 20_000, 0.018, 288, every, 12)
    for i, expected in enumerate(ours(k, n, every)):
        tripped = -1
        for look in range(288):
            now = began + timedelta(seconds=every * (look + 1))
            ends = [(at, int((at - began).total_seconds()) // every - 1) for at in tick_times(began, now, "10m")]
            ticks = tuple((at, int(k[i, j]), int(n[i, j])) for at, j in ends if j < look)
            seen = Observation("error_rate", int(k[i, look]), int(n[i, look]), ticks=ticks)
            if judge(Trigger("error_rate", LIMIT), seen, 100, ALPHA, since=began).phase is Phase.FAILED:
                tripped = look
                break
        assert tripped == expected


def test_the_purse_is_never_more_than_everything_and_late_starts_never_run_out():
    for finished, steps in ((0, 1), (0, 7), (3, 7), (9, 7)):
        weights = start_weights(np.arange(1, 10_000) / 10, 1.0, finished, steps)
        assert weights.sum() <= 1 and (weights > 0).all() and len(weights) == finished + 10_000
    assert late_share(-3, 1) == 0 and 0.99 < late_share(1000, 1) < 1


def test_the_bound_agrees_with_the_verdict_on_any_counts():
    rng = np.random.default_rng(4)
    for _ in range(200):
        n = rng.integers(1, 400, 6).cumsum().astype(float)
        k = rng.binomial(np.diff(n, prepend=0).astype(int), rng.beta(1, 20, 6)).cumsum().astype(float)
        weights, limit = start_weights(np.arange(1, 6), 5), rng.uniform(0.001, 0.2)
        tripped = bool((log_evidence(limit, k, n, weights) >= -np.log(ALPHA)).any())
        bound = share_above(k, n, weights, ALPHA)
        assert tripped == (bound > limit) or abs(bound - limit) < 1e-8
        assert 0 <= worst_start(limit, k, n, weights, 5) <= 5


@pytest.mark.parametrize(("k", "n"), [([2, 1], [3, 4]), ([1, 3], [2, 3]), ([-1], [3]), ([np.nan], [3]), ([1], [np.inf]), ([], []), (3, 4), (["x"], [1])])
def test_counts_that_fall_or_cannot_be_are_refused(k, n):
    with pytest.raises(InvalidInput): log_evidence(0.01, k, n, np.ones(np.size(n) or 1))


# --- false rollbacks -----------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize(("share", "most"), [(0.9, 0.01), (1.0, ALPHA)])
def test_a_week_of_looks_every_five_seconds_takes_nobody_back_by_luck(share, most):
    rng, false, looked = np.random.default_rng(int(share * 10)), 0, 0
    for _ in range(20):
        k, n = streams(rng, 100_000, share * LIMIT, 7 * DAY // 5, 5, 20)
        false, looked = false + int((ours(k, n, 5) >= 0).sum()), looked + 20
        if looked == 20: assert (plain(k, n, 5) >= 0).all() and (plain(k, n, 5, 5) >= 0).all(), "a threshold takes all of them back, with five failures too"
    assert false / looked <= most + 2 * np.sqrt(most * (1 - most) / looked), f"{false} of {looked}"


@pytest.mark.parametrize(("a_day", "every"), [(300, 300), (3_000, 60)])
def test_little_traffic_at_the_limit_is_no_worse(a_day, every):
    k, n = streams(np.random.default_rng(a_day), a_day, LIMIT, 7 * DAY // every, every, 200)
    assert (ours(k, n, every) >= 0).mean() <= ALPHA + 2 * np.sqrt(ALPHA * (1 - ALPHA) / 200)


@pytest.mark.slow
def test_a_whole_rollout_at_both_limits_keeps_its_alpha():
    "Seven steps, two triggers exactly at their limits, a look every three hours: the rate stated is of the rollout as a whole."
    rng, began, back, many = np.random.default_rng(8), parse_time("2023-10-22"), 0, 150
    triggers = triggers_from({"error_rate": 0.01, "latency_p95": 300})
    for _ in range(many):
        state, now, counts = RolloutState("r", "m", "2", "1", "production", triggers, alpha=ALPHA), began, {}
        while state.live:
            seen = [Observation(m, *c[-1][1:], ticks=tuple(c)) for m, c in counts.items()]
            step = next_step(state, seen, now)
            if step.state.step != state.step: counts = {t.metric: [(now, 0, 0)] for t in triggers}
            state, now = step.state, now + timedelta(hours=3)
            n = int(rng.poisson(3_000 / 8 * state.percentage / 100))
            for t in triggers: counts[t.metric].append((now, counts[t.metric][-1][1] + int(rng.binomial(n, t.limit)), counts[t.metric][-1][2] + n))
        back += state.phase is Phase.FAILED
    assert back / many <= ALPHA + 2 * np.sqrt(ALPHA * (1 - ALPHA) / many), f"{back} of {many}"


# --- delay -----------------------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("a_day", "every", "days"), [(3_000, 60, 4), (100_000, 20, 1)])
@pytest.mark.parametrize(("began", "before"), [("from the start", 0), ("on day 5", 5)])
def test_a_rate_of_twice_the_limit_is_caught_within_what_is_stated(a_day, every, days, began, before):
    looks, change = (before + days) * DAY // every, before * DAY // every
    rate = np.where(np.arange(looks) < change, 0.5 * LIMIT, 2 * LIMIT)
    k, n = streams(np.random.default_rng(a_day + before), a_day, rate, looks, every, 60)
    at = ours(k, n, every)
    assert (at >= change).all(), "caught, and not before it began"
    waited = n[np.arange(60), at] - (n[:, change - 1] if change else 0)
    half, most = STATED[began]
    assert np.median(waited) <= half and np.quantile(waited, 0.9) <= most, (np.median(waited), np.quantile(waited, 0.9))


def test_evidence_of_the_whole_step_alone_misses_the_late_fault():
    every, looks, change = 60, 6 * DAY // 60, 5 * DAY // 60
    rate = np.where(np.arange(looks) < change, 0.5 * LIMIT, 2 * LIMIT)
    k, n = streams(np.random.default_rng(9), 10_000, rate, looks, every, 40)
    whole = first(log_evidence(LIMIT, k, n, np.eye(1, looks)[0]) >= -np.log(ALPHA))
    assert (whole < 0).mean() > 0.9 and (ours(k, n, every) >= change).mean() > 0.9


def test_a_bad_version_is_caught_at_once():
    k, n = streams(np.random.default_rng(10), 3_000, 0.3, 24 * 60, 60, 100)
    waited = n[np.arange(100), ours(k, n, 60)]
    assert np.median(waited) <= 15 and np.quantile(waited, 0.99) <= 50, "nearly a third of the answers are errors: a few dozen requests are enough"


def test_at_little_traffic_evidence_crosses_the_steps():
    "3,000 requests a day in all, twice the limit: taken back at a smaller share than if every step had to convict alone, with a seventh of alpha."
    def taken_back(carry: bool) -> float:
        rng, shares = np.random.default_rng(11), []
        for _ in range(40):
            state = RolloutState("r", "m", "2", "1", "production", triggers_from({"error_rate": 0.01}), phase=Phase.RUNNING, percentage=10, step=1,
                                 step_started_at=parse_time("2023-10-22"))
            while state.live:
                n = int(rng.poisson(3_000 * state.percentage / 100))
                judged = state if carry else replace(state, earlier=(), alpha=ALPHA / state.steps)
                step = next_step(judged, [Observation("error_rate", int(rng.binomial(n, 0.02)), n)], state.due)
                if step.action is not Action.ADVANCE: shares.append(state.percentage)
                state = replace(step.state, alpha=ALPHA)
        return float(np.mean(shares))
    assert taken_back(True) < 0.8 * taken_back(False)
