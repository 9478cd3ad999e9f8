"""The packet as the person who signs opens it: whole, small, safe with hostile names, and with evidence for every line of its model card."""
import copy
import json

import numpy as np
import pandas as pd
import pytest
from conftest import move_home, variables

from within import ledger
from within.errors import InvalidInput, StageNotReady
from within.files import write_json
from within.ml.explain import explained, segment_table, shuffled, strangeness
from within.runs.folder import RunFolder
from within.runs.packet import CARD, MOST_BYTES, model_card, packet_page, refresh_packets, signatures, write_packet

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


@pytest.fixture(scope="module")
def reviewed(world_home, small_configs, tmp_path_factory):
    "A context, and a run of the small world that has come to its review: real rows, a real challenger, its stages in the ledger, no kernels."
    from within.context import Context
    from within.data import DataPreparer
    from within.ml.models import model_class
    from within.ml.registry import ModelRegistry
    from within.runs.decisions import prepared_decision, registered_decision
    from within.runs.material import split_outputs
    home = move_home(world_home, tmp_path_factory.mktemp("reviewed") / "home")
    with variables(WITHIN_HOME=str(home), WITHIN_CONFIGS=str(small_configs), WITHIN_CLOCK="replay", WITHIN_USER="author@example.com"):
        ctx, name, folder = Context.open(), "ad_score_predictor", RunFolder(home, "r1")
        data = (preparer := DataPreparer(model_name=name, ctx=ctx)).prepare_training_data(start_date="2023-01-01", end_date="2023-09-30")
        parts = preparer.train_validation_test_split(data=data, validation_size=0.15, test_size=0.15, stratify_by="performance_category")
        train, kept = parts[0], split_outputs(parts)
        model = model_class(name, small_configs)({"n_estimators": 20, "max_depth": 3}).fit(train[list(train.features)], train[train.target])
        model.lineage = {"snapshot": kept["snapshot"], "split": kept["split"]}
        about = {"start_date": data.start, "end_date": data.end, "samples": len(train), "dataset": data.dataset, "snapshot": kept["snapshot"]}
        info = ModelRegistry(ctx).register_model(model, name, "2.2.0", {"rmse": 9.0}, about, labels={"run": folder.id})
        write_json(folder.path / "run.json", {"id": folder.id, "model": name, "source": "", "created_at": "2023-10-01T00:00:00+00:00", "stages": ["review"]})
        report = preparer.generate_data_report(train_data=parts[0], validation_data=parts[1], test_data=parts[2])
        told = {"trigger": {"reason": "two columns drifted", "outputs": {"pages": {"Evidently's drift page": "files/evidently-drift.html"}}},
                "prepare": prepared_decision(data, report, kept).to_dict(), "optimize": {"reason": "best of 4"}, "validate": {"reason": "performance passed"},
                "evaluate": {"reason": "RMSE improved", "evidence": {"new": {"rmse": "9.0"}, "champion": {"version": "2.1.0", "rmse": "10.0"}}},
                "register": registered_decision(info, "2.1.0").to_dict()}
        for stage, body in told.items(): ledger.append(ctx, "decision", folder.id, {"evidence": {}, "outputs": {}, "verdicts": [], **body, "stage": stage})
        yield ctx, folder, info
        ctx.close()


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


def test_the_ledger_vouches_for_the_packet_and_an_edit_is_found(reviewed):
    ctx, folder, info = reviewed
    first = (path := write_packet(ctx, folder)).read_bytes()
    count = len(ledger.entries(ctx))
    assert write_packet(ctx, folder).read_bytes() == first and len(ledger.entries(ctx)) == count, "equal content: equal bytes, and nothing new to say"
    assert ledger.verify(ctx).ok and len(first) < MOST_BYTES and b'href="files/evidently-drift.html"' in first and b"<iframe" not in first
    path.write_bytes(first.replace(b"2.1.0", b"2.0.0"))
    assert "packet.html is not the file" in ledger.verify(ctx).first_fault
    figures = folder.path / "files" / "packet.json"
    figures.write_text(json.dumps({**json.loads(figures.read_text()), "worst": [], "notes": ["all is well"]}))
    assert write_packet(ctx, folder).read_bytes() == first and ledger.verify(ctx).ok, "edited figures are computed again, not believed"


def test_the_packet_says_what_is_new_in_the_rows(reviewed):
    ctx, folder, info = reviewed
    html = write_packet(ctx, folder).read_text()
    snapshot = info.training_data_info["snapshot"][:12]
    for said in ("training rows", snapshot, "2023-01-01 to 2023-09-30", "Jensen-Shannon", "in quarantine", "whose outcome has not come"):
        assert said in html, said
    assert "historical_metrics.cpc_30d" in html and "columns moved" in html


def test_a_page_that_nobody_could_send_is_refused(rows, bodies, reviewed, monkeypatch):
    ctx, folder, _ = reviewed
    monkeypatch.setattr("within.runs.packet.MOST_BYTES", 1000)
    with pytest.raises(InvalidInput, match="must stay below 1,000"): write_packet(ctx, folder)
    wide = [{"feature": f"f{i}" * 30, "rise": 1.0, "low": 0.9, "high": 1.1, "rise before": None, "share": 0.1, "share before": None} for i in range(5000)]
    found = {**explained(Straight(), None, rows, rows, "y", "rmse", ["shop"]), "importance": wide}
    assert len(packet_page("r1", bodies, found, None)) < 200_000, "thousands of features do not make a page that nobody reads"


def test_packets_of_runs_that_never_came_to_a_review_are_left(reviewed):
    ctx, folder, info = reviewed
    write_packet(ctx, folder)
    assert refresh_packets(ctx, [info.id, "ad_score_predictor@2.1.0"]) == [folder.path / "packet.html"]
