"""`run` and `run_transformation`: the pipeline on a span, with real sources or given frames, storing nothing."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from featurekit_dagster import FeatureView, FilteredSource
from featurekit_dagster.errors import ReadError, SourceError
from featurekit_dagster.handles import FeatureViewHandle
from featurekit_dagster.serving.frame import FeatureFrame
from tests.support.visits import DAY, FIELDS, HOUR, NOW, SCHEMA, day, latest, totals, visit, workspace_of, write_visits

MINUTE = timedelta(minutes=1)
ROWS = [visit(1, 9.5, 1.0, 1), visit(1, 10 + 10 / 24, 2.0, 2), visit(1, 10.75, 4.0, 4), visit(2, 10.5, 8.0, None)]
MOCK = pl.DataFrame([visit(7, 10.5, 3.0, 3), visit(7, 9.5, 5.0, 5)], schema=SCHEMA, orient="row")


def handle_of(folder: Path, view: FeatureView, now: datetime = NOW) -> FeatureViewHandle:
    return workspace_of(folder, [view], now).get_feature_view(view.name)


def table(frame: FeatureFrame, *columns: str) -> list[tuple[Any, ...]]:
    arrow = frame.to_arrow()
    return sorted(zip(*(arrow[name].to_pylist() for name in columns), strict=True))


@pytest.fixture
def newest(tmp_path: Path) -> FeatureViewHandle:
    return handle_of(tmp_path, latest(write_visits(tmp_path, ROWS)), now=day(11.25))


@pytest.fixture
def sums(tmp_path: Path) -> FeatureViewHandle:
    return handle_of(tmp_path, totals(write_visits(tmp_path, ROWS)))


@pytest.mark.parametrize(
    ("times", "found"),
    [
        ({}, 3),
        ({"end_time": day(10)}, 1),
        ({"start_time": day(9)}, 1),
        ({"start_time": day(9), "end_time": day(11)}, 4),
        ({"start_time": day(10.5), "end_time": day(10.75)}, 1),
        ({"start_time": day(9).replace(tzinfo=None), "end_time": day(11)}, 4),
    ],
)
def test_times_that_are_left_out_make_one_schedule_up_to_the_last_complete_one(
    newest: FeatureViewHandle, times: dict[str, Any], found: int
) -> None:
    assert len(newest.run(**times)) == found


def test_an_empty_span_is_refused(newest: FeatureViewHandle) -> None:
    for read in (newest.run, newest.run_transformation):
        with pytest.raises(ReadError, match="is not before end_time"):
            read(day(10), day(10))


def test_a_view_without_aggregates_has_no_level(newest: FeatureViewHandle) -> None:
    assert newest.run().columns == ["user", "ts", "amount", "visits", "page"]
    with pytest.raises(ReadError, match="aggregation_level 'full' on a view without aggregates; leave it out"):
        newest.run(aggregation_level="full")


def test_disabled_is_the_rows_of_the_transformation(sums: FeatureViewHandle) -> None:
    for answer in (
        sums.run(day(10), day(11), aggregation_level="disabled"),
        sums.run_transformation(day(10), day(11)),
    ):
        assert answer.columns == ["user", "ts", "amount", "visits", "page"]
        assert table(answer, "user", "amount") == [(1, 2.0), (1, 4.0), (2, 8.0)]


def test_partial_is_one_row_per_tile(sums: FeatureViewHandle) -> None:
    answer = sums.run(day(10), day(11), aggregation_level="partial")
    assert answer.columns[0] == "user"
    assert {"amount_sum_1h", "visits_count_1h", "visits_sum_1h", "amount_mean_1h"} < set(answer.columns)
    assert table(answer, "user", "tile_start_time", "tile_end_time", "amount_sum_1h", "visits_count_1h") == [
        (1, day(10) + 10 * HOUR, day(10) + 11 * HOUR, 2.0, 1),
        (1, day(10.75), day(10.75) + HOUR, 4.0, 1),
        (2, day(10.5), day(10.5) + HOUR, 8.0, 0),
    ]


def test_full_is_one_row_per_tile_as_of_its_end_over_the_given_span_only(sums: FeatureViewHandle) -> None:
    with pytest.warns(UserWarning, match="is shorter than the widest window, 3d; events before it are not seen"):
        answer = sums.run(day(10), day(11))
    assert answer.columns == ["user", "sum_1d", "count_3d", "visits_3d", "mean_3d", "ts"]
    assert table(answer, "user", "ts", "sum_1d", "count_3d", "visits_3d", "mean_3d") == [
        (1, day(10) + 11 * HOUR, 2.0, 1, 2, 2.0),
        (1, day(10.75) + HOUR, 6.0, 2, 6, 3.0),
        (2, day(10.5) + HOUR, 8.0, 0, None, 8.0),
    ]


def test_tiles_are_aligned_to_the_end_of_the_span(sums: FeatureViewHandle) -> None:
    end = day(10.75) + 20 * MINUTE
    answer = sums.run(day(10) + 20 * MINUTE, end, aggregation_level="partial")
    starts = [day(10) + 10 * HOUR - 40 * MINUTE, day(10.75) - 40 * MINUTE, day(10.5) - 40 * MINUTE]
    shown = table(answer, "user", "tile_start_time", "tile_end_time")
    expected = []
    for user, start, event in zip((1, 1, 2), starts, (day(10) + 10 * HOUR, day(10.75), day(10.5)), strict=True):
        begin = start if start + HOUR > event else start + HOUR
        expected.append((user, begin, begin + HOUR))
    assert shown == sorted(expected)
    with pytest.warns(UserWarning, match="shorter than the widest window"):
        full = sums.run(day(10) + 20 * MINUTE, end)
    assert table(full, "ts") == sorted((end_of,) for _, _, end_of in expected)


def test_a_span_that_cuts_a_tile_warns(sums: FeatureViewHandle) -> None:
    with pytest.warns(UserWarning, match="is not a multiple of aggregation_interval 1h; the first tile is cut"):
        sums.run(day(10) + 30 * MINUTE, day(11), aggregation_level="partial")


def test_an_unknown_level_is_refused(sums: FeatureViewHandle) -> None:
    with pytest.raises(ReadError, match="aggregation_level 'half' is not known; it is one of disabled, partial, full"):
        sums.run(aggregation_level="half")


def test_a_mock_stands_for_its_source_and_is_cut_like_it(newest: FeatureViewHandle, sums: FeatureViewHandle) -> None:
    for mock in (MOCK, MOCK.to_pandas(), MOCK.to_arrow(), MOCK.lazy()):
        assert table(newest.run(day(10), day(11), visits=mock), "user", "amount") == [(7, 3.0)]
        assert table(newest.run_transformation(day(10), day(11), {"visits": mock}), "user") == [(7,)]
    partial = sums.run(day(9), day(11), aggregation_level="partial", visits=MOCK)
    assert table(partial, "amount_sum_1h") == [(3.0,), (5.0,)]


def test_some_sources_may_be_mocked_and_others_real(tmp_path: Path) -> None:
    source = write_visits(tmp_path, ROWS)

    def together(real: pl.DataFrame, other: pl.DataFrame) -> pl.DataFrame:
        return pl.concat([real, other])

    view = latest(source, together, sources=[FilteredSource(source), source.unfiltered()])
    answer = handle_of(tmp_path, view).run(day(10), day(11), other=MOCK)
    assert table(answer, "user", "amount") == [(1, 2.0), (1, 4.0), (2, 8.0), (7, 3.0)]


def test_a_mock_for_no_parameter_is_refused(newest: FeatureViewHandle) -> None:
    for read in (
        lambda: newest.run(day(10), day(11), visit=MOCK),
        lambda: newest.run_transformation(day(10), day(11), {"visit": MOCK}),
    ):
        with pytest.raises(ReadError, match="visit is no source parameter of the function; it has visits"):
            read()


def test_a_mock_without_the_time_column_is_refused_by_name(newest: FeatureViewHandle) -> None:
    with pytest.raises(SourceError, match="source 'visits' cannot be read: it has no column 'ts'"):
        newest.run(day(10), day(11), visits=MOCK.drop("ts"))


def test_an_incremental_view_warns_unless_the_span_is_one_schedule(tmp_path: Path) -> None:
    view = latest(write_visits(tmp_path, ROWS), incremental_backfills=True)
    handle = handle_of(tmp_path, view)
    assert len(handle.run(day(10), day(11))) == len(handle.run()) == len(handle.run_transformation(day(10), day(11)))
    for start, end in ((day(9), day(11)), (day(10), day(10.5))):
        for read in (handle.run, handle.run_transformation):
            with pytest.warns(
                UserWarning, match="incremental_backfills=True.* is not one batch_schedule of 1d"
            ) as given:
                read(start, end)
            assert given[0].filename == __file__


def test_nothing_is_stored_by_a_run(tmp_path: Path) -> None:
    workspace = workspace_of(tmp_path, [latest(write_visits(tmp_path, ROWS))])
    workspace.get_feature_view("newest").run(day(10), day(11))
    assert not workspace.home.exists()


def test_a_context_tells_the_span(tmp_path: Path) -> None:
    seen = []

    def told(visits: pl.DataFrame, context: Any) -> pl.DataFrame:
        seen.append((context.start_time, context.end_time, context.batch_schedule))
        return visits

    view = latest(write_visits(tmp_path, ROWS), told, schema=FIELDS, context_parameter_name="context")
    handle_of(tmp_path, view).run(day(9), day(11))
    assert seen == [(day(9).replace(tzinfo=None), day(11).replace(tzinfo=None), DAY)]
