"""Coverage read back from the stores, for a ledger that was lost or does not agree with them any more.

Every commit of a Delta table carries the whole offline coverage, and the online store keeps a marker of its own; the
history of jobs, and what else a generation stores than its columns, are in the ledger alone and are not restored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.engine.local import stored_schema
from featurekit_dagster.errors import OnlineLayoutMismatch, TableMissing
from featurekit_dagster.execution.deletion_request import remove_online
from featurekit_dagster.execution.held_online import note_stream_start, stored_online
from featurekit_dagster.intervals import IntervalSet
from featurekit_dagster.planning.planner import stores_of
from featurekit_dagster.planning.tasks import OFFLINE, ONLINE
from featurekit_dagster.stores.workspace_stores import WorkspaceStores


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What was found of one view in one store.

    Args:
        view: The feature view.
        store: `offline` or `online`.
        generation: The generation of the view.
        before: What the ledger said.
        after: What the store says, and the ledger now.
    """

    view: str
    store: str
    generation: int = 1
    before: IntervalSet
    after: IntervalSet


def repair_coverage(views: Iterable[FeatureView], stores: WorkspaceStores) -> Iterator[Repair]:
    """Let the ledger's coverage be what the stores say, view by view, and yield what was found.

    A view is repaired under its lease, so never while a job of it writes. The online store gets the tombstones of the
    view again, and nothing that they hide stays in it.

    Raises:
        LeaseHeld: A job is writing the view; nothing of it was changed.
    """
    for view in views:
        with stores.ledger.lease(f"batch:{stores.workspace}/{view.name}", holder="repair"):
            known = [record.generation for record in stores.ledger.generations(stores.workspace, view.name)]
            found = known or _found(view, stores)
            for generation in found or [1]:
                yield from _repaired(view, stores.pinned(view, generation))
            if found and not known:
                fitting = {generation: _fits(view, stores.pinned(view, generation)) for generation in found}
                stores.ledger.adopt(stores.workspace, view.name, fitting)
            if view.online:
                remove_online(view, None, stores)  # of a store that has come back from a copy, say


def _found(view: FeatureView, stores: WorkspaceStores) -> list[int]:
    """Return the generations that are in any store that the view writes."""
    numbers: set[int] = set()
    if view.offline:
        numbers.update(stores.offline.generations(view.name))
    if view.online:
        numbers.update(stores.online.generations(stores.workspace, view.name))
    return sorted(numbers)


def _repaired(view: FeatureView, stores: WorkspaceStores) -> Iterator[Repair]:
    """Repair one generation, which the stores are pinned to."""
    generation = stores.generation(view)
    for store in stores_of(view):
        found = _stored(view, store, stores)
        before = stores.ledger.restore_coverage(stores.workspace, view.name, store, found, generation)
        if store == ONLINE and view.is_stream:
            note_stream_start(view, stores)
        yield Repair(view=view.name, store=store, generation=generation, before=before, after=found)


def _stored(view: FeatureView, store: str, stores: WorkspaceStores) -> IntervalSet:
    if store == OFFLINE:
        return stores.offline.coverage(view.name, stores.generation(view))
    return stored_online(view, stores)


def _fits(view: FeatureView, stores: WorkspaceStores) -> bool:
    """Tell whether a generation has what the declaration needs, in each store that it writes.

    That is its columns, and online tiles of its size or, since tiles are merged there, of a multiple of it.
    """
    generation = stores.generation(view)
    try:
        if view.offline and stores.offline.schema_faults(view.name, stored_schema(view), generation):
            return False
        if view.online:
            layout = stores.online_layout(view)
            stores.online.coverage(layout)
            return not layout.tile_us or not view.tile_us or layout.tile_us % view.tile_us == 0
    except (TableMissing, OnlineLayoutMismatch):
        return False
    return True
