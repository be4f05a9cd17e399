"""What the methods about materialization jobs refuse, word for word: what was given, the rule, what to do."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from featurekit_dagster import BatchTriggerType, Workspace
from featurekit_dagster.errors import (
    BeforeFeatureStart,
    DeclarationError,
    EndlessJob,
    IntervalNotComplete,
    JobStateError,
    MisalignedInterval,
    NotFoundError,
    OverlappingMaterialization,
    PlanError,
    WrongJobArgument,
    WrongJobKind,
)
from featurekit_dagster.execution.materialize import run_tasks
from featurekit_dagster.handles import FeatureViewHandle
from featurekit_dagster.intervals import Interval
from featurekit_dagster.planning.planner import split_tasks
from tests.flow.payments import day, payments_workspace
from tests.unit.domain.declared import aggregated, plain

HOUR = timedelta(hours=1)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return payments_workspace(tmp_path, now=day(9) + HOUR)


@pytest.fixture
def spending(workspace: Workspace) -> FeatureViewHandle:
    """A view of both stores."""
    return workspace.get_feature_view("spending")


def fill(workspace: Workspace, view: str, start: datetime, end: datetime, *, online: bool, offline: bool) -> str:
    """Materialize a window below Dagster; return the id of its job."""
    declared = workspace.repo.view(view)
    (task,) = split_tasks(declared, Interval(start, end), online=online, offline=offline)
    (report,) = run_tasks(declared, [task], workspace.stores, trigger="manual")
    return report.job.id


def refusal(error: type[Exception], method: Callable[..., Any], *arguments: Any, **more: Any) -> str:
    """Return the message with which a call is refused."""
    with pytest.raises(error) as refused:
        method(*arguments, **more)
    assert type(refused.value) is error
    return str(refused.value)


@pytest.mark.parametrize(
    ("start", "end", "error", "message"),
    [
        (
            day(0) + 6 * HOUR,
            day(2),
            MisalignedInterval,
            "spending: start 2023-01-01T06:00Z is not on the 1d grid of the Unix epoch; "
            "nearest are 2023-01-01T00:00Z and 2023-01-02T00:00Z",
        ),
        (
            day(0),
            day(1) + 6 * HOUR,
            MisalignedInterval,
            "spending: end 2023-01-02T06:00Z is not on the 1d grid of the Unix epoch; "
            "nearest are 2023-01-02T00:00Z and 2023-01-03T00:00Z",
        ),
        (
            day(3),
            day(2),
            PlanError,
            "spending: start 2023-01-04T00:00Z is not before end 2023-01-03T00:00Z; exchange them",
        ),
        (
            day(2),
            day(2),
            PlanError,
            "spending: start 2023-01-03T00:00Z is not before end 2023-01-03T00:00Z; give a later end",
        ),
        (
            day(8),
            day(10),
            IntervalNotComplete,
            "spending: end 2023-01-11T00:00Z is after the last complete interval, which ends 2023-01-10T00:00Z; "
            "end there or wait",
        ),
        (
            day(-1),
            day(1),
            BeforeFeatureStart,
            "spending: start 2022-12-31T00:00Z is before the materialization start 2023-01-01T00:00Z; begin there, "
            "or move feature_start_time",
        ),
    ],
)
def test_a_window_that_cannot_be_materialized(
    spending: FeatureViewHandle, start: datetime, end: datetime, error: type[Exception], message: str
) -> None:
    trigger = spending.trigger_materialization_job
    assert refusal(error, trigger, start, end, online=True, offline=True) == message
    assert spending.list_jobs() == []


def test_a_store_that_the_view_does_not_write_and_no_store_at_all(workspace: Workspace) -> None:
    trigger = workspace.get_feature_view("last_payment").trigger_materialization_job
    assert refusal(PlanError, trigger, day(0), day(1), online=True, offline=True) == (
        "last_payment: online=True, but it writes offline only; leave the other out or declare it"
    )
    assert refusal(PlanError, trigger, day(0), day(1), online=False, offline=False) == (
        "last_payment: online=False and offline=False; a job writes one of the stores, or both"
    )


def test_an_overlap_with_a_success_names_the_job_and_the_store(
    workspace: Workspace, spending: FeatureViewHandle
) -> None:
    done = fill(workspace, "spending", day(0), day(2), online=False, offline=True)
    trigger = spending.trigger_materialization_job
    assert refusal(OverlappingMaterialization, trigger, day(1), day(3), online=True, offline=True) == (
        "spending: [2023-01-02T00:00Z, 2023-01-04T00:00Z) overlaps [2023-01-02T00:00Z, 2023-01-03T00:00Z) in the "
        f"offline store: job {done} succeeded there; pass overwrite=True (--overwrite) to replace what it wrote"
    )
    assert trigger(day(1), day(3), online=True, offline=False), "each store counts for itself"


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_overlap_with_a_queued_job_names_it_even_with_overwrite(
    spending: FeatureViewHandle, *, overwrite: bool
) -> None:
    trigger = spending.trigger_materialization_job
    first = trigger(day(0), day(2), online=True, offline=False)
    options = {"online": True, "offline": True, "overwrite": overwrite}
    assert refusal(OverlappingMaterialization, trigger, day(1), day(3), **options) == (
        "spending: [2023-01-02T00:00Z, 2023-01-04T00:00Z) overlaps [2023-01-02T00:00Z, 2023-01-03T00:00Z) in the "
        f"online store: job {first} is queued or running there; wait for it or cancel it first"
    )


def test_an_overlap_with_a_running_job_names_it(workspace: Workspace, spending: FeatureViewHandle) -> None:
    interval, facts = Interval(day(0), day(1)), {"online": True, "offline": True, "trigger": "manual"}
    running = workspace.stores.ledger.claim(workspace=workspace.name, view="spending", interval=interval, **facts)
    trigger = spending.trigger_materialization_job
    assert refusal(OverlappingMaterialization, trigger, day(0), day(1), online=True, offline=True).endswith(
        f"in the offline store: job {running.id} is queued or running there; wait for it or cancel it first"
    )


def test_a_job_that_is_not_known_or_is_another_views_lists_some_that_are(
    workspace: Workspace, spending: FeatureViewHandle
) -> None:
    assert refusal(NotFoundError, spending.get_job, "nothing") == "no job of spending named 'nothing'; there is none"
    own = sorted(spending.trigger_materialization_job(day(n), day(n + 1), online=True, offline=True) for n in range(2))
    other = workspace.get_feature_view("last_payment").trigger_materialization_job(
        day(0), day(1), online=False, offline=True
    )
    methods = (
        spending.get_job,
        spending.get_materialization_job,
        spending.wait_for_materialization_job,
        spending.cancel_materialization_job,
        spending.retry_materialization_job,
    )
    for method in methods:
        assert refusal(NotFoundError, method, other) == (
            f"no job of spending named {other!r}; there are {own[0]}, {own[1]}"
        )


def test_a_job_of_another_kind_is_shown_by_get_job_alone(workspace: Workspace, spending: FeatureViewHandle) -> None:
    interval, facts = Interval(day(0), day(1)), {"online": True, "offline": True, "trigger": "manual"}
    ledger = workspace.stores.ledger
    job = ledger.claim(workspace=workspace.name, view="spending", interval=interval, kind="DELETION", **facts)
    methods = (
        spending.get_materialization_job,
        spending.wait_for_materialization_job,
        spending.cancel_materialization_job,
        spending.retry_materialization_job,
    )
    for method in methods:
        assert refusal(WrongJobKind, method, job.id) == (
            f"spending: job {job.id} is a DELETION job, and this is for materialization jobs; "
            "get_job and list_jobs show it"
        )
    assert spending.list_materialization_jobs() == []
    assert [each.job_type for each in spending.list_jobs()] == [spending.get_job(job.id).job_type] == ["DELETION"]


def test_a_job_that_follows_a_stream_is_not_waited_for(workspace: Workspace, spending: FeatureViewHandle) -> None:
    place = {"workspace": workspace.name, "view": "spending", "generation": 1}
    job = workspace.stores.ledger.follow_stream(**place, run_id="run", code_version="a")
    assert refusal(EndlessJob, spending.wait_for_materialization_job, job.id, HOUR) == (
        f"spending: job {job.id} follows a stream and goes on until it is told to end, so it is not waited for; "
        "get_job shows its stats, and featurekit stream status how far it is"
    )


def test_a_job_that_has_not_ended_is_not_retried(spending: FeatureViewHandle) -> None:
    job = spending.trigger_materialization_job(day(0), day(1), online=True, offline=True)
    assert refusal(JobStateError, spending.retry_materialization_job, job) == (
        f"job {job} is RUNNING and cannot be retried before it has ended; wait for it or cancel it"
    )


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("2023-01-01", "'2023-01-01', a str"),
        (date(2023, 1, 1), "datetime.date(2023, 1, 1), a date"),
        (1672531200, "1672531200, a int"),
        (pd.NaT, "NaT, a NaTType"),
        (None, "None"),
    ],
)
@pytest.mark.parametrize("which", ["start_time", "end_time"])
def test_a_time_that_is_no_datetime(spending: FeatureViewHandle, which: str, given: object, shown: str) -> None:
    times = {"start_time": day(0), "end_time": day(1), which: given}
    assert refusal(WrongJobArgument, spending.trigger_materialization_job, **times, online=True, offline=True) == (
        f"spending: {which} is {shown}; give a datetime such as datetime(2024, 1, 31), which is UTC without a zone"
    )


def test_times_of_pandas_and_without_a_zone_are_taken(spending: FeatureViewHandle) -> None:
    first = spending.trigger_materialization_job(
        pd.Timestamp("2023-01-01"),
        datetime(2023, 1, 2),  # noqa: DTZ001 - naive is UTC
        online=True,
        offline=True,
    )
    job = spending.get_job(first)
    assert (job.start_time, job.end_time) == (day(0).replace(tzinfo=None), day(1).replace(tzinfo=None))


@pytest.mark.parametrize("which", ["online", "offline", "use_tecton_managed_retries", "overwrite"])
@pytest.mark.parametrize(("given", "shown"), [("False", "'False', a str"), (1, "1, a int"), (None, "None")])
def test_a_flag_that_is_no_boolean(spending: FeatureViewHandle, which: str, given: object, shown: str) -> None:
    flags: dict[str, Any] = {"online": True, "offline": True, which: given}
    message = refusal(WrongJobArgument, spending.trigger_materialization_job, day(0), day(1), **flags)
    assert message == f"spending: {which} is {shown}; give True or False"


def test_a_timeout_without_a_unit_and_an_id_that_is_none(spending: FeatureViewHandle) -> None:
    job = spending.trigger_materialization_job(day(0), day(1), online=True, offline=True)
    assert refusal(WrongJobArgument, spending.wait_for_materialization_job, job, 60) == (
        "spending: timeout is 60, a int; give a timedelta such as timedelta(minutes=10), or None to wait for ever"
    )
    assert refusal(WrongJobArgument, spending.get_job, 7) == (
        "spending: job_id is 7, a int; give the id of a job, which trigger_materialization_job returns and "
        "list_jobs shows"
    )


def test_manual_materialization_needs_a_grid_and_says_so_when_it_is_declared() -> None:
    manual: dict[str, Any] = {"batch_schedule": None, "batch_trigger": BatchTriggerType.MANUAL}
    no_schedule = "  - batch_schedule is not given; it is the width of one interval, such as timedelta(days=1)"
    assert refusal(DeclarationError, plain, **manual) == f"feature view 'spending': 1 fault\n{no_schedule}"
    assert refusal(DeclarationError, aggregated, **manual, aggregation_interval=None) == (
        f"feature view 'spending': 2 faults\n{no_schedule}\n"
        "  - aggregations without aggregation_interval; give the tile size, such as timedelta(hours=1)"
    )
    assert aggregated(**manual).batch_schedule == aggregated().aggregation_interval, "the tiles' grid will do"


def test_refusals_of_arguments_are_type_errors_and_value_errors() -> None:
    for kind in (WrongJobArgument, WrongJobKind):
        assert issubclass(kind, TypeError)
        assert issubclass(kind, ValueError)
