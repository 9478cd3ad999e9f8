"""What knows the answer too early: how often clean tables are accused, and that a planted leak never gets by."""
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from within.errors import InvalidInput
from within.leakage import filled_later, leaking_features, leaking_rows

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
real = pytest.mark.skipif(not (DATA / "bank_marketing").is_dir(), reason="no ../shared/data here")


def clean(n: int, seed: int, kind: str) -> tuple[pd.DataFrame, pd.Series]:
    "A table in order of time whose features together explain something, none of them most of it, and what lies behind its target `y`."
    rng = np.random.default_rng([seed, n, len(kind)])
    x = pd.DataFrame({f"x{i}": rng.normal(size=n) for i in range(6)})
    x["skewed"], x["trend"], x["count"] = rng.lognormal(0, 2, n), np.arange(n) / n + rng.normal(0, 0.05, n), rng.poisson(3, n)
    x["city"], x["many"] = rng.choice(list("abcdefgh"), n), rng.integers(0, n // 3, n).astype(str)
    signal = x[[f"x{i}" for i in range(6)]].sum(axis=1) + 0.3 * np.log(x.skewed) + 2 * x.trend + (x.city == "a")
    x.loc[rng.random(n) < 0.2, "x3"] = np.nan
    behind = signal + rng.normal(0, 2, n)
    classes = pd.qcut(behind, 3, labels=["low", "medium", "high"]).astype(str)
    y = {"number": behind, "tails": np.sinh(behind), "classes": classes, "rare": behind > behind.quantile(0.9)}
    return x.assign(y=y[kind]), behind.rank(pct=True)


KINDS, HIGH = ("number", "tails", "classes", "rare"), {"number": 1 / 2, "tails": 1 / 2, "classes": 2 / 3, "rare": 0.9}

LEAKS = {   # from the rank of what lies behind the target, 0..1, and where it counts as high
    "the answer with noise": lambda r, high, rng: r + rng.normal(0, 0.12, len(r)),
    "its square root": lambda r, high, rng: np.sqrt(r),
    "a bin of it as a word": lambda r, high, rng: pd.cut(r + rng.normal(0, 0.05, len(r)), 10, labels=list("abcdefghij")).astype(str),
    "filled only where it is high": lambda r, high, rng: pd.Series(rng.normal(size=len(r))).where(r > high),
    "an order of magnitude of it": lambda r, high, rng: np.exp(r * 9 + rng.normal(0, 0.8, len(r)))}


@pytest.mark.parametrize("n", [120, 1_000, 6_000])
def test_clean_tables_are_not_accused(n):
    tables = [(kind, seed) for kind in KINDS for seed in range(25 if n < 6000 else 5)]
    assert [(at, *map(str, leaks)) for at in tables if (leaks := leaking_features(clean(n, at[1], at[0])[0], "y"))] == []


@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.parametrize(("n", "seeds"), [(400, 3), (3_000, 1)])
def test_planted_leaks_are_always_named(leak, n, seeds):
    for kind in KINDS:
        for seed in range(seeds):
            table, rank = clean(n, seed, kind)
            planted = LEAKS[leak](rank, HIGH[kind], np.random.default_rng(seed))
            named = [found.feature for found in leaking_features(table.assign(planted=planted), "y")]
            assert named == ["planted"], (kind, seed)


def test_two_copies_of_a_leak_do_not_hide_each_other():
    table, _ = clean(2_000, 1, "number")
    leak = table.y + np.random.default_rng(0).normal(0, 1.5, len(table))
    named = {found.feature for found in leaking_features(table.assign(a=leak, b=leak * 2 + 0.01 * table.x0), "y")}
    assert named == {"a", "b"}


@real
@pytest.mark.parametrize("name", ["bank_additional_full", "bank_full"])
def test_the_length_of_the_call_is_the_banks_leak(name):
    table = pd.read_parquet(DATA / "bank_marketing" / f"{name}.parquet")
    found = leaking_features(table, "y")
    assert [leak.feature for leak in found] == ["duration"] and found[0].kind == "target" and found[0].figure > 0.8
    assert "AUC 0.8" in found[0].reason and "suspicious from 0.75" in found[0].reason
    assert [leak.feature for leak in leaking_features(table.sample(frac=1, random_state=0), "y")] == ["duration"], "also when the order is lost"
    assert leaking_features(table.drop(columns="duration"), "y") == () == leaking_features(table, "y", vouched=["duration"])


@real
@pytest.mark.parametrize(("file", "target", "named"), [
    ("hillstrom_email/hillstrom_email", "visit", []), ("drift_insects_gradual/insects_gradual_balanced", "class", []),
    ("online_ad_performance/online_ad_performance", "clicks", ["revenue"]),
    ("facebook_kag_conversion/facebook_kag_conversion", "Approved_Conversion", ["ad_id"])])
def test_other_real_tables(file, target, named):
    table = pd.read_parquet(DATA / f"{file}.parquet")
    table = table.drop(columns=["conversion", "spend"], errors="ignore")          # of the mailing: what came after the visit
    assert [leak.feature for leak in leaking_features(table, target)] == named


def test_the_ad_world_has_none():
    from within.simulation.ads import ads_month
    table = pd.concat([ads_month(m, 2_000, 0, False) for m in ("2023-01", "2023-02")])
    features = [c for c in table if "." in c] + ["platform", "industry", "target_audience"]
    assert leaking_features(table, "effectiveness_score", features, time="created_at") == ()


# --- identifiers and what is known only later

def test_identifiers_are_told_from_amounts_and_texts():
    rng, n = np.random.default_rng(0), 1_000
    table = pd.DataFrame({"y": rng.normal(size=n), "row": np.arange(n), "account.id": rng.integers(0, 10**12, n), "user": [f"u{i}" for i in range(n)],
                          "spend_cents": rng.integers(0, 10**7, n), "headline": [f"the {i} best shoes of {i % 7} cities" for i in range(n)],
                          "postcode": rng.integers(10_000, 99_999, n).astype(str), "price": rng.random(n)})
    assert {leak.feature: leak.kind for leak in leaking_features(table, "y")} == {k: "identifier" for k in ("row", "account.id", "user", "postcode")}
    assert leaking_features(table.iloc[:90], "y") == (), "of fewer than a hundred rows nothing is said"


@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Tokyo"])
def test_moments_after_the_row_are_late(zone):
    at = pd.Series(pd.date_range("2023-01-01", periods=300, freq="h"), name="at")
    paid = at.dt.tz_localize("UTC") + pd.Timedelta("2h")
    table = pd.DataFrame({"at": at, "y": np.arange(300.0) % 7, "paid": paid if zone is None else paid.dt.tz_convert(zone), "known": at - pd.Timedelta("1D"),
                          "as_text": (at + pd.Timedelta("3D")).dt.strftime("%Y-%m-%dT%H:%M")})
    found = leaking_features(table, "y", time="at")
    assert {leak.feature: leak.kind for leak in found} == {"paid": "later", "as_text": "later"} and "in 100% of the rows" in found[0].reason


def test_what_arrives_with_the_outcome():
    assert [leak.feature for leak in filled_later({"refund": (300, 1000), "clicks": (990, 1000)}, {"refund": (0, 400), "clicks": (350, 400)})] == ["refund"]
    assert filled_later({"refund": (300, 1000)}, {"refund": (0, 50)}) == [] == filled_later({"rare": (30, 1000)}, {"rare": (0, 400)})


# --- rows

def sides(n: int = 900, seed: int = 0) -> tuple[pd.DataFrame, dict]:
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"x": rng.random(n), "platform": rng.choice(["a", "b"], n), "y": rng.random(n), "at": pd.date_range("2023-01-01", periods=n, freq="h"),
                          "who": np.repeat(np.arange(n // 9), 9)})
    return table, {"features": ["x", "platform"], "target": "y", "time": "at", "unit": "who"}


def test_a_split_by_time_and_unit_has_no_findings():
    table, roles = sides()
    parts = {"train": table.iloc[:540], "validation": table.iloc[540:720], "test": table.iloc[720:]}
    assert leaking_rows(parts, **roles, by="unit_time") == ()


def test_copies_days_and_units_are_found():
    table, roles = sides()
    parts = {"train": table.iloc[:600], "validation": table.iloc[590:700], "test": table.iloc[700:]}
    found = {leak.kind: leak for leak in leaking_rows(parts, **roles, by="unit_time")}
    assert set(found) == {"duplicates", "dates", "units"} and not any(leak.by_design for leak in found.values())
    assert found["duplicates"].figure == 10 and "10 of 110 validation rows equal a training row" in str(found["duplicates"])
    assert found["dates"].figure == 10 and found["units"].figure == 3
    assert [leak.kind for leak in leaking_rows(parts, **roles, by="random") if not leak.by_design] == ["duplicates"]


def test_a_table_that_repeats_by_nature_is_not_accused():
    table, roles = sides()
    few = roles | {"features": ["platform"]}
    assert [leak.kind for leak in leaking_rows({"train": table.iloc[:600], "test": table.iloc[600:]}, **few, by="unit_time")] == ["units"]
    copied = pd.concat([table.iloc[600:], table.iloc[:5]])
    assert "equal a training row in all 4 columns" in str(leaking_rows({"train": table.iloc[:600], "test": copied}, **few)[0])


# --- bad input

def test_hostile_columns_do_no_harm():
    rng, n = np.random.default_rng(0), 600
    wild = np.where(rng.random(n) < 0.1, np.inf, rng.normal(size=n))
    table = pd.DataFrame({'a "quoted"; drop': rng.normal(size=n), "with.dots": wild, "nothing": [None] * n,
                          "nan": np.nan, "constant": 1, "bool": rng.random(n) < 0.5, "categories": [f"c{i}" for i in range(n)], "y": rng.normal(size=n)})
    table["category"] = pd.Categorical(rng.choice(["u", "v"], n))
    assert [leak.feature for leak in leaking_features(table, "y")] == ["categories"]
    json.dumps([leak.to_dict() for leak in leaking_features(table, "y")])
    assert leaking_features(pa.Table.from_pandas(table), "y")[0].feature == "categories"


@pytest.mark.parametrize("y", [[1.0] * 200, [None] * 200, [np.nan] * 200, [np.inf] * 199 + [1.0], []])
def test_targets_that_say_nothing(y):
    assert leaking_features(pd.DataFrame({"x": np.arange(len(y)) * 0.5, "y": pd.Series(y, dtype=float)}), "y") == ()


@pytest.mark.parametrize(("given", "message"), [
    (dict(target="why"), "unknown column 'why'"), (dict(target="y", features=["z"]), "unknown column 'z'"),
    (dict(target="y", features="x"), "is a list of names"), (dict(target="y", time="when"), "unknown column 'when'"),
    (dict(target="y", vouched=["z"]), "unknown column 'z'")])
def test_wrong_names_are_errors(given, message):
    with pytest.raises(InvalidInput, match=message): leaking_features(pd.DataFrame({"x": [1.0, 2.0], "y": [1.0, 2.0]}), **given)


def test_wrong_tables_are_errors():
    twice = pd.DataFrame([[1, 2, 3]], columns=["x", "x", "y"])
    with pytest.raises(InvalidInput, match="named twice"): leaking_features(twice, "y")
    with pytest.raises(InvalidInput, match="not a list"): leaking_features([1, 2], "y")
