"""Chores that were asked for in Python or launched in Dagster, carried out by a daemon and its runs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest

from featurekit_dagster import Workspace
from featurekit_dagster.orchestration.chores import JOB
from featurekit_dagster.planning.grid import floor_time
from tests.architecture.python_files import ROOT
from tests.flow.rides import DAY, DAYS, RIDERS, Rides
from tests.support.dagster_processes import DagsterDeployment, dagster_deployment, wait_for

pytestmark = pytest.mark.slow

DEFINITIONS = ROOT / "tests" / "flow" / "rides_definitions.py"


@pytest.fixture
def rides(tmp_path: Path) -> Rides:
    first = floor_time(datetime.now(UTC), DAY) - (DAYS + 2) * DAY
    return Rides.make(tmp_path / "rides", first, fixed=False)


@pytest.fixture
def dagster(rides: Rides, tmp_path: Path) -> Iterator[DagsterDeployment]:
    with dagster_deployment(DEFINITIONS, tmp_path / "dagster", {"RIDES_FOLDER": str(rides.folder)}) as running:
        yield running


@pytest.fixture
def workspace(rides: Rides, dagster: DagsterDeployment, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("DAGSTER_HOME", str(dagster.home))
    return rides.workspace()


def test_a_deletion_and_a_dataset_are_started_by_the_sensor_and_a_clean_up_is_launched(
    rides: Rides, dagster: DagsterDeployment, workspace: Workspace, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"{{view: last_ride, start: '{rides.day(0):%Y-%m-%d}', end: '{rides.day(6):%Y-%m-%d}'}}")
    dagster.run("dagster", "job", "execute", "-f", str(DEFINITIONS), "-j", "backfill", "-c", str(config))
    view, ledger = workspace.get_feature_view("last_ride"), workspace.stores.ledger
    times = [rides.day(number) + timedelta(hours=1) for number in range(1, 5)]
    spine = pd.DataFrame({"rider_id": [RIDERS[0], RIDERS[1]] * 4, "at": sorted(times * 2)})
    dataset = view.create_dataset("rides_so_far", spine, timestamp_key="at")
    (deletion,) = view.delete_keys(pd.DataFrame({"rider_id": [RIDERS[0]]}))
    dagster.run("dagster", "job", "launch", "-w", dagster.workspace_file, "-j", "online_clean_up")

    wait_for("both have ended", lambda: not any(job.request and job.state == "RUNNING" for job in workspace.jobs()))
    succeeded = dg.RunsFilter(job_name="online_clean_up", statuses=[dg.DagsterRunStatus.SUCCESS])
    with dagster.instance() as instance:
        wait_for("what was launched has succeeded", lambda: instance.get_runs_count(succeeded) == 1)
        for job_id, name in ((dataset.id, "dataset_generation"), (deletion, "delete_keys")):
            of_job = dg.RunsFilter(tags={JOB: job_id})
            # a job succeeds in the ledger a moment before its run has ended in Dagster
            wait_for(f"the run of {name} has ended", lambda of=of_job: instance.get_runs(of)[0].is_finished)
            (run,) = instance.get_runs(of_job)
            assert (run.job_name, run.status) == (name, dg.DagsterRunStatus.SUCCESS)
            assert [attempt.run_id for attempt in ledger.job(job_id).attempts] == [run.run_id]
            assert not any(rider in str(run.run_config) + str(run.tags) for rider in RIDERS)
    assert dataset.get_dataset() is not None
    found = view.get_features_for_events(spine, timestamp_key="at").to_pandas()
    assert found.loc[found["rider_id"] == RIDERS[0], "last_ride__km"].isna().all()
    assert found.loc[found["rider_id"] == RIDERS[1], "last_ride__km"].notna().any()
