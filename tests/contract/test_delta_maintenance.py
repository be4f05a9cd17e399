"""Tidying a Delta table changes its files and nothing else, does only what is needed, and can be gone on with."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st

from featurekit_dagster.errors import LeaseLost
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.stores.delta import DeltaOfflineStore
from featurekit_dagster.stores.offline import TableMaintenance
from featurekit_dagster.stores.offline_rows import partition_interval, partition_span, partitions_of
from tests.support.delta_log import forget_log
from tests.support.offline_table import DAY, HOUR, SCHEMA, T0, Row, days, read, replace

RETENTION = timedelta(days=7)
KEYS = ("key", "time")
WIDER = pa.schema([*SCHEMA, ("fee", pa.float64()), ("tags", pa.list_(pa.string()))])


def fill_by_hours(store: DeltaOfflineStore, hours: int, first: int = 0, **more: object) -> IntervalSet:
    """Write hours one after another, as an hourly schedule does; the rows of each have no order."""
    covered = IntervalSet([Interval(T0, T0 + first * HOUR)]) if first else IntervalSet()
    for hour in range(first, first + hours):
        start = T0 + hour * HOUR
        covered = covered.union([Interval(start, start + HOUR)])
        rows: list[Row] = [(key, start, hour / 7) for key in ("b", None, "a", "c")]
        replace(store, rows, Interval(start, start + HOUR), coverage=covered, epoch=5, **more)  # type: ignore[arg-type]
    return covered


def sort_all(table: TableMaintenance, epoch: int = 6) -> tuple[str, ...]:
    version, left = table.version(), table.left_to_sort()
    for partition in left:
        table.sort_partition(partition, KEYS, job_id="m", epoch=epoch)
    table.clean_up(RETENTION, version, job_id="m", epoch=epoch)
    return left


def rows_of(store: DeltaOfflineStore) -> list[tuple[object, ...]]:
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        return read(store, con)


def files_of(store: DeltaOfflineStore) -> list[Path]:
    return sorted(Path(uri) for uri in DeltaTable(store.location("view")).file_uris())


@pytest.mark.parametrize("direct", [True, False])
def test_partitions_become_one_sorted_file_and_no_row_changes(tmp_path: Path, direct: bool) -> None:
    store = DeltaOfflineStore(tmp_path, direct_read=direct)
    covered = fill_by_hours(store, 48)
    before, table = rows_of(store), store.maintenance("view")
    assert table.size().files == 48
    assert sort_all(table) == ("2024-03-01", "2024-03-02")
    assert rows_of(store) == before
    assert (table.size().files, store.coverage("view")) == (2, covered)
    for file in files_of(store):
        stored = pq.ParquetFile(file).read().to_pylist()
        assert len(stored) == 96
        assert stored == sorted(stored, key=lambda row: (row["key"] is None, row["key"] or "", row["time"]))


def test_every_commit_of_it_carries_job_coverage_and_epoch(tmp_path: Path) -> None:
    store = DeltaOfflineStore(tmp_path)
    fill_by_hours(store, 24)
    written, table = store.version("view"), store.maintenance("view")
    table.forget_columns(pa.schema(list(SCHEMA)[:2]), job_id="m", epoch=6)
    at = table.version()
    table.sort_partition("2024-03-01", KEYS, job_id="m", epoch=6)
    table.clean_up(timedelta(0), at, job_id="m", epoch=6)
    commits = [c for c in DeltaTable(store.location("view")).history() if c["version"] > written]
    assert [c["featurekit.maintenance"] for c in commits] == ["sorted", "vacuum", "vacuum", "sort", "columns"]
    assert {c["featurekit.job_id"] for c in commits} == {"m"}
    assert {c["featurekit.coverage"] for c in commits} == {"2024-03-01T00:00Z/2024-03-02T00:00Z"}
    with pytest.raises(LeaseLost, match="epoch 5 is gone, the current epoch is 6"):
        replace(store, [], days(0, 1), epoch=5)


@pytest.mark.parametrize(
    "step",
    [
        lambda table, **asked: table.forget_columns(pa.schema(list(SCHEMA)[:2]), **asked),
        lambda table, **asked: table.sort_partition("2024-03-01", KEYS, **asked),
        lambda table, **asked: table.clean_up(timedelta(0), 0, **asked),
    ],
    ids=["forget columns", "sort", "clean up"],
)
def test_a_maintenance_whose_lease_was_taken_over_commits_nothing(tmp_path: Path, step: Callable[..., object]) -> None:
    store = DeltaOfflineStore(tmp_path)
    fill_by_hours(store, 3)
    table, version, files = store.maintenance("view"), store.version("view"), files_of(store)
    with pytest.raises(LeaseLost):
        step(table, job_id="m", epoch=4)
    assert (store.version("view"), files_of(store)) == (version, files)


def test_only_partitions_written_in_parts_since_the_last_time_are_left(tmp_path: Path) -> None:
    store = DeltaOfflineStore(tmp_path)
    covered = fill_by_hours(store, 72)
    table = store.maintenance("view")
    replace(store, [("a", T0 + DAY, 1.0)], days(1, 2), coverage=covered, epoch=5)  # a whole day at once is sorted
    assert sort_all(table) == ("2024-03-01", "2024-03-03")
    assert table.left_to_sort() == ()
    version = store.version("view")
    assert sort_all(table) == ()
    assert store.version("view") == version  # a table that nobody writes gets no commits
    replace(store, [], Interval(T0 + HOUR, T0 + 3 * HOUR), coverage=covered, epoch=7)
    assert table.left_to_sort() == ("2024-03-01",)
    assert sort_all(table, epoch=7) == ("2024-03-01",)


def test_a_whole_day_that_rows_were_merged_into_is_left(tmp_path: Path) -> None:
    store, covered = DeltaOfflineStore(tmp_path), IntervalSet([days(0, 2)])
    replace(store, [("b", T0, 1.0), ("b", T0 + DAY, 1.0)], days(0, 2), coverage=covered, epoch=5)
    rows = pa.table({"key": ["c", "a"], "time": [T0, T0], "value": [2.0, 2.0]}, schema=SCHEMA)
    store.upserts("view").write(
        rows, days(0, 1), schema=SCHEMA, time_column="time", keys=["key"], job_id="i", epoch=5, coverage=covered,
        time_partition_size=DAY,
    )  # fmt: skip
    table = store.maintenance("view")
    assert table.left_to_sort() == ("2024-03-01",)
    before = rows_of(store)
    assert sort_all(table) == ("2024-03-01",)
    assert (table.size().files, rows_of(store)) == (2, before)


def test_a_day_that_is_written_while_others_are_sorted_is_left_for_the_next_time(tmp_path: Path) -> None:
    store = DeltaOfflineStore(tmp_path)
    covered = fill_by_hours(store, 48)
    table = store.maintenance("view")
    version, left = table.version(), table.left_to_sort()
    for partition in left:
        table.sort_partition(partition, KEYS, job_id="m", epoch=6)
        replace(store, [("z", T0, 1.0)], Interval(T0, T0 + HOUR), coverage=covered, epoch=6)
    table.clean_up(RETENTION, version, job_id="m", epoch=6)
    assert table.left_to_sort() == ("2024-03-01",)


def test_an_interrupted_maintenance_goes_on_with_what_is_left(tmp_path: Path) -> None:
    store = DeltaOfflineStore(tmp_path)
    fill_by_hours(store, 72)
    table = store.maintenance("view")
    table.sort_partition("2024-03-02", KEYS, job_id="m", epoch=6)
    assert store.maintenance("view").left_to_sort() == ("2024-03-01", "2024-03-03")


def test_a_table_whose_log_was_cleaned_up_or_that_somebody_else_wrote_is_sorted_as_a_whole(tmp_path: Path) -> None:
    store = DeltaOfflineStore(tmp_path)
    replace(store, [("a", T0, 1.0), ("a", T0 + DAY, 1.0)], days(0, 2), coverage=IntervalSet([days(0, 2)]), epoch=5)
    table = store.maintenance("view")
    assert table.left_to_sort() == ()
    whole = DeltaTable(store.location("view"))
    stored = whole.to_pyarrow_table()
    write_deltalake(
        whole, stored.filter(pc.equal(stored["time"], pa.scalar(T0 + DAY, stored["time"].type))), mode="append"
    )
    assert table.left_to_sort() == ("2024-03-01", "2024-03-02")
    sort_all(table, epoch=5)
    fill_by_hours(store, 24)
    forget_log(store.location("view"))
    assert table.left_to_sort() == ("2024-03-01", "2024-03-02")
    assert len(rows_of(store)) == 24 * 4 + 2


def test_columns_that_are_declared_no_more_leave_the_table_and_its_files(tmp_path: Path) -> None:
    store = DeltaOfflineStore(tmp_path)
    rows = [(key, T0 + day * DAY, 1.0, 9.0, ["x"]) for day in range(2) for key in "ba"]
    replace(store, rows, days(0, 2), WIDER, coverage=IntervalSet([days(0, 2)]), epoch=5)  # type: ignore[arg-type]
    before, table = rows_of(store), store.maintenance("view")
    assert table.forget_columns(SCHEMA, job_id="m", epoch=6) == ("fee", "tags")
    assert table.forget_columns(SCHEMA, job_id="m", epoch=6) == ()
    assert sort_all(table) == ("2024-03-01", "2024-03-02")
    assert rows_of(store) == before
    assert {tuple(pq.read_schema(file).names) for file in files_of(store)} == {("key", "time", "value")}
    assert store.schema_faults("view", WIDER) == ["fee is not stored", "tags is not stored"]
    replace(store, [("z", T0, 1.0)], Interval(T0, T0 + HOUR), coverage=table.coverage, epoch=6)
    assert len(rows_of(store)) == 3


def test_files_are_deleted_only_when_they_are_older_than_the_retention(tmp_path: Path) -> None:
    store = DeltaOfflineStore(tmp_path)
    fill_by_hours(store, 24)
    table, old = store.maintenance("view"), files_of(store)
    orphan = old[0].with_name("part-00000-of-a-killed-writer-c000.zstd.parquet")
    orphan.write_bytes(b"half")
    sort_all(table)
    assert table.clean_up(RETENTION, table.version(), job_id="m", epoch=6) == 0
    assert all(file.exists() for file in (*old, orphan))
    long_ago = time.time() - 8 * 86_400
    os.utime(orphan, (long_ago, long_ago))
    assert table.clean_up(RETENTION, table.version(), job_id="m", epoch=6) == 1
    assert not orphan.exists()
    assert table.clean_up(timedelta(0), table.version(), job_id="m", epoch=6) == 24
    assert not any(file.exists() for file in old)
    assert len(rows_of(store)) == 96


def test_coverage_lease_and_what_is_sorted_survive_the_clean_up_of_the_log(tmp_path: Path) -> None:
    store = DeltaOfflineStore(tmp_path)
    covered, table = fill_by_hours(store, 30), store.maintenance("view")
    forget_log(store.location("view"))  # and keep no commits from now on
    for left in (("2024-03-01", "2024-03-02"), ()):
        assert sort_all(table, epoch=9) == left
        assert len(list(Path(store.location("view")).glob("_delta_log/*.json"))) == 1
        assert (store.coverage("view"), table.coverage, len(rows_of(store))) == (covered, covered, 120)
    with pytest.raises(LeaseLost):
        replace(store, [], days(0, 1), epoch=8)


def test_a_read_of_few_days_opens_few_files(tmp_path: Path) -> None:
    store = DeltaOfflineStore(tmp_path)
    fill_by_hours(store, 72)
    table = store.maintenance("view")
    assert [table.size(span).files for span in (days(1, 3), days(2.5, 9), days(7, 9))] == [48, 24, 0]
    whole = table.size()
    assert (whole.files, whole.bytes) == (72, sum(file.stat().st_size for file in files_of(store)))


SIZES = [HOUR, 7 * HOUR, DAY, 36 * HOUR, 7 * DAY]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SIZES), st.integers(-2000, 2000), st.integers(1, 400))
def test_partitions_and_their_intervals_fit_together(size: timedelta, first: int, hours: int) -> None:
    interval = Interval(T0 + first * HOUR, T0 + (first + hours) * HOUR)
    names = partitions_of(interval, size)
    spans = [partition_interval(name, size) for name in names]
    assert all(span.overlaps(interval) for span in spans if size >= DAY)
    assert IntervalSet(spans).covers(interval)
    assert all(one.end == other.start for one, other in zip(spans, spans[1:], strict=False))
    for name, span in zip(names, spans, strict=True):
        assert partition_span(span, size) == (name, name)
