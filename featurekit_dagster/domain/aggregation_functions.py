"""Aggregation functions that have parameters: the n latest or earliest values, and the approximate ones.

All of them skip NULL. Each is checked when it is called; `column_rules` checks again what was made in another way.
"""

from __future__ import annotations

from typing import Any

from featurekit_dagster.domain.aggregation import LIST_FUNCTIONS, PARAMETERIZED, AggregationFunction
from featurekit_dagster.domain.wording import described
from featurekit_dagster.errors import DeclarationError

MAX_VALUES = 10_000
DISTINCT_PRECISION = (4, 16)
PERCENTILE_PRECISION = (20, 1_000)
DEFAULT_DISTINCT_PRECISION = 8
DEFAULT_PERCENTILE_PRECISION = 100


def last(n: int) -> AggregationFunction:
    """Return the function of the `n` latest values, oldest first, duplicates kept.

    Args:
        n: 1 to 10,000.

    Raises:
        DeclarationError: `n` is no int, or not in its range.
    """
    return _checked(AggregationFunction("last_n", n=n))


def last_distinct(n: int) -> AggregationFunction:
    """Return the function of the `n` latest distinct values, each at its newest place, oldest first.

    Args:
        n: 1 to 10,000.

    Raises:
        DeclarationError: `n` is no int, or not in its range.
    """
    return _checked(AggregationFunction("last_distinct", n=n))


def first(n: int) -> AggregationFunction:
    """Return the function of the `n` earliest values, oldest first, duplicates kept.

    Args:
        n: 1 to 10,000.

    Raises:
        DeclarationError: `n` is no int, or not in its range.
    """
    return _checked(AggregationFunction("first_n", n=n))


def first_distinct(n: int) -> AggregationFunction:
    """Return the function of the `n` earliest distinct values, each at its oldest place, oldest first.

    Args:
        n: 1 to 10,000.

    Raises:
        DeclarationError: `n` is no int, or not in its range.
    """
    return _checked(AggregationFunction("first_distinct", n=n))


def approx_count_distinct(precision: int = DEFAULT_DISTINCT_PRECISION) -> AggregationFunction:
    """Return the function that estimates how many different values there are, by a HyperLogLog.

    Args:
        precision: 4 to 16; there are `2**precision` registers, and the standard error is `1.04 / 2**(precision / 2)`.

    Raises:
        DeclarationError: `precision` is no int, or not in its range.
    """
    return _checked(AggregationFunction("approx_count_distinct", precision=precision))


def approx_percentile(percentile: float, precision: int = DEFAULT_PERCENTILE_PRECISION) -> AggregationFunction:
    """Return the function that estimates the value below which a share of the values lies, by a t-digest.

    Args:
        percentile: The share, 0.0 to 1.0.
        precision: 20 to 1,000 (ours); the digest's compression, about the number of centroids it keeps.

    Raises:
        DeclarationError: `percentile` is no float, `precision` is no int, or one of them is not in its range.
    """
    return _checked(AggregationFunction("approx_percentile", precision=precision, percentile=percentile))


def parameter_faults(function: AggregationFunction) -> list[str]:
    """Return what is wrong with the parameters of a function, one sentence each."""
    if not isinstance(function.name, str) or function.name not in PARAMETERIZED:
        return [f"{described(function.name)} is no function with parameters; use {', '.join(PARAMETERIZED.values())}"]
    if function.name in LIST_FUNCTIONS:
        return _whole_number_faults("n", function.n, (1, MAX_VALUES))
    if function.name == "approx_count_distinct":
        return _whole_number_faults("precision", function.precision, DISTINCT_PRECISION)
    faults = _whole_number_faults("precision", function.precision, PERCENTILE_PRECISION)
    share: Any = function.percentile
    if not isinstance(share, float):
        faults.append(f"percentile is {described(share)}; give a float such as 0.5")
    elif not 0 <= share <= 1:
        faults.append(f"percentile is {share}; give a share from 0.0 to 1.0")
    return faults


def _whole_number_faults(name: str, value: Any, ends: tuple[int, int]) -> list[str]:
    low, high = ends
    if not isinstance(value, int) or isinstance(value, bool):
        return [f"{name} is {described(value)}; give an int from {low} to {high}"]
    return [] if low <= value <= high else [f"{name} is {value}; give an int from {low} to {high}"]


def _checked(function: AggregationFunction) -> AggregationFunction:
    faults = parameter_faults(function)
    if faults:
        raise DeclarationError(subject=f"function {PARAMETERIZED[function.name]}", faults=faults)
    return function
