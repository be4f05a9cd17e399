"""How many partitions a view has, when it reaches the numbers that matter to Dagster, and what is refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurekit_dagster.cli_output import plain as plain_json
from featurekit_dagster.cli_plan import plan_record
from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.domain.sources import FilteredSource
from featurekit_dagster.errors import TooManyPartitions
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.planning.partition_limits import (
    MANY_PARTITIONS,
    TOO_MANY_PARTITIONS,
    limit_warnings,
    partition_limits,
    too_many_partitions,
)
from featurekit_dagster.planning.planner import plan_view
from featurekit_dagster.planning.tasks import LedgerSnapshot
from tests.unit.domain.declared import DAY, HOUR, START, TRANSACTIONS, plain

MINUTE = timedelta(minutes=1)
FIVE = 5 * MINUTE
TWO_YEARS = START + 731 * DAY
EMPTY = LedgerSnapshot()


def view_of(width: timedelta = FIVE, **changes: object) -> FeatureView:
    return plain(sources=[FilteredSource(TRANSACTIONS)], batch_schedule=width, feature_start_time=START, **changes)


def warnings_at(now: datetime, width: timedelta = FIVE) -> list[str]:
    return list(limit_warnings(view_of(width), now))


def test_five_minutes_over_two_years_are_more_than_210_000_partitions() -> None:
    limits = partition_limits(view_of(), TWO_YEARS)
    assert limits is not None
    assert limits.partitions == 210_528


@given(st.sampled_from([MINUTE, FIVE, HOUR, DAY, 7 * DAY]), st.sampled_from([MANY_PARTITIONS, TOO_MANY_PARTITIONS]))
def test_at_the_time_it_names_a_view_has_just_reached_the_number(width: timedelta, number: int) -> None:
    view = view_of(width)
    limits = partition_limits(view, START)
    assert limits is not None
    at = limits.reached_at[number]
    assert at is not None
    before, then = partition_limits(view, at - MINUTE / 60), partition_limits(view, at)
    assert before is not None
    assert then is not None
    assert (before.partitions, then.partitions) == (number - 1, number)


def test_a_number_beyond_the_calendar_has_no_time() -> None:
    end_of_time = datetime(9700, 1, 1, tzinfo=UTC)
    late = plain(sources=[TRANSACTIONS], batch_schedule=7 * DAY, feature_start_time=end_of_time)
    limits = partition_limits(late, START)
    assert limits is not None
    assert limits.reached_at == {MANY_PARTITIONS: None, TOO_MANY_PARTITIONS: None}
    assert list(limit_warnings(late, START)) == []


def test_a_view_that_writes_no_store_has_no_partitions() -> None:
    assert partition_limits(view_of(online=False, offline=False), START) is None
    assert list(limit_warnings(view_of(online=False, offline=False), START)) == []


def test_before_its_start_a_view_has_no_partition() -> None:
    limits = partition_limits(view_of(), START - DAY)
    assert limits is not None
    assert limits.partitions == 0


def test_a_number_that_comes_within_a_year_is_warned_about_with_its_date() -> None:
    assert warnings_at(START) == [
        "batch_schedule 5m makes many partitions: 20,000 on 2024-03-10T10:40Z, 100,000 on 2024-12-13T05:20Z; Dagster "
        "gets slow above 20,000, and a new view may have 100,000"
    ]
    reached = START + 20_000 * HOUR
    assert warnings_at(reached - 365 * DAY - HOUR, HOUR) == []
    (warning,) = warnings_at(reached - 365 * DAY, HOUR)
    assert "20,000 on 2026-04-13T08:00Z;" in warning


def test_a_number_that_is_passed_is_told_by_now() -> None:
    (warning,) = warnings_at(START + 20_001 * HOUR, HOUR)
    assert warning.startswith("batch_schedule 1h makes many partitions: 20,001 by now; Dagster gets slow")
    (warning,) = warnings_at(START + 99_999 * HOUR, HOUR)
    assert "99,999 by now, 100,000 on " in warning
    (warning,) = warnings_at(START + 100_001 * HOUR, HOUR)
    assert "100,001 by now; " in warning


def test_daily_views_are_not_warned_about() -> None:
    assert warnings_at(START + 40 * 365 * DAY, DAY) == []


def test_a_new_view_is_refused_above_100_000_and_one_that_is_materialized_is_not() -> None:
    view, done = view_of(), IntervalSet([Interval(START, START + FIVE)])
    last = START + TOO_MANY_PARTITIONS * FIVE
    assert too_many_partitions(view, EMPTY, last) is None
    refused = too_many_partitions(view, EMPTY, last + FIVE)
    assert isinstance(refused, TooManyPartitions)
    assert str(refused) == (
        "spending: batch_schedule 5m makes 100,001 partitions; Dagster gets slow above 20,000 and takes at most "
        "100,000; give a longer batch_schedule (aggregation_interval may stay short), or a later feature_start_time"
    )
    assert too_many_partitions(view, LedgerSnapshot(covered={("spending", "offline"): done}), last + FIVE) is None
    other = LedgerSnapshot(covered={("other", "offline"): done})
    assert too_many_partitions(view, other, last + FIVE) is not None


def test_a_claim_alone_makes_no_view_exist() -> None:
    claimed = LedgerSnapshot(running={"spending": IntervalSet([Interval(START, START + FIVE)])})
    assert too_many_partitions(view_of(), claimed, TWO_YEARS) is not None


def test_a_rebuilt_generation_is_new() -> None:
    old = IntervalSet([Interval(START, START + HOUR)])
    rebuilt = LedgerSnapshot(generation={"spending": 2}, superseded={("spending", "offline"): old})
    assert too_many_partitions(view_of(), rebuilt, TWO_YEARS) is not None


def test_plans_carry_the_warning_and_always_the_dates_in_json() -> None:
    plan = plan_view(view_of(HOUR), EMPTY, START + 3 * HOUR)
    record = json.loads(json.dumps(plain_json(plan_record(plan))))
    assert record["partition_limits"] == {
        "partitions_by_now": 3,
        "limits": [
            {"partitions": 20_000, "reached_at": "2026-04-13T08:00Z"},
            {"partitions": 100_000, "reached_at": "2035-05-29T16:00Z"},
        ],
    }
    assert not any("partitions" in warning for warning in plan.warnings)
    (warning,) = [w for w in plan_view(view_of(), EMPTY, START).warnings if "partitions" in w]
    assert "20,000 on 2024-03-10T10:40Z" in warning
    assert plan_record(plan_view(view_of(online=False, offline=False), EMPTY, START))["partition_limits"] is None


@pytest.mark.parametrize("count", [MANY_PARTITIONS, MANY_PARTITIONS + 1])
def test_only_more_than_20_000_is_many_by_now(count: int) -> None:
    (warning,) = warnings_at(START + count * FIVE)
    assert ("by now" in warning) == (count > MANY_PARTITIONS)
