"""Online records made few: tiles laid out as large as windows allow, and what no read asks for any more trimmed away.

Both work under the view's lease. Larger tiles are made of the offline store, beside those that are read, and taken into
use in one step; so a read sees the former ones or the new ones, and a process that ends anywhere has changed nothing.
Since the new tiles divide `batch_schedule`, every later job and overwrite replaces whole ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pyarrow as pa

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.engine.local import stored_schema
from featurekit_dagster.execution.held_online import held_online
from featurekit_dagster.execution.online_rows import larger_tiles, online_rows
from featurekit_dagster.intervals import Interval, IntervalSet, floor_time, from_us
from featurekit_dagster.planning.generations import StoredShape
from featurekit_dagster.planning.job_state import JobState
from featurekit_dagster.planning.online_tiles import largest_tile_us, needed_since_us
from featurekit_dagster.planning.tasks import OFFLINE
from featurekit_dagster.stores.ledger_leases import Lease
from featurekit_dagster.stores.ledger_records import BATCH
from featurekit_dagster.stores.online import OnlineLayout
from featurekit_dagster.stores.online_upkeep import Trimmed
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

Check = Callable[[], None]
READERS_LOOK_EVERY = timedelta(seconds=2)
"""How long a slot that was read is left alone: whoever reads looks for the layout once a second."""

_ROWS_AT_ONCE = 500_000
_DAY = timedelta(days=1)
_FOR_EVER = datetime(9999, 1, 1, tzinfo=UTC)


def compact_view(
    view: FeatureView,
    stores: WorkspaceStores,
    *,
    holder: str,
    check: Check,
    patience: timedelta = READERS_LOOK_EVERY,
) -> dict[str, int]:
    """Lay out the online tiles of a view as large as its windows allow, and trim them; answers stay the same.

    Where windows were declared since that need smaller or older tiles than are there, these are brought back. Only
    tiles that the offline store has are laid out anew; others are only trimmed, as are those of streams.

    Args:
        view: A feature view that is written online.
        stores: Where it is stored.
        holder: Who holds the lease.
        check: Raises where the work was told to end; called between transactions.
        patience: How long a slot that was read is left alone before it is cleared.

    Returns:
        Counts of what was done.

    Raises:
        LeaseHeld: A job writes the view all the time.
        LeaseLost: Somebody has taken the view over; answers are the same.
        ChangedDeclaration: The view was changed, and nobody has decided what becomes of what is stored.
        OnlineTileOverflow: An integer sum of a larger tile would not fit 64 bits; nothing was changed.
    """
    with stores.ledger.lease(_lease_name(view, stores), holder=holder) as lease:
        return _Upkeep(view, stores, lease, check, patience).compact()


def clean_up_view(
    view: FeatureView,
    stores: WorkspaceStores,
    *,
    holder: str,
    check: Check,
    patience: timedelta = READERS_LOOK_EVERY,
) -> dict[str, int]:
    """Remove expired rows, or tiles that no window reaches any more, from the online store; answers stay the same.

    Args:
        view: A feature view that is written online.
        stores: Where it is stored.
        holder: Who holds the lease.
        check: Raises where the work was told to end; called between transactions.
        patience: How long a slot that was read is left alone before it is cleared.

    Returns:
        Counts of what was done.

    Raises:
        LeaseHeld: A job writes the view all the time.
        LeaseLost: Somebody has taken the view over; answers are the same.
        ChangedDeclaration: The view was changed, and nobody has decided what becomes of what is stored.
    """
    with stores.ledger.lease(_lease_name(view, stores), holder=holder) as lease:
        return _Upkeep(view, stores, lease, check, patience).clean_up()


def _lease_name(view: FeatureView, stores: WorkspaceStores) -> str:
    return f"batch:{stores.workspace}/{view.name}"


class _Upkeep:
    """Upkeep of the generation of a view that is written, under its lease."""

    def __init__(
        self, view: FeatureView, stores: WorkspaceStores, lease: Lease, check: Check, patience: timedelta
    ) -> None:
        generation = stores.ledger.open_generation(stores.workspace, view.name, StoredShape.of(view))
        # what other processes have laid out anew before the lease was had is seen by fresh stores only
        self._view, self._stores = view, stores.pinned(view, generation)
        self._lease, self._check, self._patience = lease, check, patience
        self._layout = self._stores.online_layout(view)
        self._online = held_online(view, self._stores)
        self._since_us = needed_since_us(
            view, stores.clock(), self._online, self._stores.coverage(view, OFFLINE) if view.offline else IntervalSet()
        )

    def compact(self) -> dict[str, int]:
        """Lay out anew what does not fit the windows, and trim the rest."""
        tile_us, span = largest_tile_us(self._view), self._span()
        if self._layout.tile_us is None or span is None or not self._is_wanted(tile_us) or not self._can(span):
            return self.clean_up()
        self._clear_other()
        before = self._trim(self._layout, None)
        following = replace(self._layout, slot=1 - self._layout.slot, tile_us=tile_us)
        self._fill(following, span)
        after = self._trim(following, self._since_us)
        self._check()
        self._stores.relaid(following, self._lease.epoch)
        return {**_counts(before, after), "tile_seconds": (tile_us or 0) // 1_000_000, "laid_out_anew": 1}

    def clean_up(self) -> dict[str, int]:
        """Trim, and clear what an earlier layout has left."""
        self._clear_other()
        done = self._trim(self._layout, self._since_us)
        return {**_counts(done, done), "removed": done.removed, "laid_out_anew": 0}

    def _span(self) -> Interval | None:
        """Return what of the view is needed online; None where nothing is covered."""
        covered = self._needed()
        ends = [(interval.start, interval.end) for interval in covered]
        return Interval(ends[0][0], ends[-1][1]) if ends else None

    def _needed(self) -> IntervalSet:
        """Return what is covered online and may be asked for, in whole batch intervals."""
        if self._since_us is None:
            return self._online
        start = floor_time(from_us(self._since_us), self._view.batch_schedule)
        return self._online.intersect([Interval(start, _FOR_EVER)]) if start < _FOR_EVER else IntervalSet()

    def _is_wanted(self, tile_us: int | None) -> bool:
        """Tell whether the stored tiles are of another size than is best, or some were trimmed that are needed."""
        if self._layout.tile_us != tile_us:
            return True
        with self._stores.online.snapshot(self._layout) as snapshot:
            trimmed_us = snapshot.trimmed_us
        return trimmed_us is not None and self._since_us is not None and self._since_us < trimmed_us

    def _can(self, span: Interval) -> bool:
        """Tell whether the offline store has what the online one has, so that the latter can be made of it."""
        view = self._view
        if view.is_stream or not view.offline:
            return False
        if self._needed().subtract(self._stores.coverage(view, OFFLINE)):
            return False
        # what was overwritten in one store alone is not the same in the other until both are written again
        both = IntervalSet()
        done = self._stores.ledger.jobs(self._stores.workspace, view.name, [JobState.SUCCESS])
        for job in sorted(done, key=lambda job: job.updated_at, reverse=True):
            if job.kind != BATCH or job.generation != self._layout.generation or not job.interval.overlaps(span):
                continue
            if job.online and job.offline:
                both = both.union([job.interval])
            elif job.overwrite and IntervalSet([job.interval]).subtract(both):
                return False
        return True

    def _clear_other(self) -> None:
        """Clear the slot that is not in use, which readers may have read until a moment ago."""
        other = replace(self._layout, slot=1 - self._layout.slot)
        if self._layout.tile_us is None or self._view.is_stream:
            return
        self._check()
        if self._stores.online.holds(other):
            time.sleep(self._patience.total_seconds())
            self._stores.online.clear(other, epoch=self._lease.epoch)

    def _trim(self, layout: OnlineLayout, since_us: int | None) -> Trimmed:
        return self._stores.online.trim(layout, since_us, epoch=self._lease.epoch, check=self._check)

    def _fill(self, layout: OnlineLayout, span: Interval) -> None:
        """Write everything that is needed into a slot that nobody reads, from the offline store."""
        view, now = self._view, self._stores.clock()
        for rows, piece in self._rows(span):
            self._check()
            self._stores.online.write(
                layout,
                online_rows(view, rows, piece, now),
                covered=self._online,
                epoch=self._lease.epoch,
                combine=larger_tiles(view, layout),
            )

    def _rows(self, span: Interval) -> Iterator[tuple[pa.Table, Interval]]:
        """Yield what is needed in pieces of some rows, each with its interval: one piece at least."""
        view, schema = self._view, stored_schema(self._view)
        held: list[pa.Table] = []
        start = span.start
        width = max(view.batch_schedule, floor_time(from_us(0) + _DAY, view.batch_schedule) - from_us(0))
        for interval in self._needed():
            for piece in interval.split_on_grid(width):
                self._check()
                held.append(self._stores.read_offline(view, schema, piece))
                if sum(rows.num_rows for rows in held) >= _ROWS_AT_ONCE:
                    yield pa.concat_tables(held), Interval(start, piece.end)
                    held, start = [], piece.end
        if start < span.end:
            yield pa.concat_tables(held), Interval(start, span.end)


def _counts(before: Trimmed, after: Trimmed) -> Mapping[str, int]:
    return {
        "values_before": before.values_before,
        "values_after": after.values_after,
        "bytes_before": before.bytes_before,
        "bytes_after": after.bytes_after,
    }
