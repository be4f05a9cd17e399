"""Windows that begin at a fixed time, and series of windows, offline."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from featurekit_dagster import Aggregation, LifetimeWindow, TimeWindow, TimeWindowSeries
from featurekit_dagster.errors import NotMaterialized
from tests.support.clicks import (
    CONTINUOUS,
    asked,
    batch,
    both_ways,
    compacted,
    continuous,
    followed,
    ranged,
    tiled,
    values,
)
from tests.support.visits import DAY, HOUR, MICROSECOND, day, materialize, visit, workspace_of

LIFETIME = Aggregation("amount", "sum", LifetimeWindow(), name="ever")
SINCE = day(3)
ROWS = [visit(1, SINCE - MICROSECOND, 1.0), visit(1, SINCE, 2.0), visit(1, day(6.5), 4.0)]


def test_a_lifetime_counts_from_its_start_on_that_instant_included(tmp_path: Path) -> None:
    handle, _ = both_ways(
        tmp_path, batch(tmp_path, ROWS, LIFETIME, lifetime_start_time=SINCE, feature_start_time=day(2))
    )
    times = [day(2), day(3), day(4), day(7) - MICROSECOND, day(7)]
    assert asked(handle, *((1, time) for time in times)) == [(None,), (None,), (2.0,), (2.0,), (6.0,)]
    assert ranged(handle, day(2), day(9), "ever") == [(2.0, day(4), day(7)), (6.0, day(7), day(9))]
    assert ranged(handle, day(5), day(9), "ever")[0] == (2.0, day(5), day(7))


@pytest.mark.parametrize("declare", [continuous, tiled])
def test_lifetimes_of_streams_count_to_the_instant_or_the_tile(tmp_path: Path, declare: Any) -> None:
    view = declare(followed(tmp_path, ROWS), LIFETIME, lifetime_start_time=SINCE)
    handle, _ = both_ways(tmp_path, view)
    late = HOUR if view.stream_processing_mode is not CONTINUOUS else 0 * HOUR
    times = [SINCE + late - MICROSECOND, SINCE + late, day(6.5) + late - MICROSECOND, day(6.5) + late]
    assert asked(handle, *((1, time) for time in times)) == [(None,), (2.0,), (2.0,), (6.0,)]
    assert ranged(handle, day(1), day(9), "ever") == [
        (2.0, SINCE + late, day(6.5) + late),
        (6.0, day(6.5) + late, day(9)),
    ]


def test_a_lifetime_is_read_back_to_its_start_however_far_the_features_begin(tmp_path: Path) -> None:
    view = batch(tmp_path, ROWS, LIFETIME, lifetime_start_time=SINCE, feature_start_time=day(8))
    handle, workspace = both_ways(tmp_path, view)
    assert asked(handle, (1, day(8) - MICROSECOND), (1, day(8))) == [(None,), (6.0,)]
    assert workspace.stores.coverage(view, "offline").intervals[0].start == SINCE


def test_a_lifetime_needs_everything_since_its_start(tmp_path: Path) -> None:
    view = batch(tmp_path, ROWS, LIFETIME, lifetime_start_time=SINCE, feature_start_time=day(2))
    workspace = workspace_of(tmp_path, [view])
    materialize(workspace, view.name, day(4), day(8))
    handle = workspace.get_feature_view(view.name)
    spine = pl.DataFrame({"user": [1, 1], "ts": [day(3), day(7)]})
    with pytest.raises(NotMaterialized, match=r"1 spine row needs \[2024-01-03T00:00Z, 2024-01-04T00:00Z\)"):
        handle.get_features_for_events(spine)
    for read in (handle.get_features_in_range, handle.get_historical_features):
        with pytest.raises(NotMaterialized):
            read(start_time=day(5), end_time=day(7))


def test_a_lifetime_beside_a_window_needs_and_reads_both(tmp_path: Path) -> None:
    window = Aggregation("amount", "sum", TimeWindow(2 * DAY), name="recent")
    view = batch(tmp_path, ROWS, LIFETIME, window, lifetime_start_time=SINCE, feature_start_time=day(2))
    handle, _ = both_ways(tmp_path, view)
    assert asked(handle, (1, day(2)), (1, day(3)), (1, day(4)), (1, day(7))) == [
        (None, None),
        (None, 1.0),
        (2.0, 3.0),
        (6.0, 4.0),
    ]


def test_a_history_of_lifetimes_is_as_of_each_tile(tmp_path: Path) -> None:
    view = batch(tmp_path, ROWS, LIFETIME, lifetime_start_time=SINCE, feature_start_time=day(2))
    handle, _ = both_ways(tmp_path, view)
    for from_source in (False, True):
        answer = handle.get_historical_features(start_time=day(2), end_time=day(8), from_source=from_source)
        found = sorted(values(answer, "ts", "ever"))
        # the lifetime's start is where the table begins
        assert found[-2:] == [(SINCE + HOUR, 2.0), (day(6.5) + HOUR, 6.0)]


def test_a_history_shows_a_tile_that_ends_where_it_and_the_lifetime_begin(tmp_path: Path) -> None:
    view = batch(tmp_path, ROWS, LIFETIME, lifetime_start_time=SINCE, feature_start_time=day(2))
    handle, _ = both_ways(tmp_path, view)
    for from_source in (False, True):
        answer = handle.get_historical_features(start_time=SINCE, end_time=day(4), from_source=from_source)
        assert sorted(values(answer, "ts", "ever")) == [(SINCE, None), (SINCE + HOUR, 2.0)]


def test_a_run_over_shifted_tiles_keeps_the_start_of_a_lifetime(tmp_path: Path) -> None:
    handle, _ = both_ways(tmp_path, batch(tmp_path, ROWS, LIFETIME, lifetime_start_time=SINCE))
    with pytest.warns(UserWarning, match="not a multiple"):
        answer = handle.run(day(2), day(7) + HOUR / 2, aggregation_level="full")
    assert sorted(values(answer, "ts", "ever"))[-1] == (day(6.5) + HOUR / 2, 6.0)


# ---- series ----------------------------------------------------------------------------------------------------------


def series(function: str) -> Aggregation:
    window = TimeWindowSeries(series_start=-3 * DAY, window_size=DAY)
    return Aggregation("amount", function, window, name=f"{function}s")


def test_a_series_answers_its_windows_oldest_first_with_the_functions_default(tmp_path: Path) -> None:
    rows = [visit(1, 3.5, 1.0), visit(1, 5.5, 4.0)]
    handle, _ = both_ways(tmp_path, batch(tmp_path, rows, series("sum"), series("count")))
    assert asked(handle, (1, day(6)), (2, day(6))) == [
        ([1.0, None, 4.0], [1, 0, 1]),
        ([None, None, None], [0, 0, 0]),
    ]


def test_a_range_of_series_changes_with_each_window_and_leaves_defaults_out(tmp_path: Path) -> None:
    handle, _ = both_ways(tmp_path, batch(tmp_path, [visit(1, 3.5, 1.0)], series("sum"), series("count")))
    assert ranged(handle, day(2), day(9), "sums", "counts") == [
        ([None, None, 1.0], [0, 0, 1], day(4), day(5)),
        ([None, 1.0, None], [0, 1, 0], day(5), day(6)),
        ([1.0, None, None], [1, 0, 0], day(6), day(7)),
    ]


def test_equal_series_are_one_row_of_a_range(tmp_path: Path) -> None:
    rows = [visit(1, 3.5, 1.0), visit(1, 4.5, 1.0), visit(1, 5.5, 1.0), visit(1, 6.5, 1.0)]
    handle, _ = both_ways(tmp_path, batch(tmp_path, rows, series("sum")))
    assert ([1.0, 1.0, 1.0], day(6), day(8)) in ranged(handle, day(2), day(9), "sums")


# ---- events instead of tiles -----------------------------------------------------------------------------------------


def test_a_batch_view_that_stores_events_answers_as_one_with_tiles(tmp_path: Path) -> None:
    rows = [visit(1, day(3) - MICROSECOND, 1.0), visit(1, 3, 2.0), visit(1, 3.5, None), visit(1, 5.25, 8.0)]
    answers = []
    for folder, declare in (("events", compacted), ("tiles", batch)):
        (tmp_path / folder).mkdir()
        view = declare(tmp_path / folder, rows, batch_schedule=DAY, delay=2 * HOUR)
        handle, _ = both_ways(tmp_path / folder, view)
        times = [day(3), day(3) + 2 * HOUR, day(4) + 2 * HOUR, day(7)]
        answers.append((asked(handle, *((1, t) for t in times)), ranged(handle, day(2), day(9), "sum", "count")))
    assert answers[0] == answers[1]
    assert answers[0][0] == [(None, 0), (1.0, 1), (2.0, 2), (8.0, 1)]


def test_a_batch_view_that_stores_events_has_no_partial_aggregates(tmp_path: Path) -> None:
    handle, _ = both_ways(tmp_path, compacted(tmp_path, ROWS))
    for read in (handle.get_partial_aggregates, lambda *times: handle.run(*times, aggregation_level="partial")):
        with pytest.raises(Exception, match="compaction_enabled=True, so it stores events"):
            read(day(3), day(4))


def test_histories_and_runs_of_stored_events_are_as_of_each_event(tmp_path: Path) -> None:
    rows = [visit(1, 3.25, 1.0), visit(1, 3.25, 2.0), visit(1, 3.5, 4.0)]
    handle, _ = both_ways(tmp_path, compacted(tmp_path, rows, delay=HOUR))
    wanted: list[tuple[datetime, float]] = [(day(3.25), 3.0), (day(3.5), 7.0)]
    for from_source in (False, True):
        answer = handle.get_historical_features(from_source=from_source)
        assert sorted(values(answer, "ts", "sum")) == wanted
        assert set(values(answer, "_effective_timestamp")) == {(day(4) + HOUR,)}
    assert sorted(values(handle.run(day(3), day(4)), "ts", "sum")) == wanted


def test_a_column_that_several_features_use_is_stored_once_and_keys_may_be_counted(tmp_path: Path) -> None:
    features = [
        Aggregation("amount", "sum", TimeWindow(DAY), name="sum"),
        Aggregation("amount", "mean", TimeWindow(DAY), name="mean"),
        Aggregation("user", "count", TimeWindow(DAY), name="visits"),
    ]
    handle, workspace = both_ways(tmp_path, compacted(tmp_path, [visit(1, 3.5, 3.0)], *features))
    assert asked(handle, (1, day(4))) == [(3.0, 3.0, 1)]
    assert set(pl.read_parquet(f"{workspace.lake}/**/*.parquet", hive_partitioning=False).columns) == {
        "user",
        "ts",
        "amount",
    }
