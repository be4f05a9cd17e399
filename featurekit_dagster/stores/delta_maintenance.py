"""Tidying a Delta table: few sorted files in each partition, old files deleted, a short log.

What is left to do is read from the table's own log, so a maintenance that was killed is gone on with by the next one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import unquote

import duckdb
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake import Schema as DeltaSchema
from deltalake.exceptions import CommitFailedError

from featurekit_dagster.errors import CommitConflict
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.sql_text import literal, quoted
from featurekit_dagster.stores.delta_commits import redone
from featurekit_dagster.stores.delta_files import writer_properties
from featurekit_dagster.stores.delta_record import (
    DELETED,
    INTERVAL,
    MAINTENANCE,
    MERGED,
    OURS,
    PARTITION,
    check_lease,
    commit_properties,
    coverage_of,
    parse_intervals,
    partition_size_of,
)
from featurekit_dagster.stores.offline import TableSize
from featurekit_dagster.stores.offline_rows import PARTITION_COLUMN, partition_interval, partitions_of
from featurekit_dagster.stores.parquet_scan import duckdb_types, parquet_scan

SORT, COLUMNS, SORTED, VACUUM = "sort", "columns", "sorted", "vacuum"
_SORTED_UP_TO = f"{OURS}sorted_up_to"
_CHANGES_NO_FILE = ("VACUUM START", "VACUUM END", "SET TBLPROPERTIES")
_BATCH_ROWS = 100_000
_NO_PARTITION = [(PARTITION_COLUMN, "=", "none")]


class DeltaMaintenance:
    """The maintenance of one Delta table; see `TableMaintenance`.

    Args:
        view: The feature view, for messages.
        open_table: Opens the table at its newest version.
        is_direct: Whether DuckDB opens the files itself.
        tries: How often a commit is tried while other writers come first.
    """

    def __init__(self, view: str, open_table: Callable[[], DeltaTable], *, is_direct: bool, tries: int) -> None:
        self._view, self._open, self._direct, self._tries = view, open_table, is_direct, tries

    @property
    def coverage(self) -> IntervalSet:
        """What the table covers."""
        return coverage_of(self._open())

    def version(self) -> int:
        """Return the version of the newest commit."""
        return self._open().version()

    def size(self, interval: Interval | None = None) -> TableSize:
        """Return how many files a read of `[start, end)` opens; see `TableMaintenance.size`."""
        table = self._open()
        names = None if interval is None else set(partitions_of(interval, partition_size_of(table)))
        return _size(table, names)

    def forget_columns(self, schema: pa.Schema, *, job_id: str, epoch: int) -> tuple[str, ...]:
        """Take the columns that `schema` lacks out of the table; see `TableMaintenance.forget_columns`."""
        table = self._open()
        kept = {*schema.names, PARTITION_COLUMN}
        gone = tuple(field.name for field in table.schema().fields if field.name not in kept)
        if gone:
            fields = [field for field in table.schema().fields if field.name in kept]
            _commit_nothing(table, DeltaSchema(fields), self._properties(table, COLUMNS, job_id, epoch))
        return gone

    def left_to_sort(self) -> tuple[str, ...]:
        """Return the partitions that were written in parts since; see `TableMaintenance.left_to_sort`."""
        table = self._open()
        return tuple(sorted(_left_to_sort(table, table.transaction_version(_SORTED_UP_TO))))

    def sort_partition(self, partition: str, sort_by: Sequence[str], *, job_id: str, epoch: int) -> TableSize:
        """Write a partition again as few files; see `TableMaintenance.sort_partition`."""
        try:
            return redone(self._tries, self._sort, partition, sort_by, job_id, epoch)
        except CommitFailedError as error:
            interval = partition_interval(partition, partition_size_of(self._open()))
            raise CommitConflict(view=self._view, interval=interval, tries=self._tries) from error

    def clean_up(self, retention: timedelta, sorted_at: int, *, job_id: str, epoch: int) -> int:
        """Delete files that are no longer needed and shorten the log; see `TableMaintenance.clean_up`."""
        table = self._open()
        deleted = table.vacuum(
            retention_hours=retention // timedelta(hours=1),
            dry_run=False,
            enforce_retention_duration=False,
            full=True,  # also what writers that were killed have left
            commit_properties=self._properties(table, VACUUM, job_id, epoch),
        )
        self._mark_sorted(sorted_at, job_id, epoch)
        table = self._open()
        table.create_checkpoint()
        table.cleanup_metadata()
        return len(deleted)

    def _mark_sorted(self, sorted_at: int, job_id: str, epoch: int) -> None:
        """Remember up to which version nothing is left to sort, so that the commits before it may leave the log."""
        table = self._open()
        marked = table.transaction_version(_SORTED_UP_TO)
        if marked is not None and all(each.get(MAINTENANCE) == SORTED for each in _commits_since(table, marked)):
            return  # a table that nobody writes gets no commits
        version = sorted_at if _left_to_sort(table, sorted_at) else table.version()
        about = self._properties(table, SORTED, job_id, epoch)
        kept = [*(about.app_transactions or ()), Transaction(_SORTED_UP_TO, version)]
        properties = CommitProperties(custom_metadata=about.custom_metadata, app_transactions=kept)
        _commit_nothing(table, table.schema(), properties)

    def _sort(self, partition: str, sort_by: Sequence[str], job_id: str, epoch: int) -> TableSize:
        """Try one commit on the table as it is now; a conflict raises CommitFailedError and leaves it as it was."""
        table = self._open()
        properties = self._properties(table, SORT, job_id, epoch, {PARTITION: partition})
        before = _size(table, {partition})
        with _sorted_rows(table, partition, sort_by, is_direct=self._direct) as rows:
            write_deltalake(
                table,
                rows,
                mode="overwrite",
                predicate=_only(partition),
                commit_properties=properties,
                writer_properties=writer_properties(rows.schema),
            )
        return before

    def _properties(
        self, table: DeltaTable, what: str, job_id: str, epoch: int, facts: Mapping[str, str] | None = None
    ) -> CommitProperties:
        """Return what a commit says about itself and the table, of which it changes no row.

        Raises:
            LeaseLost: A commit under a higher epoch is in the table.
        """
        check_lease(table, self._view, epoch)
        told = {MAINTENANCE: what, f"{OURS}job_id": job_id, f"{OURS}view": self._view, **(facts or {})}
        return commit_properties(told, coverage_of(table), partition_size_of(table), epoch)


@contextmanager
def _sorted_rows(
    table: DeltaTable, partition: str, sort_by: Sequence[str], *, is_direct: bool
) -> Iterator[pa.RecordBatchReader]:
    """Read the rows of a partition in order, batch by batch; what does not fit in memory is spilt to a directory."""
    stored = pa.schema(table.schema().to_arrow())
    schema = pa.schema([field for field in stored if field.name != PARTITION_COLUMN])
    with tempfile.TemporaryDirectory(prefix="featurekit_sort_") as spill, duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
        con.execute(f"SET temp_directory = {literal(spill)}")
        if is_direct:
            files = sorted(unquote(uri) for uri in table.file_uris(file_pruning_predicate=_only(partition)))
            relation = parquet_scan(files, duckdb_types(con, schema))
        else:
            con.register("stored", table.to_pyarrow_dataset(file_pruning_predicate=_only(partition)))
            relation = "stored"
        columns = ", ".join(map(quoted, schema.names))
        order = ", ".join(map(quoted, sort_by))
        query = f"SELECT {columns}, {literal(partition)} AS {quoted(PARTITION_COLUMN)} FROM {relation} ORDER BY {order}"
        reader = con.sql(query).to_arrow_reader(_BATCH_ROWS)
        yield reader.cast(pa.schema([*schema, stored.field(PARTITION_COLUMN)]))


def _commit_nothing(table: DeltaTable, schema: DeltaSchema, properties: CommitProperties) -> None:
    """Commit a schema and what the properties say, but neither add nor remove a file."""
    table.create_write_transaction(
        [], "overwrite", schema, [PARTITION_COLUMN], _NO_PARTITION, commit_properties=properties
    )


def _left_to_sort(table: DeltaTable, version: int | None) -> set[str]:
    """Return the partitions that were written in parts after a version at which none was left.

    What the log does not tell any more, or somebody else has written, may be anywhere.
    """
    size, present = partition_size_of(table), _partitions(table)
    commits = _commits_since(table, version)
    left = set() if len(commits) == table.version() - (-1 if version is None else version) else set(present)
    for commit in commits:
        if commit.get(MAINTENANCE) == SORT:
            left.discard(commit[PARTITION])
        elif commit.get(MAINTENANCE) == MERGED:
            left.add(commit[PARTITION])
        elif INTERVAL in commit:
            _add_written(left, parse_intervals(commit[INTERVAL]), size, replaced=commit["operation"] == "WRITE")
        elif not _changes_no_file(commit):  # also where columns are gone: their values are in the files
            left |= present
    return left & present


def _commits_since(table: DeltaTable, version: int | None) -> list[dict[str, Any]]:
    """Return those commits after a version, or all, that the log still has, oldest first."""
    first = 0 if version is None else version + 1
    count = table.version() + 1 - first
    found = table.history(count) if count else []
    return [commit for commit in reversed(found) if first <= commit["version"] <= table.version()]


def _changes_no_file(commit: Mapping[str, Any]) -> bool:
    """Tell whether a commit leaves files as well sorted as they were, as one that took rows out of them does."""
    return commit.get(MAINTENANCE) in (SORTED, VACUUM, DELETED) or commit.get("operation") in _CHANGES_NO_FILE


def _add_written(left: set[str], written: IntervalSet, size: timedelta, *, replaced: bool) -> None:
    """Take in a commit that wrote intervals: a whole partition that it replaced is sorted by that, no other is.

    Args:
        left: The partitions left to sort, changed in place.
        written: The intervals.
        size: Width of the grid of the partition column.
        replaced: Whether nothing but the commit's rows is in the intervals since, unlike after a merge.
    """
    for interval in written:
        for name in partitions_of(interval, size):
            if replaced and IntervalSet([interval]).covers(partition_interval(name, size)):
                left.discard(name)
            else:
                left.add(name)


def _partitions(table: DeltaTable) -> set[str]:
    return set(_actions(table).column(f"partition.{PARTITION_COLUMN}").to_pylist())


def _size(table: DeltaTable, partitions: set[str] | None) -> TableSize:
    actions = _actions(table)
    columns = (actions.column(name).to_pylist() for name in (f"partition.{PARTITION_COLUMN}", "size_bytes"))
    sizes = [size for name, size in zip(*columns, strict=True) if partitions is None or name in partitions]
    return TableSize(files=len(sizes), bytes=sum(sizes))


def _actions(table: DeltaTable) -> pa.Table:
    return pa.table(table.get_add_actions(flatten=True))


def _only(partition: str) -> str:
    return f"{PARTITION_COLUMN} = {literal(partition)}"
