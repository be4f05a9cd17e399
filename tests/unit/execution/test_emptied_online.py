"""An online store that was emptied behind the ledger's back: no answer is made of a part, and jobs fill it again."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from featurekit_dagster import Aggregation, KafkaConfig, TimeWindow, Workspace
from featurekit_dagster.errors import StreamStateLost
from featurekit_dagster.execution.refill import look_for_gaps, queue_refill
from featurekit_dagster.execution.repair import repair_coverage
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.planning.tasks import ONLINE
from featurekit_dagster.serving.vector import PRESENT, UNKNOWN
from tests.support.clicks import continuous, followed
from tests.support.clock import Clock
from tests.support.followed import Followed
from tests.support.visits import DAY, day, latest, materialize, totals, visit, workspace_of, write_visits

KEY = {"user": 1}
SINCE = day(1) - 3 * DAY
THREE_DAYS = Aggregation("amount", "sum", TimeWindow(3 * DAY), name="sum")


def empty(workspace: Workspace) -> None:
    workspace.stores.online.close()
    shutil.rmtree(workspace.home / "online")


def test_a_job_after_the_loss_covers_no_more_than_it_has_written(tmp_path: Path) -> None:
    clock = Clock(day(4))
    source = write_visits(tmp_path, [visit(1, 1.5 + n, float(n + 1)) for n in range(5)])
    workspace = workspace_of(tmp_path, [totals(source), latest(source)], clock)
    for view in ("totals", "newest"):
        materialize(workspace, view)
    empty(workspace)
    clock.now = day(5)
    handle = workspace.get_feature_view("totals")
    for view in ("totals", "newest"):
        materialize(workspace, view, day(4), day(5))
        assert workspace.stores.coverage(workspace.repo.view(view), ONLINE) == IntervalSet([Interval(day(4), day(5))])
    found = handle.get_online_features(KEY)
    assert found.to_dict() == {"sum_1d": 4.0, "count_3d": None, "visits_3d": None, "mean_3d": None}
    assert set(found.statuses.values()) == {PRESENT, UNKNOWN}
    for view in ("totals", "newest"):
        (plan,) = workspace.plan([view])
        assert {(task.online, task.offline) for task in plan.tasks} == {(True, False)}
        materialize(workspace, view)
    assert handle.get_online_features(KEY).to_dict() == {
        "sum_1d": 4.0,
        "count_3d": 3,
        "visits_3d": 3,
        "mean_3d": 3.0,
    }
    assert workspace.get_feature_view("newest").get_online_features(KEY).to_dict()["amount"] == 4.0


def streamed(folder: Path) -> Followed:
    """Follow a stream whose history of two days is covered by batch jobs, with an event of today."""
    source = followed(folder, [visit(1, when, when) for when in (1.5, 2.5)])
    assert isinstance(source.stream_config, KafkaConfig)
    source = replace(source, stream_config=replace(source.stream_config, initial_stream_position="trim_horizon"))
    world = Followed(folder, continuous(source, THREE_DAYS, online=True))
    world.materialize(SINCE, day(3))
    world.send(visit(1, 3.4, 3.0))
    return world


def test_a_loop_whose_store_was_emptied_says_so_and_writes_nothing(tmp_path: Path) -> None:
    world = streamed(tmp_path)
    assert world.online(1) == [7.0]
    empty(world.workspace)
    with pytest.raises(StreamStateLost, match="featurekit refill-online live"):
        world.send(visit(1, 3.45, 1.0))
    assert world.vector(1).statuses == {"sum": UNKNOWN}
    assert world.workspace.stores.online.checkpoints(world.workspace.stores.online_layout(world.view)) == {}


@pytest.mark.parametrize("repaired_first", [False, True])
def test_what_was_before_the_new_start_of_a_stream_is_planned_again(tmp_path: Path, repaired_first: bool) -> None:
    world = streamed(tmp_path)
    ledger, place = world.workspace.stores.ledger, ("w", "live", 1)
    first = ledger.stream_start(*place)
    assert first is not None
    empty(world.workspace)
    if repaired_first:
        list(repair_coverage([world.view], world.workspace.stores))
        assert ledger.stream_start(*place) is None
    world.clock.now += DAY
    world.take_over()
    world.send()
    assert world.vector(1).statuses == {"sum": UNKNOWN}
    assert ledger.stream_start(*place) == first + DAY
    (plan,) = world.workspace.plan(["live"])
    assert [(task.interval, task.online, task.offline) for task in plan.tasks] == [
        (Interval(SINCE, day(3)), True, False),
        (Interval(day(3), day(4)), True, True),
    ]
    materialize(world.workspace, "live")
    assert world.online(1, day(4.25)) == [1.5 + 2.5 + 3.0]  # the third day's event is the stream's alone
    assert world.vector(1).statuses == {"sum": PRESENT}


def test_a_stream_that_begins_while_a_job_writes_is_told_to_the_ledger_after_it(tmp_path: Path) -> None:
    world = streamed(tmp_path)
    ledger, place = world.workspace.stores.ledger, ("w", "live", 1)
    first = ledger.stream_start(*place)
    assert first is not None
    empty(world.workspace)
    world.clock.now += DAY
    with ledger.lease("batch:w/live", "a job"):
        world.take_over()
        world.send()
        assert ledger.stream_start(*place) == first
        assert world.follower.has_moved
    world.follower.commit()
    assert ledger.stream_start(*place) == first + DAY
    assert not world.workspace.stores.coverage(world.view, ONLINE)


def test_a_refill_before_the_stream_goes_on_brings_all_history(tmp_path: Path) -> None:
    world = streamed(tmp_path)
    empty(world.workspace)
    found = look_for_gaps(world.view, world.workspace.stores)
    assert (found.lost, found.missing) == (True, (Interval(SINCE, day(3)),))
    (job,) = queue_refill(world.view, world.workspace.stores, found.missing)
    assert (job.online, job.offline) == (True, False)
