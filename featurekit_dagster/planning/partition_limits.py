"""How many partitions a view has in Dagster, and when they become too many for it.

Planning says it beforehand; orchestration refuses or warns by the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.domain.windows import format_duration
from featurekit_dagster.errors import TooManyPartitions
from featurekit_dagster.intervals import floor_time, format_time
from featurekit_dagster.planning.grid import last_complete_end
from featurekit_dagster.planning.tasks import LedgerSnapshot, PartitionLimits

MANY_PARTITIONS, TOO_MANY_PARTITIONS = 20_000, 100_000

_SOON = timedelta(days=365)
_LAST = datetime.max.replace(tzinfo=UTC)


def first_partition_start(view: FeatureView) -> datetime:
    """Return the start of a view's first batch interval.

    Raises:
        ValueError: The view has no feature start time.
    """
    if view.materialization_start is None:
        raise ValueError(f"{view.name} has no feature start time")
    return floor_time(view.materialization_start, view.batch_schedule)


def partition_limits(view: FeatureView, now: datetime) -> PartitionLimits | None:
    """Return how a view's partitions grow; None for one that has none, because it writes no store.

    Args:
        view: The feature view.
        now: Time of asking.
    """
    if view.materialization_start is None or not (view.online or view.offline):
        return None
    start, width = first_partition_start(view), view.batch_schedule
    count = max(0, (last_complete_end(view, now) - start) // width)
    most = (_LAST - start) // width
    reached_at = {n: start + n * width if n <= most else None for n in (MANY_PARTITIONS, TOO_MANY_PARTITIONS)}
    return PartitionLimits(partitions=count, reached_at=reached_at)


def limit_warnings(view: FeatureView, now: datetime) -> Iterator[str]:
    """Yield what a person should know of a view that has many partitions, or will have them within a year."""
    limits = partition_limits(view, now)
    if limits is None:
        return
    counts = [f"{limits.partitions:,} by now"] if limits.partitions > MANY_PARTITIONS else []
    for number, at in limits.reached_at.items():
        if at is not None and number >= limits.partitions and at - now <= _SOON:
            counts.append(f"{number:,} on {format_time(at)}")
    if counts:
        yield (
            f"batch_schedule {format_duration(view.batch_schedule)} makes many partitions: {', '.join(counts)}; "
            f"Dagster gets slow above {MANY_PARTITIONS:,}, and a new view may have {TOO_MANY_PARTITIONS:,}"
        )


def too_many_partitions(view: FeatureView, snapshot: LedgerSnapshot, now: datetime) -> TooManyPartitions | None:
    """Return the refusal of a view that has too many partitions and of which nothing is materialized yet, or None.

    Args:
        view: The feature view.
        snapshot: What is covered, of the generation that would be written.
        now: Time at which they are counted.
    """
    limits = partition_limits(view, now)
    if limits is None or limits.partitions <= TOO_MANY_PARTITIONS:
        return None
    if any(name == view.name for name, _ in snapshot.covered):
        return None
    return many_partitions(view, limits.partitions)


def many_partitions(view: FeatureView, partitions: int) -> TooManyPartitions:
    """Return what is to be said of a view that has more than `MANY_PARTITIONS`, as an error."""
    schedule = format_duration(view.batch_schedule)
    numbers = {"partitions": partitions, "many": MANY_PARTITIONS, "most": TOO_MANY_PARTITIONS}
    return TooManyPartitions(view=view.name, schedule=schedule, **numbers)
