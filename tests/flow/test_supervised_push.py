"""The supervisor of a stream beside an ingest process that applies what it is sent."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from featurekit_dagster import Workspace
from featurekit_dagster.execution import push_applier
from tests.flow.test_pushed_online import PATIENT
from tests.flow.test_supervised_stream import Run, instance, look, observed, state, wait_until, workspace
from tests.support.push import ingest_server, payment, payments_workspace

__all__ = ["instance", "workspace"]  # fixtures


@pytest.fixture(autouse=True)
def _tells_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_applier, "_SECONDS_BETWEEN_LOOKS", 0.1)
    monkeypatch.setattr(push_applier, "_SECONDS_BETWEEN_NOTES", 0.0)


def test_the_supervisor_shows_the_ingest_process_and_starts_a_run_once_it_has_ended(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    ledger = workspace.stores.ledger
    with ingest_server(workspace, PATIENT, applies=True) as server:
        assert server.send([payment(7), payment(14)]).json()["visible"] is True
        wait_until(lambda: ledger.stream_jobs("prod", "paid")[0].stats.get("events") == 2)
        assert look(workspace, instance) == ([], "paid: an ingest process follows the stream")
        newest = observed(instance)[0]
        assert (newest["featurekit/events"], newest["featurekit/lag"]) == (2, 0)
    assert len(look(workspace, instance)[0]) == 1


def test_an_ingest_process_takes_over_from_a_run_and_nothing_is_counted_twice(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    run = Run(workspace, instance)
    wait_until(lambda: state(workspace) == "RUNNING")
    other = payments_workspace(workspace.home.parent)
    with ingest_server(other, PATIENT, applies=True) as server:
        for _ in range(3):
            assert server.send([payment(7)]).json()["visible"] is True
        assert run.finished.success
        assert look(workspace, instance) == ([], "paid: an ingest process follows the stream")
        assert server.send([payment(7)]).json()["visible"] is True
    paid = workspace.get_feature_view("paid").get_online_features({"user": "u0"}).to_dict()
    assert paid == {"sum": 30.0, "count": 4}


def test_a_run_that_is_started_beside_an_ingest_process_ends_and_says_why(
    workspace: Workspace, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    with ingest_server(workspace, PATIENT, applies=True) as server:
        assert server.send([payment(7)]).json()["visible"] is True
        result = Run(payments_workspace(workspace.home.parent), instance).finished
        assert not result.success
        assert server.send([payment(7)]).json()["visible"] is True
