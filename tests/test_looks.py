"""Every candidate's look at a test set is counted, none is lost, and all looks together keep the policy's error rate."""
import json
import subprocess
import sys

import numpy as np
import pytest

from within import ledger
from within.clock import FrozenClock, parse_time
from within.context import Context
from within.ml.ad_score import AdScorePredictor
from within.ml.evaluation import ModelEvaluator
from within.ml.looks import fingerprint, look, looks_at, share, widened
from within.ml.registry import ModelRegistry
from within.simulation import generate_ads
from within.stats.intervals import relative_rmse_improvement
from within.verdicts import Phase

@pytest.fixture
def desk(tmp_path): return Context.open(home=tmp_path / "home", clock=FrozenClock(parse_time("2023-10-01")), mlflow_tracking_uri=None)


def test_the_same_answers_are_one_look_whatever_their_name(desk):
    truth, answers = np.arange(50.0), np.arange(50.0) + 1
    first = look(desk, truth, answers, "2.1.0")
    again = look(desk, truth, answers, "2.2.0")
    assert first == again and first.number == 1 and first.level == 0.95 and len(ledger.entries(desk, "look")) == 1
    assert look(desk, truth, answers + 1).number == 2 and look(desk, truth, answers).number == 1
    assert look(desk, truth[:40], answers[:40]).number == 1, "other rows are another test set"
    assert ledger.verify(desk).ok


def test_processes_at_once_lose_no_look(desk):
    code = ("import sys, numpy as np; from within.context import Context; from within.clock import FrozenClock, parse_time; from within.ml.looks import look\n"
            "ctx = Context.open(home=sys.argv[1], clock=FrozenClock(parse_time('2023-10-01')), mlflow_tracking_uri=None)\n"
            "print([look(ctx, np.arange(9.0), np.full(9, 10.0 * int(sys.argv[2]) + i)).number for i in range(5)])")
    started = [subprocess.Popen([sys.executable, "-c", code, str(desk.settings.home), str(n)], stdout=subprocess.PIPE, text=True) for n in range(3)]
    numbers = [n for p in started for n in json.loads(p.communicate(timeout=120)[0])]
    assert sorted(numbers) == list(range(1, 16)) and len(looks_at(desk, fingerprint(np.arange(9.0), ordered=False))) == 15


def test_the_shares_add_up_and_the_bounds_only_grow():
    assert sum(share(k) for k in range(1, 10_000)) < 0.05 and widened(3, 1, 4, 1) == (1, 4)
    spans = [widened(3, 1, 4, k) for k in (1, 2, 3, 10, 10**6)]
    assert all(a[0] > b[0] and a[1] < b[1] for a, b in zip(spans, spans[1:], strict=False))
    assert widened(-np.inf, -np.inf, 0, 4) == (-np.inf, 0)


def test_candidates_that_are_no_better_are_not_promoted_by_being_many():
    "Worlds of 400 rows and twenty candidates, each as good as the champion: one clears 0 in many worlds with plain intervals, in 5 % with shared ones."
    plain, shared, worlds = 0, 0, 50
    for s in range(worlds):
        rng = np.random.default_rng(s)
        truth, old = np.zeros(400), rng.normal(0, 1, 400)
        found = [relative_rmse_improvement(truth, rng.normal(0, 1, 400), old, seed=k) for k in range(20)]
        plain += any(low > 0 for _, low, _ in found)
        shared += any(widened(*f, k)[0] > 0 for k, f in enumerate(found, 1))
    assert plain / worlds > 0.10 and shared / worlds <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / worlds), (plain, shared)


def test_the_second_candidate_needs_more_and_the_verdict_says_so(desk):
    ads = generate_ads("2023-01", "2023-01", per_month=2500, seed=3)
    target, columns = "effectiveness_score", ["historical_metrics.ctr_30d", "platform"]
    def fit(names, rounds): return AdScorePredictor({"n_estimators": rounds}).fit(ads[names][:1500], ads[target][:1500])
    ModelRegistry(desk).register_model(fit(columns[1:], 20), "ad_score_predictor", "2.1.0")
    evaluator, test = ModelEvaluator(desk), ads[1500:]
    first, second = (evaluator.compare_models(m, "2.1.0", test, target=target) for m in (fit(columns, 40), fit(columns, 60)))
    assert (first.look.number, second.look.number) == (1, 2) and "same test rows" not in first.verdict.reason and "95 % interval" in first.verdict.reason
    assert "candidate 2 that the same test rows judge" in second.verdict.reason and "98.33 % interval" in second.verdict.reason
    assert second.verdict.details["look"]["candidates"] == 2 and second.verdict.phase in set(Phase)
    again = evaluator.compare_models(fit(columns, 40), "2.1.0", test, target=target)
    assert (again.low, again.high) == (first.low, first.high)
