"""A project of one's own: what `pip install` of the wheel and three commands give somebody, and what they refuse."""
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from within.errors import InvalidInput, UnknownModelVersion
from within.ml.batch_predictions import predict_file
from within.ml.models import model_class
from within.ml.registry import ModelRegistry
from within.policies import load_policy
from within.projects import lay_out, new_model, planned_files
from within.sources import ingest, load_source

ROOT = Path(__file__).resolve().parent.parent


def customers(rows: int = 3_000, seed: int = 0) -> pd.DataFrame:
    "A year of customers whose churn depends on their visits, with a column name that YAML and SQL would both read wrongly."
    rng = np.random.default_rng(seed)
    visits, plan = rng.poisson(4, rows), rng.choice(["free", "team"], rows)
    chance = 1 / (1 + np.exp(visits - 3.0))
    return pd.DataFrame({"customer id": rng.integers(0, rows // 2, rows), "joined": pd.date_range("2024-01-01", periods=rows, freq="3h"),
                         "visits": visits, "plan: \"#1' --": plan, "note": [f"text {i}" for i in range(rows)],
                         "churned": np.where(rng.random(rows) < chance, "yes", "no")})


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])       # a project's own class is imported from its folder
    monkeypatch.delitem(sys.modules, "churn_risk", raising=False)
    table = tmp_path / "customers.parquet"
    customers().to_parquet(table)
    folder = lay_out(tmp_path / "mine").folder
    new_model(folder, "churn_risk", table, "churned", "customer id", "joined")
    return folder, table


# ---------------------------------------------------------------- init

def test_laying_out_twice_changes_nothing_and_never_overwrites(tmp_path):
    first = lay_out(tmp_path / "mine")
    assert "configs/policies.yml" in first.written and "nbs/stages/s10_trigger.ipynb" in first.written
    assert not any("ad_score" in p for p in first.written)
    (tmp_path / "mine/pipeline.yaml").unlink()                  # killed half-way: the next call completes it
    assert lay_out(tmp_path / "mine").written == ("pipeline.yaml",)
    (tmp_path / "mine/README.md").write_text("ours\n")
    (tmp_path / "mine/env.yaml").unlink()
    with pytest.raises(InvalidInput, match=r"README\.md; nothing was written"): lay_out(tmp_path / "mine")
    assert not (tmp_path / "mine/env.yaml").exists() and (tmp_path / "mine/README.md").read_text() == "ours\n"


def test_a_file_or_a_link_in_the_way_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="is a file"): lay_out(tmp_path / "file")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/pipeline.yaml").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InvalidInput, match=r"pipeline\.yaml"): lay_out(tmp_path / "mine")


def test_the_demo_has_the_models_of_the_ad_world(tmp_path):
    made = lay_out(tmp_path / "mine", demo=True)
    assert {f"configs/{m}.yml" for m in ("ad_score_predictor", "account_health_predictor", "ad_sentiment_analyzer")} <= set(made.written)


# ---------------------------------------------------------------- new-model

def test_a_table_becomes_a_source_whose_rows_arrive(project, ctx):
    folder, table = project
    source = load_source(folder / "configs/sources/churn_risk.yml")
    assert set(source.columns) == {"unit", "created_at", "score", "feature.visits", "feature.plan_1"}     # the note has too many texts, and says so
    assert "different texts" in (folder / "configs/sources/churn_risk.yml").read_text()
    result = ingest(folder / "configs/sources/churn_risk.yml", table, ctx)
    assert (result.accepted, result.quarantined) == (3_000, 0)
    rows = ctx.warehouse.raw("churn_risk").to_pandas()
    assert set(rows["score"]) == {0, 100} and rows["feature.plan_1"].isin(["free", "team"]).all()


def test_policy_and_class_are_what_the_names_say(project):
    folder, _ = project
    policy = load_policy("churn_risk", folder / "configs")
    assert (policy.class_, policy.dataset) == ("churn_risk:ChurnRisk", "churn_risk")
    assert model_class("churn_risk", folder / "configs").name == "churn_risk"


@pytest.mark.parametrize("name", ["json", "Churn", "../x", "x y", "class", "", "a" * 61, "1st", "x__y", "<b>", None])
def test_names_that_cannot_be_a_model(tmp_path, name):
    folder = lay_out(tmp_path / "mine").folder
    before = sorted(p for p in folder.rglob("*"))
    with pytest.raises(InvalidInput): new_model(folder, name)
    assert sorted(p for p in folder.rglob("*")) == before


def test_nothing_is_written_where_a_column_is_missing_or_useless(tmp_path):
    folder = lay_out(tmp_path / "mine").folder
    table = tmp_path / "t.parquet"
    customers(50).to_parquet(table)
    roles = {"target": "churned", "unit": "customer id", "time": "joined"}
    for bad, why in (({"target": "churn"}, "known"), ({"target": "joined"}, "different columns"), ({"target": "note"}, "different texts"),
                     ({"time": "when"}, "time column")):
        with pytest.raises(InvalidInput, match=why): new_model(folder, "churn_elsewhere", table, **{**roles, **bad})
    with pytest.raises(InvalidInput, match="no such file"): new_model(folder, "churn_elsewhere", tmp_path / "absent.csv", "a", "b", "c")
    with pytest.raises(InvalidInput, match="is not a project"): new_model(tmp_path, "churn_elsewhere")
    assert not (folder / "churn_elsewhere.py").exists() and not (folder / "configs/churn_elsewhere.yml").exists()


# ---------------------------------------------------------------- predict

@pytest.fixture(scope="module")
def scoring(tmp_path_factory, request):
    "A context with one registered version, and rows it can score."
    from within.clock import FrozenClock
    from within.context import Context
    from within.ml.ad_score import AdScorePredictor
    ctx = Context.open(home=tmp_path_factory.mktemp("home"), clock=FrozenClock("2024-01-01"))
    rng = np.random.default_rng(0)
    x = pd.DataFrame({"clicks": rng.normal(size=400), "country": rng.choice(["de", "fr"], 400)})
    model = AdScorePredictor({"n_estimators": 10}).fit(x, pd.Series(50 + 9 * x["clicks"], name="score").clip(0, 100))
    ModelRegistry(ctx).register_model(model, "ad_score_predictor", "1.0.0")
    return ctx, model, x.assign(id=range(400))


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_file_is_scored_as_the_model_would(scoring, tmp_path, ending):
    ctx, model, rows = scoring
    rows.loc[3, "clicks"] = np.nan
    file, out = tmp_path / f"rows.{ending}", tmp_path / "deep" / f"out.{ending}"
    rows.to_csv(file, index=False) if ending == "csv" else rows.to_parquet(file)
    seen = []
    found = predict_file("ad_score_predictor", file, out, "1.0.0", lambda done, of: seen.append((done, of)), ctx)
    scored = pd.read_csv(out) if ending == "csv" else pd.read_parquet(out)
    assert list(scored["id"]) == list(rows["id"]) and seen[-1] == (400, 400) and found.rows == 400
    np.testing.assert_allclose(scored["prediction"], model.predict(rows))
    assert set(scored["model_version"].astype(str)) == {"1.0.0"} and os.listdir(out.parent) == [out.name]


def test_a_file_of_several_batches_keeps_its_order(scoring, tmp_path, monkeypatch):
    ctx, model, rows = scoring
    monkeypatch.setattr("within.ml.batch_predictions.BATCH", 64)
    rows.to_csv(tmp_path / "rows.csv", index=False)
    predict_file("ad_score_predictor", tmp_path / "rows.csv", tmp_path / "out.parquet", "1.0.0", ctx=ctx)
    out = pd.read_parquet(tmp_path / "out.parquet")
    assert list(out["id"]) == list(range(400)) and pq.ParquetFile(tmp_path / "out.parquet").num_row_groups > 1
    np.testing.assert_allclose(out["prediction"], model.predict(rows))


def test_what_cannot_be_scored_leaves_the_old_result(scoring, tmp_path):
    ctx, _, rows = scoring
    out = tmp_path / "out.csv"
    out.write_text("old\n")
    def refused(frame: pd.DataFrame, why: str, name: str = "rows.csv", **given) -> None:
        frame.to_csv(tmp_path / name, index=False)
        to, version = given.get("out", out), given.get("version", "1.0.0")
        with pytest.raises((InvalidInput, UnknownModelVersion), match=why): predict_file("ad_score_predictor", tmp_path / name, to, version, ctx=ctx)
        assert out.read_text() == "old\n" and not list(tmp_path.glob(".out*"))
    refused(rows.drop(columns="country"), "lacks 1 of the 2 features: country")
    refused(rows.assign(prediction=1), "already")
    refused(rows[:0], "has no rows")
    refused(rows.assign(clicks="many"), "clicks")
    refused(rows, "ends neither", name="rows.txt")
    refused(rows, "ends neither", out=tmp_path / "out.xlsx")
    refused(rows, "the output is the input", out=tmp_path / "rows.csv")
    refused(rows, "9.9.9", version="9.9.9")
    refused(rows, "no champion yet", version=None)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(InvalidInput, match="cannot read broken.parquet"): predict_file("ad_score_predictor", tmp_path / "broken.parquet", out, "1.0.0", ctx=ctx)


# ---------------------------------------------------------------- the wheel, elsewhere

def features_of(table: pd.DataFrame, to: Path) -> Path:
    "The features of the table as the model reads them."
    table.rename(columns={"visits": "feature.visits", "plan: \"#1' --": "feature.plan_1"}).to_csv(to, index=False)
    return to


@pytest.mark.slow
def test_the_wheel_elsewhere_takes_a_table_to_a_verdict_and_scores_a_file(tmp_path):
    "pip install, init, new-model, ingest, retrain up to register, predict: as a new user would, outside the checkout."
    source, python = tmp_path / "checkout", tmp_path / "venv/bin/python"
    wanted = shutil.ignore_patterns(".git", ".venv", ".within*", "products", "build", "*.egg-info", "__pycache__", "shared")
    shutil.copytree(ROOT, source, ignore=wanted)
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "WITHIN_HOME", "WITHIN_CONFIGS")}
    env |= {"WITHIN_CLOCK": "replay", "OMP_NUM_THREADS": "1", "JUPYTER_PATH": sysconfig.get_path("data") + "/share/jupyter"}
    def done(*command: object, where: Path = tmp_path, code: int = 0) -> str:
        ended = subprocess.run([*map(str, command)], cwd=where, env=env, capture_output=True, text=True, timeout=600)
        assert ended.returncode == code, ended.stdout + ended.stderr
        return ended.stdout
    done(sys.executable, "-m", "pip", "wheel", source, "--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", tmp_path / "dist")
    done(sys.executable, "-m", "venv", tmp_path / "venv")
    packages = next((tmp_path / "venv/lib").glob("python*")) / "site-packages"
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")     # everything but `within` is installed already
    done(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", *(tmp_path / "dist").glob("*.whl"))
    within = tmp_path / "venv/bin/within"
    assert str(packages) in done(python, "-c", "import within; print(within.__file__)")

    customers().to_parquet(tmp_path / "customers.parquet")
    done(within, "init", "mine")
    mine = tmp_path / "mine"
    assert {p.relative_to(mine).as_posix() for p in mine.rglob("*") if p.is_file()} == set(planned_files("mine", demo=False))   # the wheel has all of it
    roles = ("--target", "churned", "--unit", "customer id", "--time", "joined")
    done(within, "new-model", "churn_risk", "--from", tmp_path / "customers.parquet", *roles, where=mine)
    assert "3,000 rows accepted" in done(within, "ingest", "configs/sources/churn_risk.yml", tmp_path / "customers.parquet", where=mine)
    assert "in order" in done(within, "check", where=mine)
    told = done(within, "retrain", "churn_risk", "--until", "register", "--set", "optimize.trials=2", where=mine)
    assert "first of its kind" in told and "over baseline (mean)" in told and "stopped after register" in told
    run = next((mine / ".within/runs").glob("*churn_risk*"))
    assert (run / "churn_risk.py").read_text() == (mine / "churn_risk.py").read_text()       # the class that ran is kept with the run
    assert "3,000 rows" in done(within, "predict", "churn_risk", features_of(customers(), tmp_path / "rows.csv"), "--version", "1.0.0", where=mine)

