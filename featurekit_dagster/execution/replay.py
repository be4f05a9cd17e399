"""A file of events sent to a push source again, in event time at a chosen speed.

The views of the source are followed in this process unless somebody else follows them, so a replay shows by itself how
soon an event is online.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from featurekit_dagster.arrow_types import arrow_schema
from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.engine.duck import connect
from featurekit_dagster.errors import EventsRefused, LeaseHeld, NotAPushSource
from featurekit_dagster.execution.ingest import PushSource, event_payloads
from featurekit_dagster.execution.stream import run_stream_loop
from featurekit_dagster.intervals import as_utc
from featurekit_dagster.sql_text import quoted
from featurekit_dagster.stores.workspace_stores import WorkspaceStores
from featurekit_dagster.streams.readers import open_reader

PATIENCE = timedelta(seconds=30)
_TURN_SECONDS, _NAP_SECONDS = 0.02, 0.002
_ROWS_AT_ONCE, _MOST_TOGETHER = 10_000, 2_000
Event = tuple[datetime, bytes]


@dataclass(frozen=True, slots=True)
class ReplayStep:
    """Where a replay stands.

    Args:
        event_time: Time of the last event sent.
        events: How many were sent.
        delays: Seconds from before an event was sent until the views that move with each event had it, one per
            sending since the last step; none where there are no such views.
    """

    event_time: datetime
    events: int
    delays: Sequence[float]


class Replay:
    """Events of a file, to be sent in the order of their times.

    Args:
        push: The push source; its schema names the columns of the file that are read.
        file: Parquet or CSV.
        start: First instant inside; None begins behind the last event that was sent, or at the first event.
        end: First instant after; None for the end of the file.
        span: How much event time to replay, instead of `end`.

    Raises:
        NotAPushSource: The source's schema has no time field.
    """

    def __init__(
        self,
        push: PushSource,
        file: Path,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        span: timedelta | None = None,
    ) -> None:
        if push.time_field is None:
            reason = "nothing says which field holds its event time; give PushConfig a timestamp_field"
            raise NotAPushSource(source=push.name, reason=reason)
        self._push, self._file, self._time_field = push, file, push.time_field
        self._start, self._end, self._span = start, end, span

    def run(
        self,
        speed: float,
        on_step: Callable[[ReplayStep], None],
        *,
        every: timedelta = timedelta(seconds=1),
        patience: timedelta = PATIENCE,
    ) -> int:
        """Send the events, and return how many; the last step is told when all of them are online.

        Args:
            speed: Seconds of event time in a second.
            on_step: Told now and then, and at the end, where the replay stands.
            every: How often.
            patience: How long to wait at the end for views that move with each event.

        Raises:
            EventsRefused: A row does not fit the schema.
        """
        pace = _Pace(self._push, on_step, every.total_seconds())
        first: datetime | None = None
        waiting: list[Event] = []
        for event in self._events():
            first = first or event[0]
            due = (event[0] - first).total_seconds() / speed
            is_full = len(waiting) >= _MOST_TOGETHER and event[0] > waiting[-1][0]
            if waiting and (is_full or due > pace.now + _TURN_SECONDS):
                pace.send(waiting)
                waiting = []
            pace.wait(due)
            waiting.append(event)
        if waiting:
            pace.send(waiting)
        pace.finish(patience.total_seconds())
        return pace.sent

    def _events(self) -> Iterator[Event]:
        """Yield the events of the span, in order of their times."""
        time_at = [field.name for field in self._push.fields].index(self._time_field)
        columns = ", ".join(quoted(field.name) for field in self._push.fields)
        read = "read_csv" if self._file.suffix == ".csv" else "read_parquet"
        named = quoted(self._time_field)
        after = self._last_sent() if self._start is None else None
        query = f"""
            SELECT {columns} FROM {read}($file)
            WHERE {named} IS NOT NULL AND ($after IS NULL OR {named} > $after)
            AND ($start IS NULL OR {named} >= $start) AND ($end IS NULL OR {named} < $end)
            ORDER BY {named}
        """
        given = {"file": str(self._file), "after": after, "start": self._start, "end": self._end}
        schema = arrow_schema(self._push.fields)
        with connect() as con:
            until: datetime | None = None
            for batch in con.sql(query, params=given).to_arrow_reader(_ROWS_AT_ONCE):
                rows = pa.Table.from_batches([batch]).cast(schema).to_pylist()
                for row, payload in zip(rows, event_payloads(rows, list), strict=True):
                    at = as_utc(list(row.values())[time_at])
                    until = until or (None if self._span is None else at + self._span)
                    if until is not None and at >= until:
                        return
                    yield at, payload

    def _last_sent(self) -> datetime | None:
        """Return the time of the last event in the log, if it is still there."""
        log = self._push.log
        newest = log.newest()
        if newest <= log.oldest():
            return None
        (payload,) = log.read(newest - 1, 1).records
        text: Any = json.loads(payload).get(self._time_field)
        return None if text is None else as_utc(datetime.fromisoformat(text))


class _Pace:
    """Sends events when they are due, and watches meanwhile when they are online."""

    def __init__(self, push: PushSource, on_step: Callable[[ReplayStep], None], every: float) -> None:
        self._push, self._on_step, self._every = push, on_step, every
        self._began = time.monotonic()
        self._told = 0.0
        self._unseen: list[tuple[int, float]] = []
        self._delays: list[float] = []
        self._event_time: datetime | None = None
        self.sent = 0

    @property
    def now(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    def send(self, events: Sequence[Event]) -> None:
        """Send events together."""
        began = self.now
        result = self._push.ingest([payload for _, payload in events])
        if result.sequence is None:
            faults = [(each.index, each.field, each.rule) for each in result.refused]
            raise EventsRefused(source=self._push.name, refused=faults)
        self.sent += len(events)
        self._event_time = events[-1][0]
        self._unseen.append((result.sequence, began))
        self._look()

    def wait(self, until: float) -> None:
        """Wait until a moment, less the turn in which events are sent together."""
        while (rest := until - _TURN_SECONDS - self.now) > 0:
            self._look()
            time.sleep(min(rest, _NAP_SECONDS if self._unseen else _TURN_SECONDS))

    def finish(self, patience: float) -> None:
        """Wait until everything is online, but no longer than so many seconds, and tell so."""
        deadline = self.now + patience
        while self._unseen and self.now < deadline:
            self._look()
            time.sleep(_NAP_SECONDS)
        self._tell()

    def _look(self) -> None:
        applied = self._push.applied() if self._unseen else None
        if applied is None:
            self._unseen = []
        else:
            now = self.now
            seen = [began for sequence, began in self._unseen if sequence <= applied]
            self._delays += [now - began for began in seen]
            self._unseen = self._unseen[len(seen) :]
        if self.now - self._told >= self._every:
            self._tell()

    def _tell(self) -> None:
        if self._event_time is not None:
            self._on_step(ReplayStep(self._event_time, self.sent, tuple(self._delays)))
        self._told, self._delays = self.now, []


@contextmanager
def followed(push: PushSource, stores: WorkspaceStores) -> Iterator[None]:
    """Follow the online views of a push source until the end of the block, those apart that somebody else follows.

    Raises:
        FeatureKitError: A view could not be followed any further.
    """
    stop, failed = threading.Event(), list[BaseException]()

    def follow(view: FeatureView, ready: threading.Event) -> None:
        assert view.stream_source is not None
        reader = open_reader(view.stream_source, stores.home, workspace=stores.workspace)
        try:
            with suppress(LeaseHeld):
                run_stream_loop(view, reader, stores, stop=stop, on_report=lambda _: ready.set(), holder="replay")
        except Exception as error:  # noqa: BLE001 - it is raised at the end of the block
            failed.append(error)
        finally:
            reader.close()
            ready.set()

    begun = [(view, threading.Event()) for view in push.views if view.online]
    threads = [threading.Thread(target=follow, args=each, daemon=True) for each in begun]
    for thread in threads:
        thread.start()
    for _, ready in begun:
        ready.wait()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failed:
        raise failed[0]
