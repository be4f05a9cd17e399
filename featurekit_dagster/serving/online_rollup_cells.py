"""Partial columns of many keys, combined over windows with NumPy. Used by `online_rollup_batch`.

`Grid` serves keys with the same tiles: every window is a slice of a (key, tile) matrix. `Ragged` serves any keys: rows
sorted by (key, tile), a window is a position range per key. Both answer alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from featurekit_dagster.domain.aggregation import PartialColumn
from featurekit_dagster.stores.packing import Block

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Values = npt.NDArray[Any]
Span = tuple[int, int]
"""A window as its first tile and the first one after it, relative to the edge's tile."""

_SAFE_SUM = float(1 << 62)


class Cells(Protocol):
    """Partial columns of some keys; every answer has one element per key."""

    def tiles(self, span: Span) -> Int64Array:
        """Return how many tiles lie in a window."""
        ...

    def present(self, partial: PartialColumn, span: Span) -> BoolArray:
        """Tell whether a window has a cell that is not NULL."""
        ...

    def total(self, partial: PartialColumn, span: Span) -> tuple[Values, int]:
        """Return the sums over a window, and how many integer ones do not fit 64 bits."""
        ...

    def extreme(self, partial: PartialColumn, span: Span) -> Values:
        """Return the smallest or largest cells, by the partial's kind; NaN is the greatest number."""
        ...

    def last(self, partial: PartialColumn, span: Span) -> tuple[Values, BoolArray]:
        """Return the last cells that are not NULL, and where there is one."""
        ...

    def moments(self, partials: Sequence[PartialColumn], span: Span) -> tuple[Int64Array, Values]:
        """Return counts and sums of squared distances from the mean, given count, mean and M2."""
        ...


class Grid:
    """Keys with tiles in the same places and without NULLs.

    Args:
        columns: Name to a matrix of one row per key and one column per tile.
        tiles: The tiles, ascending, relative to the edge's tile.
        keys: How many keys there are.
    """

    def __init__(self, columns: dict[str, Values], tiles: Int64Array, keys: int) -> None:
        self._columns, self._tiles, self._keys = columns, tiles, keys
        self._slices: dict[Span, slice] = {}
        self._done: dict[tuple[str, Span], tuple[Values, int]] = {}

    def _slice(self, span: Span) -> slice:
        found = self._slices.get(span)
        if found is None:
            first, last = self._tiles.searchsorted(span).tolist()
            found = self._slices[span] = slice(first, last)
        return found

    def tiles(self, span: Span) -> Int64Array:
        """Return how many tiles lie in a window."""
        part = self._slice(span)
        return np.full(self._keys, part.stop - part.start)

    def present(self, partial: PartialColumn, span: Span) -> BoolArray:
        """Tell whether a window has a cell that is not NULL."""
        return self.tiles(span) > 0

    def total(self, partial: PartialColumn, span: Span) -> tuple[Values, int]:
        """Return the sums over a window, and how many integer ones do not fit 64 bits."""
        key = (partial.name, span)
        if key not in self._done:
            cells = self._columns[partial.name][:, self._slice(span)]
            self._done[key] = cells.sum(axis=1), _overflows(cells, cells.shape[1], cells.tolist)
        return self._done[key]

    def extreme(self, partial: PartialColumn, span: Span) -> Values:
        """Return the smallest or largest cells, by the partial's kind; NaN is the greatest number."""
        cells = self._columns[partial.name][:, self._slice(span)]
        if not cells.shape[1]:
            return np.zeros(self._keys, cells.dtype)
        combine: Any = np.maximum if partial.kind == "max" else np.fmin
        found: Values = combine.reduce(cells, axis=1)
        return found

    def last(self, partial: PartialColumn, span: Span) -> tuple[Values, BoolArray]:
        """Return the last cells that are not NULL, and where there is one."""
        cells, there = self._columns[partial.name], self.tiles(span) > 0
        return cells[:, max(self._slice(span).stop - 1, 0)], there

    def moments(self, partials: Sequence[PartialColumn], span: Span) -> tuple[Int64Array, Values]:
        """Return counts and sums of squared distances from the mean, given count, mean and M2."""
        part = self._slice(span)
        counts, means, m2s = (self._columns[partial.name][:, part] for partial in partials)
        number = counts.sum(axis=1)
        some = np.maximum(number, 1)
        centre = (counts / some[:, None] * means).sum(axis=1)
        distance = means - centre[:, None]
        missed = (counts * distance).sum(axis=1)
        found = (m2s + counts * distance * distance).sum(axis=1) - missed * missed / some
        found = np.where((np.isfinite(means) & np.isfinite(m2s)).all(axis=1), np.maximum(found, 0.0), np.nan)
        return number, found


class Ragged:
    """Keys with tiles anywhere, and NULLs.

    Args:
        block: Rows sorted by key and tile.
        places: Partial name to its column in the block.
        keys: Per row the number of its key.
        tiles: Per row the tile, relative to the edge's tile.
        count: How many keys there are, those without rows included.
    """

    def __init__(self, block: Block, places: dict[str, int], keys: Int64Array, tiles: Int64Array, count: int) -> None:
        self._block, self._places = block, places
        self._low = int(tiles.min())
        self._width = int(tiles.max()) - self._low + 2
        self._codes = keys * self._width + (tiles - self._low)
        self._first_codes = np.arange(count) * self._width
        self._positions: dict[int, Int64Array] = {}
        self._prefixes: dict[str, Int64Array] = {}
        self._done: dict[tuple[str, Span], tuple[Values, int]] = {}

    def _before(self, tile: int) -> Int64Array:
        """Return for each key the position of its first row from a tile on."""
        found = self._positions.get(tile)
        if found is None:
            within = min(max(tile - self._low, 0), self._width - 1)
            found = self._positions[tile] = np.searchsorted(self._codes, self._first_codes + within)
        return found

    def _column(self, partial: PartialColumn) -> tuple[Values, BoolArray | None]:
        """Return a column's cells and which are NULL."""
        at = self._places[partial.name]
        return self._block.columns[at], self._block.nulls[at]

    def _count(self, name: str, cells: Values, span: Span) -> Int64Array:
        """Return the sums of integers over a window by a prefix sum; they may wrap around."""
        sums = self._prefixes.get(name)
        if sums is None:
            sums = np.zeros(len(cells) + 1, np.int64)
            np.cumsum(cells, out=sums[1:])
            self._prefixes[name] = sums
        return np.asarray(sums[self._before(span[1])] - sums[self._before(span[0])])

    def tiles(self, span: Span) -> Int64Array:
        """Return how many tiles lie in a window."""
        return np.asarray(self._before(span[1]) - self._before(span[0]))

    def present(self, partial: PartialColumn, span: Span) -> BoolArray:
        """Tell whether a window has a cell that is not NULL."""
        null = self._column(partial)[1]
        return (self.tiles(span) if null is None else self._count("present " + partial.name, ~null, span)) > 0

    def total(self, partial: PartialColumn, span: Span) -> tuple[Values, int]:
        """Return the sums over a window, and how many integer ones do not fit 64 bits."""
        key = (partial.name, span)
        if key not in self._done:
            cells = self._column(partial)[0]
            is_integer = cells.dtype.kind == "i"
            found = self._count(partial.name, cells, span) if is_integer else self._fold(np.add, cells, span)
            self._done[key] = found, _overflows(cells, int(self.tiles(span).max()), lambda: self._lists(cells, span))
        return self._done[key]

    def _lists(self, cells: Values, span: Span) -> list[list[int]]:
        bounds = zip(self._before(span[0]).tolist(), self._before(span[1]).tolist(), strict=True)
        return [cells[low:high].tolist() for low, high in bounds]

    def _fold(self, combine: Any, cells: Values, span: Span) -> Values:  # noqa: ANN401 - a ufunc
        """Return a ufunc over each window; zero where it is empty."""
        low, high = self._before(span[0]), self._before(span[1])
        padded = np.append(cells, cells[:1])
        found: Values = combine.reduceat(padded, np.column_stack((low, high)).ravel())[::2]
        found[low >= high] = 0
        return found

    def extreme(self, partial: PartialColumn, span: Span) -> Values:
        """Return the smallest or largest cells, by the partial's kind; NaN is the greatest number."""
        cells, null = self._column(partial)
        is_max = partial.kind == "max"
        if null is not None:
            cells = np.where(null, _neutral(cells.dtype, is_max), cells)
        return self._fold(np.maximum if is_max else np.fmin, cells, span)

    def last(self, partial: PartialColumn, span: Span) -> tuple[Values, BoolArray]:
        """Return the last cells that are not NULL, and where there is one."""
        cells, null = self._column(partial)
        low, high = self._before(span[0]), self._before(span[1])
        at = high - 1
        if null is not None:
            newest = np.maximum.accumulate(np.where(null, -1, np.arange(len(cells))))
            at = newest[np.maximum(at, 0)]
        there = (at >= low) & (high > low)
        return cells[np.where(there, at, 0)], there

    def moments(self, partials: Sequence[PartialColumn], span: Span) -> tuple[Int64Array, Values]:
        """Return counts and sums of squared distances from the mean, given count, mean and M2."""
        counts, means, m2s = (self._column(partial)[0] for partial in partials)
        is_used = counts > 0
        weights = np.where(is_used, counts, 0).astype(np.float64)
        means, m2s = np.where(is_used, means, 0.0), np.where(is_used, m2s, 0.0)
        number = self._count(partials[0].name, counts, span)
        some = np.maximum(number, 1)
        centre = self._fold(np.add, weights / self._per_row(some, span, 1.0) * means, span)
        distance = np.where(is_used, means - self._per_row(centre, span, 0.0), 0.0)
        missed = self._fold(np.add, weights * distance, span)
        found = self._fold(np.add, m2s + weights * distance * distance, span)
        found = np.maximum(found - missed * missed / some, 0.0)
        odd = ~(np.isfinite(means) & np.isfinite(m2s))
        if odd.any():
            found[self._count(f"odd {partials[1].name}", odd, span) > 0] = np.nan
        return number, found

    def _per_row(self, values: Values, span: Span, outside: float) -> Values:
        """Return for each row the value of its key, where the row lies in the window."""
        lengths = np.maximum(self.tiles(span), 0)
        spread = np.full(len(self._codes), outside)
        heads = np.cumsum(lengths) - lengths
        at = np.repeat(self._before(span[0]) - heads, lengths) + np.arange(int(lengths.sum()))
        spread[at] = np.repeat(values, lengths)
        return spread


def _overflows(cells: Values, longest: int, lists: Callable[[], Any]) -> int:
    """Return how many sums of integers do not fit 64 bits; `lists` gives the addends where that is possible at all."""
    if cells.dtype.kind != "i" or float(np.abs(cells.astype(np.float64)).max(initial=0.0)) * longest < _SAFE_SUM:
        return 0
    return sum(not -(1 << 63) <= sum(addends) < 1 << 63 for addends in lists())


def _neutral(dtype: np.dtype[Any], is_max: bool) -> float | int:
    if dtype.kind == "f":
        return -np.inf if is_max else np.nan
    limits = np.iinfo(np.int64)
    return int(limits.min if is_max else limits.max)
