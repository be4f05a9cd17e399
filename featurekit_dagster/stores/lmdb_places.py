"""Which slot of a generation is used in LMDB, and with which tile size.

It lies behind the facts of all slots of all generations, so that clearing a slot leaves it.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from featurekit_dagster.stores.online import OnlineLayout

if TYPE_CHECKING:
    import lmdb

_PLACES, _PLACE = b"\x00\x00\xff\xff", struct.Struct("<Bq")


def place_key(generation: int) -> bytes:
    """Return the stored key of the slot and the tile size that a generation uses."""
    return _PLACES + generation.to_bytes(2, "big")


def place_of(layout: OnlineLayout) -> bytes:
    """Return the stored form of the slot and the tile size of a layout."""
    return _PLACE.pack(layout.slot, layout.tile_us or 0)


def stored_place(transaction: lmdb.Transaction[bytes], layout: OnlineLayout) -> tuple[int, int] | None:
    """Return slot and tile size that a generation uses; None before its first write."""
    raw = transaction.get(place_key(layout.generation))
    if raw is None:
        return None
    slot, tile_us = _PLACE.unpack(raw)
    return slot, tile_us
