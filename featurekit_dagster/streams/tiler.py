"""Tiles from tiles: events (each a tile of its own) and stored tiles of one key and start become one tile.

Works on columns of whole batches. Numbers are combined by NumPy for all tiles at once, lists and sketches tile by tile
(see `tiler_lists.py`). `domain/aggregation.py` says what each partial column holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurekit_dagster.domain.aggregation import LIST_FUNCTIONS, PartialColumn
from featurekit_dagster.streams.tiler_lists import merge_digests, merge_lists, merge_registers

Array = np.ndarray[Any, Any]
IntArray = np.ndarray[Any, np.dtype[np.int64]]
BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
Columns = list[Array]
Nulls = list[BoolArray | None]
Cell = tuple[Array, BoolArray | None]

# Sums below this cannot have wrapped; above it they are made again with Python's integers.
_SURELY_FITS = float(1 << 62)
_LIMIT = 1 << 63


class SumOverflow(ArithmeticError):
    """The integer sum of some tiles does not fit 64 bits.

    Args:
        groups: Their numbers, ascending.
    """

    def __init__(self, groups: IntArray) -> None:
        self.groups = groups
        super().__init__("the integer sum of a tile does not fit 64 bits")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListCells:
    """How the cells of a column of lists become values and cells again.

    Args:
        decode: Returns the values of one cell.
        encode: Returns the cells of many lists.
    """

    decode: Callable[[Any], Sequence[Any]]
    encode: Callable[[list[Sequence[Any]]], Array]


class Tiler:
    """Combines the tiles of one layout.

    Args:
        partials: What each of the first columns holds.
        times: Place of a column whose cells depend on the order of events, to the place of the column of their times;
            empty where all events of a tile have one time.
        lists: Place of a column of lists, to how its cells are read and made.
    """

    def __init__(
        self, partials: Sequence[PartialColumn], times: Mapping[int, int], lists: Mapping[int, ListCells]
    ) -> None:
        self._partials, self._times, self._lists = tuple(partials), dict(times), dict(lists)
        self._places = {(p.kind, p.column, p.size): at for at, p in enumerate(self._partials)}

    def __call__(self, columns: Columns, nulls: Nulls, groups: IntArray) -> tuple[Columns, Nulls, IntArray | None]:
        """Return one row per group, or the groups of which an integer sum does not fit 64 bits.

        Args:
            columns: The columns of `partials`, then those of times.
            nulls: Per column which rows are NULL, or None if no row is.
            groups: Number of each row's group, from 0 on, ascending and without gaps. Rows of a group are in the order
                in which they came.
        """
        try:
            return *self.combined(columns, nulls, groups), None
        except SumOverflow as error:
            return columns, nulls, error.groups

    def combined(self, columns: Columns, nulls: Nulls, groups: IntArray) -> tuple[Columns, Nulls]:
        """Return one row per group.

        Raises:
            SumOverflow: A sum of integers does not fit 64 bits.
        """
        work = _Groups(groups)
        if work.count == len(groups):
            return columns, nulls
        found: list[Cell | None] = [None] * len(columns)
        for at, partial in enumerate(self._partials):
            if found[at] is None:
                for place, cell in self._combined(at, partial, columns, nulls, work):
                    found[place] = cell
        cells = [cell for cell in found if cell is not None]
        return [column for column, _ in cells], [null for _, null in cells]

    def _combined(
        self, at: int, partial: PartialColumn, columns: Columns, nulls: Nulls, work: _Groups
    ) -> list[tuple[int, Cell]]:
        """Return the combined cells of a column, and of those that belong to it."""
        kind, values, null = partial.kind, columns[at], nulls[at]
        if kind in ("mean", "m2"):
            count, mean, m2 = (self._places[name, partial.column, partial.size] for name in ("count", "mean", "m2"))
            found = _moments(columns[count], columns[mean], columns[m2], nulls[mean], work)
            return list(zip((mean, m2), found, strict=True))
        if kind == "last":
            return self._newest(at, columns, nulls, work)
        if kind in LIST_FUNCTIONS:
            return self._ordered(at, partial, columns, work)
        if kind.startswith(("hll", "digest")):
            names = ("hll_indices", "hll_registers") if kind.startswith("hll") else ("digest_means", "digest_weights")
            return self._sketches([self._places[n, partial.column, partial.size] for n in names], columns, work)
        if kind in ("count", "sum"):
            return [(at, _sums(values, null, work))]
        is_float = values.dtype.kind == "f"
        smallest = np.fmin if is_float else np.minimum
        return [(at, _reduced(values, null, work, smallest if kind == "min" else np.maximum))]

    def _newest(self, at: int, columns: Columns, nulls: Nulls, work: _Groups) -> list[tuple[int, Cell]]:
        """Return the newest cell of each group that is not NULL; of one time the one that came last."""
        rows, groups = work.kept(nulls[at])
        time_at = self._times.get(at)
        if time_at is not None:
            order = np.lexsort((columns[time_at][rows], groups))
            rows, groups = rows[order], groups[order]
        ends = np.flatnonzero(np.diff(groups, append=-1))
        found = [(at, work.scattered(columns[at][rows[ends]], groups[ends]))]
        if time_at is not None:
            times, _ = work.scattered(columns[time_at][rows[ends]], groups[ends])
            found.append((time_at, (times, None)))
        return found

    def _ordered(self, at: int, partial: PartialColumn, columns: Columns, work: _Groups) -> list[tuple[int, Cell]]:
        """Return the merged lists of each group, and the times of their values."""
        places = [at] if at not in self._times else [at, self._times[at]]
        is_float = bool(partial.dtype.children) and partial.dtype.children[0].is_float

        def merge(lists: list[list[Sequence[Any]]]) -> list[list[Any]]:
            return merge_lists(partial.kind, partial.size, is_float, *lists)

        return self._merged(places, columns, work, merge)

    def _sketches(self, places: list[int], columns: Columns, work: _Groups) -> list[tuple[int, Cell]]:
        partial = self._partials[places[0]]

        def merge(lists: list[list[Sequence[Any]]]) -> list[list[Any]]:
            if partial.kind == "hll_indices":
                return merge_registers(*lists)
            return merge_digests(*lists, compression=partial.size)

        return self._merged(places, columns, work, merge)

    def _merged(
        self,
        places: list[int],
        columns: Columns,
        work: _Groups,
        merge: Callable[[list[list[Sequence[Any]]]], list[list[Any]]],
    ) -> list[tuple[int, Cell]]:
        """Return columns of lists with those of several rows of a group merged; other cells stay as they are."""
        made: list[list[list[Any]]] = [[] for _ in places]
        decoded = {place: self._lists[place].decode for place in places}
        for first, end in work.several:
            lists = [[decoded[place](cell) for cell in columns[place][first:end]] for place in places]
            for part, values in zip(made, merge(lists), strict=True):
                part.append(values)
        found: list[tuple[int, Cell]] = []
        for place, lists_made in zip(places, made, strict=True):
            cells = columns[place][work.starts]
            if lists_made:
                cells[work.several_groups] = self._lists[place].encode(lists_made)  # type: ignore[arg-type]
            found.append((place, (cells, None)))
        return found


class _Groups:
    """Rows by group, and where groups begin."""

    def __init__(self, groups: IntArray) -> None:
        self.groups = groups
        self.starts = np.flatnonzero(np.diff(groups, prepend=-1))
        self.count = len(self.starts)
        sizes = np.diff(self.starts, append=len(groups))
        self.several_groups = np.flatnonzero(sizes > 1)
        firsts = self.starts[self.several_groups]
        ends = (firsts + sizes[self.several_groups]).tolist()
        self.several = list(zip(firsts.tolist(), ends, strict=True))

    def kept(self, null: BoolArray | None) -> tuple[IntArray, IntArray]:
        """Return the rows that are not NULL, and their groups."""
        if null is None:
            return np.arange(len(self.groups)), self.groups
        rows = np.flatnonzero(~null)
        return rows, self.groups[rows]

    def scattered(self, values: Array, groups: IntArray) -> Cell:
        """Return one cell per group, NULL where there is no value."""
        if len(groups) == self.count:
            return values, None
        null = np.ones(self.count, bool)
        null[groups] = False
        cells = np.full(self.count, b"", object) if values.dtype == object else np.zeros(self.count, values.dtype)
        cells[groups] = values
        return cells, null


def _reduced(values: Array, null: BoolArray | None, work: _Groups, function: np.ufunc) -> Cell:
    """Return what a function makes of the values of each group that are not NULL."""
    rows, groups = work.kept(null)
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    if not len(starts):
        return np.zeros(work.count, values.dtype), np.ones(work.count, bool)
    with np.errstate(over="ignore", invalid="ignore"):
        found = function.reduceat(values[rows], starts)
    return work.scattered(found, groups[starts])


def _sums(values: Array, null: BoolArray | None, work: _Groups) -> Cell:
    sums, nothing = _reduced(values, null, work, np.add)
    if values.dtype.kind != "i":
        return sums, nothing
    rough, _ = _reduced(values.astype(np.float64), null, work, np.add)
    doubtful = np.flatnonzero(np.abs(rough) >= _SURELY_FITS)
    bounds = np.append(work.starts, len(work.groups))
    wrong = [
        group
        for group in doubtful.tolist()
        if not -_LIMIT <= sum(values[bounds[group] : bounds[group + 1]].tolist()) < _LIMIT
    ]
    if wrong:
        raise SumOverflow(np.array(wrong))
    return sums, nothing


def _moments(counts: Array, means: Array, m2s: Array, null: BoolArray | None, work: _Groups) -> list[Cell]:
    """Return mean and sum of squared distances from it, by Chan's formula over all rows of a group at once."""
    rows, groups = work.kept((counts == 0) if null is None else null | (counts == 0))
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    if not len(starts):
        nothing = np.zeros(work.count), np.ones(work.count, bool)
        return [nothing, nothing]
    number = counts[rows].astype(np.float64)
    within = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(rows)))
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.add.reduceat(number, starts)
        first = means[rows[starts]]
        # weights first: the sum of count times distance may be too large where the mean is not
        away = np.add.reduceat(number / total[within] * (means[rows] - first[within]), starts)
        mean = first + away
        distance = means[rows] - mean[within]
        missed = np.add.reduceat(number * distance, starts)
        m2 = np.add.reduceat(m2s[rows] + number * distance * distance, starts) - missed * missed / total
    mean, m2 = np.where(np.isfinite(away), mean, np.nan), np.maximum(m2, 0.0)
    return [work.scattered(mean, groups[starts]), work.scattered(m2, groups[starts])]
