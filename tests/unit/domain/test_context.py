from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from featurekit_dagster.domain.context import MaterializationContext, materialization_context
from featurekit_dagster.errors import TectonValidationError
from featurekit_dagster.intervals import Interval
from tests.unit.domain.declared import DAY, START

CONTEXT = MaterializationContext.for_interval(Interval(START, START + DAY), DAY)
NAIVE_START = START.replace(tzinfo=None)


def test_a_context_tells_its_interval_in_naive_utc() -> None:
    assert (CONTEXT.start_time, CONTEXT.end_time) == (NAIVE_START, NAIVE_START + DAY)
    assert CONTEXT.end_time_inclusive == NAIVE_START + DAY - timedelta(microseconds=1)
    assert CONTEXT.batch_schedule == DAY


def test_a_context_without_an_interval_spans_1970_to_2100() -> None:
    unbounded = MaterializationContext.for_interval(None, DAY)
    assert (unbounded.start_time, unbounded.end_time) == (
        datetime(1970, 1, 1),  # noqa: DTZ001 - contexts are naive
        datetime(2100, 1, 1),  # noqa: DTZ001 - contexts are naive
    )


def test_the_time_filter_keeps_the_start_and_leaves_the_end_out() -> None:
    condition = "(seen_at >= TIMESTAMP '2024-01-01 00:00:00' AND seen_at < TIMESTAMP '2024-01-02 00:00:00')"
    assert CONTEXT.time_filter_sql("seen_at") == condition


def test_the_old_names_say_the_same() -> None:
    assert (CONTEXT.feature_start_time, CONTEXT.feature_end_time) == (CONTEXT.start_time, CONTEXT.end_time)
    assert CONTEXT.feature_start_time_string == "2024-01-01 00:00:00"
    assert CONTEXT.feature_end_time_string == "2024-01-02 00:00:00"
    assert CONTEXT.feature_time_filter_sql("t") == CONTEXT.time_filter_sql("t")


def test_secrets_and_resources_are_never_shown() -> None:
    context = MaterializationContext(
        start_time=NAIVE_START, end_time=NAIVE_START, batch_schedule=DAY, secrets={"token": "hush"}, resources={"x": 1}
    )
    assert "hush" not in repr(context)
    assert "resources" not in repr(context)


def test_a_context_called_inside_a_function_body_is_refused_with_what_to_write() -> None:
    with pytest.raises(TectonValidationError, match=r"materialization_context\(\).start_time was read outside a job; "):
        materialization_context().start_time  # noqa: B018 - reading it is the point
