"""DuckDB connections and SQL text."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime

import duckdb

from featurekit_dagster.intervals import as_utc


class Interruptible:
    """The connections that a piece of work has opened, so that another thread can interrupt what they compute."""

    def __init__(self) -> None:
        self._connections: weakref.WeakSet[duckdb.DuckDBPyConnection] = weakref.WeakSet()

    def add(self, con: duckdb.DuckDBPyConnection) -> None:
        """Take in a connection."""
        self._connections.add(con)

    def interrupt(self) -> None:
        """End the queries of all connections with `duckdb.InterruptException`."""
        for con in list(self._connections):
            con.interrupt()


_WORK: ContextVar[Interruptible | None] = ContextVar("interruptible work", default=None)


@contextmanager
def interruptible() -> Iterator[Interruptible]:
    """Gather the connections that the body of a `with` opens by `connect`, in this thread."""
    work = Interruptible()
    token = _WORK.set(work)
    try:
        yield work
    finally:
        _WORK.reset(token)


def connect() -> duckdb.DuckDBPyConnection:
    """Return an in-memory connection whose clock is UTC and which keeps the order of rows."""
    con = duckdb.connect()
    con.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
    work = _WORK.get()
    if work is not None:
        work.add(con)
    return con


def quoted(name: str) -> str:
    """Return a column or relation name as a SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return a text as a SQL string."""
    return "'" + text.replace("'", "''") + "'"


def naive_literal(time: datetime) -> str:
    """Return a time as a SQL TIMESTAMP without zone, in UTC."""
    return f"TIMESTAMP '{as_utc(time).replace(tzinfo=None).isoformat(sep=' ')}'"
