"""Whatever comes in whatever order, in whatever pieces, with whatever interruptions: online is what the oracle says."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from featurekit_dagster import FeatureView, Workspace
from featurekit_dagster.execution.materialize import run_tasks
from featurekit_dagster.execution.stream_follower import StreamFollower
from featurekit_dagster.intervals import Interval
from featurekit_dagster.planning.planner import split_tasks
from featurekit_dagster.serving.vector import UNKNOWN
from tests.laws.test_reads_agree import agree
from tests.laws.worlds import ORIGINS, World, build, worlds
from tests.support import oracle
from tests.support.clock import Clock
from tests.support.stream_lists import ListReader, document

EXAMPLES = 400 if os.environ.get("FEATUREKIT_SOAK") else 25
LIVES = 5
KINDS = ("stream tiles", "stream rows", "stream events")
SOON = timedelta(milliseconds=1)


class Interrupted(Exception):
    """The loop was killed."""


@dataclass(frozen=True)
class Play:
    """How a world's events come in.

    Args:
        world: What there is; its events are in the order in which they come.
        seed: What decides about batches, interruptions and the stream's start.
        partitions: Number of source partitions.
        moments: When online reads happen.
    """

    world: World
    seed: int
    partitions: int
    moments: tuple[datetime, ...]


@st.composite
def plays(draw: st.DrawFn) -> Play:
    world = draw(worlds(kinds=KINDS, origins=ORIGINS[:1]))
    events = draw(st.permutations([_as_json_can(event) for event in world.events]))
    asked = draw(st.lists(st.sampled_from(world.spine), min_size=2, max_size=3))
    moments = tuple(sorted({row["ts"].replace(tzinfo=UTC) for row in asked}))
    return Play(replace(world, events=events), draw(st.integers(0, 1 << 30)), draw(st.integers(1, 3)), moments)


def _as_json_can(event: dict[str, Any]) -> dict[str, Any]:
    """Return the event without numbers that JSON has no words for."""
    odd = event["v"] is not None and not math.isfinite(event["v"])
    return {**event, "v": None} if odd else event


def dealt(play: Play) -> dict[str, list[bytes]]:
    """Return the events dealt to source partitions; those of one user stay in one, and so in order."""
    found: dict[str, list[bytes]] = {str(number): [] for number in range(play.partitions)}
    for event in play.world.events:
        found[str(["a", "b", None].index(event["user"]) % play.partitions)].append(document(event))
    return found


@contextmanager
def played(play: Play) -> Iterator[tuple[Any, Clock]]:
    """Bootstrap by a batch job, then play the whole stream with interruptions; give the view to read from."""
    world, random = play.world, Random(play.seed)
    schedule = world.options["batch_schedule"]
    with tempfile.TemporaryDirectory() as name:
        clock = Clock(world.now.replace(tzinfo=UTC))
        workspace = build(world, Path(name), clock)
        view = workspace.repo.view("view")
        assert view.materialization_start is not None
        clock.now = view.materialization_start + random.randrange(0, 8) * schedule + random.choice([SOON, schedule / 3])
        bootstrap(view, workspace, view.materialization_start, oracle.floor(clock.now, schedule))
        follow(view, workspace, clock, play, random)
        yield workspace.get_feature_view("view"), clock
        workspace.stores.online.close()


def bootstrap(view: FeatureView, workspace: Workspace, start: datetime, end: datetime) -> None:
    """Write the intervals before the stream's start by a batch job."""
    if start < end:
        tasks = split_tasks(view, Interval(start, end), online=True, offline=True)
        list(run_tasks(view, tasks, workspace.stores, trigger="backfill"))


def follow(view: FeatureView, workspace: Workspace, clock: Clock, play: Play, random: Random) -> None:
    """Read the stream to its end; now and then a loop is killed and another one takes over."""
    payloads, epoch = dealt(play), 0
    last = max([clock.now, play.world.now.replace(tzinfo=UTC)])
    while True:
        epoch += 1
        reader = ListReader(payloads, piece=random.choice([1, 2, 5, 100]))
        follower = StreamFollower(view, reader, workspace.stores, dict.fromkeys(payloads, epoch), clock)
        follower.begin()
        clock.now = last
        try:
            read_on(follower, reader, random, may_die=epoch < LIVES)
        except Interrupted:
            continue
        return


def read_on(follower: StreamFollower, reader: ListReader, random: Random, *, may_die: bool) -> None:
    """Poll and commit, and perhaps die between two steps."""
    while any(lag.events for lag in reader.lag()) or follower.waiting:
        if may_die and random.random() < 0.15:
            raise Interrupted
        follower.poll(timedelta(0))
        if random.random() < 0.6:
            follower.commit()


def seen_at(play: Play, moment: datetime) -> datetime:
    """Return when a read sees what a spine row at this moment does: of rows, the newest alone is stored."""
    if isinstance(play.world.judged, oracle.AggregateView):
        return moment
    return max([moment, *(event["ts"].replace(tzinfo=UTC) for event in play.world.events)])


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(play=plays())
def test_online_is_the_oracle_whatever_the_order_the_batches_and_the_interruptions(play: Play) -> None:
    world = play.world
    with played(play) as (handle, clock):
        for moment in play.moments:
            clock.now = seen_at(play, moment)
            for key in world.distinct_keys():
                vector = handle.get_online_features(key)
                theirs = oracle.answers_at(world.events, key, clock.now, world.judged)
                note((clock.now, key, list(vector.to_dict().values()), theirs))
                assert UNKNOWN not in vector.statuses.values()
                assert agree(world, key, list(vector.to_dict().values()), theirs)
