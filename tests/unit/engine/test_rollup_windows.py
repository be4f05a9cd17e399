"""Offsets, series and lifetimes: which tiles each kind of window holds, and what is answered where there are none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from featurekit_dagster.arrow_types import arrow_type
from featurekit_dagster.domain.aggregation import AggregateFeature, partial_columns
from featurekit_dagster.domain.schema import Array, DataType, Field, Float64, Int64, String
from featurekit_dagster.domain.windows import LifetimeWindow, TimeWindow, TimeWindowSeries, Window
from featurekit_dagster.engine import rollup_answers
from featurekit_dagster.engine.duck import connect
from featurekit_dagster.engine.rollup import EDGE, roll_up
from featurekit_dagster.engine.tiles import build_tiles, event_tiles
from featurekit_dagster.errors import AggregationOverflow
from featurekit_dagster.intervals import to_us

HOUR = timedelta(hours=1)
HOUR_US = 3_600_000_000
MICROSECOND = timedelta(microseconds=1)
START = datetime(2024, 1, 1, tzinfo=UTC)
TIMESTAMP = pa.timestamp("us", "UTC")
SERIES = TimeWindowSeries(series_start=-3 * HOUR, window_size=HOUR)


def feature(function: str, window: Window, dtype: DataType = Int64, **options: Any) -> AggregateFeature:
    if isinstance(window, LifetimeWindow):
        options.setdefault("lifetime_start_us", to_us(START + 2 * HOUR))
    return AggregateFeature(name="f", column=Field("v", dtype), function=function, window=window, **options)


def events_table(events: Sequence[tuple[timedelta, Any]], dtype: DataType) -> pa.Table:
    return pa.table(
        {
            "k": pa.array([1] * len(events), pa.int64()),
            "ts": pa.array([START + at for at, _ in events], TIMESTAMP),
            "v": pa.array([value for _, value in events], arrow_type(dtype)),
        }
    )


def probe_table(edges: Sequence[timedelta | None], key: int = 1) -> pa.Table:
    times = [None if edge is None else START + edge for edge in edges]
    return pa.table({"k": pa.array([key] * len(edges), pa.int64()), EDGE: pa.array(times, TIMESTAMP)})


def answer(wanted: AggregateFeature, events: Sequence[tuple[timedelta, Any]], *edges: timedelta | None) -> list[Any]:
    """The feature of the only key at each edge, from tiles."""
    with connect() as con:
        con.register("events", events_table(events, wanted.column.dtype))
        partials = partial_columns([wanted])
        tiles = build_tiles(con, "events", keys=["k"], timestamp="ts", tile_us=HOUR_US, partials=partials)
    found = roll_up(tiles, probe_table(edges), keys=("k",), tile_us=HOUR_US, features=[wanted])
    assert found.schema.field("f").type == arrow_type(wanted.dtype)
    return found.column("f").to_pylist()


def answer_of_events(
    wanted: AggregateFeature, events: Sequence[tuple[timedelta, Any]], *edges: timedelta | None
) -> list[Any]:
    """The feature of the only key at each edge, every event being a tile of its own."""
    with connect() as con:
        con.register("events", events_table(events, wanted.column.dtype))
        tiles = event_tiles(con, "events", keys=["k"], timestamp="ts", partials=partial_columns([wanted]))
    return roll_up(tiles, probe_table(edges), keys=("k",), tile_us=1, features=[wanted]).column("f").to_pylist()


ONE_TO_FIVE = [(hour * HOUR, hour + 1) for hour in range(5)]


def test_a_series_answers_oldest_window_first_with_the_default_of_the_function_in_empty_ones() -> None:
    assert answer(feature("sum", SERIES), ONE_TO_FIVE, 2 * HOUR, 6 * HOUR) == [[None, 1, 2], [4, 5, None]]
    assert answer(feature("count", SERIES), ONE_TO_FIVE, 2 * HOUR) == [[0, 1, 1]]
    assert answer(feature("last", SERIES, String), [(HOUR, "a")], 3 * HOUR) == [[None, "a", None]]


def test_a_series_of_lists_is_a_list_of_lists() -> None:
    wide = TimeWindowSeries(series_start=-4 * HOUR, window_size=2 * HOUR, step_size=HOUR)
    for function, want in (("last_n", [[1], [1, 2], [2, 3]]), ("first_distinct", [[1], [1, 2], [2, 3]])):
        assert answer(feature(function, wide, n=3), ONE_TO_FIVE, 3 * HOUR) == [want]
    assert answer(feature("last_distinct", wide, n=1), ONE_TO_FIVE, 3 * HOUR, 0 * HOUR) == [
        [[1], [2], [3]],
        [[], [], []],
    ]


def test_windows_of_a_series_that_do_not_fit_before_its_end_are_left_out() -> None:
    part = TimeWindowSeries(series_start=-5 * HOUR, window_size=2 * HOUR, series_end=-HOUR)
    assert answer(feature("sum", part), ONE_TO_FIVE, 5 * HOUR) == [[3, 7]]


def test_a_lifetime_holds_the_tile_that_begins_at_its_start_and_none_before() -> None:
    found = answer(feature("sum", LifetimeWindow()), ONE_TO_FIVE, 2 * HOUR, 3 * HOUR, 4 * HOUR, 1000 * HOUR)
    assert found == [None, 3, 7, 12]


def test_an_edge_before_a_lifetime_begins_sees_an_empty_window() -> None:
    assert answer(feature("count", LifetimeWindow()), ONE_TO_FIVE, -9 * HOUR, HOUR, 2 * HOUR) == [0, 0, 0]
    assert answer(feature("last_n", LifetimeWindow(), n=2), ONE_TO_FIVE, HOUR, 9 * HOUR) == [[], [4, 5]]


def test_a_lifetime_without_a_start_holds_everything_before_the_edge() -> None:
    wanted = feature("sum", LifetimeWindow(), lifetime_start_us=None)
    assert answer(wanted, ONE_TO_FIVE, 0 * HOUR, 3 * HOUR, 9 * HOUR) == [None, 6, 15]


def test_a_lifetime_begins_at_its_very_microsecond_where_events_are_their_own_tiles() -> None:
    events = [(2 * HOUR - MICROSECOND, 1), (2 * HOUR, 10), (3 * HOUR, 100)]
    wanted = feature("sum", LifetimeWindow())
    assert answer_of_events(wanted, events, 2 * HOUR, 2 * HOUR + MICROSECOND, 3 * HOUR + MICROSECOND) == [None, 10, 110]


def test_windows_of_events_are_half_open_to_the_microsecond() -> None:
    events = [(0 * HOUR, 1), (MICROSECOND, 10), (HOUR, 100)]
    wanted = feature("sum", TimeWindow(HOUR))
    assert answer_of_events(wanted, events, HOUR, HOUR + MICROSECOND, 2 * HOUR, 0 * HOUR) == [11, 110, 100, None]
    moved = feature("sum", TimeWindow(HOUR, -MICROSECOND * 2))
    assert answer_of_events(moved, events, HOUR + 3 * MICROSECOND) == [110]


def test_later_rows_of_one_instant_are_later_in_lists_of_tiles_and_of_events() -> None:
    tied = [(HOUR, 3), (HOUR, 1), (0 * HOUR, 9), (HOUR, 2), (HOUR, 1)]
    for find in (answer, answer_of_events):
        day = TimeWindow(24 * HOUR)
        assert find(feature("last_n", day, n=3), tied, 2 * HOUR) == [[1, 2, 1]]
        assert find(feature("first_n", day, n=3), tied, 2 * HOUR) == [[9, 3, 1]]
        assert find(feature("last_distinct", day, n=9), tied, 2 * HOUR) == [[9, 3, 2, 1]]
        assert find(feature("first_distinct", day, n=9), tied, 2 * HOUR) == [[9, 3, 1, 2]]


def test_probes_without_an_edge_get_null_and_unknown_keys_the_default() -> None:
    for function, window, options, default in (
        ("sum", SERIES, {}, [None, None, None]),
        ("last_n", TimeWindow(HOUR), {"n": 2}, []),
        ("approx_count_distinct", TimeWindow(HOUR), {"precision": 8}, 0),
        ("approx_percentile", TimeWindow(HOUR), {"precision": 100, "percentile": 0.5}, None),
    ):
        wanted = feature(function, window, **options)
        assert answer(wanted, [], None, HOUR) == [None, default]
        assert answer(wanted, ONE_TO_FIVE, None, -HOUR) == [None, default]
        assert wanted.default == default


def test_sketches_of_one_column_share_their_tiles() -> None:
    percentiles = [
        AggregateFeature(
            name=f"p{share}",
            column=Field("v", Float64),
            function="approx_percentile",
            window=TimeWindow(24 * HOUR),
            precision=100,
            percentile=share,
        )
        for share in (0.0, 0.5, 1.0)
    ]
    with connect() as con:
        con.register("events", events_table([(hour * HOUR, float(hour)) for hour in range(5)], Float64))
        partials = partial_columns(percentiles)
        tiles = build_tiles(con, "events", keys=["k"], timestamp="ts", tile_us=HOUR_US, partials=partials)
    found = roll_up(tiles, probe_table([5 * HOUR]), keys=("k",), tile_us=HOUR_US, features=percentiles)
    assert found.to_pydict() == {"p0.0": [0.0], "p0.5": [2.0], "p1.0": [4.0]}


def test_an_overflow_in_one_window_of_a_series_is_an_error() -> None:
    events = [(0 * HOUR, 2**62), (0 * HOUR + MICROSECOND, 2**62 - 1), (HOUR, 2**62), (2 * HOUR, 2**62)]
    wide = TimeWindowSeries(series_start=-4 * HOUR, window_size=2 * HOUR)
    with pytest.raises(AggregationOverflow, match="the sum over 1 window does not fit Int64"):
        answer(feature("sum", wide), events, 4 * HOUR)


def test_long_answers_are_cut_into_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    edges = [hour * HOUR for hour in range(8)]
    wanted = [feature("last_n", TimeWindow(3 * HOUR), n=2), feature("last_n", SERIES, n=2), feature("sum", SERIES)]
    whole = [answer(one, ONE_TO_FIVE, *edges) for one in wanted]
    monkeypatch.setattr(rollup_answers, "_CHUNK", 3)
    assert [answer(one, ONE_TO_FIVE, *edges) for one in wanted] == whole


def test_the_type_of_a_series_is_an_array_of_the_answer() -> None:
    assert feature("mean", SERIES).dtype == Array(Float64)
    assert answer(feature("mean", SERIES), ONE_TO_FIVE, HOUR) == [[None, None, 1.0]]


def test_lists_and_secondary_keys_do_not_import_pandas() -> None:
    program = """
import sys
from datetime import timedelta
import duckdb
from featurekit_dagster.domain.aggregation import AggregateFeature
from featurekit_dagster.domain.schema import Field, Float64
from featurekit_dagster.domain.windows import TimeWindow, TimeWindowSeries
from featurekit_dagster.engine.rollup import roll_up
hour = timedelta(hours=1)
def feature(function, window):
    return AggregateFeature(name=function, column=Field("v", Float64), function=function, window=window, n=2)
features = [feature("last_n", TimeWindow(hour)), feature("last_distinct", TimeWindow(hour))]
series = [feature("first_n", TimeWindowSeries(series_start=-2 * hour, window_size=hour))]
with duckdb.connect() as con:
    con.execute("SET TimeZone = 'UTC'")
    tiles = con.sql(
        "SELECT 1 AS k, 'a' AS s, TIMESTAMPTZ '2024-01-01' AS _anchor_time, "
        "[1.0::DOUBLE, 1.0] AS last_non_distinct_n2_v, [1.0::DOUBLE, 1.0] AS lastn2_v, "
        "[1.0::DOUBLE] AS first_non_distinct_n2_v"
    ).to_arrow_table()
    probes = con.sql("SELECT 1 AS k, TIMESTAMPTZ '2024-01-01 01:00' AS _edge").to_arrow_table()
arguments = {"keys": ("k",), "tile_us": 3_600_000_000}
found = roll_up(tiles, probes, features=features, secondary_key="s", **arguments).to_pylist()
assert found == [{"s_keys_1h": ["a"], "last_n": [[1.0, 1.0]], "last_distinct": [[1.0]]}], found
found = roll_up(tiles, probes, features=features + series, **arguments).to_pylist()
assert found == [{"last_n": [1.0, 1.0], "last_distinct": [1.0], "first_n": [[], [1.0]]}], found
assert "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
