"""What a batch job writes online, of what it has computed for the offline store."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pyarrow as pa

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.engine.columns import microseconds
from featurekit_dagster.engine.local import instant_tiles
from featurekit_dagster.engine.nested_tiles import nest_tiles
from featurekit_dagster.execution.stream_records import TileCombiner, with_no_times
from featurekit_dagster.intervals import Interval, from_us, to_us
from featurekit_dagster.planning.grid import Timing, floor_us
from featurekit_dagster.stores.online import TIMESTAMP as ONLINE_TIMESTAMP
from featurekit_dagster.stores.online import OnlineLayout


def complete_part(view: FeatureView, interval: Interval, now: datetime) -> Interval | None:
    """Return what of an interval can be written online as of a time; None if nothing can.

    Of a stream view with tiles only those that have ended: events are still added to the others by the stream.
    """
    if not (view.is_stream and view.is_aggregate):
        return interval
    end_us = min(interval.end_us, floor_us(to_us(now), view.tile_us or 1))
    return Interval(interval.start, from_us(end_us)) if end_us > interval.start_us else None


def online_rows(view: FeatureView, rows: pa.Table, part: Interval, now: datetime) -> pa.Table:
    """Return the online records of an interval's rows; expired ones and those before the feature start are left out.

    Tiles with a secondary key are nested: one online for all its values, so fewer are written than offline. Events of a
    view that stores them become a tile per instant.

    Args:
        view: The feature view.
        rows: What the offline store keeps of the interval.
        part: What of the interval is written.
        now: The time.

    Source: Manually Trigger Materialization, Overwriting previously materialized data (ttl).
    """
    if not view.is_aggregate:
        names = [ONLINE_TIMESTAMP if name == view.timestamp_field else name for name in rows.column_names]
        return rows.filter(_is_served(view, rows, now)).rename_columns(names)
    if view.is_stream:
        rows = rows.filter(pa.array(microseconds(rows[view.stored_time_column])[0] < part.end_us))
    if not view.is_tiled:
        rows = instant_tiles(view, rows)
    if view.secondary_key is not None:
        rows = nest_tiles(rows, view.key_names, view.secondary_key.name, view.partials)
    return with_no_times(view, rows)


def larger_tiles(view: FeatureView, layout: OnlineLayout) -> TileCombiner | None:
    """Return what makes the stored tiles of a view's own; None where they are as large."""
    return None if layout.tile_us == view.tile_us else TileCombiner(view, layout)


def _is_served(view: FeatureView, rows: pa.Table, now: datetime) -> pa.Array:
    times, timing = microseconds(rows[view.timestamp_field])[0], Timing.of(view)
    served = np.ones(len(times), dtype=bool) if timing.start_us is None else times >= timing.start_us
    if timing.ttl_us is not None:
        served &= timing.expires(times) > to_us(now)
    return pa.array(served)
