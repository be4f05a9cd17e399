"""What happens to rows before they are stored offline: types conformed, times checked, partitions named, rows ordered.

Pure Arrow, no table format; `delta.py` commits the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from featurekit_dagster.errors import RowsOutsideInterval, StoredSchemaMismatch
from featurekit_dagster.intervals import Interval, ceil_time, floor_time

PARTITION_COLUMN = "time_partition"
UTC_MICROSECONDS = pa.timestamp("us", tz="UTC")
_MICROSECOND, _DAY = timedelta(microseconds=1), timedelta(days=1)


def conformed(view: str, table: pa.Table, schema: pa.Schema, time_column: str) -> pa.Table:
    """Return the columns of `schema` in its order and with its types."""
    faults = [f"{name} is not a stored column" for name in table.column_names if name not in schema.names]
    if PARTITION_COLUMN in schema.names:
        faults.append(f"{PARTITION_COLUMN} is the store's own column; give yours another name")
    if time_column not in schema.names or schema.field(time_column).type != UTC_MICROSECONDS:
        faults.append(f"{time_column} must be stored as {UTC_MICROSECONDS}")
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            faults.append(f"{field.name} is missing")
            continue
        column = table.column(field.name)
        try:
            columns.append(column.cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            # The library's message quotes a value; it must not get into ours.
            faults.append(f"{field.name} is {column.type} and cannot be stored as {field.type} without loss")
    if faults:
        raise StoredSchemaMismatch(view=view, faults=faults)
    return pa.Table.from_arrays(columns, schema=schema)


def check_times(view: str, rows: pa.Table, interval: Interval, time_column: str) -> None:
    """Refuse rows without a time and rows outside `[start, end)`."""
    times = rows.column(time_column)
    span = pc.min_max(times.cast(pa.int64())).as_py()
    inside = span["min"] is None or (interval.start_us <= span["min"] and span["max"] < interval.end_us)
    if inside and not times.null_count:
        return
    us = times.drop_null().cast(pa.int64()).to_numpy()
    outside = int(((us < interval.start_us) | (us >= interval.end_us)).sum())
    raise RowsOutsideInterval(
        view=view, interval=interval, column=time_column, outside=outside, missing=times.null_count
    )


def arranged(rows: pa.Table, time_column: str, sort_by: Sequence[str], size: timedelta) -> pa.Table:
    """Add the partition column and order the rows by it and by `sort_by`.

    Args:
        rows: Rows with a time each.
        time_column: Column of type `UTC_MICROSECONDS`.
        sort_by: Columns that order the rows of a partition.
        size: Width of a partition, whole seconds; partitions are aligned to the Unix epoch.
    """
    starts = pc.floor_temporal(rows.column(time_column), multiple=size // timedelta(seconds=1), unit="second")
    rows = rows.append_column(PARTITION_COLUMN, starts.cast(pa.date32()).cast(pa.string()))
    return rows.sort_by([(column, "ascending") for column in (PARTITION_COLUMN, *sort_by)])


def partition_interval(name: str, size: timedelta) -> Interval:
    """Return the times whose rows are in a partition; the inverse of `partition_span`.

    Args:
        name: A value of the partition column.
        size: Width of the epoch grid to which times are floored.
    """
    day = datetime.fromisoformat(name).replace(tzinfo=UTC)
    return Interval(ceil_time(day, size), ceil_time(day + _DAY, size))


def partition_span(interval: Interval, size: timedelta) -> tuple[str, str]:
    """Return the first and the last partition value that rows of `[start, end)` can have."""
    first, last = (floor_time(time, size) for time in (interval.start, interval.end - _MICROSECOND))
    return first.date().isoformat(), last.date().isoformat()


def partitions_of(interval: Interval, size: timedelta) -> list[str]:
    """Return the partition values that rows of `[start, end)` can have, ascending."""
    time = floor_time(interval.start, size)
    if size < _DAY:
        time = floor_time(time, _DAY)
    names = []
    while time < interval.end:
        names.append(time.date().isoformat())
        time += max(size, _DAY)
    return names
