"""Whether ledger, offline table, online store and Dagster tell the same about what is materialized of a view."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pyarrow.dataset as ds
from deltalake import DeltaTable

from featurekit_dagster import Workspace
from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.planning.grid import floor_time

_KEY = "%Y-%m-%dT%H:%MZ"


def assert_agreement(workspace: Workspace, name: str, instance: dg.DagsterInstance, rows_per_cell: int) -> IntervalSet:
    """Assert that nobody says something else than the others; return what both stores have.

    Offline the rows themselves are counted, per cell of the view's grid, and the table's own coverage is read too.
    Dagster is asked about each partition up to the workspace's time.

    Args:
        workspace: The workspace.
        name: A view that writes both stores, whose source has rows in each cell.
        instance: Of the Dagster that did the work.
        rows_per_cell: How many.
    """
    view, stores = workspace.repo.view(name), workspace.stores
    offline, online = stores.coverage(view, "offline"), stores.coverage(view, "online")
    assert rows_by_cell(workspace, view) == {cell.start: rows_per_cell for cell in _cells(view, offline)}
    assert stores.offline.coverage(name) == offline
    assert stores.online.coverage(stores.online_layout(view)) == online
    both = offline.intersect(online)
    expected = {cell.start.strftime(_KEY): "MATERIALIZED" for cell in _cells(view, both)}
    assert statuses(workspace, view, instance) == expected
    return both


def rows_by_cell(workspace: Workspace, view: FeatureView) -> dict[datetime, int]:
    """Return how many rows the offline table has in each cell of the grid that has any, read by Delta's own reader."""
    location = workspace.stores.offline.location(view.name)
    if not Path(location).exists():
        return {}
    files = DeltaTable(location).file_uris()
    times = ds.dataset(files).to_table(columns=[view.stored_time_column])[0].to_pylist()
    aware = (time if time.tzinfo else time.replace(tzinfo=UTC) for time in times)
    return dict(Counter(floor_time(time, view.batch_schedule) for time in aware))


def statuses(workspace: Workspace, view: FeatureView, instance: dg.DagsterInstance) -> dict[str, str]:
    """Return how Dagster shows the partitions up to the workspace's time; those it calls missing are left out."""
    partitions = workspace.definitions().resolve_assets_def(view.name).partitions_def
    assert partitions is not None
    assert view.materialization_start is not None
    keys = [cell.start.strftime(_KEY) for cell in _cells(view, [_until_now(view, workspace)])]
    found = instance.get_status_by_partition(dg.AssetKey(view.name), keys, partitions) or {}
    return {key: status.value for key, status in found.items() if status is not None}


def _until_now(view: FeatureView, workspace: Workspace) -> Interval:
    assert view.materialization_start is not None
    return Interval(view.materialization_start, floor_time(workspace.now(), view.batch_schedule))


def _cells(view: FeatureView, intervals: IntervalSet | list[Interval]) -> list[Interval]:
    return [cell for interval in intervals for cell in interval.split_on_grid(view.batch_schedule)]
