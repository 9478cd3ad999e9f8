"""How often does the decision say *retrain* where nothing changes? Two hundred small null worlds, every trigger that rests on data, one look each."""
from dataclasses import replace

import pytest

from within.clock import FrozenClock, parse_time
from within.context import Context
from within.domain_classifier import domain_classifier
from within.ml.retraining import concluded
from within.ml.retraining_backtest import History, candidate, triggers_at
from within.policies import adjusted
from within.simulation import FEATURES, generate_ads
from within.verdicts import Phase
from within.windows import Window

WORLDS, PER_MONTH, TODAY = 200, 500, parse_time("2023-02-01")


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    "A context and the shipped policy with fewer trees: what is judged are the triggers, not the model."
    ctx = Context.open(home=tmp_path_factory.mktemp("home"), clock=FrozenClock(TODAY))
    yield ctx, adjusted(ctx.policy("ad_score_predictor"), {"training.parameters": {"n_estimators": 40, "max_depth": 5, "learning_rate": 0.15}})
    ctx.close()


def look(quick, seed: int, null: bool = True, end: str = "2023-01", today=TODAY):
    "The verdicts of one world on one day, for a model trained on 2022."
    ctx, policy = quick
    ads = generate_ads("2022-04", end, PER_MONTH, seed, null)
    history = History(ads, "created_at", "outcome_at", "effectiveness_score", "account_id", tuple(FEATURES))
    place = candidate(policy, history, parse_time("2023-01-01"), replace(ctx, seed=seed))
    lately = history.rows(Window(today - (TODAY - parse_time("2023-01-01")), today))
    told = domain_classifier(place.train[FEATURES], lately[FEATURES], seed=seed, threshold=policy.triggers.domain_auc).verdict
    return [v for v in (*triggers_at(policy, history, place, today, quarterly=True), told) if v.gate != "trigger.schedule"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_null_worlds_are_retrained_at_most_as_often_as_the_budget_allows(quick):
    budget, retrained, gates = 0.1, [], {}
    for seed in range(WORLDS):
        verdicts = look(quick, seed)
        yes, _reason = concluded(tuple(verdicts))
        retrained.append(yes)
        for v in verdicts:
            if v.phase is Phase.FAILED: gates[v.gate] = gates.get(v.gate, 0) + 1
    assert sum(retrained) <= budget * WORLDS, f"{sum(retrained)} of {WORLDS} null worlds were retrained: {gates}"


def test_the_same_look_finds_what_was_planted(quick):
    verdicts = {v.gate: v for v in look(quick, 3, null=False, end="2023-09", today=parse_time("2023-10-01"))}
    fired = {g for g, v in verdicts.items() if v.phase is Phase.FAILED}
    assert {"trigger.data_drift", "trigger.correlation", "trigger.multivariate_drift"} <= fired, {g: v.reason for g, v in verdicts.items()}
    assert set(verdicts["trigger.data_drift"].details["fired"]) >= {"historical_metrics.cpc_30d"}
    assert verdicts["trigger.volume"].figure == pytest.approx(0.25, abs=0.1)
