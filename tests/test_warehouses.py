"""The same code over a folder, a bucket behind S3 and a real PostgreSQL: the same rows, the same hash, the same figures."""
from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, variables
from postgresql import needs_postgres

from within.clock import FrozenClock, parse_time
from within.context import Context
from within.data import DataPreparer
from within.drift import fit_reference
from within.errors import InvalidInput, UnknownDataset
from within.minimums import minimums
from within.ml.retraining import RetrainingEvaluator, data_end, matured_rows
from within.policies import MinimumPolicy
from within.settings import Settings
from within.warehouse import DatasetInfo
from within.windows import parse_window

INFO = DatasetInfo("ads", "created_at", "account_id", "effectiveness_score", "performance_category", "outcome_at")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    "The address of a bucket on a loopback S3 server."
    import boto3
    from moto.server import ThreadedMotoServer
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        usual = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
        with variables(**usual, NO_PROXY="127.0.0.1,localhost"):
            boto3.client("s3").create_bucket(Bucket="within-data")
            yield "s3://within-data/team/warehouse"
    finally: server.stop()


@pytest.fixture(params=["folder", "s3", pytest.param("postgresql", marks=needs_postgres)])
def url(request) -> str | None:
    "Where the datasets of a test lie: nothing said, a bucket, a database."
    return {"folder": lambda: None, "s3": lambda: request.getfixturevalue("bucket"), "postgresql": lambda: request.getfixturevalue("postgres")}[request.param]()


@pytest.fixture
def ctx(url, tmp_path) -> Iterator[Context]:
    with opened(url, tmp_path) as made: yield made


@contextlib.contextmanager
def opened(url: str | None, folder: Path, **more) -> Iterator[Context]:
    made = Context.open(home=folder / "home", clock=FrozenClock(parse_time("2024-01-01")), seed=3, **({"warehouse_url": url} if url else {}), **more)
    try:
        for name in made.warehouse.names(): made.warehouse.drop(name)
        yield made
    finally: made.close()


def ads(n: int = 1200, seed: int = 0) -> pd.DataFrame:
    "Nothing is easy about these rows: gaps, infinities, truth values, small numbers, texts that languages sort differently, names that no database likes."
    rng = np.random.default_rng(seed)
    day = pd.date_range("2023-01-01", periods=n, freq="5h", tz="Europe/Berlin").floor("D")     # many rows at one moment
    frame = pd.DataFrame({
        "account_id": rng.choice(["z", "å", "ä", "Z", "a", "A", "zz", "é", "-a", "0", "日本", 'q"u;o\'te', "per%cent (x)"], n), "created_at": day,
        "outcome_at": (day + pd.Timedelta("3D")).tz_convert("UTC"), "ad_content.words": rng.integers(3, 40, n).astype("int8"),
        "ad_content.gaps": np.where(rng.random(n) < 0.2, np.nan, rng.random(n)), "ad_content.wild": np.where(rng.random(n) < 0.1, np.inf, rng.normal(size=n)),
        "ad_content.single": rng.random(n).astype("float32"), "ad_content.shout": rng.random(n) < 0.5,
        'ad_content.a "quoted" name; with %(s) and more': rng.random(n),
        "ad_content." + "very_long_" * 8: rng.random(n), "ad_content.empty": np.nan, "historical_metrics.big": rng.integers(0, 2**53, n),
        "historical_metrics.word": pd.Categorical(rng.choice(["Ö", "o", "P"], n)), "platform": rng.choice(["facebook", None], n), "target_audience": "all"})
    frame["effectiveness_score"] = np.clip(frame["ad_content.words"] + rng.normal(20, 30, n), 0, 100)
    frame.loc[5, "effectiveness_score"] = np.nan
    return frame.assign(performance_category=np.where(frame.effectiveness_score > 40, "high", "low"), created_at=frame.created_at.dt.tz_convert("UTC"))


EXPECTED: dict[str, object] = {}    # what the first place said; the others must say the same


def same(what: str, found: object) -> None:
    assert EXPECTED.setdefault(what, found) == found, what


def rounded(found: object) -> object:
    "Figures to nine digits: engines interpolate quantiles in their own order."
    if isinstance(found, dict): return {k: rounded(v) for k, v in found.items()}
    if isinstance(found, (list, tuple)): return [rounded(v) for v in found]
    return float(f"{found:.9g}") if isinstance(found, float) else found


def test_the_guides_block_says_the_same_everywhere(ctx, url):
    frame = ads()
    for i in range(3): ctx.warehouse.write("ads", frame.iloc[i::3], f"part-{i}", INFO if i == 0 else None)
    assert ctx.warehouse.names() == ["ads"] and ctx.warehouse.parts("ads") == ["part-0", "part-1", "part-2"] and ctx.warehouse.info("ads") == INFO

    preparer = DataPreparer("ad_score_predictor", ctx=ctx)
    data = preparer.prepare_training_data("2023-01-01", "2023-12-31", ["ad_content.*", "historical_metrics.*", "platform", "target_audience"], ["internal_id"])
    same("snapshot", data.snapshot)
    same("about", json.loads(json.dumps(data.to_dict())))
    assert data.label_window == {"usual": 259_200, "longest": 259_200} and data.dropped == {"ad_content.empty": "all missing", "target_audience": "constant"}

    for arguments in ({"stratify_by": "performance_category"}, {"by": "time"}, {"by": "unit"}, {"by": "unit_time", "gap": "1d"}):
        parts = preparer.train_validation_test_split(data, 0.15, 0.15, **arguments)
        same(f"split {arguments}", [p.row_ids.tolist() for p in parts])
        report = preparer.generate_data_report(*parts)
        assert all(v.passed for v in report.proofs), report.findings()
        same(f"report {arguments}", report.to_dict())

    table = ctx.warehouse.table("ads")
    before = table.created_at < parse_time("2023-04-01")
    reference = fit_reference(table.filter(before), columns=list(data.features))
    same("reference", rounded(reference.to_dict()))
    same("drift", rounded(reference.compare(table.filter(~before)).to_dict()))


def test_what_retraining_asks_of_a_table(ctx):
    ctx.warehouse.write("ads", ads(), "all", INFO)
    window = parse_window("2023-02-01_to_2023-06-30", ctx.now())
    assert data_end(ctx, "ads") == parse_time("2023-09-06T22:00:01")
    rows = matured_rows(ctx, "ads", "effectiveness_score", window, most=300)
    assert 200 <= len(rows) <= 300
    same("matured", sorted(map(str, matured_rows(ctx, "ads", "effectiveness_score", window)["historical_metrics.big"])))
    evaluator = RetrainingEvaluator("ad_score_predictor", ctx=ctx)
    analysis = evaluator.analyze_drift("2023-01-01_to_2023-03-31", "2023-06-01_to_2023-08-31")
    same("evaluated drift", rounded(analysis.to_dict()))
    same("evaluated volume", evaluator.analyze_volume().to_dict())


def test_minimums_of_units_and_months(ctx):
    ctx.warehouse.write("ads", ads(), "all", INFO)
    roles = replace(INFO, name="ads")
    table = ctx.warehouse.table("ads")
    verdict = minimums(table, type("R", (), {"unit": roles.unit, "time": roles.time}), 1200, MinimumPolicy(samples=100, units=13, days_per_unit=200, months=9))
    assert not verdict.passed and verdict.reason == "8 months of rows are fewer than the minimum of 9 (policy minimums.months)"
    same("minimums", verdict.to_dict())


def test_parts_come_go_and_widen(ctx):
    frame = ads(60)
    ctx.warehouse.write("ads", frame[["created_at", "account_id", "ad_content.words"]], "a", replace(INFO, outcome_time=None, target=None, category=None))
    ctx.warehouse.write("ads", frame[["created_at", "account_id"]].assign(**{"ad_content.words": 1.5, "new": "x"}), "b")
    table = ctx.warehouse.raw("ads").to_pandas()
    assert len(table) == 120 and table["new"].notna().sum() == 60 and sorted(set(table["ad_content.words"]) - set(range(99))) == [1.5]
    ctx.warehouse.write("ads", frame.iloc[:5][["created_at", "account_id"]], "b")
    assert len(ctx.warehouse.raw("ads").to_pandas()) == 65 and ctx.warehouse.parts("ads") == ["a", "b"]
    ctx.warehouse.drop("ads")
    assert ctx.warehouse.names() == []
    with pytest.raises(UnknownDataset): ctx.warehouse.raw("ads")
    ctx.warehouse.write("ads", frame[["created_at", "account_id"]], "again", replace(INFO, outcome_time=None, target=None, category=None))
    assert ctx.warehouse.parts("ads") == ["again"] and len(ctx.warehouse.raw("ads").to_pandas()) == 60


def test_a_part_without_a_description_is_not_a_dataset(ctx):
    ctx.warehouse.add("ads", ads(30), "january")
    assert ctx.warehouse.names() == []
    with pytest.raises(UnknownDataset): ctx.warehouse.table("ads")
    ctx.warehouse.write("ads", ads(30, seed=1), "february", INFO)
    assert len(ctx.warehouse.raw("ads").to_pandas()) == 60


@pytest.mark.parametrize(("column", "values", "message"), [
    ("ad_content.words", "twelve", "'ad_content.words' is a number in part 'a' and a text in part 'b'"),
    ("ad_content.shout", 1, "'ad_content.shout' is a truth value in part 'a' and a number"),
    ("created_at", pd.Timestamp("2023-01-01"), "'created_at' is a time in part 'a' and a time without a zone")])
def test_a_column_that_changed_its_type_is_named(ctx, column, values, message):
    ctx.warehouse.write("ads", ads(40), "a", INFO)
    with pytest.raises(InvalidInput, match=message): ctx.warehouse.write("ads", ads(40).assign(**{column: values}), "b")
    assert len(ctx.warehouse.raw("ads").to_pandas()) == 40, "nothing of the refused part is there"
    ctx.warehouse.write("ads", ads(40).assign(**{"ad_content.words": None}), "b")
    assert len(ctx.warehouse.raw("ads").to_pandas()) == 80, "a column without values fits everything"


@pytest.mark.parametrize(("frame", "message"), [
    (pd.DataFrame({"a": [1], "A": [2]}), "differ by capital letters"), (pd.DataFrame({"a": [1, "x"]}), "column a"), (pd.DataFrame({" ": [1]}), "has no name"),
    ({"a": [1]}, "not a dict"), (pd.DataFrame([[1, 2]], columns=["a", "a"]), "a")])
def test_rows_that_are_no_table(ctx, frame, message):
    with pytest.raises(InvalidInput, match=message): ctx.warehouse.write("ads", frame, "a", INFO)
    with pytest.raises(InvalidInput, match="cannot name a part"): ctx.warehouse.write("ads", ads(5), "../x", INFO)
    assert ctx.warehouse.names() == []


# --- what only one of them can get wrong

@needs_postgres
def test_what_postgresql_cannot_keep_is_an_error(postgres, tmp_path):
    with opened(postgres, tmp_path) as ctx:
        with pytest.raises(InvalidInput, match="cannot be kept"): ctx.warehouse.write("ads", ads(30).assign(account_id="zero\x00byte"), "a", INFO)
        huge = pd.DataFrame({"a": np.array([2**64 - 1], "uint64")})
        with pytest.raises(InvalidInput, match="cannot be kept in PostgreSQL"): ctx.warehouse.write("ads", huge, "a", INFO)
        with pytest.raises(InvalidInput, match="too long"): ctx.warehouse.add("a" * 60, ads(5), "a")
        assert ctx.warehouse.names() == []
        ctx.warehouse.write("ads", ads(30), "a", INFO)
        assert len(ctx.warehouse.raw("ads").to_pandas()) == 30, "the connection has survived all that"


def test_nobody_answers(tmp_path):
    with pytest.raises(InvalidInput, match="127.0.0.1:1/db does not answer") as said, opened("postgresql://me:secret@127.0.0.1:1/db", tmp_path): pass
    assert "secret" not in str(said.value)


@pytest.mark.parametrize("bad", ["mysql://me@host/db", "s3://", "ftp://x/y", "relative/folder", "postgresql"])
def test_addresses_that_cannot_be_meant(bad, tmp_path):
    with pytest.raises(InvalidInput, match=r"write s3://bucket/prefix"), opened(bad, tmp_path): pass


def test_the_variable_says_where(tmp_path, monkeypatch):
    monkeypatch.setenv("WITHIN_WAREHOUSE_URL", str(tmp_path / "elsewhere"))
    with opened(None, tmp_path) as ctx:
        ctx.warehouse.write("ads", ads(20), "a", INFO)
        assert (tmp_path / "elsewhere" / "ads" / "a.parquet").is_file() and "elsewhere" not in repr(ctx.settings)
    assert Settings.from_env(home=tmp_path / "h", warehouse_url="memory://a/b").warehouse_url == "memory://a/b"


@needs_postgres
def test_the_store_runs_there_too(postgres, tmp_path):
    from within import ledger
    with opened(postgres, tmp_path, database_url=postgres.replace("postgresql://", "postgresql+psycopg://")) as ctx:
        ctx.warehouse.write("ads", ads(), "all", INFO)
        data = DataPreparer("ad_score_predictor", ctx=ctx).prepare_training_data(window="last_30_days", start_date=None)
        assert len(data) == 0 and not data.enough.passed
        assert ledger.verify(ctx).ok and ctx.now() - timedelta(days=1) < ctx.now()
    assert not (tmp_path / "home" / "within.db").exists()


def test_continuous_integration_brings_the_server():
    assert "postgresql" in (ROOT / ".ci" / "run").read_text()
