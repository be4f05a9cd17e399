"""Upkeep of a stored generation: which slot and tile size it uses, clearing the other slot, and trimming.

The fact of slot and tile size lies apart from the facts of either slot, so that clearing one leaves it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from featurekit_dagster.stores.key_codec import SLOT_BIT, chunk_of
from featurekit_dagster.stores.lmdb_environment import ReadTransaction
from featurekit_dagster.stores.lmdb_places import place_key, place_of, stored_place
from featurekit_dagster.stores.online import TILES_PER_CHUNK, OnlineLayout
from featurekit_dagster.stores.online_upkeep import Trimmed
from featurekit_dagster.stores.packing import WORD_BYTES, lead_time
from featurekit_dagster.stores.record_removal import drop_generation
from featurekit_dagster.stores.record_snapshot import StoredView
from featurekit_dagster.stores.record_writer import Generation, full_key_of, open_generation, trailer_of

if TYPE_CHECKING:
    import lmdb

    Transaction = lmdb.Transaction[bytes]

_TRANSACTION_SECONDS = 0.03
_LOOKS_AT_CLOCK = 64
# Values that lose some of their tiles are unpacked and packed together, which is far quicker than one by one.
_CUTS_AT_ONCE = 256


def placed(view: StoredView) -> OnlineLayout:
    """Return the layout with the slot and the tile size that the generation uses."""
    layout = view.layout
    with ReadTransaction(view.environment) as transaction:
        found = None if transaction is None or layout.tile_us is None else stored_place(transaction, layout)
    if found is None:
        return replace(layout, slot=0) if layout.slot else layout
    return replace(layout, slot=found[0], tile_us=found[1])


def use(former: StoredView, following: StoredView, epoch: int) -> None:
    """Let a generation use another slot; writers of the former one find another layout there than theirs."""

    def switch(transaction: Transaction) -> None:
        transaction.put(place_key(following.layout.generation), place_of(following.layout))
        transaction.put(former.layout_key, b"left")

    former.generation().write_under(epoch, switch)
    former.environment.sync()


def holds(view: StoredView) -> bool:
    """Tell whether there is anything in the slot of a layout."""
    with ReadTransaction(view.environment) as transaction:
        if transaction is None:
            return False
        cursor, prefix = transaction.cursor(), view.keys.generation_prefix
        is_begun = transaction.get(view.layout_key) is not None
        return is_begun or (cursor.set_range(prefix) and cursor.key().startswith(prefix))


def clear(view: StoredView, epoch: int) -> None:
    """Remove everything from the slot of a layout."""
    layout = view.layout
    number = layout.generation | layout.slot << SLOT_BIT
    drop_generation(view.environment, f"batch:{layout.workspace}/{layout.view}", number, epoch)


def trim(view: StoredView, since_us: int | None, epoch: int, check: Callable[[], None]) -> Trimmed:
    """Remove what lies before a time; see `OnlineUpkeep.trim`."""
    with ReadTransaction(view.environment) as transaction:
        if transaction is None or transaction.get(view.layout_key) is None:
            return Trimmed(removed=0, values_before=0, values_after=0, bytes_before=0, bytes_after=0)
    generation = view.generation()
    if since_us is not None:
        generation.write_under(epoch, lambda t: _mark(t, view, generation, since_us, epoch))
    walk = _Walk(view, since_us, view.keys.generation_prefix)
    while not walk.is_over:
        check()
        walk = generation.write_under(epoch, walk.part)
    view.environment.sync()
    return walk.found


def _mark(transaction: Transaction, view: StoredView, generation: Generation, since_us: int, epoch: int) -> None:
    """Let readers know from when on the records are whole."""
    open_generation(transaction, generation)
    view.mark_trimmed(transaction, since_us, epoch)


@dataclass(frozen=True, slots=True)
class _Walk:
    """How far the trimming has come; a transaction that is run again begins with what the last one left.

    Args:
        view: What is stored.
        since_us: What lies before it goes; None for nothing.
        following: The first stored key that was not looked at.
        found: What was found and done so far.
        is_over: Whether all was looked at.
    """

    view: StoredView
    since_us: int | None
    following: bytes
    found: Trimmed = Trimmed(removed=0, values_before=0, values_after=0, bytes_before=0, bytes_after=0)  # noqa: RUF009
    is_over: bool = False

    def part(self, transaction: Transaction) -> _Walk:
        """Look at stored values until the time of a transaction is over."""
        tally = _Tally(self.found)
        cuts: list[tuple[bytes, bytes]] = []
        prefix, cursor = self.view.keys.generation_prefix, transaction.cursor()
        started, count, is_there = time.perf_counter(), 0, cursor.set_range(self.following)
        while is_there and cursor.key().startswith(prefix):
            key, value = cursor.item()
            count += 1
            if not count % _LOOKS_AT_CLOCK and time.perf_counter() - started > _TRANSACTION_SECONDS:
                self._cut(transaction, cuts, tally)
                return replace(self, following=key, found=tally.trimmed())
            size = len(key) + len(value)
            tally.values_before += 1
            tally.bytes_before += size
            left = self._left(key, value)
            if left == 0:
                tally.removed += self._rows(value)
                is_there = cursor.delete()  # which moves on to the next one
                continue
            if left is None:
                tally.values_after += 1
                tally.bytes_after += size
            else:
                cuts.append((key, value))
                if len(cuts) >= _CUTS_AT_ONCE:
                    self._cut(transaction, cuts, tally)
                    cuts = []
            is_there = cursor.next()
        self._cut(transaction, cuts, tally)
        return replace(self, found=tally.trimmed(), is_over=True)

    def _left(self, key: bytes, value: bytes) -> int | None:
        """Return how many rows of a value stay; None for all of them."""
        since_us, tile_us = self.since_us, self.view.layout.tile_us
        if since_us is None:
            return None
        if tile_us is None:
            return 0 if lead_time(value)[0] < since_us else None
        before = -(-since_us // tile_us) - chunk_of(key) * TILES_PER_CHUNK
        if before <= 0:
            return None
        present = int.from_bytes(value[:WORD_BYTES], "little")
        left = (present >> before).bit_count()
        return None if left == present.bit_count() else left

    def _rows(self, value: bytes) -> int:
        return 1 if self.view.layout.tile_us is None else int.from_bytes(value[:WORD_BYTES], "little").bit_count()

    def _cut(self, transaction: Transaction, cuts: list[tuple[bytes, bytes]], tally: _Tally) -> None:
        """Write values anew without the tiles that go."""
        if not cuts:
            return
        codec, tile_us, since_us = self.view.values, self.view.layout.tile_us or 1, self.since_us or 0
        keys = [key for key, _ in cuts]
        trailers = [trailer_of(full_key_of(value)) if self.view.keys.is_hashed(key) else b"" for key, value in cuts]
        bare = [value[: len(value) - len(end)] for (_, value), end in zip(cuts, trailers, strict=True)]
        block = codec.unpack(bare)
        first = -(-since_us // tile_us) - np.array([chunk_of(key) for key in keys]) * TILES_PER_CHUNK
        stays = block.leads >= first[block.owners]
        values = codec.pack(block.take(stays, block.owners[stays]))
        values = [value + end for value, end in zip(values, trailers, strict=True)]
        transaction.cursor().putmulti(zip(keys, values, strict=True))
        tally.removed += int(np.count_nonzero(~stays))
        tally.values_after += len(keys)
        tally.bytes_after += sum(map(len, keys)) + sum(map(len, values))


class _Tally:
    """Counts of one transaction on top of those before it."""

    def __init__(self, before: Trimmed) -> None:
        self.removed = before.removed
        self.values_before, self.values_after = before.values_before, before.values_after
        self.bytes_before, self.bytes_after = before.bytes_before, before.bytes_after

    def trimmed(self) -> Trimmed:
        return Trimmed(
            removed=self.removed,
            values_before=self.values_before,
            values_after=self.values_after,
            bytes_before=self.bytes_before,
            bytes_after=self.bytes_after,
        )
