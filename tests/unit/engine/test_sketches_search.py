"""Sums and selections over many ranges by a wavelet matrix."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from featurekit_dagster.engine.rollup_sums import Ranges
from featurekit_dagster.engine.sketches_search import blocks_of, select_units, sums_below

COUNT = 30
pairs = st.lists(st.tuples(st.integers(0, COUNT), st.integers(0, COUNT)), max_size=20)


def ranges_of(cuts: list[tuple[int, int]], size: int = COUNT) -> Ranges:
    low = np.array([min(pair + (size,)) for pair in cuts], np.int64)
    return Ranges(low, np.array([min(max(pair), size) for pair in cuts], np.int64))


@given(values=st.lists(st.integers(0, 15), max_size=COUNT), cuts=pairs, limit=st.integers(0, 15))
def test_a_sum_takes_the_values_below_the_limit(values: list[int], cuts: list[tuple[int, int]], limit: int) -> None:
    ranges = ranges_of(cuts, len(values))
    weights = np.arange(len(values), dtype=np.int64) * 7 - 20
    found = sums_below(np.array(values, np.int32), weights, ranges, np.full(len(cuts), limit), 4)
    for low, high, got in zip(ranges.low, ranges.high, found, strict=True):
        assert got == sum(int(weights[at]) for at in range(low, high) if values[at] < limit)


@given(seed=st.integers(0, 1000), cuts=pairs, share=st.floats(0, 1, exclude_max=True), weighted=st.booleans())
def test_a_selection_finds_the_entry_that_holds_the_unit(
    seed: int, cuts: list[tuple[int, int]], share: float, weighted: bool
) -> None:
    rng = np.random.default_rng(seed)
    ranks = rng.permutation(COUNT).astype(np.int32)
    weights = rng.integers(1, 5, COUNT) if weighted else np.ones(COUNT, np.int64)
    ranges = ranges_of([cut for cut in cuts if cut[0] != cut[1]])
    totals = np.array([weights[low:high].sum() for low, high in zip(ranges.low, ranges.high, strict=True)], np.int64)
    units = (totals * share).astype(np.int64)
    found, before = select_units(ranks, weights if weighted else None, ranges, units, 5)
    for low, high, unit, rank, smaller in zip(ranges.low, ranges.high, units, found, before, strict=True):
        expanded = np.repeat(np.sort(ranks[low:high]), weights[low:high][np.argsort(ranks[low:high])])
        assert rank == expanded[unit]
        assert smaller == np.flatnonzero(expanded == rank)[0]


@given(cuts=pairs)
def test_blocks_hold_every_range_once_with_its_own_entries(cuts: list[tuple[int, int]]) -> None:
    ranges = ranges_of(cuts)
    seen: list[int] = []
    for block in blocks_of(ranges, COUNT):
        for number, low, high in zip(block.chosen, block.ranges.low, block.ranges.high, strict=True):
            entries = list(range(ranges.low[number], ranges.high[number]))
            assert block.entries[low:high].tolist() == entries
            assert len(set(block.parts[low:high].tolist())) == 1
        assert np.array_equal(block.starts, np.searchsorted(block.parts, np.arange(len(block.starts))))
        assert np.bincount(block.parts).max() < 2**block.bits
        seen += block.chosen.tolist()
    assert sorted(seen) == np.flatnonzero(ranges.high > ranges.low).tolist()


def test_ranges_that_overlap_share_a_part_and_others_do_not() -> None:
    (block,) = blocks_of(Ranges(np.array([0, 2, 5, 9]), np.array([3, 5, 9, 9])), 12)
    assert block.entries.tolist() == list(range(9))
    assert block.parts.tolist() == [0] * 5 + [1] * 4
    assert sorted(block.chosen.tolist()) == [0, 1, 2]


def test_blocks_are_bounded_save_for_one_part_that_is_larger() -> None:
    size, parts = 1000, 600
    low = np.arange(parts) * size
    many = list(blocks_of(Ranges(low, low + size), size * parts))
    assert len(many) > 3
    assert sum(len(block.entries) for block in many) == size * parts
    (one,) = blocks_of(Ranges(np.array([0]), np.array([size * parts])), size * parts)
    assert len(one.entries) == size * parts
