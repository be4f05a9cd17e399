"""A stream followed online: what counts, what does not, and what a read sees of it."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from featurekit_dagster import (
    Aggregation,
    AggregationLeadingEdge,
    Entity,
    FeatureView,
    Field,
    StreamSource,
    String,
    TimeWindow,
    stream_feature_view,
)
from featurekit_dagster.errors import LeaseHeld, LeaseLost
from featurekit_dagster.execution.materialize import run_tasks
from featurekit_dagster.execution.stream import run_stream_loop
from featurekit_dagster.execution.stream_follower import StreamFollower
from featurekit_dagster.intervals import Interval
from featurekit_dagster.orchestration.materializations import covered_everywhere
from featurekit_dagster.serving.vector import MISSING_DATA, PRESENT, UNKNOWN
from tests.support.clicks import CONTINUOUS, continuous, followed, live, tiled
from tests.support.followed import Followed, json_of, pushed
from tests.support.stream_lists import ListReader
from tests.support.visits import DAY, FIELDS, FIRST, HOUR, MICROSECOND, USER, day, visit

NOON = day(3.5)
MINUTE = timedelta(minutes=1)


# ---- what a read sees ------------------------------------------------------------------------------------------------


def test_a_continuous_view_sees_an_event_at_its_own_instant(tmp_path: Path) -> None:
    world = Followed(tmp_path, continuous(pushed(), online=True))
    world.send(visit(1, NOON, 2.0), visit(1, NOON - MINUTE, 3.0))
    assert world.online(1, NOON - MICROSECOND) == [3.0, 1]
    assert world.online(1, NOON) == [5.0, 2]
    assert world.vector(1).effective_times == [NOON, NOON]
    assert world.online(1, NOON - MINUTE + HOUR - MICROSECOND) == [5.0, 2]
    assert world.online(1, NOON - MINUTE + HOUR) == [2.0, 1]
    assert world.online(1, NOON + HOUR) == [None, 0]
    assert set(world.vector(2).statuses.values()) == {MISSING_DATA}


def test_an_interval_view_serves_whole_tiles_only(tmp_path: Path) -> None:
    world = Followed(tmp_path, tiled(pushed(), online=True))
    world.send(visit(1, NOON + MINUTE, 2.0))
    assert world.online(1, NOON + HOUR - MICROSECOND) == [None, 0]
    assert world.online(1, NOON + HOUR) == [2.0, 1]
    world.send(visit(1, NOON + 2 * MINUTE, 3.0))
    assert world.online(1, NOON + HOUR + MINUTE) == [5.0, 2]
    assert world.vector(1).effective_times == [NOON + HOUR, NOON + HOUR]


def test_the_worked_case_of_the_leading_edge(tmp_path: Path) -> None:
    midnight = day(3)
    times = [timedelta(minutes=m) for m in (92, 115, 130, 151)]
    found = {}
    for edge in AggregationLeadingEdge:
        world = Followed(tmp_path / edge.name, continuous(pushed(), online=True, aggregation_leading_edge=edge))
        world.send(*(visit(1, midnight + time) for time in times))
        found[edge.name] = world.online(1, midnight + 3 * HOUR)[1]
    assert found == {"WALL_CLOCK_TIME": 2, "LATEST_EVENT_TIME": 4}


def test_the_newest_row_is_seen_at_once_and_lives_for_its_ttl(tmp_path: Path) -> None:
    world = Followed(tmp_path, live(pushed(), online=True, ttl=HOUR))
    world.send(visit(1, NOON, 2.0), visit(1, NOON - MINUTE, 1.0))
    assert world.online(1, NOON)[0] == 2.0
    assert world.online(1, NOON + HOUR - MICROSECOND)[0] == 2.0
    assert world.online(1, NOON + HOUR)[0] is None
    world.send(visit(1, NOON, 7.0))
    assert world.online(1, NOON)[0] == 7.0


def test_a_hole_before_the_stream_began_is_unknown_until_batch_jobs_fill_it(tmp_path: Path) -> None:
    rows = [visit(1, day(2.5), 1.0)]
    world = Followed(tmp_path, continuous(_from_start(followed(tmp_path, rows)), COUNT_OF_TWO_DAYS, online=True))
    world.send(visit(1, NOON, 1.0))
    assert world.online(1, NOON) == [None]
    assert set(world.vector(1).statuses.values()) == {UNKNOWN}
    world.materialize(day(1), day(3))
    assert world.online(1, NOON) == [1]
    assert world.online(1, NOON - MICROSECOND) == [1]
    assert set(world.vector(1).statuses.values()) == {PRESENT}


COUNT_OF_TWO_DAYS = Aggregation("visits", "count", TimeWindow(DAY), name="count")


def _from_start(source: StreamSource, **settings: Any) -> StreamSource:
    config = replace(source.stream_config, initial_stream_position="trim_horizon", **settings)  # type: ignore[call-arg]
    return replace(source, stream_config=config)


# ---- batch and stream ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("declare", [tiled, continuous])
def test_an_event_late_for_the_batch_job_is_online_and_not_offline_until_an_overwrite(
    tmp_path: Path, declare: Any
) -> None:
    early, late = visit(1, day(2.25), 1.0), visit(1, day(2.5), 2.0)
    window = Aggregation("amount", "sum", TimeWindow(2 * DAY), name="sum")
    world = Followed(tmp_path, declare(_from_start(followed(tmp_path, [early])), window, online=True))
    world.materialize(day(-1), day(3))
    assert world.send(early, late).superseded == 1
    assert (world.online(1, NOON), world.offline(1, day(3) - MICROSECOND)) == ([3.0], [1.0])
    followed(tmp_path, [early, late])
    world.materialize(day(2), day(3), online=False, overwrite=True)
    assert (world.online(1, NOON), world.offline(1, day(3) - MICROSECOND)) == ([3.0], [3.0])
    followed(tmp_path, [late])
    world.materialize(day(2), day(3), overwrite=True)
    assert (world.online(1, NOON), world.offline(1, day(3) - MICROSECOND)) == ([2.0], [2.0])


@pytest.mark.parametrize("declare", [tiled, continuous])
def test_an_event_that_the_stream_drops_as_late_is_offline_where_the_batch_source_has_it(
    tmp_path: Path, declare: Any
) -> None:
    newest, late = visit(1, day(3.25), 1.0), visit(1, day(3.125), 2.0)
    source = _from_start(followed(tmp_path, [newest, late]), watermark_delay_threshold=10 * MINUTE)
    window = Aggregation("amount", "sum", TimeWindow(DAY), name="sum")
    world = Followed(tmp_path, declare(source, window, online=True))
    world.materialize(day(0), day(3))
    world.send(newest)
    assert world.send(late).late == 1
    world.clock.now = day(4)
    world.materialize(day(3), day(4), online=False)
    last = day(4) - MICROSECOND
    assert (world.online(1, last), world.offline(1, last)) == ([1.0], [3.0])
    world.clock.now = day(4)
    world.materialize(day(3), day(4), overwrite=True)
    assert world.online(1, last) == [3.0]


def test_a_commit_writes_a_tile_once_however_many_events_it_has(tmp_path: Path) -> None:
    world = Followed(tmp_path, tiled(pushed(), online=True))
    events = [
        visit(user, NOON - HOUR * tile - at * MINUTE) for user in (1, 2) for tile in (1, 2, 3) for at in range(10)
    ]
    assert world.send(*events).rows_written == 2 * 4  # the first event of each tile is at its beginning
    assert world.send(visit(1, NOON - HOUR)).rows_written == 1


def test_a_bootstrap_after_the_stream_began_keeps_what_only_the_stream_has(tmp_path: Path) -> None:
    both, streamed = visit(1, day(2.25), 1.0), visit(1, day(2.5), 2.0)
    window = Aggregation("amount", "sum", TimeWindow(2 * DAY), name="sum")
    world = Followed(tmp_path, tiled(_from_start(followed(tmp_path, [both])), window, online=True))
    world.send(both, streamed)
    world.materialize(day(1), day(3))
    assert world.online(1, NOON) == [3.0]


def test_batch_jobs_are_planned_online_only_up_to_the_streams_start(tmp_path: Path) -> None:
    world = Followed(tmp_path, live(_from_start(followed(tmp_path, [visit(1, day(2.5))])), online=True))
    (plan,) = world.workspace.plan()
    assert [(task.interval, task.online) for task in plan.tasks] == [(Interval(day(1), day(3)), True)]
    world.clock.now = day(5.5)
    (plan,) = world.workspace.plan()
    tasks = [(task.interval, task.online) for task in plan.tasks]
    assert tasks == [(Interval(day(1), day(3)), True), (Interval(day(3), day(5)), False)]
    list(run_tasks(world.view, plan.tasks, world.workspace.stores, trigger="manual"))
    assert covered_everywhere(world.view, world.workspace.stores).covers(Interval(day(1), day(5)))


def test_batch_beats_stream_at_equal_times(tmp_path: Path) -> None:
    source = _from_start(followed(tmp_path, [visit(1, day(2.5), 1.0)]))
    world = Followed(tmp_path, live(source, online=True))
    world.send(visit(1, day(2.5), 2.0))
    world.materialize(day(1), day(3))
    assert world.online(1)[0] == 1.0
    assert world.send(visit(1, day(2.5), 3.0)).superseded == 1
    assert world.online(1)[0] == 1.0


# ---- what does not count ---------------------------------------------------------------------------------------------


def test_events_behind_the_watermark_are_dropped_and_counted_and_newer_ones_never(tmp_path: Path) -> None:
    world = Followed(tmp_path, continuous(pushed(watermark_delay_threshold=10 * MINUTE), online=True))
    world.send(visit(1, NOON))
    edge = NOON - 10 * MINUTE
    report = world.send(visit(1, edge), visit(1, edge + MICROSECOND))
    assert (report.events, report.late, report.watermark) == (3, 1, edge)
    assert world.online(1, NOON)[1] == 2


def test_the_watermark_survives_a_restart(tmp_path: Path) -> None:
    world = Followed(tmp_path, continuous(pushed(watermark_delay_threshold=10 * MINUTE), online=True))
    world.send(visit(1, NOON))
    world.take_over()
    assert world.send(visit(1, NOON - HOUR)).late == 1


def test_after_a_day_of_downtime_a_partition_far_behind_makes_nothing_late(tmp_path: Path) -> None:
    source = pushed(watermark_delay_threshold=10 * MINUTE)
    names = ("a", "b", "c", "d")
    world = Followed(tmp_path, continuous(source, COUNT_OF_TWO_DAYS, online=True), partitions=names)
    for name in names:
        world.send(visit(1, NOON - HOUR), partition=name)
    world.clock.now = NOON + DAY
    for number in range(24):
        for name in names[:3]:
            world.payloads[name].append(json_of(visit(2, NOON + number * HOUR)))
        # the fourth has ten times as much to read, and is a day behind when the others are done
        world.payloads["d"] += [json_of(visit(3, NOON + number * HOUR + at * MINUTE)) for at in range(10)]
    follower = world.take_over(piece=10)
    while any(lag.events for lag in world.reader.lag()) or follower.waiting:
        follower.poll(timedelta(0))
        follower.commit()
        world.clock.now += timedelta(seconds=1)
    report = follower.report(0)
    assert (report.events, report.late) == (4 + 24 * 13, 0)


def test_events_that_come_twice_count_once_over_commits_and_restarts(tmp_path: Path) -> None:
    source = pushed(deduplication_columns=["visits"], watermark_delay_threshold=10 * MINUTE)
    world = Followed(tmp_path, continuous(source, online=True))
    report = world.send(visit(1, NOON, 1.0, 1), visit(1, NOON, 1.0, 1), visit(1, NOON, 1.0, 2))
    assert report.duplicates == 1
    world.take_over()
    assert world.send(visit(1, NOON, 1.0, 2), visit(1, NOON, 1.0, 3)).duplicates == 2
    assert world.online(1, NOON)[1] == 3


def test_marks_of_events_are_forgotten_behind_the_watermark(tmp_path: Path) -> None:
    source = pushed(deduplication_columns=["visits"], watermark_delay_threshold=MINUTE)
    world = Followed(tmp_path, continuous(source, online=True))
    for minute in range(5):
        world.send(*(visit(1, NOON + minute * MINUTE, 1.0, 10 * minute + at) for at in range(10)))
    store, layout = world.workspace.stores.online, world.workspace.stores.online_layout(world.view)
    with store._view(layout).environment._handle(create=False).begin() as transaction:  # type: ignore[attr-defined]
        marks = [key for key, _ in transaction.cursor() if b"seen/" in key]
    assert len(marks) == 10


def test_events_that_cannot_be_rows_become_dead_letters_and_hold_up_nothing(tmp_path: Path) -> None:
    world = Followed(tmp_path, continuous(pushed(), online=True))
    good = visit(1, NOON)
    wrong = [b"no json", json_of(good, visits=1.9), json_of(good, more=1), json_of(good, ts="2199-01-01T00:00:00Z")]
    report = world.send(wrong[0], good, *wrong[1:], good)
    assert (report.events, report.refused) == (6, 4)
    assert world.online(1, NOON)[1] == 2
    letters = world.workspace.stores.dead_letters(world.view).read().to_pylist()
    assert [letter["payload"] for letter in letters] == wrong
    assert [letter["number"] for letter in letters] == [0, 1, 2, 3]
    assert letters[1]["reason"].startswith("visits is no Int64")
    world.take_over()
    assert world.send(good).refused == 4


def test_an_event_for_which_the_transformation_fails_becomes_a_dead_letter(tmp_path: Path) -> None:
    def half(visits: Any) -> Any:
        return {**visits, "visits": 10 // visits["visits"]}

    declared = live_function(half, pushed())
    world = Followed(tmp_path, declared)
    rows = [visit(user, NOON, 1.0, user % 7) for user in range(20)]
    report = world.send(*rows)
    assert report.refused == 3
    assert [world.online(user)[1] for user in (1, 7, 19)] == [10, None, 2]
    reasons = {letter["reason"] for letter in world.workspace.stores.dead_letters(declared).read().to_pylist()}
    assert reasons == {"live: the transformation raised ZeroDivisionError"}


def live_function(function: Any, source: StreamSource) -> FeatureView:
    made = stream_feature_view(
        name="live",
        mode="python",
        source=source,
        entities=[USER],
        schema=FIELDS,
        batch_schedule=DAY,
        feature_start_time=FIRST,
        online=True,
        stream_processing_mode=CONTINUOUS,
    )(function)
    assert isinstance(made, FeatureView)
    return made


def test_a_row_that_its_tile_cannot_hold_becomes_a_dead_letter(tmp_path: Path) -> None:
    total = Aggregation("visits", "sum", TimeWindow(HOUR), name="sum")
    world = Followed(tmp_path, tiled(pushed(), total, online=True))
    large = (1 << 63) - 1
    assert world.send(visit(1, NOON, 1.0, large), visit(2, NOON, 1.0, 1)).refused == 0
    assert world.send(visit(1, NOON, 1.0, 1), visit(2, NOON, 1.0, 1)).refused == 1
    assert [world.online(user, NOON + HOUR) for user in (1, 2)] == [[large], [2]]
    (letter,) = world.workspace.stores.dead_letters(world.view).read().to_pylist()
    assert letter["reason"] == "the sum of integers of its tile does not fit 64 bits"
    assert b'"user": 1' in letter["payload"]


def test_a_key_that_cannot_be_stored_becomes_a_dead_letter(tmp_path: Path) -> None:
    entities = [Entity(name="page", join_keys=[Field("page", String)]), USER]
    wild = {"entities": entities, "online_serving_index": ["page"], "online": True}
    world = Followed(tmp_path, live(pushed(), schema=[*FIELDS[1:], FIELDS[0]], **wild))
    good = visit(1, NOON)
    report = world.send(good, json_of(good, page="x" * 500), json_of(good, user=2))
    assert (report.events, report.refused) == (3, 1)
    handle = world.workspace.get_feature_view("live")
    assert handle.get_online_features({"page": "home", "user": 2}).to_dict() == {"amount": 1.0, "visits": 1}
    (letter,) = world.workspace.stores.dead_letters(world.view).read().to_pylist()
    assert "more than" in letter["reason"] or "400" in letter["reason"]


# ---- who may write ---------------------------------------------------------------------------------------------------


def test_a_loop_that_was_overtaken_writes_nothing_more(tmp_path: Path) -> None:
    world = Followed(tmp_path, continuous(pushed(), online=True))
    former = world.follower
    world.payloads["0"].append(json_of(visit(1, NOON)))
    former.poll(timedelta(0))
    world.take_over()
    with pytest.raises(LeaseLost):
        former.commit()
    world.follower.poll(timedelta(0))
    world.follower.commit()
    assert world.online(1, NOON)[1] == 1


def test_loops_of_other_partitions_write_side_by_side(tmp_path: Path) -> None:
    world = Followed(tmp_path, tiled(pushed(), online=True), partitions=("a", "b"))
    loops = []
    for name in ("a", "b"):
        reader = ListReader({name: [json_of(visit(1, NOON))] * 10}, piece=1)
        follower = StreamFollower(world.view, reader, world.workspace.stores, {name: 9}, world.clock)
        follower.begin()
        loops.append(follower)
    for _ in range(10):
        for follower in loops:
            follower.poll(timedelta(0))
            follower.commit()
    assert world.online(1, NOON + HOUR)[1] == 20


def test_a_loop_commits_what_it_has_polled_when_it_is_told_to_stop(tmp_path: Path) -> None:
    world = Followed(tmp_path, tiled(pushed(), online=True))
    stop, reports = threading.Event(), []
    reader = ListReader({"0": [json_of(visit(1, NOON))] * 50}, piece=7)

    def follow() -> None:
        run_stream_loop(world.view, reader, world.workspace.stores, stop=stop, on_report=reports.append)

    thread = threading.Thread(target=follow)
    world.epoch = 0
    thread.start()
    while not (lag := reader.lag()) or lag[0].events:
        stop.wait(0.01)
    with pytest.raises(LeaseHeld):
        run_stream_loop(world.view, reader, world.workspace.stores, stop=stop)
    stop.set()
    thread.join()
    assert [report.events for report in reports] == [0, 50]
    assert world.online(1, NOON + HOUR)[1] == 50
