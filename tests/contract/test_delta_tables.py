"""What is ours to keep about Delta: commits, metadata, files, paths, and writers that meet."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from featurekit_dagster.errors import (
    CommitConflict,
    UnusableLakePath,
)
from featurekit_dagster.intervals import IntervalSet, to_us
from featurekit_dagster.stores.delta import DeltaOfflineStore
from featurekit_dagster.stores.offline import OfflineWrite
from tests.support import offline_writer
from tests.support.offline_table import DAY, HOUR, SCHEMA, T0, days, in_order, read, replace

ROOT = Path(__file__).resolve().parents[2]
SOAK = bool(os.environ.get("FEATUREKIT_SOAK"))


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'America/New_York'")  # no answer may depend on the session's zone
        yield connection


@pytest.mark.parametrize("folder", ["with space", "100% é", "it's", 'a"b', "a#b?c*d", "a+b&c=d{e}"])
def test_a_local_root_may_have_special_characters(tmp_path: Path, con: duckdb.DuckDBPyConnection, folder: str) -> None:
    store = DeltaOfflineStore(tmp_path / folder)
    replace(store, [("a", T0, 1.0)], days(0, 1))
    replace(store, [("b", T0 + DAY, 2.0)], days(1, 2))
    assert (tmp_path / folder / "offline" / "view" / "g1" / "_delta_log").is_dir()
    assert read(store, con) == in_order([("a", T0, 1.0), ("b", T0 + DAY, 2.0)])
    assert DeltaOfflineStore((tmp_path / folder).as_uri()).version("view") == 1


@pytest.mark.parametrize("folder", ["a%25b", "a%c3b", "a[b", "a]b", "a|b", "a^b", "a\\b", "a\nb"])
def test_a_local_root_that_no_table_can_have_is_refused(tmp_path: Path, folder: str) -> None:
    with pytest.raises(UnusableLakePath, match="choose another"):
        DeltaOfflineStore(tmp_path / folder)


def test_the_newest_write_of_ours_gives_the_coverage_whatever_others_commit(tmp_path: Path) -> None:
    store = DeltaOfflineStore(tmp_path)
    replace(store, [("a", T0, 1.0)], days(0, 1))
    for _ in range(20):
        DeltaTable(store.location("view")).alter.set_table_properties(
            {"delta.logRetentionDuration": "interval 30 days"}
        )
    assert store.coverage("view") == IntervalSet([days(0, 1)])
    assert replace(store, [("b", T0, 2.0)], days(0, 1)).rows_replaced == 1


def test_a_commit_names_its_job_interval_and_epoch(tmp_path: Path) -> None:
    store = DeltaOfflineStore(tmp_path)
    for epoch in (4, 5):
        replace(store, [("a", T0, 1.0)], days(0, 1), job_id=f"job-{epoch}", epoch=epoch)
    newest, first = DeltaTable(store.location("view")).history()
    assert [commit["featurekit.job_id"] for commit in (first, newest)] == ["job-4", "job-5"]
    assert newest["featurekit.epoch"] == "5"
    assert newest["featurekit.view"] == "view"
    assert newest["featurekit.generation"] == "1"
    assert newest["featurekit.interval"] == newest["featurekit.coverage"] == "2024-03-01T00:00Z/2024-03-02T00:00Z"


def test_files_are_partitioned_by_utc_date_and_sorted(tmp_path: Path) -> None:
    store = DeltaOfflineStore(tmp_path)
    rows = [(key, T0 + hour * HOUR, 1.0) for hour in (30, 3, 50, 1, 2) for key in ("b", "a", "c")]
    replace(store, rows, days(0, 3))
    table = DeltaTable(store.location("view"))
    assert table.metadata().partition_columns == ["time_partition"]
    assert table.protocol().reader_features is None  # no deletion vectors, nothing that other readers may lack
    by_day = {}
    for file in Path(store.location("view")).rglob("*.parquet"):
        stored = pq.ParquetFile(file).read().to_pylist()
        by_day[file.parent.name] = [(row["key"], row["time"]) for row in stored]
    assert sorted(by_day) == [f"time_partition=2024-03-0{day}" for day in (1, 2, 3)]
    assert all(found == sorted(found) for found in by_day.values())
    assert sum(map(len, by_day.values())) == len(rows)


@pytest.mark.slow
def test_a_year_of_daily_partitions_is_one_commit_and_so_is_a_day_of_it(tmp_path: Path) -> None:
    store = DeltaOfflineStore(tmp_path)
    with duckdb.connect() as con:
        query = "SELECT 'k' || i % 4000 AS key, make_timestamptz(? + i * 90_000_000) AS time, i / 7 AS value"
        rows = con.sql(f"{query} FROM range(350_000) AS t(i)", params=[to_us(T0)]).to_arrow_table().cast(SCHEMA)
    first_day = rows.filter(pc.less(rows["time"], pa.scalar(T0 + DAY, SCHEMA.field("time").type)))
    for table, interval in ((rows, days(0, 365)), (rows, days(0, 365)), (first_day, days(0, 1))):
        version = store.version("view") if store.exists("view") else -1
        written = store.replace_interval(
            "view", table, interval, schema=SCHEMA, time_column="time", sort_by=["key", "time"], job_id="j", epoch=1,
            coverage=IntervalSet(),
        )  # fmt: skip
        assert (written.version, written.rows_written) == (version + 1, len(table))
    assert len(list(Path(store.location("view")).glob("time_partition=*"))) == 365


WRITES = 30 if SOAK else 6


@pytest.fixture(scope="module")
def contested(tmp_path_factory: pytest.TempPathFactory) -> DeltaOfflineStore:
    """A store into which two processes wrote at once: the same hours of one view, neighbouring hours of another."""
    root = tmp_path_factory.mktemp("contested")
    writers = []
    for name, hours in (("one", "0-11"), ("two", "11-24")):
        arguments = [str(root), name, str(WRITES), "same:0-24", f"hours:{hours}"]
        command = [sys.executable, "-m", "tests.support.offline_writer", *arguments]
        writers.append(subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=600)
        assert writer.returncode == 0
    return DeltaOfflineStore(root)


def written(store: DeltaOfflineStore, view: str, con: duckdb.DuckDBPyConnection) -> list[tuple[Any, ...]]:
    relation = store.relation(con, view, schema=offline_writer.SCHEMA, time_column="time")
    query = f"SELECT writer, hour(time AT TIME ZONE 'UTC'), round FROM {relation} ORDER BY ALL"
    return con.sql(query).fetchall()


def test_writers_of_the_same_interval_leave_exactly_one_copy(
    contested: DeltaOfflineStore, con: duckdb.DuckDBPyConnection
) -> None:
    rows = written(contested, "same", con)
    assert len({row[0] for row in rows}) == 1
    assert [row[1:] for row in rows] == [(hour, WRITES - 1) for hour in range(24)]
    assert contested.version("same") == 2 * WRITES - 1


def test_writers_of_neighbouring_hours_of_one_day_lose_nothing(
    contested: DeltaOfflineStore, con: duckdb.DuckDBPyConnection
) -> None:
    expected = [("one", hour, WRITES - 1) for hour in range(11)]
    expected += [("two", hour, WRITES - 1) for hour in range(11, 24)]
    assert written(contested, "hours", con) == expected
    assert contested.version("hours") == 2 * WRITES - 1


def test_a_writer_that_always_comes_second_gives_up_with_a_conflict(tmp_path: Path) -> None:
    """Which try loses is left to chance elsewhere; here every one does."""

    class Overtaken(DeltaOfflineStore):
        def _commit(self, replacement: Any) -> OfflineWrite:
            raise CommitFailedError("another writer came first")

    replace(DeltaOfflineStore(tmp_path), [("a", T0, 1.0)], days(0, 1))
    with pytest.raises(CommitConflict, match="each of 2 tries") as refused:
        replace(Overtaken(tmp_path, tries=2), [("b", T0, 2.0)], days(0, 1))
    assert refused.value.retryable
    assert DeltaOfflineStore(tmp_path).version("view") == 0
