"""Running a transformation: sources in, declared columns out, cut to the interval."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from featurekit_dagster.arrow_types import TIMESTAMP, arrow_schema, arrow_type
from featurekit_dagster.domain.context import MaterializationContext
from featurekit_dagster.domain.feature_view import PASS_THROUGH, FeatureView
from featurekit_dagster.domain.sources import BatchSource
from featurekit_dagster.engine.arrow import UNCONVERTIBLE, to_arrow
from featurekit_dagster.engine.conform import conform_query, conform_table
from featurekit_dagster.engine.duck import naive_literal
from featurekit_dagster.engine.scan import readable, register_inputs
from featurekit_dagster.errors import OutputSchemaMismatch, QueryRefused, TectonValidationError, TransformError
from featurekit_dagster.intervals import Interval
from featurekit_dagster.sql_text import quoted

RESULT = "transformed"
_NO_TIMESTAMP = "featurekit: a row has no timestamp"


@dataclass(frozen=True, slots=True)
class Transformed:
    """The conformed rows of one interval, as a relation that is computed when it is read.

    Args:
        con: The DuckDB connection that holds it.
        view: The feature view.
        relation: Its name there. Columns are `view.columns` in order, timestamps TIMESTAMPTZ.
    """

    con: duckdb.DuckDBPyConnection
    view: FeatureView
    relation: str

    @contextmanager
    def safe_errors(self) -> Iterator[None]:
        """Turn what DuckDB says while the relation is computed into an error that quotes no value.

        Raises:
            TransformError: A row has no timestamp, or a value overflows its declared type.
        """
        try:
            yield
        except duckdb.Error as error:
            if _NO_TIMESTAMP in str(error):
                reason = f"a row of the output has no {self.view.timestamp_field}; leave such rows out or fill it"
            else:
                reason = f"the query failed while it ran ({type(error).__name__}); a value may not fit its type"
            raise TransformError(f"{self.view.name}: {reason}") from None

    def table(self) -> pa.Table:
        """Return the rows in the order in which the transformation gave them."""
        with self.safe_errors():
            return with_utc_timestamps(self.con.sql(f"FROM {self.relation}").to_arrow_table())


def with_utc_timestamps(table: pa.Table) -> pa.Table:
    """Return the table with every timestamp column labelled UTC, in microseconds."""
    for position, column in enumerate(table.schema):
        if pa.types.is_timestamp(column.type) and column.type != TIMESTAMP:
            table = table.set_column(position, column.name, table.column(position).cast(TIMESTAMP))
    return table


def transform(
    con: duckdb.DuckDBPyConnection,
    view: FeatureView,
    interval: Interval,
    mocks: Mapping[str, Any] | None = None,
) -> Transformed:
    """Run a view's transformation for one interval and keep its rows with `start <= timestamp < end`.

    Args:
        con: Connection to work in; it holds the result.
        view: The feature view.
        interval: `[start, end)`, which the context carries and filtered sources are cut to.
        mocks: Parameter to a frame that is used instead of its source.

    Raises:
        SourceError: A source cannot be read.
        OutputSchemaMismatch: The output's columns or types are not the declared ones.
        TransformError: The function failed, a row has no timestamp, or the view is a stream without a batch side.
    """
    if view.is_table:
        raise TransformError(f"{view.name}: it is a feature table, whose rows are ingested; there is nothing to run")
    if not view.inputs:
        raise TransformError(
            f"{view.name}: its stream source has no batch_config, so there are no rows to transform; give one"
        )
    names = register_inputs(con, view.inputs, interval, mocks)
    context = MaterializationContext.for_interval(interval, view.batch_schedule)
    extra = {view.context_parameter: context} if view.context_parameter else {}
    if view.mode == "sql":
        query = _checked_sql(con, view, _called(view, {p: quoted(n) for p, n in names.items()} | extra))
        con.execute(f"CREATE OR REPLACE TEMP VIEW {RESULT}_all AS {query}")
    elif view.mode == PASS_THROUGH:
        con.register(f"{RESULT}_all", conform_table(view, _passed_through(con, view, names)))
    elif view.mode == "python":
        con.register(f"{RESULT}_all", conform_table(view, _row_by_row(con, view, names, extra)))
    else:
        frames = {p: _frame(con, n, view.mode, view.inputs[p].source) for p, n in names.items()}
        table = _as_table(view, _called(view, frames | extra))
        con.register(f"{RESULT}_all", conform_table(view, table))
    return _cut(con, view, interval)


def _passed_through(con: duckdb.DuckDBPyConnection, view: FeatureView, names: Mapping[str, str]) -> pa.Table:
    """Return the declared columns of the only source, as far as it has them; the others are nobody's."""
    ((parameter, name),) = names.items()
    found = con.sql(f"FROM {quoted(name)} LIMIT 0").columns
    columns = [quoted(column.name) for column in view.columns if column.name in found]
    with readable(view.inputs[parameter].source):
        return con.sql(f"SELECT {', '.join(columns)} FROM {quoted(name)}").to_arrow_table()


def _row_by_row(
    con: duckdb.DuckDBPyConnection, view: FeatureView, names: Mapping[str, str], extra: Mapping[str, Any]
) -> pa.Table:
    """Return what the function makes of each row; rows for which it returns None are left out."""
    ((parameter, name),) = names.items()
    with readable(view.inputs[parameter].source):
        table = con.sql(f"FROM {quoted(name)}").to_arrow_table()
    return _made_of_rows(view, parameter, table, extra)


def transform_frame(view: FeatureView, parameter: str, table: pa.Table, extra: Mapping[str, Any]) -> pa.Table:
    """Return the declared columns that a Python function makes of rows that are at hand.

    Args:
        view: A feature view with a function in another mode than `sql`.
        parameter: The parameter that receives the rows.
        table: The rows; timestamps without a zone.
        extra: The other arguments of the function.

    Raises:
        OutputSchemaMismatch: The output's columns or types are not the declared ones.
        TransformError: The function failed, or its output is no table.
    """
    if view.mode == "python":
        return conform_table(view, _made_of_rows(view, parameter, table, extra))
    frame = _as_frame(table, view.mode)
    return conform_table(view, _as_table(view, _called(view, {parameter: frame, **extra})))


def _made_of_rows(view: FeatureView, parameter: str, table: pa.Table, extra: Mapping[str, Any]) -> pa.Table:
    made = [_called(view, {parameter: row, **extra}) for batch in table.to_batches() for row in batch.to_pylist()]
    rows = [row for row in made if row is not None]
    odd = next((type(row).__name__ for row in rows if not isinstance(row, dict)), None)
    if odd is not None:
        raise TransformError(f"{view.name}: mode 'python' returns a dict for each row, or None, not a {odd}")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    partly = [(n, len(rows) - given) for n in columns if (given := sum(n in row for row in rows)) < len(rows)]
    if partly:
        faults = [f"column {n!r} is missing from {missing} of {len(rows)} rows" for n, missing in partly]
        raise OutputSchemaMismatch(view=view.name, faults=faults)
    return _columns_of(view, columns, rows)


def _columns_of(view: FeatureView, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return rows as columns, each of the type that its values have.

    What that type does not say is taken from the declaration: times with and without zone may be mixed, and a dict is a
    record unless it is declared a Map.
    """
    if not rows:
        return arrow_schema(view.columns).empty_table()
    known = {c.name: arrow_type(c.dtype) for c in view.columns if c.dtype.name in ("Timestamp", "Map")}
    columns, faults = [], []
    for name in names:
        try:
            columns.append(pa.array([row[name] for row in rows], type=known.get(name)))
        except UNCONVERTIBLE:
            faults.append(f"column {name!r} holds values that are not all of one type")
    if faults:
        raise OutputSchemaMismatch(view=view.name, faults=faults)
    return pa.table(columns, names=[str(name) for name in names])


def _called(view: FeatureView, arguments: Mapping[str, Any]) -> Any:
    if view.function is None:
        raise ValueError(f"{view.name} has no transformation")
    try:
        return view.function(**arguments)
    except Exception as error:
        # the user's text may quote rows, so only its type travels into the message; the cause keeps the rest
        raise TransformError(f"{view.name}: the transformation raised {type(error).__name__}") from error


def _as_table(view: FeatureView, frame: Any) -> pa.Table:
    try:
        return to_arrow(frame)
    except TectonValidationError as error:
        raise TransformError(f"{view.name}: the transformation's output: {error}") from None
    except UNCONVERTIBLE:
        faults = [f"column {name!r} holds values that are not all of one type" for name in _unconvertible(frame)]
        raise OutputSchemaMismatch(view=view.name, faults=faults) from None


def _unconvertible(frame: Any) -> Iterator[str]:
    """Yield the names of the columns that Arrow has no type for."""
    for place, name in enumerate(frame.columns):
        try:
            to_arrow(frame.iloc[:, [place]])
        except UNCONVERTIBLE:
            yield str(name)


def _checked_sql(con: duckdb.DuckDBPyConnection, view: FeatureView, query: Any) -> str:
    if not isinstance(query, str):
        raise TransformError(f"{view.name}: mode 'sql' returns the text of a query, not a {type(query).__name__}")
    try:
        described = con.sql(f"SELECT * FROM ({query}) LIMIT 0")
    except duckdb.Error as error:
        # what is wrong with the text itself is told, and stays wrong; other messages may quote values
        if isinstance(error, duckdb.BinderException | duckdb.CatalogException | duckdb.ParserException):
            raise QueryRefused(view=view.name, reason=str(error).splitlines()[0]) from error
        raise TransformError(f"{view.name}: the query is refused: {type(error).__name__}") from error
    types = dict(zip(described.columns, map(str, described.types), strict=True))
    return conform_query(view, query, types)


def _frame(con: duckdb.DuckDBPyConnection, name: str, mode: str, source: BatchSource) -> Any:
    with readable(source):
        table = con.sql(f"FROM {quoted(name)}").to_arrow_table()
    return _as_frame(table, mode)


def _as_frame(table: pa.Table, mode: str) -> Any:
    if mode == "polars":
        import polars as pl  # noqa: PLC0415 - only this mode needs it

        return pl.from_arrow(table)
    return to_pandas(table)


def to_pandas(table: pa.Table) -> Any:
    """Return a pandas frame; integers and booleans with NULLs become nullable types, so that no value changes."""
    import pandas as pd  # noqa: PLC0415 - only this mode needs it

    frame = table.to_pandas()
    widths = ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64")
    nullable: dict[pa.DataType, Any] = {
        pa.type_for_alias(width.lower()): pd.api.types.pandas_dtype(width) for width in widths
    }
    nullable[pa.bool_()] = pd.BooleanDtype()
    for column in table.schema:
        if column.type in nullable and table[column.name].null_count:
            frame[column.name] = table[column.name].to_pandas(types_mapper=nullable.get)
    return frame


def _cut(con: duckdb.DuckDBPyConnection, view: FeatureView, interval: Interval) -> Transformed:
    timestamp = quoted(view.timestamp_field)
    start, end = (f"{naive_literal(t)}::TIMESTAMPTZ" for t in (interval.start, interval.end))
    con.execute(
        f"CREATE OR REPLACE TEMP VIEW {RESULT} AS SELECT * FROM {RESULT}_all WHERE CASE WHEN {timestamp} IS NULL "
        f"THEN error('{_NO_TIMESTAMP}') ELSE {timestamp} >= {start} AND {timestamp} < {end} END"
    )
    return Transformed(con, view, RESULT)
