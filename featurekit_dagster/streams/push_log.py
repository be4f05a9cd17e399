"""The log of a push source: every event that was answered for, on disk before the answer, until it is drained.

One SQLite file per source in WAL mode, for any number of threads and processes of one host. What is waiting when a
commit begins goes into it together, so writers at the same time share one sync. SQLite was as quick here as LMDB, has
no map to resize, and a new file needs no size.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import msgpack

from featurekit_dagster.errors import StreamPositionLost
from featurekit_dagster.intervals import to_us
from featurekit_dagster.streams.bell import Bell, bell_of
from featurekit_dagster.streams.push_log_file import LogFile, open_log
from featurekit_dagster.streams.reading import OLDEST, ONLY_PARTITION, PartitionLag, StreamBatch

_ROW_RECORDS = 1_000
_FIRST_NAP_SECONDS, _LONGEST_NAP_SECONDS = 0.001, 0.005
_NEWEST = "SELECT max((SELECT coalesce(max(last), 0) FROM batches), (SELECT up_to FROM trimmed))"
_READ = "SELECT last, count, records FROM batches WHERE last > ? ORDER BY last"

_log = logging.getLogger("featurekit.stream")


def push_log_path(home: Path, workspace: str, source: str) -> Path:
    """Return where the log of a push source is, below the home directory of its workspace."""
    return home / "push" / quote(workspace, safe="") / f"{quote(source, safe='')}.db"


@dataclass(slots=True)
class _Waiting:
    """Records of one call of `append`, and what became of them."""

    records: Sequence[bytes]
    last: int | None = None
    error: BaseException | None = None

    @property
    def is_settled(self) -> bool:
        """Whether a commit had them."""
        return self.last is not None or self.error is not None


@dataclass(frozen=True, slots=True)
class LogSlice:
    """Consecutive records of a log.

    Args:
        records: The records.
        last: The sequence number of the last one.
        log: The identity of the log.
    """

    records: Sequence[bytes]
    last: int
    log: str

    @property
    def position(self) -> str:
        """The position behind the records: a number says nothing without the log that it counts in."""
        return f"{self.log}:{self.last}"


class PushLog:
    """Events of a push source in the order in which they were logged, numbered from 1.

    Args:
        path: The file; it and its directory are created when missing, readable by nobody else.
        source: Name of the source, for messages; by default that of the file.
        clock: Returns "now", aware; kept with what is appended.
    """

    def __init__(
        self, path: Path, source: str | None = None, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._path, self.source, self._clock = path, source or path.stem, clock
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._queue: list[_Waiting] = []
        self._queue_lock, self._write_lock, self._read_lock = threading.Lock(), threading.Lock(), threading.Lock()
        self._writer: LogFile | None = None
        self._reader: LogFile | None = None
        self._lock_file: int | None = None
        self.bell: Bell = bell_of(self._path)
        """Rings when this process has appended something."""

    def append(self, records: Sequence[bytes]) -> int:
        """Log records, next to each other, and return the sequence number of the last one.

        They are on disk when this returns. If it raises, none of them or all of them are logged.
        """
        mine = _Waiting(records)
        self._own_process()
        with self._queue_lock:
            self._queue.append(mine)
        with self._write_lock:
            if not mine.is_settled:
                with self._queue_lock:
                    together, self._queue = self._queue, []
                self._settle(together)
        if mine.error is not None:
            raise mine.error
        assert mine.last is not None
        return mine.last

    def read(self, after: int, most: int, log: str | None = None) -> LogSlice:
        """Return at most `most` records behind sequence number `after`; none at the end of the log.

        Args:
            after: A sequence number.
            most: How many records at most.
            log: The identity of the log that `after` counts in; of another one the oldest records are returned. By
                default it is this one.

        Raises:
            StreamPositionLost: Records behind `after` were trimmed.
        """
        records: list[bytes] = []
        with self._reading() as connection:
            connection.execute("BEGIN")  # what was trimmed and what is left are of one moment
            up_to, own = connection.execute("SELECT up_to, log FROM trimmed").fetchone()
            last = after = after if log in (None, own) else int(up_to)
            if after < up_to:
                raise StreamPositionLost(
                    source=self.source, partition=ONLY_PARTITION, position=str(after), oldest=str(up_to)
                )
            for row_last, count, packed in connection.execute(_READ, (after,)):
                row = msgpack.unpackb(packed)[max(0, last - (row_last - count)) :][: most - len(records)]
                records += row
                last += len(row)
                if len(records) >= most:
                    break
        return LogSlice(records, last, str(own))

    def newest(self) -> int:
        """Return the sequence number of the newest record, trimmed or not; 0 before the first."""
        with self._reading() as connection:
            return int(connection.execute(_NEWEST).fetchone()[0])

    def oldest(self) -> int:
        """Return the sequence number up to which records were trimmed; 0 if none were."""
        with self._reading() as connection:
            return int(connection.execute("SELECT up_to FROM trimmed").fetchone()[0])

    def identity(self) -> str:
        """Return a name of this very log: one that is begun anew in its place has another."""
        with self._reading() as connection:
            return str(connection.execute("SELECT log FROM trimmed").fetchone()[0])

    def number_of(self, position: str) -> int:
        """Return the sequence number up to which a position has read this log; 0 if it is one of another log."""
        log, number = _parsed(position)
        return number if log in (None, self.identity()) else 0

    def newest_before(self, when: datetime) -> int:
        """Return the sequence number of the newest record that was logged before an instant; 0 if none was."""
        with self._reading() as connection:
            known = connection.execute("SELECT max(last) FROM batches WHERE appended_us < ?", (to_us(when),))
            return int(known.fetchone()[0] or 0)

    def trim(self, up_to: int, log: str | None = None) -> None:
        """Drop whole commits of records up to a sequence number, which nobody is to read any more.

        Args:
            up_to: A sequence number.
            log: The identity of the log that it counts in; of another one nothing is dropped. By default it is this.
        """
        with self._writing() as connection:
            (own,) = connection.execute("SELECT log FROM trimmed").fetchone()
            if log not in (None, own):
                return
            (last,) = connection.execute("SELECT max(last) FROM batches WHERE last <= ?", (up_to,)).fetchone()
            if last is not None:
                connection.execute("DELETE FROM batches WHERE last <= ?", (last,))
                connection.execute("UPDATE trimmed SET up_to = ?", (last,))

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        self._own_process()
        with self._write_lock, self._read_lock:
            for opened in (self._writer, self._reader):
                if opened is not None:
                    opened.connection.close()
            if self._lock_file is not None:
                os.close(self._lock_file)
            self._writer = self._reader = self._lock_file = None

    def _own_process(self) -> None:
        """Begin afresh in a forked process: SQLite forbids it to use, or close, what its parent opened."""
        if os.getpid() != self._pid:
            _inherited.append((self._writer, self._reader))
            self._begin()

    def _settle(self, together: Sequence[_Waiting]) -> None:
        """Commit what is waiting, and tell each of them how it went."""
        try:
            with self._committing() as connection:
                before = last = int(connection.execute(_NEWEST).fetchone()[0])
                numbers = []
                for waiting in together:
                    last += len(waiting.records)
                    numbers.append(last)
                everything = [record for waiting in together for record in waiting.records]
                now_us = to_us(self._clock())
                rows = (everything[i : i + _ROW_RECORDS] for i in range(0, len(everything), _ROW_RECORDS))
                for row in rows:
                    before += len(row)
                    values = (before, len(row), now_us, msgpack.packb(row))
                    connection.execute("INSERT INTO batches VALUES (?, ?, ?, ?)", values)
        except BaseException as error:
            for waiting in together:
                waiting.error = error
            return
        for waiting, number in zip(together, numbers, strict=True):
            waiting.last = number
        self.bell.ring()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        self._own_process()
        with self._write_lock, self._committing() as connection:
            yield connection

    @contextmanager
    def _committing(self) -> Iterator[sqlite3.Connection]:
        """Give a connection in a transaction that is committed at the end; the write lock is held."""
        if self._writer is None or not self._writer.is_at(self._path):
            if self._lock_file is not None:  # it went with the log, or will
                os.close(self._lock_file)
            self._lock_file, self._writer = None, _opened_again(self._path, self._writer)
        connection = self._writer.connection
        if self._lock_file is None:
            self._lock_file = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # SQLite makes a second process sleep and look again; this lock wakes it at once, in turn.
        fcntl.flock(self._lock_file, fcntl.LOCK_EX)
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        finally:
            fcntl.flock(self._lock_file, fcntl.LOCK_UN)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        self._own_process()
        with self._read_lock:
            if self._reader is None or not self._reader.is_at(self._path):
                self._reader = _opened_again(self._path, self._reader)
            connection = self._reader.connection
            try:
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")


def _opened_again(path: Path, before: LogFile | None) -> LogFile:
    """Open the log that is there now, or begin it."""
    if before is not None:
        before.connection.close()
    return open_log(path)


def _parsed(position: str) -> tuple[str | None, int]:
    """Return the identity of a log and the number in it; positions of older versions are numbers of any log."""
    log, _, number = position.rpartition(":")
    return log or None, int(number)


_inherited: list[object] = []


class PushLogReader:
    """Follows the log of a push source, which has one partition; a first read begins at the oldest record.

    A position has the identity of its log. Of a log that was lost and begun anew every record is read, whatever the
    number of the position is, also where that happens in the middle of following it.

    Args:
        path: The log's file.
        source: Name of the source, for messages; by default that of the file.
    """

    def __init__(self, path: Path, source: str | None = None) -> None:
        self._log = PushLog(path, source)
        self._next: int | None = None
        self._identity: str | None = None
        self._is_new = False

    def partitions(self) -> tuple[str, ...]:
        """Return the one source partition."""
        return (ONLY_PARTITION,)

    def seek(self, positions: Mapping[str, str | None]) -> None:
        """Follow the log from a position on; see `StreamReader.seek`."""
        self._next, self._identity, self._is_new = None, None, False
        if ONLY_PARTITION not in positions:
            return
        position = positions[ONLY_PARTITION]
        if position is None or position == OLDEST:
            self._next, self._is_new = self._log.oldest(), True
            return
        self._identity, self._next = _parsed(position)
        newest = self._log.newest()
        if self._is_same_log() and self._next > newest:  # or an older version's number: nobody can tell
            raise StreamPositionLost(
                source=self._log.source, partition=ONLY_PARTITION, position=str(self._next), oldest=str(newest)
            )
        self._log.read(self._next, 1, self._identity)

    def _is_same_log(self) -> bool:
        return self._identity in (None, self._log.identity())

    def poll(self, most: int, timeout: timedelta) -> list[StreamBatch]:
        """Return what was logged next; see `StreamReader.poll`."""
        deadline, nap = time.monotonic() + timeout.total_seconds(), _FIRST_NAP_SECONDS
        while self._next is not None:
            heard = self._log.bell.count
            found = self._log.read(self._next, most, self._identity)
            if self._identity not in (None, found.log):
                self._is_new = True
                _log.warning("source=%s has a log that was begun anew; it is read from its beginning", self._log.source)
            self._identity = found.log
            if found.records or self._is_new:
                self._next, self._is_new = found.last, False
                return [StreamBatch(partition=ONLY_PARTITION, payloads=found.records, position=found.position)]
            left = deadline - time.monotonic()
            if left <= 0:
                return []
            self._log.bell.wait(heard, min(nap, left))  # what other processes append rings no bell here
            nap = min(2 * nap, _LONGEST_NAP_SECONDS)
        time.sleep(timeout.total_seconds())
        return []

    def lag(self) -> tuple[PartitionLag, ...]:
        """Return how many records of the log are still to be polled."""
        if self._next is None:
            return ()
        read = self._next if self._is_same_log() else self._log.oldest()
        return (PartitionLag(ONLY_PARTITION, self._log.newest() - read),)

    def parents(self) -> Mapping[str, Collection[str]]:
        """Return nothing: there is one partition."""
        return {}

    def retention(self) -> timedelta | None:
        """Return nothing: what is not drained yet stays, and a drain keeps two schedules of the views' batch jobs."""
        return None

    def close(self) -> None:
        """Close the log."""
        self._log.close()
