"""Publishing through Dagster: after a job has succeeded, from the UI, by the public job, from Python and the shell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from typer.testing import CliRunner

from featurekit_dagster import PublishFeaturesConfig, Workspace
from featurekit_dagster.cli import app
from featurekit_dagster.errors import NothingToPublish, NotPublished
from featurekit_dagster.execution.materialize import run_tasks
from featurekit_dagster.execution.publish import Published, queue_missing
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.orchestration.publish import published_of
from featurekit_dagster.orchestration.run import failure_text, materialize_in_process, run_due
from featurekit_dagster.planning.planner import plan_view
from featurekit_dagster.planning.tasks import Task
from featurekit_dagster.stores.ledger_records import FEATURE_EXPORT, JobRecord
from featurekit_dagster.stores.warehouses import WAREHOUSE_VARIABLE
from tests.flow.payments import RANGE_END, RANGE_START, day, key, keys, payments_workspace
from tests.support.postgres import new_database


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as opened:
        yield opened


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return payments_workspace(tmp_path, now=day(12), publish_features_config=PublishFeaturesConfig())


def exports(workspace: Workspace) -> list[JobRecord]:
    return [job for job in workspace.jobs("spending") if job.kind == FEATURE_EXPORT]


def published(workspace: Workspace) -> Published:
    return published_of(workspace.repo.view("spending"), workspace.stores)


def days(first: int, end: int) -> IntervalSet:
    return IntervalSet([Interval(day(first), day(end))])


def told(result: dg.ExecuteInProcessResult) -> list[str | None]:
    """Return the partitions of the published asset that a run reported."""
    events = [event for event in result.all_events if event.event_type_value == "ASSET_MATERIALIZATION"]
    return [event.partition for event in events if event.asset_key == dg.AssetKey("spending_published")]


def materialize(workspace: Workspace, first: int, end: int, *, overwrite: bool = False) -> None:
    """Materialize days as a run of the view's asset does."""
    task = Task(
        view="spending", interval=Interval(day(first), day(end)), online=True, offline=True, overwrite=overwrite
    )
    list(run_tasks(workspace.repo.view("spending"), [task], workspace.stores, trigger="manual"))


@cache
def definitions(workspace: Workspace) -> dg.Definitions:
    return workspace.definitions()


def look(workspace: Workspace, instance: dg.DagsterInstance) -> list[dg.RunRequest]:
    defs = definitions(workspace)
    context = dg.build_sensor_context(
        instance=instance, resources={"feature_stores": defs.resources["feature_stores"]}, definitions=defs
    )
    found = defs.resolve_sensor_def("start_due_jobs").evaluate_tick(context)
    return list(found.run_requests or ())


def run_job(workspace: Workspace, instance: dg.DagsterInstance, name: str, **options: Any) -> dg.ExecuteInProcessResult:
    job = definitions(workspace).resolve_job_def(name)
    return job.execute_in_process(instance=instance, raise_on_error=False, **options)


def test_what_was_materialized_is_published_by_the_run_that_the_sensor_asks_for(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    job = definitions(workspace).resolve_job_def("materialize_spending")
    tags = {RANGE_START: key(0), RANGE_END: key(4)}
    assert job.execute_in_process(instance=instance, tags=tags).success
    (waiting,) = exports(workspace)
    assert (waiting.state, waiting.interval) == ("RUNNING", Interval(day(0), day(5)))
    (asked,) = look(workspace, instance)
    assert asked.job_name == "feature_publish"
    result = run_job(workspace, instance, "feature_publish", run_config=asked.run_config, tags=asked.tags)
    assert result.success
    assert told(result) == keys(0, 5)
    assert [job.state for job in exports(workspace)] == ["SUCCESS"]
    assert published(workspace).windows() == days(0, 5)
    assert look(workspace, instance) == []
    handle = workspace.get_feature_view("spending")
    assert [job.job_type for job in handle.list_jobs()] == ["FEATURE_EXPORT", "BATCH"]
    assert "FEATURE PUBLISH" in list(handle.materialization_status()["TYPE"])


def test_an_overwrite_is_followed_by_as_much_as_it_changes(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    materialize(workspace, 0, 8)
    run_due(workspace, instance)
    materialize(workspace, 2, 4, overwrite=True)
    # windows of one day reach into the day after
    assert published(workspace).windows() == days(0, 2).union(days(5, 8))
    newest, _ = exports(workspace)
    assert newest.interval == Interval(day(2), day(5))
    (result,) = run_due(workspace, instance)
    assert told(result) == keys(2, 5)
    assert published(workspace).windows() == days(0, 8)


def test_partitions_asked_for_in_the_ui_are_published_again(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    materialize(workspace, 0, 5)
    run_due(workspace, instance)
    asset = definitions(workspace).resolve_assets_def("spending_published")
    assert asset.asset_deps[dg.AssetKey("spending_published")] == {dg.AssetKey("spending")}
    assert asset.backfill_policy == dg.BackfillPolicy.single_run()

    def ask(**tags: str) -> dg.ExecuteInProcessResult:
        return dg.materialize([asset], instance=instance, tags=tags, raise_on_error=False)

    result = ask(**{RANGE_START: key(1), RANGE_END: key(3)})
    assert told(result) == keys(1, 4)
    newest = exports(workspace)[0]
    assert (newest.trigger, newest.stats["windows"], newest.attempts[0].run_id) == ("dagster_ui", 3, result.run_id)
    assert newest.stats["rows_replaced"] == newest.stats["rows"] > 0
    refused = ask(**{RANGE_START: key(7), RANGE_END: key(8)})
    assert "nothing of [2023-01-08T00:00Z, 2023-01-10T00:00Z) can be published" in str(failure_text(refused))


@pytest.mark.slow
def test_the_public_job_takes_a_view_and_a_range(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    materialize(workspace, 0, 5)
    config = {"view": "spending", "start": "2023-01-02", "end": "2023-01-03"}
    result = run_job(workspace, instance, "feature_publish", run_config=config)
    assert told(result) == keys(1, 2)
    rest = run_job(workspace, instance, "feature_publish", run_config={})
    assert told(rest) == keys(0, 5)
    refused = run_job(workspace, instance, "feature_publish", run_config={"view": "last_payment"})
    assert failure_text(refused) == str(NotPublished(view="last_payment"))


@pytest.mark.slow
def test_python_and_the_command_line_publish_in_their_process(
    workspace: Workspace, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featurekit_dagster.sdk.get_workspace", lambda name: workspace)
    handle = workspace.get_feature_view("spending")
    materialize(workspace, 0, 5)
    with pytest.warns(UserWarning, match="no Dagster daemon gives a sign of life"):
        (job,) = handle.publish()
    assert (job.state, job.job_type) == ("SUCCESS", "FEATURE_EXPORT")
    assert handle.publish() == []
    with pytest.raises(NothingToPublish):
        handle.publish(start_time=day(7))
    assert handle.published_features_path == f"{workspace.home / 'warehouse.duckdb'}#payments.spending"
    assert workspace.get_feature_view("last_payment").published_features_path is None
    runner = CliRunner()
    nothing = runner.invoke(app, ["publish"])
    assert (nothing.exit_code, nothing.stdout) == (0, "Everything that is materialized is published.\n")
    again = runner.invoke(app, ["publish", "spending", "--start", "2023-01-04", "--json"])
    (shown,) = json.loads(again.stdout)
    assert (shown["state"], shown["stats"]["windows"]) == ("SUCCESS", 2)
    refused = runner.invoke(app, ["publish", "last_payment"])
    assert refused.exit_code == 1
    assert "its features are not published" in refused.stderr


@pytest.mark.slow
def test_a_materialization_without_a_daemon_publishes_too(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    view = workspace.repo.view("spending")
    (run,) = plan_view(view, workspace.snapshot(), workspace.now()).runs
    assert materialize_in_process(workspace, run, instance).success
    assert [job.state for job in exports(workspace)] == ["SUCCESS"]
    assert published(workspace).windows() == days(0, 12)


def test_what_failed_is_tried_again_and_what_was_cancelled_is_left_alone(
    workspace: Workspace, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WAREHOUSE_VARIABLE, "postgresql://anna:hunter2@127.0.0.1:1/none")
    materialize(workspace, 0, 5)
    (result,) = run_due(workspace, instance)
    (job,) = exports(workspace)
    assert (job.state, job.next_attempt_at is not None, len(job.attempts)) == ("RUNNING", True, 1)
    assert "the warehouse postgresql://127.0.0.1:1/none cannot be opened" in str(job.reason)
    assert "hunter2" not in f"{failure_text(result)}{job}"
    workspace.stores.ledger.cancel(job.id)
    assert look(workspace, instance) == []
    assert [job.state for job in exports(workspace)] == ["MANUALLY_CANCELLED"]
    monkeypatch.delenv(WAREHOUSE_VARIABLE)
    (asked,) = queue_missing(workspace.repo.view("spending"), workspace.stores, trigger="manual")
    assert asked.interval == job.interval


@pytest.mark.slow
def test_a_database_is_published_to_where_one_is_named(
    tmp_path: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, postgres_url: str
) -> None:
    monkeypatch.setenv(WAREHOUSE_VARIABLE, new_database(postgres_url))
    workspace = payments_workspace(tmp_path, now=day(12), publish_features_config=PublishFeaturesConfig())
    materialize(workspace, 0, 5)
    (result,) = run_due(workspace, instance)
    assert told(result) == keys(0, 5)
    with published(workspace).warehouse.session() as session:
        ((count,),) = session.run("SELECT count(*) FROM payments.spending WHERE amount_count_1d_1d = 1")
    assert count == 4 * 3
    assert not (workspace.home / "warehouse.duckdb").exists()
