"""The shop of the command line's tests, filled, and declared again with changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from featurekit_dagster import FeatureView, Workspace
from featurekit_dagster.intervals import Interval
from featurekit_dagster.planning.planner import split_tasks
from tests.unit.cli_shop import FIRST_DAY, NOW, shop_workspace

WHOLE = Interval(FIRST_DAY, NOW)


def fill(workspace: Workspace, name: str, interval: Interval = WHOLE) -> None:
    """Materialize a view without Dagster."""
    from featurekit_dagster.execution.materialize import run_tasks

    view = workspace.repo.view(name)
    tasks = split_tasks(view, interval, online=view.online, offline=view.offline)
    assert len(list(run_tasks(view, tasks, workspace.stores, trigger="manual"))) == len(tasks)


def double_spend(purchases: str) -> str:
    return f"SELECT user_id, bought_at, 2 * amount AS amount FROM {purchases}"


def changed_shop(
    folder: Path,
    changes: Mapping[str, Mapping[str, Any]],
    without: tuple[str, ...] = (),
    now: datetime = NOW,
) -> Workspace:
    """Return the shop of a folder with other declarations.

    Args:
        folder: Where source and stores are.
        changes: View to the fields that are declared otherwise.
        without: Views that are declared no more.
        now: The workspace's time.
    """
    views: list[FeatureView] = [
        replace(view, **changes.get(view.name, {}))
        for view in shop_workspace(folder).repo.views
        if view.name not in without
    ]
    return Workspace("shop", views, home=folder / "home", clock=now)
