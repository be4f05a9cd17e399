"""How a stream gets into an online store: tiles are read, combined and written in the transaction of the checkpoint.

Beside the records, under generation 0, lie one checkpoint per source partition, what the view has seen of the stream,
marks of events that came (for the deduplication, by mark and by time), and dead letters until they are taken away.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np

from featurekit_dagster.errors import DuplicateEvents, LeaseLost, StreamStateLost
from featurekit_dagster.stores.online import TILES_PER_CHUNK, wins
from featurekit_dagster.stores.packing import Block, IntArray, lead_time
from featurekit_dagster.stores.record_runs import RecordRuns, RecordSlab
from featurekit_dagster.stores.record_sieve import Sieve
from featurekit_dagster.stores.record_writer import Generation, bare_value, open_generation, trailer_of, with_trailers
from featurekit_dagster.stores.stream_state import (
    Combine,
    DeadLetter,
    Refuse,
    StreamCheckpoint,
    StreamCommit,
    StreamProgress,
    StreamWrite,
)
from featurekit_dagster.stores.tile_merge import concatenated

if TYPE_CHECKING:
    import lmdb

    Transaction = lmdb.Transaction[bytes]

_SIGN = 1 << 63
_NAMES = tuple(each.name for each in fields(StreamCheckpoint))
_TIME = struct.Struct(">Q")
_NUMBER = struct.Struct(">Q")
# Marks forgotten per commit: more than come in, so that they do not pile up, and few enough for one transaction.
_FORGOTTEN_PER_MARK, _FORGOTTEN_AT_LEAST = 4, 1_000


class StreamKeys:
    """Where the state of a generation's stream lies.

    Args:
        meta: What the stored keys of all that is known about the generation begin with.
    """

    def __init__(self, meta: bytes) -> None:
        self.progress = meta + b"stream"
        self.checkpoint = meta + b"stream/"
        self.mark, self.mark_time = meta + b"seen/", meta + b"when/"
        self._letter = meta + b"dead/"

    def letters(self, partition: str) -> bytes:
        """Return what the stored keys of a partition's dead letters begin with."""
        return self._letter + partition.encode() + b"\x00"


@dataclass(slots=True)
class _Tally:
    """What one transaction has done so far."""

    written: int = 0
    superseded: int = 0
    deleted: int = 0
    overflowing: tuple[int, ...] = ()


def write_stream(
    generation: Generation,
    keys: StreamKeys,
    runs: RecordRuns,
    combine: Combine,
    commit: StreamCommit,
    refuse: Refuse,
) -> StreamWrite:
    """Write the records of a stream, and all of its state, in one transaction (see `OnlineStore.stream_write`)."""
    slabs = list(runs.slabs())
    trailers = {stored: trailer_of(full) for stored, full in runs.full_keys.items()}
    sieves = [Sieve(generation.layout, slab, runs.full_keys) for slab in slabs]
    is_tiled = generation.layout.tile_us is not None

    def body(transaction: Transaction) -> StreamWrite:
        known = _fenced(transaction, generation, keys, commit)
        open_generation(transaction, generation)
        tally = _Tally()
        for whole, sieve in zip(slabs, sieves, strict=True):
            left = sieve.sift(transaction)
            slab, rows = (whole, None) if left is None else (left.slab, left.rows)
            tally.deleted += 0 if left is None else left.deleted
            if not slab.keys:
                continue
            if is_tiled:
                order = runs.order[whole.begin :]
                _merge(transaction, generation, slab, trailers, combine, order if rows is None else order[rows], tally)
            else:
                _upsert(transaction, generation, slab, trailers, tally)
        _put_marks(transaction, keys, commit)
        letters = [*commit.letters, *(refuse(row) for row in tally.overflowing)]
        partitions = _put_checkpoints(transaction, keys, commit, known, letters, tally)
        return StreamWrite(
            rows_written=tally.written,
            superseded=tally.superseded,
            partitions=partitions,
            deleted=tally.deleted,
        )

    return generation.environment.transact(body)


def _fenced(
    transaction: Transaction, generation: Generation, keys: StreamKeys, commit: StreamCommit
) -> dict[str, StreamCheckpoint]:
    """Return the stored checkpoints of the partitions, after a look at their epochs.

    Raises:
        LeaseLost: Somebody has written under a higher epoch.
        StreamStateLost: Nothing is known of a partition that was taken before.
    """
    found = {}
    for partition in commit.partitions:
        stored = transaction.get(keys.checkpoint + partition.encode())
        if stored is None and commit.is_continued:
            raise StreamStateLost(view=generation.layout.view)
        found[partition], current = (StreamCheckpoint(), 0) if stored is None else _decoded(stored)
        epoch = commit.epochs[partition]
        if current > epoch:
            layout = generation.layout
            name = f"stream:{layout.workspace}/{layout.view}/{layout.generation}:{partition}"
            raise LeaseLost(name=name, epoch=epoch, current=current)
    return found


# ---- records ---------------------------------------------------------------------------------------------------------


def _upsert(
    transaction: Transaction, generation: Generation, slab: RecordSlab, trailers: dict[bytes, bytes], tally: _Tally
) -> None:
    """Put latest-value rows that win over the stored ones."""
    values = with_trailers(slab.keys, generation.values.pack(slab.block), trailers)
    cursor, puts = transaction.cursor(), []
    olds = dict(cursor.getmulti(slab.keys))
    for key, new in zip(slab.keys, values, strict=True):
        old = olds.get(key)
        if old is None or wins(lead_time(new), lead_time(old)):
            puts.append((key, new))
        elif lead_time(old) == (lead_time(new)[0], 1):
            tally.superseded += 1
    cursor.putmulti(puts)
    tally.written += len(puts)


def _merge(
    transaction: Transaction,
    generation: Generation,
    slab: RecordSlab,
    trailers: dict[bytes, bytes],
    combine: Combine,
    order: IntArray,
    tally: _Tally,
) -> None:
    """Put the tiles that the slab's rows and the stored ones make together; `order` has the given place of each row."""
    cursor, codec = transaction.cursor(), generation.values
    stored, new = dict(cursor.getmulti(slab.keys)), slab.block
    if not stored and len(slab.keys) == len(new.owners):  # each row is a tile that nobody has: nothing to combine
        cursor.putmulti(zip(slab.keys, with_trailers(slab.keys, codec.pack(new), trailers), strict=True))
        tally.written += len(new.owners)
        return
    old = _stored(stored, generation, slab, trailers)
    old_slots, new_slots = old.owners * TILES_PER_CHUNK + old.leads, new.owners * TILES_PER_CHUNK + new.leads
    room = len(slab.keys) * TILES_PER_CHUNK
    counts = ~_marked(old_slots[old.from_batch], room)[new_slots]
    tally.superseded += int(np.count_nonzero(~counts))
    while True:
        rows = np.flatnonzero(counts)
        if not len(rows):
            return
        is_touched = _marked(new_slots[rows], room)[old_slots]
        both = concatenated(old.take(is_touched, old.owners[is_touched]), new.take(rows, new.owners[rows]))
        slots = both.owners * TILES_PER_CHUNK + both.leads
        by_slot = np.argsort(slots, kind="stable")
        slots = slots[by_slot]
        starts = np.flatnonzero(np.diff(slots, prepend=-1))
        groups = np.cumsum(np.diff(slots, prepend=-1) != 0) - 1
        both = both.take(by_slot, slots // TILES_PER_CHUNK)
        columns, nulls, wrong = combine(both.columns, both.nulls, groups)
        if wrong is None:
            break
        is_wrong = _marked(slots[starts[wrong]], room)[new_slots] & counts
        tally.overflowing += tuple(order[np.flatnonzero(is_wrong)].tolist())
        counts &= ~is_wrong
    merged = Block(*np.divmod(slots[starts], TILES_PER_CHUNK), np.zeros(len(starts), bool), columns, nulls)
    rewritten = merged.owners[np.flatnonzero(np.diff(merged.owners, prepend=-1))]
    is_kept = ~is_touched & _marked(rewritten, len(slab.keys))[old.owners]
    whole = concatenated(old.take(is_kept, old.owners[is_kept]), merged)
    whole_slots = whole.owners * TILES_PER_CHUNK + whole.leads
    by_slot = np.argsort(whole_slots, kind="stable")
    places = np.searchsorted(rewritten, whole.owners[by_slot])
    keys = [slab.keys[place] for place in rewritten.tolist()]
    values = with_trailers(keys, codec.pack(whole.take(by_slot, places)), trailers)
    cursor.putmulti(zip(keys, values, strict=True))
    tally.written += len(starts)


def _stored(
    values: Mapping[bytes, bytes], generation: Generation, slab: RecordSlab, trailers: dict[bytes, bytes]
) -> Block:
    """Return the tiles that are stored under the slab's keys."""
    held = [place for place, key in enumerate(slab.keys) if key in values]
    olds = [values[slab.keys[place]] for place in held]
    if trailers:
        olds = [bare_value(slab.keys[place], old, trailers) for place, old in zip(held, olds, strict=True)]
    found = generation.values.unpack(olds)
    return found.take(slice(None), np.array(held, np.int64)[found.owners])


def _marked(places: IntArray, room: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return for each of so many places whether it is one of these."""
    found = np.zeros(room, bool)
    found[places] = True
    return found


# ---- state -----------------------------------------------------------------------------------------------------------


def _put_checkpoints(
    transaction: Transaction,
    keys: StreamKeys,
    commit: StreamCommit,
    known: dict[str, StreamCheckpoint],
    letters: Sequence[DeadLetter],
    tally: _Tally,
) -> dict[str, StreamCheckpoint]:
    """Put the checkpoints with what only this transaction knows, the dead letters, and what the view has seen."""
    made = {}
    superseded, deleted = tally.superseded, tally.deleted
    for partition, checkpoint in commit.partitions.items():
        before, own = known[partition], [letter for letter in letters if letter.partition == partition]
        made[partition] = replace(
            checkpoint or before,
            superseded=before.superseded + superseded,
            refused=before.refused + len(own),
            deleted=before.deleted + deleted,
        )
        superseded = deleted = 0  # rows of several partitions are combined; the first one answers for them
        transaction.put(keys.checkpoint + partition.encode(), _encoded(made[partition], commit.epochs[partition]))
        for number, letter in enumerate(own, before.refused):
            value = msgpack.packb((letter.reason, letter.payload))
            transaction.put(keys.letters(partition) + _NUMBER.pack(number), value)
    progress = decode_progress(transaction.get(keys.progress))
    times = [us for us in (progress.newest_us, *(c.newest_us for c in made.values())) if us is not None]
    start_us = commit.start_us if progress.start_us is None else progress.start_us
    gone = [us for us in (progress.forgotten_us, commit.forget_us) if us is not None]
    seen = StreamProgress(start_us, max(times, default=None), max(gone, default=None))
    transaction.put(keys.progress, msgpack.packb(astuple(seen)))
    return made


def _put_marks(transaction: Transaction, keys: StreamKeys, commit: StreamCommit) -> None:
    """Remember the events that were counted, and forget those that the watermark has passed.

    Raises:
        DuplicateEvents: Another loop has counted one of them meanwhile, or the marks of its time were forgotten.
    """
    cursor = transaction.cursor()
    forgotten_us = decode_progress(transaction.get(keys.progress)).forgotten_us
    if forgotten_us is not None and any(time_us <= forgotten_us for _, time_us in commit.seen):
        raise DuplicateEvents
    if commit.seen and cursor.getmulti([keys.mark + mark for mark, _ in commit.seen]):
        raise DuplicateEvents
    for mark, time_us in commit.seen:
        time = _TIME.pack(time_us + _SIGN)
        transaction.put(keys.mark + mark, time)
        transaction.put(keys.mark_time + time + mark, b"")
    if commit.forget_us is None:
        return
    last = keys.mark_time + _TIME.pack(commit.forget_us + _SIGN) + b"\xff" * 16
    at = len(keys.mark_time) + _TIME.size
    for _ in range(_FORGOTTEN_AT_LEAST + _FORGOTTEN_PER_MARK * len(commit.seen)):
        if not cursor.set_range(keys.mark_time) or not (key := cursor.key()).startswith(keys.mark_time) or key > last:
            return
        transaction.delete(keys.mark + key[at:])
        transaction.delete(key)


def seen_marks(transaction: Transaction, keys: StreamKeys, marks: Collection[bytes]) -> set[bytes]:
    """Return those of the marks that are remembered."""
    found = transaction.cursor().getmulti([keys.mark + mark for mark in marks])
    return {key[len(keys.mark) :] for key, _ in found}


def stored_checkpoints(transaction: Transaction, keys: StreamKeys) -> dict[str, StreamCheckpoint]:
    """Return the checkpoint of every source partition."""
    prefix = keys.checkpoint
    return {key[len(prefix) :].decode(): _decoded(value)[0] for key, value in _under(transaction, prefix)}


def stored_letters(transaction: Transaction, keys: StreamKeys, partition: str, most: int) -> list[DeadLetter]:
    """Return the oldest dead letters of a partition."""
    prefix, found = keys.letters(partition), []
    for key, value in _under(transaction, prefix):
        reason, payload = msgpack.unpackb(value)
        (number,) = _NUMBER.unpack(key[len(prefix) :])
        found.append(DeadLetter(partition=partition, reason=reason, payload=payload, number=number))
        if len(found) == most:
            break
    return found


def drop_letters(transaction: Transaction, keys: StreamKeys, partition: str, up_to: int) -> None:
    """Delete the dead letters of a partition up to a number, inclusive."""
    prefix = keys.letters(partition)
    stale = [key for key, _ in _under(transaction, prefix) if _NUMBER.unpack(key[len(prefix) :])[0] <= up_to]
    for key in stale:
        transaction.delete(key)


def _under(transaction: Transaction, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield what is stored under keys that begin so, in key order."""
    cursor = transaction.cursor()
    if cursor.set_range(prefix):
        for key, value in cursor:
            if not key.startswith(prefix):
                return
            yield key, value


def decode_progress(raw: bytes | None) -> StreamProgress:
    """Return what a view has seen of its stream."""
    return StreamProgress() if raw is None else StreamProgress(*msgpack.unpackb(raw))


def _encoded(checkpoint: StreamCheckpoint, epoch: int) -> bytes:
    packed: bytes = msgpack.packb({**{name: getattr(checkpoint, name) for name in _NAMES}, "epoch": epoch})
    return packed


def _decoded(raw: bytes) -> tuple[StreamCheckpoint, int]:
    values: dict[str, Any] = msgpack.unpackb(raw)
    known = {name: values[name] for name in _NAMES if name in values}
    return StreamCheckpoint(**known), values["epoch"]
