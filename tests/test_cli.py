"""The `within` command as a person meets it: exit codes, sentences instead of tracebacks, and speed."""
import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from within.context import Context
from within.ml.registry import ModelRegistry
from within.settings import project_root

ROOT = project_root(Path(__file__).parent)


@pytest.fixture
def within(tmp_path):
    "Run the command in a fresh home."
    env = {k: v for k, v in os.environ.items() if not k.startswith("WITHIN_")} | {"WITHIN_HOME": str(tmp_path / "home"), "COLUMNS": "200"}

    def call(*arguments, **more):
        argv = [sys.executable, "-c", "from within.cli import main; main()", *arguments]
        return subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env={**env, **more}, timeout=120)

    call.home = tmp_path / "home"
    return call


def test_help_lists_the_commands_and_imports_nothing_heavy(within):
    shown = within("--help")
    assert shown.returncode == 0 and all(c in shown.stdout for c in ("retrain", "runs", "show", "check", "approve", "reject", "status", "rollback", "ingest"))
    code = "import within.cli, sys; print([m for m in ('pandas', 'ploomber', 'mlflow', 'sqlalchemy', 'xgboost', 'rich.console') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout.strip() == "[]"


@pytest.mark.parametrize("arguments, says", [
    (("retrain", "ad_score_predicter"), "did you mean 'ad_score_predictor'"),
    (("retrain", "ad_score_predictor", "--set", "minimum_sample=1"), "did you mean 'minimum_samples'"),
    (("retrain", "ad_score_predictor", "--set", "prepare.minimum_samples=few"), "not of type int"),
    (("retrain", "ad_score_predictor", "--until", "shaddow"), "did you mean 'shadow'"),
    (("retrain", "ad_score_predictor", "--run", "../../etc/x"), "is not a run id"),
    (("retrain", "ad_score_predictor", "--run", "20231001-ad_score_predictor-ffff"), "unknown run"),
    (("retrain", "ad_score_predictor", "--source", "upworthy"), "unknown source"),
    (("show", "nothing"), "unknown run"),
    (("approve", "ad_score_predictor@9.9.9", "--note", "x"), "unknown model"),
    (("demo", "--fault", "label_delay"), "unknown fault of a demonstration"),
    (("no-such-command",), "No such command"),
])
def test_a_wrong_argument_exits_2_with_a_sentence(within, arguments, says):
    done = within(*arguments)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (within.home / "runs").exists()


def test_a_fresh_home(within):
    assert within("runs").stdout.startswith("no runs yet")
    assert within("status").stdout.splitlines()[0] == "nothing needs a person now"
    assert within("audit", "verify").returncode == 0
    plan = within("retrain", "ad_score_predictor", "--set", "prepare.minimum_samples=1000", "--dry-run")
    assert plan.returncode == 0 and "minimum_samples" in plan.stdout and "override" in plan.stdout and not (within.home / "runs").exists()


def test_check_names_file_and_line(within, tmp_path):
    fine = within("check")
    assert fine.returncode == 0 and fine.stdout.startswith("in order"), fine.stdout
    configs = tmp_path / "configs"
    shutil.copytree(ROOT / "configs", configs)
    policy = configs / "ad_score_predictor.yml"
    policy.write_text(policy.read_text() + "\ntrigers: {js_divergence: 0.3}\n")
    (configs / "policies.yml").write_text((configs / "policies.yml").read_text().replace("js_divergence: 0.2", "js_divergence: -0.2"))
    wrong = within("check", WITHIN_CONFIGS=str(configs))
    assert wrong.returncode == 1 and "Traceback" not in wrong.stderr
    assert "ad_score_predictor.yml:" in wrong.stdout or "policies.yml:" in wrong.stdout, wrong.stdout


def test_debug_shows_the_traceback(within):
    assert "Traceback" in within("--debug", "retrain", "nobody").stderr


def test_a_reader_who_has_seen_enough_is_no_error(within):
    reading = "from within.cli import main; import sys; sys.argv = ['within', 'status']; main()"
    env = os.environ | {"WITHIN_HOME": str(within.home)}
    child = subprocess.Popen([sys.executable, "-c", reading], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env)
    child.stdout.close()   # before it writes its first line
    assert child.wait(60) == 141 and child.stderr.read() == ""
    child.stderr.close()


@pytest.mark.slow
def test_if_changed_runs_once_and_then_says_why_not(home, tmp_path):
    def retrain(*more, **env):
        argv = [sys.executable, "-c", "from within.cli import main; main()", "retrain", "ad_score_predictor", "--profile", "ci", *more]
        return subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "COLUMNS": "200", **env}, timeout=300)
    few = ("--set", "prepare.minimum_samples=100000000", "--if-changed")   # too few rows: declined after two stages
    first = retrain(*few)
    assert first.returncode == 0 and "declined at prepare" in first.stdout, first.stdout + first.stderr
    again = retrain(*few)
    assert again.returncode == 0 and again.stdout.startswith("nothing changed since run 20231001-ad_score_predictor-") and "was declined" in again.stdout
    assert len(list((home / "runs").iterdir())) == 1
    policies = shutil.copytree(os.environ["WITHIN_CONFIGS"], tmp_path / "policies")
    text = (policies / "ad_score_predictor.yml").read_text()
    (policies / "ad_score_predictor.yml").write_text(text.replace("score_threshold: 50", "score_threshold: 51"))
    for changed in ({"WITHIN_CONFIGS": str(policies)}, {}):   # another policy; then the first again, which is no longer the last
        assert "declined at prepare" in retrain(*few, **changed).stdout
    assert len(list((home / "runs").iterdir())) == 3
    assert retrain("--run", "20231001-ad_score_predictor-0000", "--if-changed").returncode == 2
    assert "did you mean 'training'" in retrain("--profile", "trainig").stderr


@pytest.mark.slow
def test_a_champion_whose_training_days_nobody_recorded_can_be_replaced(home):
    with closing(Context.open()) as ctx:
        registry = ModelRegistry(ctx)
        registry.register_model(registry.load("ad_score_predictor", "2.1.0"), "ad_score_predictor", "2.1.1")   # as somebody brings a model along
        registry.set_alias("ad_score_predictor", "champion", "2.1.1")
    argv = [sys.executable, "-c", "from within.cli import main; main()", "retrain", "ad_score_predictor", "--until", "trigger"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "COLUMNS": "200"}, timeout=300)
    assert done.returncode == 0 and "error" not in done.stdout and ("✓ trigger" in done.stdout or "✗ trigger" in done.stdout), done.stdout


def test_the_shipped_workflows_call_what_exists():
    import yaml
    scripts = {"github-actions.yml": lambda w: [s.get("run", "") for s in w["jobs"]["retrain"]["steps"]], "gitlab-ci.yml": lambda w: w["retrain"]["script"]}
    for file, script in scripts.items():
        lines = "\n".join(script(yaml.safe_load((ROOT / "templates" / "ci" / file).read_text())))
        assert "make setup" in lines and "--profile ci --if-changed" in lines and ".venv/bin/within check" in lines


# --- tokens: whose word is it? ------------------------------------------------------------------------------------------------------------------------

STATE = [("rollback", "m", "--reason", "x"), ("unfence", "m", "1.0.0", "--note", "x"), ("approve", "m@1.0.0"), ("reject", "m@1.0.0"),
         ("retrain", "nobody"), ("event", "add", "x", "--kind", "new_format"), ("event", "end", "x", "--note", "x"), ("ingest", "a.yml", "b.csv"),
         ("register", "m", "f", "--version", "1.0.0"), ("bootstrap", "--now", "some day")]


@pytest.fixture
def command(tmp_path, monkeypatch):
    "The command in this process, in a home of its own that others find by `.ctx`."
    from typer.testing import CliRunner

    from within.cli import app
    from within.context import Context
    monkeypatch.setenv("WITHIN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WITHIN_CLOCK", "system")
    for name in ("WITHIN_USER", "WITHIN_TOKEN"): monkeypatch.setenv(name, "")

    def call(*words, token=None, **more):
        return CliRunner().invoke(app, words, env={"WITHIN_TOKEN": token or "", "WITHIN_USER": "whoever", **more})

    call.ctx, call.own = Context.open(), tmp_path / "home" / "serving" / "token"
    yield call
    call.ctx.close()


def entry(ctx, kind):
    from within.ledger import entries
    return entries(ctx, kind)[-1]


def test_without_tokens_the_files_permissions_are_the_boundary(command):
    from within.serving.access import issue
    issue(command.ctx, "dashboard", "read")   # changes nothing, so it guards nothing
    assert command("event", "add", "new format", "--kind", "new_format", "--by", "ann@example.com").exit_code == 0
    assert entry(command.ctx, "event").actor == "ann@example.com"
    assert command("event", "add", "another", "--kind", "new_format", token="the home's own, as ever").exit_code == 0


@pytest.mark.parametrize("words", STATE, ids=lambda w: w[0])
def test_with_tokens_what_changes_state_needs_one_of_its_role(command, words):
    from within.ledger import entries
    from within.serving.access import issue
    from within.serving.wire import token as token_in_file
    held = {role: issue(command.ctx, f"a-{role}", role) for role in ("read", "operate", "approve")}
    needs, before = "approve" if words[0] in ("approve", "reject") else "operate", len(entries(command.ctx))
    own = token_in_file(command.ctx.settings)   # the home's own: it hands out tokens, and is nobody's name
    for token in (None, "wrong", held[needs][:-1], own, *(t for r, t in held.items() if r != needs)):
        said = command(*words, token=token)
        assert said.exit_code == 1 and f"one to {needs}" in said.stderr and "--token-file" in said.stderr, (token, said.stderr)
    assert len(entries(command.ctx)) == before and not command.ctx.store.find("run")
    assert "token" not in (said := command(*words, token=held[needs])).stderr, said.stderr   # whatever is wrong then, it is something else
    assert not any(t in said.output for t in held.values())


def test_the_ledger_names_the_tokens_holder(command, tmp_path):
    from within.serving.access import issue
    from within.serving.restarts import set_fence
    set_fence(command.ctx, "m", "1.0.0", "planted", "test")
    token = issue(command.ctx, "ann", "operate")
    for wrong in ("bob", "whoever"):
        other = command("unfence", "m", "1.0.0", "--note", "repaired", "--by", wrong, token=token)
        assert other.exit_code == 2 and f"the token is ann's, and the command names {wrong}" in other.stderr
    file = tmp_path / "my token"
    file.write_text(token + "\n")
    assert command("--token-file", str(file), "unfence", "m", "1.0.0", "--note", "repaired").exit_code == 0
    assert entry(command.ctx, "fence").actor == "ann"
    assert command("event", "add", "x", "--kind", "new_format", "--by", "ann", token=token).exit_code == 0 and entry(command.ctx, "event").actor == "ann"
    for text in ("", "two words", "\u20ac", "a\nb", "x" * 300):
        file.write_text(text)
        bad = command("--token-file", str(file), "status")
        assert bad.exit_code == 2 and "one token and nothing else" in bad.stderr
    assert command("--token-file", str(tmp_path / "none"), "status").exit_code == 2


def test_an_approval_is_in_the_name_of_the_tokens_holder(command):
    from within.ml.registry import ModelRegistry
    from within.serving.access import issue
    command.ctx.store.add_model_version("m", "1.0.0", "0" * 64, {"created_by": "ann"})
    ann, bo = (issue(command.ctx, name, "approve") for name in ("ann", "bo"))
    own = command("approve", "m@1.0.0", "--note", "x", token=ann)
    assert own.exit_code == 1 and "somebody else must" in own.stderr
    assert command("reject", "m@1.0.0", "--reviewer", "cy@example.com", "--note", "x", token=bo).exit_code == 2
    assert (said := command("reject", "m@1.0.0", "--note", "looked at", token=bo)).exit_code == 0, said.stderr
    assert ModelRegistry(command.ctx).decision("m@1.0.0").reviewer == entry(command.ctx, "rejection").actor == "bo"


def test_a_review_is_signed_by_its_name(command):
    from within.ml.registry import ModelRegistry
    command.ctx.store.add_model_version("m", "1.0.0", "0" * 64, {"created_by": "ann"})
    said = command("reject", "m@1.0.0", "--review", "model-card", "--reviewer", "bo@example.com", "--note", "no licence named")
    assert said.exit_code == 0 and "rejected by bo@example.com: model card" in said.stdout and "still to be signed" in said.stdout
    assert ModelRegistry(command.ctx).decision("m@1.0.0").review == "model_card" and entry(command.ctx, "rejection").body["review"] == "model_card"
    unknown = command("approve", "m@1.0.0", "--review", "model-crad", "--reviewer", "bo@example.com", "--note", "x")
    assert unknown.exit_code == 2 and "did you mean 'model_card'" in unknown.stderr
    own = command("approve", "m@1.0.0", "--review", "segments", "--reviewer", "ann", "--note", "x")
    assert own.exit_code == 1 and "somebody else must" in own.stderr


def test_tokens_are_handed_out_by_the_homes_owner(command):
    first = command("token", "issue", "ann", "--role", "operate")
    assert first.exit_code == 0 and len(first.stdout.strip()) == 43 and "from now on" in first.stderr
    token = first.stdout.strip()
    for words in (("issue", "eve", "--role", "approve"), ("issue", "eve"), ("revoke", "bo")):
        for shown in (None, token, "guessed"):
            said = command("token", *words, token=shown)
            assert said.exit_code == 1 and "no role includes handing out tokens" in said.stderr and str(command.own) in said.stderr
    assert command.own.stat().st_mode & 0o777 == 0o600
    assert command("--token-file", str(command.own), "token", "issue", "bo", "--role", "approve").exit_code == 0
    assert command("token", "list").stdout.count("approve") == 1
    assert command("token", "revoke", "ann", token=token).exit_code == 0 and entry(command.ctx, "token").actor == "ann"   # one's own
    assert command("event", "add", "x", "--kind", "new_format", token=token).exit_code == 1
    assert command("--token-file", str(command.own), "token", "revoke", "bo").exit_code == 0
    assert command("event", "add", "x", "--kind", "new_format").exit_code == 0   # nobody holds one any more


def test_what_only_reads_needs_no_token(command):
    from within.serving.access import issue
    issue(command.ctx, "ann", "operate")
    for words in (("status",), ("runs",), ("token", "list"), ("event", "list"), ("audit", "verify"), ("retrain", "ad_score_predictor", "--dry-run")):
        assert (said := command(*words)).exit_code == 0, said.stderr


def test_a_persons_token_is_not_handed_on_to_processes(command, monkeypatch):
    from within.commands.base import identified
    from within.serving.access import caller, issue, revoke
    from within.serving.supervisor import child_environment
    token = issue(command.ctx, "ann", "approve")
    monkeypatch.setenv("WITHIN_TOKEN", token)
    ctx, who = identified()
    env = child_environment(ctx)
    assert (who.name, env["WITHIN_USER"], env["WITHIN_TOKEN"], os.environ.get("WITHIN_TOKEN")) == ("ann", "ann", "", None)
    left = type(command.ctx).open(token=token)   # a gateway that got it all the same
    assert caller(left, token).role == "approve"
    revoke(command.ctx, "ann")
    assert caller(left, token) is None
    for one in (ctx, left): one.close()


def test_a_run_that_the_scheduler_goes_on_with_needs_no_token(command):
    from within.scheduler import Due, command_of
    from within.serving.access import issue
    issue(command.ctx, "ann", "operate")
    argv = command_of(Due("run", "20231001-ad_score_predictor-ffff", "ad_score_predictor", "1"))
    env = os.environ | {"WITHIN_HOME": str(command.ctx.settings.home)}
    asked = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=env, timeout=120)
    assert "unknown run" in asked.stderr and "token" not in asked.stderr
    begun = subprocess.run([*argv[:2], "from within.cli import main; main()", *argv[3:]], capture_output=True, text=True, cwd=ROOT, env=env, timeout=120)
    assert begun.returncode == 1 and "one to operate" in begun.stderr
