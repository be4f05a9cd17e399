"""Which files of a hive-partitioned folder may hold rows of a span, told by their paths alone.

DuckDB prunes such files too, but opens the first of all to learn the columns; a file outside the span may be broken,
archived or slow to reach.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote

from featurekit_dagster.domain.sources import DatetimePartitionColumn

_PARTS = ("year", "month", "day", "hour")
_DAY, _HOUR = timedelta(days=1), timedelta(hours=1)


def files_of_span(
    paths: Sequence[str],
    columns: Sequence[DatetimePartitionColumn],
    start: datetime | None,
    end: datetime | None,
) -> list[str]:
    """Return the paths of the files that may hold rows with `start <= time < end`, in order.

    Args:
        paths: Paths with `column=value` folders; one whose values say nothing is kept.
        columns: Which of those columns hold which part of the time, in UTC.
        start: First instant, aware; None is unbounded.
        end: First instant after, aware; None is unbounded.
    """
    names = {column.datepart: column.column_name for column in columns}
    kept = []
    for path in paths:
        span = _span(path, names)
        if span is None or ((end is None or span[0] < end) and (start is None or start < span[1])):
            kept.append(path)
    return kept


def _span(path: str, names: Mapping[str, str]) -> tuple[datetime, datetime] | None:
    """Return `[start, end)` of a file's rows, or None where the path does not tell."""
    folders = dict(part.split("=", 1) for part in path.replace("\\", "/").split("/") if "=" in part)
    try:
        if "date" in names:
            begin = datetime.fromisoformat(unquote(folders[names["date"]])).replace(tzinfo=UTC)
            return begin, begin + _DAY
        numbers: list[int] = []
        for part in _PARTS:
            if part not in names:
                break
            numbers.append(int(folders[names[part]]))
        return _calendar_span(numbers) if numbers else None
    except (KeyError, ValueError, OverflowError):
        return None


def _calendar_span(numbers: Sequence[int]) -> tuple[datetime, datetime]:
    year, month, day, hour = [*numbers, *(1, 1, 1, 0)[len(numbers) :]]
    begin = datetime(year, month, day, hour, tzinfo=UTC)
    if len(numbers) == 1:
        return begin, datetime(year + 1, 1, 1, tzinfo=UTC)
    if len(numbers) == 2:
        return begin, datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)
    return begin, begin + (_DAY if len(numbers) == 3 else _HOUR)
