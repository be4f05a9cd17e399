"""Reading sources: each use of a source becomes a DuckDB relation, cut to its range as far down as the source can.

Every timestamp with a zone becomes naive UTC, which is what transformations see.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from deltalake import DeltaTable

from featurekit_dagster.domain.sources import (
    BatchSource,
    DatetimePartitionColumn,
    DeltaTableConfig,
    FileConfig,
    FilterContext,
    FunctionConfig,
    SourceRange,
    SqlConfig,
)
from featurekit_dagster.engine.arrow import to_arrow
from featurekit_dagster.engine.duck import literal, naive_literal, quoted
from featurekit_dagster.errors import SourceError
from featurekit_dagster.intervals import Interval

Bounds = tuple[datetime | None, datetime | None]
_GLOBS = {"parquet": "**/*.parquet", "csv": "**/*.csv*", "json": "**/*.json*"}


def register_inputs(
    con: duckdb.DuckDBPyConnection,
    inputs: Mapping[str, SourceRange],
    interval: Interval,
    mocks: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Create one relation per parameter of a transformation.

    Args:
        con: Where the relations are created.
        inputs: Parameter to the source span it is handed.
        interval: The interval asked for; spans are evaluated for it.
        mocks: Parameter to a frame that is used instead of the source. It is cut like the source when the source has a
            timestamp field; the rows of a function-backed source are handed over whole.

    Returns:
        Parameter to the name of its relation in `con`.

    Raises:
        SourceError: A source cannot be read.
    """
    names = {}
    for parameter, used in inputs.items():
        bounds = used.evaluate(interval)
        if mocks and parameter in mocks:
            relation = _mocked(con, parameter, used.source, mocks[parameter], bounds)
        else:
            relation = _scan(con, parameter, used.source, bounds)
        names[parameter] = f"input_{parameter}"
        con.execute(f"CREATE OR REPLACE TEMP VIEW {quoted(names[parameter])} AS {_naive_utc(con, relation)}")
    return names


def _scan(con: duckdb.DuckDBPyConnection, parameter: str, source: BatchSource, bounds: Bounds) -> str:
    config = source.batch_config
    try:
        if isinstance(config, FileConfig):
            return _file_query(con, config, bounds)
        if isinstance(config, DeltaTableConfig):
            con.register(f"raw_{parameter}", DeltaTable(config.uri).to_pyarrow_dataset())
            return _filtered(con, f"raw_{parameter}", config.timestamp_field, bounds)
        if isinstance(config, SqlConfig):
            con.register(f"raw_{parameter}", _read_sql(config, bounds))
            return f"FROM raw_{parameter}"
        con.register(f"raw_{parameter}", _call(config, bounds))
        return f"FROM raw_{parameter}"
    except (duckdb.IOException, FileNotFoundError) as error:
        raise SourceError(source=source.name, reason=str(error).splitlines()[0]) from error


def _mocked(con: duckdb.DuckDBPyConnection, parameter: str, source: BatchSource, frame: Any, bounds: Bounds) -> str:
    con.register(f"raw_{parameter}", to_arrow(frame))
    return _filtered(con, f"raw_{parameter}", source.timestamp_field, bounds)


def _file_query(con: duckdb.DuckDBPyConnection, config: FileConfig, bounds: Bounds) -> str:
    uri = config.uri
    if Path(uri).is_dir():
        uri = str(Path(uri) / _GLOBS[config.file_format])
    hive = ", hive_partitioning = true" if config.datetime_partition_columns else ""
    scan = f"read_{config.file_format}({literal(uri)}{hive})"
    conditions = _partition_conditions(config.datetime_partition_columns, bounds)
    source = f"(SELECT * FROM {scan}{' WHERE ' + ' AND '.join(conditions) if conditions else ''})"
    if config.timestamp_format and config.timestamp_field:
        column = quoted(config.timestamp_field)
        source = f"(SELECT * REPLACE (strptime({column}, {literal(config.timestamp_format)}) AS {column}) FROM {source})"
    return _filtered(con, source, config.timestamp_field, bounds)


def _filtered(con: duckdb.DuckDBPyConnection, relation: str, timestamp: str | None, bounds: Bounds) -> str:
    """Return the query of a relation's rows with `start <= timestamp < end`; all rows without a timestamp field."""
    start, end = bounds
    if timestamp is None or (start is None and end is None):
        return f"FROM {relation}"
    column = quoted(timestamp)
    kind = con.sql(f"SELECT {column} FROM {relation} LIMIT 0").types[0]
    zone = "::TIMESTAMPTZ" if str(kind) == "TIMESTAMP WITH TIME ZONE" else ""
    value = column if "TIMESTAMP" in str(kind) else f"{column}::TIMESTAMP"
    conditions = [f"{value} >= {naive_literal(start)}{zone}"] if start is not None else []
    conditions += [f"{value} < {naive_literal(end)}{zone}"] if end is not None else []
    return f"SELECT * FROM {relation} WHERE {' AND '.join(conditions)}"


def _partition_conditions(columns: Any, bounds: Bounds) -> list[str]:
    """Return conditions on hive columns that keep every file which may hold rows of the span."""
    parts: dict[str, DatetimePartitionColumn] = {column.datepart: column for column in columns}
    if "date" in parts:
        value = f"CAST({quoted(parts['date'].column_name)} AS DATE)"
    elif "year" in parts:
        numbers = [
            f"CAST({quoted(parts[p].column_name)} AS INTEGER)" if p in parts else "1" for p in ("year", "month", "day")
        ]
        value = f"make_date({', '.join(numbers)})"
    else:
        return []
    unit = "day" if {"date", "day"} & set(parts) else "month" if "month" in parts else "year"
    conditions = []
    if bounds[0] is not None:
        conditions.append(f"{value} >= date_trunc('{unit}', {naive_literal(bounds[0])})")
    if bounds[1] is not None:
        conditions.append(f"{value} < {naive_literal(bounds[1])}")
    return conditions


def _read_sql(config: SqlConfig, bounds: Bounds) -> pa.Table:
    import polars as pl  # noqa: PLC0415 - only SQL sources need it
    import sqlalchemy as sa  # noqa: PLC0415 - only SQL sources need it

    query = sa.select(sa.text("*")).select_from(sa.text(f"({config.query}) AS source_rows"))
    if config.timestamp_field is not None:
        column: sa.ColumnClause[datetime] = sa.column(config.timestamp_field, sa.DateTime())
        for bound, compare in zip(bounds, ("__ge__", "__lt__"), strict=True):
            if bound is not None:
                query = query.where(getattr(column, compare)(bound.replace(tzinfo=None)))
    engine = sa.create_engine(config.url)
    try:
        with engine.connect() as connection:
            return pl.read_database(query, connection, infer_schema_length=None).to_arrow()
    finally:
        engine.dispose()


def _call(config: FunctionConfig, bounds: Bounds) -> pa.Table:
    if not config.supports_time_filtering:
        return to_arrow(config.function())
    start, end = (None if b is None else b.replace(tzinfo=None) for b in bounds)
    return to_arrow(config.function(filter_context=FilterContext(start, end)))


def _naive_utc(con: duckdb.DuckDBPyConnection, query: str) -> str:
    """Return the query with every timestamp as naive UTC microseconds, whatever zone and unit it has."""
    described = con.sql(f"SELECT * FROM ({query}) LIMIT 0")
    changed = [
        f"{quoted(name)}::TIMESTAMP AS {quoted(name)}"
        for name, kind in zip(described.columns, map(str, described.types), strict=True)
        if kind.startswith("TIMESTAMP") and kind != "TIMESTAMP"
    ]
    return f"SELECT * REPLACE ({', '.join(changed)}) FROM ({query})" if changed else f"SELECT * FROM ({query})"
