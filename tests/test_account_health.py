"""Account health: features that know no later day, components by platform, alarms against what happened, thresholds that follow."""
from __future__ import annotations

import json
import math

import ibis
import numpy as np
import pandas as pd
import pytest

from within.errors import DigestMismatch, InvalidInput
from within.ml.account_features import ALPHA, account_days
from within.ml.account_health import AccountHealthPredictor
from within.ml.anomalies import conformal_cut, outside, recent_bounds, relearned, seasonal_distance, window_score
from within.ml.base import folder_digest
from within.ml.early_warning import alarms, early_warning, threshold_for
from within.ml.models import load_model

METRICS = ["spend", "ctr"]


@pytest.fixture(scope="module")
def daily() -> pd.DataFrame:
    "Six accounts over 150 days with holes, missing values, quiet weeks and one account that begins late."
    draw, parts = np.random.default_rng(0), []
    for i in range(6):
        days = pd.date_range("2023-01-01" if i != 3 else "2023-04-01", "2023-05-30", tz="UTC")
        kept = draw.random(len(days)) > (0.3 if i == 2 else 0.02)
        spend = np.maximum(0, 50 * (i + 1) * np.exp(draw.normal(0, 0.4, len(days))) * (np.arange(len(days)) % 50 < 43))
        ctr = np.where(draw.random(len(days)) < 0.1, np.nan, draw.normal(0.02, 0.004, len(days)))
        parts.append(pd.DataFrame({"account_id": f"a{i}", "day": days, "spend": spend, "ctr": ctr, "goes_dark": (np.arange(len(days)) % 40 > 30) * 1.0})[kept])
    return pd.concat(parts, ignore_index=True)


def by_hand(rows: pd.DataFrame, day: pd.Timestamp) -> dict[str, float]:
    "The features of one account on one day, straight from their definitions."
    known = rows[rows.day <= day].sort_values("day")
    age = (day - known.day).dt.days.to_numpy()
    def within(n): return known[age < n]
    out = {"history.days": float((day - rows.day.min()).days + 1)}
    for m in METRICS: out |= {f"{m}.mean_{w}d": within(w)[m].mean() for w in (7, 28, 84)}
    for m in METRICS: out[f"{m}.trend"] = out[f"{m}.mean_7d"] / out[f"{m}.mean_84d"] - 1 if out[f"{m}.mean_84d"] else np.nan
    active = known[known.spend > 0].day
    out["spend.quiet_days"] = float((day - active.max()).days) if len(active) else np.nan
    out["spend.active_28d"] = (within(28).spend > 0).sum() / 28
    out |= forecast_by_hand(known, day)
    ago = day - pd.Timedelta(days=7)
    then = forecast_by_hand(known[known.day <= ago], ago) if (known.day == ago).any() else {}
    spread = within(28).spend.std(ddof=0)
    out["spend.surprise"] = (out["spend.mean_7d"] - then["spend.forecast_30d"]) / spread if then and spread else np.nan
    out["spend.outlook"] = out["spend.forecast_30d"] / out["spend.mean_84d"] - 1 if out["spend.mean_84d"] else np.nan
    return out


def forecast_by_hand(known: pd.DataFrame, day: pd.Timestamp) -> dict[str, float]:
    last = known[(day - known.day).dt.days < 84]
    age, x = (day - last.day).dt.days.to_numpy(), last.spend.to_numpy()
    level = np.sum(x * (1 - ALPHA) ** age) / np.sum((1 - ALPHA) ** age)
    slope = np.cov(x, -age, ddof=0)[0, 1] / np.var(age) if np.var(age) else 0.0
    ahead = np.mean([level + slope / 2 * (h - 1 + (1 - (1 - ALPHA) ** len(x)) / ALPHA) for h in range(1, 31)])
    return {"spend.level": level, "spend.slope": slope, "spend.forecast_30d": max(0.0, ahead)}


def test_the_engine_agrees_with_the_definitions(daily):
    fast = account_days(ibis.memtable(daily), time="day", metrics=METRICS, keep=["goes_dark"]).to_pandas().set_index(["account_id", "day"])
    draw = np.random.default_rng(1)
    checked = 0
    for account, rows in daily.groupby("account_id"):
        for day in rows.day.iloc[draw.choice(len(rows), 12, replace=False)]:
            slow = by_hand(rows, day)
            if slow["history.days"] < 28:
                assert (account, day) not in fast.index
                continue
            found = fast.loc[(account, day)]
            for name, value in slow.items(): assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-9, nan_ok=True), (account, day, name)
            checked += 1
    assert checked > 40 and set(fast.columns) == {*slow, "goes_dark"}


def test_no_later_day_and_no_other_account_is_known(daily):
    day = pd.Timestamp("2023-04-20", tz="UTC")
    changed = daily.assign(spend=daily.spend.where(daily.day <= day, 1e6), ctr=daily.ctr.where(daily.day <= day, 9.0))
    changed.loc[changed.account_id == "a5", "spend"] = -1.0
    one, two = (account_days(ibis.memtable(d), time="day", metrics=METRICS).to_pandas().sort_values(["account_id", "day"]) for d in (daily, changed))
    one, two = (t[(t.day <= day) & (t.account_id != "a5")].reset_index(drop=True) for t in (one, two))
    pd.testing.assert_frame_equal(one, two)
    assert len(one) > 100 and not any("goes_dark" in c for c in one.columns)


def test_the_level_is_exponential_smoothing_and_the_drift_is_theta():
    from statsmodels.tsa.forecasting.theta import ThetaModel
    from statsmodels.tsa.holtwinters import SimpleExpSmoothing

    draw = np.random.default_rng(2)
    x = 100 + 0.8 * np.arange(84) + draw.normal(0, 3, 84)
    days = pd.date_range("2023-01-01", periods=84, tz="UTC")
    ours = account_days(ibis.memtable(pd.DataFrame({"account_id": "a", "date": days, "spend": x})), metrics=["spend"]).to_pandas().iloc[-1]
    series = pd.Series(x, days.tz_localize(None), name="spend").asfreq("D")
    level = SimpleExpSmoothing(series, initialization_method="known", initial_level=x[0]).fit(smoothing_level=ALPHA, optimized=False).forecast(1).iloc[0]
    assert ours["spend.level"] == pytest.approx(level, rel=0.001)
    theirs = ThetaModel(series, deseasonalize=False).fit(disp=False)
    assert ours["spend.slope"] == pytest.approx(theirs.params["b0"], rel=1e-6)
    assert ours["spend.forecast_30d"] == pytest.approx(theirs.forecast(30).mean(), rel=0.04)   # it fits its own alpha


def test_weekly_rows_are_the_daily_ones(daily):
    table = ibis.memtable(daily)
    every, weekly = (account_days(table, time="day", metrics=METRICS, every=n).to_pandas() for n in (1, 7))
    merged = weekly.merge(every, on=["account_id", "day"], how="left", suffixes=("", "_daily"))
    assert np.allclose(merged["spend.level"], merged["spend.level_daily"]) and 0.8 * len(every) / 7 < len(weekly) < 1.2 * len(every) / 7


@pytest.mark.parametrize("change, match", [({"metrics": ["spent"]}, "did you mean 'spend'"), ({"unit": "account"}, "did you mean 'account_id'"),
                                           ({"keep": ["goes_drak"]}, "did you mean 'goes_dark'"), ({"every": 0}, "every is 0"),
                                           ({"alpha": 1.5}, "alpha"), ({"metrics": ["account_id"]}, "metrics are numbers")])
def test_tables_that_cannot_be_meant(daily, change, match):
    with pytest.raises(InvalidInput, match=match): account_days(ibis.memtable(daily), **{"time": "day", "metrics": METRICS, **change}).to_pandas()


def test_no_rows_and_very_long_tables(daily):
    assert len(account_days(ibis.memtable(daily).filter(ibis.literal(False)), time="day", metrics=METRICS).to_pandas()) == 0
    century = pd.DataFrame({"account_id": "a", "day": pd.to_datetime(["1900-01-01", "2023-01-01"]), "spend": 1.0, "ctr": 1.0})
    with pytest.raises(InvalidInput, match="spans 44,925 days"): account_days(ibis.memtable(century), time="day", metrics=METRICS)


# --- the ensemble -------------------------------------------------------------------------------------------------------------------------------------

SMALL = {"n_estimators": 40, "max_depth": 3, "nthread": 1, "component_rows": 300, "component_events": 20}


@pytest.fixture(scope="module")
def accounts() -> tuple[pd.DataFrame, pd.Series]:
    "1,300 rows of two platforms on which the outlook means the opposite, and one platform of 60 rows."
    draw = np.random.default_rng(3)
    x = pd.DataFrame({"platform": ["facebook"] * 700 + ["google"] * 540 + ["tiktok"] * 60, "spend.outlook": draw.normal(size=1300),
                      "spend.surprise": draw.normal(size=1300), "ctr.mean_7d": draw.normal(size=1300)}).sample(frac=1, random_state=0, ignore_index=True)
    sign = np.where(x.platform == "google", 1, -1)
    y = pd.Series((draw.random(1300) < 1 / (1 + np.exp(1.5 - 2 * sign * x["spend.outlook"]))).astype(int), name="goes_dark")
    return x.mask(draw.random(x.shape) < 0.02), y


@pytest.fixture(scope="module")
def model(accounts):
    x, y = accounts
    return AccountHealthPredictor(SMALL).fit(x[:900], y[:900], (x[900:], y[900:]), early_stopping_rounds=10)


def test_components_and_who_shares(model, accounts):
    assert [c.name for c in model.components] == ["pooled", "facebook", "google"]
    assert "facebook" in model.notes[0] and "tiktok" in model.notes[1] and "share the pooled component" in model.notes[1]
    x, y = accounts
    alone = AccountHealthPredictor({**SMALL, "component_rows": 10_000}).fit(x[:900], y[:900])
    assert len(alone.components) == 1 and model.feature_importance().share.sum() == pytest.approx(1)


def test_each_platform_is_answered_by_its_own(model):
    row = {"spend.outlook": 1.5, "spend.surprise": 0.0, "ctr.mean_7d": 0.0}
    facebook, google, tiktok, new, nothing = model.predict_records([{**row, "platform": p} for p in ("facebook", "google", "tiktok", "mars", None)])
    assert facebook < 0.3 < 0.6 < google and min(facebook, google) <= new <= max(facebook, google) and new == nothing and 0 <= tiktok <= 1


@pytest.mark.parametrize("odd", [{}, {"spend.outlook": math.inf}, {"spend.outlook": math.nan}, {"spend.outlook": 10**300}, {"platform": 7},
                                 {"platform": "x" * 10**5}, {"a": 1}])
def test_odd_requests_are_probabilities(model, odd):
    (answer,) = model.predict_records([odd])
    assert 0 <= answer <= 1
    with pytest.raises(InvalidInput, match="spend.outlook"): model.predict_records([{"spend.outlook": "bleak"}])
    with pytest.raises(InvalidInput, match="ctr.mean_7d"): model.predict(pd.DataFrame([{"platform": "google", "spend.outlook": 1.0, "spend.surprise": 0.0}]))


def test_saved_loaded_and_damaged(model, accounts, tmp_path):
    x, _ = accounts
    folder = model.save(tmp_path / "m")
    digest, again = folder_digest(folder), load_model(folder)
    assert (again.predict(x) == model.predict(x)).all() and again.notes == model.notes
    assert again.predict_records(x.to_dict("records")) == model.predict(x).tolist()
    body = json.loads((folder / "model.json").read_text())
    for parts in ([], None, body["components"][:2], [{"name": "x"}] * 3):
        (folder / "model.json").write_text(json.dumps({**body, "components": parts}))
        with pytest.raises(InvalidInput): load_model(folder)
    (folder / "model.json").write_text(json.dumps(body, sort_keys=True, indent=1, ensure_ascii=False) + "\n")
    assert folder_digest(folder) == digest
    part = folder / "component-1.ubj"
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(DigestMismatch): load_model(folder, digest)
    with pytest.raises(InvalidInput, match="component-1.ubj"): load_model(folder)


def test_the_same_seed_the_same_bytes_also_when_killed(accounts, tmp_path):
    class Stop(BaseException): pass
    def stop(number, parts):
        if number == 120: raise Stop
    x, y = accounts
    def fresh(): return AccountHealthPredictor({**SMALL, "n_estimators": 130, "subsample": 0.7})
    digests = [folder_digest(fresh().fit(x, y).save(tmp_path / str(i))) for i in range(2)]
    with pytest.raises(Stop): fresh().fit(x, y, progress=stop, checkpoints=tmp_path / "kept")
    resumed = fresh().fit(x, y, checkpoints=tmp_path / "kept")
    assert digests[0] == digests[1] == folder_digest(resumed.save(tmp_path / "resumed"))


@pytest.mark.parametrize("y, match", [([0, 1, 2] * 100, "0 or 1"), ([0.5, 1, 0] * 100, "0 or 1"), ([1] * 300, "every row"), ([0, 1, None] * 100, "missing")])
def test_outcomes_that_are_none(accounts, y, match):
    with pytest.raises(InvalidInput, match=match): AccountHealthPredictor(SMALL).fit(accounts[0][:300], pd.Series(y, name="goes_dark"))


def test_on_the_generated_world_it_warns_before_the_dark(ctx):
    "Features by the engine, three quarters of the accounts to learn from, the others to be warned of: better than recency at the same precision."
    rows = ctx.warehouse.table("account_days").filter(lambda t: t.goes_dark.notnull()).order_by("day", "account_id").to_pandas()
    features = [c for c in rows if c not in ("account_id", "day", "goes_dark", "outcome_at")]
    held = rows.account_id.str[-1].isin(["0", "4", "8"])
    model = AccountHealthPredictor({"n_estimators": 80, "max_depth": 3, "nthread": 1}).fit(rows.loc[~held, features], rows.loc[~held, "goes_dark"])
    daily = ctx.warehouse.table("accounts_daily").select("account_id", "day", "is_active").order_by("account_id", "day").to_pandas()
    began = daily[(daily.is_active == 0) & (daily.groupby("account_id").is_active.shift() == 1)].rename(columns={"account_id": "unit"})
    scored = rows[held].rename(columns={"account_id": "unit"}).assign(score=model.predict(rows.loc[held, features]))
    chosen = threshold_for(scored, began, 0.5)
    assert chosen.precision >= 0.5 and chosen.recall > 0.3 and chosen.median_days >= 7
    quiet = threshold_for(scored.assign(score=scored["spend.quiet_days"]), began, 0.5)
    assert quiet.precision < 0.2   # a rule of quiet days is never right half of the time: accounts here stop at once


# --- alarms and thresholds ----------------------------------------------------------------------------------------------------------------------------

def test_alarms_by_hand():
    day = pd.Timestamp("2023-01-01")
    rows = pd.DataFrame([{"unit": u, "day": day + pd.Timedelta(days=d), "score": s} for u, d, s in
                         [("a", 0, 0.9), ("a", 5, 0.9), ("a", 31, 0.9), ("b", 3, 0.2), ("b", 9, 0.8), ("c", 1, 0.7)]])
    assert alarms(rows, 0.5)[["unit"]].unit.tolist() == ["a", "a", "b", "c"]
    events = pd.DataFrame({"unit": ["a", "b", "d"], "day": [day + pd.Timedelta(days=n) for n in (20, 9, 5)]})   # b on the alarm's own day; d was never judged
    found = early_warning(rows, events, 0.5)
    assert (found.alarms, found.events, found.precision, found.recall, found.median_days) == (4, 2, 0.25, 0.5, 20.0)
    assert found.precision_interval.low <= 0.25 <= found.precision_interval.high


def test_what_is_not_called_is_no_alarm():
    rows = pd.DataFrame({"unit": ["a"], "day": [pd.Timestamp("2023-01-01")], "score": [np.nan]})
    assert early_warning(rows, rows[["unit", "day"]], 0.5).alarms == 0
    for wrong in (0, 1.5, -1):
        with pytest.raises(InvalidInput, match="precision"): threshold_for(rows, rows[["unit", "day"]], wrong)


@pytest.mark.parametrize("n, rate", [(99, 0.05), (199, 0.01), (50, 0.2)])
def test_the_cut_keeps_its_rate(n, rate):
    draw = np.random.default_rng(5)
    beyond = np.mean([draw.standard_cauchy() > conformal_cut(draw.standard_cauchy(n), rate) for _ in range(6000)])
    assert beyond <= rate + 3 * np.sqrt(rate * (1 - rate) / 6000)


def test_thresholds_look_back_only_and_follow():
    draw, hours = np.random.default_rng(6), pd.date_range("2023-01-01", periods=3000, freq="h")
    values = pd.Series(draw.normal(100, np.where(np.arange(3000) < 1500, 1, 6)), hours)
    one = seasonal_distance(values, hours.hour)
    two = seasonal_distance(values.where(np.arange(3000) < 2000, 1e9), hours.hour)
    pd.testing.assert_series_equal(one[:2000], two[:2000])
    called = one > relearned(one, rate=0.01, window=500, every=24)
    assert called[600:1500].mean() < 0.03 and called[2200:].mean() < 0.03 and called[1500:1700].mean() > 0.1   # wild at first, then the new normal
    assert relearned(one, 0.01, 500, 24)[:24].eq(np.inf).all()
    with pytest.raises(InvalidInput): relearned(one, 0.01, window=1)


def test_windows_by_hand():
    times = pd.date_range("2023-01-01", periods=100, freq="h")
    called = pd.Series(False, times)
    called.iloc[[10, 12, 40, 90]] = True
    found = window_score(called, [(times[11], times[20]), (times[60], times[70])])
    assert (found.alarms, found.right, found.windows, found.caught) == (3, 1, 2, 1) and (found + found).recall == 0.5
    assert window_score(called & False, [(times[0], times[1])]).precision == 0


def test_bounds_by_platform_are_of_recent_days():
    days = pd.date_range("2023-01-01", periods=200, tz="UTC")
    frame = pd.DataFrame({"day": np.repeat(days, 20), "platform": ["a", "b"] * 2000, "x": np.repeat(np.where(np.arange(200) < 170, 100.0, 1.0), 20)})
    frame["x"] += np.random.default_rng(7).normal(0, 0.1, len(frame))
    bounds = recent_bounds(ibis.memtable(frame), "x", "platform", "day", days=20)
    assert set(bounds) == {"a", "b"} and bounds["a"][1] < 2
    odd = pd.DataFrame({"platform": ["a", "a", "c", None], "x": [50.0, 1.0, 50.0, np.nan]})
    assert outside(odd, "x", "platform", bounds).tolist() == [True, False, False, False]
    with pytest.raises(InvalidInput, match="no column 'y'"): recent_bounds(ibis.memtable(frame), "y", "platform", "day")
