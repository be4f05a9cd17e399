"""Sketches: however events are cut into tiles, windows answer alike, offline and online, within the stated error."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from featurekit_dagster.engine.rollup_sums import Ranges
from featurekit_dagster.engine.sketches import count_distinct, finish_digest, finish_hll, hll_code, percentiles
from featurekit_dagster.engine.sketches_of_key import Digest, count_distinct_of

texts = st.lists(st.lists(st.text(max_size=2), max_size=8), min_size=1, max_size=12)
tame = st.floats(-1e6, 1e6)
any_float = st.floats() | st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, 2.0])
precisions = st.integers(4, 16)
shares = st.floats(0, 1) | st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0])
cuts = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=12)


def hll(tiles: list[list[str]], precision: int) -> tuple[pa.ListArray, pa.ListArray]:
    codes = [[hll_code(text, precision) for text in tile] for tile in tiles]
    return finish_hll(pa.array(codes, pa.list_(pa.int64())), precision)


def digest(tiles: list[list[float]], compression: int) -> tuple[pa.ListArray, pa.ListArray]:
    return finish_digest(pa.array(tiles, pa.list_(pa.float64())), compression)


def ranges_of(pairs: list[tuple[int, int]], size: int) -> Ranges:
    ends = [(min(pair + (size,)), min(max(pair), size)) for pair in pairs]
    return Ranges(np.array([low for low, _ in ends]), np.array([high for _, high in ends]))


def counted(sketches: tuple[pa.ListArray, pa.ListArray], low: int, high: int, precision: int) -> int:
    """Return what an online read answers for these tiles."""
    places, ranks = (column[low:high].flatten().to_numpy() for column in sketches)
    return count_distinct_of(places, ranks, precision)


def found_in(sketches: tuple[pa.ListArray, pa.ListArray], low: int, high: int, share: float) -> float | None:
    """Return what an online read answers for these tiles."""
    means, weights = (column[low:high].flatten().to_numpy() for column in sketches)
    return Digest.of(means, weights).percentile(share)


def same(left: float | None, right: float | None) -> bool:
    return left == right or (left is not None and right is not None and math.isnan(left) and math.isnan(right))


@given(tiles=texts, precision=precisions, pairs=cuts)
def test_a_window_of_tiles_counts_as_one_sketch_of_its_values(
    tiles: list[list[str]], precision: int, pairs: list[tuple[int, int]]
) -> None:
    part = ranges_of(pairs, len(tiles))
    (found,) = count_distinct(*hll(tiles, precision), [part], precision)
    unions = [sum(tiles[low:high], []) for low, high in zip(part.low, part.high, strict=True)]
    each = Ranges(np.arange(len(unions)), np.arange(1, len(unions) + 1))
    (whole,) = count_distinct(*hll(unions, precision), [each], precision)
    assert found.tolist() == whole.tolist()


@given(tiles=texts, precision=precisions, pairs=cuts, data=st.data())
def test_distinct_counts_do_not_depend_on_order_and_repetition(
    tiles: list[list[str]], precision: int, pairs: list[tuple[int, int]], data: st.DataObject
) -> None:
    part = ranges_of(pairs, len(tiles))
    shuffled = [data.draw(st.permutations(tile + tile[:3])) for tile in tiles]
    assert hll(tiles, precision) == hll(shuffled, precision)
    (found,) = count_distinct(*hll(tiles, precision), [part], precision)
    for low, high, got in zip(part.low, part.high, found, strict=True):
        values = set(sum(tiles[low:high], []))
        assert (got == 0) == (not values)
        places = {hll_code(value, precision) >> 6 for value in values}
        assert got >= 0.9 * len(places) - 1


@given(tiles=texts, precision=precisions, pairs=cuts)
def test_distinct_counts_are_the_same_offline_and_online(
    tiles: list[list[str]], precision: int, pairs: list[tuple[int, int]]
) -> None:
    sketches = hll(tiles, precision)
    part = ranges_of(pairs, len(tiles))
    for found in count_distinct(*sketches, [part, part], precision):
        for low, high, got in zip(part.low, part.high, found, strict=True):
            assert got == counted(sketches, low, high, precision)


@given(
    tiles=st.lists(st.lists(any_float, max_size=8), min_size=1, max_size=12),
    compression=st.sampled_from([3, 5, 20, 100]),
    pairs=cuts,
    share=shares,
)
def test_percentiles_are_the_same_offline_and_online(
    tiles: list[list[float]], compression: int, pairs: list[tuple[int, int]], share: float
) -> None:
    sketches = digest(tiles, compression)
    part = ranges_of(pairs, len(tiles))
    for found, valid in percentiles(*sketches, [part, part], share):
        for low, high, got, there in zip(part.low, part.high, found, valid, strict=True):
            assert same(found_in(sketches, low, high, share), float(got) if there else None)


@given(tiles=st.lists(st.lists(tame, max_size=20), min_size=1, max_size=12), pairs=cuts, share=shares)
def test_percentiles_of_small_tiles_are_exact(
    tiles: list[list[float]], pairs: list[tuple[int, int]], share: float
) -> None:
    part = ranges_of(pairs, len(tiles))
    ((found, valid),) = percentiles(*digest(tiles, 20), [part], share)
    for low, high, got, there in zip(part.low, part.high, found, valid, strict=True):
        values = sum(tiles[low:high], [])
        assert there == bool(values)
        if values:
            assert math.isclose(got, np.quantile(values, share, method="hazen"), rel_tol=1e-9, abs_tol=1e-9)


@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=8),
    compression=st.sampled_from([20, 50, 100, 200]),
    share=shares,
    shape=st.sampled_from(["normal", "skewed", "few", "shifting", "one"]),
)
def test_percentiles_of_large_tiles_are_within_the_stated_rank_error(
    seed: int, sizes: list[int], compression: int, share: float, shape: str
) -> None:
    rng = np.random.default_rng(seed)
    tiles = [_drawn(rng, size, number, shape) for number, size in enumerate(sizes)]
    means, weights = digest(tiles, compression)
    assert all(len(tile) <= compression for tile in means.to_pylist())
    ((found, valid),) = percentiles(means, weights, [ranges_of([(0, len(tiles))], len(tiles))], share)
    values = np.concatenate(tiles)
    assert valid[0] == bool(len(values))
    if len(values):
        bound = 4 / (compression - 2) * len(values) + 1
        assert (values < found[0]).sum() - bound <= share * len(values) <= (values <= found[0]).sum() + bound


def _drawn(rng: np.random.Generator, size: int, number: int, shape: str) -> list[float]:
    drawn = {
        "normal": lambda: rng.normal(size=size),
        "skewed": lambda: np.exp(rng.normal(size=size) * 5),
        "few": lambda: rng.integers(0, 4, size).astype(np.float64),
        "shifting": lambda: rng.normal(size=size) + 100.0 * number,
        "one": lambda: np.full(size, 7.5),
    }
    values: list[float] = drawn[shape]().tolist()
    return values


@given(tiles=st.lists(st.lists(any_float, max_size=30), min_size=1, max_size=6), one=shares, other=shares)
def test_a_larger_percentile_is_never_a_smaller_value(tiles: list[list[float]], one: float, other: float) -> None:
    low, high = (found_in(digest(tiles, 5), 0, len(tiles), share) for share in sorted((one, other)))
    if low is not None and high is not None:
        assert math.isnan(high) or low <= high


@given(
    tiles=st.lists(st.lists(tame, max_size=40), min_size=1, max_size=6),
    odd=st.lists(st.sampled_from([math.nan, math.inf, -math.inf]), min_size=1, max_size=40),
    share=shares,
    compression=st.sampled_from([5, 20]),
)
def test_odd_values_of_another_tile_change_nothing(
    tiles: list[list[float]], odd: list[float], share: float, compression: int
) -> None:
    part = Ranges(np.array([0, 0]), np.array([len(tiles), len(tiles) + 1]))
    ((found, valid),) = percentiles(*digest([*tiles, odd], compression), [part], share)
    alone = found_in(digest(tiles, compression), 0, len(tiles), share)
    assert same(alone, float(found[0]) if valid[0] else None)


@given(values=st.lists(any_float, max_size=300), compression=st.sampled_from([3, 20, 100]), data=st.data())
def test_a_tile_is_the_same_whatever_order_its_values_come_in(
    values: list[float], compression: int, data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(values))
    for left, right in zip(digest([values], compression), digest([shuffled], compression), strict=True):
        assert np.array_equal(np.array(left[0].as_py()), np.array(right[0].as_py()), equal_nan=True)
    assert sum(digest([values], compression)[1][0].as_py()) == len(values)
