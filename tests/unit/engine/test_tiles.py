"""The tile query, beside a loop over the events."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone

import duckdb
import pyarrow as pa
import pytest

from featurekit_dagster.domain.aggregation import FUNCTION_NAMES, AggregateFeature, partial_columns
from featurekit_dagster.domain.schema import DataType, Field, Float64, Int32, Int64, String
from featurekit_dagster.domain.windows import TimeWindow
from featurekit_dagster.engine import tiles as tiles_module
from featurekit_dagster.engine.duck import connect
from featurekit_dagster.engine.rollup import ANCHOR_TIME, EDGE, roll_up
from featurekit_dagster.engine.tiles import build_tiles, event_tiles
from featurekit_dagster.errors import TileOverflow

HOUR_US = 3_600_000_000
WEEK_US = 7 * 24 * HOUR_US
TIMESTAMP = pa.timestamp("us", "UTC")


def tiles(events: pa.Table, dtype: DataType, *functions: str, tile_us: int = HOUR_US) -> list[dict[str, object]]:
    window = TimeWindow(timedelta(microseconds=tile_us))
    features = [
        AggregateFeature(name=name, column=Field("v", dtype), function=name, window=window) for name in functions
    ]
    with connect() as con:
        con.register("events", events)
        found = build_tiles(
            con, "events", keys=["k"], timestamp="ts", tile_us=tile_us, partials=partial_columns(features)
        )
    assert found.schema.field(ANCHOR_TIME).type == TIMESTAMP
    return sorted(found.to_pylist(), key=lambda tile: (str(tile["k"]), tile[ANCHOR_TIME]))


def events(*rows: tuple[object, datetime, object], dtype: pa.DataType | None = None) -> pa.Table:
    return pa.table(
        {
            "k": pa.array([row[0] for row in rows], pa.string()),
            "ts": pa.array([row[1] for row in rows], TIMESTAMP),
            "v": pa.array([row[2] for row in rows], dtype or pa.float64()),
        }
    )


def listed(
    table: pa.Table, dtype: DataType, *wanted: tuple[str, int], tile_us: int = HOUR_US
) -> list[dict[str, object]]:
    """The tiles of list functions, each with its n."""
    window = TimeWindow(timedelta(microseconds=tile_us))
    features = [
        AggregateFeature(name=f"{function}{n}", column=Field("v", dtype), function=function, window=window, n=n)
        for function, n in wanted
    ]
    with connect() as con:
        con.register("events", table)
        found = build_tiles(
            con, "events", keys=["k"], timestamp="ts", tile_us=tile_us, partials=partial_columns(features)
        )
    return sorted(found.to_pylist(), key=lambda tile: (str(tile["k"]), tile[ANCHOR_TIME]))


def at(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type]


def test_times_before_1970_go_down_to_their_tile() -> None:
    found = tiles(
        events(("a", at(1969, 12, 31, 23, 59), 1.0), ("a", at(1969, 12, 31, 23), 1.0), ("a", at(1970, 1, 1), 1.0)),
        Float64,
        "count",
    )
    assert [(tile[ANCHOR_TIME], tile["count_v"]) for tile in found] == [
        (at(1969, 12, 31, 23), 2),
        (at(1970, 1, 1), 1),
    ]


def test_null_keys_form_one_group_and_all_null_values_still_make_a_tile() -> None:
    found = tiles(
        events((None, at(2024, 1, 1), None), (None, at(2024, 1, 1, 0, 30), None)),
        Float64,
        "count",
        "sum",
        "min",
        "last",
    )
    assert found == [
        {"k": None, ANCHOR_TIME: at(2024, 1, 1), "count_v": 0, "sum_v": None, "min_v": None, "last_v": None}
    ]


def test_moments_of_a_tile() -> None:
    moment = at(2024, 1, 1)
    (tile,) = tiles(
        events(("a", moment, 1.0), ("a", moment, 2.0), ("a", moment, None), ("a", moment, 6.0)), Float64, "variance"
    )
    assert (tile["count_v"], tile["mean_v"], tile["m2_v"]) == (3, 3.0, 14.0)


def test_nan_and_infinity_are_kept() -> None:
    moment = at(2024, 1, 1)
    (tile,) = tiles(events(("a", moment, 1.0), ("a", moment, math.inf)), Float64, "sum", "max")
    assert (tile["sum_v"], tile["max_v"]) == (math.inf, math.inf)
    (tile,) = tiles(events(("a", moment, 1.0), ("a", moment, math.nan)), Float64, "sum", "min")
    assert (str(tile["sum_v"]), tile["min_v"]) == ("nan", 1.0)


def test_sum_of_floats_is_compensated() -> None:
    moment = at(2024, 1, 1)
    (tile,) = tiles(events(*[("a", moment, 0.1)] * 100_000), Float64, "sum")
    assert tile["sum_v"] == pytest.approx(10_000.0, rel=1e-15)


def test_integers_stay_integers_and_overflow_is_an_error_that_names_no_value() -> None:
    moment = at(2024, 1, 1)
    (tile,) = tiles(events(("a", moment, 2**31 - 1), ("a", moment, 1), dtype=pa.int32()), Int32, "sum", "max")
    assert (tile["sum_v"], tile["max_v"]) == (2**31, 2**31 - 1)
    with pytest.raises(TileOverflow, match="the sum of one tile of v does not fit 64 bits") as caught:
        tiles(events(("a", moment, 2**62), ("a", moment, 2**62), dtype=pa.int64()), Int64, "sum")
    assert str(2**62) not in str(caught.value)
    assert caught.value.columns == ("v",)


@pytest.mark.parametrize("tile_us", [HOUR_US, WEEK_US])
def test_last_of_a_tie_is_the_later_input_row(tile_us: int) -> None:
    moment = at(2024, 1, 4, 0, 59, 59, 999_999)
    found = tiles(
        events(
            ("a", moment, "x"),
            ("a", at(2024, 1, 4, 0, 30), "y"),
            ("a", moment, "z"),
            ("a", moment, None),
            dtype=pa.string(),
        ),
        String,
        "last",
        tile_us=tile_us,
    )
    assert [tile["last_v"] for tile in found] == ["z"]


def test_timestamps_are_utc_whatever_the_connection_says() -> None:
    new_york = timezone(timedelta(hours=-5))
    table = events(("a", datetime(2024, 1, 1, 19, 30, tzinfo=new_york), 1.0))
    plain = table.set_column(1, "ts", table.column("ts").cast(pa.timestamp("us")))
    window = TimeWindow(timedelta(days=1))
    count = AggregateFeature(name="c", column=Field("v", Float64), function="count", window=window)
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'America/New_York'")
        for relation in (table, plain):
            con.register("events", relation)
            found = build_tiles(
                con, "events", keys=[], timestamp="ts", tile_us=24 * HOUR_US, partials=partial_columns([count])
            )
            assert found.column(ANCHOR_TIME).to_pylist() == [at(2024, 1, 2)]


def test_names_are_quoted() -> None:
    odd = 'a "b" c'
    table = pa.table({odd: [1], "ts": pa.array([at(2024, 1, 1)], TIMESTAMP), "group": [2]})
    total = AggregateFeature(
        name="s", column=Field("group", Int64), function="sum", window=TimeWindow(timedelta(hours=1))
    )
    with connect() as con:
        con.register("events", table)
        found = build_tiles(
            con, "events", keys=[odd], timestamp="ts", tile_us=HOUR_US, partials=partial_columns([total])
        )
    assert found.column_names == [odd, ANCHOR_TIME, "sum_group"]


LIST_FUNCTIONS = [("last_n", 2), ("last_n", 9), ("first_n", 2), ("last_distinct", 2), ("first_distinct", 2)]
REPEATED = [(5, "a"), (9, "b"), (1, "c"), (9, None), (5, "c"), (9, "c"), (2, "a")]


@pytest.mark.parametrize("tile_us", [HOUR_US, WEEK_US])
@pytest.mark.parametrize("most", [999_999, 3])
def test_lists_of_a_tile_are_in_order_of_time_and_of_input(
    monkeypatch: pytest.MonkeyPatch, tile_us: int, most: int
) -> None:
    monkeypatch.setattr(tiles_module, "_MOST_VALUES", most)
    rows = [("a", at(2024, 1, 1, 0, minute), value) for minute, value in REPEATED]
    (tile,) = listed(events(*rows, dtype=pa.string()), String, *LIST_FUNCTIONS, tile_us=tile_us)
    # in order: c (1), a (2), a (5), c (5), b (9), c (9)
    assert tile["last_non_distinct_n2_v"] == ["b", "c"]
    assert tile["last_non_distinct_n9_v"] == ["c", "a", "a", "c", "b", "c"]
    assert tile["first_non_distinct_n2_v"] == ["c", "a"]
    assert tile["lastn2_v"] == ["b", "c"]
    assert tile["first_distinct_n2_v"] == ["c", "a"]


def test_lists_of_a_tile_without_values_are_empty_and_never_null() -> None:
    (tile,) = listed(events(("a", at(2024, 1, 1), None), dtype=pa.string()), String, *LIST_FUNCTIONS)
    del tile["k"], tile[ANCHOR_TIME]
    assert list(tile.values()) == [[]] * 5


def test_sketches_of_a_tile_are_parallel_lists() -> None:
    window = TimeWindow(timedelta(hours=1))
    wanted = [
        AggregateFeature(
            name="c", column=Field("v", Int64), function="approx_count_distinct", window=window, precision=8
        ),
        AggregateFeature(
            name="p",
            column=Field("v", Int64),
            function="approx_percentile",
            window=window,
            precision=100,
            percentile=0.5,
        ),
    ]
    rows = [("a", at(2024, 1, 1), value) for value in (3, 1, 1, None)]
    with connect() as con:
        con.register("events", events(*rows, ("b", at(2024, 1, 1), None), dtype=pa.int64()))
        partials = partial_columns(wanted)
        found = build_tiles(con, "events", keys=["k"], timestamp="ts", tile_us=HOUR_US, partials=partials)
        singles = event_tiles(con, "events", keys=["k"], timestamp="ts", partials=partials)
    tile, empty = sorted(found.to_pylist(), key=lambda tile: tile["k"])
    assert tile["approx_percentile_processed_means_v"] == [1.0, 1.0, 3.0]
    assert tile["approx_percentile_processed_weights_v"] == [1.0, 1.0, 1.0]
    assert len(tile["approx_count_distinct_indices_v"]) == len(tile["approx_count_distinct_registers_v"]) == 2
    assert [empty[partial.name] for partial in partials] == [[], [], [], []]
    assert singles["approx_percentile_processed_means_v"].to_pylist() == [[3.0], [1.0], [1.0], [], []]
    assert found.schema.field("approx_count_distinct_indices_v").type == pa.list_(pa.int64())


def test_events_as_tiles_keep_the_order_of_the_relation_and_their_own_time() -> None:
    rows = [("a", at(2024, 1, 1, 0, 30), 1), ("b", at(2024, 1, 1), None), ("a", at(1969, 12, 31), 3)]
    window = TimeWindow(timedelta(hours=1))
    wanted = [
        AggregateFeature(name=name, column=Field("v", Int64), function=name, window=window, n=2)
        for name in ("sum", "last", "last_n", "first_distinct")
    ]
    with connect() as con:
        con.register("events", events(*rows, dtype=pa.int64()))
        found = event_tiles(con, "events", keys=["k"], timestamp="ts", partials=partial_columns(wanted))
    assert found.column(ANCHOR_TIME).to_pylist() == [row[1] for row in rows]
    assert found.select(["k", "sum_v", "last_non_distinct_n2_v"]).to_pylist() == [
        {"k": "a", "sum_v": 1, "last_non_distinct_n2_v": [1]},
        {"k": "b", "sum_v": None, "last_non_distinct_n2_v": []},
        {"k": "a", "sum_v": 3, "last_non_distinct_n2_v": [3]},
    ]


def test_rows_as_tiles_of_their_own_roll_up_to_the_same_features() -> None:
    moment = at(2024, 1, 1)
    rows = [("a" if step % 3 else None, moment + timedelta(minutes=17 * step), step % 7 or None) for step in range(200)]
    table = events(*rows, dtype=pa.int32())
    features = [
        AggregateFeature(
            name=f"{function}_{hours}",
            column=Field("v", Int32),
            function=function,
            window=TimeWindow(timedelta(hours=hours)),
        )
        for function in FUNCTION_NAMES
        for hours in (1, 24)
    ]
    edges = [moment + timedelta(hours=hours) for hours in range(60)]
    probes = pa.table({"k": pa.array(["a", None] * 30, pa.string()), EDGE: pa.array(edges, TIMESTAMP)})
    partials = partial_columns(features)
    with connect() as con:
        con.register("events", table)
        tiled = build_tiles(con, "events", keys=["k"], timestamp="ts", tile_us=HOUR_US, partials=partials)
        untiled = event_tiles(con, "events", keys=["k"], timestamp="ts", partials=partials)
    wanted = roll_up(tiled, probes, keys=("k",), tile_us=HOUR_US, features=features)
    for tile_us in (HOUR_US, 1):
        found = roll_up(untiled, probes, keys=("k",), tile_us=tile_us, features=features)
        for name in wanted.column_names:
            pairs = zip(found.column(name).to_pylist(), wanted.column(name).to_pylist(), strict=True)
            assert all(got == want or got == pytest.approx(want, rel=1e-12) for got, want in pairs), name
