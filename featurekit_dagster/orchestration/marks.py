"""What Dagster shows of a view: brought up to the ledger at once, and looked through for what is shown wrongly.

Schedules do the same a thousand partitions at a time; this is for `featurekit repair`, whose user waits for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import dagster as dg

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.intervals import Interval, IntervalSet, floor_time
from featurekit_dagster.orchestration.assets import view_asset
from featurekit_dagster.orchestration.materializations import covered_everywhere
from featurekit_dagster.orchestration.partitions import interval_of_keys, schedule_fault
from featurekit_dagster.orchestration.reconcile import NOT_SHOWN, failed_partitions, hidden_partitions, restate
from featurekit_dagster.orchestration.resources import BoundWorkspace
from featurekit_dagster.planning.grid import last_complete_end
from featurekit_dagster.planning.planner import stores_of

OnReported = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class MarksRepair:
    """What was found of one view in Dagster.

    Args:
        view: The feature view.
        reported: Partitions that are covered and were not shown as materialized; they are now.
        wrong: What is shown as materialized, but is not covered in every store. Dagster cannot take back the marks of
            single partitions.
    """

    view: str
    reported: int
    wrong: IntervalSet


def repair_marks(
    view: FeatureView, workspace: BoundWorkspace, instance: dg.DagsterInstance, on_reported: OnReported | None = None
) -> MarksRepair | None:
    """Report what the ledger covers and Dagster does not show; return what was found, None of a view without an asset.

    Args:
        view: The feature view.
        workspace: The workspace that declares it.
        instance: Where Dagster keeps its events.
        on_reported: Called after each reported partition with the view, how many are done, and how many there are.
    """
    first = view.materialization_start
    if first is None or not stores_of(view) or schedule_fault(view):
        return None
    asset, stores = view_asset(view, workspace), workspace.stores
    hidden = list(hidden_partitions(view, asset, stores, instance))
    reported = restate(instance, asset.key, _counted(view, hidden, on_reported), NOT_SHOWN)
    shown = instance.get_materialized_partitions(asset.key) - failed_partitions(asset, instance)
    begin, end = floor_time(first, view.batch_schedule), last_complete_end(view, workspace.now())
    marked = IntervalSet(_intervals(view, shown)).intersect([Interval(begin, end)] if begin < end else [])
    return MarksRepair(view=view.name, reported=reported, wrong=marked.subtract(covered_everywhere(view, stores)))


def _counted(view: FeatureView, partitions: Sequence[str], on_reported: OnReported | None) -> Iterator[str]:
    for number, partition in enumerate(partitions, 1):
        yield partition
        if on_reported is not None:
            on_reported(view.name, number, len(partitions))


def _intervals(view: FeatureView, keys: set[str]) -> Iterator[Interval]:
    """Yield the interval of each key; one of an earlier form of keys is none of this grid's."""
    for key in keys:
        with suppress(ValueError):
            yield interval_of_keys(view, dg.PartitionKeyRange(key, key))
