"""Variances over many ranges of tiles that store count, mean and M2. Used by `rollup`.

Merging tiles by Chan's formula needs the spread of their means round the range's own mean. Prefix sums give it at once
from distances to one centre per key; where that cancels (the range lies far from the centre, compared with its spread)
the range is summed directly round its own mean. The answer is that of input values each moved by at most 2**-50 of the
largest magnitude in the range, to a relative 1e-10.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from featurekit_dagster.engine.columns import FloatArray, Int64Array
from featurekit_dagster.engine.rollup_sums import Ranges, count_ranges, differences, float_sums, prefix

# Below this share of the sum of squares the difference has lost more digits than the bound allows.
_CANCELLED = 1e-4
_BLOCK = 1 << 22


@dataclass(frozen=True, slots=True)
class Moments:
    """Tiles in (key, tile) order; a tile without values has count 0 and anything as mean and M2.

    Args:
        count: Number of values of each tile.
        mean: Their mean.
        m2: Sum of their squared distances from it.
        key_starts: Position of the first tile of each key, ascending, first one 0.
    """

    count: Int64Array
    mean: FloatArray
    m2: FloatArray
    key_starts: Int64Array


def merge_moments(tiles: Moments, ranges: Sequence[Ranges]) -> list[tuple[Int64Array, FloatArray]]:
    """Return per range how many values it holds and the sum of their squared distances from their mean.

    The second is NaN where a mean or M2 in the range is not finite, and never negative.
    """
    usable = tiles.count > 0
    odd = usable & ~(np.isfinite(tiles.mean) & np.isfinite(tiles.m2))
    usable &= ~odd
    clean = _Tiles(
        np.where(usable, tiles.count, 0).astype(np.float64),
        np.where(usable, tiles.mean, 0.0),
        np.where(usable, tiles.m2, 0.0),
    )
    counts = differences(prefix(tiles.count), ranges)
    with np.errstate(over="ignore", invalid="ignore"):
        distance = clean.mean - _centres(clean, tiles.key_starts)
        moved = np.where(usable, clean.weight * distance, 0.0)
        first = float_sums(moved, ranges)
        second = float_sums(clean.m2 + moved * distance, ranges)
        bad = count_ranges(odd, ranges) if odd.any() else [None] * len(ranges)
        answers = []
        for part, number, linear, square, spoiled in zip(ranges, counts, first, second, bad, strict=True):
            found = square - linear * linear / np.maximum(number, 1)
            _settle(found, part, square, clean)
            if spoiled is not None:
                found[spoiled > 0] = np.nan
            answers.append((number, np.maximum(found, 0.0)))
    return answers


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Finite moments; a tile that does not count has weight 0 and zeros."""

    weight: FloatArray
    mean: FloatArray
    m2: FloatArray


def _centres(tiles: _Tiles, key_starts: Int64Array) -> FloatArray:
    """Return for each tile roughly the mean of all values of its key; any centre is right, a near one is quick."""
    if not len(tiles.mean):
        return tiles.mean
    total = np.add.reduceat(tiles.weight, key_starts)
    centre = np.add.reduceat(tiles.weight * tiles.mean, key_starts) / np.maximum(total, 1.0)
    centre[~np.isfinite(centre)] = 0.0
    return np.repeat(centre, np.diff(key_starts, append=len(tiles.mean)))


def _settle(found: FloatArray, part: Ranges, square: FloatArray, tiles: _Tiles) -> None:
    """Replace the answers that cannot be trusted: single tiles by their M2, cancelled ones by direct sums."""
    lengths = part.lengths
    single = lengths == 1
    found[single] = tiles.m2[part.low[single]]
    poor = np.flatnonzero((lengths > 1) & ~(found >= _CANCELLED * square))
    for block in _blocks(poor, lengths):
        found[block] = _direct(part.low[block], lengths[block], tiles)


def _blocks(chosen: Int64Array, lengths: Int64Array) -> Iterator[Int64Array]:
    """Yield the chosen ranges in groups of bounded total length."""
    ends = np.cumsum(lengths[chosen])
    start = 0
    while start < len(chosen):
        done = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, done + _BLOCK, side="right")), start + 1)
        yield chosen[start:stop]
        start = stop


def _direct(low: Int64Array, lengths: Int64Array, tiles: _Tiles) -> FloatArray:
    """Return M2 of each range by visiting its tiles twice: for the mean, then for the distances from it."""
    heads = np.cumsum(lengths) - lengths
    at = np.repeat(low - heads, lengths) + np.arange(int(lengths.sum()))
    weights, means = tiles.weight[at], tiles.mean[at]
    number = np.maximum(np.add.reduceat(weights, heads), 1.0)
    centre = np.add.reduceat(weights / np.repeat(number, lengths) * means, heads)
    distance = means - np.repeat(centre, lengths)
    moved = np.where(weights > 0.0, weights * distance, 0.0)
    missed = np.add.reduceat(moved, heads)
    return np.asarray(np.add.reduceat(tiles.m2[at] + moved * distance, heads) - missed * missed / number)
