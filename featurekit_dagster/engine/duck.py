"""DuckDB connections and SQL text.

All connections of a process share one database without contents, for making one costs more than most reads. What a
connection sets, registers or creates as TEMP is its own; nothing else is ever created.
"""

from __future__ import annotations

import atexit
import os
import tempfile
import threading
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime

import duckdb

from featurekit_dagster.engine.memory import memory_budget
from featurekit_dagster.intervals import as_utc
from featurekit_dagster.sql_text import literal


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


class _Database:
    """The database of this process, made when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._root: duckdb.DuckDBPyConnection | None = None
        self._memory_bytes = 0
        self._left_behind: list[duckdb.DuckDBPyConnection] = []

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """Return a new connection; half of the memory budget is DuckDB's, the other half is for its answers."""
        memory_bytes = memory_budget() // 2
        with self._lock:
            if self._root is None:
                self._root = duckdb.connect()
                folder = os.path.join(tempfile.gettempdir(), f"featurekit-duckdb-{uuid.uuid4().hex}")
                self._root.execute(f"SET temp_directory = {literal(folder)}; SET enable_external_file_cache = false")
            if memory_bytes != self._memory_bytes:
                self._root.execute(f"SET memory_limit = '{memory_bytes} B'")
                self._memory_bytes = memory_bytes
            return self._root.cursor()

    def close(self) -> None:
        """Let go of the database; connections that are still open keep it."""
        with self._lock:
            if self._root is not None:
                self._root.close()
            self._root, self._memory_bytes = None, 0

    def forget(self) -> None:
        """Start anew in a forked process, where the parent's database has no threads and its lock may be taken."""
        if self._root is not None:
            # Ending it here would wait for threads that only the parent has.
            self._left_behind.append(self._root)
        self._lock, self._root, self._memory_bytes = threading.Lock(), None, 0


_DATABASE = _Database()
os.register_at_fork(after_in_child=_DATABASE.forget)
atexit.register(_DATABASE.close)


def connect() -> duckdb.DuckDBPyConnection:
    """Return a connection of its own, whose clock is UTC and which keeps the order of rows.

    Raises:
        InvalidMemoryBudget: `FEATUREKIT_MEMORY` is no size.
    """
    con = _DATABASE.cursor()
    con.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
    work = _WORK.get()
    if work is not None:
        work.add(con)
    return con


def naive_literal(time: datetime) -> str:
    """Return a time as a SQL TIMESTAMP without zone, in UTC."""
    return f"TIMESTAMP '{as_utc(time).replace(tzinfo=None).isoformat(sep=' ')}'"
