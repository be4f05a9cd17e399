"""A feature view's batch intervals as Dagster partitions: cron, keys, and intervals back from keys.

`partition` is Dagster's word for one cell of the `batch_schedule` grid; everything below this layer says interval.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.domain.windows import format_duration
from featurekit_dagster.intervals import Interval, IntervalSet, as_utc, ceil_time
from featurekit_dagster.planning.grid import last_ready_end
from featurekit_dagster.planning.partition_limits import (
    MANY_PARTITIONS,
    first_partition_start,
    many_partitions,
    partition_limits,
    too_many_partitions,
)
from featurekit_dagster.planning.tasks import LedgerSnapshot

KEY_FORMAT = "%Y-%m-%dT%H:%MZ"
RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"

_MINUTE, _HOUR, _DAY, _WEEK = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1), timedelta(days=7)
_MINUTES, _HOURS = (1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30), (1, 2, 3, 4, 6, 8, 12)
_EPOCH_WEEKDAY = 4  # Thursday, as cron counts


def schedule_fault(view: FeatureView) -> str | None:
    """Return why a view's batch schedule cannot be partitions, or None.

    Cron starts again each hour, day and week, so only divisors of those (and the week from a Thursday on) lie on the
    epoch grid everywhere.
    """
    width = view.batch_schedule
    minutes, hours = (timedelta(minutes=n) for n in _MINUTES), (timedelta(hours=n) for n in _HOURS)
    if width in (*minutes, *hours, _DAY, _WEEK):
        return None
    return (
        f"feature view {view.name!r}: batch_schedule {format_duration(width)} cannot be partitions, because cron "
        f"cannot put it on the grid of the Unix epoch; give {', '.join(map(str, _MINUTES))} minutes, "
        f"{', '.join(map(str, _HOURS))} hours, 1 day or 7 days"
    )


def cron_of(width: timedelta, delay: timedelta = timedelta(0)) -> str:
    """Return the cron expression (UTC) of every grid point of `width`, moved by `delay`.

    Cron counts in minutes, so a delay with seconds is rounded up to the next one.

    >>> cron_of(timedelta(days=1)), cron_of(timedelta(days=1), timedelta(hours=1)), cron_of(timedelta(days=7))
    ('0 0 * * *', '0 1 * * *', '0 0 * * 4')
    """
    phase = -(-delay // _MINUTE) * _MINUTE % width
    day, hour, minute = phase // _DAY, phase % _DAY // _HOUR, phase % _HOUR // _MINUTE
    if width >= _WEEK:
        return f"{minute} {hour} * * {(_EPOCH_WEEKDAY + day) % 7}"
    if width >= _DAY:
        return f"{minute} {hour} * * *"
    if width >= _HOUR:
        return f"{minute} {_every(width // _HOUR, hour, 24)} * * *"
    return f"{_every(width // _MINUTE, minute, 60)} * * * *"


def _every(step: int, first: int, count: int) -> str:
    if step == 1:
        return "*"
    return f"{first}-{count - 1}/{step}" if first else f"*/{step}"


def partitions_of(view: FeatureView, fixed_now: datetime | None = None) -> dg.TimeWindowPartitionsDefinition:
    """Return the partitions of a view, from its materialization start on.

    Args:
        view: A view that writes a store and whose schedule has no fault.
        fixed_now: The time of a workspace whose clock stands still; partitions then end with the last ready interval.
    """
    start = first_partition_start(view)
    return dg.TimeWindowPartitionsDefinition(
        start=start,
        end=None if fixed_now is None else max(start, last_ready_end(view, fixed_now)),
        fmt=KEY_FORMAT,
        cron_schedule=cron_of(view.batch_schedule),
        timezone="UTC",
    )


def count_fault(view: FeatureView, snapshot: LedgerSnapshot, now: datetime) -> str | None:
    """Return why a view that is new has too many partitions, or None; warn where a view has many.

    Args:
        view: The feature view.
        snapshot: What is covered and claimed; of a view that is materialized already it only warns.
        now: Time at which they are counted.
    """
    refused = too_many_partitions(view, snapshot, now)
    if refused is not None:
        return f"feature view {refused}"
    limits = partition_limits(view, now)
    if limits is not None and limits.partitions > MANY_PARTITIONS:
        warnings.warn(f"feature view {many_partitions(view, limits.partitions)}", stacklevel=2)
    return None


def key_of(start: datetime) -> str:
    """Return the partition key of the interval that starts at `start`."""
    # as KEY_FORMAT says; strftime would take several times as long
    return as_utc(start).replace(tzinfo=None).isoformat(timespec="minutes") + "Z"


def keys_of(view: FeatureView, intervals: Iterable[Interval]) -> Iterator[str]:
    """Yield the keys of all partitions that lie wholly inside intervals, in order of time."""
    width = view.batch_schedule
    for interval in IntervalSet(intervals):
        start = ceil_time(interval.start, width)
        while start + width <= interval.end:
            yield key_of(start)
            start += width


def interval_of_keys(view: FeatureView, keys: dg.PartitionKeyRange) -> Interval:
    """Return the interval from the start of the first partition to the end of the last.

    Keys are computed with, not looked up in a list, so a range of any length costs the same. One that is off the grid
    gives an interval that is off the grid, which planning refuses.

    Raises:
        ValueError: A key has another form, or the range is empty.
    """
    first, last = (datetime.strptime(key, KEY_FORMAT).replace(tzinfo=UTC) for key in (keys.start, keys.end))
    return Interval(first, last + view.batch_schedule)


def key_range(view: FeatureView, interval: Interval) -> dg.PartitionKeyRange:
    """Return the range of keys of the partitions of an aligned interval."""
    return dg.PartitionKeyRange(key_of(interval.start), key_of(interval.end - view.batch_schedule))
