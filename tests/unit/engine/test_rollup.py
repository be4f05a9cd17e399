"""Edges of the roll-up that random events seldom meet."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from featurekit_dagster.arrow_types import arrow_type
from featurekit_dagster.domain.aggregation import AggregateFeature, partial_columns
from featurekit_dagster.domain.schema import (
    Array,
    Bool,
    DataType,
    Field,
    Float32,
    Float64,
    Int32,
    Int64,
    String,
    Timestamp,
)
from featurekit_dagster.domain.windows import TimeWindow
from featurekit_dagster.engine.duck import connect
from featurekit_dagster.engine.rollup import ANCHOR_TIME, EDGE, roll_up
from featurekit_dagster.engine.tiles import build_tiles
from featurekit_dagster.errors import AggregationOverflow

HOUR = timedelta(hours=1)
HOUR_US = 3_600_000_000
START = datetime(2024, 1, 1, tzinfo=UTC)
TIMESTAMP = pa.timestamp("us", "UTC")


def feature(function: str, dtype: DataType, hours: int = 24, offset: int = 0) -> AggregateFeature:
    window = TimeWindow(hours * HOUR, offset * HOUR)
    return AggregateFeature(name="f", column=Field("v", dtype), function=function, window=window)


def answer(wanted: AggregateFeature, events: list[tuple[timedelta, Any]], *edges: timedelta) -> list[Any]:
    """The feature of the only key at each edge."""
    table = pa.table(
        {
            "k": pa.array([1] * len(events), pa.int64()),
            "ts": pa.array([START + at for at, _ in events], TIMESTAMP),
            "v": pa.array([value for _, value in events], arrow_type(wanted.column.dtype)),
        }
    )
    with connect() as con:
        con.register("events", table)
        partials = partial_columns([wanted])
        tiles = build_tiles(con, "events", keys=["k"], timestamp="ts", tile_us=HOUR_US, partials=partials)
    probes = pa.table({"k": [1] * len(edges), EDGE: pa.array([START + edge for edge in edges], TIMESTAMP)})
    return roll_up(tiles, probes, keys=("k",), tile_us=HOUR_US, features=[wanted]).column("f").to_pylist()


def test_event_on_the_right_edge_is_outside_and_one_exactly_size_older_inside() -> None:
    events = [(0 * HOUR, 1), (3 * HOUR, 10), (3 * HOUR - timedelta(microseconds=1), 100)]
    assert answer(feature("sum", Int64, 3), events, 3 * HOUR, 4 * HOUR) == [101, 110]


def test_offset_moves_both_ends_of_the_window() -> None:
    events = [(0 * HOUR, 1), (1 * HOUR, 10), (2 * HOUR, 100)]
    assert answer(feature("sum", Int64, 1, offset=-1), events, 1 * HOUR, 2 * HOUR, 3 * HOUR) == [None, 1, 10]


def test_windows_far_outside_the_events_are_empty() -> None:
    far = timedelta(days=100_000)
    assert answer(feature("count", Int64), [(0 * HOUR, 1)], -far, far) == [0, 0]


def test_integer_sum_beyond_int64_is_an_error_that_names_no_value() -> None:
    events = [(0 * HOUR, 2**62), (1 * HOUR, 2**62)]
    with pytest.raises(AggregationOverflow, match="the sum over 1 window does not fit Int64") as caught:
        answer(feature("sum", Int64), events, 2 * HOUR)
    assert str(2**62) not in str(caught.value)
    assert (caught.value.feature, caught.value.count) == ("f", 1)


def test_integer_sum_may_pass_beyond_int64_outside_the_window() -> None:
    events = [(hour * HOUR, 2**62) for hour in range(10)]
    assert answer(feature("sum", Int64, 1), events, *[hour * HOUR for hour in range(1, 11)]) == [2**62] * 10


def test_int32_sum_beyond_int32_is_an_error() -> None:
    with pytest.raises(AggregationOverflow, match="Int32"):
        answer(feature("sum", Int32), [(0 * HOUR, 2**31 - 1), (1 * HOUR, 1)], 2 * HOUR)
    assert answer(feature("sum", Int32), [(0 * HOUR, 2**31 - 2), (1 * HOUR, 1)], 2 * HOUR) == [2**31 - 1]


def test_float32_sum_is_added_in_double_and_rounded_once() -> None:
    events = [(hour * HOUR, 16_777_216.0 if hour == 0 else 1.0) for hour in range(9)]
    assert answer(feature("sum", Float32), events, 9 * HOUR) == [16_777_224.0]


def test_variance_of_epoch_seconds_keeps_its_digits() -> None:
    base = 1_700_000_000.0
    events = [(hour * HOUR, base + step) for hour in range(20) for step in (0.0, 1.0)]
    (variance,) = answer(feature("var_pop", Float64), events, 20 * HOUR)
    assert variance == pytest.approx(0.25, rel=1e-6)


def test_variance_beside_a_huge_value_is_that_of_its_own_window() -> None:
    events = [(0 * HOUR, 1e20), (1 * HOUR, 1.0), (2 * HOUR, 2.0), (3 * HOUR, 1.0), (4 * HOUR, 2.0)]
    assert answer(feature("var_pop", Float64, 2), events, 3 * HOUR, 4 * HOUR, 5 * HOUR) == [0.25, 0.25, 0.25]


def test_variance_of_one_value_is_zero_or_null() -> None:
    events = [(0 * HOUR, 3.0)]
    assert answer(feature("var_pop", Float64), events, HOUR) == [0.0]
    assert answer(feature("var_samp", Float64), events, HOUR) == [None]
    assert answer(feature("stddev_samp", Float64), events, HOUR) == [None]


def test_variance_of_equal_values_is_exactly_zero() -> None:
    events = [(hour * HOUR, 0.1 if hour < 12 else 0.7) for hour in range(24)]
    assert answer(feature("stddev_pop", Float64, 6), events, 6 * HOUR, 12 * HOUR, 24 * HOUR) == [0.0, 0.0, 0.0]


def test_nan_is_greater_than_every_number() -> None:
    events = [(0 * HOUR, math.nan), (1 * HOUR, 5.0), (2 * HOUR, None)]
    assert answer(feature("min", Float64), events, 3 * HOUR) == [5.0]
    assert str(answer(feature("max", Float64), events, 3 * HOUR)) == "[nan]"
    assert str(answer(feature("min", Float64, 1), events, 1 * HOUR)) == "[nan]"
    assert answer(feature("max", Float64, 1), events, 3 * HOUR) == [None]


def test_extremes_of_integers_reach_both_ends_of_the_type() -> None:
    events = [(0 * HOUR, -(2**63)), (1 * HOUR, 2**63 - 1), (2 * HOUR, None)]
    assert answer(feature("min", Int64, 1), events, 1 * HOUR, 2 * HOUR, 3 * HOUR) == [-(2**63), 2**63 - 1, None]
    assert answer(feature("max", Int64, 1), events, 1 * HOUR, 2 * HOUR, 3 * HOUR) == [-(2**63), 2**63 - 1, None]


@pytest.mark.parametrize(
    ("dtype", "old", "new"),
    [
        (String, "a", "b"),
        (Bool, True, False),
        (Timestamp, START, START + HOUR),
        (Array(Int64), [1, 2], []),
        (Float32, 0.5, math.inf),
    ],
)
def test_last_keeps_any_type_and_skips_null(dtype: DataType, old: Any, new: Any) -> None:
    events = [(0 * HOUR, old), (1 * HOUR, new), (2 * HOUR, None)]
    assert answer(feature("last", dtype), events, 1 * HOUR, 3 * HOUR) == [old, new]


def test_last_of_tied_events_is_the_later_input_row() -> None:
    tied = timedelta(minutes=5)
    assert answer(feature("last", Int64), [(tied, 1), (tied, 2), (tied, 3), (tied, None)], HOUR) == [3]


def test_several_rows_of_one_tile_are_combined() -> None:
    tiles = pa.table(
        {"k": ["a", "a", "a"], ANCHOR_TIME: pa.array([START, START, START], TIMESTAMP), "sum_v": [1, 2, 4]}
    )
    probes = pa.table({"k": ["a"], EDGE: pa.array([START + HOUR], TIMESTAMP)})
    found = roll_up(tiles, probes, keys=("k",), tile_us=HOUR_US, features=[feature("sum", Int64)])
    assert found.column("f").to_pylist() == [7]


def test_no_probes_and_no_tiles_give_typed_empty_answers() -> None:
    tiles = pa.table(
        {"k": pa.array([], pa.string()), ANCHOR_TIME: pa.array([], TIMESTAMP), "count_v": pa.array([], pa.int64())}
    )
    probes = pa.table({"k": ["a"], EDGE: pa.array([START], TIMESTAMP)})
    wanted = [feature("count", Float64)]
    assert roll_up(tiles, probes, keys=("k",), tile_us=HOUR_US, features=wanted).to_pydict() == {"f": [0]}
    none = roll_up(tiles, probes.slice(0, 0), keys=("k",), tile_us=HOUR_US, features=wanted)
    assert none.schema.field("f").type == pa.int64()
    assert none.num_rows == 0
