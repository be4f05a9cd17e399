"""Answers over a span of time: how long each value was valid, and the older row-per-event form."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurekit_dagster.domain.aggregation import distinct_spans
from featurekit_dagster.domain.feature_view import ANCHOR_TIME, FeatureView
from featurekit_dagster.engine.arrow import TIMESTAMP, arrow_schema
from featurekit_dagster.engine.keys import encode_keys
from featurekit_dagster.engine.point_in_time import change_edges
from featurekit_dagster.engine.rollup import EDGE, roll_up
from featurekit_dagster.errors import ReadError
from featurekit_dagster.intervals import format_time, to_us
from featurekit_dagster.planning.grid import Timing, ceil_us, floor_us
from featurekit_dagster.serving.point_in_time import FIRST_US, earliest, window_span
from featurekit_dagster.serving.stored import Mask, StoredRows, Times, refuse_gaps, uncovered

VALID_FROM, VALID_TO = "_valid_from", "_valid_to"
EFFECTIVE_TIME = "_effective_timestamp"
INTERVAL_START, INTERVAL_END = "_interval_start_time", "_interval_end_time"


def check_range(view: FeatureView, start_time: datetime, end_time: datetime) -> tuple[int, int]:
    """Return `[start, end)` in microseconds, the start raised to the feature start time.

    Raises:
        ReadError: Start is not before end, or end is before the feature start time.
    """
    start, end = to_us(start_time), to_us(end_time)
    if start >= end:
        raise ReadError(
            f"{view.name}: start_time {format_time(start_time)} is not before end_time {format_time(end_time)}"
        )
    _check_end(view, end_time)
    return _not_before_start(view, start), end


def check_open_range(
    view: FeatureView, start_time: datetime | None, end_time: datetime | None
) -> tuple[int | None, int | None]:
    """Return `check_range` of a range of which an end may be left out; None where it is.

    Raises:
        ReadError: As `check_range` does.
    """
    if start_time is not None and end_time is not None:
        return check_range(view, start_time, end_time)
    if end_time is not None:
        _check_end(view, end_time)
    start = None if start_time is None else _not_before_start(view, to_us(start_time))
    return start, None if end_time is None else to_us(end_time)


def _check_end(view: FeatureView, end_time: datetime) -> None:
    if view.feature_start_time is not None and to_us(end_time) < to_us(view.feature_start_time):
        raise ReadError(
            f"{view.name}: end_time {format_time(end_time)} is before feature_start_time "
            f"{format_time(view.feature_start_time)}; there are no features yet"
        )


def _not_before_start(view: FeatureView, start_us: int) -> int:
    return start_us if view.feature_start_time is None else max(start_us, to_us(view.feature_start_time))


def features_in_range(stored: StoredRows, start_us: int, end_us: int, entities: pa.Table | None = None) -> pa.Table:
    """Return join keys, features, `_valid_from` and `_valid_to`, half-open and disjoint per key, inside `[start, end]`.

    A row of an aggregate view whose features are all at their defaults is left out. Neighbouring rows of a key that
    touch and hold the same values are one row.

    Args:
        stored: Where tiles or rows come from.
        start_us: First microsecond, not before the feature start.
        end_us: First microsecond after.
        entities: Only these join keys; all of them by default.

    Raises:
        NotMaterialized: Something needed is not materialized.
    """
    view, timing = stored.view, Timing.of(stored.view)
    first, last = timing.edge(start_us), timing.edge(end_us - 1)
    if view.is_aggregate and timing.start_us is not None:
        first = max(first, ceil_us(timing.start_us, timing.grid_us))
    if start_us >= end_us or first > last:
        pieces = arrow_schema((*view.join_keys, *view.features)).empty_table()
        valid_from = valid_to = np.empty(0, np.int64)
    elif view.is_aggregate:
        pieces, valid_from, valid_to = _aggregate_pieces(stored, start_us, end_us, first, last, entities)
    else:
        pieces, valid_from, valid_to = _row_pieces(stored, start_us, end_us, entities)
    return _merged(view, pieces, valid_from, valid_to)


def _aggregate_pieces(
    stored: StoredRows, start_us: int, end_us: int, first: int, last: int, entities: pa.Table | None
) -> tuple[pa.Table, Times, Times]:
    """Evaluate every window at the first edge, and at every later one where a tile enters or leaves it."""
    view, timing = stored.view, Timing.of(stored.view)
    back, front = window_span(view)
    tile_us = timing.tile_us or 1
    _require(stored, first - back, last - front)
    tiles = only(stored.read(first - back, last - front), view, entities)
    edges = change_edges(
        tiles,
        keys=view.key_names,
        tile_us=tile_us,
        grid_us=timing.grid_us,
        spans=distinct_spans(view.aggregates),
    )
    times = edges[EDGE].cast(pa.int64()).to_numpy()
    inside = edges.filter(pa.array((times > first) & (times <= last)))
    begin = _distinct(tiles, view.key_names)
    begin = begin.append_column(EDGE, pa.array(np.full(begin.num_rows, first)).cast(TIMESTAMP))
    probes = pa.concat_tables([begin, inside]).combine_chunks()
    features = roll_up(tiles, probes, keys=view.key_names, tile_us=tile_us, features=view.aggregates)
    pieces = pa.table(
        [*probes.select(view.key_names).columns, *features.columns], names=[*view.key_names, *view.feature_names]
    )
    valid_from = np.maximum(probes[EDGE].cast(pa.int64()).to_numpy() + timing.delay_us, start_us)
    order, codes = _by_key_and_time(pieces, view.key_names, valid_from)
    pieces, valid_from = pieces.take(pa.array(order)), valid_from[order]
    valid_to = _until_next(codes, valid_from, end_us)
    shown = ~_all_default(view, pieces) & (valid_from < valid_to)
    return pieces.filter(pa.array(shown)), valid_from[shown], valid_to[shown]


def _row_pieces(
    stored: StoredRows, start_us: int, end_us: int, entities: pa.Table | None
) -> tuple[pa.Table, Times, Times]:
    """Show the last row of each (key, effective time) until the next one, or until it expires.

    Expiry is `effective + ttl` here, unlike the point-in-time rule; the two agree when ttl is a multiple of the
    schedule.
    """
    view, timing = stored.view, Timing.of(stored.view)
    last = timing.edge(end_us - 1)
    first = int(earliest(timing, timing.edge(start_us)))
    if timing.start_us is None or first > timing.start_us:
        # a row expires ttl after it became visible, which is one time for all rows of its interval
        first = floor_us(first, timing.grid_us)
        first = first if timing.start_us is None else max(first, timing.start_us)
    _require(stored, first, last)
    rows = only(stored.read(first, last), view, entities)
    times = rows[view.timestamp_field].cast(pa.int64()).to_numpy()
    order, codes = _by_key_and_time(rows, view.key_names, times)
    effective = timing.effective(times[order])
    final = np.ones(len(order), dtype=bool)
    final[:-1] = (codes[1:] != codes[:-1]) | (effective[1:] != effective[:-1])
    rows, codes, effective = rows.take(pa.array(order[final])), codes[final], effective[final]
    valid_to = _until_next(codes, effective, end_us)
    if timing.ttl_us is not None:
        valid_to = np.minimum(valid_to, effective + timing.ttl_us)
    valid_from = np.maximum(effective, start_us)
    shown = valid_from < valid_to
    pieces = rows.select([*view.key_names, *view.feature_names]).filter(pa.array(shown))
    return pieces, valid_from[shown], valid_to[shown]


def _require(stored: StoredRows, start_us: int, end_us: int) -> None:
    coverage = stored.coverage()
    if coverage is None or start_us >= end_us:
        return
    start, end = np.array([start_us]), np.array([end_us])
    if uncovered(start, end, coverage).any():
        refuse_gaps(stored.view, start, end, coverage, 0)


def only(rows: pa.Table, view: FeatureView, entities: pa.Table | None) -> pa.Table:
    """Return the rows whose join keys are among `entities`; all rows when that is None."""
    if entities is None:
        return rows
    codes = encode_keys(rows, entities, view.key_names)
    return rows.filter(pa.array(np.isin(codes.rows, codes.probes[codes.probes >= 0])))


def _distinct(rows: pa.Table, keys: Sequence[str]) -> pa.Table:
    table = rows.select(list(keys))
    if not table.num_rows:
        return table
    codes = encode_keys(table, table, keys).probes
    _, first = np.unique(codes, return_index=True)
    return table.take(pa.array(first))


def _by_key_and_time(rows: pa.Table, keys: Sequence[str], times: Times) -> tuple[Times, Times]:
    """Return the order by (key, time, position), and the key codes in that order."""
    table = rows.select(list(keys))
    codes = encode_keys(table, table, keys).probes
    order = np.lexsort((times, codes))
    return order, codes[order]


def _until_next(codes: Times, valid_from: Times, end_us: int) -> Times:
    valid_to = np.full(len(codes), end_us)
    same = codes[1:] == codes[:-1]
    valid_to[:-1][same] = np.minimum(valid_from[1:][same], end_us)
    return valid_to


def _all_default(view: FeatureView, pieces: pa.Table) -> Mask:
    default = np.ones(pieces.num_rows, dtype=bool)
    for feature in view.aggregates:
        column = pieces[feature.name]
        same = pc.is_null(column) if feature.default is None else pc.equal(column, feature.default)
        default &= same.to_numpy(zero_copy_only=False) if isinstance(same, pa.Array) else same.to_numpy()
    return default


def _merged(view: FeatureView, pieces: pa.Table, valid_from: Times, valid_to: Times) -> pa.Table:
    """Join rows of a key that touch and hold equal values; rows are sorted by key and time."""
    if pieces.num_rows:
        codes = encode_keys(pieces.select(view.key_names), pieces.select(view.key_names), view.key_names).probes
        same = (codes[1:] == codes[:-1]) & (valid_from[1:] == valid_to[:-1])
        for name in view.feature_names:
            same &= _equals_previous(pieces[name])
        starts = np.flatnonzero(np.concatenate(([True], ~same)))
        ends = np.append(starts[1:], len(valid_from)) - 1
        pieces, valid_from, valid_to = pieces.take(pa.array(starts)), valid_from[starts], valid_to[ends]
    pieces = pieces.append_column(VALID_FROM, pa.array(valid_from).cast(TIMESTAMP))
    return pieces.append_column(VALID_TO, pa.array(valid_to).cast(TIMESTAMP))


def _equals_previous(column: pa.ChunkedArray) -> Mask:
    """Tell for each value but the first whether it is the same as the one before; NULL equals NULL, NaN equals NaN."""
    codes = column.combine_chunks()
    if pa.types.is_nested(codes.type):
        values = codes.to_pylist()
        return np.array([a == b for a, b in zip(values[1:], values[:-1], strict=True)], dtype=bool)
    encoded = codes.dictionary_encode(null_encoding="encode").indices
    numbers = encoded.to_numpy(zero_copy_only=False)
    same: Mask = numbers[1:] == numbers[:-1]
    return same


def history(stored: StoredRows, start_us: int | None, end_us: int | None, entities: pa.Table | None = None) -> pa.Table:
    """Return the older range form: one row per stored row or per (key, tile), with `_effective_timestamp`.

    A view without aggregates shows every row with `start <= timestamp < end`. An aggregate view shows, for each tile
    that has data, the windows as of the tile's end, where `start <= tile end < end`; the timestamp column holds the
    tile's end.

    Args:
        stored: Where tiles or rows come from.
        start_us: First microsecond; the feature start when None.
        end_us: First microsecond after; the end of what is materialized or complete when None.
        entities: Only these join keys; all of them by default.

    Raises:
        NotMaterialized: Something needed is not materialized.

    Source: SDK page, get_historical_features.
    """
    view, timing = stored.view, Timing.of(stored.view)
    start_us, end_us = _bounds(stored, start_us, end_us)
    if not view.is_aggregate:
        _require(stored, start_us, end_us)
        rows = only(stored.read(start_us, end_us), view, entities)
        effective = timing.effective(rows[view.timestamp_field].cast(pa.int64()).to_numpy())
        names = [*view.key_names, *view.feature_names, view.timestamp_field]
        return rows.select(names).append_column(EFFECTIVE_TIME, pa.array(effective).cast(TIMESTAMP))
    back, _ = window_span(view)
    tile_us = timing.tile_us or 1
    _require(stored, ceil_us(start_us, tile_us) - back, floor_us(end_us - 1, tile_us))
    tiles = only(stored.read(ceil_us(start_us, tile_us) - back, floor_us(end_us - 1, tile_us)), view, entities)
    ends = tiles[ANCHOR_TIME].cast(pa.int64()).to_numpy() + tile_us
    probes = tiles.select(view.key_names).append_column(EDGE, pa.array(ends).cast(TIMESTAMP))
    probes = probes.filter(pa.array((ends >= start_us) & (ends < end_us)))
    features = roll_up(tiles, probes, keys=view.key_names, tile_us=tile_us, features=view.aggregates)
    ends = probes[EDGE].cast(pa.int64()).to_numpy()
    # one millisecond is taken off so that a tile end on the job grid is its own effective time
    effective = timing.effective(ends - 1000)
    columns = [*probes.select(view.key_names).columns, *features.columns, probes[EDGE]]
    names = [*view.key_names, *view.feature_names, view.timestamp_field]
    return pa.table(columns, names=names).append_column(EFFECTIVE_TIME, pa.array(effective).cast(TIMESTAMP))


def _bounds(stored: StoredRows, start_us: int | None, end_us: int | None) -> tuple[int, int]:
    """Return the given ends, or those of everything that may be read; of nothing at all there is no everything."""
    timing = Timing.of(stored.view)
    edge = timing.edge(to_us(stored.stores.clock()))
    coverage = stored.coverage()
    if start_us is None:
        start_us = FIRST_US if timing.start_us is None else timing.start_us
    if end_us is None:
        if coverage is not None and not coverage:
            _require(stored, start_us, edge)
        covered_end = edge if coverage is None else max((i.end_us for i in coverage), default=start_us)
        # the windows as of the last instant belong to the answer of an aggregate view
        end_us = covered_end + int(stored.view.is_aggregate)
    return start_us, max(start_us, end_us)


def partial_aggregates(stored: StoredRows, start_us: int, end_us: int, entities: pa.Table | None = None) -> pa.Table:
    """Return the tiles of a span: join keys, partial columns, `_interval_start_time` and `_interval_end_time`.

    The span is `[floor(start, tile), floor(end, tile) + tile)`: an end on the grid still adds the tile that begins at
    it.

    Args:
        stored: Where tiles come from.
        start_us: First microsecond.
        end_us: Last instant of interest.
        entities: Only these join keys; all of them by default.

    Raises:
        ReadError: The view has no aggregates.
        NotMaterialized: Something needed is not materialized.
    """
    view, tile_us = stored.view, Timing.of(stored.view).tile_us
    if tile_us is None:
        raise ReadError(f"{view.name}: it has no aggregates, so there are no partial ones; use get_features_in_range")
    start, end = floor_us(start_us, tile_us), floor_us(end_us, tile_us) + tile_us
    _require(stored, start, end)
    tiles = only(stored.read(start, end), view, entities)
    starts = tiles[ANCHOR_TIME].cast(pa.int64()).to_numpy()
    table = shown_partials(view, tiles)
    table = table.append_column(INTERVAL_START, tiles[ANCHOR_TIME])
    return table.append_column(INTERVAL_END, pa.array(starts + tile_us).cast(TIMESTAMP))


def shown_partials(view: FeatureView, tiles: pa.Table) -> pa.Table:
    """Return join keys and partial columns as people know them: `mean` and `sum_of_squares` are derived."""
    columns = {name: tiles[name] for name in view.key_names}
    for feature in view.aggregates:
        column = feature.column.name
        kinds = [p.kind for p in feature.partials]
        counts = pc.cast(tiles[f"count_{column}"], pa.float64()) if "count" in kinds else None
        if "m2" in kinds:
            mean = tiles[f"mean_{column}"]
            total = pc.multiply(mean, counts)
            columns[f"sum_of_squares_{column}"] = pc.add(tiles[f"m2_{column}"], pc.multiply(total, mean))
            columns.setdefault(f"sum_{column}", total)
        elif feature.function == "mean":
            total = pc.cast(tiles[f"sum_{column}"], pa.float64(), safe=False)
            columns[f"mean_{column}"] = pc.divide(total, pc.if_else(pc.equal(counts, 0.0), None, counts))
        else:
            columns[feature.partials[0].name] = tiles[feature.partials[0].name]
        if counts is not None:
            columns[f"count_{column}"] = tiles[f"count_{column}"]
    return pa.table(columns)
