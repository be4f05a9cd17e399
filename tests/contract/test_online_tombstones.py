"""What every online store does with tombstones: hidden records go, stay away, and nothing else is touched."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurekit_dagster.domain.schema import Field, Int64, String
from featurekit_dagster.intervals import Interval, from_us
from featurekit_dagster.stores.online import Key, OnlineLayout, OnlineRemoval, OnlineStore
from featurekit_dagster.stores.stream_state import Columns, DeadLetter, IntArray, Nulls, StreamCheckpoint, StreamCommit
from featurekit_dagster.stores.tombstones import FOR_EVER_US, KeyHasher, Tombstones
from tests.support.online_records import (
    COVERED,
    HOUR_US,
    ROWS,
    TILES,
    WILDCARD,
    Tiles,
    records,
    stored,
    tile_records,
    write,
)
from tests.support.online_servers import OPENERS

SALT = b"salt of a test"
LONG = "b" * 600
NAMES = ("a", LONG, "c", None)


@pytest.fixture(params=OPENERS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OnlineStore]:
    opened = OPENERS[request.param](tmp_path / "online")
    yield opened
    opened.close()


def keys_table(layout: OnlineLayout, keys: list[Key]) -> pa.Table:
    return tile_records(layout, {(key, 0): (None,) * len(layout.value_fields) for key in keys})


def tombstones(layout: OnlineLayout, cutoffs: Mapping[Key, int], version: int = 1) -> Tombstones:
    """Return tombstones of keys with their cutoffs in microseconds."""
    columns = keys_table(layout, list(cutoffs))
    hasher = KeyHasher(layout.key_fields, SALT)
    hashes = hasher.of_columns([columns[field.name].combine_chunks() for field in layout.key_fields])
    return Tombstones(SALT, version, dict(zip(hashes, cutoffs.values(), strict=True)))


def bury(store: OnlineStore, layout: OnlineLayout, cutoffs: Mapping[Key, int], version: int = 1) -> OnlineRemoval:
    store.set_tombstones(layout.workspace, layout.view, tombstones(layout, cutoffs, version))
    return store.remove_deleted(layout, keys_table(layout, list(cutoffs)))


def tiles_of(*numbers: int, names: tuple[str | None, ...] = NAMES) -> Tiles:
    return {((name,), number): (number, 1.0) for name in names for number in numbers}


def stream(store: OnlineStore, layout: OnlineLayout, rows: list[tuple[object, ...]]) -> tuple[int, int]:
    """Write rows as a stream does and return how many were written and how many left out."""

    def last(columns: Columns, nulls: Nulls, groups: IntArray) -> tuple[Columns, Nulls, IntArray | None]:
        ends = [at for at in range(len(groups)) if at + 1 == len(groups) or groups[at] != groups[at + 1]]
        return [column[ends] for column in columns], [None] * len(columns), None

    commit = StreamCommit(partitions={"0": StreamCheckpoint(position="1")}, epochs={"0": 1})

    def refuse(row: int) -> DeadLetter:
        raise AssertionError(row)

    done = store.stream_write(layout, records(layout, rows), combine=last, commit=commit, refuse=refuse)
    assert done.partitions["0"].deleted == store.checkpoints(layout)["0"].deleted >= done.deleted
    return done.rows_written, done.deleted


def test_a_hash_is_that_of_salt_and_encoded_key_whatever_the_order_of_the_key_columns() -> None:
    one = KeyHasher([Field("user", String)], SALT).of_encoded(b"\x01a\x00\x01")
    assert one == hashlib.sha256(SALT + b"\x01a\x00\x01").digest()
    user, merchant = Field("user", String), Field("merchant", Int64)
    columns = {"user": pa.array(["a\0", None], pa.large_string()), "merchant": pa.array([7, None], pa.int64())}
    hashes = {
        tuple(KeyHasher(fields, SALT).of_columns([columns[field.name] for field in fields]))
        for fields in ([user, merchant], [merchant, user])
    }
    assert len(hashes) == 1


def test_tombstones_are_kept_as_they_were_given_and_only_a_later_version_replaces_them(store: OnlineStore) -> None:
    assert store.tombstones("test", "tiles") is None
    first = tombstones(TILES, {("a",): 5, ("c",): FOR_EVER_US}, version=3)
    store.set_tombstones("test", "tiles", first)
    store.set_tombstones("test", "tiles", tombstones(TILES, {("z",): 5}, version=2))
    assert store.tombstones("test", "tiles") == first
    later = tombstones(TILES, {("c",): 7}, version=4)
    store.set_tombstones("test", "tiles", later)
    assert store.tombstones("test", "tiles") == later
    assert store.tombstones("test", "rows") is None


def test_what_is_before_the_cutoff_goes_and_the_tile_that_it_cuts_with_it(store: OnlineStore) -> None:
    write(store, TILES, tile_records(TILES, tiles_of(-1, 0, 63, 64, 65, 200)))
    removed = bury(store, TILES, {("a",): 64 * HOUR_US + 1, (LONG,): FOR_EVER_US})
    assert removed == OnlineRemoval(keys=2, rows=4 + 6)
    left = tiles_of(65, 200, names=("a",)) | tiles_of(-1, 0, 63, 64, 65, 200, names=("c", None))
    assert stored(store, TILES, [(name,) for name in NAMES]) == left
    assert bury(store, TILES, {("a",): 64 * HOUR_US + 1}) == OnlineRemoval(keys=0, rows=0)


@pytest.mark.parametrize("user", ["a", LONG, None])
def test_no_write_brings_a_deleted_key_back(store: OnlineStore, user: str | None) -> None:
    bury(store, TILES, {(user,): 10 * HOUR_US})
    done = write(store, TILES, tile_records(TILES, tiles_of(8, 9, 10, 70, names=(user, "z"))))
    assert (done.rows_written, done.rows_skipped, done.rows_deleted) == (6, 0, 2)
    again = write(store, TILES, tile_records(TILES, tiles_of(9, names=(user,))))
    assert (again.rows_written, again.rows_deleted) == (0, 1)
    assert stream(store, TILES, [(user, 9 * HOUR_US, 5, 5.0), (user, 11 * HOUR_US, 5, 5.0), ("z", 0, 5, 5.0)]) == (2, 1)
    found = {number for _, number in stored(store, TILES, [(user,)])}
    assert found == {10, 11, 70}


def test_rows_of_the_newest_kind_are_judged_by_their_own_time(store: OnlineStore) -> None:
    write(store, ROWS, records(ROWS, [("a", 50, "old", 1.0), ("c", 50, "old", 1.0)]))
    assert bury(store, ROWS, {("a",): 100}) == OnlineRemoval(keys=1, rows=1)
    assert write(store, ROWS, records(ROWS, [("a", 99, "late", 1.0)])).rows_deleted == 1
    assert stream(store, ROWS, [("a", 99, "late", 1.0)]) == (0, 1)
    assert store.read(ROWS, [("a",), ("c",)]) == [[], [(50, "old", 1.0)]]
    assert write(store, ROWS, records(ROWS, [("a", 100, "new", 1.0)])).rows_written == 1


def test_lifted_tombstones_stand_in_nobodys_way_any_more(store: OnlineStore) -> None:
    bury(store, TILES, {("a",): FOR_EVER_US})
    store.set_tombstones("test", "tiles", tombstones(TILES, {}, version=2))
    assert write(store, TILES, tile_records(TILES, tiles_of(3, names=("a",)))).rows_written == 1


def test_tombstones_hold_for_every_generation(store: OnlineStore) -> None:
    second = replace(TILES, generation=2)
    for layout in (TILES, second):
        write(store, layout, tile_records(layout, tiles_of(3)))
    bury(store, TILES, {("a",): FOR_EVER_US})
    assert store.remove_deleted(second, keys_table(second, [("a",)])).rows == 1
    store.drop("test", "tiles", 1, epoch=1)
    assert write(store, second, tile_records(second, tiles_of(4))).rows_deleted == 1


def test_a_replaced_interval_of_a_deleted_key_keeps_what_is_after_the_cutoff(store: OnlineStore) -> None:
    bury(store, TILES, {("a",): 10 * HOUR_US})
    write(store, TILES, tile_records(TILES, tiles_of(10, 11, names=("a", "c"))))
    whole = Interval(from_us(8 * HOUR_US), from_us(12 * HOUR_US))
    done = store.write(
        TILES, tile_records(TILES, tiles_of(9, 11, names=("a", "c"))), covered=COVERED, epoch=1, replace=whole
    )
    assert done.rows_deleted == 1
    assert stored(store, TILES, [("a",)]) == tiles_of(11, names=("a",))
    assert stored(store, TILES, [("c",)]) == tiles_of(9, 11, names=("c",))


def test_without_keys_every_stored_key_is_looked_at(store: OnlineStore) -> None:
    keys: list[Key] = [("a", 1), ("a", 2), ("b", None)]
    write(store, WILDCARD, tile_records(WILDCARD, {(key, 3): (1,) for key in keys}))
    store.set_tombstones("test", "wildcard", tombstones(WILDCARD, {("a", 2): FOR_EVER_US, ("b", None): FOR_EVER_US}))
    assert store.remove_deleted(WILDCARD, None) == OnlineRemoval(keys=2, rows=2)
    assert set(store.read_prefix(WILDCARD, ("a",))) == {("a", 1)}
    assert store.read_prefix(WILDCARD, ("b",)) == {}


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    st.lists(
        st.dictionaries(st.tuples(st.sampled_from(NAMES), st.integers(-70, 140)), st.integers(1, 9), max_size=25),
        max_size=3,
    ),
    st.dictionaries(st.sampled_from(NAMES), st.integers(-80, 150), max_size=3),
    st.integers(0, 3),
)
def test_at_any_moment_exactly_the_hidden_tiles_are_missing(
    store: OnlineStore, writes: list[dict[tuple[str | None, int], int]], cutoffs: dict[str | None, int], at: int
) -> None:
    store.drop(TILES.workspace, TILES.view, None, epoch=1)
    wanted: Tiles = {}
    for number, tiles in enumerate([*writes, {}]):
        if number == min(at, len(writes)):
            bury(store, TILES, {(name,): cutoff * HOUR_US for name, cutoff in cutoffs.items()})
        given_tiles: Tiles = {((name,), tile): (value, 1.0) for (name, tile), value in tiles.items()}
        write(store, TILES, tile_records(TILES, given_tiles))
        wanted |= given_tiles
    left = {(key, n): cells for (key, n), cells in wanted.items() if n >= cutoffs.get(key[0], -1000)}
    assert stored(store, TILES, [(name,) for name in NAMES]) == left
