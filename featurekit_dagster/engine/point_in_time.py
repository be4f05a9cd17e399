"""Latest row before a time, and the edges at which a rolling answer changes.

The same packed search as `rollup`, with rows instead of tiles.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from featurekit_dagster.domain.windows import Span
from featurekit_dagster.engine.columns import Int64Array, microseconds, to_column
from featurekit_dagster.engine.keys import TimePacking, encode_keys, first_of_each, sort_packed
from featurekit_dagster.engine.rollup import ANCHOR_TIME, EDGE

_TIMESTAMP = pa.timestamp("us", "UTC")


def latest_positions(
    rows: pa.Table,
    probes: pa.Table,
    *,
    keys: Sequence[str],
    row_time: str,
    probe_time: str,
    row_order: str | None = None,
) -> Int64Array:
    """Return for each probe the number of the last row of its key with `row_time <= probe_time`, or -1.

    Rows of a key are ordered by `row_time`, then `row_order`, then position. NULL is a key and equals NULL.

    Args:
        rows: Columns `keys`, `row_time` and `row_order`, in any order.
        probes: Columns `keys` and `probe_time`, in any order.
        keys: Join keys.
        row_time: Timestamp in microseconds, or the same as int64; a row without one is never found.
        probe_time: The same on the probes' side; a probe without one finds nothing.
        row_order: Column that decides between rows of equal key and time, NULL lowest.

    Raises:
        UnsupportedKeyType: A key column cannot be compared.
    """
    codes = encode_keys(rows, probes, keys)
    times, timeless = microseconds(rows.column(row_time))
    known = codes.rows >= 0
    if timeless is not None:
        known &= ~timeless
    chosen = None if known.all() else np.flatnonzero(known)
    row_codes, row_times = (codes.rows, times) if chosen is None else (codes.rows[chosen], times[chosen])
    packing = TimePacking.fit(row_times, codes.count)
    ties = None if row_order is None else _order_values(rows.column(row_order), chosen)
    packed, chosen = sort_packed(packing.pack_rows(row_codes, row_times), chosen, ties)
    probe_times, unasked = microseconds(probes.column(probe_time))
    found = _search(packed, packing, codes.probes, probe_times)
    if unasked is not None:
        found[unasked] = -1
    return found if chosen is None or not len(chosen) else np.where(found < 0, -1, chosen[found])


def _order_values(column: pa.ChunkedArray, chosen: Int64Array | None) -> Int64Array:
    """Return the values that order rows of equal time, NULL lowest."""
    values, missing = microseconds(column)
    if missing is not None:
        values = np.where(missing, np.iinfo(np.int64).min, values)
    return values if chosen is None else values[chosen]


def _search(packed: Int64Array, packing: TimePacking, codes: Int64Array, times: Int64Array) -> Int64Array:
    """Return the position of the last row of each key not after its time, -1 where there is none.

    The needles are searched in ascending order: the branches of one search then predict those of the next.
    """
    if not len(packed):
        return np.full(len(codes), -1, np.int64)
    needles = packing.pack_edges(codes, times, inclusive=True)
    needles, order = sort_packed(needles, None)
    found = np.searchsorted(packed, needles) - 1
    if order is not None:
        below, found = found, np.empty_like(found)
        found[order] = below
    return np.where((found >= 0) & (packed[found] >> packing.bits == codes), found, -1)


def change_edges(
    tiles: pa.Table, *, keys: Sequence[str], tile_us: int, grid_us: int, spans: Iterable[Span]
) -> pa.Table:
    """Return per key the right edges on the schedule's grid at which a tile has entered or left a window.

    A window with right edge E holds a tile that starts at `s` when `s - offset < E <= s + size - offset`, so the tile
    is first seen at `ceil(s + tile - offset)` and has gone at `floor(s + size - offset) + schedule`, on that grid. A
    lifetime window never loses a tile. Between two neighbouring edges of a key no window of it changes; at an edge it
    may or may not.

    Args:
        tiles: Columns `keys` and `_anchor_time`, of tiles or of single events; other columns are not looked at.
        keys: Join keys.
        tile_us: Tile size in microseconds; 1 where each row is an event.
        grid_us: Distance of possible edges in microseconds, counted from the Unix epoch.
        spans: The windows to watch.

    Returns:
        Columns `keys` and `_edge` (timestamp[us, UTC]); distinct, key after key, edges ascending within a key.
    """
    key_columns = tiles.select(list(keys))
    codes = encode_keys(key_columns, key_columns, keys)
    times = microseconds(tiles.column(ANCHOR_TIME))[0]
    starts = times - times % tile_us
    edges: dict[tuple[bool, int], Int64Array] = {}
    for span in spans:
        enters = tile_us - span.end_us
        edges[True, enters] = -(-(starts + enters) // grid_us) * grid_us
        if span.begin_us is not None:
            edges[False, -span.begin_us] = (starts - span.begin_us) // grid_us * grid_us + grid_us
    if not edges:
        return pa.table([*key_columns.slice(0, 0).columns, pa.array([], _TIMESTAMP)], names=[*keys, EDGE])
    every_edge = np.concatenate(list(edges.values()))
    every_code = np.tile(codes.probes, len(edges))
    packed = TimePacking.fit(every_edge, codes.count).pack_rows(every_code, every_edge)
    packed, order = sort_packed(packed, None)
    fresh = first_of_each(packed)
    chosen = np.flatnonzero(fresh) if order is None else order[fresh]
    columns = key_columns.take(to_column(chosen % max(tiles.num_rows, 1), None, pa.int64()))
    return columns.append_column(EDGE, to_column(every_edge[chosen], None, _TIMESTAMP))
