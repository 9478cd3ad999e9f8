"""Synthetic stores and homes: as many rows, entries and runs as a row needs, written by the library's own functions."""
from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

from within.clock import FrozenClock, parse_time
from within.context import Context
from within.ledger import entry_hash, record

START = parse_time("2023-01-01")
PHASES, STAGES = ("failed", "passed", "failed", "inconclusive", "passed"), ("evaluate", "monitor", "trigger", "validate", "monitor")


def plain_connection(path: Path) -> sqlite3.Connection:
    "SQLite as the store opens it, and nothing else."
    connection = sqlite3.connect(path, timeout=30, isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000", "foreign_keys=ON"): connection.execute(f"PRAGMA {pragma}")
    return connection


def home_of_runs(place: Path, runs: int) -> Context:
    "A home with so many runs of five models, over as many hours, two ledger entries each; their reports are one small page."
    ctx = Context.open(home=place, clock=FrozenClock(START + timedelta(hours=runs)), database_url=f"sqlite:///{place / 'within.db'}")
    for first in range(0, runs, 1000):
        rows, told = [], []
        for i in range(first, min(runs, first + 1000)):
            run, model = f"{START + timedelta(hours=i):%Y%m%d}-model_{i % 5}-{i:05x}", f"model_{i % 5}"
            body = {"model": model, "phase": PHASES[i % 5], "stage": STAGES[i % 5], "until": None, "needs": "",
                    "reason": f"RMSE improved by {i % 17} % over 2.{i % 9}.0 (95 % interval {i % 7} to {i % 7 + 9} %, {i % 900 + 100} rows)"}
            rows.append(("run", run, body, None))
            evidence = {f"figure {k}": i * k % 1000 / 7 for k in range(60)}
            told += [("decision", run, {"stage": STAGES[i % 5], "outcome": PHASES[i % 5], "reason": body["reason"], "evidence": evidence}), ("run", run, body)]
            (place / "runs" / run).mkdir(parents=True)
            (place / "runs" / run / "index.html").write_text(f"<!doctype html><title>{run}</title>")
        record(ctx, rows, told)
    return ctx


def long_ledger(place: Path, entries: int) -> Context:
    "A home whose ledger has so many entries, chained by the library's hash; inserted at once, because appending is another row's matter."
    ctx, rows, previous = Context.open(home=place, clock=FrozenClock(START), database_url=f"sqlite:///{place / 'within.db'}"), [], "0" * 64
    for n in range(1, entries + 1):
        told = {"outcome": "passed", "reason": f"entry {n} of a long ledger", "stage": "evaluate", "figures": [n % k for k in range(2, 30)]}
        body = json.dumps(told, sort_keys=True)
        row = {"seq": n, "at": "2023-01-01T00:00:00+00:00", "kind": "decision", "subject": f"run-{n // 14}", "actor": "a", "body": body, "previous": previous}
        rows.append({**row, "hash": (previous := entry_hash(row))})
    with closing(plain_connection(place / "within.db")) as db:
        db.execute("BEGIN")
        db.executemany("INSERT INTO ledger VALUES (:seq, :at, :kind, :subject, :actor, :body, :previous, :hash)", rows)
        db.execute("COMMIT")
    return ctx
