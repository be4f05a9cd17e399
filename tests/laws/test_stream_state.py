"""Whatever comes in whatever order, in whatever pieces, with whatever interruptions: online is what the oracle says.

Also if it comes several times, within a watermark that is no wider than it has to be, to one loop or to two.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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
from featurekit_dagster.streams.sharing import Share
from tests.laws.test_reads_agree import agree
from tests.laws.worlds import ORIGINS, SCHEMA, World, build, worlds
from tests.support import oracle
from tests.support.clock import Clock
from tests.support.stream_lists import ListReader, document

EXAMPLES = 1_000 if os.environ.get("FEATUREKIT_SOAK") else 20
LIVES = 5
KINDS = ("stream tiles", "stream rows", "stream events")
SOON = timedelta(milliseconds=1)


class Interrupted(Exception):
    """The loop was killed."""


@dataclass(frozen=True)
class Play:
    """How a world's events come in.

    Args:
        world: What there is; each event once, in the order in which they come.
        seed: What decides about batches, interruptions and the stream's start.
        sent: What each source partition brings, in order.
        delay: How late events may be; None for a stream that forgets nothing and whose events come once.
        loops: How many loops follow it together.
        moments: When online reads happen.
    """

    world: World
    seed: int
    sent: Mapping[str, list[dict[str, Any]]]
    delay: timedelta | None
    loops: int
    moments: tuple[datetime, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """How the stream is declared."""
        if self.delay is None:
            return {}
        return {"watermark_delay_threshold": self.delay, "deduplication_columns": list(SCHEMA)}


@st.composite
def plays(draw: st.DrawFn) -> Play:
    world, again = draw(worlds(kinds=KINDS, origins=ORIGINS[:1])), draw(st.booleans())
    events = draw(st.permutations([_as_json_can(event) for event in world.events]))
    if again:  # what is the same in every column is one event
        events = list({repr(event): event for event in events}.values())
    asked = draw(st.lists(st.sampled_from(world.spine), min_size=2, max_size=3))
    moments = tuple(sorted({row["ts"].replace(tzinfo=UTC) for row in asked}))
    seed = draw(st.integers(0, 1 << 30))
    sent = dealt(events, draw(st.integers(1, 3)))
    delay = repeated(sent, Random(seed)) if again else None
    return Play(replace(world, events=events), seed, sent, delay, draw(st.sampled_from([1, 1, 2])), moments)


def _as_json_can(event: dict[str, Any]) -> dict[str, Any]:
    """Return the event without numbers that JSON has no words for."""
    odd = event["v"] is not None and not math.isfinite(event["v"])
    return {**event, "v": None} if odd else event


def dealt(events: Sequence[dict[str, Any]], partitions: int) -> dict[str, list[dict[str, Any]]]:
    """Return the events dealt to source partitions; those of one user stay in one, and so in order."""
    found: dict[str, list[dict[str, Any]]] = {str(number): [] for number in range(partitions)}
    for event in events:
        found[str(["a", "b", None].index(event["user"]) % partitions)].append(event)
    return found


def repeated(sent: dict[str, list[dict[str, Any]]], random: Random) -> timedelta:
    """Let some events come again, anywhere; return the shortest delay, in seconds, that makes no first one late.

    Of events of one user and time the order may count, so these come again in their own partition, and later.
    """
    lateness = [max(e["ts"] for e in own[: at + 1]) - own[at]["ts"] for own in sent.values() for at in range(len(own))]
    delay = timedelta(seconds=1 + max(lateness, default=timedelta(0)) // timedelta(seconds=1))
    moments = Counter((event["user"], event["ts"]) for own in sent.values() for event in own)
    originals = [(name, event) for name, own in sent.items() for event in own]
    for name, event in random.sample(originals, len(originals) // 2):
        is_alone = moments[event["user"], event["ts"]] == 1
        other = sent[random.choice(sorted(sent)) if is_alone else name]
        first = 0 if is_alone else sent[name].index(event) + 1
        # before what is newer in its partition, it makes nothing late that was not
        newer = [at for at, each in enumerate(other) if each["ts"] >= event["ts"]]
        place = random.randrange(first, len(other) + 1)
        if any(at < place for at in newer) or is_within(other, place, event, delay):
            other.insert(place, event)
    return delay


def is_within(own: Sequence[dict[str, Any]], place: int, event: dict[str, Any], delay: timedelta) -> bool:
    """Tell whether an event may come at a place of a partition without making others late."""
    return all(event["ts"] - each["ts"] < delay for each in own[place:])


@contextmanager
def played(play: Play) -> Iterator[tuple[Any, Clock]]:
    """Bootstrap by a batch job, then play the whole stream with interruptions; give the view to read from."""
    world, random = play.world, Random(play.seed)
    schedule = world.options["batch_schedule"]
    with tempfile.TemporaryDirectory() as name:
        clock = Clock(world.now.replace(tzinfo=UTC))
        workspace = build(world, Path(name), clock, **play.settings)
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
    """Read the stream to its end; now and then all loops are killed and others take over."""
    payloads = {name: [document(event) for event in events] for name, events in play.sent.items()}
    # an event from the far future would be refused
    last = max([clock.now, *(t.replace(tzinfo=UTC) for t in (play.world.now, *(e["ts"] for e in play.world.events)))])
    for epoch in range(1, LIVES + 1):
        loops = []
        for index in range(play.loops):
            mine = Share(index, play.loops).of(payloads)
            reader = ListReader(payloads, piece=random.choice([1, 2, 5, 100]))
            follower = StreamFollower(view, reader, workspace.stores, {}, clock)
            follower.share_with(payloads.keys() - set(mine))
            follower.join(dict.fromkeys(mine, epoch))
            loops.append((follower, reader))
        clock.now = last
        with suppress(Interrupted):
            read_on(loops, random, may_die=epoch < LIVES)
            return


def read_on(loops: list[tuple[StreamFollower, ListReader]], random: Random, *, may_die: bool) -> None:
    """Poll and commit, and perhaps die between two steps."""
    while going := [f for f, reader in loops if any(lag.events for lag in reader.lag()) or f.waiting]:
        if may_die and random.random() < 0.15:
            raise Interrupted
        follower = random.choice(going)
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
