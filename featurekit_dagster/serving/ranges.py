"""Answers over a span of time: how long each value was what a reader saw."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa

from featurekit_dagster.arrow_types import TIMESTAMP, arrow_schema
from featurekit_dagster.domain.aggregation import distinct_spans
from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.engine.columns import microseconds, rows_at, rows_where, to_column
from featurekit_dagster.engine.comparing import is_default, same_as_previous
from featurekit_dagster.engine.keys import encode_keys
from featurekit_dagster.engine.point_in_time import change_edges
from featurekit_dagster.engine.rollup import EDGE
from featurekit_dagster.errors import ReadError
from featurekit_dagster.intervals import duration_us, format_time, to_us
from featurekit_dagster.planning.grid import Timing, ceil_us, floor_us
from featurekit_dagster.serving.point_in_time import earliest, needed_span, rolled_up
from featurekit_dagster.serving.stored import Mask, StoredRows, Tiles, Times

VALID_FROM, VALID_TO = "_valid_from", "_valid_to"


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


def check_max_lookback(view: FeatureView, max_lookback: timedelta | None) -> int | None:
    """Return how far before a range rows are searched, in microseconds; None is as far as there are any.

    Raises:
        ReadError: It is negative, or the view has aggregates, whose windows say how far to look.
    """
    if max_lookback is None:
        return None
    if view.is_aggregate:
        raise ReadError(f"{view.name}: max_lookback on a view with aggregates, whose windows decide; leave it out")
    if max_lookback < timedelta(0):
        raise ReadError(f"{view.name}: max_lookback {max_lookback} is negative; it reaches back, so give zero or more")
    return duration_us(max_lookback)


def features_in_range(
    stored: StoredRows,
    start_us: int,
    end_us: int,
    entities: pa.Table | None = None,
    max_lookback_us: int | None = None,
) -> pa.Table:
    """Return join keys, features, `_valid_from` and `_valid_to`, half-open and disjoint per key, inside `[start, end]`.

    A row of an aggregate view whose features are all at their defaults is left out. Neighbouring rows of a key that
    touch and hold the same values are one row.

    Args:
        stored: Where tiles or rows come from.
        start_us: First microsecond, not before the feature start.
        end_us: First microsecond after.
        entities: Only these join keys; all of them by default.
        max_lookback_us: How far before the start rows are searched that are still shown in the range; None for as far
            as there are any. Only for views without aggregates.

    Raises:
        NotMaterialized: Something needed is not materialized.

    Source: SDK page, get_historical_features, which this method of later versions replaces; `_valid_from` is when a
        point-in-time read first gives the row, for streams too.
    """
    pieces, valid_from, valid_to = merged(stored.view, *pieces_of(stored, start_us, end_us, entities, max_lookback_us))
    pieces = pieces.append_column(VALID_FROM, to_column(valid_from, None, TIMESTAMP))
    return pieces.append_column(VALID_TO, to_column(valid_to, None, TIMESTAMP))


def pieces_of(
    stored: StoredRows,
    start_us: int,
    end_us: int,
    entities: pa.Table | None = None,
    max_lookback_us: int | None = None,
) -> tuple[pa.Table, Times, Times]:
    """Return join keys and features with the times from and to which they hold, sorted by key and time.

    Arguments and errors are those of `features_in_range`. Neighbours may hold the same values.
    """
    view, timing = stored.view, Timing.of(stored.view)
    first, last = timing.edge(start_us), timing.edge(end_us - 1)
    if view.is_aggregate and timing.first_edge_us is not None:
        first = max(first, ceil_us(timing.first_edge_us, timing.grid_us))
    if start_us >= end_us or first > last:
        nothing = np.empty(0, np.int64)
        return arrow_schema((*view.join_keys, *view.features)).empty_table(), nothing, nothing
    if view.is_aggregate:
        return _aggregate_pieces(stored, start_us, end_us, first, last, entities)
    return _row_pieces(stored, start_us, end_us, entities, max_lookback_us)


def _aggregate_pieces(
    stored: StoredRows, start_us: int, end_us: int, first: int, last: int, entities: pa.Table | None
) -> tuple[pa.Table, Times, Times]:
    """Evaluate every window at the first edge, and at every later one where a tile enters or leaves it."""
    view, timing = stored.view, Timing.of(stored.view)
    span = int(needed_span(view.aggregates, first)[0]), int(needed_span(view.aggregates, last)[1])
    stored.require(*span)
    tiles = stored.tiles(*span, view.aggregates)
    tiles = Tiles(only(tiles.table, view, entities), tiles.tile_us)
    probes = _edges_of_keys(view, tiles, timing, first, last)
    features = rolled_up(view, tiles, probes, view.aggregates)
    pieces = pa.table(
        [*probes.select(view.key_names).columns, *features.columns], names=[*view.key_names, *view.feature_names]
    )
    valid_from = np.maximum(timing.visible(microseconds(probes[EDGE])[0]), start_us)
    order, codes = _by_key_and_time(pieces, view.key_names, valid_from)
    pieces, valid_from = rows_at(pieces, order), valid_from[order]
    valid_to = _until_next(codes, valid_from, end_us)
    shown = ~_all_default(view, pieces) & (valid_from < valid_to)
    return rows_where(pieces, shown), valid_from[shown], valid_to[shown]


def _edges_of_keys(view: FeatureView, tiles: Tiles, timing: Timing, first: int, last: int) -> pa.Table:
    """Return for each key the first edge, and every later one not after the last at which its answer may change."""
    edges = change_edges(
        tiles.table,
        keys=view.key_names,
        tile_us=timing.tile_us or 1,
        grid_us=timing.grid_us,
        spans=distinct_spans(view.aggregates),
    )
    times = microseconds(edges[EDGE])[0]
    inside = rows_where(edges, (times > first) & (times <= last))
    begin = distinct_rows(tiles.table.select(view.key_names))
    begin = begin.append_column(EDGE, to_column(np.full(begin.num_rows, first, np.int64), None, TIMESTAMP))
    return pa.concat_tables([begin, inside]).combine_chunks()


def _row_pieces(
    stored: StoredRows, start_us: int, end_us: int, entities: pa.Table | None, max_lookback_us: int | None
) -> tuple[pa.Table, Times, Times]:
    """Show the last row of each (key, effective time) until the next one, or until it expires.

    Expiry is `effective + ttl` here, unlike the point-in-time rule; the two agree when ttl is a multiple of the
    schedule, and for streams.
    """
    view, timing = stored.view, Timing.of(stored.view)
    last = timing.edge(end_us - 1)
    first = int(earliest(timing, timing.edge(start_us)))
    if timing.start_us is None or first > timing.start_us:
        # a row expires ttl after it became visible, which is one time for all rows of its interval
        first = floor_us(first, timing.grid_us)
        first = first if timing.start_us is None else max(first, timing.start_us)
    if max_lookback_us is not None:
        first = max(first, start_us - max_lookback_us)
    stored.require(first, last)
    rows = only(stored.rows(first, last), view, entities)
    times = microseconds(rows[view.timestamp_field])[0]
    order, codes = _by_key_and_time(rows, view.key_names, times)
    effective = timing.effective(times[order])
    final = np.ones(len(order), dtype=bool)
    final[:-1] = (codes[1:] != codes[:-1]) | (effective[1:] != effective[:-1])
    rows, codes, effective = rows_at(rows, order[final]), codes[final], effective[final]
    valid_to = _until_next(codes, effective, end_us)
    if timing.ttl_us is not None:
        valid_to = np.minimum(valid_to, effective + timing.ttl_us)
    valid_from = np.maximum(effective, start_us)
    shown = valid_from < valid_to
    pieces = rows_where(rows.select([*view.key_names, *view.feature_names]), shown)
    return pieces, valid_from[shown], valid_to[shown]


def only(rows: pa.Table, view: FeatureView, entities: pa.Table | None) -> pa.Table:
    """Return the rows whose join keys are among `entities`; all rows when that is None."""
    if entities is None:
        return rows
    codes = encode_keys(rows, entities, view.key_names)
    return rows_where(rows, np.isin(codes.rows, codes.probes[codes.probes >= 0]))


def distinct_rows(table: pa.Table) -> pa.Table:
    """Return each distinct row of a table of keys and times once; NULL equals NULL."""
    if not table.num_rows:
        return table
    codes = encode_keys(table, table, table.column_names).probes
    _, first = np.unique(codes, return_index=True)
    return rows_at(table, first)


def _by_key_and_time(rows: pa.Table, keys: Sequence[str], times: Times) -> tuple[Times, Times]:
    """Return the order by (key, time, position), and the key codes in that order."""
    table = rows.select(list(keys))
    codes = encode_keys(table, table, keys).probes
    order = np.lexsort((times, codes))
    return order, codes[order]


def _until_next(codes: Times, valid_from: Times, end_us: int) -> Times:
    valid_to = np.full(len(codes), end_us, np.int64)
    same = codes[1:] == codes[:-1]
    valid_to[:-1][same] = np.minimum(valid_from[1:][same], end_us)
    return valid_to


def _all_default(view: FeatureView, pieces: pa.Table) -> Mask:
    default = np.ones(pieces.num_rows, dtype=bool)
    for name, value in zip(view.feature_names, view.defaults, strict=True):
        default &= is_default(pieces[name], value)
    return default


def merged(view: FeatureView, pieces: pa.Table, valid_from: Times, valid_to: Times) -> tuple[pa.Table, Times, Times]:
    """Join rows of a key that touch and hold equal values; rows are sorted by key and time."""
    if pieces.num_rows:
        keys = pieces.select(view.key_names)
        codes = encode_keys(keys, keys, view.key_names).probes
        same = (codes[1:] == codes[:-1]) & (valid_from[1:] == valid_to[:-1])
        for name in view.feature_names:
            same &= same_as_previous(pieces[name])
        starts = np.flatnonzero(np.concatenate(([True], ~same)))
        ends = np.append(starts[1:], len(valid_from)) - 1
        pieces, valid_from, valid_to = rows_at(pieces, starts), valid_from[starts], valid_to[ends]
    return pieces, valid_from, valid_to
