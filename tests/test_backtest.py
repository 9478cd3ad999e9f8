"""A retraining policy on past days: what was not known then is not used, every choice is priced, and wrong dates are said to be wrong."""
import subprocess
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from within.backtests import backtest_page
from within.clock import parse_time
from within.errors import ConfigError, InvalidInput, UnknownModel
from within.ml.retraining_backtest import History, backtest, monthly, oracle, path_loss
from within.policies import adjusted
from within.windows import Window

MODEL = "ad_score_predictor"


def test_the_changed_relationship_is_seen_and_retraining_pays(ctx):
    policy = adjusted(ctx.policy(MODEL), {"gates.improvement": 0.0})
    result = backtest(MODEL, "2023-01-01", "2023-10-01", step="30d", policy=policy, ctx=ctx, changed={"gates.improvement": 0.0})
    table = result.table()
    assert list(table.index) == ["this policy", "never", "always monthly", "oracle"] and table.loc["never", "retrainings"] == 0
    assert table.loc["oracle", "total"] == table["total"].min() and table.loc["this policy", "rmse"] < table.loc["never", "rmse"]
    old = result.rmse_by_step["never"]                     # the relationship changed in the first half of February
    assert np.mean(old[2:]) > 1.1 * np.mean(old[:1])
    won = [k for k in result.looks if k.promoted]
    assert won and all(k.fired and k.retrained and k.improvement > 0 for k in won) and any(k.gained > 0 for k in won)
    assert all(not k.fired for k in result.looks if k.at <= parse_time("2023-02-01"))
    page = backtest_page(result)
    assert "gates.improvement: 0.0" in page and "data:image/png;base64" in page and "never" in page


def test_the_same_question_gets_the_same_answer(ctx):
    first, second = (backtest(MODEL, "2023-05-01", "2023-09-01", step="30d", ctx=ctx) for _ in range(2))
    assert first == second and first.to_dict() == second.to_dict()


def test_nothing_of_the_future_is_known(ctx):
    "Rows after the last step may hold anything: the looks before them are the same."
    short, long = (backtest(MODEL, "2023-02-01", end, step="30d", ctx=ctx) for end in ("2023-05-15", "2023-08-15"))
    assert [replace(k, gained=None) for k in short.looks] == [replace(k, gained=None) for k in long.looks[:3]]


def test_an_outcome_counts_from_the_day_it_came():
    day = pd.date_range("2023-01-01", periods=10, tz="UTC")
    history = History(pd.DataFrame({"at": day, "came": day + pd.Timedelta("3D"), "y": [1.0] * 9 + [np.nan]}), "at", "came", "y", None, ())
    window = Window(parse_time("2023-01-01"), parse_time("2023-01-11"))
    assert [len(history.known(window, parse_time("2023-01-03") + timedelta(days=d))) for d in (0, 1, 5, 30)] == [0, 1, 5, 9]


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 7), st.integers(0, 10_000), st.floats(0, 5))
def test_no_path_is_cheaper_than_the_oracles(n, seed, price):
    rng = np.random.default_rng(seed)
    losses = np.where(np.tri(n).T == 1, rng.random((n, n)) * 10, np.nan)
    def cost(place): return path_loss(losses, place) + price * sum(a != b for a, b in zip(place, place[1:], strict=False))
    best = cost(oracle(losses, price))
    for bits in range(2 ** (n - 1)):      # at each step keep the model, or take the newest
        place = [0]
        for j in range(1, n): place.append(j if bits >> (j - 1) & 1 else place[-1])
        assert best <= cost(place) + 1e-9


def test_monthly_waits_for_a_model_that_exists():
    times = [parse_time(f"2023-0{m}-01") for m in range(1, 6)]
    assert monthly(times, [True, None, True, True]) == [0, 0, 2, 3]


def test_misuse_says_what_is_allowed(ctx):
    with pytest.raises(InvalidInput, match="before it begins"): backtest(MODEL, "2023-05-01", "2023-01-01", ctx=ctx)
    with pytest.raises(InvalidInput, match="begin later"): backtest(MODEL, "2021-01-01", "2021-06-01", step="30d", ctx=ctx)
    with pytest.raises(InvalidInput, match="between 3 and 400"): backtest(MODEL, "2023-01-01", "2023-10-01", step="1h", ctx=ctx)
    with pytest.raises(InvalidInput, match="before it begins"): backtest(MODEL, "2024-05-01", "2024-12-01", ctx=ctx)     # the future
    with pytest.raises(InvalidInput, match="price_months"): backtest(MODEL, "2023-01-01", "2023-10-01", price_months=float("nan"), ctx=ctx)
    with pytest.raises(UnknownModel): backtest("ad_score", "2023-01-01", "2023-10-01", ctx=ctx)
    with pytest.raises(ConfigError, match="js_divergence"): adjusted(ctx.policy(MODEL), {"triggers.js_divergence": "2"})
    with pytest.raises(ConfigError, match="known"): adjusted(ctx.policy(MODEL), {"trigger.js_divergence": "0.1"})


def test_the_command_writes_a_page_and_says_where(home):
    words = ["within", "backtest", MODEL, "--from", "2023-05-01", "--to", "2023-09-01", "--step", "30d", "--set", "triggers.js_divergence=0.1"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "always monthly" in done.stdout and "trigger.schedule" in done.stdout
    pages = list((home / "backtests").glob("*.html"))
    assert len(pages) == 1 and str(pages[0]) in done.stdout and "triggers.js_divergence: 0.1" in pages[0].read_text()
    wrong = subprocess.run([*words, "--set", "triggers.js_divergence"], capture_output=True, text=True, timeout=600)
    assert wrong.returncode == 2 and "KEY=VALUE" in wrong.stderr
