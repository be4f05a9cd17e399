"""Deploying changed code: jobs of the code before it are ended, and the location that was loaded last has the word.

The ranges of drained jobs are planned anew like any gap, or wait for a person where the change needs a decision.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.intervals import to_us
from featurekit_dagster.planning.fingerprint import fingerprint
from featurekit_dagster.planning.generations import StoredShape
from featurekit_dagster.stores.workspace_stores import WorkspaceStores


def overtaken_views(stores: WorkspaceStores, views: Iterable[FeatureView], loaded_at: datetime) -> frozenset[str]:
    """Return the views of which another code location, loaded later than this one, has other code.

    This location starts no jobs of them and ends none. Of all others it is remembered as the one to follow.

    Args:
        stores: Where the ledger is.
        views: Views of this location.
        loaded_at: When it was loaded, by the real clock.
    """
    codes = {view.name: fingerprint(view) for view in views}
    return stores.ledger.deploy(stores.workspace, codes, to_us(loaded_at))


def drain_outdated(stores: WorkspaceStores, views: Sequence[FeatureView]) -> list[str]:
    """Ask every job to end that other code was asked for, or that writes what is not written any more.

    Jobs under way end at their next step, others at once. Of a view that waits for a person's decision these are all.

    Args:
        stores: Where the ledger is.
        views: Views whose newest code is this process's.

    Returns:
        The ids of the jobs.
    """
    codes = {view.name: fingerprint(view) for view in views}
    shapes = {view.name: StoredShape.of(view) for view in views}
    outdated = stores.ledger.outdated(stores.workspace, codes, shapes)
    for job_id in outdated:
        stores.ledger.drain(job_id)
    return outdated
