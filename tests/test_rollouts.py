"""One test a branch of `next_step` and `operate`, and every state that a small rollout can reach with every event in it."""
from __future__ import annotations

import json
from collections import deque
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from within.clock import parse_time
from within.errors import InvalidInput
from within.ml.rollouts import LIVE, Action, Observation, RolloutState, Trigger, Wish, judge, next_step, operate, tick_times, triggers_from
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


@pytest.mark.parametrize("phase", [Phase.PASSED, Phase.FAILED])
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


# --- every reachable state and every event ---------------------------------------------------------------------------------------------------------

HEALTHY = Observation("error_rate", 0, 1000)
SEEN = {"none": [], "few": FEW, "good": [HEALTHY], "bad": BAD, "error": [Observation.broken("error_rate", "the log cannot be read")],
        "twice": [HEALTHY, HEALTHY], "quiet": [replace(HEALTHY, last_at=T0 - 9 * DAY)], "twice, one bad": [HEALTHY, *BAD]}
WHEN = ("before it began", "at once", "not due", "due", "long after")
BEGIN = replace(PENDING, initial_percentage=40, increment=40, max_holds=2)
WORLDS = {"plain": BEGIN, "the last step needs a yes": replace(BEGIN, approve_from=100), "every step needs a yes": replace(BEGIN, approve_from=1)}


def canonical(state: RolloutState) -> RolloutState:
    "The state without its history: what the next decision can depend on, times counted from the beginning of the step and capped."
    if state.step_started_at is None: return replace(state, reason="")
    held = None if state.held_at is None else T0 + min(state.held_at - state.step_started_at, 2 * DAY)
    return replace(state, reason="", step_started_at=T0, held_at=held)


def instant(state: RolloutState, when: str):
    began, due = state.step_started_at or T0, state.due or T0
    return {"before it began": began - DAY, "at once": began, "not due": due - DAY / 100, "due": due, "long after": due + 1.5 * DAY}[when]


def successors(state: RolloutState):
    "Every event in a state: its name, the instant, and the step; a wish that is refused is no event."
    for name, seen in SEEN.items():
        for when in WHEN: yield name, instant(state, when), next_step(state, seen, instant(state, when))
    for wish in Wish:
        for note in ("", "seen the log"):
            try: yield wish, instant(state, "due"), operate(state, wish, "kim@example.com", instant(state, "due"), note)
            except InvalidInput: assert wish in (Wish.APPROVE, Wish.PROMOTE)


@cache
def reachable(world: str) -> dict[RolloutState, list]:
    "Breadth first: every state, and what every event in it leads to."
    graph, frontier = {}, deque([canonical(WORLDS[world])])
    while frontier:
        if (state := frontier.popleft()) in graph: continue
        graph[state] = list(successors(state))
        frontier.extend(canonical(step.state) for _, _, step in graph[state])
    return graph


@pytest.mark.parametrize("world", WORLDS)
def test_every_reachable_state_and_every_event_keep_the_promises(world):
    for state, events in reachable(world).items():
        for event, now, step in events:
            after, action = step.state, step.action
            assert RolloutState.from_dict(json.loads(json.dumps(after.to_dict()))) == after
            assert 0 <= after.percentage <= after.max_percentage and (after.phase is Phase.FAILED) == (after.percentage == 0 and not after.live)
            assert after.holds <= after.max_holds and (after.asking != "look" or after.holds == after.max_holds)
            if not state.live:
                assert action is Action.NONE and after == state
                continue
            if event in ("bad", "twice, one bad") or event == Wish.ABORT:
                assert action is Action.ROLLBACK and after.phase is Phase.FAILED and after.percentage == 0 and not after.needs_person
                continue
            assert after.live or action is Action.FINISH
            assert after.percentage >= state.percentage, "monotone until a rollback"
            if after.percentage > state.percentage:
                assert action in (Action.START, Action.ADVANCE) and not state.needs_person and not state.needs_approval
                assert action is Action.START or (event == "good" and all(v.passed and v.rows >= state.minimum for v in step.verdicts))
                assert action is Action.START or now >= state.due or (state.hurried and now >= state.step_started_at)
            if action is Action.FINISH: assert event == "good" and now >= state.due and state.percentage == state.max_percentage and not state.needs_person
            if action is Action.HOLD: assert event not in ("good", *Wish) and after.due > now >= state.due and after.percentage == state.percentage
            if action is Action.ASK: assert after.needs_person and not state.needs_person
            if action in (Action.NONE, Action.WAIT): assert after == state


@pytest.mark.parametrize("world", WORLDS)
def test_no_live_state_is_a_dead_end(world):
    graph = {state: {canonical(step.state) for _, _, step in events} for state, events in reachable(world).items()}
    ends = {s for s in graph if s.phase is Phase.PASSED}
    while True:
        more = {s for s in graph if s not in ends and graph[s] & ends}
        if not more: break
        ends |= more
    assert {s for s in graph if s.live} <= ends, "every live state can still end well"
    assert all(any(a.phase is Phase.FAILED for a in graph[s]) for s in graph if s.live), "and every one is one step away from the previous version"
    assert {s.phase for s in graph} == set(Phase)


def test_the_same_arguments_give_the_same_step():
    for state, events in list(reachable("the last step needs a yes").items())[::10]: assert list(successors(state)) == events


# --- a person's part --------------------------------------------------------------------------------------------------------------------------------

def test_measuring_that_breaks_is_an_error_that_holds_and_can_recover():
    step = next_step(RUNNING, SEEN["error"], T0 + DAY)
    assert (step.action, step.state.phase, step.state.percentage) == (Action.HOLD, Phase.ERROR, 10) and "the log cannot be read" in step.reason
    assert next_step(step.state, GOOD, T0 + 2 * DAY).action is Action.ADVANCE


def test_a_trigger_trips_although_another_cannot_be_measured():
    two = replace(RUNNING, triggers=triggers_from({"accuracy": {"threshold": 0.8, "direction": "below"}, "error_rate": 0.01}))
    assert next_step(two, [Observation.broken("accuracy", "no outcomes"), *BAD], T0).action is Action.ROLLBACK


def test_traffic_that_stopped_holds_although_there_were_enough_rows():
    stopped = Observation("error_rate", 0, 1000, ticks=((T0 + DAY / 4, 0, 1000), (T0 + DAY / 2, 0, 1000)))
    step = next_step(RUNNING, [stopped], T0 + DAY)
    assert step.action is Action.HOLD and step.state.phase is Phase.INCONCLUSIVE and "no request since 2023-10-22T06:00" in step.reason
    assert step.state.due == T0 + 1.5 * DAY, "it looks again at another time of day"
    late = replace(stopped, k=0, n=1001, last_at=T0 + DAY)
    assert next_step(RUNNING, [late], T0 + DAY).action is Action.ADVANCE


def test_so_many_holds_end_with_a_person_and_the_share_stays():
    state, now = replace(RUNNING, max_holds=3), T0 + DAY
    for expected in (Action.HOLD, Action.HOLD, Action.ASK, Action.WAIT, Action.WAIT):
        step = next_step(state, [], now)
        assert step.action is expected and step.state.percentage == 10
        state, now = step.state, now + DAY
    assert state.phase is Phase.INCONCLUSIVE and "a person must look" in state.reason and next_step(state, GOOD, now).action is Action.WAIT
    with pytest.raises(InvalidInput, match="needs a note"): operate(state, "approve", "kim@example.com", now)
    on = operate(state, "approve", "kim@example.com", now, "the proxy was down").state
    assert (on.phase, on.holds, on.due) == (Phase.RUNNING, 0, now + DAY) and next_step(on, GOOD, on.due).action is Action.ADVANCE


def test_looks_that_come_late_do_not_use_up_the_holds():
    step = next_step(RUNNING, [], T0 + 30 * DAY)
    assert step.action is Action.HOLD and next_step(step.state, [], T0 + 30 * DAY).action is Action.WAIT


def test_an_approval_lets_the_share_grow_once_and_only_on_evidence():
    state = replace(RUNNING, approve_from=25)
    asked = next_step(state, GOOD, T0 + DAY)
    assert (asked.action, asked.state.phase, asked.state.percentage) == (Action.ASK, Phase.WAITING, 10) and "25 %" in asked.reason
    yes = operate(asked.state, "approve", "kim@example.com", T0 + DAY).state
    assert next_step(yes, [], T0 + DAY).action is Action.HOLD
    grown = next_step(yes, GOOD, T0 + DAY).state
    assert grown.percentage == 25 and next_step(grown, GOOD, T0 + 2 * DAY).action is Action.ASK
    assert next_step(replace(PENDING, approve_from=1), [], T0).action is Action.ASK, "also before the first share"


@pytest.mark.parametrize(("state", "wish", "by", "note", "says"), [
    (RUNNING, "approve", "kim", "why not", "nothing is asked"), (RUNNING, "stop", "kim", "", "unknown wish"), (RUNNING, "abort", " ", "", "who"),
    (replace(RUNNING, percentage=100), "promote", "kim", "", "full 100 %"), (PENDING, "promote", "kim", "", "not begun"),
    (replace(RUNNING, paused=True), "promote", "kim", "", "paused"), (RUNNING, None, "kim", "", "unknown wish")])
def test_wishes_that_do_not_fit_are_refused(state, wish, by, note, says):
    with pytest.raises(InvalidInput, match=says): operate(state, wish, by, T0, note)


def test_a_promotion_skips_the_waiting_but_not_the_evidence():
    hurried = operate(RUNNING, "promote", "kim@example.com", T0).state
    assert next_step(hurried, FEW, T0 + DAY / 4).action is Action.WAIT and next_step(hurried, BAD, T0 + DAY / 4).action is Action.ROLLBACK
    step = next_step(hurried, GOOD, T0 + DAY / 4)
    assert step.state.percentage == 100 and not step.state.hurried and next_step(step.state, GOOD, T0 + DAY / 2).action is Action.WAIT


def test_who_and_why_are_in_the_reason():
    step = operate(RUNNING, Wish.ABORT, "kim@example.com", T0, "customers call")
    assert "kim@example.com" in step.reason and "customers call" in step.reason and step.state.percentage == 0


# --- what may come from outside ------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("wrong", [
    {"k": 5, "n": 3}, {"k": -1, "n": 3}, {"k": float("nan"), "n": 3}, {"k": 0, "n": float("inf")}, {"k": 1.0, "n": 3}, {"k": True, "n": 3}, {"k": "1", "n": 3},
    {"k": None, "n": None}, {"k": 1, "n": 9, "ticks": ((T0, 2, 5),)}, {"k": 5, "n": 9, "ticks": ((T0, 0, 6),)},
    {"k": 1, "n": 9, "ticks": ((T0 + DAY, 0, 5), (T0, 0, 6))}, {"k": 1, "n": 9, "ticks": (("noon", 0, 5),)}, {"k": 1, "n": 9, "ticks": (T0,)},
    {"k": 1, "n": 9, "ticks": 3}, {"k": 1, "n": 9, "last_at": "soon"}, {"metric": 3, "k": 1, "n": 2}])
def test_counts_that_cannot_be_are_refused(wrong):
    with pytest.raises(InvalidInput): Observation(**{"metric": "error_rate", **wrong})


def test_numpy_counts_and_naive_times_are_understood():
    seen = Observation("error_rate", np.int64(0), np.int64(1000), ticks=[(datetime(2023, 10, 22, 12), np.int64(0), np.int32(700))])
    assert next_step(replace(RUNNING, step_started_at=datetime(2023, 10, 22)), [seen], datetime(2023, 10, 23)).action is Action.ADVANCE
    assert json.dumps(seen.to_dict()) and seen.ticks[0][0].tzinfo is not None


def test_a_clock_that_goes_back_waits_and_still_trips():
    step = next_step(RUNNING, GOOD, T0 - 9 * DAY)
    assert step.action is Action.WAIT and step.state == RUNNING and "before step 1 began" in step.reason
    assert next_step(RUNNING, BAD, T0 - 9 * DAY).action is Action.ROLLBACK


def test_what_is_no_observation_or_time_is_refused():
    with pytest.raises(InvalidInput, match="observations"): next_step(RUNNING, [{"metric": "error_rate", "k": 0, "n": 1}], T0)
    with pytest.raises(InvalidInput): next_step(RUNNING, GOOD, "soon")
    assert next_step(RUNNING, [*GOOD, Observation("accuracy", 1, 2)], T0 + DAY).action is Action.ADVANCE, "a metric without a trigger is nobody's business"


def test_a_state_of_an_older_version_is_read():
    old = ("id", "model", "version", "previous", "environment", "triggers", "initial_percentage", "increment", "interval", "max_percentage", "minimum", "alpha",
           "phase", "percentage", "step", "step_started_at", "holds", "reason")
    held = replace(RUNNING, phase=Phase.WAITING, holds=2)
    state = RolloutState.from_dict({**{k: held.to_dict()[k] for k in old}, "a later field": 1})
    assert state == held and state.due == T0 + 3 * DAY and next_step(state, GOOD, state.due).action is Action.ADVANCE


@pytest.mark.parametrize("wrong", [
    {"phase": "done"}, {"phase": None}, {"phase": []}, {"phase": "pending"}, {"phase": "failed"}, {"percentage": None}, {"percentage": "10"},
    {"percentage": 1e308}, {"percentage": -1}, {"percentage": 0}, {"step": 0}, {"step": 1.5}, {"step": 10**9}, {"holds": -1}, {"holds": True},
    {"step_started_at": None}, {"step_started_at": "x"}, {"step_started_at": 7}, {"minimum": "100"}, {"alpha": 0}, {"alpha": "x"}, {"interval": 3},
    {"interval": "0d"}, {"increment": 1e-300}, {"increment": float("nan")}, {"triggers": None}, {"triggers": [3]}, {"triggers": "error_rate"},
    {"triggers": {"error_rate": None}}, {"asking": "money"}, {"asking": []}, {"paused": "no"}, {"earlier": 3}, {"earlier": [[["error_rate", 5, 3]]]},
    {"earlier": [["error_rate"]]}, {"earlier": None}, {"previous": None}, {"version": ""}, {"model": ["m"]}, {"max_holds": 0}, {"approve_from": "all"},
    {"held_at": 3}])
def test_a_spoilt_state_is_refused_with_a_clear_error(wrong):
    with pytest.raises(InvalidInput) as e: RolloutState.from_dict({**RUNNING.to_dict(), **wrong})
    assert len(str(e.value)) > 15


@pytest.mark.parametrize("body", [None, [], "x", 3, {}, {"id": "r"}])
def test_what_is_no_state_is_refused(body):
    with pytest.raises(InvalidInput): RolloutState.from_dict(body)


def test_a_step_that_began_at_the_end_of_time_is_never_due():
    state = RolloutState.from_dict({**RUNNING.to_dict(), "step_started_at": "9999-12-31T00:00:00+00:00", "interval": "3000d"})
    assert next_step(state, GOOD, T0).action is Action.WAIT


# --- late faults ---------------------------------------------------------------------------------------------------------------------------------------

def stream(rates, per_tick=70, window="10m"):
    "An observation whose errors follow the rates exactly, one rate a tick."
    bad = np.floor(np.cumsum(rates) * per_tick).astype(int)
    times = tick_times(T0, T0 + len(rates) * timedelta(minutes=10), window)
    ticks = tuple((at, int(k), per_tick * i) for i, (at, k) in enumerate(zip(times, bad, strict=True), 1))
    return Observation("error_rate", int(bad[-1]), per_tick * len(rates), window, ticks)


def test_a_fault_that_begins_on_the_fifth_day_is_found_and_dated():
    late = stream([0.005] * 720 + [0.03] * 24)
    assert late.k / late.n < 0.01, "the step's own rate looks fine"
    found = judge(TRIGGERS[0], late, 100, 0.05, since=T0)
    assert found.phase is Phase.FAILED and found.low > 0.01 and abs(found.details["since"] - (T0 + 5 * DAY)) < DAY / 8
    assert judge(TRIGGERS[0], replace(late, ticks=()), 100, 0.05, since=T0).phase is Phase.PASSED


def test_a_fault_that_came_and_went_between_two_looks_still_counts():
    found = judge(TRIGGERS[0], stream([0.0] * 144 + [0.2] * 12 + [0.0] * 144), 100, 0.05, since=T0)
    assert found.phase is Phase.FAILED and found.details["until"] is not None and found.details["until"] < T0 + 1.2 * DAY and "until" in found.reason


def test_earlier_steps_count():
    suspicious = Observation("error_rate", 13, 700)
    alone = judge(TRIGGERS[0], suspicious, 100, 0.025, since=T0, steps=7)
    after = judge(TRIGGERS[0], suspicious, 100, 0.025, since=T0, earlier=[(11, 500), (12, 600)], steps=7)
    assert alone.phase is Phase.PASSED and after.phase is Phase.FAILED and "since step 1 began" in after.reason


def test_a_limit_of_nothing_is_broken_by_one():
    assert judge(Trigger("error_rate", 0.0), Observation("error_rate", 1, 5000), 100, 0.05).phase is Phase.FAILED
    assert judge(Trigger("error_rate", 1.0), Observation("error_rate", 5000, 5000), 100, 0.05).phase is Phase.PASSED
    assert judge(Trigger("accuracy", 1.0, direction="below"), Observation("accuracy", 4999, 5000), 100, 0.05).phase is Phase.FAILED


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 3000), st.integers(0, 3000), st.sampled_from(["above", "below"]))
def test_a_verdict_agrees_with_its_interval(k, n, direction):
    k = min(k, n)
    found = judge(Trigger("accuracy", 0.5, direction=direction), Observation("accuracy", k, n), 100, 0.05)
    if n == 0: assert found.phase is Phase.INCONCLUSIVE
    else:
        bad = found.low > 0.5 if direction == "above" else found.high < 0.5
        assert (found.phase is Phase.FAILED) == bad and found.low <= k / n <= found.high
