"""The kernel answers what the oracle answers, whatever the events."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurekit_dagster.domain.aggregation import (
    FUNCTION_NAMES,
    AggregateFeature,
    canonical_function,
    check_function,
    partial_columns,
)
from featurekit_dagster.domain.schema import Field, Float64, Int32, Int64, String
from featurekit_dagster.domain.windows import TimeWindow
from featurekit_dagster.engine.arrow import arrow_type
from featurekit_dagster.engine.duck import connect
from featurekit_dagster.engine.rollup import ANCHOR_TIME, EDGE, roll_up
from featurekit_dagster.engine.tiles import build_tiles
from tests.support import oracle

HOUR = timedelta(hours=1)
HOUR_US = 3_600_000_000
START = datetime(1969, 12, 31, 20, tzinfo=UTC)
TIMESTAMP = pa.timestamp("us", "UTC")
KEYS = ("user_id", "shop")
COLUMNS = (Field("v", Float64), Field("n", Int64), Field("small", Int32), Field("label", String))
WINDOWS = tuple(
    TimeWindow(timedelta(hours=size), timedelta(hours=-offset)) for size, offset in ((3, 0), (1, 0), (24, 0), (2, 1))
)
CON = connect()

FEATURES = tuple(
    AggregateFeature(name=f"{column.name}_{function}_{number}", column=column, function=function, window=window)
    for place, column in enumerate(COLUMNS)
    for function in FUNCTION_NAMES
    if check_function(function, column.dtype) is None
    for number, window in enumerate(WINDOWS[: 4 if place == 0 and canonical_function(function) == function else 1])
)
SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("shop", pa.int64()),
        ("ts", TIMESTAMP),
        *((column.name, arrow_type(column.dtype)) for column in COLUMNS),
    ]
)

users = st.sampled_from(["ann", "bob", None])
shops = st.sampled_from([7, -1, 1 << 40, None])
ordinary = st.floats(-1e3, 1e3, allow_subnormal=False).map(lambda value: round(value, 2))
awkward = st.sampled_from([1e20, -1e20, 1.0, 1e-9, 0.1, -0.0, 1_700_000_000.25, 1e15])
special = st.sampled_from([math.nan, math.inf, -math.inf])
times = st.builds(
    lambda hours, nudge: START + hours * HOUR + timedelta(microseconds=nudge),
    st.integers(0, 30),
    st.sampled_from([-1, 0, 1, 1_234_567_890]),
)


def event_lists(values: st.SearchStrategy[float]) -> st.SearchStrategy[list[dict[str, Any]]]:
    event = st.fixed_dictionaries(
        {
            "user_id": users,
            "shop": shops,
            "ts": times,
            "v": st.none() | values,
            "n": st.none() | st.integers(-(1 << 40), 1 << 40),
            "small": st.none() | st.integers(-1000, 1000),
            "label": st.none() | st.sampled_from(["x", "y", ""]),
        }
    )
    return st.lists(event, max_size=30)


probe_lists = st.lists(st.tuples(users, shops, st.none() | st.integers(-3, 60)), max_size=10)


def probe_table(probes: Sequence[tuple[str | None, int | None, int | None]]) -> pa.Table:
    edges = [None if hours is None else START + hours * HOUR for _, _, hours in probes]
    return pa.table(
        {
            "user_id": pa.array([probe[0] for probe in probes], pa.string()),
            "shop": pa.array([probe[1] for probe in probes], pa.int64()),
            EDGE: pa.array(edges, TIMESTAMP),
        }
    )


def tiles_of(events: Sequence[dict[str, Any]]) -> pa.Table:
    table = pa.Table.from_pylist(list(events), schema=SCHEMA)
    with CON.cursor() as con:
        con.register("events", table)
        return build_tiles(
            con, "events", keys=KEYS, timestamp="ts", tile_us=HOUR_US, partials=partial_columns(FEATURES)
        )


def untiled(events: Sequence[dict[str, Any]]) -> pa.Table:
    """Every event as a tile of its own, in time order: several rows per (key, tile)."""
    ordered = sorted(events, key=lambda event: event["ts"])
    columns: dict[str, pa.Array] = {
        "user_id": pa.array([event["user_id"] for event in ordered], pa.string()),
        "shop": pa.array([event["shop"] for event in ordered], pa.int64()),
        ANCHOR_TIME: pa.array([event["ts"] for event in ordered], TIMESTAMP),
    }
    for partial in partial_columns(FEATURES):
        values = [event[partial.column] for event in ordered]
        if partial.kind == "count":
            values = [int(value is not None) for value in values]
        elif partial.kind == "m2":
            values = [None if value is None else 0.0 for value in values]
        columns[partial.name] = pa.array(values, arrow_type(partial.dtype))
    return pa.table(columns)


def expected(events: Sequence[dict[str, Any]], user: str | None, shop: int | None, hours: int | None) -> list[Any]:
    view = oracle.AggregateView(
        batch_schedule=HOUR,
        aggregates=[
            oracle.Aggregate(
                column=feature.column.name,
                function=feature.function,
                size=feature.window.window_size,
                offset=feature.window.offset,
                dtype=feature.column.dtype.name,
            )
            for feature in FEATURES
        ],
    )
    time = None if hours is None else START + hours * HOUR + timedelta(minutes=59)
    return oracle.aggregate_at(events, {"user_id": user, "shop": shop}, time, view)


def inside(events: Sequence[dict[str, Any]], probe: tuple[Any, ...], feature: AggregateFeature) -> list[float]:
    """The numbers that a feature's window holds, for its error bound."""
    user, shop, hours = probe
    end = START + hours * HOUR + feature.window.offset
    return [
        float(event[feature.column.name])
        for event in events
        if (event["user_id"], event["shop"]) == (user, shop)
        and end - feature.window.window_size <= event["ts"] < end
        and event[feature.column.name] is not None
    ]


def close(got: Any, want: Any, feature: AggregateFeature, values: Sequence[float]) -> bool:
    if got is None or not isinstance(want, float) or not math.isfinite(want):
        return bool(got == want or str(got) == str(want) == "nan")
    if feature.function in ("min", "max", "last"):
        return bool(got == want)
    if feature.function in ("sum", "mean"):
        number = 1 if feature.function == "sum" else len(values)
        return bool(abs(got - want) <= 1e-12 * math.fsum(map(abs, values)) / number)
    moved = 2.0**-50 * max(map(abs, values))
    deviation = want if feature.function.startswith("stddev") else math.sqrt(want)
    if feature.function.startswith("stddev"):
        got, want = got**2, want**2
    return bool(abs(got - want) <= 2e-10 * want + 4 * moved * deviation + 4 * moved**2)


def check(tiles: pa.Table, events: Sequence[dict[str, Any]], probes: Sequence[tuple[Any, ...]]) -> None:
    answers = roll_up(tiles, probe_table(probes), keys=KEYS, tile_us=HOUR_US, features=FEATURES)
    assert answers.schema == pa.schema([(feature.name, arrow_type(feature.dtype)) for feature in FEATURES])
    assert answers.num_rows == len(probes)
    columns = [column.to_pylist() for column in answers.columns]
    for row, probe in enumerate(probes):
        for feature, got, want in zip(FEATURES, columns, expected(events, *probe), strict=True):
            values = inside(events, probe, feature) if isinstance(want, float) else []
            assert close(got[row], want, feature, values), (feature.name, probe, got[row], want)


@pytest.mark.parametrize("values", [ordinary, ordinary | awkward, ordinary | special], ids=["plain", "wide", "special"])
@pytest.mark.parametrize("source", [tiles_of, untiled], ids=["tiles", "rows"])
@given(data=st.data())
def test_kernel_equals_oracle(source: Any, values: Any, data: st.DataObject) -> None:
    events = data.draw(event_lists(values))
    check(source(events), events, data.draw(probe_lists))


@given(events=event_lists(ordinary), probes=probe_lists, data=st.data())
def test_order_of_tiles_and_probes_does_not_matter(events: Any, probes: Any, data: st.DataObject) -> None:
    tiles = tiles_of(events)
    shuffled = tiles.take(pa.array(data.draw(st.permutations(range(tiles.num_rows))), pa.int64()))
    turned = pa.array(data.draw(st.permutations(range(len(probes)))), pa.int64())
    table = probe_table(probes)
    plain = roll_up(tiles, table, keys=KEYS, tile_us=HOUR_US, features=FEATURES)
    moved = roll_up(shuffled, table.take(turned), keys=KEYS, tile_us=HOUR_US, features=FEATURES)
    assert plain.take(turned).combine_chunks().equals(moved.combine_chunks())
