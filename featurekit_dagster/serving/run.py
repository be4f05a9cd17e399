"""`FeatureView.run`: the pipeline on a span of the source or of given frames, up to a chosen stage, storing nothing."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa

from featurekit_dagster.domain.aggregation import AggregateFeature
from featurekit_dagster.domain.feature_view import ANCHOR_TIME, FeatureView
from featurekit_dagster.domain.windows import TimeWindow, format_duration
from featurekit_dagster.engine.arrow import TIMESTAMP
from featurekit_dagster.engine.duck import connect
from featurekit_dagster.engine.local import compute_rows
from featurekit_dagster.engine.rollup import EDGE, roll_up
from featurekit_dagster.engine.tiles import build_tiles
from featurekit_dagster.errors import ReadError
from featurekit_dagster.intervals import Interval, duration_us

LEVELS = ("disabled", "partial", "full")


def run_view(
    view: FeatureView, interval: Interval, aggregation_level: str | None, mocks: Mapping[str, Any] | None = None
) -> pa.Table:
    """Return what the pipeline makes of a span.

    Args:
        view: The feature view.
        interval: `[start, end)` of event time; aggregates see only events inside it.
        aggregation_level: `disabled`: the transformation's rows. `partial`: one row per join key and tile, tiles
            aligned to the end of the interval, with `tile_start_time` and `tile_end_time`. `full`, the default: one
            row per join key and tile that has data, windows as of the tile's end, which is the timestamp.
        mocks: Parameter to a frame that is used instead of its source.

    Raises:
        ReadError: The level is not known or does not fit the view, or a mock has no parameter.

    Source: SDK page, run.
    """
    unknown = [name for name in mocks or {} if name not in view.inputs]
    if unknown:
        raise ReadError(
            f"{view.name}: {', '.join(unknown)} is no source parameter of the function; it has {', '.join(view.inputs)}"
        )
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
    _warn_of_length(view, interval, level)
    tiles, shift_us = _tiles(view, interval, mocks)
    return (_partial if level == "partial" else _full)(view, tiles, shift_us)


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


def _tiles(view: FeatureView, interval: Interval, mocks: Mapping[str, Any] | None) -> tuple[pa.Table, int]:
    """Return tiles that end where the interval ends, moved onto the epoch grid, and by how much they were moved."""
    tile_us = duration_us(view.aggregation_interval) if view.aggregation_interval else 1
    shift_us = interval.end_us % tile_us
    rows = compute_rows(view, interval, mocks)
    with connect() as con:
        con.register("rows", _moved(rows, view.timestamp_field, -shift_us))
        tiles = build_tiles(
            con, "rows", keys=view.key_names, timestamp=view.timestamp_field, tile_us=tile_us, partials=view.partials
        )
    return tiles, shift_us


def _moved(table: pa.Table, name: str, by_us: int) -> pa.Table:
    position = table.column_names.index(name)
    moved = pa.chunked_array(
        [pa.array(chunk.cast(pa.int64()).to_numpy() + by_us).cast(TIMESTAMP) for chunk in table[name].chunks], TIMESTAMP
    )
    return table.set_column(position, name, moved)


def _at_tile_ends(view: FeatureView, tiles: pa.Table) -> tuple[pa.Table, int]:
    tile_us = duration_us(view.aggregation_interval) if view.aggregation_interval else 1
    return _moved(tiles.select([*view.key_names, ANCHOR_TIME]), ANCHOR_TIME, tile_us).rename_columns(
        [*view.key_names, EDGE]
    ), tile_us


def _partial(view: FeatureView, tiles: pa.Table, shift_us: int) -> pa.Table:
    probes, tile_us = _at_tile_ends(view, tiles)
    features = tuple(_over_one_tile(view, feature) for feature in view.aggregates)
    distinct = tuple({feature.name: feature for feature in features}.values())
    values = roll_up(tiles, probes, keys=view.key_names, tile_us=tile_us, features=distinct)
    starts = _moved(tiles.select([ANCHOR_TIME]), ANCHOR_TIME, shift_us)[ANCHOR_TIME]
    ends = _moved(tiles.select([ANCHOR_TIME]), ANCHOR_TIME, shift_us + tile_us)[ANCHOR_TIME]
    table = pa.table([*tiles.select(view.key_names).columns, *values.columns], [*view.key_names, *values.column_names])
    return table.append_column("tile_start_time", starts).append_column("tile_end_time", ends)


def _over_one_tile(view: FeatureView, feature: AggregateFeature) -> AggregateFeature:
    """Return the feature as of a single tile, named `<column>_<function>_<tile>`."""
    tile = view.aggregation_interval or feature.window.reach
    name = f"{feature.column.name}_{feature.function}_{format_duration(tile)}"
    return replace(feature, name=name, window=TimeWindow(tile))


def _full(view: FeatureView, tiles: pa.Table, shift_us: int) -> pa.Table:
    probes, tile_us = _at_tile_ends(view, tiles)
    values = roll_up(tiles, probes, keys=view.key_names, tile_us=tile_us, features=view.aggregates)
    ends = _moved(probes, EDGE, shift_us)[EDGE]
    table = pa.table([*tiles.select(view.key_names).columns, *values.columns], [*view.key_names, *values.column_names])
    return table.append_column(view.timestamp_field, ends)
