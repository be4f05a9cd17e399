"""Backfills and overwrites started by hand in Dagster's pages, with a daemon that carries them out."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from playwright.sync_api import Page, expect

from featurekit_dagster import Workspace
from featurekit_dagster.intervals import Interval
from tests.architecture.python_files import ROOT
from tests.flow.rides import DAYS, RIDERS, Rides
from tests.support.agreement import assert_agreement
from tests.support.dagster_processes import DagsterDeployment, dagster_deployment
from tests.ui.support.dagster_server import PATIENT
from tests.ui.support.driven_browser import SECONDS
from tests.ui.support.launchpad import keep as keep_picture
from tests.ui.support.launchpad import launch, write_config

pytestmark = pytest.mark.ui

RUN_TIME = 600 * SECONDS


@pytest.fixture(scope="module")
def rides(tmp_path_factory: pytest.TempPathFactory) -> Rides:
    return Rides.make(tmp_path_factory.mktemp("rides"), datetime(2023, 1, 1, tzinfo=UTC), fixed=True)


@pytest.fixture(scope="module")
def dagster(rides: Rides, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DagsterDeployment]:
    definitions = ROOT / "tests" / "flow" / "rides_definitions.py"
    places = {"RIDES_FOLDER": str(rides.folder), **PATIENT}
    with dagster_deployment(definitions, tmp_path_factory.mktemp("dagster"), places) as running:
        yield running


@pytest.fixture
def workspace(rides: Rides) -> Workspace:
    return rides.workspace()


@pytest.fixture
def instance(dagster: DagsterDeployment) -> Iterator[dg.DagsterInstance]:
    with dagster.instance() as opened:
        yield opened


def keep(page: Page, picture: Path) -> None:
    """Keep a picture of what the page shows, which must be no join key."""
    keep_picture(page, picture, RIDERS)


def carry_out(page: Page, dagster: DagsterDeployment, job: str, config: str, picture: Path) -> None:
    """Launch a job from its launchpad, and wait on the run's page for its success."""
    launch(page, dagster, job, config, picture.with_name(f"{picture.stem}_launchpad.png"), RIDERS)
    expect(page.get_by_text("RUN_SUCCESS")).to_be_visible(timeout=RUN_TIME)
    keep(page, picture)


def test_all_missing_days_chosen_in_the_partition_dialog_are_one_run_with_a_job_for_each(
    page: Page,
    dagster: DagsterDeployment,
    rides: Rides,
    workspace: Workspace,
    instance: dg.DagsterInstance,
    pictures: Path,
) -> None:
    page.goto(f"{dagster.url}/assets/last_ride?view=partitions")
    expect(page.get_by_text("Missing (120)")).to_be_visible()
    page.get_by_role("button", name="Materialize…").click()
    page.get_by_role("button", name="Missing", exact=True).click()
    expect(page.get_by_text("120 partitions", exact=True)).to_be_visible()
    expect(page.get_by_text("Backfills all partitions in a single run.")).to_be_visible()
    keep(page, pictures / "backfill_dialog.png")
    page.get_by_role("button", name="Launch backfill").click()
    expect(page.get_by_text("Materialized (120)")).to_be_visible(timeout=RUN_TIME)
    expect(page.get_by_text("Missing (0)")).to_be_visible()
    keep(page, pictures / "backfill_partitions.png")
    page.get_by_text(rides.key(DAYS - 2), exact=True).locator("visible=true").first.click()
    expect(page.get_by_text("featurekit/job_trigger")).to_be_visible()
    keep(page, pictures / "backfill_partition.png")

    (run,) = instance.get_runs(dg.RunsFilter(tags={"featurekit/view": "last_ride"}))
    page.get_by_role("link", name=run.run_id[:8]).first.click()
    expect(page.get_by_text("STEP_SUCCESS")).to_be_visible()
    expect(page.get_by_text("Success", exact=True)).to_be_visible()
    keep(page, pictures / "backfill_run.png")

    jobs = workspace.jobs("last_ride")
    assert {job.state for job in jobs} == {"SUCCESS"}
    assert [job.interval for job in reversed(jobs)] == [Interval(rides.day(n), rides.day(n + 1)) for n in range(DAYS)]
    assert {attempt.run_id for job in jobs for attempt in job.attempts} == {run.run_id}
    assert rides.queries("last_ride") == DAYS
    whole = Interval(rides.day(0), rides.day(DAYS))
    assert list(assert_agreement(workspace, "last_ride", instance, len(RIDERS))) == [whole]


def test_backfill_and_overwrite_are_launched_from_the_launchpad(
    page: Page,
    dagster: DagsterDeployment,
    rides: Rides,
    workspace: Workspace,
    instance: dg.DagsterInstance,
    pictures: Path,
) -> None:
    days = "view: distance\nstart: '{}'\nend: '{}'\n"
    carry_out(page, dagster, "backfill", days.format("2023-01-02", "2023-01-07"), pictures / "run_backfill.png")
    carry_out(page, dagster, "overwrite", days.format("2023-01-03", "2023-01-05"), pictures / "run_overwrite.png")
    overwritten, filled = workspace.jobs("distance")
    assert [(job.interval, job.overwrite, job.state) for job in (filled, overwritten)] == [
        (Interval(rides.day(1), rides.day(6)), False, "SUCCESS"),
        (Interval(rides.day(2), rides.day(4)), True, "SUCCESS"),
    ]
    covered = assert_agreement(workspace, "distance", instance, len(RIDERS))
    assert list(covered) == [Interval(rides.day(1), rides.day(6))]

    page.goto(f"{dagster.url}/assets/distance?view=partitions")
    expect(page.get_by_text("Materialized (5)")).to_be_visible()
    page.get_by_placeholder("Filter by name…").fill(rides.key(3))
    page.get_by_text(rides.key(3), exact=True).locator("visible=true").first.click()
    expect(page.get_by_text("featurekit/job_rows_replaced")).to_be_visible()
    expect(page.get_by_text("featurekit/overwrite")).to_be_visible()
    keep(page, pictures / "overwrite_partition.png")


def test_what_is_typed_wrongly_into_the_launchpad_is_said_before_the_launch(
    page: Page, dagster: DagsterDeployment, pictures: Path
) -> None:
    write_config(page, dagster, "overwrite", "view: distance\nfrom: '2023-01-02'\n")
    for words in ('unexpected config entry "from"', "Missing required config entries ['end', 'start']"):
        expect(page.get_by_text(words)).to_be_visible()
    expect(page.get_by_role("button", name="Launch Run")).to_be_disabled()
    keep(page, pictures / "launchpad_errors.png")
