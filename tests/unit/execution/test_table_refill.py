"""A feature table whose online store was emptied: its rows come back from offline, once, whatever happens meanwhile."""

from __future__ import annotations

import shutil
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest

from featurekit_dagster.errors import NothingToRefillFrom
from featurekit_dagster.execution import table_ingest
from featurekit_dagster.execution.deletion_request import request_deletion
from tests.support.scores import DAY, FIRST, HOUR, Table, rows

NOON = FIRST + DAY / 2


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path)


def emptied(table: Table) -> None:
    table.workspace.stores.online.close()
    shutil.rmtree(table.workspace.home / "online")


ROWS = [("a", NOON, 1.0), ("b", NOON + HOUR, 2.0), ("a", NOON + 3 * DAY, 3.0), ("c", NOON - HOUR, 4.0)]


def test_a_table_whose_online_store_was_emptied_is_refilled_from_offline(table: Table) -> None:
    table.handle.ingest(rows(*ROWS))
    table.handle.ingest(rows(("d", NOON + 9 * DAY, 5.0)))
    assert table.handle.refill_online() == []
    emptied(table)
    jobs = table.handle.refill_online()
    assert [(job.state, job.online, job.offline, job.stats["rows_online"]) for job in jobs] == [
        ("SUCCESS", True, False, 3),
        ("SUCCESS", True, False, 1),
    ]
    assert [table.online(user) for user in "abcde"] == [3.0, 2.0, 4.0, 5.0, None]
    assert table.handle.refill_online() == []


def test_an_ingest_after_the_loss_brings_back_what_was_lost_first(table: Table) -> None:
    table.handle.ingest(rows(*ROWS))
    emptied(table)
    job = table.handle.ingest(rows(("b", NOON + 2 * HOUR, 6.0)))
    assert job.stats["rows_online"] == 1
    assert [table.online(user) for user in "abc"] == [3.0, 6.0, 4.0]
    assert [job.trigger for job in table.workspace.jobs("scores")] == ["manual", "refill", "manual"]


def test_a_refill_that_was_interrupted_is_done_again_by_the_next_ingest(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.handle.ingest(rows(*ROWS))
    emptied(table)
    with monkeypatch.context() as broken:
        broken.setattr(table_ingest, "_write_online", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            table.handle.refill_online()
    table.clock.now += DAY
    table.handle.ingest(rows(("e", NOON, 7.0)))
    assert [table.online(user) for user in "abce"] == [3.0, 2.0, 4.0, 7.0]
    assert {job.state for job in table.workspace.jobs("scores")} == {"SUCCESS"}


def test_deleted_keys_are_not_refilled(table: Table) -> None:
    table.handle.ingest(rows(*ROWS))
    table.clock.now = NOON + 4 * DAY
    emptied(table)
    request_deletion(table.handle.declaration, pa.table({"user_id": ["b"]}), table.workspace.stores)
    table.handle.refill_online()
    assert [table.online(user) for user in "abc"] == [3.0, None, 4.0]


@pytest.mark.parametrize("store", ["online", "offline"])
def test_a_table_without_history_or_online_store_is_not_refilled(tmp_path: Path, store: str) -> None:
    with pytest.raises(NothingToRefillFrom, match="ingest the rows of a feature table without history again"):
        Table(tmp_path, **{store: False}).handle.refill_online()


def test_the_dagster_job_refills_a_table(table: Table) -> None:
    table.handle.ingest(rows(*ROWS))
    emptied(table)
    job = table.workspace.definitions().resolve_job_def("refill_online")
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(run_config={"view": "scores"}, instance=instance)
        told = instance.fetch_materializations(dg.AssetKey("scores"), limit=9).records
    assert result.success
    assert len(told) == 1  # one job for one stretch of days
    assert [table.online(user) for user in "abc"] == [3.0, 2.0, 4.0]
