"""Features of many keys from packed tiles, in one NumPy pass. Used by `online_rollup`.

All chunks are unpacked as one block of rows sorted by (key, tile); a window is then one position range per key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featurekit_dagster.domain.aggregation import AggregateFeature, PartialColumn, canonical_function
from featurekit_dagster.domain.schema import Bool, Float32, Int32, Timestamp
from featurekit_dagster.domain.windows import TimeWindow
from featurekit_dagster.errors import AggregationOverflow
from featurekit_dagster.intervals import duration_us, from_us
from featurekit_dagster.stores.online import TILES_PER_CHUNK, PackedTiles
from featurekit_dagster.stores.packing import Block, ValueCodec

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Values = npt.NDArray[Any]

_SAFE_SUM = 1 << 62


class BatchRollup:
    """Rolls up the tiles of many keys at once (see `OnlineRollup`); all columns have a fixed width."""

    def __init__(
        self, features: Sequence[AggregateFeature], partials: Sequence[PartialColumn], tile_us: int, codec: ValueCodec
    ) -> None:
        self._features = tuple(features)
        self._columns = {partial.name: at for at, partial in enumerate(partials)}
        self._tile_us = tile_us
        self._codec = codec
        self._bounds = {window: _bounds(window, tile_us) for window in dict.fromkeys(f.window for f in features)}

    def many(self, packed: Sequence[PackedTiles], edge_us: int) -> list[Sequence[Any] | None]:
        """Return the features of each key, in order; None for a key without a tile in any window."""
        values = [value for tiles in packed for _, value in tiles]
        if not values:
            return [None] * len(packed)
        block = self._codec.unpack(values)
        chunks = np.array([chunk for tiles in packed for chunk, _ in tiles])
        key_of_chunk = np.repeat(np.arange(len(packed)), [len(tiles) for tiles in packed])
        edge = -(-edge_us // self._tile_us)
        tiles = (chunks * TILES_PER_CHUNK)[block.owners] + block.leads - edge
        search = _Search(key_of_chunk[block.owners], tiles, len(packed), tuple(self._bounds.values()))
        windows = {window: search.rows(*bounds) for window, bounds in self._bounds.items()}
        rolled = _Rolled(block, self._columns)
        with np.errstate(all="ignore"):
            columns = [_feature(rolled, feature, *windows[feature.window]) for feature in self._features]
        answers: list[Sequence[Any] | None] = list(zip(*columns, strict=True))
        low = search.rows(min(begin for begin, _ in self._bounds.values()), 0)[0]
        high = search.rows(0, max(end for _, end in self._bounds.values()))[1]
        for key in np.flatnonzero(low >= high).tolist():
            answers[key] = None
        return answers


def _bounds(window: TimeWindow, tile_us: int) -> tuple[int, int]:
    """Return the window's first tile and the first one after it, relative to the edge's tile."""
    offset = duration_us(window.offset) // tile_us
    return offset - duration_us(window.window_size) // tile_us, offset


class _Search:
    """Finds each key's rows of a window; rows are sorted by (key, tile)."""

    def __init__(self, keys: Int64Array, tiles: Int64Array, count: int, bounds: Sequence[tuple[int, int]]) -> None:
        low = min(int(tiles.min()), *(begin for begin, _ in bounds))
        high = max(int(tiles.max()) + 1, 0)
        self._low, self._width = low, high - low + 1
        self._codes = keys * self._width + (tiles - low)
        self._first_codes = np.arange(count) * self._width
        self._found: dict[int, Int64Array] = {}

    def _before(self, tile: int) -> Int64Array:
        """Return for each key the position of its first row from a tile on."""
        if tile not in self._found:
            self._found[tile] = np.searchsorted(self._codes, self._first_codes + (tile - self._low))
        return self._found[tile]

    def rows(self, begin: int, end: int) -> tuple[Int64Array, Int64Array]:
        """Return for each key the first position of tiles `begin..end - 1` and the first after them."""
        return self._before(begin), self._before(end)


class _Rolled:
    """Partial columns combined over windows; each once."""

    def __init__(self, block: Block, columns: dict[str, int]) -> None:
        self._block, self._columns = block, columns
        self._prefixes: dict[str, Values] = {}
        self._lists: dict[str, list[float]] = {}
        # By partial and the identity of the bounds, which the search hands out once per bound and keeps.
        self._done: dict[tuple[str, int, int], Any] = {}

    def cells(self, partial: PartialColumn) -> tuple[Values, BoolArray | None]:
        """Return a column's cells and which are NULL."""
        at = self._columns[partial.name]
        return self._block.columns[at], self._block.nulls[at]

    def present(self, partial: PartialColumn, low: Int64Array, high: Int64Array) -> Int64Array:
        """Return how many cells of each range are not NULL."""
        null = self.cells(partial)[1]
        return high - low if null is None else self._prefix("present " + partial.name, ~null, low, high)

    def _prefix(self, name: str, cells: Values, low: Int64Array, high: Int64Array) -> Int64Array:
        sums = self._prefixes.get(name)
        if sums is None:
            sums = self._prefixes[name] = np.concatenate(([0], np.cumsum(cells, dtype=np.int64)))
        return np.asarray(sums[high] - sums[low])

    def int_sum(self, feature: AggregateFeature, partial: PartialColumn, low: Int64Array, high: Int64Array) -> Values:
        """Return the sum of each range, refused where it does not fit 64 bits."""
        cells = self.cells(partial)[0]
        found = self._prefix(partial.name, cells, low, high)
        magnitude = float(np.abs(cells.astype(np.float64)).max(initial=0.0))
        if magnitude * len(cells) >= _SAFE_SUM:
            exact = [sum(cells[a:b].tolist()) for a, b in zip(low.tolist(), high.tolist(), strict=True)]
            check_fits(feature, [total for total in exact if not -(1 << 63) <= total < 1 << 63])
        return found

    def float_sum(self, partial: PartialColumn, low: Int64Array, high: Int64Array) -> list[float]:
        """Return the correctly rounded sum of each range."""
        key = (partial.name, id(low), id(high))
        if key not in self._done:
            cells = self._lists.get(partial.name)
            if cells is None:
                cells = self._lists[partial.name] = self.cells(partial)[0].tolist()
            bounds = zip(low.tolist(), high.tolist(), strict=True)
            try:
                self._done[key] = [math.fsum(cells[a:b]) for a, b in bounds]
            except (OverflowError, ValueError):
                pairs = zip(low.tolist(), high.tolist(), strict=True)
                self._done[key] = [_float_sum(cells[a:b]) for a, b in pairs]
        found: list[float] = self._done[key]
        return found

    def extreme(self, partial: PartialColumn, low: Int64Array, high: Int64Array) -> Values:
        """Return the smallest or largest cell of each range; NaN is the greatest number."""
        cells, null = self.cells(partial)
        is_max = partial.kind == "max"
        if null is not None:
            cells = np.where(null, _neutral(cells.dtype, is_max), cells)
        combine: Any = np.maximum if is_max else np.fmin
        return _reduce(combine, cells, low, high)

    def last(self, partial: PartialColumn, low: Int64Array, high: Int64Array) -> tuple[Values, BoolArray]:
        """Return the last cell of each range that is not NULL, and where there is one."""
        cells, null = self.cells(partial)
        at = high - 1
        if null is not None:
            newest = np.maximum.accumulate(np.where(null, -1, np.arange(len(cells))))
            at = np.where(high > low, newest[np.maximum(high - 1, 0)], -1)
        there = (at >= low) & (high > low)
        return cells[np.where(there, at, 0)], there

    def moments(self, feature: AggregateFeature, low: Int64Array, high: Int64Array) -> tuple[Int64Array, Values]:
        """Return count and sum of squared distances from the mean of each range."""
        counts, means, m2s = (self.cells(partial)[0] for partial in feature.partials)
        used = counts > 0
        weights = np.where(used, counts, 0).astype(np.float64)
        means, m2s = np.where(used, means, 0.0), np.where(used, m2s, 0.0)
        number = self._prefix(feature.partials[0].name, counts, low, high)
        share = weights / _per_row(np.maximum(number, 1), low, high, 1.0, len(counts))
        centre = _reduce(np.add, share * means, low, high)
        distance = np.where(used, means - _per_row(centre, low, high, 0.0, len(counts)), 0.0)
        missed = _reduce(np.add, weights * distance, low, high)
        found = _reduce(np.add, m2s + weights * distance * distance, low, high)
        found = np.maximum(found - missed * missed / np.maximum(number, 1), 0.0)
        odd = ~(np.isfinite(means) & np.isfinite(m2s))
        if odd.any():
            found[_reduce(np.logical_or, odd, low, high) & (high > low)] = np.nan
        return number, found


def _per_row(values: Values, low: Int64Array, high: Int64Array, outside: float, rows: int) -> Values:
    """Return for each row the value of the range that it lies in."""
    spread = np.full(rows, outside)
    lengths = np.maximum(high - low, 0)
    at = np.repeat(low - (np.cumsum(lengths) - lengths), lengths) + np.arange(int(lengths.sum()))
    spread[at] = np.repeat(values, lengths)
    return spread


def _reduce(combine: Any, cells: Values, low: Int64Array, high: Int64Array) -> Values:  # noqa: ANN401 - a ufunc
    """Return a ufunc over each range; arbitrary where a range is empty."""
    padded = np.append(cells, cells[:1])
    found: Values = combine.reduceat(padded, np.column_stack((low, high)).ravel())[::2]
    return found


def _neutral(dtype: np.dtype[Any], is_max: bool) -> float | int:
    if dtype.kind == "f":
        return -np.inf if is_max else np.nan
    limits = np.iinfo(np.int64)
    return int(limits.min if is_max else limits.max)


def _float_sum(cells: Sequence[float]) -> float:
    try:
        return math.fsum(cells)
    except (OverflowError, ValueError):
        return sum(cells)


def check_fits(feature: AggregateFeature, totals: Sequence[int]) -> None:
    """Refuse sums that the feature's type cannot hold.

    Raises:
        AggregationOverflow: There is one.
    """
    if totals:
        raise AggregationOverflow(feature=feature.name, dtype=str(feature.column.dtype), count=len(totals))


def _feature(rolled: _Rolled, feature: AggregateFeature, low: Int64Array, high: Int64Array) -> list[Any]:
    """Return one feature of every key."""
    function, parts = canonical_function(feature.function), feature.partials
    if function == "last":
        cells, there = rolled.last(parts[0], low, high)
        return _listed(cells, there, _LAST.get(feature.dtype))
    if function in ("min", "max"):
        return _listed(rolled.extreme(parts[0], low, high), rolled.present(parts[0], low, high) > 0)
    if function == "mean":
        return _mean(rolled, feature, low, high)
    if len(parts) == 3:
        number, m2 = rolled.moments(feature, low, high)
        fewest = 2 if function.endswith("samp") else 1
        variance = m2 / np.maximum(number - (fewest - 1), 1)
        return _listed(np.sqrt(variance) if function.startswith("stddev") else variance, number >= fewest)
    if parts[0].dtype.is_integer:
        total = rolled.int_sum(feature, parts[0], low, high)
        if function == "count":
            found: list[Any] = total.tolist()
            return found
        if feature.dtype == Int32:
            check_fits(feature, total[(total < -(1 << 31)) | (total >= 1 << 31)].tolist())
        return _listed(total, rolled.present(parts[0], low, high) > 0)
    sums = np.array(rolled.float_sum(parts[0], low, high))
    if feature.dtype == Float32:
        sums = sums.astype(np.float32)
    return _listed(sums, rolled.present(parts[0], low, high) > 0)


def _mean(rolled: _Rolled, feature: AggregateFeature, low: Int64Array, high: Int64Array) -> list[Any]:
    total, count = feature.partials
    number = rolled.int_sum(feature, count, low, high)
    if total.dtype.is_integer:
        sums = rolled.int_sum(feature, total, low, high).astype(np.float64)
    else:
        sums = np.array(rolled.float_sum(total, low, high))
    return _listed(sums / np.maximum(number, 1), number > 0)


_LAST = {Timestamp: from_us, Bool: bool}


def _listed(values: Values, there: BoolArray, convert: Any = None) -> list[Any]:  # noqa: ANN401 - a function or None
    """Return Python values, None where there is none."""
    found: list[Any] = values.tolist()
    if convert is not None:
        found = [convert(value) for value in found]
    return found if there.all() else [value if p else None for value, p in zip(found, there.tolist(), strict=True)]
