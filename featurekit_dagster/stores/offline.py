"""What an offline store must do: hold the whole history of every feature view, replaced interval by interval.

The recipe writes through this protocol and the historical reads scan through it; `delta.py` is the implementation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import duckdb
import pyarrow as pa

from featurekit_dagster.intervals import Interval, IntervalSet


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineWrite:
    """What one replacement of an interval did.

    Args:
        version: Version of the table that the commit made; grows with every commit.
        rows_written: Rows of the interval now.
        rows_replaced: Rows of the interval before.
        bytes: Size of the files that the commit added, kept rows of rewritten files included.
    """

    version: int
    rows_written: int
    rows_replaced: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSize:
    """How large a table, or a part of it, is.

    Args:
        files: Number of its data files, each of which a read of all of it opens.
        bytes: Their size.
    """

    files: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsRemoved:
    """What was taken out of a table.

    Args:
        rows: Rows that are gone.
        files: Files that were written again, or are gone.
        bytes: Size of the files that were written instead.
    """

    rows: int
    files: int
    bytes: int


class KeyDeletion(Protocol):
    """Taking rows of some keys out of one table, partition by partition; it can be repeated at any time."""

    def left(self) -> tuple[str, ...]:
        """Return the partitions that have a row that is to go, ascending."""
        ...

    def rewrite(self, partition: str, *, job_id: str, epoch: int) -> RowsRemoved:
        """Write a partition's files that hold a row which is to go again without it, in one commit.

        Raises:
            CommitConflict: Other writers came first each time; nothing was written.
            LeaseLost: A commit under a higher epoch is in the table; nothing was written.
        """
        ...

    def vacuum(self, *, job_id: str, epoch: int) -> int:
        """Delete every file that the newest version does not need, and return their number.

        Reads under way, and reads of former versions, fail from then on.

        Raises:
            LeaseLost: A commit under a higher epoch is in the table; nothing was deleted.
        """
        ...


class TableMaintenance(Protocol):
    """Tidying one table, step by step; a step is one commit, or several short ones, and can be repeated.

    Commits carry the table's coverage and the writer's epoch like all others. No row changes.
    """

    @property
    def coverage(self) -> IntervalSet:
        """What the table covers."""
        ...

    def size(self, interval: Interval | None = None) -> TableSize:
        """Return the size of what a read of `[start, end)` opens, or of the whole table."""
        ...

    def forget_columns(self, schema: pa.Schema, *, job_id: str, epoch: int) -> tuple[str, ...]:
        """Take the columns that `schema` lacks out of the table and return their names.

        All partitions are left to sort then, which takes the values out of the files.

        Raises:
            LeaseLost: A commit under a higher epoch is in the table.
        """
        ...

    def left_to_sort(self) -> tuple[str, ...]:
        """Return the partitions that were written in parts since they were last sorted, ascending."""
        ...

    def sort_partition(self, partition: str, sort_by: Sequence[str], *, job_id: str, epoch: int) -> TableSize:
        """Write a partition again as few files, ordered by `sort_by`, in one commit; return the size it had.

        Raises:
            CommitConflict: Other writers came first each time; nothing was written.
            LeaseLost: A commit under a higher epoch is in the table; nothing was written.
        """
        ...

    def version(self) -> int:
        """Return the version of the newest commit."""
        ...

    def clean_up(self, retention: timedelta, sorted_at: int, *, job_id: str, epoch: int) -> int:
        """Delete the files that no version younger than `retention` has, shorten the log, and return their number.

        Commits stay in the log for 30 days, or as long as the table's own property says.

        Args:
            retention: Longer than any read takes; a read that began before it may miss files.
            sorted_at: A version of which all partitions that were left to sort have been sorted.
            job_id: Kept with the commits.
            epoch: Epoch of the lease that the writer holds.

        Raises:
            LeaseLost: A commit under a higher epoch is in the table; nothing was deleted.
        """
        ...


class RowUpserts(Protocol):
    """Puts rows into the table of one generation of a view, one by one instead of interval by interval."""

    def write(
        self,
        table: pa.Table,
        interval: Interval,
        *,
        schema: pa.Schema,
        time_column: str,
        keys: Sequence[str],
        job_id: str,
        epoch: int,
        coverage: IntervalSet,
        time_partition_size: timedelta,
    ) -> OfflineWrite:
        """Put rows in place of those with the same keys and time, and the others beside them, in one commit.

        Args:
            table: Rows with the columns of `schema`, any order, no two with the same keys and time.
            interval: Where their times lie; what else is there stays as it is.
            schema: As for `OfflineStore.replace_interval`, as all arguments that are not named here.
            time_column: A column of type `timestamp[us, tz=UTC]`, without NULL.
            keys: The columns that tell rows of one time apart; NULL equals NULL.
            job_id: Kept with the commit, so that `has_commit_of` finds it.
            epoch: As for `OfflineStore.replace_interval`.
            coverage: As for `OfflineStore.replace_interval`.
            time_partition_size: As for `OfflineStore.replace_interval`.

        Raises:
            RowsOutsideInterval: A row has no time, or one outside `interval`; nothing was written.
            StoredSchemaMismatch: The rows do not fit the table; nothing was written.
            CommitConflict: Other writers came first each time; nothing was written.
            LeaseLost: A commit under a higher epoch is in the table; nothing was written.
        """
        ...

    def has_commit_of(self, job_id: str) -> bool:
        """Tell whether the table's history has a commit that was made for a job."""
        ...


class OfflineStore(Protocol):
    """The history of feature views; one table per view and generation."""

    def replace_interval(
        self,
        view: str,
        table: pa.Table,
        interval: Interval,
        *,
        schema: pa.Schema,
        time_column: str,
        sort_by: Sequence[str],
        job_id: str,
        epoch: int,
        coverage: IntervalSet,
        generation: int = 1,
        time_partition_size: timedelta = timedelta(days=1),
    ) -> OfflineWrite:
        """Make `table` the whole content of `[start, end)` in one commit; everything else stays as it is.

        Args:
            view: The feature view.
            table: Rows with the columns of `schema`, any order, all with `start <= time_column < end`. No rows clear
                the interval.
            interval: What is replaced.
            schema: The stored columns. Those that the table on disk does not have yet are added; older rows read NULL.
            time_column: A column of type `timestamp[us, tz=UTC]`.
            sort_by: Columns by which the rows of a file are ordered, usually the join keys and then the time column.
            job_id: Kept with the commit.
            epoch: Epoch of the lease that the writer holds, kept with the commit.
            coverage: Everything that is covered offline with this write; kept with the commit, so that a lost record of
                coverage can be read back.
            generation: Generation of the view's stored layout.
            time_partition_size: Width of the epoch grid to which times are floored for the partition column.

        Raises:
            RowsOutsideInterval: A row has no time, or one outside `interval`; nothing was written.
            StoredSchemaMismatch: `table` lacks a column or has one of another type; nothing was written.
            CommitConflict: Other writers came first each time; nothing was written.
            LeaseLost: A commit under a higher epoch is in the table; nothing was written.
        """
        ...

    def upserts(self, view: str, generation: int = 1) -> RowUpserts:
        """Return what puts single rows into a view's table, which need not exist yet."""
        ...

    def relation(
        self,
        con: duckdb.DuckDBPyConnection,
        view: str,
        *,
        schema: pa.Schema,
        time_column: str,
        interval: Interval | None = None,
        columns: Sequence[str] | None = None,
        generation: int = 1,
        version: int | None = None,
    ) -> str:
        """Return SQL that stands after FROM in `con` and yields the stored rows, as of now or of a version.

        Later commits do not change what the text reads.

        Args:
            con: Connection in which the text will be used; a remote table is registered there.
            view: The feature view.
            schema: Columns to read and their types; one that was never written reads NULL.
            time_column: Column of event times; comes out as TIMESTAMP WITH TIME ZONE.
            interval: Only rows with `start <= time_column < end`; None for all.
            columns: Those of `schema` to return, in this order; None for all.
            generation: Generation of the view's stored layout.
            version: The commit as of which to read; None for the newest.

        Raises:
            TableMissing: Nothing was ever written for the view.
            VersionGone: The log of that commit was cleaned up.
        """
        ...

    def coverage(self, view: str, generation: int = 1) -> IntervalSet:
        """Return the coverage kept with the newest commit of ours; nothing when there is no table."""
        ...

    def schema_faults(self, view: str, schema: pa.Schema, generation: int = 1) -> list[str]:
        """Return one clause per column of `schema` that is not stored, or stored with another type.

        Raises:
            TableMissing: Nothing was ever written for the view.
        """
        ...

    def version(self, view: str, generation: int = 1) -> int:
        """Return the version of the newest commit.

        Raises:
            TableMissing: Nothing was ever written for the view.
        """
        ...

    def check_version(self, view: str, generation: int, version: int) -> None:
        """Refuse a version of which something was deleted.

        Raises:
            VersionGone: Its log or one of its files is gone.
            TableMissing: Nothing was ever written for the view.
        """
        ...

    def generations(self, view: str) -> tuple[int, ...]:
        """Return the generations of a view that were ever written and are still there, ascending."""
        ...

    def exists(self, view: str, generation: int = 1) -> bool:
        """Tell whether the view was ever written."""
        ...

    def row_count(
        self, view: str, generation: int = 1, *, interval: Interval | None = None, time_column: str | None = None
    ) -> int | None:
        """Return the number of stored rows without reading them.

        Args:
            view: The feature view.
            generation: Generation of the view's stored layout.
            interval: Only rows with `start <= time_column < end`; None for all.
            time_column: Column of event times; needed with an interval.

        Returns:
            None where it is not known: nothing is stored, or a file has rows inside and outside the interval.
        """
        ...

    def drop(self, view: str, generation: int) -> None:
        """Remove a generation's table; one that is not there is left at that.

        What an interrupted call has left is removed by the next one.

        Args:
            view: Name of the view, which need not be declared any more.
            generation: The generation.

        Raises:
            ValueError: The name is none of a view.
        """
        ...

    def key_deletion(self, view: str, generation: int, keys: pa.Table, *, time_column: str) -> KeyDeletion:
        """Return what takes rows of deleted keys out of a table.

        Args:
            view: The feature view.
            generation: Generation of the view's stored layout.
            keys: Distinct join keys with their cutoffs, as `hidden_rows.with_cutoffs` gives them.
            time_column: When a row is; those of before the cutoff go.

        Raises:
            TableMissing: Nothing was ever written for the view.
        """
        ...

    def maintenance(self, view: str, generation: int = 1) -> TableMaintenance:
        """Return what tidies the files of a table.

        Raises:
            TableMissing: Nothing was ever written for the view.
        """
        ...
