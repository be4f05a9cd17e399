"""As of when the stores of views of other kinds are compared: streams, feature tables, newest rows, wildcard keys."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from featurekit_dagster import Aggregation, AggregationLeadingEdge, Entity, Field, Int64, TimeWindow, Workspace
from featurekit_dagster.engine.local import compute_stored
from featurekit_dagster.errors import UnsettledView
from featurekit_dagster.execution.materialize import run_tasks
from featurekit_dagster.execution.online_rows import online_rows
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.planning.planner import split_tasks
from featurekit_dagster.serving.consistency import ConsistencyReport, check_consistency
from tests.support.clicks import continuous, followed, live, tiled
from tests.support.followed import Followed, pushed
from tests.support.scores import FIRST, Table, rows
from tests.support.visits import DAY, MICROSECOND, day, latest, materialize, totals, visit, workspace_of
from tests.support.visits import write_visits as written

TWO_DAYS = Aggregation("amount", "sum", TimeWindow(2 * DAY), name="sum")


def checked(world: Any, **options: Any) -> ConsistencyReport:
    return check_consistency(world.view, world.workspace.stores, **options)


def streamed(folder: Path, declare: Any, *more: Any, **changes: Any) -> Followed:
    """Return a world whose batch side has two visits, bootstrapped up to day 3; the second comes by the stream too."""
    source = followed(folder, [visit(1, day(2.25), 1.0), visit(2, day(3.25), 2.0)])
    config = replace(source.stream_config, initial_stream_position="trim_horizon")
    world = Followed(folder, declare(replace(source, stream_config=config), *more, online=True, **changes), day(3))
    world.materialize(day(-1), day(3))
    world.clock.now = day(4.5)
    return world


@pytest.mark.parametrize(
    ("declare", "edge"),
    [(tiled, AggregationLeadingEdge.WALL_CLOCK_TIME), (continuous, AggregationLeadingEdge.LATEST_EVENT_TIME)],
)
def test_a_stream_view_is_compared_as_of_the_end_of_its_history(tmp_path: Path, declare: Any, edge: Any) -> None:
    world = streamed(tmp_path, declare, TWO_DAYS, aggregation_leading_edge=edge)
    world.send(visit(2, day(3.25), 2.0), visit(3, day(4.25), 9.0))
    at = {tiled: day(3), continuous: day(3) - MICROSECOND}
    assert (checked(world).time, checked(world).is_consistent) == (at[declare], True)
    world.materialize(day(3), day(4), online=False)
    report = checked(world)
    assert (report.time, report.is_consistent, report.keys) == (at[declare] + DAY, True, 2)


def test_an_event_that_the_stream_lost_or_counted_otherwise_is_found(tmp_path: Path) -> None:
    world = streamed(tmp_path, tiled, TWO_DAYS)
    world.send(visit(1, day(3.5), 5.0))
    world.materialize(day(3), day(4), online=False)
    (found,) = checked(world).features
    assert (found.mismatched, found.missing, found.extra) == (1, 1, 0)


def test_newest_rows_that_the_stream_has_replaced_are_left_out(tmp_path: Path) -> None:
    world = streamed(tmp_path, live)
    world.send(visit(1, day(4.25), 7.0))
    world.materialize(day(3), day(4), online=False)
    report = checked(world)
    assert (report.keys, report.keys_newer) == (1, 1)
    assert {feature.missing for feature in report.features} == {1}


def test_a_stream_without_history_has_nothing_to_be_compared_with(tmp_path: Path) -> None:
    world = Followed(tmp_path, continuous(pushed(), online=True))
    world.send(visit(1, world.clock.now, 2.0))
    assert checked(world).note == "The stream has no batch side, so there is no history to compare with."


def test_a_feature_table_is_compared_as_of_now(tmp_path: Path) -> None:
    table = Table(tmp_path, ttl=10 * DAY)
    assert checked(table).keys == 0
    table.handle.ingest(rows(("a", FIRST, 1.0), ("b", FIRST + 25 * DAY, 2.0), ("b", FIRST + 24 * DAY, 3.0)))
    report = checked(table)
    assert (report.time, report.is_consistent, report.keys) == (table.clock.now, True, 1)
    layout = table.stores.online_layout(table.view)
    other = rows(("b", FIRST + 26 * DAY, 8.0), ("c", FIRST + 26 * DAY, 8.0)).rename_columns(
        ["user_id", "_timestamp", "score", "rank"]
    )
    table.stores.online.write(layout, other, covered=IntervalSet(), epoch=2**40)
    assert [(each.mismatched, each.extra) for each in checked(table).features] == [(1, 1), (1, 1)]


def test_rows_of_an_interval_that_is_not_visible_yet_are_compared_too(tmp_path: Path) -> None:
    source = written(tmp_path, [visit(1, 1.5, 1.0), visit(1, 2.5, 2.0)], delay=timedelta(hours=30))
    workspace = workspace_of(tmp_path, [latest(source, ttl=DAY)], now=day(3))
    materialize(workspace, "newest", day(1), day(3))
    report = check_consistency(workspace.repo.view("newest"), workspace.stores)
    assert (report.time, report.is_consistent, report.keys) == (day(3) + timedelta(hours=30), True, 1)


def test_keys_that_a_read_may_leave_out_are_drawn_whole(tmp_path: Path) -> None:
    entities = [Entity(name="user", join_keys=[Field("user", Int64)]), Entity(name="page", join_keys=["page"])]
    source = written(tmp_path, [visit(n, 1.5, float(n)) for n in range(6)])
    view = totals(source, entities=entities, online_serving_index=["page"])
    workspace = workspace_of(tmp_path, [view], now=day(3))
    materialize(workspace, "totals")
    report = check_consistency(view, workspace.stores)
    assert (report.is_consistent, report.keys) == (True, 6)


def test_differences_while_a_job_writes_the_view_mean_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featurekit_dagster.serving.consistency._NAP_SECONDS", 0.0)
    view = totals(written(tmp_path, [visit(1, 1.5, 1.0)]))
    workspace = workspace_of(tmp_path, [view], now=day(4))
    materialize(workspace, "totals", day(1), day(2))
    stores = workspace.stores
    layout = stores.online_layout(view)
    with stores.online.snapshot(layout) as snapshot:
        covered, epoch = snapshot.coverage, snapshot.epoch
    stores.online.write(layout, _other_tiles(workspace), covered=covered, epoch=epoch)
    assert not check_consistency(view, stores).is_consistent
    (task,) = split_tasks(view, Interval(day(2), day(3)), online=True, offline=True)
    met: list[str] = []

    def while_it_runs(step: str, _: Any) -> None:
        if step == "claimed":
            with pytest.raises(UnsettledView):
                check_consistency(view, stores)
            met.append(step)

    list(run_tasks(view, [task], stores, trigger="manual", on_step=while_it_runs))
    assert met == ["claimed"]


def _other_tiles(workspace: Workspace) -> pa.Table:
    """Return the tiles of the first day, with another sum."""
    view, first = workspace.repo.view("totals"), Interval(day(1), day(2))
    tiles = compute_stored(view, first)
    place = tiles.column_names.index("sum_amount")
    other = tiles.set_column(place, "sum_amount", pc.add(tiles["sum_amount"], 1.0))
    return online_rows(view, other, first, workspace.now())
