"""Alerts: said once, through the channel that was named, tried again, held overnight, passed on, acknowledged; never lost, and never with their address."""
from __future__ import annotations

import contextlib
import http.server
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from within.alerts import (
    LONGEST_PAUSE,
    MOST_TRIES,
    acknowledge,
    channel_rows,
    open_alert,
    open_lines,
    pass_on,
    pause_after,
    prove,
    quiet_until,
    receipts_of,
    resolve_alert,
)
from within.clock import FrozenClock, iso, parse_time
from within.context import Context
from within.errors import ConfigError, InvalidInput
from within.ledger import entries, verify
from within.oncall import overview
from within.policies import QuietHours, load_alerts
from within.settings import Settings
from within.store import Store
from within.verdicts import Phase, Verdict

ROOT, START = Path(__file__).resolve().parent.parent, parse_time("2023-11-01T12:00:00")
BAD, WELL = Verdict("monitor.error_rate", Phase.FAILED, "error_rate is 0.03"), Verdict("monitor.error_rate", Phase.PASSED, "error_rate is 0.001")
ABOUT = "production/ads@2.2.0"
ALERT = f"{ABOUT}:error_rate"


@pytest.fixture
def configs(tmp_path):
    "A copy of the configs whose alerts.yml a test may write."
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    return tmp_path / "configs"


def rules(configs: Path, **more) -> None:
    channels = {"chat": {"address_variable": "ALERT_CHAT"}, "mail": {"address_variable": "ALERT_MAIL"}, "on-call": {"address_variable": "ALERT_ON_CALL"}}
    for name, changed in more.pop("channels", {}).items(): channels[name] |= changed
    (configs / "alerts.yml").write_text(yaml.safe_dump({"channels": channels, **more}))


@pytest.fixture
def ctx(tmp_path, configs, monkeypatch):
    for name in ("CHAT", "MAIL", "ON_CALL"): monkeypatch.delenv(f"ALERT_{name}", raising=False)
    rules(configs)
    settings = Settings.from_env(home=tmp_path / "home", configs=configs)
    made = Context(settings, Store(settings.database_url), FrozenClock(START), 0)
    yield made
    made.close()


class Chat:
    "A receiver of HTTP; `answer` is its status."

    def __init__(self):
        chat, self.got, self.keys, self.answer = self, [], [], 200
        class Receiver(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                chat.got.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                chat.keys.append(self.headers["X-Within-Alert"])
                self.send_response(chat.answer), self.end_headers()
            def log_message(self, *_): pass
        self.server = http.server.HTTPServer(("127.0.0.1", 0), Receiver)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    @property
    def address(self) -> str: return f"json://127.0.0.1:{self.server.server_port}/s3cret-path"


@pytest.fixture
def chat(monkeypatch):
    made = Chat()
    monkeypatch.setenv("ALERT_CHAT", made.address)
    yield made
    made.server.shutdown(), made.server.server_close(), made.thread.join(5)
    assert not made.thread.is_alive()


@contextlib.contextmanager
def post_office():
    "A real SMTP server on a free port of 127.0.0.1; yields the port and the letters it took."
    from aiosmtpd.controller import Controller
    letters = []
    class Office:
        async def handle_DATA(self, server, session, envelope):
            letters.append((envelope.mail_from, envelope.rcpt_tos, envelope.content.decode()))
            return "250 taken"
    class Anywhere(Controller):
        def _trigger_server(self):
            self.port = self.server.sockets[0].getsockname()[1]   # it was 0: any free one
            super()._trigger_server()
    office = Anywhere(Office(), hostname="127.0.0.1", port=0, ready_timeout=20)
    office.start()
    try: yield office.port, letters
    finally: office.stop()


def receipt(ctx, channel, alert=ALERT): return receipts_of(ctx.store.get("alert", alert).body)[channel]


def letters(ctx) -> list[str]: return sorted(json.loads(p.read_text())["channel"] for p in ctx.path("outbox").glob("*.json"))


def wait(ctx, text: str) -> None: ctx.clock.advance(timedelta(**{{"m": "minutes", "h": "hours"}[text[-1]]: float(text[:-1])}))


# --- it arrives ------------------------------------------------------------------------------------------------------------------------------------

def test_an_alert_is_said_once_and_the_ledger_has_its_receipt(ctx, chat):
    for _ in range(3): assert open_alert(ctx, ABOUT, BAD, ["chat", "mail"]) == ALERT
    assert [g["message"].splitlines()[0] for g in chat.got] == [BAD.reason] and chat.got[0]["title"] == f"within: {ALERT}"
    assert [e.body["event"] for e in entries(ctx, "alert", ALERT)] == ["opened"]
    said = {e.body["channel"]: e.body["receipt"]["said"] for e in entries(ctx, "delivery", ALERT)}
    assert said == {"chat": "sent", "mail": "no address, left in outbox"} and letters(ctx) == ["mail"]
    assert entries(ctx, "delivery", ALERT)[0].body["key"] == chat.keys[0] and verify(ctx).ok
    assert pass_on(ctx) == [] and len(chat.got) == 1


def test_a_letter_arrives_over_smtp(ctx, monkeypatch):
    with post_office() as (port, taken):
        monkeypatch.setenv("ALERT_MAIL", f"mailto://127.0.0.1:{port}?from=within@example.com&to=team@example.com&mode=insecure")
        open_alert(ctx, ABOUT, Verdict("monitor.error_rate", Phase.FAILED, "error_rate is 3 % <b>&\nBcc: x@example.com"), ["mail"])
        assert prove(ctx, "mail").state == "sent"
    assert receipt(ctx, "mail").state == "sent" and [t[1] for t in taken] == [["team@example.com"]] * 2
    import email
    first = email.message_from_string(taken[0][2])
    text = "".join(p.get_payload(decode=True).decode() for p in first.walk() if not p.is_multipart())
    assert "error_rate is 3 %" in text and first["X-Within-Alert"] and first["Bcc"] is None and ALERT in str(email.header.make_header(
        email.header.decode_header(first["Subject"])))
    with socket.socket() as s: assert s.connect_ex(("127.0.0.1", port)) != 0, "the server is gone"


def test_a_proof_says_what_it_found(ctx, chat):
    assert prove(ctx, "chat").said == "sent" and "test" in chat.got[0]["message"]
    assert prove(ctx, "mail").state == "outbox"
    chat.answer = 500
    failed = prove(ctx, "chat")
    assert failed.state == "failed" and "did not take it" in failed.said
    with pytest.raises(InvalidInput, match="did you mean 'chat'"): prove(ctx, "chatt")
    assert [e.body["receipt"]["state"] for e in entries(ctx, "delivery")] == ["sent", "outbox", "failed"] and ctx.store.find("alert") == []


# --- it is tried again -----------------------------------------------------------------------------------------------------------------------------

def test_a_failed_delivery_is_tried_again_when_it_is_due_and_not_before(ctx, chat):
    chat.answer = 503
    open_alert(ctx, ABOUT, BAD, ["chat"])
    assert receipt(ctx, "chat").state == "pending" and letters(ctx) == ["chat"]
    for _ in range(5): assert pass_on(ctx) == []
    wait(ctx, "1m")
    assert "left in outbox" in pass_on(ctx)[0] and len(chat.got) == 2
    chat.answer = 200
    wait(ctx, "1m")
    assert pass_on(ctx) == [], "the second pause is two minutes"
    wait(ctx, "1m")
    assert pass_on(ctx) == [f"{ALERT} to chat: sent at try 3"] and letters(ctx) == [] and len(set(chat.keys)) == 1
    assert [e.body["receipt"]["tries"] for e in entries(ctx, "delivery")] == [1, 3]


def test_it_is_given_up_in_the_end_and_the_letter_stays(ctx, chat):
    chat.answer = 500
    open_alert(ctx, ABOUT, BAD, ["chat"])
    for _ in range(40):
        wait(ctx, "1h")
        pass_on(ctx)
    assert len(chat.got) == MOST_TRIES and receipt(ctx, "chat").state == "failed" and letters(ctx) == ["chat"]
    assert pause_after(1) == timedelta(minutes=1) and pause_after(50) == LONGEST_PAUSE


@pytest.mark.parametrize("address", ["nonsense", "json://127.0.0.1:9/s3cret-path", "nope://s3cret-path", "mailto://user:s3cret-path@127.0.0.1:9?to=a@example.com"])
def test_no_address_is_ever_written(ctx, monkeypatch, caplog, capfd, address):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("ALERT_CHAT", address)
    open_alert(ctx, ABOUT, BAD, ["chat"])
    prove(ctx, "chat")
    written = caplog.text + "".join(capfd.readouterr()) + repr(overview(ctx)) + repr(channel_rows(ctx)) + repr(entries(ctx))
    written += "".join(p.read_bytes().decode("latin-1") for p in ctx.settings.home.rglob("*") if p.is_file())
    assert "s3cret" not in written and receipt(ctx, "chat").state == "pending"
    assert not logging.getLogger("apprise").disabled


# --- who is told, and when -------------------------------------------------------------------------------------------------------------------------

def test_what_trembles_at_its_limit_is_said_once_an_hour(ctx, chat):
    for _ in range(6):
        open_alert(ctx, ABOUT, BAD, ["chat"])
        wait(ctx, "1m")
        resolve_alert(ctx, ABOUT, WELL)
        wait(ctx, "1m")
    assert len(chat.got) == 1
    open_alert(ctx, ABOUT, BAD, ["chat"])
    assert "less than 1h ago" in receipt(ctx, "chat").said
    wait(ctx, "48m")
    assert pass_on(ctx) == [f"{ALERT} to chat: sent"] and len(chat.got) == 2
    ask = Verdict("ask.approval", Phase.WAITING, "25 % needs an approval")
    for _ in range(2): open_alert(ctx, "r1", ask, ["chat"]), resolve_alert(ctx, "r1", WELL), resolve_alert(ctx, "r1", Verdict("ask.approval", Phase.PASSED, ""))
    assert len(chat.got) == 4, "a question is not held back because another one was asked"


def test_quiet_hours_hold_what_is_not_urgent(ctx, configs, chat):
    rules(configs, quiet_hours={"from": "22:00", "to": "07:00", "time_zone": "Europe/Berlin", "urgent": ["error_rate"]})
    ctx.clock.advance_to(parse_time("2023-11-01T23:00:00"))   # midnight in Berlin
    slow = Verdict("monitor.accuracy", Phase.FAILED, "accuracy is 0.6")
    open_alert(ctx, ABOUT, slow, ["chat"]), open_alert(ctx, ABOUT, BAD, ["chat"])
    assert [g["title"] for g in chat.got] == [f"within: {ALERT}"] and receipt(ctx, "chat", f"{ABOUT}:accuracy").due == "2023-11-02T06:00:00+00:00"
    ctx.clock.advance_to(parse_time("2023-11-02T05:59:59"))
    assert pass_on(ctx) == []
    ctx.clock.advance_to(parse_time("2023-11-02T06:00:00"))
    assert len(pass_on(ctx)) == 1 and chat.got[-1]["title"].endswith(":accuracy")


@pytest.mark.parametrize(("at", "until"), [
    ("2023-03-25T23:30", "2023-03-26T05:00"), ("2023-10-28T22:00", "2023-10-29T06:00"), ("2023-06-01T05:00", None), ("2023-06-01T04:59", "2023-06-01T05:00"),
    ("2023-06-01T19:59:59", None), ("2023-06-01T20:00", "2023-06-02T05:00")])
def test_a_night_ends_by_the_zones_own_clock(at, until):
    found = quiet_until(QuietHours(**{"from": "22:00", "to": "07:00", "time_zone": "Europe/Berlin"}), parse_time(at))
    assert found == (parse_time(until) if until else None)


def test_quiet_hours_within_a_day_and_in_an_hour_that_comes_twice():
    noon = QuietHours(**{"from": "12:00", "to": "13:00"})
    assert quiet_until(noon, START) == START + timedelta(hours=1) and quiet_until(noon, START + timedelta(hours=1)) is None
    small = QuietHours(**{"from": "02:00", "to": "02:30", "time_zone": "Europe/Berlin"})
    for minute in range(0, 180):
        at = parse_time("2023-10-28T23:00") + timedelta(minutes=minute)
        assert (until := quiet_until(small, at)) is None or at < until <= at + timedelta(hours=1)


def test_nobody_answers_so_the_next_one_is_told_and_an_answer_ends_it(ctx, configs, chat):
    rules(configs, channels={"chat": {"escalate_to": "mail", "escalate_after": "30m"}, "mail": {"escalate_to": "on-call", "escalate_after": "30m"}})
    open_alert(ctx, ABOUT, BAD, ["chat"])
    wait(ctx, "29m")
    assert pass_on(ctx) == []
    wait(ctx, "1m")
    assert pass_on(ctx) == [f"{ALERT} to mail: no address, left in outbox"] and pass_on(ctx) == [] and len(chat.got) == 1
    assert acknowledge(ctx, ALERT, "ann", "a bad disk")["by"] == "ann"
    wait(ctx, "3h")
    assert pass_on(ctx) == [] and letters(ctx) == ["mail"] and "(ann is on it)" in open_lines(ctx)[0]
    events = [(e.body["event"], e.actor) for e in entries(ctx, "alert")]
    assert [n for n, _ in events] == ["opened", "escalated", "acknowledged"] and events[-1][1] == "ann"
    resolve_alert(ctx, ABOUT, WELL)
    wait(ctx, "3h")
    open_alert(ctx, ABOUT, BAD, ["chat"])
    assert not ctx.store.get("alert", ALERT).body.get("acknowledged") and len(chat.got) == 2, "a new alert is a new question"


def test_what_ends_before_it_is_said_is_withdrawn(ctx, configs, chat):
    rules(configs, quiet_hours={"from": "10:00", "to": "20:00", "urgent": []})
    open_alert(ctx, ABOUT, BAD, ["chat"])
    resolve_alert(ctx, ABOUT, WELL)
    wait(ctx, "10h")
    assert pass_on(ctx) == [] and chat.got == [] and receipt(ctx, "chat").state == "withdrawn"


# --- it is neither lost nor doubled ----------------------------------------------------------------------------------------------------------------

CUT_OFF = """
import os, signal, sys
from within import alerts
from within.clock import FrozenClock
from within.context import Context
from within.verdicts import Phase, Verdict
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
where = sys.argv[1]
if where == "opened": alerts.pass_on = die
if where == "claimed": alerts.deliver = die
if where == "delivered":
    real = alerts.deliver
    def deliver(*a):
        real(*a)
        die()
    alerts.deliver = deliver
ctx = Context.open(clock=FrozenClock("2023-11-01T12:00:00"))
alerts.open_alert(ctx, "production/ads@2.2.0", Verdict("monitor.error_rate", Phase.FAILED, "error_rate is 0.03"), ["chat", "mail"])
"""


@pytest.mark.parametrize(("where", "copies"), [("opened", 1), ("claimed", 1), ("delivered", 2)])
def test_a_process_killed_while_it_delivers_loses_nothing(ctx, chat, where, copies):
    env = {**os.environ, "WITHIN_HOME": str(ctx.settings.home), "WITHIN_CONFIGS": str(ctx.settings.configs)}
    done = subprocess.run([sys.executable, "-c", CUT_OFF, where], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(pass_on(ctx)) == 2 and pass_on(ctx) == []
    assert len(chat.got) == copies and len(set(chat.keys)) == 1 and letters(ctx) == ["mail"], "the outbox has it once, a network perhaps twice"
    assert (("second copy" in chat.got[-1]["message"]) == (where != "opened")) and verify(ctx).ok
    assert {c: r.state for c, r in receipts_of(ctx.store.get("alert", ALERT).body).items()} == {"chat": "sent", "mail": "outbox"}


def test_several_at_once_open_and_deliver_it_once(ctx, chat):
    barrier, faults = threading.Barrier(6), []
    def one():
        mine = Context(ctx.settings, Store(ctx.settings.database_url), ctx.clock, 0)
        barrier.wait()
        try: open_alert(mine, ABOUT, BAD, ["chat", "mail"]), pass_on(mine)
        except Exception as e: faults.append(e)
        finally: mine.close()
    threads = [threading.Thread(target=one) for _ in range(6)]
    for t in threads: t.start()
    for t in threads: t.join(60)
    pass_on(ctx)
    assert not faults and len(chat.got) == 1 and letters(ctx) == ["mail"]
    assert len(entries(ctx, "alert")) == 1 and len(entries(ctx, "delivery")) == 2 and verify(ctx).ok


# --- misuse ----------------------------------------------------------------------------------------------------------------------------------------

def test_unknown_channels_are_refused_and_a_removed_one_goes_to_the_outbox(ctx, configs):
    with pytest.raises(InvalidInput, match="did you mean 'chat'"): open_alert(ctx, ABOUT, BAD, ["chta"])
    assert ctx.store.find("alert") == [] and entries(ctx) == []
    rules(configs, quiet_hours={"from": "10:00", "to": "20:00", "urgent": []})
    open_alert(ctx, ABOUT, BAD, ["chat"])
    (configs / "alerts.yml").write_text("channels: {mail: {address_variable: ALERT_MAIL}}\n")
    wait(ctx, "10h")
    assert len(pass_on(ctx)) == 1 and letters(ctx) == ["chat"]


@pytest.mark.parametrize(("text", "says"), [
    ("channels: {a: {address_variable: A, escalate_to: b}}", "unknown channel to escalate to 'b'"),
    ("channels: {a: {address_variable: A, escalate_to: a}}", "itself"),
    ("channels: {a: {address_variable: A}}\nquiet_hours: {from: 22:00, to: '07:00'}", "in quotes"),
    ("channels: {a: {address_variable: A}}\nquiet_hours: {from: '25:00', to: '07:00'}", "no time of day"),
    ("channels: {a: {address_variable: A}}\nquiet_hours: {from: '07:00', to: '07:00'}", "end when they begin"),
    ("channels: {a: {address_variable: A}}\nquiet_hours: {from: '22:00', to: '07:00', time_zone: ../../etc/passwd}", "unknown time zone"),
    ("channels: {a: {address_variable: A, escalate_after: soon}}", "duration"),
    ("channels: {a: {address_variable: 'json://host/s3cret'}}", "address_variable")])
def test_a_faulty_file_is_refused_when_it_is_read(tmp_path, text, says):
    (tmp_path / "alerts.yml").write_text(text + "\n")
    with pytest.raises(ConfigError, match=re.escape(says)): load_alerts(tmp_path)


def test_hostile_names_and_texts(ctx, chat):
    about, words = "../../etc/" + "ü" * 300 + "\x1b[2J\nBcc: a@b", "<script>alert(1)</script>\x00" + "x" * 50_000
    alert = open_alert(ctx, about, Verdict("monitor.error_rate", Phase.FAILED, words), ["chat", "mail"])
    files = list(ctx.path("outbox").iterdir())
    assert len(chat.got) == 1 and len(chat.got[0]["message"]) < 4_100 and "\n" not in chat.got[0]["title"] and "\x1b" not in chat.got[0]["title"]
    assert [p.parent for p in files] == [ctx.path("outbox")] and acknowledge(ctx, alert, "ann\n<b>")["by"] == "ann <b>"
    with pytest.raises(InvalidInput, match="give a name"): acknowledge(ctx, alert, " ")
    with pytest.raises(InvalidInput, match="unknown open alert"): acknowledge(ctx, "nobody:x", "ann")


def test_status_says_which_channel_has_no_address(ctx, monkeypatch):
    open_alert(ctx, ABOUT, BAD, ["chat", "mail"])
    said = overview(ctx)["outbox"]
    assert said["messages"] == 2 and "chat has no address (ALERT_CHAT is empty)" in said["said"] and "on-call" not in said["said"]
    assert any("on-call" in s for s in said["without_address"])
    monkeypatch.setenv("ALERT_CHAT", "json://127.0.0.1:9/s3cret"), monkeypatch.setenv("ALERT_MAIL", "json://127.0.0.1:9/s3cret")
    assert "did not take them" in overview(ctx)["outbox"]["said"] and iso(ctx.now())


def test_the_command_lists_acknowledges_and_proves(ctx, configs, chat, tmp_path):
    def within(*arguments):
        env = {**os.environ, "WITHIN_HOME": str(ctx.settings.home), "WITHIN_CONFIGS": str(configs), "WITHIN_USER": "ann", "COLUMNS": "250"}
        argv = [sys.executable, "-c", "from within.cli import main; main()", *arguments]
        return subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=env, timeout=60)
    open_alert(ctx, ABOUT, BAD, ["chat"])
    listed, acknowledged, proved = within("alerts", "list"), within("alerts", "ack", ALERT), within("alerts", "test", "chat")
    assert ALERT in listed.stdout and "ALERT_ON_CALL" in listed.stdout and "s3cret" not in listed.stdout, listed.stderr
    assert acknowledged.stdout.startswith("ann is on") and (proved.returncode, proved.stdout.strip()) == (0, "chat: sent"), proved.stderr
    unproved, checked = within("alerts", "test", "mail"), within("check")
    assert unproved.returncode == 1 and "no address" in unproved.stdout
    assert checked.returncode == 1 and "unknown alert channel 'slack-ml-team'" in checked.stdout, checked.stdout
