"""What the tests share: a small furnished home made once, a copy of it for each test that asks, and a look at what is still running afterwards."""
from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from postgresql import copy_database, databases, running_server

ROOT = Path(__file__).resolve().parent.parent
NOW, SCALE, SEED = "2023-10-01", 0.02, 0
SERVING = pytest.StashKey[contextlib.ExitStack]()

QUIET = {"PLOOMBER_STATS_ENABLED": "false", "PLOOMBER_VERSION_CHECK_DISABLED": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "EVIDENTLY_DISABLE_TELEMETRY": "1",
         "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "true", "MPLBACKEND": "agg",
         "OMP_NUM_THREADS": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
os.environ.update(QUIET)
DATABASE = os.environ.get("WITHIN_TEST_DATABASE", "sqlite")   # or postgresql: a real server, and a database of its own for each home
for _name in [n for n in os.environ if n.startswith("WITHIN_")]: del os.environ[_name]   # a developer's own home is nobody's fixture
os.environ["WITHIN_LEDGER_KEY"] = "/nonexistent/ledger.key"   # a developer's own key signs nothing here
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def lower(configs: Path, samples: int = 200) -> Path:
    "Lowers in `configs` what a world of a fiftieth of the size cannot meet; every other number stays as shipped."
    for file in sorted(configs.glob("*.yml")):
        policy = yaml.safe_load(file.read_text()) or {}
        if "class" not in policy: continue
        policy["minimums"] = {"samples": samples}
        policy.setdefault("training", {}).setdefault("parameters", {})
        if "n_estimators" in policy["training"]["parameters"]: policy["training"]["parameters"]["n_estimators"] = 60
        if "search" in policy: policy["search"] |= {"trials": 4, "folds": 3, "rows": 500}
        file.write_text(yaml.safe_dump(policy, sort_keys=False))
    return configs


def on_path(*folders: Path | str) -> str:
    "PYTHONPATH with these folders before what is there."
    return os.pathsep.join(str(p) for p in (*folders, os.environ.get("PYTHONPATH")) if p)


@contextlib.contextmanager
def variables(**given: str) -> Iterator[None]:
    "Environment variables for the time of a block."
    before = {k: os.environ.get(k) for k in given}
    os.environ.update({k: str(v) for k, v in given.items()})
    try: yield
    finally:
        for k, v in before.items():
            if v is None: os.environ.pop(k, None)
            else: os.environ[k] = v


def move_home(source: Path, target: Path) -> Path:
    "A copy of a home that lives at its new place: MLflow's database holds absolute artifact paths, so they are rewritten in the copy."
    shutil.copytree(source, target, symlinks=True)
    if DATABASE == "postgresql": copy_database(source, target)
    for file in (f for f in target.rglob("*") if f.suffix in (".db", ".sqlite") and f.is_file()):
        with contextlib.closing(sqlite3.connect(file)) as db:
            for (table,) in db.execute("select name from sqlite_master where type = 'table'").fetchall():
                for _, column, kind, *_ in db.execute(f'pragma table_info("{table}")').fetchall():
                    if not any(word in kind.upper() for word in ("CHAR", "TEXT")): continue
                    with contextlib.suppress(sqlite3.Error):   # an append-only table refuses, and holds no path of MLflow's
                        db.execute(f'update "{table}" set "{column}" = replace("{column}", ?, ?) where instr("{column}", ?)',
                                   (str(source), str(target), str(source)))
            db.commit()
            db.execute("vacuum")   # freed pages still hold the old words
    return target


def living(home: Path) -> list[psutil.Process]:
    "Other processes that carry this home in their environment or on their command line."
    found, own = [], {os.getpid(), *(p.pid for p in psutil.Process().parents())}
    for process in psutil.process_iter():
        if process.pid in own: continue
        with contextlib.suppress(psutil.Error):
            if process.status() == psutil.STATUS_ZOMBIE: continue
            if process.environ().get("WITHIN_HOME") == str(home) or any(str(home) in word for word in process.cmdline()): found.append(process)
    return found


def end_holds(home: Path) -> None:
    "Lets go of the supervisor that this process holds for a home; a script does so by ending."
    if supervisor := sys.modules.get("within.serving.supervisor"): supervisor.release(home)


def assert_nothing_runs(home: Path, patience: float = 10.0) -> None:
    "Ten seconds after a test nothing of it may run; what does is named, ended, and the test fails."
    end_holds(home)
    until = time.monotonic() + patience
    while (left := living(home)) and time.monotonic() < until: time.sleep(0.1)
    names = []
    for process in left:
        with contextlib.suppress(psutil.Error):
            names.append(f"{process.pid} {' '.join(process.cmdline())[:120]}")
            process.kill()
    assert not names, "still running: " + "; ".join(names)


LONGEST = tuple(f"test_{n}.py" for n in ("guide", "guides", "run_real", "scheduler_kills", "distributed", "crashes", "real_run_again", "load", "rehearsal",
                                         "false_retrainings", "cli", "estimation", "lab", "ray_serving", "postgresql", "planted_events", "fairness",
                                         "experiment_live", "projects", "store_migrations", "sentiment"))


def pytest_collection_modifyitems(items: list) -> None:
    "Long files first, so that no worker is left alone with one at the end; `make test` keeps this order (--no-loadscope-reorder)."
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_configure(config) -> None:
    "On PostgreSQL: the server of this session, before anything of `within` is imported; ended when the session is."
    if DATABASE not in ("sqlite", "postgresql"): raise pytest.UsageError(f"WITHIN_TEST_DATABASE is {DATABASE!r}; write sqlite or postgresql")
    if DATABASE == "sqlite" or hasattr(config, "workerinput"): return
    here = config.stash[SERVING] = contextlib.ExitStack()
    os.environ["TEST_POSTGRESQL_SERVER"] = here.enter_context(running_server())
    place = str(Path(__file__).parent / "on_postgresql")
    os.environ["PYTHONPATH"] = on_path(place)
    sys.path.insert(0, place)
    sys.modules.pop("sitecustomize", None)
    importlib.import_module("sitecustomize")


def pytest_terminal_summary(terminalreporter) -> None:
    "Says on PostgreSQL how many stores were really there, so that a run that quietly used SQLite is seen."
    if DATABASE == "postgresql": terminalreporter.line(f"on postgresql: {len(databases())} homes had a database of their own")


def pytest_unconfigure(config) -> None:
    if here := config.stash.get(SERVING, None): here.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    "The URL of a PostgreSQL server of this session."
    with running_server() as url: yield url


def store_url(folder: Path) -> str:
    "The URL of a store for a folder, on the engine under test."
    if DATABASE == "sqlite": return f"sqlite:///{folder / 'within.db'}"
    return sys.modules["sitecustomize"].url_of(folder)


@pytest.fixture(scope="session")
def small_configs(tmp_path_factory) -> Path:
    "The shipped policies with minimums that a world at scale 0.02 can meet."
    return lower(Path(shutil.copytree(ROOT / "configs", tmp_path_factory.mktemp("policies") / "configs")))


@pytest.fixture(scope="session")
def world_home(tmp_path_factory, small_configs) -> Iterator[Path]:
    "A home with the ad world of the first day (scale 0.02, replay clock). Read it only: `ctx` and `home` are copies."
    from within.context import Context
    from within.world import bootstrap

    home = tmp_path_factory.mktemp("world") / "home"
    with variables(WITHIN_HOME=str(home), WITHIN_CONFIGS=str(small_configs), WITHIN_CLOCK="replay"):
        ctx = Context.open()
        try: bootstrap(NOW, seed=SEED, scale=SCALE, ctx=ctx)
        finally: ctx.close()
    assert_nothing_runs(home)
    yield home
    assert_nothing_runs(home)


@pytest.fixture
def home(world_home, small_configs, tmp_path, monkeypatch) -> Iterator[Path]:
    "This test's own copy of the small world; commands started by the test find it through WITHIN_HOME. Afterwards nothing may run there."
    made = move_home(world_home, tmp_path / "home")
    monkeypatch.setenv("WITHIN_HOME", str(made))
    monkeypatch.setenv("WITHIN_CONFIGS", str(small_configs))
    monkeypatch.setenv("WITHIN_CLOCK", "replay")
    yield made
    assert_nothing_runs(made)


@pytest.fixture
def ctx(home) -> Iterator:
    "A context on this test's own copy of the small world, on the replay clock."
    from within.context import Context

    opened = Context.open()
    yield opened
    opened.close()
