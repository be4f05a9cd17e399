"""How packed records get into LMDB: short transactions of whole keys, merged with what is stored.

The first load of a generation appends; everything later reads what it touches in the same transaction, lets `wins`
decide and writes whole values back. `lmdb.py` sets the coverage marker after all of it.
"""

from __future__ import annotations

import struct
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from featurekit_dagster.errors import OnlineLayoutMismatch
from featurekit_dagster.intervals import Interval
from featurekit_dagster.stores.key_codec import KeyCodec, chunk_of, chunk_suffix
from featurekit_dagster.stores.lmdb_environment import LmdbEnvironment
from featurekit_dagster.stores.online import TILES_PER_CHUNK, OnlineLayout, wins
from featurekit_dagster.stores.packing import ValueCodec, lead_time
from featurekit_dagster.stores.record_runs import RecordRuns, RecordSlab

if TYPE_CHECKING:
    import lmdb

_FULL_KEY_BYTES = struct.Struct("<I")
_TRANSACTION_SECONDS = 0.025
_FIRST_RECORDS, _FEWEST_RECORDS, _MOST_RECORDS = 2_000, 64, 50_000
_CLEARED_PER_TRANSACTION = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What the writer needs to know about a stored generation.

    Args:
        layout: Its layout.
        environment: Where it lies.
        keys: Codec of its keys.
        values: Codec of its values.
        layout_key: Stored key under which its signature is kept.
        marker_key: Stored key of its coverage marker.
        signature: Bytes that differ when another layout would read the records wrongly.
    """

    layout: OnlineLayout
    environment: LmdbEnvironment
    keys: KeyCodec
    values: ValueCodec
    layout_key: bytes
    marker_key: bytes
    signature: bytes


class _Pace:
    """How many records to put into one transaction, so that it takes about 25 ms."""

    def __init__(self) -> None:
        self.records = _FIRST_RECORDS

    def learn(self, records: int, seconds: float) -> None:
        """Adapt to what the last transaction took."""
        fitting = int(records * _TRANSACTION_SECONDS / max(seconds, 1e-4))
        self.records = max(_FEWEST_RECORDS, min(fitting, self.records * 2, _MOST_RECORDS))


def write_records(generation: Generation, runs: RecordRuns, replace: Interval | None) -> int:
    """Write all records and return how many rows lost against what was stored.

    Raises:
        OnlineLayoutMismatch: The generation was written with another layout.
    """
    is_empty = generation.environment.transact(lambda transaction: _open_generation(transaction, generation))
    pace, refused = _Pace(), 0
    for slab in runs.slabs():
        values = _with_full_keys(slab, runs.full_keys)
        first_key, keys = 0, len(slab.key_starts)
        while first_key < keys:
            begin = slab.key_starts[first_key]
            last_key = max(first_key + 1, bisect_left(slab.key_starts, begin + pace.records, first_key))
            end = slab.key_starts[last_key] if last_key < keys else len(values)
            batch = _Batch(generation, slab.keys[begin:end], values[begin:end], slab.base_keys[first_key:last_key])
            started = time.perf_counter()
            refused += generation.environment.transact(batch.append if is_empty else batch.body(replace))
            pace.learn(end - begin, time.perf_counter() - started)
            first_key = last_key
    return refused


def _open_generation(transaction: lmdb.Transaction[bytes], generation: Generation) -> bool:
    """Check or store the layout; tell whether no record lies at or behind the generation, so that appending works."""
    stored = transaction.get(generation.layout_key)
    if stored is None:
        transaction.put(generation.layout_key, generation.signature)
    elif stored != generation.signature:
        raise OnlineLayoutMismatch(view=generation.layout.view, generation=generation.layout.generation)
    return not transaction.cursor().set_range(generation.keys.generation_prefix)


def _with_full_keys(slab: RecordSlab, full_keys: dict[bytes, bytes]) -> list[bytes]:
    """Return the slab's values, those of hashed keys after the whole encoded key."""
    if not full_keys:
        return slab.values
    chunk_bytes = len(slab.keys[0]) - len(slab.base_keys[0])
    values = []
    for key, value in zip(slab.keys, slab.values, strict=True):
        full = full_keys.get(key[: len(key) - chunk_bytes])
        values.append(value if full is None else _FULL_KEY_BYTES.pack(len(full)) + full + value)
    return values


class _Batch:
    """The records of one transaction; its methods are transaction bodies and may run more than once."""

    def __init__(self, generation: Generation, keys: list[bytes], values: list[bytes], base_keys: list[bytes]) -> None:
        self._generation, self._keys, self._values, self._base_keys = generation, keys, values, base_keys

    def body(self, replace: Interval | None) -> Callable[[lmdb.Transaction[bytes]], int]:
        """Return the method that brings the records and what is stored together."""
        if self._generation.layout.tile_us is None:
            return self.upsert
        return self.merge if replace is None else partial(self.replace, interval=replace)

    def append(self, transaction: lmdb.Transaction[bytes]) -> int:
        """Put records behind all others."""
        consumed, added = transaction.cursor().putmulti(zip(self._keys, self._values, strict=True), append=True)
        if added != len(self._keys) or consumed != added:
            # Somebody wrote since the generation was found empty.
            return self.body(None)(transaction)
        return 0

    def upsert(self, transaction: lmdb.Transaction[bytes]) -> int:
        """Put latest-value rows that win over the stored ones."""
        cursor = transaction.cursor()
        olds = dict(cursor.getmulti(self._keys))
        puts = []
        for key, new in zip(self._keys, self._values, strict=True):
            old = olds.get(key)
            head = self._head(key, new)
            if old is None or wins(lead_time(new, head), lead_time(old, head)):
                puts.append((key, new))
        cursor.putmulti(puts)
        return len(self._keys) - len(puts)

    def merge(self, transaction: lmdb.Transaction[bytes]) -> int:
        """Put tiles, merged chunk by chunk with the stored ones."""
        cursor = transaction.cursor()
        puts, refused = self._merged(dict(cursor.getmulti(self._keys)))
        cursor.putmulti(puts)
        return refused

    def replace(self, transaction: lmdb.Transaction[bytes], interval: Interval) -> int:
        """Put tiles after forgetting every stored one of the same keys that starts in `interval`."""
        tile_us = self._generation.layout.tile_us or 1
        first, last = -(-interval.start_us // tile_us), -(-interval.end_us // tile_us) - 1
        kept = dict(transaction.cursor().getmulti(self._keys))
        given = set(self._keys)
        for base in self._base_keys:
            for stored, value in _stored_chunks(transaction, base, first, last):
                start = chunk_of(stored) * TILES_PER_CHUNK
                head = self._head(stored, value)
                left = self._generation.values.without_slots(value[head:], first - start, last - start)
                if left is not None:
                    kept[stored] = value[:head] + left
                else:
                    kept.pop(stored, None)
                    transaction.delete(stored)
        puts, refused = self._merged(kept)
        puts += [(stored, value) for stored, value in kept.items() if stored not in given]
        transaction.cursor().putmulti(puts)
        return refused

    def _merged(self, olds: dict[bytes, bytes]) -> tuple[list[tuple[bytes, bytes]], int]:
        """Return the given chunks merged with the stored ones, and how many given tiles lost."""
        puts, refused, merge_tiles = [], 0, self._generation.values.merge_tiles
        for key, new in zip(self._keys, self._values, strict=True):
            old = olds.get(key)
            if old is None:
                puts.append((key, new))
                continue
            head = self._head(key, new)
            merged, lost = merge_tiles(old[head:], new[head:]) if head else merge_tiles(old, new)
            puts.append((key, new[:head] + merged if head else merged))
            refused += lost
        return puts, refused

    def _head(self, key: bytes, value: bytes) -> int:
        """Return how many bytes of the value hold the whole key."""
        if not self._generation.keys.is_hashed(key):
            return 0
        return _FULL_KEY_BYTES.size + int(_FULL_KEY_BYTES.unpack_from(value)[0])


def _stored_chunks(
    transaction: lmdb.Transaction[bytes], base: bytes, first_tile: int, last_tile: int
) -> list[tuple[bytes, bytes]]:
    """Return the stored chunks of one key that may hold tiles `first_tile..last_tile`."""
    cursor, found = transaction.cursor(), []
    end = base + chunk_suffix(last_tile // TILES_PER_CHUNK)
    if cursor.set_range(base + chunk_suffix(first_tile // TILES_PER_CHUNK)):
        for stored, value in cursor:
            if stored > end:
                break
            found.append((stored, value))
    return found


def clear_generation(generation: Generation) -> None:
    """Delete a generation's coverage marker, then its records, then its layout."""
    prefix, environment = generation.keys.generation_prefix, generation.environment
    environment.transact(lambda transaction: transaction.delete(generation.marker_key))

    def delete_some(transaction: lmdb.Transaction[bytes]) -> bool:
        cursor = transaction.cursor()
        for _ in range(_CLEARED_PER_TRANSACTION):
            if not cursor.set_range(prefix) or not cursor.key().startswith(prefix):
                return False
            cursor.delete()
        return True

    while environment.transact(delete_some):
        pass
    environment.transact(lambda transaction: transaction.delete(generation.layout_key))
    environment.sync()
