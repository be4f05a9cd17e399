"""Lists and sketches of the tiles of one key and start, merged. Used by `tiler.py`, one tile at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain, repeat
from typing import Any

import numpy as np

Lists = Sequence[Sequence[Any]]
Timed = tuple[int, Any]

# A digest is made small again when it is so many times as long as it should be: seldom, and never by much at once.
_SLACK = 2


def merge_lists(kind: str, size: int, is_float: bool, values: Lists, times: Lists | None = None) -> list[list[Any]]:
    """Return the merged values in order of time, and their times if there are any.

    Args:
        kind: `last_n`, `last_distinct`, `first_n` or `first_distinct`.
        size: How many values are kept.
        is_float: Whether values are floats, of which all NaN count as one and -0.0 is 0.0.
        values: The lists, in the order in which they came; each in order of time.
        times: Their times, parallel to them; None where all have one time.
    """
    stamps: Iterable[int] = repeat(0) if times is None else chain.from_iterable(times)
    timed: list[Timed] = list(zip(stamps, chain.from_iterable(values), strict=False))
    if times is not None:
        timed.sort(key=_time)  # stable, so of one time those that came later are later
    if kind == "last_n":
        timed = timed[-size:]
    elif kind == "first_n":
        timed = timed[:size]
    elif kind == "last_distinct":
        timed = _distinct(reversed(timed), size, is_float)[::-1]
    else:
        timed = _distinct(timed, size, is_float)
    found = [value for _, value in timed]
    return [found] if times is None else [found, [time for time, _ in timed]]


def _time(pair: Timed) -> int:
    return pair[0]


def _distinct(timed: Iterable[Timed], size: int, is_float: bool) -> list[Timed]:
    found: dict[Any, Timed] = {}
    for time, value in timed:
        found.setdefault("nan" if is_float and value != value else value, (time, value))  # noqa: PLR0124 - only NaN
        if len(found) == size:
            break
    return list(found.values())


def merge_registers(indices: Lists, registers: Lists) -> list[list[int]]:
    """Return the registers above zero of all sketches: ascending places, and the highest rank of each."""
    best: dict[int, int] = {}
    for place, rank in zip(chain.from_iterable(indices), chain.from_iterable(registers), strict=True):
        if rank > best.get(place, 0):
            best[place] = rank
    places = sorted(best)
    return [places, [best[place] for place in places]]


def merge_digests(means: Lists, weights: Lists, *, compression: int) -> list[list[float]]:
    """Return the centroids of all digests, ascending; made fewer where they are far more than `compression`.

    Neighbours are joined as the arc sine of their place allows: least near both ends, and neither the smallest nor the
    largest, nor an infinity or a NaN with anything else.
    """
    centroids = sorted(
        zip(chain.from_iterable(means), chain.from_iterable(weights), strict=True),
        key=lambda centroid: (math.isnan(centroid[0]), centroid),
    )
    if len(centroids) > _SLACK * compression:
        centroids = _joined(centroids, compression)
    return [[mean for mean, _ in centroids], [weight for _, weight in centroids]]


def _joined(centroids: list[tuple[float, float]], compression: int) -> list[tuple[float, float]]:
    """Return fewer centroids, each made of neighbours."""
    mean, weight = (np.array(part, np.float64) for part in zip(*centroids, strict=True))
    ends = np.cumsum(weight)
    middle = (ends - weight / 2) / ends[-1]
    runs = max(compression - 2, 1)
    run = np.minimum((np.arcsin(2.0 * middle - 1.0) / np.pi + 0.5) * runs, runs - 1).astype(np.int64)
    run[0], run[-1] = -1, runs
    odd = ~np.isfinite(mean)
    fresh = np.ones(len(mean), bool)
    fresh[1:] = (run[1:] != run[:-1]) | odd[1:] | odd[:-1]
    # an equal neighbour is no loss, however odd
    fresh[1:] &= ~(odd[1:] & ((mean[1:] == mean[:-1]) | (np.isnan(mean[1:]) & np.isnan(mean[:-1]))))
    starts = np.flatnonzero(fresh)
    sums = np.add.reduceat(weight, starts)
    shares = weight / np.repeat(sums, np.diff(starts, append=len(mean)))
    with np.errstate(invalid="ignore"):
        joined = np.add.reduceat(shares * np.where(odd, 0.0, mean), starts)
    joined = np.where(odd[starts], mean[starts], joined)
    last = np.append(starts[1:], len(mean)) - 1
    joined = np.where(odd[starts], joined, np.minimum(np.maximum(joined, mean[starts]), mean[last]))
    return list(zip(joined.tolist(), sums.tolist(), strict=True))
