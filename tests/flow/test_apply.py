"""Declarations that change under stored rows: plan, decide, materialize, read, remove, in Dagster too."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from featurekit_dagster import Workspace
from featurekit_dagster.intervals import IntervalSet
from featurekit_dagster.orchestration.run import open_instance
from tests.unit.changed_shop import changed_shop, double_spend
from tests.unit.cli_runner import bind, output
from tests.unit.cli_shop import DAY, NOW, write_purchases

EVERYTHING = "user_most_recent_purchase_with_everything"
DOUBLED: dict[str, dict[str, Any]] = {"spend": {"function": double_spend}}
HOUR = timedelta(hours=1)


class Shop:
    """The shop under declarations that change, each time bound to the command line."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_purchases(folder / "purchases.parquet")
        self.folder, self._monkeypatch = folder, monkeypatch

    def declare(self, changes: dict[str, dict[str, Any]], **more: Any) -> Workspace:
        """Declare the shop anew, without the view that reads everything."""
        without = (EVERYTHING, *more.pop("without", ()))
        return bind(changed_shop(self.folder, changes, without, **more), self.folder, self._monkeypatch)

    def plan(self, *names: str, exit_code: int = 0) -> dict[str, Any]:
        found = json.loads(output("plan", *names, "--json", exit_code=exit_code))
        return {plan["view"]: plan for plan in found}

    def partitions(self, workspace: Workspace, view: str) -> set[str]:
        """Return the partitions that Dagster shows as materialized."""
        with open_instance(workspace) as instance:
            return instance.get_materialized_partitions(dg.AssetKey([view]))


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return Shop(tmp_path, monkeypatch)


def spent(workspace: Workspace) -> tuple[float, float]:
    """Return what a user has spent in three days, read online and offline."""
    import pandas as pd

    view = workspace.get_feature_view("spend")
    spine = pd.DataFrame({"user_id": [7], "time": [pd.Timestamp(NOW)]})
    offline = view.get_features_for_events(spine, from_source=False).to_pandas()["spend__sum_3d"][0]
    return view.get_online_features({"user_id": 7}).to_dict()["sum_3d"], offline


def test_a_changed_view_is_rebuilt_beside_the_old_one_and_reads_switch_when_it_is_complete(shop: Shop) -> None:
    workspace = shop.declare({})
    output("materialize", "spend")
    assert spent(workspace) == (270.0, 270.0)

    workspace = shop.declare(DOUBLED)
    assert shop.plan("spend", exit_code=3)["spend"]["changes"][0]["what"] == "transformation"
    output("materialize", "spend", exit_code=3)
    assert spent(workspace) == (270.0, 270.0), "nothing is carried out before somebody has decided"
    output("apply", "spend", "--rebuild", "--yes")
    workspace = shop.declare(DOUBLED)
    assert spent(workspace) == (270.0, 270.0)
    assert shop.plan("spend")["spend"]["partitions"] == 10

    output("materialize", "spend")
    workspace = shop.declare(DOUBLED)
    assert spent(workspace) == (540.0, 540.0)
    assert shop.plan("spend")["spend"]["runs"] == []
    lake = shop.folder / "home" / "lake" / "shop" / "offline" / "spend"
    assert sorted(path.name for path in lake.iterdir()) == ["g1", "g2"]

    workspace = shop.declare(DOUBLED, now=NOW + HOUR)
    output("apply", "spend", "--yes")
    assert [path.name for path in lake.iterdir()] == ["g2"]
    assert [record.generation for record in workspace.stores.ledger.generations("shop", "spend")] == [2]
    kinds = [(job.kind, job.state, job.generation) for job in workspace.jobs("spend")]
    assert kinds == [("DELETION", "SUCCESS", 1), ("BATCH", "SUCCESS", 2), ("BATCH", "SUCCESS", 1)]
    assert spent(workspace) == (540.0, 540.0)


def test_a_removed_view_is_gone_everywhere_and_its_name_begins_anew(shop: Shop) -> None:
    workspace = shop.declare({})
    output("materialize", "spend")
    assert len(shop.partitions(workspace, "spend")) == 10

    workspace = shop.declare({}, without=("spend",))
    assert shop.plan(exit_code=3)["spend"]["removed"]
    output("apply", "--yes")
    assert not (shop.folder / "home" / "lake" / "shop" / "offline" / "spend").exists()
    assert not (shop.folder / "home" / "online" / "shop" / "spend").exists()
    assert workspace.stores.ledger.known_views("shop") == []
    assert shop.partitions(workspace, "spend") == set()
    assert set(shop.plan()) == {"last_purchase"}

    workspace = shop.declare(DOUBLED)
    plan = shop.plan("spend")["spend"]
    assert (plan["generation"], plan["news"], plan["partitions"]) == (1, ["a new feature view"], 10)
    assert workspace.stores.coverage(workspace.repo.view("spend"), "online") == IntervalSet()
    output("materialize", "spend")
    assert spent(workspace) == (540.0, 540.0)
    assert len(shop.partitions(workspace, "spend")) == 10


def test_after_another_schedule_dagster_shows_what_is_covered_on_the_new_grid(shop: Shop) -> None:
    workspace = shop.declare({})
    output("materialize", "last_purchase", "--start", "2024-01-01", "--end", "2024-01-04")
    assert shop.partitions(workspace, "last_purchase") == {f"2024-01-0{day}T00:00Z" for day in (1, 2, 3)}

    halves = {"last_purchase": {"batch_schedule": DAY / 2, "max_backfill_interval": DAY / 2}}
    workspace = shop.declare(halves)
    assert shop.plan("last_purchase", exit_code=3)["last_purchase"]["changes"][0]["text"] == "batch_schedule 1d -> 12h"
    output("apply", "last_purchase", "--keep", "--yes")
    wanted = {f"2024-01-0{day}T{hour}:00Z" for day in (1, 2, 3) for hour in ("00", "12")}
    assert shop.partitions(workspace, "last_purchase") == wanted
    output("materialize", "last_purchase", "--start", "2024-01-04", "--end", "2024-01-04T12:00")
    assert shop.partitions(workspace, "last_purchase") == {*wanted, "2024-01-04T00:00Z"}
