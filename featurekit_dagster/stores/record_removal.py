"""Taking a generation, or everything of a view, out of an online store, in short transactions."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING

from featurekit_dagster.errors import LeaseLost
from featurekit_dagster.stores.key_codec import SLOT_BIT
from featurekit_dagster.stores.lmdb_environment import LmdbEnvironment, ReadTransaction
from featurekit_dagster.stores.lmdb_places import place_key

if TYPE_CHECKING:
    import lmdb

_FACTS = b"\x00\x00"
_FENCE = b"fence"
_TRANSACTION_SECONDS = 0.03
_LOOKS_AT_CLOCK = 64


def drop_generation(environment: LmdbEnvironment, name: str, generation: int, epoch: int) -> None:
    """Remove what is known of a generation and then its records; who writes under a lower epoch is shut out.

    A reader finds nothing covered from the first transaction on. A repetition removes what was left.

    Raises:
        LeaseLost: Somebody has begun to write the generation under a higher epoch.
    """
    prefix = struct.pack(">H", generation)
    fence = _FACTS + prefix + _FENCE

    def shut_out(transaction: lmdb.Transaction[bytes]) -> None:
        stored = transaction.get(fence)
        current = 0 if stored is None else int.from_bytes(stored, "little")
        if current > epoch:
            raise LeaseLost(name=name, epoch=epoch, current=current)
        _delete(transaction, _FACTS + prefix)
        transaction.put(fence, epoch.to_bytes(8, "little"))

    if not _has_any(environment):
        return
    environment.transact(shut_out)
    delete_below(environment, prefix)
    environment.sync()


def drop_slots(environment: LmdbEnvironment, name: str, generation: int, epoch: int) -> None:
    """Remove a generation from both of its slots, and which of them it uses.

    The one in use comes last, as long as it is known which one that is; so no reader meets what the other one holds.

    Raises:
        LeaseLost: Somebody has begun to write the generation under a higher epoch.
    """
    drop_generation(environment, name, generation, epoch)
    other = struct.pack(">H", generation | 1 << SLOT_BIT)
    if _has_any(environment) and environment.transact(lambda t: _holds(t, _FACTS + other) or _holds(t, other)):
        drop_generation(environment, name, generation | 1 << SLOT_BIT, epoch)
    if _has_any(environment):
        environment.transact(lambda t: t.delete(place_key(generation)))


def drop_everything(environment: LmdbEnvironment) -> None:
    """Remove all generations, and the files.

    Other processes that have them open find nothing covered any more; if the view is written again, they see that when
    they open it again.
    """
    if _has_any(environment):
        delete_below(environment, _FACTS)
        delete_below(environment, b"")
    environment.remove_files()


def delete_below(environment: LmdbEnvironment, prefix: bytes) -> None:
    """Delete every stored key with a prefix, in transactions of at most 50 ms."""
    while not environment.transact(lambda transaction: _delete(transaction, prefix, _TRANSACTION_SECONDS)):
        pass


def _delete(transaction: lmdb.Transaction[bytes], prefix: bytes, seconds: float | None = None) -> bool:
    """Delete keys with a prefix until none is left or the time is over; return whether none is left."""
    cursor, started, count = transaction.cursor(), time.perf_counter(), 0
    while cursor.set_range(prefix) and cursor.key().startswith(prefix):
        cursor.delete()
        count += 1
        if seconds is not None and not count % _LOOKS_AT_CLOCK and time.perf_counter() - started > seconds:
            return False
    return True


def _holds(transaction: lmdb.Transaction[bytes], prefix: bytes) -> bool:
    """Tell whether any stored key begins so."""
    cursor = transaction.cursor()
    return cursor.set_range(prefix) and cursor.key().startswith(prefix)


def _has_any(environment: LmdbEnvironment) -> bool:
    with ReadTransaction(environment) as transaction:
        return transaction is not None
