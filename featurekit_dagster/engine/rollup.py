"""The roll-up kernel: tiles and probes in, one row of features per probe out.

The one place where windows are combined from tiles in bulk, whoever brings the tiles. Rows are found by two searches
per window on packed (key, tile) codes (`keys`), then combined by prefix sums (`rollup_sums`, `rollup_variance`), sparse
tables and positions (`rollup_extremes`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from featurekit_dagster.domain.aggregation import AggregateFeature, PartialColumn, canonical_function
from featurekit_dagster.domain.schema import DataType, Int32
from featurekit_dagster.domain.windows import Span
from featurekit_dagster.engine.arrow import arrow_type
from featurekit_dagster.engine.columns import (
    BoolArray,
    Int64Array,
    Values,
    microseconds,
    numbers,
    numpy_type,
    present,
    to_column,
)
from featurekit_dagster.engine.keys import KeyCodes, TimePacking, encode_keys, first_of_each, sort_packed
from featurekit_dagster.engine.rollup_extremes import last_positions, neutral, range_extremes
from featurekit_dagster.engine.rollup_sums import Ranges, count_ranges, float_sums, integer_sums
from featurekit_dagster.engine.rollup_variance import Moments, merge_moments
from featurekit_dagster.errors import AggregationOverflow

ANCHOR_TIME = "_anchor_time"
EDGE = "_edge"

Answer = tuple[Values, BoolArray | None]


def roll_up(
    tiles: pa.Table, probes: pa.Table, *, keys: tuple[str, ...], tile_us: int, features: Sequence[AggregateFeature]
) -> pa.Table:
    """Return every feature as of every probe's right edge.

    The window of a probe with edge E is the tiles with `E - size + offset <= start < E + offset`. Sums of floats are
    within 2**-50 of the sum of absolute values; sums of integers, counts and extremes are exact.

    Args:
        tiles: Columns `keys`, `_anchor_time` (tile start, timestamp[us, UTC]) and the features' partial columns, in any
            order. Several rows of one (key, tile) are combined; for `last` the later row counts as the later one.
        probes: Columns `keys` and `_edge` (timestamp[us, UTC]). Where the edge is NULL, all features are NULL.
        keys: Join keys; NULL is a key and equals NULL.
        tile_us: Tile size in microseconds; tile starts are multiples of it since the Unix epoch.
        features: What to compute; windows and offsets are multiples of the tile size.

    Returns:
        One row per probe, in the probes' order; one column per feature, with the feature's name and type.

    Raises:
        AggregationOverflow: A window's sum of integers does not fit the feature's type.
        UnsupportedKeyType: A key column cannot be compared.
    """
    windows = tuple(dict.fromkeys(feature.spans[0] for feature in features))
    kernel = _Kernel(_Search(tiles, probes, keys, tile_us, windows), tiles, features)
    columns = [kernel.column(feature) for feature in features]
    names = [feature.name for feature in features]
    return pa.table(columns, schema=pa.schema(list(zip(names, (column.type for column in columns), strict=True))))


class _Search:
    """Where each window of each distinct (key, edge) lies in the tiles of the probes' keys, sorted by (key, tile).

    Attributes:
        rows: Row numbers of these tiles in their table, in (key, tile) order; None when that is all rows as they are.
        codes: Key code of each of them.
        ranges: Position ranges per window, one per distinct (key, edge).
        target: For each probe, the distinct (key, edge) it asks for.
        unknown: Probes without an edge, or None.
    """

    def __init__(
        self, tiles: pa.Table, probes: pa.Table, keys: tuple[str, ...], tile_us: int, windows: tuple[Span, ...]
    ) -> None:
        codes = encode_keys(tiles, probes, keys)
        edges, self.unknown = microseconds(probes.column(EDGE))
        moves = {moved for window in windows for moved in _bounds_us(window)}
        probe_codes, edges, self.target = _distinct(codes, edges, 1 if any(m % tile_us for m in moves) else tile_us)
        bounds = {moved: -((-edges - moved) // tile_us) for moved in moves}
        starts = microseconds(tiles.column(ANCHOR_TIME))[0] // tile_us
        self.rows, row_codes, starts = _in_reach(codes.rows, starts, bounds.values())
        packing = TimePacking.fit(starts, codes.count)
        packed, self.rows = sort_packed(packing.pack_rows(row_codes, starts), self.rows)
        self.codes = packed >> packing.bits
        found = {
            moved: np.searchsorted(packed, packing.pack_edges(probe_codes, bound)) for moved, bound in bounds.items()
        }
        self.ranges = {window: Ranges(*(found[moved] for moved in _bounds_us(window))) for window in windows}


def _bounds_us(window: Span) -> tuple[int, int]:
    """Return how far the window's ends lie from the edge, in microseconds."""
    return window.begin_us or 0, window.end_us


def _in_reach(
    codes: Int64Array, times: Int64Array, bounds: Iterable[Int64Array]
) -> tuple[Int64Array | None, Int64Array, Int64Array]:
    """Return the rows that some probe's window may hold: their numbers (None for all rows), codes and times."""
    kept = codes >= 0
    ends = [(int(bound.min()), int(bound.max())) for bound in bounds if len(bound)]
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


class _Kernel:
    """Computes features; whatever two of them share is computed once."""

    def __init__(self, search: _Search, tiles: pa.Table, features: Sequence[AggregateFeature]) -> None:
        self._search = search
        self._tiles = tiles
        self._windows: dict[str, tuple[Span, ...]] = {}
        for feature in features:
            for partial in feature.partials:
                seen = self._windows.get(partial.name, ())
                if feature.spans[0] not in seen:
                    self._windows[partial.name] = (*seen, feature.spans[0])
        self._done: dict[tuple[str, Span], Any] = {}

    def column(self, feature: AggregateFeature) -> pa.ChunkedArray:
        """Return one feature for every probe, in the feature's type."""
        function = canonical_function(feature.function)
        if function == "last":
            return self._last(feature)
        if function == "mean":
            values, valid = self._mean(feature)
        elif function.startswith(("var", "stddev")):
            values, valid = self._variance(feature, function)
        else:
            values, valid = self._plain(feature, feature.partials[0])
        return self._spread(values, valid, feature.dtype)

    def _plain(self, feature: AggregateFeature, partial: PartialColumn) -> Answer:
        """Return a count, sum or extreme."""
        values, valid = self._range(partial, feature.spans[0])
        if partial.kind == "count":
            return values, None
        if partial.kind == "sum" and feature.dtype.is_integer:
            _check_fits(feature, values, self._shared(f"overflow {partial.name}", feature.spans[0]))
        return values, valid

    def _mean(self, feature: AggregateFeature) -> Answer:
        total, _ = self._range(feature.partials[0], feature.spans[0])
        count, _ = self._range(feature.partials[1], feature.spans[0])
        if feature.column.dtype.is_integer:
            overflow = self._shared(f"overflow {feature.partials[0].name}", feature.spans[0])
            if overflow is not None:
                _check_fits(feature, total, overflow)
        return total / np.maximum(count, 1), count > 0

    def _variance(self, feature: AggregateFeature, function: str) -> Answer:
        key = ("moments " + feature.column.name, feature.spans[0])
        if key not in self._done:
            windows = self._windows[feature.partials[2].name]
            count, mean, m2 = (self._load(partial)[0] for partial in feature.partials)
            moments = Moments(count, mean, m2, np.flatnonzero(first_of_each(self._search.codes)))
            found = merge_moments(moments, [self._search.ranges[window] for window in windows])
            self._done.update({(key[0], window): pair for window, pair in zip(windows, found, strict=True)})
        count, m2 = self._done[key]
        fewest = 2 if function.endswith("samp") else 1
        variance = m2 / np.maximum(count - (fewest - 1), 1)
        return np.sqrt(variance) if function.startswith("stddev") else variance, count >= fewest

    def _last(self, feature: AggregateFeature) -> pa.ChunkedArray:
        partial = feature.partials[0]
        if (partial.name, feature.spans[0]) not in self._done:
            column = self._tiles.column(partial.name)
            flags = present(column)
            valid = None if flags is None else self._sorted(flags)
            values = column.combine_chunks()
            for window in self._windows[partial.name]:
                self._done[partial.name, window] = values, last_positions(valid, self._search.ranges[window])
        values, found = self._done[partial.name, feature.spans[0]]
        found = found[self._search.target]
        there = found >= 0
        if self._search.unknown is not None:
            there &= ~self._search.unknown
        if self._search.rows is not None and len(self._search.rows):
            found = self._search.rows[found]
        return values.take(to_column(found, there, pa.int64())).cast(arrow_type(feature.dtype))

    def _range(self, partial: PartialColumn, window: Span) -> Answer:
        """Return count, sum, min or max of a partial column over a window, and where there is any value."""
        if (partial.name, window) not in self._done:
            self._fill(partial)
        answer: Answer = self._done[partial.name, window]
        return answer

    def _shared(self, name: str, window: Span) -> Any:  # noqa: ANN401 - a cache of several kinds
        return self._done.get((name, window))

    def _fill(self, partial: PartialColumn) -> None:
        """Compute a partial column over all windows that any feature needs it for."""
        windows = self._windows[partial.name]
        ranges = [self._search.ranges[window] for window in windows]
        if partial.kind == "count" and _all_one(self._tiles.column(partial.name)):
            self._done.update(
                {(partial.name, window): (part.lengths, None) for window, part in zip(windows, ranges, strict=True)}
            )
            return
        values, valid = self._load(partial)
        overflow: list[BoolArray | None] = [None] * len(ranges)
        found: Sequence[Values]
        if partial.kind in ("min", "max"):
            found = range_extremes(values, ranges, largest=partial.kind == "max")
        elif partial.dtype.is_integer:
            found, overflow = integer_sums(values, ranges)
        else:
            found = float_sums(values, ranges)
        if valid is None:
            present = [part.high > part.low for part in ranges]
        else:
            present = [count > 0 for count in count_ranges(valid, ranges)]
        for window, answer, there, wrapped in zip(windows, found, present, overflow, strict=True):
            self._done[partial.name, window] = answer, there
            self._done["overflow " + partial.name, window] = wrapped

    def _load(self, partial: PartialColumn) -> Answer:
        """Return a partial column of the sorted tiles, NULL as what changes nothing, and where it is not NULL."""
        column = self._tiles.column(partial.name).cast(arrow_type(partial.dtype))
        values, flags = numbers(column), present(column)
        if flags is None:
            return self._sorted(values), None
        extreme = partial.kind in ("min", "max")
        nothing = neutral(values.dtype, largest=partial.kind == "max") if extreme else 0
        return self._sorted(np.where(flags, values, values.dtype.type(nothing))), self._sorted(flags)

    def _sorted(self, values: Values) -> Values:
        return values if self._search.rows is None else values[self._search.rows]

    def _spread(self, values: Values, valid: BoolArray | None, dtype: DataType) -> pa.ChunkedArray:
        """Return the answers of the distinct (key, edge) pairs for every probe."""
        kind = arrow_type(dtype)
        answers = values.astype(numpy_type(kind), copy=False)[self._search.target]
        there = None if valid is None else valid[self._search.target]
        if self._search.unknown is not None:
            there = ~self._search.unknown if there is None else there & ~self._search.unknown
        return to_column(answers, there, kind)


def _check_fits(feature: AggregateFeature, sums: Int64Array, overflow: BoolArray | None) -> None:
    """Refuse sums that wrapped or that the feature's type cannot hold."""
    count = 0 if overflow is None else int(overflow.sum())
    if feature.dtype == Int32:
        limits = np.iinfo(np.int32)
        count += int(((sums < limits.min) | (sums > limits.max)).sum())
    if count:
        raise AggregationOverflow(feature=feature.name, dtype=str(feature.column.dtype), count=count)


def _all_one(column: pa.ChunkedArray) -> bool:
    """Tell whether every tile counts one event, as tiles of single rows do; then windows are as long as they count."""
    if column.null_count:
        return False
    return all(bool((numbers(pa.chunked_array([chunk])) == 1).all()) for chunk in column.chunks)
