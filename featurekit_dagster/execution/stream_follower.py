"""The steps of following a stream: poll, make rows, combine them with what is stored, all with the position in one go.

Every commit is one transaction of the online store, so whatever ends the process, the next one goes on from the last.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.domain.stream_sources import PushConfig
from featurekit_dagster.errors import DuplicateEvents, KeyTooLong, LeaseHeld
from featurekit_dagster.execution.held_online import held_online
from featurekit_dagster.execution.stream_events import EventProcessor, PolledEvents
from featurekit_dagster.execution.stream_records import TileCombiner, long_keys, stream_records
from featurekit_dagster.intervals import floor_time, from_us, to_us
from featurekit_dagster.stores.stream_state import (
    Columns,
    DeadLetter,
    IntArray,
    Nulls,
    StreamCheckpoint,
    StreamCommit,
    StreamProgress,
)
from featurekit_dagster.stores.workspace_stores import WorkspaceStores
from featurekit_dagster.streams.reading import OLDEST, StreamBatch, StreamReader
from featurekit_dagster.streams.watermark import IDLE_US, Watermark

MOST_EVENTS = 20_000
"""Events of one commit at most. A poll brings no more than what is left of them, so a slow store slows the reader."""

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
        deleted: Rows that were left out because their key was deleted after them.
        lag: Events that are still to be read.
        watermark: Up to when late events may be dropped; None drops nothing.
        newest_event: Time of the newest event.
        rows_written: Tiles or rows that the commit has stored.
        partitions: How far each source partition was read.
        retention: How long the stream keeps its events; None where that is not known.
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
    deleted: int = 0
    partitions: Mapping[str, StreamCheckpoint] = field(default_factory=dict)
    retention: timedelta | None = None


class StreamFollower:
    """Follows some source partitions of a view, step by step; `run_stream_loop` takes the steps in the right order.

    Args:
        view: A stream feature view that is written online.
        reader: The stream.
        stores: Where the view is stored.
        epochs: The source partitions, each with the epoch of the lease that the caller holds; see `join` for more.
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
        self._checkpoints: dict[str, StreamCheckpoint] = {}
        self._others: dict[str, StreamCheckpoint | None] = {}
        delay = self._config.watermark_delay_threshold
        self._watermark = Watermark.starting(None if delay is None else delay // timedelta(microseconds=1), {}, 0)
        self._start_us: int | None = None
        self._forgotten_us: int | None = None
        self._is_told = False
        self._batches: list[StreamBatch] = []
        self._lag, self._lag_seen = 0, float("-inf")
        self._retention: timedelta | None = None

    def begin(self, epochs: Mapping[str, int] | None = None) -> None:
        """Shut out whoever held the partitions before, and go where the last commit stands.

        Args:
            epochs: The partitions, each with the epoch of its lease; by default those that the follower was made with.

        Raises:
            LeaseLost: Somebody holds a partition under a higher epoch.
        """
        self._retention = self._reader.retention()
        self.join(self._epochs if epochs is None else epochs)

    def join(self, epochs: Mapping[str, int]) -> None:
        """Follow further partitions, too, from where their last commit stands; nothing may be waiting.

        Args:
            epochs: The partitions, each with the epoch of the lease that the caller holds.

        Raises:
            LeaseLost: Somebody holds a partition under a higher epoch.
        """
        self._stores.sync_tombstones(self._view)
        now, progress = self._clock(), self._progress()
        first_us = self._first_us(now)
        taken = StreamCommit(partitions=dict.fromkeys(epochs), epochs=epochs, start_us=first_us)
        joined = self._write(self._no_records(), taken)[1]
        self._epochs, self._checkpoints = {**self._epochs, **epochs}, {**self._checkpoints, **joined}
        # a partition that nobody has read although all others were is newer than the first read
        unread = None if progress.start_us is None else OLDEST
        self._reader.seek({name: known.position or unread for name, known in self._checkpoints.items()})
        # what came before `latest` was looked up is never read, so the stream covers nothing earlier
        self._start_us = to_us(self._clock())
        self._watermark = self._watermark.joined({name: each.newest_us for name, each in joined.items()}, to_us(now))
        self._forgotten_us = progress.forgotten_us
        for name in joined:
            self._move_letters(name)

    def share_with(self, others: Iterable[str]) -> None:
        """Take note of the source partitions that other loops follow."""
        stored = self._stores.online.checkpoints(self._layout)
        self._others = {name: stored.get(name) for name in others}

    @property
    def partitions(self) -> Collection[str]:
        """The source partitions that are followed."""
        return self._epochs.keys()

    @property
    def has_begun(self) -> bool:
        """Whether every source partition that there was at first was looked up."""
        return self._progress().start_us is not None

    def stored_positions(self) -> dict[str, str | None]:
        """Return where the reading of each source partition stands, whoever follows it."""
        return {name: each.position for name, each in self._stores.online.checkpoints(self._layout).items()}

    def _progress(self) -> StreamProgress:
        with self._stores.online.snapshot(self._layout) as snapshot:
            return snapshot.stream

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
            StreamStateLost: The online store was emptied; nothing was written.
        """
        batches, now = self._batches, self._clock()
        self.look_at_lag()
        found = self._processed(now)
        while True:
            records = stream_records(self._view, found.rows)
            commit = self._commit_of(found, now)
            try:
                written, stored = self._write(records, commit, found.rows)
                break
            except DuplicateEvents:
                self._forgotten_us = self._progress().forgotten_us
                found = self._processed(now)
            except KeyTooLong as error:
                found = self._without_long_keys(found, records, str(error), batches[0].partition)
        self._batches, self._watermark = [], found.watermark
        self._forgotten_us = max((us for us in (self._forgotten_us, commit.forget_us) if us is not None), default=None)
        has_letters = [name for name, known in stored.items() if known.refused != self._checkpoints[name].refused]
        self._checkpoints = {**self._checkpoints, **stored}
        for name in has_letters:
            self._move_letters(name)
        self._tell_ledger()
        return written

    def _processed(self, now: datetime) -> PolledEvents:
        return self._processor.process(self._batches, self._watermark, now, self._seen, self._forgotten_us)

    def _commit_of(self, found: PolledEvents, now: datetime) -> StreamCommit:
        moved = self._moved(found)
        idle = self._found_idle(found.watermark, to_us(now)) - moved.keys()
        resting = {name: replace(self._checkpoints[name], idle_us=to_us(now)) for name in idle}
        return StreamCommit(
            partitions={**moved, **resting},
            epochs=self._epochs,
            start_us=self._covers_from(moved, now),
            seen=found.marks,
            forget_us=self._passed_us(found.watermark, to_us(now)) if self._config.deduplication_columns else None,
            letters=found.letters,
            is_continued=True,
        )

    def _passed_us(self, watermark: Watermark, now_us: int) -> int | None:
        """Return up to when no event will count any more, whichever loop reads it; None while that is unknown."""
        edge, delay_us = watermark.at(now_us), watermark.delay_us or 0
        for known in self._others.values():
            if known is not None and known.idle_us is not None and now_us - known.idle_us < 2 * IDLE_US:
                continue
            if edge is None or known is None or known.newest_us is None:
                return None
            edge = min(edge, known.newest_us - delay_us)
        return edge

    def _found_idle(self, watermark: Watermark, now_us: int) -> set[str]:
        """Return the idle partitions of which other loops have to be told so, or again."""
        if not self._others or not self._config.deduplication_columns:
            return set()
        said = {name: known.idle_us for name, known in self._checkpoints.items()}
        return {name for name in watermark.idle(now_us) if now_us - (said[name] or -IDLE_US) >= IDLE_US}

    @property
    def has_moved(self) -> bool:
        """Whether other loops, or batch jobs, wait for something that a commit without events would tell."""
        if not self._is_told and self._covers_from({}, self._clock()) is not None:
            return True
        return bool(self._found_idle(self._watermark, to_us(self._clock())))

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
        start_us = self._progress().start_us
        if start_us is None:
            return
        ledger, place = self._stores.ledger, (self._stores.workspace, self._view.name)
        known = ledger.stream_start(*place, self._layout.generation)
        if known not in (None, from_us(start_us)):  # the store was emptied since: what jobs had written is gone, too
            try:
                with ledger.lease(f"batch:{place[0]}/{place[1]}", holder="stream"):
                    held_online(self._view, self._stores)
            except LeaseHeld:
                return  # it is told by the next commit
        ledger.stream_started(*place, self._layout.generation, from_us(start_us))
        self._is_told = True

    def _moved(self, found: PolledEvents) -> dict[str, StreamCheckpoint]:
        """Return the checkpoints behind what was polled."""
        moved = {}
        for batch in self._batches:  # of several batches of a partition the last one's position counts
            name = batch.partition
            known = self._checkpoints[name]
            moved[name] = replace(
                known,
                position=batch.position,
                newest_us=found.watermark.partitions[name].newest_us,
                events=known.events + found.events[name],
                late=known.late + found.late[name],
                duplicates=known.duplicates + found.duplicates[name],
                idle_us=None,
            )
        return moved

    def _covers_from(self, moved: Mapping[str, StreamCheckpoint], now: datetime) -> int | None:
        """Return from when on the stream covers everything; None while a partition has no position to go on from."""
        known = [*{**self._checkpoints, **moved}.values(), *self._others.values()]
        if not known or any(each is None or each.position is None for each in known):
            return None
        return to_us(now) if self._others else self._start_us

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
        if self._others:
            self.share_with(tuple(self._others))

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
            deleted=sum(each.deleted for each in known),
            lag=self._lag,
            watermark=None if last_droppable is None else from_us(last_droppable),
            newest_event=None if newest_us is None else from_us(newest_us),
            rows_written=rows_written,
            partitions=dict(self._checkpoints),
            retention=self._retention,
        )


def _one_each(columns: Columns, nulls: Nulls, groups: IntArray) -> tuple[Columns, Nulls, IntArray | None]:
    """Combine nothing: of a view without aggregates the newest row counts."""
    return columns, nulls, None


def _as_json(rows: pa.Table | None, row: int) -> bytes:
    """Return a row as a JSON object; times as text."""
    values: dict[str, Any] = {} if rows is None else rows.slice(row, 1).to_pylist()[0]
    return json.dumps(values, default=str).encode()
