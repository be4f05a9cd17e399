"""Streams read offline: when an event is seen, to the microsecond, and how long."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from featurekit_dagster import Aggregation, PushConfig, StreamSource, TimeWindow
from featurekit_dagster.errors import NotMaterialized, ReadError
from tests.support.clicks import asked, both_ways, continuous, followed, live, ranged, tiled, values
from tests.support.visits import DAY, FIELDS, HOUR, MICROSECOND, day, visit, workspace_of

MINUTE = timedelta(minutes=1)
NOON = day(3.5)
NOTHING, ONE = (None, 0), (1.0, 1)


# ---- plain features --------------------------------------------------------------------------------------------------


def test_a_row_is_seen_at_its_own_instant_and_not_before(tmp_path: Path) -> None:
    handle, _ = both_ways(tmp_path, live(followed(tmp_path, [visit(1, NOON, 7.0)], delay=3 * HOUR)))
    assert [row[0] for row in asked(handle, (1, NOON - MICROSECOND), (1, NOON), (2, NOON))] == [None, 7.0, None]


def test_a_row_expires_exactly_its_ttl_after_its_timestamp(tmp_path: Path) -> None:
    view = live(followed(tmp_path, [visit(1, NOON - HOUR, 1.0), visit(1, NOON, 2.0)]), ttl=90 * MINUTE)
    handle, _ = both_ways(tmp_path, view)
    last = NOON + 90 * MINUTE
    # the older row would not be alive either; an expired row never falls back
    assert [row[0] for row in asked(handle, (1, last - MICROSECOND), (1, last))] == [2.0, None]
    assert ranged(handle, NOON - DAY, NOON + DAY, "amount") == [(1.0, NOON - HOUR, NOON), (2.0, NOON, last)]


def test_rows_before_the_features_begin_are_never_seen(tmp_path: Path) -> None:
    begin = NOON + 17 * MINUTE
    rows = [visit(1, begin - MICROSECOND, 1.0), visit(2, begin, 2.0)]
    handle, _ = both_ways(tmp_path, live(followed(tmp_path, rows), feature_start_time=begin))
    assert [row[0] for row in asked(handle, (1, begin + HOUR), (2, begin), (2, begin - MICROSECOND))] == [
        None,
        2.0,
        None,
    ]
    assert ranged(handle, day(1), begin + HOUR, "amount") == [(2.0, begin, begin + HOUR)]


def test_of_rows_with_one_timestamp_the_later_one_wins(tmp_path: Path) -> None:
    handle, _ = both_ways(tmp_path, live(followed(tmp_path, [visit(1, NOON, 1.0), visit(1, NOON, 2.0)])))
    assert asked(handle, (1, NOON))[0][0] == 2.0
    assert ranged(handle, day(3), day(4), "amount") == [(2.0, NOON, day(4))]


def test_null_is_a_key_and_wins_with_its_nulls(tmp_path: Path) -> None:
    rows = [visit(None, NOON, 3.0), visit(None, NOON + HOUR, None)]
    handle, _ = both_ways(tmp_path, live(followed(tmp_path, rows)))
    assert asked(handle, (None, NOON), (None, NOON + HOUR)) == [(3.0, 1, "home"), (None, 1, "home")]


def test_a_history_of_rows_is_effective_at_their_own_times(tmp_path: Path) -> None:
    handle, _ = both_ways(tmp_path, live(followed(tmp_path, [visit(1, NOON), visit(1, NOON + HOUR)])))
    answer = handle.get_historical_features(start_time=NOON, end_time=NOON + HOUR)
    assert values(answer, "ts", "_effective_timestamp") == [(NOON, NOON)]
    assert len(handle.get_historical_features()) == len(handle.get_historical_features(from_source=True)) == 2


# ---- continuous windows ----------------------------------------------------------------------------------------------


def test_a_continuous_window_is_open_on_the_left_and_closed_on_the_right(tmp_path: Path) -> None:
    handle, _ = both_ways(tmp_path, continuous(followed(tmp_path, [visit(1, NOON)])))
    times = [NOON - MICROSECOND, NOON, NOON + HOUR - MICROSECOND, NOON + HOUR]
    assert asked(handle, *((1, time) for time in times)) == [NOTHING, ONE, ONE, NOTHING]
    assert ranged(handle, day(3), day(4), "sum", "count") == [(*ONE, NOON, NOON + HOUR)]


def test_an_offset_moves_both_ends_of_a_continuous_window(tmp_path: Path) -> None:
    back = Aggregation("amount", "sum", TimeWindow(HOUR, -30 * MINUTE), name="sum")
    handle, _ = both_ways(tmp_path, continuous(followed(tmp_path, [visit(1, NOON, 5.0)]), back))
    seen, gone = NOON + 30 * MINUTE, NOON + 90 * MINUTE
    times = [seen - MICROSECOND, seen, gone - MICROSECOND, gone]
    assert [value for (value,) in asked(handle, *((1, t) for t in times))] == [None, 5.0, 5.0, None]
    assert ranged(handle, day(3), day(4), "sum") == [(5.0, seen, gone)]


def test_continuous_windows_begin_with_the_features_and_hold_what_was_before(tmp_path: Path) -> None:
    begin = NOON + 10 * MINUTE
    handle, _ = both_ways(tmp_path, continuous(followed(tmp_path, [visit(1, NOON)]), feature_start_time=begin))
    assert asked(handle, (1, begin - MICROSECOND), (1, begin)) == [(None, None), ONE]
    assert ranged(handle, day(1), day(4), "count") == [(1, begin, NOON + HOUR)]


def test_events_a_microsecond_apart_enter_and_leave_one_by_one(tmp_path: Path) -> None:
    rows = [visit(1, NOON + n * MICROSECOND, 2.0**n) for n in range(3)]
    handle, _ = both_ways(tmp_path, continuous(followed(tmp_path, rows)))
    spans = ranged(handle, day(3), day(4), "sum")
    gone = NOON + HOUR
    assert spans == [
        (1.0, NOON, NOON + MICROSECOND),
        (3.0, NOON + MICROSECOND, NOON + 2 * MICROSECOND),
        (7.0, NOON + 2 * MICROSECOND, gone),
        (6.0, gone, gone + MICROSECOND),
        (4.0, gone + MICROSECOND, gone + 2 * MICROSECOND),
    ]


def test_a_history_of_continuous_windows_is_as_of_each_event(tmp_path: Path) -> None:
    rows = [visit(1, NOON, 1.0), visit(1, NOON, 2.0), visit(1, NOON + 30 * MINUTE, 4.0), visit(None, NOON)]
    handle, _ = both_ways(tmp_path, continuous(followed(tmp_path, rows)))
    for from_source in (False, True):
        answer = handle.get_historical_features(from_source=from_source)
        assert sorted(values(answer, "ts", "sum", "count", "_effective_timestamp")) == [
            (NOON, 1.0, 1, NOON),
            (NOON, 3.0, 2, NOON),
            (NOON + 30 * MINUTE, 7.0, 3, NOON + 30 * MINUTE),
        ]


def test_what_is_stored_of_continuous_windows_are_their_events(tmp_path: Path) -> None:
    handle, workspace = both_ways(tmp_path, continuous(followed(tmp_path, [visit(1, NOON), visit(1, NOON)])))
    files = pl.read_parquet(f"{workspace.lake}/**/*.parquet", hive_partitioning=False)
    assert set(files.columns) == {"user", "ts", "amount", "visits"}
    assert files.height == 2
    for read in (handle.get_partial_aggregates, lambda *times: handle.run(*times, aggregation_level="partial")):
        with pytest.raises(ReadError, match="CONTINUOUS, so it stores events and has no partial aggregates"):
            read(day(3), day(4))


# ---- windows of tiles ------------------------------------------------------------------------------------------------


def test_a_tile_of_a_stream_is_seen_from_its_end_whatever_schedule_and_delay(tmp_path: Path) -> None:
    view = tiled(followed(tmp_path, [visit(1, NOON + 20 * MINUTE)], delay=5 * HOUR))
    handle, _ = both_ways(tmp_path, view)
    times = [NOON + HOUR - MICROSECOND, NOON + HOUR, NOON + 3 * HOUR - MICROSECOND, NOON + 3 * HOUR]
    assert asked(handle, *((1, time) for time in times)) == [NOTHING, ONE, ONE, NOTHING]
    # a range begins where the point-in-time answer begins, not with the tile
    assert ranged(handle, day(3), day(4), "sum", "count") == [(*ONE, NOON + HOUR, NOON + 3 * HOUR)]


@pytest.mark.parametrize(("when", "tile_end"), [(NOON, NOON + HOUR), (NOON - MICROSECOND, NOON)])
def test_an_event_on_an_edge_belongs_to_the_tile_it_opens(tmp_path: Path, when: datetime, tile_end: datetime) -> None:
    handle, _ = both_ways(tmp_path, tiled(followed(tmp_path, [visit(1, when)])))
    assert ranged(handle, day(3), day(4), "count") == [(1, tile_end, tile_end + 2 * HOUR)]


def test_windows_of_tiles_begin_when_a_tile_ends_after_the_features_begin(tmp_path: Path) -> None:
    begin = NOON + 10 * MINUTE
    view = tiled(followed(tmp_path, [visit(1, NOON - MINUTE)]), feature_start_time=begin)
    handle, _ = both_ways(tmp_path, view)
    edge = NOON + HOUR
    assert asked(handle, (1, begin), (1, edge - MICROSECOND), (1, edge)) == [(None, None), (None, None), ONE]
    assert ranged(handle, day(1), day(4), "count") == [(1, edge, NOON + 2 * HOUR)]


def test_partial_aggregates_of_a_stream_are_its_tiles(tmp_path: Path) -> None:
    handle, _ = both_ways(tmp_path, tiled(followed(tmp_path, [visit(1, NOON + MINUTE), visit(1, NOON + HOUR)])))
    for from_source in (False, True):
        answer = handle.get_partial_aggregates(NOON, NOON + 2 * HOUR, from_source=from_source)
        assert sorted(values(answer, "_interval_start_time", "sum_amount", "count_visits")) == [
            (NOON, 1.0, 1),
            (NOON + HOUR, 1.0, 1),
        ]


def test_a_history_of_tiles_of_a_stream_is_effective_at_the_tiles_end(tmp_path: Path) -> None:
    handle, _ = both_ways(tmp_path, tiled(followed(tmp_path, [visit(1, NOON + MINUTE)])))
    for from_source in (False, True):
        answer = handle.get_historical_features(from_source=from_source)
        assert values(answer, "ts", "count", "_effective_timestamp") == [(NOON + HOUR, 1, NOON + HOUR)]


# ---- what cannot be read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("declare", [live, continuous, tiled])
def test_an_instant_after_the_last_batch_job_is_not_materialized(tmp_path: Path, declare: Any) -> None:
    handle, _ = both_ways(tmp_path, declare(followed(tmp_path, [visit(1, NOON)])), now=day(5))
    # an event at midnight itself would belong to the next batch interval, and be seen at midnight by all but tiles
    assert len(asked(handle, (1, day(5) - MICROSECOND))) == 1
    spine = pl.DataFrame({"user": [1], "ts": [day(5) + (HOUR if declare is tiled else timedelta(0))]})
    with pytest.raises(NotMaterialized, match="1 spine row needs"):
        handle.get_features_for_events(spine)
    answer = handle.get_features_for_events(spine, allow_gaps=True).to_arrow()
    assert all(answer[f"live__{name}"].to_pylist() == [None] for name in handle.features)


@pytest.mark.parametrize("offline", [False, True])
def test_a_stream_without_batch_side_has_no_history_to_read(tmp_path: Path, offline: bool) -> None:
    source = StreamSource(name="pushed", stream_config=PushConfig(), schema=FIELDS)
    handle = workspace_of(tmp_path, [live(source, offline=offline)]).get_feature_view("live")
    spine = pl.DataFrame({"user": [1], "ts": [NOON]})
    for read in (
        lambda: handle.get_features_for_events(spine),
        lambda: handle.get_features_in_range(day(3), day(4)),
        lambda: handle.get_historical_features(spine, from_source=True),
        lambda: handle.run(day(3), day(4)),
        lambda: handle.run_transformation(day(3), day(4)),
    ):
        with pytest.raises(ReadError, match="its stream has no batch source, so there is no history to read"):
            read()
