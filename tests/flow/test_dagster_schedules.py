"""Ticks of a view's schedule, and partitions that Dagster forgot or never heard of."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from featurekit_dagster import BatchTriggerType, Workspace
from featurekit_dagster.execution.materialize import run_tasks
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.orchestration.schedules import MOST_FAILURES
from featurekit_dagster.planning.planner import split_tasks
from tests.flow.payments import (
    RANGE_END,
    RANGE_START,
    break_days,
    day,
    key,
    payments_workspace,
    run_asset,
    statuses,
)
from tests.support.clock import Clock


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster").mkdir()
    quiet = {"telemetry": {"enabled": False}}
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster"), overrides=quiet) as opened:
        yield opened


@pytest.fixture
def clock() -> Clock:
    return Clock(day(3))


@pytest.fixture
def workspace(tmp_path: Path, clock: Clock) -> Workspace:
    return payments_workspace(tmp_path / "data", now=clock)


def tick(workspace: Workspace, view: str, instance: dg.DagsterInstance) -> tuple[list[dg.RunRequest], str]:
    """Let a view's schedule tick; return what it requests, and why it requests nothing."""
    defs = workspace.definitions()
    schedule = defs.resolve_schedule_def(f"materialize_{view}_schedule")
    given = {"resources": dict(defs.resources or {}), "repository_def": defs.get_repository_def()}
    with dg.build_schedule_context(instance=instance, **given) as context:
        data = schedule.evaluate_tick(context)
    return list(data.run_requests or []), data.skip_message or ""


def ranges(requests: list[dg.RunRequest]) -> list[tuple[str, str]]:
    return [(request.tags[RANGE_START], request.tags[RANGE_END]) for request in requests]


def run(workspace: Workspace, view: str, request: dg.RunRequest, instance: dg.DagsterInstance) -> None:
    """Carry out what a tick requested."""
    job = workspace.definitions().resolve_job_def(f"materialize_{view}")
    job.execute_in_process(instance=instance, tags=dict(request.tags), raise_on_error=False)


def test_ticks_fill_history_then_nothing_then_each_new_interval_and_gaps(
    workspace: Workspace, clock: Clock, instance: dg.DagsterInstance
) -> None:
    first, _ = tick(workspace, "spending", instance)
    assert ranges(first) == [(key(0), key(2))]
    assert first[0].tags["featurekit/trigger"] == "schedule"
    run(workspace, "spending", first[0], instance)
    (job,) = workspace.stores.ledger.jobs(workspace.name, "spending")
    assert (job.trigger, job.state) == ("schedule", "SUCCESS")

    nothing, reason = tick(workspace, "spending", instance)
    assert nothing == []
    assert reason == "spending: up to date to 2023-01-04T00:00Z"

    clock.now = day(4) + timedelta(hours=1)
    new, _ = tick(workspace, "spending", instance)
    assert ranges(new) == [(key(3), key(3))]

    clock.now = day(7)
    run_asset(workspace, "spending", 4, 5, instance)
    gaps, _ = tick(workspace, "spending", instance)
    assert ranges(gaps) == [(key(5), key(6))]
    waiting = [job.interval for job in workspace.stores.ledger.due(workspace.name)]
    assert waiting == [Interval(day(3), day(4)), Interval(day(5), day(7))]


def test_tick_leaves_to_the_ledger_what_waits_for_another_attempt(
    workspace: Workspace, tmp_path: Path, clock: Clock, instance: dg.DagsterInstance
) -> None:
    break_days(tmp_path / "data", [1])
    (first,), _ = tick(workspace, "last_payment", instance)
    run(workspace, "last_payment", first, instance)
    states = {job.interval.start: job for job in workspace.stores.ledger.jobs(workspace.name, "last_payment")}
    assert [states[day(n)].state for n in range(3)] == ["SUCCESS", "RUNNING", "SUCCESS"]
    assert states[day(1)].next_attempt_at == clock.now + timedelta(minutes=5)
    requests, reason = tick(workspace, "last_payment", instance)
    assert requests == []
    assert f"running: {Interval(day(1), day(2))}" in reason


def test_interval_that_failed_often_or_was_cancelled_by_hand_is_left_alone(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    ledger, view = workspace.stores.ledger, workspace.repo.view("last_payment")
    facts = {"workspace": workspace.name, "view": view.name, "online": False, "offline": True, "trigger": "manual"}
    for _ in range(MOST_FAILURES):
        job = ledger.claim(interval=Interval(day(1), day(2)), **facts)
        ledger.fail(job.id, reason="it did not work")
    (cancelled,) = ledger.queue(intervals=[Interval(day(2), day(3))], **facts)
    ledger.cancel(cancelled.id)
    requests, _ = tick(workspace, "last_payment", instance)
    assert ranges(requests) == [(key(0), key(0))]
    nothing, reason = tick(workspace, "last_payment", instance)
    assert nothing == []
    assert f"{Interval(day(1), day(2))} failed {MOST_FAILURES} times and waits for a person" in reason
    assert f"{Interval(day(2), day(3))} was cancelled by hand or given up, and waits for a person" in reason


def test_what_a_person_asked_for_after_a_cancellation_is_filled_again(workspace: Workspace) -> None:
    ledger = workspace.stores.ledger
    facts = {"workspace": workspace.name, "view": "last_payment", "online": False, "offline": True, "trigger": "manual"}
    (cancelled,) = ledger.queue(intervals=[Interval(day(0), day(2))], **facts)
    ledger.cancel(cancelled.id)
    later = ledger.claim(interval=Interval(day(1), day(2)), **facts)
    ledger.fail(later.id, reason="it did not work")
    assert ledger.snapshot(workspace.name).left_alone == {"last_payment": IntervalSet([Interval(day(0), day(1))])}


def test_schedule_waits_for_the_data_delay(tmp_path: Path, clock: Clock, instance: dg.DagsterInstance) -> None:
    workspace = payments_workspace(tmp_path / "data", now=clock, data_delay=timedelta(hours=6))
    schedule = workspace.definitions().resolve_schedule_def("materialize_spending_schedule")
    assert schedule.cron_schedule == "0 6 * * *"
    clock.now = day(3) + timedelta(hours=5, minutes=59)
    assert ranges(tick(workspace, "spending", instance)[0]) == [(key(0), key(1))]
    clock.now = day(3) + timedelta(hours=6)
    assert ranges(tick(workspace, "spending", instance)[0]) == [(key(2), key(2))]


def test_manual_view_is_filled_up_to_its_backfill_end_and_no_further(
    tmp_path: Path, clock: Clock, instance: dg.DagsterInstance
) -> None:
    manual = {"batch_trigger": BatchTriggerType.MANUAL}
    none = payments_workspace(tmp_path / "none", now=clock, **manual)
    names = {schedule.name for schedule in none.definitions().schedules or []}
    assert {name for name in names if "materialize" in name} == {"materialize_last_payment_schedule"}
    until = payments_workspace(tmp_path / "until", now=clock, manual_trigger_backfill_end_time=day(2), **manual)
    clock.now = day(9)
    (request,), _ = tick(until, "spending", instance)
    assert ranges([request]) == [(key(0), key(1))]
    run(until, "spending", request, instance)
    assert tick(until, "spending", instance)[0] == []


def test_schedules_run_by_themselves_unless_the_clock_stands_still(tmp_path: Path, clock: Clock) -> None:
    moving = payments_workspace(tmp_path / "moving", now=clock).definitions().schedules or []
    fixed = payments_workspace(tmp_path / "fixed", now=day(3)).definitions().schedules or []
    assert {schedule.default_status for schedule in moving} == {dg.DefaultScheduleStatus.RUNNING}
    assert {schedule.default_status for schedule in fixed} == {dg.DefaultScheduleStatus.STOPPED}


def test_partitions_covered_outside_dagster_are_reported_by_the_next_tick(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    view = workspace.repo.view("spending")
    tasks = split_tasks(view, Interval(day(0), day(3)), online=True, offline=True)
    list(run_tasks(view, tasks, workspace.stores, trigger="manual"))
    requests, reason = tick(workspace, "spending", instance)
    assert requests == []
    assert reason.endswith("; 3 covered partitions reported again")
    assert statuses(workspace, "spending", instance, 4) == ["M", "M", "M", None]
    assert tick(workspace, "spending", instance)[1] == "spending: up to date to 2023-01-04T00:00Z"
