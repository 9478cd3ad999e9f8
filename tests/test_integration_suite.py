"""The integration suite: a version served by a real gateway in a folder of its own, each check seen to fail, and nothing left afterwards."""
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from between import planting

from within.context import Context
from within.errors import ConfigError
from within.gates import LAB, SmallWorld, lab_context, small_world, tampered, trial
from within.ml.service_checks import ROOM, Client, check_latencies, contract_verdicts, integration_checks, judged_records, served_privately, service_verdicts
from within.policies import ContractPolicy, adjusted, load_policy
from within.verdicts import Phase

@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "A registered challenger of the small world, in a home of its own."
    ctx, whole = lab_context(Context.open(home=tmp_path_factory.mktemp("asking")), LAB, tmp_path_factory.mktemp("lab"), 0), small_world(0)
    yield trial(ctx, SmallWorld(0, whole.first, whole.training, whole.later.head(2000)))
    ctx.close()


@pytest.fixture(scope="module")
def client(small):
    "The challenger behind its private gateway."
    policy = small.ctx.policy(LAB)
    with served_privately(small.ctx, small.info) as (own, url):
        yield Client(url, small.info, small.model, judged_records(small.rows, small.model.features, 40), policy, own, ROOM)


@pytest.fixture
def through(client):
    "The client with something planted between it and the gateway."
    with planting() as start: yield lambda **changes: replace(client, url=start(client.url, **changes))


def phases(verdicts): return {v.gate.removeprefix("integration."): v.phase for v in verdicts}


def serving():
    found = []
    for p in psutil.process_iter(["cmdline"]):
        if any("within-served-" in word for word in p.info["cmdline"] or ()): found.append(p.pid)
    return found


def test_a_good_version_passes_and_leaves_nothing_behind(small):
    home, before = small.ctx.settings.home, set(serving())
    found = phases(integration_checks(small.ctx, small.info, small.model, small.rows))
    wanted = {"contract", "signature", "skew", "errors", "latency_p95", "latency_p99"}
    assert wanted <= set(found) and set(found.values()) == {Phase.PASSED}, found
    assert not set(serving()) - before and not (home / "serving").exists() and not (home / "logs").exists()
    assert small.ctx.store.find("route") == [], "production's routes are never opened"


def test_a_field_that_is_refused_without_its_name_fails_the_signature(client, through):
    def vague(path, found): return (found[0], {"error": "something is wrong"}) if found[0] == 422 else found
    found = {v.gate: v for v in service_verdicts(through(answer_change=vague))}
    assert found["integration.signature"].phase is Phase.FAILED and "without naming it" in found["integration.signature"].reason
    assert len(found["integration.signature"].details["faults"]) == 20 and found["integration.skew"].passed


def test_a_wrong_field_that_is_swallowed_fails_the_signature(through):
    def lenient(path, body):
        for t in (body.get("inputs", []) if isinstance(body, dict) else []): t["data"] = [None if v in ("much", 12.5) else v for v in t["data"]]
        return body
    found = phases(service_verdicts(through(ask_change=lenient)))
    assert found["signature"] is Phase.FAILED and found["errors"] is Phase.FAILED


def test_skew_between_served_and_trained_features_is_pinned_to_its_feature(client, through):
    name = "ad_content.cta_strength"
    def scaled(path, body):
        for t in (body.get("inputs", []) if isinstance(body, dict) else []):
            if t["name"] == name: t["data"] = [v * 100 if isinstance(v, float) else v for v in t["data"]]
        return body
    found = {v.gate: v for v in service_verdicts(through(ask_change=scaled))}["integration.skew"]
    assert found.phase is Phase.FAILED and name in str(found.details["faults"])


def test_latency_is_judged_by_its_interval(client):
    def limited(p95, p99):
        triggers = [{"metric": "latency_p95", "threshold": p95, "window": "10m"}]
        more = [{"metric": "latency_p99", "threshold": p99, "window": "10m"}]
        changes = {"release.rollout.rollback_triggers": triggers, "release.rollback_triggers": more}
        return check_latencies(replace(client, policy=adjusted(client.policy, changes)), 100)
    strict = limited(0.001, 0.001)
    assert [v.phase for v in strict] == [Phase.FAILED] * 2 and strict[0].rows < 30, "asking ends when nothing can repair it"
    assert [v.phase for v in limited(60_000, 60_000)] == [Phase.PASSED] * 2


FITS = {"sends": ["ad_content.*", "historical_metrics.*", "platform", "target_audience"], "range": {"min": 0, "max": 100}, "latency_p95_ms": 60_000}


@pytest.mark.parametrize(("contract", "phase", "says"), [
    ({"reads": ["id", "model_version", "outputs"]}, "passed", "answered with id, model_version, outputs"),
    ({"reads": ["predictions"], "dialect": "mlflow"}, "passed", "within its range"),
    ({"reads": ["outputs", "confidence"]}, "failed", "the answer lacks confidence"),
    ({"range": {"min": 0, "max": 1}}, "failed", "lie outside 0 to 1"),
    ({"sends": ["ad_content.*", "platform"]}, "failed", "which ad_buying does not send"),
    ({"sends": ["no_such.*"]}, "failed", "which ad_buying does not send")])
def test_what_a_depending_system_relies_on_is_held(client, contract, phase, says):
    found = contract_verdicts(client, "ad_buying", ContractPolicy(**{**FITS, **contract}), 30)
    assert found[0].phase == phase and says in found[0].reason and found[0].gate == "integration.contract.ad_buying"
    assert (len(found) == 2 and found[1].passed) if phase == "passed" else len(found) == 1


def test_a_depending_system_that_cannot_wait_so_long_fails_by_name(client):
    found = contract_verdicts(client, "auction", ContractPolicy(**{**FITS, "latency_p95_ms": 0.001}))
    assert [v.phase for v in found] == [Phase.PASSED, Phase.FAILED] and "the limit of auction" in found[1].reason


def test_nobody_answering_and_changed_files_are_errors_and_never_a_pass(small, client):
    nobody = service_verdicts(replace(client, url="http://127.0.0.1:9", ctx=None))
    assert nobody and {v.phase for v in nobody} == {Phase.ERROR}
    broken = trial(small.ctx, SmallWorld(7, small.training.head(1), small.training.sample(2000, random_state=1), small.rows.frame.head(500)))
    assert tampered(small.ctx, broken.info) > 1
    found = integration_checks(small.ctx, broken.info, broken.model, broken.rows)
    assert [v.phase for v in found] == [Phase.ERROR] and "not those that were registered" in found[0].reason


@pytest.mark.parametrize(("contract", "says"), [
    ({"reads": "outputs"}, "tuple"), ({"latency_p95_ms": 0}, "greater than 0"), ({"latency_p95_ms": float("nan")}, "given nan"),
    ({"dialect": "soap"}, "mlflow"), ({"send": ["a"]}, "contracts.ad_buying.send"), ({"range": {"min": "low"}}, "number"), ({"sends": [""]}, "at least 1")])
def test_a_contract_that_cannot_be_meant_is_refused_with_its_key(contract, says, tmp_path):
    import yaml
    shipped = Path(__file__).parent.parent / "configs"
    body = yaml.safe_load((shipped / f"{LAB}.yml").read_text()) | {"contracts": {"ad_buying": contract}}
    (tmp_path / f"{LAB}.yml").write_text(yaml.safe_dump(body))
    with pytest.raises(ConfigError, match=says): load_policy(LAB, tmp_path)


def test_the_shipped_contract_is_of_a_system_that_sends_what_the_model_reads():
    policy = load_policy(LAB, Path(__file__).parent.parent / "configs")
    assert set(policy.contracts) == {"ad_buying"} and set(policy.features.include) == set(policy.contracts["ad_buying"].sends)
