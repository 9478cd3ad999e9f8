"""A home whose MLflow tables are already there: making them takes seconds, copying them does not."""
from __future__ import annotations

import functools
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from within.context import Context
from within.ml.tracking import mlflow_client

@functools.cache
def tables() -> Path:
    "An empty MLflow database, made once a test process."
    home = Path(tempfile.mkdtemp(prefix="mlflow-tables-"))
    mlflow_client(Context.open(home=home, mlflow_tracking_uri=f"sqlite:///{home / 'mlflow' / 'mlflow.db'}"))
    with closing(sqlite3.connect(home / "mlflow" / "mlflow.db")) as db, closing(sqlite3.connect(home / "whole.db")) as whole: db.backup(whole)
    return home / "whole.db"


def with_tables(home: Path) -> Path:
    "Furnish a new home with them."
    (home / "mlflow").mkdir(parents=True)
    shutil.copy(tables(), home / "mlflow" / "mlflow.db")
    return home
