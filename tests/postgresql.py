"""A real PostgreSQL server for tests, from Debian's packages: in a temporary folder, on loopback, gone afterwards; and databases on it."""
from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
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


def new_database(server: str, name: str) -> str:
    "The store's URL of a new, empty database."
    with psycopg.connect(server, autocommit=True) as c: c.execute(f'create database "{name}" template template0')
    return server.replace("postgresql://", "postgresql+psycopg://").rpartition("/")[0] + f"/{name}"


def statements(url: str, text: str) -> None:
    "Run several statements on a database."
    with psycopg.connect(url.replace("+psycopg", "")) as c: c.execute(text)


def _server() -> str: return os.environ["TEST_POSTGRESQL_SERVER"]


def databases() -> set[str]:
    "The databases of homes on the session's server."
    with psycopg.connect(_server()) as c: return {name for (name,) in c.execute("select datname from pg_database where datname like 'home%'")}


def copy_database(source: Path, target: Path) -> None:
    "What a home's database holds, for a copy of the home at another place; its paths are rewritten."
    site = sys.modules["sitecustomize"]
    old, new = site.database_of(source), site.database_of(target)
    with psycopg.connect(_server(), autocommit=True) as c:
        if old not in databases(): return
        c.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (old,))
        c.execute(f'drop database if exists "{new}" with (force)')
        c.execute(f'create database "{new}" template "{old}"')
    with psycopg.connect(_server().rpartition("/")[0] + f"/{new}") as c:
        texts = c.execute("select table_name, column_name from information_schema.columns where table_schema = 'public' and data_type = 'text'").fetchall()
        for table, column in texts:
            c.execute(f'update "{table}" set "{column}" = replace("{column}", %s, %s) where position(%s in "{column}") > 0',
                      (str(source), str(target), str(source)))
