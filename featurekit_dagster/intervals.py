"""Half-open time intervals in UTC microseconds, and sets of them.

Every span of event time in the project is an `Interval`; every record of what is covered is an `IntervalSet`.
All alignment is to the Unix epoch, so a grid is described by its width alone.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def as_utc(time: datetime) -> datetime:
    """Return `time` as an aware UTC datetime; a naive one is read as UTC.

    >>> as_utc(datetime(2024, 1, 1)).isoformat()
    '2024-01-01T00:00:00+00:00'
    """
    if time.tzinfo is UTC:
        return time
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def to_us(time: datetime) -> int:
    """Return whole microseconds since the Unix epoch; negative before 1970."""
    return (as_utc(time) - EPOCH) // _MICROSECOND


def from_us(us: int) -> datetime:
    """Return the aware UTC datetime `us` microseconds after the Unix epoch."""
    return EPOCH + timedelta(microseconds=us)


def duration_us(duration: timedelta) -> int:
    """Return a duration in whole microseconds."""
    return duration // _MICROSECOND


def floor_time(time: datetime, width: timedelta) -> datetime:
    """Return the largest multiple of `width` since the Unix epoch that is not after `time`.

    >>> floor_time(datetime(1969, 12, 31, 23, 30), timedelta(hours=1)).isoformat()
    '1969-12-31T23:00:00+00:00'
    """
    us = to_us(time)
    return from_us(us - us % duration_us(width))


def ceil_time(time: datetime, width: timedelta) -> datetime:
    """Return the smallest multiple of `width` since the Unix epoch that is not before `time`."""
    us = to_us(time)
    return from_us(us + -us % duration_us(width))


def is_aligned(time: datetime, width: timedelta) -> bool:
    """Tell whether `time` is a multiple of `width` since the Unix epoch."""
    return to_us(time) % duration_us(width) == 0


@dataclass(frozen=True, slots=True, order=True)
class Interval:
    """A span `[start, end)` of event time, never empty.

    Naive datetimes are read as UTC, others are converted to it.

    Args:
        start: First instant inside.
        end: First instant after; must be later than `start`.

    Raises:
        ValueError: `start` is not before `end`.
    """

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", as_utc(self.start))
        object.__setattr__(self, "end", as_utc(self.end))
        if self.start >= self.end:
            raise ValueError(f"interval start {self.start.isoformat()} is not before its end {self.end.isoformat()}")

    @property
    def start_us(self) -> int:
        """Microseconds since the epoch of the first instant inside."""
        return to_us(self.start)

    @property
    def end_us(self) -> int:
        """Microseconds since the epoch of the first instant after."""
        return to_us(self.end)

    @property
    def duration(self) -> timedelta:
        """Length of the interval."""
        return self.end - self.start

    def overlaps(self, other: Interval) -> bool:
        """Tell whether the two share an instant; touching ends do not."""
        return self.start < other.end and other.start < self.end

    def contains(self, time: datetime) -> bool:
        """Tell whether `start <= time < end`."""
        return self.start <= as_utc(time) < self.end

    def intersect(self, other: Interval) -> Interval | None:
        """Return the shared span, or None."""
        start, end = max(self.start, other.start), min(self.end, other.end)
        return Interval(start, end) if start < end else None

    def is_aligned(self, width: timedelta) -> bool:
        """Tell whether both ends lie on the epoch grid of `width`."""
        return is_aligned(self.start, width) and is_aligned(self.end, width)

    def aligned_outward(self, width: timedelta) -> Interval:
        """Return the smallest interval on the epoch grid of `width` that contains this one."""
        return Interval(floor_time(self.start, width), ceil_time(self.end, width))

    def split_on_grid(self, width: timedelta) -> Iterator[Interval]:
        """Yield consecutive pieces cut at every multiple of `width` since the epoch.

        >>> [str(i) for i in Interval(datetime(2024, 1, 1, 12), datetime(2024, 1, 3)).split_on_grid(timedelta(days=1))]
        ['[2024-01-01T12:00Z, 2024-01-02T00:00Z)', '[2024-01-02T00:00Z, 2024-01-03T00:00Z)']
        """
        start = self.start
        while start < self.end:
            end = min(floor_time(start, width) + width, self.end)
            yield Interval(start, end)
            start = end

    def __str__(self) -> str:
        return f"[{format_time(self.start)}, {format_time(self.end)})"


def format_time(time: datetime) -> str:
    """Return a short UTC text: seconds and microseconds only where they are not zero.

    >>> format_time(datetime(2024, 1, 1)), format_time(datetime(2024, 1, 1, 0, 0, 5))
    ('2024-01-01T00:00Z', '2024-01-01T00:00:05Z')
    """
    time = as_utc(time)
    spec = "microseconds" if time.microsecond else "seconds" if time.second else "minutes"
    return time.replace(tzinfo=None).isoformat(timespec=spec) + "Z"


@dataclass(frozen=True, slots=True)
class IntervalSet:
    """Disjoint intervals in ascending order; touching and overlapping ones are merged on construction."""

    intervals: tuple[Interval, ...] = ()

    def __init__(self, intervals: Iterable[Interval] = ()) -> None:
        merged: list[Interval] = []
        reached: datetime | None = None  # end of the last of them, which grows while others touch it
        for interval in sorted(intervals, key=_start_of):
            if reached is not None and interval.start <= reached:
                reached = max(reached, interval.end)
                continue
            if reached is not None and reached != merged[-1].end:
                merged[-1] = Interval(merged[-1].start, reached)
            merged.append(interval)
            reached = interval.end
        if reached is not None and reached != merged[-1].end:
            merged[-1] = Interval(merged[-1].start, reached)
        object.__setattr__(self, "intervals", tuple(merged))

    def __iter__(self) -> Iterator[Interval]:
        return iter(self.intervals)

    def __len__(self) -> int:
        return len(self.intervals)

    def __bool__(self) -> bool:
        return bool(self.intervals)

    def union(self, other: Iterable[Interval]) -> IntervalSet:
        """Return every instant in either set."""
        return IntervalSet((*self.intervals, *other))

    def subtract(self, other: Iterable[Interval]) -> IntervalSet:
        """Return the instants of this set that are not in `other`."""
        holes = (other if isinstance(other, IntervalSet) else IntervalSet(other)).intervals
        left: list[Interval] = []
        first = _first_after(holes, self.intervals[0].start) if self.intervals else 0
        for interval in self.intervals:
            start = interval.start
            while first < len(holes) and holes[first].end <= start:
                first += 1
            position = first
            while position < len(holes) and holes[position].start < interval.end:
                if start < holes[position].start:
                    left.append(Interval(start, holes[position].start))
                start = max(start, holes[position].end)
                position += 1
            if start < interval.end:
                left.append(Interval(start, interval.end))
        return IntervalSet(left)

    def intersect(self, other: Iterable[Interval]) -> IntervalSet:
        """Return the instants in both sets."""
        others = (other if isinstance(other, IntervalSet) else IntervalSet(other)).intervals
        few, many = sorted((self.intervals, others), key=len)
        shared: list[Interval] = []
        for interval in few:
            position = _first_after(many, interval.start)
            while position < len(many) and many[position].start < interval.end:
                start, end = max(interval.start, many[position].start), min(interval.end, many[position].end)
                shared.append(Interval(start, end))
                position += 1
        return IntervalSet(shared)

    def covers(self, interval: Interval) -> bool:
        """Tell whether every instant of `interval` is in the set."""
        first = _first_after(self.intervals, interval.start)
        if first == len(self.intervals):
            return False
        own = self.intervals[first]
        return own.start <= interval.start and interval.end <= own.end

    def overlaps(self, interval: Interval) -> bool:
        """Tell whether any instant of `interval` is in the set."""
        first = _first_after(self.intervals, interval.start)
        return first < len(self.intervals) and self.intervals[first].start < interval.end

    def __str__(self) -> str:
        return ", ".join(map(str, self.intervals)) or "nothing"


def _start_of(interval: Interval) -> datetime:
    return interval.start


def _first_after(intervals: tuple[Interval, ...], time: datetime) -> int:
    """Return the position of the first of disjoint ascending intervals that ends after `time`."""
    return bisect_right(intervals, time, key=lambda interval: interval.end)
