"""Time windows of aggregations, and how durations are written in feature names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta

from featurekit_dagster.intervals import duration_us

MAX_DURATION = timedelta(days=3_652_500)
_UNITS = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))


def format_duration(duration: timedelta) -> str:
    """Return days, hours, minutes and seconds, non-zero parts only; the sign is dropped.

    >>> format_duration(timedelta(hours=36)), format_duration(timedelta(days=7)), format_duration(timedelta(0))
    ('1d12h', '7d', '0s')
    """
    seconds = int(abs(duration).total_seconds())
    text = ""
    for unit, size in _UNITS:
        count, seconds = divmod(seconds, size)
        if count:
            text += f"{count}{unit}"
    return text or "0s"


_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def parse_duration(text: str) -> timedelta:
    """Return the duration written as days, hours, minutes and seconds, in that order, each at most once.

    >>> parse_duration("1d12h")
    datetime.timedelta(days=1, seconds=43200)

    Raises:
        ValueError: The text is empty, of another form, or too long for a timedelta.
    """
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        raise ValueError(f"duration {text!r} is not like '1d2h3m4s'")
    seconds = sum(int(n or 0) * size for n, (_, size) in zip(match.groups(), _UNITS, strict=True))
    try:
        return timedelta(seconds=seconds)
    except OverflowError:
        raise ValueError(f"duration {text!r} is too long") from None


def size_fault(name: str, value: timedelta) -> str | None:
    """Return why a timedelta of either sign is too fine or too large, or None."""
    if value.microseconds:
        return f"{name} {value} is not in whole seconds; round it"
    if abs(value) > MAX_DURATION:
        return f"{name} {value} is over 10,000 years; give a shorter one or leave it out"
    return None


@dataclass(frozen=True, slots=True)
class Span:
    """One stretch of time before a right edge: `[edge + begin_us, edge + end_us)`, or `[since_us, edge + end_us)`.

    Args:
        begin_us: Distance of the left end from the edge, negative; None where the left end is `since_us`.
        end_us: Distance of the right end from the edge, zero or negative.
        since_us: Left end of a lifetime window, microseconds since the Unix epoch.
    """

    begin_us: int | None
    end_us: int
    since_us: int | None = None


@dataclass(frozen=True, slots=True)
class TimeWindow:
    """The span an aggregation looks back over, `[edge - window_size + offset, edge + offset)`.

    Args:
        window_size: Length; a positive multiple of the view's aggregation interval.
        offset: Zero or negative; moves the whole window into the past.

    Source: Manually Trigger Materialization, example of a feature view (`TimeWindow(window_size=...)`).
    """

    window_size: timedelta
    offset: timedelta = timedelta(0)

    @property
    def reach(self) -> timedelta:
        """How far before the right edge the window begins."""
        return self.window_size - self.offset

    @property
    def label(self) -> str:
        """The window as generated names write it, without its offset."""
        return format_duration(self.window_size)

    @property
    def suffix(self) -> str:
        """What the window adds to the end of a generated name."""
        return f"_offset_{format_duration(self.offset)}" if self.offset else ""

    @property
    def spans(self) -> tuple[Span, ...]:
        """The one span of time it looks at."""
        end = duration_us(self.offset)
        return (Span(end - duration_us(self.window_size), end),)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeWindowSeries:
    """Several windows of one size, one answer each, in an array from the oldest window to the newest.

    Windows begin at `series_start`, `series_start + step_size`, ... before the right edge, as long as they end at or
    before `series_end`.

    Args:
        series_start: Start of the oldest window, relative to the right edge; negative.
        window_size: Length of each window.
        step_size: Distance between the starts of two windows; `window_size` when None.
        series_end: Where the newest window ends at the latest, relative to the right edge; zero or negative.
    """

    series_start: timedelta
    window_size: timedelta
    step_size: timedelta | None = None
    series_end: timedelta = timedelta(0)

    @property
    def step(self) -> timedelta:
        """Distance between the starts of two windows."""
        return self.window_size if self.step_size is None else self.step_size

    @property
    def reach(self) -> timedelta:
        """How far before the right edge the oldest window begins."""
        return -self.series_start

    @property
    def label(self) -> str:
        """The window as generated names write it."""
        return format_duration(self.window_size)

    @property
    def suffix(self) -> str:
        """What the series adds to the end of a generated name."""
        ends = f"{format_duration(self.series_start)}_{format_duration(self.series_end)}"
        return f"_series_{ends}_{format_duration(self.step)}"

    @property
    def spans(self) -> tuple[Span, ...]:
        """The spans of its windows, oldest first."""
        start, end = duration_us(self.series_start), duration_us(self.series_end)
        size, step = duration_us(self.window_size), duration_us(self.step)
        return tuple(Span(begin, begin + size) for begin in range(start, end - size + 1, step))


@dataclass(frozen=True, slots=True)
class LifetimeWindow:
    """Everything from the view's `lifetime_start_time` (inclusive) to the right edge."""

    @property
    def reach(self) -> timedelta:
        """Zero: the left end is a fixed time, not a distance from the edge."""
        return timedelta(0)

    @property
    def label(self) -> str:
        """The window as generated names write it."""
        return "lifetime"

    @property
    def suffix(self) -> str:
        """What the window adds to the end of a generated name: nothing."""
        return ""


Window = TimeWindow | TimeWindowSeries | LifetimeWindow
