"""The tombstones of one environment, and how records of deleted keys are left out of what is written.

They lie under the facts of generation 0, which no view has, because they hold for all generations. A write looks for
them inside its own transaction; where there are none, that is one lookup per transaction.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np

from featurekit_dagster.stores.key_codec import chunks_of
from featurekit_dagster.stores.online import TILES_PER_CHUNK, OnlineLayout
from featurekit_dagster.stores.packing import IntArray
from featurekit_dagster.stores.record_runs import RecordSlab
from featurekit_dagster.stores.tombstones import KeyHasher

if TYPE_CHECKING:
    import lmdb

    Transaction = lmdb.Transaction[bytes]

_FACTS_OF_ALL = bytes(4)
HEAD = _FACTS_OF_ALL + b"tombstones"
EACH = _FACTS_OF_ALL + b"tombstone/"
CUTOFF = struct.Struct("<q")
_GENERATION_BYTES = 2


def stored_head(transaction: Transaction) -> tuple[int, bytes] | None:
    """Return version and salt of the tombstones; None where there never were any."""
    raw = transaction.get(HEAD)
    if raw is None:
        return None
    version, salt = msgpack.unpackb(raw)
    return version, salt


def cutoffs_of(transaction: Transaction, hashes: Sequence[bytes]) -> dict[int, int]:
    """Return place and cutoff of each hash that has a tombstone."""
    found = dict(transaction.cursor().getmulti([EACH + each for each in hashes]))
    if not found:
        return {}
    places = ((place, found.get(EACH + each)) for place, each in enumerate(hashes))
    return {place: CUTOFF.unpack(raw)[0] for place, raw in places if raw is not None}


def hashes_of(layout: OnlineLayout, salt: bytes, bases: Sequence[bytes], full: Mapping[bytes, bytes]) -> list[bytes]:
    """Return the hash of stored keys without chunk number.

    Args:
        layout: Layout of their generation.
        salt: Salt of the tombstones.
        bases: The stored keys.
        full: The whole encoded key of those that are hashed.
    """
    hasher = KeyHasher(layout.key_fields, salt)
    return [hasher.of_encoded(full.get(base) or base[_GENERATION_BYTES:]) for base in bases]


@dataclass(frozen=True, slots=True)
class Sifted:
    """What is left of some keys of a slab.

    Args:
        slab: The records that are left.
        rows: The place in the given slab's block of each row that is left.
        deleted: How many rows were left out.
    """

    slab: RecordSlab
    rows: IntArray
    deleted: int


class Sieve:
    """Leaves those records out of a slab that the stored tombstones hide.

    Args:
        layout: Layout of the generation.
        slab: The records.
        full_keys: The whole encoded key of every stored key that is hashed.
    """

    def __init__(self, layout: OnlineLayout, slab: RecordSlab, full_keys: Mapping[bytes, bytes]) -> None:
        self._layout, self._slab, self._full_keys = layout, slab, full_keys
        self._hashes: tuple[bytes, list[bytes]] = (b"", [])

    def sift(self, transaction: Transaction, first_key: int = 0, last_key: int | None = None) -> Sifted | None:
        """Return what is left of the join keys `first_key` to `last_key - 1`; None if that is all of them."""
        head = stored_head(transaction)
        if head is None:
            return None
        keys = range(first_key, len(self._slab.base_keys) if last_key is None else last_key)
        found = cutoffs_of(transaction, self._hashed(head[1])[keys.start : keys.stop])
        if not found:
            return None
        cutoffs = np.full(len(keys), np.iinfo(np.int64).min)
        cutoffs[list(found)] = list(found.values())
        return self._left(keys, cutoffs)

    def _hashed(self, salt: bytes) -> list[bytes]:
        """Return the hash of every key of the slab; transactions ask for it again and again."""
        if self._hashes[0] != salt:
            self._hashes = salt, hashes_of(self._layout, salt, self._slab.base_keys, self._full_keys)
        return self._hashes[1]

    def _left(self, keys: range, cutoffs: np.ndarray[Any, np.dtype[np.int64]]) -> Sifted:
        slab = self._slab
        starts = np.append(np.array(slab.key_starts, np.int64), len(slab.keys))
        begin, end = int(starts[keys.start]), int(starts[keys.stop])
        first, last = np.searchsorted(slab.block.owners, (begin, end)).tolist()
        owners = slab.block.owners[first:last]
        key_of_value = np.repeat(np.arange(len(keys)), np.diff(starts[keys.start : keys.stop + 1]))
        times = slab.block.leads[first:last]
        if self._layout.tile_us is not None:
            chunks = chunks_of(slab.keys[begin:end])
            times = (chunks[owners - begin] * TILES_PER_CHUNK + times) * self._layout.tile_us
        rows = first + np.flatnonzero(times >= cutoffs[key_of_value[owners - begin]])
        left_owners = slab.block.owners[rows]
        values, owners = np.unique(left_owners, return_inverse=True)
        value_keys = key_of_value[values - begin]
        key_starts = np.flatnonzero(np.diff(value_keys, prepend=-1))
        sifted = RecordSlab(
            keys=[slab.keys[value] for value in values.tolist()],
            block=slab.block.take(rows, owners),
            key_starts=key_starts.tolist(),
            base_keys=[slab.base_keys[keys.start + key] for key in value_keys[key_starts].tolist()],
            begin=slab.begin,
        )
        return Sifted(sifted, rows, last - first - len(rows))
