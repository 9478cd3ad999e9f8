"""Standing approvals and schedules: counted once whoever asks, dates neither lost nor caught up, and a run that only goes on alone under a reviewer's yes."""
from __future__ import annotations

import multiprocessing
import os
import shutil
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest
import yaml
from mlflow_tables import with_tables
from test_runs import write_notebook

from within.clock import FrozenClock, parse_time
from within.context import Context
from within.errors import InvalidInput, NotApproved, UnknownModel
from within.files import read_json, write_json
from within.ledger import append, entries, verify
from within.ml.ad_score import AdScorePredictor
from within.ml.approvals import bound_digest, give_standing, revoke_standing, standing_of, use_standing, uses_of
from within.ml.continuous import ContinuousTrainer, begin_due, count_failure, dates_due, due_after
from within.ml.registry import ModelRegistry
from within.runs.folder import RunFolder
from within.runs.stages import take_lock
from within.runs.walk import held_back
from within.scheduler import Scheduler, asked, due
from within.settings import project_root

ROOT = project_root(Path(__file__).parent)
MODEL, RUN = "ad_score_predictor", "20231008-ad_score_predictor-auto"
GUIDES = {"training_frequency": "weekly", "data_window": "rolling_90d", "auto_deployment": True,
          "evaluation_criteria": {"minimum_improvement": 0.02, "required_metrics": ["rmse", "mae"]},
          "max_auto_deployments_per_month": 2}


class SettableClock(FrozenClock):
    "One that somebody sets, back too."
    def set(self, at: str): self._now = parse_time(at)


def opened(home: Path, now: str = "2023-10-08T00:00", user: str = "author@example.com", configs: Path = ROOT / "configs") -> Context:
    return Context.open(home=home, configs=configs, clock=SettableClock(now), user=user)


def small(trees: int) -> AdScorePredictor:
    return AdScorePredictor({"n_estimators": trees, "nthread": 1}).fit(pd.DataFrame({"ctr": range(40)}), pd.Series(range(40), name="score"))


def register(ctx: Context, *versions: str) -> dict[str, str]:
    "Digest by id of new versions."
    registry = ModelRegistry(ctx)
    return {i.id: i.digest for n, v in enumerate(versions) for i in [registry.register_model(small(3 + n + int(v.split(".")[1])), MODEL, v)]}


def scheduled(ctx: Context, run: str = RUN, **changes) -> ContinuousTrainer:
    "A schedule whose last run is `run`."
    trainer = ContinuousTrainer(MODEL, **GUIDES | changes, ctx=ctx)
    trainer.enable()
    row = ctx.store.get("schedule", f"continuous:{MODEL}")
    ctx.store.put("schedule", row.id, {**row.body, "run": run, "window": row.body["due"]}, row.revision)
    return trainer


@pytest.fixture
def ctx(tmp_path, monkeypatch):
    for name in [n for n in os.environ if n.startswith(("WITHIN_", "MLFLOW_TRACKING"))]: monkeypatch.delenv(name)
    made = opened(with_tables(tmp_path / "home"))
    yield made
    made.close()


@pytest.fixture
def approved(ctx):
    "Two versions of a schedule with a standing approval of one a month; the context and their digests."
    digests = register(ctx, "2.2.0", "2.3.0")
    scheduled(ctx)
    give_standing(ctx, MODEL, "ann@example.com", 1, "2023-12-31", "eight releases read")
    return ctx, digests


def refused(ctx: Context, model_id: str, digest: str, why: str) -> None:
    before, lines = uses_of(ctx, MODEL), len(entries(ctx))
    with pytest.raises(NotApproved, match=why): use_standing(ctx, model_id, digest, RUN)
    assert uses_of(ctx, MODEL) == before and len(entries(ctx)) == lines, "a refusal writes nothing"
    assert ModelRegistry(ctx).approval(model_id) is None


# --- standing approvals -------------------------------------------------------------------------------------------------------------------------

def test_a_use_is_an_approval_that_names_the_standing_one_and_asking_again_is_free(approved):
    ctx, digests = approved
    (first, d1), (second, d2) = digests.items()
    yes = use_standing(ctx, first, d1, RUN)
    assert yes == use_standing(ctx, first, d1, RUN) == ModelRegistry(ctx).require_approval(first) and yes.reviewer == "ann@example.com"
    entry = entries(ctx, "approval", first)[-1].body
    assert entry["standing"] == f"{MODEL}#1" in yes.note and entry["run"] == RUN and len(uses_of(ctx, MODEL)) == 1
    refused(ctx, second, d2, "1 of 1 automatic deployments of October 2023 are used")
    assert verify(ctx).ok


@pytest.mark.parametrize("now, allowed", [("2023-10-31T23:59:59", False), ("2023-11-01T00:00", True), ("2023-10-08T00:00:00", False)])
def test_months_and_clocks_that_are_set(approved, now, allowed):
    ctx, ((first, d1), (second, d2)) = approved[0], approved[1].items()
    use_standing(ctx, first, d1, RUN)
    ctx.clock.set(now)
    if allowed: assert use_standing(ctx, second, d2, RUN).approved
    else: refused(ctx, second, d2, "are used")


def test_a_clock_that_was_set_back_brings_no_use_back(approved):
    ctx, ((first, d1), (second, d2)) = approved[0], approved[1].items()
    ctx.clock.set("2023-11-30T12:00")
    use_standing(ctx, first, d1, RUN)
    ctx.clock.set("2023-10-30T12:00")
    refused(ctx, second, d2, "are used")
    ctx.clock.set("2023-09-01")
    refused(ctx, second, d2, "clock stands before that")


def test_a_new_one_does_not_give_the_month_again_and_the_schedules_own_limit_holds(approved):
    ctx, ((first, d1), (second, d2)) = approved[0], approved[1].items()
    use_standing(ctx, first, d1, RUN)
    give_standing(ctx, MODEL, "eve@example.com", 1, "2023-12-31", "again")
    refused(ctx, second, d2, "1 of 1")
    give_standing(ctx, MODEL, "eve@example.com", 9, "2023-12-31", "nine")
    row = ctx.store.get("schedule", f"continuous:{MODEL}")
    ctx.store.put("schedule", row.id, {**row.body, "max_per_month": 1}, row.revision)
    refused(ctx, second, d2, "1 of 1")


def test_what_it_does_not_cover(approved, tmp_path):
    ctx, digests = approved
    id, digest = next(iter(digests.items()))
    refused(ctx, id, "0" * 64, "other bytes")
    with pytest.raises(NotApproved, match="is not the one that the schedule"): use_standing(ctx, id, digest, "20231001-ad_score_predictor-hand")
    ctx.clock.set("2024-01-01T00:00")
    refused(ctx, id, digest, "ended at 2024-01-01")
    ctx.clock.set("2023-10-08")
    revoke_standing(ctx, MODEL, "bob@example.com", "a new source comes")
    assert revoke_standing(ctx, MODEL, "bob@example.com", "twice").revoked == "bob@example.com: a new source comes"
    refused(ctx, id, digest, "revoked by bob@example.com")
    give_standing(ctx, MODEL, "ann@example.com", 1, "2023-12-31", "it came")
    ModelRegistry(ctx).reject(id, "bob@example.com", "no")
    refused(ctx, id, digest, "bob@example.com rejected it")


def test_disabled_not_automatic_or_given_by_the_one_who_enabled(approved):
    ctx, digests = approved
    id, digest = next(iter(digests.items()))
    ContinuousTrainer.of(MODEL, ctx).disable()
    refused(ctx, id, digest, "not enabled")
    scheduled(ctx, auto_deployment=False)
    refused(ctx, id, digest, "does not deploy automatically")
    row = ctx.store.get("schedule", f"continuous:{MODEL}")
    ctx.store.put("schedule", row.id, {**row.body, "auto_deployment": True, "enabled_by": "Ann@example.com "}, row.revision)
    refused(ctx, id, digest, "enabled the schedule")
    with pytest.raises(NotApproved, match="cannot approve its versions in advance"): give_standing(ctx, MODEL, "ann@example.com", 1, "2023-12-31", "x")


def test_the_author_of_a_version_cannot_have_approved_it(ctx):
    (id, digest), = register(ctx, "2.2.0").items()
    scheduled(ctx)
    body = ctx.store.get("schedule", f"continuous:{MODEL}")
    ctx.store.put("schedule", body.id, {**body.body, "enabled_by": "ops@example.com"}, body.revision)
    give_standing(ctx, MODEL, "author@example.com", 1, "2023-12-31", "my own")
    refused(ctx, id, digest, "made ad_score_predictor@2.2.0 and cannot approve it")


def test_another_policy_and_a_freeze(tmp_path, ctx):
    configs = Path(shutil.copytree(ROOT / "configs", tmp_path / "configs"))
    ctx = opened(ctx.settings.home, configs=configs)
    (id, digest), = register(ctx, "2.2.0").items()
    scheduled(ctx, evaluation_criteria=None)
    given = give_standing(ctx, MODEL, "ann@example.com", 1, "2023-12-31", "read")
    text = (configs / f"{MODEL}.yml").read_text()
    def written(**gates): (configs / f"{MODEL}.yml").write_text(yaml.safe_dump(yaml.safe_load(text) | gates, sort_keys=False))
    written(gates={"improvement": 0.01})
    refused(ctx, id, digest, "the policy is another one")
    release = yaml.safe_load(text)["release"]
    written(release=release | {"freeze": ["2023-10-01_to_2023-10-08"]})
    refused(ctx, id, digest, "there is a freeze until 2023-10-09 00:00")
    assert bound_digest(ctx.policy(MODEL)) == given.policy, "a freeze makes no approval void"
    ctx.clock.set("2023-10-09T00:00")
    assert use_standing(ctx, id, digest, RUN).approved
    write_json((folder := RunFolder(ctx.settings.home, RUN)).path / "run.json", {"model": MODEL, "source": ""})
    assert held_back(ctx, folder, "rollout", []) is None
    written(release=release | {"freeze": ["2023-10-20_to_2023-10-21", "2023-10-01_to_2023-10-20"]})
    held = held_back(ctx, folder, "rollout", ["abtest"])   # approved before the freeze, and its rollout would begin in it
    assert (held.phase, held.until) == ("waiting", "2023-10-21T00:00:00+00:00") and held_back(ctx, folder, "shadow", []) is None
    for wrong in ("christmas", "2023-10-08_to_2023-10-01", "2023-02-30_to_2023-03-01", ["2023-10-01"]):
        written(release=release | {"freeze": [wrong]})
        with pytest.raises(InvalidInput): ctx.policy(MODEL)
    ctx.close()


def test_after_a_rollback_a_reviewer_must_look(approved):
    ctx, ((first, d1), (second, d2)) = approved[0], approved[1].items()
    use_standing(ctx, first, d1, RUN)
    ctx.clock.set("2023-11-02")
    ctx.store.put("rollout", "r1", {"model": MODEL, "version": first.partition("@")[2], "phase": "failed"}, None)
    append(ctx, "rollout", "r1", {"action": "rollback"})
    refused(ctx, second, d2, "was rolled back")
    give_standing(ctx, MODEL, "ann@example.com", 1, "2023-12-31", "looked: a timeout of the feature store")
    assert use_standing(ctx, second, d2, RUN).approved


def test_a_run_that_waits_at_review_is_taken_up_when_a_standing_approval_is_given(ctx):
    scheduled(ctx)
    waiting = {"model": MODEL, "phase": "waiting", "until": None, "needs": "within approve", "stage": "review", "reason": "x"}
    ctx.store.put("run", RUN, waiting, None, ctx.now())
    ctx.store.put("run", "by_hand", waiting, None, ctx.now())
    assert due(ctx) == []
    give_standing(ctx, MODEL, "ann@example.com", 1, "2023-12-31", "read")
    assert [d.id for d in due(ctx)] == [f"run:{RUN}"]
    revoke_standing(ctx, MODEL, "ann@example.com", "no")
    assert due(ctx) == []


@pytest.mark.parametrize("change, says", [
    *(({"per_month": n}, "1 to 31") for n in (0, 32, True, 1.5, None)), ({"until": "2023-10-07"}, "end after now"),
    ({"until": "2025-01-01"}, "within 366 days"), ({"until": "soon"}, "not a date"), ({"reviewer": " "}, "reviewer"),
    ({"note": "a\nb"}, "note"), ({"note": ""}, "note")])
def test_words_that_give_nothing(ctx, change, says):
    given = {"reviewer": "ann@example.com", "per_month": 1, "until": "2023-12-31", "note": "read"} | change
    with pytest.raises(InvalidInput, match=says): give_standing(ctx, MODEL, **given)
    with pytest.raises(UnknownModel): give_standing(ctx, "nobody", **given)
    with pytest.raises(InvalidInput, match="no standing approval"): revoke_standing(ctx, MODEL, "a", "b")
    assert standing_of(ctx, MODEL) is None and entries(ctx) == []


def ask(home: Path, model_id: str, digest: str, barrier, answers) -> None:
    ctx = opened(home)
    barrier.wait(60)
    try: answers.put(use_standing(ctx, model_id, digest, RUN).model_id)
    except NotApproved as e: answers.put(str(e))
    os._exit(9) if not answers._buffer else answers.close()   # it dies at once, or as soon as it has told


def test_two_processes_cannot_both_take_the_last_one(approved):
    ctx, digests = approved
    make = multiprocessing.get_context("spawn")
    barrier, answers = make.Barrier(2), make.Queue()
    asking = [make.Process(target=ask, args=(ctx.settings.home, *item, barrier, answers)) for item in digests.items()]
    for p in asking: p.start()
    said = sorted(answers.get(timeout=120) for _ in asking)
    for p in asking: p.join(60)
    assert sum(s in digests for s in said) == 1 and sum("1 of 1 automatic deployments" in s for s in said) == 1
    assert len(uses_of(ctx, MODEL)) == 1 and verify(ctx).ok


# --- dates --------------------------------------------------------------------------------------------------------------------------------------

def following(frequency: str, since: str, n: int, timezone: str = "UTC") -> list[str]:
    found = [parse_time(since)]
    for _ in range(n): found.append(due_after(frequency, timezone, found[0], found[-1]))
    return [f"{d:%y-%m-%d %H:%M}" for d in found[1:]]


@pytest.mark.parametrize("frequency, since, timezone, expected", [
    ("monthly", "2023-12-31T08:00", "UTC", ["24-01-31 08:00", "24-02-29 08:00", "24-03-31 08:00"]),
    ("quarterly", "2023-11-30T08:00", "UTC", ["24-02-29 08:00", "24-05-30 08:00", "24-08-30 08:00"]),
    ("daily", "2024-02-28T08:00", "UTC", ["24-02-29 08:00", "24-03-01 08:00"]),
    ("0 3 31 * *", "2024-01-31T03:00", "UTC", ["24-03-31 03:00", "24-05-31 03:00"]),
    ("0 3 * * 0", "2024-03-08T00:00", "UTC", ["24-03-10 03:00", "24-03-17 03:00"]),
    ("0 3 * * 7", "2024-03-08T00:00", "UTC", ["24-03-10 03:00", "24-03-17 03:00"]),
    ("0 3 * * 1-5", "2024-03-08T12:00", "UTC", ["24-03-11 03:00", "24-03-12 03:00"]),
    ("30 2 * * *", "2024-03-29T12:00", "Europe/Berlin", ["24-03-30 01:30", "24-03-31 01:30", "24-04-01 00:30"]),
    ("30 2 * * *", "2024-10-25T12:00", "Europe/Berlin", ["24-10-26 00:30", "24-10-27 00:30", "24-10-28 01:30"])])
def test_month_ends_weekdays_and_nights_when_clocks_change(frequency, since, timezone, expected):
    assert following(frequency, since, len(expected), timezone) == expected


BAD = {"training_frequency": [("weekley", "did you mean 'weekly'"), ("*/5 * * * *", "an hour at least"), ("0 3 * *", "five fields"),
                              ("0 3 1 * mon", "name one of the two"),
                              ("0 3 30 2 *", "no date at all"), ("99 3 * * *", "maximum"), (None, "unknown training frequency")],
       "timezone": [("Mars/Pole", "no time zone"), ("../etc/passwd", "no time zone"), (None, "no time zone")],
       "data_window": [("2023-01-01_to_2023-02-01", "must move"), ("rolling_0d", "must move"), (None, "must move")],
       "evaluation_criteria": [({"minimum_improvement": 2}, "share from 0 to 1"), ({"minimum_improvement": float("nan")}, "share from 0 to 1"),
                               ({"required_metrics": "rmse"}, "lists error metrics"), ({"required_metrics": ["r3"]}, "gates.improvement_metric"),
                               ({"speed": 1}, "unknown evaluation criterion")],
       "max_auto_deployments_per_month": [(-1, "0 or more"), (2.0, "0 or more")], "max_failures": [(0, "1 to 100")], "missed": [("all", "unknown way")],
       "auto_deployment": [("yes", "True or False")]}


@pytest.mark.parametrize("settings, says", [({k: value}, says) for k, cases in BAD.items() for value, says in cases])
def test_settings_that_cannot_be_meant(ctx, settings, says):
    with pytest.raises(InvalidInput, match=says): ContinuousTrainer(MODEL, **GUIDES | settings, ctx=ctx)
    assert ctx.store.find("schedule") == []


def test_dates_that_were_missed_are_counted_and_one_run_stands_for_them_or_none():
    body = {"frequency": "0 * * * *", "timezone": "UTC", "enabled_at": "2023-10-01T00:00:00+00:00", "due": "2023-10-01T01:00:00+00:00", "missed": "once"}
    assert dates_due(body, parse_time("2023-10-01T00:59:59")) is None, "also for a clock that was set back"
    years = dates_due(body, parse_time("2026-10-01T00:30"))
    assert years.runs and years.due == parse_time("2026-10-01T01:00") and len(years.missed) == 20 and years.count == 9_999
    weekly = body | {"frequency": "weekly", "due": "2023-10-08T00:00:00+00:00", "missed": "skip"}
    late, timely = dates_due(weekly, parse_time("2023-10-16T00:00")), dates_due(weekly, parse_time("2023-10-15T05:00"))
    assert not late.runs and late.count == 2 and "none of them is made up for" in late.said and timely.runs and timely.count == 1


def test_enable_and_disable_are_said_once_and_the_guides_call_is_kept(ctx):
    trainer = ContinuousTrainer(model_name=MODEL, **GUIDES, ctx=ctx)
    first = trainer.enable()
    assert trainer.enable() == first and first.due == parse_time("2023-10-15") and "there is no standing approval" in first.automatic
    ctx.clock.set("2023-10-10")
    assert trainer.enable().due == first.due, "asking again moves no date"
    assert trainer.disable() == trainer.disable() and trainer.status().state == "disabled" and begin_due(ctx, MODEL) == ""
    assert [e.body["event"] for e in entries(ctx, "schedule")] == ["enabled", "disabled"] and ctx.store.find("run") == []
    assert ContinuousTrainer.of(MODEL, ctx, training_frequency="daily").enable().due == parse_time("2023-10-11")
    assert ContinuousTrainer.of(MODEL, ctx).settings["overrides"]["gates.improvement_also"] == ["mae"]


def test_after_so_many_failures_it_stops_and_asks_a_person_to_look(ctx):
    scheduled(ctx)
    assert count_failure(ctx, MODEL, "another", "x") == "" and [count_failure(ctx, MODEL, RUN, f"full {n}") for n in range(2)] == ["", ""]
    assert "stopped after 3 failures" in count_failure(ctx, MODEL, RUN, "full 3") and ContinuousTrainer.of(MODEL, ctx).status().state == "stopped"
    ctx.clock.set("2024-10-08")
    scheduler = Scheduler(ctx)
    assert scheduler.tick() == [] == scheduler.tick(), "nothing is due of what has stopped"
    assert [e.body["event"] for e in entries(ctx, "alert")] == ["opened"] and "within continuous enable" in asked(ctx)[0].reason
    ContinuousTrainer.of(MODEL, ctx).enable()
    scheduler.tick()
    assert [e.body["event"] for e in entries(ctx, "alert")] == ["opened", "resolved"]


# --- runs ---------------------------------------------------------------------------------------------------------------------------------------

STAGES = {"trigger": ("upstream = None", "override = ''  # str, why", {"override": ""}, "stage.conclude(Decision('passed', override))"),
          "prepare": ("upstream = ['trigger']", "start = ''  # str, first day\nend = ''  # str, last day", {"start": "", "end": ""},
                      "stage.conclude(Decision('passed', f'{start} to {end}, {stage.policy.gates.improvement:g}'))"),
          "review": ("upstream = ['prepare']", "extra = 0  # int, nothing", {"extra": 0},
                     "import os\nfrom within.runs.decisions import review_decision\ndecision = review_decision(stage, (home / 'challenger').read_text(), {})\n"
                     "if (home / 'die').exists(): (home / 'die').unlink(), os._exit(9)\nstage.conclude(decision)")}


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A project whose pipeline ends at the review, on the replay clock; its context."
    tasks = []
    for name, (upstream, parameters, values, body) in STAGES.items():
        source = tmp_path / f"nbs/stages/{name}.ipynb"
        write_notebook(source, name, upstream, parameters, body)
        text = source.read_text().replace(f"params=dict({next(iter(values))}={next(iter(values))})", f"params=dict({', '.join(f'{k}={k}' for k in values)})")
        source.write_text(text)
        tasks.append({"name": name, "source": f"nbs/stages/{name}.ipynb", "static_analysis": "strict", "nb_product_key": ["nb", "html"],
                      "product": {k: f"{{{{out}}}}/{name}{end}" for k, end in (("nb", ".ipynb"), ("html", ".html"), ("decision", ".decision.json"))},
                      "params": {"run": "{{run}}", "model": "{{model}}", "source": "{{source}}", **values},
                      **({"upstream": tasks[-1]["name"]} if tasks else {})})
    write_json(tmp_path / "pipeline.yaml", {"meta": {"extract_upstream": False, "extract_product": False}, "tasks": tasks})
    write_json(tmp_path / "env.yaml", {"run": "", "model": MODEL, "source": "", "out": "products"})
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for name in [n for n in os.environ if n.startswith(("WITHIN_", "MLFLOW_TRACKING"))]: monkeypatch.delenv(name)
    for name, value in {"HOME": with_tables(tmp_path / "home"), "CONFIGS": tmp_path / "configs", "CLOCK": "replay", "USER": "author@example.com"}.items():
        monkeypatch.setenv(f"WITHIN_{name}", str(value))
    ctx = Context.open()
    ctx.store.clock_start(parse_time("2023-10-01"))
    yield ctx
    ctx.close()


def worked(scheduler: Scheduler, patience: float = 180.0) -> None:
    "One look and what it leads to."
    scheduler.tick()
    if scheduler.running: scheduler.running[1].wait(patience)
    scheduler.collect()


@pytest.mark.slow
def test_a_run_of_the_schedule_goes_on_alone_under_a_standing_approval_and_waits_without(project):
    ctx, scheduler = project, Scheduler(project)
    digests = register(ctx, "2.2.0", "2.3.0")
    ContinuousTrainer(MODEL, **GUIDES, ctx=ctx).enable()
    give_standing(ctx, MODEL, "ann@example.com", 2, "2023-12-31", "eight releases read")
    scheduler.tick()
    assert scheduler.running is None and ctx.store.find("run") == []
    (ctx.settings.home / "challenger").write_text("ad_score_predictor@2.2.0")
    (ctx.settings.home / "die").touch()   # the first attempt is gone after the use and before the decision
    ctx.clock.advance_to(parse_time("2023-10-08T00:00:10"))
    worked(scheduler)
    row = ctx.store.get("schedule", f"continuous:{MODEL}")
    run, folder = row.body["run"], RunFolder(ctx.settings.home, row.body["run"])
    assert row.body["failures"] == 1 and len(uses_of(ctx, MODEL)) == 1 and ctx.store.get("run", run).body["phase"] == "error"
    scheduler = Scheduler(ctx)   # and the scheduler too
    assert scheduler.tick() == [], "ten minutes later, and not at once"
    ctx.clock.advance_to(parse_time("2023-10-08T00:10:10"))
    worked(scheduler)
    assert ctx.store.get("run", run).body["phase"] == "passed" and len(uses_of(ctx, MODEL)) == 1, "counted once"
    decisions = read_json(folder.path / "decisions.json")
    assert decisions["review"]["reason"].startswith("approved automatically: standing approval ad_score_predictor#1 of ann@example.com"), "not by ann herself"
    assert decisions["prepare"]["reason"] == "2023-07-10 to 2023-10-07, 0.02" and "the weekly schedule" in decisions["trigger"]["reason"]
    page, told = folder.report.read_text(), read_json(folder.path / "run.json")
    assert "policy gates.improvement = 0.02 (a criterion of continuous training; the policy says 0.05)" in page and told["automatic"]["frequency"] == "weekly"

    file = ctx.settings.configs / f"{MODEL}.yml"
    file.write_text(file.read_text().replace("r2: {min: 0.3}", "r2: {min: 0.1}"))
    (ctx.settings.home / "challenger").write_text("ad_score_predictor@2.3.0")
    ctx.clock.advance_to(parse_time("2023-10-15T00:00:10"))
    worked(scheduler)
    again = ctx.store.get("schedule", row.id).body
    waiting = ctx.store.get("run", again["run"]).body
    assert again["run"] != run and again["failures"] == 0 and waiting["phase"] == "waiting" and "the policy is another one" in waiting["reason"]
    assert f"within approve {again['run']}" in waiting["needs"] and ModelRegistry(ctx).approval("ad_score_predictor@2.3.0") is None

    ctx.clock.advance_to(parse_time("2023-11-05T00:00:10"))   # three more dates, and the run still waits
    assert scheduler.tick() == [f"schedule:{row.id}"] and scheduler.running is None
    status = ContinuousTrainer.of(MODEL, ctx).status()
    assert status.last_runs[0]["what"].startswith("skipped: run") and status.due == parse_time("2023-11-12") and status.deployments == 0
    assert entries(ctx, "schedule", row.id)[-1].body["missed_count"] == 2 and verify(ctx).ok and len(digests) == 2


def test_what_dies_between_the_row_and_the_folder_is_made_good_and_two_schedulers_begin_one_run(project, monkeypatch):
    ctx = project
    ContinuousTrainer(MODEL, **GUIDES, missed="once", ctx=ctx).enable()
    ctx.clock.advance_to(parse_time("2023-10-23"))
    monkeypatch.setattr("within.ml.continuous.make_folder", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt): begin_due(ctx, MODEL)
    monkeypatch.undo()
    run = ctx.store.get("schedule", f"continuous:{MODEL}").body["run"]
    assert run.startswith("20231022-") and not RunFolder(ctx.settings.home, run).path.exists()
    monkeypatch.setattr("within.scheduler.command_of", lambda item: ["true"])
    other, scheduler = Scheduler(ctx), Scheduler(ctx)
    with take_lock(ctx.path("locks", f"retrain-{MODEL}.lock")): assert other.tick() == [] and other.running is None, "a person is going on with it"
    assert other.tick() == [f"run:{run}"] == scheduler.tick() and RunFolder(ctx.settings.home, run).intention["automatic"]["window"].startswith("2023-10-22")
    for s in (other, scheduler): s.running[1].wait(30)
    assert begin_due(ctx, MODEL) == "" and [e.body["missed_count"] for e in entries(ctx, "schedule") if e.body["event"] == "began"] == [2]
    assert ctx.clock.now() - parse_time("2023-10-22") == timedelta(days=1)
