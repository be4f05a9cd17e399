"""Aggregation functions that have parameters, under the module name that the documented imports use."""

from __future__ import annotations

from featurekit_dagster.domain.aggregation_functions import (
    approx_count_distinct,
    approx_percentile,
    first,
    first_distinct,
    last,
    last_distinct,
)

__all__ = ["approx_count_distinct", "approx_percentile", "first", "first_distinct", "last", "last_distinct"]
