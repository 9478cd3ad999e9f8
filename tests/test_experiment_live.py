"An A/B test read from the log: what it can see before it starts, what it takes out, what counts when, and what it says of each day."

import numpy as np
import pandas as pd
import pytest
from test_experimentation import MODEL, ab, frozen, play

from within.clock import iso, parse_time
from within.errors import InvalidInput
from within.ml.experimentation_live import by_day, live_result, power_plan, ripening, roles_of
from within.ml.experimentation_results import SRM_ALARM
from within.observations import PredictionLog
from within.plots import day_effect_picture, latency_picture, ratio_picture, trajectory_picture
from within.stats.experiments import detectable, difference_path, quantile_of, quantile_path
from within.stats.intervals import proportion_interval
from within.verdicts import Phase
from within.windows import parse_duration

assert frozen   # a fixture
DAY, START = pd.Timedelta(days=1), pd.Timestamp("2023-10-01", tz="UTC")


class Limits:
    rollback_triggers = ()


class Policy:
    "What of a policy an experiment reads."
    alpha = 0.05
    release = type("Release", (), {"rollout": Limits, "rollback_triggers": (), "experiment": type("Plan", (), {"non_inferiority": 0.1})})


class Asked:
    def __init__(self, name, priority): self.name, self.priority = name, priority


PLAN = [Asked("accuracy", "primary"), Asked("latency_p95", "secondary"), Asked("user_feedback", "secondary"), Asked("error_rate", "guardrail")]


def answers(seed, units=600, each=6, days=14, right=(0.8, 0.8), names=("control", "treatment"), start=START, after=(1.0, 1.0), habit=0.15,
            told=(1.0, 1.0)) -> pd.DataFrame:
    "Live answers as the log gives them; a unit's habit is the same in every call."
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(units), each)
    usual = np.random.default_rng(5).normal(0, habit, units)[who]
    arm = np.random.default_rng(seed + 10_000).integers(0, len(names), units)[who]
    good = (rng.random(len(who)) < np.clip(np.asarray(right)[arm] + usual, 0, 1)).astype(float)
    good[rng.random(len(who)) >= np.resize(told, len(names))[arm]] = np.nan
    late = pd.to_timedelta(np.resize(after, len(names))[arm] * rng.uniform(0.2, 1, len(who)) * 3, unit="D")
    at = start + pd.to_timedelta(rng.uniform(0, days, len(who)), unit="D")
    return pd.DataFrame({"variant": np.asarray(names, object)[arm], "unit": [f"u{w}" for w in who], "at": at, "latency_ms": rng.gamma(4, 2, len(who)),
                         "failed": 0.0, "right": good, "content": np.nan, "right_after": late, "content_after": pd.to_timedelta([None] * len(who))})


def judge(frame, past=None, shares=(50, 50), days=14, plan=PLAN, ripe=3):
    names = list(dict.fromkeys(frame["variant"])) if len(shares) > 2 else ["control", "treatment"]
    names = sorted(names, key=lambda n: (n != "control", n))
    past = frame.head(0) if past is None else past
    return live_result(Policy, frame, past, dict(zip(names, shares, strict=True)), plan, START, ripe * DAY, START + days * DAY)


def test_what_can_be_seen_is_seen_as_often_as_promised():
    "Experiments of the size of the plan with the effect of the plan, looked at on each day: about four in five are decided, and never many fewer."
    variance, days, sims, rng = 0.16, 14, 1_500, np.random.default_rng(1)
    effect = detectable(400 * days, 400 * days, variance)
    daily = rng.normal(0, np.sqrt(variance / 400), (2, sims, days)) + np.array([effect, 0.0])[:, None, None]
    so_far, n = daily.cumsum(2) / np.arange(1, days + 1), 400.0 * np.arange(1, days + 1)
    paths = [difference_path(n, so_far[0, i], np.full(days, variance), n, so_far[1, i], np.full(days, variance)) for i in range(sims)]
    decided = np.mean([(p.low > 0).any() for p in paths])
    assert 0.78 < decided < 0.88, decided
    fixed = np.mean([abs(p.effect[-1]) / np.sqrt(2 * variance / n[-1]) > 1.96 for p in paths])
    assert fixed > decided + 0.05, "a test that looks once would have promised more than is true here"


@pytest.mark.slow
def test_a_plan_from_the_log_holds_in_experiments_on_the_same_traffic():
    past = answers(0, units=1_000, days=14, start=START - 14 * DAY)
    plan = power_plan(past, START.to_pydatetime(), parse_duration("14d"), [50, 50], "accuracy", 3 * DAY)
    assert plan.phase is Phase.PASSED and plan.rehearsed == 14 and "14 days can see a difference of" in plan.reason and len(plan.by_day) == 14
    found = [judge(answers(s, units=1_000, right=(0.8, 0.8 + plan.effect)), plan=PLAN[:1]).winner for s in range(1, 121)]
    told = proportion_interval(found.count("treatment"), len(found))
    assert told.low <= 0.88 and told.high >= 0.78 and "control" not in found, (told, found)   # four in five, as promised
    smaller = power_plan(past, START.to_pydatetime(), parse_duration("14d"), [80, 10, 10], "accuracy", 3 * DAY)
    assert smaller.effect > 1.5 * plan.effect, "three variants, and little traffic for two of them"
    short = power_plan(past[past["at"] > START - 5 * DAY], START.to_pydatetime(), parse_duration("14d"), [50, 50], "accuracy", 3 * DAY)
    assert "or less (the log holds" in short.reason and short.effect > plan.effect


@pytest.mark.slow
def test_what_was_known_before_narrows_and_moves_nothing():
    inside, widths, wins, draws = 0, [], 0, 120
    for seed in range(1, draws + 1):
        frame = answers(seed, habit=0.3, right=(0.6, 0.65))
        past = answers(1_000 + seed, each=12, days=28, habit=0.3, right=(0.6, 0.6), start=START - 28 * DAY)
        sharp, plain = (judge(frame, p, plan=PLAN[:1]) for p in (past, None))
        truth = 0.05 * 0.9
        inside += sharp.interval[0] <= truth <= sharp.interval[1]
        widths.append((sharp.interval[1] - sharp.interval[0]) / (plain.interval[1] - plain.interval[0]))
        assert "was known from before" in sharp.notes[0] and "nothing is taken out" in plain.notes[0]
        wins += abs(sharp.effect - truth) < abs(plain.effect - truth)
    assert proportion_interval(inside, draws).high >= 0.95 and np.median(widths) < 0.9, (inside, np.median(widths))
    assert proportion_interval(wins, draws).low > 0.5, (wins, "nearer to the truth in more than half of the draws")


def test_outcomes_count_when_ripe_and_not_before():
    "One variant's news travel three times as fast, and good news faster than bad: nobody is better for it."
    frame = answers(3, units=3_000, each=4, after=(1.0, 0.3))
    good_first = np.where(frame["right"] == 1, frame["right_after"] / 3, frame["right_after"])
    frame["right_after"] = pd.to_timedelta(good_first)
    known = frame["at"] + frame["right_after"] < START + 4 * DAY
    naive = frame[known].groupby("variant")["right"].mean()
    assert abs(naive["treatment"] - naive["control"]) > 0.02, "whatever has arrived would have told a story"
    result = judge(frame, days=4)
    assert result.interval[0] < 0 < result.interval[1] and abs(result.effect) < abs(naive["treatment"] - naive["control"])
    rows = by_day(frame, START, 3 * DAY, START + 4 * DAY)
    assert rows.loc[rows["right"].notna(), "day"].unique().tolist() == [pd.Timestamp("2023-10-04")]
    assert "not that old yet" in result.notes[1]


def test_outcomes_that_come_after_they_are_ripe_are_left_out_of_every_variant():
    frame = answers(4)
    frame.loc[frame["unit"].str.endswith("7"), "right_after"] = 5 * DAY
    result = judge(frame, days=30)
    assert result.metrics["control"]["outcomes"] > 0 and result.verdicts[1].gate == "outcomes_arrived" and result.verdicts[1].passed
    n = result.trajectory[result.trajectory["metric"] == "accuracy"]["units"].iloc[-1]
    assert n == frame[~frame["unit"].str.endswith("7")]["unit"].nunique()


def test_outcomes_that_arrive_unlike_block_the_comparison():
    result = judge(answers(5, units=2_000, right=(0.7, 0.9), told=(0.9, 0.6)))
    assert result.winner is None and result.status == "inconclusive" and "ripe answers with an outcome" in result.reason


@pytest.mark.slow
def test_outcomes_that_arrive_alike_seldom_block_the_comparison():
    alarms, draws = 0, 300
    for seed in range(draws): alarms += not judge(answers(seed, units=200, told=(0.8, 0.8)), plan=PLAN[:1]).verdicts[1].passed
    assert proportion_interval(alarms, draws).low <= SRM_ALARM, alarms


def test_the_time_to_ripen_is_read_from_the_past():
    assert ripening(answers(0)) == 3 * DAY and ripening(answers(0).head(5)) == parse_duration("3d")
    assert ripening(answers(0, after=(1 / 6, 1 / 6))) == DAY


def test_secondary_metrics_are_guardrails_and_corrected_claims():
    frame = answers(6, units=2_000, right=(0.7, 0.8))
    frame["content"], frame["content_after"] = (frame["right"] == 1).astype(float), frame["right_after"]
    result = judge(frame)
    roles = result.effects.groupby("role")["metric"].apply(list).to_dict()
    assert roles["guardrail"] == ["latency_p95", "user_feedback", "error_rate"] and roles["secondary"] == ["latency_p95", "user_feedback"]
    claims = result.effects[result.effects["role"] == "secondary"].set_index("metric")
    assert (claims["adjusted_p"] >= claims["p"]).all() and claims.loc["user_feedback", "adjusted_p"] <= 0.05 < claims.loc["latency_p95", "adjusted_p"]
    assert result.winner == "treatment", result.reason


def test_three_variants_share_the_error_and_the_best_wins():
    frame = answers(7, units=6_000, right=(0.7, 0.76, 0.84), names=("control", "one", "two"))
    result = judge(frame, shares=(34, 33, 33))
    assert result.winner == "two" and set(result.trajectory["variant"]) == {"one", "two"} and set(result.metrics) == {"control", "one", "two"}


@pytest.mark.slow
def test_looked_at_on_every_day_equal_variants_are_rarely_told_apart():
    "The whole way through the log: units that resemble themselves, latency and outcomes, in every look of an experiment."
    false, slow, draws = 0, 0, 120
    for seed in range(draws):
        course = judge(answers(seed, units=400, each=8), plan=PLAN[:2], past=answers(seed + 500, units=400, start=START - 20 * DAY)).trajectory
        wrong = (course["low"] > 0) | (course["high"] < 0)
        false, slow = false + wrong[course["metric"] == "accuracy"].any(), slow + wrong[course["metric"] == "latency_p95"].any()
    assert proportion_interval(int(false), draws).low <= 0.05 and proportion_interval(int(slow), draws).low <= 0.05, (false, slow)


def test_bands_of_percentiles_hold_at_all_looks_when_units_resemble_themselves():
    rng, missed, truth = np.random.default_rng(8), 0, None
    everything = np.exp(rng.normal(0, 0.5, (200_000, 1)) + rng.normal(0, 0.5, (200_000, 1)))
    truth = float(np.quantile(everything, 0.9))
    for _ in range(150):
        values = np.exp(np.repeat(rng.normal(0, 0.5, 400), 5) + rng.normal(0, 0.5, 2_000))
        bands = [quantile_of(values[:k], np.arange(k) // 5, 0.9).band(0.05) for k in range(200, 2_001, 200)]
        missed += not all(low <= truth <= high for low, high in bands)
    assert proportion_interval(missed, 150).low <= 0.05, missed
    one = quantile_of(values, np.arange(2_000) // 5, 0.9)
    assert quantile_path([one], [one]).p[0] == 1
    for bad in ([1.0, np.nan], [1.0, np.inf]):
        with pytest.raises(InvalidInput): quantile_of(bad, [0, 1], 0.9)


def test_the_result_carries_its_days_and_they_can_be_drawn(frozen):
    test = ab(frozen)
    assert test.power().phase is Phase.INCONCLUSIVE and "no live answers" in str(test.power())
    test.start()
    play(frozen, right=(0.78, 0.88))
    frozen.clock.advance(parse_duration("14d"))
    result = test.get_results()
    course = result.trajectory[result.trajectory["metric"] == "accuracy"]
    assert {"day", "effect", "low", "high", "variant_units", "control_units"} <= set(course.columns) and len(course) == 14
    assert result.decided_on in set(course["day"]) and course["low"].iloc[-1] == pytest.approx(result.interval[0])
    for draw in (trajectory_picture, day_effect_picture, ratio_picture, latency_picture): assert hasattr(draw(result), "savefig"), draw
    assert hasattr(trajectory_picture(result, "latency_p95"), "savefig")
    pd.testing.assert_frame_equal(ab(frozen).get_results().trajectory, result.trajectory)


def test_a_test_may_end_on_the_day_it_is_decided_and_not_before_its_minimum(frozen):
    test = ab(frozen, minimum="7d", maximum="21d")
    test.start()
    play(frozen, right=(0.6, 0.95), days=21.0, content=(0.95, 0.95))
    frozen.clock.advance(parse_duration("6d"))
    early = test.get_results()
    assert early.status == "running" and early.interval[0] > 0, "shown, but too early to end"
    frozen.clock.advance(parse_duration("2d"))
    result = test.get_results()
    assert result.winner == "treatment" and parse_time(result.ends_at) == parse_time("2023-10-09")
    assert ab(frozen, minimum="7d", maximum="21d").get_results() == result
    with pytest.raises(InvalidInput, match="at most the next"): ab(frozen, minimum="15d")


def test_an_undecided_test_goes_on_to_its_maximum(frozen):
    test = ab(frozen, maximum="21d")
    test.start()
    play(frozen, right=(0.8, 0.8), days=21.0, units=(300, 300))
    frozen.clock.advance(parse_duration("14d"))
    assert test.get_results().status == "running"
    frozen.clock.advance(parse_duration("7d"))
    assert test.get_results().status == "inconclusive"


def test_earlier_answers_of_the_same_units_are_used(frozen):
    "The champion answered the same accounts for two weeks; the test says how much that took away, and what it could see before it began."
    log, rng = PredictionLog(frozen, "production"), np.random.default_rng(2)
    begun, hard = frozen.now(), rng.random((2, 400)) < 0.3
    def line(id, at, variant, version, unit, good):
        return {"id": id, "at": iso(at), "environment": "production", "model": MODEL, "version": version, "variant": variant, "role": "live", "unit": unit,
                "output": 90.0 if good else 10.0, "latency_ms": 5.0, "error": None}
    lines, said = [], []
    for period, shift in (("before", -14), ("in", 0)):
        for arm, (name, version) in enumerate((("control", "2.1.0"), ("treatment", "2.2.0"))):
            for u in range(400):
                for j in range(4):
                    at = begun + pd.Timedelta(days=shift + float(rng.uniform(0, 14)))
                    good = rng.random() < (0.3 if hard[arm, u] else 0.95)
                    before = period == "before"
                    lines.append(line(f"{period}{arm}-{u}-{j}", at, "champion" if before else name, "2.1.0" if before else version, f"{arm}-{u}", good))
                    said.append({"id": lines[-1]["id"], "kind": "outcome", "value": 90.0, "at": iso(at + DAY)})
    test = ab(frozen)
    log.append(x for x in lines if x["id"].startswith("before")), log.append_feedback(said), log.close()
    assert 0.01 < test.power().effect < 0.2 and "14 days can see" in test.power().reason
    test.start()
    log.append(x for x in lines if x["id"].startswith("in")), log.close()
    frozen.clock.advance(parse_duration("14d"))
    result = test.get_results()
    share = int(result.notes[0].split("%")[0])
    assert 20 < share < 95 and result.notes[-1] == test.power().reason and "1 days after it" in result.notes[1]


def test_margins_and_roles():
    roles = roles_of(Policy, PLAN, {"user_feedback": 0.6})
    assert [(r.name, r.priority) for r in roles][:3] == [("accuracy", "primary"), ("latency_p95", "guardrail"), ("latency_p95", "secondary")]
    assert next(r for r in roles if r.name == "user_feedback").margin == pytest.approx(0.06)
