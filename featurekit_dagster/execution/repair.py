"""Coverage read back from the stores, for a ledger that was lost or does not agree with them any more.

Every commit of a Delta table carries the whole offline coverage, and the online store keeps a marker of its own; the
history of jobs is in the ledger alone and is not restored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.intervals import IntervalSet
from featurekit_dagster.planning.planner import stores_of
from featurekit_dagster.planning.tasks import OFFLINE
from featurekit_dagster.stores.workspace_stores import WorkspaceStores


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What was found of one view in one store.

    Args:
        view: The feature view.
        store: `offline` or `online`.
        before: What the ledger said.
        after: What the store says, and the ledger now.
    """

    view: str
    store: str
    before: IntervalSet
    after: IntervalSet


def repair_coverage(views: Iterable[FeatureView], stores: WorkspaceStores) -> Iterator[Repair]:
    """Let the ledger's coverage be what the stores say, view by view, and yield what was found.

    A view is repaired under its lease, so never while a job of it writes.

    Raises:
        LeaseHeld: A job is writing the view; nothing of it was changed.
    """
    for view in views:
        with stores.ledger.lease(f"batch:{stores.workspace}/{view.name}", holder="repair"):
            for store in stores_of(view):
                found = _stored(view, store, stores)
                before = stores.ledger.restore_coverage(stores.workspace, view.name, store, found)
                yield Repair(view=view.name, store=store, before=before, after=found)


def _stored(view: FeatureView, store: str, stores: WorkspaceStores) -> IntervalSet:
    if store == OFFLINE:
        return stores.offline.coverage(view.name)
    return stores.online.coverage(stores.online_layout(view))
