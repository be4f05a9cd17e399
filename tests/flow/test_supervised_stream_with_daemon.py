"""A stream in a real deployment: the supervisor replaces a run of older code, and one whose process was killed."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from featurekit_dagster import Workspace
from featurekit_dagster.stores.ledger_records import JobRecord
from tests.support.dagster_processes import dagster_deployment, end_process, script, start_process, tail, wait_for
from tests.support.push import payment, payments_workspace

DEFINITIONS = """
from datetime import timedelta
from pathlib import Path

from tests.support.push import payments_workspace

folder = Path(__file__).parent
late = folder / "late"
workspace = payments_workspace(folder / "data", late=timedelta(minutes=5) if late.exists() else None)
defs = workspace.definitions()
"""


@pytest.fixture
def definitions(tmp_path: Path) -> Path:
    """The file of the code location; its code is newer once there is a file `late`."""
    file = tmp_path / "streamed_payments.py"
    file.write_text(DEFINITIONS)
    return file


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return payments_workspace(tmp_path / "data")


@pytest.fixture
def old_run(tmp_path: Path, definitions: Path, workspace: Workspace) -> Iterator[None]:
    """A process that follows the stream with the code as it is now, and outlives a deployment of newer code."""
    log, environment = tmp_path / "old_run.log", {"DAGSTER_HOME": str(tmp_path / "dagster")}
    (tmp_path / "dagster").mkdir()
    command = [script("dagster"), "job", "execute", "-f", str(definitions), "-j", "stream_paid"]
    process = start_process(command, environment, log)
    try:
        wait_for("the stream is followed", lambda: [job.state for job in stream_jobs(workspace)] == ["RUNNING"])
        yield
    finally:
        end_process(process)
        print(tail(log))


def stream_jobs(workspace: Workspace) -> list[JobRecord]:
    return workspace.jobs("paid")


def run_of(workspace: Workspace) -> str:
    """Return the id of the run that follows the stream; empty where none does."""
    newest = next(iter(stream_jobs(workspace)), None)
    is_followed = newest is not None and newest.attempts and newest.attempts[-1].state == "RUNNING"
    return (newest.attempts[-1].run_id or "") if newest is not None and is_followed else ""


def pid_of(instance: dg.DagsterInstance, run_id: str) -> int:
    found = [re.search(r"\(pid: (\d+)\)", entry.user_message) for entry in instance.all_logs(run_id)]
    return int(next(match for match in found if match)[1])


def pay(workspace: Workspace, count: int) -> None:
    """Send payments and wait until they are online."""
    source = workspace.get_stream_source("payments")
    source.ingest([payment(7 * number) for number in range(count)], wait=timedelta(seconds=300))


def paid(workspace: Workspace) -> int:
    return int(workspace.get_feature_view("paid").get_online_features({"user": "u0"}).to_dict()["count"])


@pytest.mark.slow
@pytest.mark.usefixtures("old_run")
def test_runs_are_replaced_and_no_event_is_lost(tmp_path: Path, definitions: Path, workspace: Workspace) -> None:
    pay(workspace, 3)
    (old,) = stream_jobs(workspace)
    (tmp_path / "late").touch()
    with dagster_deployment(definitions, tmp_path / "dagster", {}) as deployment, deployment.instance() as instance:
        wait_for("the old run is drained", lambda: workspace.stores.ledger.job(old.id).state == "DRAINED")
        wait_for("a run of the new code follows", lambda: bool(run_of(workspace)))
        first = run_of(workspace)
        assert stream_jobs(workspace)[0].code_version != old.code_version
        pay(workspace, 2)
        os.kill(pid_of(instance, first), signal.SIGKILL)
        wait_for("the killed run is replaced", lambda: run_of(workspace) not in ("", first))
        pay(workspace, 4)
        assert paid(workspace) == 9
        states = [attempt.state for attempt in stream_jobs(workspace)[0].attempts]
        assert states == ["ERROR", "RUNNING"]
        assert instance.get_run_by_id(old.attempts[0].run_id or "").status is dg.DagsterRunStatus.SUCCESS
