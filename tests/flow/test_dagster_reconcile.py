"""Dagster's partition status follows the ledger: what is covered and shown otherwise is reported again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from featurekit_dagster import Workspace
from featurekit_dagster.intervals import Interval
from featurekit_dagster.orchestration.reconcile import failed_partitions, reconcile
from tests.flow.payments import RANGE_END, RANGE_START, day, key, payments_workspace, statuses

DAYS, VIEW = 8, "spending"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return payments_workspace(tmp_path / "data", now=day(DAYS), days=DAYS)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as opened:
        yield opened


def cover(workspace: Workspace, first: int, end: int, *, online: bool = True) -> None:
    """Let the ledger know of a success that Dagster was not told about."""
    ledger = workspace.stores.ledger
    facts = {"workspace": workspace.name, "view": VIEW, "online": online, "offline": True, "trigger": "manual"}
    ledger.succeed(ledger.claim(interval=Interval(day(first), day(end)), **facts).id, stats={})


def fail_in_dagster(workspace: Workspace, instance: dg.DagsterInstance, first: int, end: int) -> None:
    """Let a run of days `[first, end)` fail as one that was killed does: it says nothing about its partitions."""
    spec = dg.AssetSpec(VIEW, partitions_def=asset_of(workspace).partitions_def)

    def killed() -> None:
        raise RuntimeError("killed")

    policy = {"backfill_policy": dg.BackfillPolicy.single_run()}
    asset = dg.multi_asset(specs=[spec], name="killed", **policy)(killed)
    tags = {RANGE_START: key(first), RANGE_END: key(end - 1)}
    assert not dg.materialize([asset], instance=instance, tags=tags, raise_on_error=False).success


def start_in_dagster(workspace: Workspace, instance: dg.DagsterInstance, first: int, end: int) -> None:
    """Let a run of days `[first, end)` be on its way in Dagster."""
    job = workspace.definitions().resolve_job_def(f"materialize_{VIEW}")
    tags = {RANGE_START: key(first), RANGE_END: key(end - 1)}
    instance.create_run_for_job(job, tags=tags)


def asset_of(workspace: Workspace) -> dg.AssetsDefinition:
    return workspace.definitions().resolve_assets_def(VIEW)


def reconciled(workspace: Workspace, instance: dg.DagsterInstance, **most: int) -> int:
    return reconcile(workspace.repo.view(VIEW), asset_of(workspace), workspace.stores, instance, **most)


def shown(workspace: Workspace, instance: dg.DagsterInstance) -> str:
    return "".join(status or "-" for status in statuses(workspace, VIEW, instance, DAYS))


def test_covered_partitions_that_are_not_shown_are_reported_once(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    assert reconciled(workspace, instance) == 0
    cover(workspace, 1, 4)
    cover(workspace, 6, 7)
    assert reconciled(workspace, instance) == 4
    assert shown(workspace, instance) == "-MMM--M-"
    assert reconciled(workspace, instance) == 0


def test_at_most_as_many_as_given_are_reported_and_the_rest_next_time(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    cover(workspace, 0, 5)
    assert [reconciled(workspace, instance, most=2) for _ in range(4)] == [2, 2, 1, 0]
    assert shown(workspace, instance) == "MMMMM---"


def test_what_one_of_two_stores_lacks_is_not_reported(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    cover(workspace, 0, 3, online=False)
    assert reconciled(workspace, instance) == 0
    assert shown(workspace, instance) == "-" * DAYS


def test_covered_partitions_of_a_run_that_was_killed_are_reported_and_others_stay_failed(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    cover(workspace, 0, 4)
    reconciled(workspace, instance)
    fail_in_dagster(workspace, instance, 2, 6)
    assert shown(workspace, instance) == "MMFFFF--"
    assert failed_partitions(asset_of(workspace), instance) == {key(n) for n in range(2, 6)}
    assert reconciled(workspace, instance) == 2
    assert shown(workspace, instance) == "MMMMFF--"
    assert reconciled(workspace, instance) == 0


def test_partitions_of_a_run_on_its_way_are_left_to_it(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    cover(workspace, 0, 4)
    start_in_dagster(workspace, instance, 2, 6)
    assert shown(workspace, instance) == "--IIII--"
    assert reconciled(workspace, instance) == 2
    assert shown(workspace, instance) == "MMIIII--"


def test_failed_partitions_that_a_new_run_carries_are_left_to_it(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    cover(workspace, 0, 4)
    reconciled(workspace, instance)
    fail_in_dagster(workspace, instance, 0, 4)
    start_in_dagster(workspace, instance, 1, 3)
    assert shown(workspace, instance) == "FIIF----"
    assert reconciled(workspace, instance) == 2
    assert shown(workspace, instance) == "MIIM----"
