"""Lists and sketches of one key's tiles, merged over a window: what the reducers of `online_rollup_windows` are here.

A cell is a tile's list in ascending order of time, or one half of its sketch. Cells come packed, so that only the few
lists that an answer needs are decoded, and the numbers of a sketch all at once; the lists within a nested tile come
decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np

from featurekit_dagster.domain.schema import DataType
from featurekit_dagster.engine.columns import Values
from featurekit_dagster.engine.sketches_of_key import Digest, count_distinct_of
from featurekit_dagster.stores.cell_codec import decoder, flat_numbers

Cells = Sequence[Any]
Decode = Callable[[Any], Any]


@lru_cache(maxsize=256)
def list_reducer(kind: str, size: int, dtype: DataType, is_packed: bool) -> Callable[[Cells], list[Any]]:
    """Return what merges the lists of a window's tiles; the same function for the same arguments.

    Args:
        kind: `last_n`, `last_distinct`, `first_n` or `first_distinct`.
        size: How many values are kept.
        dtype: Type of the lists; among floats all NaN count as one.
        is_packed: Whether cells are bytes.
    """
    decode = decoder(dtype) if is_packed else _as_it_is
    is_float = dtype.children[0].is_float
    if kind == "last_n":
        return lambda cells: _last(cells, size, decode)
    if kind == "first_n":
        return lambda cells: _first(cells, size, decode)
    if kind == "first_distinct":
        return lambda cells: _distinct(chain.from_iterable(map(decode, cells)), size, is_float)
    return lambda cells: _distinct(_newest_first(cells, decode), size, is_float)[::-1]


def _as_it_is(cell: Any) -> Any:  # noqa: ANN401 - a cell of any type
    return cell


def _last(cells: Cells, size: int, decode: Decode) -> list[Any]:
    found: list[Any] = []
    for cell in reversed(cells):
        found[:0] = decode(cell)
        if len(found) >= size:
            break
    return found[-size:]


def _first(cells: Cells, size: int, decode: Decode) -> list[Any]:
    found: list[Any] = []
    for cell in cells:
        found += decode(cell)
        if len(found) >= size:
            break
    return found[:size]


def _newest_first(cells: Cells, decode: Decode) -> Iterable[Any]:
    for cell in reversed(cells):
        yield from reversed(decode(cell))


def _distinct(values: Iterable[Any], size: int, is_float: bool) -> list[Any]:
    """Return the first values that differ; NaN equals NaN, and -0.0 equals 0.0."""
    found: dict[Any, Any] = {}
    for value in values:
        found.setdefault("nan" if is_float and value != value else value, value)  # noqa: PLR0124 - only NaN differs
        if len(found) == size:
            break
    return list(found.values())


@lru_cache(maxsize=256)
def newest(dtype: DataType) -> Callable[[Cells], Any]:
    """Return what decodes the newest of packed cells."""
    decode = decoder(dtype)
    return lambda cells: decode(cells[-1])


@lru_cache(maxsize=64)
def distinct_counter(precision: int) -> Callable[[Cells, Cells], int]:
    """Return what counts the distinct values of a window from the indices and registers of its tiles."""
    return lambda indices, registers: count_distinct_of(
        _numbers(indices, np.int64), _numbers(registers, np.int64), precision
    )


def merge_digests(means: Cells, weights: Cells) -> Digest:
    """Return the merged sketch of a window's tiles, of which every percentile is one look-up."""
    return Digest.of(_numbers(means, np.float64), _numbers(weights, np.float64))


def _numbers(cells: Cells, dtype: type[np.number[Any]]) -> Values:
    """Return the elements of all lists, of which there may be none."""
    if cells and isinstance(cells[0], bytes):
        return flat_numbers(cells).astype(dtype, copy=False)
    return np.array(list(chain.from_iterable(cells)), dtype)
