"""Approximate distinct counts and percentiles: what a tile stores of them, and how stored sketches are merged.

Plain arrays (HyperLogLog registers, t-digest centroids), since a list column can be stored, merged by NumPy for all
windows at once and given any precision. Apache DataSketches merge one object per Python call; DuckDB's states have one
fixed precision. A window's answer is a function of the union of its tiles' entries; order and grouping do not matter.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from featurekit_dagster.domain.schema import DataType, String
from featurekit_dagster.engine.columns import BoolArray, FloatArray, Int64Array, Values
from featurekit_dagster.engine.keys import first_of_each
from featurekit_dagster.engine.rollup_sums import Ranges, differences, prefix
from featurekit_dagster.engine.sketches_lists import (
    bounds_of,
    cuts_of,
    entry_ranges,
    flat,
    lists_of,
    offsets_of,
    parents_of,
)
from featurekit_dagster.engine.sketches_search import Block, blocks_of, select_units, sums_below

_HASH_DIGITS = 15
_HASH_BITS = 4 * _HASH_DIGITS
# A code holds the register's place above so many bits, and the rank in them.
_RANK_BITS = 6
_RANK_MASK = (1 << _RANK_BITS) - 1


def rank_limit(precision: int) -> int:
    """Return the largest rank; with it, sums over all registers fit 63 bits, and counts up to 2**44 are not touched."""
    return 62 - 2 * precision


def hll_code_sql(column_sql: str, dtype: DataType, precision: int) -> str:
    """Return the SQL of a value's code, `register * 64 + rank` as BIGINT; NULL of NULL.

    The hash is the head of SHA-1 over the value as text, which is the same in every version, process and language, and
    half as slow in DuckDB as MD5. The rank is one more than the number of zeros at the hash's low end.

    Args:
        column_sql: SQL of the value.
        dtype: Its type, String or an integer.
        precision: `2**precision` registers, 4 to 16.
    """
    text = column_sql if dtype == String else f"CAST({column_sql} AS VARCHAR)"
    hashed = f"CAST('0x' || substr(sha1({text}), 1, {_HASH_DIGITS}) AS BIGINT)"
    top = 1 << (rank_limit(precision) - 1)
    low = f"(({hashed} & {top - 1}) | {top})"
    rank = f"bit_count(xor({low}, {low} - 1))"
    return f"(({hashed} >> {_HASH_BITS - precision}) * {1 << _RANK_BITS} + {rank})"


def hll_code(value: str | int, precision: int) -> int:
    """Return a value's code as `hll_code_sql` does.

    >>> hll_code("", 8)
    13891
    """
    text = value if isinstance(value, str) else str(int(value))
    hashed = int(hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()[:_HASH_DIGITS], 16)
    top = 1 << (rank_limit(precision) - 1)
    low = (hashed & (top - 1)) | top
    return (hashed >> (_HASH_BITS - precision) << _RANK_BITS) + (low & -low).bit_length()


def finish_hll(codes: pa.ListArray, precision: int) -> tuple[pa.ListArray, pa.ListArray]:
    """Return the registers above zero of each list of codes, as parallel lists of places (ascending) and ranks.

    Args:
        codes: One list per tile, elements without NULL, in any order, repeated or not; NULL is an empty list.
        precision: That of the codes.
    """
    packed = flat(codes).astype(np.int64) | (parents_of(codes) << (precision + _RANK_BITS))
    if not bool((packed[1:] > packed[:-1]).all()):
        packed.sort()
    place = packed >> _RANK_BITS
    packed = packed[np.append(place[1:] != place[:-1], True)] if len(packed) else packed
    offsets = offsets_of(packed >> (precision + _RANK_BITS), len(codes))
    indices = (packed >> _RANK_BITS) & ((1 << precision) - 1)
    return lists_of(offsets, indices, pa.int64()), lists_of(offsets, packed & _RANK_MASK, pa.int64())


def count_distinct(
    indices: pa.ListArray, registers: pa.ListArray, ranges: Sequence[Ranges], precision: int
) -> list[Int64Array]:
    """Return the estimated number of distinct values of each range of tiles, 0 of an empty one.

    It is the estimate of one sketch of all values, whatever tiles they came in. Its standard error is about
    `1.04 / sqrt(2**precision)` of the number, and less while there are fewer values than registers.

    Args:
        indices: Places as `finish_hll` returns them, in (key, tile) order.
        registers: Ranks, parallel to them.
        ranges: Position ranges of tiles; none holds tiles of two keys.
        precision: That of the sketches.
    """
    bounds = bounds_of(indices)
    places, ranks = flat(indices), flat(registers)
    asked = entry_ranges(ranges, bounds)
    found = np.zeros(len(asked.low), np.int64)
    for block in blocks_of(asked, len(places)):
        found[block.chosen] = _register_sums(places[block.entries], ranks[block.entries], block, precision)
    estimates = _estimates(found >> (62 - precision), found & ((1 << (62 - precision)) - 1), precision)
    return np.split(np.rint(estimates).astype(np.int64), cuts_of(ranges))


def _register_sums(places: Int64Array, ranks: Int64Array, block: Block, precision: int) -> Int64Array:
    """Return per range of a block how many registers it sets and the sum of their `1 - 2**-rank`, packed.

    A register's final rank is the number of levels r for which the range has an entry of rank r or more. Of such
    entries exactly one has none before it in the range: the one whose predecessor lies before the range's start. So
    every (entry, level) is a point with its predecessor as value, and a range sums the points with a value below its
    start.
    """
    limit = rank_limit(precision)
    bits = len(places).bit_length()
    packed = ((block.parts << precision | places) << bits) | np.arange(len(places))
    packed.sort()
    group, entry = packed >> bits, packed & ((1 << bits) - 1)
    heads = prefix(ranks)
    values, weights = np.empty(int(heads[-1]), np.int32), np.empty(int(heads[-1]), np.int64)
    # Place in its part from 1 on, since 0 is the value of an entry without predecessor.
    local = (np.arange(len(places)) - block.starts[block.parts] + 1).astype(np.int32)
    level = 1
    while len(entry):
        at = heads[entry] + (level - 1)
        values[at[:1]] = 0
        values[at[1:]] = np.where(group[1:] == group[:-1], local[entry[:-1]], 0)
        weights[at] = (1 << (limit - level)) + (1 << (62 - precision) if level == 1 else 0)
        higher = ranks[entry] > level
        group, entry = group[higher], entry[higher]
        level += 1
    points = Ranges(heads[block.ranges.low], heads[block.ranges.high])
    return sums_below(values, weights, points, local[block.ranges.low].astype(np.int64), block.bits)


def _scale(precision: int) -> float:
    """Return the estimator's constant; the second factor takes back that few registers count too much, by 1 in m."""
    size = float(1 << precision)
    return size * size / (2.0 * math.log(2.0)) * (size / (size + 1.0))


def estimate(count: int, lost: int, precision: int) -> float:
    """Return the estimate from the number of registers above zero and the scaled sum of their `1 - 2**-rank`.

    It needs no switch between ranges and no table: zero registers enter by a series that makes few values a linear
    count (the improved raw estimator of O. Ertl, New cardinality estimation algorithms for HyperLogLog sketches, 2017).
    """
    if not count:
        return 0.0
    size = float(1 << precision)
    power = 1.0 - count / size
    series, scale = power, 1.0
    while True:
        power *= power
        following = series + power * scale
        if following == series:
            break
        series, scale = following, scale + scale
    powers = count - lost / float(1 << rank_limit(precision))
    return _scale(precision) / (size * series + powers)


def _estimates(counts: Int64Array, lost: Int64Array, precision: int) -> FloatArray:
    """Return `estimate` of each, in the same operations, so that both round alike."""
    size = float(1 << precision)
    power = np.where(counts > 0, 1.0 - counts / size, 0.0)
    series, scale = power, 1.0
    while True:
        power = power * power
        following = series + power * scale
        if np.array_equal(following, series):
            break
        series, scale = following, scale + scale
    powers = counts - lost / float(1 << rank_limit(precision))
    with np.errstate(divide="ignore"):
        return np.where(counts > 0, _scale(precision) / (size * series + powers), 0.0)


def finish_digest(values: pa.ListArray, compression: int) -> tuple[pa.ListArray, pa.ListArray]:
    """Return the centroids of each list of values, as parallel lists of means (ascending) and weights.

    Up to `compression` values are kept as they are. More are cut into runs that are short near both ends, as the
    arc sine of their place has it, the smallest and the largest value alone. A run never mixes a NaN or an infinity
    with other values, so it may take up to three more centroids then. NaN is greater than every other number.

    Args:
        values: One list per tile, elements without NULL, in any order; NULL is an empty list.
        compression: About how many centroids are kept at most.
    """
    # adding 0 makes a copy, and 0.0 of -0.0
    found, parents = flat(values).astype(np.float64) + 0.0, parents_of(values)
    _sort_within(found, parents)
    heads = np.flatnonzero(_run_starts(found, parents, compression))
    weights = np.diff(heads, append=len(found))
    offsets = offsets_of(parents[heads], len(values))
    if len(heads) < len(found):
        shares = np.add.reduceat(found / np.repeat(weights, weights), heads)
        found = np.minimum(np.maximum(shares, found[heads]), found[heads + weights - 1])
    return lists_of(offsets, found, pa.float64()), lists_of(offsets, weights.astype(np.float64), pa.float64())


def _sort_within(values: FloatArray, parents: Int64Array) -> None:
    """Sort the values of each parent, NaN last; parents are in order, and most have one value."""
    if not len(values):
        return
    joined = parents[1:] == parents[:-1]
    among = np.flatnonzero(np.append(joined, False) | np.append(False, joined))
    found = values[among]
    values[among] = found[_grouped(parents[among], np.argsort(found))]


def _grouped(groups: Int64Array, order: Int64Array) -> Int64Array:
    """Return the positions by group, those of one group as they follow each other in `order`."""
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    bits = len(order).bit_length()
    packed = (groups << bits) | place
    packed.sort()
    found: Int64Array = order[packed & ((1 << bits) - 1)]
    return found


def _run_starts(values: FloatArray, parents: Int64Array, compression: int) -> BoolArray:
    """Tell where a new centroid begins."""
    fresh = first_of_each(parents)
    heads = np.flatnonzero(fresh)
    lengths = np.diff(heads, append=len(values))
    kept: BoolArray = np.repeat(lengths <= compression, lengths)
    many, starts = np.flatnonzero(~kept), kept | fresh
    if not len(many):
        return starts
    size = np.repeat(lengths, lengths)[many]
    place = many - np.repeat(heads, lengths)[many]
    runs = max(compression - 2, 1)
    middle = np.clip((place - 0.5) / (size - 2), 0.0, 1.0)
    run = np.minimum((np.arcsin(2.0 * middle - 1.0) / np.pi + 0.5) * runs, runs - 1).astype(np.int64)
    run[place == 0] = -1
    run[place == size - 1] = runs
    before = many - (place > 0)
    differs = (values[many] != values[before]) & ~(np.isnan(values[many]) & np.isnan(values[before]))
    odd = ~np.isfinite(values[many]) | ~np.isfinite(values[before])
    starts[many] |= np.append(True, run[1:] != run[:-1]) | (differs & odd)
    return starts


def percentiles(
    means: pa.ListArray, weights: pa.ListArray, ranges: Sequence[Ranges], percentile: float | Sequence[float]
) -> list[tuple[FloatArray, BoolArray]]:
    """Return the percentile of each range of tiles, and where there is any value.

    Each centroid stands at the middle of its weight in the range's sorted centroids; between two of them the answer is
    interpolated. So as long as no tile held more values than its compression, this is the exact percentile of the
    range's values (Hazen's definition). Else at most a share of `4 / (compression - 2)` of the values lies between the
    answer and the exact one, less towards both ends. Next to an infinity or a NaN the nearer of the two is the answer.

    Args:
        means: Centroids as `finish_digest` returns them, in (key, tile) order.
        weights: Their weights, parallel to them.
        ranges: Position ranges of tiles; none holds tiles of two keys.
        percentile: Share of the values that lie below the answer, in `[0, 1]`; one for all ranges or one for each.
    """
    asked = entry_ranges(ranges, bounds_of(means))
    values, sizes = flat(means), flat(weights).astype(np.int64)
    shares = [percentile] * len(ranges) if isinstance(percentile, int | float) else percentile
    share = np.repeat(np.array(shares, np.float64), [len(part.low) for part in ranges])
    found, whole = np.zeros(len(share)), bool((sizes == 1).all())
    for block in blocks_of(asked, len(values)):
        held = None if whole else sizes[block.entries]
        found[block.chosen] = _block_percentiles(values[block.entries], held, block, share[block.chosen])
    cuts = cuts_of(ranges)
    return list(zip(np.split(found, cuts), np.split(asked.high > asked.low, cuts), strict=True))


def _block_percentiles(means: FloatArray, weights: Int64Array | None, block: Block, share: FloatArray) -> FloatArray:
    """Return the percentile of each range of a block."""
    order = np.argsort(means) if weights is None else np.lexsort((weights, means))
    entries = _grouped(block.parts, order)
    ranks = np.empty(len(means), np.int32)
    ranks[entries] = np.arange(len(means)) - block.starts[block.parts]
    start = block.starts[block.parts[block.ranges.low]]
    sums = None if weights is None else prefix(weights)
    total = block.ranges.lengths if sums is None else differences(sums, [block.ranges])[0]
    target = share * total

    def entry_at(units: Int64Array) -> tuple[Int64Array, Int64Array, Values]:
        """Return the entry that holds a unit, the weight before it and its own."""
        rank, before = select_units(ranks, weights, block.ranges, np.clip(units, 0, total - 1), block.bits)
        entry = entries[start + rank]
        return entry, before, np.ones_like(before) if weights is None else weights[entry]

    entry, before, weight = entry_at(target.astype(np.int64))
    ahead = target >= before + weight / 2
    other, other_before, other_weight = entry_at(np.where(ahead, before + weight, before - 1))
    low, high = np.where(ahead, entry, other), np.where(ahead, other, entry)
    low_middle = np.where(ahead, before + weight / 2, other_before + other_weight / 2)
    high_middle = np.where(ahead, other_before + other_weight / 2, before + weight / 2)
    return _between(means[low], means[high], target - low_middle, high_middle - target)


def _between(low: FloatArray, high: FloatArray, after_low: FloatArray, before_high: FloatArray) -> FloatArray:
    """Return what lies between two means, by the distance of the place asked for from each."""
    with np.errstate(invalid="ignore", divide="ignore"):
        share = after_low / (after_low + before_high)
        mixed = np.minimum(np.maximum(low * (1.0 - share) + high * share, low), high)
    plain = (low == high) | ~np.isfinite(low) | ~np.isfinite(high)
    return np.where(plain, np.where(after_low < before_high, low, high), mixed)


def between_two(low: float, high: float, after_low: float, before_high: float) -> float:
    """Return `_between` of one pair, in the same operations."""
    if low == high or not (math.isfinite(low) and math.isfinite(high)):
        return low if after_low < before_high else high
    share = after_low / (after_low + before_high)
    return min(max(low * (1.0 - share) + high * share, low), high)
