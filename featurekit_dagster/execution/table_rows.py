"""What is ingested into a feature table: every row fits the declaration, or none is taken."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.engine.arrow import UNCONVERTIBLE, to_arrow
from featurekit_dagster.engine.conform import conform_table
from featurekit_dagster.engine.duck import connect
from featurekit_dagster.errors import OutputSchemaMismatch, RowsRefused
from featurekit_dagster.intervals import to_us
from featurekit_dagster.sql_text import quoted

_FIRST, _LAST = datetime(1000, 1, 1), datetime(9999, 1, 1)  # noqa: DTZ001 - read as UTC; what reads look at
_PLACE = "_place"


def checked_rows(view: FeatureView, frame: Any, now: datetime) -> pa.Table:
    """Return the rows of a frame in the declared columns and types; of rows with equal keys and time the last one.

    Nothing is left out and no value is changed: integers may come in another width, or as floats where pandas has made
    them so, if every value stays the same; times come in any unit and zone, naive ones are UTC.

    Args:
        view: A feature table.
        frame: pandas, polars or Arrow frame.
        now: The time; a table that is kept online takes no rows of later.

    Raises:
        RowsRefused: Something does not fit; all faults are listed.
        TectonValidationError: It is no frame.
    """
    try:
        table = to_arrow(frame)
    except UNCONVERTIBLE:
        # from None: the library's text quotes values
        raise RowsRefused(table=view.name, faults=["a column holds values of several types; give it one"]) from None
    faults = list(_times_between(table))
    try:
        rows = conform_table(view, table, advice="convert it first")
    except OutputSchemaMismatch as error:
        raise RowsRefused(table=view.name, faults=[*error.faults, *faults]) from None
    faults += _wrong_times(view, rows, now)
    if not rows.num_rows:
        faults.append("there are none")
    if faults:
        raise RowsRefused(table=view.name, faults=faults)
    return _last_of_each(view, rows)


def _times_between(table: pa.Table) -> Iterator[str]:
    """Yield the columns of nanosecond times that microseconds cannot hold."""
    for field in table.schema:
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
            try:
                table[field.name].cast(pa.timestamp("us", field.type.tz), safe=True)
            except pa.ArrowInvalid:
                yield f"column {field.name!r} has times between two microseconds; round them"


def _wrong_times(view: FeatureView, rows: pa.Table, now: datetime) -> Iterator[str]:
    """Yield what is wrong with the rows' own times."""
    name = view.timestamp_field
    times = rows[name]
    us = times.cast(pa.int64())
    if times.null_count:
        yield f"column {name!r} is NULL in {times.null_count:,} rows; give every row its time"
    outside = _count(pc.or_(pc.less(us, to_us(_FIRST)), pc.greater_equal(us, to_us(_LAST))))
    if outside:
        yield f"column {name!r} is outside the years 1000 to 9998 in {outside:,} rows"
    later = _count(pc.greater(us, to_us(now))) if view.online else 0
    if later:
        yield (
            f"column {name!r} is later than now in {later:,} rows, and the online store keeps the newest row of each "
            "key alone; ingest them when their time has come, or declare online=False"
        )


def _count(mask: pa.ChunkedArray) -> int:
    return int(pc.sum(mask).as_py() or 0)


def _last_of_each(view: FeatureView, rows: pa.Table) -> pa.Table:
    """Return the last row of each key and time, in the order of the rows."""
    rows = rows.append_column(_PLACE, pa.array(range(rows.num_rows), pa.int64()))
    same = ", ".join(quoted(name) for name in (*view.key_names, view.timestamp_field))
    with connect() as con:
        con.register("rows", rows.select([*view.key_names, view.timestamp_field, _PLACE]))
        last = con.sql(f"SELECT max({_PLACE}) AS place FROM rows GROUP BY {same} ORDER BY place").to_arrow_table()
    return rows.drop_columns([_PLACE]).take(last["place"])
