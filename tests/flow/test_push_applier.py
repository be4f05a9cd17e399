"""Who applies what is sent to a push source: the process that holds its lease, and never two of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from featurekit_dagster import Workspace
from featurekit_dagster.execution import push_applier, stream_attempt
from featurekit_dagster.ingest_app import IngestLimits
from featurekit_dagster.planning.generations import StoredShape
from featurekit_dagster.planning.job_state import RetryPolicy
from featurekit_dagster.planning.stream_code import stream_code
from featurekit_dagster.stores.ledger_records import JobRecord
from tests.support.push import ingest_server, payment, payments_workspace

PATIENT = IngestLimits(visible_time=timedelta(seconds=60))
QUICK = IngestLimits(visible_time=timedelta(milliseconds=50))


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_applier, "_SECONDS_BETWEEN_LOOKS", 0.1)


def _paid(workspace: Workspace) -> dict[str, object]:
    return dict(workspace.get_feature_view("paid").get_online_features({"user": "u0"}).to_dict())


def _newest(workspace: Workspace) -> JobRecord:
    return workspace.stores.ledger.stream_jobs("prod", "paid")[0]


def test_a_server_applies_what_it_is_sent_before_it_answers(tmp_path: Path) -> None:
    workspace = payments_workspace(tmp_path)
    with ingest_server(workspace, PATIENT, applies=True) as server:
        for count in range(1, 4):
            assert server.send([payment(7)]).json()["visible"] is True
            assert _paid(workspace) == {"sum": 7.5 * count, "count": count}
        job = _newest(workspace)
        assert (job.state, job.attempts[-1].state, job.attempts[-1].run_id) == ("RUNNING", "RUNNING", None)
    assert _newest(workspace).state == "DRAINED"


def test_a_second_server_leaves_it_to_the_first_and_goes_on_when_that_has_ended(tmp_path: Path) -> None:
    workspace, other = payments_workspace(tmp_path), payments_workspace(tmp_path)
    with ingest_server(other, PATIENT, applies=True, key_name="second") as second:
        with ingest_server(workspace, PATIENT, applies=True) as first:
            for server in (first, second, first):
                assert server.send([payment(7)]).json()["visible"] is True
            assert len(workspace.stores.ledger.stream_jobs("prod", "paid")) == 1
        assert second.send([payment(7)]).json()["visible"] is True
    assert _paid(workspace) == {"sum": 30.0, "count": 4}


def test_what_was_logged_while_nobody_applied_is_applied_first(tmp_path: Path) -> None:
    workspace = payments_workspace(tmp_path)
    workspace.get_stream_source("payments").ingest([payment(7), payment(14)], wait=timedelta(0))
    with ingest_server(workspace, PATIENT, applies=True) as server:
        assert server.send([payment(21)]).json() == {"accepted": 1, "sequence": 3, "visible": True, "dry_run": False}
        assert _paid(workspace) == {"sum": 43.5, "count": 3}


def test_a_paused_stream_is_logged_and_applied_when_it_is_resumed(tmp_path: Path) -> None:
    workspace = payments_workspace(tmp_path)
    ledger = workspace.stores.ledger
    with ingest_server(workspace, PATIENT, applies=True) as server:
        assert server.send([payment(7)]).json()["visible"] is True
        ledger.pause_stream("prod", "paid")
        while _newest(workspace).state != "DRAINED":
            time.sleep(0.005)
        source = workspace.get_stream_source("payments")
        assert source.ingest([payment(7)], wait=timedelta(milliseconds=50)).visible is False
        assert _paid(workspace)["count"] == 1
        ledger.resume_stream("prod", "paid")
        assert server.send([payment(7)]).json()["visible"] is True
    assert _paid(workspace)["count"] == 3


@contextmanager
def _run_of_dagster(workspace: Workspace, code: str) -> Iterator[JobRecord]:
    """Let the ledger think that a run follows the stream, in this process."""
    ledger, view = workspace.stores.ledger, workspace.repo.view("paid")
    generation = ledger.open_generation("prod", "paid", StoredShape.of(view))
    yield ledger.follow_stream(workspace="prod", view="paid", generation=generation, run_id="a run", code_version=code)


def test_a_run_of_the_same_code_is_drained_for_the_server(tmp_path: Path) -> None:
    workspace = payments_workspace(tmp_path)
    ledger = workspace.stores.ledger
    with (
        _run_of_dagster(workspace, stream_code(workspace.repo.view("paid"))) as job,
        ingest_server(workspace, PATIENT, applies=True) as server,
    ):
        while ledger.job(job.id).state != "DRAINING":
            time.sleep(0.005)
        ledger.stop(job.id, reason="it was drained")
        assert server.send([payment(7)]).json()["visible"] is True
        assert _newest(workspace).id != job.id


def test_a_run_of_other_code_goes_on(tmp_path: Path) -> None:
    workspace = payments_workspace(tmp_path)
    with _run_of_dagster(workspace, "newer") as job, ingest_server(workspace, QUICK, applies=True) as server:
        assert server.send([payment(7)]).json()["visible"] is False
        assert workspace.stores.ledger.job(job.id).state == "RUNNING"


def test_a_server_of_older_code_applies_nothing(tmp_path: Path) -> None:
    workspace = payments_workspace(tmp_path)
    later = 4_000_000_000_000_000  # microseconds: the year 2096
    assert not workspace.stores.ledger.deploy("prod", {"stream paid": "newer"}, later)
    with ingest_server(workspace, QUICK, applies=True) as server:
        assert server.send([payment(7)]).json()["visible"] is False
    assert workspace.stores.ledger.stream_jobs("prod", "paid") == []


def test_events_sent_from_python_are_online_when_the_call_returns_though_nobody_follows(tmp_path: Path) -> None:
    workspace = payments_workspace(tmp_path)
    source = workspace.get_stream_source("payments")
    for count in range(1, 4):
        assert source.ingest([payment(7)]).visible is True
        assert _paid(workspace) == {"sum": 7.5 * count, "count": count}
    assert workspace.stores.ledger.stream_jobs("prod", "paid") == []


@pytest.mark.parametrize("wait", [timedelta(0), timedelta(seconds=60)])
def test_a_call_beside_a_server_waits_for_it(tmp_path: Path, wait: timedelta) -> None:
    workspace, other = payments_workspace(tmp_path), payments_workspace(tmp_path)
    with ingest_server(workspace, PATIENT, applies=True) as server:
        server.send([payment(7)])
        result = other.get_stream_source("payments").ingest([payment(7)], wait=wait)
        assert (result.sequence, result.visible) == (2, True if wait else None)
        assert server.send([payment(7)]).json()["visible"] is True
    assert _paid(workspace)["count"] == 3


def test_a_server_goes_on_after_a_loop_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = payments_workspace(tmp_path)
    quick = RetryPolicy(max_attempts=10, max_lost=10, first_wait=timedelta(milliseconds=100))
    monkeypatch.setattr(push_applier, "FOLLOWED", quick)
    opened = stream_attempt.open_reader
    failures = iter([OSError("secret-value")])

    def broken(*given: Any, **named: Any) -> Any:
        for failure in failures:
            raise failure
        return opened(*given, **named)

    monkeypatch.setattr(stream_attempt, "open_reader", broken)
    with ingest_server(workspace, PATIENT, applies=True) as server:
        assert server.send([payment(7)]).json()["visible"] is True
    job = _newest(workspace)
    assert [attempt.state for attempt in job.attempts] == ["ERROR", "CANCELLED"]
    assert "secret" not in str(job.attempts[0].reason)
