"""A home forgets the pages of old runs: what stays, what is told, what is still a fault, and a process that was killed half-way."""
import html
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Thread

import nbformat
import pytest
from test_runs import project  # noqa: F401  (a fixture)

from within import retention
from within.audits import SCRIPT, export
from within.backups import back_up, restore
from within.clock import FrozenClock, SystemClock, iso, parse_time
from within.context import Context
from within.errors import ConfigError, Conflict, DigestMismatch, InvalidInput
from within.files import file_digest, write_json, write_text
from within.ledger import append, entries, removal, verify, verify_run
from within.retention import files_of, forgettable, load_retention, prune
from within.runs.compare import side_by_side
from within.runs.folder import RunFolder
from within.runs.stages import take_lock
from within.runs.walk import retrain
from within.serving.routes import Route, change
from within.site import build_site
from within.ui import Reader

START = parse_time("2020-01-01")
PAGES = ("products/train.ipynb", "products/train.html", "files/evidently-drift.html", "files/model/model.ubj", "attempts/1/train.ipynb")
STAYING = ("run.json", "manifest.json", "decisions.json", "index.html", "packet.html", "files/packet.json", "products/train.decision.json",
           "configs/ads.yml", "stages/train.ipynb", "pipeline.yaml", "env.yaml")


def opened(place: Path, day: str | None = None) -> Context:
    clock = FrozenClock(day or "2024-01-01")
    return Context.open(home=place / "home", configs=place / "configs", clock=clock, user="ops@example.com", ledger_key=place / "ledger.key")


def old_run(ctx: Context, run: str, model: str = "ads", phase: str = "passed", snapshot: str = "", version: str = "") -> RunFolder:
    "A run that ended at the context's time, as the walk leaves one: its files, its decision, its last entry, its row."
    folder, home = RunFolder(ctx.settings.home, run), ctx.settings.home
    want = {"id": run, "model": model, "source": "", "stages": ["train"], "created_at": iso(ctx.now()), "created_by": "a@example.com",
            "clock": "system", "seed": 0, "policy": "p",
            "code": {"within": "1", "commit": "c", "changed": False, "lock": "l"}, "params": {"train": {}}, "overrides": {}}
    for name in (*PAGES, *STAYING): write_text(folder.path / name, f"{run} {name} " * 50)
    write_json(folder.path / "run.json", want)
    write_json(folder.path / "manifest.json", {"python": "3.11", "packages": {}})
    (folder.path / "run.log").write_text("loose\n")
    rows = {}
    if snapshot:
        for name in ("data.parquet", "snapshot.json"): write_text(home / "snapshots" / snapshot / name, f"{snapshot} {name}")
        rows = {f"snapshots/{snapshot}/{n}": file_digest(home / "snapshots" / snapshot / n) for n in ("data.parquet", "snapshot.json")}
    append(ctx, "decision", run, {"stage": "train", "outcome": "passed", "reason": "fine", "products": {}, "outputs": {"snapshot": snapshot}}, files=rows)
    kept = {p.relative_to(home).as_posix(): file_digest(p) for p in files_of(folder.path) if p.name != "run.log"}
    if phase != "waiting": append(ctx, "run", run, {"phase": phase, "stage": "train", "reason": "fine"}, files=kept)
    ctx.store.put("run", run, {"model": model, "phase": phase, "stage": "train", "reason": "fine"}, None, ctx.now())
    if version: ctx.store.add_model_version(model, version, version.replace(".", "") * 20, {"origin": {"run": run}, "lineage": {"snapshot": snapshot}})
    return folder


@pytest.fixture
def home(tmp_path):
    "A home with six runs, a month apart, long ago; the first two used rows of their own."
    (tmp_path / "configs").mkdir()
    for i in range(6): old_run(opened(tmp_path, iso(START + timedelta(days=30 * i))), f"r{i}", snapshot=f"{min(i, 2):x}" * 64)
    ctx = opened(tmp_path)
    assert verify(ctx).ok, verify(ctx)
    yield ctx
    ctx.close()


def test_what_goes_and_what_stays(home):
    plan = forgettable(keep_runs=2, ctx=home)
    assert [f.subject for f in plan.runs] == ["r0", "r1", "r2", "r3"] and [f.subject for f in plan.snapshots] == ["snapshots/" + c * 64 for c in "01"]
    before = {p for p in files_of(home.settings.home / "runs")}
    assert {p for p in files_of(home.settings.home / "runs")} == before and not entries(home, "retention")   # looking changes nothing
    done = prune(keep_runs=2, only=plan, ctx=home)
    assert (done.files, done.bytes) == (plan.files, plan.bytes) and done.runs == ("r0", "r1", "r2", "r3")
    for run in done.runs:
        place = home.settings.home / "runs" / run
        assert not any((place / p).exists() for p in (*PAGES, "files/model", "attempts")) and all((place / p).is_file() for p in (*STAYING, "run.log"))
    assert all((home.settings.home / "runs/r5" / p).is_file() for p in PAGES)
    assert sorted(p.name[:1] for p in (home.settings.home / "snapshots").iterdir()) == ["2"]   # r4 and r5 used it
    found = verify(home)
    assert found.ok and found.pruned == done.files and verify_run(home, "r0") is None
    told = entries(home, "retention", "r0")[0]
    assert told.actor == "ops@example.com" and set(told.body["pruned"]) == {f"runs/r0/{p}" for p in PAGES} and "365 days" in told.body["reason"]
    assert prune(keep_runs=2, ctx=home).files == 0 and len(entries(home, "retention")) == 6   # nothing twice


def test_nothing_goes_by_itself_and_the_default_is_careful(home):
    assert forgettable(ctx=home).files == 0   # six runs: ten of a model stay
    recent = replace(home, clock=FrozenClock(START + timedelta(days=200)))
    assert forgettable(keep_runs=1, ctx=recent).files == 0 and "ended less than 365 days ago" in forgettable(keep_runs=1, ctx=recent).kept["r0"]


def needed_by(ctx, what):
    if what == "champion": ctx.store.set_alias("ads", "champion", "1.0.0", "a")
    if what == "champion before":
        for v in ("1.0.0", "1.1.0"): ctx.store.set_alias("ads", "champion", v, "a")
    if what == "staging": ctx.store.set_alias("ads", "staging", "1.0.0", "a")
    if what == "route": change(ctx, Route("production", "ads", "1.0.0"), None, by="a")
    if what == "rollback":
        change(ctx, Route("production", "ads", "1.1.0"), None, by="a")
        ctx.store.put("deployment", "d1", {"model": "ads", "environment": "production", "version": "1.1.0", "previous": "1.0.0", "strategy": "live",
                                           "ended_at": "2023-01-01"}, None)
    if what == "experiment": ctx.store.put("experiment", "e1", {"phase": "running", "spec": {"model": "ads", "variants": {"b": "1.0.0"}}}, None)
    if what == "rollout": ctx.store.put("rollout", "ro1", {"phase": "running", "model": "ads", "version": "1.0.0"}, None)
    if what == "monitor": ctx.store.put("monitor", "ads@1.0.0", {"phase": "running", "model": "ads", "version": "1.0.0"}, None)
    uses = [{"run": "r0", "at": "2020-01-01"}]
    if what == "standing": ctx.store.put("standing", "ads", {"until": "2025-01-01", "revoked": "", "model": "ads", "uses": uses}, None)
    if what == "alert": ctx.store.put("alert", "review:r0", {"phase": "open", "model": "ads"}, None)
    if what == "waiting": ctx.store.put("run", "r0", ctx.store.get("run", "r0").body | {"phase": "waiting"}, 1, START)


USES = ("champion", "champion before", "staging", "route", "rollback", "experiment", "rollout", "monitor", "standing", "alert", "waiting")


@pytest.mark.parametrize("what", USES)
def test_what_is_in_use_stays(home, what):
    for version, run in (("1.0.0", "r0"), ("1.1.0", "r5")):
        home.store.add_model_version("ads", version, version * 10, {"origin": {"run": run}, "lineage": {"snapshot": "0" * 64}})
    assert forgettable(keep_runs=1, ctx=home).runs[0].subject == "r0"
    needed_by(home, what)
    plan = forgettable(keep_runs=1, ctx=home)
    assert [f.subject for f in plan.runs] == ["r1", "r2", "r3", "r4"], plan.kept["r0"]
    assert plan.kept["r0"] and "snapshots/" + "0" * 64 not in [f.subject for f in plan.snapshots]
    assert "r0" not in prune(keep_runs=1, ctx=home).runs and all((home.settings.home / "runs/r0" / p).is_file() for p in PAGES)


def scratch(home: Path, place: str, age: int = 400, **files: str) -> Path:
    "A folder of scratch whose newest file is so many days older than the context's time."
    then = (parse_time("2024-01-01") - timedelta(days=age)).timestamp()
    for name, text in {"within.db": "a", "deep/inside.txt": "bb", **files}.items(): write_text(home / place / name, text)
    for p in (*files_of(home / place), *(q for q in (home / place).rglob("*") if q.is_dir()), home / place): os.utime(p, (then, then))
    return home / place


def test_scratch_goes_when_nothing_has_touched_it(home):
    top = home.settings.home
    old = [scratch(top, p) for p in ("by_hand/r0/train-1", "by_hand/r9/<b>x-2", "jobs/20220101-ads-0123abcd", "replays/r0-1")]
    young = [scratch(top, "by_hand/r0/train-2", 300), scratch(top, "replays/r0-2")]
    os.utime(young[1] / "deep/inside.txt", None)                       # somebody looked into it and changed one file
    at_work, named, outside = scratch(top, "jobs/20220101-ads-00000000"), scratch(top, "replays/r0-3"), scratch(top.parent, "elsewhere")
    (at_work / "lock").touch()
    then = (parse_time("2022-01-01")).timestamp()
    for p in (at_work / "lock", at_work): os.utime(p, (then, then))
    append(home, "note", "r0", {}, files={"replays/r0-3/within.db": file_digest(named / "within.db")})
    for link in ("replays/r0-4", "by_hand/r7", "jobs/20220101-ads-11111111"): (top / link).symlink_to(outside)
    (top / "replays/stray.txt").write_text("a file")
    with take_lock(at_work / "lock", what="a job"):
        os.utime(at_work / "lock", (then, then))
        plan = forgettable(ctx=home)
        assert [f.subject for f in plan.scratch] == sorted(p.relative_to(top).as_posix() for p in old) and not plan.runs
        assert plan.files == 8 and plan.bytes == 12 and str(plan) == "8 files, 12 bytes, of 4 folders of scratch: scratch untouched for 365 days"
        assert all(p.is_dir() for p in old) and not entries(home, "retention")   # looking changes nothing
        done = prune(only=replace(plan, scratch=plan.scratch[:3]), ctx=home)     # never more than what was seen
        assert done.scratch == tuple(f.subject for f in plan.scratch[:3]) and (done.files, done.bytes) == (6, 9) and old[3].is_dir()
        assert prune(ctx=home).scratch == ("replays/r0-1",) and prune(ctx=home).scratch == ()
    assert not any(p.exists() for p in old) and not (top / "by_hand/r9").exists()
    assert all((p / "within.db").is_file() for p in (*young, at_work, named, outside)) and (top / "replays/stray.txt").is_file()
    told = entries(home, "retention", "replays/r0-1")[0]
    assert told.body["pruned"] == {} and "untouched" not in told.body["reason"] and "nothing has touched since 2022-11-27" in told.body["reason"]
    assert "2 files (3 bytes) removed" in removal(home, "replays/r0-1") and verify(home).ok and not removal(home, "r0")
    assert prune(ctx=home).scratch == ("jobs/20220101-ads-00000000",)            # its process has ended


def test_a_file_of_scratch_that_goes_while_we_look_means_that_somebody_is_at_work(home, monkeypatch):
    place, real = scratch(home.settings.home, "by_hand/r0/train-1"), retention.files_of
    monkeypatch.setattr(retention, "files_of", lambda folder: [*real(folder), folder / "within.db-journal"])
    assert not forgettable(ctx=home).scratch and place.is_dir()
    monkeypatch.undo()
    assert [f.subject for f in forgettable(ctx=home).scratch] == ["by_hand/r0/train-1"]


def test_a_run_whose_name_begins_like_scratch_is_a_run(tmp_path):
    (tmp_path / "configs").mkdir()
    for run, day in (("jobs1", "2020-01-01"), ("replays-2", "2020-02-01"), ("last", "2020-03-01")): old_run(opened(tmp_path, day), run)
    ctx = opened(tmp_path)
    assert prune(keep_runs=1, ctx=ctx).runs == ("jobs1", "replays-2") and verify(ctx).ok, verify(ctx).first_fault
    assert set(entries(ctx, "retention", "jobs1")[0].body["pruned"]) == {f"runs/jobs1/{p}" for p in PAGES}
    ctx.close()


def test_half_removed_scratch_is_finished_next_time(home):
    for place in ("replays/.pruned-r0-1", "by_hand/r0/.pruned-train-1", "jobs/.pruned-20220101-ads-0123abcd"): scratch(home.settings.home, place, age=1)
    assert not forgettable(ctx=home).scratch and not prune(ctx=home).scratch and not list(home.settings.home.rglob(".pruned-*"))


def test_tampering_is_found_before_and_after(home):
    place = home.settings.home / "runs"
    kept = (place / "r0" / "products/train.html").read_bytes()
    (place / "r0" / "products/train.html").unlink()
    assert "products/train.html, vouched for by entry" in verify(home).first_fault and "is gone" in verify(home).first_fault
    with pytest.raises(DigestMismatch, match="nothing was removed"): prune(keep_runs=2, ctx=home)   # a removal never covers a loss
    (place / "r0" / "products/train.html").write_bytes(kept + b" ")
    with pytest.raises(DigestMismatch, match="was changed afterwards"): prune(keep_runs=2, ctx=home)
    (place / "r0" / "products/train.html").write_bytes(kept)
    assert not entries(home, "retention") and prune(keep_runs=2, ctx=home).files and verify(home).ok

    for name in ("manifest.json", "decisions.json", "index.html", "products/train.decision.json"):   # what stayed is still watched
        before = (place / "r0" / name).read_bytes()
        (place / "r0" / name).write_bytes(before.replace(b"r", b"R", 1) if b"r" in before else b"x")
        assert name in verify(home).first_fault and "changed afterwards" in verify(home).first_fault
        (place / "r0" / name).unlink()
        assert name in verify(home).first_fault and "is gone" in verify(home).first_fault
        (place / "r0" / name).write_bytes(before)
    (page := place / "r0" / "products/train.html").write_text("a nicer one")
    assert "is there again and is not the file that was removed" in verify(home).first_fault
    page.unlink()
    page.symlink_to(place / "r0" / "manifest.json")
    assert "is there again" in verify(home).first_fault
    page.unlink()
    page.write_bytes(kept)   # from a backup: the very file
    assert verify(home).ok
    write_text(place / "r0" / "products/more.html", "x")
    assert "more.html was added" in verify(home).first_fault


def test_a_removal_that_covers_a_change_is_a_fault(home, tmp_path):
    page = home.settings.home / "runs/r0/products/train.html"
    page.write_text("what I would rather have decided")
    append(home, "retention", "r0", {"reason": "old", "bytes": 1, "pruned": {"runs/r0/products/train.html": file_digest(page)}})   # past `prune`
    page.unlink()
    assert "it had been changed before" in verify(home).first_fault
    (tmp_path / "verify.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "-I", "verify.py", str(export(tmp_path / "a.zip", home).path)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "removed a file that had been changed" in done.stderr


KILLED = """
import os, signal, sys
from within import retention
from within.clock import FrozenClock
from within.context import Context
home, configs, key, at = sys.argv[1:5]
step, count = retention.emptied, 0
def dying(file, until):
    global count
    count += 1
    if count == int(at): os.kill(os.getpid(), signal.SIGKILL)
    step(file, until)
retention.emptied = dying
retention.prune(keep_runs=2, ctx=Context.open(home=home, configs=configs, ledger_key=key, clock=FrozenClock("2024-01-01"), user="ops@example.com"))
"""


@pytest.mark.parametrize("at", [1, 3, 7])
def test_killed_half_way_it_is_finished_by_the_next(home, tmp_path, at):
    call = [sys.executable, "-c", KILLED, str(home.settings.home), str(home.settings.configs), str(tmp_path / "ledger.key"), str(at)]
    assert subprocess.run(call).returncode == -signal.SIGKILL
    left = [p for p in PAGES if (home.settings.home / "runs/r0" / p).exists()] + [p for p in PAGES if (home.settings.home / "runs/r1" / p).exists()]
    assert verify(home).ok and left   # the entry is there, the files not yet gone: nothing wrong
    done = prune(keep_runs=2, ctx=home)
    assert done.finished + done.files + at - 1 == 4 * len(PAGES) + 4 and verify(home).ok
    assert not any((home.settings.home / "runs" / r / p).exists() for r in ("r0", "r1", "r2", "r3") for p in PAGES)
    assert len(entries(home, "retention")) == 6


def test_who_is_at_work_keeps_what_he_uses(home):
    old_run(replace(home, clock=FrozenClock(START)), "t0", "texts")
    old_run(replace(home, clock=FrozenClock(START + timedelta(days=1))), "t1", "texts")
    with take_lock(home.settings.home / "locks" / "retrain-ads.lock"):
        done = prune(keep_runs=1, ctx=home)
    assert done.runs == ("t0",) and done.snapshots == () and done.busy == ("ads",)
    with take_lock(home.settings.home / "locks" / "keeping.lock"), pytest.raises(Conflict, match="a backup, or another removal"): prune(keep_runs=1, ctx=home)
    assert prune(keep_runs=1, ctx=home).runs == ("r0", "r1", "r2", "r3", "r4")


def test_hostile_names_lead_nowhere(home, tmp_path):
    outside = tmp_path / "precious"
    outside.mkdir()
    write_text(outside / "run.json", "{}")
    write_text(outside / "a.ipynb", "mine")
    shutil.rmtree(home.settings.home / "runs/r5")
    for i, name in enumerate(("../../precious", "link", ".hidden", "a/b", "")):
        home.store.put("run", name or " ", {"model": "ads2", "phase": "passed"}, None, START + timedelta(days=i))
    (home.settings.home / "runs/link").symlink_to(outside)
    (home.settings.home / "runs/r0/files/away").symlink_to(outside)
    assert [f.subject for f in forgettable(keep_runs=1, ctx=home).runs] == ["r0", "r1", "r2", "r3", "r4"]
    shutil.rmtree(home.settings.home / "runs/r0/files/away", ignore_errors=True)
    assert (outside / "a.ipynb").read_text() == "mine"
    for bad in ({"keep_days": 0}, {"keep_runs": -3}, {"keep_days": 10**9}, {"keep_days": float("nan")}, {"keep_runs": "many"}):
        with pytest.raises(InvalidInput, match="whole number"): forgettable(**bad, ctx=home)
    write_text(home.settings.configs / "retention.yml", "keep_day: 3\n")
    with pytest.raises(ConfigError, match="keep_day"): load_retention(home.settings.configs)


def test_everybody_says_removed_and_not_missing(home, tmp_path):
    prune(keep_runs=2, ctx=home)
    said = removal(home, "r0")
    assert "5 files" in said and "removed on 2024-01-01 by ops@example.com under retention: ended more than 365 days ago" in said
    made = export(tmp_path / "a.zip", home)
    assert made.audit.ok and not any("r0/products/train.html" in n for n in zipfile.ZipFile(made.path).namelist())
    (tmp_path / "verify.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "-I", "verify.py", str(made.path)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and f"{verify(home).pruned} removed under retention" in done.stdout
    pair = next(p for p in side_by_side(home, "r0", "r5") if p.name == "pages")
    assert (pair.first, pair.second) == (said, None)
    site = build_site(tmp_path / "out", ctx=home).parent
    assert "under retention" in (site / "runs/index.html").read_text() and "old pages removed" in (site / "models/ads.html").read_text()
    copies = tmp_path / "out/runs"
    for name in ("products/train.html", "attempts/1/train.ipynb"): assert said in html.unescape((copies / "r0" / name).read_text())   # no link leads nowhere
    assert nbformat.read(copies / "r0/attempts/1/train.ipynb", 4).cells[0].cell_type == "markdown" and not (copies / "r0/files/model").exists()
    assert said not in (copies / "r0/index.html").read_text() and (copies / "r5/products/train.html").read_text().startswith("r5 products/train.html")
    with Reader(home) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(urllib.error.HTTPError) as gone: urllib.request.urlopen(f"{server.url}runs/r0/products/train.html")
        assert gone.value.code == 410 and gone.value.read().decode().strip() == said
        with pytest.raises(urllib.error.HTTPError) as missing: urllib.request.urlopen(f"{server.url}runs/r5/products/nothing.html")
        assert missing.value.code == 404 and urllib.request.urlopen(f"{server.url}runs/r0/index.html").status == 200
        server.shutdown()
    back_up(tmp_path / "a.tar", ctx=home)
    restore(tmp_path / "a.tar", tmp_path / "again")   # a home that forgot is whole


def test_a_real_run_that_was_forgotten_cannot_go_on(project):  # noqa: F811
    key = project.with_name(f"{project.name}-keys") / "ledger.key"
    def ctx(day): return Context.open(home=project / "home", configs=project / "configs", clock=FrozenClock(day), ledger_key=key)
    for run, day in (("r1", "2022-01-01"), ("r2", "2022-01-02")): assert retrain("ad_score_predictor", run=run, ctx=ctx(day)).exit_code == 0
    later = ctx(iso(SystemClock().now() + timedelta(days=800)))   # a run's row has the store's time
    done = prune(keep_runs=1, ctx=later)
    assert done.runs == ("r1",) and verify(later).ok
    names = {p.name for p in files_of(RunFolder(later.settings.home, "r1").path / "products")}
    assert names >= {f"{s}.decision.json" for s in ("trigger", "prepare", "train")} and not any(n.endswith((".ipynb", ".html")) for n in names)
    with pytest.raises(InvalidInput, match="cannot go on: .* removed on .* under retention"): retrain("ad_score_predictor", run="r1", ctx=later)
    assert retrain("ad_score_predictor", run="r2", ctx=later).executed == () and verify(later).ok
    assert json.loads((RunFolder(later.settings.home, "r1").path / "decisions.json").read_text())["train"]["outcome"] == "passed"
    assert retention.going(later.settings.home, "r1") == [] and os.path.exists(RunFolder(later.settings.home, "r1").report)


def test_the_command_shows_asks_and_removes(home, monkeypatch):
    from typer.testing import CliRunner

    from within.cli import app
    for name, value in (("WITHIN_HOME", home.settings.home), ("WITHIN_CONFIGS", home.settings.configs), ("WITHIN_LEDGER_KEY", home.settings.ledger_key),
                        ("WITHIN_USER", "ops@example.com")): monkeypatch.setenv(name, str(value))
    def said(*words, code=0):
        done = CliRunner().invoke(app, ["prune", *words])
        assert done.exit_code == code, done.output
        return done.output
    assert "nothing to remove" in said()
    shown = said("--keep-runs", "2", "--dry-run")
    assert "r0" in shown and "stays: 2 runs: it is among the newest 2 of ads" in shown and "24 files" in shown
    assert "nothing was removed" in said("--keep-runs", "2", code=1)   # nobody is there to be asked
    assert not entries(home, "retention")
    assert "removed 24 files" in said("--keep-runs", "2", "--yes") and verify(home).ok
    assert "nothing to remove" in said("--keep-runs", "2", "--yes")
    whole = CliRunner().invoke(app, ["audit", "verify"]).output
    assert "nothing was changed" in whole and "24 files were removed under retention" in whole
    assert "removed on" in CliRunner().invoke(app, ["show", "r0"]).output
