"""Events that came twice: each leaves a mark that is remembered until the watermark has passed it.

The marks themselves are kept by the online store, beside the checkpoint; nothing here grows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

MARK_BYTES = 16


@dataclass(frozen=True, slots=True)
class Deduplication:
    """How an event is known again.

    Args:
        columns: The columns that say which event it is; none finds no duplicates.
    """

    columns: Sequence[str]

    def marks(self, values: Sequence[Sequence[Any]]) -> list[bytes]:
        """Return one mark per event, given the values of each of the columns; equal ones have equal marks."""
        return [_mark(row) for row in zip(*values, strict=True)]

    def first_of_each(self, marks: Sequence[bytes], seen: Collection[bytes]) -> list[bool]:
        """Tell which events are new: neither seen earlier nor behind an equal one of this batch."""
        met, found = set(seen), []
        for mark in marks:
            found.append(mark not in met)
            met.add(mark)
        return found


def _mark(row: Sequence[Any]) -> bytes:
    """Return 128 bits of a row of values; the length of each text keeps neighbours apart."""
    texts = [_text(value) for value in row]
    raw = b"".join([len(text).to_bytes(4, "little") + text for text in texts])
    return hashlib.blake2b(raw, digest_size=MARK_BYTES).digest()


def _text(value: Any) -> bytes:
    if value is None:
        return b""
    if isinstance(value, bytes):
        return b"y" + value
    if isinstance(value, datetime):
        return b"t" + value.isoformat().encode()
    return type(value).__name__[:1].encode() + repr(value).encode()
