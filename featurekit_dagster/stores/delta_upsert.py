"""Rows put into a Delta table one by one: in place of the row with the same keys and time, or beside the others.

All rows of a call are one commit, and every commit says for which job it was made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable
from deltalake import Schema as DeltaSchema
from deltalake.exceptions import CommitFailedError

from featurekit_dagster.errors import CommitConflict, StoredSchemaMismatch
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.sql_text import quoted
from featurekit_dagster.stores.delta_commits import create_table, opened, redone
from featurekit_dagster.stores.delta_files import writer_properties
from featurekit_dagster.stores.delta_record import (
    INTERVAL,
    OURS,
    check_lease,
    commit_properties,
    format_intervals,
    partition_size_of,
)
from featurekit_dagster.stores.offline import OfflineWrite
from featurekit_dagster.stores.offline_rows import PARTITION_COLUMN, arranged, check_times, conformed

JOB = f"{OURS}job_id"
_COMMITS_READ = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaUpserts:
    """Upserts into the Delta table of one generation of a view; see `RowUpserts`.

    Args:
        view: The feature view.
        generation: Generation of its stored layout.
        location: Path or URI of the table.
        options: As the Delta library takes them.
        tries: How often a commit is tried while other writers come first.
    """

    view: str
    generation: int
    location: str
    options: dict[str, str] | None
    tries: int

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
        """Put rows into the table in one commit; see `RowUpserts.write`."""
        rows = conformed(self.view, table, schema, time_column)
        check_times(self.view, rows, interval, time_column)
        rows = arranged(rows, time_column, (*keys, time_column), time_partition_size)
        facts = {
            JOB: job_id,
            f"{OURS}view": self.view,
            f"{OURS}generation": str(self.generation),
            INTERVAL: format_intervals([interval]),
            f"{OURS}epoch": str(epoch),
        }
        upsert = _Upsert(
            rows=rows,
            same=_same_row(rows, time_column, keys),
            epoch=epoch,
            facts=facts,
            coverage=coverage.union([interval]),
            partition_size=time_partition_size,
        )
        try:
            return redone(self.tries, self._commit, upsert)
        except CommitFailedError as error:
            raise CommitConflict(view=self.view, interval=interval, tries=self.tries) from error

    def has_commit_of(self, job_id: str) -> bool:
        """Tell whether the table's history has a commit of a job; see `RowUpserts.has_commit_of`."""
        table = opened(self.location, self.options)
        if table is None:
            return False
        return any(commit.get(JOB) == job_id for limit in (_COMMITS_READ, None) for commit in table.history(limit))

    def _commit(self, upsert: _Upsert) -> OfflineWrite:
        """Try one commit on the table as it is now; a conflict raises CommitFailedError and leaves it as it was."""
        table = opened(self.location, self.options)
        if table is None:
            return self._create(upsert)
        check_lease(table, self.view, upsert.epoch)
        self._check_layout(upsert, table)
        before = _sizes(table)
        merge = table.merge(
            upsert.rows,
            upsert.same,
            source_alias="new",
            target_alias="old",
            merge_schema=set(upsert.rows.column_names) != {field.name for field in table.schema().fields},
            commit_properties=upsert.properties(),
            writer_properties=writer_properties(upsert.rows.schema),
        )
        counts = merge.when_matched_update_all().when_not_matched_insert_all().execute()
        after = _sizes(table)
        return OfflineWrite(
            version=table.version(),
            rows_written=upsert.rows.num_rows,
            rows_replaced=int(counts["num_target_rows_updated"]),
            bytes=sum(size for path, size in after.items() if path not in before),
        )

    def _create(self, upsert: _Upsert) -> OfflineWrite:
        """Write the first commit."""
        first = upsert.properties(max_commit_retries=0)
        created = _sizes(create_table(self.location, upsert.rows, self.options, first))
        return OfflineWrite(version=0, rows_written=upsert.rows.num_rows, rows_replaced=0, bytes=sum(created.values()))

    def _check_layout(self, upsert: _Upsert, table: DeltaTable) -> None:
        """Refuse what the table cannot take: another width of partitions, other types."""
        size = partition_size_of(table)
        stored = {field.name: field.type for field in table.schema().fields}
        given = {field.name: field.type for field in DeltaSchema.from_arrow(upsert.rows.schema).fields}
        faults = [
            f"{name} is stored as {stored[name]} and given as {kind}"
            for name, kind in given.items()
            if stored.get(name, kind) != kind
        ]
        if size != upsert.partition_size:
            fault = f"time_partition_size is {size} in the table and {upsert.partition_size} now; keep it, or rebuild"
            faults.append(fault)
        if faults:
            raise StoredSchemaMismatch(view=self.view, faults=faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Upsert:
    """Rows ready to be committed as often as it takes."""

    rows: pa.Table
    same: str
    epoch: int
    facts: Mapping[str, str]
    coverage: IntervalSet
    partition_size: timedelta

    def properties(self, **more: int) -> Any:
        """Return what stands in the commit beside the rows."""
        return commit_properties(self.facts, self.coverage, self.partition_size, self.epoch, **more)


def _same_row(rows: pa.Table, time_column: str, keys: Sequence[str]) -> str:
    """Return the condition that a new row is in place of an old one; a key that is NULL equals NULL.

    Each part is an equation, by which the library joins; it cannot do so by IS NOT DISTINCT FROM, and fails where that
    stands beside other keys.
    """
    always = [f"old.{quoted(name)} = new.{quoted(name)}" for name in (PARTITION_COLUMN, time_column)]
    return " AND ".join([*always, *(_same_key(quoted(key), rows[key]) for key in keys)])


def _same_key(name: str, column: pa.ChunkedArray) -> str:
    if not column.null_count:
        return f"old.{name} = new.{name}"
    are_null = f"(old.{name} IS NULL) = (new.{name} IS NULL)"
    if pa.types.is_string(column.type):
        return f"coalesce(old.{name}, '') = coalesce(new.{name}, '') AND {are_null}"
    if pa.types.is_integer(column.type):
        return f"coalesce(old.{name}, 0) = coalesce(new.{name}, 0) AND {are_null}"
    return f"(old.{name} = new.{name} OR (old.{name} IS NULL AND new.{name} IS NULL))"


def _sizes(table: DeltaTable) -> dict[str, int]:
    """Return the size of each data file, from the table's log."""
    actions = pa.table(table.get_add_actions(flatten=True))
    return dict(zip(actions.column("path").to_pylist(), actions.column("size_bytes").to_pylist(), strict=True))
