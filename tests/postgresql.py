"""A real PostgreSQL server for tests, from Debian's packages: in a temporary folder, on loopback, gone afterwards; and databases on it."""
from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

BINARIES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)), None)
needs_postgres = pytest.mark.skipif(BINARIES is None, reason="no PostgreSQL server here (Debian: apt-get install postgresql)")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def running_server() -> Iterator[str]:
    "The URL of a server for the time of a block; it sorts texts as no program would."
    root = os.geteuid() == 0
    who = {"user": "postgres", "group": "postgres", "extra_groups": []} if root else {}          # the server refuses to run as root
    folder, port, tools = Path(tempfile.mkdtemp(prefix="within-pg-")), free_port(), BINARIES.parent
    def run(*command: str) -> None:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, env={"LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]}, **who)
        assert done.returncode == 0, done.stdout + done.stderr
    try:
        if root: shutil.chown(folder, "postgres", "postgres")
        run(str(tools / "initdb"), "-D", "data", "-U", "within", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=sv")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=300 -c unix_socket_directories={folder}"
        run(str(tools / "pg_ctl"), "-D", "data", "-w", "-l", "log", "-o", options, "start")
        yield f"postgresql://within@127.0.0.1:{port}/postgres"
    finally:
        if (folder / "data" / "postmaster.pid").exists(): run(str(tools / "pg_ctl"), "-D", "data", "-w", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


def new_database(server: str, name: str, like: str | None = None) -> str:
    "The store's URL of a database of that name, made if it is not there: empty, or a copy of another one that nobody uses any more."
    with psycopg.connect(server, autocommit=True) as c, contextlib.suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
        if like: c.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (like,))
        c.execute(f'create database "{name}"' + (f' template "{like}"' if like else " template template0"))
    return server.replace("postgresql://", "postgresql+psycopg://").rpartition("/")[0] + f"/{name}"


def statements(url: str, text: str) -> None:
    "Run several statements on a database."
    with psycopg.connect(url.replace("+psycopg", "")) as c: c.execute(text)
