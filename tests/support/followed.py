"""A stream view with its stream, which tests feed by hand, and what reads of it answer."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from featurekit_dagster import FeatureView, PushConfig, StreamSource, Workspace
from featurekit_dagster.execution.materialize import run_tasks
from featurekit_dagster.execution.stream_follower import StreamFollower, StreamReport
from featurekit_dagster.intervals import Interval
from featurekit_dagster.planning.planner import split_tasks
from tests.support.clock import Clock
from tests.support.stream_lists import ListReader, document
from tests.support.visits import FIELDS, Row, day

NOON = day(3.5)


def pushed(**settings: Any) -> StreamSource:
    """A push source without a batch side."""
    return StreamSource(name="visits", stream_config=PushConfig(timestamp_field="ts", **settings), schema=FIELDS)


def json_of(row: Row, **changes: Any) -> bytes:
    return document(dict(zip((field.name for field in FIELDS), row, strict=True)) | changes)


class Followed:
    """A workspace with one stream view, and a stream that tests add to."""

    def __init__(
        self, folder: Path, view: FeatureView, now: datetime = NOON, partitions: Sequence[str] = ("0",)
    ) -> None:
        self.clock, self.view = Clock(now), view
        self.workspace = Workspace("w", [view], home=folder / "home", clock=self.clock)
        self.payloads: dict[str, list[bytes]] = {name: [] for name in partitions}
        self.epoch = 0
        self.follower = self.take_over()

    def take_over(self, piece: int = 1_000) -> StreamFollower:
        """Return the loop that goes on from the last commit."""
        self.epoch += 1
        self.reader, epochs = ListReader(self.payloads, piece), dict.fromkeys(self.payloads, self.epoch)
        self.follower = StreamFollower(self.view, self.reader, self.workspace.stores, epochs, self.clock)
        self.follower.begin()
        self.follower.commit()
        return self.follower

    def send(self, *rows: Row | bytes, partition: str = "0") -> StreamReport:
        """Let rows come in and commit them."""
        self.payloads[partition] += [row if isinstance(row, bytes) else json_of(row) for row in rows]
        self.follower.poll(timedelta(0))
        return self.follower.report(self.follower.commit())

    def materialize(self, start: datetime, end: datetime, **changes: bool) -> None:
        wanted = {"online": True, "offline": True} | changes
        tasks = split_tasks(self.view, Interval(start, end), **wanted)
        list(run_tasks(self.view, tasks, self.workspace.stores, trigger="manual"))

    def online(self, user: int | None, now: datetime | None = None) -> list[Any]:
        self.clock.now = self.clock.now if now is None else now
        return list(self.vector(user).to_dict().values())

    def vector(self, user: int | None) -> Any:
        return self.workspace.get_feature_view("live").get_online_features({"user": user})

    def offline(self, user: int, at: datetime) -> list[Any]:
        spine = {"user": [user], "ts": [at]}
        frame = self.workspace.get_feature_view("live").get_features_for_events(pl.DataFrame(spine))
        (row,) = frame.to_arrow().to_pylist()
        return [row[name] for name in row if name.startswith("live__")]
