"""A supervised stream in Dagster's pages: how far it is, a run that was killed, and one that newer code replaced."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from playwright.sync_api import Page, expect

from featurekit_dagster import Workspace
from tests.support.dagster_processes import (
    LOCATION,
    DagsterDeployment,
    dagster_deployment,
    end_process,
    script,
    start_process,
    tail,
    wait_for,
)
from tests.support.push import log_of, payment, payments_workspace
from tests.ui.support.dagster_server import PATIENT

pytestmark = pytest.mark.ui

DEFINITIONS = """
from datetime import timedelta
from pathlib import Path

from tests.support.push import payments_workspace

folder = Path(__file__).parent
late = timedelta(minutes=5) if (folder / "late").exists() else None
workspace = payments_workspace(folder / "data", late=late, expected_feature_freshness="2h")
defs = workspace.definitions()
"""
USER = "secret-user-anna"
EVENTS = 600_000  # more than the first second brings


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return payments_workspace(tmp_path / "data", expected_feature_freshness="2h")


@pytest.fixture
def definitions(tmp_path: Path) -> Path:
    """The file of the code location; its code is newer once there is a file `late` beside it."""
    file = tmp_path / "streamed_payments.py"
    file.write_text(DEFINITIONS)
    return file


@pytest.fixture
def old_run(tmp_path: Path, definitions: Path, workspace: Workspace) -> Iterator[str]:
    """A run that follows the stream with the code as it is now, and outlives a deployment of newer code; its id."""
    pay(workspace, EVENTS)
    (tmp_path / "dagster").mkdir()
    command = [script("dagster"), "job", "execute", "-f", str(definitions), "-j", "stream_paid"]
    log, environment = tmp_path / "old_run.log", {"DAGSTER_HOME": str(tmp_path / "dagster")}
    process = start_process(command, environment, log)
    try:
        wait_for("the stream is followed", lambda: bool(run_of(workspace)))
        yield run_of(workspace)
    finally:
        end_process(process)
        print(tail(log))


@pytest.fixture
def dagster(tmp_path: Path, definitions: Path, old_run: str) -> Iterator[DagsterDeployment]:
    """A deployment of newer code."""
    (tmp_path / "late").touch()
    with dagster_deployment(definitions, tmp_path / "dagster", PATIENT) as running:
        yield running


def pay(workspace: Workspace, count: int) -> None:
    log_of(workspace).append([json.dumps(payment(7, user=USER)).encode()] * count)


def paid(workspace: Workspace) -> int:
    return workspace.get_feature_view("paid").get_online_features({"user": USER}).to_dict()["count"] or 0


def run_of(workspace: Workspace) -> str:
    """Return the id of the run that follows the stream; empty where none does."""
    newest = next(iter(workspace.jobs("paid")), None)
    attempt = newest.attempts[-1] if newest is not None and newest.attempts else None
    return (attempt.run_id or "") if attempt is not None and attempt.state == "RUNNING" else ""


def pid_of(instance: dg.DagsterInstance, run_id: str) -> int:
    found = [re.search(r"\(pid: (\d+)\)", entry.user_message) for entry in instance.all_logs(run_id)]
    return int(next(match for match in found if match)[1])


def lags(instance: dg.DagsterInstance) -> list[int]:
    events = instance.fetch_observations(dg.AssetKey("paid"), limit=20).records
    return [e.asset_observation.metadata["featurekit/lag"].value for e in events if e.asset_observation is not None]


def keep(page: Page, picture: Path) -> None:
    """Keep a picture of what the page shows, which must be no join key."""
    picture.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=picture)
    assert USER not in page.inner_text("body")


def test_a_stream_is_seen_to_be_followed_whatever_happens_to_its_runs(
    page: Page, dagster: DagsterDeployment, old_run: str, workspace: Workspace, pictures: Path
) -> None:
    with dagster.instance() as instance:
        assert any(lag > 0 for lag in lags(instance))
        wait_for("newer code follows", lambda: run_of(workspace) not in ("", old_run))
        killed = run_of(workspace)
        wait_for("the old run has ended", lambda: instance.get_run_by_id(old_run).is_finished)
        assert instance.get_run_by_id(old_run).status is dg.DagsterRunStatus.SUCCESS
        os.kill(pid_of(instance, killed), signal.SIGKILL)
        pay(workspace, 1_000)
        wait_for("the killed run is replaced", lambda: run_of(workspace) not in ("", killed))
        newest = run_of(workspace)
        wait_for("nothing is lost", lambda: paid(workspace) == EVENTS + 1_000)
        wait_for("the newest run has said how far it is", lambda: 0 in lags(instance)[:1])

    page.goto(f"{dagster.url}/runs")
    for run in (old_run, killed, newest):
        expect(page.get_by_text(run[:8]).first).to_be_visible()
    for status in ("Success", "Started"):
        expect(page.get_by_text(status, exact=True).first).to_be_visible()
    keep(page, pictures / "stream_runs.png")
    page.goto(f"{dagster.url}/locations/{LOCATION}/sensors/supervise_paid")
    expect(page.get_by_text("Keeps the stream of paid followed").first).to_be_visible()
    keep(page, pictures / "stream_sensor.png")
    page.goto(f"{dagster.url}/assets/paid?view=events")
    for name in ("lag", "events", "freshness_seconds", "watermark"):
        expect(page.get_by_text(f"featurekit/{name}", exact=True).first).to_be_visible()
    keep(page, pictures / "stream_progress.png")
