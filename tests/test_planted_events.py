"""In the ad world every planted event is found by the trigger that should find it, within a stated delay, and no trigger speaks before its event."""
import pytest

from within.clock import FrozenClock, parse_time
from within.context import Context
from within.ml.retraining import RetrainingEvaluator
from within.verdicts import Phase

MODEL = "ad_score_predictor"
# gate -> (first day of its event, day by which it must have fired): the event's own ramp and one window of the trigger
EVENTS = {
    "trigger.accuracy_drop": ("2023-02-01", "2023-03-20"),                # changed relationship, arrives until 02-15; thirty days of outcomes
    "trigger.degradation.rmse": ("2023-02-01", "2023-03-20"),
    "trigger.data_drift_learned": ("2023-03-01", "2023-04-20"),           # new category, a twentieth of the ads by 04-15: far below 0.2 bits
    "trigger.volume": ("2023-07-01", "2023-08-02"),                       # a quarter more ads a month
    "trigger.correlation": ("2023-08-01", "2023-09-20"),                  # a flip between two features, both as they were; ninety days
    "trigger.data_drift": ("2023-08-15", "2023-10-01"),                   # two features move, arrive until 09-01; thirty days
}
DAYS = ("2023-01-25", "2023-03-20", "2023-04-20", "2023-06-25", "2023-08-02", "2023-09-20", "2023-10-01")


@pytest.fixture(scope="module")
def said(tmp_path_factory, small_configs) -> dict:
    "What each gate said on each day, for the champion of the first day, which learned from 2022."
    from within.world import bootstrap
    home = tmp_path_factory.mktemp("planted") / "home"
    bootstrap("2023-10-01", scale=0.2, ctx=Context.open(home=home, configs=small_configs, clock=None))
    found: dict = {}
    for day in DAYS:
        ctx = Context.open(home=home, configs=small_configs, clock=FrozenClock(parse_time(day)))
        e = RetrainingEvaluator(MODEL, ctx=ctx)
        analyses = {f"{n}_analysis": getattr(e, f"analyze_{n}")() for n in ("performance", "drift", "learned_drift", "volume", "correlation")}
        for v in e.evaluate_retraining_need(**analyses).triggers: found.setdefault(v.gate, {})[day] = v
        ctx.close()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("gate", EVENTS)
def test_the_right_trigger_finds_each_event_in_time(said, gate):
    event, by = EVENTS[gate]
    fired = [day for day, v in said[gate].items() if v.phase is Phase.FAILED]
    assert fired and fired[0] <= by, {d: v.reason for d, v in said[gate].items()}
    assert fired[0] > event, f"{gate} fired on {fired[0]}, before its event of {event}"


@pytest.mark.slow
def test_a_month_without_events_is_quiet(said):
    january = {g: v["2023-01-25"] for g, v in said.items()}
    assert not [v.reason for v in january.values() if v.phase is Phase.FAILED], "the season turns every year and is no news"
    assert set(EVENTS) | {"trigger.schedule", "trigger.event"} <= set(january)
