"""An online store that was emptied, or that a view was moved to, is filled from the history in the offline store.

What a read needs comes from the offline table, never from the source: the jobs are batch jobs that write online only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.errors import NothingToRefillFrom
from featurekit_dagster.execution.repair import repair_coverage
from featurekit_dagster.execution.table_ingest import REFILL
from featurekit_dagster.intervals import Interval, IntervalSet, floor_time, from_us
from featurekit_dagster.planning.tasks import OFFLINE, ONLINE
from featurekit_dagster.stores.ledger_records import JobRecord
from featurekit_dagster.stores.workspace_stores import WorkspaceStores


@dataclass(frozen=True, slots=True, kw_only=True)
class Refill:
    """What an online store lacks.

    Args:
        view: The feature view.
        lost: Whether the ledger believed that something was there which is not.
        missing: What is in the offline store and not there.
    """

    view: str
    lost: bool
    missing: tuple[Interval, ...]


def look_for_gaps(view: FeatureView, stores: WorkspaceStores) -> Refill:
    """Let the ledger know what the online store of a view really has, and return what of its history that lacks.

    Of a stream view that is only what was before the stream began to write the store.

    Raises:
        NothingToRefillFrom: The view has no online store, no history in the offline store, or no jobs (a feature table
            is refilled by `refill_table`).
        LeaseHeld: A job is writing the view.
    """
    if view.is_table or not (view.online and view.offline):
        raise NothingToRefillFrom(view=view.name)
    before = stores.coverage(view, ONLINE)
    list(repair_coverage([view], stores))
    after = stores.coverage(view, ONLINE)
    missing = stores.coverage(view, OFFLINE).subtract(after)
    with stores.online.snapshot(stores.online_layout(view)) as snapshot:
        start_us = snapshot.stream.start_us
    if start_us is not None:
        end = floor_time(from_us(start_us), view.batch_schedule)
        missing = IntervalSet(Interval(i.start, min(i.end, end)) for i in missing if i.start < end)
    return Refill(view=view.name, lost=bool(before.subtract(after)), missing=missing.intervals)


def queue_refill(view: FeatureView, stores: WorkspaceStores, missing: Sequence[Interval]) -> list[JobRecord]:
    """Put a job for each missing stretch into the ledger; each writes online what the offline store has."""
    return stores.queue(view, missing, online=True, offline=False, trigger=REFILL) if missing else []
