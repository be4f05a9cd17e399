"""What is made when it is first used is made once, however many threads use it first at the same moment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pytest

from featurekit_dagster.stores.datasets import ROW, Datasets
from featurekit_dagster.stores.dead_letters import DeadLetters
from featurekit_dagster.stores.delta_commits import created, opened
from featurekit_dagster.stores.lake_files import LakeFiles
from featurekit_dagster.stores.stream_state import DeadLetter
from featurekit_dagster.stores.tombstone_registry import Deletion, TombstoneRegistry

_T = TypeVar("_T")
_USERS = 4
_NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)


def at_once(use: Callable[[int], _T]) -> list[_T]:
    """Let several threads do the same at the same moment, and return what each of them got."""
    barrier = threading.Barrier(_USERS)

    def go(number: int) -> _T:
        barrier.wait()
        return use(number)

    with ThreadPoolExecutor(_USERS) as threads:
        return list(threads.map(go, range(_USERS)))


@pytest.mark.parametrize("attempt", range(6))
def test_a_table_that_several_create_is_made_by_one_commit_and_has_the_properties_that_all_were_told(
    tmp_path: Path, attempt: int
) -> None:
    schema = pa.schema([("a", pa.int64())])

    def create(number: int) -> str | None:
        table = created(str(tmp_path / "table"), schema, configuration={"featurekit.salt": str(number)})
        return table.metadata().configuration["featurekit.salt"]

    told = set(at_once(create))

    table = opened(str(tmp_path / "table"))
    assert table is not None
    assert table.version() == 0
    assert told == {table.metadata().configuration["featurekit.salt"]}


def test_a_table_whose_first_commit_is_still_being_written_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "lake" / "spending" / "_delta_log").mkdir(parents=True)

    assert opened(str(tmp_path / "lake" / "spending")) is None
    assert TombstoneRegistry(str(tmp_path / "lake")).load("spending") is None
    assert len(TombstoneRegistry(str(tmp_path / "lake")).salt("spending")) == 16


@pytest.mark.parametrize("attempt", range(6))
def test_processes_that_first_delete_keys_of_a_view_at_once_share_one_salt(tmp_path: Path, attempt: int) -> None:
    def delete(number: int) -> bytes:
        registry = TombstoneRegistry(str(tmp_path))
        salt = registry.salt("spending")
        asked = Deletion(request=f"{number}", deleted_at=_NOON, cutoff_us=1, online=True, offline=True)
        registry.add("spending", [bytes([number]) * 32], asked)
        return salt

    salts = set(at_once(delete))

    found = TombstoneRegistry(str(tmp_path)).load("spending")
    assert found is not None
    assert salts == {found.online.salt}
    assert len(found.online.cutoffs) == _USERS


def test_dead_letters_that_several_loops_move_first_are_kept_once(tmp_path: Path) -> None:
    letters = [DeadLetter(partition="0", reason="no JSON", payload=b"{", number=number) for number in (1, 2)]

    at_once(lambda number: DeadLetters(str(tmp_path / "letters")).append(letters, _NOON))

    assert DeadLetters(str(tmp_path / "letters")).read()["number"].to_pylist() == [1, 2]


def test_the_first_bucket_of_a_dataset_that_several_write_is_there_once(tmp_path: Path) -> None:
    rows = pa.table({ROW: [0, 1], "a": [1, 2]})

    at_once(lambda number: Datasets(str(tmp_path)).append("training", 0, rows, epoch=1, job_id=str(number)))

    assert Datasets(str(tmp_path)).row_count("training") == 2


def test_files_that_several_remove_at_once_are_gone(tmp_path: Path) -> None:
    files = LakeFiles(str(tmp_path))
    for number in range(150):
        files.write_json(f"{number}/archived.json", {})

    def remove(_: int) -> None:
        for number in range(150):
            files.read_json(f"{number}/archived.json")
            files.remove_file(f"{number}/archived.json")

    at_once(remove)

    assert all(files.read_json(f"{number}/archived.json") is None for number in range(150))
