"""Runs that the ledger did not ask for: their failed jobs are tried again like any other."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from featurekit_dagster import Workspace
from featurekit_dagster.intervals import Interval
from featurekit_dagster.planning.job_state import MANAGED
from featurekit_dagster.stores.ledger_records import JobRecord
from tests.flow.payments import break_days, day, key, materialized, payments_workspace, run_asset, statuses
from tests.flow.test_dagster_due_jobs import carry_out, look
from tests.support.clock import Clock


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as opened:
        yield opened


@pytest.fixture
def clock() -> Clock:
    return Clock(day(9))


@pytest.fixture
def workspace(tmp_path: Path, clock: Clock) -> Workspace:
    return payments_workspace(tmp_path / "data", now=clock)


def jobs_of(workspace: Workspace) -> dict[int, JobRecord]:
    """Return the newest job of `last_payment` for each day."""
    found = workspace.stores.ledger.jobs(workspace.name, "last_payment")
    return {(job.interval.start - day(0)).days: job for job in reversed(found)}


def told(job: JobRecord) -> list[tuple[int, str]]:
    return [(attempt.number, attempt.state) for attempt in job.attempts]


def test_a_failed_job_of_an_adopted_run_is_tried_again_by_the_sensor(
    workspace: Workspace, tmp_path: Path, clock: Clock, instance: dg.DagsterInstance
) -> None:
    break_days(tmp_path / "data", [1])
    first = run_asset(workspace, "last_payment", 0, 3, instance)
    assert not first.success
    failed = jobs_of(workspace)[1]
    assert (failed.state, failed.next_attempt_at) == ("RUNNING", clock.now + timedelta(minutes=5))
    assert look(workspace, instance) == ([], "no job is due")
    break_days(tmp_path / "data", [])
    clock.now += timedelta(minutes=5)
    (request,), _ = look(workspace, instance)
    result = carry_out(workspace, request, instance)
    assert list(materialized(result, "last_payment")) == [key(1)]
    done = jobs_of(workspace)[1]
    assert (done.id, done.trigger, told(done)) == (failed.id, "dagster_ui", [(1, "ERROR"), (2, "SUCCESS")])
    assert statuses(workspace, "last_payment", instance, 3) == ["M", "M", "M"]


@pytest.mark.parametrize("config", [{}, {"overwrite": True}])
def test_a_person_who_runs_the_range_again_does_not_wait_for_the_next_attempt(
    workspace: Workspace, tmp_path: Path, instance: dg.DagsterInstance, config: dict[str, bool]
) -> None:
    break_days(tmp_path / "data", [1])
    run_asset(workspace, "last_payment", 0, 3, instance)
    failed = jobs_of(workspace)[1]
    break_days(tmp_path / "data", [])
    again = run_asset(workspace, "last_payment", 0, 3, instance, config=config)
    assert again.success
    done = jobs_of(workspace)[1]
    assert (done.id, done.attempts[1].run_id, told(done)) == (failed.id, again.run_id, [(1, "ERROR"), (2, "SUCCESS")])
    assert all(job.overwrite for number, job in jobs_of(workspace).items() if number != 1), "covered: replaced"


def test_a_failed_job_that_reaches_beyond_the_range_is_not_taken_over(
    workspace: Workspace, tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    ledger, wide = workspace.stores.ledger, Interval(day(0), day(2))
    (job,) = ledger.queue(
        workspace=workspace.name, view="last_payment", intervals=[wide], online=False, offline=True, trigger="manual"
    )
    ledger.begin(job.id)
    ledger.fail(job.id, reason="the source was away")
    result = run_asset(workspace, "last_payment", 1, 2, instance)
    (event,) = result.get_step_failure_events()
    assert event.step_failure_data.user_failure_data is not None
    assert f"job {job.id} is queued or running there" in str(event.step_failure_data.user_failure_data.description)
    assert told(ledger.job(job.id)) == [(1, "ERROR")]


def test_a_queued_job_that_was_never_tried_is_not_taken_over(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    (job,) = workspace.stores.ledger.queue(
        workspace=workspace.name,
        view="last_payment",
        intervals=[Interval(day(1), day(2))],
        online=False,
        offline=True,
        trigger="manual",
    )
    assert not run_asset(workspace, "last_payment", 1, 2, instance).success
    assert told(workspace.stores.ledger.job(job.id)) == []


def test_one_attempt_is_all_where_the_run_is_told_so(
    workspace: Workspace, tmp_path: Path, clock: Clock, instance: dg.DagsterInstance
) -> None:
    break_days(tmp_path / "data", [0])
    run_asset(workspace, "last_payment", 0, 1, instance, config={"managed_retries": False})
    assert (jobs_of(workspace)[0].state, jobs_of(workspace)[0].next_attempt_at) == ("FAILURE", None)
    clock.now += timedelta(days=1)
    assert look(workspace, instance) == ([], "no job is due")


def test_a_failed_job_of_the_public_backfill_job_is_tried_again(
    workspace: Workspace, tmp_path: Path, clock: Clock, instance: dg.DagsterInstance
) -> None:
    break_days(tmp_path / "data", [0])
    backfill = workspace.definitions().resolve_job_def("backfill")
    asked = {"view": "last_payment", "start": str(day(0).date()), "end": str(day(2).date())}
    assert not backfill.execute_in_process(run_config=asked, instance=instance, raise_on_error=False).success
    break_days(tmp_path / "data", [])
    clock.now += timedelta(minutes=5)
    (request,), _ = look(workspace, instance)
    assert carry_out(workspace, request, instance).success
    assert told(jobs_of(workspace)[0]) == [(1, "ERROR"), (2, "SUCCESS")]


def test_nothing_is_tried_again_while_the_run_that_claimed_it_still_goes_on(
    workspace: Workspace, clock: Clock, instance: dg.DagsterInstance
) -> None:
    ledger = workspace.stores.ledger
    definition = workspace.definitions().resolve_job_def("materialize_last_payment")
    run = instance.create_run_for_job(definition, status=dg.DagsterRunStatus.STARTED)
    jobs = claimed(workspace, run.run_id, 0, 1)
    ledger.fail(jobs[0].id, reason="the source was away")
    clock.now += timedelta(minutes=5)
    assert look(workspace, instance)[0] == []
    ledger.succeed(jobs[1].id, stats={})
    (request,), _ = look(workspace, instance)
    assert carry_out(workspace, request, instance).success
    assert told(ledger.job(jobs[0].id)) == [(1, "ERROR"), (2, "SUCCESS")]


def test_a_cancelled_run_takes_back_the_jobs_of_it_that_wait_to_be_tried_again(
    workspace: Workspace, clock: Clock, instance: dg.DagsterInstance
) -> None:
    definition = workspace.definitions().resolve_job_def("materialize_last_payment")
    run = instance.create_run_for_job(definition, status=dg.DagsterRunStatus.STARTED)
    jobs = claimed(workspace, run.run_id, 0, 1)
    workspace.stores.ledger.fail(jobs[0].id, reason="the source was away")
    instance.report_run_canceled(run)
    clock.now += timedelta(minutes=5)
    assert look(workspace, instance)[0] == []
    assert [workspace.stores.ledger.job(job.id).state for job in jobs] == ["MANUALLY_CANCELLED"] * 2


def claimed(workspace: Workspace, run_id: str, *days: int) -> list[JobRecord]:
    """Return jobs of one day each that a run has claimed, as the recipe does."""
    return [
        workspace.stores.ledger.claim(
            workspace=workspace.name,
            view="last_payment",
            interval=Interval(day(number), day(number + 1)),
            online=False,
            offline=True,
            trigger="dagster_ui",
            run_id=run_id,
            policy=MANAGED,
            batch=run_id,
        )
        for number in days
    ]
