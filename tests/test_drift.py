"""Drift: figures that other tools can check, whatever the rows look like."""
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

from within.drift import Reference, fit_reference
from within.errors import InvalidInput
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
    monkeypatch.setattr(within.drift.sampled, "__defaults__", (500,))
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
