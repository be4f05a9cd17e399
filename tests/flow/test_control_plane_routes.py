"""Every way to start a materialization, through one running Dagster; after each, all who keep a record agree."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from featurekit_dagster import Workspace
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.orchestration.translator import UNFINISHED
from featurekit_dagster.planning.grid import floor_time
from featurekit_dagster.stores.ledger_records import JobRecord
from tests.architecture.python_files import ROOT
from tests.flow.rides import DAY, DAYS, RIDERS, Rides
from tests.support.agreement import assert_agreement
from tests.support.dagster_processes import DAEMON, DagsterDeployment, dagster_deployment, wait_for

pytestmark = pytest.mark.slow

DEFINITIONS = ROOT / "tests" / "flow" / "rides_definitions.py"
OF_FILE = ("-f", str(DEFINITIONS))
TERMINATE = "mutation($runs: [String!]!) { terminateRuns(runIds: $runs) { __typename } }"
VIEW, TRIGGER = "featurekit/view", "featurekit/trigger"
PATIENCE = timedelta(minutes=10)


@pytest.fixture(scope="module")
def rides(tmp_path_factory: pytest.TempPathFactory) -> Rides:
    """Rides that end two days ago, so that partitions exist beyond the clock, which is moved by hand."""
    first = floor_time(datetime.now(UTC), DAY) - (DAYS + 2) * DAY
    return Rides.make(tmp_path_factory.mktemp("rides"), first, fixed=False)


@pytest.fixture(scope="module")
def dagster(rides: Rides, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DagsterDeployment]:
    places = {"RIDES_FOLDER": str(rides.folder)}
    with dagster_deployment(DEFINITIONS, tmp_path_factory.mktemp("dagster"), places) as running:
        yield running


@pytest.fixture
def workspace(rides: Rides, dagster: DagsterDeployment, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("DAGSTER_HOME", str(dagster.home))
    return rides.workspace()


@pytest.fixture
def instance(dagster: DagsterDeployment) -> Iterator[dg.DagsterInstance]:
    with dagster.instance() as opened:
        wait_until_idle(opened)  # what another test has left is not this one's
        yield opened


def days(rides: Rides, first: int, end: int) -> Interval:
    return Interval(rides.day(first), rides.day(end))


def keys(rides: Rides, first: int, end: int) -> str:
    """Return how commands are given the range of partitions `[first, end)`."""
    return f"{rides.key(first)}...{rides.key(end - 1)}"


def config_file(folder: Path, interval: Interval, view: str = "last_ride") -> str:
    file = folder / "config.yaml"
    file.write_text(f"{{view: {view}, start: '{interval.start:%Y-%m-%d}', end: '{interval.end:%Y-%m-%d}'}}")
    return str(file)


def jobs_in(workspace: Workspace, interval: Interval, view: str = "last_ride") -> list[JobRecord]:
    """Return the jobs of a view inside an interval, the oldest range first."""
    found = [job for job in workspace.jobs(view) if IntervalSet([interval]).covers(job.interval)]
    return sorted(found, key=lambda job: job.interval)


def wait_until_idle(instance: dg.DagsterInstance) -> None:
    """Wait until no run goes on or waits."""
    unfinished = dg.RunsFilter(statuses=list(UNFINISHED))
    wait_for("all runs have ended", lambda: instance.get_runs_count(unfinished) == 0)


def assert_made(workspace: Workspace, instance: dg.DagsterInstance, interval: Interval, trigger: str) -> None:
    """Assert that each day of the interval has one job that succeeded, and that all records of the view agree."""
    made = jobs_in(workspace, interval)
    assert [job.interval for job in made] == list(interval.split_on_grid(DAY))
    assert {(job.state, job.trigger) for job in made} == {("SUCCESS", trigger)}
    assert assert_agreement(workspace, "last_ride", instance, len(RIDERS)).covers(interval)


def test_dagster_job_execute_backfill(
    rides: Rides, dagster: DagsterDeployment, workspace: Workspace, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    interval = days(rides, 0, 4)
    dagster.run("dagster", "job", "execute", *OF_FILE, "-j", "backfill", "-c", config_file(tmp_path, interval))
    assert_made(workspace, instance, interval, "backfill")


def test_dagster_job_launch_backfill(
    rides: Rides, dagster: DagsterDeployment, workspace: Workspace, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    interval = days(rides, 10, 14)
    config = config_file(tmp_path, interval)
    dagster.run("dagster", "job", "launch", "-w", dagster.workspace_file, "-j", "backfill", "-c", config)
    wait_until_idle(instance)
    assert_made(workspace, instance, interval, "backfill")


def test_dagster_asset_materialize_with_a_range(
    rides: Rides, dagster: DagsterDeployment, workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    chosen = ("--select", "key:last_ride", "--partition-range", keys(rides, 20, 24))
    dagster.run("dagster", "asset", "materialize", *OF_FILE, *chosen)
    assert_made(workspace, instance, days(rides, 20, 24), "dagster_ui")


def test_dg_launch_with_a_range(
    rides: Rides, dagster: DagsterDeployment, workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    chosen = ("--assets", "key:last_ride", "--partition-range", keys(rides, 30, 34))
    dagster.run("dg", "launch", *OF_FILE, *chosen)
    assert_made(workspace, instance, days(rides, 30, 34), "dagster_ui")
    assert instance.get_runs(dg.RunsFilter(tags={VIEW: "last_ride", TRIGGER: "dagster_ui"}))


def test_dagster_job_backfill_is_one_run_per_partition(
    rides: Rides, dagster: DagsterDeployment, workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    interval = days(rides, 40, 45)
    chosen = ("-j", "materialize_last_ride", "--from", rides.key(40), "--to", rides.key(44), "--noprompt")
    dagster.run("dagster", "job", "backfill", "-w", dagster.workspace_file, *chosen)
    wait_for("a job for each day", lambda: len(jobs_in(workspace, interval)) == 5)
    wait_until_idle(instance)
    assert_made(workspace, instance, interval, "dagster_ui")
    attempts = [job.attempts for job in jobs_in(workspace, interval)]
    assert len({attempt.run_id for (attempt,) in attempts}) == 5


def test_job_triggered_by_the_sdk_is_started_by_the_daemon(
    rides: Rides, workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    view = workspace.get_feature_view("distance")
    first, end = rides.day(50), rides.day(54)
    offline = view.trigger_materialization_job(first, end, online=False, offline=True)
    assert view.wait_for_materialization_job(offline, timeout=PATIENCE).state == "SUCCESS"
    wait_until_idle(instance)
    assert not assert_agreement(workspace, "distance", instance, len(RIDERS)).covers(Interval(first, end))
    online = view.trigger_materialization_job(first, end, online=True, offline=False)
    assert view.wait_for_materialization_job(online, timeout=PATIENCE).state == "SUCCESS"
    wait_until_idle(instance)
    assert assert_agreement(workspace, "distance", instance, len(RIDERS)).covers(Interval(first, end))


def test_runs_of_one_view_wait_for_each_other_in_the_queue(
    rides: Rides, workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    view = workspace.get_feature_view("last_ride")
    with rides.held("last_ride"):
        asked = [
            view.trigger_materialization_job(rides.day(n), rides.day(n + 1), online=True, offline=True)
            for n in (60, 65)
        ]
        wait_for("both runs are asked for", lambda: len(runs_of(workspace, instance, asked)) == 2)
        wait_for("one of them runs", lambda: "STARTED" in statuses(workspace, instance, asked))
        assert sorted(statuses(workspace, instance, asked)) == ["QUEUED", "STARTED"]
    for job_id in asked:
        assert view.wait_for_materialization_job(job_id, timeout=PATIENCE).state == "SUCCESS"
    wait_until_idle(instance)
    records = runs_of(workspace, instance, asked)
    first, second = sorted((record.start_time or 0, record.end_time or 0) for record in records)
    assert first[1] <= second[0]
    assert_agreement(workspace, "last_ride", instance, len(RIDERS))


def runs_of(workspace: Workspace, instance: dg.DagsterInstance, job_ids: list[str]) -> list[dg.RunRecord]:
    """Return the runs that were asked for to carry out waiting jobs."""
    batches = [workspace.stores.ledger.job(job_id).batch or "" for job_id in job_ids]
    return list(instance.get_run_records(dg.RunsFilter(tags={"featurekit/batch": batches})))


def statuses(workspace: Workspace, instance: dg.DagsterInstance, job_ids: list[str]) -> list[str]:
    return [record.dagster_run.status.value for record in runs_of(workspace, instance, job_ids)]


def test_run_terminated_in_dagster_cancels_its_jobs_and_nothing_else(
    rides: Rides, dagster: DagsterDeployment, workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    interval = days(rides, 70, 73)
    with rides.held("last_ride"):
        queries = rides.queries("last_ride")
        asked = workspace.stores.ledger.queue(
            workspace=workspace.name,
            view="last_ride",
            intervals=list(interval.split_on_grid(DAY)),
            online=True,
            offline=True,
            trigger="manual",
        )
        wait_for("the first job reads", lambda: rides.queries("last_ride") > queries)
        (record,) = runs_of(workspace, instance, [asked[0].id])
        dagster.graphql(TERMINATE, runs=[record.dagster_run.run_id])
        wait_until_idle(instance)
    assert statuses(workspace, instance, [asked[0].id]) == ["CANCELED"]
    wait_for(
        "all jobs are cancelled", lambda: {j.state for j in jobs_in(workspace, interval)} == {"MANUALLY_CANCELLED"}
    )
    covered = assert_agreement(workspace, "last_ride", instance, len(RIDERS))
    assert not covered.intersect([interval])


def covered_until(workspace: Workspace, rides: Rides) -> datetime | None:
    """Return the end of what both stores have of the pings, which begins with the first one."""
    ledger = workspace.stores.ledger
    both = [list(ledger.coverage(workspace.name, "last_ping", store)) for store in ("offline", "online")]
    assert both[0] == both[1] or not all(both)
    return both[0][0].end if both[0] and both[0] == both[1] and both[0][0].start == rides.minute(0) else None


def advance(rides: Rides, minutes: int) -> datetime:
    now = rides.now() + timedelta(minutes=minutes)
    rides.set_clock(now)
    return now


def test_tick_of_the_schedule_fills_what_is_complete(
    rides: Rides, workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    now = advance(rides, 5)
    wait_for("the pings are there", lambda: covered_until(workspace, rides) == now)
    wait_until_idle(instance)
    assert list(assert_agreement(workspace, "last_ping", instance, len(RIDERS))) == [Interval(rides.minute(0), now)]
    assert instance.get_runs(dg.RunsFilter(tags={VIEW: "last_ping", TRIGGER: "schedule"}))


def test_after_a_day_without_a_daemon_everything_is_made_good(
    rides: Rides, dagster: DagsterDeployment, workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    queries = rides.queries("last_ping")
    with rides.held("last_ping"):
        advance(rides, 3)
        wait_for("a run reads pings", lambda: rides.queries("last_ping") > queries)
        dagster.end(DAEMON)
        os.kill(rides.query_pids("last_ping")[-1], signal.SIGKILL)
    view = workspace.get_feature_view("last_ride")
    waiting = view.trigger_materialization_job(rides.day(80), rides.day(82), online=True, offline=True)
    now = advance(rides, 60)
    assert view.get_materialization_job(waiting).attempts == ()

    dagster.start(DAEMON)
    wait_for("the waiting job is done", lambda: view.get_materialization_job(waiting).state == "SUCCESS")
    wait_for("the pings are there", lambda: covered_until(workspace, rides) == now)
    wait_until_idle(instance)
    assert assert_agreement(workspace, "last_ride", instance, len(RIDERS)).covers(days(rides, 80, 82))
    assert list(assert_agreement(workspace, "last_ping", instance, len(RIDERS))) == [Interval(rides.minute(0), now)]
    attempts = [attempt for job in workspace.jobs("last_ping") for attempt in job.attempts if attempt.state == "ERROR"]
    assert [attempt.reason for attempt in attempts] == ["its process ended"]
