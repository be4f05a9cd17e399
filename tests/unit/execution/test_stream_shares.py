"""Several loops that follow one stream together: each its own source partitions, and one account of what came twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from featurekit_dagster import AggregationLeadingEdge, FeatureView, KafkaConfig, KinesisConfig
from featurekit_dagster.errors import DeclarationError
from featurekit_dagster.execution import stream_partitions
from featurekit_dagster.execution.stream import run_stream_loop
from featurekit_dagster.execution.stream_follower import StreamFollower, StreamReport
from featurekit_dagster.intervals import to_us
from featurekit_dagster.streams.reading import ENDED, StreamBatch
from featurekit_dagster.streams.sharing import Share, may_begin
from tests.support.clicks import continuous, followed, tiled
from tests.support.followed import Followed, json_of, pushed
from tests.support.stream_lists import ListReader
from tests.support.visits import HOUR, day, visit

NOON = day(3.5)
MINUTE, SECOND = timedelta(minutes=1), timedelta(seconds=1)
ONCE = {"deduplication_columns": ["visits"], "watermark_delay_threshold": 10 * MINUTE}


def loop(world: Followed, names: Sequence[str], others: Sequence[str], piece: int = 1_000) -> StreamFollower:
    """Return one of several loops, which follows some partitions and leaves the others to the others."""
    world.epoch += 1
    reader = ListReader(world.payloads, piece)
    follower = StreamFollower(world.view, reader, world.workspace.stores, {}, world.clock)
    follower.share_with(others)
    follower.join(dict.fromkeys(names, world.epoch))
    follower.commit()
    return follower


def read(follower: StreamFollower) -> StreamReport:
    """Read what there is now and commit it."""
    follower.poll(timedelta(0))
    return follower.report(follower.commit())


def two_loops(folder: Path, view: FeatureView) -> tuple[Followed, StreamFollower, StreamFollower]:
    world = Followed(folder, view, partitions=())
    world.payloads |= {"p/0": [], "p/1": []}
    return world, loop(world, ["p/0"], ["p/1"]), loop(world, ["p/1"], ["p/0"])


# ---- who follows what ------------------------------------------------------------------------------------------------


def test_shares_are_whole_disjoint_even_and_stay_as_they_are_when_partitions_are_added() -> None:
    for count in (1, 2, 3, 5):
        shares = [Share(index, count) for index in range(count)]
        few, many = ([f"topic/{number}" for number in range(most)] for most in (15, 30))
        dealt = [share.of(many) for share in shares]
        assert sorted(sum(dealt, ())) == sorted(many)
        assert {len(part) for part in dealt} == {30 // count}
        assert [share.of(few) for share in shares] == [tuple(n for n in part if n in few) for part in dealt]


def test_a_partition_begins_once_those_it_took_over_from_have_ended() -> None:
    parents = {"child": ["left", "right"]}
    assert not may_begin("child", parents, {"left": ENDED, "right": "7"})
    assert not may_begin("child", parents, {"left": ENDED, "right": None})
    assert may_begin("child", parents, {"left": ENDED, "right": ENDED})
    assert may_begin("child", parents, {"child": None})
    assert may_begin("left", parents, {"left": None})


@pytest.mark.parametrize("wrong", [0, 65, True, 1.5, None])
def test_a_parallelism_that_is_no_number_of_runs_is_refused(wrong: Any) -> None:
    with pytest.raises(DeclarationError, match="parallelism is .*; give a whole number from 1 to 64"):
        KafkaConfig(kafka_bootstrap_servers="b:1", topics="t", parallelism=wrong)
    with pytest.raises(DeclarationError, match="parallelism"):
        KinesisConfig(stream_name="s", region="us-west-2", parallelism=wrong)


# ---- what comes twice ------------------------------------------------------------------------------------------------


def test_an_event_that_comes_again_over_anothers_partition_counts_once(tmp_path: Path) -> None:
    world, first, second = two_loops(tmp_path, continuous(pushed(**ONCE), online=True))
    for name in world.payloads:
        world.payloads[name] += [json_of(visit(1, NOON, 1.0, number)) for number in range(5)]
    assert read(first).duplicates == 0
    assert read(second).duplicates == 5
    assert world.online(1, NOON)[1] == 5


def test_loops_that_commit_the_same_events_at_once_count_them_once(tmp_path: Path) -> None:
    world, *loops = two_loops(tmp_path, continuous(pushed(**ONCE), online=True))
    rows = [visit(1, NOON, 1.0, number) for number in range(300)]
    world.payloads["p/0"] += [json_of(row) for row in rows]
    world.payloads["p/1"] += [json_of(row) for row in rows]
    together = threading.Barrier(2)

    def follow(follower: StreamFollower, found: list[int]) -> None:
        for _ in range(20):
            together.wait()
            found.append(read(follower).duplicates)

    for each in loops:
        each._reader.piece = 15  # type: ignore[attr-defined]
    found: list[list[int]] = [[], []]
    threads = [threading.Thread(target=follow, args=pair) for pair in zip(loops, found, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0][-1] + found[1][-1] == 300
    assert world.online(1, NOON)[1] == 300


def test_marks_stay_for_a_loop_that_is_far_behind(tmp_path: Path) -> None:
    world, first, second = two_loops(tmp_path, tiled(pushed(**ONCE), online=True))
    early = [json_of(visit(1, NOON + number * SECOND, 1.0, number)) for number in range(5)]
    world.payloads["p/0"] += [*early, json_of(visit(1, NOON + HOUR, 1.0, 90)), json_of(visit(1, NOON + HOUR, 1.0, 91))]
    first._reader.piece = 6  # type: ignore[attr-defined]
    assert [read(first).duplicates for _ in range(2)] == [0, 0]
    world.payloads["p/1"] += [*early, json_of(visit(1, NOON, 1.0, 50))]
    report = read(second)
    assert (report.duplicates, report.late) == (5, 0)
    assert world.online(1, NOON + 2 * HOUR)[1] == 8


def test_a_loop_that_says_that_nothing_comes_holds_nobody_back_until_it_says_so_no_more(tmp_path: Path) -> None:
    world, first, second = two_loops(tmp_path, tiled(pushed(**ONCE), online=True))
    world.payloads["p/1"].append(json_of(visit(1, NOON, 1.0, 1)))
    read(second)
    world.clock.now += MINUTE
    assert second.has_moved
    second.commit()
    assert not second.has_moved
    forgotten = []
    for minutes in (11, 12, 40):
        world.payloads["p/0"].append(json_of(visit(1, NOON + minutes * MINUTE, 1.0, 100 + minutes)))
        world.clock.now = NOON + (MINUTE if minutes < 40 else 4 * MINUTE)
        first._lag_seen = float("-inf")
        read(first)
        forgotten.append(first._progress().forgotten_us)
    assert forgotten == [to_us(NOON + MINUTE), to_us(NOON + 2 * MINUTE), to_us(NOON + 2 * MINUTE)]
    world.payloads["p/1"] += [json_of(visit(1, NOON, 1.0, 2)), json_of(visit(1, NOON + 3 * MINUTE, 1.0, 3))]
    assert read(second).late == 1


# ---- what a view knows of the whole stream ---------------------------------------------------------------------------


def test_the_newest_event_of_all_loops_is_the_leading_edge(tmp_path: Path) -> None:
    edge = AggregationLeadingEdge.LATEST_EVENT_TIME
    world, first, second = two_loops(tmp_path, continuous(pushed(), online=True, aggregation_leading_edge=edge))
    world.payloads["p/0"].append(json_of(visit(1, NOON - 30 * MINUTE)))
    read(first)
    assert world.online(1)[1] == 1
    world.payloads["p/1"].append(json_of(visit(2, NOON + HOUR)))
    read(second)
    assert world.online(1)[1] == 0


def test_a_stream_covers_nothing_before_each_loop_has_looked_up_its_partitions(tmp_path: Path) -> None:
    source = followed(tmp_path, [])
    world = Followed(tmp_path, continuous(source, online=True), partitions=())
    world.payloads |= {"p/0": [], "p/1": []}
    first = loop(world, ["p/0"], ["p/1"])
    world.payloads["p/0"].append(json_of(visit(1, NOON)))
    read(first)
    assert first._progress().start_us is None
    world.clock.now = NOON + MINUTE
    second = loop(world, ["p/1"], ["p/0"])
    world.payloads["p/1"].append(json_of(visit(1, NOON)))
    read(second)
    assert second._progress().start_us == to_us(NOON + MINUTE)
    assert world.workspace.snapshot().stream_starts["live"] == NOON + MINUTE


# ---- the loop itself -------------------------------------------------------------------------------------------------


class Resharded(ListReader):
    """A stream some of whose partitions took over from others, which have ended once they were read."""

    families: Mapping[str, Sequence[str]] = {}
    order: list[str]

    def parents(self) -> Mapping[str, Sequence[str]]:
        return self.families

    def poll(self, most: int, timeout: timedelta) -> list[StreamBatch]:
        ended = {parent for parents in self.families.values() for parent in parents}
        found = super().poll(most, timeout)
        self.order.extend(batch.partition for batch in found)
        done = [name for name in ended if name in self._next and self._next[name] == len(self.payloads[name])]
        for name in done:
            del self._next[name]
        known = {batch.partition for batch in found}
        ends = [StreamBatch(partition=name, payloads=(), position=ENDED) for name in done if name not in known]
        return [replace(batch, position=ENDED) if batch.partition in done else batch for batch in found] + ends

    def seek(self, positions: Mapping[str, str | None]) -> None:
        super().seek({name: position for name, position in positions.items() if position != ENDED})


@contextmanager
def running(world: Followed, count: int, make: Callable[[], ListReader], patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run so many loops during the block."""
    patch.setattr(stream_partitions, "SECONDS_BETWEEN_LOOKS", 0.05)
    stop, readers, errors = threading.Event(), [make() for _ in range(count)], []

    def follow(index: int) -> None:
        try:
            share, every = Share(index, count), timedelta(0)
            stores = world.workspace.stores
            run_stream_loop(world.view, readers[index], stores, stop=stop, share=share, commit_every=every)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=follow, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert errors == []


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(12_000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("not within two minutes")


def test_partitions_that_are_added_are_followed_from_their_oldest_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = Followed(tmp_path, tiled(pushed(), online=True), partitions=())
    world.payloads |= {f"p/{number}": [json_of(visit(1, NOON))] for number in range(3)}
    with running(world, 2, lambda: ListReader(world.payloads), monkeypatch):
        wait_until(lambda: world.online(1, NOON + HOUR)[1] == 3)
        world.payloads |= {f"p/{number}": [json_of(visit(1, NOON))] * 10 for number in range(3, 6)}
        wait_until(lambda: world.online(1, NOON + HOUR)[1] == 33)
    layout = world.workspace.stores.online_layout(world.view)
    assert sorted(world.workspace.stores.online.checkpoints(layout)) == sorted(world.payloads)


def test_children_are_followed_after_their_parents_whoever_follows_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Resharded, "order", [], raising=False)
    monkeypatch.setattr(Resharded, "families", {"p/2": ["p/1"], "p/3": ["p/1"], "p/4": ["p/2", "p/3"]})
    world = Followed(tmp_path, tiled(pushed(), online=True), partitions=())
    world.payloads |= {"p/0": [json_of(visit(1, NOON))], "p/1": [json_of(visit(1, NOON))] * 30}
    with running(world, 2, lambda: Resharded(world.payloads, piece=1), monkeypatch):
        wait_until(lambda: world.online(1, NOON + HOUR)[1] > 5)
        more = {f"p/{number}": [json_of(visit(1, NOON))] * 4 for number in (2, 3, 4)}
        world.payloads |= more
        wait_until(lambda: world.online(1, NOON + HOUR)[1] == 31 + 12)
        checkpoints = world.workspace.stores.online.checkpoints(world.workspace.stores.online_layout(world.view))
    assert [checkpoints[name].position for name in ("p/1", "p/2", "p/3")] == [ENDED] * 3
    order = Resharded.order
    for child, parent in (("p/2", "p/1"), ("p/4", "p/3")):  # of the other loop
        assert order.index(child) > max(place for place, name in enumerate(order) if name == parent)


def test_a_loop_without_a_partition_waits_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = Followed(tmp_path, tiled(pushed(), online=True), partitions=())
    world.payloads["p/0"] = [json_of(visit(1, NOON))]
    with running(world, 3, lambda: ListReader(world.payloads), monkeypatch):
        wait_until(lambda: world.online(1, NOON + HOUR)[1] == 1)
        world.payloads["p/1"] = [json_of(visit(1, NOON))]
        wait_until(lambda: world.online(1, NOON + HOUR)[1] == 2)
