"""Time windows of aggregations, and how durations are written in feature names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta

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
    def offset_suffix(self) -> str:
        """What the offset adds to a feature's name."""
        return f"_offset_{format_duration(self.offset)}" if self.offset else ""
