"""Where raw rows come from, and which span of them a transformation is handed.

A source is declared once and used by many views. Reading it is the engine's work; this module only says what to read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, overload

from featurekit_dagster.domain.schema import Field
from featurekit_dagster.domain.source_rules import delay_faults, raise_faults, required_text_faults, time_faults
from featurekit_dagster.domain.wording import described, text_fault
from featurekit_dagster.errors import DeclarationError
from featurekit_dagster.intervals import Interval, as_utc, format_time

if TYPE_CHECKING:
    from featurekit_dagster.domain.stream_sources import StreamRange, StreamSource

FILE_FORMATS = ("parquet", "csv", "json")
DATE_PARTS = ("year", "month", "day", "hour", "date")
_NO_DELAY = timedelta(0)


@dataclass(frozen=True, slots=True)
class DatetimePartitionColumn:
    """A hive partition column of a file source that tells the time of its rows.

    Args:
        column_name: Name in the path (`.../year=2024/...`).
        datepart: `year`, `month`, `day`, `hour` or `date`.
        zero_padded: Whether `month=01` rather than `month=1`; always true of `date`.
    """

    column_name: str
    datepart: str
    zero_padded: bool = False

    def __post_init__(self) -> None:
        if self.datepart not in DATE_PARTS:
            raise DeclarationError(
                subject=f"datetime partition column {self.column_name!r}",
                faults=[f"datepart {self.datepart!r} is not known; it is one of {', '.join(DATE_PARTS)}"],
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class FileConfig:
    """Rows in files.

    Args:
        uri: A file, a folder or a glob; anything DuckDB or delta-rs can read.
        file_format: `parquet`, `csv` or `json`.
        timestamp_field: The column that tells when a row happened; needed unless every use is unfiltered.
        timestamp_format: `strptime` format of that column where it is text.
        datetime_partition_columns: Hive columns by which files can be left out of a read.
        data_delay: How long after the end of an interval its rows are complete.
    """

    uri: str
    file_format: str
    timestamp_field: str | None = None
    timestamp_format: str | None = None
    datetime_partition_columns: Sequence[DatetimePartitionColumn] = ()
    data_delay: timedelta = _NO_DELAY

    def __post_init__(self) -> None:
        faults = required_text_faults("uri", self.uri, "the path of a file, a folder or a glob")
        faults += time_faults(self.timestamp_field, self.data_delay)
        if self.file_format not in FILE_FORMATS:
            faults.append(f"file_format {self.file_format!r} is not known; it is one of {', '.join(FILE_FORMATS)}")
        columns = self.datetime_partition_columns
        for column in columns if isinstance(columns, list | tuple) else [columns]:
            if not isinstance(column, DatetimePartitionColumn):
                what = f"{described(column)} is in datetime_partition_columns"
                faults.append(f"{what}; give DatetimePartitionColumn(name, datepart)")
        raise_faults(f"FileConfig {self.uri!r}", faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaTableConfig:
    """Rows of a Delta table.

    Args:
        uri: Local path or any URI that delta-rs takes.
        timestamp_field: The column that tells when a row happened; needed unless every use is unfiltered.
        data_delay: How long after the end of an interval its rows are complete.
    """

    uri: str
    timestamp_field: str | None = None
    data_delay: timedelta = _NO_DELAY

    def __post_init__(self) -> None:
        faults = required_text_faults("uri", self.uri, "the path of the Delta table")
        faults += time_faults(self.timestamp_field, self.data_delay)
        raise_faults(f"DeltaTableConfig {self.uri!r}", faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlConfig:
    """Rows that a SQL database returns.

    Args:
        url: SQLAlchemy URL; kept out of every message and log, since it may hold a password.
        query: A SELECT; it is wrapped, and filtered by `timestamp_field`, where the read has a range.
        timestamp_field: The column that tells when a row happened; needed unless every use is unfiltered.
        data_delay: How long after the end of an interval its rows are complete.
    """

    url: str = field(repr=False)
    query: str
    timestamp_field: str | None = None
    data_delay: timedelta = _NO_DELAY

    def __post_init__(self) -> None:
        faults = required_text_faults("url", self.url, "a SQLAlchemy URL")
        faults += required_text_faults("query", self.query, "a SELECT")
        raise_faults("SqlConfig", [*faults, *time_faults(self.timestamp_field, self.data_delay)])


@dataclass(frozen=True, slots=True)
class FilterContext:
    """The span `[start_time, end_time)` that a function-backed source returns: naive UTC, None where unbounded."""

    start_time: datetime | None
    end_time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionConfig:
    """Rows that a Python function returns as a pandas frame; made by `pandas_batch_config`."""

    function: Callable[..., Any]
    supports_time_filtering: bool = False
    data_delay: timedelta = _NO_DELAY
    timestamp_field: str | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function itself, as a test of the user would."""
        return self.function(*args, **kwargs)


def pandas_batch_config(
    *, data_delay: timedelta = _NO_DELAY, supports_time_filtering: bool = False
) -> Callable[[Callable[..., Any]], FunctionConfig]:
    """Declare a function that returns a pandas frame as the rows of a source.

    Args:
        data_delay: How long after the end of an interval its rows are complete.
        supports_time_filtering: Whether the function takes `filter_context` (a `FilterContext`) and filters by it.

    Raises:
        DeclarationError: `data_delay` is negative or not in whole seconds.
    """
    raise_faults("pandas_batch_config", delay_faults(data_delay))

    def wrap(function: Callable[..., Any]) -> FunctionConfig:
        return FunctionConfig(function=function, supports_time_filtering=supports_time_filtering, data_delay=data_delay)

    return wrap


BatchConfig = FileConfig | DeltaTableConfig | SqlConfig | FunctionConfig


def HiveSource(*args: object, **kwargs: object) -> BatchConfig:  # noqa: N802 - the seeds' spelling
    """Refuse the seeds' Hive source, which needs a Spark metastore.

    Raises:
        DeclarationError: Always; it names what to use instead.
    """
    raise DeclarationError(
        subject="HiveSource",
        faults=[
            "there is no Hive metastore here; read the table's files with FileConfig(uri, file_format), a Delta table "
            "with DeltaTableConfig(uri), or a database with SqlConfig(url, query)"
        ],
    )


class TectonTimeConstant(Enum):
    """Ends of `select_range` that are known only when a job runs."""

    MATERIALIZATION_START_TIME = "MATERIALIZATION_START_TIME"
    MATERIALIZATION_END_TIME = "MATERIALIZATION_END_TIME"
    UNBOUNDED_PAST = "UNBOUNDED_PAST"
    UNBOUNDED_FUTURE = "UNBOUNDED_FUTURE"

    def __add__(self, offset: timedelta) -> TimeBound:
        if not isinstance(offset, timedelta):
            return NotImplemented
        if self.name.startswith("UNBOUNDED"):
            raise DeclarationError(
                subject="select_range", faults=[f"{self.name} + {offset} has no meaning; use {self.name} alone"]
            )
        return TimeBound(self, offset)

    def __sub__(self, offset: timedelta) -> TimeBound:
        return self + -offset if isinstance(offset, timedelta) else NotImplemented


@dataclass(frozen=True, slots=True)
class TimeBound:
    """A time constant moved by an offset."""

    constant: TectonTimeConstant
    offset: timedelta = _NO_DELAY

    def evaluate(self, interval: Interval) -> datetime | None:
        """Return the instant for a job's interval; None when unbounded."""
        if self.constant is TectonTimeConstant.MATERIALIZATION_START_TIME:
            return interval.start + self.offset
        if self.constant is TectonTimeConstant.MATERIALIZATION_END_TIME:
            return interval.end + self.offset
        return None


Bound = datetime | TimeBound | TectonTimeConstant


@dataclass(frozen=True, slots=True)
class SourceRange:
    """A source and the span of it that a transformation is handed.

    Args:
        source: The declared source.
        start: First instant inside, for a job's interval.
        end: First instant after.
    """

    source: BatchSource
    start: datetime | TimeBound
    end: datetime | TimeBound

    @property
    def is_filtered(self) -> bool:
        """Whether any end is bounded."""
        unbounded = (TectonTimeConstant.UNBOUNDED_PAST, TectonTimeConstant.UNBOUNDED_FUTURE)
        return any(isinstance(b, datetime) or b.constant not in unbounded for b in (self.start, self.end))

    def evaluate(self, interval: Interval) -> tuple[datetime | None, datetime | None]:
        """Return `[start, end)` for a job's interval; None where unbounded.

        Raises:
            DeclarationError: The evaluated start is after the evaluated end.
        """
        start, end = (b.evaluate(interval) if isinstance(b, TimeBound) else as_utc(b) for b in (self.start, self.end))
        if start is not None and end is not None and start > end:
            raise DeclarationError(
                subject=f"source {self.source.name!r}",
                faults=[
                    f"select_range gives {format_time(start)} to {format_time(end)} for {interval}: start is after end"
                ],
            )
        return start, end


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSource:
    """A named source of raw rows.

    Args:
        name: Unique in the workspace.
        batch_config: `FileConfig`, `DeltaTableConfig`, `SqlConfig`, or a function under `pandas_batch_config`.
        description: What the rows are.
        tags: Key-value pairs for people.
        owner: Who maintains it.

    Raises:
        DeclarationError: The configuration is of no known kind, or the name is empty.
    """

    name: str
    batch_config: BatchConfig
    description: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    owner: str | None = None
    # Columns of the events that are pushed, of which there is no table before the first of them are drained.
    pushed: tuple[Field, ...] = field(init=False, compare=False, repr=False, default=())

    def __post_init__(self) -> None:
        faults = [fault for fault in [text_fault("name", self.name)] if fault]
        if not isinstance(self.batch_config, FileConfig | DeltaTableConfig | SqlConfig | FunctionConfig):
            faults.append(
                f"batch_config is {described(self.batch_config)}; it is a FileConfig, a DeltaTableConfig, a "
                "SqlConfig or a function decorated with pandas_batch_config"
            )
        raise_faults(f"source {self.name!r}", faults)

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def data_delay(self) -> timedelta:
        """How long after the end of an interval its rows are complete."""
        return self.batch_config.data_delay

    @property
    def timestamp_field(self) -> str | None:
        """The column that tells when a row happened."""
        return self.batch_config.timestamp_field

    def select_range(self, start_time: Bound, end_time: Bound) -> SourceRange:
        """Return this source cut to `[start_time, end_time)`.

        Raises:
            DeclarationError: An end is no time, start is after end, start is UNBOUNDED_FUTURE, or end is
                UNBOUNDED_PAST.
        """
        faults = [
            f"{name} is {described(bound)}; give a datetime, or a TectonTimeConstant, moved by a timedelta or not"
            for name, bound in (("start_time", start_time), ("end_time", end_time))
            if not isinstance(bound, datetime | TectonTimeConstant | TimeBound)
        ]
        if start_time is TectonTimeConstant.UNBOUNDED_FUTURE:
            faults.append("start_time is UNBOUNDED_FUTURE; nothing lies after it")
        if end_time is TectonTimeConstant.UNBOUNDED_PAST:
            faults.append("end_time is UNBOUNDED_PAST; nothing lies before it")
        if (
            isinstance(start_time, datetime)
            and isinstance(end_time, datetime)
            and as_utc(start_time) > as_utc(end_time)
        ):
            faults.append(
                f"start_time {format_time(start_time)} is after end_time {format_time(end_time)}; exchange them"
            )
        raise_faults(f"select_range of source {self.name!r}", faults)
        start, end = (TimeBound(b) if isinstance(b, TectonTimeConstant) else b for b in (start_time, end_time))
        return SourceRange(self, start, end)

    def unfiltered(self) -> SourceRange:
        """Return this source whole, whatever interval a job has."""
        return self.select_range(TectonTimeConstant.UNBOUNDED_PAST, TectonTimeConstant.UNBOUNDED_FUTURE)


@overload
def FilteredSource(source: BatchSource, start_time_offset: timedelta = ...) -> SourceRange: ...
@overload
def FilteredSource(source: StreamSource, start_time_offset: timedelta = ...) -> StreamRange: ...
def FilteredSource(  # noqa: N802 - the seeds' spelling
    source: BatchSource | StreamSource, start_time_offset: timedelta = _NO_DELAY
) -> SourceRange | StreamRange:
    """Return a source cut to a job's interval, `[start + start_time_offset, end)`.

    Args:
        source: The declared source; of a stream source, the batch side is cut.
        start_time_offset: Zero or negative; -6 days hands seven days to a one-day job.

    Raises:
        DeclarationError: `start_time_offset` is positive or no timedelta, or `source` is not a source.

    Source: Custom ETL Features with Incremental Backfills, Filtered Source.
    """
    from featurekit_dagster.domain.stream_sources import StreamSource  # noqa: PLC0415 - it is made of what is here

    if not isinstance(source, BatchSource | StreamSource):
        fault = f"source is {described(source)}; give a BatchSource or a StreamSource"
        raise DeclarationError(subject="FilteredSource", faults=[fault])
    if not isinstance(start_time_offset, timedelta):
        raise DeclarationError(
            subject=f"FilteredSource of source {source.name!r}",
            faults=[f"start_time_offset is {described(start_time_offset)}; give a timedelta of zero or less"],
        )
    if start_time_offset > _NO_DELAY:
        raise DeclarationError(
            subject=f"FilteredSource of source {source.name!r}",
            faults=[f"start_time_offset {start_time_offset} is positive; it reaches back, so give zero or less"],
        )
    return source.select_range(
        TectonTimeConstant.MATERIALIZATION_START_TIME + start_time_offset, TectonTimeConstant.MATERIALIZATION_END_TIME
    )


def filtering_fault(used: SourceRange) -> str | None:
    """Return the fault of filtering a source that cannot be filtered, or None."""
    config = used.source.batch_config
    if not used.is_filtered:
        return None
    if isinstance(config, FunctionConfig):
        if not config.supports_time_filtering:
            return (
                f"source {used.source.name!r} is read filtered, but its function cannot filter; declare it with "
                "supports_time_filtering=True, or use it unfiltered"
            )
    elif config.timestamp_field is None:
        return (
            f"source {used.source.name!r} is read filtered, but has no timestamp_field; give one in its batch_config, "
            "or use it unfiltered"
        )
    return None
