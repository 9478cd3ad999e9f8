"""Drift: figures that other tools can check, whatever the rows look like."""
import datetime
import json
import math

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from within.drift import Counts, Reference, fit_reference
from within.errors import InvalidInput
from within.stats import quiet_thresholds
from within.verdicts import Phase

def frame(n: int = 4000, seed: int = 0, shift: float = 0.0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame({"normal": rng.normal(shift, 1, n), "count": rng.poisson(3, n), "flag": rng.random(n) < 0.2,
                         "heavy": rng.pareto(0.8, n) * rng.choice([1, -1], n), "holes": np.where(rng.random(n) < 0.3, np.nan, rng.random(n)),
                         "who": rng.choice([f"v{i}" for i in range(60)], n, p=np.arange(60, 0, -1) / 1830)})


@pytest.fixture(scope="module")
def reference(): return fit_reference(frame())


def test_the_figure_is_scipys_on_the_same_bins(reference):
    analysis = reference.compare(frame(seed=1, shift=0.4))
    for f in analysis.features.values():
        assert abs(f.raw - jensenshannon(f.reference, f.current, base=2) ** 2) < 1e-9
        assert abs(f.conversions["evidently"] - jensenshannon(f.reference, f.current)) < 1e-9
        assert abs(f.conversions["nannyml"] - jensenshannon(f.reference, f.current, base=2)) < 1e-9 and f.conversions["tfdv"] == f.raw
        assert 0 <= f.js_divergence <= f.raw <= 1 and f.interval[0] <= f.js_divergence <= f.interval[1]
        assert abs(f.shares()["bits"].sum() - f.raw) < 1e-9
        assert sum(f.reference) == sum(f.current) == 4000 and len(f.labels) == len(f.reference)


def test_bins_agree_with_pandas(reference):
    now, slots = frame(seed=2), reference.slots["normal"]
    counted = reference.compare(now).features["normal"].current
    inside = now.normal[(now.normal >= slots.low) & (now.normal <= slots.high)]
    expected = pd.cut(inside, [-np.inf, *slots.edges, np.inf]).value_counts(sort=False).tolist()
    assert list(counted) == [*expected, len(now) - len(inside), 0]
    assert max(reference.counts["normal"]) <= 1.2 * 4000 / 20


def test_nothing_drifts_between_two_samples_of_one_world(reference):
    analysis = reference.compare(frame(seed=5))
    assert analysis.drifted == [] and analysis.verdict.phase is Phase.PASSED and max(f.js_divergence for f in analysis.features.values()) < 0.01


def test_a_shift_is_found_and_the_reason_has_figure_interval_and_threshold(reference):
    analysis = reference.compare(frame(seed=5, shift=1.4))
    assert analysis.drifted == ["normal"] and analysis.largest.feature == "normal"
    top = analysis.largest
    assert analysis.verdict.phase is Phase.FAILED
    for figure in (top.js_divergence, *top.interval): assert f"{figure:.4f}" in analysis.verdict.reason
    assert "1 of 6" in analysis.verdict.reason and "0.2 bits" in analysis.verdict.reason
    assert reference.compare(frame(seed=5, shift=1.4), threshold=0.5).drifted == []
    json.dumps(analysis.to_dict())
    assert "| normal |" in analysis._repr_markdown_()


@pytest.mark.parametrize("extreme", [1e6, -1e300, math.inf, math.nan])
@pytest.mark.parametrize("where", ["reference", "current"])
def test_one_outlier_hides_no_shift(extreme, where):
    before, after = pd.DataFrame({"x": frame().normal}), pd.DataFrame({"x": frame(seed=1, shift=2).normal})
    (before if where == "reference" else after).loc[7, "x"] = extreme
    assert fit_reference(before).compare(after).features["x"].js_divergence > 0.4


def test_new_and_vanished_values():
    before = pd.DataFrame({"c": ["a"] * 500 + ["b"] * 500, "x": np.arange(1000) % 7, "gone": np.arange(1000.0)})
    after = pd.DataFrame({"c": ["a"] * 300 + ["new"] * 700, "x": np.arange(1000) % 7 + 100, "gone": [None] * 1000}).astype({"gone": float})
    found = fit_reference(before).compare(after).features
    assert found["c"].shares().current.to_dict() == {"a": 0.3, "b": 0.0, "other or unseen": 0.7, "missing": 0.0}
    assert found["x"].shares().current["unseen"] == 1 and found["x"].js_divergence == pytest.approx(1, abs=0.01)
    assert found["gone"].shares().current["missing"] == 1 and found["gone"].drifted


def test_a_column_that_was_all_missing_or_constant():
    before = pd.DataFrame({"empty": np.full(500, np.nan), "same": 5})
    reference = fit_reference(before)
    assert reference.compare(before).drifted == []
    assert set(reference.compare(pd.DataFrame({"empty": np.ones(500), "same": 4})).drifted) == {"empty", "same"}


def test_every_form_of_table_gives_the_same_counts(reference, tmp_path):
    now = frame(seed=3)
    now.to_parquet(tmp_path / "a.parquet")
    (tmp_path / "parts").mkdir()
    for i in range(3): now.iloc[i::3].to_parquet(tmp_path / "parts" / f"{i}.parquet")
    forms = [now, pa.Table.from_pandas(now), tmp_path / "a.parquet", str(tmp_path / "parts"), tmp_path / "parts" / "*.parquet", ibis.memtable(now)]
    assert len({tuple(f.current for f in reference.compare(form).features.values()) for form in forms}) == 1


def test_more_than_the_sample_is_counted_in_full(monkeypatch):
    import within.drift
    monkeypatch.setattr(within.drift.every, "__defaults__", (500,))
    reference = fit_reference(frame(20_000))
    assert sum(reference.counts["normal"]) == 20_000 and 800 <= np.median(reference.counts["normal"][:20]) <= 1200
    assert reference == fit_reference(frame(20_000)), "the same rows make the same reference"


def test_kept_as_json(reference, tmp_path):
    path = reference.save(tmp_path / "drift_reference.json")
    assert Reference.load(path) == reference and path.stat().st_size < 20_000
    for text in ("", "{}", "[1]", '{"protocol": 9, "rows": 1, "slots": {}, "counts": {}}', path.read_text()[:-50]):
        path.write_text(text)
        with pytest.raises(InvalidInput, match="drift reference"): Reference.load(path)


@pytest.mark.parametrize(("change", "message"), [
    (lambda f: f.drop(columns="normal"), "lacks column 'normal'"), (lambda f: f.assign(normal="3.1"), "a changed type is not drift"),
    (lambda f: f.assign(who=3), "a changed type is not drift"), (lambda f: f.assign(flag=pd.Timestamp("2023-01-01")), "drift is measured on")])
def test_broken_tables_are_named(reference, change, message):
    with pytest.raises(InvalidInput, match=message): reference.compare(change(frame()))


def test_truth_values_and_numbers_are_one_kind(reference):
    assert reference.compare(frame(seed=4).astype({"flag": int, "count": float})).drifted == []


@pytest.mark.parametrize("rows", [0, 1, 99])
def test_too_few_rows_cannot_tell(reference, rows):
    analysis = reference.compare(frame()[:rows])
    assert analysis.verdict.phase is Phase.INCONCLUSIVE and "too few" in analysis.verdict.reason and analysis.current_rows == rows
    assert len(analysis.table()) == (6 if rows else 0)


@pytest.mark.parametrize("call", [lambda: fit_reference(frame()[:0]), lambda: fit_reference(frame(), ["nope"]), lambda: fit_reference(frame(), "normal"),
                                  lambda: fit_reference(3),
                                  lambda: fit_reference(frame(), bins=1), lambda: fit_reference("/nowhere.parquet"), lambda: fit_reference(frame()[[]]),
                                  lambda: fit_reference(frame()).compare(frame(), threshold=20),
                                  lambda: fit_reference(pd.DataFrame({"t": pd.to_datetime(["2023-01-01"])}))])
def test_misuse_is_refused(call):
    with pytest.raises(InvalidInput): call()


wild = st.lists(st.one_of(st.none(), st.floats(), st.sampled_from([0.0, -0.0, 1.0])), min_size=1, max_size=60)


@given(wild, wild)
@settings(max_examples=25, deadline=None)
def test_every_row_is_in_one_slot(before, after):
    a, b = (pd.DataFrame({"x": pd.Series(v, dtype="float64")}) for v in (before, after))
    f = fit_reference(a).compare(b).features["x"]
    assert sum(f.reference) == len(a) and sum(f.current) == len(b) and min(*f.reference, *f.current) >= 0
    assert 0 <= f.raw <= 1 and fit_reference(a).compare(a).features["x"].raw == 0


# --- counts that add up ------------------------------------------------------------------------------------------------------------------------------

def test_counts_of_shards_are_the_counts_of_the_whole(reference):
    now = frame(seed=7, shift=0.3)
    shards = [reference.count(now.iloc[i::7]) for i in range(7)]
    whole = reference.count(now)
    assert sum(shards) == whole == sum(reversed(shards)) and whole.rows == 4000
    assert reference.compare(whole).to_dict() == reference.compare(now).to_dict()
    assert Counts.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole


def test_counts_of_two_references_do_not_mix(reference):
    other = fit_reference(frame(seed=9))
    with pytest.raises(InvalidInput, match="do not add up"): reference.count(frame()) + other.count(frame())
    with pytest.raises(InvalidInput, match="counted for reference"): reference.compare(other.count(frame()))
    with pytest.raises(TypeError): reference.count(frame()) + 3


def test_the_digest_survives_the_file(reference, tmp_path):
    assert Reference.load(reference.save(tmp_path / "r.json")).digest == reference.digest != fit_reference(frame(seed=9)).digest


@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
def test_days_are_utc_days_and_add_up(reference, zone):
    now = frame(seed=3).assign(at=pd.date_range("2023-03-01 20:00", periods=4000, freq="2min", tz="UTC"))
    utc = now["at"].dt.date
    now["at"] = now["at"].dt.tz_localize(None) if zone is None else now["at"].dt.tz_convert(zone)
    days = reference.count_days(now, "at")
    assert {d: c.rows for d, c in days.items()} == utc.value_counts().sort_index().to_dict() and list(days) == sorted(days)
    assert all(days[d] == reference.count(now[utc == d]) for d in days) and sum(days.values()) == reference.count(now)


def test_rows_without_a_time_are_in_no_day_and_dates_are_days(reference):
    now = frame(seed=3).assign(at=[datetime.date(2023, 1, 1), None] * 2000)
    assert {d: c.rows for d, c in reference.count_days(now, "at").items()} == {datetime.date(2023, 1, 1): 2000}
    assert reference.count_days(now[:0], "at") == {} and reference.count_days(now.assign(at=pd.NaT), "at") == {}


def test_more_features_than_one_query_holds():
    rng = np.random.default_rng(0)
    wide = pd.DataFrame(rng.normal(size=(600, 120)), columns=[f"f{i}" for i in range(120)]).assign(at=pd.Timestamp("2023-01-01"))
    reference = fit_reference(wide.drop(columns="at"))
    (day, counts), = reference.count_days(wide, "at").items()
    assert counts == reference.count(wide) and counts.counts == reference.counts


@pytest.mark.parametrize("time", ["nowhere", "who", "normal"])
def test_a_time_that_is_none(reference, time):
    with pytest.raises(InvalidInput): reference.count_days(frame(), time)


def test_the_plain_expression_counts_what_duckdbs_own_does(reference, monkeypatch):
    import within.drift
    now, fast = frame(seed=8), reference.count(frame(seed=8))
    monkeypatch.setattr(within.drift, "hits", lambda condition, engine: condition.cast("int32").sum())
    assert reference.count(now) == fast


@pytest.mark.parametrize("dialect", ["postgres", "bigquery", "trino"])
def test_the_same_questions_in_other_dialects(reference, dialect):
    from within.drift import asked_of
    kinds = {"normal": "float64", "count": "int64", "flag": "boolean", "heavy": "float32", "holes": "decimal(12,4)", "who": "string", "at": "timestamp('UTC')"}
    table = ibis.table(kinds, name="rows")
    query = table.group_by(day=table["at"].date()).aggregate(**asked_of(reference.slots, list(reference.slots), table, dialect))
    text = str(ibis.to_sql(query, dialect=dialect))
    assert "COUNT_IF" not in text.upper() and text.upper().count("SUM(") > 60


# --- values equal to an edge, odd types, odd names -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["float64", "float32"])
def test_a_value_on_an_edge_stays_below_it(kind):
    rng = np.random.default_rng(2)
    values = np.sort(rng.random(12) * 10.0 ** rng.integers(-12, 12, 12)).astype(kind)   # few values: every edge is one of them, to the last digit
    column = pd.DataFrame({"x": np.repeat(values, 50)})
    reference = fit_reference(column)
    assert [c for c in reference.counts["x"] if c] == [50] * 12      # an edge may also lie between two values
    assert [c for c in reference.compare(pd.DataFrame({"x": np.repeat(values[:6], 100)})).features["x"].current if c] == [100] * 6


@pytest.mark.parametrize("name", ["a.b", 'quo"te', "it's", "semi;colon", "drop table x; --", "ümläut 语", "_row", "day", "rows", "c0_rows", "{x}", " ",
                                  "a" * 300])
def test_hostile_names(name, tmp_path):
    now = pd.DataFrame({name: np.arange(500.0), "other": ["u", name] * 250, "at": pd.Timestamp("2023-01-01")})
    now.to_parquet(tmp_path / "t.parquet")
    reference = fit_reference(now, [name, "other"])
    assert reference.compare(now).drifted == [] and reference.compare(now.assign(**{name: -1.0})).drifted == [name]
    assert reference.count(tmp_path / "t.parquet") == reference.count(now) == sum(reference.count_days(now, "at").values())
    assert Reference.load(reference.save(tmp_path / "r.json")) == reference
    reference.compare(now)._repr_markdown_()


@pytest.mark.parametrize(("table", "message"), [
    (pd.DataFrame({"A": [1.0], "a": [2.0]}), "differ in case"), (pd.DataFrame({0: [1.0]}), "named by texts"), (pd.DataFrame({"": [1.0]}), "named by texts"),
    (pd.DataFrame({"x": [1, "one", None]}), "several types"), (pd.DataFrame([[1, 2]], columns=["x", "x"]), "named twice"),
    (pd.DataFrame({"x": [[1, 2], [3]]}), "no column can be counted"), (pd.DataFrame({"x": [{"a": 1}, {"a": 2}]}), "no column can be counted"),
    (pd.DataFrame({"x": [1 + 2j]}), "several types|cannot be counted")])
def test_tables_that_are_none(table, message):
    with pytest.raises(InvalidInput, match=message): fit_reference(table)


@pytest.mark.parametrize("values", [[[1, 2]] * 200, [{"a": 1}] * 200, [datetime.time(1)] * 200, [b"x"] * 200])
def test_nested_and_other_columns_are_refused_by_name_and_skipped_otherwise(values):
    now = pd.DataFrame({"x": np.arange(200.0), "odd": values})
    with pytest.raises(InvalidInput, match="'odd' is of type"): fit_reference(now, ["x", "odd"])
    assert list(fit_reference(now).slots) == ["x"] and fit_reference(now).compare(now).appeared == ("odd",)
    reference = fit_reference(now.assign(odd=1.0))
    with pytest.raises(InvalidInput, match="'odd' is of type"): reference.compare(now)


@pytest.mark.parametrize("nothing", [None, np.nan, pd.NA, pd.Series([None] * 4000, dtype="Int64")], ids=str)
def test_a_column_that_is_all_missing_now(reference, nothing):
    f = reference.compare(frame(seed=1).assign(normal=nothing, who=None)).features
    assert f["normal"].current[-1] == f["who"].current[-1] == 4000 and f["normal"].drifted and f["who"].drifted
    with pytest.raises(InvalidInput, match="a changed type"): reference.compare(frame().assign(normal=pd.Series([None] * 4000, dtype="string")))


def test_a_column_that_was_all_missing_takes_any_type():
    reference = fit_reference(frame().assign(later=None))
    for value in (1.5, "text", True, None):
        found = reference.compare(frame(seed=1).assign(later=value)).features["later"]
        assert found.drifted == (value is not None) and sum(found.current) == 4000


def test_a_hundred_thousand_categories():
    rng = np.random.default_rng(4)
    before, after = (pd.DataFrame({"id": [f"user {i}" for i in rng.permutation(200_000)[:100_000]], "x": 1.0}) for _ in range(2))
    reference = fit_reference(before)
    assert len(reference.slots["id"].values) == 30 and reference.compare(after).drifted == []
    shares = reference.compare(after.assign(id="one")).features["id"].shares()
    assert shares.current["other or unseen"] == 1


def test_infinities_are_unseen_and_count_as_rows():
    before = pd.DataFrame({"x": [np.inf] * 50 + list(range(450))})
    reference = fit_reference(before)
    assert reference.slots["x"].high == 449 and reference.counts["x"][-2:] == (50, 0)
    assert reference.compare(pd.DataFrame({"x": [-np.inf] * 500})).features["x"].current[-2] == 500
    nothing = fit_reference(pd.DataFrame({"x": [np.inf, -np.inf, np.nan] * 100}))
    assert nothing.counts["x"] == (0, 200, 100) and nothing.compare(before).features["x"].js_divergence > 0.1


def test_the_same_rows_have_not_moved(reference):
    analysis = reference.compare(frame())
    assert all(f.raw == f.js_divergence == f.interval[0] == 0 and f.interval[1] < 0.01 for f in analysis.features.values()) and analysis.verdict.passed


def test_a_column_that_appeared_is_named_and_not_judged(reference):
    analysis = reference.compare(frame(seed=1).assign(brand_new=1, **{"<b>|x": 2}))
    assert analysis.appeared == ("brand_new", "<b>|x") and "brand_new" not in analysis.features
    assert "brand_new" in analysis._repr_markdown_() and "<b>|" not in analysis._repr_markdown_() and analysis.to_dict()["appeared"] == ["brand_new", "<b>|x"]


def test_long_texts_keep_the_reference_small(tmp_path):
    rng = np.random.default_rng(0)
    texts = pd.DataFrame({"text": [f"{i} " + "word " * 60 for i in range(3000)], "label": rng.choice(["a", "b"], 3000)})
    reference = fit_reference(texts)
    assert reference.slots["text"].values == () and reference.save(tmp_path / "r.json").stat().st_size < 2_000
    assert reference.compare(texts.assign(text="short")).features["text"].js_divergence == 0, "all of it was 'other' and still is"


def test_fifty_features_are_a_small_file(tmp_path):
    rng = np.random.default_rng(0)
    words = [f"a category of some length {j}" for j in range(80)]
    mixed = {f"n{i}": rng.normal(size=5000) * 1e6 for i in range(30)} | {f"c{i}": rng.choice(words, 5000) for i in range(20)}
    path = fit_reference(pd.DataFrame(mixed)).save(tmp_path / "drift_reference.json")
    assert path.stat().st_size <= 200_000 and json.loads(path.read_text())["protocol"] == 1


# --- thresholds ----------------------------------------------------------------------------------------------------------------------------------------

def test_each_feature_may_have_its_own_threshold(reference):
    now = frame(seed=5, shift=0.5)
    analysis = reference.compare(now, threshold={"normal": 0.01, "count": 0.0001})
    assert "normal" in analysis.drifted and analysis.threshold is None and analysis.features["holes"].threshold == 0.2
    assert "their own thresholds" in analysis.verdict.reason and analysis.table().set_index("feature").threshold["normal"] == 0.01
    assert not reference.compare(now).drifted
    for wrong in ({"nobody": 0.1}, {"normal": 2}, {"normal": "much"}, True, None, math.nan):
        with pytest.raises(InvalidInput): reference.compare(now, threshold=wrong)


def test_learned_thresholds_rise_when_the_window_shrinks(reference):
    rng = np.random.default_rng(0)
    history = pd.DataFrame(rng.chisquare(20, (120, 6)) * 2e-4, columns=list(reference.slots))
    learned = quiet_thresholds(history, rows=4000)
    at = [reference.compare(frame(seed=5)[:rows], threshold=learned).features["normal"].threshold for rows in (120, 1000, 4000)]
    assert at[0] > at[1] > at[2] == pytest.approx(learned.thresholds["normal"], abs=0.003)
    with pytest.raises(InvalidInput, match="inconclusive"): reference.compare(frame(), threshold=quiet_thresholds(history[:10]))


@pytest.mark.parametrize("rows", [30, 100, 1000, 10_000])
def test_no_drift_fires_nothing_at_the_default_threshold(rows):
    reference, fired = fit_reference(frame(20_000)), 0
    for seed in range(1, 16): fired += reference.compare(frame(rows, seed=seed)).verdict.phase is Phase.FAILED
    assert fired == 0
