"""The events of an integration test: given, taken from the view's own sources, or made up from their columns.

What is made up is the same again for the same view and seed: few keys, times all over the span and on both sides of
each edge of an interval, and values drawn from small sets. It has no NULLs, as sources may forbid them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from featurekit_dagster.arrow_types import TIMESTAMP, arrow_schema
from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.domain.sources import FunctionConfig, SourceRange
from featurekit_dagster.domain.stream_sources import PushConfig
from featurekit_dagster.engine.arrow import to_arrow
from featurekit_dagster.engine.duck import connect
from featurekit_dagster.engine.scan import register_inputs
from featurekit_dagster.engine.transform import with_utc_timestamps
from featurekit_dagster.errors import EventsNotUsable, SourceError
from featurekit_dagster.execution.ingest import event_payloads
from featurekit_dagster.execution.stream_post_processing import PostProcessor
from featurekit_dagster.intervals import Interval
from featurekit_dagster.sql_text import literal, quoted

GIVEN, GENERATED, OWN = "given", "generated", "source"
EVENTS, KEYS = 400, 12
_WORDS, _LARGEST = 5, 100
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NOTHING = Interval(_EPOCH, _EPOCH + timedelta(microseconds=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class InputEvents:
    """The rows that one parameter of a view's function is handed.

    Args:
        parameter: Name of the parameter.
        rows: The rows; times in UTC microseconds.
        time_column: The column by which the source is cut to intervals; None where it is handed over whole.
        origin: Where they came from.
        records: The same events as a stream brings them, where they look otherwise than the rows.
    """

    parameter: str
    rows: pa.Table
    time_column: str | None
    origin: str
    records: Sequence[bytes] | None = None

    def before(self, time: datetime) -> pa.Table:
        """Return the rows that were there at a time, which all are where nothing tells their time."""
        if self.time_column is None:
            return self.rows
        return self.rows.filter(pc.less(self.rows[self.time_column], pa.scalar(time, TIMESTAMP)))


def input_parameters(view: FeatureView) -> dict[str, SourceRange | None]:
    """Return the parameters of a view's function with what they are handed; None for a stream without batch side."""
    if view.inputs:
        return dict(view.inputs)
    return {"events" if view.stream_source is None else view.stream_source.name: None}


def time_column_of(view: FeatureView, used: SourceRange | None, names: Sequence[str]) -> str | None:
    """Return the column that tells when a row of an input happened; None where the input has no such column."""
    if used is None:
        assert view.stream_source is not None
        told = view.stream_source.stream_config.timestamp_field or view.timestamp_field
        return told if told in names else None
    config = used.source.batch_config
    named: str | None = config.timestamp_field
    if named is None and isinstance(config, FunctionConfig) and config.supports_time_filtering:
        named = view.timestamp_field
    return named if named in names else None


def given_events(view: FeatureView, parameter: str, used: SourceRange | None, frame: Any) -> InputEvents:
    """Return a frame as the events of an input.

    Raises:
        EventsNotUsable: It has no rows, or lacks the time column or its times.
        TectonValidationError: It is no frame.
    """
    rows = _in_utc(to_arrow(frame))
    declared = None if used is None else used.source.timestamp_field
    if declared is not None and declared not in rows.column_names:
        reason = f"there is no column {declared!r}; there are {', '.join(rows.column_names)}"
        raise EventsNotUsable(view=view.name, source=parameter, reason=reason)
    if not rows.num_rows:
        raise EventsNotUsable(view=view.name, source=parameter, reason="there are no rows")
    time_column = time_column_of(view, used, rows.column_names)
    if time_column is not None:
        rows = _timed(view, parameter, used, rows, time_column)
    return InputEvents(parameter=parameter, rows=rows, time_column=time_column, origin=GIVEN)


def _timed(view: FeatureView, parameter: str, used: SourceRange | None, rows: pa.Table, column: str) -> pa.Table:
    """Return rows whose time column holds times; text is read in the source's own format."""
    found = rows[column]
    if pa.types.is_string(found.type) or pa.types.is_large_string(found.type):
        given_format = None if used is None else getattr(used.source.batch_config, "timestamp_format", None)
        with connect() as con:
            con.register("given", rows)
            name = quoted(column)
            read = f"strptime({name}, {literal(given_format)})" if given_format else name
            try:
                rows = con.sql(f"SELECT * REPLACE ({read}::TIMESTAMP AS {name}) FROM given").to_arrow_table()
            except duckdb.Error:  # its own words quote the value
                reason = f"{column} is no time"
                raise EventsNotUsable(view=view.name, source=parameter, reason=reason) from None
        rows = _in_utc(rows)
    if not pa.types.is_timestamp(rows[column].type) or rows[column].null_count:
        reason = f"{column} must hold a time in every row; it is {rows[column].type}"
        raise EventsNotUsable(view=view.name, source=parameter, reason=reason)
    return rows


def own_events(view: FeatureView, interval: Interval) -> list[InputEvents]:
    """Return what a view's own sources hold for an interval; each is read once, and nothing is written.

    Raises:
        SourceError: A source cannot be read.
    """
    with connect() as con:
        names = register_inputs(con, view.inputs, interval)
        tables = {p: _in_utc(con.sql(f"FROM {quoted(name)}").to_arrow_table()) for p, name in names.items()}
    return [
        InputEvents(
            parameter=parameter,
            rows=rows,
            time_column=time_column_of(view, view.inputs[parameter], rows.column_names),
            origin=OWN,
        )
        for parameter, rows in tables.items()
    ]


def input_schema(view: FeatureView, parameter: str, used: SourceRange | None) -> pa.Schema:
    """Return the columns of an input: those of the source where it can be read, else what is declared."""
    stream = view.stream_source
    if stream is not None and stream.schema:
        return arrow_schema(stream.schema)
    if used is not None:
        try:
            with connect() as con:
                name = register_inputs(con, {parameter: used}, _NOTHING)[parameter]
                return con.sql(f"FROM {quoted(name)} LIMIT 0").to_arrow_table().schema
        except SourceError:
            pass  # nothing is there yet, as in a new project or in CI
    return arrow_schema(view.columns)


def generated_events(
    view: FeatureView,
    parameter: str,
    used: SourceRange | None,
    interval: Interval,
    *,
    seed: int,
    count: int = EVENTS,
) -> InputEvents:
    """Return events that are made up, with times in an interval of whole batch intervals."""
    schema = _sent_schema(view) or input_schema(view, parameter, used)
    time_column = time_column_of(view, used, schema.names)
    chance = random.Random(f"{seed}/{view.name}/{parameter}")  # noqa: S311 - no secret is made of it
    times = _times(interval, view.batch_schedule, count, chance)
    unique = () if view.stream_source is None else view.stream_source.stream_config.deduplication_columns
    makers = _Makers(view, times, chance, frozenset(unique))
    arrays = [makers.column(column, is_time=column.name == time_column) for column in schema]
    rows = _in_utc(pa.table(arrays, schema=pa.schema([(c.name, a.type) for c, a in zip(schema, arrays, strict=True)])))
    made, records = _processed(view, rows)
    time_column = time_column_of(view, used, made.column_names)
    return InputEvents(parameter=parameter, rows=made, time_column=time_column, origin=GENERATED, records=records)


def _sent_schema(view: FeatureView) -> pa.Schema | None:
    """Return the columns of records that are sent to a push source, where its `post_processor` makes rows of them."""
    config = None if view.stream_source is None else view.stream_source.stream_config
    if not isinstance(config, PushConfig) or config.post_processor is None or not config.input_schema:
        return None
    return arrow_schema(config.input_schema)


def _processed(view: FeatureView, sent: pa.Table) -> tuple[pa.Table, list[bytes] | None]:
    """Return the rows that a push source makes of sent records, and the records; rows as they are without that."""
    source = view.stream_source
    if source is None or _sent_schema(view) is None:
        return sent, None
    config = source.stream_config
    assert isinstance(config, PushConfig)
    assert config.post_processor is not None
    by_row = config.post_processor_mode != "pandas"
    processor = PostProcessor(config.post_processor, source.schema or view.columns, by_row=by_row)
    return _in_utc(processor.apply(sent).rows), event_payloads(sent.to_pylist(), list)


def _times(interval: Interval, schedule: timedelta, count: int, chance: random.Random) -> list[datetime]:
    """Return times in order, those on both sides of each edge among them."""
    microsecond = timedelta(microseconds=1)
    edges = [cell.start for cell in interval.split_on_grid(schedule)][-50:]
    times = [*edges, *(edge + schedule - microsecond for edge in edges)]
    width = interval.duration // microsecond
    while len(times) < count:
        times.append(interval.start + chance.randrange(width) * microsecond)
    return sorted(times)


class _Makers:
    """Makes columns of values that suit their types."""

    def __init__(
        self, view: FeatureView, times: Sequence[datetime], chance: random.Random, unique: frozenset[str]
    ) -> None:
        self._view, self._times, self._chance, self._unique = view, times, chance, unique

    def column(self, column: pa.Field, *, is_time: bool) -> pa.Array:
        """Return a column; one of an unknown type is all NULL."""
        if is_time:
            return pa.array(self._times, TIMESTAMP)
        sizes = {name: KEYS for name in self._view.key_names}
        if self._view.secondary_key is not None:
            sizes[self._view.secondary_key.name] = _WORDS - 1
        size = len(self._times) if column.name in self._unique else sizes.get(column.name, 0)
        try:
            values = [self._value(column.name, column.type, size, row) for row in range(len(self._times))]
            return pa.array(values, column.type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            return pa.nulls(len(self._times), column.type)

    def _value(self, name: str, kind: pa.DataType, size: int, row: int) -> Any:
        """Return one value; of `size` different ones where that is given."""
        types, chance = pa.types, self._chance
        number = row if size >= len(self._times) else chance.randrange(size or _LARGEST)
        if types.is_boolean(kind):
            return bool(number % 2)
        if types.is_integer(kind) or types.is_decimal(kind):
            return number
        if types.is_floating(kind):
            return float(number) if size else round(chance.gauss(50.0, 20.0), 2)
        if types.is_string(kind) or types.is_large_string(kind):
            return f"{name}-{number if size else number % _WORDS}"
        if types.is_binary(kind) or types.is_large_binary(kind):
            return f"{name}-{number if size else number % _WORDS}".encode()
        if types.is_timestamp(kind) or types.is_date(kind):
            return self._other_time(row, kind)
        if types.is_list(kind) or types.is_large_list(kind):
            return [self._value(name, kind.value_type, 0, row) for _ in range(chance.randrange(4))]
        if types.is_struct(kind):
            return {member.name: self._value(member.name, member.type, 0, row) for member in kind}
        if types.is_map(kind):
            return [(self._value(name, kind.key_type, 0, row), self._value(name, kind.item_type, 0, row))]
        raise TypeError

    def _other_time(self, row: int, kind: pa.DataType) -> Any:
        """Return another time of the same event, up to one and a half intervals before or after it."""
        schedule = self._view.batch_schedule
        moved = self._times[row] + schedule * self._chance.uniform(-1.5, 1.5)
        if pa.types.is_date(kind):
            return moved.date()
        return moved if kind.tz else moved.replace(tzinfo=None)


def _in_utc(rows: pa.Table) -> pa.Table:
    """Return rows with all times in UTC microseconds; those without a zone are UTC."""
    for place, column in enumerate(rows.schema):
        if pa.types.is_timestamp(column.type) and column.type.unit != "us":
            rows = rows.set_column(place, column.name, rows.column(place).cast(_micro(column.type), safe=False))
    return with_utc_timestamps(rows)


def _micro(kind: pa.DataType) -> pa.DataType:
    return pa.timestamp("us", kind.tz)
