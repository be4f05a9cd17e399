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
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import TypeVar

from featurekit_dagster.errors import ConcurrentOnlineWrite, OnlineStoreContended
from featurekit_dagster.stores.remote_table import ABSENT, RemoteTable, Stored

_T = TypeVar("_T")

_TRIES = 200
_LONGEST_WAIT_SECONDS = 0.1
_PAGES = (4, 64, 1_000)
_USUAL_KEYS = 12
_FACTS = b"\x00\x00"


class UsualKeys:
    """The keys that transactions have lately read one by one: markers, fences and the like."""

    def __init__(self) -> None:
        self._keys: dict[bytes, None] = {}

    def note(self, key: bytes) -> None:
        """Take note of a key; those of records are not usual."""
        if not key.startswith(_FACTS):
            return
        self._keys.pop(key, None)
        self._keys[key] = None
        while len(self._keys) > _USUAL_KEYS:
            self._keys.pop(next(iter(self._keys)), None)

    def besides(self, key: bytes, known: Container[bytes]) -> list[bytes]:
        """Return the others that are not known."""
        return [each for each in list(self._keys) if each != key and each not in known]


class RemoteTransaction:
    """Reads of a table, and changes that nobody sees before the commit.

    Args:
        table: The records.
        checks: Whether its commit looks whether what was read has changed.
        usual: What transactions of its kind read one by one.
    """

    def __init__(self, table: RemoteTable, *, checks: bool, usual: UsualKeys | None = None) -> None:
        self.table, self._checks = table, checks
        self._usual = UsualKeys() if usual is None else usual
        self._ahead: dict[bytes, Stored] = {}
        self._expected: dict[bytes, bytes] = {}
        self._appended: set[bytes] = set()
        self._values: dict[bytes, bytes | None] = {}
        self._changes: dict[bytes, bytes | None] = {}
        self._put_keys: list[bytes] | None = []
        # stored keys of one stretch: begin, end (None: there are no more) and the keys in it
        self._stretch: tuple[bytes, bytes | None, list[bytes]] = (b"", b"", [])
        self._stretches = 0

    def get(self, key: bytes, default: bytes | None = None) -> bytes | None:
        """Return a record's value; what transactions usually read as well is fetched with the first one."""
        if key not in self._changes and key not in self._values:
            if key not in self._ahead:
                wanted = [key, *self._usual.besides(key, self._ahead)]
                self._ahead.update(zip(wanted, self.table.get(wanted), strict=True))
            version, self._values[key] = self._ahead[key]
            if self._checks:
                self._expected.setdefault(key, version)
            self._usual.note(key)
        value = self._changes[key] if key in self._changes else self._values[key]
        return default if value is None else value

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

    def put_keys_between(self, begin: bytes, end: bytes | None) -> list[bytes]:
        """Return the keys with `begin <= key < end` that this transaction has stored, ascending; None is no end."""
        if self._put_keys is None:
            self._put_keys = sorted(key for key, value in self._changes.items() if value is not None)
        first = bisect_left(self._put_keys, begin)
        last = len(self._put_keys) if end is None else bisect_left(self._put_keys, end)
        return [key for key in self._put_keys[first:last] if not self.is_deleted(key)]

    def first_from(self, key: bytes) -> bytes | None:
        """Return the first key that is not before this one; None if there is none."""
        stored = next((each for each in self._stored_from(key) if not self.is_deleted(each)), None)
        own = self.put_keys_between(key, stored)
        return own[0] if own else stored

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
    """A place in the keys of a transaction; it fetches values a page at a time, once they are asked for."""

    def __init__(self, transaction: RemoteTransaction) -> None:
        self._transaction = transaction
        self._at: bytes | None = None
        self._page: list[tuple[bytes, bytes]] = []
        self._place, self._pages = 0, 0
        self._end: bytes | None = None

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
        self._page, self._at = [], self._transaction.first_from(key)
        return self._at is not None

    def key(self) -> bytes:
        """Return the key of the record where it stands; empty if it stands nowhere."""
        return self._at or b""

    def item(self) -> tuple[bytes, bytes]:
        """Return the record where it stands; empty if it stands nowhere."""
        if self._at is not None and not self._page:
            self._turn(self._at)
        return (b"", b"") if self._at is None else self._page[self._place]

    def next(self) -> bool:
        """Go to the following record; tell whether there is one."""
        if self._at is not None and not self._page:
            return self.set_range(self._at + b"\x00")
        while self._at is not None:
            self._place += 1
            if self._place < len(self._page):
                self._at = self._page[self._place][0]
                if not self._transaction.is_deleted(self._at):
                    return True
            else:
                self._turn(self._end)
                return self._at is not None
        return False

    def delete(self) -> bool:
        """Delete the record where it stands, and go to the following one; tell whether there was one."""
        if self._at is None:
            return False
        self._transaction.delete(self._at)
        self.next()
        return True

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the records from where it stands on, in key order."""
        while self._at is not None:
            yield self.item()
            self.next()

    def _turn(self, begin: bytes | None) -> None:
        """Fetch the page that begins at a key, and stand on its first record; nowhere after the last page."""
        transaction, self._page, self._place = self._transaction, [], 0
        while begin is not None and not self._page:
            most = _PAGES[min(self._pages, len(_PAGES) - 1)]
            stored = transaction.table.scan(begin, None, most)
            end = stored[-1][0] + b"\x00" if len(stored) >= most else None
            found = {key: transaction.learn(key, version, value) for key, (version, value) in stored}
            found |= {key: transaction.get(key) for key in transaction.put_keys_between(begin, end)}
            self._page = [(key, value) for key, value in sorted(found.items()) if value is not None]
            begin, self._end, self._pages = end, end, self._pages + 1
        self._at = self._page[0][0] if self._page else None


class RemoteEnvironment:
    """The table of one view as the environment that `record_store.py` works in.

    Args:
        table: The records.
        path: Where it is, for messages.
    """

    def __init__(self, table: RemoteTable, path: str) -> None:
        self.table, self.path = table, path
        self._lock = threading.Lock()
        self._read_keys, self._written_keys = UsualKeys(), UsualKeys()

    def begin_read(self) -> RemoteTransaction:
        """Return a transaction for reads."""
        return RemoteTransaction(self.table, checks=False, usual=self._read_keys)

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
                transaction = RemoteTransaction(self.table, checks=True, usual=self._written_keys)
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
