"""What holds for the embedded online store while it grows, beside other processes, after kills and forks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from featurekit_dagster.errors import OnlineStoreBusy, OnlineStoreForked
from featurekit_dagster.intervals import EPOCH, Interval, IntervalSet
from featurekit_dagster.stores import record_writer
from featurekit_dagster.stores.lmdb import LmdbOnlineStore
from tests.support.online_records import HOUR_US, TILES, Tiles, stored, tile_records, write
from tests.support.online_writer import HOURS

ROOT = Path(__file__).resolve().parents[2]
SOAK = bool(os.environ.get("FEATUREKIT_SOAK"))


class TestMapSize:
    """LMDB only: the map grows while others hold it."""

    def test_a_full_map_grows_until_everything_fits(self, tmp_path: Path) -> None:
        store = LmdbOnlineStore(tmp_path, map_bytes=1 << 16)
        tiles: Tiles = {((f"user {k}",), hour): (k, hour / 3) for k in range(300) for hour in range(0, 200, 3)}
        write(store, TILES, tile_records(TILES, tiles))
        assert stored(store, TILES, [(f"user {k}",) for k in range(300)]) == tiles
        store.close()

    def test_a_map_grown_by_another_process_is_taken_over(self, tmp_path: Path) -> None:
        store = LmdbOnlineStore(tmp_path, map_bytes=1 << 16)
        write(store, TILES, tile_records(TILES, {(("user 0",), 0): (0, 0.0)}))
        subprocess.run([*WRITER, str(tmp_path), "300", "1"], cwd=ROOT, check=True, capture_output=True)
        assert len(store.read(TILES, [("user 299",)])[0]) == HOURS // 5
        write(store, TILES, tile_records(TILES, {(("user 0",), 0): (7, 7.0)}))
        assert store.read(TILES, [("user 0",)], 0, HOUR_US) == [[(0, 7, 7.0)]]
        store.close()

    def test_readers_in_threads_survive_a_growing_map(self, tmp_path: Path) -> None:
        store = LmdbOnlineStore(tmp_path, map_bytes=1 << 16)
        write(store, TILES, tile_records(TILES, {(("user 0",), 0): (0, 0.0)}))
        done, failures = threading.Event(), []

        def read_on() -> None:
            while not done.is_set():
                rows = store.read(TILES, [("user 0",)], 0, HOUR_US)
                if rows[0][0][0] != 0:
                    failures.append(rows)
                time.sleep(0.0005)

        threads = [threading.Thread(target=read_on) for _ in range(3)]
        for thread in threads:
            thread.start()
        for part in range(4):
            tiles: Tiles = {((f"user {part * 50 + k}",), hour): (k, 0.5) for k in range(50) for hour in range(0, 60)}
            write(store, TILES, tile_records(TILES, tiles))
        done.set()
        for thread in threads:
            thread.join()
        assert not failures
        store.close()

    def test_a_write_that_must_grow_inside_an_open_snapshot_says_so(self, tmp_path: Path) -> None:
        store = LmdbOnlineStore(tmp_path, map_bytes=1 << 16)
        write(store, TILES, tile_records(TILES, {(("a",), 0): (0, 0.0)}))
        tiles: Tiles = {((f"user {k}",), hour): (k, 0.5) for k in range(100) for hour in range(60)}
        with store.snapshot(TILES), pytest.raises(OnlineStoreBusy, match="1 reads of this process"):
            write(store, TILES, tile_records(TILES, tiles))
        write(store, TILES, tile_records(TILES, tiles))
        assert len(store.read(TILES, [("user 99",)])[0]) == 60
        store.close()


def in_forked_child(body: Callable[[], None]) -> int:
    """Run `body` in a forked child and return its exit code."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            body()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


WRITER = [sys.executable, "-m", "tests.support.online_writer"]


def rounds(store: LmdbOnlineStore, keys: int) -> list[set[int]]:
    """Return which rounds each key's tiles come from."""
    found = store.read(TILES, [(f"user {key}",) for key in range(keys)])
    assert all(len(rows) in (0, HOURS // 5) for rows in found)
    return [{row[1] for row in rows} for rows in found]


class TestProcesses:
    """What holds across processes, on the embedded store."""

    def test_a_reader_beside_a_writer_sees_whole_keys_and_never_more_coverage_than_data(self, tmp_path: Path) -> None:
        store = LmdbOnlineStore(tmp_path)
        with subprocess.Popen([*WRITER, str(tmp_path), "400", "6"], cwd=ROOT, stdout=subprocess.PIPE) as writer:
            seen = set()
            while writer.poll() is None:
                with store.snapshot(TILES) as snapshot:
                    complete = snapshot.coverage_us[0][1] // HOUR_US if snapshot.coverage_us else 0
                    for rows in snapshot.read([(f"user {key}",) for key in range(0, 400, 20)]):
                        values = {row[1] for row in rows}
                        assert len(values) <= 1
                        assert not complete or min(values) >= complete
                        seen |= values
            assert writer.returncode == 0
        assert rounds(store, 400) == [{6}] * 400
        assert store.coverage(TILES) == IntervalSet([Interval(EPOCH, EPOCH + timedelta(hours=6))])
        store.close()

    @pytest.mark.parametrize("kill", range(50 if SOAK else 3))
    def test_a_killed_writer_leaves_whole_keys_and_its_marker_unset(self, tmp_path: Path, kill: int) -> None:
        with subprocess.Popen([*WRITER, str(tmp_path), "300", "1000"], cwd=ROOT, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(0.02 + 0.13 * (kill * 7 % 5))
            writer.send_signal(signal.SIGKILL)
        store = LmdbOnlineStore(tmp_path)
        found = rounds(store, 300)
        newest = max(max(values) for values in found)
        complete = store.coverage(TILES).intervals[0].end_us // HOUR_US
        assert all(len(values) == 1 and min(values) >= newest - 1 for values in found)
        assert complete in (newest, newest - 1)
        assert all(min(values) >= complete for values in found)
        again = tile_records(TILES, {(("user 0",), 0): (newest + 1, 0.0)})
        store.write(TILES, again, covered=IntervalSet(), epoch=newest + 2)
        assert store.read(TILES, [("user 0",)], 0, HOUR_US) == [[(0, newest + 1, 0.0)]]
        store.close()

    def test_a_forked_child_reads_and_writes_through_a_handle_of_its_own(self, tmp_path: Path) -> None:
        store = LmdbOnlineStore(tmp_path)
        write(store, TILES, tile_records(TILES, {(("a",), 0): (1, 1.0)}))

        def use() -> None:
            assert store.read(TILES, [("a",)]) == [[(0, 1, 1.0)]]
            write(store, TILES, tile_records(TILES, {(("b",), 0): (2, 2.0)}))
            store.close()

        assert in_forked_child(use) == 0
        assert store.read(TILES, [("a",), ("b",)]) == [[(0, 1, 1.0)], [(0, 2, 2.0)]]
        write(store, TILES, tile_records(TILES, {(("c",), 0): (3, 3.0)}))
        store.close()

    def test_a_child_forked_inside_a_snapshot_is_refused_and_the_snapshot_goes_on(self, tmp_path: Path) -> None:
        store = LmdbOnlineStore(tmp_path)
        write(store, TILES, tile_records(TILES, {(("a",), 0): (1, 1.0)}))

        def use() -> None:
            with pytest.raises(OnlineStoreForked, match="fork outside of a snapshot"):
                store.read(TILES, [("a",)])
            with pytest.raises(OnlineStoreForked):
                write(store, TILES, tile_records(TILES, {(("a",), 0): (2, 2.0)}))
            store.close()

        with store.snapshot(TILES) as snapshot:
            assert in_forked_child(use) == 0
            write(store, TILES, tile_records(TILES, {(("b",), 0): (2, 2.0)}))
            assert snapshot.read([("a",), ("b",)]) == [[(0, 1, 1.0)], []]
        assert store.read(TILES, [("b",)]) == [[(0, 2, 2.0)]]
        store.close()

    @pytest.mark.parametrize("record_seconds", [20e-6, 200e-6])
    def test_as_many_records_go_into_a_transaction_as_fit_into_fifty_milliseconds(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_seconds: float
    ) -> None:
        batches: list[int] = []

        class Machine(record_writer._Pace):
            """A machine on which every record takes the same time."""

            def learn(self, records: int, seconds: float) -> None:
                batches.append(records)
                super().learn(records, records * record_seconds)

        monkeypatch.setattr(record_writer, "_Pace", Machine)
        store = LmdbOnlineStore(tmp_path)
        write(store, TILES, tile_records(TILES, {((f"user {k}",), 0): (k, 0.5) for k in range(20_000)}))
        assert sum(batches) == 20_000
        assert all(records * record_seconds <= 0.05 for records in batches[1:])
        assert all(records * record_seconds > 0.03 for records in batches[5:-1])
        store.close()
