"""Dagster's partition status follows the ledger: what is covered is shown as materialized.

Only this direction is needed: single partitions cannot be taken back in Dagster, so lost coverage is a check's matter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice

import dagster as dg

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.intervals import Interval
from featurekit_dagster.orchestration.materializations import covered_everywhere
from featurekit_dagster.orchestration.partitions import keys_of
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

MOST_AT_ONCE = 1_000
NOT_SHOWN = "covered in the ledger, but not shown as materialized"


def restate(instance: dg.DagsterInstance, key: dg.AssetKey, partitions: Iterable[str], why: str) -> int:
    """Report partitions as materialized by events without a run; return how many."""
    count = 0
    for partition in partitions:
        metadata = {"featurekit/restated": why}
        instance.report_runless_asset_event(dg.AssetMaterialization(key, partition=partition, metadata=metadata))
        count += 1
    return count


def restate_after_run(
    view: FeatureView,
    key: dg.AssetKey,
    stores: WorkspaceStores,
    instance: dg.DagsterInstance,
    interval: Interval,
    reported: Collection[str],
    *,
    failed: bool,
) -> int:
    """Report again what a run touched, left as it was, and is covered; return how many partitions.

    A failed run turns all its partitions to failed, also those whose data it did not change.

    Args:
        view: The feature view.
        key: Its asset key.
        stores: Where the ledger is.
        instance: Where Dagster keeps its events.
        interval: The range of the run.
        reported: Partitions that the run itself has reported.
        failed: Whether the run fails.
    """
    covered = [k for k in keys_of(view, covered_everywhere(view, stores).intersect([interval])) if k not in reported]
    if covered and not failed:
        known = instance.get_materialized_partitions(key)
        covered = [k for k in covered if k not in known]
    why = "covered before a run that failed" if failed else "covered by a job outside Dagster"
    return restate(instance, key, covered, why)


def reconcile(
    view: FeatureView,
    asset: dg.AssetsDefinition,
    stores: WorkspaceStores,
    instance: dg.DagsterInstance,
    most: int = MOST_AT_ONCE,
) -> int:
    """Report partitions that are covered but not shown as materialized, nor in a run; return how many.

    Args:
        view: The feature view.
        asset: Its asset.
        stores: Where the ledger is.
        instance: Where Dagster keeps its events.
        most: At most so many at once; the rest is left to the next call.
    """
    hidden = islice(hidden_partitions(view, asset, stores, instance), most)
    return restate(instance, asset.key, list(hidden), NOT_SHOWN)


def hidden_partitions(
    view: FeatureView, asset: dg.AssetsDefinition, stores: WorkspaceStores, instance: dg.DagsterInstance
) -> Iterator[str]:
    """Yield the partitions that are covered in every store, but neither shown as materialized nor in a run."""
    covered = list(keys_of(view, covered_everywhere(view, stores)))
    return _hidden(asset, covered, instance) if covered and asset.partitions_def is not None else iter(())


def _hidden(asset: dg.AssetsDefinition, covered: Sequence[str], instance: dg.DagsterInstance) -> Iterator[str]:
    """Yield which partitions are neither shown as materialized nor in a run.

    The status of all of them is never asked for: that takes Dagster seconds where they are many.
    """
    failed = failed_partitions(asset, instance)
    yield from (key for key in covered if key in failed)
    known = instance.get_materialized_partitions(asset.key)
    missing = iter([key for key in covered if key not in known and key not in failed])
    while asset.partitions_def is not None and (some := list(islice(missing, MOST_AT_ONCE))):
        statuses = instance.get_status_by_partition(asset.key, some, asset.partitions_def) or {}
        yield from (key for key in some if statuses.get(key) is None)


def failed_partitions(asset: dg.AssetsDefinition, instance: dg.DagsterInstance) -> set[str]:
    """Return the partitions of an asset that Dagster shows as failed: those whose last run ended without them."""
    failed = dg.AutomationCondition.execution_failed()
    judged = dg.AssetSpec(asset.key, partitions_def=asset.partitions_def, automation_condition=failed)
    chosen = dg.AssetSelection.assets(asset.key)
    evaluated = dg.evaluate_automation_conditions(dg.Definitions(assets=[judged]), instance, chosen)
    found = evaluated.get_requested_partitions(asset.key)
    return {key for key in found if key is not None}
