"""Which of two records of one moment is kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from featurekit_dagster.stores.online import wins

RECORDS = st.tuples(st.integers(-5, 5), st.integers(0, 1))


def test_the_newer_timestamp_wins_whatever_its_source() -> None:
    assert wins((2, 0), (1, 1))
    assert not wins((1, 1), (2, 0))


def test_batch_beats_stream_at_equal_timestamps() -> None:
    assert wins((1, 1), (1, 0))
    assert not wins((1, 0), (1, 1))


def test_a_repeated_write_of_the_same_source_replaces() -> None:
    assert wins((1, 0), (1, 0))
    assert wins((1, 1), (1, 1))


@given(RECORDS, RECORDS)
def test_of_two_different_records_exactly_one_wins(one: tuple[int, int], other: tuple[int, int]) -> None:
    assert one == other or wins(one, other) != wins(other, one)


@given(st.lists(RECORDS, min_size=1), st.randoms())
def test_the_kept_record_does_not_depend_on_the_order_of_writes(records: list[tuple[int, int]], random: object) -> None:
    def kept(order: list[tuple[int, int]]) -> tuple[int, int]:
        held = order[0]
        for record in order[1:]:
            held = record if wins(record, held) else held
        return held

    assert kept(records) == kept(sorted(records)) == kept(sorted(records, reverse=True)) == max(records)
