"""Removing generations and views: what goes, what stays, and that a killed removal is ended by the next."""

from __future__ import annotations

import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from featurekit_dagster.errors import DeletionNotRetried, LeaseHeld
from featurekit_dagster.execution.removal import (
    DROPPED_OFFLINE,
    DROPPED_ONLINE,
    RECORDED,
    remove_generation,
    remove_view,
)
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.planning.generations import StoredShape
from featurekit_dagster.planning.planner import plan_removed
from featurekit_dagster.sdk import Workspace
from tests.conftest import ROOT
from tests.unit.changed_shop import WHOLE, fill
from tests.unit.cli_shop import DAY, NOW, shop_workspace, write_purchases

NO_WAIT = timedelta(0)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a shop of which two views are materialized."""
    folder = tmp_path_factory.mktemp("filled")
    write_purchases(folder / "purchases.parquet")
    workspace = shop_workspace(folder)
    for name in ("spend", "last_purchase"):
        fill(workspace, name)
    workspace.stores.online.close()
    return folder


@pytest.fixture
def shop(filled: Path, tmp_path: Path) -> Workspace:
    """A copy of the shop, of the test's own."""
    shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    return shop_workspace(tmp_path)


def is_removed(workspace: Workspace, name: str) -> bool:
    """Tell whether nothing is stored or known of a view."""
    stores = workspace.stores
    return (
        not (workspace.home / "online" / "shop" / name).exists()
        and not (workspace.home / "lake" / "shop" / "offline" / name).exists()
        and stores.ledger.generations("shop", name) == ()
        and name not in stores.ledger.known_views("shop")
    )


def test_a_removed_view_leaves_nothing_but_its_jobs(shop: Workspace) -> None:
    before = [job.id for job in shop.jobs("spend")]
    assert [removed.view for removed in plan_removed(shop.stores.ledger.snapshot("shop", {}))] == [
        "last_purchase",
        "spend",
    ]
    (job,) = remove_view("spend", shop.stores)
    assert (job.kind, job.state, job.interval, job.stats) == ("DELETION", "SUCCESS", WHOLE, {"rows_removed": 20})
    assert [each.id for each in shop.jobs("spend")] == [job.id, *before]
    assert is_removed(shop, "spend")
    assert not is_removed(shop, "last_purchase")
    assert remove_view("spend", shop.stores) == ()


def test_a_view_that_comes_back_under_the_name_of_a_removed_one_begins_anew(shop: Workspace) -> None:
    remove_view("spend", shop.stores)
    view = shop.repo.view("spend")
    assert shop.stores.ledger.open_generation("shop", "spend", StoredShape.of(view)) == 1
    assert shop.stores.coverage(view, "offline") == IntervalSet()
    fill(shop, "spend")
    values = shop.get_feature_view("spend").get_online_features({"user_id": 7}).to_dict()
    assert values["sum_3d"] == 80.0 + 90.0 + 100.0


def test_a_removed_generation_leaves_the_others_as_they_are(shop: Workspace) -> None:
    stores, view = shop.stores, shop.repo.view("spend")
    assert stores.ledger.rebuild("shop", "spend", StoredShape.of(view)) == 2
    job = remove_generation("spend", 2, stores)
    assert job is None
    assert [record.generation for record in stores.ledger.generations("shop", "spend")] == [1]
    assert stores.ledger.coverage("shop", "spend", "online") == IntervalSet([WHOLE])
    assert stores.offline.row_count("spend", 1) == 20


def test_jobs_that_wait_are_drained_and_no_other_view_is_touched(shop: Workspace) -> None:
    ledger, later = shop.stores.ledger, Interval(NOW, NOW + DAY)
    waiting = [
        ledger.queue(workspace="shop", view=name, intervals=[later], online=True, offline=True, trigger="manual")[0]
        for name in ("spend", "last_purchase")
    ]
    remove_view("spend", shop.stores)
    assert [ledger.job(job.id).state for job in waiting] == ["DRAINED", "RUNNING"]
    assert is_removed(shop, "spend")


def test_nothing_is_removed_while_a_job_writes(shop: Workspace) -> None:
    with (
        shop.stores.ledger.lease("batch:shop/spend", holder="somebody"),
        pytest.raises(LeaseHeld),
    ):
        remove_view("spend", shop.stores, wait=NO_WAIT)
    assert shop.stores.offline.row_count("spend") == 20
    assert shop.stores.ledger.coverage("shop", "spend", "online") == IntervalSet([WHOLE])


def test_a_removal_that_fails_is_told_and_can_be_done_again(shop: Workspace) -> None:
    def fail(step: str) -> None:
        raise OSError("a key of the store stands here")

    with pytest.raises(OSError, match="stands here"):
        remove_view("spend", shop.stores, on_step=fail)
    (job,) = [job for job in shop.jobs("spend") if job.kind == "DELETION"]
    assert (job.state, job.reason) == ("FAILURE", "OSError (its text stays with the caller)")
    with pytest.raises(DeletionNotRetried, match="run featurekit apply, which begins a new one for what is left"):
        shop.stores.ledger.retry(job.id)
    snapshot = shop.snapshot()
    assert (dict(snapshot.failed), dict(snapshot.left_alone)) == ({}, {})
    remove_view("spend", shop.stores)
    assert is_removed(shop, "spend")


KILLED = """
import os, sys
from pathlib import Path
from featurekit_dagster.execution.removal import remove_view
from tests.unit.cli_shop import shop_workspace

def end(step):
    if step == sys.argv[2]:
        os._exit(9)

remove_view("spend", shop_workspace(Path(sys.argv[1])).stores, on_step=end)
"""


@pytest.mark.parametrize("step", [DROPPED_OFFLINE, DROPPED_ONLINE, RECORDED])
def test_a_removal_that_was_killed_is_ended_by_the_next(shop: Workspace, tmp_path: Path, step: str) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), step], cwd=ROOT, check=False)
    assert killed.returncode == 9
    assert not is_removed(shop, "spend")
    remove_view("spend", shop.stores)
    assert is_removed(shop, "spend")
    states = [job.state for job in shop.jobs("spend") if job.kind == "DELETION"]
    assert states == (["SUCCESS"] if step == RECORDED else ["SUCCESS", "FAILURE"])
