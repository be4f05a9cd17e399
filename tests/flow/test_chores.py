"""Chores: jobs of the ledger that claim no range, carried out by public Dagster jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from featurekit_dagster import Workspace
from featurekit_dagster.errors import JobStopped, TectonValidationError
from featurekit_dagster.intervals import Interval
from featurekit_dagster.orchestration.chores import JOB, JOB_ID, Chore, ChoreRun, chore_job, chore_requests, run_chore
from featurekit_dagster.orchestration.resources import BoundWorkspace, FeatureStores
from featurekit_dagster.orchestration.run import failure_text
from featurekit_dagster.orchestration.translator import TRIGGER, VIEW
from featurekit_dagster.stores.ledger_records import CONSISTENCY, JobRecord
from featurekit_dagster.stores.workspace_stores import WorkspaceStores
from tests.flow.payments import day, payments_workspace

Work = Callable[[ChoreRun], Mapping[str, int]]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as opened:
        yield opened


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return payments_workspace(tmp_path, now=day(12))


def ask(stores: WorkspaceStores, view: str) -> JobRecord:
    return stores.ledger.queue_chore(
        workspace=stores.workspace,
        view=view,
        kind=CONSISTENCY,
        trigger="manual",
        interval=Interval(day(1), day(2)),
        request={"sample": 3},
    )


def chore_doing(work: Work) -> Chore:
    def queue(
        workspace: BoundWorkspace, stores: WorkspaceStores, config: Mapping[str, Any], trigger: str
    ) -> list[JobRecord]:
        if "view" not in config:
            raise TectonValidationError("no view was given; name one")
        return [ask(stores, workspace.repo.view(config["view"]).name)]

    fields = {"view": dg.Field(str, is_required=False)}
    return Chore(kind=CONSISTENCY, job_name="tried", description="Try.", config=fields, queue=queue, carry_out=work)


def test_chore_of_the_launchpad_becomes_a_job_with_what_it_counted(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    job = chore_job(chore_doing(lambda run: {"seen": run.request["sample"]}), workspace)
    resources = {"feature_stores": FeatureStores.of(workspace)}
    result = job.execute_in_process(run_config={"view": "spending"}, instance=instance, resources=resources)
    assert result.success
    (found,) = workspace.jobs("spending")
    assert (found.kind, found.state, dict(found.stats)) == (CONSISTENCY, "SUCCESS", {"seen": 3})
    assert [attempt.run_id for attempt in found.attempts] == [result.run_id]
    run = instance.get_run_by_id(result.run_id)
    assert run is not None
    assert (run.tags[VIEW], run.tags[TRIGGER]) == ("spending", "manual")
    refused = job.execute_in_process(run_config={}, instance=instance, resources=resources, raise_on_error=False)
    assert failure_text(refused) == "no view was given; name one"


def test_chore_claims_nothing_and_does_not_cover(workspace: Workspace) -> None:
    ask(workspace.stores, "spending")
    view = workspace.get_feature_view("spending")
    job_id = view.trigger_materialization_job(day(1), day(2), online=True, offline=True)
    assert {job.id for job in workspace.jobs()} > {job_id}
    assert not workspace.stores.coverage(view.declaration, "offline")


def test_failed_chore_is_tried_again_and_a_permanent_failure_is_not(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    def fail(error: Exception) -> JobRecord:
        def work(run: ChoreRun) -> Mapping[str, int]:
            raise error

        job = ask(workspace.stores, "spending")
        result = run_chore(chore_doing(work), workspace, instance, {JOB_ID: job.id})
        text = failure_text(result)
        assert text is not None
        assert "secret" not in text
        return workspace.stores.ledger.job(job.id)

    again = fail(OSError("secret"))
    assert (again.state, again.next_attempt_at is not None) == ("RUNNING", True)
    assert fail(TectonValidationError("wrong")).state == "FAILURE"


def test_cancelled_chore_sees_it_at_its_next_look(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    def work(run: ChoreRun) -> Mapping[str, int]:
        run.stores.ledger.cancel(run.job.id)
        run.check()
        return {}

    job = ask(workspace.stores, "spending")
    result = run_chore(chore_doing(work), workspace, instance, {JOB_ID: job.id})
    assert failure_text(result) == f"job {job.id}: {JobStopped(job_id=job.id)}"
    assert workspace.stores.ledger.job(job.id).state == "MANUALLY_CANCELLED"
    assert workspace.stores.ledger.retry(job.id).state == "MANUAL_RETRY"
    done = run_chore(chore_doing(lambda run: {"seen": 1}), workspace, instance, {JOB_ID: job.id})
    assert done.success
    assert workspace.stores.ledger.job(job.id).state == "SUCCESS"


def test_sensor_asks_once_for_each_chore_that_is_due(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    chore, job = chore_doing(lambda run: {}), ask(workspace.stores, "spending")

    def asked() -> list[dg.RunRequest]:
        return list(chore_requests([chore], workspace, workspace.stores, instance))

    (request,) = asked()
    assert (request.job_name, request.run_config, request.tags[JOB]) == ("tried", {JOB_ID: job.id}, job.id)
    built = chore_job(chore, workspace)
    run = instance.create_run_for_job(built, tags=dict(request.tags), run_config=request.run_config)
    assert asked() == []
    instance.report_run_canceled(run)
    assert asked() == []
    assert workspace.stores.ledger.job(job.id).state == "MANUALLY_CANCELLED"
