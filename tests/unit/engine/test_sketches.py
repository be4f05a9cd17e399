"""What a tile stores for approximate functions, and what a window answers from it."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from featurekit_dagster.domain.schema import Int64, String
from featurekit_dagster.engine.duck import connect
from featurekit_dagster.engine.rollup_sums import Ranges
from featurekit_dagster.engine.sketches import (
    count_distinct,
    finish_digest,
    finish_hll,
    hll_code,
    hll_code_sql,
    percentiles,
)
from featurekit_dagster.engine.sketches_of_key import Digest, count_distinct_of

ROUNDS = 4000 if os.environ.get("FEATUREKIT_SOAK") else 400
TEXTS = ["", "a", "b'\"\\", "0", "-1", "Grüße", "日本", "\x00", "x" * 1000, " a", "a "]
INTEGERS = [0, 1, -1, 42, -42, 2**31, -(2**31), 2**63 - 1, -(2**63)]


def lists(values: list[list[int]] | list[list[float]], dtype: pa.DataType) -> pa.ListArray:
    return pa.array(values, pa.list_(dtype))


def hll(tiles: list[list[int]], precision: int = 8) -> tuple[pa.ListArray, pa.ListArray]:
    return finish_hll(lists([[hll_code(value, precision) for value in tile] for tile in tiles], pa.int64()), precision)


def digest(tiles: list[list[float]], compression: int = 100) -> tuple[pa.ListArray, pa.ListArray]:
    return finish_digest(lists(tiles, pa.float64()), compression)


def one(low: int, high: int) -> list[Ranges]:
    return [Ranges(np.array([low]), np.array([high]))]


def percentile(tiles: list[list[float]], share: float, low: int = 0, high: int | None = None) -> float | None:
    means, weights = digest(tiles)
    ((values, valid),) = percentiles(means, weights, one(low, len(tiles) if high is None else high), share)
    return float(values[0]) if valid[0] else None


@pytest.mark.parametrize("precision", range(4, 17))
def test_a_code_is_the_same_in_sql_and_in_python(precision: int) -> None:
    with connect() as con:
        texts = con.execute(
            f"SELECT {hll_code_sql('t', String, precision)} FROM unnest(?::VARCHAR[]) u(t)", [TEXTS]
        ).fetchall()
        integers = con.execute(
            f"SELECT {hll_code_sql('t', Int64, precision)} FROM unnest(?::BIGINT[]) u(t)", [INTEGERS]
        ).fetchall()
    assert [code for (code,) in texts] == [hll_code(text, precision) for text in TEXTS]
    assert [code for (code,) in integers] == [hll_code(number, precision) for number in INTEGERS]


def test_the_code_of_null_is_null() -> None:
    with connect() as con:
        assert con.execute(f"SELECT {hll_code_sql('NULL', String, 8)}").fetchall() == [(None,)]


def test_codes_never_change_since_stored_tiles_hold_them() -> None:
    assert [hll_code(value, 8) for value in ("", "a", 0, -1)] == [13957, 8577, 11650, 7745]
    assert [hll_code(value, 16) for value in ("", "a", 0, -1)] == [3575365, 2211265, 2987522, 1990913]


def test_ranks_and_registers_stay_in_their_range() -> None:
    for precision in (4, 16):
        codes = np.array([hll_code(value, precision) for value in range(5000)])
        assert 0 <= (codes >> 6).min() <= (codes >> 6).max() < 2**precision
        assert 1 <= (codes & 63).min() <= (codes & 63).max() <= 62 - 2 * precision


def test_a_register_keeps_its_largest_rank_and_registers_ascend() -> None:
    codes = [[5 << 6 | 2, 3 << 6 | 1, 5 << 6 | 7, 5 << 6 | 2], [], [255 << 6 | 1]]
    indices, registers = finish_hll(lists(codes, pa.int64()), 8)
    assert indices.to_pylist() == [[3, 5], [], [255]]
    assert registers.to_pylist() == [[1, 7], [], [1]]


def test_null_lists_and_slices_are_taken_for_what_they_hold() -> None:
    codes = pa.array([[64], [9 << 6 | 1], None, [7 << 6 | 3]], pa.list_(pa.int64())).slice(1)
    assert finish_hll(codes, 8)[0].to_pylist() == [[9], [], [7]]
    values = pa.array([[1.0], [3.0, 2.0], None, [4.0]], pa.list_(pa.float64())).slice(1)
    means, weights = finish_digest(values, 100)
    assert means.to_pylist() == [[2.0, 3.0], [], [4.0]]
    assert weights.to_pylist() == [[1.0, 1.0], [], [1.0]]
    ((found, _),) = percentiles(means.slice(1), weights.slice(1), one(0, 2), 0.5)
    assert found.tolist() == [4.0]


def test_nothing_gives_empty_lists_and_empty_answers() -> None:
    indices, registers = hll([])
    means, weights = digest([[]])
    assert (indices.type, len(indices), means.to_pylist()) == (pa.list_(pa.int64()), 0, [[]])
    assert [found.tolist() for found in count_distinct(indices, registers, one(0, 0), 8)] == [[0]]
    ((values, valid),) = percentiles(means, weights, one(0, 1), 0.5)
    assert (len(values), valid.tolist()) == (1, [False])
    assert count_distinct_of(np.zeros(0, np.int64), np.zeros(0, np.int64), 8) == 0
    assert Digest.of(np.zeros(0), np.zeros(0)).percentile(0.5) is None


@pytest.mark.parametrize("precision", [4, 5, 6, 8, 11])
@pytest.mark.parametrize("fill", [0.5, 1, 3, 20])
def test_distinct_counts_are_within_the_standard_error_and_hardly_biased(precision: int, fill: float) -> None:
    size = int(2**precision * fill)
    rounds = max(min(ROUNDS, 4_000_000 // size), 100)
    rng = np.random.default_rng(precision)
    hashed = rng.integers(0, 2**60, size * rounds)
    top = 1 << (61 - 2 * precision)
    low = hashed & (top - 1) | top
    ranks = np.log2((low & -low).astype(np.float64)).astype(np.int64) + 1
    offsets = pa.array(np.arange(0, size * rounds + 1, size, dtype=np.int32))
    codes = pa.ListArray.from_arrays(offsets, pa.array((hashed >> (60 - precision)) * 64 + ranks))
    indices, registers = finish_hll(codes, precision)
    (found,) = count_distinct(indices, registers, [Ranges(np.arange(rounds), np.arange(1, rounds + 1))], precision)
    error = 1.04 / math.sqrt(2**precision)
    off = found / size - 1
    assert math.sqrt((off**2).mean()) < error * (1.1 + 3 / math.sqrt(2 * rounds))
    assert abs(off.mean()) < 0.025 + 4 * error / math.sqrt(rounds)


def test_a_count_of_few_values_is_nearly_always_exact() -> None:
    tiles = [[1000 * number + value for value in range(5)] for number in range(200)]
    indices, registers = hll(tiles, 12)
    (found,) = count_distinct(indices, registers, [Ranges(np.arange(200), np.arange(1, 201))], 12)
    assert (found == 5).mean() > 0.98


def test_registers_that_are_all_set_still_count() -> None:
    tiles = [list(range(3000))]
    indices, registers = hll(tiles, 4)
    assert len(indices[0]) == 16
    (found,) = count_distinct(indices, registers, one(0, 1), 4)
    assert found[0] == count_distinct_of(indices.values.to_numpy(), registers.values.to_numpy(), 4)
    assert 1000 < found[0] < 9000


def test_few_values_are_kept_as_they_are() -> None:
    means, weights = digest([[3.0, 1.0, 2.0, 2.0], [-0.0]])
    assert means.to_pylist() == [[1.0, 2.0, 2.0, 3.0], [0.0]]
    assert weights.to_pylist() == [[1.0] * 4, [1.0]]
    assert math.copysign(1.0, means[1][0].as_py()) == 1.0


@pytest.mark.parametrize("count", [101, 150, 1000, 100_000])
def test_many_values_become_few_ascending_centroids_with_the_ends_alone(count: int) -> None:
    values = np.random.default_rng(count).normal(size=count)
    means, weights = (found.to_pylist()[0] for found in digest([values.tolist()]))
    assert len(means) == len(weights) <= 100
    assert sum(weights) == count
    assert means == sorted(means)
    assert (means[0], means[-1]) == (values.min(), values.max())
    assert weights[0] == weights[-1] == 1.0
    assert math.isclose(sum(m * w for m, w in zip(means, weights, strict=True)) / count, values.mean(), abs_tol=1e-9)


def test_centroids_of_huge_values_do_not_overflow() -> None:
    means, _ = digest([[1.7e308] * 150 + [-1.7e308] * 150])
    assert np.isfinite(means[0].as_py()).all()


@pytest.mark.parametrize(("share", "answer"), [(0.0, 1.0), (0.25, 1.75), (0.5, 3.0), (0.75, 4.25), (1.0, 5.0)])
def test_percentiles_of_few_values_are_interpolated_between_their_middles(share: float, answer: float) -> None:
    assert percentile([[5.0, 1.0], [], [3.0, 2.0, 4.0]], share) == answer


def test_nan_is_the_largest_value_and_infinities_lie_at_the_ends() -> None:
    tiles = [[math.nan, 1.0, -math.inf], [math.inf, 2.0]]
    assert percentile(tiles, 0.0) == -math.inf
    assert percentile(tiles, 0.3) == 1.0
    assert percentile(tiles, 0.5) == 2.0
    assert percentile(tiles, 0.7) == math.inf
    assert math.isnan(percentile(tiles, 1.0) or 0.0)


def test_a_centroid_never_mixes_a_number_with_nan_or_an_infinity() -> None:
    odd = [math.nan] * 40 + [math.inf] * 30 + [-math.inf] * 20
    means, weights = digest([odd + [float(value) for value in range(1000)]])
    kept = list(zip(means[0].as_py(), weights[0].as_py(), strict=True))
    assert sum(weight for mean, weight in kept if math.isnan(mean)) == 40
    assert sum(weight for mean, weight in kept if mean == math.inf) == 30
    assert sum(weight for mean, weight in kept if mean == -math.inf) == 20
    assert len(kept) <= 103


def test_nan_and_infinities_reach_only_the_windows_that_hold_them() -> None:
    tiles = [[1.0, 2.0, 3.0], [math.nan, math.inf] * 100, [4.0]]
    assert percentile(tiles, 0.5, 0, 1) == 2.0
    assert percentile(tiles, 0.5, 2, 3) == 4.0


def test_each_range_may_ask_for_its_own_percentile() -> None:
    means, weights = digest([[float(value) for value in range(11)], [100.0]])
    found = percentiles(means, weights, one(0, 1) + one(0, 1) + one(0, 2), [0.0, 1.0, 1.0])
    assert [values.tolist() for values, _ in found] == [[0.0], [10.0], [100.0]]


def test_hot_keys_are_cut_into_blocks_and_still_answered_exactly() -> None:
    count = 200_000
    rng = np.random.default_rng(5)
    values = rng.normal(size=count)
    offsets = pa.array(np.arange(count + 1, dtype=np.int32))
    means = pa.ListArray.from_arrays(offsets, pa.array(values))
    weights = pa.ListArray.from_arrays(offsets, pa.array(np.ones(count)))
    low = np.array([0, 10, 150_000, 199_999, 60_000])
    high = np.array([count, 120_000, 199_000, count, 60_007])
    ((found, valid),) = percentiles(means, weights, [Ranges(low, high)], 0.9)
    assert valid.all()
    for start, end, got in zip(low, high, found, strict=True):
        assert math.isclose(got, np.quantile(values[start:end], 0.9, method="hazen"), abs_tol=1e-12)


def test_sketches_do_not_import_pandas() -> None:
    program = """
import sys
import duckdb
import numpy as np
from featurekit_dagster.engine.rollup_sums import Ranges
from featurekit_dagster.engine.sketches import count_distinct, finish_digest, finish_hll, percentiles
table = duckdb.sql("SELECT list(i * 64 + 1) AS codes, list(i::DOUBLE) AS v FROM range(100) r(i) GROUP BY i % 10")
table = table.to_arrow_table()
ranges = [Ranges(np.array([0]), np.array([1]))]
assert count_distinct(*finish_hll(table.column(0).chunk(0), 8), ranges, 8)[0][0] > 0
assert percentiles(*finish_digest(table.column(1).chunk(0), 20), ranges, 0.0)[0][1][0]
assert "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
