"""Functions with parameters are checked when they are called."""

from __future__ import annotations

from typing import Any

import pytest

import featurekit_dagster
from featurekit_dagster import aggregation_functions as public
from featurekit_dagster.domain.aggregation import AggregationFunction
from featurekit_dagster.domain.aggregation_functions import (
    approx_count_distinct,
    approx_percentile,
    first,
    first_distinct,
    last,
    last_distinct,
)
from tests.unit.domain.declared import faults


@pytest.mark.parametrize(
    ("function", "label"),
    [
        (last(3), "last_3"),
        (last_distinct(3), "last_distinct_3"),
        (first(1), "first_1"),
        (first_distinct(10_000), "first_distinct_10000"),
        (approx_count_distinct(), "approx_count_distinct"),
        (approx_count_distinct(precision=16), "approx_count_distinct"),
        (approx_percentile(0.5), "approx_percentile_p0_5"),
        (approx_percentile(percentile=1.0, precision=20), "approx_percentile_p1_0"),
        (approx_percentile(0.00001), "approx_percentile_p0_00001"),
        (approx_percentile(-0.0), "approx_percentile_p0_0"),
    ],
)
def test_a_function_is_named_after_itself_and_its_parameter(function: AggregationFunction, label: str) -> None:
    assert function.label == label


def test_defaults_are_those_of_the_pages() -> None:
    assert approx_count_distinct().precision == 8
    assert approx_percentile(0.9).precision == 100


@pytest.mark.parametrize("function", [last, last_distinct, first, first_distinct])
@pytest.mark.parametrize(
    ("n", "what"), [(0, "0"), (-1, "-1"), (10_001, "10001"), (True, "a bool"), (3.0, "a float"), ("3", "'3'")]
)
def test_the_number_of_values_is_an_int_in_its_range(function: Any, n: Any, what: str) -> None:
    assert faults(function, n) == (f"n is {what}; give an int from 1 to 10000",)


@pytest.mark.parametrize(
    ("precision", "what"), [(3, "3"), (17, "17"), (True, "a bool"), (8.0, "a float"), (None, "None")]
)
def test_the_precision_of_a_distinct_count_is_an_int_from_4_to_16(precision: Any, what: str) -> None:
    assert faults(approx_count_distinct, precision) == (f"precision is {what}; give an int from 4 to 16",)


@pytest.mark.parametrize("precision", [19, 1_001, 100.0, False])
def test_the_precision_of_a_percentile_is_an_int_from_20_to_1000(precision: Any) -> None:
    (fault,) = faults(approx_percentile, 0.5, precision)
    assert fault.endswith("; give an int from 20 to 1000")


@pytest.mark.parametrize(
    ("percentile", "fault"),
    [
        (-0.1, "percentile is -0.1; give a share from 0.0 to 1.0"),
        (50.0, "percentile is 50.0; give a share from 0.0 to 1.0"),
        (float("nan"), "percentile is nan; give a share from 0.0 to 1.0"),
        (1, "percentile is an int; give a float such as 0.5"),
        (True, "percentile is a bool; give a float such as 0.5"),
        ("0.5", "percentile is '0.5'; give a float such as 0.5"),
    ],
)
def test_a_percentile_is_a_share(percentile: Any, fault: str) -> None:
    assert faults(approx_percentile, percentile) == (fault,)


def test_all_faults_of_one_call_are_reported_at_once() -> None:
    assert len(faults(approx_percentile, 2.0, 2)) == 2


def test_the_functions_are_public_in_two_places() -> None:
    for name in public.__all__:
        assert getattr(public, name) is getattr(featurekit_dagster, name)
