"""First on PYTHONPATH when the tests run on PostgreSQL: a process that a test starts finds the database of its home, as if WITHIN_DATABASE_URL were set."""
import contextlib
import hashlib
import importlib.util
import os
import sys
from pathlib import Path

SERVER = "TEST_POSTGRESQL_SERVER"


def database_of(home) -> str: return f"home_{hashlib.sha256(str(Path(home)).encode()).hexdigest()[:20]}"


def url_of(home) -> str:
    "The URL of a home's own database, which is made when it is not there."
    import psycopg

    server, name = os.environ[SERVER], database_of(home)
    with psycopg.connect(server, autocommit=True) as c, contextlib.suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
        if not c.execute("select 1 from pg_database where datname = %s", (name,)).fetchone(): c.execute(f'create database "{name}" template template0')
    return server.replace("postgresql://", "postgresql+psycopg://").rpartition("/")[0] + f"/{name}"


def by_home(settings_from_env):
    "Reads settings as they are read, with WITHIN_DATABASE_URL set to the home's own database unless somebody set it."
    def read(**explicit):
        found = settings_from_env(**explicit)
        if explicit.get("database_url") or os.environ.get("WITHIN_DATABASE_URL"): return found
        os.environ["WITHIN_DATABASE_URL"] = url_of(found["home"])
        try: return settings_from_env(**explicit)
        finally: del os.environ["WITHIN_DATABASE_URL"]
    return read


class Finder:
    "Wraps `within.settings` when it is imported."

    def find_spec(self, name, path=None, target=None):
        if name != "within.settings": return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def wrapped(module):
            execute(module)
            module.settings_from_env = by_home(module.settings_from_env)
        spec.loader.exec_module = wrapped
        return spec


if os.environ.get(SERVER): sys.meta_path.insert(0, Finder())
