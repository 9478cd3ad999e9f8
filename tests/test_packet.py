"""The packet as the person who signs opens it: whole, small, safe with hostile names, and with evidence for every line of its model card."""
import copy
import json
import threading
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import move_home, variables

from within import ledger
from within.errors import Conflict, InvalidInput, NotApproved, StageNotReady
from within.files import write_json
from within.ml.catches import SHIPPED
from within.ml.deployment import standing
from within.ml.explain import explained, segment_table, shuffled, strangeness, strangest_cases
from within.ml.registry import ModelRegistry
from within.ml.reviews import FINAL, sign_offs
from within.policies import REVIEWS
from within.runs.decisions import review_decision
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
    html = packet_page("r1", bodies, explained(Straight(), Straight(), rows, rows, "y", "rmse", ["shop"]), sign_offs({}, "ab"), [("report", "index.html")])
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


def word(digest="ab", approved=True, reviewer=EVIL, note="looked at segments"):
    return SimpleNamespace(digest=digest, approved=approved, reviewer=reviewer, at=datetime(2023, 10, 1, tzinfo=UTC), note=note)


def test_signatures_are_shown_with_who_when_and_what_is_open(rows, bodies):
    found = explained(Straight(), None, rows, rows, "y", "rmse", ["shop"])
    signed = sign_offs({"segments": word(), "edge_cases": word(digest="cd"), "model_card": word(approved=False, note="no licence named")}, "ab")
    html = packet_page("r1", bodies, found, signed)
    states = ["not signed", "approved", "void", "rejected", "not signed"]
    assert all(said in row[2] for said, row in zip(states, signatures(signed), strict=True)) and "<img" not in html
    assert "2023-10-01 00:00 UTC" in html and "signed for other bytes (cd)" in html and "rejected its model card: no licence named" in html
    covered = packet_page("r1", bodies, found, sign_offs({"final_approval": word()}, "ab"))
    assert covered.count("</span> covered</span>") == 4 and "not looked at by itself" in covered


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
    gates = html[html.index("Can these gates fail?"):html.index("Model card")]
    assert "target_shift" in gates and "0 of 5" in gates and gates.count("shipped") == len(SHIPPED), "what stands behind the gates"


def test_a_page_that_nobody_could_send_is_refused(rows, bodies, reviewed, monkeypatch):
    ctx, folder, _ = reviewed
    monkeypatch.setattr("within.runs.packet.MOST_BYTES", 1000)
    with pytest.raises(InvalidInput, match="must stay below 1,000"): write_packet(ctx, folder)
    wide = [{"feature": f"f{i}" * 30, "rise": 1.0, "low": 0.9, "high": 1.1, "rise before": None, "share": 0.1, "share before": None} for i in range(5000)]
    found = {**explained(Straight(), None, rows, rows, "y", "rmse", ["shop"]), "importance": wide}
    assert len(packet_page("r1", bodies, found, sign_offs({}, "ab"))) < 200_000, "thousands of features do not make a page that nobody reads"


def test_packets_of_runs_that_never_came_to_a_review_are_left(reviewed):
    ctx, folder, info = reviewed
    write_packet(ctx, folder)
    assert refresh_packets(ctx, [info.id, "ad_score_predictor@2.1.0"]) == [folder.path / "packet.html"]


@pytest.fixture
def unsigned(reviewed):
    "As `reviewed`, with another version of the model that nobody has said anything about: a registry, its id, and a stage that asks about it."
    ctx, folder, info = reviewed
    registry = ModelRegistry(ctx)
    made = registry.register_model(registry.load(info.id), info.name, registry.next_version(info.name), labels={"run": "r1"})
    stage = SimpleNamespace(ctx=ctx, provenance=SimpleNamespace(run="r1"), folder=None)
    return registry, made, lambda: review_decision(stage, made.id, {})


@pytest.fixture
def apart(unsigned, small_configs):
    "The policy asks for four reviews, each by itself."
    file = small_configs / "ad_score_predictor.yml"
    before = file.read_text()
    release = {"reviews": ["segments", "edge_cases", "model_card", FINAL], "reviews_together": False}
    file.write_text(yaml.safe_dump({**yaml.safe_load(before), "release": release}))
    yield
    file.write_text(before)


def test_one_approval_covers_what_nobody_has_looked_at_and_no_more(unsigned):
    registry, made, gate = unsigned
    assert gate().outcome == "waiting" and registry.to_sign(made.id) == [FINAL]
    registry.reject(made.id, "bo@example.com", "small accounts are served badly", "segments")
    assert gate().outcome == "failed" and "bo@example.com rejected the segments of" in gate().reason
    with pytest.raises(NotApproved, match="comes last: bo@example.com rejected the segments: small"): registry.approve(made.id, "cy@example.com", "fine")
    registry.approve(made.id, "bo@example.com", "looked again", "Segments")
    assert gate().outcome == "waiting"
    registry.approve(made.id, "cy@example.com", "read the packet")
    told = gate()
    reviews = told.evidence["reviews"]
    assert told.passed and (reviews["segments"], reviews["edge_cases"]) == ("approved by bo@example.com", "covered by cy@example.com")
    registry.reject(made.id, "di@example.com", "a claim is wrong", "model_card")
    assert not registry.get(made.id).approved and standing(registry.ctx, made)[0] == "failed", "a no that comes late holds too"
    with pytest.raises(NotApproved, match="di@example.com rejected its model card"): registry.require_approval(made.id)


def test_reviews_that_are_required_by_themselves_hold_the_run_until_each_is_signed(unsigned, apart):
    registry, made, gate = unsigned
    with pytest.raises(NotApproved, match="still to be signed: segments, edge cases, model card"): registry.approve(made.id, "cy@example.com", "fine")
    for review in ("edge_cases", "model_card"): registry.approve(made.id, "bo@example.com", "looked", review)
    assert gate().outcome == "waiting" and "still to be signed: segments" in gate().reason and "--review NAME" in gate().outputs["needs"]
    registry.approve(made.id, "bo@example.com", "looked", "segments")
    phase, why = standing(registry.ctx, made)
    assert phase == "waiting" and "no reviewer has approved" in why and registry.to_sign(made.id) == [FINAL]
    registry.approve(made.id, "cy@example.com", "fine")
    assert gate().passed and standing(registry.ctx, made)[0] == "passed"
    assert [(s.review, s.state, s.required) for s in registry.sign_offs(made.id)][0] == ("feature_importance", "open", False)


def test_nobody_signs_a_review_of_their_own_model(unsigned):
    registry, made, _ = unsigned
    for review in REVIEWS:
        with pytest.raises(NotApproved, match="somebody else must"): registry.approve(made.id, " Author@example.com", "fine", review)
    for wrong in ("segment", "", None, "x" * 500, EVIL):
        with pytest.raises(InvalidInput, match="unknown review"): registry.approve(made.id, "bo@example.com", "fine", wrong)
    assert [s.state for s in registry.sign_offs(made.id)] == ["open"] * 5


def test_of_two_reviewers_at_once_each_is_kept_or_told(unsigned):
    from within.context import Context
    registry, made, _ = unsigned
    home, start, said = registry.ctx.settings.home, threading.Barrier(4), []
    def speak(reviewer, review):
        mine = ModelRegistry(Context.open(home=home))
        for n in range(6):
            start.wait(30)
            try: said.append(mine.approve(made.id, reviewer, f"{n}", review))
            except Conflict as late: assert "somebody was faster" in str(late) or "somebody else" in str(late), late
        mine.ctx.close()
    people = [threading.Thread(target=speak, args=(f"{who}@example.com", review)) for who in ("bo", "cy") for review in ("segments", "model_card")]
    for p in people: p.start()
    for p in people: p.join(120)
    told = [e for e in ledger.entries(registry.ctx, "approval", made.id)]
    assert sorted((e.actor, e.body["review"], e.body["note"]) for e in told) == sorted((a.reviewer, a.review, a.note) for a in said) and len(said) >= 12
    for review in ("segments", "model_card"):
        last, counts = [e for e in told if e.body["review"] == review][-1], registry.words(made.id)[review]
        assert (counts.reviewer, counts.note) == (last.actor, last.body["note"]), "the ledger's last word is the one that counts"


def test_changed_files_void_every_signature_in_the_packet_and_at_the_gate(reviewed, tmp_path):
    ctx, folder, info = reviewed
    registry = ModelRegistry(ctx)
    registry.approve(info.id, "bo@example.com", "looked", "segments")
    registry.approve(info.id, "cy@example.com", "read the packet")
    assert "approved</span> ad_score_predictor@2.2.0" in write_packet(ctx, folder).read_text()
    stage = SimpleNamespace(ctx=ctx, provenance=SimpleNamespace(run="r1"), folder=None)
    files = [p for p in ctx.path().rglob("model.ubj") if p.parent.name == info.digest or "artifacts" in p.parts]
    whole = {p: p.read_bytes() for p in files}
    try:
        for p in whole: p.write_bytes(b"changed")
        html, told = write_packet(ctx, folder).read_text(), review_decision(stage, info.id, {})
        assert told.outcome == "failed" and "every signature about them is void" in told.reason
        assert "every signature is void" in html and html.count("the files are not those that were signed") == 5
    finally:
        for p, content in whole.items(): p.write_bytes(content)


def test_without_the_entry_of_a_claim_there_is_no_packet(reviewed):
    ctx, folder, info = reviewed
    told = {e.body["stage"]: e for e in ledger.entries(ctx, "decision", folder.id)}
    html = write_packet(ctx, folder).read_text()
    for _, stage, *_ in CARD: assert f"#{told[stage].seq}</td>" in html, "every line of the card names the entry it rests on"
    bare = RunFolder(folder.home, "r2")
    write_json(bare.path / "run.json", {"id": bare.id, "stages": ["review"], "created_at": "2023-10-01T00:00:00+00:00"})
    for stage in told.keys() - {"optimize"}: ledger.append(ctx, "decision", bare.id, told[stage].body)
    with pytest.raises(StageNotReady, match="'how the settings were chosen': the ledger holds no decision of the stage optimize"): write_packet(ctx, bare)
    ledger.append(ctx, "decision", bare.id, {**told["optimize"].body, "reason": ""})
    with pytest.raises(StageNotReady, match="optimize published no reason"): write_packet(ctx, bare)
    other = {**told["register"].body, "evidence": {**told["register"].body["evidence"], "digest": "0" * 64}}
    for body in (told["optimize"].body, other): ledger.append(ctx, "decision", bare.id, body)
    with pytest.raises(StageNotReady, match="other bytes"): write_packet(ctx, bare)
    assert not (bare.path / "packet.html").exists()


def test_cases_are_readable(rows):
    odd = rows.assign(a=rows["a"] * 20000.0)
    odd.loc[3, "b"] = np.nan
    found = explained(Straight(), None, rows, odd, "y", "rmse", ["shop"])
    told = [c["why"] for c in found["strangest"]] + [v for c in found["worst"] for v in c["row"].values()]
    assert not [t for t in told if "e+0" in t], told
    row = strangest_cases(odd.assign(y=0.0, answer=0.0).loc[[3]], rows, {"b": "number"}, ["b"])[0]
    assert row["why"].startswith("b = missing (") and row["why"].endswith("% of the training rows lack it)"), row["why"]
