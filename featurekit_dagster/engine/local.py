"""What a view stores for an interval, computed on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.domain.schema import Field, Timestamp
from featurekit_dagster.engine.arrow import arrow_schema
from featurekit_dagster.engine.duck import connect
from featurekit_dagster.engine.tiles import build_tiles, row_query
from featurekit_dagster.engine.transform import transform, with_utc_timestamps
from featurekit_dagster.intervals import Interval, duration_us


def compute_rows(view: FeatureView, interval: Interval, mocks: Mapping[str, Any] | None = None) -> pa.Table:
    """Return the transformation's rows with `start <= timestamp < end`: columns `view.columns`, in its order.

    Raises:
        SourceError: A source cannot be read.
        TransformError: The transformation failed or its output is not what was declared.
    """
    with connect() as con:
        return transform(con, view, interval, mocks).table()


def compute_tiles(view: FeatureView, interval: Interval, mocks: Mapping[str, Any] | None = None) -> pa.Table:
    """Return one row per join key and tile: the keys, `_anchor_time` (tile start) and the partial columns, in no order.

    Raises:
        SourceError: A source cannot be read.
        TransformError: The transformation failed, its output is not what was declared, or an integer sum overflowed.
    """
    if view.aggregation_interval is None:
        raise ValueError(f"{view.name} has no aggregates")
    with connect() as con:
        rows = transform(con, view, interval, mocks)
        with rows.safe_errors():
            return build_tiles(
                con,
                rows.relation,
                keys=view.key_names,
                timestamp=view.timestamp_field,
                tile_us=duration_us(view.aggregation_interval),
                partials=view.partials,
            )


def compute_events(view: FeatureView, interval: Interval) -> pa.Table:
    """Return every event as a tile of its own, which rolls up to the same features as tiles and spares the GROUP BY.

    The columns are those of `compute_tiles`, but `_anchor_time` is the event's own time. A `last` depends on the order
    within a tile, so a view with one gets tiles.

    Raises:
        SourceError: A source cannot be read.
        TransformError: The transformation failed, or its output is not what was declared.
    """
    if any(partial.kind == "last" for partial in view.partials):
        return compute_tiles(view, interval)
    with connect() as con:
        rows = transform(con, view, interval)
        query = row_query(rows.relation, keys=view.key_names, timestamp=view.timestamp_field, partials=view.partials)
        with rows.safe_errors():
            return with_utc_timestamps(con.sql(query).to_arrow_table())


def compute_stored(view: FeatureView, interval: Interval, mocks: Mapping[str, Any] | None = None) -> pa.Table:
    """Return what the offline store keeps for an interval: tiles of an aggregate view, rows of another."""
    if view.is_aggregate:
        return compute_tiles(view, interval, mocks)
    return compute_rows(view, interval, mocks).select(stored_schema(view).names)


def stored_fields(view: FeatureView) -> tuple[Field, ...]:
    """Return the columns of the offline table: join keys, time, and partial columns or features."""
    values = tuple(Field(p.name, p.dtype) for p in view.partials) or view.attributes
    return (*view.join_keys, Field(view.stored_time_column, Timestamp), *values)


def stored_schema(view: FeatureView) -> pa.Schema:
    """Return the Arrow schema of the offline table."""
    return arrow_schema(stored_fields(view))
