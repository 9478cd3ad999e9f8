"""Reasons to retrain that no column shows: events that people bring, and the calendar."""
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from within.clock import FrozenClock, parse_time
from within.context import Context
from within.errors import Conflict, InvalidInput, UnknownModel
from within.events import EventKind, add_event, end_event, event_verdict, find_events, open_events
from within.ledger import entries, verify
from within.schedules import SCHEDULE_MONTHS, due_dates, months_later, next_due, schedule_verdict
from within.settings import project_root
from within.verdicts import Phase

ROOT = project_root(Path(__file__).parent)
MODEL, OTHER = "ad_score_predictor", "account_health_predictor"


@pytest.fixture
def desk(tmp_path):
    "A home of its own on a clock that the test moves."
    opened = Context.open(home=tmp_path / "home", configs=ROOT / "configs", clock=FrozenClock("2023-10-01T09:00"), user="ann@example.com")
    yield opened
    opened.close()


# --- events: what is written down ------------------------------------------------------------------------------------------------------------------

def test_an_event_is_kept_with_who_and_when(desk):
    made = add_event(desk, "new ad format", "new_format", affects=[MODEL], note="six-second videos", expires="60d")
    assert made.id == "new-ad-format-2023-10-01" and made.kind is EventKind.NEW_FORMAT and made.added_by == "ann@example.com"
    assert made.added_at == desk.now() and made.expires_at == desk.now() + timedelta(days=60)
    assert open_events(desk) == [made] and find_events(desk, MODEL) == [made]
    (entry,) = entries(desk, kind="event")
    assert (entry.subject, entry.actor, entry.at) == (made.id, "ann@example.com", desk.now()) and entry.body["note"] == "six-second videos"
    ended = end_event(desk, made.id, "withdrawn", by="bob@example.com")
    assert [e.actor for e in entries(desk, kind="event")] == ["ann@example.com", "bob@example.com"] and not open_events(desk)
    assert end_event(desk, made.id, "again", by="eve@example.com") == ended, "the first word stands"
    assert verify(desk).ok


def test_affects_names_models_or_means_all_of_them(desk):
    one, every = add_event(desk, "a", "platform_change", affects=MODEL), add_event(desk, "b", "competitive_change")
    twice = add_event(desk, "c", "new_format", affects=(MODEL, OTHER, MODEL))
    assert one.affects == (MODEL,) and every.affects == () and twice.affects == (MODEL, OTHER)
    assert [e.name for e in open_events(desk, MODEL)] == ["a", "b", "c"] and [e.name for e in open_events(desk, OTHER)] == ["b", "c"]


@pytest.mark.parametrize(("change", "error", "says"), [
    ({"kind": "platform_changes"}, InvalidInput, "did you mean 'platform_change'"), ({"kind": "rumour"}, InvalidInput, "competitive_change, new_format"),
    ({"kind": None}, InvalidInput, "unknown kind"), ({"affects": ["ad_score_predicter"]}, UnknownModel, "did you mean 'ad_score_predictor'"),
    ({"affects": [MODEL, "x" * 10_000]}, UnknownModel, "known: account_health_predictor"), ({"affects": ["../../etc/passwd"]}, UnknownModel, "unknown model"),
    ({"affects": [None]}, UnknownModel, "unknown model"), ({"expires": "2023-09-30"}, InvalidInput, "must expire in the future"),
    ({"expires": "2023-10-01T08:59"}, InvalidInput, "must expire in the future"), ({"expires": "0d"}, InvalidInput, "not a duration"),
    ({"expires": "-5d"}, InvalidInput, "write a duration"), ({"expires": "99999d"}, InvalidInput, "ten years"),
    ({"expires": "2999-01-01"}, InvalidInput, "ten years"),
    ({"expires": "9999-12-31"}, InvalidInput, "ten years"), ({"expires": "2023-02-30"}, InvalidInput, "write a duration"),
    ({"expires": 30}, InvalidInput, "write a duration"),
    ({"expires": None}, InvalidInput, "write a duration"), ({"expires": ""}, InvalidInput, "write a duration"), ({"name": ""}, InvalidInput, "is empty"),
    ({"name": "   "}, InvalidInput, "is empty"), ({"name": None}, InvalidInput, "must be text"), ({"name": "x" * 10_000}, InvalidInput, "10,000 characters"),
    ({"name": "red \x1b[31m"}, InvalidInput, r"U\+001B"), ({"name": "two\nlines"}, InvalidInput, r"U\+000A"), ({"name": "nul\x00"}, InvalidInput, r"U\+0000"),
    ({"name": "half \ud800"}, InvalidInput, r"U\+D800"), ({"name": "turned \u202e txt.exe"}, InvalidInput, r"U\+202E"),
    ({"note": "x" * 10_000}, InvalidInput, "at most 2,000"), ({"note": "\x07"}, InvalidInput, "control character"), ({"by": ""}, InvalidInput, "by is empty"),
    ({"by": "a\nb"}, InvalidInput, "control character")])
def test_what_cannot_be_meant_is_refused_and_nothing_is_kept(desk, change, error, says):
    given_ = {"name": "new ad format", "kind": "new_format", **change}
    with pytest.raises(error, match=says): add_event(desk, **given_)
    assert not find_events(desk) and not entries(desk)


@pytest.mark.parametrize("name", [
    "../../etc/passwd", "'; DROP TABLE state; --", "<script>alert(1)</script>", "a|b [x](javascript:alert(1))", "新广告形式", "🎬🎬", "%s %d {name}",
    "-- --help", "CON", "Ünïcödé ﬁ", "x" * 200])
def test_hostile_names_are_kept_as_text(desk, name):
    made = add_event(desk, name, "new_format", note=f"{name}\n\tsecond line")
    assert set(made.id) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") and len(made.id) <= 71 and not made.id.startswith("-")
    (kept,) = find_events(desk)
    assert kept == made and verify(desk).ok
    page = made._repr_markdown_()
    assert "<script" not in page and "a|b" not in page
    assert name in event_verdict(desk, MODEL, None).reason
    end_event(desk, made.id, name)


def test_two_different_names_of_one_slug_do_not_overwrite_each_other(desk):
    add_event(desk, "New ad format", "new_format")
    with pytest.raises(Conflict, match="there already"): add_event(desk, "new ad-format!", "platform_change")
    assert [e.name for e in find_events(desk)] == ["New ad format"] and len(entries(desk)) == 1
    assert add_event(desk, "新广告", "new_format").id != add_event(desk, "新格式", "new_format").id
    assert add_event(desk, "y" * 100, "new_format").id != add_event(desk, "y" * 101, "new_format").id
    desk.clock.advance(timedelta(days=1))
    assert add_event(desk, "New ad format", "new_format").id == "new-ad-format-2023-10-02"


def test_of_concurrent_adders_one_wins_and_the_others_are_told(desk):
    def add(who):
        own = Context.open(home=desk.settings.home, configs=ROOT / "configs", clock=FrozenClock("2023-10-01"), user=who)
        try: return add_event(own, "new auction", "platform_change").added_by
        except Conflict as lost: return lost
        finally: own.close()
    with ThreadPoolExecutor(8) as pool: said = list(pool.map(add, [f"p{i}@example.com" for i in range(8)]))
    winners = [s for s in said if isinstance(s, str)]
    assert len(winners) == 1 and all("there already" in str(s) for s in said if not isinstance(s, str))
    (kept,), (entry,) = find_events(desk), entries(desk, kind="event")
    assert kept.added_by == entry.actor == winners[0]


def test_ending_what_is_not_there_names_what_is(desk):
    add_event(desk, "new ad format", "new_format")
    with pytest.raises(InvalidInput, match="did you mean 'new-ad-format-2023-10-01'"): end_event(desk, "new-ad-format", "x")
    with pytest.raises(InvalidInput, match="the note is empty"): end_event(desk, "new-ad-format-2023-10-01", " ")
    with pytest.raises(UnknownModel, match=MODEL): open_events(desk, "ad_score_predicter")


# --- events: the trigger ---------------------------------------------------------------------------------------------------------------------------

def test_an_event_fires_until_a_champion_learned_from_rows_after_it(desk):
    assert event_verdict(desk, MODEL, "2023-09-01").passed
    added = add_event(desk, "new auction", "platform_change", affects=[MODEL], expires="90d")
    before = event_verdict(desk, MODEL, "2023-09-01")
    assert before.phase is Phase.FAILED and before.figure == 1 and "new auction" in before.reason and "2023-09-01" in before.reason
    assert event_verdict(desk, MODEL, None).phase is Phase.FAILED and event_verdict(desk, OTHER, None).passed
    desk.clock.advance(timedelta(days=30))
    assert event_verdict(desk, MODEL, "2023-09-30").phase is Phase.FAILED, "retrained since, but on rows from before it"
    settled = event_verdict(desk, MODEL, "2023-10-20")
    assert settled.passed and settled.details["settled"] == [added.id] and "1 open event is older" in settled.reason
    assert event_verdict(desk, MODEL, added.added_at).phase is Phase.FAILED, "rows up to the very instant are not rows after it"
    desk.clock.advance(timedelta(days=60))
    assert event_verdict(desk, MODEL, "2023-09-01").passed, "expired"
    assert event_verdict(desk, MODEL, "2023-09-01", now="2023-10-15").phase is Phase.FAILED, "as it was then"


def test_an_ended_event_still_counted_before_it_was_ended(desk):
    made = add_event(desk, "new auction", "platform_change")
    desk.clock.advance(timedelta(days=5))
    end_event(desk, made.id, "postponed")
    assert event_verdict(desk, MODEL, "2023-09-01").passed and event_verdict(desk, MODEL, "2023-09-01", now="2023-10-03").phase is Phase.FAILED


def test_many_events_are_counted_and_the_sentence_stays_short(desk):
    for i in range(6): add_event(desk, f"change {i}", "regulatory_change")
    v = event_verdict(desk, MODEL, "2023-09-01")
    assert v.figure == 6 and "6 external events" in v.reason and v.reason.endswith("and 3 more") and len(v.details["events"]) == 6


# --- events: the command ---------------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def within(tmp_path):
    "Run the command in a fresh home."
    env = {k: v for k, v in os.environ.items() if not k.startswith("WITHIN_")} | {"WITHIN_HOME": str(tmp_path / "home"), "COLUMNS": "200", "WITHIN_USER": "ann"}

    def call(*arguments, **more):
        argv = [sys.executable, "-c", "from within.cli import main; main()", *arguments]
        return subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env={**env, **more}, timeout=120)
    call.env = env
    return call


def test_the_command_from_adding_to_ending(within):
    empty = within("event", "list")
    assert empty.returncode == 0 and empty.stdout.startswith("no open events") and "within event add" in empty.stdout
    added = within("event", "add", "new ad format", "--kind", "new_format", "--affects", MODEL, "--expires", "60d", "--note", "six-second videos")
    assert added.returncode == 0, added.stderr
    known = added.stdout.splitlines()[0]
    assert known.startswith("new-ad-format-") and f"within event end {known}" in added.stdout
    listed = within("event", "list", "--model", MODEL).stdout
    assert known in listed and "six-second videos" in listed and "ann" in listed
    lines = [line for line in within("status").stdout.splitlines() if line.startswith("event ")]
    assert len(lines) == 1 and known in lines[0] and MODEL in lines[0]
    twice = within("event", "add", "new ad format", "--kind", "new_format")
    assert twice.returncode == 1 and "there already" in twice.stderr and "Traceback" not in twice.stderr
    ended = within("event", "end", known, "--note", "withdrawn")
    assert ended.returncode == 0 and "withdrawn" in ended.stdout
    assert "ended" in within("event", "list", "--all").stdout and "event " not in within("status").stdout and within("audit", "verify").returncode == 0


@pytest.mark.parametrize(("arguments", "says"), [
    (("add", "x"), "--kind"), (("add", "x", "--kind", "rumour"), "regulatory_change"),
    (("add", "x", "--kind", "new_format", "--affects", "ad_score_predicter"), "did you mean"),
    (("add", "x", "--kind", "new_format", "--expires", "2001-01-01"), "in the future"), (("add", "x\x1b[31m", "--kind", "new_format"), "control character"),
    (("add", b"\xff\xfe", "--kind", "new_format"), "control character"), (("end", "nothing", "--note", "x"), "unknown event"), (("end", "x"), "--note"),
    (("list", "--model", "nobody"), "unknown model")])
def test_a_wrong_argument_exits_2_with_a_sentence(within, arguments, says):
    done = within("event", *arguments)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_the_help_teaches(within):
    shown = within("event", "add", "--help").stdout
    assert all(k in shown for k in EventKind) and "Example: within event add" in shown and "60d" in shown
    assert "ledger" in within("event", "--help").stdout


def test_the_shell_completes_kinds_models_and_ids(within):
    known = within("event", "add", "new auction", "--kind", "platform_change").stdout.splitlines()[0]
    def offered(line, count):
        asked = {"_WITHIN_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(count)}
        code = "import sys; sys.argv[0] = 'within'; from within.cli import app; app(prog_name='within')"
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={**within.env, **asked}, timeout=60).stdout.split()
    assert offered("within event add x --kind plat", 5) == ["platform_change"]
    assert offered("within event add x --affects ad_s", 5) == [MODEL, "ad_sentiment_analyzer"]
    assert offered("within event end new", 3) == [known]


# --- the calendar ----------------------------------------------------------------------------------------------------------------------------------

instants = st.datetimes(min_value=datetime(1990, 1, 1), max_value=datetime(2200, 1, 1), timezones=st.just(UTC))
schedules = st.sampled_from(sorted(SCHEDULE_MONTHS))


@given(instants, schedules)
def test_a_due_date_is_so_many_months_on_at_the_same_time_of_day(since, schedule):
    due = next_due(schedule, since)
    assert (due.year * 12 + due.month) - (since.year * 12 + since.month) == SCHEDULE_MONTHS[schedule] and due.time() == since.time()
    assert due.day == since.day or (due.day < since.day and (due + timedelta(days=1)).day == 1), "only a month that lacks the day ends early"
    assert 27 < (due - since).days / SCHEDULE_MONTHS[schedule] < 32


@given(instants, schedules, st.integers(1, 40))
def test_dates_are_counted_from_the_start_and_never_wander(since, schedule, n):
    dates = due_dates(schedule, since)
    found = [next(dates) for _ in range(n)]
    assert found == sorted(set(found)) and found[-1] == months_later(since, n * SCHEDULE_MONTHS[schedule])
    assert max(d.day for d in found) <= since.day and (since.day <= 28) <= all(d.day == since.day for d in found)


@given(instants, schedules, st.timedeltas(min_value=timedelta(days=-400), max_value=timedelta(days=4000)))
def test_it_is_due_from_its_date_on(since, schedule, later):
    now = since + later
    v = schedule_verdict(schedule, since, now)
    assert v.gate == "trigger.schedule" and (v.phase is Phase.FAILED) == (now >= next_due(schedule, since)) == (v.figure >= v.threshold)
    assert f"{next_due(schedule, since):%Y-%m-%d}" in v.reason and schedule in v.reason


@pytest.mark.parametrize(("schedule", "since", "due"), [
    ("monthly", "2023-01-31", "2023-02-28"), ("monthly", "2024-01-31", "2024-02-29"), ("monthly", "2024-02-29", "2024-03-29"),
    ("quarterly", "2023-01-01", "2023-04-01"),
    ("quarterly", "2023-11-30", "2024-02-29"), ("bi-annual", "2023-08-31", "2024-02-29"), ("bi-annual", "2023-07-01", "2024-01-01"),
    ("monthly", "1900-01-31", "1900-02-28")])
def test_known_dates(schedule, since, due): assert next_due(schedule, since) == parse_time(due)


def test_the_calendars_misuse():
    with pytest.raises(InvalidInput, match="bi-annual, monthly, quarterly"): next_due("weekly", "2023-01-01")
    with pytest.raises(InvalidInput, match="unknown schedule"): schedule_verdict(None, None, "2023-01-01")
    with pytest.raises(InvalidInput, match="beyond the calendar"): next_due("monthly", "9999-12-15")
    with pytest.raises(InvalidInput, match="not a date"): next_due("monthly", "soon")
    assert schedule_verdict("monthly", None, "2023-01-01").phase is Phase.INCONCLUSIVE
    ahead = schedule_verdict("monthly", "2023-02-01", "2023-01-01")
    assert ahead.passed and "still to come" in ahead.reason
