"""Rows of a small view written to and read from an offline store, as Python tuples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa

from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.stores.offline import OfflineStore, OfflineWrite

T0 = datetime(2024, 3, 1, tzinfo=UTC)
DAY, HOUR, US = timedelta(days=1), timedelta(hours=1), timedelta(microseconds=1)
SCHEMA = pa.schema([("key", pa.string()), ("time", pa.timestamp("us", tz="UTC")), ("value", pa.float64())])
Row = tuple[str | None, datetime | None, float | None]


def days(first: float, last: float) -> Interval:
    return Interval(T0 + first * DAY, T0 + last * DAY)


def replace(
    store: OfflineStore, rows: Sequence[Row], interval: Interval, schema: pa.Schema = SCHEMA, **more: Any
) -> OfflineWrite:
    table = pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema)
    facts = {"job_id": "job-1", "epoch": 1, "coverage": IntervalSet(), "sort_by": ["key", "time"]} | more
    return store.replace_interval("view", table, interval, schema=schema, time_column="time", **facts)


def read(
    store: OfflineStore,
    con: duckdb.DuckDBPyConnection,
    interval: Interval | None = None,
    schema: pa.Schema = SCHEMA,
    columns: Sequence[str] | None = None,
    where: str = "true",
) -> list[tuple[Any, ...]]:
    relation = store.relation(con, "view", schema=schema, time_column="time", interval=interval, columns=columns)
    table = con.sql(f"SELECT * FROM {relation} WHERE {where}").to_arrow_table()
    return in_order(tuple(row.values()) for row in table.to_pylist())


def in_order(rows: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return sorted(rows, key=lambda row: [str(cell.timestamp() if isinstance(cell, datetime) else cell) for cell in row])
