"""What an online store keeps of a stream beside the records: how far it was read, and what is still on its way.

All of it changes in the transaction that writes the records, so a process that ends anywhere goes on where the last
commit stands and nothing counts twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Columns = list[np.ndarray[Any, Any]]
Nulls = list[np.ndarray[Any, np.dtype[np.bool_]] | None]
IntArray = np.ndarray[Any, np.dtype[np.int64]]
Combine = Callable[[Columns, Nulls, IntArray], tuple[Columns, Nulls, IntArray | None]]
"""Makes one tile of those of each group: value columns, their NULLs, and the ascending number of each row's group.

The third answer names the groups whose integer sum does not fit 64 bits; the other two are of no meaning then.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamCheckpoint:
    """How far one source partition was read; the numbers count from its first event on.

    Args:
        position: Where the next poll begins; None before the first.
        newest_us: Time of its newest event in microseconds since 1970; None before the first.
        events: Events that were read.
        late: Those that were dropped because they were behind the watermark.
        duplicates: Those that were dropped because they had come before.
        superseded: Rows that a batch job had written already.
        refused: Those that became dead letters.
        idle_us: When it was last found to have brought nothing for long and to have nothing left to be read; None
            while it has.
    """

    position: str | None = None
    newest_us: int | None = None
    events: int = 0
    late: int = 0
    duplicates: int = 0
    superseded: int = 0
    refused: int = 0
    deleted: int = 0
    idle_us: int | None = None


@dataclass(frozen=True, slots=True)
class StreamProgress:
    """What a view has seen of its stream, over all source partitions.

    Args:
        start_us: From when on the stream covers everything; None before the first commit.
        newest_us: Time of the newest event; None before the first.
        forgotten_us: Up to when marks of events were forgotten, so that nobody can tell which of these came before.
    """

    start_us: int | None = None
    newest_us: int | None = None
    forgotten_us: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """An event that could not become a row.

    Args:
        partition: Source partition that it came from.
        reason: Why, without any value of it.
        payload: The event as it came, or the row that it became, as JSON.
        number: Its place among the dead letters of the partition; given by the store.
    """

    partition: str
    reason: str
    payload: bytes = field(repr=False)
    number: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamCommit:
    """What changes beside the records of one stream write.

    Args:
        partitions: New checkpoint of every source partition that was polled; None keeps what is stored, under the new
            epoch.
        epochs: Lease epoch of each of these partitions; a lower one than stored is shut out.
        start_us: From when on the stream covers everything; kept only if nothing is known yet. None says nothing.
        seen: Marks of the events that were counted, with their times, so that they count once; none of a time of
            which marks were forgotten.
        forget_us: Marks of events up to this time are forgotten; None keeps all.
        letters: New dead letters.
        is_continued: Whether each of these partitions was taken before, so that the store has to know it.
    """

    partitions: Mapping[str, StreamCheckpoint | None]
    epochs: Mapping[str, int]
    start_us: int | None = None
    seen: Sequence[tuple[bytes, int]] = ()
    forget_us: int | None = None
    letters: Sequence[DeadLetter] = ()
    is_continued: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamWrite:
    """What one stream write did.

    Args:
        rows_written: Tiles or rows that are now stored.
        superseded: Given rows that a batch job had written already; they change nothing.
        partitions: The checkpoints as they are stored now.
        deleted: Given rows that were left out, because their key was deleted after them.
    """

    rows_written: int
    superseded: int
    partitions: Mapping[str, StreamCheckpoint]
    deleted: int = 0


Refuse = Callable[[int], DeadLetter]
"""Makes a dead letter of a given row whose tile would hold an integer sum of more than 64 bits."""
