"""Compliance: every rule passes what keeps it, fails what breaks it, and what cannot be checked is neither."""
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from within.clock import parse_time
from within.errors import ConfigError, DigestMismatch, UnknownDataset
from within.ml import compliance
from within.ml.compliance import (
    IDS,
    artifact_checked,
    artifact_rule,
    card_rule,
    compliance_checks,
    feature_rule,
    kinds_in,
    licence_rule,
    luhn,
    personal_rule,
    retention_rule,
)
from within.policies import RULES, load_policy
from within.verdicts import Phase

KINDS = ("email", "phone", "card", "iban")


def test_ids_are_stable_and_every_rule_has_one():
    assert IDS == {"forbidden_features": "C1", "protected_features": "C2", "personal_data": "C3", "retention": "C4", "licence": "C5",
                   "model_card": "C6", "artifact_format": "C7"} and set(IDS) == set(RULES)


@pytest.mark.parametrize(("features", "patterns", "phase"), [
    (["user.gender", "ctr"], ["gender"], "failed"), (["GENDER"], ["gender"], "failed"), (["language", "message"], ["age", "*_age"], "passed"),
    (["user_age"], ["age", "*_age"], "failed"), ([], ["age"], "passed"), (["a"], [], "inconclusive"), (["ctr"], ["*tr"], "failed")])
def test_features_by_pattern(features, patterns, phase):
    verdict = feature_rule("protected_features", features, patterns)
    assert verdict.phase == phase and verdict.reason.startswith("C2 ") and verdict.details["rule"] == "C2"


@pytest.mark.parametrize(("text", "kinds"), [
    ("a.b+c@mail.example.org", ["email"]), ("@handle and v1@2", []), ("ring +1 (212) 555-0123", ["phone"]), ("(212) 555-0123", ["phone"]),
    ("212-555-0123", ["phone"]),
    ("order 2125550123", []), ("+20 % in 2023", []), ("2023-06-01 10:00:00", []), ("4111111111111111", ["card"]), ("5500-0000-0000-0004", ["card"]),
    ("4111111111111112", []), ("4444444444444", []), ("DE89 3704 0044 0532 0130 00", ["iban"]), ("DE89370400440532013000", ["iban"]),
    ("DE88 3704 0044 0532 0130 00", []),
    ("GB82WEST12345698765432 or x@y.co", ["email", "iban"]), ("", []), ("🙂" * 20, []), ("0" * 10_000, []), ("x" * 6000 + " a@b.com", [])])
def test_personal_data_by_its_form(text, kinds): assert kinds_in(text, KINDS) == kinds


def test_check_digits_let_one_in_ten_and_one_in_ninety_seven_through():
    rng = np.random.default_rng(0)
    numbers = ["4" + "".join(map(str, rng.integers(0, 10, 15))) for _ in range(4000)]
    assert 0.08 < np.mean([luhn(n) for n in numbers]) < 0.12
    ibans = ["DE" + "".join(map(str, rng.integers(0, 10, 20))) for _ in range(8000)]
    assert 0.006 < np.mean([kinds_in(n, ["iban"]) == ["iban"] for n in ibans]) < 0.016


def test_hostile_texts_take_no_time_and_no_harm():
    for text in ("@" * 5000, "a@" * 2500, "a@b." * 1200, "+1 " * 1600, "4" + " 1" * 2400, "AB12 " * 1000, "1-" * 2500, "(" * 5000):
        assert isinstance(kinds_in(text, KINDS), list)


def test_personal_data_in_a_frame_is_counted_and_never_shown():
    frame = pd.DataFrame({"text": ["fine", "mail ann@example.com", "mail ann@example.com", None], "kind": pd.Categorical(["a", "b", "a", "+44 20 7946 0958"])})
    found = personal_rule([("the judged rows", frame, 4)], KINDS)
    assert found.phase is Phase.FAILED and found.figure == 3
    assert found.details["found"] == {"the judged rows": {"text": {"email": 2}, "kind": {"phone": 1}}}
    assert "ann@" not in str(found.to_dict()) and "7946" not in str(found.to_dict())
    sampled = personal_rule([("the judged rows", frame.iloc[[0]], 400)], KINDS)
    assert sampled.passed and "1 of 400 rows" in sampled.reason and "a sample: at most 0.95" in sampled.reason
    assert personal_rule([("the judged rows", pd.DataFrame(index=range(4)), 4)], KINDS).phase is Phase.INCONCLUSIVE
    assert personal_rule([("the judged rows", frame, 4)], ()).phase is Phase.INCONCLUSIVE


def version(**more):
    known = {"lineage": {}, "training_data_info": {}, "metrics": {"rmse": 7.0}, "created_by": "ann", "labels": {}, "name": "m"}
    return SimpleNamespace(**known | more)


@pytest.mark.parametrize(("start", "phase"), [("2023-01-01", "passed"), ("2019-01-01", "failed"), (None, "inconclusive"), ("2024-01-01", "inconclusive")])
def test_retention(start, phase):
    about = version(training_data_info={"start_date": start} if start else {})
    assert retention_rule(SimpleNamespace(now=lambda: parse_time("2023-10-01")), about, 1095).phase == phase


@pytest.mark.parametrize(("source", "licence", "phase"), [
    ("up", "CC BY 4.0", "passed"), ("up", "cc by-sa 4.0", "passed"), ("up", "all rights reserved", "failed"), ("up", "not stated", "inconclusive"),
    ("up", "", "inconclusive"), ("", "", "inconclusive")])
def test_licence(source, licence, phase): assert licence_rule(source, licence, ["CC BY*", "MIT"]).phase == phase


@pytest.mark.parametrize(("wanted", "missing"), [
    (["description", "created_by", "metrics.rmse"], []), (["labels.owner"], ["labels.owner"]),
    (["labels", "metrics"], ["labels"]),
    (["metrics.r2.low"], ["metrics.r2.low"])])
def test_model_card(wanted, missing):
    verdict = card_rule(version(), "how good an ad is", wanted)
    assert verdict.details.get("missing", []) == missing and verdict.phase == ("failed" if missing else "passed")
    assert card_rule(version(created_by="unknown"), " ", ["created_by", "description"]).details["missing"] == ["created_by", "description"]
    assert card_rule(version(), "", []).phase is Phase.INCONCLUSIVE


def archive(path: Path, name: str) -> Path:
    with zipfile.ZipFile(path, "w") as z: z.writestr(name, "x")
    return path


@pytest.mark.parametrize(("write", "says"), [
    (lambda d: (d / "weights.pkl").write_bytes(pickle.dumps({})), "of kind pkl"),
    (lambda d: (d / "notes.json").write_bytes(pickle.dumps({"a": 1})), "is a pickle"),
    (lambda d: (d / "old.json").write_bytes(pickle.dumps({"a": 1}, 0)), "not what its ending says"),
    (lambda d: archive(d / "m.skops", "data.pkl"), "holds data.pkl"),
    (lambda d: archive(d / "w.safetensors", "data.pkl"), "not what"), (lambda d: (d / "m.skops").write_bytes(b"PK\x03\x04broken"), "damaged archive"),
    (lambda d: (d / "Makefile").write_text("all:"), "of kind (none)"), (lambda d: (d / "link.json").symlink_to("/etc/hostname"), "not a plain file")])
def test_artifacts_that_are_not_what_they_may_be(tmp_path, write, says):
    (tmp_path / "model.json").write_text("{}")
    archive(tmp_path / "fine.skops", "schema.json")
    assert artifact_rule(tmp_path, ("json", "skops", "safetensors")).passed
    write(tmp_path)
    verdict = artifact_rule(tmp_path, ("json", "skops", "safetensors"))
    assert verdict.phase is Phase.FAILED and says in verdict.reason and verdict.reason.startswith("C7")


def test_an_empty_folder_is_no_artifact(tmp_path): assert artifact_rule(tmp_path, ("json",)).phase is Phase.FAILED


def test_the_champion_of_the_small_world_and_one_that_breaks_the_rules(ctx, monkeypatch):
    from within.ml.registry import ModelRegistry
    from within.simulation import generate_ads
    registry, rows = ModelRegistry(ctx), SimpleNamespace(frame=generate_ads("2023-08", "2023-08", per_month=500, seed=3), target="effectiveness_score")
    info = registry.champion("ad_score_predictor")
    model = registry.load(info.name, info.version)
    found = {v.gate: v for v in compliance_checks(ctx, info, model, rows)}
    assert set(found) == {f"compliance.{r}" for r in RULES}
    for rule in ("forbidden_features", "protected_features", "personal_data", "licence", "artifact_format"): assert found[f"compliance.{rule}"].passed, found
    leaking = SimpleNamespace(frame=rows.frame.assign(note="ann@example.com"), target=rows.target)
    wrong = SimpleNamespace(features=["effectiveness_score", "gender"], signature=[])
    bad = {v.gate.partition(".")[2]: v.phase for v in compliance_checks(ctx, info, wrong, leaking)}
    assert [bad[r] for r in ("forbidden_features", "protected_features", "personal_data")] == [Phase.FAILED] * 3
    def gone(self, *_): raise DigestMismatch("other bytes")
    monkeypatch.setattr(compliance.ModelRegistry, "folder", gone)
    assert artifact_checked(ctx, info, ("json",)).phase is Phase.FAILED
    def broken(*_): raise ZeroDivisionError("oh")
    monkeypatch.setattr(compliance, "card_rule", broken)
    again = {v.gate: v for v in compliance_checks(ctx, info, model, rows)}
    assert again["compliance.model_card"].phase is Phase.ERROR and "oh" in again["compliance.model_card"].reason and again["compliance.licence"].passed


def test_a_snapshot_is_read_too_and_a_lost_one_is_not_held_against_the_check(ctx):
    from within.data import DataPreparer
    data = DataPreparer("ad_score_predictor", ctx=ctx).prepare_training_data("2023-01-01", "2023-09-30")
    rows = SimpleNamespace(frame=pd.DataFrame({"platform": ["facebook"] * 5}))
    known = compliance.looked_at(ctx, version(lineage={"snapshot": data.snapshot}), rows, 100)
    assert [w for w, _, _ in known] == ["its training snapshot", "the judged rows"]
    assert len(known[0][1]) == 100 and known[0][2] == len(data) and "platform" in known[0][1]
    assert compliance.oldest(ctx, version(lineage={"snapshot": data.snapshot})).year == 2023
    assert len(compliance.looked_at(ctx, version(lineage={"snapshot": "0" * 64}), rows, 100)) == 1
    with pytest.raises(UnknownDataset): compliance.open_snapshot(ctx, "0" * 64, verify=False)


@pytest.mark.parametrize(("line", "says"), [
    ("rules: [astrology]", "forbidden_features"), ("rules: []", "at least 1"), ("forbidden_features: ['*']", "at least one letter"),
    ("protected_features: ['a;rm']", "1 to 100 letters"),
    ("forbidden_features: secret", "tuple"), ("retention_days: 0", "greater than or equal to 1"), ("retention_days: soon", "integer"),
    ("personal_data: [dna]", "email"),
    ("artifacts: [pickle]", "json"), ("model_card: [__class__.secret]", "pattern"), ("personal_data_rows: 1e30", "personal_data_rows"),
    ("licence: x", "licences"),
    ("forbidden_features: !!python/object/apply:os.system [ls]", "tag"), ("licences: {'../x': own}", "pattern"), ("nothing", "compliance")])
def test_a_malformed_policy_is_refused_with_what_is_allowed(small_configs, tmp_path, line, says):
    (tmp_path / "policies.yml").write_text(f"compliance:\n  {line}\n"),
    (tmp_path / "ad_score_predictor.yml").write_text((small_configs / "ad_score_predictor.yml").read_text())
    with pytest.raises(ConfigError, match=says) as told: load_policy("ad_score_predictor", tmp_path)
    assert "policies.yml" in str(told.value)
