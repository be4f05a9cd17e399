"""Sketches of one key: the same answers as those of many keys at once."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurekit_dagster.engine.rollup_sums import Ranges
from featurekit_dagster.engine.sketches import count_distinct, percentiles
from featurekit_dagster.engine.sketches_of_key import Digest, count_distinct_of

FLOATS = st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0])


def same(one: float | None, other: float | None) -> bool:
    return one == other or (one is not None and other is not None and math.isnan(one) and math.isnan(other))


@given(data=st.data(), precision=st.sampled_from([4, 8, 16]))
def test_a_count_of_one_key_is_that_of_many(data: st.DataObject, precision: int) -> None:
    cell = st.tuples(st.integers(0, (1 << precision) - 1), st.integers(1, 62 - 2 * precision))
    tiles = data.draw(st.lists(st.dictionaries(st.integers(0, (1 << precision) - 1), cell, max_size=20), max_size=5))
    registers = [{place: rank for place, (_, rank) in sorted(tile.items())} for tile in tiles]
    indices = pa.array([list(tile) for tile in registers], pa.list_(pa.int64()))
    ranks = pa.array([list(tile.values()) for tile in registers], pa.list_(pa.int64()))
    whole = [Ranges(np.array([0]), np.array([len(tiles)]))]
    ((expected,),) = count_distinct(indices, ranks, whole, precision)
    flat = [np.array([x for tile in lists for x in tile], np.int64) for lists in (registers, ranks.to_pylist())]
    assert count_distinct_of(flat[0], flat[1], precision) == expected


@given(
    st.lists(st.tuples(FLOATS, st.integers(1, 4)), max_size=30),
    st.sampled_from([0.0, 0.01, 0.25, 0.5, 0.9, 1.0]) | st.floats(0, 1),
)
def test_a_percentile_of_one_key_is_that_of_many(centroids: list[tuple[float, int]], share: float) -> None:
    means = pa.array([[mean for mean, _ in centroids]], pa.list_(pa.float64()))
    weights = pa.array([[float(weight) for _, weight in centroids]], pa.list_(pa.float64()))
    ((values, known),) = percentiles(means, weights, [Ranges(np.array([0]), np.array([1]))], share)
    digest = Digest.of(np.array([m for m, _ in centroids], float), np.array([w for _, w in centroids], float))
    assert same(digest.percentile(share), float(values[0]) if centroids else None)
    assert bool(known[0]) or not centroids


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.5, 2.5), (1.0, 4.0)])
def test_a_percentile_lies_between_two_values(share: float, expected: float) -> None:
    assert Digest.of(np.array([3.0, 1.0, 4.0, 2.0]), np.ones(4)).percentile(share) == expected


def test_nothing_has_no_percentile_and_no_distinct_values() -> None:
    assert Digest.of(np.zeros(0), np.zeros(0)).percentile(0.5) is None
    assert count_distinct_of(np.zeros(0, np.int64), np.zeros(0, np.int64), 8) == 0
