"""Maintenance of offline tables: as a job of Dagster, from Python and the command line, beside batch jobs, killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from typer.testing import CliRunner

from featurekit_dagster import Float64, Workspace
from featurekit_dagster.cli import app
from featurekit_dagster.engine.local import stored_schema
from featurekit_dagster.errors import (
    LeaseHeld,
    MaintenanceFailed,
    MaintenanceNotRetried,
    MaintenanceUnderWay,
    TectonValidationError,
    WrongJobKind,
)
from featurekit_dagster.execution import turns
from featurekit_dagster.execution.maintenance import maintain_view
from featurekit_dagster.intervals import Interval
from featurekit_dagster.planning.generations import StoredShape
from featurekit_dagster.stores import ledger_leases
from featurekit_dagster.stores.ledger_records import DELETION, DELTA_MAINTENANCE, JobRecord
from tests.support import maintained_table
from tests.support.forked import run_forked
from tests.support.maintained_table import DAY, HOUR, START, declared, maintain_and_die, make_source, materialize

ROUNDS = 50 if os.environ.get("FEATUREKIT_SOAK") else 8


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two days of events of which the first was materialized hour by hour."""
    root = tmp_path_factory.mktemp("filled")
    make_source(root, days=2, rows=960)
    materialize(declared(root, 1))
    return root


@pytest.fixture
def root(filled: Path, tmp_path: Path) -> Path:
    """A copy of it; the source is looked for beside it."""
    shutil.copytree(filled, tmp_path / "copy")
    return tmp_path / "copy"


def stored(workspace: Workspace) -> pa.Table:
    (view,) = workspace.repo.views
    rows = workspace.stores.read_offline(view, stored_schema(view), Interval(START - DAY, START + 9 * DAY))
    return rows.sort_by([(name, "ascending") for name in rows.column_names])


def files(workspace: Workspace) -> int:
    return workspace.stores.offline.maintenance("payments").size().files


def maintain(workspace: Workspace, **more: Any) -> list[JobRecord]:
    (view,) = workspace.repo.views
    return list(maintain_view(view, workspace.stores, trigger="manual", **more))


def test_the_handle_maintains_a_table_and_the_jobs_say_what_was_done(root: Path) -> None:
    workspace = declared(root, 1)
    before, covered = stored(workspace), workspace.stores.offline.coverage("payments")
    handle = workspace.get_feature_view("payments")
    (job,) = handle.maintain()
    assert (job.job_type, job.state, len(job.attempts)) == (DELTA_MAINTENANCE, "SUCCESS", 1)
    sizes = {name: job.stats[name] for name in ("files_before", "files_after", "read_files_before", "read_files_after")}
    assert sizes == {"files_before": 24, "files_after": 1, "read_files_before": 24, "read_files_after": 1}
    assert job.stats["bytes_after"] < job.stats["bytes_before"]
    assert (stored(workspace), workspace.stores.offline.coverage("payments")) == (before, covered)
    assert handle.list_jobs()[0] == job
    assert job not in handle.list_materialization_jobs()
    assert workspace.plan()[0].runs == ()
    (again,) = handle.maintain()
    assert again.stats["partitions_sorted"] == 0


def test_the_dagster_job_shows_the_view_what_was_done_and_its_schedule_starts_it(root: Path) -> None:
    workspace = declared(root, 1)
    defs = workspace.definitions()
    job = defs.resolve_job_def("delta_maintenance")
    schedule = defs.resolve_schedule_def("delta_maintenance_schedule")
    assert (schedule.job_name, schedule.cron_schedule) == ("delta_maintenance", "0 3 * * 0")
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(run_config={"views": ["payments"]}, instance=instance)
        assert result.success
        (seen,) = instance.fetch_observations(dg.AssetKey("payments"), limit=5).records
    told = seen.asset_observation
    assert told is not None
    assert told.metadata["featurekit/files_before"].value == 24
    assert told.metadata["featurekit/files_after"].value == 1
    assert told.metadata["featurekit/kind"].value == "DELTA_MAINTENANCE"
    (attempt,) = workspace.jobs("payments", limit=1)[0].attempts
    assert attempt.run_id == result.run_id


def test_the_schedule_waits_where_the_clock_stands_still(root: Path) -> None:
    view = maintained_table.make_view(root)
    workspace = Workspace("w", [view], home=root / "home", clock=START + DAY)
    schedule = workspace.definitions().resolve_schedule_def("delta_maintenance_schedule")
    assert schedule.default_status is dg.DefaultScheduleStatus.STOPPED


def test_the_command_line_maintains_and_refuses_unknown_views(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featurekit_dagster.sdk.get_workspace", lambda name: declared(root, 1))
    shown = CliRunner().invoke(app, ["maintain", "--json"])
    assert shown.exit_code == 0, shown.output
    (job,) = json.loads(shown.stdout)
    assert (job["kind"], job["stats"]["partitions_sorted"]) == (DELTA_MAINTENANCE, 1)
    table = CliRunner().invoke(app, ["maintain", "payments"])
    assert "1 -> 1" in table.stdout
    assert CliRunner().invoke(app, ["maintain", "paiments"]).exit_code == 1


def test_a_column_that_is_declared_no_more_goes_and_needs_a_rebuild_to_come_back(root: Path) -> None:
    fewer = declared(root, 1, ("amount", Float64))
    (view,) = fewer.repo.views
    kept = stored(fewer)
    fewer.stores.ledger.keep("w", "payments", StoredShape.of(view))  # the query is another text
    (job,) = maintain(fewer)
    assert job.stats["columns_removed"] == 1
    table = DeltaTable(fewer.stores.offline.location("payments"))  # type: ignore[attr-defined]
    assert {field.name for field in table.schema().fields} == {"user_id", "event_time", "amount", "time_partition"}
    assert stored(fewer) == kept
    changes = declared(root, 1).plan()[0].changes
    assert "column merchant" in {change.what for change in changes}


def test_columns_stay_while_a_person_has_to_decide(root: Path) -> None:
    undecided = declared(root, 1, ("amount", Float64))
    assert undecided.plan()[0].needs_decision
    (job,) = maintain(undecided)
    assert (job.stats["columns_removed"], job.stats["partitions_sorted"]) == (0, 1)


def test_a_generation_that_nothing_uses_any_more_is_removed_by_the_next_maintenance(root: Path) -> None:
    fewer = declared(root, 1, ("amount", Float64))
    (view,) = fewer.repo.views
    fewer.stores.ledger.rebuild("w", "payments", StoredShape.of(view))
    (building,) = maintain(fewer)
    assert building.generation == 1
    materialize(fewer)
    (kept,) = maintain(fewer)
    assert kept.generation == 2
    later = Workspace("w", [view], home=root / "home", clock=lambda: START + DAY + 2 * HOUR)
    jobs = maintain(later)
    assert [(job.kind, job.generation) for job in jobs] == [(DELTA_MAINTENANCE, 2), (DELETION, 1)]
    assert later.stores.offline.generations("payments") == (2,)


def test_a_batch_job_has_its_turn_between_commits(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another writer waits for the lease while the table is maintained, and works before that has ended."""
    assert turns._PAUSE_SECONDS > 2 * ledger_leases._LONGEST_POLL_SECONDS
    later = declared(root, 2)
    materialize(later)
    order: list[str] = []
    sorting, written = threading.Event(), threading.Event()

    def on_step(step: str) -> None:
        order.append(step)
        sorting.set()

    def write() -> None:
        sorting.wait(60)
        with declared(root, 2).stores.ledger.lease("batch:w/payments", holder="batch", wait=timedelta(seconds=60)):
            order.append("batch")
        written.set()

    def pause(_: float) -> None:  # as long as the other needs, however busy the machine is
        assert not order or written.wait(60)

    monkeypatch.setattr(turns, "_SECONDS_BETWEEN_PAUSES", 0.0)
    monkeypatch.setattr(turns, "time", SimpleNamespace(sleep=pause, monotonic=time.monotonic))
    writer = threading.Thread(target=write)
    writer.start()
    (job,) = maintain(later, on_step=on_step)
    writer.join()
    assert job.stats["partitions_sorted"] == 2
    assert order == ["sorted", "batch", "sorted", "cleaned"]


def test_jobs_can_be_claimed_beside_a_maintenance_but_no_second_one(root: Path) -> None:
    workspace = declared(root, 1)
    (view,), ledger = workspace.repo.views, workspace.stores.ledger

    def on_step(step: str) -> None:
        if step != "sorted":
            return
        with pytest.raises(MaintenanceUnderWay):
            maintain(workspace)
        assert workspace.plan()[0].runs == ()
        run = workspace.plan_interval("payments", START, START + HOUR, overwrite=True)
        with ledger.lease("batch:w/payments", holder="other") as lease:
            task = run.tasks[0]
            job = ledger.claim(
                workspace="w", view="payments", interval=task.interval, online=False, offline=True, overwrite=True,
                trigger="manual", lease=lease,
            )  # fmt: skip
            ledger.fail(job.id, reason="it was only tried")

    (done,) = maintain(workspace, on_step=on_step)
    assert done.state == "SUCCESS"
    with pytest.raises(MaintenanceNotRetried):
        ledger.retry(done.id)
    with pytest.raises(WrongJobKind):
        workspace.get_feature_view(view.name).cancel_materialization_job(done.id)


def test_it_ends_between_commits_when_it_is_told_to(root: Path) -> None:
    workspace = declared(root, 1)
    ledger = workspace.stores.ledger

    def on_step(step: str) -> None:
        ledger.cancel(workspace.jobs("payments", limit=1)[0].id)

    with pytest.raises(Exception, match="was told to end"):
        maintain(workspace, on_step=on_step)
    assert workspace.jobs("payments", limit=1)[0].state == "MANUALLY_CANCELLED"
    assert files(workspace) == 1


def test_a_view_that_is_written_all_the_time_is_left_for_later(root: Path) -> None:
    workspace = declared(root, 1)
    with workspace.stores.ledger.lease("batch:w/payments", holder="batch"), pytest.raises(LeaseHeld):
        maintain(workspace, wait=timedelta(0))
    assert all(job.kind != DELTA_MAINTENANCE for job in workspace.jobs("payments"))


def test_a_failure_is_told_and_the_next_time_goes_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = declared(root, 1)
    handle = workspace.get_feature_view("payments")
    with monkeypatch.context() as broken:
        broken.setattr("featurekit_dagster.stores.delta_maintenance.write_deltalake", None)
        with pytest.raises(MaintenanceFailed, match="payments"):
            handle.maintain()
    assert workspace.jobs("payments", limit=1)[0].state == "FAILURE"
    (job,) = handle.maintain()
    assert job.stats["partitions_sorted"] == 1
    with pytest.raises(TectonValidationError, match="retention"):
        handle.maintain(retention=timedelta(hours=-1))


def kill_and_go_on(root: Path, days: int, seconds: float) -> None:
    workspace = declared(root, days)
    before, covered = stored(workspace), workspace.stores.offline.coverage("payments")
    killed = run_forked(root, maintain_and_die, root, seconds)
    assert killed.code == -signal.SIGKILL, killed.said
    assert killed.said.startswith("begun")
    by_day = DeltaTable(workspace.stores.offline.location("payments")).get_add_actions(flatten=True)  # type: ignore[attr-defined]
    names = pa.table(by_day).column("partition.time_partition").to_pylist()
    assert {names.count(name) for name in set(names)} <= {1, 24}  # after or before, nothing between
    assert (stored(workspace), workspace.stores.offline.coverage("payments")) == (before, covered)
    (ended,) = [each.state for each in workspace.jobs("payments") if each.kind == DELTA_MAINTENANCE]
    (job,) = maintain(workspace, retention=timedelta(0))
    assert (job.state, files(workspace)) == ("SUCCESS", days)
    states = [each.state for each in workspace.jobs("payments") if each.kind == DELTA_MAINTENANCE]
    # the killed one does not seem to run any more; it may have been done
    assert states == ["SUCCESS", "SUCCESS" if ended == "SUCCESS" else "FAILURE"]
    assert (stored(workspace), workspace.stores.offline.coverage("payments")) == (before, covered)
    on_disk = list(Path(workspace.stores.offline.location("payments")).rglob("*.parquet"))  # type: ignore[attr-defined]
    assert len([file for file in on_disk if "_delta_log" not in file.parts]) == days  # what it left half done is gone


def test_a_maintenance_that_is_killed_is_gone_on_with(root: Path) -> None:
    materialize(declared(root, 2))
    kill_and_go_on(root, days=2, seconds=0.005)


@pytest.mark.slow
def test_it_is_so_wherever_it_is_killed(tmp_path: Path) -> None:
    days = 4
    make_source(tmp_path, days=days, rows=days * 480)
    materialize(declared(tmp_path, days))
    for number in range(ROUNDS):
        copy = tmp_path / f"round{number}"
        copy.mkdir()
        shutil.copytree(tmp_path / "home", copy / "home")
        shutil.copy(tmp_path / "events.parquet", copy)
        kill_and_go_on(copy, days, seconds=random.uniform(0, 0.4))
        shutil.rmtree(copy)
