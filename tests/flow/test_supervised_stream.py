"""The run that follows a stream, and the sensor that keeps one going."""

from __future__ import annotations

import logging.config
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from featurekit_dagster import Workspace
from featurekit_dagster.execution import stream_attempt
from featurekit_dagster.orchestration.streams import CODE_TAG, STREAM_TAG
from featurekit_dagster.planning.stream_code import stream_code
from tests.support.push import NOW, payment, payments_workspace

SOON = timedelta(seconds=60)
Started = dg.DagsterRunStatus.STARTED


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster").mkdir()
    quiet = {"telemetry": {"enabled": False}}
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster"), overrides=quiet) as opened:
        yield opened


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return payments_workspace(tmp_path / "data")


def look(workspace: Workspace, instance: dg.DagsterInstance) -> tuple[list[dg.RunRequest], str]:
    """Let the supervisor look once; return what it requests, and why it requests nothing."""
    defs = workspace.definitions()
    sensor = defs.resolve_sensor_def("supervise_paid")
    given = {"resources": dict(defs.resources or {}), "repository_def": defs.get_repository_def()}
    with dg.build_sensor_context(instance=instance, **given) as context:
        data = sensor.evaluate_tick(context)
    return list(data.run_requests or []), data.skip_message or ""


class Run:
    """The stream's job in a thread of this process."""

    def __init__(self, workspace: Workspace, instance: dg.DagsterInstance) -> None:
        self.result: dg.ExecuteInProcessResult | None = None
        job = workspace.definitions().resolve_job_def("stream_paid")

        def carry_out() -> None:
            self.result = job.execute_in_process(instance=instance, raise_on_error=False)

        self.thread = threading.Thread(target=carry_out)
        self.thread.start()

    @property
    def finished(self) -> dg.ExecuteInProcessResult:
        """Its result, once it has ended."""
        self.thread.join(60)
        assert self.result is not None, "the run goes on"
        return self.result


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def state(workspace: Workspace) -> str:
    jobs = workspace.stores.ledger.stream_jobs(workspace.name, "paid")
    return jobs[0].state if jobs else ""


@contextmanager
def running(workspace: Workspace, instance: dg.DagsterInstance) -> Iterator[Run]:
    """Follow the stream during the block."""
    run = Run(workspace, instance)
    try:
        wait_until(lambda: state(workspace) == "RUNNING" or not run.thread.is_alive())
        yield run
    finally:
        workspace.stores.ledger.pause_stream(workspace.name, "paid")
        run.thread.join(60)


def observed(instance: dg.DagsterInstance) -> list[dict[str, Any]]:
    """Return the metadata of the view's observations, newest first."""
    events = instance.fetch_observations(dg.AssetKey("paid"), limit=20).records
    return [{name: value.value for name, value in e.asset_observation.metadata.items()} for e in events]


def test_the_first_look_starts_a_run_and_the_next_ones_leave_it_alone(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    code = stream_code(workspace.repo.view("paid"))
    (request,), _ = look(workspace, instance)
    assert request.tags | {STREAM_TAG: "paid", CODE_TAG: code} == request.tags
    assert request.run_key is None
    job = workspace.definitions().resolve_job_def("stream_paid")
    assert job.tags == {**job.tags, STREAM_TAG: "paid", CODE_TAG: code, "dagster/max_retries": "0"}
    assert "featurekit/view" not in job.tags
    run = instance.create_run_for_job(job, tags=dict(job.tags), status=Started)
    assert look(workspace, instance) == ([], f"paid: run {run.run_id[:8]} follows the stream")


def test_a_run_brings_events_online_and_says_how_far_it_is(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    source = workspace.get_stream_source("payments")
    with running(workspace, instance) as run:
        source.ingest([payment(7), payment(14)], wait=SOON)
        paid = workspace.get_feature_view("paid")
        assert paid.get_online_features({"user": "u0"}).to_dict() == {"sum": 22.0, "count": 2}
        (job,) = paid.list_jobs()
        assert (job.job_type, job.state, job.online, job.offline) == ("STREAM", "RUNNING", True, False)
        assert (job.start_time, job.end_time) == (NOW.replace(tzinfo=None), None)
    assert run.finished.success
    newest = observed(instance)[0]
    assert newest["featurekit/events"] == 2
    assert newest["featurekit/lag"] == 0
    assert newest["featurekit/freshness_seconds"] == 1800.0
    (job,) = paid.list_jobs()
    assert (job.state, job.stats["events"], job.stats["lag"]) == ("DRAINED", 2, 0)
    assert [attempt.state for attempt in job.attempts] == ["CANCELLED"]


def freshness(instance: dg.DagsterInstance) -> list[tuple[bool, str]]:
    """Return what the check `fresh` has found, newest first."""
    key = dg.AssetCheckKey(dg.AssetKey("paid"), "fresh")
    records = instance.event_log_storage.get_asset_check_execution_history(key, limit=10)
    found = [record.event.dagster_event.asset_check_evaluation_data for record in records if record.event]
    return [(each.passed, each.description) for each in found]


def test_a_stream_is_checked_for_freshness_whether_it_is_followed_or_not(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    workspace = payments_workspace(tmp_path / "data", expected_feature_freshness="1h")
    with running(workspace, instance) as run:
        workspace.get_stream_source("payments").ingest([payment(7)], wait=SOON)
    assert run.finished.success
    said = "The newest event is of 2024-01-10T11:30Z; 1h are expected."
    assert freshness(instance)[0] == (True, said)
    workspace._clock.now += timedelta(minutes=31)  # type: ignore[attr-defined]
    assert look(workspace, instance)[1].startswith("paid: paused since")
    assert freshness(instance)[0] == (False, said)


def test_a_paused_stream_ends_and_is_started_again_once_it_is_resumed(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    ledger = workspace.stores.ledger
    with running(workspace, instance) as run:
        ledger.pause_stream(workspace.name, "paid")
        assert run.finished.success
    assert look(workspace, instance) == ([], "paid: paused since 2024-01-10T12:00Z")
    ledger.resume_stream(workspace.name, "paid")
    assert len(look(workspace, instance)[0]) == 1


def test_a_cancelled_stream_stays_ended_until_somebody_asks(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    handle = workspace.get_feature_view("paid")
    with running(workspace, instance) as run:
        (job,) = handle.list_materialization_jobs()
        assert handle.cancel_materialization_job(job.id).state == "MANUAL_CANCELLATION_REQUESTED"
        assert run.finished.success
    assert handle.get_job(job.id).state == "MANUALLY_CANCELLED"
    status = handle.materialization_status().set_index("TYPE").loc["STREAM"]
    assert (status["STATUS"], status["WINDOW_END_TIME"]) == ("MANUALLY_CANCELLED", "N/A")
    workspace.stores.ledger.resume_stream(workspace.name, "paid")
    assert handle.get_job(job.id).state == "MANUAL_RETRY"
    assert len(look(workspace, instance)[0]) == 1


def test_a_second_run_is_refused(
    workspace: Workspace, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(workspace, instance):
        # A run sets up Python's logging when it begins. While another thread of the process logs an event of Dagster,
        # each may hold the lock that the other one wants.
        monkeypatch.setattr(logging.config, "dictConfig", lambda _: None)
        second = Run(workspace, instance).finished
        assert not second.success
        failure = next(event for event in second.all_events if event.is_step_failure)
        assert "is followed by job" in failure.step_failure_data.user_failure_data.description
        assert state(workspace) == "RUNNING"


def test_a_run_of_older_code_is_drained_and_replaced(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    old = payments_workspace(tmp_path / "data")
    with running(old, instance) as run:
        new = payments_workspace(tmp_path / "data", late=timedelta(minutes=5))
        requests, why = look(new, instance)
        assert requests == []
        assert why.endswith("of older code is ending")
        assert run.finished.success
        assert state(new) == "DRAINED"
        (request,), _ = look(new, instance)
        assert request.tags[CODE_TAG] == stream_code(new.repo.view("paid"))
        assert look(old, instance)[1] == (
            "paid: a code location that was loaded later has other code of it; reload this one"
        )


def test_a_failed_run_is_replaced_after_a_wait(
    workspace: Workspace, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise OSError("secret-value")

    with monkeypatch.context() as patch:
        patch.setattr(stream_attempt, "open_reader", broken)
        result = Run(workspace, instance).finished
    assert not result.success
    assert "secret-value" not in str([event.step_failure_data for event in result.all_events if event.is_step_failure])
    requests, why = look(workspace, instance)
    assert (requests, why.split(" at ")[0]) == ([], "paid: it failed once; started again")
    job = workspace.stores.ledger.stream_jobs(workspace.name, "paid")[0]
    assert (job.state, job.attempts[0].state) == ("RUNNING", "ERROR")
    wait_until(lambda: bool(look(workspace, instance)[0]))


def test_a_run_that_was_killed_is_replaced_and_its_job_goes_on(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    code = stream_code(workspace.repo.view("paid"))
    job = workspace.definitions().resolve_job_def("stream_paid")
    lost = instance.create_run_for_job(job, tags=dict(job.tags), status=Started)
    facts = {"workspace": workspace.name, "view": "paid", "generation": 1, "code_version": code}
    followed = workspace.stores.ledger.follow_stream(**facts, run_id=lost.run_id)
    assert look(workspace, instance)[0] == []
    instance.report_run_failed(lost)
    wait_until(lambda: bool(look(workspace, instance)[0]))
    with running(workspace, instance):
        pass
    attempts = workspace.stores.ledger.job(followed.id).attempts
    assert [attempt.state for attempt in attempts] == ["ERROR", "CANCELLED"]


def test_a_run_that_a_person_cancels_in_the_queue_is_not_started_again_until_somebody_asks(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    job = workspace.definitions().resolve_job_def("stream_paid")
    queued = instance.create_run_for_job(job, tags=dict(job.tags), status=dg.DagsterRunStatus.NOT_STARTED)
    assert look(workspace, instance)[0] == []
    instance.report_run_canceled(queued)
    for _ in range(2):
        assert look(workspace, instance) == (
            [],
            "paid: it was cancelled by hand; featurekit stream resume starts it again",
        )
    (cancelled,) = workspace.jobs("paid")
    assert [attempt.run_id for attempt in cancelled.attempts] == [queued.run_id]
    workspace.stores.ledger.resume_stream(workspace.name, "paid")
    assert len(look(workspace, instance)[0]) == 1


def test_a_run_that_a_person_ends_in_dagster_stays_ended(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    code = stream_code(workspace.repo.view("paid"))
    job = workspace.definitions().resolve_job_def("stream_paid")
    run = instance.create_run_for_job(job, tags=dict(job.tags), status=Started)
    facts = {"workspace": workspace.name, "view": "paid", "generation": 1, "code_version": code}
    workspace.stores.ledger.follow_stream(**facts, run_id=run.run_id)
    instance.report_run_canceled(run)
    expected = "paid: it was cancelled by hand; featurekit stream resume starts it again"
    assert look(workspace, instance) == ([], expected)
    assert state(workspace) == "MANUALLY_CANCELLED"
