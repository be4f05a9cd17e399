"""Reading sources: each use of a source becomes a DuckDB relation, cut to its range as far down as the source can.

Every timestamp with a zone becomes naive UTC, which is what transformations see.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from deltalake import DeltaTable

from featurekit_dagster.arrow_types import arrow_schema
from featurekit_dagster.domain.sources import (
    BatchSource,
    DeltaTableConfig,
    FileConfig,
    FilterContext,
    FunctionConfig,
    SourceRange,
    SqlConfig,
)
from featurekit_dagster.engine.arrow import to_arrow
from featurekit_dagster.engine.duck import naive_literal
from featurekit_dagster.engine.hive_files import files_of_span
from featurekit_dagster.errors import FeatureKitError, SourceError, safe_reason
from featurekit_dagster.intervals import Interval
from featurekit_dagster.sql_text import literal, quoted

Bounds = tuple[datetime | None, datetime | None]
# What nanoseconds can hold; all rows of such a column lie in between.
_NS_FIRST, _NS_LAST = datetime(1678, 1, 1, tzinfo=UTC), datetime(2262, 1, 1, tzinfo=UTC)
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
        with readable(used.source):
            bounds = used.evaluate(interval)
            if mocks and parameter in mocks:
                con.register(f"raw_{parameter}", to_arrow(mocks[parameter]))
                relation = _filtered(con, used.source, f"raw_{parameter}", bounds)
            else:
                relation = _scan(con, parameter, used.source, bounds)
            names[parameter] = f"input_{parameter}"
            con.execute(f"CREATE OR REPLACE TEMP VIEW {quoted(names[parameter])} AS {_naive_utc(con, relation)}")
    return names


@contextmanager
def readable(source: BatchSource) -> Iterator[None]:
    """Turn what goes wrong while a source is read into an error that quotes no value and no URL.

    Raises:
        SourceError: Always when something went wrong; errors of ours pass as they are.
    """
    try:
        yield
    except FeatureKitError:
        raise
    except (duckdb.IOException, FileNotFoundError) as error:
        raise SourceError(source=source.name, reason=str(error).splitlines()[0]) from error
    except Exception as error:
        # readers quote cells, and databases their URL, so only the type travels into the message
        raise SourceError(source=source.name, reason=safe_reason(error)) from error


def _scan(con: duckdb.DuckDBPyConnection, parameter: str, source: BatchSource, bounds: Bounds) -> str:
    config = source.batch_config
    if isinstance(config, FileConfig):
        return _file_query(con, source, config, bounds)
    if isinstance(config, DeltaTableConfig):
        if DeltaTable.is_deltatable(config.uri):
            con.register(f"raw_{parameter}", DeltaTable(config.uri).to_pyarrow_dataset())
        elif source.pushed:
            con.register(f"raw_{parameter}", arrow_schema(source.pushed).empty_table())
        else:
            raise SourceError(source=source.name, reason=f"there is no Delta table at {config.uri}")
    elif isinstance(config, SqlConfig):
        con.register(f"raw_{parameter}", _read_sql(config, bounds))
    else:
        con.register(f"raw_{parameter}", _call(config, bounds))
        return f"FROM raw_{parameter}"
    return _filtered(con, source, f"raw_{parameter}", bounds)


def _file_query(con: duckdb.DuckDBPyConnection, source: BatchSource, config: FileConfig, bounds: Bounds) -> str:
    uri = config.uri
    if Path(uri).is_dir():
        uri = str(Path(uri) / _GLOBS[config.file_format])
    rows = f"read_{config.file_format}({literal(uri)})"
    if config.datetime_partition_columns:
        listed = [path for (path,) in con.execute("SELECT file FROM glob(?) ORDER BY file", [uri]).fetchall()]
        kept = files_of_span(listed, config.datetime_partition_columns, *bounds)
        # the columns are read from some file, even if none of them holds a row of the span
        paths = ", ".join(map(literal, kept or listed[:1] or [uri]))
        nothing = "" if kept else " WHERE false"
        rows = f"(SELECT * FROM read_{config.file_format}([{paths}], hive_partitioning = true){nothing})"
    if config.timestamp_format and config.timestamp_field:
        column = quoted(config.timestamp_field)
        rows = f"(SELECT * REPLACE (strptime({column}, {literal(config.timestamp_format)}) AS {column}) FROM {rows})"
    return _filtered(con, source, rows, bounds)


def _filtered(con: duckdb.DuckDBPyConnection, source: BatchSource, relation: str, bounds: Bounds) -> str:
    """Return the query of a relation's rows with `start <= timestamp < end`; all rows without a timestamp field."""
    (start, end), timestamp = bounds, source.timestamp_field
    if timestamp is None or (start is None and end is None):
        return f"FROM {relation}"
    described = con.sql(f"SELECT * FROM {relation} LIMIT 0")
    kinds = dict(zip(described.columns, map(str, described.types), strict=True))
    if timestamp not in kinds:
        raise SourceError(source=source.name, reason=f"it has no column {timestamp!r}; there are {', '.join(kinds)}")
    column, kind = quoted(timestamp), kinds[timestamp]
    zone = "::TIMESTAMPTZ" if kind == "TIMESTAMP WITH TIME ZONE" else ""
    value = column if "TIMESTAMP" in kind else f"{column}::TIMESTAMP"
    if kind == "TIMESTAMP_NS":
        start, end = (None if t is None or not _NS_FIRST < t < _NS_LAST else t for t in (start, end))
    conditions = [f"{value} >= {naive_literal(start)}{zone}"] if start is not None else []
    conditions += [f"{value} < {naive_literal(end)}{zone}"] if end is not None else []
    return f"SELECT * FROM {relation} WHERE {' AND '.join(['true', *conditions])}"


def _read_sql(config: SqlConfig, bounds: Bounds) -> pa.Table:
    import polars as pl  # noqa: PLC0415 - only SQL sources need it
    import sqlalchemy as sa  # noqa: PLC0415 - only SQL sources need it

    query = sa.select(sa.text("*")).select_from(sa.text(f"({config.query}) AS source_rows"))
    engine = sa.create_engine(config.url)
    try:
        if config.timestamp_field is not None:
            start, end = _naive_bounds(bounds)
            column: sa.ColumnClause[Any] = sa.column(config.timestamp_field, sa.DateTime())
            if engine.dialect.name == "sqlite":
                # times are texts there, with or without fractions: compare days, the exact cut comes after
                column = sa.column(config.timestamp_field, sa.String())
                start = None if start is None else start.date().isoformat()
                end = None if end is None else (end.date() + timedelta(days=1)).isoformat()
            query = query if start is None else query.where(column >= start)
            query = query if end is None else query.where(column < end)
        with engine.connect() as connection:
            return pl.read_database(query, connection, infer_schema_length=None).to_arrow()
    finally:
        engine.dispose()


def _call(config: FunctionConfig, bounds: Bounds) -> pa.Table:
    if not config.supports_time_filtering:
        return to_arrow(config.function())
    return to_arrow(config.function(filter_context=FilterContext(*_naive_bounds(bounds))))


def _naive_bounds(bounds: Bounds) -> tuple[Any, Any]:
    start, end = bounds
    return start and start.replace(tzinfo=None), end and end.replace(tzinfo=None)


def _naive_utc(con: duckdb.DuckDBPyConnection, query: str) -> str:
    """Return the query with every timestamp, in lists too, as naive UTC microseconds, whatever zone and unit it has."""
    described = con.sql(f"SELECT * FROM ({query}) LIMIT 0")
    parts = [(name, *str(kind).partition("[")) for name, kind in zip(described.columns, described.types, strict=True)]
    changed = [
        f"{_as_naive(quoted(name), kind, bracket + depth)} AS {quoted(name)}"
        for name, kind, bracket, depth in parts
        if kind.startswith("TIMESTAMP") and kind != "TIMESTAMP"
    ]
    return f"SELECT * REPLACE ({', '.join(changed)}) FROM ({query})" if changed else f"SELECT * FROM ({query})"


def _as_naive(column: str, kind: str, lists: str) -> str:
    """Return the SQL of a timestamp column, or of lists of such, without a zone."""
    cast = f"{column}::TIMESTAMP{lists}"
    if lists or kind != "TIMESTAMP WITH TIME ZONE":
        return cast
    # The cast looks every value up in the calendar of the session's zone, which costs three times as much.
    return f"CASE WHEN isfinite({column}) THEN make_timestamp(epoch_us({column})) ELSE {cast} END"
