"""Planted faults: what each changes, which gate catches it, and that a gate which was never seen to fail cannot be required."""
import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from within import gates as lab
from within.cli import app
from within.clock import FrozenClock
from within.context import Context
from within.errors import InvalidInput
from within.gates import GATES, LAB, Catch, Planted, caught, chosen_names, planted, proofs_of, proved
from within.ledger import entries
from within.ml.catches import SHIPPED, Proof, keep_proofs, proof_of, require_proofs, seen_to_fail, unproved
from within.ml.validation import CHECKS
from within.policies import adjusted
from within.simulation import generate_ads
from within.simulation.faults import FAULTS, SCORE, newest, plant
from within.verdicts import Phase, Verdict

QUICK = [g for g in GATES if g != "integration"]


@pytest.fixture(scope="module")
def ads(): return generate_ads("2023-01", "2023-02", per_month=400, seed=5, null=True)


@pytest.fixture
def own(tmp_path):
    "A context on an empty home, with the shipped policies."
    ctx = Context.open(FrozenClock("2023-10-01"), home=tmp_path / "home")
    yield ctx
    ctx.close()


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_changes_what_it_says_and_nothing_of_the_callers(ads, name):
    before, fault = ads.copy(deep=True), FAULTS[name]
    training, later = plant(name, ads, ads, 3)
    pd.testing.assert_frame_equal(ads, before)
    assert len(training) == len(later) == len(ads) and fault.gate in GATES and fault.sentence and fault.changes
    again = plant(name, ads, ads, 3)
    pd.testing.assert_frame_equal(training, again[0])
    if fault.where == "rows":
        moved = [c for c in training if c not in ads or not training[c].equals(ads[c])]
        assert moved and (set(moved) <= {SCORE} or all(c.startswith("historical_metrics.") for c in moved))
        assert (later is ads) == (fault.later is None)
    else: assert training is ads and later is ads


def test_faults_of_one_row_and_of_no_row(ads):
    one = ads.head(1)
    for name in FAULTS: assert len(plant(name, one, one.head(0) if FAULTS[name].later is None else one)[0]) == 1
    assert newest(ads.head(0), 0.5).shape == (0,) and newest(ads, 0).sum() == 0 and newest(ads, 1).all()
    assert plant("one_outlier", ads, ads, 1)[0][SCORE].gt(100).sum() == 1


@pytest.mark.parametrize(("given", "says"), [
    ({"faults": ["label_leek"]}, "did you mean 'label_leak'"), ({"gates": ["fairnes"]}, "did you mean 'fairness'"), ({"faults": "label_leak"}, "list of names"),
    ({"draws": 0}, "1 to 1,000"), ({"draws": True}, "1 to 1,000"), ({"draws": 2.5}, "1 to 1,000"), ({"draws": 10**9}, "1 to 1,000")])
def test_what_cannot_be_meant_is_refused_before_anything_runs(own, given, says):
    with pytest.raises(InvalidInput, match=says): planted(ctx=own, **given)


def test_names_are_taken_in_the_order_of_the_list(): assert chosen_names("gate", ["digest", "data", "data"], GATES) == ["data", "digest"]


def test_only_a_check_that_is_quiet_without_the_fault_can_catch_it():
    def said(*phases): return [Verdict(f"robustness.{i}", Phase(p), "so it is") for i, p in enumerate(phases)]
    assert caught("robustness", "x", said("failed", "passed"), said("failed", "passed")).result == ""
    assert caught("robustness", "x", said("failed", "inconclusive"), said("failed", "passed")).result == "unsure"
    assert caught("robustness", "x", said("failed", "error"), said("failed", "passed")).result == "broke"
    found = caught("robustness", "x", said("inconclusive", "failed"), said("passed", "passed"))
    assert found.caught and found.checks[0] == "robustness.1"


@pytest.fixture(scope="module")
def some(tmp_path_factory):
    "Two faults, all gates that start no process."
    ctx = Context.open(FrozenClock("2023-10-01"), home=tmp_path_factory.mktemp("home"))
    found = planted(faults=["collapsed_segment", "tampered_file"], gates=QUICK, draws=1, ctx=ctx)
    yield found
    ctx.close()


def test_each_of_these_faults_is_caught_by_the_gate_that_should_and_as_the_package_says(some):
    assert some.missed == () and some.unproved == () and some.passed
    for gate in some.gates:
        shipped = set(SHIPPED[gate].faults) & set(some.faults)
        assert {c.fault for c in some.by(gate)} == shipped, gate
        for c in some.by(gate):
            if (bound := SHIPPED[gate].faults[c.fault]) is not None: assert c.bound >= bound, "the package promises no more than is seen"
    assert {g: n for g, n in some.fired.items() if n} == {"data": 1, "robustness": 1}
    table = some.table()
    assert list(table.index) == QUICK and table.loc["digest", "tampered_file"] == "failed" and table.loc["drift", "with none"] == "0 of 1"
    assert any(line.startswith("digest catches tampered_file") for line in some.lines())


def test_every_shipped_suite_has_a_proof_and_every_fault_its_gate():
    assert set(SHIPPED) == set(GATES) and all(p.faults and set(p.faults) <= set(FAULTS) for p in SHIPPED.values())
    assert all(name in SHIPPED[f.gate].faults for name, f in FAULTS.items())
    assert all(0 <= p.fired <= p.draws and p.draws >= 3 for p in SHIPPED.values())


@pytest.mark.parametrize("model", ["ad_score_predictor", "account_health_predictor", "ad_sentiment_analyzer"])
def test_the_shipped_policies_require_only_what_was_seen_to_fail(own, model): assert unproved(own.policy(model), ctx=own) == []


@pytest.mark.parametrize(("suite", "changes", "says"), [
    ("fairness", {"gates.fairness_variation": 0.9}, "gates.fairness_variation is 0.9"), ("robustness", {"gates.noise_degradation": 1.0}, None),
    ("compliance", {"compliance.rules": ["model_card"]}, "neither forbidden_features nor artifact_format"),
    ("compliance", {"compliance.rules": ["forbidden_features"], "compliance.forbidden_features": []}, "in force"),
    ("fairness", {"gates.fairness_variation": 0.01}, None),
    ("integration", {"release.rollout.rollback_triggers": [{"metric": "latency_p95", "threshold": 60_000}]}, "latency_p95")])
def test_a_limit_that_is_too_loose_cannot_be_required(own, suite, changes, says):
    policy = adjusted(own.policy(LAB), {**changes, "gates.required_suites": [suite]})
    found = unproved(policy, checks=CHECKS, ctx=own)
    if says is None: assert found == []
    else:
        assert len(found) == 1 and says in found[0] and suite in found[0] and f"within gates {LAB}" in found[0]
        with pytest.raises(InvalidInput, match="never seen to fail"): require_proofs(own, policy, [suite], CHECKS)


def test_a_suite_of_ones_own_is_refused_until_it_caught_something(own):
    def ours(ctx, info, model, rows): return []
    policy, checks = own.policy(LAB), {**CHECKS, "fairness": ours}
    assert "nothing records" in unproved(policy, ["fairness"], checks, own)[0]
    keep_proofs(own, policy, [Proof("fairness", {"collapsed_segment": 0.4}, 0, 3)], checks)
    assert unproved(policy, ["fairness"], checks, own) == [] and proof_of(own, policy, "fairness", ours).source.startswith("ledger entry")
    assert proof_of(own, policy, "fairness", CHECKS["fairness"]).source == "shipped", "the proof is of that code"
    loose = adjusted(policy, {"gates.fairness_variation": 0.9})
    assert "nothing records" in unproved(loose, ["fairness"], checks, own)[0], "and of that policy"


def test_what_was_caught_is_recorded_and_shown_and_what_was_not_stays_refused(own):
    catches = (Catch("fairness", "collapsed_segment", "failed", ("fairness.platform.rmse",), "", 0.44), Catch("robustness", "label_leak", "unsure"))
    found = Planted(LAB, catches, {"fairness": 1, "robustness": 0}, {"fairness.platform.rmse": 1}, 4, ("fairness", "robustness"))
    assert [p.gate for p in proofs_of(found)] == ["fairness"] and found.unproved == ("robustness",) and not found.passed
    said = proved(found, own)
    assert any("robustness is required and caught nothing" in s for s in said) and len(entries(own, "gates", LAB)) == 1
    shown = seen_to_fail(own, LAB)._repr_markdown_()
    assert "| fairness | yes | collapsed_segment | 1 of 4 worlds (fairness.platform.rmse) | ledger entry" in shown and "| drift |" in shown


def test_check_refuses_a_policy_that_requires_a_toothless_gate(own, tmp_path, monkeypatch):
    configs = tmp_path / "configs"
    configs.mkdir()
    for file in own.settings.configs.glob("*.yml"): (configs / file.name).write_bytes(file.read_bytes())
    body = yaml.safe_load((configs / f"{LAB}.yml").read_text())
    body["gates"] |= {"fairness_variation": 1.0}
    (configs / f"{LAB}.yml").write_text(yaml.safe_dump(body))
    monkeypatch.setenv("WITHIN_CONFIGS", str(configs))
    monkeypatch.setenv("WITHIN_HOME", str(own.settings.home))
    result = CliRunner().invoke(app, ["check"])
    assert result.exit_code == 1 and "required_suites names fairness" in result.output and f"{LAB}.yml" in result.output


def test_the_command_prints_the_table_and_fails_where_a_required_gate_catches_nothing(own, monkeypatch):
    monkeypatch.setenv("WITHIN_HOME", str(own.settings.home))
    catches = tuple(Catch(g, "label_leak", "failed" if g == "leakage" else "") for g in ("leakage", "fairness"))
    found = Planted(LAB, catches, {"leakage": 0, "fairness": 0}, {}, 2, ("performance", "fairness"))
    monkeypatch.setattr(lab, "planted", lambda *a, **k: found)   # the table itself is tested above and in the guide
    result = CliRunner().invoke(app, ["gates", LAB])
    assert result.exit_code == 1 and "label_leak" in result.output and "fairness is required and caught nothing" in result.output
    assert CliRunner().invoke(app, ["gates", LAB, "--draws", "0"]).exit_code == 2
    assert np.array_equal(found.table()["with none"], ["0 of 2"] * 2)
