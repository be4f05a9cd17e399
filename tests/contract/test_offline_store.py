"""What every offline store does, on real tables; one parameter per implementation."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurekit_dagster.errors import (
    LeaseLost,
    RowsOutsideInterval,
    StoredSchemaMismatch,
    TableMissing,
)
from featurekit_dagster.intervals import Interval, IntervalSet, from_us, to_us
from featurekit_dagster.stores.delta import DeltaOfflineStore
from featurekit_dagster.stores.offline import OfflineStore
from tests.support.offline_table import DAY, HOUR, SCHEMA, T0, US, Row, days, in_order, read, replace

ROOT = Path(__file__).resolve().parents[2]
SOAK = bool(os.environ.get("FEATUREKIT_SOAK"))


@pytest.fixture(params=["delta read by DuckDB", "delta read by Arrow"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> OfflineStore:
    return DeltaOfflineStore(tmp_path / "lake", direct_read="DuckDB" in request.param)


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'America/New_York'")  # no answer may depend on the session's zone
        yield connection


def test_rows_come_back_as_they_were_written(store: OfflineStore, con: duckdb.DuckDBPyConnection) -> None:
    rows = [("a", T0, 1.0), ("b", T0 + HOUR, None), (None, T0 + DAY - US, 2.5), ("a", T0, 1.0)]
    written = replace(store, rows, days(0, 1))
    assert (written.rows_written, written.rows_replaced) == (4, 0)
    assert written.bytes > 0
    assert read(store, con) == in_order(rows)


def test_times_come_out_as_timestamps_with_zone(store: OfflineStore, con: duckdb.DuckDBPyConnection) -> None:
    replace(store, [("a", T0, 1.0)], days(0, 1))
    relation = store.relation(con, "view", schema=SCHEMA, time_column="time")
    assert con.sql(f"SELECT DISTINCT typeof(time) FROM {relation}").fetchall() == [("TIMESTAMP WITH TIME ZONE",)]


def test_replacing_an_interval_leaves_the_others_as_they_are(
    store: OfflineStore, con: duckdb.DuckDBPyConnection
) -> None:
    for day in range(3):
        replace(store, [("a", T0 + day * DAY, float(day))], days(day, day + 1))
    written = replace(store, [("b", T0 + DAY + HOUR, 7.0), ("c", T0 + DAY, 8.0)], days(1, 2))
    assert (written.rows_written, written.rows_replaced) == (2, 1)
    assert read(store, con) == in_order(
        [("a", T0, 0.0), ("a", T0 + 2 * DAY, 2.0), ("b", T0 + DAY + HOUR, 7.0), ("c", T0 + DAY, 8.0)]
    )


def test_no_rows_clear_the_interval_and_nothing_else(store: OfflineStore, con: duckdb.DuckDBPyConnection) -> None:
    replace(store, [("a", T0, 1.0), ("a", T0 + DAY, 2.0), ("a", T0 + 2 * DAY, 3.0)], days(0, 3))
    written = replace(store, [], days(1, 2))
    assert (written.rows_written, written.rows_replaced, written.bytes) == (0, 1, 0)
    assert read(store, con) == in_order([("a", T0, 1.0), ("a", T0 + 2 * DAY, 3.0)])


def test_a_part_of_a_day_is_replaced_to_the_microsecond(store: OfflineStore, con: duckdb.DuckDBPyConnection) -> None:
    start, end = T0 + 6 * HOUR, T0 + 12 * HOUR
    kept = [("a", start - US, 1.0), ("a", end, 2.0), ("a", T0, 3.0)]
    replace(store, [*kept, ("a", start, 4.0), ("a", end - US, 5.0)], days(0, 1))
    written = replace(store, [("b", start, 6.0), ("b", end - US, 7.0)], Interval(start, end))
    assert (written.rows_written, written.rows_replaced) == (2, 2)
    assert read(store, con) == in_order([*kept, ("b", start, 6.0), ("b", end - US, 7.0)])


@pytest.mark.parametrize("microseconds", [1, 499, 999, 1000, 1001])
def test_replacing_finds_rows_between_two_milliseconds(
    store: OfflineStore, con: duckdb.DuckDBPyConnection, microseconds: int
) -> None:
    """The table format keeps value ranges of times in milliseconds."""
    edge = T0 + HOUR + microseconds * US
    replace(store, [("a", edge - US, 1.0), ("a", edge, 2.0)], days(0, 1))
    assert replace(store, [], Interval(edge, T0 + DAY)).rows_replaced == 1
    assert read(store, con) == [("a", edge - US, 1.0)]
    assert replace(store, [], Interval(T0, edge)).rows_replaced == 1
    assert read(store, con) == []


def test_an_interval_is_read_to_the_microsecond(store: OfflineStore, con: duckdb.DuckDBPyConnection) -> None:
    start, end = T0 + DAY + 3 * HOUR, T0 + 2 * DAY + HOUR
    inside = [("a", start, 1.0), ("a", end - US, 2.0)]
    replace(store, [*inside, ("a", start - US, 3.0), ("a", end, 4.0), ("a", T0, 5.0)], days(0, 4))
    assert read(store, con, Interval(start, end)) == in_order(inside)


def test_an_interval_without_files_reads_no_rows(store: OfflineStore, con: duckdb.DuckDBPyConnection) -> None:
    replace(store, [("a", T0, 1.0)], days(0, 1))
    assert read(store, con, days(300, 301)) == []
    relation = store.relation(con, "view", schema=SCHEMA, time_column="time", interval=days(300, 301))
    assert [str(kind) for kind in con.sql(f"SELECT * FROM {relation}").types] == [
        "VARCHAR",
        "TIMESTAMP WITH TIME ZONE",
        "DOUBLE",
    ]


def test_a_view_whose_rows_were_all_cleared_reads_no_rows(store: OfflineStore, con: duckdb.DuckDBPyConnection) -> None:
    replace(store, [], days(0, 1))
    assert store.exists("view")
    assert read(store, con) == []


def test_a_relation_reads_the_state_in_which_it_was_made(store: OfflineStore, con: duckdb.DuckDBPyConnection) -> None:
    replace(store, [("old", T0, 1.0)], days(0, 1))
    relation = store.relation(con, "view", schema=SCHEMA, time_column="time")
    replace(store, [("new", T0, 2.0)], days(0, 1))
    assert con.sql(f"SELECT key FROM {relation}").fetchall() == [("old",)]
    assert con.sql(f"SELECT x.key, y.key FROM {relation} x, {relation} y").fetchall() == [("old", "old")]


def test_columns_are_read_as_asked_without_the_time(store: OfflineStore, con: duckdb.DuckDBPyConnection) -> None:
    replace(store, [("a", T0, 1.0), ("b", T0 + DAY, 2.0)], days(0, 2))
    assert read(store, con, days(1, 2), columns=["value", "key"]) == [(2.0, "b")]


def test_times_before_1970_are_replaced_and_read(store: OfflineStore, con: duckdb.DuckDBPyConnection) -> None:
    old = datetime(1969, 12, 31, tzinfo=UTC)
    replace(store, [("a", old - US, 1.0), ("a", old, 2.0), ("a", old + DAY, 3.0)], Interval(old - DAY, old + 2 * DAY))
    assert replace(store, [("b", old, 4.0)], Interval(old, old + DAY)).rows_replaced == 1
    assert read(store, con, Interval(old - DAY, old + DAY)) == in_order([("a", old - US, 1.0), ("b", old, 4.0)])


@pytest.mark.parametrize("size", [timedelta(hours=6), timedelta(days=1), timedelta(days=7), timedelta(days=30)])
def test_any_partition_size_replaces_and_reads_exactly(
    store: OfflineStore, con: duckdb.DuckDBPyConnection, size: timedelta
) -> None:
    rows = [("a", T0 + hour * HOUR, float(hour)) for hour in range(0, 24 * 20, 5)]
    replace(store, rows, days(0, 20), time_partition_size=size)
    gone = Interval(T0 + 3 * DAY + HOUR, T0 + 9 * DAY + 7 * HOUR)
    replace(store, [], gone, time_partition_size=size)
    left = [row for row in rows if not gone.contains(row[1])]
    assert read(store, con) == in_order(left)
    some = days(2.5, 11)
    assert read(store, con, some) == in_order(row for row in left if some.contains(row[1]))


def test_another_partition_size_for_the_same_table_is_refused(store: OfflineStore) -> None:
    replace(store, [("a", T0, 1.0)], days(0, 1))
    with pytest.raises(StoredSchemaMismatch, match="time_partition_size is 1 day, 0:00:00 in the table"):
        replace(store, [], days(0, 1), time_partition_size=timedelta(days=7))


def test_not_a_number_and_infinities_survive_and_are_found_by_filters(
    store: OfflineStore, con: duckdb.DuckDBPyConnection
) -> None:
    values = [math.nan, math.inf, -math.inf, -0.0, 1.0, None]
    replace(store, [(str(n), T0 + n * HOUR, value) for n, value in enumerate(values)], days(0, 1))
    found = {row[0]: row[2] for row in read(store, con)}
    assert math.isnan(found["0"])
    assert [found[str(n)] for n in range(1, 6)] == values[1:]
    assert [row[0] for row in read(store, con, where="isnan(value)")] == ["0"]
    assert [row[0] for row in read(store, con, where="value = 'nan'")] == ["0"]
    assert [row[0] for row in read(store, con, where="value > 5")] == ["0", "1"]
    assert replace(store, [], Interval(T0, T0 + HOUR)).rows_replaced == 1


def test_a_column_that_was_added_is_null_in_older_rows(store: OfflineStore, con: duckdb.DuckDBPyConnection) -> None:
    replace(store, [("a", T0, 1.0), ("a", T0 + HOUR, 2.0)], days(0, 1))
    wide = SCHEMA.append(pa.field("extra", pa.list_(pa.int64())))
    written = replace(store, [("b", T0 + DAY, 3.0, [1, 2])], days(1, 2), schema=wide)
    assert written.version == 1
    replace(store, [("c", T0, 4.0, [3])], Interval(T0, T0 + HOUR), schema=wide)
    assert read(store, con, schema=wide) == in_order(
        [("a", T0 + HOUR, 2.0, None), ("b", T0 + DAY, 3.0, [1, 2]), ("c", T0, 4.0, [3])]
    )
    assert read(store, con, days(0, 1), schema=wide, columns=["key", "extra"]) == [("a", None), ("c", [3])]


def test_a_column_that_was_never_written_reads_null(store: OfflineStore, con: duckdb.DuckDBPyConnection) -> None:
    replace(store, [("a", T0, 1.0)], days(0, 1))
    wide = SCHEMA.append(pa.field("later", pa.map_(pa.string(), pa.float32())))
    assert read(store, con, schema=wide) == [("a", T0, 1.0, None)]
    assert read(store, con, days(0, 1), schema=wide, columns=["later"]) == [(None,)]


def test_a_column_that_is_no_longer_given_is_null_in_newer_rows(
    store: OfflineStore, con: duckdb.DuckDBPyConnection
) -> None:
    replace(store, [("a", T0, 1.0)], days(0, 1))
    narrow = pa.schema([SCHEMA.field("key"), SCHEMA.field("time")])
    replace(store, [("b", T0 + DAY)], days(1, 2), schema=narrow)
    assert read(store, con) == in_order([("a", T0, 1.0), ("b", T0 + DAY, None)])


def test_a_column_of_another_type_is_refused(store: OfflineStore, con: duckdb.DuckDBPyConnection) -> None:
    replace(store, [("a", T0, 1.0)], days(0, 1))
    other = SCHEMA.set(2, pa.field("value", pa.string()))
    with pytest.raises(StoredSchemaMismatch, match="value is stored as"):
        replace(store, [("a", T0, "x")], days(0, 1), schema=other)
    assert read(store, con) == [("a", T0, 1.0)]


def test_a_writer_whose_lease_was_taken_over_cannot_commit(store: OfflineStore, con: duckdb.DuckDBPyConnection) -> None:
    replace(store, [("a", T0, 1.0)], days(0, 1), epoch=3)
    replace(store, [("b", T0 + DAY, 2.0)], days(1, 2), epoch=5)
    with pytest.raises(LeaseLost, match="epoch 3 is gone, the current epoch is 5"):
        replace(store, [("c", T0, 9.0)], days(0, 1), epoch=3)
    assert read(store, con) == in_order([("a", T0, 1.0), ("b", T0 + DAY, 2.0)])
    replace(store, [("c", T0, 9.0)], days(0, 1), epoch=5)
    assert read(store, con) == in_order([("c", T0, 9.0), ("b", T0 + DAY, 2.0)])


def test_all_faults_of_the_columns_are_named_and_no_value_is(store: OfflineStore) -> None:
    table = pa.table({"key": ["a"], "time": ["secret"], "surplus": [1]})
    with pytest.raises(StoredSchemaMismatch) as refused:
        store.replace_interval(
            "view", table, days(0, 1), schema=SCHEMA, time_column="time", sort_by=["key"], job_id="j", epoch=1,
            coverage=IntervalSet(),
        )  # fmt: skip
    faults = "; ".join(refused.value.faults)
    assert "surplus is not a stored column" in faults
    assert "time is string and cannot be stored as timestamp[us, tz=UTC] without loss" in faults
    assert "value is missing" in faults
    assert "secret" not in str(refused.value)
    assert not store.exists("view")


def test_the_partition_column_cannot_be_declared(store: OfflineStore) -> None:
    taken = SCHEMA.append(pa.field("time_partition", pa.string()))
    with pytest.raises(StoredSchemaMismatch, match="time_partition is the store's own column"):
        replace(store, [], days(0, 1), schema=taken)


def test_rows_outside_the_interval_are_refused_and_nothing_is_written(
    store: OfflineStore, con: duckdb.DuckDBPyConnection
) -> None:
    replace(store, [("a", T0 + HOUR, 1.0)], days(0, 1))
    rows = [("b", T0 - US, 1.0), ("b", T0, 2.0), ("b", T0 + DAY, 3.0), ("b", None, 4.0)]
    with pytest.raises(RowsOutsideInterval) as refused:
        replace(store, rows, days(0, 1))
    assert (refused.value.outside, refused.value.missing) == (2, 1)
    assert store.version("view") == 0
    assert read(store, con) == [("a", T0 + HOUR, 1.0)]


def test_every_declarable_type_is_stored_exactly(store: OfflineStore, con: duckdb.DuckDBPyConnection) -> None:
    schema = pa.schema(
        [
            ("time", pa.timestamp("us", tz="UTC")),
            ("int32", pa.int32()),
            ("int64", pa.int64()),
            ("float32", pa.float32()),
            ("bool", pa.bool_()),
            ("bytes", pa.binary()),
            ("array", pa.list_(pa.float64())),
            ("struct", pa.struct([("a", pa.int64()), ("b c", pa.list_(pa.string()))])),
            ("map", pa.map_(pa.string(), pa.int64())),
            ("when", pa.timestamp("us", tz="UTC")),
        ]
    )
    row = (T0, -(2**31), 2**63 - 1, 0.1, True, b"\x00\xff", [0.1, None], {"a": 1, "b c": ["x", None]}, [("k", 1)], T0)
    full = pa.Table.from_pylist([dict(zip(schema.names, row, strict=True))], schema=schema)
    empty = pa.Table.from_pylist([{"time": T0 + HOUR}], schema=schema)
    stored = pa.concat_tables([full, empty])
    store.replace_interval(
        "view", stored, days(0, 1), schema=schema, time_column="time", sort_by=["time"], job_id="j", epoch=1,
        coverage=IntervalSet(),
    )  # fmt: skip
    relation = store.relation(con, "view", schema=schema, time_column="time")
    con.execute("SET TimeZone = 'UTC'")
    found = con.sql(f"SELECT * FROM {relation} ORDER BY time").to_arrow_table().cast(schema)
    assert found.equals(stored)


def test_column_names_are_taken_literally(store: OfflineStore, con: duckdb.DuckDBPyConnection) -> None:
    schema = pa.schema([("select", pa.string()), ("time", pa.timestamp("us", tz="UTC")), ('It\'s "Big"', pa.int64())])
    replace(store, [("a", T0, 1)], days(0, 1), schema=schema, sort_by=["select", "time"])
    replace(store, [("b", T0, 2)], days(0, 1), schema=schema, sort_by=["select", "time"])
    assert read(store, con, days(0, 1), schema=schema) == [("b", T0, 2)]


def test_generations_are_kept_apart(store: OfflineStore, con: duckdb.DuckDBPyConnection) -> None:
    replace(store, [("a", T0, 1.0)], days(0, 1))
    replace(store, [("b", T0, 2.0)], days(0, 1), generation=2)
    assert read(store, con) == [("a", T0, 1.0)]
    assert store.version("view", 2) == 0


def test_a_view_never_written_is_missing_and_covers_nothing(
    store: OfflineStore, con: duckdb.DuckDBPyConnection
) -> None:
    assert not store.exists("view")
    assert store.coverage("view") == IntervalSet()
    for ask in (lambda: store.version("view"), lambda: read(store, con)):
        with pytest.raises(TableMissing, match="no offline table"):
            ask()


def test_each_call_is_one_commit(store: OfflineStore) -> None:
    rows = [("a", T0 + day * DAY, 1.0) for day in range(40)]
    assert replace(store, rows, days(0, 40)).version == 0
    assert replace(store, rows, days(0, 40)).version == 1
    assert replace(store, [], days(3, 9)).version == 2
    assert store.version("view") == 2


def test_the_whole_coverage_is_kept_with_each_commit(store: OfflineStore) -> None:
    replace(store, [("a", T0, 1.0)], days(0, 1), coverage=IntervalSet([days(-3, -2)]))
    assert store.coverage("view") == IntervalSet([days(-3, -2), days(0, 1)])
    odd = Interval(datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), T0 + US)
    replace(store, [], days(1, 2), coverage=IntervalSet([odd, days(0, 1), days(5, 6)]))
    assert store.coverage("view") == IntervalSet([odd, days(0, 2), days(5, 6)])


_TIMES = st.integers(min_value=to_us(T0 - 3 * DAY), max_value=to_us(T0 + 3 * DAY)).map(from_us)
_EDGES = st.one_of(_TIMES, st.integers(-72, 72).map(lambda hour: T0 + hour * HOUR))


@st.composite
def replacements(draw: st.DrawFn) -> tuple[Interval, list[Row]]:
    start, end = draw(st.tuples(_EDGES, _EDGES).map(sorted).filter(lambda pair: pair[0] < pair[1]))
    inside = st.one_of(st.datetimes(start.replace(tzinfo=None), (end - US).replace(tzinfo=None)), st.just(start))
    rows = draw(st.lists(st.tuples(st.sampled_from(["a", "b", None]), inside, st.floats(allow_nan=False)), max_size=6))
    return Interval(start, end), [(key, time.replace(tzinfo=UTC), value) for key, time, value in rows]


@settings(max_examples=200 if SOAK else 12)
@given(steps=st.lists(replacements(), min_size=1, max_size=5), asked=replacements())
def test_the_table_is_what_the_replacements_say_one_after_another(
    steps: list[tuple[Interval, list[Row]]], asked: tuple[Interval, list[Row]]
) -> None:
    with tempfile.TemporaryDirectory() as root, duckdb.connect() as con:
        store = DeltaOfflineStore(root)
        kept: list[Row] = []
        for interval, rows in steps:
            gone = [row for row in kept if interval.contains(row[1])]
            written = replace(store, rows, interval)
            assert (written.rows_written, written.rows_replaced) == (len(rows), len(gone))
            kept = [row for row in kept if not interval.contains(row[1])] + rows
        assert read(store, con) == in_order(kept)
        assert read(store, con, asked[0]) == in_order(row for row in kept if asked[0].contains(row[1]))
