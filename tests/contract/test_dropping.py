"""Generations and views that are taken away: what goes, what stays, and that it can be repeated."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace as changed
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from deltalake.fs import DeltaStorageHandler
from pyarrow import fs

from featurekit_dagster.domain.schema import Field, Int64
from featurekit_dagster.errors import LeaseLost, TableMissing
from featurekit_dagster.intervals import IntervalSet
from featurekit_dagster.stores import record_removal
from featurekit_dagster.stores.delta import DeltaOfflineStore
from featurekit_dagster.stores.delta_files import remove_everything, remove_table
from featurekit_dagster.stores.lmdb import LmdbOnlineStore
from featurekit_dagster.stores.lmdb_environment import environment_at, release
from featurekit_dagster.stores.online import OnlineStore
from tests.conftest import ROOT
from tests.support.offline_table import DAY, T0, days, replace
from tests.support.online_records import COVERED, ROWS, TILES, records, tile_records, write
from tests.support.online_servers import OPENERS

SECOND = changed(TILES, generation=2)


@pytest.fixture
def lake(tmp_path: Path) -> DeltaOfflineStore:
    return DeltaOfflineStore(tmp_path / "lake")


@pytest.fixture(params=OPENERS)
def online(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OnlineStore]:
    opened = OPENERS[request.param](tmp_path / "online")
    yield opened
    opened.close()


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ---- offline -------------------------------------------------------------------------------------------------------


def test_a_dropped_generation_is_gone_with_its_files_and_no_other_is(lake: DeltaOfflineStore, tmp_path: Path) -> None:
    for generation in (1, 2, 12):
        replace(lake, [("a", T0, 1.0)], days(0, 1), generation=generation)
    lake.drop("view", 1)
    assert [lake.exists("view", generation) for generation in (1, 2, 12)] == [False, True, True]
    assert {Path(file).parts[2] for file in files(tmp_path / "lake")} == {"g2", "g12"}
    with pytest.raises(TableMissing):
        lake.version("view", 1)
    lake.drop("view", 1)
    for generation in (2, 12):
        lake.drop("view", generation)
    assert list((tmp_path / "lake" / "offline").iterdir()) == []


def test_what_an_interrupted_drop_has_left_is_removed_by_the_next(lake: DeltaOfflineStore, tmp_path: Path) -> None:
    replace(lake, [("a", T0, 1.0)], days(0, 1))
    table = tmp_path / "lake" / "offline" / "view" / "g1"
    for file in (table / "_delta_log").iterdir():
        file.unlink()
    assert not lake.exists("view")
    assert files(table)
    lake.drop("view", 1)
    assert not table.exists()


def test_a_dropped_generation_can_be_written_anew(lake: DeltaOfflineStore) -> None:
    replace(lake, [("a", T0, 1.0)], days(0, 2))
    lake.drop("view", 1)
    replace(lake, [("b", T0, 1.0)], days(0, 1))
    assert (lake.row_count("view"), lake.version("view")) == (1, 0)


@pytest.mark.parametrize("view", ["", ".", "..", "a/b", "../../x", "a\\b"])
@pytest.mark.parametrize("generation", [1, 0, -1])
def test_nothing_but_a_views_generation_can_be_dropped(
    lake: DeltaOfflineStore, tmp_path: Path, view: str, generation: int
) -> None:
    kept = tmp_path / "lake" / "offline" / "x" / "g1" / "file"
    kept.parent.mkdir(parents=True)
    kept.touch()
    with pytest.raises(ValueError, match="is not the table of a view's generation"):
        lake.drop(view, generation)
    with pytest.raises(ValueError, match="is not the table of a view's generation"):
        remove_table(str(tmp_path / "lake"), str(tmp_path), None, is_local=True)
    assert kept.exists()


def test_what_a_link_points_to_is_not_removed(lake: DeltaOfflineStore, tmp_path: Path) -> None:
    kept = tmp_path / "elsewhere" / "file"
    kept.parent.mkdir()
    kept.touch()
    link = tmp_path / "lake" / "offline" / "view" / "g1"
    link.parent.mkdir(parents=True)
    link.symlink_to(kept.parent)
    lake.drop("view", 1)
    assert kept.exists()
    assert not link.exists()


def test_the_files_of_a_remote_table_are_removed_through_its_object_store(
    lake: DeltaOfflineStore, tmp_path: Path
) -> None:
    replace(lake, [("a", T0 + day * DAY, 1.0) for day in range(3)], days(0, 3))
    table = tmp_path / "lake" / "offline" / "view" / "g1"
    (table / "stray").touch()
    remote = fs.PyFileSystem(DeltaStorageHandler(f"file://{table}"))
    remove_everything(remote)
    assert files(table) == []
    remove_everything(remote)


def test_rows_are_counted_from_the_log_alone(lake: DeltaOfflineStore, tmp_path: Path) -> None:
    assert lake.row_count("view") is None
    replace(lake, [("a", T0 + day * DAY, 1.0) for day in range(5)], days(0, 5))
    replace(lake, [], days(1, 2))
    for data in (tmp_path / "lake").rglob("*.parquet"):
        data.write_bytes(b"not read")
    assert lake.row_count("view") == 4
    assert lake.row_count("view", 2) is None


def test_rows_of_an_interval_are_counted_where_no_file_has_others_too(lake: DeltaOfflineStore) -> None:
    replace(lake, [("a", T0 + half * DAY / 2, 1.0) for half in range(10)], days(0, 5))
    replace(lake, [], days(1, 2))

    def count(first: float, last: float) -> int | None:
        return lake.row_count("view", interval=days(first, last), time_column="time")

    assert [count(0, 5), count(0, 1), count(1, 2), count(2, 4), count(9, 10)] == [8, 2, 0, 4, 0]
    assert [count(0, 0.5), count(0.5, 3), count(0, 2.5)] == [None, None, None]
    assert lake.row_count("other", interval=days(0, 1), time_column="time") is None


# ---- online --------------------------------------------------------------------------------------------------------


def test_a_dropped_generation_covers_nothing_and_the_other_answers_as_before(online: OnlineStore) -> None:
    for layout, number in ((TILES, 1), (SECOND, 2)):
        write(online, layout, tile_records(layout, {(("a",), 0): (number, 0.0)}))
    online.drop("test", "tiles", 1, epoch=1)
    assert (online.coverage(TILES), online.read(TILES, [("a",)])) == (IntervalSet(), [[]])
    assert (online.coverage(SECOND), online.read(SECOND, [("a",)])) == (COVERED, [[(0, 2, 0.0)]])
    online.drop("test", "tiles", 1, epoch=1)


def test_who_was_overtaken_by_a_drop_writes_nothing_more(online: OnlineStore) -> None:
    table = tile_records(TILES, {(("a",), 0): (1, 0.0)})
    online.write(TILES, table, covered=COVERED, epoch=3)
    online.drop("test", "tiles", 1, epoch=4)
    with pytest.raises(LeaseLost):
        online.write(TILES, table, covered=COVERED, epoch=3)
    assert online.coverage(TILES) == IntervalSet()
    online.write(TILES, table, covered=COVERED, epoch=5)
    with pytest.raises(LeaseLost):
        online.drop("test", "tiles", 1, epoch=4)
    assert online.read(TILES, [("a",)]) == [[(0, 1, 0.0)]]


def test_a_dropped_view_is_gone_and_may_come_back_with_another_layout(online: OnlineStore) -> None:
    write(online, TILES, tile_records(TILES, {(("a",), 0): (1, 0.0)}))
    write(online, SECOND, tile_records(SECOND, {(("a",), 0): (1, 0.0)}))
    write(online, ROWS, records(ROWS, [("a", 0, "gold", 1.0)]))
    online.drop("test", "tiles", None, epoch=1)
    assert [online.coverage(layout) for layout in (TILES, SECOND)] == [IntervalSet()] * 2
    assert online.read(ROWS, [("a",)]) == [[(0, "gold", 1.0)]]
    other = changed(TILES, value_fields=(Field("n", Int64),))
    write(online, other, tile_records(other, {(("a",), 0): (7,)}))
    assert online.read(other, [("a",)]) == [[(0, 7)]]


def test_the_files_of_a_dropped_view_are_gone(tmp_path: Path) -> None:
    store = LmdbOnlineStore(tmp_path)
    write(store, TILES, tile_records(TILES, {(("a",), 0): (1, 0.0)}))
    assert len(files(tmp_path)) == 2
    store.drop("test", "tiles", None, epoch=1)
    assert list((tmp_path / "test").iterdir()) == []
    store.close()


def test_a_process_that_had_the_dropped_view_open_reads_nothing_and_writes_where_everybody_looks(
    tmp_path: Path,
) -> None:
    store, table = LmdbOnlineStore(tmp_path), tile_records(TILES, {(("a",), 0): (1, 0.0)})
    write(store, TILES, table)
    script = f"""
from featurekit_dagster.stores.lmdb import LmdbOnlineStore
LmdbOnlineStore({str(tmp_path)!r}).drop("test", "tiles", None, epoch=1)
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
    assert store.coverage(TILES) == IntervalSet()
    write(store, TILES, table)
    assert store.coverage(TILES) == COVERED
    other = LmdbOnlineStore(tmp_path)
    assert other.read(TILES, [("a",)]) == [[(0, 1, 0.0)]]
    other.close()
    store.close()


def test_a_large_generation_goes_in_transactions_of_at_most_fifty_milliseconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LmdbOnlineStore(tmp_path)
    keys = [(f"user {number:03}",) for number in range(1_000)]
    write(store, TILES, tile_records(TILES, {(key, 0): (1, 0.5) for key in keys}))
    left, seconds, delete = [], itertools.count(step=1 / 128), record_removal._delete

    def counted(transaction: Any, prefix: bytes, *limit: float | None) -> bool:
        is_done = delete(transaction, prefix, *limit)
        left.append(sum(key.startswith(prefix) for key in transaction.cursor().iternext(values=False)))
        return is_done

    monkeypatch.setattr(record_removal, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    monkeypatch.setattr(record_removal, "_delete", counted)
    environment = environment_at(tmp_path / "test" / "tiles", 1 << 30)
    record_removal.delete_below(environment, b"\x00\x01")
    assert left == [744, 488, 232, 0], "64 keys take 8 ms here, and each transaction ends after 30"
    assert store.read(TILES, keys[:1]) == [[]]
    release(environment)
    store.close()
