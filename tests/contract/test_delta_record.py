"""What a Delta table says about itself, also when clean-up has left nothing of its log but a checkpoint."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from deltalake import CommitProperties, DeltaTable, write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st

from featurekit_dagster.errors import LeaseLost, StoredSchemaMismatch
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.stores.delta import DeltaOfflineStore
from featurekit_dagster.stores.delta_record import (
    commit_properties,
    coverage_of,
    format_intervals,
    lease_epoch_of,
    partition_size_of,
)
from tests.conftest import SOAK
from tests.support.delta_log import forget_log
from tests.support.offline_table import DAY, HOUR, T0, days, read, replace

COMMITS = 200 if SOAK else 40
COVERAGES = st.lists(st.sets(st.integers(-400, 400), max_size=12), min_size=1, max_size=4)


def test_coverage_survives_the_clean_up_of_the_log_after_many_commits(tmp_path: Path) -> None:
    store, covered = DeltaOfflineStore(tmp_path), IntervalSet()
    for number in range(COMMITS):
        day = number + 4 * number // COMMITS  # three holes
        replace(store, [("a", T0 + day * DAY, float(day))], days(day, day + 1), coverage=covered, epoch=7)
        covered = covered.union([days(day, day + 1)])
    assert forget_log(store.location("view")) == 1
    assert all("featurekit.coverage" not in commit for commit in DeltaTable(store.location("view")).history())
    assert store.coverage("view") == covered
    assert len(covered) == 4
    with duckdb.connect() as con:
        assert len(read(store, con)) == COMMITS
    again = replace(store, [("b", T0, 1.0)], days(0, 1), coverage=covered, epoch=7)
    assert (again.rows_replaced, store.coverage("view")) == (1, covered)


def test_the_lease_and_the_partition_size_survive_the_clean_up_too(tmp_path: Path) -> None:
    store = DeltaOfflineStore(tmp_path)
    replace(store, [("a", T0, 1.0)], days(0, 1), epoch=7, time_partition_size=HOUR)
    forget_log(store.location("view"))
    with pytest.raises(LeaseLost, match="the lease of epoch 6 is gone, the current epoch is 7"):
        replace(store, [("b", T0, 1.0)], days(0, 1), epoch=6, time_partition_size=HOUR)
    with pytest.raises(StoredSchemaMismatch, match=r"time_partition_size is 1:00:00 in the table and 1 day"):
        replace(store, [("b", T0, 1.0)], days(0, 1), epoch=8)
    with duckdb.connect() as con:
        assert read(store, con, interval=Interval(T0, T0 + HOUR)) == [("a", T0, 1.0)]


def test_a_table_whose_commits_carry_metadata_alone_is_read_from_its_history(tmp_path: Path) -> None:
    metadata = {
        "featurekit.coverage": format_intervals([days(0, 3)]),
        "featurekit.time_partition_size_us": "3600000000",
    }
    location, rows = str(tmp_path / "older"), pa.table({"n": [1]})
    write_deltalake(location, rows, commit_properties=CommitProperties(custom_metadata=metadata))
    for _ in range(20):
        write_deltalake(location, rows, mode="append")
    table = DeltaTable(location)
    assert (coverage_of(table), partition_size_of(table)) == (IntervalSet([days(0, 3)]), HOUR)
    assert lease_epoch_of(table) is None


def test_a_table_of_somebody_else_covers_nothing(tmp_path: Path) -> None:
    write_deltalake(str(tmp_path / "foreign"), pa.table({"n": [1]}))
    table = DeltaTable(str(tmp_path / "foreign"))
    assert (coverage_of(table), partition_size_of(table)) == (IntervalSet(), timedelta(days=1))


@settings(max_examples=15, deadline=None)
@given(COVERAGES)
def test_the_newest_coverage_counts_whether_it_is_longer_or_shorter(
    tmp_path_factory: pytest.TempPathFactory, coverages: list[set[int]]
) -> None:
    location, rows = str(tmp_path_factory.mktemp("table")), pa.table({"n": [1]})
    covered = IntervalSet()
    for epoch, numbers in enumerate(coverages):
        covered = IntervalSet(days(number, number + 1) for number in numbers)
        properties = commit_properties({}, covered, DAY, epoch)
        write_deltalake(location, rows, mode="append", commit_properties=properties)
        assert coverage_of(DeltaTable(location)) == covered
    forget_log(location)
    assert coverage_of(DeltaTable(location)) == covered
    assert lease_epoch_of(DeltaTable(location)) == len(coverages) - 1
