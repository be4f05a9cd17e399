"""Dagster's runs and events in PostgreSQL, with the settings file that the project ships for that."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from featurekit_dagster import Workspace
from featurekit_dagster.intervals import Interval
from featurekit_dagster.orchestration.reconcile import reconcile
from featurekit_dagster.orchestration.run import materialize_in_process, open_instance
from tests.flow.payments import break_days, day, key, keys, payments_workspace, run_asset, statuses
from tests.support.postgres import new_database

DAYS = 6


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return payments_workspace(tmp_path / "data", now=day(DAYS), days=DAYS)


@pytest.fixture
def instance(
    workspace: Workspace,
    tmp_path: Path,
    postgres_url: str,
    project_root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster").mkdir()
    shutil.copy(project_root / "dagster.postgres.yaml", tmp_path / "dagster" / "dagster.yaml")
    url = new_database(postgres_url).replace("postgresql://", "postgresql+psycopg2://")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", url)
    with open_instance(workspace) as opened:
        yield opened


def test_ranged_run_shows_its_partitions_from_postgresql(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    (plan,) = workspace.plan(["spending"])
    result = materialize_in_process(workspace, plan.runs[0], instance)
    assert result.success
    assert instance.get_materialized_partitions(dg.AssetKey("spending")) == set(keys(0, DAYS))
    assert statuses(workspace, "spending", instance, DAYS + 1) == ["M"] * DAYS + [None]
    (run,) = instance.get_runs(dg.RunsFilter(tags={"featurekit/view": "spending"}))
    assert (run.run_id, run.tags["dagster/asset_partition_range_end"]) == (result.run_id, key(DAYS - 1))
    storages = (instance.event_log_storage, instance.run_storage, instance.schedule_storage)
    assert {type(storage).__module__.partition(".")[0] for storage in storages} == {"dagster_postgres"}
    assert list((Path(instance.root_directory) / "history").glob("**/*.db")) == []


def test_failed_interval_is_red_and_what_the_ledger_covers_is_reported_again(
    workspace: Workspace, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    break_days(tmp_path / "data", [2])
    assert not run_asset(workspace, "last_payment", 0, DAYS, instance).success
    assert statuses(workspace, "last_payment", instance, DAYS) == ["M", "M", "F", "M", "M", "M"]
    ledger, view = workspace.stores.ledger, workspace.repo.view("last_payment")
    facts = {"workspace": workspace.name, "view": view.name, "online": False, "offline": True, "trigger": "manual"}
    for job in ledger.jobs(workspace.name, view.name):
        if job.next_attempt_at is not None:
            ledger.cancel(job.id)
    ledger.succeed(ledger.claim(interval=Interval(day(2), day(3)), **facts).id, stats={})
    asset = workspace.definitions().resolve_assets_def(view.name)
    assert reconcile(view, asset, workspace.stores, instance) == 1
    assert statuses(workspace, "last_payment", instance, DAYS) == ["M"] * DAYS
    assert reconcile(view, asset, workspace.stores, instance) == 0
