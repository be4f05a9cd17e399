"""The loop that follows some source partitions of a stream for one view, each under its own lease.

Whatever ends it, the next one goes on from the last commit and nothing is lost or counted twice. Batch jobs of the view
write beside it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime, timedelta

from featurekit_dagster.domain.feature_view import FeatureView, StreamProcessingMode
from featurekit_dagster.execution.stream_follower import StreamFollower, StreamReport
from featurekit_dagster.execution.stream_partitions import StreamPartitions
from featurekit_dagster.planning.generations import StoredShape
from featurekit_dagster.stores.workspace_stores import WorkspaceStores
from featurekit_dagster.streams.reading import StreamReader
from featurekit_dagster.streams.sharing import ONLY_SHARE, Share

COMMIT_EVERY = timedelta(seconds=30)
"""How often a view that moves in intervals is written; one that moves with every event is written at once."""

_LONGEST_POLL = timedelta(milliseconds=250)
_SECONDS_BETWEEN_REPORTS = 5.0

OnReport = Callable[[StreamReport], None]


def run_stream_loop(
    view: FeatureView,
    reader: StreamReader,
    stores: WorkspaceStores,
    *,
    stop: threading.Event,
    share: Share = ONLY_SHARE,
    clock: Callable[[], datetime] | None = None,
    commit_every: timedelta | None = None,
    on_report: OnReport | None = None,
    holder: str = "in process",
) -> None:
    """Follow a stream until told to stop; what was polled is committed before the end.

    Args:
        view: A stream feature view that is written online.
        reader: The stream.
        stores: Where the view is stored.
        stop: Ends the loop.
        share: Which of several loops this is; each follows source partitions of its own. By default it is the only one.
        clock: Returns "now"; that of the stores by default.
        commit_every: How often to commit; `COMMIT_EVERY` of interval views and at once of others by default.
        on_report: Called after every commit that brought events, after the first one, and now and then while none come.
        holder: Who holds the leases, usually the id of a run.

    Raises:
        LeaseHeld: Another loop follows one of the partitions that there are at first.
        LeaseLost: Another loop has taken over one of the partitions; nothing of the last commit was written.
        StreamPositionLost: The stream dropped events that were still to be read.
        StreamStateLost: The online store was emptied.
        StreamUnavailable: The stream cannot be reached.
        ChangedDeclaration: The view was changed, and nobody has decided what becomes of what is stored.
    """
    generation = stores.ledger.open_generation(stores.workspace, view.name, StoredShape.of(view))
    place, own = f"stream:{stores.workspace}/{view.name}/{generation}", stores.pinned(view, generation)
    with ExitStack() as held:

        def take(partition: str) -> int:
            return held.enter_context(stores.ledger.lease(f"{place}:{partition}", holder)).epoch

        follower = StreamFollower(view, reader, own, {}, clock or stores.clock)
        partitions = StreamPartitions(reader, share, take, follower)
        partitions.begin()
        _tell(on_report, follower, follower.commit())
        _follow(follower, partitions, stop, _pause(view) if commit_every is None else commit_every, on_report)


def _pause(view: FeatureView) -> timedelta:
    is_interval = view.is_tiled or view.stream_processing_mode is StreamProcessingMode.TIME_INTERVAL
    return COMMIT_EVERY if is_interval else timedelta(0)


def _follow(
    follower: StreamFollower,
    partitions: StreamPartitions,
    stop: threading.Event,
    pause: timedelta,
    on_report: OnReport | None,
) -> None:
    """Poll and commit until told to stop, then commit what is left."""
    due = time.monotonic() + pause.total_seconds()
    told = time.monotonic()
    while not stop.is_set():
        rest = timedelta(seconds=max(due - time.monotonic(), 0.0))
        follower.poll(min(rest, _LONGEST_POLL) if pause and follower.waiting else _LONGEST_POLL)
        if follower.waiting and (follower.is_full or time.monotonic() >= due):
            _tell(on_report, follower, follower.commit())
            told = time.monotonic()
            due = told + pause.total_seconds()
        elif not follower.waiting and time.monotonic() - told >= _SECONDS_BETWEEN_REPORTS:
            follower.look_at_lag()
            _tell(on_report, follower, follower.commit() if follower.has_moved else 0)
            told = time.monotonic()
        if not follower.waiting:
            partitions.look()
    if follower.waiting:
        _tell(on_report, follower, follower.commit())


def _tell(on_report: OnReport | None, follower: StreamFollower, rows_written: int) -> None:
    if on_report is not None:
        on_report(follower.report(rows_written))
