"""What every online store can do with a whole generation: lay it out anew in its other slot, and trim it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from featurekit_dagster.errors import LeaseLost, OnlineLayoutMismatch
from featurekit_dagster.stores.online import OnlineStore
from tests.support.online_records import COVERED, HOUR_US, ROWS, TILES, Tiles, records, stored, tile_records, write
from tests.support.online_servers import OPENERS

DAILY = replace(TILES, tile_us=24 * HOUR_US, slot=1)
LONG = "k" * 900


@pytest.fixture(params=OPENERS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OnlineStore]:
    opened = OPENERS[request.param](tmp_path / "online")
    yield opened
    opened.close()


def nothing() -> None:
    """Find no reason to end."""


def test_a_generation_moves_to_its_other_slot_in_one_step(store: OnlineStore) -> None:
    write(store, TILES, tile_records(TILES, {(("a",), hour): (1, 1.0) for hour in range(48)}))
    assert store.placed(replace(DAILY, slot=0)) == TILES
    store.write(
        DAILY, tile_records(DAILY, {(("a",), 0): (24, 24.0), (("a",), 1): (24, 24.0)}), covered=COVERED, epoch=1
    )
    assert len(store.read(store.placed(TILES), [("a",)])[0]) == 48
    store.use(DAILY, epoch=2)
    assert store.placed(TILES) == DAILY
    assert store.read(DAILY, [("a",)]) == [[(0, 24, 24.0), (24 * HOUR_US, 24, 24.0)]]
    assert len(store.read(TILES, [("a",)])[0]) == 48
    with pytest.raises(OnlineLayoutMismatch):
        store.write(TILES, tile_records(TILES, {(("a",), 0): (1, 1.0)}), covered=COVERED, epoch=2)
    store.clear(TILES, epoch=2)
    assert store.read(DAILY, [("a",)]) == [[(0, 24, 24.0), (24 * HOUR_US, 24, 24.0)]]
    assert store.generations(TILES.workspace, TILES.view) == (1,)
    with pytest.raises(LeaseLost):
        store.clear(TILES, epoch=1)


def test_tiles_before_a_time_go_and_the_rest_stays_as_it_was(store: OnlineStore) -> None:
    keys = [("a",), (LONG,), ("b",)]
    tiles: Tiles = {(key, hour): (hour, hour / 3) for key in keys for hour in range(-70, 200, 3)}
    write(store, TILES, tile_records(TILES, tiles))
    found = store.trim(TILES, 100 * HOUR_US, epoch=2, check=nothing)
    left = {at: row for at, row in tiles.items() if at[1] >= 100}
    assert stored(store, TILES, keys) == left
    assert (found.removed, found.values_after) == (len(tiles) - len(left), 3 * 3)
    assert found.values_before == 3 * 6
    assert found.bytes_after < found.bytes_before
    again = store.trim(TILES, None, epoch=2, check=nothing)
    assert (again.removed, again.bytes_before, again.bytes_after) == (0, found.bytes_after, found.bytes_after)


def test_rows_before_a_time_go(store: OnlineStore) -> None:
    write(store, ROWS, records(ROWS, [("a", 5, "x", 1.0), ("b", 9, "y", 2.0)]))
    assert store.trim(ROWS, 6, epoch=1, check=nothing).removed == 1
    assert store.read(ROWS, [("a",), ("b",)]) == [[], [(9, "y", 2.0)]]
