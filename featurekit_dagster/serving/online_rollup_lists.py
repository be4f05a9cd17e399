"""Lists and sketches of one key's tiles, merged over a window: what the reducers of `online_rollup_windows` are here.

Every cell is a tile's list in ascending order of time, or one half of its sketch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

from featurekit_dagster.engine.sketches import count_distinct_of, percentile_of

Lists = Sequence[Sequence[Any]]


@lru_cache(maxsize=256)
def list_reducer(kind: str, size: int, is_float: bool) -> Callable[[Lists], list[Any]]:
    """Return what merges the lists of a window's tiles; the same function for the same arguments.

    Args:
        kind: `last_n`, `last_distinct`, `first_n` or `first_distinct`.
        size: How many values are kept.
        is_float: Whether values are floats, among which all NaN count as one.
    """
    if kind == "last_n":
        return lambda cells: _last(cells, size)
    if kind == "first_n":
        return lambda cells: _first(cells, size)
    if kind == "first_distinct":
        return lambda cells: _distinct(chain.from_iterable(cells), size, is_float)
    return lambda cells: _distinct(_newest_first(cells), size, is_float)[::-1]


def _last(cells: Lists, size: int) -> list[Any]:
    found: list[Any] = []
    for cell in reversed(cells):
        found[:0] = cell
        if len(found) >= size:
            break
    return found[-size:]


def _first(cells: Lists, size: int) -> list[Any]:
    found: list[Any] = []
    for cell in cells:
        found += cell
        if len(found) >= size:
            break
    return found[:size]


def _newest_first(cells: Lists) -> Iterable[Any]:
    for cell in reversed(cells):
        yield from reversed(cell)


def _distinct(values: Iterable[Any], size: int, is_float: bool) -> list[Any]:
    """Return the first values that differ; NaN equals NaN, and -0.0 equals 0.0."""
    found: dict[Any, Any] = {}
    for value in values:
        found.setdefault("nan" if is_float and value != value else value, value)  # noqa: PLR0124 - only NaN differs
        if len(found) == size:
            break
    return list(found.values())


@lru_cache(maxsize=64)
def distinct_counter(precision: int) -> Callable[[Lists, Lists], int]:
    """Return what counts the distinct values of a window from the indices and registers of its tiles."""
    return lambda indices, registers: count_distinct_of(indices, registers, precision)


@lru_cache(maxsize=1024)
def percentile_finder(percentile: float) -> Callable[[Lists, Lists], float | None]:
    """Return what finds a percentile of a window from the means and weights of its tiles."""
    return lambda means, weights: percentile_of(means, weights, percentile)
