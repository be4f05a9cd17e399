"""Transactions over a table on a server, with the calls that the online store makes on those of LMDB.

A transaction reads from the server and keeps its changes to itself. Its commit is one step on the server: it changes
everything if no record that was read has changed meanwhile, else nothing; then the body runs again. So the code that
writes tiles, checkpoints, fences and tombstones is the same for all stores, and so is what it guarantees.
"""

from __future__ import annotations

import random
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from featurekit_dagster.errors import ConcurrentOnlineWrite, OnlineStoreContended
from featurekit_dagster.stores.remote_table import ABSENT, RemoteTable

_T = TypeVar("_T")

_TRIES = 200
_LONGEST_WAIT_SECONDS = 0.1
_PAGES = (4, 64, 1_000)


class RemoteTransaction:
    """Reads of a table, and changes that nobody sees before the commit.

    Args:
        table: The records.
        checks: Whether its commit looks whether what was read has changed.
    """

    def __init__(self, table: RemoteTable, *, checks: bool) -> None:
        self.table, self._checks = table, checks
        self._expected: dict[bytes, bytes] = {}
        self._appended: set[bytes] = set()
        self._values: dict[bytes, bytes | None] = {}
        self._changes: dict[bytes, bytes | None] = {}
        self._put_keys: list[bytes] | None = []
        # stored keys of one stretch: begin, end (None: there are no more) and the keys in it
        self._stretch: tuple[bytes, bytes | None, list[bytes]] = (b"", b"", [])
        self._stretches = 0

    def get(self, key: bytes, default: bytes | None = None) -> bytes | None:
        """Return a record's value."""
        found = self.get_many([key])[0]
        return default if found is None else found

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each record, those of one join key as of one moment; None for none."""
        if not self._checks:
            return [value for _, value in self.table.get(keys)]
        unknown = [key for key in dict.fromkeys(keys) if key not in self._changes and key not in self._values]
        if unknown:
            for key, (version, value) in zip(unknown, self.table.get(unknown), strict=True):
                self.learn(key, version, value)
        changes, values = self._changes, self._values
        return [changes[key] if key in changes else values[key] for key in keys]

    def learn(self, key: bytes, version: bytes, value: bytes | None) -> bytes | None:
        """Take note of what is stored; return the value as this transaction sees it."""
        if self._checks:
            self._expected.setdefault(key, version)
            self._values.setdefault(key, value)
        return self._changes.get(key, value)

    def put(self, key: bytes, value: bytes) -> bool:
        """Store a record."""
        if self._changes.get(key) is None:
            self._put_keys = None
        self._changes[key] = value
        return True

    def append(self, key: bytes, value: bytes) -> None:
        """Store a record that must not exist; if it does, the commit fails for good."""
        self._appended.add(key)
        self._expected.setdefault(key, ABSENT)
        self.put(key, value)

    def delete(self, key: bytes) -> bool:
        """Delete a record; one that does not exist is left at that."""
        self._changes[key] = None
        return True

    def cursor(self) -> RemoteCursor:
        """Return a cursor that stands nowhere."""
        return RemoteCursor(self)

    def is_deleted(self, key: bytes) -> bool:
        """Tell whether this transaction has deleted a record."""
        return key in self._changes and self._changes[key] is None

    def put_keys(self) -> list[bytes]:
        """Return the keys that this transaction has stored, ascending; some may be deleted again."""
        if self._put_keys is None:
            self._put_keys = sorted(key for key, value in self._changes.items() if value is not None)
        return self._put_keys

    def first_from(self, key: bytes) -> bytes | None:
        """Return the first key that is not before this one; None if there is none."""
        stored = next((each for each in self._stored_from(key) if not self.is_deleted(each)), None)
        own = self.put_keys()
        for at in range(bisect_left(own, key), len(own)):
            if not self.is_deleted(own[at]):
                return own[at] if stored is None else min(stored, own[at])
        return stored

    def _stored_from(self, key: bytes) -> Iterator[bytes]:
        """Yield the stored keys from one on, a stretch at a time; the last stretch is remembered."""
        begin, end, keys = self._stretch
        if begin > key or (end is not None and key >= end):
            begin, end, keys = self._fetch(key)
        at = bisect_left(keys, key)
        while True:
            yield from keys[at:]
            if end is None:
                return
            at, (begin, end, keys) = 0, self._fetch(end)

    def _fetch(self, begin: bytes) -> tuple[bytes, bytes | None, list[bytes]]:
        most = _PAGES[min(self._stretches, len(_PAGES) - 1)]
        self._stretches += 1
        keys = self.table.following(begin, None, most)
        end = keys[-1] + b"\x00" if len(keys) >= most else None
        self._stretch = (begin, end, keys)
        return self._stretch

    def commit(self) -> bool:
        """Change everything in one step; return False, with nothing changed, if something that was read has changed.

        Raises:
            ConcurrentOnlineWrite: A record that was appended exists.
        """
        if not self._changes:
            return True
        stale = self.table.commit(self._expected, self._changes)
        if self._appended.intersection(stale):
            raise ConcurrentOnlineWrite(view="an online store")
        return not stale


class RemoteCursor:
    """A place in the keys of a transaction."""

    def __init__(self, transaction: RemoteTransaction) -> None:
        self._transaction = transaction
        self._at: bytes | None = None

    def getmulti(self, keys: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        """Return the records that exist of these, in the order asked for."""
        keys = list(keys)
        found = zip(keys, self._transaction.get_many(keys), strict=True)
        return [(key, value) for key, value in found if value is not None]

    def putmulti(self, records: Iterable[tuple[bytes, bytes]], *, append: bool = False) -> tuple[int, int]:
        """Store records; with `append`, ones that must not exist. Return their number twice."""
        count, put = 0, self._transaction.append if append else self._transaction.put
        for key, value in records:
            put(key, value)
            count += 1
        return count, count

    def set_range(self, key: bytes) -> bool:
        """Go to the first record whose key is not before this one; tell whether there is one."""
        self._at = self._transaction.first_from(key)
        return self._at is not None

    def key(self) -> bytes:
        """Return the key of the record where it stands; empty if it stands nowhere."""
        return self._at or b""

    def delete(self) -> bool:
        """Delete the record where it stands."""
        return self._at is not None and self._transaction.delete(self._at)

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the records from where it stands on, in key order."""
        transaction, begin, round_ = self._transaction, self._at, 0
        while begin is not None:
            most = _PAGES[min(round_, len(_PAGES) - 1)]
            page = transaction.table.scan(begin, None, most)
            end = page[-1][0] + b"\x00" if len(page) >= most else None
            stored = {key: transaction.learn(key, version, value) for key, (version, value) in page}
            own = transaction.put_keys()
            last = len(own) if end is None else bisect_left(own, end)
            for key in own[bisect_left(own, begin) : last]:
                stored[key] = transaction.get(key)
            for key in sorted(stored):
                value = stored[key]
                if value is not None and not transaction.is_deleted(key):
                    yield key, value
            begin, round_ = end, round_ + 1


class RemoteEnvironment:
    """The table of one view as the environment that `record_store.py` works in.

    Args:
        table: The records.
        path: Where it is, for messages.
    """

    def __init__(self, table: RemoteTable, path: str) -> None:
        self.table, self.path = table, path
        self._lock = threading.Lock()

    def begin_read(self) -> RemoteTransaction:
        """Return a transaction for reads."""
        return RemoteTransaction(self.table, checks=False)

    def end_read(self, transaction: RemoteTransaction) -> None:
        """End a read; nothing is held for it."""

    def transact(self, body: Callable[[RemoteTransaction], _T]) -> _T:
        """Run `body` in a write transaction; run it again where others have changed meanwhile what it read.

        Raises:
            OnlineStoreContended: They did so each time.
        """
        # writers of one process queue up here instead of undoing each other's work
        with self._lock:
            for attempt in range(_TRIES):
                transaction = RemoteTransaction(self.table, checks=True)
                answer = body(transaction)
                if transaction.commit():
                    return answer
                time.sleep(random.uniform(0, min(_LONGEST_WAIT_SECONDS, 0.001 * 2 ** min(attempt, 10))))  # noqa: S311
        raise OnlineStoreContended(place=self.path, tries=_TRIES)

    def sync(self) -> None:
        """Do nothing: how durable an answered commit is, is the server's to say."""

    def remove_files(self) -> None:
        """Remove all records."""
        self.table.clear()

    def close(self) -> None:
        """Close the table's connections."""
        self.table.close()
