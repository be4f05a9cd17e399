"""A process that writes hours of one day into an offline store; arguments ROOT NAME TIMES VIEW:FIRST-LAST..."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta

import duckdb
import pyarrow as pa

from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.stores.delta import DeltaOfflineStore

DAY = datetime(2024, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
SCHEMA = pa.schema([("writer", pa.string()), ("time", pa.timestamp("us", tz="UTC")), ("round", pa.int64())])


def write(root: str, name: str, times: int, view: str, first_hour: int, last_hour: int) -> None:
    """Replace `[first_hour, last_hour)` of the day so many times, with one row per hour."""
    store = DeltaOfflineStore(root, tries=60)
    interval = Interval(DAY + first_hour * HOUR, DAY + last_hour * HOUR)
    hours = f"SELECT ? AS writer, unnest(range({first_hour}, {last_hour})) AS hour"
    columns = "writer, TIMESTAMPTZ '2024-03-01 00:00:00+00' + to_hours(hour::INT) AS time"
    for number in range(times):
        rows = duckdb.sql(f"SELECT {columns}, {number}::BIGINT AS round FROM ({hours})", params=[name])
        store.replace_interval(
            view,
            rows.to_arrow_table(),
            interval,
            schema=SCHEMA,
            time_column="time",
            sort_by=["writer", "time"],
            job_id=f"{name}-{number}",
            epoch=1,
            coverage=IntervalSet(),
        )


if __name__ == "__main__":
    root, name, times, *parts = sys.argv[1:]
    print("ready", flush=True)
    sys.stdin.readline()
    for part in parts:
        view, hours = part.split(":")
        write(root, name, int(times), view, *map(int, hours.split("-")))
