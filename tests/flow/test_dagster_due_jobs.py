"""The sensor that starts what the ledger says is due, and jobs that are cancelled, lost or tried again."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from featurekit_dagster import Workspace
from featurekit_dagster.execution import materialize
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.orchestration.run import run_due
from featurekit_dagster.stores.ledger_records import JobRecord
from tests.flow.payments import RANGE_END, RANGE_START, break_days, day, key, payments_workspace, statuses
from tests.support.clock import Clock


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster").mkdir()
    quiet = {"telemetry": {"enabled": False}}
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster"), overrides=quiet) as opened:
        yield opened


@pytest.fixture
def clock() -> Clock:
    return Clock(day(9))


@pytest.fixture
def workspace(tmp_path: Path, clock: Clock) -> Workspace:
    return payments_workspace(tmp_path / "data", now=clock)


def look(workspace: Workspace, instance: dg.DagsterInstance) -> tuple[list[dg.RunRequest], str]:
    """Let the sensor look once; return what it requests, and why it requests nothing."""
    defs = workspace.definitions()
    sensor = defs.resolve_sensor_def("start_due_jobs")
    given = {"resources": dict(defs.resources or {}), "repository_def": defs.get_repository_def()}
    with dg.build_sensor_context(instance=instance, **given) as context:
        data = sensor.evaluate_tick(context)
    return list(data.run_requests or []), data.skip_message or ""


def carry_out(workspace: Workspace, request: dg.RunRequest, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    job = workspace.definitions().resolve_job_def(request.job_name or "")
    return job.execute_in_process(instance=instance, tags=dict(request.tags), raise_on_error=False)


def queue(workspace: Workspace, *spans: tuple[int, int], view: str = "last_payment", **more: Any) -> list[JobRecord]:
    facts = {"online": False, "offline": True, "trigger": "manual"} | more
    intervals = [Interval(day(first), day(end)) for first, end in spans]
    return workspace.stores.ledger.queue(workspace=workspace.name, view=view, intervals=intervals, **facts)


def states(workspace: Workspace, jobs: list[JobRecord]) -> list[str]:
    return [workspace.stores.ledger.job(job.id).state for job in jobs]


def test_jobs_that_touch_are_one_run_and_a_hole_makes_two(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    jobs = queue(workspace, (0, 1), (1, 3), (5, 6))
    requests, _ = look(workspace, instance)
    assert [(r.tags[RANGE_START], r.tags[RANGE_END]) for r in requests] == [(key(0), key(2)), (key(5), key(5))]
    for request in requests:
        assert carry_out(workspace, request, instance).success
    assert states(workspace, jobs) == ["SUCCESS"] * 3
    assert statuses(workspace, "last_payment", instance, 7) == ["M", "M", "M", None, None, "M", None]
    assert look(workspace, instance) == ([], "no job is due")


def test_a_failed_job_is_started_again_when_its_wait_is_over_and_no_earlier(
    workspace: Workspace, clock: Clock, tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    break_days(tmp_path / "data", [1])
    jobs = queue(workspace, (0, 1), (1, 2), (2, 3))
    (first,), _ = look(workspace, instance)
    carry_out(workspace, first, instance)
    assert states(workspace, jobs) == ["SUCCESS", "RUNNING", "SUCCESS"]
    assert look(workspace, instance) == ([], "no job is due")
    break_days(tmp_path / "data", [])
    clock.now += timedelta(minutes=5)
    (again,), _ = look(workspace, instance)
    assert (again.tags[RANGE_START], again.tags[RANGE_END]) == (key(1), key(1))
    assert again.run_key != first.run_key
    result = carry_out(workspace, again, instance)
    done = workspace.stores.ledger.job(jobs[1].id)
    assert [(a.number, a.state) for a in done.attempts] == [(1, "ERROR"), (2, "SUCCESS")]
    assert done.attempts[1].run_id == result.run_id


def test_nothing_is_requested_while_a_run_of_the_jobs_is_on_its_way(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    queue(workspace, (0, 2))
    (first,), _ = look(workspace, instance)
    job = workspace.definitions().resolve_job_def("materialize_last_payment")
    started = instance.create_run_for_job(job, tags=dict(first.tags), status=dg.DagsterRunStatus.NOT_STARTED)
    assert look(workspace, instance) == ([], "runs of all due jobs are on their way")
    instance.report_run_failed(started)
    (second,), _ = look(workspace, instance)
    assert second.run_key != first.run_key


def test_a_queued_run_that_is_cancelled_in_dagster_cancels_its_jobs(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    jobs = queue(workspace, (0, 1), (1, 2))
    (request,), _ = look(workspace, instance)
    job = workspace.definitions().resolve_job_def("materialize_last_payment")
    waiting = instance.create_run_for_job(job, tags=dict(request.tags), status=dg.DagsterRunStatus.NOT_STARTED)
    instance.report_run_canceled(waiting)
    assert look(workspace, instance)[0] == []
    assert states(workspace, jobs) == ["MANUALLY_CANCELLED"] * 2
    workspace.stores.ledger.retry(jobs[0].id)
    (again,), _ = look(workspace, instance)
    assert carry_out(workspace, again, instance).success
    assert states(workspace, jobs) == ["SUCCESS", "MANUALLY_CANCELLED"]


def test_jobs_of_a_run_that_ended_without_a_word_are_tried_again(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    (job,) = queue(workspace, (0, 1))
    definition = workspace.definitions().resolve_job_def("materialize_last_payment")
    lost = instance.create_run_for_job(definition, status=dg.DagsterRunStatus.STARTED)
    workspace.stores.ledger.begin(job.id, run_id=lost.run_id)
    assert look(workspace, instance) == ([], "no job is due")
    instance.report_run_failed(lost)
    (request,), _ = look(workspace, instance)
    assert carry_out(workspace, request, instance).success
    assert states(workspace, [job]) == ["SUCCESS"]


@pytest.mark.parametrize("step", [materialize.COMPUTED, materialize.WRITTEN_OFFLINE])
def test_a_job_that_is_cancelled_on_its_way_ends_there_and_the_others_go_on(
    workspace: Workspace, step: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = queue(workspace, (0, 1), (1, 2), (2, 3))
    ledger = workspace.stores.ledger

    def cancel_second(reached: str, task: Any) -> None:
        if reached == step and task.job_id == jobs[1].id:
            ledger.cancel(jobs[1].id)

    monkeypatch.setitem(materialize.run_tasks.__kwdefaults__, "on_step", cancel_second)
    (request,), _ = look(workspace, instance)
    assert carry_out(workspace, request, instance).success
    assert states(workspace, jobs) == ["SUCCESS", "MANUALLY_CANCELLED", "SUCCESS"]
    covered = ledger.coverage(workspace.name, "last_payment", "offline")
    assert covered == IntervalSet([Interval(day(0), day(1)), Interval(day(2), day(3))])
    assert statuses(workspace, "last_payment", instance, 3) == ["M", None, "M"]
    assert look(workspace, instance) == ([], "no job is due")


def test_without_a_daemon_the_same_jobs_run_in_this_process(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    first = queue(workspace, (0, 1))
    second = queue(workspace, (3, 4))
    (result,) = run_due(workspace, instance, job_id=second[0].id)
    assert result.success
    assert states(workspace, [*first, *second]) == ["RUNNING", "SUCCESS"]
    run_due(workspace, instance)
    assert states(workspace, [*first, *second]) == ["SUCCESS", "SUCCESS"]
