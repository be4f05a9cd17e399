"""Filling online, from the batch source, what of the current interval a stream no longer had when it was first read.

The interval has not ended, so no partition of it exists and nothing of it is claimed: what is complete now is written,
and is covered online.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.engine.local import compute_stored
from featurekit_dagster.execution.held_online import held_online
from featurekit_dagster.execution.online_rows import complete_part, larger_tiles, online_rows
from featurekit_dagster.intervals import Interval
from featurekit_dagster.planning.generations import StoredShape
from featurekit_dagster.planning.job_state import MANAGED, RetryPolicy
from featurekit_dagster.planning.tasks import ONLINE
from featurekit_dagster.stores.ledger_records import BATCH, JobRecord
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

PATIENCE = timedelta(minutes=10)
"""How long another writer of the view is waited for."""


def queue_open_interval(
    view: FeatureView, interval: Interval, stores: WorkspaceStores, *, trigger: str, policy: RetryPolicy = MANAGED
) -> JobRecord:
    """Ask for the current interval of a stream view to be filled online; return the job, which is due now.

    Raises:
        ChangedDeclaration: The view was changed, and nobody has decided what becomes of what is stored.
    """
    return stores.ledger.queue_chore(
        workspace=stores.workspace,
        view=view.name,
        kind=BATCH,
        trigger=trigger,
        interval=interval,
        request={"up_to": "now"},
        generation=stores.ledger.open_generation(stores.workspace, view.name, StoredShape.of(view)),
        online=True,
        policy=policy,
    )


def fill_open_interval(
    view: FeatureView, interval: Interval, stores: WorkspaceStores, check: Callable[[], None], holder: str
) -> Mapping[str, int]:
    """Write online what the batch source has of an interval up to now; return counts.

    Args:
        view: A stream view that is written online.
        interval: A batch interval that has begun.
        stores: Where rows and record are kept.
        check: Raises where the job was told to end.
        holder: Who holds the view's lease meanwhile.

    Raises:
        LeaseHeld: Another job writes the view for long.
        ChangedDeclaration: The view was changed, and nobody has decided what becomes of what is stored.

    Source: Streaming Materialization, Initializing Online Data from the Historical Batch Source.
    """
    generation = stores.ledger.open_generation(stores.workspace, view.name, StoredShape.of(view))
    own, now = stores.pinned(view, generation), stores.clock()
    begun = Interval(interval.start, min(interval.end, now)) if now > interval.start else None
    part = None if begun is None else complete_part(view, begun, now)
    if part is None:
        return {"rows": 0, "rows_online": 0}
    with stores.ledger.lease(f"batch:{stores.workspace}/{view.name}", holder, wait=PATIENCE) as lease:
        rows = own.without_deleted(view, compute_stored(view, interval), ONLINE)
        check()
        layout = own.online_layout(view)
        written = own.online.write(
            layout,
            online_rows(view, rows, part, now),
            covered=held_online(view, own).union([part]),
            epoch=lease.epoch,
            replace=part if view.is_aggregate else None,
            keep_stream=True,
            combine=larger_tiles(view, layout),
        )
        start = stores.ledger.stream_start(stores.workspace, view.name, generation)
        if start is not None and start <= part.end:  # from there on the stream covers the rest
            stores.ledger.cover_online(stores.workspace, view.name, generation, part)
    return {"rows": rows.num_rows, "rows_online": written.rows_written}
