"""`FeatureView.run`: the pipeline on a span of the source or of given frames, up to a chosen stage, storing nothing."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa

from featurekit_dagster.arrow_types import TIMESTAMP
from featurekit_dagster.domain.aggregation import AggregateFeature, AggregationFunction
from featurekit_dagster.domain.feature_view import ANCHOR_TIME, FeatureView
from featurekit_dagster.domain.windows import TimeWindow, format_duration
from featurekit_dagster.engine.columns import microseconds, to_column
from featurekit_dagster.engine.duck import connect
from featurekit_dagster.engine.local import compute_rows, tiles_of_events
from featurekit_dagster.engine.rollup import EDGE, roll_up
from featurekit_dagster.engine.tiles import build_tiles
from featurekit_dagster.errors import ReadError
from featurekit_dagster.intervals import Interval
from featurekit_dagster.planning.grid import Timing
from featurekit_dagster.serving.history import tile_ends
from featurekit_dagster.serving.partials import refuse_untiled
from featurekit_dagster.serving.point_in_time import rolled_up
from featurekit_dagster.serving.ranges import distinct_rows
from featurekit_dagster.serving.stored import Tiles, check_has_source, check_mocks

LEVELS = ("disabled", "partial", "full")


def run_view(
    view: FeatureView, interval: Interval, aggregation_level: str | None, mocks: Mapping[str, Any] | None = None
) -> pa.Table:
    """Return what the pipeline makes of a span.

    Args:
        view: The feature view.
        interval: `[start, end)` of event time; aggregates see only events inside it.
        aggregation_level: `disabled`: the transformation's rows. `partial`: one row per join key, secondary key and
            tile, tiles aligned to the end of the interval, with `tile_start_time` and `tile_end_time`. `full`, the
            default: one row per join key and tile that has data, windows as of the tile's end, which is the timestamp;
            without tiles one row per join key and time of an event, windows that end with that event inside.
        mocks: Parameter to a frame that is used instead of its source.

    Raises:
        ReadError: The level is not known or does not fit the view, a mock has no parameter, or there is no source.

    Source: SDK page, run.
    """
    check_has_source(view)
    check_mocks(view, mocks or {})
    if not view.is_aggregate and aggregation_level is not None:
        raise ReadError(
            f"{view.name}: aggregation_level {aggregation_level!r} on a view without aggregates; leave it out"
        )
    _warn_of_increments(view, interval)
    level = aggregation_level or ("full" if view.is_aggregate else "disabled")
    if level not in LEVELS:
        raise ReadError(f"{view.name}: aggregation_level {level!r} is not known; it is one of {', '.join(LEVELS)}")
    if level == "disabled":
        return compute_rows(view, interval, mocks)
    if level == "partial":
        refuse_untiled(view)
    _warn_of_length(view, interval, level)
    rows = compute_rows(view, interval, mocks)
    return (_partial if level == "partial" else _full)(view, rows, interval.end_us)


def _warn_of_increments(view: FeatureView, interval: Interval) -> None:
    if view.incremental_backfills and interval.duration != view.batch_schedule:
        warnings.warn(
            f"{view.name}: incremental_backfills=True, but {interval} is not one batch_schedule of "
            f"{format_duration(view.batch_schedule)}; the rows differ from what its jobs store",
            stacklevel=4,
        )


def _warn_of_length(view: FeatureView, interval: Interval, level: str) -> None:
    tile = view.aggregation_interval
    if tile is not None and interval.duration % tile:
        warnings.warn(
            f"{view.name}: {interval} is not a multiple of aggregation_interval {format_duration(tile)}; "
            "the first tile is cut",
            stacklevel=4,
        )
    if level == "full" and interval.duration < view.reach:
        warnings.warn(
            f"{view.name}: {interval} is shorter than the widest window, {format_duration(view.reach)}; "
            "events before it are not seen",
            stacklevel=4,
        )


def _tiles(view: FeatureView, rows: pa.Table, tile_us: int, shift_us: int) -> pa.Table:
    """Return tiles whose ends lie a shift after the epoch grid, moved back onto it."""
    with connect() as con:
        con.register("rows", _moved(rows, view.timestamp_field, -shift_us))
        return build_tiles(
            con, "rows", keys=view.tile_keys, timestamp=view.timestamp_field, tile_us=tile_us, partials=view.partials
        )


def _moved(table: pa.Table, name: str, by_us: int) -> pa.Table:
    position = table.column_names.index(name)
    return table.set_column(position, name, to_column(microseconds(table[name])[0] + by_us, None, TIMESTAMP))


def _partial(view: FeatureView, rows: pa.Table, end_us: int) -> pa.Table:
    tile_us = Timing.of(view).tile_us or 1
    shift_us = end_us % tile_us
    tiles = _tiles(view, rows, tile_us, shift_us)
    features = {feature.name: feature for feature in (_over_one_tile(view, f) for f in view.aggregates)}
    probes = tile_ends(tiles.select([*view.tile_keys, ANCHOR_TIME]), tile_us)
    values = roll_up(tiles, probes, keys=view.tile_keys, tile_us=tile_us, features=tuple(features.values()))
    starts = _moved(tiles.select([ANCHOR_TIME]), ANCHOR_TIME, shift_us)[ANCHOR_TIME]
    ends = _moved(probes.select([EDGE]), EDGE, shift_us)[EDGE]
    table = pa.table([*tiles.select(view.tile_keys).columns, *values.columns], [*view.tile_keys, *values.column_names])
    return table.append_column("tile_start_time", starts).append_column("tile_end_time", ends)


def _over_one_tile(view: FeatureView, feature: AggregateFeature) -> AggregateFeature:
    """Return the feature as of a single tile, named `<column>_<function>_<tile>`."""
    tile = view.aggregation_interval or feature.window.reach
    function = AggregationFunction(feature.function, feature.n, feature.precision, feature.percentile)
    name = f"{feature.column.name}_{function.label}_{format_duration(tile)}"
    return replace(feature, name=name, window=TimeWindow(tile))


def _full(view: FeatureView, rows: pa.Table, end_us: int) -> pa.Table:
    """Return the windows as of the end of each tile that has data, or, without tiles, as of each time of an event.

    Windows are made of single events, so that they are right wherever the tiles' ends lie.
    """
    tile_us = Timing.of(view).tile_us or 1
    # without tiles the time shown is the event's own, one microsecond before the edge
    shift_us, shown_after = (end_us % tile_us, 0) if view.is_tiled else (0, 1)
    events = tiles_of_events(view, rows, view.partials)
    moved = _moved(events.select([*view.key_names, ANCHOR_TIME]), ANCHOR_TIME, -shift_us)
    probes = distinct_rows(_moved(tile_ends(moved, tile_us), EDGE, shift_us))
    values = rolled_up(view, Tiles(events, 1), probes, view.aggregates)
    times = _moved(probes, EDGE, -shown_after)[EDGE]
    table = pa.table([*probes.select(view.key_names).columns, *values.columns], [*view.key_names, *view.feature_names])
    return table.append_column(view.timestamp_field, times)
