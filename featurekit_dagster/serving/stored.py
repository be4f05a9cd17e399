"""Where a read gets its tiles, events or rows from: the offline store, or the source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurekit_dagster.arrow_types import arrow_schema
from featurekit_dagster.domain.aggregation import LIST_FUNCTIONS, AggregateFeature, PartialColumn, partial_columns
from featurekit_dagster.domain.feature_view import ANCHOR_TIME, FeatureView
from featurekit_dagster.domain.schema import Field, Timestamp
from featurekit_dagster.engine.buckets import Rows, asked_only
from featurekit_dagster.engine.duck import connect
from featurekit_dagster.engine.local import (
    compute_events,
    compute_stored,
    compute_tiles,
    event_pieces,
    event_tiles_of,
    stored_schema,
)
from featurekit_dagster.engine.tiles import event_tile_pieces
from featurekit_dagster.errors import NotMaterialized, ReadError
from featurekit_dagster.intervals import Interval, IntervalSet, from_us, to_us
from featurekit_dagster.planning.grid import Timing
from featurekit_dagster.planning.tasks import OFFLINE
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

Times = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

# DuckDB hands rows over in batches of so many.
_BATCH_ROWS = 122_880

FIRST_US = to_us(datetime(1000, 1, 1))  # noqa: DTZ001 - read as UTC; earlier than any event, later than any overflow


@dataclass(frozen=True, slots=True)
class Tiles:
    """What windows are combined from.

    Args:
        table: Columns `view.tile_keys`, `_anchor_time` and partial columns; a reader from `tiles_asked`.
        tile_us: Size in microseconds that the roll-up is to take: 1 where each row is an event whose order counts.
    """

    table: Rows
    tile_us: int


@dataclass(frozen=True, slots=True)
class StoredRows:
    """The tiles, events or rows of one view, for reading.

    Args:
        view: The feature view.
        stores: The workspace's stores.
        from_source: Whether they are computed from the source instead of read from the offline store.
        mocks: Parameter to a frame that is used instead of its source.
    """

    view: FeatureView
    stores: WorkspaceStores
    from_source: bool
    mocks: Mapping[str, Any] | None = None

    @classmethod
    def choose(
        cls,
        view: FeatureView,
        stores: WorkspaceStores,
        from_source: bool | None,
        mocks: Mapping[str, Any] | None = None,
    ) -> StoredRows:
        """Return where to read from.

        Args:
            view: The feature view.
            stores: The workspace's stores.
            from_source: True for the source, False for the offline store, None for the offline store where the view
                writes it, else the source.
            mocks: Parameter to a frame that is used instead of its source; then the source is read.

        Raises:
            ReadError: The view does not write the offline store, cannot be computed on the fly or has no history, or a
                mock has no parameter or would not be read.

        Source: Custom ETL Features with Incremental Backfills (such views must be materialized first).
        """
        if view.is_table:
            _check_only_stored(view, from_source, mocks)
            return cls(view, stores, from_source=False)
        check_has_source(view)
        if mocks:
            check_mocks(view, mocks)
            if from_source is False:
                raise ReadError(
                    f"{view.name}: mock_inputs beside from_source=False, which reads no source; leave out one"
                )
            from_source = True
        if from_source is False and not view.offline:
            raise ReadError(f"{view.name}: it is not materialized offline (offline=False); pass from_source=True")
        chosen = not view.offline if from_source is None else from_source
        if chosen and view.incremental_backfills:
            raise ReadError(
                f"{view.name}: incremental_backfills=True, so it cannot be computed on the fly; materialize it offline "
                "and read it without from_source=True"
            )
        return cls(view, stores, chosen, mocks)

    def rows(self, start_us: int, end_us: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Return what is stored with `start <= time < end`: tiles, events or rows; nothing for an empty span.

        Args:
            start_us: First microsecond; on the tile grid where there are tiles.
            end_us: First microsecond after; likewise.
            columns: Those of `stored_schema` to return, in this order; None for all.
        """
        schema = stored_schema(self.view)
        names = schema.names if columns is None else list(columns)
        interval = _interval(start_us, end_us)
        if interval is None:
            return _nothing(schema).select(names)
        if self.from_source:
            return self._visible(compute_stored(self.view, interval, self.mocks)).select(names)
        wanted = _nothing(schema).select(names)
        with connect() as con:
            relation = self.stores.offline_relation(con, self.view, schema, interval, names)
            return wanted if relation is None else con.sql(f"FROM {relation}").to_arrow_table().cast(wanted.schema)

    def tiles(self, start_us: int, end_us: int, features: Sequence[AggregateFeature]) -> Tiles:
        """Return what rolls up to some features: stored tiles, or single events.

        Single events are taken where the view stores them, and from the source where that answers the same: a sketch of
        a tile is not the sketch of its events, so views with sketches get tiles there too.

        Args:
            start_us: First microsecond, on the tile grid.
            end_us: First microsecond after, on the tile grid.
            features: The features that are asked for.
        """
        view, partials, interval = self.view, partial_columns(features), _interval(start_us, end_us)
        tile_us = Timing.of(view).tile_us or 1
        if interval is None:
            return Tiles(_nothing(_tile_schema(view, partials)), tile_us)
        if not self.from_source:
            return Tiles(self._stored_tiles(partials, interval), tile_us)
        if self._wants_tiles(partials):
            return Tiles(self._visible(compute_tiles(view, interval, self.mocks, partials), ANCHOR_TIME), tile_us)
        events = self._visible(compute_events(view, interval, self.mocks, partials), ANCHOR_TIME)
        return Tiles(events, self._event_tile_us(partials))

    @contextmanager
    def tiles_asked(
        self, start_us: int, end_us: int, features: Sequence[AggregateFeature], probes: pa.Table
    ) -> Iterator[Tiles]:
        """Give what `tiles` returns for the body of a `with`; stored tiles, and events, as they are read.

        Args:
            start_us: As for `tiles`.
            end_us: As for `tiles`.
            features: As for `tiles`.
            probes: Has the view's join keys.
        """
        view, interval, partials = self.view, _interval(start_us, end_us), partial_columns(features)
        if interval is None or (self.from_source and self._wants_tiles(partials)):
            yield self.tiles(start_us, end_us, features)
            return
        if self.from_source:
            with event_pieces(view, interval, self.mocks, partials) as pieces:
                yield Tiles(self._visible_pieces(pieces), self._event_tile_us(partials))
            return
        wanted = _tile_schema(view, partials)
        names = wanted.names if view.is_tiled else self._event_columns(partials)
        with connect() as con:
            relation = self.stores.offline_relation(con, view, stored_schema(view), interval, names)
            if relation is None:
                yield self.tiles(start_us, end_us, features)
            elif view.is_tiled:
                query = con.sql(asked_only(con, relation, probes, keys=view.key_names))
                yield Tiles(query.to_arrow_reader(_BATCH_ROWS).cast(wanted), Timing.of(view).tile_us or 1)
            else:
                key_names, time = view.tile_keys, view.timestamp_field
                yield Tiles(event_tile_pieces(con, relation, keys=key_names, timestamp=time, partials=partials), 1)

    def _visible(self, rows: pa.Table, time_column: str | None = None) -> pa.Table:
        """Return what was computed from the source without deleted keys; of mocked data nothing was deleted."""
        return rows if self.mocks else self.stores.without_deleted(self.view, rows, time_column=time_column)

    def _visible_pieces(self, pieces: pa.RecordBatchReader) -> pa.RecordBatchReader:
        """Return `_visible` of events, made piece by piece as it is read."""
        if self.mocks or self.stores.tombstones.load(self.view.name) is None:
            return pieces
        visible = (self._visible(pa.Table.from_batches([piece]), ANCHOR_TIME) for piece in pieces)
        return pa.RecordBatchReader.from_batches(pieces.schema, (b for table in visible for b in table.to_batches()))

    def _wants_tiles(self, partials: Sequence[PartialColumn]) -> bool:
        """Tell whether a source has to give tiles: a sketch of a tile is not the sketch of its events."""
        return self.view.is_tiled and any(p.kind.startswith(("hll", "digest")) for p in partials)

    def _event_tile_us(self, partials: Sequence[PartialColumn]) -> int:
        """Return the tile size that single events are rolled up by: 1 where their order counts."""
        is_ordered = any(p.kind == "last" or p.kind in LIST_FUNCTIONS for p in partials)
        return 1 if is_ordered else Timing.of(self.view).tile_us or 1

    def _event_columns(self, partials: Sequence[PartialColumn]) -> list[str]:
        """Return the stored columns of events that some partial columns are made of."""
        inputs = (partial.column for partial in partials)
        return list(dict.fromkeys([*self.view.tile_keys, self.view.timestamp_field, *inputs]))

    def _stored_tiles(self, partials: Sequence[PartialColumn], interval: Interval) -> pa.Table:
        """Return the stored tiles, or the stored events as tiles, with some partial columns."""
        view, wanted = self.view, _tile_schema(self.view, partials)
        names = wanted.names if view.is_tiled else self._event_columns(partials)
        with connect() as con:
            relation = self.stores.offline_relation(con, view, stored_schema(view), interval, names)
            if relation is None:
                return _nothing(wanted)
            if view.is_tiled:
                return con.sql(f"FROM {relation}").to_arrow_table().cast(wanted)
            return event_tiles_of(con, relation, view, partials)

    def coverage(self) -> IntervalSet | None:
        """Return what may be read; None when everything may: from the source, and of a feature table."""
        return None if self.from_source or self.view.is_table else self.stores.coverage(self.view, OFFLINE)

    def gaps(self, start_us: Times, end_us: Times, ask: Mask) -> Mask:
        """Return which of the spans that are asked for are not wholly covered.

        Args:
            start_us: First microsecond of each span.
            end_us: First microsecond after each; an empty span is covered.
            ask: Which spans are asked for.
        """
        coverage = self.coverage()
        return np.zeros(len(ask), dtype=bool) if coverage is None else ask & uncovered(start_us, end_us, coverage)

    def refuse(self, start_us: Times, end_us: Times, rows: int = 0) -> None:
        """Raise the error that lists what of the spans is not covered.

        Args:
            start_us: First microsecond of each span that is not wholly covered.
            end_us: First microsecond after each.
            rows: Number of spine rows that need them; 0 for a read without a spine.

        Raises:
            NotMaterialized: Always.
        """
        spans = np.unique(np.stack([np.maximum(start_us, FIRST_US), end_us], axis=1), axis=0)
        wanted = IntervalSet(Interval(from_us(int(s)), from_us(int(e))) for s, e in spans)
        missing = wanted.subtract(self.coverage() or IntervalSet())
        computable = not self.view.incremental_backfills
        raise NotMaterialized(view=self.view.name, missing=missing, rows=rows, computable=computable)

    def require(self, start_us: int, end_us: int) -> None:
        """Refuse a read of a span that is not wholly covered.

        Raises:
            NotMaterialized: It is not.
        """
        start, end = np.array([start_us]), np.array([end_us])
        if self.gaps(start, end, np.ones(1, dtype=bool)).any():
            self.refuse(start, end)


def check_has_source(view: FeatureView) -> None:
    """Refuse to compute a view that has nothing to compute from: a stream without batch side, or a feature table.

    Raises:
        ReadError: It has none.
    """
    if view.is_table:
        raise ReadError(f"{view.name}: it is a feature table, whose rows are ingested; there is nothing to compute")
    if not view.inputs:
        raise ReadError(
            f"{view.name}: its stream has no batch source, so there is no history to read or to compute it from; give "
            "the stream source a batch_config"
        )


def _check_only_stored(view: FeatureView, from_source: bool | None, mocks: Mapping[str, Any] | None) -> None:
    """Refuse to read a feature table from anywhere but the offline store.

    Raises:
        ReadError: Its source is asked for, which it has not, or it has no offline store.
    """
    if from_source or mocks:
        given = "from_source=True" if from_source else "mock_inputs"
        raise ReadError(f"{view.name}: {given} on a feature table, which has no source; leave it out")
    if not view.offline:
        raise ReadError(f"{view.name}: it is not kept offline (offline=False), so there is no history to read")


def check_mocks(view: FeatureView, mocks: Mapping[str, Any]) -> None:
    """Refuse frames for parameters that the view's function does not have.

    Raises:
        ReadError: There is such a frame.
    """
    unknown = [name for name in mocks if name not in view.inputs]
    if unknown:
        raise ReadError(
            f"{view.name}: {', '.join(unknown)} is no source parameter of the function; it has {', '.join(view.inputs)}"
        )


def _tile_schema(view: FeatureView, partials: Iterable[PartialColumn]) -> pa.Schema:
    """Return the columns of tiles with some partial columns."""
    keys = (*view.join_keys, *(() if view.secondary_key is None else (view.secondary_key,)))
    return arrow_schema((*keys, Field(ANCHOR_TIME, Timestamp), *(Field(p.name, p.dtype) for p in partials)))


def _nothing(schema: pa.Schema) -> pa.Table:
    """Return a table without rows; Arrow's own way of making one imports pandas."""
    return pa.Table.from_batches([], schema=schema)


def _interval(start_us: int, end_us: int) -> Interval | None:
    """Return the span as an interval, None for an empty one."""
    start_us = max(start_us, FIRST_US)
    return Interval(from_us(start_us), from_us(end_us)) if start_us < end_us else None


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
