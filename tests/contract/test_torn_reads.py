"""A reader beside a writer finds every key as it was before a write or after it, never a mixture."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from featurekit_dagster.intervals import IntervalSet
from featurekit_dagster.stores.online import OnlineStore
from tests.support.online_records import COVERED, TILES, Tiles, tile_records
from tests.support.online_servers import OPENERS, dynamodb_store

SOAK = bool(os.environ.get("FEATUREKIT_SOAK"))
HOURS = range(0, 130, 5)  # in three chunks
KEYS = [(f"user {number}",) for number in range(20)]


def beside_a_writer(open_store: Callable[[Path], OnlineStore], place: Path, reads: int) -> int:
    """Read keys while another thread writes all tiles of all keys anew, round by round; return the rounds seen.

    There are at least so many reads, and more until two rounds were seen.
    """
    done, failed = threading.Event(), []

    def write_on() -> None:
        try:
            store, number = open_store(place), 0
            while not done.is_set():
                number += 1
                tiles: Tiles = {(key, hour): (number, float(number)) for key in KEYS for hour in HOURS}
                covered = COVERED if number % 2 else IntervalSet()
                store.write(TILES, tile_records(TILES, tiles), covered=covered, epoch=number)
        except Exception as error:  # noqa: BLE001 - told to the test, which raises it
            failed.append(error)
            done.set()

    writer = threading.Thread(target=write_on)
    store, seen, newest = open_store(place), set(), dict.fromkeys(KEYS, 0)
    writer.start()
    try:
        turns, patience = -(-reads // len(KEYS)), time.monotonic() + 300
        while turns > 0 or (len(seen) < 2 and time.monotonic() < patience):
            turns -= 1
            for key, rows in zip(KEYS, store.read(TILES, KEYS), strict=True):
                if not rows and not newest[key]:
                    continue
                rounds = {row[1] for row in rows}
                assert len(rows) == len(HOURS)
                assert len(rounds) == 1
                assert rounds >= {newest[key]} or min(rounds) > newest[key]
                newest[key] = rounds.pop()
                seen.add(newest[key])
            if failed:
                break
    finally:
        done.set()
        writer.join()
        store.close()
    assert not failed, failed
    return len(seen)


@pytest.mark.parametrize(
    ("name", "reads"), [("lmdb", 1_000_000 if SOAK else 6_000), ("valkey", 100_000 if SOAK else 600)]
)
def test_no_read_is_torn(name: str, reads: int, tmp_path: Path) -> None:
    assert beside_a_writer(OPENERS[name], tmp_path, reads) > 1


@pytest.mark.slow
def test_no_read_of_dynamodb_is_torn(tmp_path: Path) -> None:
    assert beside_a_writer(dynamodb_store, tmp_path, 5_000 if SOAK else 200) > 1
