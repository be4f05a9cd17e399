"""The offline store on Delta Lake: writing by interval, and reading.

One table per view and generation, partitioned by `time_partition` (UTC date of the floored time), files sorted,
timestamps in UTC microseconds, no deletion vectors. Every commit carries job, epoch and the whole coverage, see
`delta_record`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import duckdb
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, write_deltalake
from deltalake import Schema as DeltaSchema
from deltalake.exceptions import CommitFailedError, DeltaError

from featurekit_dagster.errors import CommitConflict, StoredSchemaMismatch, TableMissing, VersionGone
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.sql_text import quoted
from featurekit_dagster.stores.delta_commits import TRIES, create_table, opened, redone
from featurekit_dagster.stores.delta_deletion import DeltaDeletion
from featurekit_dagster.stores.delta_files import remove_table, rows_of_files, writer_properties
from featurekit_dagster.stores.delta_listing import files_below, generations_in
from featurekit_dagster.stores.delta_maintenance import DeltaMaintenance
from featurekit_dagster.stores.delta_record import (
    INTERVAL,
    OURS,
    check_lease,
    commit_properties,
    coverage_of,
    format_intervals,
    partition_size_of,
)
from featurekit_dagster.stores.delta_upsert import DeltaUpserts
from featurekit_dagster.stores.lake_files import local_path
from featurekit_dagster.stores.offline import OfflineWrite
from featurekit_dagster.stores.offline_rows import PARTITION_COLUMN, arranged, check_times, conformed, partition_span
from featurekit_dagster.stores.parquet_scan import duckdb_types, parquet_scan, rows_of


@dataclass(frozen=True, slots=True, kw_only=True)
class _Replacement:
    """One interval to be replaced, ready to be committed as often as it takes."""

    view: str
    location: str
    rows: pa.Table
    interval: Interval
    time_column: str
    time_partition_size: timedelta
    epoch: int
    facts: Mapping[str, str]
    coverage: IntervalSet

    def commit_properties(self, **more: int) -> CommitProperties:
        """Return what stands in the commit beside the rows."""
        return commit_properties(self.facts, self.coverage, self.time_partition_size, self.epoch, **more)

    @property
    def partitions(self) -> str:
        """The predicate of the partitions touched."""
        return _partitions(self.interval, self.time_partition_size)

    @property
    def predicate(self) -> str:
        """The predicate of the rows replaced, as the Delta library reads it."""
        column = quoted(self.time_column)
        start, end = (_delta_time(time) for time in (self.interval.start, self.interval.end))
        return f"{self.partitions} AND {column} >= '{start}' AND {column} < '{end}'"


class DeltaOfflineStore:
    """Feature view history in Delta tables at `<root>/offline/<view>/g<generation>/`.

    Args:
        root: A local directory or any URI that the Delta library takes (`s3://bucket/lake`).
        storage_options: Credentials and endpoint of a remote root, as the Delta library takes them.
        direct_read: Whether DuckDB opens the Parquet files itself, which needs them on a local disk; by default it does
            so for a local root and gets an Arrow scan for a remote one.
        tries: How often a commit is tried while other writers come first.

    Raises:
        UnusableLakePath: A local root contains a character that no Delta table can have in its path.
    """

    def __init__(
        self,
        root: str | Path,
        storage_options: Mapping[str, str] | None = None,
        *,
        direct_read: bool | None = None,
        tries: int = TRIES,
    ) -> None:
        local = local_path(root)
        self._root = str(root).rstrip("/") if local is None else local
        self._options = dict(storage_options) if storage_options else None
        self._is_local = local is not None
        self._direct = self._is_local if direct_read is None else direct_read
        self._tries = tries
        self._scans = itertools.count(1)

    def location(self, view: str, generation: int = 1) -> str:
        """Return the path or URI of a view's table."""
        return f"{self._root}/offline/{view}/g{generation}"

    def exists(self, view: str, generation: int = 1) -> bool:
        """Tell whether the view was ever written."""
        return DeltaTable.is_deltatable(self.location(view, generation), self._options)

    def generations(self, view: str) -> tuple[int, ...]:
        """Return the generations that have a table; see `OfflineStore.generations`."""
        found = generations_in(f"{self._root}/offline/{view}", self._options, is_local=self._is_local)
        return tuple(generation for generation in found if self.exists(view, generation))

    def version(self, view: str, generation: int = 1) -> int:
        """Return the version of the newest commit.

        Raises:
            TableMissing: Nothing was ever written for the view.
        """
        return self._open(view, generation).version()

    def coverage(self, view: str, generation: int = 1) -> IntervalSet:
        """Return the coverage kept with the newest commit of ours; nothing when there is no table."""
        table = opened(self.location(view, generation), self._options)
        return IntervalSet() if table is None else coverage_of(table)

    def schema_faults(self, view: str, schema: pa.Schema, generation: int = 1) -> list[str]:
        """Return how the stored columns differ from `schema`; see `OfflineStore.schema_faults`."""
        stored = {field.name: field.type for field in self._open(view, generation).schema().fields}
        wanted = {field.name: field.type for field in DeltaSchema.from_arrow(schema).fields}
        missing = [f"{name} is not stored" for name in wanted if name not in stored]
        return missing + _type_faults(stored, wanted)

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
        """Make `table` the whole content of `[start, end)` in one commit; see `OfflineStore.replace_interval`.

        A partition of which only a part is replaced keeps its other rows behind the new ones in its file, so it is
        sorted as a whole again only when it is next replaced or optimized.
        """
        rows = conformed(view, table, schema, time_column)
        check_times(view, rows, interval, time_column)
        facts = {
            f"{OURS}job_id": job_id,
            f"{OURS}view": view,
            f"{OURS}generation": str(generation),
            INTERVAL: format_intervals([interval]),
            f"{OURS}epoch": str(epoch),
        }
        replacement = _Replacement(
            view=view,
            location=self.location(view, generation),
            rows=arranged(rows, time_column, sort_by, time_partition_size),
            interval=interval,
            time_column=time_column,
            time_partition_size=time_partition_size,
            epoch=epoch,
            facts=facts,
            coverage=coverage.union([interval]),
        )
        return self._commit_with_retries(replacement)

    def upserts(self, view: str, generation: int = 1) -> DeltaUpserts:
        """Return what puts single rows into a view's table; see `OfflineStore.upserts`."""
        return DeltaUpserts(
            view=view,
            generation=generation,
            location=self.location(view, generation),
            options=self._options,
            tries=self._tries,
        )

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
        """Return SQL that stands after FROM in `con` and yields the stored rows; see `OfflineStore.relation`."""
        table = self._open(view, generation, version)
        types = duckdb_types(con, schema)
        names = schema.names if columns is None else list(columns)
        nulls = {name: f"CAST(NULL AS {types[name]}) AS {quoted(name)}" for name in names}
        where = f" WHERE {rows_of(interval, time_column)}" if interval else ""
        pruning = _partitions(interval, partition_size_of(table)) if interval else None
        if not self._direct:
            stored = {field.name for field in table.schema().fields}
            cells = ", ".join(quoted(name) if name in stored else nulls[name] for name in names)
            return f"(SELECT {cells} FROM {self._registered(con, table, pruning)}{where})"
        files = sorted(unquote(uri) for uri in table.file_uris(file_pruning_predicate=pruning))
        if not files:
            return f"(SELECT {', '.join(nulls.values())} WHERE false)"
        read = {name: types[name] for name in dict.fromkeys([*names, time_column])}
        return f"(SELECT {', '.join(map(quoted, names))} FROM {parquet_scan(files, read)}{where})"

    def row_count(
        self, view: str, generation: int = 1, *, interval: Interval | None = None, time_column: str | None = None
    ) -> int | None:
        """Return the number of stored rows, from the table's log; see `OfflineStore.row_count`."""
        table = opened(self.location(view, generation), self._options)
        if table is None:
            return None
        return rows_of_files(pa.table(table.get_add_actions(flatten=True)), interval, time_column)

    def drop(self, view: str, generation: int) -> None:
        """Remove a generation's table; see `OfflineStore.drop`."""
        location = self.location(view, generation)
        remove_table(self._root, location, self._options, is_local=self._is_local)

    def key_deletion(self, view: str, generation: int, keys: pa.Table, *, time_column: str) -> DeltaDeletion:
        """Return what takes rows of deleted keys out of a table; see `OfflineStore.key_deletion`."""
        open_table = partial(self._open, view, generation)
        return DeltaDeletion(view, open_table, keys, time_column=time_column, is_direct=self._direct, tries=self._tries)

    def maintenance(self, view: str, generation: int = 1) -> DeltaMaintenance:
        """Return what tidies the files of a table; see `OfflineStore.maintenance`."""
        open_table = partial(self._open, view, generation)
        return DeltaMaintenance(view, open_table, is_direct=self._direct, tries=self._tries)

    def check_version(self, view: str, generation: int, version: int) -> None:
        """Refuse a version that cannot be read any more; see `OfflineStore.check_version`."""
        files = {unquote(uri).rpartition("/")[2] for uri in self._open(view, generation, version).file_uris()}
        missing = files - files_below(self.location(view, generation), self._options, is_local=self._is_local)
        if missing:
            raise VersionGone(view=view, generation=generation, version=version)

    def _open(self, view: str, generation: int, version: int | None = None) -> DeltaTable:
        location = self.location(view, generation)
        try:
            return DeltaTable(location, version, storage_options=self._options)
        except DeltaError as error:
            if not self.exists(view, generation):
                raise TableMissing(view=view, location=location) from error
            if version is None:
                raise
            raise VersionGone(view=view, generation=generation, version=version) from error

    def _registered(self, con: duckdb.DuckDBPyConnection, table: DeltaTable, pruning: str | None) -> str:
        """Register a scan that can be read more than once, and return its quoted name."""
        name = f"featurekit_offline_{id(self)}_{next(self._scans)}"
        con.register(name, table.to_pyarrow_dataset(file_pruning_predicate=pruning))
        return quoted(name)

    def _commit_with_retries(self, replacement: _Replacement) -> OfflineWrite:
        try:
            return redone(self._tries, self._commit, replacement)
        except CommitFailedError as error:
            raise CommitConflict(view=replacement.view, interval=replacement.interval, tries=self._tries) from error

    def _commit(self, replacement: _Replacement) -> OfflineWrite:
        """Try one commit on the table as it is now; a conflict raises CommitFailedError and leaves it as it was."""
        location = replacement.location
        table = opened(location, self._options)
        if table is None:
            return self._create(replacement)
        _check_partition_size(replacement, table)
        check_lease(table, replacement.view, replacement.epoch)
        read_version, before = table.version(), _file_list(table)
        write_deltalake(
            table,
            replacement.rows,
            mode="overwrite",
            predicate=replacement.predicate,
            schema_mode="merge" if _columns_differ(replacement, table) else None,
            commit_properties=replacement.commit_properties(),
            writer_properties=writer_properties(replacement.rows.schema),
        )
        version = table.version()
        if version != read_version + 1:  # other writers' commits came in between
            before = _file_list(DeltaTable(location, version=version - 1, storage_options=self._options))
        return _measured(version, before, _file_list(table), len(replacement.rows))

    def _create(self, replacement: _Replacement) -> OfflineWrite:
        """Write the first commit."""
        first = replacement.commit_properties(max_commit_retries=0)
        created = create_table(replacement.location, replacement.rows, self._options, first)
        return _measured(0, {}, _file_list(created), len(replacement.rows))


def _partitions(interval: Interval, size: timedelta) -> str:
    first, last = partition_span(interval, size)
    return f"{PARTITION_COLUMN} >= '{first}' AND {PARTITION_COLUMN} <= '{last}'"


def _delta_time(time: datetime) -> str:
    return time.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def _columns_differ(replacement: _Replacement, table: DeltaTable) -> bool:
    """Tell whether a column is new or gone; one that changed its type is refused."""
    stored = {field.name: field.type for field in table.schema().fields}
    given = {field.name: field.type for field in DeltaSchema.from_arrow(replacement.rows.schema).fields}
    if faults := _type_faults(stored, given):
        raise StoredSchemaMismatch(view=replacement.view, faults=faults)
    return stored.keys() != given.keys()


def _type_faults(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} is stored as {stored[name]} and given as {kind}"
        for name, kind in given.items()
        if name in stored and stored[name] != kind
    ]


def _check_partition_size(replacement: _Replacement, table: DeltaTable) -> None:
    """Refuse another partition size: rows of older commits would not be found under the new partition values."""
    stored, given = partition_size_of(table), replacement.time_partition_size
    if stored != given:
        fault = f"time_partition_size is {stored} in the table and {given} now; keep it, or rebuild the table"
        raise StoredSchemaMismatch(view=replacement.view, faults=[fault])


def _file_list(table: DeltaTable) -> dict[str, tuple[int, int]]:
    """Return bytes and rows of each data file, from the table's log."""
    actions = pa.table(table.get_add_actions(flatten=True))
    columns = (actions.column(name).to_pylist() for name in ("path", "size_bytes", "num_records"))
    return {path: (size, rows or 0) for path, size, rows in zip(*columns, strict=True)}


def _measured(
    version: int, before: Mapping[str, tuple[int, int]], after: Mapping[str, tuple[int, int]], rows_written: int
) -> OfflineWrite:
    added = sum(size for path, (size, _) in after.items() if path not in before)
    kept = sum(rows for _, rows in after.values()) - rows_written
    replaced = sum(rows for _, rows in before.values()) - kept
    return OfflineWrite(version=version, rows_written=rows_written, rows_replaced=replaced, bytes=added)
