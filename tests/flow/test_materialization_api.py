"""The methods by which people trigger, watch, cancel and repeat materialization jobs, and what they refuse."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from featurekit_dagster import (
    BatchSource,
    Entity,
    Field,
    FileConfig,
    FilteredSource,
    Float64,
    String,
    Timestamp,
    Workspace,
    batch_feature_view,
)
from featurekit_dagster.errors import (
    BeforeFeatureStart,
    IntervalNotComplete,
    JobFailedException,
    JobStateError,
    JobTimeoutException,
    MisalignedInterval,
    NotFoundError,
    OverlappingMaterialization,
    PlanError,
    TectonValidationError,
)
from featurekit_dagster.execution.overwriting import overwrite_caution
from featurekit_dagster.intervals import Interval, IntervalSet
from tests.flow.payments import break_days, day, payments_workspace, write_payments
from tests.support.clock import Clock

NO_DAEMON = pytest.mark.filterwarnings("ignore:.*no Dagster daemon gives a sign of life")


@pytest.fixture
def clock() -> Clock:
    return Clock(day(9) + timedelta(hours=1))


@pytest.fixture
def workspace(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return payments_workspace(tmp_path / "data", now=clock)


def latest_workspace(folder: Path, clock: Clock) -> Workspace:
    """Return a workspace whose one view keeps its newest rows online."""
    config = FileConfig(uri=str(write_payments(folder, 9)), file_format="parquet", timestamp_field="paid_at")

    def latest(payments: str) -> str:
        return f"SELECT user_id, paid_at, amount FROM {payments}"

    view = batch_feature_view(
        mode="sql",
        sources=[FilteredSource(BatchSource(name="payments", batch_config=config))],
        entities=[Entity(name="user", join_keys=[Field("user_id", String)])],
        schema=[Field("user_id", String), Field("paid_at", Timestamp), Field("amount", Float64)],
        batch_schedule=timedelta(days=1),
        feature_start_time=day(0),
        online=True,
        offline=True,
    )(latest)
    return Workspace("latest", [view], home=folder / "home", clock=clock)


@NO_DAEMON
def test_a_triggered_job_waits_is_carried_out_and_tells_its_fields(workspace: Workspace) -> None:
    handle = workspace.get_feature_view("spending")
    job_id = handle.trigger_materialization_job(day(0).replace(tzinfo=None), day(2), online=True, offline=True)
    waiting = handle.get_materialization_job(job_id)
    assert (waiting.state, waiting.attempts, waiting.job_type) == ("RUNNING", (), "BATCH")
    done = handle.wait_for_materialization_job(job_id, timeout=timedelta(minutes=5))
    assert (done.id, done.state, done.workspace, done.feature_view) == (job_id, "SUCCESS", "payments", "spending")
    assert (done.start_time, done.end_time) == (datetime(2023, 1, 1), datetime(2023, 1, 3))  # noqa: DTZ001
    assert (done.online, done.offline, done.feature_service, done.next_attempt_at) == (True, True, None, None)
    (attempt,) = done.attempts
    assert attempt.state == "SUCCESS"
    assert attempt.run_url is not None
    assert attempt.run_url.startswith("http://127.0.0.1:3000/runs/")
    assert handle.list_materialization_jobs() == handle.list_jobs() == [done]
    assert handle.get_job(job_id) == done


def test_waiting_without_a_daemon_says_that_the_job_runs_here(workspace: Workspace) -> None:
    handle = workspace.get_feature_view("last_payment")
    job_id = handle.trigger_materialization_job(day(0), day(1), online=False, offline=True)
    with pytest.warns(UserWarning, match="no Dagster daemon gives a sign of life"):
        handle.wait_for_materialization_job(job_id)


@NO_DAEMON
def test_a_window_of_several_intervals_of_an_incremental_view_is_one_job_with_a_query_each(
    workspace: Workspace,
) -> None:
    handle = workspace.get_feature_view("last_payment")
    assert handle.incremental_backfills
    job_id = handle.trigger_materialization_job(day(0), day(3), online=False, offline=True)
    handle.wait_for_materialization_job(job_id)
    rows = handle.get_historical_features(start_time=day(0), end_time=day(3)).to_pandas()
    assert len(rows) == 9


@pytest.mark.parametrize(
    ("start", "end", "error", "words"),
    [
        (day(0) + timedelta(hours=6), day(2), MisalignedInterval, "is not on the 1d grid of the Unix epoch; nearest"),
        (day(0), day(1) + timedelta(hours=6), MisalignedInterval, "is not on the 1d grid"),
        (day(2), day(2), PlanError, "is not before end"),
        (day(3), day(2), PlanError, "exchange them"),
        (day(8), day(10), IntervalNotComplete, "is after the last complete interval"),
        (day(-9), day(1), BeforeFeatureStart, "is before"),
    ],
)
def test_a_window_that_cannot_be_materialized_is_refused(
    workspace: Workspace, start: datetime, end: datetime, error: type[Exception], words: str
) -> None:
    handle = workspace.get_feature_view("spending")
    with pytest.raises(error, match=words):
        handle.trigger_materialization_job(start, end, online=True, offline=True)
    assert handle.list_materialization_jobs() == []


def test_stores_that_are_not_written_are_refused(workspace: Workspace) -> None:
    handle = workspace.get_feature_view("last_payment")
    with pytest.raises(PlanError, match="online=True, but it writes offline only"):
        handle.trigger_materialization_job(day(0), day(1), online=True, offline=True)
    with pytest.raises(PlanError, match="a job writes one of the stores, or both"):
        handle.trigger_materialization_job(day(0), day(1), online=False, offline=False)


@NO_DAEMON
def test_overlaps_are_refused_with_the_job_that_has_the_window(workspace: Workspace) -> None:
    handle = workspace.get_feature_view("spending")
    first = handle.trigger_materialization_job(day(0), day(2), online=True, offline=True)
    with pytest.raises(OverlappingMaterialization, match=first):
        handle.trigger_materialization_job(day(1), day(3), online=True, offline=True, overwrite=True)
    handle.wait_for_materialization_job(first)
    with pytest.raises(OverlappingMaterialization, match=first):
        handle.trigger_materialization_job(day(1), day(3), online=False, offline=True)
    assert handle.trigger_materialization_job(day(2), day(3), online=False, offline=True)
    assert handle.trigger_materialization_job(day(3), day(4), online=True, offline=True)


@NO_DAEMON
def test_an_overwrite_says_what_it_does_online_unless_nothing_was_written_there(tmp_path: Path, clock: Clock) -> None:
    workspace = latest_workspace(tmp_path, clock)
    handle = workspace.get_feature_view("latest")
    first = handle.trigger_materialization_job(day(0), day(1), online=True, offline=True)
    handle.wait_for_materialization_job(first)
    with pytest.warns(UserWarning, match="puts newer or equal rows in place and removes none"):
        again = handle.trigger_materialization_job(day(0), day(1), online=True, offline=True, overwrite=True)
    assert handle.get_job(again).stats == {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "spending: no Dagster daemon")
        handle.wait_for_materialization_job(again)
        handle.trigger_materialization_job(day(5), day(6), online=True, offline=True, overwrite=True)
    assert handle.get_job(again).stats == {
        "rows": 3, "rows_offline": 3, "rows_replaced": 3, "rows_online": 3, "rows_online_skipped": 0, "keys_cleared": 0
    }  # fmt: skip


@NO_DAEMON
def test_an_overwrite_of_tiles_says_what_becomes_of_moved_events_unless_there_were_none(workspace: Workspace) -> None:
    handle, window = workspace.get_feature_view("spending"), (day(0), day(1))
    ask = handle.trigger_materialization_job
    handle.wait_for_materialization_job(ask(*window, online=True, offline=True))
    with warnings.catch_warnings(action="error"):  # offline alone is safe
        handle.cancel_materialization_job(ask(*window, online=False, offline=True, overwrite=True))
        handle.cancel_materialization_job(ask(day(3), day(4), online=True, offline=True, overwrite=True))
    with pytest.warns(UserWarning, match="spending: overwriting") as told:
        ask(*window, online=True, offline=True, overwrite=True)
    assert [str(each.message) for each in told] == [
        "spending: overwriting [2023-01-01T00:00Z, 2023-01-02T00:00Z) online replaces its tiles, and those of no other "
        "interval; an event whose timestamp was moved from one interval to another counts in both or in neither until "
        "both are overwritten"
    ]


def test_an_overwrite_of_what_had_no_rows_says_nothing_but_of_what_nobody_knows_it_does(workspace: Workspace) -> None:
    view, interval = workspace.repo.view("spending"), Interval(day(0), day(2))
    covered, ledger = IntervalSet([interval]), workspace.stores.ledger
    assert overwrite_caution(view, interval, IntervalSet(), []) is None
    assert overwrite_caution(view, interval, covered, []) is not None, "a ledger that was lost and repaired"
    facts = {"workspace": workspace.name, "view": "spending", "online": True, "offline": True, "trigger": "manual"}
    for number in range(2):
        empty = ledger.claim(interval=Interval(day(number), day(number + 1)), **facts)
        ledger.succeed(empty.id, stats={"rows": 0, "rows_offline": 0, "rows_replaced": 0, "rows_online": 0})
        asked = overwrite_caution(view, interval, covered, workspace.jobs("spending"))
        assert (asked is None) == (number == 1)


@NO_DAEMON
def test_a_failed_attempt_leaves_the_job_running_and_a_permanent_failure_is_told(
    workspace: Workspace, tmp_path: Path, clock: Clock
) -> None:
    break_days(tmp_path / "data", [0])
    handle = workspace.get_feature_view("last_payment")
    managed = handle.trigger_materialization_job(day(0), day(1), online=False, offline=True)
    with pytest.raises(JobTimeoutException, match="still RUNNING after 1s"):
        handle.wait_for_materialization_job(managed, timeout=timedelta(seconds=1))
    job = handle.get_materialization_job(managed)
    assert [attempt.state for attempt in job.attempts] == ["ERROR"]
    assert job.next_attempt_at == (clock.now + timedelta(minutes=5)).replace(tzinfo=None)
    handle.cancel_materialization_job(managed)
    once = handle.trigger_materialization_job(
        day(0), day(1), online=False, offline=True, use_tecton_managed_retries=False
    )
    with pytest.raises(JobFailedException, match="is FAILURE"):
        handle.wait_for_materialization_job(once)
    break_days(tmp_path / "data", [])
    assert handle.retry_materialization_job(once).state == "MANUAL_RETRY"
    assert handle.wait_for_materialization_job(once).state == "SUCCESS"


def test_a_cancelled_window_is_left_alone_by_the_plan_of_the_schedule(workspace: Workspace) -> None:
    handle = workspace.get_feature_view("last_payment")
    job_id = handle.trigger_materialization_job(day(0), day(1), online=False, offline=True)
    assert handle.cancel_materialization_job(job_id).state == "MANUALLY_CANCELLED"
    assert handle.cancel_materialization_job(job_id).state == "MANUALLY_CANCELLED"
    left_alone = workspace.snapshot().left_alone["last_payment"]
    assert left_alone == IntervalSet([Interval(day(0), day(1))])
    with pytest.raises(JobFailedException, match="MANUALLY_CANCELLED"):
        handle.wait_for_materialization_job(job_id)


def test_jobs_of_other_views_and_unknown_ones_are_not_found(workspace: Workspace) -> None:
    spending, last = workspace.get_feature_view("spending"), workspace.get_feature_view("last_payment")
    other = spending.trigger_materialization_job(day(0), day(1), online=True, offline=True)
    for method in (last.get_materialization_job, last.cancel_materialization_job, last.wait_for_materialization_job):
        with pytest.raises(NotFoundError, match="no job of last_payment named"):
            method(other)
    with pytest.raises(NotFoundError, match=other):
        spending.retry_materialization_job("no such job")
    with pytest.raises(JobStateError, match="cannot be retried before it has ended"):
        spending.retry_materialization_job(other)


@NO_DAEMON
def test_status_has_a_row_per_attempt_and_one_for_all_that_waits(workspace: Workspace, tmp_path: Path) -> None:
    handle = workspace.get_feature_view("last_payment")
    assert set(handle.materialization_status()["STATUS"]) == {"SCHEDULED"}
    break_days(tmp_path / "data", [0])
    failing = handle.trigger_materialization_job(day(0), day(1), online=False, offline=True)
    with pytest.raises(JobTimeoutException):
        handle.wait_for_materialization_job(failing, timeout=timedelta(seconds=1))
    handle.trigger_materialization_job(day(1), day(2), online=False, offline=True)
    status = handle.materialization_status()
    assert list(status.columns) == [
        "TYPE", "WINDOW_START_TIME", "WINDOW_END_TIME", "STATUS", "ATTEMPT", "JOB_CREATED_AT", "JOB_LOGS",
    ]  # fmt: skip
    rows = [(row.WINDOW_START_TIME.day, row.STATUS, row.ATTEMPT) for row in status.itertuples()]
    assert (3, "SCHEDULED", "N/A") in rows
    assert rows[-3:] == [(2, "SCHEDULED", 1), (1, "SCHEDULED", 2), (1, "ERROR", 1)]
    errors = handle.materialization_status(verbose=True, errors_only=True)
    text = str(errors).splitlines()
    assert (len(text), "..." in text[1], len(errors.columns)) == (2, False, 12)
    assert errors["TERMINATION_REASON"][0] in text[1]
    assert list(errors["TERMINATION_REASON"]) != ["N/A"]
    assert len(errors) == 1
    assert len(handle.materialization_status(limit=1, errors_only=True)) == 0
    by_window = handle.materialization_status(sort_columns="window_start_time, status")
    assert list(by_window["WINDOW_START_TIME"]) == sorted(by_window["WINDOW_START_TIME"])
    with pytest.raises(TectonValidationError, match="sort_columns names COLOUR; the columns are TYPE"):
        handle.materialization_status(sort_columns="colour")
