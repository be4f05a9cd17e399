"""Three views that stamp what they write, and worker processes that are told what to do with their jobs over a pipe.

The stamp is a number that the worker was given, elsewhere the time of the query in microseconds. A worker is forked
from a server that has imported everything, so that one that was killed is replaced in no time.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd

from featurekit_dagster import (
    Aggregation,
    BatchSource,
    BatchTriggerType,
    Entity,
    Field,
    FileConfig,
    FilteredSource,
    Int64,
    String,
    Timestamp,
    TimeWindow,
    batch_feature_view,
)
from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.engine.local import stored_schema
from featurekit_dagster.errors import JobStateError, LeaseHeld, MaterializationFailed, OverlappingMaterialization
from featurekit_dagster.execution.materialize import CLAIMED, run_tasks
from featurekit_dagster.intervals import Interval, from_us, to_us
from featurekit_dagster.planning.job_state import MANAGED, ONCE
from featurekit_dagster.planning.tasks import OFFLINE, ONLINE, Task
from featurekit_dagster.stores.workspace_stores import WorkspaceStores
from tests.support.forked import CONTEXT

DAY = timedelta(days=1)
START = datetime(2024, 5, 1, tzinfo=UTC)
DAYS = 8
KEYS = ("a", "b")
TILES, ROWS, HISTORY = "tiles", "rows", "history"
STORES = {TILES: (OFFLINE, ONLINE), ROWS: (OFFLINE, ONLINE), HISTORY: (OFFLINE,)}

_stamp = 0


def make_source(root: Path) -> None:
    """Write one event per key and day; the keys of `rows` name their day, so that each day has a record online."""
    times = f"TIMESTAMP '{START:%Y-%m-%d}' + to_days(n::INT) + to_hours(12)"
    events = f"SELECT k || CASE WHEN k = 'd' THEN n::VARCHAR ELSE '' END AS key, {times} AS at"
    with duckdb.connect() as con:
        rows = f"{events} FROM range({DAYS}) AS t(n), unnest(['a', 'b', 'd']) AS u(k)"
        con.execute(f"COPY (SELECT *, 0::BIGINT AS stamp FROM ({rows})) TO '{root / 'events.parquet'}'")


def make_views(root: Path) -> dict[str, FeatureView]:
    """Return the views by name: tiles, rows in one query per day, and rows that are kept offline only."""
    config = FileConfig(uri=str(root / "events.parquet"), file_format="parquet", timestamp_field="at")
    facts: dict[str, Any] = {
        "sources": [FilteredSource(BatchSource(name="events", batch_config=config))],
        "entities": [Entity(name="thing", join_keys=[Field("key", String)])],
        "mode": "pandas",
        "schema": [Field("key", String), Field("at", Timestamp), Field("stamp", Int64)],
        "batch_schedule": DAY,
        "batch_trigger": BatchTriggerType.MANUAL,
        "offline": True,
        "timestamp_field": "at",
    }

    def stamped(events: pd.DataFrame) -> pd.DataFrame:
        return events[~events["key"].str.startswith("d")].assign(stamp=_stamp or to_us(datetime.now(UTC)))

    def stamped_days(events: pd.DataFrame) -> pd.DataFrame:
        return events[events["key"].str.startswith("d")].assign(stamp=_stamp or to_us(datetime.now(UTC)))

    newest = Aggregation(column="stamp", function="max", time_window=TimeWindow(window_size=DAY))
    tiles = {"aggregation_interval": DAY, "aggregations": [newest], "feature_start_time": START + DAY, "online": True}
    return {
        TILES: batch_feature_view(name=TILES, **facts, **tiles)(stamped),
        ROWS: batch_feature_view(name=ROWS, **facts, incremental_backfills=True, feature_start_time=START, online=True)(
            stamped_days
        ),
        HISTORY: batch_feature_view(name=HISTORY, **facts, feature_start_time=START)(stamped),
    }


def open_stores(root: Path) -> WorkspaceStores:
    """Return the stores of a round."""
    return WorkspaceStores(workspace="w", home=root / "home", lake=str(root / "lake"), clock=lambda: datetime.now(UTC))


def span(first: int, last: int) -> Interval:
    """Return the days `first` to `last`."""
    return Interval(START + first * DAY, START + (last + 1) * DAY)


def stamps(root: Path) -> dict[tuple[str, str], dict[int, list[int]]]:
    """Return the stamps of all stored records, by view and store, and by day."""
    stores, found = open_stores(root), {}
    everything = Interval(START - 9 * DAY, START + 2 * DAYS * DAY)
    for name, view in make_views(root).items():
        rows = stores.read_offline(view, stored_schema(view), everything).to_pylist()
        value = "max_stamp" if view.is_aggregate else "stamp"
        found[name, OFFLINE] = _by_day((row[view.stored_time_column], row[value]) for row in rows)
        if view.online:
            keys = [("a",), ("b",), *((f"d{number}",) for number in range(DAYS))]
            records = [record for records in stores.online.read(stores.online_layout(view), keys) for record in records]
            found[name, ONLINE] = _by_day((from_us(time_us), stamp) for time_us, stamp in records)
    stores.online.close()
    stores.ledger.close()
    return found


def _by_day(records: Iterable[tuple[datetime, int]]) -> dict[int, list[int]]:
    days: dict[int, list[int]] = {}
    for time_of, stamp in records:
        days.setdefault((time_of - START) // DAY, []).append(stamp)
    return days


class Worker:
    """What a worker process does; every method answers one command.

    Args:
        tell: Sends the parent a message while a command is carried out.
    """

    def __init__(self, tell: Callable[[Any], None]) -> None:
        self._tell = tell
        self._stores: WorkspaceStores | None = None
        self._views: dict[str, FeatureView] = {}

    def open(self, root: Path) -> None:
        """Work in a folder from now on."""
        if self._stores is not None:
            self._stores.online.close()
            self._stores.ledger.close()
        self._stores, self._views = open_stores(root), make_views(root)

    def trigger(
        self, view: str, first: int, last: int, stores: tuple[str, ...], overwrite: bool, managed: bool
    ) -> tuple[str, str | None]:
        """Ask for days; return `accepted` with the job's id, or `refused` with that of the one in the way."""
        assert self._stores is not None
        try:
            (job,) = self._stores.ledger.queue(
                workspace="w",
                view=view,
                intervals=[span(first, last)],
                online=ONLINE in stores,
                offline=OFFLINE in stores,
                overwrite=overwrite,
                trigger="manual",
                policy=MANAGED if managed else ONCE,
            )
        except OverlappingMaterialization as refused:
            return "refused", refused.job_id
        return "accepted", job.id

    def cancel(self, job_id: str) -> str:
        """Cancel a job; return its state."""
        assert self._stores is not None
        return self._stores.ledger.cancel(job_id).state

    def retry(self, job_id: str) -> str:
        """Ask for a job again; return its state, or the kind of error that refuses it."""
        assert self._stores is not None
        self._stores.ledger.abandon_dead("w")
        try:
            return self._stores.ledger.retry(job_id).state
        except (JobStateError, OverlappingMaterialization) as refused:
            return type(refused).__name__

    def run(self, stamp: int, die_at: str | None = None, die_in: int = 0) -> list[str]:
        """Carry out what is due, view by view; return the ids of the jobs done.

        Before an attempt computes, its job and its stamp are told.

        Args:
            stamp: The first attempt's stamp; each further one has the next.
            die_at: A step at which the process kills itself.
            die_in: How many jobs pass that step before.
        """
        assert self._stores is not None
        stores, done, left = self._stores, [], die_in

        def on_step(step: str, task: Task) -> None:
            nonlocal stamp, left
            global _stamp  # noqa: PLW0603 - the transformation takes nothing but its rows
            if step == CLAIMED:
                _stamp = stamp
                stamp += 1
                self._tell(("begun", task.job_id, _stamp))
            if step == die_at:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        stores.ledger.abandon_dead("w")
        for name, view in self._views.items():
            run_id = f"{os.getpid()} {time.monotonic_ns()}"
            for _ in range(200):
                tasks = _waiting(stores, name)
                try:
                    for report in run_tasks(view, tasks, stores, trigger="manual", run_id=run_id, on_step=on_step):
                        done.append(report.job.id)
                    break
                except LeaseHeld:
                    time.sleep(0.02)
                except MaterializationFailed as failed:
                    self._tell(("failed", [type(error).__name__ for _, error in failed.failures]))
                    break
        return done


def _waiting(stores: WorkspaceStores, view: str) -> Iterator[Task]:
    """Yield what waits of a view, looked up under its lease."""
    for job in stores.ledger.due("w"):
        if job.view == view:
            again = job.overwrite or bool(job.attempts)
            yield Task(
                view=view,
                interval=job.interval,
                online=job.online,
                offline=job.offline,
                overwrite=again,
                job_id=job.id,
            )


def serve(connection: Connection) -> None:
    """Answer commands until the pipe is closed."""
    worker = Worker(lambda message: connection.send(("told", message)))
    while True:
        try:
            name, arguments = connection.recv()
        except EOFError:
            return
        connection.send(("answer", getattr(worker, name)(*arguments)))


class WorkerProcess:
    """A worker process as its parent sees it; a new one takes the place of one that has died."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        """What was told while the last command was carried out."""
        self._root: Path | None = None
        self._start()

    def _start(self) -> None:
        self._connection, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=serve, args=(theirs,), daemon=True)
        self._process.start()
        self._is_killed = False
        theirs.close()
        if self._root is not None:
            self.ask("open", self._root)

    def open(self, root: Path) -> None:
        """Let it work in a folder."""
        self._root = root
        self.ask("open", root)

    def send(self, name: str, *arguments: Any) -> None:
        """Send a command without waiting for the answer."""
        self._connection.send((name, arguments))

    def answer(self) -> Any:
        """Return the answer of the command that was sent, None when it has died; what it told is in `told` then."""
        told: list[Any] = []
        answer: Any = None
        while True:
            try:
                assert self._connection.poll(300), "a worker is silent"
                kind, answer = self._connection.recv()
            except (EOFError, ConnectionResetError):
                self._replace()
                kind, answer = "answer", None
            if kind == "answer":
                if self._is_killed:  # it was killed after it had answered
                    self._replace()
                self.told = told
                return answer
            told.append(answer)

    def ask(self, name: str, *arguments: Any) -> Any:
        """Send a command and return its answer."""
        self.send(name, *arguments)
        return self.answer()

    def kill(self) -> None:
        """Kill it, as kill -9 does; the answer that is waited for comes all the same if it was faster."""
        self._is_killed = True
        self._process.kill()

    def _replace(self) -> None:
        """Wait until it has ended, and start another."""
        self._process.join(300)
        assert self._process.exitcode == -signal.SIGKILL, self._process.exitcode
        self._connection.close()
        self._start()

    def end(self) -> None:
        """End it."""
        self._process.kill()
        self._process.join(300)
        self._connection.close()
