"""Questions about many ranges of one sequence of entries, in time that grows with the logarithm of a range's length.

A wavelet matrix answers them: it sorts the entries by one bit of their values after the other, and carries every range
along. It needs no copy of an entry per range, whatever the ranges' overlap, and only one bit's order is in memory.
Used by `sketches`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featurekit_dagster.engine.columns import Int64Array
from featurekit_dagster.engine.rollup_sums import Ranges, prefix

Int32Array = npt.NDArray[np.int32]

# Entries per block: a few arrays of so many numbers stay in the cache.
_BLOCK = 1 << 17


@dataclass(frozen=True, slots=True)
class Block:
    """Entries that a group of ranges holds, in parts that no range crosses.

    Args:
        entries: Where the block's entries stand in the whole sequence, ascending within each part.
        parts: Number of the part of each entry, ascending from 0.
        starts: Where each part begins in the block.
        chosen: Numbers of the ranges that lie in the block.
        ranges: These ranges, as positions in the block.
        bits: No part has `2**bits` entries or more.
    """

    entries: Int64Array
    parts: Int64Array
    starts: Int64Array
    chosen: Int64Array
    ranges: Ranges
    bits: int


def blocks_of(ranges: Ranges, count: int) -> Iterator[Block]:
    """Yield the entries of all ranges that are not empty, each once, in blocks of bounded size.

    Parts of like size share a block, so that the short ones, which are mostly many, pay for few bits. A part larger
    than a block is a block of its own.

    Args:
        ranges: Position ranges in a sequence of `count` entries.
        count: Length of the sequence.
    """
    asked = np.flatnonzero(ranges.high > ranges.low)
    if not len(asked):
        return
    low, high = ranges.low[asked], ranges.high[asked]
    part, starts, sizes = _parts(low, high, count)
    exponents = np.frexp(sizes.astype(np.float64))[1]
    order = np.argsort(exponents, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    by_part = np.argsort(place[part], kind="stable")
    ends = np.searchsorted(place[part][by_part], np.arange(len(order) + 1))
    total = prefix(sizes[order])
    first = 0
    while first < len(order):
        bits = int(exponents[order[first]])
        last = int(np.searchsorted(exponents[order], bits, side="right"))
        last = min(last, max(int(np.searchsorted(total, total[first] + _BLOCK, side="right")) - 1, first + 1))
        mine = by_part[ends[first] : ends[last]]
        yield _block(order[first:last], starts, sizes, asked[mine], Ranges(low[mine], high[mine]), part[mine], bits)
        first = last


def _parts(low: Int64Array, high: Int64Array, count: int) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Return the part of each range, and start and size of the parts; parts are cut wherever no range crosses."""
    crossing = np.bincount(low + 1, minlength=count + 1)
    crossing -= np.bincount(high, minlength=count + 1)
    cuts = np.flatnonzero(np.cumsum(crossing) == 0)
    owner = np.searchsorted(cuts, low, side="right") - 1
    used, part = np.unique(owner, return_inverse=True)
    return part, cuts[used], cuts[used + 1] - cuts[used]


def _block(
    chosen: Int64Array,
    starts: Int64Array,
    sizes: Int64Array,
    queries: Int64Array,
    ranges: Ranges,
    part: Int64Array,
    bits: int,
) -> Block:
    """Return the block of the chosen parts, with the ranges moved to where their part lies in it."""
    lengths = sizes[chosen]
    heads = np.cumsum(lengths) - lengths
    moved = heads - starts[chosen]
    shift = np.zeros(len(starts), np.int64)
    shift[chosen] = moved
    move = shift[part]
    parts = np.repeat(np.arange(len(chosen)), lengths)
    entries = np.arange(len(parts)) - np.repeat(moved, lengths)
    return Block(entries, parts, heads, queries, Ranges(ranges.low + move, ranges.high + move), bits)


def sums_below(values: Int32Array, weights: Int64Array, ranges: Ranges, limits: Int64Array, bits: int) -> Int64Array:
    """Return for each range the sum of the weights of the values below its limit.

    Args:
        values: Whole numbers in `[0, 2**bits)`.
        weights: One per value; their sums may wrap around as long as no answer does.
        ranges: Position ranges.
        limits: One per range, in `[0, 2**bits)`.
        bits: How many bits the values have.
    """
    found = np.zeros(len(limits), np.int64)
    low, high = ranges.low, ranges.high
    for bit in reversed(range(bits)):
        order, zeros = _split(values, bit)
        values, weights, size = values[order], weights[order], int(zeros[-1])
        sums = prefix(weights[:size])
        small_low, small_high = zeros[low], zeros[high]
        large = (limits >> bit) & 1 == 1
        found += np.where(large, sums[small_high] - sums[small_low], 0)
        low = np.where(large, low - small_low + size, small_low)
        high = np.where(large, high - small_high + size, small_high)
    return found


def select_units(
    ranks: Int32Array, weights: Int64Array | None, ranges: Ranges, units: Int64Array, bits: int
) -> tuple[Int64Array, Int64Array]:
    """Return which entry of each range holds a given unit of weight, counted from 0 in ascending order of the ranks.

    Args:
        ranks: Whole numbers in `[0, 2**bits)`, no two of one range alike.
        weights: Positive weight of each; None where all are 1.
        ranges: Position ranges.
        units: One per range, in `[0, sum of the range's weights)`.
        bits: How many bits the ranks have.

    Returns:
        The entry's rank, and the weight of all entries of the range with a smaller one.
    """
    found, rest = np.zeros(len(units), np.int64), units.copy()
    low, high = ranges.low, ranges.high
    for bit in reversed(range(bits)):
        order, zeros = _split(ranks, bit)
        ranks, size = ranks[order], int(zeros[-1])
        small_low, small_high = zeros[low], zeros[high]
        if weights is None:
            inside = small_high - small_low
        else:
            weights = weights[order]
            sums = prefix(weights[:size])
            inside = sums[small_high] - sums[small_low]
        large = rest >= inside
        rest -= np.where(large, inside, 0)
        found += large.astype(np.int64) << bit
        low = np.where(large, low - small_low + size, small_low)
        high = np.where(large, high - small_high + size, small_high)
    return found, units - rest


def _split(values: Int32Array, bit: int) -> tuple[Int64Array, Int32Array]:
    """Return the order that moves values without the bit before the others, and how many such are before a position."""
    small = (values & (1 << bit)) == 0
    before = np.empty(len(values) + 1, np.int32)
    before[0] = 0
    np.cumsum(small, out=before[1:])
    return np.concatenate([np.flatnonzero(small), np.flatnonzero(~small)]), before
