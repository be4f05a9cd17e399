"""`get_historical_features` in every form of its page, and what a read refuses."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from featurekit_dagster import FeatureService, Workspace
from featurekit_dagster.errors import NotMaterialized, ReadError, SpineError
from featurekit_dagster.handles import FeatureViewHandle
from featurekit_dagster.intervals import Interval
from featurekit_dagster.serving.frame import FeatureFrame
from tests.support.visits import (
    DAY,
    HOUR,
    MICROSECOND,
    day,
    latest,
    materialize,
    totals,
    visit,
    workspace_of,
    write_visits,
)

ROWS = [visit(1, 2.5, 10.0), visit(2, 3.25, 20.0), visit(1, 4, 40.0), visit(1, 4.125, 5.0)]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("historical")
    source = write_visits(folder, ROWS, delay=2 * HOUR)
    views = [latest(source), totals(source)]
    both = FeatureService(name="both", features=[views[0][["amount"]], views[1].with_name("sums")[["sum_1d"]]])
    workspace = workspace_of(folder, [*views, both])
    for name in workspace.list_feature_views():
        materialize(workspace, name)
    return workspace


def rows(frame: FeatureFrame, *columns: str) -> list[tuple[Any, ...]]:
    table = frame.to_arrow()
    return sorted(zip(*(table[name].to_pylist() for name in columns), strict=True))


def spine(*questions: tuple[int | None, datetime]) -> pl.DataFrame:
    return pl.DataFrame(list(questions), schema={"user": pl.Int64, "ts": pl.Datetime("us", "UTC")}, orient="row")


def test_a_spine_gets_columns_with_a_dot_and_for_events_with_two_underscores(workspace: Workspace) -> None:
    handle = workspace.get_feature_view("newest")
    asked = spine((1, day(5)))
    dotted = handle.get_historical_features(asked)
    assert dotted.columns == ["user", "ts", "newest.amount", "newest.visits", "newest.page"]
    assert handle.get_features_for_events(asked).columns[2:] == ["newest__amount", "newest__visits", "newest__page"]
    service = workspace.get_feature_service("both")
    assert service.get_historical_features(asked).columns[2:] == ["newest.amount", "sums.sum_1d"]
    assert service.get_features_for_events(asked).columns[2:] == service.features == ["newest__amount", "sums__sum_1d"]


def test_the_named_one_of_two_time_columns_is_asked_for(workspace: Workspace) -> None:
    handle = workspace.get_feature_view("newest")
    asked = pl.DataFrame({"user": [1], "early": [day(4)], "late": [day(6)]})
    for key, amount in (("early", 10.0), ("late", 5.0)):
        answer = handle.get_historical_features(asked, timestamp_key=key).to_arrow()
        assert answer["newest.amount"].to_pylist() == [amount]
    with pytest.raises(SpineError, match=r"2 time columns \(early, late\)"):
        handle.get_historical_features(asked)


def test_a_range_of_rows_is_every_row_inside_with_its_effective_time(workspace: Workspace) -> None:
    answer = workspace.get_feature_view("newest").get_historical_features(start_time=day(2.5), end_time=day(4.125))
    assert answer.columns == ["user", "amount", "visits", "page", "ts", "_effective_timestamp"]
    assert rows(answer, "user", "ts", "amount", "_effective_timestamp") == [
        (1, day(2.5), 10.0, day(3) + 2 * HOUR),
        (1, day(4), 40.0, day(5) + 2 * HOUR),
        (2, day(3.25), 20.0, day(4) + 2 * HOUR),
    ]


def test_a_range_of_tiles_is_one_row_per_tile_with_data_as_of_its_end(workspace: Workspace) -> None:
    answer = workspace.get_feature_view("totals").get_historical_features(start_time=day(2), end_time=day(4) + 4 * HOUR)
    assert answer.columns == ["user", "sum_1d", "count_3d", "visits_3d", "mean_3d", "ts", "_effective_timestamp"]
    assert rows(answer, "user", "ts", "sum_1d", "count_3d", "_effective_timestamp") == [
        (1, day(2.5) + HOUR, 10.0, 1, day(3) + 2 * HOUR),
        (1, day(4) + HOUR, 40.0, 2, day(5) + 2 * HOUR),
        (2, day(3.25) + HOUR, 20.0, 1, day(4) + 2 * HOUR),
    ]


def test_a_tile_that_ends_on_the_job_grid_is_effective_there(tmp_path: Path) -> None:
    workspace = workspace_of(tmp_path, [totals(write_visits(tmp_path, [visit(1, day(3) - MICROSECOND)]))])
    materialize(workspace, "totals")
    answer = workspace.get_feature_view("totals").get_historical_features()
    assert rows(answer, "ts", "_effective_timestamp") == [(day(3), day(3))]


@pytest.mark.parametrize("view", ["newest", "totals"])
def test_no_argument_is_everything_that_is_there(workspace: Workspace, view: str) -> None:
    handle = workspace.get_feature_view(view)
    stored = handle.get_historical_features()
    assert len(stored) == len(ROWS)
    computed = handle.get_historical_features(from_source=True)
    assert stored.columns == computed.columns
    assert rows(stored, *stored.columns) == rows(computed, *stored.columns)


@pytest.mark.parametrize("view", ["newest", "totals"])
def test_one_end_alone_bounds_the_range(workspace: Workspace, view: str) -> None:
    handle = workspace.get_feature_view(view)
    middle = day(4)
    whole = rows(handle.get_historical_features(), "user", "ts")
    assert rows(handle.get_historical_features(start_time=middle), "user", "ts") == [r for r in whole if r[1] >= middle]
    assert rows(handle.get_historical_features(end_time=middle), "user", "ts") == [r for r in whole if r[1] < middle]
    assert rows(handle.get_historical_features(start_time=middle.replace(tzinfo=None)), "user", "ts") == [
        r for r in whole if r[1] >= middle
    ]


@pytest.mark.parametrize("view", ["newest", "totals"])
@pytest.mark.parametrize("start", [day(1), None])
def test_a_start_before_the_features_begin_is_raised_to_it(tmp_path: Path, view: str, start: datetime | None) -> None:
    source = write_visits(tmp_path, ROWS)
    begin = day(4)
    declared = [latest(source, feature_start_time=begin), totals(source, feature_start_time=begin)]
    workspace = workspace_of(tmp_path, declared)
    materialize(workspace, view)
    handle = workspace.get_feature_view(view)
    for from_source in (True, False):
        answer = handle.get_historical_features(start_time=start, from_source=from_source)
        assert len(answer) == 2
        assert all(time >= begin for time in answer.to_arrow()["ts"].to_pylist())
        with pytest.raises(
            ReadError, match="end_time 2024-01-03T00:00Z is before feature_start_time 2024-01-04T00:00Z"
        ):
            handle.get_historical_features(end_time=day(3), from_source=from_source)


def test_rows_that_are_not_effective_yet_are_not_part_of_everything(tmp_path: Path) -> None:
    source = write_visits(tmp_path, [visit(1, 9.5), visit(1, 10), visit(1, 10.5)])
    workspace = workspace_of(tmp_path, [latest(source)], now=day(10.25))
    materialize(workspace, "newest")
    for from_source in (True, False):
        answer = workspace.get_feature_view("newest").get_historical_features(from_source=from_source)
        assert rows(answer, "ts") == [(day(9.5),)]


def test_a_view_that_is_stored_nowhere_is_computed_back_to_its_first_row(tmp_path: Path) -> None:
    early = datetime(1960, 5, 1, 12)  # noqa: DTZ001 - read as UTC
    source = write_visits(tmp_path, [visit(1, early.replace(tzinfo=day(1).tzinfo)), visit(1, 2)])
    unstored: dict[str, Any] = {"online": False, "offline": False, "feature_start_time": None}
    workspace = workspace_of(tmp_path, [latest(source, ttl=DAY, **unstored), totals(source, **unstored)])
    for name in workspace.list_feature_views():
        assert len(workspace.get_feature_view(name).get_historical_features(from_source=True)) == 2


@pytest.mark.parametrize("view", ["newest", "totals"])
def test_entities_keep_their_rows_only(workspace: Workspace, view: str) -> None:
    handle = workspace.get_feature_view(view)
    only = handle.get_historical_features(entities=pl.DataFrame({"user": [2, 2, 77]}))
    assert rows(only, "user") == [(2,)]
    assert len(handle.get_historical_features(entities=pl.DataFrame({"user": []}, schema={"user": pl.Int64}))) == 0
    with pytest.raises(SpineError, match="entities has columns user, ts; it must have exactly user"):
        handle.get_historical_features(entities=spine((1, day(1))))


@pytest.mark.parametrize(
    "beside", [{"start_time": day(1)}, {"end_time": day(2)}, {"entities": pl.DataFrame({"user": [1]})}]
)
def test_a_range_beside_a_spine_is_refused(workspace: Workspace, beside: dict[str, Any]) -> None:
    handle = workspace.get_feature_view("newest")
    with pytest.raises(ReadError, match="start_time, end_time and entities are given beside a spine; leave them out"):
        handle.get_historical_features(spine((1, day(5))), **beside)


def test_a_timestamp_key_without_a_spine_is_refused(workspace: Workspace) -> None:
    with pytest.raises(ReadError, match="timestamp_key is given without a spine; leave it out"):
        workspace.get_feature_view("newest").get_historical_features(timestamp_key="ts")


def test_an_empty_range_is_refused(workspace: Workspace) -> None:
    handle = workspace.get_feature_view("newest")
    with pytest.raises(ReadError, match="start_time 2024-01-03T00:00Z is not before end_time 2024-01-03T00:00Z"):
        handle.get_historical_features(start_time=day(3), end_time=day(3))


def test_the_store_is_the_default_of_the_older_read_and_what_is_there_of_the_newer(tmp_path: Path) -> None:
    source = write_visits(tmp_path, ROWS)
    workspace = workspace_of(tmp_path, [latest(source, offline=False), totals(source, online=False)])
    unstored = workspace.get_feature_view("newest")
    asked = spine((1, day(5)))
    for read in (lambda: unstored.get_historical_features(asked), unstored.get_historical_features):
        with pytest.raises(ReadError, match=r"not materialized offline \(offline=False\); pass from_source=True"):
            read()
    with pytest.raises(ReadError, match="offline=False"):
        unstored.get_features_in_range(day(2), day(3), from_source=False)
    assert unstored.get_features_for_events(asked).to_arrow()["newest__amount"].to_pylist() == [5.0]
    assert len(unstored.get_features_in_range(day(3), day(6)))
    stored = workspace.get_feature_view("totals")
    for read in (
        lambda: stored.get_historical_features(asked),
        lambda: stored.get_features_for_events(asked),
        lambda: stored.get_features_in_range(day(2), day(3)),
        lambda: stored.get_partial_aggregates(day(2), day(3)),
    ):
        with pytest.raises(NotMaterialized):
            read()


def test_an_incremental_view_is_never_computed_on_the_fly(tmp_path: Path) -> None:
    source = write_visits(tmp_path, ROWS)
    workspace = workspace_of(
        tmp_path,
        [
            latest(source, incremental_backfills=True),
            latest(source, name="online_only", incremental_backfills=True, offline=False),
        ],
    )
    materialize(workspace, "newest")
    handle, asked = workspace.get_feature_view("newest"), spine((1, day(5)))
    assert handle.get_features_for_events(asked).to_arrow()["newest__amount"].to_pylist() == [5.0]
    unread = workspace.get_feature_view("online_only")
    for read in (
        lambda: handle.get_features_for_events(asked, from_source=True),
        lambda: handle.get_historical_features(from_source=True),
        lambda: handle.get_features_in_range(day(2), day(3), from_source=True),
        lambda: unread.get_features_for_events(asked),
        lambda: unread.get_features_in_range(day(2), day(3)),
    ):
        with pytest.raises(ReadError, match="incremental_backfills=True, so it cannot be computed on the fly"):
            read()


# ---- holes -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def holed(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Both views, materialized but for the fifth day; windows reach back over three days."""
    folder = tmp_path_factory.mktemp("holed")
    visits = [visit(1, n + 0.5, float(n)) for n in range(1, 11)] + [visit(2, 1.5, 100.0), visit(3, 4.5, 7.0)]
    source = write_visits(folder, visits)
    workspace = workspace_of(folder, [latest(source), totals(source), latest(source, name="short", ttl=2 * DAY)])
    for name in workspace.list_feature_views():
        start = workspace.repo.view(name).materialization_start
        assert start is not None
        materialize(workspace, name, start, day(5))
        materialize(workspace, name, day(6), day(11))
    return workspace


QUESTIONS = [
    (1, day(5)),
    (1, day(6)),
    (1, day(8.75)),
    (2, day(9)),
    (1, day(9)),
    (3, day(5.5)),
    (3, day(6)),
    (None, day(9)),
]
EXPECTED = {
    # the value, or "gap" where what the row needs is not covered
    "newest": [4.0, "gap", 7.0, "gap", 8.0, 7.0, "gap", "gap"],
    # needs two days at most: the fifth matters until the seventh
    "short": [4.0, "gap", 7.0, None, 8.0, 7.0, "gap", None],
    "totals": [4.0, "gap", "gap", None, 8.0, 7.0, "gap", None],
}


@pytest.mark.parametrize("view", list(EXPECTED))
def test_rows_that_need_a_hole_are_refused_with_their_number_and_the_hole(holed: Workspace, view: str) -> None:
    gaps = [answer == "gap" for answer in EXPECTED[view]]
    handle = holed.get_feature_view(view)
    with pytest.raises(NotMaterialized) as refused:
        handle.get_features_for_events(spine(*QUESTIONS))
    assert refused.value.rows == sum(gaps)
    assert refused.value.missing.intervals == (Interval(day(5), day(6)),)
    assert f"{sum(gaps)} spine rows need [2024-01-05T00:00Z, 2024-01-06T00:00Z)" in str(refused.value)
    complete = [question for question, gap in zip(QUESTIONS, gaps, strict=True) if not gap]
    assert len(handle.get_features_for_events(spine(*complete))) == len(complete)
    for question in (question for question, gap in zip(QUESTIONS, gaps, strict=True) if gap):
        with pytest.raises(NotMaterialized) as refused:
            handle.get_features_for_events(spine(question))
        assert refused.value.rows == 1


@pytest.mark.parametrize("view", list(EXPECTED))
def test_allowed_gaps_are_null_in_just_their_rows_and_counted_in_the_log(
    holed: Workspace, view: str, caplog: pytest.LogCaptureFixture
) -> None:
    handle = holed.get_feature_view(view)
    gaps = [answer == "gap" for answer in EXPECTED[view]]
    with caplog.at_level(logging.WARNING):
        answer = handle.get_features_for_events(spine(*QUESTIONS), allow_gaps=True).to_arrow()
    name = "sum_1d" if view == "totals" else "amount"
    assert answer[f"{view}__{name}"].to_pylist() == [None if a == "gap" else a for a in EXPECTED[view]]
    columns = [answer[f"{view}__{feature}"].to_pylist() for feature in handle.features]
    for is_gap, values in zip(gaps, zip(*columns, strict=True), strict=True):
        assert not is_gap or set(values) == {None}
    if view == "totals":
        assert answer["totals__count_3d"].to_pylist() == [3, None, None, 0, 3, 1, None, 0]
    assert f"{view}: {sum(gaps)} of {len(gaps)} rows are NULL" in caplog.text
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        handle.get_features_for_events(spine((1, day(5))), allow_gaps=True)
    assert not caplog.records


def test_a_latest_value_needs_coverage_from_its_row_to_the_edge_only(tmp_path: Path) -> None:
    workspace = workspace_of(tmp_path, [latest(write_visits(tmp_path, [visit(1, 8.5), visit(2, 8.5), visit(2, 3.5)]))])
    materialize(workspace, "newest", day(8), day(11))
    handle = workspace.get_feature_view("newest")
    answer = handle.get_features_for_events(spine((1, day(11)), (2, day(9)))).to_arrow()
    assert answer["newest__amount"].to_pylist() == [1.0, 1.0]
    with pytest.raises(NotMaterialized) as refused:
        handle.get_features_for_events(spine((1, day(8))))
    assert refused.value.missing.intervals == (Interval(day(1), day(8)),)


def test_the_missing_future_is_a_hole_too(holed: Workspace) -> None:
    later = spine((1, day(11)), (1, day(12)), (1, day(13.5)))
    for view in EXPECTED:
        with pytest.raises(NotMaterialized) as refused:
            holed.get_feature_view(view).get_features_for_events(later)
        assert refused.value.rows == 2
        assert refused.value.missing.intervals == (Interval(day(11), day(13)),)


def test_a_service_counts_the_gaps_of_each_of_its_views(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_visits(tmp_path, ROWS)
    views = [latest(source), totals(source)]
    workspace = workspace_of(tmp_path, [FeatureService(name="both", features=views)])
    materialize(workspace, "newest")
    service = workspace.get_feature_service("both")
    with pytest.raises(NotMaterialized, match="^totals: 1 spine rows? needs?"):
        service.get_features_for_events(spine((1, day(5))))
    answer = service.get_features_for_events(spine((1, day(5))), allow_gaps=True).to_arrow()
    assert answer["newest__amount"].to_pylist() == [5.0]
    assert answer["totals__count_3d"].to_pylist() == [None]
    assert "totals: 1 of 1 rows are NULL" in caplog.text
    assert "newest:" not in caplog.text


@pytest.mark.parametrize("view", list(EXPECTED))
def test_ranges_over_a_hole_are_refused(holed: Workspace, view: str) -> None:
    handle = holed.get_feature_view(view)
    for read in (
        handle.get_historical_features,
        lambda: handle.get_historical_features(start_time=day(5), end_time=day(6.5)),
        lambda: handle.get_features_in_range(day(5.5), day(6.5)),
    ):
        with pytest.raises(NotMaterialized) as refused:
            read()
        assert refused.value.rows == 0
        assert refused.value.missing.intervals == (Interval(day(5), day(6)),)


@pytest.mark.parametrize("view", ["newest", "totals"])
def test_a_view_of_which_nothing_is_materialized_has_no_everything(tmp_path: Path, view: str) -> None:
    source = write_visits(tmp_path, ROWS)
    workspace = workspace_of(tmp_path, [latest(source), totals(source)])
    with pytest.raises(NotMaterialized):
        workspace.get_feature_view(view).get_historical_features()


def test_features_that_have_not_begun_need_nothing(tmp_path: Path) -> None:
    source = write_visits(tmp_path, ROWS)
    workspace = workspace_of(tmp_path, [latest(source), totals(source)])
    before = spine((1, day(1) - timedelta(days=3)), (1, day(1) - MICROSECOND))
    for name in workspace.list_feature_views():
        handle: FeatureViewHandle = workspace.get_feature_view(name)
        answer = handle.get_features_for_events(before).to_arrow()
        assert {value for feature in handle.features for value in answer[f"{name}__{feature}"].to_pylist()} == {None}
