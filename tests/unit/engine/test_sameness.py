"""When two answers are the same, and how those that are not are counted."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurekit_dagster.engine.sameness import compare_feature, is_same, largest

NAN = float("nan")
NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (None, None),
        (NAN, NAN),
        (math.inf, math.inf),
        (0.1 + 0.2, 0.3),
        ([1, None, "a"], [1, None, "a"]),
        ([], ()),
        ({"a": 1.0}, [("a", 1.0 + 1e-12)]),
        ({"a": [NAN]}, {"a": [NAN]}),
        (NOON, NOON),
        (b"x", b"x"),
    ],
)
def test_the_same_are_equal_values_near_floats_and_nothing_and_nothing(one: Any, other: Any) -> None:
    assert is_same(one, other)
    assert is_same(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (None, NAN),
        (None, 0),
        (None, []),
        (1, 1.0),
        (1, True),
        (1.0, 1.00001),
        (math.inf, -math.inf),
        (math.inf, 1.0),
        ([1, 2], [2, 1]),
        ([1], [1, None]),
        ({"a": 1}, {"b": 1}),
        ("1", 1),
        (10**15, 10**15 + 1),
        (NOON, NOON.replace(microsecond=1)),
    ],
)
def test_other_types_orders_and_integers_that_are_one_apart_are_not_the_same(one: Any, other: Any) -> None:
    assert not is_same(one, other)
    assert not is_same(other, one)


def test_what_is_left_of_large_numbers_that_cancel_may_differ_a_little() -> None:
    same = compare_feature("f", [1e9, 1e-4], [1e9, 1.1e-4], None)
    assert same.total == 0
    assert compare_feature("f", [1e3, 1e-4], [1e3, 1.1e-4], None).mismatched == 1


def test_differences_are_told_apart_by_who_has_a_value() -> None:
    found = compare_feature("f", [1, 0, 2, 0, None], [1, 3, 0, 0, 0], default=0, unknown=4)
    assert (found.compared, found.mismatched, found.missing, found.extra, found.unknown) == (5, 1, 1, 1, 4)
    lists = compare_feature("f", [[], [1], [1]], [[1], [], [2]], default=[])
    assert (lists.missing, lists.extra, lists.mismatched) == (1, 1, 1)


VALUES = st.recursive(
    st.sampled_from([None, 0, 1, True, 0.0, 1.0, NAN, math.inf, "", "a"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
    max_leaves=3,
)


@given(VALUES, VALUES)
def test_every_value_is_itself_and_sameness_has_no_sides(one: Any, other: Any) -> None:
    assert is_same(one, one)
    assert is_same(one, other) == is_same(other, one)
    assert largest([one]) >= 0.0
