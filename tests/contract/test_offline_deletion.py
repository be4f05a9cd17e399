"""What the offline store does to rows of deleted keys: exactly they go, and no file is written again that has none."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurekit_dagster.errors import LeaseLost
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.stores.delta import DeltaOfflineStore
from featurekit_dagster.stores.hidden_rows import CUTOFF
from featurekit_dagster.stores.tombstones import FOR_EVER_US

START = datetime(2024, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
SCHEMA = pa.schema([("user", pa.string()), ("shop", pa.int64()), ("ts", pa.timestamp("us", "UTC")), ("v", pa.int64())])
Row = tuple[str | None, int | None, int]


@pytest.fixture(params=[True, False], ids=["local", "as if remote"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> DeltaOfflineStore:
    return DeltaOfflineStore(tmp_path / "lake", direct_read=request.param)


def put(store: DeltaOfflineStore, rows: list[Row], first: int, end: int, epoch: int = 1) -> None:
    """Write the rows (user, shop, hour) of some hours as one job."""
    own = [
        {"user": user, "shop": shop, "ts": START + hour * HOUR, "v": hour}
        for user, shop, hour in rows
        if first <= hour < end
    ]
    store.replace_interval(
        "view",
        pa.Table.from_pylist(own, schema=SCHEMA),
        Interval(START + first * HOUR, START + end * HOUR),
        schema=SCHEMA,
        time_column="ts",
        sort_by=["user", "shop", "ts"],
        job_id=f"{first}",
        epoch=epoch,
        coverage=IntervalSet([Interval(START, START + end * HOUR)]),
    )


def keys(*given_keys: tuple[str | None, int | None, int]) -> pa.Table:
    """Return keys (user, shop, first hour that stays)."""
    users, shops, hours = zip(*given_keys, strict=True)
    cutoffs = [FOR_EVER_US if hour > 10**6 else (START + hour * HOUR).timestamp() * 10**6 for hour in hours]
    return pa.table(
        {
            "user": pa.array(users, pa.string()),
            "shop": pa.array(shops, pa.int64()),
            CUTOFF: pa.array(list(map(int, cutoffs)), pa.int64()),
        }
    )


def rows_of(store: DeltaOfflineStore) -> list[Row]:
    table = DeltaTable(store.location("view")).to_pyarrow_table()
    return sorted(zip(*(table[name].to_pylist() for name in ("user", "shop", "v")), strict=True), key=repr)


def remove(store: DeltaOfflineStore, asked: pa.Table) -> list[int]:
    """Delete keys and return the rows that went with each partition."""
    deletion = store.key_deletion("view", 1, asked, time_column="ts")
    found = [deletion.rewrite(name, job_id="deletion", epoch=1).rows for name in deletion.left()]
    assert deletion.left() == ()
    return found


def test_only_files_that_hold_a_row_of_a_key_are_written_again(store: DeltaOfflineStore) -> None:
    rows: list[Row] = [("a", 1, 2), ("b", 1, 3), ("b", 1, 10), ("a", 1, 26), ("b", 2, 27), ("b", 1, 50)]
    for first, end in ((0, 8), (8, 24), (24, 48), (48, 72)):
        put(store, rows, first, end)
    before = set(DeltaTable(store.location("view")).file_uris())
    assert remove(store, keys(("a", 1, 10**9))) == [1, 1]
    assert rows_of(store) == sorted((row for row in rows if row[0] != "a"), key=repr)
    after = set(DeltaTable(store.location("view")).file_uris())
    assert len(before & after) == 2
    assert store.coverage("view") == IntervalSet([Interval(START, START + 72 * HOUR)])


def test_a_writer_whose_lease_was_taken_over_deletes_nothing(store: DeltaOfflineStore) -> None:
    put(store, [("a", 1, 2)], 0, 24, epoch=5)
    deletion = store.key_deletion("view", 1, keys(("a", 1, 10**9)), time_column="ts")
    with pytest.raises(LeaseLost):
        deletion.rewrite("2024-01-01", job_id="deletion", epoch=4)
    assert rows_of(store) == [("a", 1, 2)]


def test_a_file_that_comes_in_between_is_looked_into(store: DeltaOfflineStore) -> None:
    put(store, [("b", 1, 2)], 0, 24)
    deletion = store.key_deletion("view", 1, keys(("a", 1, 10**9)), time_column="ts")
    assert deletion.left() == ()
    put(store, [("a", 1, 2)], 0, 24)
    assert deletion.left() == ("2024-01-01",)


def test_a_vacuum_leaves_nothing_of_a_deleted_key_on_the_disk(store: DeltaOfflineStore, tmp_path: Path) -> None:
    put(store, [("a", 1, 2), ("b", 1, 2)], 0, 24)
    deletion = store.key_deletion("view", 1, keys(("a", 1, 10**9)), time_column="ts")
    deletion.rewrite("2024-01-01", job_id="deletion", epoch=1)
    assert deletion.vacuum(job_id="deletion", epoch=1) == 1
    files = list((tmp_path / "lake").rglob("*.parquet"))
    assert len(files) == 1
    assert store.coverage("view")


def test_partitions_are_sorted_again_where_files_became_one(store: DeltaOfflineStore) -> None:
    put(store, [("a", 1, 2), ("b", 1, 3), ("a", 1, 30), ("b", 1, 31)], 0, 48)
    table = store.maintenance("view")
    for partition in table.left_to_sort():
        table.sort_partition(partition, ["user", "ts"], job_id="m", epoch=1)
    remove(store, keys(("a", 1, 10**9)))
    assert table.left_to_sort() == ()
    put(store, [("c", 1, 5)], 5, 6)
    put(store, [("a", 1, 6)], 6, 7)
    remove(store, keys(("a", 1, 10**9), ("c", 1, 10**9)))
    assert table.left_to_sort() == ("2024-01-01",)


users, shops = st.sampled_from(["a", "b", None]), st.sampled_from([1, 2, None])


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    st.lists(st.tuples(users, shops, st.integers(0, 71)), max_size=30, unique=True),
    st.lists(st.integers(1, 71), max_size=3, unique=True),
    st.lists(st.tuples(users, shops, st.integers(0, 80)), min_size=1, max_size=4, unique_by=lambda key: key[:2]),
)
def test_exactly_the_rows_of_a_key_that_are_before_its_cutoff_go(
    store: DeltaOfflineStore, rows: list[Row], cuts: list[int], asked: list[Row]
) -> None:
    ends = [0, *sorted(cuts), 72]
    if store.exists("view"):
        store.drop("view", 1)
    for first, end in zip(ends, ends[1:], strict=False):
        put(store, rows, first, end)
    cutoffs = {(user, shop): hour for user, shop, hour in asked}
    gone = {row for row in rows if row[2] < cutoffs.get(row[:2], 0)}
    assert sum(remove(store, keys(*asked))) == len(gone)
    assert rows_of(store) == sorted(set(rows) - gone, key=repr)
