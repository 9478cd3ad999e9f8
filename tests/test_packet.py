"""The packet as the person who signs opens it: whole, small, safe with hostile names, and with evidence for every line of its model card."""
import copy

import numpy as np
import pandas as pd
import pytest

from within.errors import InvalidInput, StageNotReady
from within.ml.explain import explained, segment_table, shuffled, strangeness
from within.runs.packet import CARD, model_card, packet_page, signatures

EVIL = "<img src=x onerror=alert(1)>\"'&"


class Straight:
    "Looks at `a` alone."
    cheap, features, task = True, ["a", "b"], "regression"

    def predict(self, x): return 3.0 * x["a"].to_numpy(float)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(3)
    made = pd.DataFrame({"a": rng.normal(size=500), "b": rng.normal(size=500), "shop": rng.choice([EVIL, "north"], 500)})
    return made.assign(y=3 * made["a"] + rng.normal(size=500))


@pytest.fixture
def bodies():
    "What the stages of a run publish, with a hostile model name."
    told = {s: {"entry": n, "reason": f"because of {EVIL}", "evidence": {}, "verdicts": []} for n, s in enumerate(dict.fromkeys(c[1] for c in CARD), 1)}
    told["register"]["evidence"] = {"model": EVIL, "digest": "ab" * 32, "parameters": {"max_depth": 5}}
    told["prepare"]["evidence"] = {"rows": {"train": 400}, "window": "2023", "snapshot": "cd" * 32}
    told["evaluate"]["evidence"] = {"new": {"rmse": "1.0 (0.9 to 1.1)"}, "champion": {"version": "2.1.0", "rmse": "1.2 (1.1 to 1.3)"}}
    gates = (("compliance", "inconclusive", EVIL), ("fairness", "failed", "too far"))
    told["validate"]["verdicts"] = [{"gate": g, "phase": p, "reason": r, "low": None} for g, p, r in gates]
    return told


def test_the_page_is_whole_small_and_escaped(rows, bodies):
    html = packet_page("r1", bodies, explained(Straight(), Straight(), rows, rows, "y", "rmse", ["shop"]), None, [("report", "index.html")])
    assert len(html) < 5_000_000 and "<img" not in html and "<script" not in html and "http" not in html
    assert html.index("fairness") < html.index("compliance") < html.index("What changed since the champion") and "2 checks failed" in html
    assert html.count("not signed") == 5 and "#1" in html and "@media print" in html


@pytest.mark.parametrize("line", CARD, ids=lambda c: c[0])
def test_a_claim_without_evidence_is_no_card(bodies, line):
    gone = copy.deepcopy(bodies)
    del gone[line[1]]
    with pytest.raises(StageNotReady, match="model card cannot say"): model_card(gone)
    silent = copy.deepcopy(bodies)
    silent[line[1]]["evidence"], silent[line[1]]["reason"] = {}, ""
    with pytest.raises(StageNotReady, match="model card cannot say"): model_card(silent)
    assert [c.entry for c in model_card(bodies)] == [bodies[c[1]]["entry"] for c in CARD]


def test_a_signature_is_shown_and_the_others_stay_open():
    class Said:
        approved, reviewer, at, note = True, EVIL, "2023-10-01", "looked at segments"
    assert [s[1] for s in signatures(Said)] == ["not signed"] * 4 + ["approved"]


def test_importance_finds_what_is_used_and_nothing_else(rows):
    found = shuffled(Straight(), rows, rows["y"].to_numpy()).set_index("feature")
    assert found.loc["a", "low"] > 1 and found.loc["b", ["rise", "low", "high"]].tolist() == [0, 0, 0]
    assert found.equals(shuffled(Straight(), rows, rows["y"].to_numpy()).set_index("feature"))
    with pytest.raises(InvalidInput, match="no rows"): explained(Straight(), None, rows, rows.head(0), "y", "rmse")


def test_intervals_of_a_segment_cover_its_error():
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        frame = pd.DataFrame({"s": "x", "y": rng.normal(size=300), "answer": 0.0})
        (row,) = segment_table(frame, ["s"], seed=seed)
        covered += row["low"] <= 1.0 <= row["high"]
    assert covered >= 182   # 95 % of 200 is 190; below 182 has a probability under 1 %


def test_strange_rows_are_found_among_missing_and_unseen_values(rows):
    odd = pd.DataFrame({"a": [0.0, np.nan, np.inf], "shop": ["north", None, "moon"]})
    score, shares = strangeness(odd, rows, {"a": "number", "shop": "category"})
    assert score[0] < 2 and min(score[1:]) > 4 and ((shares > 0) & (shares <= 1)).all().all()
