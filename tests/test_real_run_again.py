"""A run of the real notebooks once more: replayed as a whole, and stage after stage by hand, it is the same to the bit."""
import pytest
from test_by_hand import evidence, execute

from within.ledger import entries, verify
from within.ml.registry import ModelRegistry
from within.runs.by_hand import beside_original, by_hand
from within.runs.compare import Equality
from within.runs.replay import replay
from within.runs.walk import retrain
from within.verdicts import Phase

STAGES = ["trigger", "prepare", "optimize", "train", "evaluate", "register", "validate"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_replayed_and_by_hand_it_is_bit_equal_and_nothing_is_touched(ctx, monkeypatch):
    done, home = retrain("ad_score_predictor", ctx=ctx), ctx.settings.home
    assert done.phase is Phase.INCONCLUSIVE and done.stage == "validate", done   # too few rows for fairness in a world of this size
    before, count = evidence(home, done.run), len(entries(ctx))
    aliases = ctx.store.alias_history("ad_score_predictor", "champion")

    report = replay(done.run, ctx)
    assert report.level is Equality.BIT, [(d.stage, d.field, d.before, d.after) for d in report.differences][:10]
    assert list(report.compared) == STAGES and not report.left_out
    assert report.model_digest == ModelRegistry(ctx).get("ad_score_predictor", "2.2.0").digest

    for stage in STAGES:
        copy = by_hand(done.run, stage, ctx)
        execute(copy.notebook, monkeypatch)
        seen = beside_original(copy.place)
        assert seen.level is Equality.BIT, (stage, [(d.field, d.before, d.after) for d in seen.differences][:5])

    assert evidence(home, done.run) == before and len(entries(ctx)) == count and verify(ctx).ok
    assert ctx.store.alias_history("ad_score_predictor", "champion") == aliases
