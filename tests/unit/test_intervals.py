from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from featurekit_dagster.intervals import (
    EPOCH,
    Interval,
    IntervalSet,
    as_utc,
    ceil_time,
    duration_us,
    floor_time,
    format_time,
    from_us,
    is_aligned,
    to_us,
)

US = timedelta(microseconds=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
WEEK = timedelta(days=7)


def day(number: int, hour: int = 0, us: int = 0) -> datetime:
    return datetime(2024, 1, number, hour, microsecond=us, tzinfo=UTC)


def span(first: int, last: int) -> Interval:
    return Interval(day(first), day(last))


def test_a_naive_time_is_read_as_utc() -> None:
    naive = datetime(2024, 1, 1, 12)  # noqa: DTZ001 - the point of the test
    assert as_utc(naive) == day(1, 12)
    assert to_us(naive) == to_us(day(1, 12))


def test_an_aware_time_is_converted_to_utc() -> None:
    tokyo = datetime(2024, 1, 1, 9, tzinfo=timezone(timedelta(hours=9)))
    assert as_utc(tokyo).isoformat() == "2024-01-01T00:00:00+00:00"
    assert Interval(tokyo, day(2)) == span(1, 2)
    assert hash(Interval(tokyo, day(2))) == hash(span(1, 2))


@pytest.mark.parametrize("us", [0, 1, -1, -86_400_000_000, 1_700_000_000_123_456, -2_208_988_800_000_001])
def test_microseconds_survive_the_round_trip(us: int) -> None:
    assert to_us(from_us(us)) == us


def test_the_epoch_is_zero_and_the_microsecond_before_it_is_minus_one() -> None:
    assert to_us(EPOCH) == 0
    assert to_us(EPOCH - US) == -1


def test_a_duration_is_counted_in_whole_microseconds() -> None:
    assert duration_us(DAY + US) == 86_400_000_001


@pytest.mark.parametrize(
    ("time", "width", "floor", "ceil"),
    [
        (day(1), DAY, day(1), day(1)),
        (day(1) + US, DAY, day(1), day(2)),
        (day(2) - US, DAY, day(1), day(2)),
        (day(1, 5), HOUR, day(1, 5), day(1, 5)),
        (EPOCH, DAY, EPOCH, EPOCH),
        (EPOCH - US, DAY, EPOCH - DAY, EPOCH),
        (EPOCH - DAY, DAY, EPOCH - DAY, EPOCH - DAY),
        (EPOCH - DAY - US, DAY, EPOCH - 2 * DAY, EPOCH - DAY),
    ],
)
def test_floor_and_ceil_meet_the_epoch_grid(time: datetime, width: timedelta, floor: datetime, ceil: datetime) -> None:
    assert (floor_time(time, width), ceil_time(time, width)) == (floor, ceil)


def test_weeks_begin_on_thursday_because_the_epoch_did() -> None:
    assert floor_time(day(1), WEEK).isoformat() == "2023-12-28T00:00:00+00:00"
    assert floor_time(day(1), WEEK).strftime("%A") == "Thursday"


def test_alignment_is_to_the_epoch_and_not_to_midnight_of_the_first_day() -> None:
    three_days = timedelta(days=3)
    assert is_aligned(EPOCH + 3 * DAY, three_days)
    assert is_aligned(EPOCH - 3 * DAY, three_days)
    assert not is_aligned(EPOCH + DAY, three_days)
    assert not is_aligned(EPOCH + 3 * DAY + US, three_days)


@pytest.mark.parametrize("end", [day(1), day(1) - US])
def test_an_interval_is_never_empty_nor_backwards(end: datetime) -> None:
    with pytest.raises(ValueError, match=r"interval start 2024-01-01T00:00:00\+00:00 is not before its end 202"):
        Interval(day(1), end)


def test_an_interval_holds_its_start_and_not_its_end() -> None:
    interval = span(1, 2)
    assert interval.contains(day(1))
    assert interval.contains(day(2) - US)
    assert not interval.contains(day(2))
    assert not interval.contains(day(1) - US)


def test_touching_intervals_do_not_overlap_and_have_nothing_in_common() -> None:
    assert not span(1, 2).overlaps(span(2, 3))
    assert span(1, 2).intersect(span(2, 3)) is None
    assert span(1, 3).overlaps(span(2, 4))
    assert span(1, 3).intersect(span(2, 4)) == span(2, 3)


def test_one_microsecond_is_enough_to_overlap() -> None:
    assert Interval(day(1), day(2) + US).intersect(span(2, 3)) == Interval(day(2), day(2) + US)


def test_an_interval_knows_its_length_and_its_ends_in_microseconds() -> None:
    interval = Interval(EPOCH - US, EPOCH + DAY)
    assert interval.duration == DAY + US
    assert (interval.start_us, interval.end_us) == (-1, 86_400_000_000)


def test_aligned_outward_gives_the_smallest_grid_interval_around() -> None:
    assert Interval(day(1, 5), day(2, 1)).aligned_outward(DAY) == span(1, 3)
    assert span(1, 3).aligned_outward(DAY) == span(1, 3)
    assert Interval(EPOCH - US, EPOCH + US).aligned_outward(DAY) == Interval(EPOCH - DAY, EPOCH + DAY)


def test_both_ends_decide_on_alignment() -> None:
    assert span(1, 2).is_aligned(DAY)
    assert not Interval(day(1), day(2, 1)).is_aligned(DAY)
    assert not Interval(day(1, 1), day(2)).is_aligned(DAY)


def test_pieces_are_cut_at_the_epoch_grid_and_keep_ragged_ends() -> None:
    assert list(Interval(day(1, 12), day(3, 6)).split_on_grid(DAY)) == [
        Interval(day(1, 12), day(2)),
        span(2, 3),
        Interval(day(3), day(3, 6)),
    ]


def test_pieces_before_1970_lie_on_the_same_grid() -> None:
    assert list(Interval(EPOCH - DAY - US, EPOCH + US).split_on_grid(DAY)) == [
        Interval(EPOCH - DAY - US, EPOCH - DAY),
        Interval(EPOCH - DAY, EPOCH),
        Interval(EPOCH, EPOCH + US),
    ]


def test_an_interval_shorter_than_the_grid_is_one_piece() -> None:
    inside = Interval(day(1, 5), day(1, 6))
    assert list(inside.split_on_grid(DAY)) == [inside]


@pytest.mark.parametrize(
    ("time", "text"),
    [
        (day(1), "2024-01-01T00:00Z"),
        (day(1) + timedelta(seconds=5), "2024-01-01T00:00:05Z"),
        (day(1, 0, 1), "2024-01-01T00:00:00.000001Z"),
        (datetime(2024, 1, 1, 1, tzinfo=timezone(HOUR)), "2024-01-01T00:00Z"),
    ],
)
def test_times_are_written_in_utc_with_no_more_digits_than_they_have(time: datetime, text: str) -> None:
    assert format_time(time) == text


def test_an_interval_is_written_with_its_brackets() -> None:
    assert str(span(1, 2)) == "[2024-01-01T00:00Z, 2024-01-02T00:00Z)"


def test_a_set_merges_what_touches_and_keeps_what_does_not() -> None:
    assert IntervalSet([span(5, 6), span(1, 2), span(2, 3)]).intervals == (span(1, 3), span(5, 6))
    apart = (span(1, 2), Interval(day(2) + US, day(3)))
    assert IntervalSet(apart).intervals == apart


def test_an_interval_inside_another_adds_nothing() -> None:
    assert IntervalSet([span(1, 9), span(2, 3), span(8, 9)]).intervals == (span(1, 9),)


def test_sets_with_the_same_instants_are_equal_however_they_were_made() -> None:
    assert IntervalSet([span(1, 3)]) == IntervalSet([span(2, 3), span(1, 2)])
    assert hash(IntervalSet([span(1, 3)])) == hash(IntervalSet([span(2, 3), span(1, 2)]))


def test_subtracting_leaves_the_pieces_round_the_holes() -> None:
    left = IntervalSet([span(1, 10)]).subtract([span(2, 3), span(5, 6), span(9, 12)])
    assert left.intervals == (span(1, 2), span(3, 5), span(6, 9))


def test_one_hole_can_cut_two_intervals() -> None:
    assert IntervalSet([span(1, 4), span(6, 9)]).subtract([span(3, 7)]).intervals == (span(1, 3), span(7, 9))


def test_a_set_covers_an_interval_only_without_gaps() -> None:
    covered = IntervalSet([span(1, 3), span(4, 6)])
    assert covered.covers(span(1, 3))
    assert not covered.covers(span(2, 5))
    assert not covered.covers(Interval(day(1), day(3) + US))
    assert covered.overlaps(span(2, 5))
    assert not covered.overlaps(span(3, 4))


def test_an_empty_set_is_false_and_says_nothing() -> None:
    assert not IntervalSet()
    assert str(IntervalSet()) == "nothing"
    assert len(IntervalSet([span(1, 2), span(3, 4)])) == 2
    assert str(IntervalSet([span(1, 2), span(3, 4)])) == (
        "[2024-01-01T00:00Z, 2024-01-02T00:00Z), [2024-01-03T00:00Z, 2024-01-04T00:00Z)"
    )
