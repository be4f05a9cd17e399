"""Tiles with a secondary key, combined: each cell is a list, one element per secondary key of the tile.

The elements are taken apart, combined by `tiler.py` as tiles of their own, and put side by side again. Used where
`engine/nested_tiles.py` has laid out the tiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from featurekit_dagster.domain.aggregation import PartialColumn
from featurekit_dagster.streams.tiler import Array, Columns, IntArray, ListCells, Nulls, Tiler

_NUMBERS = {"i": np.int64, "f": np.float64}


class NestedTiler:
    """Combines nested tiles of one layout.

    Args:
        partials: What each column after the first holds; the first are the secondary keys.
        times: As in `Tiler`, counted without the first column.
        cells: How the cells of each column are read and made, the first one's too.
        number_kinds: Per column after the first: `i` for whole numbers, `f` for floats, None for anything else.
    """

    def __init__(
        self,
        partials: Sequence[PartialColumn],
        times: Mapping[int, int],
        cells: Sequence[ListCells],
        number_kinds: Sequence[str | None],
    ) -> None:
        same = ListCells(decode=_same, encode=_as_objects)
        lists = {at: same for at, kind in enumerate(number_kinds) if kind is None}
        self._tiler = Tiler(partials, times, lists)
        self._cells, self._kinds = tuple(cells), tuple(number_kinds)

    def __call__(self, columns: Columns, nulls: Nulls, groups: IntArray) -> tuple[Columns, Nulls, IntArray | None]:
        """Return one row per group, or the groups of which an integer sum does not fit (see `Tiler`)."""
        starts = np.flatnonzero(np.diff(groups, prepend=-1))
        if len(starts) == len(groups):
            return columns, nulls, None
        several = np.diff(starts, append=len(groups)) > 1
        rows = np.flatnonzero(several[groups])
        parts = [[cell.decode(c) for c in column[rows]] for cell, column in zip(self._cells, columns, strict=True)]
        made, wrong = self._combined(parts, groups[rows].tolist())
        if wrong is not None:
            return columns, nulls, wrong
        found = [column[starts] for column in columns]
        for column, cell, lists in zip(found, self._cells, made, strict=True):
            column[several] = cell.encode(lists)
        return found, [None] * len(columns), None

    def _combined(
        self, parts: list[list[Sequence[Any]]], groups: list[int]
    ) -> tuple[list[list[Sequence[Any]]], IntArray | None]:
        """Return per column the lists of each group, given those of each row and the rows' groups."""
        elements = [
            (group, key, row, place)
            for row, (group, keys) in enumerate(zip(groups, parts[0], strict=True))
            for place, key in enumerate(keys)
        ]
        # by group and secondary key, NULL last; rows stay in the order in which they came
        elements.sort(key=lambda e: (e[0], e[1] is None, () if e[1] is None else (e[1],), e[2]))
        changes = [at == 0 or elements[at - 1][:2] != element[:2] for at, element in enumerate(elements)]
        tiles = np.cumsum(changes) - 1
        flat = [[part[row][place] for _, _, row, place in elements] for part in parts[1:]]
        heads = [element for element, change in zip(elements, changes, strict=True) if change]
        combined, nulls, wrong = self._tiler(
            [_column(values, kind) for values, kind in zip(flat, self._kinds, strict=True)],
            [np.array([value is None for value in values]) for values in flat],
            tiles,
        )
        if wrong is not None:
            return [], np.unique([heads[tile][0] for tile in wrong.tolist()])
        values = [[key for _, key, _, _ in heads], *map(_values, combined, nulls)]
        ends = np.flatnonzero(np.diff([group for group, *_ in heads], append=-1)) + 1
        bounds = [0, *ends.tolist()]
        return [[cells[a:b] for a, b in pairwise(bounds)] for cells in values], None


def _column(values: list[Any], kind: str | None) -> Array:
    if kind is None:
        return _as_objects(values)
    return np.array([0 if value is None else value for value in values], _NUMBERS[kind])


def _values(column: Array, null: np.ndarray[Any, np.dtype[np.bool_]] | None) -> list[Any]:
    values: list[Any] = column.tolist()
    return values if null is None else [None if gone else v for v, gone in zip(values, null.tolist(), strict=True)]


def _as_objects(values: Sequence[Any]) -> Array:
    found = np.empty(len(values), object)
    for at, value in enumerate(values):
        found[at] = value
    return found


def _same(cell: Any) -> Any:  # noqa: ANN401 - a list of any values
    return cell
