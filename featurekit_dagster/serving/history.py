"""The older range form: what was stored, or what the windows held at the end of each tile, with its effective time."""

from __future__ import annotations

import pyarrow as pa

from featurekit_dagster.arrow_types import TIMESTAMP
from featurekit_dagster.domain.feature_view import ANCHOR_TIME
from featurekit_dagster.engine.columns import microseconds, rows_where, to_column
from featurekit_dagster.engine.rollup import EDGE
from featurekit_dagster.intervals import to_us
from featurekit_dagster.planning.grid import Timing, ceil_us, floor_us
from featurekit_dagster.serving.point_in_time import needed_span, rolled_up
from featurekit_dagster.serving.ranges import distinct_rows, only
from featurekit_dagster.serving.stored import FIRST_US, StoredRows, Tiles

EFFECTIVE_TIME = "_effective_timestamp"
_MILLISECOND_US = 1000


def history(stored: StoredRows, start_us: int | None, end_us: int | None, entities: pa.Table | None = None) -> pa.Table:
    """Return the older range form: one row per stored row or per (key, tile), with `_effective_timestamp`.

    A view without aggregates shows every row with `start <= timestamp < end`. An aggregate view shows, for each tile
    that has data, the windows as of the tile's end, where `start <= tile end < end`; the timestamp column holds the
    tile's end. One without tiles shows, for each time of an event, the windows that end with that event inside.

    Args:
        stored: Where tiles or rows come from.
        start_us: First microsecond; the feature start when None.
        end_us: First microsecond after; the end of what is materialized or complete when None.
        entities: Only these join keys; all of them by default.

    Raises:
        NotMaterialized: Something needed is not materialized.

    Source: SDK page, get_historical_features.
    """
    start_us, end_us = _bounds(stored, start_us, end_us)
    if stored.view.is_aggregate:
        return _windows(stored, start_us, end_us, entities)
    view, timing = stored.view, Timing.of(stored.view)
    stored.require(start_us, end_us)
    rows = only(stored.rows(start_us, end_us), view, entities)
    effective = timing.effective(microseconds(rows[view.timestamp_field])[0])
    names = [*view.key_names, *view.feature_names, view.timestamp_field]
    return rows.select(names).append_column(EFFECTIVE_TIME, to_column(effective, None, TIMESTAMP))


def _windows(stored: StoredRows, start_us: int, end_us: int, entities: pa.Table | None) -> pa.Table:
    """Return the windows as of the end of each tile, or as of each event."""
    view, timing = stored.view, Timing.of(stored.view)
    tile_us = timing.tile_us or 1
    # where every event is a tile of one microsecond, the time shown is the event's own, which is the tile's start
    shown_after = 0 if view.is_tiled else 1
    first, last = ceil_us(start_us + shown_after, tile_us), floor_us(end_us - 1 + shown_after, tile_us)
    since = int(needed_span(view.aggregates, first)[0])
    stored.require(since, last)
    # a tile that ends at the first time is shown, also where every window begins there; it is in no window then
    start = FIRST_US if view.materialization_start is None else to_us(view.materialization_start)
    tiles = stored.tiles(min(since, max(first - tile_us, start)), last, view.aggregates)
    tiles = Tiles(only(tiles.table, view, entities), tiles.tile_us)
    probes = tile_ends(tiles.table.select([*view.key_names, ANCHOR_TIME]), tile_us)
    ends = microseconds(probes[EDGE])[0]
    probes = distinct_rows(rows_where(probes, (ends >= first) & (ends <= last)))
    features = rolled_up(view, tiles, probes, view.aggregates)
    times = microseconds(probes[EDGE])[0] - shown_after
    # one millisecond is taken off so that a tile end on the job grid is its own effective time
    effective = timing.effective(times if shown_after else times - _MILLISECOND_US)
    columns = [*probes.select(view.key_names).columns, *features.columns, to_column(times, None, TIMESTAMP)]
    names = [*view.key_names, *view.feature_names, view.timestamp_field]
    return pa.table(columns, names=names).append_column(EFFECTIVE_TIME, to_column(effective, None, TIMESTAMP))


def tile_ends(tiles: pa.Table, tile_us: int) -> pa.Table:
    """Return the key columns of tiles, and the end of the tile that each row lies in as `_edge`.

    Args:
        tiles: Key columns and `_anchor_time`: starts of tiles, or times of events.
        tile_us: Tile size in microseconds.
    """
    starts = microseconds(tiles[ANCHOR_TIME])[0]
    ends = floor_us(starts, tile_us) + tile_us
    return tiles.drop_columns([ANCHOR_TIME]).append_column(EDGE, to_column(ends, None, TIMESTAMP))


def _bounds(stored: StoredRows, start_us: int | None, end_us: int | None) -> tuple[int, int]:
    """Return the given ends, or those of everything that may be read; of nothing at all there is no everything."""
    timing = Timing.of(stored.view)
    edge = timing.edge(to_us(stored.stores.clock()))
    coverage = stored.coverage()
    if start_us is None:
        start_us = FIRST_US if timing.start_us is None else timing.start_us
    if end_us is None:
        if coverage is not None and not coverage:
            stored.require(start_us, edge)
        covered_end = edge if coverage is None else max((i.end_us for i in coverage), default=start_us)
        # the windows as of the last instant belong to the answer of a view with tiles
        end_us = covered_end + int(stored.view.is_tiled)
    return start_us, max(start_us, end_us)
