"""What a person may not ask to be materialized, and what is said then."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurekit_dagster.domain.stream_sources import PushConfig, StreamSource
from featurekit_dagster.errors import (
    BeforeFeatureStart,
    IntervalNotComplete,
    MisalignedInterval,
    OverlappingMaterialization,
    PlanError,
    TectonValidationError,
)
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.planning.planner import check_interval
from tests.unit.domain.declared import DAY, HOUR, START, aggregated, file_source, plain, streamed

NOW = START + 10 * DAY + 5 * HOUR
US = timedelta(microseconds=1)
VIEW = plain()


def test_an_interval_on_the_grid_is_accepted_and_naive_times_are_utc() -> None:
    naive = (datetime(2024, 1, 2), datetime(2024, 1, 4))  # noqa: DTZ001 - the point of the test
    expected = Interval(START + DAY, START + 3 * DAY)
    assert check_interval(VIEW, *naive, NOW) == check_interval(VIEW, expected.start, expected.end, NOW) == expected


def test_a_start_off_the_grid_is_refused_with_the_nearest_times_on_it() -> None:
    with pytest.raises(MisalignedInterval) as refused:
        check_interval(VIEW, START + 6 * HOUR, START + DAY, NOW)
    assert str(refused.value) == (
        "spending: start 2024-01-01T06:00Z is not on the 1d grid of the Unix epoch; "
        "nearest are 2024-01-01T00:00Z and 2024-01-02T00:00Z"
    )
    assert (refused.value.view, refused.value.what, refused.value.given) == ("spending", "start", "2024-01-01T06:00Z")


def test_an_end_off_the_grid_is_refused_even_by_a_microsecond() -> None:
    with pytest.raises(MisalignedInterval) as refused:
        check_interval(VIEW, START, START + DAY - US, NOW)
    assert str(refused.value) == (
        "spending: end 2024-01-01T23:59:59.999999Z is not on the 1d grid of the Unix epoch; "
        "nearest are 2024-01-01T00:00Z and 2024-01-02T00:00Z"
    )


def test_the_grid_is_that_of_the_schedule_and_not_of_the_tiles() -> None:
    with pytest.raises(MisalignedInterval, match="start 2024-01-01T06:00Z is not on the 1d grid"):
        check_interval(aggregated(), START + 6 * HOUR, START + DAY, NOW)


def test_weeks_begin_on_thursday() -> None:
    with pytest.raises(MisalignedInterval, match="nearest are 2023-12-28T00:00Z and 2024-01-04T00:00Z"):
        check_interval(plain(batch_schedule="7d"), START, START + 7 * DAY, NOW)


def test_a_start_before_the_materialization_start_is_refused() -> None:
    with pytest.raises(BeforeFeatureStart) as refused:
        check_interval(VIEW, START - DAY, START + DAY, NOW)
    assert str(refused.value) == (
        "spending: start 2023-12-31T00:00Z is before the materialization start 2024-01-01T00:00Z; begin there, "
        "or move feature_start_time"
    )


def test_the_materialization_start_lies_before_the_feature_start_by_the_widest_window() -> None:
    week_before = START - 7 * DAY
    assert check_interval(aggregated(), week_before, START, NOW) == Interval(week_before, START)
    with pytest.raises(BeforeFeatureStart, match="is before the materialization start 2023-12-25T00:00Z"):
        check_interval(aggregated(), week_before - DAY, START, NOW)


def test_an_end_after_the_last_complete_interval_is_refused() -> None:
    with pytest.raises(IntervalNotComplete) as refused:
        check_interval(VIEW, START, START + 11 * DAY, NOW)
    assert str(refused.value) == (
        "spending: end 2024-01-12T00:00Z is after the last complete interval, which ends 2024-01-11T00:00Z; "
        "end there or wait"
    )


def test_an_interval_is_complete_at_its_very_end_and_not_a_microsecond_before() -> None:
    end = START + 11 * DAY
    assert check_interval(VIEW, START, end, end).end == end
    with pytest.raises(IntervalNotComplete):
        check_interval(VIEW, START, end, end - US)


def test_a_person_does_not_wait_for_the_data_delay() -> None:
    delayed = plain(sources=[file_source(delay=3 * DAY)])
    assert check_interval(delayed, START, START + 10 * DAY, NOW).end == START + 10 * DAY


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (
            START + DAY,
            START,
            "spending: start 2024-01-02T00:00Z is not before end 2024-01-01T00:00Z; exchange them",
        ),
        (
            START,
            START,
            "spending: start 2024-01-01T00:00Z is not before end 2024-01-01T00:00Z; give a later end",
        ),
    ],
)
def test_a_start_that_is_not_before_the_end_is_refused(start: datetime, end: datetime, message: str) -> None:
    with pytest.raises(PlanError) as refused:
        check_interval(VIEW, start, end, NOW)
    assert str(refused.value) == message


def test_a_view_that_writes_no_store_cannot_be_materialized() -> None:
    view = plain(online=False, offline=False)
    with pytest.raises(PlanError) as refused:
        check_interval(view, START, START + DAY, NOW)
    assert str(refused.value) == (
        "spending: it writes no store; declare online=True or offline=True and feature_start_time"
    )


def test_an_overlap_with_a_finished_job_says_what_overwrites_it() -> None:
    overlap = IntervalSet([Interval(START, START + DAY)])
    refused = OverlappingMaterialization(
        view="spending",
        interval=Interval(START, START + 2 * DAY),
        store="offline",
        overlap=overlap,
        running=False,
        job_id="j1",
    )
    assert str(refused) == (
        "spending: [2024-01-01T00:00Z, 2024-01-03T00:00Z) overlaps [2024-01-01T00:00Z, 2024-01-02T00:00Z) in the "
        "offline store: job j1 succeeded there; pass overwrite=True (--overwrite) to replace what it wrote"
    )


def test_an_overlap_with_a_running_job_says_what_to_wait_for() -> None:
    interval = Interval(START, START + DAY)
    refused = OverlappingMaterialization(
        view="spending", interval=interval, store="online", overlap=IntervalSet([interval]), running=True
    )
    assert str(refused) == (
        "spending: [2024-01-01T00:00Z, 2024-01-02T00:00Z) overlaps [2024-01-01T00:00Z, 2024-01-02T00:00Z) in the "
        "online store: an earlier job is queued or running there; wait for it or cancel it first"
    )


@pytest.mark.parametrize(
    "kind", [MisalignedInterval, BeforeFeatureStart, IntervalNotComplete, OverlappingMaterialization]
)
def test_a_refusal_is_a_value_error_that_trying_again_does_not_help(kind: type[PlanError]) -> None:
    assert issubclass(kind, TectonValidationError)
    assert issubclass(kind, ValueError)
    assert not kind.retryable


@given(st.integers(-20, 20), st.integers(-20, 20), st.sampled_from([timedelta(0), US, HOUR]))
def test_exactly_the_complete_intervals_on_the_grid_after_the_start_are_accepted(
    first: int, last: int, off: timedelta
) -> None:
    start, end = START + first * DAY, START + last * DAY + off
    allowed = first < last and first >= 0 and last <= 10 and not off
    if allowed:
        assert check_interval(VIEW, start, end, NOW) == Interval(start, end)
    else:
        with pytest.raises(PlanError):
            check_interval(VIEW, start, end, NOW)


def test_a_stream_without_batch_side_cannot_be_materialized_by_hand() -> None:
    view = streamed(source=StreamSource(name="payments", stream_config=PushConfig()))
    with pytest.raises(PlanError) as refused:
        check_interval(view, START, START + DAY, NOW)
    assert str(refused.value) == (
        "spending: its source has no batch_config, and events reach it by its stream only; give its source a "
        "batch_config, and the view batch_trigger=BatchTriggerType.MANUAL"
    )
