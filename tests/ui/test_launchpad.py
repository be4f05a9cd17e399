"""Each public job launched by hand from its launchpad, as a person finds it, and what becomes of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from playwright.sync_api import Page, expect

from featurekit_dagster import Workspace
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.materialization_data import MaterializationJobData
from tests.architecture.python_files import ROOT
from tests.support.dagster_processes import (
    CODE,
    DAEMON,
    LOCATION,
    WEB,
    DagsterDeployment,
    dagster_deployment,
    tail,
    wait_for,
)
from tests.ui.support.dagster_server import PATIENT
from tests.ui.support.launchpad import keep, launch
from tests.ui.support.shop import CUSTOMERS, DAY, DAYS, FIRST, open_shop

pytestmark = pytest.mark.ui

RUN_SECONDS = 900
ENDED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
OF_OTHER_TESTS = {"backfill", "overwrite"}
KINDS = {
    "refill_online": "BATCH",
    "delta_maintenance": "DELTA_MAINTENANCE",
    "feature_publish": "FEATURE_EXPORT",
    "compaction": "COMPACTION",
    "dataset_generation": "DATASET_GENERATION",
    "ingest": "INGEST",
    "fill_open_interval": "BATCH",
    "integration_test_batch": "INTEGRATION_TEST_BATCH",
    "integration_test_stream": "INTEGRATION_TEST_STREAM",
    "online_offline_consistency": "CONSISTENCY",
    "online_clean_up": "ONLINE_CLEAN_UP",
    "delete_keys": "DELETION",
}
"""What the ledger calls the jobs that the Dagster jobs carry out."""


def first_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """What each job is asked for that needs none of the others; they run beside each other."""
    return {
        "refill_online": {"view": "last_order"},
        "delta_maintenance": {"views": ["spent"]},
        "feature_publish": {"view": "spent", "start": "2024-03-02", "end": "2024-03-04"},
        "online_clean_up": {"views": ["spent"]},
        "dataset_generation": {"name": "training", "service": "checkout", "spine": str(folder / "spine.parquet")},
        "ingest": {"table": "scores", "file": str(folder / "scores.parquet")},
        "fill_open_interval": {"view": "refunded"},
        "integration_test_batch": {"views": ["last_order"]},
        "integration_test_stream": {"views": ["refunded"]},
    }


def later_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """What is asked for when the others are done."""
    return {
        "online_offline_consistency": {"views": ["last_order"]},
        "compaction": {"views": ["spent"]},
        "delete_keys": {"view": "spent", "keys_file": str(folder / "keys.parquet")},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shop")


@pytest.fixture(scope="module")
def workspace(folder: Path) -> Workspace:
    return open_shop(folder)


@pytest.fixture(scope="module")
def dagster(workspace: Workspace, folder: Path) -> Iterator[DagsterDeployment]:
    definitions = ROOT / "tests" / "ui" / "support" / "shop_definitions.py"
    places = {"SHOP_FOLDER": str(folder), **PATIENT}
    with dagster_deployment(definitions, folder / "dagster", places, CODE) as running:
        settings = running.home / "dagster.yaml"
        patient = re.sub("start_timeout_seconds: [0-9]+", f"start_timeout_seconds: {RUN_SECONDS}", settings.read_text())
        settings.write_text(patient)  # many processes are started at once here
        running.start(WEB, DAEMON)
        yield running


def launch_all(
    page: Page, dagster: DagsterDeployment, configs: Mapping[str, dict[str, Any]], pictures: Path
) -> dict[str, str]:
    """Launch jobs one after another, wait until all have succeeded, and return the ids of their runs."""
    runs = {
        job: launch(page, dagster, job, json.dumps(config), pictures / f"launchpad_{job}.png", CUSTOMERS)
        for job, config in configs.items()
    }
    with dagster.instance() as instance:

        def statuses() -> dict[str, dg.DagsterRunStatus]:
            found = {job: instance.get_run_by_id(run_id) for job, run_id in runs.items()}
            return {job: run.status for job, run in found.items() if run is not None}

        try:
            wait_for(f"{', '.join(runs)} have ended", lambda: set(statuses().values()) <= set(ENDED), RUN_SECONDS)
        except AssertionError as late:
            raise AssertionError(f"{late}; {statuses()}\n{tail(dagster.home / 'daemon.log')}") from late
        for job, status in statuses().items():
            told = "\n".join(str(entry.dagster_event or entry.user_message) for entry in instance.all_logs(runs[job]))
            assert status is dg.DagsterRunStatus.SUCCESS, f"{job}: {told}"
    return runs


def listed(workspace: Workspace) -> list[MaterializationJobData]:
    """Return the jobs that people see."""
    views = [workspace.get_feature_view(name) for name in ("spent", "last_order", "refunded")]
    others: tuple[Any, ...] = (workspace.get_feature_table("scores"), workspace.get_feature_service("checkout"))
    return [job for handle in (*views, *others) for job in handle.list_jobs()]


def assert_effects(workspace: Workspace, stats: Mapping[str, Mapping[str, int]]) -> None:
    """Assert that each job has done what it is there for."""
    last_order = workspace.repo.view("last_order")
    assert workspace.stores.coverage(last_order, "online") == IntervalSet([Interval(FIRST, FIRST + DAYS * DAY)])
    assert (stats["delta_maintenance"]["partitions_sorted"], stats["delta_maintenance"]["files_after"]) == (DAYS, DAYS)
    assert stats["feature_publish"]["rows"] > 0
    assert stats["compaction"]["laid_out_anew"] == 1
    assert stats["compaction"]["bytes_after"] < stats["compaction"]["bytes_before"]
    assert workspace.get_dataset("training").row_count == stats["dataset_generation"]["rows"] > 0
    scores = workspace.get_feature_table("scores")
    assert scores.get_online_features({"customer": CUSTOMERS[0]}).to_dict() == {"score": 2.0}
    assert stats["fill_open_interval"]["rows_online"] > 0
    for name in ("integration_test_batch", "integration_test_stream"):
        assert stats[name]["steps_passed"] > stats[name]["steps_failed"] == 0
    consistency = stats["online_offline_consistency"]
    assert consistency["compared"] > consistency["mismatched"] + consistency["missing"] + consistency["extra"] == 0
    assert stats["online_clean_up"]["removed"] > 0
    assert stats["delete_keys"]["keys_online"] == stats["delete_keys"]["datasets"] == 1
    spent = workspace.get_feature_view("spent")
    sums = [spent.get_online_features({"customer": each}).to_dict()["amount_sum_1d_1h"] for each in CUSTOMERS[1:3]]
    assert [amount is None for amount in sums] == [True, False]


def test_every_public_job_is_launched_from_its_launchpad(
    page: Page, dagster: DagsterDeployment, workspace: Workspace, folder: Path, pictures: Path
) -> None:
    names = {job.name for job in workspace.definitions().get_repository_def().get_all_jobs()}
    own = {name for name in names if not name.startswith(("materialize_", "stream_", "__"))}
    assert own == KINDS.keys() | OF_OTHER_TESTS
    first, later = first_configs(folder), later_configs(folder)
    runs = launch_all(page, dagster, first, pictures) | launch_all(page, dagster, later, pictures)

    of_run = {attempt.run_url: job for job in listed(workspace) for attempt in job.attempts}
    found = {name: of_run[f"{workspace.dagster_url}/runs/{run_id}"] for name, run_id in runs.items()}
    assert {name: job.job_type for name, job in found.items()} == KINDS
    assert {(job.state, *(attempt.state for attempt in job.attempts)) for job in found.values()} == {("SUCCESS",) * 2}
    assert_effects(workspace, {name: job.stats for name, job in found.items()})

    for name in ("dataset_generation", "integration_test_stream", "delete_keys"):
        page.goto(f"{dagster.url}/runs/{runs[name]}")
        expect(page.get_by_text(f"job {found[name].id} ({KINDS[name]}):").first).to_be_visible()
        keep(page, pictures / f"run_{name}.png", CUSTOMERS)
    page.goto(f"{dagster.url}/assets/spent?view=events")
    expect(page.get_by_text("featurekit/kind")).to_be_visible()
    keep(page, pictures / "jobs_seen_at_the_asset.png", CUSTOMERS)
    page.goto(f"{dagster.url}/locations/{LOCATION}/jobs")
    expect(page.get_by_text("online_offline_consistency").first).to_be_visible()
    keep(page, pictures / "jobs.png", CUSTOMERS)
