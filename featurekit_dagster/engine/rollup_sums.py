"""Sums over many ranges of one sorted column.

Every range sum is the difference of two int64 prefix sums, which are exact: integers as they are, floats cut into a few
integers of fixed scale each. So no range is touched by what lies outside it, whatever its size. Used by `rollup`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featurekit_dagster.engine.columns import BoolArray, FloatArray, Int64Array, Values

# What the sum of one level over one range may need, the sign apart.
_LEVEL_BITS = 62
# Stop when what is left of each value is below 2**-52 of the smallest value: as good as rounding each value once.
_PRECISION_BITS = 52
_SAFE_EXPONENT = 1000
_BLOCK = 1 << 14


@dataclass(frozen=True, slots=True)
class Ranges:
    """Half-open position ranges `[low, high)` in one sorted column; an empty one has `low == high`."""

    low: Int64Array
    high: Int64Array

    @property
    def lengths(self) -> Int64Array:
        """Number of positions in each range."""
        return self.high - self.low


def longest(ranges: Sequence[Ranges]) -> int:
    """Return the length of the longest of all ranges, 0 without any."""
    return max((int(part.lengths.max()) for part in ranges if len(part.low)), default=0)


def prefix(values: Values) -> Int64Array:
    """Return the int64 prefix sums, one longer than `values`; they wrap around, which differences undo."""
    sums = np.empty(len(values) + 1, np.int64)
    sums[0] = 0
    np.cumsum(values, dtype=np.int64, out=sums[1:])
    return sums


def differences(sums: Int64Array, ranges: Sequence[Ranges]) -> list[Int64Array]:
    """Return the sum of each range from prefix sums; bounds that ranges share are looked up once."""
    bounds = {id(bound): bound for part in ranges for bound in (part.low, part.high)}
    found = {key: sums[bound] for key, bound in bounds.items()}
    return [found[id(part.high)] - found[id(part.low)] for part in ranges]


def count_ranges(flags: BoolArray, ranges: Sequence[Ranges]) -> list[Int64Array]:
    """Return how many positions of each range are set."""
    return differences(prefix(flags), ranges)


def integer_sums(values: Int64Array, ranges: Sequence[Ranges]) -> tuple[list[Int64Array], list[BoolArray | None]]:
    """Return the sum of each range, and where it does not fit int64 (None where all do)."""
    found = differences(prefix(values), ranges)
    top = max(abs(int(values.max())), abs(int(values.min()))) if len(values) else 0
    if top * longest(ranges) < 1 << 63:
        return found, [None] * len(found)
    # A wrapped sum is off by a multiple of 2**64, so a rough sum tells the two cases apart with certainty.
    rough = float_sums(values.astype(np.float64), ranges)
    return found, [np.abs(near - got.astype(np.float64)) > 2.0**62 for near, got in zip(rough, found, strict=True)]


def float_sums(values: FloatArray, ranges: Sequence[Ranges]) -> list[FloatArray]:
    """Return the sum of each range, within 2**-51 of the sum of its absolute values.

    NaN and infinities reach exactly the ranges that hold them: a range with a NaN, or with infinities of both signs,
    sums to NaN.
    """
    if not len(values):
        return [np.zeros(len(part.low)) for part in ranges]
    top = float(np.abs(values).max())
    if math.isfinite(top):
        return _finite_sums(values, top, ranges)
    finite = np.isfinite(values)
    kept = np.where(finite, values, 0.0)
    sums = _finite_sums(kept, float(np.abs(kept).max()), ranges)
    with np.errstate(invalid="ignore"):
        for special in (np.nan, np.inf, -np.inf):
            flags = np.isnan(values) if special != special else values == special  # noqa: PLR0124 - NaN differs from itself
            for total, count in zip(sums, count_ranges(flags, ranges), strict=True):
                total[count > 0] += special
    return sums


def _finite_sums(values: FloatArray, top: float, ranges: Sequence[Ranges]) -> list[FloatArray]:
    """Return the sums of finite values whose largest magnitude is `top`.

    Each level takes the leading bits of what is left as whole numbers of one unit, few enough that no range overflows.
    Adding the levels from coarse to fine rounds only where the finer ones can no longer cancel the coarser.
    """
    sums = [np.zeros(len(part.low)) for part in ranges]
    bits = _LEVEL_BITS - longest(ranges).bit_length()
    if top == 0.0:
        return sums
    shift = bits - math.frexp(top)[1]
    floor_exponent: int | None = None
    rest = values.copy()
    while True:
        level, left = _cut(rest, shift)
        for total, units in zip(sums, differences(level, ranges), strict=True):
            with np.errstate(over="ignore"):
                np.add(total, _scale(units.astype(np.float64), -shift), out=total)
        if not left:
            return sums
        if floor_exponent is None:
            floor_exponent = math.frexp(float(np.abs(values[values != 0.0]).min()))[1] - 1
        if -shift <= floor_exponent - _PRECISION_BITS:
            return sums
        shift += bits


def _cut(rest: FloatArray, shift: int) -> tuple[Int64Array, bool]:
    """Take the multiples of `2**-shift` out of `rest`; return their prefix sums in that unit and whether any is left.

    Cutting is towards zero, which makes no value larger, so nothing overflows on the way back. A block fits the cache.
    """
    sums = np.empty(len(rest) + 1, np.int64)
    sums[0] = 0
    left = False
    for start in range(0, len(rest), _BLOCK):
        block = rest[start : start + _BLOCK]
        whole = _scale(block, shift).astype(np.int64)
        np.subtract(block, _scale(whole.astype(np.float64), -shift), out=block)
        left = left or bool(block.any())
        # Sums may wrap around, which differences undo; numbers by themselves would warn of it, arrays do not.
        whole[:1] += sums[start : start + 1]
        np.cumsum(whole, out=sums[start + 1 : start + 1 + len(block)])
    return sums, left


def _scale(values: FloatArray, exponent: int) -> FloatArray:
    """Return `values * 2**exponent`, also where the factor itself is no double."""
    with np.errstate(over="ignore", under="ignore"):
        if abs(exponent) < _SAFE_EXPONENT:
            return np.multiply(values, 2.0**exponent)
        return np.ldexp(values, exponent)
