"""Setting the tombstones of one environment, and removing the records that they hide, in short transactions."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import msgpack
import numpy as np
import pyarrow as pa

from featurekit_dagster.arrow_types import record_type
from featurekit_dagster.stores.key_codec import CHUNK_BYTES, chunk_of, chunk_suffix
from featurekit_dagster.stores.lmdb_environment import LmdbEnvironment, ReadTransaction
from featurekit_dagster.stores.online import TILES_PER_CHUNK, OnlineRemoval
from featurekit_dagster.stores.packing import WORD_BYTES, lead_time
from featurekit_dagster.stores.record_sieve import CUTOFF, EACH, HEAD, cutoffs_of, hashes_of, stored_head
from featurekit_dagster.stores.record_snapshot import StoredView
from featurekit_dagster.stores.record_writer import bare_value, full_key_of, trailer_of, with_trailers
from featurekit_dagster.stores.tombstones import HASH_BYTES, Tombstones

if TYPE_CHECKING:
    import lmdb

    Transaction = lmdb.Transaction[bytes]

_TRANSACTION_SECONDS = 0.03
_KEYS_AT_ONCE, _PUTS_AT_ONCE = 64, 5_000
_FIRST_CHUNK = bytes(CHUNK_BYTES)
_NO_VERSION = -1


def stored_tombstones(environment: LmdbEnvironment) -> Tombstones | None:
    """Return the tombstones of a view; None before the first."""
    with ReadTransaction(environment) as transaction:
        head = None if transaction is None else stored_head(transaction)
        if transaction is None or head is None:
            return None
        version, salt = head
        return Tombstones(salt, version, _stored_cutoffs(transaction))


def set_tombstones(environment: LmdbEnvironment, tombstones: Tombstones) -> None:
    """Put a later version of all tombstones of a view; see `OnlineStore.set_tombstones`.

    New ones come first and the version last, so whatever is interrupted is done again by the next one.
    """
    found = environment.transact(partial(_changes, tombstones=tombstones))
    if found is None:
        return
    puts, lifted = found
    for begin in range(0, len(puts), _PUTS_AT_ONCE):
        environment.transact(partial(_put, puts=puts[begin : begin + _PUTS_AT_ONCE]))
    environment.transact(partial(_finish, tombstones=tombstones, lifted=lifted))
    environment.sync()


def _changes(transaction: Transaction, tombstones: Tombstones) -> tuple[list[tuple[bytes, bytes]], list[bytes]] | None:
    """Return the stored form of what is new, and the hashes that are lifted; None if what is stored is as late."""
    head = stored_head(transaction)
    if head is not None and head[0] >= tombstones.version:
        return None
    if head is None:
        transaction.put(HEAD, msgpack.packb((_NO_VERSION, tombstones.salt)))
    stored, wanted = _stored_cutoffs(transaction), tombstones.cutoffs
    puts = [(EACH + each, CUTOFF.pack(cutoff)) for each, cutoff in wanted.items() if stored.get(each) != cutoff]
    return sorted(puts), [each for each in stored if each not in wanted]


def _put(transaction: Transaction, puts: list[tuple[bytes, bytes]]) -> None:
    transaction.cursor().putmulti(puts)


def _finish(transaction: Transaction, tombstones: Tombstones, lifted: list[bytes]) -> None:
    """Take away what is lifted and say which version this is, unless somebody has put a later one meanwhile."""
    head = stored_head(transaction)
    if head is not None and head[0] >= tombstones.version:
        return
    for each in lifted:
        transaction.delete(EACH + each)
    transaction.put(HEAD, msgpack.packb((tombstones.version, tombstones.salt)))


def _stored_cutoffs(transaction: Transaction) -> dict[bytes, int]:
    cursor, found = transaction.cursor(), {}
    if cursor.set_range(EACH):
        for key, value in cursor:
            if len(key) != len(EACH) + HASH_BYTES or not key.startswith(EACH):
                break
            found[key[len(EACH) :]] = CUTOFF.unpack(value)[0]
    return found


# ---- removal ---------------------------------------------------------------------------------------------------------


def remove_deleted(view: StoredView, keys: pa.Table | None) -> OnlineRemoval:
    """Remove the records of a generation that the tombstones hide; see `OnlineStore.remove_deleted`."""
    with ReadTransaction(view.environment) as transaction:
        if transaction is None or transaction.get(view.layout_key) != view.signature:
            return OnlineRemoval(keys=0, rows=0)
        head = stored_head(transaction)
        if head is None:
            return OnlineRemoval(keys=0, rows=0)
        bases, full = _all_hidden(view, transaction, head[1]) if keys is None else _given(view, keys)
    removal = _Removal(view, bases, full, hashes_of(view.layout, head[1], bases, full))
    while removal.next_key < len(bases):
        removal = view.environment.transact(removal.part)
    if removal.keys:
        view.environment.sync()
    return OnlineRemoval(keys=removal.keys, rows=removal.rows)


def _given(view: StoredView, keys: pa.Table) -> tuple[list[bytes], Mapping[bytes, bytes]]:
    """Return the stored form of each distinct key, and the whole one of those that are hashed."""
    names = [field.name for field in view.layout.key_fields]
    distinct = keys.select(names).group_by(names).aggregate([])
    columns = [distinct[field.name].cast(record_type(field.dtype)) for field in view.layout.key_fields]
    return view.keys.encode_columns([column.combine_chunks() for column in columns])


def _all_hidden(view: StoredView, transaction: Transaction, salt: bytes) -> tuple[list[bytes], Mapping[bytes, bytes]]:
    """Return the same of every stored key that has a tombstone, by a walk over the generation."""
    prefix, cursor = view.keys.generation_prefix, transaction.cursor()
    found: list[bytes] = []
    full: dict[bytes, bytes] = {}
    asked: list[bytes] = []

    def ask() -> None:
        hidden = cutoffs_of(transaction, hashes_of(view.layout, salt, asked, full))
        found.extend(asked[place] for place in hidden)
        asked.clear()

    is_tiled = view.layout.tile_us is not None
    if cursor.set_range(prefix):
        for stored, value in cursor:
            if not stored.startswith(prefix):
                break
            base = stored[:-CHUNK_BYTES] if is_tiled else stored
            if asked and base == asked[-1]:
                continue
            if len(asked) >= _PUTS_AT_ONCE:
                ask()
            asked.append(base)
            if view.keys.is_hashed(base):
                full[base] = full_key_of(value)
    ask()
    return list(dict.fromkeys(found)), full


@dataclass(slots=True)
class _Removal:
    """How far the removal has come; a transaction that is run again begins with what the last one left.

    Args:
        view: What is stored.
        bases: Stored keys without chunk number.
        full: Whole encoded key of those that are hashed.
        hashes: Hash of each key.
        next_key: The first key that was not looked at.
        keys: Keys of which something was removed.
        rows: Tiles or rows that were.
    """

    view: StoredView
    bases: list[bytes]
    full: Mapping[bytes, bytes]
    hashes: list[bytes]
    next_key: int = 0
    keys: int = 0
    rows: int = 0

    def part(self, transaction: Transaction) -> _Removal:
        """Remove of as many keys as fit one short transaction and return how far that is."""
        started, at, keys, rows = time.perf_counter(), self.next_key, self.keys, self.rows
        while at < len(self.bases) and time.perf_counter() - started < _TRANSACTION_SECONDS:
            end = min(at + _KEYS_AT_ONCE, len(self.bases))
            for place, cutoff in cutoffs_of(transaction, self.hashes[at:end]).items():
                removed = self._remove(transaction, self.bases[at + place], cutoff)
                keys, rows = keys + bool(removed), rows + removed
            at = end
        return _Removal(self.view, self.bases, self.full, self.hashes, at, keys, rows)

    def _remove(self, transaction: Transaction, base: bytes, cutoff: int) -> int:
        """Remove the records of one key that are before its cutoff and return their number."""
        tile_us = self.view.layout.tile_us
        if tile_us is not None:
            return self._remove_tiles(transaction, base, -(-cutoff // tile_us))
        value = transaction.get(base)
        if value is None or lead_time(value)[0] >= cutoff:
            return 0
        transaction.delete(base)
        return 1

    def _remove_tiles(self, transaction: Transaction, base: bytes, first_kept: int) -> int:
        """Remove the tiles before the tile number `first_kept`."""
        cursor, end, found = transaction.cursor(), base + chunk_suffix((first_kept - 1) // TILES_PER_CHUNK), []
        if cursor.set_range(base + _FIRST_CHUNK):
            for stored, value in cursor:
                if stored > end:
                    break
                found.append((stored, value))
        rows = 0
        for stored, value in found:
            begin = chunk_of(stored) * TILES_PER_CHUNK
            if begin + TILES_PER_CHUNK <= first_kept:
                rows += int.from_bytes(value[:WORD_BYTES], "little").bit_count()
                transaction.delete(stored)
            else:
                rows += self._cut(transaction, base, stored, value, first_kept - begin)
        return rows

    def _cut(self, transaction: Transaction, base: bytes, stored: bytes, value: bytes, first_kept: int) -> int:
        """Remove the tiles in the slots before `first_kept` of one chunk."""
        codec = self.view.values
        trailers = {base: trailer_of(self.full[base])} if base in self.full else {}
        block = codec.unpack([bare_value(stored, value, trailers)])
        kept = np.flatnonzero(block.leads >= first_kept)
        if not len(kept):
            transaction.delete(stored)
        elif len(kept) < len(block.leads):
            packed = codec.pack(block.take(kept, block.owners[kept]))
            transaction.put(stored, with_trailers([stored], packed, trailers)[0])
        return len(block.leads) - len(kept)
