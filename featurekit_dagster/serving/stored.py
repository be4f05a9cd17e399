"""Where a read gets its tiles or rows from: the offline store, or the source."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.engine.local import compute_events, compute_stored, stored_schema
from featurekit_dagster.errors import NotMaterialized, ReadError
from featurekit_dagster.intervals import Interval, IntervalSet, from_us
from featurekit_dagster.planning.tasks import OFFLINE
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

Times = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class StoredRows:
    """The tiles or rows of one view, for reading.

    Args:
        view: The feature view.
        stores: The workspace's stores.
        from_source: Whether they are computed from the source instead of read from the offline store.
    """

    view: FeatureView
    stores: WorkspaceStores
    from_source: bool

    @classmethod
    def choose(cls, view: FeatureView, stores: WorkspaceStores, from_source: bool | None) -> StoredRows:
        """Return where to read from.

        Args:
            view: The feature view.
            stores: The workspace's stores.
            from_source: True for the source, False for the offline store, None for the offline store where the view
                writes it, else the source.

        Raises:
            ReadError: The view does not write the offline store, or cannot be computed on the fly.

        Source: Custom ETL Features with Incremental Backfills (such views must be materialized first).
        """
        if from_source is False and not view.offline:
            raise ReadError(f"{view.name}: it is not materialized offline (offline=False); pass from_source=True")
        chosen = not view.offline if from_source is None else from_source
        if chosen and view.incremental_backfills:
            raise ReadError(
                f"{view.name}: incremental_backfills=True, so it cannot be computed on the fly; materialize it offline "
                "and read it without from_source=True"
            )
        return cls(view, stores, chosen)

    def read(self, start_us: int, end_us: int) -> pa.Table:
        """Return the tiles or rows with `start <= time < end`; an empty table for an empty span."""
        if start_us >= end_us:
            return stored_schema(self.view).empty_table()
        interval = Interval(from_us(start_us), from_us(end_us))
        if self.from_source:
            return compute_stored(self.view, interval)
        return self.stores.read_offline(self.view, stored_schema(self.view), interval)

    def read_to_roll_up(self, start_us: int, end_us: int) -> pa.Table:
        """Return what rolls up to the features of an aggregate view: its tiles, or from the source its single events.

        Args:
            start_us: First microsecond, on the tile grid.
            end_us: First microsecond after, on the tile grid.
        """
        if not self.from_source or start_us >= end_us:
            return self.read(start_us, end_us)
        return compute_events(self.view, Interval(from_us(start_us), from_us(end_us)))

    def coverage(self) -> IntervalSet | None:
        """Return what may be read; None when everything may (from the source)."""
        return None if self.from_source else self.stores.coverage(self.view, OFFLINE)


def uncovered(start_us: Times, end_us: Times, coverage: IntervalSet) -> Mask:
    """Return which spans `[start, end)` are not wholly covered; an empty span is covered.

    Args:
        start_us: First microsecond of each span.
        end_us: First microsecond after each span.
        coverage: What is covered.
    """
    starts = np.array([i.start_us for i in coverage], dtype=np.int64)
    ends = np.array([i.end_us for i in coverage], dtype=np.int64)
    if not len(starts):
        return start_us < end_us
    piece = np.maximum(np.searchsorted(starts, start_us, side="right") - 1, 0)
    inside = (starts[piece] <= start_us) & (end_us <= ends[piece])
    missing: Mask = (start_us < end_us) & ~inside
    return missing


def refuse_gaps(view: FeatureView, start_us: Times, end_us: Times, coverage: IntervalSet, rows: int) -> None:
    """Raise the error that lists what of the spans is not covered.

    Args:
        view: The feature view.
        start_us: First microsecond of each span that is not wholly covered.
        end_us: First microsecond after each.
        coverage: What is covered.
        rows: Number of spine rows that need them; 0 for a read without a spine.

    Raises:
        NotMaterialized: Always.
    """
    spans = np.unique(np.stack([start_us, end_us], axis=1), axis=0)
    wanted = IntervalSet(Interval(from_us(int(s)), from_us(int(e))) for s, e in spans)
    missing, computable = wanted.subtract(coverage), not view.incremental_backfills
    raise NotMaterialized(view=view.name, missing=missing, rows=rows, computable=computable)
