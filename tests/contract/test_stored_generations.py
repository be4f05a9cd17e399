"""Which generations a store says it holds; a lost ledger is read back from this."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace as changed
from pathlib import Path

import pytest

from featurekit_dagster.stores.delta import DeltaOfflineStore
from featurekit_dagster.stores.delta_listing import generations_in
from featurekit_dagster.stores.lmdb import LmdbOnlineStore
from featurekit_dagster.stores.online import OnlineStore
from tests.support.offline_table import T0, days, replace
from tests.support.online_records import TILES, tile_records, write

OPENERS: dict[str, Callable[[Path], OnlineStore]] = {"lmdb": LmdbOnlineStore}


@pytest.fixture(params=OPENERS)
def online(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OnlineStore]:
    opened = OPENERS[request.param](tmp_path / "online")
    yield opened
    opened.close()


def test_a_lake_lists_the_generations_that_have_a_table(tmp_path: Path) -> None:
    lake = DeltaOfflineStore(tmp_path / "lake")
    assert lake.generations("view") == ()
    for generation in (12, 1, 3):
        replace(lake, [("a", T0, 1.0)], days(0, 1), generation=generation)
    (tmp_path / "lake/offline/view/g7").mkdir()  # what an interrupted removal has left
    (tmp_path / "lake/offline/view/notes").mkdir()
    assert lake.generations("view") == (1, 3, 12)
    assert lake.generations("other") == ()


@pytest.mark.parametrize("is_local", [True, False])
def test_folders_are_listed_alike_by_path_and_by_the_delta_librarys_own_file_system(
    tmp_path: Path, is_local: bool
) -> None:
    for name in ("g1", "g10", "g0", "g01", "ga", "xg2"):
        (tmp_path / "view" / name).mkdir(parents=True)
        (tmp_path / "view" / name / "file").touch()
    folder = str(tmp_path / "view") if is_local else f"file://{tmp_path}/view"
    assert generations_in(folder, None, is_local=is_local) == (1, 10)
    assert generations_in(f"{folder}s", None, is_local=is_local) == ()


def test_an_online_store_lists_the_generations_that_something_is_covered_of(online: OnlineStore) -> None:
    assert online.generations(TILES.workspace, TILES.view) == ()
    for generation in (300, 1, 4):
        layout = changed(TILES, generation=generation)
        write(online, layout, tile_records(layout, {(("a",), 0): (1, 0.0)}))
    online.drop(TILES.workspace, TILES.view, 4, epoch=9)
    assert online.generations(TILES.workspace, TILES.view) == (1, 300)
    assert online.generations(TILES.workspace, "other") == ()
