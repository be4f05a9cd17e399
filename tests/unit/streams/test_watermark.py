"""What a watermark lets be dropped, and which events are known again."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from featurekit_dagster.streams.deduplication import Deduplication
from featurekit_dagster.streams.watermark import IDLE_US, Watermark

MINUTE = 60_000_000


def starting(delay: int | None, **newest: int | None) -> Watermark:
    return Watermark.starting(delay, newest, now_us=0)


def test_the_example_of_the_page() -> None:
    assert starting(10 * MINUTE, a=15 * MINUTE).at(0) == 5 * MINUTE


def test_without_a_delay_nothing_is_dropped() -> None:
    assert starting(None, a=15 * MINUTE).at(0) is None
    assert starting(0, a=15 * MINUTE).at(0) is None


def test_before_the_first_event_nothing_is_dropped() -> None:
    assert starting(MINUTE, a=None).at(0) is None
    assert starting(MINUTE, a=15 * MINUTE, b=None).at(0) is None
    assert starting(MINUTE, a=None).at(2 * IDLE_US) is None


def test_the_partition_that_is_furthest_behind_holds_all_others_back() -> None:
    behind = starting(MINUTE, a=15 * MINUTE, b=4 * MINUTE)
    assert behind.at(0) == 3 * MINUTE
    assert behind.seen("b", [9 * MINUTE, 8 * MINUTE], 1).at(1) == 8 * MINUTE


def test_old_events_move_nothing_back() -> None:
    assert starting(MINUTE, a=15 * MINUTE).seen("a", [2 * MINUTE], 1).at(1) == 14 * MINUTE


def test_an_idle_partition_holds_nobody_back_after_a_minute() -> None:
    two = starting(MINUTE, a=15 * MINUTE, b=4 * MINUTE)
    awake = two.seen("a", [16 * MINUTE], IDLE_US - 1)
    assert awake.at(IDLE_US - 1) == 3 * MINUTE
    assert awake.at(IDLE_US) == 15 * MINUTE
    assert starting(MINUTE, a=15 * MINUTE, b=None).seen("a", [], IDLE_US).at(IDLE_US) == 14 * MINUTE


def test_a_partition_with_events_left_is_not_idle() -> None:
    two = starting(MINUTE, a=15 * MINUTE, b=4 * MINUTE).seen("a", [], IDLE_US).still_behind(["b"], IDLE_US)
    assert two.at(IDLE_US) == 3 * MINUTE


def test_where_all_are_idle_the_watermark_does_not_run_ahead_of_the_slowest() -> None:
    assert starting(MINUTE, a=15 * MINUTE, b=4 * MINUTE, c=None).at(9 * IDLE_US) == 3 * MINUTE


def test_the_newest_event_is_that_of_all_partitions() -> None:
    assert starting(None, a=None).newest_us is None
    assert starting(None, a=3, b=7, c=None).newest_us == 7


@given(
    times=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 99)), min_size=1),
    delay=st.integers(1, 50),
)
def test_no_event_newer_than_the_delay_behind_the_newest_is_ever_dropped(
    times: list[tuple[str, int]], delay: int
) -> None:
    watermark, newest = starting(delay, a=None, b=None), -1
    for at, (partition, us) in enumerate(times):
        droppable = watermark.at(at)
        newest = max(newest, us)
        if droppable is not None:
            assert droppable <= newest - delay
        watermark = watermark.seen(partition, [us], at)


def test_values_of_other_columns_or_types_are_other_events() -> None:
    made = Deduplication(("a", "b"))
    naive = datetime(2024, 3, 1, tzinfo=UTC).replace(tzinfo=None)
    rows = [("ab", "c"), ("a", "bc"), ("a", None), (None, "a"), ("", None), (1, 1), (1, True), ("1", 1), (1.0, 1)]
    rows += [(b"a", None), (naive, 1), (naive.replace(tzinfo=UTC), 1), (None, None)]
    marks = made.marks(list(zip(*rows, strict=True)))
    assert len(set(marks)) == len(rows)
    assert {len(mark) for mark in marks} == {16}
    assert made.marks([["ab"], ["c"]]) == marks[:1]


def test_of_equal_events_the_first_counts_unless_it_was_seen_earlier() -> None:
    assert Deduplication(("a",)).first_of_each([b"1", b"2", b"1", b"3"], {b"2"}) == [True, False, False, True]
