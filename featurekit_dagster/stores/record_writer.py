"""How packed records get into an online store: short transactions of whole keys, merged with what is stored.

The first load of a generation appends; everything later reads what it touches in the same transaction, lets `wins`
decide and writes whole values back. `record_store.py` sets the coverage marker after all of it.
"""

from __future__ import annotations

import struct
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from featurekit_dagster.errors import ConcurrentOnlineWrite, LeaseLost, OnlineLayoutMismatch
from featurekit_dagster.intervals import Interval
from featurekit_dagster.stores.key_codec import CHUNK_BYTES, KeyCodec, chunk_suffix, chunks_of
from featurekit_dagster.stores.lmdb_environment import LmdbEnvironment
from featurekit_dagster.stores.lmdb_places import place_key, place_of, stored_place
from featurekit_dagster.stores.online import TILES_PER_CHUNK, OnlineLayout, wins
from featurekit_dagster.stores.packing import WORD_BYTES, Block, ValueCodec, lead_time
from featurekit_dagster.stores.record_runs import RecordRuns, RecordSlab
from featurekit_dagster.stores.record_sieve import Sieve
from featurekit_dagster.stores.tile_merge import merge_blocks, merge_tiles

if TYPE_CHECKING:
    import lmdb

_T = TypeVar("_T")

_FULL_KEY_BYTES = struct.Struct("<Q")
_TRANSACTION_SECONDS = 0.035
_FIRST_RECORDS, _FEWEST_RECORDS, _MOST_RECORDS = 2_000, 64, 50_000
# Chunks of an interval that are looked up one by one; of more, a cursor visits only those that exist.
_CHUNKS_BY_GET = 4
_ONE = np.uint64(1)
_ALL = np.uint64((1 << 64) - 1)


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
        fence_key: Stored key of the highest lease epoch under which anybody has begun to write.
        signature: Bytes that differ when another layout would read the records wrongly.
    """

    layout: OnlineLayout
    environment: LmdbEnvironment
    keys: KeyCodec
    values: ValueCodec
    layout_key: bytes
    marker_key: bytes
    fence_key: bytes
    signature: bytes

    def write_under(self, epoch: int, body: Callable[[lmdb.Transaction[bytes]], _T]) -> _T:
        """Run `body` in a write transaction of the holder of a lease.

        The first transaction under an epoch shuts out all lower ones, so a writer that was overtaken changes nothing
        more, wherever it was stopped.

        Raises:
            LeaseLost: Somebody has begun to write under a higher epoch.
        """

        def fenced(transaction: lmdb.Transaction[bytes]) -> _T:
            stored = transaction.get(self.fence_key)
            current = 0 if stored is None else int.from_bytes(stored, "little")
            if current > epoch:
                raise LeaseLost(name=f"batch:{self.layout.view}", epoch=epoch, current=current)
            if current < epoch:
                transaction.put(self.fence_key, epoch.to_bytes(8, "little"))
            return body(transaction)

        return self.environment.transact(fenced)


class _Pace:
    """How many records to put into one transaction, so that it takes about 35 ms and hardly ever 50."""

    def __init__(self) -> None:
        self.records = _FIRST_RECORDS

    def learn(self, records: int, seconds: float) -> None:
        """Adapt to what the last transaction took."""
        fitting = int(records * _TRANSACTION_SECONDS / max(seconds, 1e-4))
        self.records = max(_FEWEST_RECORDS, min(fitting, self.records * 2, _MOST_RECORDS))


def write_records(
    generation: Generation, runs: RecordRuns, replace: Interval | None, epoch: int, *, keep_stream: bool = False
) -> tuple[int, int]:
    """Write all records; return how many rows lost against what was stored, and how many are of deleted keys.

    Args:
        generation: What is written.
        runs: The records.
        replace: Tiles that start in it are forgotten first, of the keys of the records.
        epoch: Lease epoch of the writer.
        keep_stream: Whether tiles of a stream are not forgotten so; those of the records replace them all the same.

    Raises:
        OnlineLayoutMismatch: The generation was written with another layout.
        LeaseLost: Somebody has begun to write under a higher epoch.
    """
    is_empty = generation.write_under(epoch, lambda transaction: open_generation(transaction, generation))
    trailers = {stored: trailer_of(full) for stored, full in runs.full_keys.items()}
    pace, refused, deleted = _Pace(), 0, 0
    for slab in runs.slabs():
        body_of = partial(_body, generation, trailers, is_empty, replace, keep_stream)
        body = _Sieved(Sieve(generation.layout, slab, runs.full_keys), body_of(slab), body_of)
        first_key, keys = 0, len(slab.key_starts)
        while first_key < keys:
            begin = slab.key_starts[first_key]
            last_key = max(first_key + 1, bisect_left(slab.key_starts, begin + pace.records, first_key))
            end = slab.key_starts[last_key] if last_key < keys else len(slab.keys)
            batch = _Batch(begin, end, first_key, last_key)
            started = time.perf_counter()
            lost, left_out = generation.write_under(epoch, partial(body, batch=batch))
            refused, deleted = refused + lost, deleted + left_out
            pace.learn(end - begin, time.perf_counter() - started)
            first_key = last_key
    return refused, deleted


def trailer_of(full_key: bytes) -> bytes:
    """Return what follows the value of a hashed key: the whole encoded key in whole words, then its length."""
    return full_key + bytes(-len(full_key) % WORD_BYTES) + _FULL_KEY_BYTES.pack(len(full_key))


def full_key_of(value: bytes) -> bytes:
    """Return the whole encoded key that follows the value of a hashed key."""
    (length,) = _FULL_KEY_BYTES.unpack(value[-_FULL_KEY_BYTES.size :])
    begin = len(value) - _FULL_KEY_BYTES.size - length - -length % WORD_BYTES
    return value[begin : begin + length]


def _body(
    generation: Generation,
    trailers: dict[bytes, bytes],
    is_empty: bool,
    replace: Interval | None,
    keep_stream: bool,
    slab: RecordSlab,
) -> _Body:
    """Return what puts a batch of the slab into a transaction; it may run more than once for the same batch."""
    # a stream writes at the same time, so nothing stays the first load
    appends = is_empty and not generation.layout.is_stream
    if generation.layout.tile_us is not None and not appends:
        return _TileMerge(generation, slab, trailers, replace, keep_stream=keep_stream)
    return (_Append if appends else _RowUpsert)(generation, slab, trailers)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Whole keys of a slab: records `begin..end - 1` of the keys `first_key..last_key - 1`."""

    begin: int
    end: int
    first_key: int
    last_key: int


class _Body(Protocol):
    """Puts a batch into a transaction and returns how many of its rows lost."""

    def __call__(self, transaction: lmdb.Transaction[bytes], batch: _Batch) -> int: ...


class _Sieved:
    """Puts a batch without what the tombstones hide, and returns how many rows lost and how many were left out."""

    def __init__(self, sieve: Sieve, whole: _Body, body_of: Callable[[RecordSlab], _Body]) -> None:
        self._sieve, self._whole, self._body_of = sieve, whole, body_of

    def __call__(self, transaction: lmdb.Transaction[bytes], batch: _Batch) -> tuple[int, int]:
        left = self._sieve.sift(transaction, batch.first_key, batch.last_key)
        if left is None:
            return self._whole(transaction, batch), 0
        slab = left.slab
        if not slab.keys:
            return 0, left.deleted
        every = _Batch(0, len(slab.keys), 0, len(slab.base_keys))
        return self._body_of(slab)(transaction, every), left.deleted


class _Append:
    """Puts records behind all others; for the first load of a generation."""

    def __init__(self, generation: Generation, slab: RecordSlab, trailers: dict[bytes, bytes]) -> None:
        self._view = generation.layout.view
        self._keys = slab.keys
        self._values = with_trailers(slab.keys, generation.values.pack(slab.block), trailers)

    def __call__(self, transaction: lmdb.Transaction[bytes], batch: _Batch) -> int:
        keys, values = self._keys[batch.begin : batch.end], self._values[batch.begin : batch.end]
        _, added = transaction.cursor().putmulti(zip(keys, values, strict=True), append=True)
        if added != len(keys):
            raise ConcurrentOnlineWrite(view=self._view)
        return 0


class _RowUpsert:
    """Puts latest-value rows that win over the stored ones."""

    def __init__(self, generation: Generation, slab: RecordSlab, trailers: dict[bytes, bytes]) -> None:
        self._keys = slab.keys
        self._values = with_trailers(slab.keys, generation.values.pack(slab.block), trailers)

    def __call__(self, transaction: lmdb.Transaction[bytes], batch: _Batch) -> int:
        cursor, keys = transaction.cursor(), self._keys[batch.begin : batch.end]
        olds = dict(cursor.getmulti(keys))
        puts = []
        for key, new in zip(keys, self._values[batch.begin : batch.end], strict=True):
            old = olds.get(key)
            if old is None or wins(lead_time(new), lead_time(old)):
                puts.append((key, new))
        cursor.putmulti(puts)
        return len(keys) - len(puts)


class _TileMerge:
    """Puts tiles, merged chunk by chunk with the stored ones, after forgetting those that start in `replace`."""

    def __init__(
        self,
        generation: Generation,
        slab: RecordSlab,
        trailers: dict[bytes, bytes],
        replace: Interval | None,
        *,
        keep_stream: bool,
    ) -> None:
        self._codec, self._slab, self._trailers = generation.values, slab, trailers
        self._keep_stream = keep_stream
        self._forget: tuple[int, int] | None = None
        if replace is not None:
            tile_us = generation.layout.tile_us or 1
            self._forget = -(-replace.start_us // tile_us), -(-replace.end_us // tile_us) - 1

    def __call__(self, transaction: lmdb.Transaction[bytes], batch: _Batch) -> int:
        cursor, keys = transaction.cursor(), self._slab.keys[batch.begin : batch.end]
        new = _slice(self._slab.block, batch.begin, batch.end)
        if self._forget is not None:
            olds = self._stored(transaction, batch, keys, *self._forget)
            if self._forgets_any(olds, keys, new, *self._forget):
                return self._replace(transaction, olds, keys, new)
            found = [(key, olds[key]) for key in keys if key in olds]
        else:
            found = cursor.getmulti(keys)
        if self._trailers:
            found = [(key, bare_value(key, value, self._trailers)) for key, value in found]
        if len(found) == len(keys):
            values, refused = merge_tiles(self._codec, [value for _, value in found], new)
        elif not found:
            values, refused = self._codec.pack(new), 0
        else:
            values, refused = self._merge_some(keys, dict(found), new)
        cursor.putmulti(zip(keys, with_trailers(keys, values, self._trailers), strict=True))
        return refused

    def _merge_some(self, keys: list[bytes], olds: dict[bytes, bytes], new: Block) -> tuple[list[bytes], int]:
        """Return the new value of every key where only some are stored, and how many new tiles lost."""
        is_stored = np.array([key in olds for key in keys])
        touched = is_stored[new.owners]
        places = np.cumsum(is_stored) - 1, np.cumsum(~is_stored) - 1
        old_values = [olds[key] for key in keys if key in olds]
        merged, refused = merge_tiles(self._codec, old_values, new.take(touched, places[0][new.owners[touched]]))
        fresh = self._codec.pack(new.take(~touched, places[1][new.owners[~touched]]))
        sources = iter(fresh), iter(merged)
        return [next(sources[stored]) for stored in is_stored.tolist()], refused

    def _stored(
        self, transaction: lmdb.Transaction[bytes], batch: _Batch, given: list[bytes], first: int, last: int
    ) -> dict[bytes, bytes]:
        """Return the stored chunks under the given keys, and those of the same join keys with tiles to be forgotten."""
        bases = self._slab.base_keys[batch.first_key : batch.last_key]
        chunks = range(first // TILES_PER_CHUNK, last // TILES_PER_CHUNK + 1)
        found: dict[bytes, bytes] = {}
        if len(chunks) > _CHUNKS_BY_GET:
            for base in bases:
                found.update(_stored_chunks(transaction, base, first, last))
            found.update(transaction.cursor().getmulti(given))
            return found
        suffixes = [chunk_suffix(chunk) for chunk in chunks]
        wanted = [base + suffix for base in bases for suffix in suffixes]
        if wanted != given:
            wanted = sorted({*wanted, *given})
        return dict(transaction.cursor().getmulti(wanted))

    @staticmethod
    def _forgets_any(olds: dict[bytes, bytes], given: list[bytes], new: Block, first: int, last: int) -> bool:
        """Tell whether a stored tile in `first..last` is not overwritten by a new one."""
        if not olds:
            return False
        starts = np.flatnonzero(np.diff(new.owners, prepend=-1))
        written = np.bitwise_or.reduceat(_ONE << new.leads.astype(np.uint64), starts)
        if list(olds) == given:
            at = np.arange(len(given))
        else:
            places = {key: place for place, key in enumerate(given)}
            at = np.array([places.get(key, -1) for key in olds])
        present = np.frombuffer(b"".join([value[:WORD_BYTES] for value in olds.values()]), np.uint64)
        present = present & ~np.where(at >= 0, written[at], np.uint64(0))
        chunk_starts = chunks_of(olds) * TILES_PER_CHUNK
        lowest = np.clip(first - chunk_starts, 0, TILES_PER_CHUNK).astype(np.uint64)
        above = np.clip(TILES_PER_CHUNK - 1 - (last - chunk_starts), 0, TILES_PER_CHUNK).astype(np.uint64)
        bits = (_ALL << lowest) & (_ALL >> above)
        return bool((present & bits).any())

    def _replace(
        self, transaction: lmdb.Transaction[bytes], olds: dict[bytes, bytes], given: list[bytes], new: Block
    ) -> int:
        """Put tiles after forgetting stored ones; delete the chunks in which nothing is left."""
        assert self._forget is not None
        keys, refused = sorted({*given, *olds}), 0
        places = {key: place for place, key in enumerate(keys)}
        new = replace_fields(new, owners=np.array([places[key] for key in given])[new.owners])
        if olds:
            new, refused = merge_blocks(self._kept(keys, olds, *self._forget), new)
        left = new.owners[np.flatnonzero(np.diff(new.owners, prepend=-1))].tolist()
        for place in set(range(len(keys))).difference(left):
            transaction.delete(keys[place])
        keys = [keys[place] for place in left]
        values = with_trailers(keys, self._codec.pack(new), self._trailers)
        transaction.cursor().putmulti(zip(keys, values, strict=True))
        return refused

    def _kept(self, keys: list[bytes], olds: dict[bytes, bytes], first: int, last: int) -> Block:
        """Return the stored tiles other than `first..last`; owners are places in `keys`."""
        held = np.array([place for place, key in enumerate(keys) if key in olds])
        block = self._codec.unpack([bare_value(keys[p], olds[keys[p]], self._trailers) for p in held.tolist()])
        owners = held[block.owners]
        tiles = chunks_of(keys)[owners] * TILES_PER_CHUNK + block.leads
        kept = (tiles < first) | (tiles > last)
        if self._keep_stream:
            kept |= ~block.from_batch
        return block.take(kept, owners[kept])


def _slice(block: Block, begin: int, end: int) -> Block:
    """Return the rows of values `begin` to `end - 1`, which become values 0 and up."""
    first, last = np.searchsorted(block.owners, (begin, end)).tolist()
    return block.take(slice(first, last), block.owners[first:last] - begin)


def bare_value(key: bytes, value: bytes, trailers: dict[bytes, bytes]) -> bytes:
    """Return a stored value without the whole key that follows it where the key is hashed."""
    trailer = trailers.get(key) or trailers.get(key[:-CHUNK_BYTES])
    return value if trailer is None else value[: -len(trailer)]


def with_trailers(keys: list[bytes], values: list[bytes], trailers: dict[bytes, bytes]) -> list[bytes]:
    """Return the values, those of hashed keys with the whole encoded key behind them."""
    if not trailers:
        return values
    ends = (trailers.get(key) or trailers.get(key[:-CHUNK_BYTES]) or b"" for key in keys)
    return [value + end for value, end in zip(values, ends, strict=True)]


def open_generation(transaction: lmdb.Transaction[bytes], generation: Generation) -> bool:
    """Check or store the layout; tell whether no record lies at or behind the generation, so that appending works."""
    stored = transaction.get(generation.layout_key)
    if stored is None:
        transaction.put(generation.layout_key, generation.signature)
        layout = generation.layout
        if layout.tile_us is not None and stored_place(transaction, layout) is None:
            transaction.put(place_key(layout.generation), place_of(layout))
    elif stored != generation.signature:
        raise OnlineLayoutMismatch(view=generation.layout.view, generation=generation.layout.generation)
    return not transaction.cursor().set_range(generation.keys.generation_prefix)


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
