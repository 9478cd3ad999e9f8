"""Real use: `within up` and its watch, `within status`, `within rollback` and `within unfence`, as people and systemd meet them."""
from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from configparser import RawConfigParser
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import store_url
from test_deployment import NEW, OLD, approve, deployer  # noqa: F401  (deployer is a fixture)
from test_hosts import NAME as MOODY
from test_hosts import asked, host, moody, say, share  # noqa: F401  (moody is a fixture)
from test_serving import NAME, body, ends, eventually, small  # noqa: F401  (small is a fixture)

from within.clock import iso, parse_time
from within.commands.watching import needs_of
from within.context import Context
from within.errors import ServingError
from within.ledger import entries
from within.ml.deployment import ModelDeployer, read_rollout
from within.observations import PredictionLog
from within.oncall import overview, safe, way_back
from within.scheduler import Scheduler, due, given_up
from within.serving.restarts import fences, set_fence
from within.serving.routes import Route, Share, change, current
from within.serving.supervisor import gateway_url, hold, release, status
from within.serving.wire import alive, ask
from within.store import Store
from within.verdicts import Phase

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-c", "from within.cli import main; main()"]


def within(home: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "WITHIN_HOME": str(home), "COLUMNS": "200", **more}
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, cwd=ROOT, env=env, timeout=120)


@contextlib.contextmanager
def standing(home: Path, *arguments: str, prefix: tuple[str, ...] = (), **more: str):
    "`within up` as a process, until the block ends; whatever happens it is ended."
    env = {**os.environ, "WITHIN_HOME": str(home), "PYTHONUNBUFFERED": "1", **more}
    process = subprocess.Popen([*prefix, *COMMAND, "up", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=env)
    try: yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def lines_until(process: subprocess.Popen, start: str) -> list[str]:
    "What it printed, up to a line that begins so."
    found = []
    for line in process.stdout:
        found.append(line.rstrip("\n"))
        if line.startswith(start): return found
    raise AssertionError(f"it ended: {found}")


def url_of(lines: list[str], environment: str) -> str: return next(line.split()[1] for line in lines if line.startswith(environment))


def fine(url: str) -> bool:
    try: return asked(url)[:2] == (200, "1.0.0")
    except ServingError: return False


# --- up --------------------------------------------------------------------------------------------------------------------------------------------

def test_up_serves_tells_systemd_and_leaves_nothing(moody, tmp_path):  # noqa: F811
    home = moody.settings.home
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(place := str(tmp_path / "notify"))
        manager.settimeout(30)
        with standing(home, NOTIFY_SOCKET=place, WATCHDOG_USEC="2000000") as process:
            lines = lines_until(process, "up: process")
            ready = manager.recv(1000).decode()
            assert ready.splitlines()[0] == "READY=1" and "3 gateways" in ready and manager.recv(1000) == b"WATCHDOG=1"
            assert {line.split()[0] for line in lines[:3]} == {"development", "staging", "production"} and f"kill {process.pid}" in lines[-1]
            url = url_of(lines, "production")
            assert fine(url) and within(home, "status").returncode == 0
            second = within(home, "up")
            assert second.returncode == 1 and f"process {process.pid}, started by" in second.stderr and "Traceback" not in second.stderr
            assert not any("NOTIFY_SOCKET" in psutil.Process(h["pid"]).environ() for h in status(moody)["hosts"])
            process.terminate()
            assert process.wait(15) == 0
            assert not ends(home, 0)   # not a moment later
            told = []
            while b"STOPPING=1" not in told: told.append(manager.recv(1000))
            assert set(told) <= {b"WATCHDOG=1", b"STOPPING=1"} and not (home / "serving" / "up.json").exists()
    alone = within(home, "status")
    assert alone.returncode == 1 and alone.stdout.startswith(f"production/{MOODY}: no gateway runs; start one with: within up")


def test_up_replaces_a_supervisor_that_was_killed_or_is_frozen_at_the_same_address(moody):  # noqa: F811
    with standing(moody.settings.home, "--environment", "production") as process:
        url = url_of(lines_until(process, "up: process"), "production")
        os.kill(status(moody)["pid"], signal.SIGKILL)
        assert "took over" in lines_until(process, "supervisor")[-1] and eventually(lambda: fine(url))
        os.kill(frozen := status(moody)["pid"], signal.SIGSTOP)   # there, and useless
        assert eventually(lambda: not alive(frozen)) and eventually(lambda: fine(url))
        process.terminate()
        assert process.wait(15) == 0


def test_what_was_up_goes_when_it_is_killed_and_a_shell_that_ignores_interrupts_does_not_matter(moody):  # noqa: F811
    home = moody.settings.home
    with standing(home, "--environment", "production") as process:
        lines_until(process, "up: process")
        process.kill()
        assert not ends(home, 8)
    with standing(home, "--environment", "production", prefix=("sh", "-c", "trap '' INT; exec \"$@\"", "sh")) as process:
        assert len(lines_until(process, "up: process")) == 2
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 0 and "SIGINT: ending" in process.stdout.read()
    assert not ends(home, 3)


def test_once_is_a_rehearsal(moody):  # noqa: F811
    home = moody.settings.home
    done = within(home, "up", "--once", "--environment", "production")
    assert done.returncode == 0 and "scheduler: done: nothing was due" in done.stdout and not ends(home, 3), done.stdout + done.stderr


def test_another_holder_keeps_what_it_holds(moody):  # noqa: F811
    with hold(moody) as held, standing(moody.settings.home, "--environment", "production") as process:
        lines_until(process, "up: process")
        process.terminate()
        assert process.wait(20) == 0 and f"supervisor {held.pid} goes on" in process.stdout.read() and held.alive


@pytest.mark.parametrize(("arguments", "code", "says"), [
    (("--environment", "productoin"), 2, "did you mean 'production'"), (("--port", "8080"), 2, "name one with --environment"),
    (("--port", "99999", "--environment", "staging"), 2, "between 0 and 65535"), (("--port", "x"), 2, "valid integer")])
def test_up_says_what_cannot_be_meant(tmp_path, arguments, code, says):
    done = within(tmp_path / "home", "up", *arguments)
    assert done.returncode == code and says in done.stderr and "Traceback" not in done.stderr and not ends(tmp_path / "home", 3)


def test_a_taken_port_and_a_home_that_cannot_be_used(tmp_path):
    home = tmp_path / "home"
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = within(home, "up", "--environment", "staging", "--port", str(port))
        assert done.returncode == 1 and f"port {port} of 127.0.0.1 is not free for staging" in done.stderr and not ends(home, 5)
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "home", Path("/proc/within")):
        for command in ("up", "status"):
            done = within(place, command)
            assert done.returncode == 2 and "--home or WITHIN_HOME" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_the_unit_file_is_understood_by_systemd_and_names_no_machine(tmp_path):
    text = (ROOT / "templates" / "systemd" / "within.service").read_text()
    unit = RawConfigParser(strict=False)
    unit.optionxform = str
    unit.read_string(text)
    service = unit["Service"]
    assert service["Type"] == "notify" and service["ExecStart"] == "@PROJECT@/.venv/bin/within up" and service["KillMode"] == "mixed" and service["Delegate"]
    settings = [v for s in unit.sections() for v in unit[s].values()]
    assert not [v for v in settings if re.search(r"/(home|root|work|opt|srv|Users)/", v)] and "PrivateTmp" not in service
    if shutil.which("systemd-analyze") is None: pytest.skip("systemd is not here; only the file's own words were checked")
    (program := tmp_path / ".venv" / "bin" / "within").parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (filled := tmp_path / "within.service").write_text(text.replace("@PROJECT@", str(tmp_path)).replace("@HOME@", str(tmp_path)).replace("@USER@", "root"))
    done = subprocess.run(["systemd-analyze", "verify", str(filled)], capture_output=True, text=True, timeout=60)
    assert not [line for line in done.stderr.splitlines() if "within.service" in line and "DelegateSubgroup" not in line], done.stderr


# --- status ----------------------------------------------------------------------------------------------------------------------------------------

def test_status_shows_hosts_figures_and_fences_and_says_by_its_exit_code_whether_all_answers(moody):  # noqa: F811
    url = gateway_url(moody, "production")
    share(moody, shares=[Share("treatment", "1.1.0", 100)])
    for n in range(20): asked(url, n=n)
    assert eventually(lambda: host(moody, "1.1.0")["phase"] == host(moody, "1.0.0")["phase"] == "ready")
    well = within(moody.settings.home, "status", "--json")
    seen = json.loads(well.stdout)
    assert well.returncode == 0 and seen["well"] and seen["bounded_by"] and not seen["needs"]
    (route,), (figure,) = seen["routes"], seen["figures"]
    assert route["followed"] == route["revision"] and (figure["version"], figure["requests"], figure["errors"]) == ("1.1.0", 20, 0)
    assert figure["p50"] <= figure["p99"] and {h["version"] for h in seen["hosts"]} == {"1.0.0", "1.1.0"}
    assert all(h["memory"] > 1 << 20 and h["memory_bound"] == 700 << 20 and h["restarts"] == 0 for h in seen["hosts"])
    shown = within(moody.settings.home, "status").stdout
    assert "1.1.0 100 % (treatment)" in shown and "of 700 MiB" in shown and url in shown and "the last ten minutes" in shown
    set_fence(moody, MOODY, "1.1.0", "it \x1b[31mleaked", by="ana")
    assert eventually(lambda: not overview(moody)["well"])
    fenced = within(moody.settings.home, "status")
    assert fenced.returncode == 1 and "is fenced" in fenced.stdout and f"within unfence {MOODY} 1.1.0" in fenced.stdout and "\x1b" not in fenced.stdout
    lifted = within(moody.settings.home, "unfence", MOODY, "1.1.0", "--note", "repaired", "--by", "ben")
    assert lifted.returncode == 0 and not fences(moody) and entries(moody, "fence")[-1].actor == "ben"
    again = within(moody.settings.home, "unfence", MOODY, "1.1.0", "--note", "repaired")
    assert again.returncode == 2 and "Traceback" not in again.stderr
    assert eventually(lambda: overview(moody)["well"])


def test_status_of_nothing_and_of_hostile_names(tmp_path):
    home = tmp_path / "home"
    fresh = within(home, "status", "--json")
    assert fresh.returncode == 0 and json.loads(fresh.stdout)["routes"] == []
    bad = "\x1b[2J\x1b]0;owned\x07<script>alert(1)</script>\u202e[bold]\r"
    store = Store(store_url(home))
    store.put("experiment", bad, {"phase": "running", "spec": {"model": bad}, "ends_at": bad}, None)
    store.put("rollout", bad, {"phase": "running", "model": bad, "version": bad, "environment": bad, "percentage": 10, "reason": bad}, None)
    store.put("alert", bad, {"phase": "open", "verdict": {"reason": bad}}, None)
    store.add_model_version(bad, "1.0.0", "d" * 8, {k: {} for k in ("metrics", "parameters", "labels", "training_data_info", "lineage", "mlflow")})
    store.close()
    shown = within(home, "status")
    assert shown.returncode == 0 and not set("\x1b\x07\r\u202e") & set(shown.stdout) and "<script>" in shown.stdout and "[bold]" in shown.stdout, shown.stderr
    data = within(home, "status", "--json").stdout
    assert "\x1b" not in data and json.loads(data)["experiments"][0]["name"] == bad
    assert safe("a\nb") == "a\nb" and safe("é 漢") == "é 漢"


def test_figures_are_read_from_the_end_of_a_large_log_and_bad_lines_are_passed_over(tmp_path):
    ctx = Context.open(home=tmp_path / "home")
    now, log = ctx.now(), PredictionLog(ctx, "production")
    line = {"at": iso(now), "environment": "production", "model": "m", "version": "1", "role": "live", "latency_ms": 1.0, "error": None, "features": "y" * 1000}
    log.append([{**line, "id": f"r{n}"} for n in range(30_000)])
    log.close()
    broken = b'{"broken\n[1]\nnull\n{"at": 3}\n{"at": "' + iso(now).encode() + b'"}\nhalf a li'
    with open(log.folder / f"{iso(now)[:10]}.jsonl", "ab") as file: file.write(broken)
    change(ctx, Route("production", "m", "1"), None, by="test", wait=0)
    seen = overview(ctx)["figures"]
    (found,) = [f for f in seen if f["model"] == "m"]
    assert 10_000 < found["requests"] < 30_000 and found["complete"] is False and found["p99"] == 1.0
    ctx.close()


def test_status_and_the_way_back_pay_for_nothing_heavy(tmp_path):
    code = ("import sys; from within.context import Context; from within.oncall import overview; import within.scheduler, within.up; overview(Context.open()); "
            "print(sorted({'pandas', 'numpy', 'mlflow', 'torch', 'ibis', 'pyarrow', 'xgboost'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=os.environ | {"WITHIN_HOME": str(tmp_path / "home")})
    assert done.stdout.strip() == "[]", done.stderr


# --- rollback --------------------------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def released(deployer):  # noqa: F811
    "1.1.0 answers everybody in production after 1.0.0."
    ctx = deployer.ctx
    deployer.deploy(OLD, "production") if deployer.registry.approve(OLD, "reviewer@example.com", "looked") else None
    approve(deployer)
    deployer.deploy(NEW, "production")
    return deployer, ctx, gateway_url(ctx, "production")


def answer(url: str) -> str: return ask(url, f"/v2/models/{NAME}/infer", body("q"))[1]["model_version"]


def test_one_command_goes_back_and_says_how_long_it_took(released):
    _, ctx, url = released
    assert answer(url) == "1.1.0"
    back = within(ctx.settings.home, "rollback", NAME, "--reason", "scores doubled", "--yes")
    assert back.returncode == 0, back.stderr
    said = back.stdout.splitlines()
    assert said[0] == f"{NAME} in production: now 1.1.0 for everybody; afterwards 1.0.0 for everybody"
    assert re.fullmatch(r"\d+\.\d s from the command to 1\.0\.0 answering everybody", said[-1]) and answer(url) == "1.0.0"
    assert entries(ctx, "rollback")[-1].body["reason"] == "scores doubled"
    again = within(ctx.settings.home, "rollback", NAME, "--reason", "scores doubled")   # two people, one button
    assert again.returncode == 0 and "already rolled back: 1.0.0 answers everybody" in again.stdout and answer(url) == "1.0.0"
    onwards = within(ctx.settings.home, "rollback", NAME, "--reason", "it was not the model", "--to", "1.1.0")
    assert onwards.returncode == 0 and answer(url) == "1.1.0"


def test_a_person_at_a_terminal_is_asked_once(released):
    _, ctx, url = released
    for typed, code, version in (("n", 1, "1.1.0"), ("y", 0, "1.0.0")):
        ours, theirs = os.openpty()
        os.write(ours, f"{typed}\n".encode())
        env = os.environ | {"WITHIN_HOME": str(ctx.settings.home)}
        done = subprocess.run([*COMMAND, "rollback", NAME, "--reason", "slow"], stdin=theirs, capture_output=True, text=True, cwd=ROOT, env=env, timeout=60)
        os.close(ours), os.close(theirs)
        assert done.returncode == code and "afterwards 1.0.0" in done.stdout and answer(url) == version, done.stdout + done.stderr


def test_during_a_rollout_the_way_back_is_the_default(released):
    deployer, ctx, url = released  # noqa: F811
    within(ctx.settings.home, "rollback", NAME, "--reason", "first", "--yes")
    rollout = deployer.progressive_rollout(NEW, initial_percentage=50, increment=50, interval="2d", max_percentage=100)
    way = way_back(ctx, NAME, "production")
    assert way.target == "1.0.0" and not way.already and way.answering == ("1.1.0 for 50 %", "1.0.0 for 50 %")
    back = within(ctx.settings.home, "rollback", NAME, "--reason", "errors")
    assert back.returncode == 0 and current(ctx, "production", NAME).shares == () and ctx.store.get("rollout", rollout.id).body["phase"] == "failed"
    assert not overview(ctx)["rollouts"] and answer(url) == "1.0.0"


@pytest.mark.parametrize(("arguments", "says"), [
    (("ad_score_predicter", "--reason", "x"), "did you mean 'ad_score_predictor'"),
    ((NAME, "--reason", "x", "--to", "9.9.9"), "unknown version of ad_score_predictor '9.9.9'"),
    ((NAME, "--reason", "  "), "needs a reason"), ((NAME,), "--reason"), ((NAME, "--reason", "x", "--environment", "prodution"), "did you mean 'production'"),
    ((NAME, "--reason", "x"), "1.0.0 replaced nothing in production"), (("../../x", "--reason", "x"), "unknown model"),
    (("\x1b[31m", "--reason", "x"), "unknown model")])
def test_a_rollback_that_cannot_be_meant_changes_nothing(small, arguments, says):  # noqa: F811
    done = within(small.settings.home, "rollback", *arguments)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr and "\x1b" not in done.stderr, done.stderr
    assert current(small, "production", NAME).revision == 1


def test_a_rollback_while_nothing_serves_changes_the_route_for_when_something_does(released):
    _, ctx, _ = released
    release(ctx)
    assert not ends(ctx.settings.home, 5)
    back = within(ctx.settings.home, "rollback", NAME, "--reason", "seen in the morning")
    assert back.returncode == 0 and "nothing was serving" in back.stdout and current(ctx, "production", NAME).default == "1.0.0", back.stderr


def test_the_shell_completes_models_and_versions(small):  # noqa: F811
    def completed(*words: str) -> list[str]:
        env = {"_WITHIN_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(["within", *words]), "COMP_CWORD": str(len(words))}
        env |= {**os.environ, "WITHIN_HOME": str(small.settings.home)}
        return subprocess.run([Path(sys.executable).parent / "within"], capture_output=True, text=True, cwd=ROOT, env=env).stdout.split()
    assert completed("rollback", "ad") == [NAME] and completed("rollback", NAME, "--to", "1.") == ["1.0.0", "1.1.0"]


# --- scheduler -------------------------------------------------------------------------------------------------------------------------------------

def test_a_tripped_trigger_is_taken_back_by_the_scheduler(released):
    deployer, ctx, url = released  # noqa: F811
    live = next(r.id for r in reversed(ctx.store.find("deployment", model=NAME, version="1.1.0")) if not r.body.get("ended_at"))
    deployer.configure_rollback_triggers(live, triggers=[{"metric": "latency_p95", "threshold": 0.0001, "window": "10m"}])
    for n in range(300): ask(url, f"/v2/models/{NAME}/infer", body(f"t{n}", unit=f"u{n}"))
    assert Scheduler(ctx).tick() == [f"triggers:{live}"] and answer(url) == "1.0.0"
    assert Scheduler(ctx).tick() == [] and "latency_p95" in entries(ctx, "rollback")[-1].body["reason"]
    assert len(told := letters(ctx)) == 2 and all("1.1.0 was taken back in production" in x and "latency_p95" in x for x in told)   # one a channel, once
    assert any("1.1.0 was taken back" in n for n in needs_of(ctx))
    ctx.store.clock_start(ctx.now() + timedelta(hours=1))
    deployer.deploy(f"{NAME}@1.0.0", "production"), deployer.deploy(f"{NAME}@1.1.0", "production")
    Scheduler(ctx).tick()
    assert [e.body["event"] for e in entries(ctx, "alert")] == ["opened", "resolved"] and len(letters(ctx)) == 2


def asking(ctx, tmp_path, **rollout):
    "A deployer whose model's policy sets values of the rollout."
    shutil.copytree(ROOT / "configs", configs := tmp_path / "configs")
    policy = yaml.safe_load((file := configs / f"{NAME}.yml").read_text())
    policy.setdefault("release", {}).setdefault("rollout", {}).update(rollout)
    file.write_text(yaml.safe_dump(policy))
    return ModelDeployer(replace(ctx, settings=replace(ctx.settings, configs=configs)))


def letters(ctx) -> list[str]: return sorted(json.loads(p.read_text())["text"] for p in (ctx.settings.home / "outbox").glob("*.json"))


def test_a_rollout_that_asks_tells_its_channels_once_for_each_question(deployer, tmp_path):  # noqa: F811
    deployer.registry.approve(OLD, "reviewer@example.com", "looked"), approve(deployer)
    deployer.deploy(OLD, "production")
    deployer = asking(deployer.ctx, tmp_path, approve_from=5, max_holds=1, interval="1d")
    ctx, state = deployer.ctx, deployer.progressive_rollout(NEW)
    assert (state.approve_from, state.max_holds, state.percentage, state.asking) == (5, 1, 0, "approval")
    assert letters(ctx) == []
    for scheduler in (one := Scheduler(ctx), one, Scheduler(ctx)):   # not on every tick, and not again after a restart
        scheduler.tick()
        assert len(found := letters(ctx)) == 2 and all("10 % needs an approval" in x and state.id in x and "operate(" in x for x in found)
    assert any(state.id in n for n in needs_of(ctx)) and [e.body["event"] for e in entries(ctx, "alert")] == ["opened"]
    deployer.operate(state.id, "approve", by="reviewer@example.com")
    one.tick()
    assert [e.body["event"] for e in entries(ctx, "alert")] == ["opened", "resolved"] and needs_of(ctx) == []
    state = read_rollout(ctx, state.id)[0]
    assert state.percentage == 10
    ctx.store.clock_start(state.due)
    for _ in range(3): one.tick()   # nobody asked anything of it in a day: another question
    assert read_rollout(ctx, state.id)[0].asking == "look" and len(letters(ctx)) == 4 and sum("a person must look" in x for x in letters(ctx)) == 2
    deployer.operate(state.id, "abort", by="reviewer@example.com")
    one.tick()
    assert [e.body["event"] for e in entries(ctx, "alert")][:4] == ["opened", "resolved"] * 2   # and the abort is told, for it took a version from users
    assert [r.body["verdict"]["gate"] for r in ctx.store.find("alert", phase="open")] == ["ask.rollback"] and sum("aborted" in x for x in letters(ctx)) == 2


def test_a_rollout_that_waits_for_the_models_approval_tells_its_channels_once(deployer, tmp_path):  # noqa: F811
    deployer.registry.approve(OLD, "reviewer@example.com", "looked"), approve(deployer)
    deployer.deploy(OLD, "production")
    ctx, state = deployer.ctx, deployer.progressive_rollout(NEW)
    scheduler = Scheduler(ctx)
    scheduler.tick()
    assert letters(ctx) == []
    later = iso(ctx.now() + timedelta(hours=1))
    unclear = {"name": "e1", "winner": None, "reason": "too few rows", "looked_at": later}
    spec = {"model": NAME, "variants": [{"name": "old", "model_version": "1.0.0"}, {"name": "new", "model_version": "1.1.0"}]}
    ctx.store.put("experiment", "e1", {"phase": "inconclusive", "spec": spec, "ends_at": later, "result": unclear}, None)
    ctx.store.clock_start(max(parse_time(later), state.due))
    for _ in range(3): scheduler.tick()
    assert len(found := letters(ctx)) == 2 and all("waits for approval" in x and "approve moody@" not in x and "with a note" in x for x in found), found
    assert [e.body["event"] for e in entries(ctx, "alert")] == ["opened"] and any("too few rows" in n for n in needs_of(ctx))
    deployer.registry.approve(NEW, "reviewer@example.com", "the experiment was too short, the rest is well")
    scheduler.tick()
    assert ctx.store.find("alert", phase="open", monitor=state.id) == [] or read_rollout(ctx, state.id)[0].asking


def test_a_run_that_waits_for_a_review_tells_its_channels_and_a_fault_of_one_hides_no_other(tmp_path, capsys):
    ctx = Context.open(home=tmp_path / "home")
    waiting = {"phase": "waiting", "until": None, "needs": "within approve r2", "stage": "review", "reason": "x"}
    ctx.store.put("run", "r1", waiting | {"model": "nobody"}, None)
    revision = ctx.store.put("run", "r2", waiting | {"model": "ad_score_predictor__own"}, None)
    scheduler = Scheduler(ctx)
    for _ in range(3): assert scheduler.tick() == []
    assert letters(ctx) == ["run r2 waits for a review: within approve r2"] * 2 and capsys.readouterr().out.count("unknown model 'nobody'") == 1
    assert len(needs_of(ctx)) == 2, "listed as runs, and not once more as alerts"
    ctx.store.put("run", "r2", waiting | {"model": "ad_score_predictor__own", "phase": "passed", "needs": ""}, revision)
    scheduler.tick()
    assert ctx.store.find("alert", phase="open") == [] and len(letters(ctx)) == 2
    ctx.close()


def test_a_rollout_that_holds_because_nothing_is_known_is_still_looked_at_and_shown(tmp_path):
    from within.oncall import rolling
    ctx = Context.open(home=tmp_path / "home")
    for phase in Phase: ctx.store.put("rollout", f"r-{phase}", {"model": "m", "phase": phase}, None)
    alive = {"r-pending", "r-running", "r-waiting", "r-inconclusive", "r-error"}
    assert {d.subject for d in due(ctx)} == {r["id"] for r in rolling(ctx)} == alive
    ctx.close()


def test_what_keeps_failing_is_put_aside_and_said(tmp_path):
    ctx = Context.open(home=tmp_path / "home")
    ripe = {"model": "ad_score_predictor", "phase": "waiting", "until": "2020-01-01T00:00:00+00:00", "needs": "", "stage": "shadow", "reason": "x"}
    ctx.store.put("run", "20231001-ad_score_predictor-ffff", ripe, None)
    scheduler = Scheduler(ctx)
    for _ in range(5):
        assert scheduler.tick() == ["run:20231001-ad_score_predictor-ffff"] and scheduler.tick() == []
        assert scheduler.running[1].wait(60) == 2
        scheduler.collect()
        scheduler.tried(due(ctx)[0]).not_before = 0.0
    assert scheduler.tick() == [] and "5 failures" in given_up(ctx)[0] and entries(ctx, "schedule")
    assert "put run:20231001-ad_score_predictor-ffff aside" in within(ctx.settings.home, "status").stdout
    ctx.close()


def test_a_scheduler_that_ends_takes_its_run_along(tmp_path, monkeypatch):
    ctx = Context.open(home=tmp_path / "home")
    ctx.store.put("run", "r", {"model": "m", "phase": "waiting", "until": "2020-01-01T00:00:00+00:00", "needs": ""}, None)
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
    monkeypatch.setattr("within.scheduler.command_of", lambda item: [sys.executable, "-c", deaf])
    scheduler = Scheduler(ctx)
    scheduler.tick()
    process, began = scheduler.running[1], time.monotonic()
    scheduler.end(0.2)
    assert process.returncode in (-9, -15) and time.monotonic() - began < 30
    ctx.close()
