"""What every online store promises a stream: records and state in one step, and nothing under an old lease."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurekit_dagster.errors import DuplicateEvents, LeaseLost
from featurekit_dagster.intervals import Interval, from_us
from featurekit_dagster.stores.online import OnlineLayout, OnlineStore
from featurekit_dagster.stores.stream_state import (
    Columns,
    DeadLetter,
    IntArray,
    Nulls,
    StreamCheckpoint,
    StreamCommit,
    StreamProgress,
    StreamWrite,
)
from tests.support import online_records
from tests.support.online_records import COVERED, HOUR_US, records
from tests.support.online_servers import OPENERS

TILES = replace(online_records.TILES, is_stream=True)
ROWS = replace(online_records.ROWS, is_stream=True)


@pytest.fixture(params=OPENERS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OnlineStore]:
    opened = OPENERS[request.param](tmp_path)
    yield opened
    opened.close()


def added(columns: Columns, nulls: Nulls, groups: IntArray) -> tuple[Columns, Nulls, IntArray | None]:
    """Add the rows of each group up; a count over a hundred is said not to fit."""
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    found = [np.add.reduceat(column, starts) for column in columns]
    wrong = np.flatnonzero(found[0] > 100)
    return found, [None] * len(columns), wrong if len(wrong) else None


def refuse(row: int) -> DeadLetter:
    return DeadLetter(partition="0", reason="too much", payload=str(row).encode())


def commit_of(position: str = "1", epoch: int = 1, partition: str = "0", **changes: Any) -> StreamCommit:
    checkpoint = StreamCheckpoint(position=position, newest_us=int(position), events=int(position))
    return StreamCommit(partitions={partition: checkpoint}, epochs={partition: epoch}, start_us=7, **changes)


def stream(
    store: OnlineStore,
    rows: list[tuple[Any, ...]],
    commit: StreamCommit | None = None,
    layout: OnlineLayout = TILES,
) -> StreamWrite:
    table = records(layout, rows)
    return store.stream_write(layout, table, combine=added, commit=commit or commit_of(), refuse=refuse)


def batch(store: OnlineStore, rows: list[tuple[Any, ...]], layout: OnlineLayout = TILES, **changes: Any) -> None:
    store.write(layout, records(layout, rows), covered=COVERED, epoch=1, **changes)


def stored(store: OnlineStore, user: str, layout: OnlineLayout = TILES) -> list[tuple[Any, ...]]:
    return store.read(layout, [(user,)])[0]


@pytest.mark.parametrize("user", ["a", "b" * 600])
def test_rows_of_a_tile_are_combined_with_each_other_and_with_what_is_stored(store: OnlineStore, user: str) -> None:
    stream(store, [(user, 0, 1, 1.0), ("z", 0, 9, 9.0), (user, 65 * HOUR_US, 5, 5.0), (user, 0, 2, 2.0)])
    assert stream(store, [(user, 0, 3, 4.0), (user, HOUR_US, 1, 1.0)]).rows_written == 2
    assert stored(store, user) == [(0, 6, 7.0), (HOUR_US, 1, 1.0), (65 * HOUR_US, 5, 5.0)]
    assert stored(store, "z") == [(0, 9, 9.0)]


def test_a_batch_tile_replaces_a_streams_and_is_not_added_to(store: OnlineStore) -> None:
    stream(store, [("a", 0, 1, 1.0), ("a", HOUR_US, 1, 1.0)])
    batch(store, [("a", 0, 10, 10.0)])
    done = stream(store, [("a", 0, 1, 1.0), ("a", 0, 1, 1.0), ("a", HOUR_US, 1, 1.0)])
    assert (done.superseded, done.partitions["0"].superseded) == (2, 2)
    assert stored(store, "a") == [(0, 10, 10.0), (HOUR_US, 2, 2.0)]
    assert stream(store, [("a", 0, 1, 1.0)]).partitions["0"].superseded == 3


@pytest.mark.parametrize(("keeps", "left"), [(True, [HOUR_US, 2 * HOUR_US]), (False, [HOUR_US])])
def test_a_replacing_batch_write_keeps_a_streams_tiles_if_it_is_told_to(
    store: OnlineStore, keeps: bool, left: list[int]
) -> None:
    batch(store, [("a", 0, 1, 1.0)])
    stream(store, [("a", 2 * HOUR_US, 1, 1.0)])
    day = Interval(from_us(0), from_us(24 * HOUR_US))
    batch(store, [("a", HOUR_US, 1, 1.0)], replace=day, keep_stream=keeps)
    assert [start for start, *_ in stored(store, "a")] == left


def test_of_rows_the_newest_wins_and_batch_beats_stream(store: OnlineStore) -> None:
    stream(store, [("a", 5, "x", 1.0), ("a", 3, "y", 2.0)], layout=ROWS)
    assert stored(store, "a", ROWS) == [(5, "x", 1.0)]
    batch(store, [("a", 5, "batch", 3.0)], layout=ROWS)
    assert stream(store, [("a", 5, "again", 1.0), ("b", 1, "n", 1.0)], layout=ROWS).superseded == 1
    assert (stored(store, "a", ROWS), stored(store, "b", ROWS)) == ([(5, "batch", 3.0)], [(1, "n", 1.0)])


def test_state_is_written_with_the_records_and_the_first_start_stays(store: OnlineStore) -> None:
    assert store.checkpoints(TILES) == {}
    stream(store, [("a", 0, 1, 1.0)], commit_of("3"))
    stream(store, [], replace(commit_of("5"), start_us=99))
    assert store.checkpoints(TILES) == {"0": StreamCheckpoint(position="5", newest_us=5, events=5)}
    with store.snapshot(TILES) as snapshot:
        assert snapshot.stream == StreamProgress(7, 5)
    store.drop(TILES.workspace, TILES.view, TILES.generation, epoch=1)
    assert store.checkpoints(TILES) == {}
    with store.snapshot(TILES) as snapshot:
        assert snapshot.stream == StreamProgress()


def test_a_new_holder_keeps_what_is_stored_and_shuts_out_the_former_one(store: OnlineStore) -> None:
    stream(store, [], commit_of("3", epoch=1))
    taken = stream(store, [], StreamCommit(partitions={"0": None}, epochs={"0": 2}))
    assert taken.partitions["0"].position == "3"
    with pytest.raises(LeaseLost) as lost:
        stream(store, [("a", 0, 1, 1.0)], commit_of("4", epoch=1))
    assert (lost.value.epoch, lost.value.current) == (1, 2)
    assert (stored(store, "a"), store.checkpoints(TILES)["0"].position) == ([], "3")


def test_marks_are_remembered_until_they_are_forgotten_and_nobody_marks_twice(store: OnlineStore) -> None:
    old, new = b"o" * 16, b"n" * 16
    stream(store, [], commit_of(seen=[(old, -5), (new, 9)]))
    assert store.seen_marks(TILES, [old, new, b"x" * 16]) == {old, new}
    with pytest.raises(DuplicateEvents):
        stream(store, [("a", 0, 1, 1.0)], commit_of(seen=[(new, 9)]))
    assert stored(store, "a") == []
    stream(store, [], commit_of(forget_us=8))
    assert store.seen_marks(TILES, [old, new]) == {new}


def test_nobody_marks_events_of_a_time_of_which_marks_were_forgotten(store: OnlineStore) -> None:
    stream(store, [], commit_of(forget_us=8))
    with pytest.raises(DuplicateEvents):
        stream(store, [("a", 0, 1, 1.0)], commit_of(seen=[(b"o" * 16, 8)]))
    stream(store, [("a", 0, 1, 1.0)], commit_of(seen=[(b"n" * 16, 9)], forget_us=3))
    assert stored(store, "a") == [(0, 1, 1.0)]
    with store.snapshot(TILES) as snapshot:
        assert snapshot.stream.forgotten_us == 8


def test_dead_letters_wait_until_they_are_taken_away_and_are_numbered_for_good(store: OnlineStore) -> None:
    letters = [DeadLetter(partition="0", reason="odd", payload=bytes([n])) for n in range(3)]
    stream(store, [], commit_of(letters=letters[:2]))
    assert [letter.number for letter in store.dead_letters(TILES, "0", 10)] == [0, 1]
    store.drop_dead_letters(TILES, "0", 0)
    stream(store, [], commit_of(letters=letters[2:]))
    left = store.dead_letters(TILES, "0", 10)
    assert [(letter.number, letter.payload) for letter in left] == [(1, b"\x01"), (2, b"\x02")]
    assert store.dead_letters(TILES, "0", 1) == left[:1]
    assert store.dead_letters(TILES, "1", 10) == []


def test_rows_that_their_tile_cannot_hold_are_refused_alone(store: OnlineStore) -> None:
    stream(store, [("b", 0, 99, 1.0)])
    done = stream(store, [("b", 0, 1, 1.0), ("a", 0, 2, 2.0), ("b", 0, 1, 1.0)])
    assert (done.rows_written, done.partitions["0"].refused) == (1, 2)
    assert (stored(store, "a"), stored(store, "b")) == ([(0, 2, 2.0)], [(0, 99, 1.0)])
    assert [letter.payload for letter in store.dead_letters(TILES, "0", 9)] == [b"0", b"2"]
