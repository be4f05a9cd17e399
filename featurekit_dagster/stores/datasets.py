"""Where datasets are kept: one Delta table each at `<lake>/<workspace>/datasets/<name>`, with files of ours beside it.

Rows are appended bucket by bucket, each in one commit that carries its number, so that none is there twice. The folder
`_featurekit` holds the request, which versions are read, the spine, and last of all the manifest: with it the dataset
is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from pyarrow import NativeFile, dataset

from featurekit_dagster.errors import LeaseLost, NotFoundError
from featurekit_dagster.sql_text import quoted
from featurekit_dagster.stores.delta_commits import TRIES, create_table, opened, redone
from featurekit_dagster.stores.delta_files import writer_properties
from featurekit_dagster.stores.delta_record import OURS, lease_epoch_of
from featurekit_dagster.stores.lake_files import LakeFiles

ROW = "_featurekit_row"
"""The column that says which row of the dataset a row is; readers are not shown it."""

_LEASE, _BUCKET = f"{OURS}lease", f"{OURS}bucket"
_OURS = "_featurekit"
_REQUEST, _PINS, _MANIFEST, _ARCHIVED = (f"{_OURS}/{name}.json" for name in ("request", "pins", "manifest", "archived"))
_SPINE = f"{_OURS}/spine.parquet"


class Datasets:
    """The datasets of one workspace.

    Args:
        root: `<lake>/<workspace>`, a local path or any URI that the Delta library takes.
        storage_options: Credentials and endpoint of a remote root.
    """

    def __init__(self, root: str, storage_options: Mapping[str, str] | None = None) -> None:
        self._options = dict(storage_options) if storage_options else None
        self._files = LakeFiles(f"{root.rstrip('/')}/datasets", storage_options)

    def names(self) -> tuple[str, ...]:
        """Return the names of the datasets that are there, archived ones among them."""
        return tuple(name for name in self._files.folders() if self._files.exists(f"{name}/{_MANIFEST}"))

    def begun(self) -> tuple[str, ...]:
        """Return the names of the datasets that were asked for and are not there yet."""
        return tuple(
            name
            for name in self._files.folders()
            if self._files.exists(f"{name}/{_REQUEST}") and not self._files.exists(f"{name}/{_MANIFEST}")
        )

    def location(self, name: str) -> str:
        """Return the path or URI of a dataset's Delta table."""
        return self._files.location(name)

    def request(self, name: str) -> dict[str, Any] | None:
        """Return by which job and for which spine what was asked for; None where nothing was."""
        return self._files.read_json(f"{name}/{_REQUEST}")

    def write_request(self, name: str, request: Mapping[str, Any]) -> None:
        """Keep what is asked for."""
        self._files.write_json(f"{name}/{_REQUEST}", request)

    def pins(self, name: str) -> dict[str, Any] | None:
        """Return which versions the rows are made of; None before the first attempt began."""
        return self._files.read_json(f"{name}/{_PINS}")

    def write_pins(self, name: str, pins: Mapping[str, Any]) -> None:
        """Keep which versions the rows are made of."""
        self._files.write_json(f"{name}/{_PINS}", pins)

    def manifest(self, name: str) -> dict[str, Any]:
        """Return what a dataset says about itself.

        Raises:
            NotFoundError: There is no such dataset.
        """
        found = self._files.read_json(f"{name}/{_MANIFEST}")
        if found is None:
            raise NotFoundError(kind="dataset", name=name, known=self.names())
        return found

    def write_manifest(self, name: str, manifest: Mapping[str, Any]) -> None:
        """Finish a dataset."""
        self._files.write_json(f"{name}/{_MANIFEST}", manifest)

    def is_archived(self, name: str) -> bool:
        """Tell whether a dataset is left out of lists."""
        return self._files.exists(f"{name}/{_ARCHIVED}")

    def archive(self, name: str, archived_at: str | None) -> None:
        """Leave a dataset out of lists from now on, or, without a time, no longer."""
        if archived_at is None:
            self._files.remove_file(f"{name}/{_ARCHIVED}")
        else:
            self._files.write_json(f"{name}/{_ARCHIVED}", {"archived_at": archived_at})

    def writing_spine(self, name: str) -> AbstractContextManager[NativeFile]:
        """Give a stream for a dataset's spine as Parquet."""
        return self._files.writing(f"{name}/{_SPINE}")

    def reading_spine(self, name: str) -> NativeFile:
        """Return a dataset's spine, a Parquet file.

        Raises:
            FileNotFoundError: It has none.
        """
        return self._files.reading(f"{name}/{_SPINE}")

    def remove(self, name: str) -> None:
        """Remove a dataset with everything that is kept of it; one that is not there is left at that."""
        for path in (_MANIFEST, _REQUEST):  # without them there is none, whatever happens to the rest
            self._files.remove_file(f"{name}/{path}")
        self._files.remove_folder(name)

    def buckets(self, name: str) -> int:
        """Return the number of buckets that are stored."""
        table = self._open(name)
        last = None if table is None else table.transaction_version(_BUCKET)
        return 0 if last is None else last + 1

    def append(self, name: str, bucket: int, rows: pa.Table, *, epoch: int, job_id: str) -> None:
        """Store the rows of a bucket in one commit; one that is there already is left at that.

        Args:
            name: The dataset.
            bucket: Its number; the first is 0, and each follows the one before.
            rows: The column `ROW` and the dataset's own, which are the same for all buckets.
            epoch: Epoch of the lease that the writer holds.
            job_id: Kept with the commit.

        Raises:
            LeaseLost: A commit under a higher epoch is in the table; nothing was written.
            CommitFailedError: Another writer came first each time; nothing was written.
        """
        redone(TRIES, self._append, name, bucket, rows, epoch, job_id)

    def _append(self, name: str, bucket: int, rows: pa.Table, epoch: int, job_id: str) -> None:
        table = self._open(name)
        if table is not None:
            current = lease_epoch_of(table)
            if current is not None and current > epoch:
                raise LeaseLost(name=f"dataset:{name}", epoch=epoch, current=current)
            last = table.transaction_version(_BUCKET)
            if last is not None and last >= bucket:
                return
        properties = CommitProperties(
            app_transactions=[Transaction(_LEASE, epoch), Transaction(_BUCKET, bucket)],
            custom_metadata={f"{OURS}job_id": job_id, _BUCKET: str(bucket)},
            max_commit_retries=0,
        )
        if table is None:
            create_table(self.location(name), rows, self._options, properties, partition_by=())
        else:
            files = writer_properties(rows.schema)
            write_deltalake(table, rows, mode="append", commit_properties=properties, writer_properties=files)

    def schema(self, name: str) -> pa.Schema:
        """Return names and types of a dataset's own columns.

        Raises:
            NotFoundError: Nothing is stored under that name.
        """
        found = self._scan(name).schema
        return pa.schema([field for field in found if field.name != ROW])

    def pieces(self, name: str, piece_rows: int, rows: int) -> Iterator[pa.Table]:
        """Yield all rows in their order, a piece at a time.

        Args:
            name: The dataset.
            piece_rows: Rows of a piece; what they were stored by spares reading files twice.
            rows: How many there are.

        Raises:
            NotFoundError: Nothing is stored under that name.
        """
        scan = self._scan(name)
        for start in range(0, rows, piece_rows):
            chosen = (pc.field(ROW) >= start) & (pc.field(ROW) < start + piece_rows)
            yield scan.to_table(filter=chosen).sort_by(ROW).drop_columns([ROW])

    def row_count(self, name: str) -> int:
        """Return the number of rows that are stored so far."""
        table = self._open(name)
        if table is None:
            return 0
        return sum(pa.table(table.get_add_actions(flatten=True)).column("num_records").to_pylist())

    def relation(self, con: duckdb.DuckDBPyConnection, name: str) -> str:
        """Return SQL that stands after FROM in `con` and yields the stored rows with `ROW`, in no order.

        Raises:
            NotFoundError: Nothing is stored under that name.
        """
        registered = f"featurekit_dataset_{id(con)}_{name}"
        con.register(registered, self._scan(name))
        return quoted(registered)

    def with_keys(self, view: str, keys: pa.Table) -> tuple[str, ...]:
        """Return the datasets, begun ones among them, that have a row of some join keys of a view.

        Args:
            view: The feature view.
            keys: Its join keys, one column each, named as they are declared.
        """
        if not keys.num_rows:
            return ()
        with duckdb.connect() as con:
            con.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
            con.register("asked", keys)
            return tuple(name for name in self._files.folders() if self._has_keys(con, name, view, keys.column_names))

    def _has_keys(self, con: duckdb.DuckDBPyConnection, name: str, view: str, key_names: list[str]) -> bool:
        request, table = self.request(name), self._open(name)
        if request is None or table is None:
            return False
        stored = {field.name for field in table.schema().fields}
        places = [
            dict(zip(each["join_keys"], each["spine_keys"], strict=True))
            for each in request["request"]["references"]
            if each["view"] == view
        ]
        for columns in places:
            if not stored.issuperset(columns.values()) or columns.keys() != set(key_names):
                continue
            same = " AND ".join(
                f"d.{quoted(column)} IS NOT DISTINCT FROM a.{quoted(key)}" for key, column in columns.items()
            )
            query = f"SELECT count(*) FROM (FROM {self.relation(con, name)} d SEMI JOIN asked a ON {same} LIMIT 1)"
            if con.sql(query).fetchall()[0][0]:
                return True
        return False

    def _open(self, name: str) -> DeltaTable | None:
        return opened(self.location(name), self._options)

    def _scan(self, name: str) -> dataset.Dataset:
        table = self._open(name)
        if table is None:
            raise NotFoundError(kind="dataset", name=name, known=self.names())
        return table.to_pyarrow_dataset()
