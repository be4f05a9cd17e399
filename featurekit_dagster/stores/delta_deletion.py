"""Taking rows of deleted keys out of a Delta table: only files that hold one are written again, a partition at a time.

Each commit is one partition, before or after it; what is left is seen by looking into the files, so a deletion that was
killed is gone on with by the next one. A file is looked into once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import reduce
from operator import or_
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError
from pyarrow import ipc
from pyarrow.fs import LocalFileSystem

from featurekit_dagster.errors import CommitConflict
from featurekit_dagster.sql_text import literal, quoted
from featurekit_dagster.stores.delta_commits import redone
from featurekit_dagster.stores.delta_files import writer_properties
from featurekit_dagster.stores.delta_record import (
    DELETED,
    MAINTENANCE,
    MERGED,
    OURS,
    PARTITION,
    check_lease,
    commit_properties,
    coverage_of,
    partition_size_of,
)
from featurekit_dagster.stores.hidden_rows import CUTOFF
from featurekit_dagster.stores.offline import RowsRemoved
from featurekit_dagster.stores.offline_rows import PARTITION_COLUMN, partition_interval
from featurekit_dagster.stores.packing import IntArray
from featurekit_dagster.stores.record_runs import dense_codes
from featurekit_dagster.stores.tombstones import NOT_DELETED_US

_BATCH_ROWS = 100_000
_STATISTICS_STEP = timedelta(milliseconds=1)  # the log cuts times to milliseconds
_MOST_SPANS = 32
_MICROSECONDS = pa.timestamp("us", "UTC")
_NOTHING = RowsRemoved(rows=0, files=0, bytes=0)
_EARLIEST = datetime.min.replace(tzinfo=UTC)
_Span = tuple[datetime, datetime]


class _File(NamedTuple):
    """What the log says of a data file; times are aware UTC."""

    partition: str
    rows: int
    bytes: int
    first: datetime | None
    last: datetime | None


class DeltaDeletion:
    """The deletion of some keys from one Delta table; see `KeyDeletion`.

    Args:
        view: The feature view, for messages.
        open_table: Opens the table at its newest version.
        keys: The keys with their cutoffs, as `hidden_rows.with_cutoffs` gives them.
        time_column: When a row is.
        is_direct: Whether the files are on a local disk.
        tries: How often a commit is tried while other writers come first.
    """

    def __init__(
        self,
        view: str,
        open_table: Callable[[], DeltaTable],
        keys: pa.Table,
        *,
        time_column: str,
        is_direct: bool,
        tries: int,
    ) -> None:
        self._view, self._open, self._direct, self._tries = view, open_table, is_direct, tries
        self._time, self._match = time_column, _Match(keys, time_column)
        self._is_holder: dict[str, bool] = {}
        self._table: DeltaTable | None = None
        self._known: tuple[int, dict[str, _File]] = (-1, {})

    def left(self) -> tuple[str, ...]:
        """Return the partitions with a row that is to go; see `KeyDeletion.left`."""
        table = self._newest()
        files = self._files(table)
        self._look(table, files)
        return tuple(sorted({file.partition for path, file in files.items() if self._is_holder[path]}))

    def rewrite(self, partition: str, *, job_id: str, epoch: int) -> RowsRemoved:
        """Write the files of a partition again without the rows that are to go; see `KeyDeletion.rewrite`."""
        try:
            return redone(self._tries, self._rewrite, partition, job_id, epoch)
        except CommitFailedError as error:
            interval = partition_interval(partition, partition_size_of(self._open()))
            raise CommitConflict(view=self._view, interval=interval, tries=self._tries) from error

    def vacuum(self, *, job_id: str, epoch: int) -> int:
        """Delete every file that the newest version does not need; see `KeyDeletion.vacuum`."""
        table = self._open()
        check_lease(table, self._view, epoch)
        told = {MAINTENANCE: DELETED, f"{OURS}job_id": job_id, f"{OURS}view": self._view}
        deleted = table.vacuum(
            retention_hours=0,
            dry_run=False,
            enforce_retention_duration=False,
            commit_properties=commit_properties(told, coverage_of(table), partition_size_of(table), epoch),
        )
        return len(deleted)

    def _newest(self) -> DeltaTable:
        """Return the table as it is now; opening it anew would read its whole log again for every commit."""
        if self._table is None:
            self._table = self._open()
        else:
            self._table.update_incremental()
        return self._table

    def _files(self, table: DeltaTable) -> dict[str, _File]:
        """Return what the log says of each data file of a version."""
        if self._known[0] != table.version():
            self._known = table.version(), _files(table, self._time)
        return self._known[1]

    def _rewrite(self, partition: str, job_id: str, epoch: int) -> RowsRemoved:
        """Try one commit on the table as it is now; a conflict raises CommitFailedError and leaves it as it was."""
        table = self._newest()
        check_lease(table, self._view, epoch)
        before = {path: file for path, file in self._files(table).items() if file.partition == partition}
        self._look(table, before)
        spans = self._spans(before)
        if spans == []:
            return _NOTHING
        kind = DELETED if len(before) == 1 else MERGED
        told = {MAINTENANCE: kind, PARTITION: partition, f"{OURS}job_id": job_id, f"{OURS}view": self._view}
        where = " OR ".join(_in_span(self._time, span) for span in spans or ())
        self._table = None  # what has failed to be written must not be gone on with
        with self._rows_left(table, partition, before, spans) as rows:
            write_deltalake(
                table,
                rows,
                mode="overwrite",
                predicate=_only(partition) + (f" AND ({where})" if where else ""),
                commit_properties=commit_properties(told, coverage_of(table), partition_size_of(table), epoch),
                writer_properties=writer_properties(rows.schema),
            )
        self._table = table
        after = {path: file for path, file in self._files(table).items() if file.partition == partition}
        self._is_holder.update(dict.fromkeys(after.keys() - before.keys(), False))
        return RowsRemoved(
            rows=sum(file.rows for file in before.values()) - sum(file.rows for file in after.values()),
            files=len(before.keys() - after.keys()),
            bytes=sum(file.bytes for path, file in after.items() if path not in before),
        )

    def _look(self, table: DeltaTable, files: Mapping[str, _File]) -> None:
        """Look into those files that were not looked into yet whether they hold a row that is to go."""
        unknown = [path for path in files if path not in self._is_holder]
        for path, fragment in self._fragments(table, unknown).items():
            # a fragment's own batches would be decoded ahead, and most files are known by their first one
            with fragment.open() as opened:
                batches = pq.ParquetFile(opened).iter_batches(columns=self._match.columns, batch_size=_BATCH_ROWS)
                self._is_holder[path] = any(self._match.any(batch) for batch in batches)

    def _fragments(self, table: DeltaTable, paths: Collection[str]) -> dict[str, ds.Fragment]:
        if not paths:
            return {}
        return (_local_fragments if self._direct else _remote_fragments)(table, paths)

    def _spans(self, files: Mapping[str, _File]) -> list[_Span] | None:
        """Return the times of the files that hold a row that is to go: none, or None for the whole partition."""
        holders = [file for path, file in files.items() if self._is_holder[path]]
        if holders and len(holders) == len(files):
            return None
        merged: list[_Span] = []
        for _, _, _, first, last in sorted(holders, key=lambda file: file.first or _EARLIEST):
            if first is None or last is None:
                return None
            end = last + _STATISTICS_STEP
            if merged and first <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], end))
            else:
                merged.append((first, end))
        return merged if len(merged) <= _MOST_SPANS else None

    @contextmanager
    def _rows_left(
        self, table: DeltaTable, partition: str, files: Collection[str], spans: list[_Span] | None
    ) -> Iterator[pa.RecordBatchReader]:
        """Read what stays of some files of a partition, batch by batch, each file in its order."""
        schema = _stored_schema(table)
        whole = schema.append(pa.field(PARTITION_COLUMN, pa.string()))
        inside = None if spans is None else _inside(self._time, spans)
        fragments = self._fragments(table, files).values()

        def batches() -> Iterator[pa.RecordBatch]:
            for fragment in fragments:
                for batch in fragment.to_batches(schema=schema, filter=inside, batch_size=_BATCH_ROWS):
                    left = self._match.without(batch)
                    yield left.append_column(PARTITION_COLUMN, pa.array([partition]).take(_zeros(left.num_rows)))

        if self._direct:
            yield pa.RecordBatchReader.from_batches(whole, batches())
            return
        # the Delta library must not be asked for a file while it writes, so a remote one is fetched before
        with tempfile.TemporaryFile(prefix="featurekit_delete_") as spill:
            with ipc.new_file(spill, whole) as writer:
                for batch in batches():
                    writer.write_batch(batch)
            spill.seek(0)
            kept = ipc.open_file(spill)
            yield pa.RecordBatchReader.from_batches(whole, map(kept.get_batch, range(kept.num_record_batches)))


class _Match:
    """Finds the rows of some keys that are before their cutoffs.

    Args:
        keys: Distinct keys with their cutoffs.
        time_column: When a row is.
    """

    def __init__(self, keys: pa.Table, time_column: str) -> None:
        self._names = [name for name in keys.column_names if name != CUTOFF]
        self._keys = [keys[name].combine_chunks() for name in self._names]
        self._cutoffs, self._time = keys[CUTOFF].to_numpy(), time_column
        self.columns = [*self._names, time_column]

    def any(self, batch: pa.RecordBatch) -> bool:
        """Tell whether a batch has such a row."""
        return bool(len(self._places(batch)))

    def without(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return a batch without such rows."""
        places = self._places(batch)
        if not len(places):
            return batch
        stays = np.ones(batch.num_rows, bool)
        stays[places] = False
        return batch.filter(pa.array(stays))

    def _places(self, batch: pa.RecordBatch) -> IntArray:
        """Return where such rows are: those with a value of each column of a key, and then exactly those of a key."""
        may_be = np.ones(batch.num_rows, bool)
        columns = [batch.column(name) for name in self._names]
        keys = [keys.cast(column.type) for keys, column in zip(self._keys, columns, strict=True)]
        for column, asked in zip(columns, keys, strict=True):
            may_be &= pc.is_in(column, value_set=asked).to_numpy(zero_copy_only=False)
        places = np.flatnonzero(may_be)
        if not len(places):
            return places
        taken = pa.array(places)
        both = [pa.concat_arrays([asked, each.take(taken)]) for asked, each in zip(keys, columns, strict=True)]
        codes, _ = dense_codes(both)
        cutoffs = np.full(int(codes.max()) + 1, NOT_DELETED_US)
        cutoffs[codes[: len(self._cutoffs)]] = self._cutoffs
        times = batch.column(self._time).take(taken).cast(_MICROSECONDS).cast(pa.int64()).to_numpy()
        found: IntArray = places[times < cutoffs[codes[len(self._cutoffs) :]]]
        return found


def _stored_schema(table: DeltaTable) -> pa.Schema:
    """Return the columns of the files; the partition is in no file."""
    stored = pa.schema(table.schema().to_arrow())
    return pa.schema([field for field in stored if field.name != PARTITION_COLUMN])


def _zeros(count: int) -> pa.Array:
    return pa.array(np.zeros(count, np.int64))


def _local_fragments(table: DeltaTable, paths: Iterable[str]) -> dict[str, ds.Fragment]:
    """Return files of a local table by their paths in its log."""
    root, form, files = table.table_uri.removeprefix("file://").rstrip("/"), ds.ParquetFileFormat(), LocalFileSystem()
    return {path: form.make_fragment(f"{unquote(root)}/{unquote(path)}", files) for path in paths}


def _remote_fragments(table: DeltaTable, paths: Iterable[str]) -> dict[str, ds.Fragment]:
    """Return files of a remote table by their paths in its log."""
    known = {unquote(fragment.path): fragment for fragment in table.to_pyarrow_dataset().get_fragments()}
    return {path: known[unquote(path)] for path in paths}


def _inside(column: str, spans: Iterable[_Span]) -> ds.Expression:
    """Return the condition that a time is in one of some spans."""
    found = [(ds.field(column) >= pa.scalar(a)) & (ds.field(column) < pa.scalar(b)) for a, b in spans]
    return reduce(or_, found)


def _files(table: DeltaTable, time_column: str) -> dict[str, _File]:
    """Return what the log says of each data file."""
    actions = pa.table(table.get_add_actions(flatten=True))
    names = ("path", f"partition.{PARTITION_COLUMN}", "num_records", "size_bytes")
    columns = [actions.column(name).to_pylist() for name in names]
    for end in ("min", "max"):
        name = f"{end}.{time_column}"
        known = name in actions.column_names
        columns.append(actions.column(name).to_pylist() if known else [None] * actions.num_rows)
    return {path: _File(*about) for path, *about in zip(*columns, strict=True)}


def _in_span(column: str, span: _Span) -> str:
    """Return the condition that a time is in a span, as the Delta library reads it."""
    first, end = (time.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z" for time in span)
    return f"({quoted(column)} >= '{first}' AND {quoted(column)} < '{end}')"


def _only(partition: str) -> str:
    return f"{PARTITION_COLUMN} = {literal(partition)}"
