"""The registry of tombstones in the lake: what it remembers, and what each of two stores is told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from featurekit_dagster.domain.schema import Field, Int64, String
from featurekit_dagster.intervals import to_us
from featurekit_dagster.stores.hidden_rows import visible_relation
from featurekit_dagster.stores.tombstone_registry import Deletion, TombstoneRegistry
from featurekit_dagster.stores.tombstones import FOR_EVER_US, KeyHasher, Tombstones, hidden_rows, visible_rows

NOW = datetime(2024, 3, 1, tzinfo=UTC)
A, B, C = (bytes([each]) * 32 for each in b"abc")
KEYS = (Field("user", String), Field("shop", Int64))


@pytest.fixture
def registry(tmp_path: Path) -> TombstoneRegistry:
    return TombstoneRegistry(str(tmp_path / "tombstones"))


def deletion(request: str, cutoff_us: int = 5, **changes: Any) -> Deletion:
    scope = {"online": True, "offline": True} | changes
    return Deletion(request=request, deleted_at=NOW, cutoff_us=cutoff_us, **scope)


def test_nothing_is_made_or_known_of_a_view_that_nothing_was_deleted_of(
    registry: TombstoneRegistry, tmp_path: Path
) -> None:
    assert registry.load("view") is None
    registry.lift("view", [A])
    assert not list(tmp_path.iterdir())


def test_the_salt_stays_and_is_another_one_for_another_view(registry: TombstoneRegistry) -> None:
    assert registry.salt("view") == registry.salt("view") != registry.salt("other")
    registry.add("view", [A], deletion("1"))
    found = registry.load("view")
    assert found is not None
    assert found.online.salt == registry.salt("view")


def test_each_store_is_told_its_own_and_the_latest_cutoff_holds(registry: TombstoneRegistry) -> None:
    registry.add("view", [A, B], deletion("1", 5))
    registry.add("view", [B], deletion("2", 9, offline=False))
    registry.add("view", [B, C], deletion("3", FOR_EVER_US, online=False))
    found = registry.load("view")
    assert found is not None
    assert found.online.cutoffs == {A: 5, B: 9}
    assert found.offline.cutoffs == found.pending.cutoffs == {A: 5, B: FOR_EVER_US, C: FOR_EVER_US}


def test_what_is_finished_is_pending_no_more_and_repeating_changes_nothing(registry: TombstoneRegistry) -> None:
    for _ in range(2):
        registry.add("view", [A], deletion("1"))
        registry.finish("view", "1")
    registry.add("view", [B], deletion("2"))
    found = registry.load("view")
    assert found is not None
    assert (found.offline.cutoffs, found.pending.cutoffs) == ({A: 5, B: 5}, {B: 5})
    assert found.online.version == 3


def test_lifted_tombstones_are_gone_and_versions_go_on_growing(registry: TombstoneRegistry) -> None:
    registry.add("view", [A, B], deletion("1"))
    before = registry.load("view")
    registry.lift("view", [A, C])
    after = registry.load("view")
    assert before is not None
    assert after is not None
    assert after.online.cutoffs == {B: 5}
    assert after.online.version > before.online.version


def some_rows() -> pa.Table:
    times = [NOW + timedelta(hours=hour) for hour in (0, 1, 2, 0, 1, 0)]
    return pa.table(
        {
            "shop": pa.array([1, 1, 1, 2, None, None], pa.int64()),
            "user": ["a", "a", "a", "a", "a", None],
            "time": pa.array(times, pa.timestamp("us", "UTC")),
            "place": range(6),
        }
    )


def some_tombstones() -> Tombstones:
    hashes = KeyHasher(KEYS, b"salt").of_columns(
        [pa.array(["a", "a", None], pa.large_string()), pa.array([1, None, 7], pa.int64())]
    )
    cutoffs = [to_us(NOW + timedelta(hours=2)), FOR_EVER_US, FOR_EVER_US]
    return Tombstones(b"salt", 1, dict(zip(hashes, cutoffs, strict=True)))


def test_rows_before_the_cutoff_of_their_whole_key_are_hidden() -> None:
    rows, found = some_rows(), some_tombstones()
    assert hidden_rows(rows, KEYS, "time", found).tolist() == [True, True, False, False, True, False]
    assert visible_rows(rows, KEYS, "time", found)["place"].to_pylist() == [2, 3, 5]
    assert visible_rows(rows.slice(5), KEYS, "time", found) == rows.slice(5)


def test_sql_hides_the_same_rows() -> None:
    with duckdb.connect() as con:
        con.register("stored", some_rows())
        visible = visible_relation(
            con, "stored", KEYS, time_column="time", columns=["place", "user"], tombstones=some_tombstones()
        )
        assert sorted(con.sql(f"SELECT place FROM {visible}").fetchall()) == [(2,), (3,), (5,)]
