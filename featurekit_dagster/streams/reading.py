"""What a reader of a stream does, whatever the stream is.

A reader keeps no position of its own: whoever reads stores where each source partition stands beside the state that
was made of it, and hands it back through `seek`. The readers are in the modules beside this one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

ONLY_PARTITION = "0"
OLDEST = "oldest"
"""A position that every reader takes: the oldest event that the partition keeps."""
ENDED = "ended"
"""The position of a partition that was read to its end and to which nothing more will come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamBatch:
    """What one poll brought of one source partition.

    Args:
        partition: The source partition; `0` for a source that has one.
        payloads: One JSON document each, in the order of the stream; none where only the position moved.
        position: Where the next poll of this partition begins; text that only its reader understands, kept as the
            checkpoint once all of `payloads` is dealt with.
    """

    partition: str
    payloads: Sequence[bytes]
    position: str


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """How far the reading of a source partition is behind its end.

    Args:
        partition: The source partition.
        events: How many events are still to be polled; None where the stream does not tell (Kinesis).
        behind: How long ago the last event polled came in; None where the stream does not tell (all but Kinesis).
    """

    partition: str
    events: int | None
    behind: timedelta | None = None


class StreamReader(Protocol):
    """Follows a stream from positions that the caller keeps. Not for several threads at once."""

    def partitions(self) -> tuple[str, ...]:
        """Return all source partitions that there are now, assigned or not, in order of their names.

        Raises:
            StreamUnavailable: The stream cannot be reached.
        """

    def seek(self, positions: Mapping[str, str | None]) -> None:
        """Follow these partitions, and no others, from these positions on.

        Args:
            positions: The assigned partitions, each with the position of its last checkpoint; None begins at the
                source's `initial_stream_position`, or, beside others that have a position, at the oldest event kept:
                such a partition is newer than the first read. `OLDEST` says so outright. Where a partition without
                a position begins is told by the next `poll`, in a batch without payloads.

        Raises:
            StreamPositionLost: The stream no longer keeps what comes after a position.
            StreamUnavailable: The stream cannot be reached.
        """

    def poll(self, most: int, timeout: timedelta) -> list[StreamBatch]:
        """Return what comes next of the assigned partitions.

        Args:
            most: Upper bound of the number of payloads of all batches together, at least one.
            timeout: How long to wait for the first payload.

        Returns:
            At most one batch per partition; none if nothing came in time.

        Raises:
            StreamPositionLost: The stream dropped events that were still to be polled.
            StreamUnavailable: The stream cannot be reached and will not be again by itself.
        """

    def lag(self) -> tuple[PartitionLag, ...]:
        """Return for each assigned partition how much is still to be polled."""

    def parents(self) -> Mapping[str, Collection[str]]:
        """Return which partitions took over from others, and from which; as `partitions` found them last.

        Of assigned ones the reader itself begins none before its parents have ended.
        """

    def retention(self) -> timedelta | None:
        """Return how long the stream keeps its events; None where it does not say, or keeps them all."""

    def close(self) -> None:
        """Let go of connections and files."""
