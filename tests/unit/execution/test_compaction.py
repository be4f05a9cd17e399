"""Upkeep of what lies online: which tiles fit, what of a stream may go, what jobs replace, and what a kill leaves."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from featurekit_dagster import (
    Aggregation,
    FeatureView,
    Float64,
    Int64,
    LifetimeWindow,
    StreamProcessingMode,
    TimeWindow,
    TimeWindowSeries,
)
from featurekit_dagster.domain.windows import Span
from featurekit_dagster.errors import JobStopped, OnlineLayoutMismatch, OnlineTileOverflow
from featurekit_dagster.execution import compaction
from featurekit_dagster.execution.compaction import clean_up_view, compact_view
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.planning.online_tiles import is_whole, largest_tile_us
from featurekit_dagster.serving.vector import PRESENT, UNKNOWN
from tests.support.clicks import continuous, followed, live, tiled
from tests.support.clock import Clock
from tests.support.followed import Followed, pushed
from tests.support.visits import DAY, HOUR, NOW, day, latest, materialize, totals, visit, workspace_of, write_visits

MINUTE, SECOND = timedelta(minutes=1), timedelta(seconds=1)
COUNT = Aggregation("visits", "count", TimeWindow(2 * HOUR), name="count")
NO_PATIENCE = timedelta(0)
SUMS = {"sum_1d": 24.0, "count_3d": 72, "visits_3d": 72, "mean_3d": 1.0}


def upkeep(keep: object, view: FeatureView, world: object) -> dict[str, int]:
    stores = world.workspace.stores  # type: ignore[attr-defined]
    return keep(view, stores, holder="test", check=lambda: None, patience=NO_PATIENCE)  # type: ignore[operator,no-any-return]


@pytest.mark.parametrize(
    ("windows", "minutes"),
    [
        ([TimeWindow(DAY)], 24 * 60),
        ([TimeWindow(3 * DAY, -6 * HOUR)], 6 * 60),
        ([TimeWindow(36 * HOUR), TimeWindow(10 * DAY)], 12 * 60),
        ([TimeWindowSeries(series_start=-2 * DAY, window_size=4 * HOUR, step_size=6 * HOUR)], 2 * 60),
        ([LifetimeWindow()], 60),
    ],
)
def test_a_tile_may_be_as_large_as_divides_the_schedule_and_all_ends_of_windows(
    tmp_path: Path, windows: list[TimeWindow], minutes: int
) -> None:
    aggregations = [Aggregation("visits", "sum", window) for window in windows]
    start = day(1) + HOUR if isinstance(windows[0], LifetimeWindow) else None
    view = totals(write_visits(tmp_path, []), aggregations=aggregations, lifetime_start_time=start)
    assert largest_tile_us(view) == minutes * 60_000_000


def test_a_window_is_whole_where_both_of_its_ends_lie_between_tiles() -> None:
    tile = 10
    assert is_whole(Span(-20, 0), tile)
    assert is_whole(Span(None, -10, 30), tile)
    assert not is_whole(Span(-25, 0), tile)
    assert not is_whole(Span(-20, -5), tile)
    assert not is_whole(Span(None, 0, 5), tile)


def test_what_windows_of_a_stream_have_left_is_trimmed_once_the_history_has_it(tmp_path: Path) -> None:
    rows = [visit(1, day(2) + n * HOUR) for n in range(48)]
    source = followed(tmp_path, rows)
    source = replace(source, stream_config=replace(source.stream_config, initial_stream_position="trim_horizon"))  # type: ignore[call-arg]
    world = Followed(tmp_path, tiled(source, COUNT, online=True), now=day(2))
    world.clock.now = day(4)
    world.send(*rows)
    before = world.online(1)
    # nothing is offline yet, so all of it stays to be compared with
    assert upkeep(clean_up_view, world.view, world)["removed"] == 0
    world.materialize(day(1), day(3), online=False)
    done = upkeep(compact_view, world.view, world)
    # of the day before the third midnight only the two hours of the window stay
    assert (done["removed"], done["laid_out_anew"], world.online(1)) == (22, 0, before)
    assert world.online(1, day(3) + HOUR) == [2]
    wider = Aggregation("visits", "count", TimeWindow(40 * HOUR), name="count")
    wide = Followed(tmp_path, tiled(source, wider, online=True), now=day(4))
    assert wide.online(1) == [None]
    assert set(wide.vector(1).statuses.values()) == {UNKNOWN}
    assert wide.online(1, day(4) + 14 * HOUR - SECOND) == [None]
    assert wide.online(1, day(4) + 14 * HOUR) == [26]


def test_a_continuous_stream_is_trimmed_by_the_clock_where_it_has_no_history(tmp_path: Path) -> None:
    world = Followed(tmp_path, continuous(pushed(), COUNT, online=True), now=day(3))
    world.send(*(visit(1, day(3) - n * HOUR) for n in range(10)))
    before = world.online(1)
    # the window reaches two hours back, from the time an hour ago on
    assert upkeep(clean_up_view, world.view, world)["removed"] == 7
    assert world.online(1) == before == [2]


def test_a_compacted_stream_view_is_rewritten_online_by_its_batch_jobs(tmp_path: Path) -> None:
    both, streamed, batched = visit(1, day(2.45), 1.0), visit(1, day(2.5), 2.0), visit(1, day(2.55), 4.0)
    source = followed(tmp_path, [both, batched])
    source = replace(source, stream_config=replace(source.stream_config, initial_stream_position="trim_horizon"))  # type: ignore[call-arg]
    window = Aggregation("amount", "sum", TimeWindow(14 * HOUR))
    view = live(source, compaction_enabled=True, online=True, aggregations=[window])
    assert (view.feature_names, view.stream_processing_mode) == (("amount_sum_14h",), StreamProcessingMode.CONTINUOUS)
    world = Followed(tmp_path, view, now=day(2.6))
    world.send(both, streamed, visit(2, day(2.5), 8.0))
    assert (world.online(1), world.online(2)) == ([3.0], [8.0])
    world.clock.now = day(3.02)
    world.send(visit(1, day(3.01), 16.0))
    (plan,) = world.workspace.plan()
    tasks = [(task.interval, task.online, task.offline) for task in plan.tasks]
    assert tasks == [(Interval(day(0), day(3)), True, True)]
    materialize(world.workspace, "live")
    # up to the end of the job online is what the history says; what came later is the stream's
    assert (world.online(1), world.online(2)) == ([21.0], [None])
    assert world.offline(1, day(3) - SECOND) == [5.0]


def test_rows_that_the_clock_lets_live_stay(tmp_path: Path) -> None:
    clock = Clock(NOW)
    rows = [visit(1, 10.5), visit(2, 8.0), visit(3, 8.0 - 1 / 24), visit(4, 3.0)]
    workspace = workspace_of(tmp_path, [latest(write_visits(tmp_path, rows), ttl=5 * DAY)], clock)
    materialize(workspace, "newest")
    view, stores = workspace.repo.view("newest"), workspace.stores
    clock.now = day(13)
    done = clean_up_view(view, stores, holder="test", check=lambda: None)
    assert (done["removed"], done["values_after"]) == (0, 3)
    clock.now = day(13) + HOUR
    done = clean_up_view(view, stores, holder="test", check=lambda: None)
    assert (done["removed"], done["values_after"]) == (1, 2)
    handle = workspace.get_feature_view("newest")
    assert handle.get_online_features({"user": 2}).to_dict()["visits"] == 1
    assert stores.coverage(view, "online") == IntervalSet([Interval(day(1), day(11))])


@pytest.mark.parametrize("steps", [0, 1, 3, 5])
def test_a_compaction_that_is_stopped_anywhere_leaves_answers_and_is_done_by_the_next_one(
    tmp_path: Path, steps: int
) -> None:
    rows = [visit(user, 9 + n / 24) for user in (1, 2) for n in range(48)]
    workspace = workspace_of(tmp_path, [totals(write_visits(tmp_path, rows))])
    materialize(workspace, "totals")
    view, stores, handle = workspace.repo.view("totals"), workspace.stores, workspace.get_feature_view("totals")
    before, looks = handle.get_online_features({"user": 1}), 0

    def stop() -> None:
        nonlocal looks
        looks += 1
        if looks > steps:
            raise JobStopped(job_id="stopped")

    with pytest.raises(JobStopped):
        compact_view(view, stores, holder="test", check=stop, patience=NO_PATIENCE)
    assert stores.online_layout(view).tile_us == HOUR // timedelta(microseconds=1)
    assert handle.get_online_features({"user": 1}).to_dict() == before.to_dict()
    done = compact_view(view, stores, holder="test", check=lambda: None, patience=NO_PATIENCE)
    assert (done["laid_out_anew"], done["values_after"]) == (1, 2)
    after = handle.get_online_features({"user": 1})
    assert (after.to_dict(), set(after.statuses.values())) == (before.to_dict(), {PRESENT})


@pytest.mark.parametrize("rows_at_once", [1, 60, 500_000])
def test_a_compaction_in_pieces_of_any_size_changes_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_at_once: int
) -> None:
    monkeypatch.setattr(compaction, "_ROWS_AT_ONCE", rows_at_once)
    rows = [visit(user, 8 + n / 24) for user in (1, 2) for n in range(72)]
    workspace = workspace_of(tmp_path, [totals(write_visits(tmp_path, rows))])
    materialize(workspace, "totals")
    view, handle = workspace.repo.view("totals"), workspace.get_feature_view("totals")
    before = handle.get_online_features({"user": 1}).to_dict()
    done = compact_view(view, workspace.stores, holder="test", check=lambda: None, patience=NO_PATIENCE)
    assert (done["laid_out_anew"], done["values_after"]) == (1, 2)
    assert handle.get_online_features({"user": 1}).to_dict() == before == SUMS


def test_a_sum_that_fits_no_larger_tile_stops_the_compaction_and_changes_nothing(tmp_path: Path) -> None:
    large = 2**62
    rows = [visit(1, 10 + n / 24, None, large if n < 2 else -large) for n in range(4)]
    window = Aggregation("visits", "sum", TimeWindow(2 * DAY), name="sum")
    workspace = workspace_of(tmp_path, [totals(write_visits(tmp_path, rows), aggregations=[window])])
    materialize(workspace, "totals")
    view, handle = workspace.repo.view("totals"), workspace.get_feature_view("totals")
    assert handle.get_online_features({"user": 1}).to_dict() == {"sum": 0}
    done = compact_view(view, workspace.stores, holder="test", check=lambda: None, patience=NO_PATIENCE)
    assert (done["laid_out_anew"], handle.get_online_features({"user": 1}).to_dict()) == (1, {"sum": 0})
    other = tmp_path / "other"
    other.mkdir()
    workspace = workspace_of(other, [totals(write_visits(other, rows[:2]), aggregations=[window])])
    materialize(workspace, "totals")
    with pytest.raises(OnlineTileOverflow, match="does not fit 64 bits"):
        compact_view(view, workspace.stores, holder="test", check=lambda: None, patience=NO_PATIENCE)


def test_a_writer_that_knows_only_the_former_layout_is_refused(tmp_path: Path) -> None:
    workspace = workspace_of(tmp_path, [totals(write_visits(tmp_path, [visit(1, 10.5)]))])
    materialize(workspace, "totals")
    view, stores = workspace.repo.view("totals"), workspace.stores
    former = stores.online_layout(view)
    with stores.online.snapshot(former) as reader:
        compact_view(view, stores, holder="test", check=lambda: None, patience=NO_PATIENCE)
        since, until = (int(day(n).timestamp() * 1e6) for n in (10, 11))
        assert len(reader.read([(1,)], since, until)[0]) == 1
        epoch = reader.epoch
    tiles = _one_tile(former)
    with pytest.raises(OnlineLayoutMismatch):
        stores.online.write(former, tiles, covered=IntervalSet(), epoch=epoch + 1_000_000)
    with pytest.raises(ValueError, match="is in use"):
        stores.online.clear(stores.online_layout(view), epoch=epoch + 1_000_000)


def _one_tile(layout: object) -> object:
    import pyarrow as pa

    from featurekit_dagster.arrow_types import arrow_type
    from featurekit_dagster.stores.online import ANCHOR_TIME, OnlineLayout

    assert isinstance(layout, OnlineLayout)
    columns = {"user": pa.array([1]), ANCHOR_TIME: pa.array([day(10)], pa.timestamp("us", "UTC"))}
    numbers = {Int64: 1, Float64: 1.0}
    for field in layout.value_fields:
        columns[field.name] = pa.array([numbers[field.dtype]], arrow_type(field.dtype))
    return pa.table(columns)
