"""How features are told in words in the Dagster UI."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from featurekit_dagster.domain.aggregation_functions import (
    approx_count_distinct,
    approx_percentile,
    first_distinct,
    last,
)
from featurekit_dagster.domain.feature_view import Aggregation
from featurekit_dagster.domain.schema import Field, String
from featurekit_dagster.domain.windows import LifetimeWindow, TimeWindow, TimeWindowSeries
from featurekit_dagster.orchestration.translator import feature_schema
from tests.unit.domain.declared import DAY, HOUR, SCHEMA, START, aggregated, streamed

PAGE = Field("page", String)
SERIES = TimeWindowSeries(series_start=-3 * DAY, window_size=DAY, step_size=timedelta(hours=12))


@pytest.mark.parametrize(
    ("column", "function", "window", "words"),
    [
        ("amount", "sum", TimeWindow(7 * DAY), "sum of amount over 7d."),
        ("amount", "sum", TimeWindow(7 * DAY, -DAY), "sum of amount over 7d, ending 1d before the edge."),
        ("amount", "variance", LifetimeWindow(), "variance of amount over all time since 2024-01-01T00:00Z."),
        ("page", last(3), TimeWindow(DAY), "last 3 of page over 1d."),
        ("page", first_distinct(2), TimeWindow(DAY), "first 2 distinct of page over 1d."),
        (
            "page",
            approx_count_distinct(12),
            TimeWindow(DAY),
            "approximate number of distinct values (precision 12) of page over 1d.",
        ),
        (
            "amount",
            approx_percentile(0.95),
            TimeWindow(DAY),
            "approximate percentile 0.95 (precision 100) of amount over 1d.",
        ),
        ("amount", "count", SERIES, "count of amount over 5 windows of 1d, one every 12h, oldest first."),
        (
            "amount",
            "count",
            TimeWindowSeries(series_start=-3 * DAY, window_size=DAY, series_end=-HOUR),
            "count of amount over 2 windows of 1d, one every 1d, oldest first, the newest ending 1d before the edge.",
        ),
    ],
)
def test_a_feature_is_told_in_words(column: str, function: Any, window: Any, words: str) -> None:
    lifetime = {"lifetime_start_time": START} if isinstance(window, LifetimeWindow) else {}
    view = aggregated(
        schema=[*SCHEMA, PAGE], aggregations=[Aggregation(column, function, window, name="f")], **lifetime
    )
    told = {c.name: c for c in feature_schema(view).columns}["f"]
    assert told.description == words


def test_lists_of_secondary_keys_and_what_they_break_down_are_told() -> None:
    view = aggregated(schema=[*SCHEMA, PAGE], aggregation_secondary_key="page")
    told = {c.name: (c.type, c.description) for c in feature_schema(view).columns}
    assert told["page_keys_7d"] == ("Array(String)", "Values of page with events over 7d.")
    assert told["amount_sum_7d_1h"] == ("Array(Float64)", "For each value of page: sum of amount over 7d.")


def test_a_feature_with_a_default_is_never_null() -> None:
    features = [Aggregation("page", f, DAY, name=n) for n, f in (("n", "count"), ("pages", last(2)), ("page_", "last"))]
    view = streamed(schema=[*SCHEMA, PAGE], aggregations=features)
    assert [c.constraints.nullable for c in feature_schema(view).columns[2:]] == [False, False, True]
