"""The recipe of a stream: poll, make rows, combine them with what is stored, all in one transaction with the position.

A loop follows some source partitions of one view, each under its own lease. Whatever ends it, the next one goes on
from the last commit and nothing is lost or counted twice. Batch jobs of the view write beside it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa

from featurekit_dagster.domain.feature_view import FeatureView, StreamProcessingMode
from featurekit_dagster.domain.stream_sources import PushConfig
from featurekit_dagster.errors import DuplicateEvents, KeyTooLong
from featurekit_dagster.execution.stream_events import EventProcessor, PolledEvents
from featurekit_dagster.execution.stream_records import TileCombiner, long_keys, stream_records
from featurekit_dagster.intervals import floor_time, from_us, to_us
from featurekit_dagster.planning.generations import StoredShape
from featurekit_dagster.stores.stream_state import (
    Columns,
    DeadLetter,
    IntArray,
    Nulls,
    StreamCheckpoint,
    StreamCommit,
)
from featurekit_dagster.stores.workspace_stores import WorkspaceStores
from featurekit_dagster.streams.reading import StreamBatch, StreamReader
from featurekit_dagster.streams.watermark import Watermark

COMMIT_EVERY = timedelta(seconds=30)
"""How often a view that moves in intervals is written; one that moves with every event is written at once."""

MOST_EVENTS = 20_000
"""Events of one commit at most. A poll brings no more than what is left of them, so a slow store slows the reader."""

_LONGEST_POLL = timedelta(milliseconds=250)
_SECONDS_BETWEEN_LOOKS_AT_LAG = 5.0
_LETTERS_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamReport:
    """Where a loop stands after a commit; counts and times only, never values.

    Args:
        view: Name of the feature view.
        at: When, by the clock of the loop.
        events: Events that were read, since the first one.
        late: Those that were dropped because they were behind the watermark.
        duplicates: Those that were dropped because they had come before.
        superseded: Rows that a batch job had written already.
        refused: Those that became dead letters.
        lag: Events that are still to be read.
        watermark: Up to when late events may be dropped; None drops nothing.
        newest_event: Time of the newest event.
        rows_written: Tiles or rows that the commit has stored.
        partitions: How far each source partition was read.
    """

    view: str
    at: datetime
    events: int
    late: int
    duplicates: int
    superseded: int
    refused: int
    lag: int
    watermark: datetime | None
    newest_event: datetime | None
    rows_written: int
    partitions: Mapping[str, StreamCheckpoint] = field(default_factory=dict)


OnReport = Callable[[StreamReport], None]


def run_stream_loop(
    view: FeatureView,
    reader: StreamReader,
    stores: WorkspaceStores,
    *,
    stop: threading.Event,
    partitions: Collection[str] | None = None,
    clock: Callable[[], datetime] | None = None,
    commit_every: timedelta | None = None,
    on_report: OnReport | None = None,
    holder: str = "in process",
) -> None:
    """Follow a stream until told to stop; what was polled is committed before the end.

    Args:
        view: A stream feature view that is written online.
        reader: The stream.
        stores: Where the view is stored.
        stop: Ends the loop.
        partitions: Source partitions to follow; all of them by default.
        clock: Returns "now"; that of the stores by default.
        commit_every: How often to commit; `COMMIT_EVERY` of interval views and at once of others by default.
        on_report: Called after every commit that brought events, after the first one, and now and then while none come.
        holder: Who holds the leases, usually the id of a run.

    Raises:
        LeaseHeld: Another loop follows one of the partitions.
        LeaseLost: Another loop has taken over one of the partitions; nothing of the last commit was written.
        StreamPositionLost: The stream dropped events that were still to be read.
        StreamUnavailable: The stream cannot be reached.
        ChangedDeclaration: The view was changed, and nobody has decided what becomes of what is stored.
    """
    names = tuple(reader.partitions() if partitions is None else partitions)
    generation = stores.ledger.open_generation(stores.workspace, view.name, StoredShape.of(view))
    place = f"stream:{stores.workspace}/{view.name}/{generation}"
    with ExitStack() as held:
        leases = {name: held.enter_context(stores.ledger.lease(f"{place}:{name}", holder)) for name in names}
        epochs = {name: lease.epoch for name, lease in leases.items()}
        follower = StreamFollower(view, reader, stores.pinned(view, generation), epochs, clock or stores.clock)
        follower.begin()
        _tell(on_report, follower, follower.commit())
        _follow(follower, stop, _pause(view) if commit_every is None else commit_every, on_report)


def _pause(view: FeatureView) -> timedelta:
    is_interval = view.is_tiled or view.stream_processing_mode is StreamProcessingMode.TIME_INTERVAL
    return COMMIT_EVERY if is_interval else timedelta(0)


def _follow(follower: StreamFollower, stop: threading.Event, pause: timedelta, on_report: OnReport | None) -> None:
    """Poll and commit until told to stop, then commit what is left."""
    due = time.monotonic() + pause.total_seconds()
    told = time.monotonic()
    while not stop.is_set():
        rest = timedelta(seconds=max(due - time.monotonic(), 0.0))
        follower.poll(min(rest, _LONGEST_POLL) if pause and follower.waiting else _LONGEST_POLL)
        if follower.waiting and (follower.is_full or time.monotonic() >= due):
            _tell(on_report, follower, follower.commit())
            told = time.monotonic()
            due = told + pause.total_seconds()
        elif not follower.waiting and time.monotonic() - told >= _SECONDS_BETWEEN_LOOKS_AT_LAG:
            follower.look_at_lag()
            _tell(on_report, follower, 0)
            told = time.monotonic()
    if follower.waiting:
        _tell(on_report, follower, follower.commit())


def _tell(on_report: OnReport | None, follower: StreamFollower, rows_written: int) -> None:
    if on_report is not None:
        on_report(follower.report(rows_written))


class StreamFollower:
    """Follows some source partitions of a view, step by step; `run_stream_loop` calls it in the right order.

    Args:
        view: A stream feature view that is written online.
        reader: The stream.
        stores: Where the view is stored.
        epochs: The source partitions, each with the epoch of the lease that the caller holds.
        clock: Returns "now".
    """

    def __init__(
        self,
        view: FeatureView,
        reader: StreamReader,
        stores: WorkspaceStores,
        epochs: Mapping[str, int],
        clock: Callable[[], datetime],
    ) -> None:
        source = view.stream_source
        if source is None or not view.online:
            raise ValueError(f"{view.name} is no stream feature view that is written online")
        self._view, self._reader, self._stores, self._clock = view, reader, stores, clock
        self._epochs = dict(epochs)
        self._config = source.stream_config
        self._layout = stores.online_layout(view)
        self._combine = TileCombiner(view, self._layout) if view.is_aggregate else _one_each
        self._processor = EventProcessor(view)
        self._checkpoints: Mapping[str, StreamCheckpoint] = {}
        self._watermark = Watermark(None, {})
        self._start_us: int | None = None
        self._is_told = False
        self._batches: list[StreamBatch] = []
        self._lag, self._lag_seen = 0, float("-inf")

    def begin(self) -> None:
        """Shut out whoever held the partitions before, and go where the last commit stands.

        Raises:
            LeaseLost: Somebody holds a partition under a higher epoch.
        """
        now = self._clock()
        taken = StreamCommit(partitions=dict.fromkeys(self._epochs), epochs=self._epochs, start_us=self._first_us(now))
        self._checkpoints = self._write(self._no_records(), taken)[1]
        self._reader.seek({name: known.position for name, known in self._checkpoints.items()})
        # what came before `latest` was looked up is never read, so the stream covers nothing earlier
        self._start_us = to_us(self._clock())
        delay = self._config.watermark_delay_threshold
        newest = {name: known.newest_us for name, known in self._checkpoints.items()}
        delay_us = None if delay is None else delay // timedelta(microseconds=1)
        self._watermark = Watermark.starting(delay_us, newest, to_us(now))
        for name in self._epochs:
            self._move_letters(name)

    def _first_us(self, now: datetime) -> int | None:
        """Return from when on a stream that is read from its oldest event covers everything."""
        begins_late = not isinstance(self._config, PushConfig) and self._config.initial_stream_position == "latest"
        return None if begins_late else to_us(floor_time(now, self._view.batch_schedule))

    @property
    def waiting(self) -> bool:
        """Whether something was polled and not committed."""
        return bool(self._batches)

    @property
    def is_full(self) -> bool:
        """Whether a commit must come before the next poll."""
        return self._room <= 0

    @property
    def _room(self) -> int:
        return MOST_EVENTS - sum(len(batch.payloads) for batch in self._batches)

    def poll(self, timeout: timedelta) -> None:
        """Wait for events; at most as many as there is room for."""
        if self._room > 0:
            came = self._reader.poll(self._room, timeout)
            self._batches += came
            self._lag = max(self._lag - sum(len(batch.payloads) for batch in came), 0)

    def commit(self) -> int:
        """Write what was polled and the positions behind it, in one transaction; return how many rows were stored.

        Raises:
            LeaseLost: Another loop has taken over; nothing was written.
        """
        batches, now = self._batches, self._clock()
        self.look_at_lag()
        found = self._processor.process(batches, self._watermark, now, self._seen)
        while True:
            records = stream_records(self._view, found.rows)
            try:
                written, stored = self._write(records, self._commit_of(batches, found, now), found.rows)
                break
            except DuplicateEvents:
                found = self._processor.process(batches, self._watermark, now, self._seen)
            except KeyTooLong as error:
                found = self._without_long_keys(found, records, str(error), batches[0].partition)
        self._batches, self._watermark = [], found.watermark
        self._checkpoints = {**self._checkpoints, **stored}
        for name in stored:
            self._move_letters(name)
        self._tell_ledger()
        return written

    def _commit_of(self, batches: Sequence[StreamBatch], found: PolledEvents, now: datetime) -> StreamCommit:
        forgets = bool(self._config.deduplication_columns)
        return StreamCommit(
            partitions=self._moved(batches, found),
            epochs=self._epochs,
            start_us=self._start_us if self._has_positions(batches) else None,
            seen=found.marks,
            forget_us=found.watermark.at(to_us(now)) if forgets else None,
            letters=found.letters,
        )

    def _without_long_keys(self, found: PolledEvents, records: pa.Table, reason: str, partition: str) -> PolledEvents:
        """Return the events without those whose key cannot be stored; these become dead letters."""
        wrong = long_keys(self._layout, records)
        letters = [
            DeadLetter(partition=partition, reason=reason, payload=_as_json(found.rows, row))
            for row in wrong.nonzero()[0].tolist()
        ]
        return replace(found, rows=found.rows.filter(pa.array(~wrong)), letters=[*found.letters, *letters])

    def _tell_ledger(self) -> None:
        """Let planning know from when on batch jobs need not write online."""
        if self._is_told:
            return
        with self._stores.online.snapshot(self._layout) as snapshot:
            start_us = snapshot.stream.start_us
        if start_us is not None:
            place = (self._stores.workspace, self._view.name, self._layout.generation)
            self._stores.ledger.stream_started(*place, from_us(start_us))
            self._is_told = True

    def _moved(self, batches: Sequence[StreamBatch], found: PolledEvents) -> dict[str, StreamCheckpoint]:
        """Return the checkpoints behind what was polled."""
        moved = {}
        for batch in batches:  # of several batches of a partition the last one's position counts
            name = batch.partition
            known = self._checkpoints[name]
            moved[name] = replace(
                known,
                position=batch.position,
                newest_us=found.watermark.partitions[name].newest_us,
                events=known.events + found.events[name],
                late=known.late + found.late[name],
                duplicates=known.duplicates + found.duplicates[name],
            )
        return moved

    def _has_positions(self, batches: Sequence[StreamBatch]) -> bool:
        """Tell whether every partition goes on from a stored position after the commit."""
        polled = {batch.partition for batch in batches}
        return all(name in polled or known.position is not None for name, known in self._checkpoints.items())

    def _write(
        self, records: pa.Table, commit: StreamCommit, rows: pa.Table | None = None
    ) -> tuple[int, Mapping[str, StreamCheckpoint]]:
        owner = next(iter(commit.partitions), "")

        def refuse(row: int) -> DeadLetter:
            reason = "the sum of integers of its tile does not fit 64 bits"
            return DeadLetter(partition=owner, reason=reason, payload=_as_json(rows, row))

        written = self._stores.online.stream_write(
            self._layout, records, combine=self._combine, commit=commit, refuse=refuse
        )
        return written.rows_written, written.partitions

    def _no_records(self) -> pa.Table:
        return stream_records(self._view, self._processor.no_rows)

    def _seen(self, marks: Sequence[bytes]) -> Collection[bytes]:
        return self._stores.online.seen_marks(self._layout, marks)

    def look_at_lag(self) -> None:
        """Ask the reader now and then what is left; partitions with something left are not idle."""
        if time.monotonic() - self._lag_seen < _SECONDS_BETWEEN_LOOKS_AT_LAG:
            return
        lags = self._reader.lag()
        self._lag, self._lag_seen = sum(lag.events or 0 for lag in lags), time.monotonic()
        behind = [lag.partition for lag in lags if lag.events]
        self._watermark = self._watermark.still_behind(behind, to_us(self._clock()))

    def _move_letters(self, partition: str) -> None:
        """Move dead letters from the online store, which took them with their commit, to their table."""
        online = self._stores.online
        while letters := online.dead_letters(self._layout, partition, _LETTERS_AT_ONCE):
            self._stores.dead_letters(self._view).append(letters, self._clock())
            online.drop_dead_letters(self._layout, partition, letters[-1].number)

    def report(self, rows_written: int) -> StreamReport:
        """Return where the loop stands."""
        now, known = self._clock(), self._checkpoints.values()
        last_droppable, newest_us = self._watermark.at(to_us(now)), self._watermark.newest_us
        return StreamReport(
            view=self._view.name,
            at=now,
            events=sum(each.events for each in known),
            late=sum(each.late for each in known),
            duplicates=sum(each.duplicates for each in known),
            superseded=sum(each.superseded for each in known),
            refused=sum(each.refused for each in known),
            lag=self._lag,
            watermark=None if last_droppable is None else from_us(last_droppable),
            newest_event=None if newest_us is None else from_us(newest_us),
            rows_written=rows_written,
            partitions=dict(self._checkpoints),
        )


def _one_each(columns: Columns, nulls: Nulls, groups: IntArray) -> tuple[Columns, Nulls, IntArray | None]:
    """Combine nothing: of a view without aggregates the newest row counts."""
    return columns, nulls, None


def _as_json(rows: pa.Table | None, row: int) -> bytes:
    """Return a row as a JSON object; times as text."""
    values: dict[str, Any] = {} if rows is None else rows.slice(row, 1).to_pylist()[0]
    return json.dumps(values, default=str).encode()
