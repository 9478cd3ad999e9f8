"""The `within` command as a person meets it: exit codes, sentences instead of tracebacks, and speed."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_the_shipped_workflows_call_what_exists():
    import yaml
    scripts = {"github-actions.yml": lambda w: [s.get("run", "") for s in w["jobs"]["retrain"]["steps"]], "gitlab-ci.yml": lambda w: w["retrain"]["script"]}
    for file, script in scripts.items():
        lines = "\n".join(script(yaml.safe_load((ROOT / "templates" / "ci" / file).read_text())))
        assert "make setup" in lines and "--profile ci --if-changed" in lines and ".venv/bin/within check" in lines
