"""Which join keys an online store has tiles of in an interval, by a walk over a generation, and some of its keys.

A sample of few records is drawn from all of them. Of more only some are looked at, at places that are drawn.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa

from featurekit_dagster.arrow_types import record_type
from featurekit_dagster.intervals import Interval
from featurekit_dagster.stores.key_codec import CHUNK_BYTES, chunk_of, chunk_suffix
from featurekit_dagster.stores.key_probe import KeyProbe
from featurekit_dagster.stores.key_sample import KeySample
from featurekit_dagster.stores.lmdb_environment import ReadTransaction
from featurekit_dagster.stores.online import TILES_PER_CHUNK, Key
from featurekit_dagster.stores.packing import WORD_BYTES
from featurekit_dagster.stores.record_snapshot import StoredView
from featurekit_dagster.stores.record_writer import full_key_of

if TYPE_CHECKING:
    import lmdb

FEW_RECORDS = 10_000
"""Of a generation with no more records all keys are looked at for a sample."""

_LOOKS_PER_KEY = 20


def keys_besides(view: StoredView, given: pa.Table, interval: Interval) -> list[Key]:
    """Return the keys with a tile that starts in an interval, other than the given ones; in no order.

    Args:
        view: What is stored.
        given: The columns of the join keys; rows may repeat.
        interval: Where tiles start.
    """
    fields = view.layout.key_fields
    distinct = given.select([field.name for field in fields]).group_by([field.name for field in fields]).aggregate([])
    columns = [distinct[field.name].cast(record_type(field.dtype)).combine_chunks() for field in fields]
    known = set(view.keys.encode_columns(columns)[0])
    with ReadTransaction(view.environment) as transaction:
        if transaction is None or transaction.get(view.layout_key) != view.signature:
            return []
        return list(_keys(view, transaction, known, interval))


def sample_keys(view: StoredView, count: int, seed: int, interval: Interval | None) -> list[Key]:
    """Return some of the stored keys; see `OnlineStore.sample_keys`."""
    sample, prefix = KeySample(count, seed), view.keys.generation_prefix
    wanted, few = None if view.layout.tile_us is None else interval, max(FEW_RECORDS, _LOOKS_PER_KEY * count)
    with ReadTransaction(view.environment) as transaction:
        if transaction is None or transaction.get(view.layout_key) != view.signature:
            return []
        found = list(_encoded_keys(view, transaction, set(), wanted, few))
    if found and found[-1] is None:
        found = list(_probed(view, wanted, 2 * count, few, random.Random(seed)))  # noqa: S311 - no secret
    for encoded in found:
        if encoded is not None:
            sample.look_at(encoded)
    return [view.keys.decode(prefix + encoded) for encoded in sample.chosen()]


def _probed(
    view: StoredView, interval: Interval | None, count: int, most_looks: int, chance: random.Random
) -> Iterator[bytes]:
    """Yield so many whole keys, if that many are found in time; each look is a transaction of its own."""
    suffix_bytes, prefix = 0 if view.layout.tile_us is None else CHUNK_BYTES, view.keys.generation_prefix

    def first_from(place: bytes) -> bytes | None:
        with ReadTransaction(view.environment) as transaction:
            cursor = None if transaction is None else transaction.cursor()
            return cursor.key() if cursor is not None and cursor.set_range(place) else None

    def after(stored: bytes) -> bytes:
        return stored[: len(stored) - suffix_bytes] + b"\xff" * suffix_bytes + b"\x00"

    found = 0
    for stored in KeyProbe(first_from, after, prefix, chance).keys(most_looks):
        whole = _whole_key(view, stored[: len(stored) - suffix_bytes], interval)
        if whole is not None:
            yield whole
            found += 1
            if found == count:
                return


def _whole_key(view: StoredView, base: bytes, interval: Interval | None) -> bytes | None:
    """Return the whole key that is stored under some bytes; None where it has no tile in the interval, or has gone."""
    prefix, tile_us = view.keys.generation_prefix, view.layout.tile_us or 1
    first, last = _tile_bounds(interval, tile_us)
    begin = base if interval is None else base + chunk_suffix(first // TILES_PER_CHUNK)
    with ReadTransaction(view.environment) as transaction:
        cursor = None if transaction is None else transaction.cursor()
        if cursor is None or not cursor.set_range(begin):
            return None
        for stored, value in cursor:
            if not stored.startswith(base) or (interval is not None and chunk_of(stored) * TILES_PER_CHUNK > last):
                return None
            if interval is None or _has_tile(value, chunk_of(stored) * TILES_PER_CHUNK, first, last):
                return full_key_of(value) if view.keys.is_hashed(base) else base[len(prefix) :]
    return None


def _keys(
    view: StoredView, transaction: lmdb.Transaction[bytes], known: set[bytes], interval: Interval
) -> Iterator[Key]:
    prefix = view.keys.generation_prefix
    for encoded in _encoded_keys(view, transaction, known, interval):
        if encoded is not None:
            yield view.keys.decode(prefix + encoded)


def _encoded_keys(
    view: StoredView,
    transaction: lmdb.Transaction[bytes],
    done: set[bytes],
    interval: Interval | None,
    most_records: int | None = None,
) -> Iterator[bytes | None]:
    """Yield each whole key once, without the prefix of the generation, those apart whose stored form is in `done`.

    After `most_records` records, if there are more, None comes and that is the end.
    """
    tile_us, suffix_bytes = view.layout.tile_us or 1, 0 if view.layout.tile_us is None else CHUNK_BYTES
    first, last = _tile_bounds(interval, tile_us)
    prefix, cursor = view.keys.generation_prefix, transaction.cursor()
    before = b""
    if not cursor.set_range(prefix):
        return
    for number, (stored, value) in enumerate(cursor):
        if not stored.startswith(prefix):
            return
        if number == most_records:
            yield None
            return
        base = stored[: len(stored) - suffix_bytes]
        if base == before or base in done:
            continue
        if interval is not None and not _has_tile(value, chunk_of(stored) * TILES_PER_CHUNK, first, last):
            continue
        before = base  # all chunks of a key lie side by side
        yield full_key_of(value) if view.keys.is_hashed(base) else base[len(prefix) :]


def _tile_bounds(interval: Interval | None, tile_us: int) -> tuple[int, int]:
    """Return the numbers of the first and the last tile that start in an interval."""
    return (0, -1) if interval is None else (-(-interval.start_us // tile_us), -(-interval.end_us // tile_us) - 1)


def _has_tile(value: bytes, chunk_start: int, first: int, last: int) -> bool:
    """Tell whether a stored chunk has a tile `first..last`."""
    low, high = max(first - chunk_start, 0), min(last - chunk_start, TILES_PER_CHUNK - 1)
    if low > high:
        return False
    present = int.from_bytes(value[:WORD_BYTES], sys.byteorder)
    return bool(present >> low & ((1 << (high - low + 1)) - 1))
