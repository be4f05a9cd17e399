"""Online jobs of the current interval: what a stream no longer had when it was first read comes from the source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from featurekit_dagster import Aggregation, FeatureView, TimeWindow, Workspace
from featurekit_dagster.errors import IntervalNotComplete, PlanError
from featurekit_dagster.execution.open_interval import fill_open_interval
from featurekit_dagster.handles import FeatureViewHandle
from featurekit_dagster.intervals import Interval
from featurekit_dagster.serving.vector import PRESENT, UNKNOWN
from tests.support.clicks import continuous, followed, live, tiled
from tests.support.followed import Followed
from tests.support.visits import DAY, HOUR, day, latest, visit, workspace_of, write_visits

NOON = day(3.5)
ONLINE = {"online": True, "offline": False}
TWO_DAYS = Aggregation("amount", "sum", TimeWindow(2 * DAY), name="sum")
ROWS = [visit(1, day(2.5), 1.0), visit(1, day(3.25), 2.0)]


def begun(folder: Path, declare: Any) -> tuple[Followed, FeatureViewHandle]:
    """Return a view whose stream is read from now on, and whose batch jobs have done what is complete."""
    world = Followed(folder, declare(followed(folder, ROWS), TWO_DAYS, online=True))
    world.materialize(day(1), day(3))
    world.send(visit(1, NOON, 4.0))
    return world, world.workspace.get_feature_view("live")


def fill(view: FeatureView, workspace: Workspace) -> None:
    """Fill the current day online, without a job."""
    fill_open_interval(view, Interval(day(3), day(4)), workspace.stores, lambda: None, "test")


def filled(handle: FeatureViewHandle) -> str:
    """Fill the current day online, in this process; return the state of its job."""
    job_id = handle.trigger_materialization_job(day(3), day(4), **ONLINE)
    with pytest.warns(UserWarning, match="is carried out in this process"):
        return handle.wait_for_materialization_job(job_id).state


@pytest.mark.parametrize("declare", [tiled, continuous])
def test_what_a_stream_had_lost_of_the_current_interval_is_filled(tmp_path: Path, declare: Any) -> None:
    world, _ = begun(tmp_path, declare)
    world.clock.now = NOON + HOUR
    assert set(world.vector(1).statuses.values()) == {UNKNOWN}
    fill(world.view, world.workspace)
    assert (world.online(1), set(world.vector(1).statuses.values())) == ([7.0], {PRESENT})
    assert world.send(visit(1, NOON + HOUR, 8.0)).superseded == 0
    assert world.online(1, NOON + 2 * HOUR) == [15.0]
    fill(world.view, world.workspace)
    assert world.online(1) == [15.0]


def test_it_claims_nothing_and_leaves_the_interval_to_the_job_that_comes_when_it_is_complete(tmp_path: Path) -> None:
    world, handle = begun(tmp_path, tiled)
    world.clock.now = NOON + HOUR
    assert filled(handle) == "SUCCESS"
    (job, *_) = handle.list_materialization_jobs()
    assert (job.job_type, job.online, job.offline) == ("BATCH", True, False)
    world.clock.now = day(4) + HOUR
    (plan,) = world.workspace.plan()
    last = plan.tasks[-1]
    assert (last.interval.start, last.interval.end, last.online) == (day(3), day(4), False)
    world.materialize(day(3), day(4), online=False)
    world.materialize(day(1), day(2), overwrite=True)
    assert set(world.vector(1).statuses.values()) == {PRESENT}
    assert world.online(1, day(4) + HOUR) == [7.0]


def test_before_the_stream_began_it_covers_nothing_in_the_ledger(tmp_path: Path) -> None:
    view = tiled(followed(tmp_path, ROWS), TWO_DAYS, online=True)
    workspace = workspace_of(tmp_path, [view], now=NOON)
    fill(view, workspace)
    (plan,) = workspace.plan()
    assert [task.interval.end for task in plan.tasks] == [day(3)]


@pytest.mark.parametrize(
    ("start", "end", "stores"),
    [
        (day(3), day(4), {"online": True, "offline": True}),
        (day(3), day(4), {"online": True, "offline": False, "overwrite": True}),
        (day(2), day(4), ONLINE),
        (day(3), day(5), ONLINE),
        (day(4), day(5), ONLINE),
    ],
)
def test_nothing_else_may_end_after_now(tmp_path: Path, start: Any, end: Any, stores: dict[str, bool]) -> None:
    world, handle = begun(tmp_path, tiled)
    with pytest.raises(IntervalNotComplete):
        handle.trigger_materialization_job(start, end, **stores)
    assert [job.job_type for job in handle.list_jobs()].count("BATCH") == 1


def test_only_streams_have_such_jobs(tmp_path: Path) -> None:
    batch = latest(write_visits(tmp_path, ROWS), online=True)
    views: list[FeatureView] = [batch, live(followed(tmp_path, ROWS), offline=True)]
    workspace = workspace_of(tmp_path, views, now=NOON)
    for view in views:
        with pytest.raises(PlanError):
            workspace.get_feature_view(view.name).trigger_materialization_job(day(3), day(4), **ONLINE)
