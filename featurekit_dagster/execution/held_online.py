"""What the online store still has of what the ledger believes is there: it may have been emptied behind its back.

Whoever writes the online store says with it what is covered there. What was lost must not be in that, or reads would
answer from a part of a window; and the ledger has to know, so that jobs fill it again.
"""

from __future__ import annotations

import logging

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.errors import OnlineLayoutMismatch
from featurekit_dagster.intervals import IntervalSet, from_us
from featurekit_dagster.planning.tasks import ONLINE
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

_log = logging.getLogger("featurekit.online")


def stored_online(view: FeatureView, stores: WorkspaceStores) -> IntervalSet:
    """Return what the online store itself says is covered; nothing where its records are of another layout."""
    try:
        return stores.online.coverage(stores.online_layout(view))
    except OnlineLayoutMismatch:
        return IntervalSet()  # records of another layout answer nothing


def held_online(view: FeatureView, stores: WorkspaceStores) -> IntervalSet:
    """Return what of a view is covered online, and let the ledger forget what was lost; under the view's lease.

    A job writes the store before the ledger, so a store that has less than the ledger says was emptied, or is a copy.

    Args:
        view: A view that is written online.
        stores: Its stores, pinned to a generation.
    """
    believed, stored = stores.coverage(view, ONLINE), stored_online(view, stores)
    if not believed.subtract(stored):
        return believed
    _log.warning(
        "view=%s: its online store was emptied; jobs fill it again, or at once: featurekit refill-online %s",
        view.name,
        view.name,
    )
    held = believed.intersect(stored)
    stores.ledger.restore_coverage(stores.workspace, view.name, ONLINE, held, stores.generation(view))
    return held


def note_stream_start(view: FeatureView, stores: WorkspaceStores) -> None:
    """Let the ledger know from when on a view's stream covers everything online, as the store itself says.

    Another start than before is that of a store that was emptied since; batch jobs fill what is before it.
    """
    with stores.online.snapshot(stores.online_layout(view)) as snapshot:
        start_us = snapshot.stream.start_us
    start = None if start_us is None else from_us(start_us)
    stores.ledger.stream_started(stores.workspace, view.name, stores.generation(view), start)
