"""The watermark of a stream: up to which event time late events may be dropped.

Pure: what time it is comes as an argument, and the state is a value that the caller keeps.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

IDLE_US = 60_000_000
"""A source partition that brought nothing for so long, and has nothing left to be read, holds nobody back."""


@dataclass(frozen=True, slots=True)
class PartitionTime:
    """What is known of one source partition.

    Args:
        newest_us: Time of its newest event; None before the first.
        active_us: When it last brought an event or had some left, by the caller's clock.
    """

    newest_us: int | None
    active_us: int


@dataclass(frozen=True, slots=True)
class Watermark:
    """The newest event time of every assigned source partition; times are microseconds since 1970.

    Args:
        delay_us: How far behind the newest event an event may be and still count; zero and None are no limit.
        partitions: What is known of each.
    """

    delay_us: int | None
    partitions: Mapping[str, PartitionTime]

    @classmethod
    def starting(cls, delay_us: int | None, newest: Mapping[str, int | None], now_us: int) -> Watermark:
        """Return the watermark of assigned partitions as a loop begins, with the newest event of each so far."""
        return cls(delay_us, {name: PartitionTime(us, now_us) for name, us in newest.items()})

    def seen(self, partition: str, times_us: Iterable[int], now_us: int) -> Watermark:
        """Return the watermark after events of a partition; they may be old, and none at all."""
        known = self.partitions[partition]
        newest = max((us for us in (known.newest_us, *times_us) if us is not None), default=None)
        return replace(self, partitions={**self.partitions, partition: PartitionTime(newest, now_us)})

    def still_behind(self, partitions: Collection[str], now_us: int) -> Watermark:
        """Return the watermark after a look at the lag: partitions with events left are not idle."""
        moved = {name: PartitionTime(self.partitions[name].newest_us, now_us) for name in partitions}
        return replace(self, partitions={**self.partitions, **moved})

    def at(self, now_us: int) -> int | None:
        """Return the latest event time that may be dropped, inclusive; None drops nothing.

        It is the minimum over the partitions that are not idle, less the delay. Where all are idle, all count.

        >>> minute = 60_000_000
        >>> Watermark.starting(10 * minute, {"0": 15 * minute}, now_us=0).at(0) == 5 * minute
        True

        Source: Streaming Materialization, Online Data with Stream Processing (10 minutes, 00:15:00 and 00:05:00).
        """
        if not self.delay_us:
            return None
        awake = [known for known in self.partitions.values() if now_us - known.active_us < IDLE_US]
        newest = [known.newest_us for known in awake or self.partitions.values()]
        if not awake:
            newest = [us for us in newest if us is not None]
        times = [us for us in newest if us is not None]
        return min(times) - self.delay_us if times and len(times) == len(newest) else None

    def idle(self, now_us: int) -> frozenset[str]:
        """Return the partitions that hold nobody back."""
        return frozenset(name for name, known in self.partitions.items() if now_us - known.active_us >= IDLE_US)

    def joined(self, newest: Mapping[str, int | None], now_us: int) -> Watermark:
        """Return the watermark with further partitions assigned, with the newest event of each so far."""
        more = {name: PartitionTime(us, now_us) for name, us in newest.items()}
        return replace(self, partitions={**self.partitions, **more})

    @property
    def newest_us(self) -> int | None:
        """Time of the newest event of all partitions."""
        return max((known.newest_us for known in self.partitions.values() if known.newest_us is not None), default=None)
