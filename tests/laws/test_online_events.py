"""From events to online answers: tiles, nested or not, packed and rolled up, are what the oracle and the kernel say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from featurekit_dagster.arrow_types import record_type
from featurekit_dagster.domain.aggregation import (
    LIST_FUNCTIONS,
    AggregateFeature,
    check_function,
    distinct_spans,
    partial_columns,
    secondary_keys_name,
)
from featurekit_dagster.domain.schema import Array, Field, Float64, Int64, String
from featurekit_dagster.domain.windows import LifetimeWindow, TimeWindow, TimeWindowSeries
from featurekit_dagster.engine.nested_tiles import nest_tiles
from featurekit_dagster.engine.rollup import roll_up
from featurekit_dagster.engine.tiles import build_tiles
from featurekit_dagster.intervals import from_us
from featurekit_dagster.serving.online_rollup import OnlineRollup, compile_rollup, compile_secondary_rollup
from featurekit_dagster.stores.online import PackedTiles
from featurekit_dagster.stores.packing import Block, ValueCodec
from tests.support import oracle

HOUR, HOUR_US = timedelta(hours=1), 3_600_000_000
COLUMNS = [Field("i", Int64), Field("f", Float64), Field("s", String)]
PART = Field("part", String)
FUNCTIONS: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("count", "sum", "mean", "min", "max", "last", "var_samp", "stddev_pop")},
    **{name: {"n": 2} for name in LIST_FUNCTIONS},
    "approx_count_distinct": {"precision": 8},
    "approx_percentile": {"precision": 100, "percentile": 0.5},
}
KEYS = [1, 2, None]
WINDOWS = st.builds(
    lambda size, offset: TimeWindow(size * HOUR, -offset * HOUR), st.sampled_from([1, 3, 80]), st.sampled_from([0, 2])
)
SERIES = st.builds(
    lambda size, count: TimeWindowSeries(series_start=-size * count * HOUR, window_size=size * HOUR),
    st.sampled_from([1, 20]),
    st.integers(2, 4),
)
SCHEMA = pa.schema(
    [
        ("user", pa.int64()),
        ("part", pa.string()),
        ("ts", pa.timestamp("us", "UTC")),
        ("i", pa.int64()),
        ("f", pa.float64()),
        ("s", pa.string()),
    ]
)


@st.composite
def worlds(draw: st.DrawFn, secondary: bool) -> tuple[list[AggregateFeature], list[dict[str, Any]], int]:
    """Features, events and an edge."""
    choices = [(c, f) for c in COLUMNS for f in FUNCTIONS if check_function(f, c.dtype) is None]
    windows = WINDOWS | st.just(LifetimeWindow()) if secondary else WINDOWS | SERIES | st.just(LifetimeWindow())
    drawn = draw(st.lists(st.tuples(st.sampled_from(choices), windows), min_size=1, max_size=6))
    lifetime_us = draw(st.integers(-90, 90)) * HOUR_US
    features = [
        AggregateFeature(name=f"f{at}", column=c, function=f, window=w, lifetime_start_us=lifetime_us, **FUNCTIONS[f])
        for at, ((c, f), w) in enumerate(drawn)
    ]
    event = st.fixed_dictionaries(
        {
            "user": st.sampled_from(KEYS),
            "part": st.sampled_from(["a", "b", "", None]),
            "ts": st.integers(-80, 80).map(lambda hour: hour * HOUR_US) | st.integers(-80 * HOUR_US, 80 * HOUR_US),
            "i": st.none() | st.integers(-3, 3),
            "f": st.none() | st.sampled_from([0.0, 1.5, math.nan, math.inf]) | st.floats(-9, 9),
            "s": st.none() | st.sampled_from(["", "é", "text"]),
        }
    )
    events = draw(st.lists(event, max_size=40, unique_by=lambda event: event["ts"]))
    return features, [{**event, "ts": from_us(event["ts"])} for event in events], draw(st.integers(-90, 90)) * HOUR_US


def packed(tiles: pa.Table, fields: Sequence[Field]) -> list[PackedTiles]:
    """Return the chunks of every key."""
    codec = ValueCodec(fields, is_tiled=True)
    hours = tiles["_anchor_time"].cast(pa.int64()).to_numpy() // HOUR_US
    owners_of = list(enumerate(zip(tiles["user"].to_pylist(), hours.tolist(), strict=True)))
    found: list[PackedTiles] = []
    for key in KEYS:
        rows = sorted((hour, row) for row, (user, hour) in owners_of if user == key)
        chunks: PackedTiles = []
        for chunk in sorted({hour // 64 for hour, _ in rows}):
            mine = [(hour - chunk * 64, row) for hour, row in rows if hour // 64 == chunk]
            places, slots = pa.array([row for _, row in mine]), np.array([slot for slot, _ in mine])
            cells = [
                codec.column_cells(at, tiles[field.name].take(places).combine_chunks().cast(record_type(field.dtype)))
                for at, field in enumerate(fields)
            ]
            owners, batch = np.zeros(len(mine), np.int64), np.ones(len(mine), bool)
            (value,) = codec.pack(Block(owners, slots, batch, [c for c, _ in cells], [n for _, n in cells]))
            chunks.append((chunk, value))
        found.append(chunks)
    return found


def by_kernel(
    tiles: pa.Table, features: list[AggregateFeature], edge_us: int, secondary: str | None
) -> list[list[Any]]:
    edges = pa.array([edge_us] * len(KEYS), pa.timestamp("us", "UTC"))
    probes = pa.table({"user": pa.array(KEYS, pa.int64()), "_edge": edges})
    answer = roll_up(tiles, probes, keys=("user",), tile_us=HOUR_US, features=features, secondary_key=secondary)
    return [list(row.values()) for row in answer.to_pylist()]


def by_oracle(
    events: list[dict[str, Any]], features: list[AggregateFeature], edge_us: int, secondary: str | None
) -> list[list[Any]]:
    lifetime = from_us(features[0].lifetime_start_us or 0)
    aggregates = []
    for feature in features:
        window, more = feature.window, {}
        if isinstance(window, TimeWindow):
            more = {"size": window.window_size, "offset": window.offset}
        elif isinstance(window, TimeWindowSeries):
            more = {"size": window.window_size, "series_start": window.series_start, "step": window.step_size}
        function, dtype, share = feature.function, str(feature.column.dtype), feature.percentile
        aggregates.append(
            oracle.Aggregate(
                column=feature.column.name, function=function, dtype=dtype, n=feature.n, percentile=share, **more
            )
        )
    view = oracle.AggregateView(
        aggregates=aggregates, batch_schedule=HOUR, lifetime_start_time=lifetime, secondary_key=secondary
    )
    return [oracle.aggregate_as_of(events, {"user": key}, from_us(edge_us), view) for key in KEYS]


def check(
    answers: Sequence[Sequence[Any] | None], defaults: Sequence[Any], kernel: list[list[Any]], judge: list[list[Any]]
) -> None:
    for answer, ours, truth in zip(answers, kernel, judge, strict=True):
        found = list(defaults if answer is None else answer)
        assert oracle.agrees(found, ours, 10.0), (found, ours)
        assert oracle.agrees(found, truth, 100.0), (found, truth)


CONNECTION = duckdb.connect(config={"threads": 1})


def tiles_of(events: list[dict[str, Any]], features: list[AggregateFeature], keys: tuple[str, ...]) -> pa.Table:
    CONNECTION.register("events", pa.Table.from_pylist(events, SCHEMA))
    partials = partial_columns(features)
    return build_tiles(CONNECTION, "events", keys=keys, timestamp="ts", tile_us=HOUR_US, partials=partials)


def answer_ways(rollup: OnlineRollup, chunks: list[PackedTiles], edge_us: int) -> list[Sequence[Sequence[Any] | None]]:
    one = [rollup.one(key, edge_us) for key in chunks]
    many = rollup.many(chunks * 4, edge_us)
    return [one, many[: len(chunks)], many[-len(chunks) :]]


@settings(max_examples=settings.default.max_examples // 2)
@given(world=worlds(secondary=False))
def test_online_is_the_kernel_is_the_oracle(
    world: tuple[list[AggregateFeature], list[dict[str, Any]], int],
) -> None:
    features, events, edge_us = world
    tiles, partials = tiles_of(events, features, ("user",)), partial_columns(features)
    chunks = packed(tiles, [Field(p.name, p.dtype) for p in partials])
    kernel = by_kernel(tiles, features, edge_us, None)
    judge = by_oracle(events, features, edge_us, None)
    for answers in answer_ways(compile_rollup(features, partials, HOUR_US), chunks, edge_us):
        check(answers, [feature.default for feature in features], kernel, judge)


@settings(max_examples=settings.default.max_examples // 2)
@given(world=worlds(secondary=True))
def test_secondary_keys_online_are_the_kernels_and_the_oracles(
    world: tuple[list[AggregateFeature], list[dict[str, Any]], int],
) -> None:
    features, events, edge_us = world
    tiles, partials = tiles_of(events, features, ("user", "part")), partial_columns(features)
    nested = nest_tiles(tiles, ("user",), "part", partials)
    chunks = packed(nested, [Field("part", Array(String)), *[Field(p.name, Array(p.dtype)) for p in partials]])
    spans = distinct_spans(features)
    names = [secondary_keys_name("part", span) for span in spans] + [feature.name for feature in features]
    kernel = by_kernel(tiles, features, edge_us, "part")
    judge = by_oracle(events, features, edge_us, "part")
    for answers in answer_ways(compile_secondary_rollup([*spans, *features], partials, HOUR_US, PART), chunks, edge_us):
        check(answers, [[] for _ in names], kernel, judge)


def test_a_nested_tile_lists_its_secondary_keys_in_order_and_null_last() -> None:
    feature = AggregateFeature(name="f", column=COLUMNS[0], function="sum", window=TimeWindow(HOUR))
    parts = [("b", 1), (None, 2), ("a", None), ("a", 3)]
    events = [{"user": 1, "part": part, "ts": from_us(at), "i": i} for at, (part, i) in enumerate(parts)]
    tiles = tiles_of(events, [feature], ("user", "part"))
    assert tiles.num_rows == 3
    (row,) = nest_tiles(tiles, ("user",), "part", feature.partials).to_pylist()
    assert row == {"user": 1, "_anchor_time": from_us(0), "part": ["a", "b", None], "sum_i": [3, 1, 2]}


def test_no_tiles_nest_to_none() -> None:
    feature = AggregateFeature(name="f", column=COLUMNS[2], function="last_n", n=2, window=TimeWindow(HOUR))
    nested = nest_tiles(tiles_of([], [feature], ("user", "part")), ("user",), "part", feature.partials)
    assert nested.num_rows == 0
    assert nested.column_names == ["user", "_anchor_time", "part", "last_non_distinct_n2_s"]


def test_sketches_of_a_secondary_key_without_values_are_empty() -> None:
    features = [
        AggregateFeature(
            name=name, column=COLUMNS[0], function=function, window=TimeWindow(HOUR), **FUNCTIONS[function]
        )
        for name, function in (("count", "approx_count_distinct"), ("median", "approx_percentile"))
    ]
    events = [{"user": 1, "part": "a", "ts": from_us(0), "i": None}]
    partials = partial_columns(features)
    nested = nest_tiles(tiles_of(events, features, ("user", "part")), ("user",), "part", partials)
    chunks = packed(nested, [Field("part", Array(String)), *[Field(p.name, Array(p.dtype)) for p in partials]])
    spans = distinct_spans(features)
    rollup = compile_secondary_rollup([*spans, *features], partials, HOUR_US, PART)
    assert rollup.one(chunks[0], HOUR_US) == [["a"], [0], [None]]
