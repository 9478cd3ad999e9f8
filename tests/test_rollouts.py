"""One test a branch of `next_step`, and every path a small rollout can take."""
from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from within.clock import parse_time
from within.errors import InvalidInput
from within.ml.rollouts import LIVE, Action, Observation, RolloutState, Trigger, judge, next_step, triggers_from
from within.verdicts import Phase

T0 = parse_time("2023-10-22")
DAY = timedelta(days=1)
TRIGGERS = triggers_from({"error_rate": {"threshold": 0.01, "window": "10m"}})
PENDING = RolloutState("r", "m", "2.2.0", "2.1.0", "production", TRIGGERS)
RUNNING = replace(PENDING, phase=Phase.RUNNING, percentage=10, step=1, step_started_at=T0)
GOOD, FEW, BAD = [Observation("error_rate", 0, 1000)], [Observation("error_rate", 0, 99)], [Observation("error_rate", 30, 99)]


def test_a_pending_rollout_starts_with_the_initial_percentage():
    step = next_step(PENDING, [], T0)
    assert (step.action, step.state.percentage, step.state.phase, step.state.due) == (Action.START, 10, Phase.RUNNING, T0 + DAY)


def test_a_step_that_is_not_due_waits_and_changes_nothing():
    step = next_step(RUNNING, GOOD, T0 + DAY / 2)
    assert step.action is Action.WAIT and step.state == RUNNING


def test_a_due_step_with_enough_good_rows_advances():
    step = next_step(RUNNING, GOOD, T0 + DAY)
    assert (step.action, step.state.percentage, step.state.step, step.state.step_started_at) == (Action.ADVANCE, 25, 2, T0 + DAY)


def test_the_last_increment_stops_at_the_maximum():
    assert next_step(replace(RUNNING, percentage=95), GOOD, T0 + DAY).state.percentage == 100


def test_too_few_rows_hold_for_another_interval():
    step = next_step(RUNNING, FEW, T0 + DAY)
    assert (step.action, step.state.phase, step.state.percentage, step.state.due) == (Action.HOLD, Phase.WAITING, 10, T0 + 2 * DAY)


def test_nothing_observed_is_inconclusive_and_holds():
    step = next_step(RUNNING, [], T0 + DAY)
    assert (step.action, step.state.phase, step.state.percentage) == (Action.HOLD, Phase.INCONCLUSIVE, 10)


def test_one_trigger_without_rows_holds_although_the_other_is_content():
    two = replace(RUNNING, triggers=triggers_from({"error_rate": 0.01, "accuracy": {"threshold": 0.8, "direction": "below"}}))
    assert next_step(two, GOOD, T0 + DAY).state.phase is Phase.INCONCLUSIVE


@pytest.mark.parametrize("phase", LIVE)
@pytest.mark.parametrize("late", [timedelta(0), DAY])
def test_a_trip_rolls_back_from_every_live_phase_due_or_not(phase, late):
    state = replace(RUNNING if phase is not Phase.PENDING else PENDING, phase=phase)
    step = next_step(state, BAD, T0 + late)
    assert (step.action, step.state.phase, step.state.percentage) == (Action.ROLLBACK, Phase.FAILED, 0)
    assert "30 of 99" in step.reason and "1.0%" in step.reason


def test_the_full_share_held_for_an_interval_finishes():
    step = next_step(replace(RUNNING, percentage=100), GOOD, T0 + DAY)
    assert (step.action, step.state.phase, step.state.percentage) == (Action.FINISH, Phase.PASSED, 100)


@pytest.mark.parametrize("phase", [Phase.PASSED, Phase.FAILED, Phase.ERROR])
@pytest.mark.parametrize("seen", [[], GOOD, BAD])
def test_what_is_over_stays_over(phase, seen):
    state = replace(RUNNING, phase=phase)
    step = next_step(state, seen, T0 + 9 * DAY)
    assert step.action is Action.NONE and step.state == state


def test_without_triggers_time_alone_advances():
    assert next_step(replace(RUNNING, triggers=()), [], T0 + DAY).action is Action.ADVANCE


def test_accuracy_trips_below_and_latency_counts_slow_requests():
    accuracy = Trigger("accuracy", 0.8, "30m", "below")
    assert judge(accuracy, Observation("accuracy", 600, 1000), 100, 0.05).phase is Phase.FAILED
    assert judge(accuracy, Observation("accuracy", 790, 1000), 100, 0.05).phase is Phase.PASSED
    latency = Trigger("latency_p95", 300)
    assert judge(latency, Observation("latency_p95", 100, 1000), 100, 0.05).phase is Phase.FAILED
    assert judge(latency, Observation("latency_p95", 50, 1000), 100, 0.05).phase is Phase.PASSED


@pytest.mark.parametrize("wrong", [{"initial_percentage": 0}, {"initial_percentage": 101}, {"max_percentage": 5}, {"increment": 0}, {"interval": "soon"},
                                   {"minimum": 0}])
def test_settings_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(InvalidInput): replace(PENDING, **wrong)


@pytest.mark.parametrize("wrong", [[{"metric": "error_rate"}], [{"metric": "error_rate", "threshold": -1}], [{"metric": "error_rate", "threshold": "1%"}],
                                   [{"metric": "error_rate", "threshold": 0.1, "widow": "5m"}], [{"metric": "x", "threshold": 1}], ["error_rate"],
                                   [{"metric": "accuracy", "threshold": 0.8, "direction": "down"}]])
def test_triggers_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(InvalidInput): triggers_from(wrong)


def test_every_path_of_a_small_rollout_keeps_the_promises():
    "Exhaustive: every sequence of four kinds of observation and two kinds of time, until nothing new can be reached."
    start = replace(PENDING, initial_percentage=40, increment=40, minimum=100)
    kinds = {"none": [], "few": FEW, "good": GOOD, "bad": BAD}
    frontier, seen = [(start, T0)], set()
    while frontier:
        state, now = frontier.pop()
        if (key := (state, now)) in seen or now > T0 + 5 * DAY: continue
        seen.add(key)
        for name, observed in kinds.items():
            for later in (timedelta(0), DAY):
                step = next_step(state, observed, now + later)
                after = step.state
                if not state.live: assert after == state and step.action is Action.NONE
                elif name == "bad": assert after.phase is Phase.FAILED and after.percentage == 0
                elif step.action is Action.ADVANCE: assert name == "good" and now + later >= state.due and after.percentage > state.percentage
                elif step.action is Action.FINISH: assert name == "good" and state.percentage == 100 and now + later >= state.due
                elif step.action is Action.HOLD: assert name in ("none", "few") and after.percentage == state.percentage and after.due > state.due
                else: assert step.action in (Action.START, Action.WAIT)
                assert 0 <= after.percentage <= 100 and (after.phase is not Phase.PASSED or after.percentage == 100)
                assert RolloutState.from_dict(after.to_dict()) == after
                frontier.append((after, now + later))
    reached = {s.phase for s, _ in seen}
    assert reached == {Phase.PENDING, Phase.RUNNING, Phase.WAITING, Phase.INCONCLUSIVE, Phase.PASSED, Phase.FAILED}


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 3000), st.integers(0, 3000), st.sampled_from(["above", "below"]))
def test_a_verdict_agrees_with_its_interval(k, n, direction):
    k = min(k, n)
    found = judge(Trigger("accuracy", 0.5, direction=direction), Observation("accuracy", k, n), 100, 0.05)
    if n == 0: assert found.phase is Phase.INCONCLUSIVE
    else:
        bad = found.low > 0.5 if direction == "above" else found.high < 0.5
        assert (found.phase is Phase.FAILED) == bad and found.low <= k / n <= found.high
