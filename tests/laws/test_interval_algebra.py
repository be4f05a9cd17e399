"""The interval algebra judged by plain sets of microseconds."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from featurekit_dagster.intervals import Interval, IntervalSet, ceil_time, floor_time, from_us, is_aligned, to_us

REACH = 40
BASES = (0, -1, -20, -86_400_000_000 - 7, 1_700_000_000_123_456 // 60 * 60, -2_208_988_800_000_003)

bases = st.sampled_from(BASES)
offsets = st.integers(0, REACH)
spans = st.tuples(offsets, offsets).map(sorted).filter(lambda ends: ends[0] < ends[1])
span_lists = st.lists(spans, max_size=6)
any_us = st.integers(-(10**16), 10**17)
widths_us = st.integers(1, 10**13)


def instants(pairs: list[list[int]]) -> set[int]:
    return {us for start, end in pairs for us in range(start, end)}


def interval(base: int, ends: list[int]) -> Interval:
    return Interval(from_us(base + ends[0]), from_us(base + ends[1]))


def interval_set(base: int, pairs: list[list[int]]) -> IntervalSet:
    return IntervalSet(interval(base, ends) for ends in pairs)


def told(base: int, covered: IntervalSet) -> set[int]:
    return {us - base for one in covered for us in range(one.start_us, one.end_us)}


def is_canonical(covered: IntervalSet) -> bool:
    ends = [(one.start, one.end) for one in covered]
    return all(left[1] < right[0] for left, right in zip(ends, ends[1:], strict=False))


@given(bases, span_lists)
def test_a_set_holds_exactly_the_instants_it_was_made_of_in_the_fewest_pieces(
    base: int, pairs: list[list[int]]
) -> None:
    made = interval_set(base, pairs)
    assert told(base, made) == instants(pairs)
    assert is_canonical(made)


@given(bases, span_lists, st.randoms(use_true_random=False))
def test_the_order_of_making_does_not_matter(base: int, pairs: list[list[int]], random: object) -> None:
    shuffled = list(pairs)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert interval_set(base, shuffled) == interval_set(base, pairs)


@given(bases, span_lists, span_lists)
def test_union_subtract_and_intersect_are_those_of_sets(base: int, one: list[list[int]], two: list[list[int]]) -> None:
    left, right = interval_set(base, one), interval_set(base, two)
    answers = {
        "union": (left.union(right), instants(one) | instants(two)),
        "subtract": (left.subtract(right), instants(one) - instants(two)),
        "intersect": (left.intersect(right), instants(one) & instants(two)),
    }
    for name, (answer, expected) in answers.items():
        assert told(base, answer) == expected, name
        assert is_canonical(answer), name


@given(bases, span_lists, span_lists)
def test_a_set_is_what_it_shares_with_another_and_what_it_does_not(
    base: int, one: list[list[int]], two: list[list[int]]
) -> None:
    left, right = interval_set(base, one), interval_set(base, two)
    assert left.intersect(right).union(left.subtract(right)) == left
    assert left.intersect(right) == right.intersect(left)
    assert left.union(right) == right.union(left)
    assert left.subtract(left) == IntervalSet()


@given(bases, span_lists, spans)
def test_covers_and_overlaps_ask_for_all_and_for_any_instant(
    base: int, pairs: list[list[int]], ends: list[int]
) -> None:
    covered, asked = interval_set(base, pairs), interval(base, ends)
    assert covered.covers(asked) == (instants([ends]) <= instants(pairs))
    assert covered.overlaps(asked) == bool(instants([ends]) & instants(pairs))


@given(bases, spans, spans)
def test_two_intervals_share_what_their_instants_share(base: int, one: list[int], two: list[int]) -> None:
    left, right = interval(base, one), interval(base, two)
    shared = left.intersect(right)
    assert (instants([one]) & instants([two])) == (told(base, IntervalSet([shared])) if shared else set())
    assert left.overlaps(right) == (shared is not None)
    assert shared == right.intersect(left)


@given(bases, spans, st.integers(1, REACH))
def test_split_on_grid_loses_nothing_and_cuts_at_every_grid_point_only(base: int, ends: list[int], width: int) -> None:
    whole = interval(base, ends)
    pieces = list(whole.split_on_grid(timedelta(microseconds=width)))
    assert pieces[0].start == whole.start
    assert pieces[-1].end == whole.end
    assert all(left.end == right.start for left, right in zip(pieces, pieces[1:], strict=False))
    cuts = [piece.end_us for piece in pieces[:-1]]
    assert cuts == [us for us in range(whole.start_us + 1, whole.end_us) if us % width == 0]


@given(any_us, widths_us)
def test_floor_and_ceil_are_the_nearest_grid_points(us: int, width_us: int) -> None:
    time, width = from_us(us), timedelta(microseconds=width_us)
    floor, ceil = to_us(floor_time(time, width)), to_us(ceil_time(time, width))
    assert floor <= us <= ceil
    assert us - floor < width_us
    assert ceil - us < width_us
    assert floor % width_us == ceil % width_us == 0
    assert is_aligned(time, width) == (floor == ceil == us)


@given(any_us)
def test_a_time_is_its_microseconds(us: int) -> None:
    assert to_us(from_us(us)) == us


@given(bases, spans, st.integers(1, REACH))
def test_aligned_outward_is_the_smallest_grid_interval_around(base: int, ends: list[int], width: int) -> None:
    inner, step = interval(base, ends), timedelta(microseconds=width)
    outer = inner.aligned_outward(step)
    assert outer.is_aligned(step)
    assert outer.start <= inner.start
    assert inner.end <= outer.end
    assert inner.start_us - outer.start_us < width
    assert outer.end_us - inner.end_us < width
