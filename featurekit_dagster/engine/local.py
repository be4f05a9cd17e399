"""What a view stores for an interval, and what its features are rolled up from, computed on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import duckdb
import pyarrow as pa

from featurekit_dagster.arrow_types import arrow_schema
from featurekit_dagster.domain.aggregation import PartialColumn
from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.domain.schema import Field, Timestamp
from featurekit_dagster.engine.duck import connect
from featurekit_dagster.engine.tiles import build_tiles, event_tile_pieces, event_tiles
from featurekit_dagster.engine.transform import transform
from featurekit_dagster.intervals import Interval, duration_us

Mocks = Mapping[str, Any] | None


def compute_rows(view: FeatureView, interval: Interval, mocks: Mocks = None) -> pa.Table:
    """Return the transformation's rows with `start <= timestamp < end`: columns `view.columns`, in its order.

    Raises:
        SourceError: A source cannot be read.
        TransformError: The transformation failed or its output is not what was declared.
    """
    with connect() as con:
        return transform(con, view, interval, mocks).table()


def compute_tiles(
    view: FeatureView, interval: Interval, mocks: Mocks = None, partials: Sequence[PartialColumn] | None = None
) -> pa.Table:
    """Return one row per key and tile: `view.tile_keys`, `_anchor_time` (tile start), the partial columns; no order.

    Args:
        view: A feature view with tiles.
        interval: `[start, end)`, on the tile grid.
        mocks: Parameter to a frame that is used instead of its source.
        partials: Those of `view.partials` to build; None for all.

    Raises:
        SourceError: A source cannot be read.
        TransformError: The transformation failed, its output is not what was declared, or an integer sum overflowed.
    """
    if view.aggregation_interval is None or not view.is_tiled:
        raise ValueError(f"{view.name} has no tiles")
    with connect() as con:
        rows = transform(con, view, interval, mocks)
        with rows.safe_errors():
            return build_tiles(
                con,
                rows.relation,
                keys=view.tile_keys,
                timestamp=view.timestamp_field,
                tile_us=duration_us(view.aggregation_interval),
                partials=view.partials if partials is None else partials,
            )


def compute_events(
    view: FeatureView, interval: Interval, mocks: Mocks = None, partials: Sequence[PartialColumn] | None = None
) -> pa.Table:
    """Return every event as a tile of its own, which rolls up to the same features as tiles and spares the GROUP BY.

    Arguments and columns are those of `compute_tiles`, but the view needs no tiles and `_anchor_time` is the event's
    own time. Events of one time are in the order of the transformation's output.

    Raises:
        SourceError: A source cannot be read.
        TransformError: The transformation failed, or its output is not what was declared.
    """
    with connect() as con:
        rows = transform(con, view, interval, mocks)
        with rows.safe_errors():
            return event_tiles_of(con, rows.relation, view, view.partials if partials is None else partials)


@contextmanager
def event_pieces(
    view: FeatureView, interval: Interval, mocks: Mocks, partials: Sequence[PartialColumn]
) -> Iterator[pa.RecordBatchReader]:
    """Give what `compute_events` returns for the body of a `with`, made piece by piece as it is read.

    Raises:
        SourceError: A source cannot be read.
        TransformError: The transformation failed, or its output is not what was declared; also while it is read.
    """
    with connect() as con:
        rows = transform(con, view, interval, mocks)
        with rows.safe_errors():
            yield event_tile_pieces(
                con, rows.relation, keys=view.tile_keys, timestamp=view.timestamp_field, partials=partials
            )


def tiles_of_events(view: FeatureView, events: pa.Table, partials: Sequence[PartialColumn]) -> pa.Table:
    """Return events that are at hand, each as a tile of its own: `view.tile_keys`, `_anchor_time`, partial columns.

    Args:
        view: An aggregate view.
        events: Rows of its transformation, or what an untiled view stores; columns that no partial column is made of
            may be left out.
        partials: What to build.
    """
    with connect() as con:
        con.register("events", events)
        return event_tiles_of(con, "events", view, partials)


def event_tiles_of(
    con: duckdb.DuckDBPyConnection, relation: str, view: FeatureView, partials: Sequence[PartialColumn]
) -> pa.Table:
    """Return what `tiles_of_events` returns, of the events that a relation of `con` yields in their order."""
    return event_tiles(con, relation, keys=view.tile_keys, timestamp=view.timestamp_field, partials=partials)


def instant_tiles(view: FeatureView, events: pa.Table) -> pa.Table:
    """Return events as tiles of one microsecond: those of one key and instant are one tile; see `tiles_of_events`."""
    with connect() as con:
        con.register("events", events)
        return build_tiles(
            con, "events", keys=view.tile_keys, timestamp=view.timestamp_field, tile_us=1, partials=view.partials
        )


def compute_stored(view: FeatureView, interval: Interval, mocks: Mocks = None) -> pa.Table:
    """Return what the offline store keeps for an interval: tiles, the events of an untiled aggregate view, or rows."""
    if view.is_tiled:
        return compute_tiles(view, interval, mocks)
    return compute_rows(view, interval, mocks).select(stored_schema(view).names)


def stored_fields(view: FeatureView) -> tuple[Field, ...]:
    """Return the columns of the offline table: keys, time, then partial columns, inputs of aggregates, or features.

    Each column of an untiled aggregate view is there once, also where several features are made of it.
    """
    secondary = () if view.secondary_key is None else (view.secondary_key,)
    time = Field(view.stored_time_column, Timestamp)
    if view.is_tiled:
        values: tuple[Field, ...] = tuple(Field(p.name, p.dtype) for p in view.partials)
    else:
        values = tuple(feature.column for feature in view.aggregates) or view.attributes
    by_name: dict[str, Field] = {}
    for field in (*view.join_keys, *secondary, time, *values):
        by_name.setdefault(field.name, field)
    return tuple(by_name.values())


def stored_schema(view: FeatureView) -> pa.Schema:
    """Return the Arrow schema of the offline table."""
    return arrow_schema(stored_fields(view))
