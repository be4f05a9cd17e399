"""What a Delta table remembers about itself: coverage, partition size and the epoch of the lease it is written under.

Each commit of ours says it twice: as metadata, which people read in the table's history, and as application
transactions, because a checkpoint keeps these when clean-up has removed the commits before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from deltalake import CommitProperties, DeltaTable, Transaction

from featurekit_dagster.errors import LeaseLost
from featurekit_dagster.intervals import Interval, IntervalSet, duration_us, format_time, from_us

OURS = "featurekit."
COVERAGE = f"{OURS}coverage"
INTERVAL = f"{OURS}interval"
MAINTENANCE = f"{OURS}maintenance"
PARTITION = f"{OURS}partition"
DELETED, MERGED = "deleted", "merged"
PARTITION_SIZE = f"{OURS}time_partition_size_us"
_LEASE = f"{OURS}lease"
_COVERED = f"{OURS}covered"
_COMMITS_READ = 16


def commit_properties(
    facts: Mapping[str, str], coverage: IntervalSet, partition_size: timedelta, epoch: int, **more: int
) -> CommitProperties:
    """Return what a commit says about itself and about the table after it.

    Args:
        facts: About the commit alone; names begin with `OURS`.
        coverage: Everything that the table covers with this commit.
        partition_size: Width of the grid of the partition column.
        epoch: Epoch of the writer's lease, by which later commits are judged.
        more: Other arguments of the library.
    """
    size_us = duration_us(partition_size)
    metadata = {**facts, COVERAGE: format_intervals(coverage), PARTITION_SIZE: str(size_us)}
    kept = {_LEASE: epoch, PARTITION_SIZE: size_us, **dict(_numbered(coverage))}
    transactions = [Transaction(name, value) for name, value in kept.items()]
    return CommitProperties(custom_metadata=metadata, app_transactions=transactions, **more)


def coverage_of(table: DeltaTable) -> IntervalSet:
    """Return what a table covers by the newest commit of ours, also when clean-up has removed that commit."""
    count = table.transaction_version(_COVERED)
    if count is None:  # written before commits carried it so
        return parse_intervals(_newest_own_commit(table).get(COVERAGE, ""))
    return IntervalSet(Interval(_kept_time(table, n, "start"), _kept_time(table, n, "end")) for n in range(count))


def partition_size_of(table: DeltaTable) -> timedelta:
    """Return the width of the grid to which a table's times are floored for its partition column."""
    size_us = table.transaction_version(PARTITION_SIZE)
    if size_us is None:
        size_us = int(_newest_own_commit(table).get(PARTITION_SIZE, duration_us(timedelta(days=1))))
    return timedelta(microseconds=size_us)


def lease_epoch_of(table: DeltaTable) -> int | None:
    """Return the highest epoch under which a table was written; None before the first commit of ours."""
    epoch: int | None = table.transaction_version(_LEASE)
    return epoch


def check_lease(table: DeltaTable, view: str, epoch: int) -> None:
    """Refuse a writer whose lease somebody has taken over and written under.

    The handle that is looked at has to be the one that writes, so that a commit that comes in between makes the write
    fail.

    Raises:
        LeaseLost: A commit under a higher epoch is in the table.
    """
    current = lease_epoch_of(table)
    if current is not None and current > epoch:
        raise LeaseLost(name=f"batch:{view}", epoch=epoch, current=current)


def format_intervals(intervals: Iterable[Interval]) -> str:
    """Return intervals as one line of text: `start/end` in UTC, separated by commas.

    >>> format_intervals([Interval(datetime(2024, 1, 1), datetime(2024, 1, 2))])
    '2024-01-01T00:00Z/2024-01-02T00:00Z'
    """
    return ",".join(f"{format_time(interval.start)}/{format_time(interval.end)}" for interval in intervals)


def parse_intervals(text: str) -> IntervalSet:
    """Return the intervals of a text that `format_intervals` made."""
    pairs = (pair.split("/") for pair in text.split(",") if pair)
    return IntervalSet(Interval(datetime.fromisoformat(start), datetime.fromisoformat(end)) for start, end in pairs)


def _numbered(coverage: IntervalSet) -> Iterator[tuple[str, int]]:
    """Yield the count of intervals and the ends of each; what a longer coverage left beyond the count is not read."""
    yield _COVERED, len(coverage)
    for number, interval in enumerate(coverage):
        yield f"{_COVERED}.{number}.start", interval.start_us
        yield f"{_COVERED}.{number}.end", interval.end_us


def _kept_time(table: DeltaTable, number: int, side: str) -> datetime:
    kept = table.transaction_version(f"{_COVERED}.{number}.{side}")
    assert kept is not None  # as many as the count says were kept with it
    return from_us(kept)


def _newest_own_commit(table: DeltaTable) -> Mapping[str, Any]:
    """Return the newest commit's record that carries our metadata; empty when there is none."""
    for limit in (_COMMITS_READ, None):
        for commit in table.history(limit):
            if COVERAGE in commit:
                return commit
    return {}
