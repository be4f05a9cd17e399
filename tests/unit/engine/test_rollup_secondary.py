"""Roll-ups per secondary key: which keys are listed, in what order, and what stands beside them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from featurekit_dagster.domain.aggregation import AggregateFeature, partial_columns
from featurekit_dagster.domain.schema import Field, Int64
from featurekit_dagster.domain.windows import LifetimeWindow, TimeWindow, Window
from featurekit_dagster.engine import rollup_secondary
from featurekit_dagster.engine.columns import Int64Array
from featurekit_dagster.engine.duck import connect
from featurekit_dagster.engine.keys import TimePacking
from featurekit_dagster.engine.rollup import EDGE, roll_up
from featurekit_dagster.engine.tiles import build_tiles, event_tiles
from featurekit_dagster.intervals import to_us

HOUR = timedelta(hours=1)
HOUR_US = 3_600_000_000
START = datetime(2024, 1, 1, tzinfo=UTC)
TIMESTAMP = pa.timestamp("us", "UTC")
Event = tuple[str | None, str | None, timedelta, int | None]


def feature(name: str, function: str, window: Window, n: int = 0) -> AggregateFeature:
    start = to_us(START) if isinstance(window, LifetimeWindow) else None
    return AggregateFeature(
        name=name, column=Field("v", Int64), function=function, window=window, n=n, lifetime_start_us=start
    )


FEATURES = [
    feature("long", "sum", TimeWindow(24 * HOUR)),
    feature("short", "sum", TimeWindow(2 * HOUR)),
    feature("count", "count", TimeWindow(2 * HOUR)),
    feature("two", "last_n", TimeWindow(24 * HOUR), n=2),
    feature("before", "max", TimeWindow(2 * HOUR, -2 * HOUR)),
    feature("ever", "sum", LifetimeWindow()),
]
EVENTS: list[Event] = [
    ("ann", "shop b", 0 * HOUR, 1),
    ("ann", "shop a", 1 * HOUR, 2),
    ("ann", "shop b", 3 * HOUR, 4),
    ("ann", None, 3 * HOUR, 8),
    ("ann", "shop c", 3 * HOUR, None),
    ("bob", "shop a", 3 * HOUR, 16),
    (None, "shop z", 3 * HOUR, 32),
]


def rolled(
    events: Sequence[Event], probes: Sequence[tuple[str | None, timedelta | None]], *, tiled: bool = True
) -> pa.Table:
    table = pa.table(
        {
            "user": pa.array([row[0] for row in events], pa.string()),
            "shop": pa.array([row[1] for row in events], pa.string()),
            "ts": pa.array([START + row[2] for row in events], TIMESTAMP),
            "v": pa.array([row[3] for row in events], pa.int64()),
        }
    )
    partials = partial_columns(FEATURES)
    with connect() as con:
        con.register("events", table)
        if tiled:
            tiles = build_tiles(
                con, "events", keys=["user", "shop"], timestamp="ts", tile_us=HOUR_US, partials=partials
            )
        else:
            tiles = event_tiles(con, "events", keys=["user", "shop"], timestamp="ts", partials=partials)
    edges = [None if edge is None else START + edge for _, edge in probes]
    asked = pa.table({"user": pa.array([user for user, _ in probes], pa.string()), EDGE: pa.array(edges, TIMESTAMP)})
    tile_us = HOUR_US if tiled else 1
    return roll_up(tiles, asked, keys=("user",), tile_us=tile_us, features=FEATURES, secondary_key="shop")


@pytest.mark.parametrize("tiled", [True, False])
def test_keys_with_a_tile_in_the_window_are_listed_ascending_with_null_last(tiled: bool) -> None:
    (row,) = rolled(EVENTS, [("ann", 4 * HOUR)], tiled=tiled).to_pylist()
    assert row["shop_keys_2h"] == ["shop b", "shop c", None]
    assert row["shop_keys_1d"] == row["shop_keys_lifetime"] == ["shop a", "shop b", "shop c", None]
    assert row["shop_keys_2h_offset_2h"] == ["shop a", "shop b"]
    assert row["long"] == row["ever"] == [2, 5, None, 8]
    assert row["before"] == [2, 1]


def test_a_key_whose_values_are_all_null_is_listed_with_the_default() -> None:
    (row,) = rolled(EVENTS, [("ann", 4 * HOUR)]).to_pylist()
    assert (row["short"], row["count"]) == ([4, None, 8], [1, 0, 1])
    assert row["two"] == [[2], [1, 4], [], [8]]


def test_columns_of_keys_come_first_shortest_window_first_then_the_features() -> None:
    table = rolled(EVENTS, [("ann", 4 * HOUR)])
    assert table.column_names == [
        *("shop_keys_2h", "shop_keys_2h_offset_2h", "shop_keys_1d", "shop_keys_lifetime"),
        *(wanted.name for wanted in FEATURES),
    ]
    assert table.schema.field("shop_keys_2h").type == pa.list_(pa.string())
    assert table.schema.field("two").type == pa.list_(pa.list_(pa.int64()))


def test_keys_of_other_join_keys_are_not_listed() -> None:
    rows = rolled(EVENTS, [("bob", 4 * HOUR), (None, 4 * HOUR), ("eve", 4 * HOUR), ("ann", -HOUR)]).to_pylist()
    assert [row["shop_keys_1d"] for row in rows] == [["shop a"], ["shop z"], [], []]
    assert [row["long"] for row in rows] == [[16], [32], [], []]


def test_probes_are_answered_in_their_order_each_time_they_ask_and_not_at_all_without_an_edge() -> None:
    rows = rolled(EVENTS, [("bob", 4 * HOUR), ("ann", None), ("ann", HOUR), ("bob", 4 * HOUR)]).to_pylist()
    assert [row["long"] for row in rows] == [[16], None, [1], [16]]
    assert [row["shop_keys_1d"] for row in rows] == [["shop a"], None, ["shop b"], ["shop a"]]


def test_no_tiles_and_no_probes_give_typed_empty_answers() -> None:
    (row,) = rolled([], [("ann", HOUR)]).to_pylist()
    assert all(value == [] for value in row.values())
    none = rolled(EVENTS, [])
    assert (none.num_rows, none.schema) == (0, rolled(EVENTS, [("ann", HOUR)]).schema)


def test_questions_in_small_stretches_are_answered_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = [(user, hour * HOUR) for user in ("bob", "ann", None, "eve") for hour in range(-1, 7)]
    whole = rolled(EVENTS, probes).to_pylist()
    monkeypatch.setattr(rollup_secondary, "_BLOCK", 1)
    assert rolled(EVENTS, probes).to_pylist() == whole


def test_keys_too_many_to_be_packed_with_their_times_are_numbered_first(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = [(user, hour * HOUR) for user in ("bob", "ann", None) for hour in range(7)]
    whole = rolled(EVENTS, probes).to_pylist()
    fit, refused = TimePacking.fit, []

    def refuse_products(times: Int64Array, key_count: int) -> TimePacking:
        if key_count > 6:
            refused.append(key_count)
            raise OverflowError
        return fit(times, key_count)

    monkeypatch.setattr(rollup_secondary.TimePacking, "fit", refuse_products)
    assert rolled(EVENTS, probes).to_pylist() == whole
    assert refused
