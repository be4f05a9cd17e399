"""Upserts into the offline store: one commit, rows by keys and time, fenced by the lease, readable like any other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from featurekit_dagster.errors import LeaseLost, RowsOutsideInterval, StoredSchemaMismatch
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.stores.delta import DeltaOfflineStore
from featurekit_dagster.stores.offline import OfflineWrite
from tests.support.scores import DAY, FIRST, SCHEMA, rows

WHOLE = Interval(FIRST, FIRST + 10 * DAY)


def put(store: DeltaOfflineStore, table: pa.Table, job_id: str = "job", epoch: int = 1, **changed: Any) -> OfflineWrite:
    arguments: dict[str, Any] = {
        "schema": SCHEMA,
        "time_column": "scored_at",
        "keys": ("user_id",),
        "coverage": IntervalSet(),
        "time_partition_size": DAY,
    }
    return store.upserts("scores").write(table, WHOLE, job_id=job_id, epoch=epoch, **(arguments | changed))


def stored(store: DeltaOfflineStore) -> list[tuple[str | None, datetime, float | None]]:
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        relation = store.relation(con, "scores", schema=SCHEMA, time_column="scored_at", interval=WHOLE)
        found = con.sql(f"SELECT user_id, scored_at, score FROM {relation} ORDER BY ALL").to_arrow_table()
    return [tuple(row.values()) for row in found.to_pylist()]


@pytest.fixture
def store(tmp_path: Path) -> DeltaOfflineStore:
    return DeltaOfflineStore(tmp_path)


def test_rows_are_replaced_by_key_and_time_in_one_commit(store: DeltaOfflineStore) -> None:
    first = put(store, rows(("a", FIRST, 1.0), ("b", FIRST, 2.0), ("a", FIRST + DAY, 3.0)))
    assert (first.version, first.rows_written, first.rows_replaced) == (0, 3, 0)
    second = put(store, rows(("a", FIRST, 9.0), ("c", FIRST + 2 * DAY, 4.0)))
    assert (second.version, second.rows_written, second.rows_replaced) == (1, 2, 1)
    assert second.bytes > 0
    expected = [("a", FIRST, 9.0), ("a", FIRST + DAY, 3.0), ("b", FIRST, 2.0), ("c", FIRST + 2 * DAY, 4.0)]
    assert stored(store) == expected
    assert store.coverage("scores") == IntervalSet([WHOLE])


@pytest.mark.parametrize(
    ("dtype", "keys"),
    [
        (pa.string(), ["", "x", None]),
        (pa.int64(), [0, -1, None]),
        (pa.int32(), [0, 7, None]),
        (pa.bool_(), [False, True, None]),
        (pa.binary(), [b"", b"x", None]),
        (pa.timestamp("us", tz="UTC"), [FIRST, FIRST + DAY, None]),
    ],
    ids=str,
)
def test_null_is_a_key_of_its_own_whatever_the_type(store: DeltaOfflineStore, dtype: Any, keys: list[Any]) -> None:
    schema = pa.schema(
        [("key", dtype), ("other", pa.string()), ("at", pa.timestamp("us", tz="UTC")), ("v", pa.int64())]
    )

    def given(base: int) -> pa.Table:
        listed = [
            {"key": key, "other": other, "at": FIRST, "v": base + place}
            for place, (key, other) in enumerate((k, o) for k in keys for o in ("o", None))
        ]
        return pa.Table.from_pylist(listed, schema=schema)

    arguments = {"schema": schema, "time_column": "at", "keys": ("key", "other")}
    put(store, given(0), **arguments)
    again = put(store, given(10).slice(1), **arguments)
    assert (again.rows_written, again.rows_replaced) == (5, 5)
    with duckdb.connect() as con:
        relation = store.relation(con, "scores", schema=schema, time_column="at")
        assert con.sql(f"SELECT v FROM {relation} ORDER BY v").fetchall() == [(0,), (11,), (12,), (13,), (14,), (15,)]


def test_a_commit_is_found_by_its_job(store: DeltaOfflineStore) -> None:
    assert not store.upserts("scores").has_commit_of("one")
    put(store, rows(("a", FIRST, 1.0)), job_id="one")
    for number in range(20):
        put(store, rows(("a", FIRST, float(number))), job_id=f"more{number}")
    assert store.upserts("scores").has_commit_of("one")
    assert not store.upserts("scores").has_commit_of("two")


def test_a_lower_epoch_writes_nothing(store: DeltaOfflineStore) -> None:
    put(store, rows(("a", FIRST, 1.0)), epoch=5)
    with pytest.raises(LeaseLost):
        put(store, rows(("a", FIRST, 2.0)), epoch=4)
    assert stored(store) == [("a", FIRST, 1.0)]


def test_what_does_not_fit_is_refused(store: DeltaOfflineStore) -> None:
    put(store, rows(("a", FIRST, 1.0)))
    with pytest.raises(RowsOutsideInterval):
        put(store, rows(("a", FIRST - DAY, 1.0)))
    with pytest.raises(StoredSchemaMismatch, match="time_partition_size"):
        put(store, rows(("a", FIRST, 1.0)), time_partition_size=timedelta(days=7))
    other = SCHEMA.set(2, pa.field("score", pa.string()))
    as_text = pa.Table.from_pylist([{"user_id": "a", "scored_at": FIRST, "score": "1", "rank": 1}], schema=other)
    with pytest.raises(StoredSchemaMismatch, match="score is stored as"):
        put(store, as_text, schema=other)
    assert stored(store) == [("a", FIRST, 1.0)]


def test_a_column_may_come_or_go(store: DeltaOfflineStore) -> None:
    put(store, rows(("a", FIRST, 1.0)).drop_columns(["rank"]), schema=SCHEMA.remove(3))
    put(store, rows(("b", FIRST, 2.0)))
    put(store, rows(("c", FIRST, 3.0)).drop_columns(["rank"]), schema=SCHEMA.remove(3))
    assert [row[0] for row in stored(store)] == ["a", "b", "c"]


def test_writers_at_once_lose_nothing(store: DeltaOfflineStore) -> None:
    given = [rows((f"user{n}", FIRST, float(n)), ("same", FIRST + n * DAY, float(n))) for n in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda table: put(store, table), given))
    assert len(stored(store)) == 12


def test_many_rows_of_one_instant_are_joined_by_key(store: DeltaOfflineStore) -> None:
    many = 50_000

    def scored(first: int) -> pa.Table:
        users = [None, *(f"u{n}" for n in range(first, first + many))]
        columns = [users, [FIRST] * (many + 1), [1.0] * (many + 1), [1] * (many + 1)]
        return pa.table([pa.array(c, t) for c, t in zip(columns, SCHEMA.types, strict=True)], schema=SCHEMA)

    put(store, scored(0))
    # compared pair by pair this would be 2.5 billion comparisons
    assert put(store, scored(many // 2)).rows_replaced == many // 2 + 1
