"""DuckDB connections and SQL text."""

from __future__ import annotations

from datetime import datetime

import duckdb

from featurekit_dagster.intervals import as_utc


def connect() -> duckdb.DuckDBPyConnection:
    """Return an in-memory connection whose clock is UTC and which keeps the order of rows."""
    con = duckdb.connect()
    con.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
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
