"""The five formulas of time, at their edges."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurekit_dagster.domain.stream_sources import KafkaConfig, StreamSource
from featurekit_dagster.intervals import duration_us, from_us, to_us
from featurekit_dagster.planning.grid import (
    Timing,
    ceil_us,
    floor_us,
    last_complete_end,
    last_ready_end,
)
from tests.unit.domain.declared import DAY, HOUR, START, aggregated, file_source, plain, streamed

HOUR_US, DAY_US = duration_us(HOUR), duration_us(DAY)
JANUARY_1 = to_us(START)
DAILY = Timing(grid_us=DAY_US, delay_us=0)
DELAYED = Timing(grid_us=DAY_US, delay_us=2 * HOUR_US)
HOURLY_TTL = Timing(grid_us=HOUR_US, delay_us=0, ttl_us=90 * 60_000_000)

moments = st.integers(-(10**16), 10**17)
timings = st.builds(
    Timing,
    grid_us=st.integers(1, 40 * DAY_US),
    delay_us=st.integers(0, 3 * DAY_US),
    ttl_us=st.integers(1, 400 * DAY_US),
)


@pytest.mark.parametrize(
    ("us", "floor", "ceil"),
    [(0, 0, 0), (1, 0, 10), (9, 0, 10), (10, 10, 10), (-1, -10, 0), (-10, -10, -10), (-11, -20, -10)],
)
def test_floor_and_ceil_are_right_on_both_sides_of_the_epoch(us: int, floor: int, ceil: int) -> None:
    assert (floor_us(us, 10), ceil_us(us, 10)) == (floor, ceil)


@pytest.mark.parametrize(
    ("timing", "ts", "visible"),
    [
        (DAILY, JANUARY_1, JANUARY_1 + DAY_US),
        (DAILY, JANUARY_1 + 1, JANUARY_1 + DAY_US),
        (DAILY, JANUARY_1 + DAY_US - 1, JANUARY_1 + DAY_US),
        (DAILY, JANUARY_1 + DAY_US, JANUARY_1 + 2 * DAY_US),
        (DELAYED, JANUARY_1 + DAY_US - 1, JANUARY_1 + DAY_US + 2 * HOUR_US),
        (DELAYED, JANUARY_1 + DAY_US, JANUARY_1 + 2 * DAY_US + 2 * HOUR_US),
        (DAILY, -1, 0),
        (DAILY, -DAY_US, 0),
        (DAILY, -DAY_US - 1, -DAY_US),
        (DAILY, 0, DAY_US),
    ],
)
def test_a_row_becomes_visible_when_the_interval_it_belongs_to_is_done(timing: Timing, ts: int, visible: int) -> None:
    assert timing.effective(ts) == visible


@pytest.mark.parametrize(
    ("timing", "asked", "edge"),
    [
        (DAILY, JANUARY_1, JANUARY_1),
        (DAILY, JANUARY_1 - 1, JANUARY_1 - DAY_US),
        (DAILY, JANUARY_1 + DAY_US - 1, JANUARY_1),
        (DELAYED, JANUARY_1 + 2 * HOUR_US, JANUARY_1),
        (DELAYED, JANUARY_1 + 2 * HOUR_US - 1, JANUARY_1 - DAY_US),
        (DAILY, -1, -DAY_US),
        (DELAYED, 0, -DAY_US),
    ],
)
def test_a_window_ends_where_the_last_finished_job_ended(timing: Timing, asked: int, edge: int) -> None:
    assert timing.edge(asked) == edge


def test_everything_asked_on_one_day_has_the_edge_of_its_midnight_however_small_the_tiles() -> None:
    timing = Timing(grid_us=DAY_US, delay_us=0, tile_us=HOUR_US)
    asked = np.array([0, 1, 9 * HOUR_US, DAY_US - 1], dtype=np.int64) + JANUARY_1
    assert timing.edge(asked).tolist() == [JANUARY_1] * 4


def test_a_row_expires_on_the_grid_of_the_jobs_after_its_time_to_live() -> None:
    # 01:30 and 90 minutes: 03:00 opens an hour that ends at 04:00
    assert HOURLY_TTL.expires(JANUARY_1 + 90 * 60_000_000) == JANUARY_1 + 4 * HOUR_US
    assert HOURLY_TTL.expires(JANUARY_1 + 90 * 60_000_000 - 1) == JANUARY_1 + 3 * HOUR_US
    assert HOURLY_TTL.expires(-90 * 60_000_000) == HOUR_US


def test_a_view_without_ttl_never_expires() -> None:
    with pytest.raises(ValueError, match="a view without ttl never expires"):
        DAILY.expires(0)


@given(timings, moments)
def test_a_row_is_always_visible_strictly_after_its_own_time(timing: Timing, ts: int) -> None:
    visible = timing.effective(ts)
    assert visible > ts
    assert visible - ts <= timing.grid_us + timing.delay_us
    assert (visible - timing.delay_us) % timing.grid_us == 0


@given(timings, moments, moments)
def test_visible_at_a_time_means_before_its_edge(timing: Timing, ts: int, asked: int) -> None:
    for near in (asked, timing.effective(ts), timing.effective(ts) - 1):
        assert (timing.effective(ts) <= near) == (ts < timing.edge(near))


@given(timings, moments, st.integers(0, 10**12))
def test_later_rows_are_never_visible_earlier_and_never_expire_earlier(timing: Timing, ts: int, later: int) -> None:
    assert timing.effective(ts) <= timing.effective(ts + later)
    assert timing.expires(ts) <= timing.expires(ts + later)
    assert timing.edge(ts) <= timing.edge(ts + later)
    assert timing.expires(ts) >= ts + timing.ttl_us


@given(timings, st.lists(moments, min_size=1, max_size=20))
def test_integers_and_arrays_agree(timing: Timing, times: list[int]) -> None:
    array = np.array(times, dtype=np.int64)
    for formula in (timing.effective, timing.edge, timing.expires):
        answer = formula(array)
        assert answer.dtype == np.int64
        assert answer.tolist() == [formula(us) for us in times]
    assert ceil_us(array, timing.grid_us).tolist() == [ceil_us(us, timing.grid_us) for us in times]


@given(moments, st.integers(1, 10**13))
def test_the_grid_is_the_one_of_the_datetimes(us: int, width: int) -> None:
    assert floor_us(us, width) <= us <= ceil_us(us, width)
    assert floor_us(us, width) % width == ceil_us(us, width) % width == 0
    assert ceil_us(us, width) - floor_us(us, width) == (width if us % width else 0)


def test_the_timing_of_a_view_is_its_declaration_in_microseconds() -> None:
    sources = [file_source(delay=HOUR)]
    assert Timing.of(aggregated(sources=sources)) == Timing(
        grid_us=DAY_US, delay_us=HOUR_US, tile_us=HOUR_US, ttl_us=None, start_us=JANUARY_1
    )
    assert Timing.of(plain(ttl="7d", online=False, offline=False, feature_start_time=None)) == Timing(
        grid_us=DAY_US, delay_us=0, tile_us=None, ttl_us=7 * DAY_US, start_us=None
    )


def test_the_delay_of_a_view_is_the_largest_of_its_sources() -> None:
    def joined(early, late):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return early, late

    view = plain(joined, sources=[file_source("early", delay=HOUR), file_source("late", delay=3 * HOUR).unfiltered()])
    assert Timing.of(view).delay_us == 3 * HOUR_US
    assert last_ready_end(view, START + DAY + 3 * HOUR) == START + DAY


@pytest.mark.parametrize(
    ("now", "ready", "complete"),
    [
        (START + HOUR, START, START),
        (START + HOUR - timedelta(microseconds=1), START - DAY, START),
        (START - timedelta(microseconds=1), START - DAY, START - DAY),
    ],
)
def test_a_schedule_waits_for_the_data_delay_and_a_person_does_not(
    now: datetime, ready: datetime, complete: datetime
) -> None:
    view = plain(sources=[file_source(delay=HOUR)])
    assert (last_ready_end(view, now), last_complete_end(view, now)) == (ready, complete)


@given(st.integers(-(10**15), 10**16), st.integers(1, 100), st.integers(0, 72))
def test_the_last_ready_end_is_the_edge_at_now(now_us: int, schedule_hours: int, delay_hours: int) -> None:
    view = plain(sources=[file_source(delay=delay_hours * HOUR)], batch_schedule=schedule_hours * HOUR)
    end = last_ready_end(view, from_us(now_us))
    assert to_us(end) == Timing.of(view).edge(now_us)
    assert end.tzinfo is UTC


def test_a_continuous_view_sees_an_event_at_its_own_instant() -> None:
    timing = Timing.of(streamed())
    assert (timing.grid_us, timing.delay_us, timing.closed_us, timing.tile_us) == (1, 0, 1, 1)
    assert timing.effective(JANUARY_1) == JANUARY_1
    assert timing.edge(JANUARY_1) == JANUARY_1 + 1
    assert timing.visible(timing.edge(JANUARY_1)) == JANUARY_1
    assert timing.first_edge_us == JANUARY_1 + 1


def test_an_interval_stream_sees_whole_tiles_whatever_the_schedule_and_the_delay() -> None:
    kafka = StreamSource(
        name="payments",
        stream_config=KafkaConfig(kafka_bootstrap_servers="broker:9092", topics="payments"),
        batch_config=file_source(delay=5 * HOUR).batch_config,
    )
    view = streamed(source=kafka, aggregation_interval=HOUR, batch_schedule=DAY)
    timing = Timing.of(view)
    assert (timing.grid_us, timing.delay_us, timing.closed_us, timing.tile_us) == (HOUR_US, 0, 0, HOUR_US)
    assert timing.edge(JANUARY_1 + HOUR_US - 1) == JANUARY_1
    assert timing.edge(JANUARY_1 + HOUR_US) == JANUARY_1 + HOUR_US
    assert last_ready_end(view, START + DAY + 5 * HOUR) == START + DAY


def test_a_row_of_a_stream_is_visible_at_its_time_and_expires_exactly_after_its_time_to_live() -> None:
    timing = Timing.of(streamed(aggregations=None, ttl=timedelta(minutes=90)))
    assert timing.effective(JANUARY_1) == JANUARY_1
    assert timing.expires(JANUARY_1) == JANUARY_1 + 90 * 60_000_000


def test_an_untiled_batch_view_keeps_the_grid_of_its_jobs() -> None:
    timing = Timing.of(aggregated(compaction_enabled=True, online=False, aggregation_interval=None))
    assert (timing.grid_us, timing.closed_us, timing.tile_us) == (DAY_US, 0, 1)
