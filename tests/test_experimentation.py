"""A/B tests: who wins, who does not, and that looking again, starting again and losing traffic are handled."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from within.clock import FrozenClock, iso, parse_time
from within.context import Context
from within.errors import Conflict, InvalidInput, NotApproved, StageNotReady, UnknownModelVersion
from within.ledger import entries
from within.ml.experimentation import ABTest, analyze, analyze_summaries
from within.ml.models import AdScorePredictor
from within.ml.registry import ModelRegistry
from within.observations import PredictionLog
from within.serving.routes import Shadow, Share, change, current
from within.serving.supervisor import release
from within.stats.intervals import proportion_interval
from within.stats.sequential import mean_difference_confseq
from within.verdicts import Phase
from within.windows import parse_duration

MODEL, START = "ad_score_predictor", parse_time("2023-10-01")
VARIANTS = [{"name": "control", "model_version": "2.1.0", "traffic_percentage": 50}, {"name": "treatment", "model_version": "2.2.0", "traffic_percentage": 50}]
METRICS = [{"name": "accuracy", "priority": "primary"}, {"name": "latency_p95", "priority": "secondary"}, {"name": "user_feedback", "priority": "secondary"}]


def register(ctx, approved=True):
    "Version 2.2.0: a small model of its own, approved or not."
    x = pd.DataFrame({"ad_content.word_count": np.arange(200.0), "platform": ["a", "b"] * 100})
    model = AdScorePredictor({"n_estimators": 3, "max_depth": 2}).fit(x, pd.Series(np.linspace(1, 99, 200), name="effectiveness_score"))
    registry = ModelRegistry(ctx)
    registry.register_model(model, MODEL, "2.2.0", training_data_info={"start_date": "2023-01-01", "end_date": "2023-09-30", "samples": 200})
    if approved: registry.approve(f"{MODEL}@2.2.0", reviewer="reviewer@example.com", note="read the packet")


@pytest.fixture
def frozen(ctx):
    "The small world on a clock that only the test moves; no process runs."
    register(ctx)
    return Context(ctx.settings, ctx.store, FrozenClock(START), 0)


def ab(ctx, **changed):
    return ABTest(**{"name": "v2_2_0_vs_v2_1_0", "variants": VARIANTS, "metrics": METRICS, "duration": "14d", "ctx": ctx, **changed})


def play(ctx, right, content=(0.7, 0.7), failed=(0.0, 0.0), ms=(5.0, 5.0), units=(1500, 1500), each=4, days=14.0, late_days=1.0, seed=0):
    "Write what a gateway would have logged for two arms from now on: shares right, content and failed, mean latency."
    rng, log = np.random.default_rng(seed), PredictionLog(ctx, "production")
    start, lines, feedback = ctx.now(), [], []
    for arm, (name, version) in enumerate((("control", "2.1.0"), ("treatment", "2.2.0"))):
        for u in range(units[arm]):
            for j in range(each):
                at = start + pd.Timedelta(days=float(rng.uniform(0, days)))
                outcome = float(rng.uniform(0, 100))
                good, broke = rng.random() < right[arm], rng.random() < failed[arm]
                output = None if broke else (outcome if good else 100 - outcome if abs(outcome - 50) > 1 else 100.0 * (outcome < 50))
                id = f"{name}-{u}-{j}"
                lines.append({"id": id, "at": iso(at), "environment": "production", "model": MODEL, "version": version, "variant": name, "role": "live",
                              "unit": f"{name}-{u}", "output": output, "latency_ms": float(rng.gamma(4, ms[arm] / 4)), "error": "host gone" if broke else None})
                feedback.append({"id": id, "kind": "outcome", "value": outcome, "at": iso(at + pd.Timedelta(days=late_days))})
                if j == 0: feedback.append({"id": id, "kind": "user_feedback", "value": float(rng.random() < content[arm]), "at": iso(at)})
    log.append(lines), log.append_feedback(feedback), log.close()


def run(ctx, **traffic):
    test = ab(ctx)
    test.start()
    play(ctx, **traffic)
    ctx.clock.advance(parse_duration("14d"))
    return test.get_results()


def test_a_better_treatment_wins_and_the_route_goes_back(frozen):
    result = run(frozen, right=(0.78, 0.86))
    assert (result.winner, result.status, result.phase) == ("treatment", "completed", Phase.PASSED), result.reason
    low, high = result.interval
    assert 0 < low < result.effect < high and result.srm > 0.001
    assert f"{result.effect * 100:+.2f}" in result.reason and "threshold 0" in result.reason
    route = current(frozen, "production", MODEL)
    assert route.default == "2.1.0" and not route.shares
    assert [e.body["event"] for e in entries(frozen, "experiment", "v2_2_0_vs_v2_1_0")] == ["started", "ended"]
    assert {o["labels"]["variant"] for o in frozen.store.observations("experiment:v2_2_0_vs_v2_1_0", "accuracy")} == {"control", "treatment"}
    assert ab(frozen).get_results() == result and ab(frozen).start() == result, "finished: the same for ever"


@pytest.mark.parametrize(("traffic", "winner", "status", "says"), [
    ({"right": (0.86, 0.78)}, "control", "completed", "worse than the control"),
    ({"right": (0.82, 0.82)}, None, "inconclusive", "neither shown better nor worse"),
    ({"right": (0.78, 0.86), "failed": (0.0, 0.05)}, "control", "completed", "error_rate of treatment"),
    ({"right": (0.78, 0.86), "ms": (5.0, 90.0)}, "control", "completed", "latency_p95 of treatment"),
    ({"right": (0.78, 0.86), "content": (0.8, 0.5)}, "control", "completed", "user_feedback of treatment"),
    ({"right": (0.78, 0.90), "units": (1500, 1200)}, None, "inconclusive", "not compatible with the promised shares"),
    ({"right": (0.5, 0.95), "units": (12, 12)}, None, "inconclusive", "neither shown"),
    ({"right": (0.5, 0.95), "units": (0, 0)}, None, "inconclusive", "neither shown"),
    ({"right": (0.78, 0.90), "late_days": 30.0}, None, "inconclusive", "0 and 0 units")])
def test_every_other_ending(frozen, traffic, winner, status, says):
    result = run(frozen, **traffic)
    assert (result.winner, result.status) == (winner, status), result.reason
    assert says in result.reason
    assert not current(frozen, "production", MODEL).shares
    assert ab(frozen).get_results() == result


def test_before_the_end_it_runs_and_nobody_has_won(frozen):
    test = ab(frozen)
    assert test.start().status == "running"
    play(frozen, right=(0.6, 0.95))
    frozen.clock.advance(parse_duration("7d"))
    early = test.get_results()
    assert (early.status, early.winner, early.phase) == ("running", None, Phase.WAITING) and early.effect > 0.1 and "2023-10-15" in early.reason
    assert current(frozen, "production", MODEL).shares, "still sharing out"


def test_start_is_idempotent_and_leaves_the_shadow_alone(frozen):
    before = current(frozen, "production", MODEL)
    change(frozen, replace(before, shadows=(Shadow("2.2.0", 100, "dep-1"),)), before.revision, by="test")
    test = ab(frozen)
    test.start(), ab(frozen).start()
    route = current(frozen, "production", MODEL)
    assert route.shadows == (Shadow("2.2.0", 100, "dep-1"),) and route.salt == test.name
    assert [(s.variant, s.version, s.percentage) for s in route.shares] == [("control", "2.1.0", 50), ("treatment", "2.2.0", 50)]
    assert len(entries(frozen, "experiment", test.name)) == 1
    with pytest.raises(Conflict, match="other variants"): ab(frozen, duration="7d").start()
    with pytest.raises(Conflict, match="already shared out"): ab(frozen, name="another").start()
    frozen.clock.advance(parse_duration("14d"))
    test.get_results()
    assert current(frozen, "production", MODEL).shadows


def test_a_start_that_was_cut_short_is_finished_by_the_next(frozen, monkeypatch):
    import within.ml.experimentation as module
    def cut(*_, **__): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(module, "change", cut)
        with pytest.raises(KeyboardInterrupt): ab(frozen).start()
    with pytest.raises(StageNotReady, match="call start"): ab(frozen).get_results()
    assert ab(frozen).start().status == "running" and current(frozen, "production", MODEL).shares


def test_a_route_that_somebody_else_changed_stays_theirs(frozen):
    ab(frozen).start()
    route = current(frozen, "production", MODEL)
    theirs = change(frozen, replace(route, shares=(Share("rollout", "2.2.0", 10),), salt="rollout-1"), route.revision, by="somebody")
    frozen.clock.advance(parse_duration("14d"))
    ab(frozen).get_results()
    assert current(frozen, "production", MODEL) == theirs


def test_users_see_nothing_without_an_approval(ctx):
    register(ctx, approved=False)
    before = current(ctx, "production", MODEL)
    with pytest.raises(NotApproved, match=r"2\.2\.0"): ab(ctx).start()
    assert current(ctx, "production", MODEL) == before and ctx.store.get("experiment", "v2_2_0_vs_v2_1_0") is None


@pytest.mark.parametrize(("changed", "error", "says"), [
    ({"variants": [VARIANTS[0], {**VARIANTS[1], "traffic_percentage": 40}]}, InvalidInput, "add up to 90"),
    ({"variants": [VARIANTS[0], {**VARIANTS[1], "name": "control"}]}, InvalidInput, "used twice"),
    ({"variants": [VARIANTS[0], {**VARIANTS[1], "traffic_percentage": float("nan")}]}, InvalidInput, "above 0"),
    ({"variants": [VARIANTS[0], {**VARIANTS[1], "traffic_percentage": -50}]}, InvalidInput, "above 0"),
    ({"variants": VARIANTS[:1]}, InvalidInput, "at least two"),
    ({"variants": [VARIANTS[0], {"name": "treatment", "version": "2.2.0", "traffic_percentage": 50}]}, InvalidInput, "unknown key"),
    ({"variants": [VARIANTS[0], {**VARIANTS[1], "model_version": "9.9.9"}]}, UnknownModelVersion, r"9\.9\.9"),
    ({"model_name": "account_health_predictor"}, UnknownModelVersion, "account_health_predictor has no version"),
    ({"metrics": METRICS[1:]}, InvalidInput, "exactly one"),
    ({"metrics": [*METRICS, {"name": "error_rate", "priority": "primary"}]}, InvalidInput, "exactly one"),
    ({"metrics": [{"name": "revenue", "priority": "primary"}]}, InvalidInput, "unknown metric"),
    ({"duration": "fortnight"}, InvalidInput, "14d|'10m'"),
    ({"name": "../../etc"}, InvalidInput, "not allowed")])
def test_what_cannot_be_meant_is_refused(frozen, changed, error, says):
    with pytest.raises(error, match=says): ab(frozen, **changed)


def test_two_models_with_the_same_versions_must_be_told_apart(frozen):
    registry = ModelRegistry(frozen)
    for version in ("2.1.0", "2.2.0"): registry.register_model(registry.load(MODEL, version), "twin_predictor", version)
    with pytest.raises(InvalidInput, match="ad_score_predictor and twin_predictor"): ab(frozen)
    assert ab(frozen, model_name=MODEL).model == MODEL


def test_results_before_a_start_are_a_misuse(frozen):
    with pytest.raises(StageNotReady, match="call start"): ab(frozen).get_results()


@pytest.mark.slow
def test_two_weeks_pass_through_the_real_gateway(ctx):
    register(ctx)
    test = ab(ctx)
    test.start()
    try: result = test.get_results()
    finally: release(ctx)
    assert ctx.now() == parse_time("2023-10-15") and result.status in ("completed", "inconclusive")
    assert result.srm > 0.001 and result.metrics["control"]["requests"] > 300 and result.metrics["treatment"]["outcomes"] > 200
    assert result.metrics["treatment"]["error_rate"] == 0 and result.metrics["treatment"]["latency_p95"] > 0
    log = PredictionLog(ctx, "production").predictions(START, ctx.now(), MODEL)
    assert log.groupby("unit")["variant"].nunique().max() == 1, "a unit keeps its variant"
    assert test.get_results() == result and not current(ctx, "production", MODEL).shares

# --- experiments that ran elsewhere ----------------------------------------------------------------------------------------------------------------

def traffic(units=6_000, days=10, rates=(0.20, 0.24), seed=0, each=1) -> pd.DataFrame:
    "Visits of two arms over some days, a unit as often as `each` says."
    rng = np.random.default_rng(seed)
    arm = rng.integers(0, 2, units)
    who, arm = np.repeat(np.arange(units), each), np.repeat(arm, each)
    return pd.DataFrame({"who": who, "arm": np.array(["control", "new"])[arm], "day": rng.integers(0, days, units * each),
                         "bought": (rng.random(units * each) < np.asarray(rates)[arm]).astype(float), "spent": rng.gamma(2.0, 10.0, units * each)})


def test_a_frame_a_file_an_arrow_table_and_an_expression_say_the_same(tmp_path):
    import ibis
    import pyarrow as pa
    frame = traffic()
    frame.to_parquet(tmp_path / "events.parquet", index=False)
    sources = (frame, tmp_path / "events.parquet", str(tmp_path / "events.parquet"), pa.Table.from_pandas(frame), ibis.memtable(frame))
    said = [analyze(s, "who", "arm", ["bought", "spent"], time="day") for s in sources]
    assert said[0].winner == "new" and len({(s.reason, s.decided_on) for s in said}) == 1
    for other in said[1:]: pd.testing.assert_frame_equal(said[0].trajectory, other.trajectory)


def test_every_day_is_what_would_have_been_said_on_that_day():
    "Units come back on several days; the sums of the engine are those of a plain calculation on the rows up to each day."
    frame = traffic(units=2_000, each=4)
    for of in ("rows", "total", "any"):
        course = analyze(frame, "who", "arm", [{"name": "spent", "of": of}], time="day").trajectory
        for day in (0, 4, 9):
            until, row = frame[frame["day"] <= day], course.iloc[day]
            alone = analyze(until, "who", "arm", [{"name": "spent", "of": of}])
            assert np.allclose([row["effect"], row["low"], row["high"]], [alone.effect, *alone.interval], equal_nan=True), (of, day)
            by_unit = until.groupby(["arm", "who"])["spent"].agg(["sum", "count"]).reset_index()
            value = by_unit["sum"] if of == "total" else (by_unit["sum"] > 0).astype(float)
            mean = by_unit.groupby("arm")["sum"].sum() / by_unit.groupby("arm")["count"].sum() if of == "rows" else value.groupby(by_unit["arm"]).mean()
            assert np.isclose(row["effect"], mean["new"] - mean["control"])


def test_a_long_experiment_is_asked_for_in_blocks_of_days_and_says_the_same(monkeypatch):
    frame = traffic(units=1_000, each=5, days=90).assign(before=lambda f: f["who"] % 7)
    metrics = [{"name": "spent", "of": "rows"}, {"name": "all", "column": "spent", "of": "total", "before": "before"},
               {"name": "once", "column": "spent", "of": "any"}]
    in_blocks = analyze(frame, "who", "arm", metrics, time="day")
    monkeypatch.setattr("within.ml.experimentation_sums.BLOCK", 1_000)
    at_once = analyze(frame, "who", "arm", metrics, time="day")
    pd.testing.assert_frame_equal(in_blocks.trajectory, at_once.trajectory)
    assert in_blocks.faults == at_once.faults and len(in_blocks.trajectory["day"].unique()) == 90


@pytest.mark.parametrize("missing", [np.nan, pd.NaT, None])
def test_rows_without_a_time_are_left_out_and_counted_and_nothing_else_is_an_error(missing):
    frame = traffic(units=200)
    some = analyze(frame.assign(day=frame["day"].where(frame["who"] >= 50)), "who", "arm", "bought", time="day")
    assert some.faults["without time"] == {"rows": 50} and sum(m["units"] for m in some.metrics.values()) == 150
    with pytest.raises(InvalidInput, match="a time .*without time.*200"):
        analyze(frame.assign(day=pd.Series([missing] * 200, dtype="float64" if missing is np.nan else "datetime64[ns]")), "who", "arm", "bought", time="day")


def test_an_average_over_units_has_the_interval_of_plain_numpy():
    frame = traffic(units=3_000, each=3)
    result = analyze(frame, "who", "arm", [{"name": "spent", "of": "total"}])
    a, b = (frame[frame["arm"] == v].groupby("who")["spent"].sum() for v in ("new", "control"))
    low, high = mean_difference_confseq(len(a), a.mean(), a.var(), len(b), b.mean(), b.var())
    assert np.allclose([result.effect, *result.interval], [a.mean() - b.mean(), low, high])


def test_people_who_cannot_be_counted_are_left_out_counted_and_named():
    frame = traffic()
    frame.loc[frame["who"] == 0, "arm"] = "control"
    wrong = pd.DataFrame({"who": [0, 10_001, np.nan, 10_002], "arm": ["new", None, "new", "control"], "day": [9, 3, 3, 2], "bought": [1.0, 1, 1, np.inf]})
    frame["page"] = frame["arm"].map({"control": "old", "new": "fresh"})
    frame.loc[frame["who"] == 5, "page"] = "neither"
    wrong["page"] = ["fresh", "old", "fresh", "old"]
    result = analyze(pd.concat([frame, wrong]), "who", "arm", "bought", time="day", received="page", promised={"control": "old", "new": "fresh"})
    assert result.faults["in two variants"] == {"units": 1, "rows": 2, "example": "0.0"}
    assert result.faults["without variant"] == {"units": 1, "rows": 1, "example": "10001.0"} and result.faults["without unit"] == {"units": 0, "rows": 1}
    assert result.faults["received another"]["units"] == 1 and result.faults["infinite bought"] == {"rows": 1}
    clean = analyze(frame[~frame["who"].isin([0, 5])], "who", "arm", "bought", time="day")
    assert result.effect == clean.effect and result.interval == clean.interval


def test_missing_values_are_not_measured_and_not_zero():
    frame = traffic()
    frame.loc[frame.index % 2 == 0, "bought"] = np.nan
    result = analyze(frame, "who", "arm", "bought", time="day")
    known = frame.dropna(subset=["bought"]).groupby("arm")["bought"].mean()
    assert np.isclose(result.effect, known["new"] - known["control"]) and result.metrics["new"]["units"] == (frame["arm"] == "new").sum()
    nothing = analyze(frame.assign(bought=np.nan), "who", "arm", "bought", time="day")
    assert (nothing.status, nothing.winner) == ("inconclusive", None)


def test_names_are_only_names():
    hostile = {"control": "'); DROP TABLE x; --", "new": "<script>alert(1)</script>|\n\"ü"}
    frame = traffic().rename(columns={"bought": "select * from \"x\"", "who": "group by", "arm": "variant'"})
    frame["variant'"] = frame["variant'"].map(hostile)
    result = analyze(frame, "group by", "variant'", "select * from \"x\"", time="day", control=hostile["control"])
    assert result.winner == hostile["new"] and "<script>" not in result._repr_markdown_()


def test_an_experiment_without_a_time_or_with_text_for_one():
    frame = traffic()
    frame["at"] = (pd.Timestamp("2024-02-27") + pd.to_timedelta(frame["day"], unit="D")).dt.strftime("%Y-%m-%d %H:%M:%S")
    dated = analyze(frame, "who", "arm", "bought", time="at")
    assert (dated.started_at, dated.looked_at) == ("2024-02-27", "2024-03-07") and len(dated.trajectory) == 10
    assert np.isclose(analyze(frame, "who", "arm", "bought").effect, dated.effect)
    with pytest.raises(InvalidInput, match="time cannot be read"): analyze(frame.assign(at="yesterday"), "who", "arm", "bought", time="at")


@pytest.mark.parametrize(("changed", "says"), [
    ({"metrics": "bougt"}, "did you mean 'bought'"), ({"unit": "nobody"}, "unknown column"), ({"metrics": []}, "no metric"),
    ({"metrics": "arm"}, "is a string"),
    ({"metrics": [{"name": "bought", "of": "median"}]}, "unknown of"), ({"metrics": [{"name": "bought", "margin": -1}]}, "margin of bought"),
    ({"metrics": ["bought", "bought"]}, "listed twice"), ({"metrics": 5}, "metrics is 5"), ({"control": "contrl"}, "did you mean 'control'"),
    ({"shares": {"control": 50, "new": 0}}, "above 0"), ({"shares": {"control": 50, "old": 50}}, "unknown variant 'new'"), ({"alpha": 5}, "alpha"),
    ({"minimum": "a week"}, "not a duration"), ({"maximum": -3}, "number of days above 0"), ({"correction": "bonferoni"}, "unknown correction"),
    ({"received": "arm"}, "both or neither"), ({"tight_at": 0}, "tight_at"), ({"table": 7}, "not a int"), ({"time": "arm"}, "time cannot be read")])
def test_an_analysis_that_cannot_be_meant_is_refused(changed, says):
    with pytest.raises(InvalidInput, match=says): analyze(**{"table": traffic(200), "unit": "who", "variant": "arm", "metrics": ["bought", "spent"]} | changed)


@pytest.mark.parametrize(("frame", "says"), [
    (traffic(0), "no unit can be counted"), (traffic(100).assign(arm="control"), "1 variants"), (traffic(100).assign(arm=None), "no unit can be counted"),
    (traffic(200).assign(arm=range(200)), "2 to 50")])
def test_tables_that_are_no_experiment(frame, says):
    with pytest.raises(InvalidInput, match=says): analyze(frame, "who", "arm", "bought")


def test_the_ratio_comes_first_and_blocks():
    frame = traffic(rates=(0.1, 0.5))
    torn = frame[(frame["arm"] == "control") | (frame["who"] % 5 > 0)]
    result = analyze(torn, "who", "arm", "bought", time="day", maximum="30d")
    assert (result.status, result.winner) == ("inconclusive", None) and "not compatible with the promised shares" in result.reason
    assert analyze(torn, "who", "arm", "bought", time="day", shares={"control": 5, "new": 4}).winner == "new"
    assert analyze(frame, "who", "arm", "bought", shares={"control": 1, "new": 1, "third": 1}).status == "inconclusive", "an arm that nobody got"


def test_durations_and_the_day_of_the_decision():
    frame = traffic(rates=(0.2, 0.3))
    late = analyze(frame, "who", "arm", "bought", time="day", minimum="8d")
    early = analyze(frame, "who", "arm", "bought", time="day")
    assert early.winner == late.winner == "new" and int(early.decided_on[4:]) < int(late.decided_on[4:]) == 7
    assert analyze(frame, "who", "arm", "bought", time="day", minimum="12d").status == "running"
    same = traffic(rates=(0.2, 0.2))
    assert analyze(same, "who", "arm", "bought", time="day", maximum="14d").status == "running"
    assert analyze(same, "who", "arm", "bought", time="day", maximum="10d").status == "inconclusive"


def test_less_is_better_and_guardrails_hold_or_not():
    frame = traffic(rates=(0.3, 0.2))
    frame["slow"] = np.random.default_rng(1).random(len(frame)) < np.where(frame["arm"] == "new", 0.30, 0.10)
    assert analyze(frame, "who", "arm", [{"name": "bought", "better": "less"}]).winner == "new" and analyze(frame, "who", "arm", "bought").winner == "control"
    rail = {"name": "slow", "priority": "guardrail", "better": "less", "margin": 0.05}
    broken = analyze(frame, "who", "arm", [{"name": "bought", "better": "less"}, rail])
    assert broken.winner == "control" and "slow of new" in broken.reason
    assert analyze(frame, "who", "arm", [{"name": "bought", "better": "less"}, {**rail, "margin": 0.4}]).winner == "new"


def test_summaries_say_what_their_events_say():
    frame = traffic()
    melted = frame.melt(["arm", "day", "who"], ["bought", "spent"], "metric")
    long = melted.groupby(["day", "arm", "metric"])["value"].agg(["size", "mean", "var"]).reset_index()
    long.columns = ["day", "variant", "metric", "units", "mean", "variance"]
    ours, theirs = analyze(frame, "who", "arm", ["spent", "bought"], time="day"), analyze_summaries(long, ["spent", "bought"])
    a, b = (r.trajectory[r.trajectory["metric"] == "spent"][["effect", "low", "high", "p"]] for r in (ours, theirs))
    assert np.allclose(a, b) and theirs.srm == ours.srm


@pytest.mark.parametrize(("changed", "says"), [
    ({"hits": [5.0, 60.0]}, "cannot be"), ({"units": [np.nan, 50]}, "cannot be"), ({"units": [-1, 50]}, "cannot be"), ({"units": ["many", 50]}, "not a number"),
    ({"variant": ["a", None]}, "no variant"), ({"variant": ["a", "a"]}, "two rows"), ({"hits": [np.inf, 1]}, "cannot be")])
def test_summaries_that_cannot_be_are_refused(changed, says):
    frame = pd.DataFrame({"variant": ["a", "b"], "units": [50, 50], "hits": [5.0, 6.0]}).assign(**changed)
    with pytest.raises(InvalidInput, match=says): analyze_summaries(frame)
    with pytest.raises(InvalidInput, match="lack the column"): analyze_summaries(frame.drop(columns="hits"))
    with pytest.raises(InvalidInput, match="pandas frame"): analyze_summaries([1])


def test_looked_at_every_day_an_a_a_experiment_is_rarely_decided():
    "Two hundred experiments with three equal variants and two secondary metrics, looked at on fourteen days."
    rng, false, claimed = np.random.default_rng(3), 0, 0
    for _ in range(200):
        n, units = 14, 3 * 14
        lines = pd.DataFrame({"variant": ["control", "a", "b"] * n, "day": np.repeat(np.arange(n), 3), "units": 300})
        frames = [lines.assign(metric=m, mean=rng.normal(5, 2 / 300**0.5, units), variance=4.0) for m in ("one", "two", "three")]
        result = analyze_summaries(pd.concat(frames), shares={"control": 1, "a": 1, "b": 1})
        course = result.trajectory[result.trajectory["metric"] == "one"]
        false += bool(((course["low"] > 0) | (course["high"] < 0)).any())
        claimed += bool((result.effects.loc[result.effects["role"] == "secondary", "adjusted_p"] <= 0.05).any())
    assert proportion_interval(false, 200).low <= 0.05 and proportion_interval(claimed, 200).low <= 0.05, (false, claimed)


def test_what_was_known_before_sharpens_and_does_not_shift():
    "The estimate with CUPED lies inside its interval as often as promised, and the interval is half as wide."
    rng, inside, width = np.random.default_rng(4), 0, []
    for _ in range(60):
        frame = traffic(2_000, seed=int(rng.integers(1e9)))
        frame["past"] = rng.gamma(2.0, 10.0, len(frame))
        frame["spent"] = frame["past"] + rng.normal(0, 5, len(frame)) + 1.0 * (frame["arm"] == "new")
        sharp, plain = (analyze(frame, "who", "arm", [{"name": "spent", "before": before}]) for before in ("past", None))
        inside += sharp.interval[0] <= 1.0 <= sharp.interval[1]
        width.append((sharp.interval[1] - sharp.interval[0]) / (plain.interval[1] - plain.interval[0]))
    assert inside >= 57 and np.median(width) < 0.45 and sharp.metrics["new"]["spent known before"] > 0.8


def test_numbered_units_and_named_units_give_the_same_figures():
    "The fast way and the general way: missing values and variants, units in two variants, a figure from before, every kind of measure."
    rng = np.random.default_rng(11)
    frame = traffic(units=3_000, each=4)
    frame.loc[rng.random(len(frame)) < 0.2, "spent"] = np.nan
    frame.loc[frame["who"] == 17, "arm"] = ["control", "new", "new", "control"]
    frame["past"], frame["bought"] = (frame["who"] % 11).where(frame["who"] % 3 > 0), frame["bought"].astype(np.int8)
    metrics = [{"name": "spent", "before": "past"}, {"name": "all", "column": "spent", "of": "total", "before": "past"},
               {"name": "ever", "column": "bought", "of": "any"},
               {"name": "bought", "of": "rows"}, {"name": "times", "column": "bought", "of": "total"}]
    days = pd.Timestamp("2024-02-27") + pd.to_timedelta(frame["day"], unit="D")
    for time in (frame["day"], days, days.dt.date):
        numbered = analyze(frame.assign(day=time), "who", "arm", metrics, time="day")
        named = analyze(frame.assign(day=time, who="u" + frame["who"].astype(str).str.zfill(5)), "who", "arm", metrics, time="day")
        pd.testing.assert_frame_equal(numbered.trajectory, named.trajectory)
        assert numbered.reason == named.reason and numbered.faults["in two variants"] == {"units": 1, "rows": 4, "example": "17"}
        assert {k: v["rows"] for k, v in numbered.faults.items()} == {k: v["rows"] for k, v in named.faults.items()}


def test_units_in_ranges_when_memory_is_short_and_far_apart_numbers(monkeypatch, tmp_path):
    frame = traffic(units=3_000, each=4)
    frame.to_parquet(tmp_path / "events.parquet", index=False)
    whole = analyze(tmp_path / "events.parquet", "who", "arm", ["bought", "spent"], time="day")
    monkeypatch.setattr("within.ml.experimentation_dense.MOST_BYTES", 10 * 22 * 700)
    monkeypatch.setattr("within.ml.experimentation_dense.BATCH", 1_000)
    pd.testing.assert_frame_equal(analyze(tmp_path / "events.parquet", "who", "arm", ["bought", "spent"], time="day").trajectory, whole.trajectory)
    far = analyze(frame.assign(who=frame["who"] * 10**12), "who", "arm", ["bought", "spent"], time="day")
    pd.testing.assert_frame_equal(far.trajectory, whole.trajectory)


def test_a_unit_with_more_rows_a_day_than_a_cell_counts_is_still_right():
    frame = pd.DataFrame({"who": np.r_[np.zeros(70_000, int), np.arange(1, 200)], "arm": ["a"] * 70_000 + ["a", "b"] * 99 + ["b"], "y": 1.0})
    assert analyze(frame, "who", "arm", {"name": "y", "of": "total"}).effect == pytest.approx(1 - (70_000 + 99) / 100)
