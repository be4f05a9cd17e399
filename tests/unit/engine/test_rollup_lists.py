"""Lists of first and last values over ranges of tiles, beside a loop over the values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurekit_dagster.engine import rollup_lists
from featurekit_dagster.engine.rollup_lists import (
    Lists,
    distinct_of,
    newest,
    newest_distinct,
    oldest,
    oldest_distinct,
)
from featurekit_dagster.engine.rollup_sums import Ranges

INT_LISTS = pa.list_(pa.int64())

tiles = st.lists(st.lists(st.integers(0, 6), max_size=6), max_size=20)
cuts = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=12)


def ranges_of(pairs: Sequence[tuple[int, int]], size: int) -> Ranges:
    ends = [(min(*pair, size), min(max(pair), size)) for pair in pairs]
    return Ranges(np.array([low for low, _ in ends]), np.array([high for _, high in ends]))


def answers(slices: Any, values: pa.Array) -> list[Any]:
    found: list[Any] = slices.take(None, None, pa.list_(values.type)).to_pylist()
    return found


def distinct(values: Sequence[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


@given(held=tiles, pairs=cuts, n=st.integers(1, 8))
def test_lists_of_a_range_are_those_of_its_values_in_order(
    held: list[list[int]], pairs: list[tuple[int, int]], n: int
) -> None:
    lists, part = Lists.of(pa.array(held, INT_LISTS)), ranges_of(pairs, len(held))
    inside = [sum(held[low:high], []) for low, high in zip(part.low, part.high, strict=True)]
    assert answers(newest(lists, part, n), lists.values) == [values[-n:] for values in inside]
    assert answers(oldest(lists, part, n), lists.values) == [values[:n] for values in inside]
    (last,), (first,) = newest_distinct(lists, [part], n), oldest_distinct(lists, [part], n)
    assert answers(last, lists.values) == [distinct(values[::-1])[:n][::-1] for values in inside]
    assert answers(first, lists.values) == [distinct(values)[:n] for values in inside]


@given(held=tiles, pairs=cuts, wider=st.integers(0, 10), n=st.integers(1, 4))
def test_ranges_that_end_alike_share_a_walk_and_keep_their_own_answers(
    held: list[list[int]], pairs: list[tuple[int, int]], wider: int, n: int
) -> None:
    lists, part = Lists.of(pa.array(held, INT_LISTS)), ranges_of(pairs, len(held))
    wide = Ranges(np.maximum(part.low - wider, 0), part.high)
    together = [answers(found, lists.values) for found in newest_distinct(lists, [part, wide], n)]
    apart = [answers(newest_distinct(lists, [one], n)[0], lists.values) for one in (part, wide)]
    assert together == apart


@given(held=tiles, n=st.integers(1, 8))
def test_distinct_values_of_each_tile(held: list[list[int]], n: int) -> None:
    lists = Lists.of(pa.array(held, INT_LISTS))
    assert distinct_of(lists, n, last=True).to_pylist() == [distinct(one[::-1])[:n][::-1] for one in held]
    assert distinct_of(lists, n, last=False).to_pylist() == [distinct(one)[:n] for one in held]


@given(held=tiles, pairs=cuts, n=st.integers(1, 4))
def test_walks_in_small_blocks_give_the_same(held: list[list[int]], pairs: list[tuple[int, int]], n: int) -> None:
    lists, part = Lists.of(pa.array(held, INT_LISTS)), ranges_of(pairs, len(held))
    whole = [answers(find(lists, [part], n)[0], lists.values) for find in (newest_distinct, oldest_distinct)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollup_lists, "_BLOCK", 3)
        cut = [answers(find(lists, [part], n)[0], lists.values) for find in (newest_distinct, oldest_distinct)]
    assert cut == whole


class CountedTree:
    """A tree that counts how often it is looked into."""

    def __init__(self, tree: Any) -> None:
        self._tree = tree
        self.looks = 0

    def __getitem__(self, places: Any) -> Any:
        self.looks += 1
        return self._tree[places]


def test_many_equal_values_are_passed_in_a_few_steps() -> None:
    size = 1 << 16
    codes = np.zeros(size, np.int64)
    codes[:2] = 1, 2
    walker = rollup_lists._Walker(codes)
    walker._tree = tree = CountedTree(walker._tree)  # type: ignore[assignment]
    rows, stops, (count,) = walker.walk([np.zeros(1, np.int64)], np.array([size]), 5)
    assert (rows.tolist(), stops.tolist(), count.tolist()) == ([0, 1, size - 1], [3], [3])
    assert tree.looks < 100


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (pa.string(), ["a", "b", "a", "", "b"]),
        (pa.bool_(), [True, False, True, True, False]),
        (pa.timestamp("us", "UTC"), [datetime(2024, 1, day, tzinfo=UTC) for day in (1, 2, 1, 3, 2)]),
        (pa.int32(), [1, 2, 1, 3, 2]),
        (pa.float32(), [0.5, 0.25, 0.5, 1.5, 0.25]),
        (pa.binary(), [b"a", b"b", b"a", b"", b"b"]),
    ],
)
def test_every_plain_type_can_be_listed(dtype: pa.DataType, values: list[Any]) -> None:
    lists = Lists.of(pa.array([values[:2], [], values[2:]], pa.list_(dtype)))
    part = Ranges(np.array([0, 1]), np.array([3, 3]))
    assert answers(newest(lists, part, 2), lists.values) == [values[-2:], values[-2:]]
    (last,), (first,) = newest_distinct(lists, [part], 9), oldest_distinct(lists, [part], 9)
    assert answers(last, lists.values)[0] == distinct(values[::-1])[::-1]
    assert answers(first, lists.values) == [distinct(values), distinct(values[2:])]


def test_nan_equals_nan_and_the_zeros_are_one_value() -> None:
    odd = np.array([0x7FF8000000000001, 0x7FF8000000000002], np.uint64).view(np.float64)
    lists = Lists(pa.array([odd[0], 0.0, odd[1], -0.0, 1.0]), np.arange(6))
    part = Ranges(np.array([0]), np.array([5]))
    (last,), (first,) = newest_distinct(lists, [part], 5), oldest_distinct(lists, [part], 5)
    assert str(answers(last, lists.values)) == "[[nan, -0.0, 1.0]]"
    assert str(answers(first, lists.values)) == "[[nan, 0.0, 1.0]]"
    assert math.isnan(answers(last, lists.values)[0][0])


def test_null_lists_are_empty_and_rows_can_be_chosen() -> None:
    column = pa.chunked_array([pa.array([[1], None], INT_LISTS), pa.array([[2, 3], []], INT_LISTS)])
    assert Lists.of(column).array().to_pylist() == [[1], [], [2, 3], []]
    assert Lists.of(column, np.array([2, 1, 0])).array().to_pylist() == [[2, 3], [], [1]]
    assert Lists.of(column.slice(2)).array().to_pylist() == [[2, 3], []]
