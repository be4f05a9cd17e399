"""SQL text with which DuckDB reads stored Parquet files: names, types, file lists and time filters."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import duckdb
import pyarrow as pa

from featurekit_dagster.intervals import Interval
from featurekit_dagster.sql_text import literal, quoted


def duckdb_types(con: duckdb.DuckDBPyConnection, schema: pa.Schema) -> dict[str, str]:
    """Return how DuckDB writes the types of an Arrow schema, by column."""
    types = con.cursor().from_arrow(pa.Table.from_batches([], schema=schema)).types
    return dict(zip(schema.names, map(str, types), strict=True))


def parquet_scan(files: Sequence[str], types: Mapping[str, str]) -> str:
    """Return DuckDB's scan of the given files with the given columns; one that a file lacks reads NULL."""
    listed = ", ".join(literal(re.sub(r"([*?])", r"[\1]", file)) for file in files)
    columns = ", ".join(
        f"{literal(name)}: {{name: {literal(name)}, type: {literal(kind)}, default_value: NULL}}"
        for name, kind in types.items()
    )
    return f"read_parquet([{listed}], schema = MAP {{{columns}}}, hive_partitioning = false)"


def rows_of(interval: Interval, time_column: str) -> str:
    """Return the condition `start <= time_column < end`, right in any session time zone."""
    column = quoted(time_column)
    start, end = interval.start.isoformat(), interval.end.isoformat()
    return f"{column} >= TIMESTAMPTZ '{start}' AND {column} < TIMESTAMPTZ '{end}'"
