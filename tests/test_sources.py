"""Sources: anyone's table in, nothing dropped, nothing evaluated, nothing leaked."""
import fcntl
import subprocess
import sys
from pathlib import Path

import ibis
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from within.clock import FrozenClock, parse_time
from within.context import Context
from within.data import DataPreparer
from within.errors import ConfigError, Conflict, InvalidInput
from within.expressions import FUNCTIONS, bind, parse
from within.sources import ingest, load_source
from within.warehouse import DatasetInfo

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
SHOP = """source: shop
format: csv
columns:
  account_id: customer
  created_at: day(at)
  ad_content.words: word_count(strip_html(title))
  ad_content.title: title
  historical_metrics.rate_before: previous_rate(clicks, views, order=day(at))
  effectiveness_score: 100 * clicks / views
rules:
  was_shown: views > 0
  honest: clicks <= views
constants:
  platform: shop
"""


@pytest.fixture
def ctx(tmp_path):
    made = Context.open(home=tmp_path / "home", clock=FrozenClock(parse_time("2024-01-01")))
    yield made
    made.close()


def shop(n: int = 40) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    views = rng.integers(1, 50, n)
    return pd.DataFrame({"customer": [f"c{i}" for i in range(n)], "at": pd.date_range("2023-01-01", periods=n).strftime("%Y-%m-%d"), "title": "a <b>b</b> c",
                         "clicks": rng.binomial(views, 0.3), "views": views})


def files(tmp_path: Path, frame: pd.DataFrame, text: str = SHOP) -> tuple[Path, Path]:
    (tmp_path / "shop.yml").write_text(text)
    frame.to_csv(tmp_path / "shop.csv", index=False)
    return tmp_path / "shop.yml", tmp_path / "shop.csv"


# --- the real ones

@pytest.mark.skipif(not (DATA / "upworthy_exploratory").exists(), reason="the Upworthy data is not beside the project")
def test_upworthy(ctx):
    paths = sorted((DATA / "upworthy_exploratory").glob("*.parquet"))
    result = ingest(ROOT / "configs/sources/upworthy.yml", paths, ctx)
    assert result.accepted + result.quarantined == result.read == 22_666 and result.rules == {"test_has_clicks": 4}
    rows, raw = ctx.warehouse.table("upworthy").execute(), pd.concat(map(pd.read_parquet, paths))
    assert rows.effectiveness_score.between(0, 100).all() and rows.account_id.nunique() == raw.clickability_test_id.nunique() - 1
    assert (rows.outcome_at - rows.created_at).eq(pd.Timedelta("7D")).all() and rows.platform.eq("upworthy").all()
    means = rows.groupby("account_id").effectiveness_score.mean()
    assert means.between(35, 65).all(), "50 is the test's own average"
    history = rows.set_index("ad_id")["historical_metrics.ctr_last_4_weeks"]
    assert history[rows.ad_id[rows.created_at == rows.created_at.min()]].isna().all()
    week = pd.Timestamp("2014-06-02", tz="UTC")
    start = pd.to_datetime(raw.test_week.map(lambda w: f"{w}-1"), format="%Y%W-%w", utc=True).where(raw.test_week % 100 > 0)
    before = raw[(start < week) & (start >= week - pd.Timedelta("28D"))]
    assert rows.loc[rows.created_at == week, "historical_metrics.ctr_last_4_weeks"].unique() == pytest.approx(before.clicks.sum() / before.impressions.sum())
    preparer = DataPreparer("ad_score_predictor", source="upworthy", ctx=ctx)
    data = preparer.prepare_training_data("2013-01-01", "2015-12-31")
    assert "22,662 matured rows are fewer than the minimum of 50,000" in data.enough.reason and set(data.dropped) == {"platform", "target_audience"}
    train, _, test = preparer.train_validation_test_split(data, stratify_by="performance_category")
    assert train["created_at"].max() < test["created_at"].min()


@pytest.mark.skipif(not (DATA / "upworthy_exploratory").exists(), reason="the Upworthy data is not beside the project")
def test_later_weeks_never_reach_the_history_of_earlier_ones(ctx, tmp_path):
    raw = pd.read_parquet(next((DATA / "upworthy_exploratory").glob("*.parquet"))).query("201401 <= test_week <= 201420").reset_index(drop=True)
    changed = raw.assign(clicks=raw.clicks.where(raw.test_week < 201410, raw.impressions // 3))
    tables = []
    for name, frame in (("a", raw), ("b", changed)):
        frame.to_parquet(tmp_path / f"{name}.parquet")
        ingest(ROOT / "configs/sources/upworthy.yml", tmp_path / f"{name}.parquet", ctx)
        tables.append(ctx.warehouse.table("upworthy").execute().set_index("ad_id"))
    first, second = (t.loc[tables[0].index] for t in tables)
    features = [c for c in first if c.startswith(("ad_content.", "historical_metrics."))]
    early = first.index[first.created_at <= pd.Timestamp("2014-03-10", tz="UTC")]           # week 201410 itself included
    pd.testing.assert_frame_equal(first.loc[early, features], second.loc[early, features])
    late = first.index[first.created_at > pd.Timestamp("2014-03-17", tz="UTC")]
    assert (first.loc[late, "historical_metrics.ctr_last_4_weeks"] != second.loc[late, "historical_metrics.ctr_last_4_weeks"]).all()
    content = [c for c in features if c.startswith("ad_content.")]
    pd.testing.assert_frame_equal(first[content], second[content])


@pytest.mark.skipif(not (DATA / "hillstrom_email").exists(), reason="the Hillstrom data is not beside the project")
def test_hillstrom(ctx):
    result = ingest("hillstrom", DATA / "hillstrom_email", ctx)
    assert (result.accepted, result.quarantined, result.rules) == (64_000, 0, {})
    data = DataPreparer("ad_score_predictor", source="hillstrom", ctx=ctx).prepare_training_data("2008-03-01", "2008-03-31")
    assert data.enough.passed and data.dropped == {} and len(data.features) == 9
    assert set(data["effectiveness_score"].unique()) == {0, 100} and data["effectiveness_score"].mean() == pytest.approx(14.678125)
    rates = data[["ad_content.segment", "effectiveness_score"]].groupby("ad_content.segment").effectiveness_score.mean().round(1)
    assert rates.to_dict() == {"Mens E-Mail": 18.3, "No E-Mail": 10.6, "Womens E-Mail": 15.1}


# --- nothing is dropped silently

bad_rows = st.lists(st.sampled_from(["fine", "no views", "too many clicks", "no date", "no customer", "strange date"]), min_size=3, max_size=25)


@given(bad_rows)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_accepted_and_quarantined_are_what_was_read(ctx, tmp_path, kinds):
    frame = shop(len(kinds) + 1).astype({"customer": object})
    for i, kind in enumerate(kinds):
        if kind == "no views": frame.loc[i, ["views", "clicks"]] = 0
        if kind == "too many clicks": frame.loc[i, "clicks"] = frame.loc[i, "views"] + 1
        if kind == "no date": frame.loc[i, "at"] = None
        if kind == "strange date": frame.loc[i, "at"] = "2023-02-31"
        if kind == "no customer": frame.loc[i, "customer"] = None
    result = ingest(*files(tmp_path, frame), ctx)
    assert result.accepted + result.quarantined == result.read == len(frame) and sum(result.rules.values()) == result.quarantined
    assert result.accepted == kinds.count("fine") + 1 == len(ctx.warehouse.table("shop").execute())
    quarantine = ctx.warehouse.table("shop_quarantine").execute()
    names = {"no views": "was_shown", "too many clicks": "honest", "no customer": "account_id: present"}
    names |= dict.fromkeys(("no date", "strange date"), "created_at: present")
    assert quarantine.set_index("quarantine_row").quarantine_rule.to_dict() == {i + 1: names[k] for i, k in enumerate(kinds) if k != "fine"}


def test_again_is_not_twice_and_a_failed_ingest_changes_nothing(ctx, tmp_path):
    policy, table = files(tmp_path, shop())
    first = ingest(policy, table, ctx)
    before = ctx.warehouse.table("shop").execute()
    assert ingest(policy, [table, table], ctx) == first
    shop().assign(views=0).to_csv(table, index=False)
    with pytest.raises(InvalidInput, match="no row of 40 is good: {'was_shown': 40}; nothing was written"): ingest(policy, table, ctx)
    table.write_bytes(b"\x00\xff not a table")
    with pytest.raises(InvalidInput): ingest(policy, table, ctx)
    pd.testing.assert_frame_equal(ctx.warehouse.table("shop").execute(), before)
    assert [p.name for p in ctx.path("warehouse").iterdir() if p.name.startswith(".ingest-")] == []


def test_text_is_data(ctx, tmp_path):
    frame = shop(4).assign(title=["<script>alert('x')</script>", "tab\there\x07 bell", "'; DROP TABLE shop; --", "é 日本 \U0001f600"])
    ingest(*files(tmp_path, frame), ctx)
    assert ctx.warehouse.table("shop").execute()["ad_content.title"].tolist() == frame.title.tolist()


def test_only_one_ingest_of_a_source(ctx, tmp_path):
    policy, table = files(tmp_path, shop())
    ingest(policy, table, ctx)
    lock = ctx.path("warehouse") / ".shop.lock"
    code = f"import fcntl,sys; f=open({str(lock)!r},'a'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Conflict, match="being ingested by another process"): ingest(policy, table, ctx)
    finally: holder.communicate("")
    assert ingest(policy, table, ctx).accepted == 40
    with open(lock, "a") as file: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_source_does_not_take_another_datasets_name(ctx, tmp_path):
    ctx.warehouse.write("shop", shop(), part="x", info=DatasetInfo(name="shop", time="at", unit="customer"))
    with pytest.raises(Conflict, match="does not come from this source"): ingest(*files(tmp_path, shop()), ctx)


def test_duplicates_of_a_unique_column(ctx, tmp_path):
    frame = pd.concat([shop(5), shop(5)])
    result = ingest(*files(tmp_path, frame, SHOP + "unique: [account_id]\n"), ctx)
    assert (result.accepted, result.rules) == (5, {"unique: account_id": 5})


# --- the file

@pytest.mark.parametrize(("old", "new", "line", "message"), [
    ("constants:", "constant:", 13, "unknown key 'constant'; did you mean 'constants'"), ("format: csv", "format: xlsx", 2, "'parquet' or 'csv'"),
    ("views > 0", "veiws > 0", 11, "unknown column 'veiws'; did you mean 'views'"),
    ("word_count(strip_html(title))", "word_count(clicks)", 6, "cannot be computed"),
    ("previous_rate(clicks, views, order=day(at))", "previous_rate(clicks, views)", 8, "missing a required argument: 'order'"),
    ("views > 0", "views + 1", 11, "is not true or false"),
    ("  account_id: customer\n", "", 3, "unknown column for unit 'account_id'"), ("account_id: customer", "Account: customer", 4, "pattern"),
    ("platform: shop", "created_at: '2023-01-01'", 14, "defined twice"), ("source: shop", "source: ../shop", 1, "pattern"),
    ("100 * clicks / views", "100 * clicks / 0", 9, "division by zero"), ("customer\n", "''\n", 4, "an expression is a text")])
def test_mistakes_are_placed(ctx, tmp_path, old, new, line, message):
    policy, table = files(tmp_path, shop(), SHOP.replace(old, new, 1))
    with pytest.raises(ConfigError) as found: ingest(policy, table, ctx)
    assert message in str(found.value) and f"shop.yml:{line}" in str(found.value), str(found.value)


def test_unknown_source_and_missing_files(ctx, tmp_path):
    with pytest.raises(InvalidInput, match="did you mean 'upworthy'"): ingest("upworthi", tmp_path, ctx)
    with pytest.raises(ConfigError, match="no such file"): ingest(tmp_path / "none.yml", tmp_path, ctx)
    with pytest.raises(InvalidInput, match="no such file"): ingest(files(tmp_path, shop())[0], tmp_path / "none.csv", ctx)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="no .csv file"): ingest(tmp_path / "shop.yml", tmp_path / "empty", ctx)


def test_the_shipped_sources_are_sound():
    for path in (ROOT / "configs" / "sources").glob("*.yml"): assert load_source(path).source == path.stem


# --- expressions

HOSTILE = ["__import__('os')", "().__class__.__bases__", "a.b", "a[0]", "lambda: 0", "[i for i in a]", "{1: 2}", "f'{a}'", "a ** 9", "a // 2", "a % 2",
           "a << 99", "a if b else c", "(a := 3)",
           "print(a)", "eval('1')", "word_count", "length(**a)", "length(*a)", "b'bytes'", "1j", "...", "None", "a; b",
           "a\nb", "yield a", "await a", "1e400", "9" * 400, "(" * 500, "-" * 3000 + "1", "a" * 5000, "", " "]


@pytest.mark.parametrize("source", HOSTILE, ids=lambda s: s[:20])
def test_hostile_expressions_are_refused(source):
    table = ibis.memtable(pd.DataFrame({"a": [1], "b": [True]}))
    with pytest.raises(ConfigError): bind(source, table)


@given(st.text(alphabet="abAB01.()[]{}'\"+-*/<>=!,: _\n", max_size=40))
@settings(max_examples=300, deadline=None)
def test_whatever_is_written_is_an_expression_or_a_config_error(source):
    try: parse(source)
    except ConfigError: pass


def test_every_function_is_documented_and_callable_by_name():
    assert len(FUNCTIONS) >= 25 and all(f.__doc__ and n == f.__name__ for n, f in FUNCTIONS.items())


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=25), st.one_of(st.none(), st.integers(1, 3)))
@settings(max_examples=40, deadline=None)
def test_history_is_what_a_loop_over_earlier_rows_says(rows, last):
    frame = pd.DataFrame(rows, columns=["week", "clicks", "who"])
    table = ibis.memtable(frame.assign(n=range(len(frame))))
    limit = f", last={last}" if last else ""
    asked = {"mean": f"previous_mean(clicks, order=week, by=who{limit})", "count": f"previous_count(order=week, by=who{limit})"}
    got = table.select("n", **{k: bind(v, table) for k, v in asked.items()}).execute().sort_values("n")
    for row, mean, count in zip(frame.itertuples(), got["mean"], got["count"], strict=True):
        seen = frame[(frame.week < row.week) & (frame.who == row.who) & (frame.week >= row.week - (last or 99))]
        assert count == len(seen) and (pd.isna(mean) if not len(seen) else mean == pytest.approx(seen.clicks.mean()))
