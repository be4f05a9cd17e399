"""A process that follows a push log and kills itself at a named point; its arguments are ROOT POINT COMMITS.

After COMMITS commits it dies: at `polled` before the next commit begins, at `transforming` amid making rows, in the
transaction at `combining` before anything is put, at `records put` and at `state put`, at `committed` before anything
else happens, or at `<seconds>` so long after. POINT `end` reads the log to its end, and `waits` goes on there until
there is a file ROOT/enough. The step that it was at last stands in ROOT/step, which outlives it.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from featurekit_dagster import (
    Aggregation,
    Entity,
    FeatureView,
    Field,
    Int64,
    PushConfig,
    StreamProcessingMode,
    StreamSource,
    Timestamp,
    TimeWindow,
    Workspace,
    stream_feature_view,
)
from featurekit_dagster.execution.stream import run_stream_loop
from featurekit_dagster.execution.stream_follower import StreamReport
from featurekit_dagster.execution.stream_records import TileCombiner
from featurekit_dagster.stores import record_stream
from featurekit_dagster.streams.push_log import PushLogReader, push_log_path
from tests.support.stream_lists import document

NOW = datetime(2024, 3, 2, tzinfo=UTC)
USERS, EVENTS, PIECE = 50, 20_000 if os.environ.get("FEATUREKIT_SOAK") else 4_000, 50
STEP, STEP_BYTES, ENOUGH = "step", 32, "enough"
FIELDS = [Field("user", Int64), Field("ts", Timestamp), Field("amount", Int64)]


class Deadline:
    """Whether the point was reached at which the process dies."""

    def __init__(self, root: Path, point: str, commits: int) -> None:
        self.point, self.left, self.is_armed = point, commits, False
        (root / STEP).write_bytes(b" " * STEP_BYTES)
        with (root / STEP).open("r+b") as file:
            self.step = mmap.mmap(file.fileno(), STEP_BYTES)

    def at(self, point: str) -> None:
        self.step[:] = point.encode().ljust(len(self.step))
        if self.is_armed and point == self.point:
            die()

    def watch_transactions(self) -> None:
        """Take note of the steps inside the transaction of a commit."""
        combine, marks, state = TileCombiner.__call__, record_stream._put_marks, record_stream._put_checkpoints

        def combined(*arguments: Any) -> Any:
            self.at("combining")
            return combine(*arguments)

        def marked(*arguments: Any) -> None:
            self.at("records put")
            marks(*arguments)

        def put(*arguments: Any) -> Any:
            found = state(*arguments)
            self.at("state put")
            return found

        TileCombiner.__call__ = combined  # type: ignore[method-assign]
        record_stream._put_marks, record_stream._put_checkpoints = marked, put

    def committed(self, report: StreamReport) -> None:
        print(f"events {report.events}", flush=True)
        self.at("committed")
        self.left -= 1
        if self.left == 0:
            self.is_armed = True
            if self.point[0].isdigit():
                threading.Timer(float(self.point), die).start()


under_way: list[Deadline] = []


def die() -> None:
    """End this process at once, as kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)


def events() -> list[dict[str, Any]]:
    """Return all events: each user has as many, and each amount is another."""
    return [{"user": n % USERS, "ts": NOW - timedelta(seconds=n % 600 + 1), "amount": n} for n in range(EVENTS)]


def make_view() -> FeatureView:
    """Return a view of sums and numbers of events, over tiles of a minute."""

    def as_it_is(event: dict[str, Any]) -> dict[str, Any]:
        for deadline in under_way:
            deadline.at("transforming")
        return event

    made = stream_feature_view(
        name="totals",
        mode="python",
        source=StreamSource(name="payments", stream_config=PushConfig(timestamp_field="ts"), schema=FIELDS),
        entities=[Entity(name="user", join_keys=[Field("user", Int64)])],
        schema=FIELDS,
        aggregation_interval=timedelta(minutes=1),
        aggregations=[
            Aggregation("amount", "sum", TimeWindow(timedelta(hours=1)), name="sum"),
            Aggregation("amount", "count", TimeWindow(timedelta(hours=1)), name="count"),
        ],
        stream_processing_mode=StreamProcessingMode.TIME_INTERVAL,
        batch_schedule=timedelta(days=1),
        feature_start_time=datetime(2024, 3, 1, tzinfo=UTC),
        online=True,
    )(as_it_is)
    assert isinstance(made, FeatureView)
    return made


def log_path(root: Path) -> Path:
    return push_log_path(root / "home", "w", "payments")


def documents() -> list[bytes]:
    return [document(event) for event in events()]


def open_workspace(root: Path, view: FeatureView) -> Workspace:
    return Workspace("w", [view], home=root / "home", clock=NOW)


class _Reader(PushLogReader):
    """Brings the log in small pieces, and says when it is at its end, and may be."""

    def __init__(self, path: Path, stop: threading.Event | None, mark: Path | None) -> None:
        super().__init__(path)
        self._stop, self._mark = stop, mark

    def poll(self, most: int, timeout: timedelta) -> Any:
        found = super().poll(min(most, PIECE), timeout)
        if not found and self._stop is not None and (self._mark is None or self._mark.exists()):
            self._stop.set()
        return found


def follow(root: Path, point: str, commits: int) -> None:
    """Follow the log until the process dies, or to its end."""
    deadline, view = Deadline(root, point, commits), make_view()
    if point != "end":  # that one is of the process that tests
        deadline.watch_transactions()
        under_way.append(deadline)
    workspace, stop = open_workspace(root, view), threading.Event()

    def clock() -> datetime:
        deadline.at("polled")
        return NOW

    reader = _Reader(log_path(root), stop, root / ENOUGH if point == "waits" else None)
    run_stream_loop(
        view,
        reader,
        workspace.stores,
        stop=stop,
        clock=clock,
        commit_every=timedelta(0),
        on_report=deadline.committed,
    )
    workspace.stores.online.close()
    workspace.stores.ledger.close()


if __name__ == "__main__":
    folder, where, after = sys.argv[1:]
    follow(Path(folder), where, int(after))
