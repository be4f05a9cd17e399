"""The online roll-up answers as the offline kernel does, for one key and for many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurekit_dagster.arrow_types import arrow_type, record_type
from featurekit_dagster.domain.aggregation import (
    FUNCTION_NAMES,
    LIST_FUNCTIONS,
    AggregateFeature,
    PartialColumn,
    check_function,
    partial_columns,
)
from featurekit_dagster.domain.schema import Bool, DataType, Field, Float32, Float64, Int32, Int64, String, Timestamp
from featurekit_dagster.domain.windows import LifetimeWindow, TimeWindow, TimeWindowSeries
from featurekit_dagster.engine.rollup import roll_up
from featurekit_dagster.errors import AggregationOverflow
from featurekit_dagster.intervals import from_us
from featurekit_dagster.serving.online_rollup import OnlineRollup, compile_rollup
from featurekit_dagster.stores.online import PackedTiles
from featurekit_dagster.stores.packing import Block, ValueCodec
from tests.support.oracle import distinct

HOUR_US = 3_600_000_000
COLUMNS = [
    Field("i", Int64),
    Field("f", Float64),
    Field("g", Float32),
    Field("j", Int32),
    Field("t", Timestamp),
    Field("b", Bool),
    Field("s", String),
]
KEYS = 12

Tile = dict[str, Any]
Tiles = dict[tuple[int, int], Tile]


def hours(number: int) -> timedelta:
    return timedelta(hours=number)


SIZES = st.sampled_from([1, 2, 5, 24, 70, 200, 500]).map(hours)
WINDOWS = st.builds(lambda size, offset: TimeWindow(size, -hours(offset)), SIZES, st.sampled_from([0, 0, 1, 66]))
SERIES = st.builds(
    lambda size, step, count, end: TimeWindowSeries(
        series_start=-hours(size + step * (count - 1) + end),
        window_size=hours(size),
        step_size=hours(step),
        series_end=-hours(end),
    ),
    st.sampled_from([1, 24, 70]),
    st.sampled_from([1, 5, 66]),
    st.integers(2, 4),
    st.sampled_from([0, 3]),
)
PARAMETERS = {
    **{function: {"n": 3} for function in LIST_FUNCTIONS},
    "approx_count_distinct": {"precision": 5},
    "approx_percentile": {"precision": 20, "percentile": 0.3},
}


@st.composite
def feature_sets(
    draw: st.DrawFn,
    columns: Sequence[Field] = tuple(COLUMNS),
    functions: Sequence[str] = FUNCTION_NAMES,
    windows: st.SearchStrategy[Any] = WINDOWS,
) -> list[AggregateFeature]:
    choices = [(c, f) for c in columns for f in functions if check_function(f, c.dtype) is None]
    drawn = draw(st.lists(st.tuples(st.sampled_from(choices), windows), min_size=1, max_size=8))
    lifetime_us = draw(st.integers(-150, 150)) * HOUR_US
    return [
        AggregateFeature(
            name=f"f{at}",
            column=column,
            function=function,
            window=window,
            lifetime_start_us=lifetime_us,
            **PARAMETERS.get(function, {}),
        )
        for at, ((column, function), window) in enumerate(drawn)
    ]


@st.composite
def tiles_of(draw: st.DrawFn, partials: Sequence[PartialColumn]) -> Tiles:
    """Tiles as materialization makes them: what is NULL is so because its column has no values in the tile."""
    places = st.tuples(st.integers(0, KEYS - 1), st.integers(-140, 140))
    if draw(st.booleans()):
        shared = draw(st.sets(st.integers(-140, 140), min_size=1, max_size=8))
        chosen = {(key, hour) for key in range(KEYS) for hour in shared}
    else:
        chosen = draw(st.sets(places, max_size=60))
    can_be_empty, is_odd = draw(st.booleans()), draw(st.booleans())
    random = draw(st.randoms(use_true_random=False))
    tiles: Tiles = {}
    for place in sorted(chosen):
        empty = {p.column for p in partials if can_be_empty and random.random() < 0.3}
        odd = {
            p.column: random.choice([math.nan, math.inf, -math.inf])
            for p in partials
            if is_odd and random.random() < 0.3
        }
        tiles[place] = {p.name: _cell(p, random, p.column in empty, odd.get(p.column)) for p in partials}
        for first, second in pairwise(partials):
            if first.kind in ("hll_indices", "digest_means"):
                tiles[place] |= _sketch(first, second, random, first.column in empty)
    return tiles


def _cell(partial: PartialColumn, random: Any, is_empty: bool, odd: float | None) -> Any:
    if partial.kind == "count":
        return 0 if is_empty else random.randint(1, 4)
    if partial.kind.startswith(("hll", "digest")):
        return []
    if partial.dtype.is_nested:
        return [] if is_empty else _list(partial, random, odd)
    if is_empty:
        return None
    if odd is not None and partial.dtype.is_float:
        # A column with a NaN in the tile has it in every partial but the smallest and the last value.
        value = random.uniform(0, 10)
        return odd if partial.kind not in ("min", "last") else random.choice([odd, float(np.float32(value))])
    return _value(partial.dtype, random, low=0 if partial.kind == "m2" else -10)


def _value(dtype: DataType, random: Any, low: float = -10) -> Any:
    if dtype.is_integer:
        return random.randint(-1_000, 1_000)
    if dtype.is_float:
        value = random.uniform(low, 10)
        return float(np.float32(value)) if dtype == Float32 else value
    if dtype == Timestamp:
        return from_us(random.randint(-(10**15), 10**15))
    return random.choice(["", "é", "text", "more"]) if dtype == String else random.random() < 0.5


def _list(partial: PartialColumn, random: Any, odd: float | None) -> list[Any]:
    values = [_value(partial.dtype.children[0], random) for _ in range(random.randint(1, partial.size))]
    if odd is not None and partial.dtype.children[0].is_float:
        values[0] = odd
    return distinct(values) if partial.kind.endswith("distinct") else values


def _sketch(first: PartialColumn, second: PartialColumn, random: Any, is_empty: bool) -> Tile:
    """Return the two halves of a sketch."""
    count = 0 if is_empty else random.randint(1, 12)
    if first.kind == "hll_indices":
        places = sorted(random.sample(range(1 << first.size), count))
        return {first.name: places, second.name: [random.randint(1, 9) for _ in places]}
    means = sorted(random.choice([random.uniform(-10, 10), 3.0]) for _ in range(count))
    return {first.name: means, second.name: [float(random.randint(1, 3)) for _ in means]}


def packed(partials: Sequence[PartialColumn], tiles: Tiles) -> list[PackedTiles]:
    """Return every key's chunks, and those of a key without tiles."""
    codec = ValueCodec([Field(p.name, p.dtype) for p in partials], is_tiled=True)
    chunks: dict[tuple[int, int], list[int]] = {}
    for key, hour in sorted(tiles):
        chunks.setdefault((key, hour // 64), []).append(hour)
    found: list[PackedTiles] = [[] for _ in range(KEYS + 1)]
    for (key, chunk), hours in chunks.items():
        cells = [
            codec.column_cells(at, pa.array([tiles[key, hour][p.name] for hour in hours], record_type(p.dtype)))
            for at, p in enumerate(partials)
        ]
        slots = np.array(hours) - chunk * 64
        owners, batch = np.zeros(len(hours), np.int64), np.ones(len(hours), bool)
        (value,) = codec.pack(Block(owners, slots, batch, [c for c, _ in cells], [n for _, n in cells]))
        found[key].append((chunk, value))
    return found


def offline(features: list[AggregateFeature], tiles: Tiles, edge_us: int) -> list[list[Any]]:
    partials = partial_columns(features)
    places = sorted(tiles)
    columns = {p.name: pa.array([tiles[at][p.name] for at in places], arrow_type(p.dtype)) for p in partials}
    columns["key"] = pa.array([key for key, _ in places], pa.int64())
    columns["_anchor_time"] = pa.array([hour * HOUR_US for _, hour in places], pa.timestamp("us", "UTC"))
    edges = pa.array([edge_us] * (KEYS + 1), pa.timestamp("us", "UTC"))
    probes = pa.table({"key": pa.array(range(KEYS + 1), pa.int64()), "_edge": edges})
    answer = roll_up(pa.table(columns), probes, keys=("key",), tile_us=HOUR_US, features=features)
    return [[row[f.name] for f in features] for row in answer.to_pylist()]


def close(feature: AggregateFeature, one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(close(feature, a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, float) and isinstance(other, float):
        if math.isnan(one) or math.isnan(other) or math.isinf(one):
            return one == other or (math.isnan(one) and math.isnan(other))
        tolerance = 1e-6 if feature.value_dtype == Float32 else 1e-10
        return abs(one - other) <= tolerance * max(1.0, abs(one))
    return type(one) is type(other) and one == other


def check(features: list[AggregateFeature], answers: Sequence[Sequence[Any] | None], expected: list[list[Any]]) -> None:
    defaults = [feature.default for feature in features]
    for answer, wanted in zip(answers, expected, strict=True):
        for feature, one, other in zip(features, defaults if answer is None else answer, wanted, strict=True):
            assert close(feature, one, other), (feature, one, other)


def check_all_ways(data: st.DataObject, features: list[AggregateFeature]) -> None:
    partials = partial_columns(features)
    tiles = data.draw(tiles_of(partials))
    edge_us = data.draw(st.integers(-150, 150)) * HOUR_US
    rollup = compile_rollup(features, partials, HOUR_US)
    chunks, expected = packed(partials, tiles), offline(features, tiles, edge_us)
    check(features, [rollup.one(key, edge_us) for key in chunks], expected)
    check(features, rollup.many(chunks, edge_us), expected)
    known = [key for key in chunks if key]
    check(features, rollup.many(known, edge_us), [row for key, row in zip(chunks, expected, strict=True) if key])
    ones = [rollup.one(key, edge_us) is None for key in chunks]
    assert ones == [answer is None for answer in rollup.many(chunks, edge_us)]


@given(data=st.data())
def test_online_answers_as_offline_for_one_key_and_for_many(data: st.DataObject) -> None:
    columns = data.draw(st.sampled_from([tuple(COLUMNS), tuple(COLUMNS[:4])]))
    check_all_ways(data, data.draw(feature_sets(columns)))


@given(data=st.data())
def test_series_and_lifetimes_of_numbers_are_those_of_the_kernel(data: st.DataObject) -> None:
    windows = SERIES | WINDOWS | st.just(LifetimeWindow())
    check_all_ways(data, data.draw(feature_sets(COLUMNS[:4], windows=windows)))


@given(data=st.data())
def test_lists_and_sketches_are_those_of_the_kernel(data: st.DataObject) -> None:
    windows = SERIES | WINDOWS | st.just(LifetimeWindow())
    functions = (*LIST_FUNCTIONS, "approx_count_distinct", "approx_percentile", "sum", "last")
    check_all_ways(data, data.draw(feature_sets(functions=functions, windows=windows)))


def make(function: str, column: Field, hours: int = 24) -> tuple[AggregateFeature, OnlineRollup]:
    window = TimeWindow(timedelta(hours=hours))
    feature = AggregateFeature(name="f", column=column, function=function, window=window)
    return feature, compile_rollup([feature], feature.partials, HOUR_US)


def answers(feature: AggregateFeature, rollup: OnlineRollup, cells: list[Tile]) -> list[Any]:
    """Return the answer at 24:00 to tiles from 0:00 on, by every route."""
    (chunks, *_) = packed(feature.partials, {(0, hour): cell for hour, cell in enumerate(cells)})
    alike, unlike = [chunks] * KEYS, [*([chunks] * KEYS), []]
    found = [
        rollup.one(chunks, 24 * HOUR_US),
        rollup.many(alike, 24 * HOUR_US)[0],
        rollup.many(unlike, 24 * HOUR_US)[0],
    ]
    return [None if answer is None else answer[0] for answer in found]


def test_a_key_without_a_tile_in_any_window_has_no_answer() -> None:
    feature, rollup = make("count", Field("v", Int64), hours=2)
    assert answers(feature, rollup, [{"count_v": 1}]) == [None] * 3
    assert rollup.one([], 0) is None
    assert rollup.many([[]] * 20, 0) == [None] * 20


def test_the_window_holds_its_first_tile_and_not_the_one_at_the_edge() -> None:
    feature, rollup = make("count", Field("v", Int64), hours=3)
    assert answers(feature, rollup, [{"count_v": 10**hour} for hour in range(18)] + [{"count_v": 0}] * 9) == [0] * 3
    assert answers(feature, rollup, [{"count_v": hour} for hour in range(30)]) == [21 + 22 + 23] * 3


@pytest.mark.parametrize(("dtype", "limit"), [(Int64, 2**63), (Int32, 2**31)])
def test_a_sum_of_integers_that_does_not_fit_is_an_error_without_the_sum(dtype: Any, limit: int) -> None:
    feature, rollup = make("sum", Field("v", dtype))
    assert answers(feature, rollup, [{"sum_v": limit - 2}, {"sum_v": 1}]) == [limit - 1] * 3
    assert answers(feature, rollup, [{"sum_v": -limit + 1}, {"sum_v": -1}]) == [-limit] * 3
    chunks = packed(feature.partials, {(0, 0): {"sum_v": limit - 1}, (0, 1): {"sum_v": 1}})[0]
    for read in (lambda: rollup.one(chunks, 24 * HOUR_US), lambda: rollup.many([chunks] * 20, 24 * HOUR_US)):
        with pytest.raises(AggregationOverflow, match="does not fit") as caught:
            read()
        assert str(limit) not in str(caught.value)


def test_a_float_sum_of_one_key_is_correctly_rounded() -> None:
    feature, rollup = make("sum", Field("v", Float64))
    cells = [{"sum_v": value} for value in (1e20, 1.0, 1.0, -1e20)]
    assert answers(feature, rollup, cells)[0] == 2.0
    assert all(abs(answer - 2.0) <= 1e-12 * 2e20 for answer in answers(feature, rollup, cells))


@pytest.mark.parametrize(
    ("function", "values", "expected"),
    [
        ("min", [math.nan, 2.0, 1.0], 1.0),
        ("min", [math.nan, math.nan], math.nan),
        ("max", [1.0, math.nan, 2.0], math.nan),
        ("max", [math.inf, -math.inf, 1.0], math.inf),
        ("max", [None, None], None),
        ("min", [None, 3.0], 3.0),
        ("sum", [math.inf, -math.inf], math.nan),
        ("sum", [math.inf, 1.0], math.inf),
        ("last", [1.0, None], 1.0),
        ("last", [None], None),
    ],
)
def test_nan_counts_as_the_greatest_number_and_null_is_skipped(
    function: str, values: list[float | None], expected: float | None
) -> None:
    feature, rollup = make(function, Field("v", Float64))
    for answer in answers(feature, rollup, [{f"{function}_v": value} for value in values]):
        assert close(feature, answer, expected), answer


def test_a_variance_of_large_values_survives_and_one_value_has_none() -> None:
    feature, rollup = make("var_samp", Field("v", Float64))
    cells = [{"count_v": 1, "mean_v": 1.7e9 + second, "m2_v": 0.0} for second in range(5)]
    for answer in answers(feature, rollup, cells):
        assert answer == pytest.approx(2.5, rel=1e-6)
    assert answers(feature, rollup, cells[:1]) == [None] * 3
    feature, rollup = make("var_pop", Field("v", Float64))
    assert answers(feature, rollup, cells[:1]) == [0.0] * 3
