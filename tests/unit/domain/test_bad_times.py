"""What is refused about the times of a view."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from featurekit_dagster.domain.feature_view import Aggregation, BatchTriggerType
from featurekit_dagster.domain.windows import TimeWindow
from tests.unit.domain.declared import (
    DAY,
    HOUR,
    START,
    aggregated,
    faults,
    plain,
)


def aggregation(**changes: Any) -> Aggregation:
    return Aggregation(**({"column": "amount", "function": "sum", "time_window": 7 * DAY} | changes))


@pytest.mark.parametrize(
    ("online", "offline", "what"),
    [(True, False, "online=True"), (False, True, "offline=True"), (True, True, "online=True and offline=True")],
)
def test_a_materialized_view_has_a_feature_start_time(online: bool, offline: bool, what: str) -> None:
    assert faults(plain, online=online, offline=offline, feature_start_time=None) == (
        f"{what} without feature_start_time; give the first instant to materialize",
    )


def test_a_view_that_is_not_materialized_needs_no_feature_start_time() -> None:
    assert plain(online=False, offline=False, feature_start_time=None).materialization_start is None


def test_a_manual_backfill_end_needs_manual_batch_trigger() -> None:
    assert faults(plain, manual_trigger_backfill_end_time=START + DAY) == (
        "manual_trigger_backfill_end_time 2024-01-02T00:00Z is given, but batch_trigger is not "
        "BatchTriggerType.MANUAL; set it or leave the time out",
    )


@pytest.mark.parametrize("end", [START, START - DAY])
def test_a_manual_backfill_ends_after_the_feature_start_time(end: datetime) -> None:
    (fault,) = faults(plain, batch_trigger=BatchTriggerType.MANUAL, manual_trigger_backfill_end_time=end)
    assert fault == (
        f"manual_trigger_backfill_end_time {end:%Y-%m-%dT%H:%MZ} is not after feature_start_time 2024-01-01T00:00Z; "
        "give a later time"
    )


def test_a_manual_backfill_ends_on_the_grid() -> None:
    end = START + DAY + timedelta(microseconds=1)
    assert faults(plain, batch_trigger=BatchTriggerType.MANUAL, manual_trigger_backfill_end_time=end) == (
        "manual_trigger_backfill_end_time 2024-01-02T00:00:00.000001Z is not on the 1d grid of the Unix epoch; "
        "move it there",
    )


def test_a_missing_schedule_does_not_hide_a_wrong_manual_backfill_end() -> None:
    assert faults(plain, batch_schedule=None, manual_trigger_backfill_end_time=START) == (
        "batch_schedule is not given; it is the width of one interval, such as timedelta(days=1)",
        "manual_trigger_backfill_end_time 2024-01-01T00:00Z is given, but batch_trigger is not "
        "BatchTriggerType.MANUAL; set it or leave the time out",
        "manual_trigger_backfill_end_time 2024-01-01T00:00Z is not after feature_start_time 2024-01-01T00:00Z; "
        "give a later time",
    )


def test_a_view_without_aggregates_has_a_batch_schedule() -> None:
    assert faults(plain, batch_schedule=None) == (
        "batch_schedule is not given; it is the width of one interval, such as timedelta(days=1)",
    )
    assert aggregated(batch_schedule=None).batch_schedule == HOUR


def test_an_aggregation_interval_needs_aggregates() -> None:
    assert faults(plain, aggregation_interval=HOUR) == (
        "aggregation_interval is given without aggregations; leave it out",
    )


def test_aggregates_need_an_aggregation_interval() -> None:
    assert faults(aggregated, aggregation_interval=None) == (
        "aggregations without aggregation_interval; give the tile size, such as timedelta(hours=1)",
    )


@pytest.mark.parametrize(("tile", "text"), [(timedelta(hours=5), "5h"), (timedelta(days=2), "2d")])
def test_the_aggregation_interval_divides_the_batch_schedule(tile: timedelta, text: str) -> None:
    assert faults(aggregated, aggregation_interval=tile, aggregations=[aggregation(time_window=10 * tile)]) == (
        f"aggregation_interval {text} does not divide batch_schedule 1d; give a divisor of it",
    )


@pytest.mark.parametrize(
    ("size", "text"), [(timedelta(minutes=90), "1h30m"), (timedelta(minutes=30), "30m"), (7 * DAY + HOUR / 2, "7d30m")]
)
def test_a_window_is_a_multiple_of_the_aggregation_interval(size: timedelta, text: str) -> None:
    assert faults(aggregated, aggregations=[aggregation(time_window=size, name="spent")]) == (
        f"feature 'spent': window_size {text} is not a multiple of aggregation_interval 1h; give a multiple of it",
    )


def test_a_window_need_not_be_a_multiple_of_the_batch_schedule() -> None:
    assert aggregated(aggregations=[aggregation(time_window=timedelta(hours=36))]).reach == timedelta(hours=36)


@pytest.mark.parametrize(("size", "text"), [(timedelta(0), "0:00:00"), (-DAY, "-1 day, 0:00:00")])
def test_a_window_is_positive(size: timedelta, text: str) -> None:
    assert faults(aggregated, aggregations=[aggregation(time_window=size, name="spent")]) == (
        f"feature 'spent': window_size {text} is not positive; give a longer one",
    )


def test_an_offset_is_not_positive() -> None:
    window = TimeWindow(DAY, offset=HOUR)
    assert faults(aggregated, aggregations=[aggregation(time_window=window, name="spent")]) == (
        "feature 'spent': offset 1:00:00 is positive; a window looks back, so give zero or less",
    )


def test_an_offset_is_a_multiple_of_the_aggregation_interval() -> None:
    window = TimeWindow(DAY, offset=-timedelta(minutes=90))
    assert faults(aggregated, aggregations=[aggregation(time_window=window, name="spent")]) == (
        "feature 'spent': offset -1h30m is not a multiple of aggregation_interval 1h; give a multiple of it",
    )


def test_a_missing_aggregation_interval_does_not_hide_a_wrong_window() -> None:
    window = TimeWindow(-DAY, offset=HOUR)
    assert faults(aggregated, aggregation_interval=None, aggregations=[aggregation(time_window=window, name="x")]) == (
        "aggregations without aggregation_interval; give the tile size, such as timedelta(hours=1)",
        "feature 'x': window_size -1 day, 0:00:00 is not positive; give a longer one",
        "feature 'x': offset 1:00:00 is positive; a window looks back, so give zero or less",
    )


def test_a_window_is_a_time_window_or_a_timedelta() -> None:
    assert faults(aggregated, aggregations=[aggregation(time_window="7d")]) == (
        "aggregation 'sum of amount': time_window is '7d'; give a TimeWindow, a TimeWindowSeries, a LifetimeWindow or "
        "a timedelta",
    )
    assert faults(aggregated, aggregations=[aggregation(time_window=TimeWindow("7d"))]) == (  # type: ignore[arg-type]
        "aggregation 'sum of amount': window_size is '7d'; give a timedelta",
    )


def test_incremental_backfills_with_aggregates_are_refused() -> None:
    assert faults(aggregated, incremental_backfills=True) == (
        "incremental_backfills=True with aggregates; tiles need no incremental backfill, leave it out",
    )


@pytest.mark.parametrize(("longest", "text"), [("36h", "1d12h"), ("12h", "12h"), (DAY / 24, "1h")])
def test_max_backfill_interval_is_a_multiple_of_the_batch_schedule(longest: Any, text: str) -> None:
    assert faults(plain, max_backfill_interval=longest) == (
        f"max_backfill_interval {text} is not a multiple of batch_schedule 1d; give a multiple of it",
    )
    assert plain(max_backfill_interval="10d").max_backfill_interval == 10 * DAY


@pytest.mark.parametrize("name", ["batch_schedule", "ttl", "max_backfill_interval", "aggregation_interval"])
class TestDurations:
    """Every duration of a view obeys the same rules."""

    def fault(self, name: str, value: Any) -> str:
        (first, *_) = faults(aggregated, **{name: value})
        return first

    @pytest.mark.parametrize("text", ["", "1w", "7", "1h1d", "1d 2h", "-1d", "P1D"])
    def test_a_text_is_like_1d2h3m4s(self, name: str, text: str) -> None:
        assert self.fault(name, text) == f"{name}: duration {text!r} is not like '1d2h3m4s'"

    def test_a_text_is_not_longer_than_a_timedelta_can_be(self, name: str) -> None:
        assert self.fault(name, "9999999999d") == f"{name}: duration '9999999999d' is too long"

    def test_a_duration_is_in_whole_seconds(self, name: str) -> None:
        assert self.fault(name, timedelta(days=1, microseconds=1)) == (
            f"{name} 1 day, 0:00:00.000001 is not in whole seconds; round it"
        )

    def test_a_duration_is_at_most_10000_years(self, name: str) -> None:
        assert self.fault(name, timedelta(days=3_652_501)) == (
            f"{name} 3652501 days, 0:00:00 is over 10,000 years; give a shorter one or leave it out"
        )

    @pytest.mark.parametrize(("value", "text"), [(timedelta(0), "0:00:00"), (-DAY, "-1 day, 0:00:00")])
    def test_a_duration_is_positive(self, name: str, value: timedelta, text: str) -> None:
        assert self.fault(name, value) == f"{name} {text} is not positive; give a longer one"

    def test_a_number_is_no_duration(self, name: str) -> None:
        assert self.fault(name, 86_400) == f"{name} is an int; give a timedelta or text such as '1d12h'"


def test_a_duration_may_be_text() -> None:
    assert plain(batch_schedule="1d12h").batch_schedule == timedelta(hours=36)
    assert plain(ttl="30d").ttl == 30 * DAY


@pytest.mark.parametrize(("size", "offset"), [(DAY + timedelta(microseconds=1), 0), (DAY, -1)])
def test_windows_are_in_whole_seconds(size: timedelta, offset: int) -> None:
    window = TimeWindow(size, timedelta(microseconds=offset))
    (fault,) = faults(aggregated, aggregations=[aggregation(time_window=window)])
    assert fault.startswith("aggregation 'sum of amount': ")
    assert fault.endswith("is not in whole seconds; round it")


def test_a_window_that_reaches_before_year_1_is_refused() -> None:
    years = timedelta(days=365 * 2_100)
    assert faults(aggregated, aggregations=[aggregation(time_window=years)]) == (
        "feature_start_time 2024-01-01T00:00Z less the widest window and one batch_schedule is before year 1; "
        "give a later time or a shorter window",
    )
    assert len(faults(plain, feature_start_time=datetime(1, 1, 1, 5, tzinfo=UTC))) == 1
