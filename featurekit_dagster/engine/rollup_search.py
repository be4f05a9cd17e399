"""Where the windows of probes lie in tiles sorted by (key, time). Used by `rollup`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from featurekit_dagster.domain.windows import Span
from featurekit_dagster.engine.columns import BoolArray, Int64Array, microseconds
from featurekit_dagster.engine.keys import KeyCodes, TimePacking, encode_keys, first_of_each, sort_packed
from featurekit_dagster.engine.rollup_sums import Ranges

ANCHOR_TIME = "_anchor_time"
EDGE = "_edge"

# Earlier than every tile, and far enough from the end of int64 that a step down does not wrap.
_ALWAYS = -(1 << 62)


@dataclass(frozen=True, slots=True)
class Placed:
    """Tiles in (key, time) order, and where windows lie in them.

    Args:
        rows: Row number of each of these tiles in its table; None when they are all rows as they are.
        codes: Key code of each of them, ascending.
        ranges: Positions of each span, one range per question.
    """

    rows: Int64Array | None
    codes: Int64Array
    ranges: Mapping[Span, Ranges]


@dataclass(frozen=True, slots=True)
class Questions:
    """The distinct (key, edge) pairs that probes ask for, in ascending order, and the tiles that may answer them.

    Args:
        codes: Key code of each pair, `0 <= code < count`.
        count: How many key codes there are.
        bounds: First tile number of each span's window and the one after its last, one per pair. Bounds that spans
            share are one array.
        target: For each probe, its pair.
        known: Which probes have an edge; None when all have.
        rows: Row numbers of the tiles in reach of some window; None for all rows.
        row_codes: Key code of each of them.
        starts: Tile number of each of them.
    """

    codes: Int64Array
    count: int
    bounds: Mapping[Span, tuple[Int64Array, Int64Array]]
    target: Int64Array
    known: BoolArray | None
    rows: Int64Array | None
    row_codes: Int64Array
    starts: Int64Array


def ask(tiles: pa.Table, probes: pa.Table, keys: Sequence[str], tile_us: int, spans: Sequence[Span]) -> Questions:
    """Return what the probes ask for, each (key, edge) once.

    Args:
        tiles: Columns `keys` and `_anchor_time`.
        probes: Columns `keys` and `_edge`.
        keys: Join keys.
        tile_us: Tile size in microseconds.
        spans: The windows.

    Raises:
        UnsupportedKeyType: A key column cannot be compared.
    """
    codes = encode_keys(tiles, probes, keys)
    edges, unknown = microseconds(probes.column(EDGE))
    on_grid = all(us % tile_us == 0 for span in spans for us in (span.begin_us or 0, span.end_us))
    pair_codes, edges, target = _distinct(codes, edges, tile_us if on_grid else 1)
    bounds = _bounds(spans, edges, tile_us)
    starts = microseconds(tiles.column(ANCHOR_TIME))[0] // tile_us
    rows, row_codes, starts = _in_reach(codes.rows, starts, bounds.values())
    known = None if unknown is None else ~unknown
    return Questions(pair_codes, codes.count, bounds, target, known, rows, row_codes, starts)


def place(asked: Questions) -> Placed:
    """Sort the tiles by (key, time) and find every window of every pair by two searches."""
    packing = TimePacking.fit(asked.starts, asked.count)
    packed, rows = sort_packed(packing.pack_rows(asked.row_codes, asked.starts), asked.rows)
    found = find_bounds(packed, packing, asked.codes, asked.bounds)
    return Placed(rows, packed >> packing.bits, found)


def find_bounds(
    packed: Int64Array,
    packing: TimePacking,
    codes: Int64Array,
    bounds: Mapping[Span, tuple[Int64Array, Int64Array]],
) -> dict[Span, Ranges]:
    """Return the positions of windows in sorted packed tiles; bounds that are one array are searched once.

    Args:
        packed: Packed (key, tile number) of the tiles, ascending.
        packing: How they are packed.
        codes: Key code of each window.
        bounds: First tile number of each span's window and the one after its last.
    """
    distinct = {id(bound): bound for pair in bounds.values() for bound in pair}
    found = {key: np.searchsorted(packed, packing.pack_edges(codes, bound)) for key, bound in distinct.items()}
    return {span: Ranges(found[id(low)], found[id(high)]) for span, (low, high) in bounds.items()}


def _bounds(spans: Sequence[Span], edges: Int64Array, tile_us: int) -> dict[Span, tuple[Int64Array, Int64Array]]:
    """Return the tile numbers at which each span's windows begin and end; an edge before a lifetime gives none."""
    moved: dict[int, Int64Array] = {}

    def tiles_before(us: int) -> Int64Array:
        if us not in moved:
            moved[us] = -((-edges - us) // tile_us)
        return moved[us]

    found = {}
    for span in spans:
        high = tiles_before(span.end_us)
        if span.begin_us is None:
            first = _ALWAYS if span.since_us is None else -(-span.since_us // tile_us)
            found[span] = np.minimum(first, high), high
        else:
            found[span] = tiles_before(span.begin_us), high
    return found


def _in_reach(
    codes: Int64Array, times: Int64Array, bounds: Iterable[tuple[Int64Array, Int64Array]]
) -> tuple[Int64Array | None, Int64Array, Int64Array]:
    """Return the rows that some probe's window may hold: their numbers (None for all rows), codes and times."""
    kept = codes >= 0
    ends = [(int(low.min()), int(high.max())) for low, high in bounds if len(low)]
    if ends and len(times):
        first, end = min(low for low, _ in ends), max(high for _, high in ends)
        if times.min() < first or times.max() >= end:
            kept &= (times >= first) & (times < end)
    if kept.all():
        return None, codes, times
    rows = np.flatnonzero(kept)
    return rows, codes[rows], times[rows]


def _distinct(codes: KeyCodes, edges: Int64Array, grid: int) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Return the distinct (code, edge) pairs in ascending order, and for each probe its place among them.

    Edges between two grid times see the same tiles and are moved up to the second.
    """
    times = -(-edges // grid)
    packing = TimePacking.fit(times, codes.count)
    packed, order = sort_packed(packing.pack_rows(codes.probes, times), None)
    fresh = first_of_each(packed)
    places = np.cumsum(fresh) - 1
    target = places
    if order is not None:
        target = np.empty_like(places)
        target[order] = places
    chosen = fresh if order is None else order[fresh]
    return codes.probes[chosen], times[chosen] * grid, target
