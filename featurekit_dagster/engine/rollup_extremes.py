"""Smallest, largest and last values over many ranges of one sorted column. Used by `rollup`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from featurekit_dagster.engine.columns import BoolArray, Int64Array, Values
from featurekit_dagster.engine.rollup_sums import Ranges


def range_extremes(values: Values, ranges: Sequence[Ranges], *, largest: bool) -> list[Values]:
    """Return the extreme of each range by a sparse table of which only the current level is in memory.

    A range of length n is the union of two overlapping stretches of 2**k <= n positions, which level k answers at once.
    NaN is greater than every number. The answer of an empty range is arbitrary.

    Args:
        values: Numbers; NULL positions hold what `neutral` returns.
        ranges: Position ranges.
        largest: Whether the largest is wanted, else the smallest.
    """
    combine: Any = np.maximum if largest else np.fmin
    low = np.concatenate([part.low for part in ranges])
    lengths = np.concatenate([part.lengths for part in ranges])
    answers = np.zeros(len(low), values.dtype)
    # 0 marks an empty range; a range of length n in [2**k, 2**(k+1)) is answered by level k = exponent - 1.
    exponents = np.frexp(lengths.astype(np.float64))[1].astype(np.int8)
    level, stretch = values, 1
    for exponent in range(1, int(exponents.max(initial=0)) + 1):
        chosen = np.flatnonzero(exponents == exponent)
        first = low[chosen]
        answers[chosen] = combine(level[first], level[first + (lengths[chosen] - stretch)])
        if exponent < int(exponents.max()):
            level = combine(level[:-stretch], level[stretch:])
            stretch *= 2
    return np.split(answers, np.cumsum([len(part.low) for part in ranges])[:-1])


def neutral(dtype: np.dtype[Any], *, largest: bool) -> float | int:
    """Return the value that never wins against another: NaN or minus infinity for floats, the far end for integers."""
    if np.issubdtype(dtype, np.floating):
        return -np.inf if largest else np.nan
    limits = np.iinfo(dtype)
    return int(limits.min if largest else limits.max)


def last_positions(valid: BoolArray | None, ranges: Sequence[Ranges]) -> list[Int64Array]:
    """Return the position of the last valid value of each range, -1 where there is none; None means all are valid."""
    if valid is None:
        return [np.where(part.high > part.low, part.high - 1, -1) for part in ranges]
    newest = np.empty(len(valid) + 1, np.int64)
    newest[0] = -1
    np.maximum.accumulate(np.where(valid, np.arange(len(valid)), -1), out=newest[1:])
    found = [newest[part.high] for part in ranges]
    return [np.where(last >= part.low, last, -1) for last, part in zip(found, ranges, strict=True)]
