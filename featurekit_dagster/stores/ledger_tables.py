"""The ledger's tables, and the settings under which SQLite and PostgreSQL serve many threads and processes.

Times are integer microseconds since the Unix epoch. A changed layout raises `SCHEMA_VERSION` and gets a step in
`ledger_migrations`.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import DisconnectionError
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_random

from featurekit_dagster.errors import Unsupported

SCHEMA_VERSION = "4"
WRITE = {"featurekit_write": True}
_WRITERS_LOCK = 7_305_804_385_276_325_224  # one for all ledgers of a database; writes are short
_BUSY_TIMEOUT_MS = 30_000
_left_open: list[Any] = []

_Microseconds = BigInteger().with_variant(Integer(), "sqlite")
metadata = MetaData()

facts = Table(
    "facts",
    metadata,
    Column("name", String, primary_key=True),
    Column("value", String, nullable=False),
)

views = Table(
    "views",
    metadata,
    Column("workspace", String, primary_key=True),
    Column("view", String, primary_key=True),
    Column("created_us", _Microseconds, nullable=False),
    Column("code_version", String),  # of the code location that was loaded last
    Column("deployed_us", _Microseconds),  # when that was
)

generations = Table(
    "generations",
    metadata,
    Column("workspace", String, primary_key=True),
    Column("view", String, primary_key=True),
    Column("generation", Integer, primary_key=True),
    Column("state", String, nullable=False),
    Column("shape", Text),  # NULL in one that was begun before shapes were kept
    Column("created_us", _Microseconds, nullable=False),
    Column("changed_us", _Microseconds, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("workspace", String, nullable=False),
    Column("view", String, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("kind", String, nullable=False),
    Column("start_us", _Microseconds, nullable=False),
    Column("end_us", _Microseconds, nullable=False),
    Column("online", Boolean, nullable=False),
    Column("offline", Boolean, nullable=False),
    Column("overwrite", Boolean, nullable=False),
    Column("trigger", String, nullable=False),
    Column("state", String, nullable=False),
    Column("created_us", _Microseconds, nullable=False),
    Column("updated_us", _Microseconds, nullable=False),
    Column("next_attempt_us", _Microseconds),
    Column("reason", Text),
    Column("stats", Text, nullable=False),
    Column("process", String, nullable=False),  # of the attempt that is under way; empty without one
    Column("max_attempts", Integer, nullable=False, server_default="1"),
    Column("attempts_used", Integer, nullable=False, server_default="1"),  # since the last manual retry
    Column("batch", String, index=True),
    Column("code_version", String),  # of the declaration that it was queued or begun for, where that is known
    Column("request", Text),  # of a chore: what was asked for, as JSON; such a job claims no range
    Index("jobs_by_view", "workspace", "view", "state"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("id", String, primary_key=True),
    Column("job_id", String, ForeignKey("jobs.id"), nullable=False, index=True),
    Column("number", Integer, nullable=False),
    Column("run_id", String, index=True),
    Column("state", String, nullable=False),
    Column("created_us", _Microseconds, nullable=False),
    Column("updated_us", _Microseconds, nullable=False),
    Column("reason", Text),
)

coverage = Table(
    "coverage",
    metadata,
    Column("workspace", String, primary_key=True),
    Column("view", String, primary_key=True),
    Column("generation", Integer, primary_key=True),
    Column("store", String, primary_key=True),
    Column("start_us", _Microseconds, primary_key=True),
    Column("end_us", _Microseconds, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String, primary_key=True),
    Column("epoch", _Microseconds, nullable=False),
    Column("holder", String),
    Column("process", String),
    Column("expires_us", _Microseconds),
)


def open_engine(location: str | Path) -> Engine:
    """Return an engine on a ledger, safe to share between threads and across forks.

    A connection with the execution options `WRITE` takes a lock that all writers share when its transaction begins, so
    what it has read cannot change before it writes; others read one snapshot.

    Args:
        location: A file path or a `sqlite:///` URL, whose directory must exist, or a `postgresql://` URL.

    Raises:
        Unsupported: The URL is of another database, or the driver of PostgreSQL is not installed.
    """
    url = _url(location)
    if url.get_backend_name() == "postgresql":
        return _open_postgresql(url)
    engine = create_engine(url, connect_args={"check_same_thread": False, "timeout": _BUSY_TIMEOUT_MS / 1000})
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "checkout", _on_checkout)
    event.listen(engine, "begin", _on_begin)
    return engine


def is_shared(engine: Engine) -> bool:
    """Tell whether several hosts may use the ledger."""
    return engine.dialect.name == "postgresql"


def insert_new(connection: Connection, table: Table, row: Mapping[str, Any], replace: Mapping[str, Any] | None) -> None:
    """Insert a row; where one with its primary key is there, leave that, or set the columns of `replace`."""
    dialect: Any = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table).values(**row)
    if replace is None:
        connection.execute(statement.on_conflict_do_nothing())
    else:
        key = [column.name for column in table.primary_key]
        connection.execute(statement.on_conflict_do_update(index_elements=key, set_=dict(replace)))


def _url(location: str | Path) -> URL:
    if isinstance(location, Path) or "://" not in location:
        return URL.create("sqlite", database=str(location))
    url = make_url(location)
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise Unsupported(
            f"a ledger on {url.get_backend_name()!r} was asked for; it is kept in SQLite or PostgreSQL; give a file "
            "path or a postgresql:// URL"
        )
    return url


def _open_postgresql(url: URL) -> Engine:
    if find_spec("psycopg") is None:
        raise Unsupported(
            "a ledger in PostgreSQL needs the driver psycopg; install it: pip install 'featurekit_dagster[postgres]'"
        )
    # A snapshot for readers; a writer has to see what was committed while it waited for the lock.
    engine = create_engine(url.set(drivername="postgresql+psycopg"), isolation_level="REPEATABLE READ")
    event.listen(engine, "begin", _on_begin_postgresql)
    event.listen(engine, "connect", _on_connect_postgresql)
    event.listen(engine, "checkout", _on_checkout)
    return engine


def _on_connect_postgresql(_: Any, record: Any) -> None:
    record.info["pid"] = os.getpid()


def _on_begin_postgresql(connection: Connection) -> None:
    if connection.get_execution_options().get("featurekit_write", False):
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITERS_LOCK})")


def _on_connect(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin transactions of its own; _on_begin does
    record.info["pid"] = os.getpid()
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA synchronous = NORMAL")
    _switch_to_wal(connection)


@retry(
    retry=retry_if_exception_type(sqlite3.OperationalError),
    wait=wait_random(0.005, 0.05),
    stop=stop_after_delay(_BUSY_TIMEOUT_MS / 1000),
    reraise=True,
)
def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """Switch a new ledger to its mode; SQLite's own waiting does not cover several processes that switch it at once."""
    connection.execute("PRAGMA journal_mode = WAL")


def _on_checkout(connection: Any, record: Any, proxy: Any) -> None:
    """Give a forked child connections of its own: none may cross a fork, not even to be closed there."""
    if record.info["pid"] != os.getpid():
        _left_open.append(connection)
        record.dbapi_connection = proxy.dbapi_connection = None
        raise DisconnectionError("the connection belongs to the parent process")


def _on_begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("featurekit_write", False)
    connection.execute(text("BEGIN IMMEDIATE" if writes else "BEGIN"))
