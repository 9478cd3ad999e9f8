"""Snapshots and data preparation: what a model may learn from, and that nothing leaves silently."""
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from within.clock import FrozenClock, parse_time
from within.context import Context
from within.data import DataPreparer
from within.errors import DigestMismatch, InvalidInput, StageNotReady, UnknownDataset, UnknownModel
from within.ml.ad_score import AdScorePredictor
from within.ml.evaluation import ModelEvaluator
from within.ml.registry import ModelRegistry
from within.policies import MinimumPolicy
from within.snapshots import canonical, content_digest, open_snapshot, open_split, split_digest
from within.splits import divide_random, divide_time, divide_unit, divide_unit_time, gap_of, gap_text, purged
from within.warehouse import DatasetInfo

INFO = DatasetInfo(name="ads", time="created_at", outcome_time="outcome_at", unit="account_id", target="effectiveness_score", category="performance_category")


def ads(n: int = 900, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    day = pd.date_range("2023-01-01", periods=n, freq="6h", tz="UTC")
    frame = pd.DataFrame({
        "account_id": rng.integers(0, 90, n).astype(str), "created_at": day, "outcome_at": day + pd.Timedelta("3D"),
        "internal_id": np.arange(n), "timestamp": day,
        "ad_content.word_count": rng.integers(3, 40, n), "ad_content.urgency": np.where(rng.random(n) < 0.1, np.nan, rng.random(n)),
        "historical_metrics.ctr_7d": rng.random(n), "platform": rng.choice(["facebook", "google"], n), "target_audience": rng.choice(["all", "young"], n),
        "industry": rng.choice(["retail", "travel"], n)})
    frame["effectiveness_score"] = np.clip(frame["ad_content.word_count"] + rng.normal(20, 9, n), 0, 100)
    return frame.assign(performance_category=pd.qcut(frame.effectiveness_score, 3, labels=["low", "medium", "high"]).astype(str))


@pytest.fixture
def ctx(tmp_path, monkeypatch):
    monkeypatch.delenv("WITHIN_HOME", raising=False)
    made = Context.open(home=tmp_path / "home", clock=FrozenClock(parse_time("2024-01-01")), seed=3)
    yield made
    made.close()


def prepared(ctx, frame, name="ads", **arguments):
    ctx.warehouse.write(name, frame, part="all", info=replace(INFO, name=name))
    preparer = DataPreparer("ad_score_predictor", source=None if name == "ads" else name, ctx=ctx)
    return preparer, preparer.prepare_training_data(**({"start_date": "2023-01-01", "end_date": "2023-12-31"} | arguments))


# --- the guide's calls

def test_the_guides_block(ctx):
    preparer, data = prepared(ctx, ads(), end_date="2023-09-30", include_features=["ad_content.*", "historical_metrics.*", "platform", "target_audience"],
                              exclude_features=["internal_id", "timestamp"])
    parts = preparer.train_validation_test_split(data=data, validation_size=0.15, test_size=0.15, stratify_by="performance_category")
    assert [len(p) for p in parts] == [630, 135, 135]
    report = preparer.generate_data_report(train_data=parts[0], validation_data=parts[1], test_data=parts[2])
    assert report.class_distribution == ads().performance_category.value_counts().to_dict()
    assert report.passed is False and not report.enough.passed and all(v.passed for v in report.proofs)
    features = preparer.get_feature_columns()
    assert list(parts[0][features].columns) == features and parts[0]["effectiveness_score"].dtype == float
    assert not {"effectiveness_score", "performance_category", "account_id", "created_at", "industry"} & set(features)
    assert {"effectiveness_score", "performance_category", "account_id", "created_at", "industry"} <= set(data.columns)
    assert "read when asked" in data._repr_markdown_() and "test" in parts[2]._repr_markdown_()
    json.dumps(report.to_dict()), json.dumps(data.to_dict()), json.dumps(parts[0].to_dict())


def test_the_end_date_counts_whole_and_outcomes_must_have_come(ctx):
    _, data = prepared(ctx, ads(), start_date="2023-02-01", end_date="2023-02-02")
    assert len(data) == 8 and data.span[1] == pd.Timestamp("2023-02-02 18:00", tz="UTC")
    early = Context.open(home=ctx.settings.home, clock=FrozenClock(parse_time("2023-02-04T06:00")))
    few = DataPreparer("ad_score_predictor", ctx=early).prepare_training_data("2023-02-01", "2023-02-02")
    assert len(few) == 2 and few.set_aside == {"whose outcome has not come yet": 6}
    early.close()


def test_too_few_rows_are_a_verdict(ctx):
    _, data = prepared(ctx, ads())
    assert not data.enough.passed and "900 matured rows are fewer than the minimum of 50,000 (policy minimums.samples)" == data.enough.reason
    assert prepared(ctx, ads(), minimum_samples=900)[1].enough.passed


# --- one content, one name

def test_the_hash_is_of_the_content_not_of_files(ctx, tmp_path):
    frame = ads()
    _, whole = prepared(ctx, frame)
    other = Context.open(home=tmp_path / "other", clock=ctx.clock)
    mixed = frame.sample(frac=1, random_state=1)[frame.columns[::-1]]
    for i in range(3): other.warehouse.write("ads", mixed.iloc[i::3], part=f"p{i}", info=INFO if i == 0 else None)
    same = DataPreparer("ad_score_predictor", ctx=other).prepare_training_data("2023-01-01", "2023-12-31")
    assert same.snapshot == whole.snapshot and (same["ad_content.word_count"] == whole["ad_content.word_count"]).all()
    frame.loc[5, "ad_content.word_count"] += 1
    assert prepared(ctx, frame)[1].snapshot != whole.snapshot
    other.close()


def test_two_at_once_make_one_snapshot(ctx):
    prepared(ctx, ads())
    def prepare(_):
        mine = Context.open(home=ctx.settings.home, clock=ctx.clock)
        try: return DataPreparer("ad_score_predictor", ctx=mine).prepare_training_data("2023-01-01", "2023-03-01").snapshot
        finally: mine.close()
    with ThreadPoolExecutor(4) as pool: names = set(pool.map(prepare, range(4)))
    assert len(names) == 1
    assert sorted(p.name for p in ctx.path("snapshots").iterdir() if p.name.startswith(".")) == []


def test_a_later_stage_gets_the_same_rows(ctx):
    preparer, data = prepared(ctx, ads())
    parts = preparer.train_validation_test_split(data, stratify_by="performance_category")
    reopened = open_split(ctx, parts[0].lineage["snapshot"], parts[0].lineage["split"])
    assert all((a.row_ids == b.row_ids).all() for a, b in zip(parts, reopened, strict=True))
    memory = next(data.path.parent.glob("split-*.json"))
    memory.write_text(memory.read_text().replace('"sha256": "', '"sha256": "0'))
    with pytest.raises(DigestMismatch, match="describes other rows"): open_split(ctx, data.snapshot, parts[0].spec)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "0" * 64, None])
def test_an_unknown_snapshot_is_an_error(ctx, name):
    with pytest.raises(UnknownDataset): open_snapshot(ctx, name)


two_columns = st.tuples(st.one_of(st.none(), st.floats(allow_nan=True)), st.one_of(st.none(), st.text(max_size=5)))


@given(st.lists(two_columns, min_size=1, max_size=30), st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_the_hash_ignores_batches_and_nan_is_missing(rows, size):
    from within.snapshots import ContentHash
    table = pa.table({"x": pa.array([r[0] for r in rows], pa.float64()), "t": pa.array([r[1] for r in rows], pa.string())})
    quiet = table.set_column(0, "x", pa.array([None if r[0] is None or np.isnan(r[0]) else r[0] for r in rows], pa.float64()))
    names = set()
    for given_table, step in ((table, size), (quiet, len(rows)), (table.select(["t", "x"]), 3)):
        digest = ContentHash({})
        for batch in given_table.to_batches(max_chunksize=step): digest.update(canonical(batch))
        names.add(digest.hexdigest())
    assert len(names) == 1


# --- splits

sizes = st.tuples(st.floats(0.05, 0.4), st.floats(0.05, 0.4))


@given(st.lists(st.integers(0, 5), min_size=30, max_size=300), sizes, st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_random_splits_keep_every_class(classes, shares, seed):
    classes = np.array(classes)
    side = divide_random(classes, *shares, seed)
    for i, share in ((1, shares[0]), (2, shares[1])):
        assert (side == i).sum() == round(len(classes) * share)
        for c in np.unique(classes): assert abs((side[classes == c] == i).sum() - share * (classes == c).sum()) <= 2
    assert (divide_random(classes, *shares, seed) == side).all()


@given(st.lists(st.integers(0, 40), min_size=10, max_size=300).filter(lambda v: len(set(v)) >= 3), sizes)
@settings(max_examples=80, deadline=None)
def test_time_splits_never_cut_a_moment(times, shares):
    times = np.array(times)
    side = divide_time(times, *shares)
    assert set(side) == {0, 1, 2}
    assert times[side == 0].max() < times[side == 1].min() and times[side == 1].max() < times[side == 2].min()


@given(st.lists(st.integers(0, 40), min_size=10, max_size=300).filter(lambda v: len(set(v)) >= 3), sizes, st.integers(0, 9))
@settings(max_examples=80, deadline=None)
def test_unit_splits_keep_people_whole(units, shares, seed):
    units = np.array(units)
    side = divide_unit(units, *shares, seed)
    assert set(side) == {0, 1, 2}
    assert all(len(set(side[units == u])) == 1 for u in set(units))


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 30)), min_size=30, max_size=400), sizes, st.integers(0, 9))
@settings(max_examples=80, deadline=None)
def test_splits_by_unit_and_time_keep_both_promises(rows, shares, seed):
    times, units = (np.array(v) for v in zip(*rows, strict=True))
    try: side = divide_unit_time(times, units, *shares, seed)
    except InvalidInput: return                       # a period whose every unit was needed elsewhere is refused, never emptied
    assert set(side) - {-1} == {0, 1, 2}
    assert times[side == 0].max() < times[side == 1].min() and times[side == 1].max() < times[side == 2].min()
    assert all(len(set(side[(units == u) & (side >= 0)])) <= 1 for u in set(units))
    assert (divide_unit_time(times, units, *shares, seed) == side).all()
    period = divide_time(times, *shares)
    settled = [u for u in set(units) if len(set(period[units == u])) == 1]
    assert all((side[units == u] == period[units == u]).all() for u in settled), "who lives in one period loses nothing"


def test_units_that_live_long_are_shared_out():
    times, units = np.repeat(np.arange(100), 200), np.tile(np.arange(200), 100)
    side = divide_unit_time(times, units, 0.15, 0.15, 0)
    kept = np.array([(side == s).sum() for s in range(3)]) / (side >= 0).sum()
    assert np.abs(kept - [0.7, 0.15, 0.15]).max() < 0.02 and 0.3 < (side >= 0).mean() < 0.4


@given(st.lists(st.integers(0, 400), min_size=30, max_size=300).filter(lambda v: len(set(v)) >= 9), sizes, st.integers(1, 60))
@settings(max_examples=80, deadline=None)
def test_a_gap_is_kept_and_takes_nothing_else(times, shares, gap):
    times = np.array(times)
    side = divide_time(times, *shares)
    try: kept = purged(times, side, gap)
    except InvalidInput as e:
        assert "shorter gap" in str(e)
        return
    for a, b in ((0, 1), (1, 2)):
        begin = times[side == b].min()
        assert begin - times[kept == a].max() >= gap and set(times[(side == a) & (kept < 0)]) == {t for t in times[side == a] if t > begin - gap}


@pytest.mark.parametrize("gap", ["a week", "-7d", "7", 7, "4000d"])
def test_gaps_that_cannot_be_meant(ctx, gap):
    preparer, data = prepared(ctx, ads())
    with pytest.raises(InvalidInput, match="is not a duration"): preparer.train_validation_test_split(data, by="time", gap=gap)
    with pytest.raises(InvalidInput, match="lies between sides in time"): preparer.train_validation_test_split(data, by="unit", gap="7d")
    with pytest.raises(InvalidInput, match="leaves no training rows"): preparer.train_validation_test_split(data, by="time", gap="300d")


def test_gaps_as_text():
    assert [gap_text(gap_of(g)) for g in ("168h", "7d", "0h", "90m", "61s")] == ["7d", "7d", "", "90m", "61s"]


def test_a_split_by_time_leaves_the_label_window_out(ctx):
    preparer, data = prepared(ctx, ads())
    assert data.label_window == {"usual": 259_200, "longest": 259_200} and data.usual_gap == "3d"
    parts = preparer.train_validation_test_split(data, by="time")
    assert parts[0].spec["gap"] == "3d" and parts[0].set_aside == {"in the gap of 3d before the next side": 22}
    report = preparer.generate_data_report(*parts)
    proof = {v.gate: v for v in report.proofs}
    assert set(proof) == {"split.disjoint", "split.time", "split.gap"} and report.set_aside == parts[0].set_aside
    assert "the gap is 3 days, in which 95 % of the outcomes came" in proof["split.gap"].reason
    assert "22 set aside in the gap of 3d" in proof["split.disjoint"].reason
    assert report.label_window == {"usual": 3.0, "longest": 3.0}
    assert not [leak for leak in report.leaks if leak.kind == "dates"]
    again = open_split(ctx, data.snapshot, parts[0].spec)
    assert all((a.row_ids == b.row_ids).all() and a.set_aside == b.set_aside for a, b in zip(parts, again, strict=True))
    assert "gap" not in preparer.train_validation_test_split(data, by="time", gap="0d")[0].spec


def test_a_split_by_unit_and_time_proves_itself(ctx):
    preparer, data = prepared(ctx, ads(3000, seed=1).assign(created_at=lambda d: d.created_at.iloc[0] + (d.created_at - d.created_at.iloc[0]) / 4,
                                                            outcome_at=lambda d: d.created_at + pd.Timedelta("5D")))
    parts = preparer.train_validation_test_split(data, by="unit_time", stratify_by="performance_category")
    report = preparer.generate_data_report(*parts)
    assert [v.gate for v in report.proofs] == ["split.disjoint", "split.time", "split.unit", "split.gap"] and all(v.passed for v in report.proofs)
    assert sum(map(len, parts)) + sum(parts[0].set_aside.values()) == len(data)
    assert not [leak for leak in report.leaks if leak.kind in ("dates", "units")]
    lines = report.findings().lines
    assert {line[0] for line in lines} >= {"split.gap", "outcomes", "missing", "data.samples"} and all(len(line) == 3 for line in lines)
    assert all(line[2] in report.findings()._repr_markdown_() for line in lines[:4])


def test_recipes_from_before_there_were_gaps_keep_their_name(ctx):
    old = {"by": "time", "validation_size": 0.15, "test_size": 0.15, "stratify_by": None, "seed": 3}
    assert split_digest(old) == "e70892e77205379d"
    preparer, data = prepared(ctx, ads())
    parts = open_split(ctx, data.snapshot, old)
    assert parts[0].spec == old and sum(map(len, parts)) == len(data) and (data.path.parent / "split-e70892e77205379d.json").exists()
    assert all(v.passed for v in preparer.generate_data_report(*parts).proofs)


def test_a_dataset_says_how_it_is_split(ctx):
    ctx.warehouse.write("weekly", ads(), part="all", info=replace(INFO, name="weekly", split="time"))
    preparer = DataPreparer("ad_score_predictor", source="weekly", ctx=ctx)
    parts = preparer.train_validation_test_split(preparer.prepare_training_data("2023-01-01", "2023-12-31"), stratify_by="performance_category")
    assert parts[0].spec["by"] == "time" and parts[0]["created_at"].max() < parts[2]["created_at"].min()
    with pytest.raises(InvalidInput, match="unknown way to split 'month'"): preparer.train_validation_test_split(preparer.data, by="month")


@pytest.mark.parametrize("arguments", [{"validation_size": 0.6, "test_size": 0.5}, {"test_size": 0}, {"test_size": -0.1}, {"validation_size": True},
                                       {"test_size": float("nan")}, {"stratify_by": "performance_categry"}])
def test_impossible_splits_are_refused(ctx, arguments):
    preparer, data = prepared(ctx, ads())
    with pytest.raises(InvalidInput): preparer.train_validation_test_split(data, **arguments)


def test_splits_read_lazily_and_in_batches(ctx):
    preparer, data = prepared(ctx, ads())
    train, *_ = preparer.train_validation_test_split(data)
    batches = list(train.to_batches(["platform", "effectiveness_score"], rows=100))
    assert max(map(len, batches)) <= 100 and list(batches[0].columns) == ["platform", "effectiveness_score"]
    assert (pd.concat(batches, ignore_index=True) == train[["platform", "effectiveness_score"]]).all().all()
    with pytest.raises(InvalidInput, match="did you mean 'platform'"): train["platfrm"]
    with pytest.raises(InvalidInput): train[3]


# --- bad input

def test_useless_columns_are_dropped_with_their_reason(ctx):
    frame = ads().assign(**{"ad_content.constant": "x", "ad_content.empty": np.nan, "ad_content.when": pd.Timestamp("2023-01-01"), "ad_content.wild": np.inf})
    frame.loc[::2, "ad_content.wild"] = range(450)
    preparer, data = prepared(ctx, frame)
    assert set(data.dropped) == {"ad_content.constant", "ad_content.empty", "ad_content.when"} and data.dropped["ad_content.empty"] == "all missing"
    assert data.missing["ad_content.wild"] == 0.5 and "450 infinite" in " ".join(data.notes) and np.isfinite(data["ad_content.wild"].dropna()).all()
    report = preparer.generate_data_report(*preparer.train_validation_test_split(data))
    assert report.dropped == data.dropped and any("ad_content.wild is missing in 50%" in p for p in report.problems)


def test_a_champion_is_judged_on_columns_that_have_become_constant(ctx):
    def fitted(rows):
        names = [f for f in rows.features if f.startswith("ad_content.")]
        return AdScorePredictor(config={"n_estimators": 5}).fit(rows[names], rows[rows.target])
    draw = np.random.default_rng(0).uniform(0, 9, len(frame := ads()))
    _, before = prepared(ctx, frame.assign(**{"ad_content.length": draw, "ad_content.flag": np.round(draw)}))
    ModelRegistry(ctx).register_model(fitted(before), "ad_score_predictor", "1.0.0")
    preparer, data = prepared(ctx, frame.assign(**{"ad_content.flag": 0.0, "ad_content.length": np.nan}))
    assert set(data.others) == {"ad_content.flag", "ad_content.length"} and not {*data.others} & {*data.features}
    train, _, test = preparer.train_validation_test_split(data)
    assert test.others == open_snapshot(ctx, data.snapshot).others == data.others
    found = ModelEvaluator(ctx).compare_models(fitted(train), "1.0.0", test, list(test.features), test.target, model_name="ad_score_predictor")
    assert found.champion == "1.0.0"


def test_impossible_targets_are_set_aside_and_counted(ctx):
    frame = ads()
    frame.loc[:4, "effectiveness_score"] = [np.nan, -0.001, 100.5, np.inf, 1e9]
    _, data = prepared(ctx, frame)
    assert data.set_aside == {"without a target": 1, "with a target outside 0..100": 4} and len(data) == 895
    with pytest.raises(InvalidInput, match="no row of dataset 'ads' has a usable 'effectiveness_score'"): prepared(ctx, frame.assign(effectiveness_score=101.0))


@pytest.mark.parametrize(("column", "message"), [("effectiveness_score", "unknown column of dataset 'ads' for the target 'effectiveness_score'"),
                                                 ("platform", "unknown feature or pattern 'platform'")])
def test_a_missing_column_is_named(ctx, column, message):
    with pytest.raises(InvalidInput, match=message): prepared(ctx, ads().rename(columns={column: f"{column}_x"}))


@pytest.mark.parametrize(("arguments", "message"), [
    ({"include_features": ["ad_contents.*"]}, "unknown feature or pattern 'ad_contents"), ({"include_features": "platform"}, "is a list"),
    ({"include_features": ["effectiveness_score"]}, "no features are left"), ({"include_features": []}, "no features are left"),
    ({"start_date": "2023-12-31", "end_date": "2023-01-01"}, "lies before"), ({"end_date": "soon"}, "soon"),
    ({"end_date": None}, "give start_date and end_date"),
    ({"start_date": "2025-01-01", "end_date": "2025-02-01"}, "in the future: the clock stands at 2024-01-01"), ({"window": "last_30_days"}, "not both"),
    ({"start_date": None, "end_date": None, "window": "30_last"}, "unknown window '30_last'"), ({"start_date": None, "end_date": None}, "or a window such as"),
    ({"start_date": 20230101}, "is not a date"), ({"include_features": ["ad_content.*", "historical.*"]}, "unknown feature or pattern 'historical")])
def test_arguments_that_cannot_be_meant(ctx, arguments, message):
    with pytest.raises(InvalidInput, match=message): prepared(ctx, ads(), **arguments)


@pytest.mark.parametrize(("window", "first", "last"), [
    ("rolling_90d", "2023-10-03", "2023-12-31"), ("last_30_days", "2023-12-02", "2023-12-31"), ("2023-02-01_to_2023-02-28", "2023-02-01", "2023-02-28")])
def test_windows_in_the_guides_words(ctx, window, first, last):
    frame = ads(1460)
    _, said = prepared(ctx, frame, start_date=None, end_date=None, window=window)
    _, days = prepared(ctx, frame, start_date=first, end_date=last)
    assert (said.start, said.end) == (first, last) and said.snapshot == days.snapshot and len(said) > 80
    _, hours = prepared(ctx, frame, start_date=None, end_date=None, window="120h")
    assert (hours.start, hours.end) == ("2023-12-27", "2023-12-31") and hours.span[0] == pd.Timestamp("2023-12-27", tz="UTC")


def test_zones_are_instants(ctx):
    frame = ads(200)
    elsewhere = frame.assign(created_at=frame.created_at.dt.tz_convert("Asia/Tokyo"), outcome_at=frame.outcome_at.dt.tz_convert("America/New_York"))
    naive = frame.assign(created_at=frame.created_at.dt.tz_localize(None), outcome_at=frame.outcome_at.dt.tz_localize(None))
    names = {prepared(ctx, f, name=n)[1].snapshot for n, f in (("utc", frame), ("zones", elsewhere), ("naive", naive))}
    assert len(names) == 1, "the same instants, however they were written; without a zone they are in UTC"
    tokyo = prepared(ctx, frame, start_date="2023-01-02T00:00:00+09:00", end_date="2023-01-02T09:00:00+09:00")[1]
    assert tokyo.span[0] == pd.Timestamp("2023-01-01 18:00", tz="UTC")
    mixed = frame.assign(created_at=[t.tz_convert("Asia/Tokyo") if i % 2 else t.tz_localize(None) for i, t in enumerate(frame.created_at)])
    with pytest.raises(InvalidInput, match="column 'created_at' mixes times with a zone"): prepared(ctx, mixed, name="mixed")


def test_labels_for_no_row(ctx):
    late = Context.open(home=ctx.settings.home, clock=FrozenClock(parse_time("2023-01-03")))
    late.warehouse.write("ads", ads(20), part="all", info=INFO)
    data = DataPreparer("ad_score_predictor", ctx=late).prepare_training_data("2023-01-01", "2023-01-02")
    assert len(data) == 0 and data.set_aside == {"whose outcome has not come yet": 8} and data.enough.reason.startswith("0 matured rows are fewer")
    assert data.label_window == {} and data.usual_gap == ""
    late.close()
    with pytest.raises(InvalidInput, match="no row of dataset 'ads' has a usable 'effectiveness_score': 900 without a target"):
        prepared(ctx, ads().assign(effectiveness_score=np.nan))


def test_a_hundred_thousand_categories_and_hostile_names(ctx):
    n = 100_000
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"account_id": rng.integers(0, 5000, n).astype(str), "created_at": pd.date_range("2023-01-01", periods=n, freq="3min", tz="UTC"),
                          "ad_content.category": [f"c{i}" for i in rng.permutation(n)], 'ad_content."; drop table ads; --': rng.random(n),
                          "ad_content.a.b'c": rng.random(n), "platform": rng.choice(["a", "b"], n), "effectiveness_score": rng.random(n) * 100})
    ctx.warehouse.write("wide", frame, "all", replace(INFO, name="wide", outcome_time=None, category=None))
    preparer = DataPreparer("ad_score_predictor", source="wide", ctx=ctx)
    data = preparer.prepare_training_data("2023-01-01", "2023-12-31", ["ad_content.*", "platform"])
    assert len(data) == n and set(data.features) == {"ad_content.category", 'ad_content."; drop table ads; --', "ad_content.a.b'c", "platform"}
    report = preparer.generate_data_report(*preparer.train_validation_test_split(data))
    assert [leak.feature for leak in report.leaks if not leak.by_design] == ["ad_content.category"] and ctx.warehouse.names() == ["wide"]
    assert 'ad_content."; drop table ads; --' in preparer.prepare_training_data("2023-01-01", "2023-12-31", ['ad_content.";*', "platform"]).features


def test_a_feature_that_arrives_with_the_outcome_is_named(ctx):
    frame = ads(1470)
    known = frame.outcome_at <= pd.Timestamp("2024-01-01", tz="UTC")
    frame["ad_content.refund"] = np.where(known & (frame.index % 3 > 0), 1.0 + frame.index % 5, np.nan)
    frame.loc[frame.index >= 1340, "outcome_at"] = pd.Timestamp("2024-06-01", tz="UTC")       # a hundred and more that wait
    frame.loc[frame.index >= 1340, "ad_content.refund"] = np.nan
    preparer, data = prepared(ctx, frame)
    report = preparer.generate_data_report(*preparer.train_validation_test_split(data))
    late = [leak for leak in report.leaks if leak.kind == "later"]
    assert [leak.feature for leak in late] == ["ad_content.refund"] and "it arrives with the outcome" in report.problems[-1] + " ".join(report.problems)
    assert open_snapshot(ctx, data.snapshot).late == data.late


# --- enough

def accounts(units: int, days: int, start: str = "2022-06-01") -> pd.DataFrame:
    day = pd.date_range(start, periods=days, freq="D", tz="UTC")
    frame = pd.DataFrame({"account_id": np.repeat([f"a{i}" for i in range(units)], days), "day": np.tile(day, units)})
    rng = np.random.default_rng(0)
    drawn = {"spend": rng.random(len(frame)), "platform": rng.choice(["a", "b"], len(frame)), "goes_dark": rng.integers(0, 2, len(frame))}
    return frame.assign(**drawn, outcome_at=frame.day + pd.Timedelta("30D"))


DAILY = DatasetInfo("account_days", "day", "account_id", "goes_dark", None, "outcome_at", split="time")


def test_the_guides_minimums_are_the_policies(ctx):
    asked = {m: ctx.policy(m).minimums for m in ("ad_score_predictor", "account_health_predictor", "ad_sentiment_analyzer")}
    assert asked == {"ad_score_predictor": MinimumPolicy(samples=50_000), "ad_sentiment_analyzer": MinimumPolicy(samples=100_000),
                     "account_health_predictor": MinimumPolicy(samples=10_000, units=10_000, days_per_unit=90, months=12)}
    assert ctx.policy("account_health_predictor").training.window_days >= 395, "twelve months of known labels need thirteen of rows"


@pytest.mark.parametrize(("units", "days", "phase", "sentences"), [
    (40, 300, "failed", ["40 of 40 values of account_id with at least 90 days of history are fewer than the minimum of 10,000 (policy minimums.units)",
                         "9 months of rows are fewer"]),
    (40, 365, "failed", ["40 of 40 values of account_id"]), (40, 60, "failed", ["2,400 matured rows", "0 of 40 values", "1 month of rows"])])
def test_too_few_accounts_too_short_too_little(ctx, units, days, phase, sentences):
    ctx.warehouse.write("account_days", accounts(units, days), "all", DAILY)
    preparer = DataPreparer("account_health_predictor", ctx=ctx)
    data = preparer.prepare_training_data("2022-06-01", "2023-12-31")
    assert data.enough.phase == phase and len(data.enough.reason.split("; ")) == len(sentences)
    assert all(said.startswith(wanted) for said, wanted in zip(data.enough.reason.split("; "), sentences, strict=True)), data.enough.reason
    assert [v["gate"] for v in data.enough.details["minimums"]] == ["data.samples", "data.units", "data.months"]
    assert data.label_window["usual"] == 30 * 86_400 and open_snapshot(ctx, data.snapshot).enough == data.enough
    if days > 200: assert preparer.train_validation_test_split(data)[0].spec["gap"] == "30d"


def test_a_run_declines_with_the_sentence(ctx):
    from within.runs.decisions import prepared_decision
    ctx.warehouse.write("account_days", accounts(40, 400), "all", DAILY)
    preparer = DataPreparer("account_health_predictor", ctx=ctx)
    data = preparer.prepare_training_data("2022-06-01", "2023-12-31")
    decision = prepared_decision(data, preparer.generate_data_report(*preparer.train_validation_test_split(data)), {})
    assert decision.outcome == "failed" and decision.reason.startswith("40 of 40 values of account_id with at least 90 days of history are fewer")


def test_unknown_model_dataset_and_order_of_calls(ctx):
    with pytest.raises(UnknownModel): DataPreparer("ad_score_predicter", ctx=ctx)
    with pytest.raises(StageNotReady): DataPreparer("ad_score_predictor", ctx=ctx).get_feature_columns()
    with pytest.raises(UnknownDataset): DataPreparer("ad_score_predictor", source="nowhere", ctx=ctx).prepare_training_data("2023-01-01", "2023-02-01")
    with pytest.raises(InvalidInput, match="what prepare_training_data returned"):
        DataPreparer("ad_score_predictor", ctx=ctx).train_validation_test_split(ads())


def test_the_target_is_never_a_feature_even_when_asked_for(ctx):
    preparer, _ = prepared(ctx, ads(), include_features=["*"])
    assert not {"effectiveness_score", "performance_category", "created_at", "outcome_at", "account_id"} & set(preparer.get_feature_columns())


def test_leaks_are_hinted_at(ctx):
    frame = ads().assign(**{"ad_content.leak": lambda d: d.effectiveness_score + 0.01})
    preparer, data = prepared(ctx, pd.concat([frame, frame.iloc[:100]]))
    report = preparer.generate_data_report(*preparer.train_validation_test_split(data))
    assert report.duplicate_rows == 100
    assert any("ad_content.leak correlates" in p for p in report.problems) and any("test rows equal a training row" in p for p in report.problems)


def test_tampered_rows_are_not_opened(ctx):
    _, data = prepared(ctx, ads())
    roles = json.loads((data.path.parent / "snapshot.json").read_text())["roles"]
    assert content_digest(data.path, roles) == data.snapshot
    ads(50).rename(columns={"internal_id": "x"}).to_parquet(data.path)
    with pytest.raises(DigestMismatch): open_snapshot(ctx, data.snapshot)
