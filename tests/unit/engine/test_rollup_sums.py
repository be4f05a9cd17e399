"""Range sums by exact prefix sums."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurekit_dagster.engine.rollup_sums import Ranges, float_sums, integer_sums

any_float = st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=True)
cuts = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=20)


def ranges_of(pairs: list[tuple[int, int]], size: int) -> Ranges:
    ends = [(min(pair + (size,)), min(max(pair), size)) for pair in pairs]
    return Ranges(np.array([low for low, _ in ends]), np.array([high for _, high in ends]))


@given(values=st.lists(any_float, max_size=40), pairs=cuts)
def test_float_sums_are_within_the_bound_over_the_whole_range_of_doubles(
    values: list[float], pairs: list[tuple[int, int]]
) -> None:
    part = ranges_of(pairs, len(values))
    (found,) = float_sums(np.array(values, np.float64), [part])
    for low, high, got in zip(part.low, part.high, found, strict=True):
        exact = sum(map(Fraction, values[low:high]), Fraction(0))
        bound = sum((abs(Fraction(value)) for value in values[low:high]), Fraction(0)) / 2**51
        if abs(exact) + bound < Fraction(2) ** 1023:
            assert abs(Fraction(got) - exact) <= bound + Fraction(1, 2**1074)


def test_a_huge_value_leaves_no_trace_outside_its_ranges() -> None:
    values = np.array([1e20, 1.0, 1.0, -1e20, 0.1])
    part = Ranges(np.array([0, 1, 0, 0, 4]), np.array([1, 3, 4, 5, 5]))
    (found,) = float_sums(values, [part])
    assert found.tolist() == [1e20, 2.0, 2.0, 2.1, 0.1]


def test_values_twenty_three_orders_of_magnitude_apart_keep_their_own_precision() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=20_000) * 10.0 ** rng.uniform(-12, 11, 20_000)
    low = rng.integers(0, 19_000, 500)
    part = Ranges(low, low + rng.integers(0, 1_000, 500))
    (found,) = float_sums(values, [part])
    for start, end, got in zip(part.low, part.high, found, strict=True):
        assert abs(got - math.fsum(values[start:end])) <= 2.0**-51 * math.fsum(np.abs(values[start:end]))


def test_nan_and_infinities_reach_only_the_ranges_that_hold_them() -> None:
    values = np.array([1.0, math.nan, 2.0, math.inf, 3.0, -math.inf])
    part = Ranges(np.array([0, 0, 2, 2, 4, 3, 0]), np.array([1, 2, 3, 5, 6, 6, 0]))
    (found,) = float_sums(values, [part])
    assert [str(value) for value in found] == ["1.0", "nan", "2.0", "inf", "-inf", "nan", "0.0"]


def test_finite_values_whose_sum_overflows_give_infinity() -> None:
    (found,) = float_sums(np.array([1.7e308, 1.7e308, -1.7e308]), [Ranges(np.array([0, 0]), np.array([2, 3]))])
    assert found.tolist() == [math.inf, 1.7e308]


def test_prefix_sums_that_wrap_around_leave_the_sums_of_ranges_right() -> None:
    values = np.random.default_rng(1).uniform(1.0, 2.0, 400_000)
    low = np.arange(0, 399_000, 1_000)
    (found,) = float_sums(values, [Ranges(low, low + 2)])
    assert found.tolist() == (values[low] + values[low + 1]).tolist()


@given(values=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40), pairs=cuts)
def test_integer_sums_are_exact_or_reported(values: list[int], pairs: list[tuple[int, int]]) -> None:
    part = ranges_of(pairs, len(values))
    (found,), (overflow,) = integer_sums(np.array(values, np.int64), [part])
    for place, (low, high) in enumerate(zip(part.low, part.high, strict=True)):
        exact = sum(values[low:high])
        wrapped = overflow is not None and bool(overflow[place])
        assert wrapped == (not -(2**63) <= exact < 2**63)
        assert wrapped or found[place] == exact


@pytest.mark.parametrize("count", [0, 1])
def test_no_rows_or_no_ranges(count: int) -> None:
    nothing = Ranges(np.zeros(count, np.int64), np.zeros(count, np.int64))
    assert float_sums(np.zeros(0), [nothing])[0].tolist() == [0.0] * count
    assert integer_sums(np.zeros(0, np.int64), [nothing])[0][0].tolist() == [0] * count
