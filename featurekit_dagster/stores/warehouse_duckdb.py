"""A warehouse in one DuckDB file, which has one writing process at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from featurekit_dagster.domain.schema import Field
from featurekit_dagster.errors import Unsupported, WarehouseBusy
from featurekit_dagster.sql_text import duckdb_type, quoted
from featurekit_dagster.stores.warehouse import Warehouse, WarehouseSession, WarehouseTable

PATIENCE_SECONDS = 60.0
Connect = Callable[[], AbstractContextManager[duckdb.DuckDBPyConnection]]
_turns: dict[str, threading.Lock] = {}
_LOCKED = (duckdb.IOException, duckdb.ConnectionException)


class DuckDBWarehouse(Warehouse):
    """Published features in a DuckDB file.

    The file is open only as long as a transaction lasts, so that others can read it in between.

    Args:
        path: The file, made when it is missing.
        connect: Opens it, for the body of a `with`; by default the file is opened here.
        patience_seconds: How long to wait for another process that has the file open.
    """

    def __init__(self, path: Path, connect: Connect | None = None, patience_seconds: float = PATIENCE_SECONDS) -> None:
        super().__init__(str(path))
        self._path, self._patience = path, patience_seconds
        self._connect = connect or self._open

    def exists(self) -> bool:
        """Tell whether there is a file; see `Warehouse.exists`."""
        return self._path.exists()

    def check(self, table: WarehouseTable) -> None:
        """Refuse a table that the file cannot hold; see `Warehouse.check`.

        Raises:
            Unsupported: The file is named as the workspace, so that DuckDB cannot tell one from the other.
        """
        super().check(table)
        if table.schema.lower() == self._path.stem.lower():
            raise Unsupported(
                f"{table.name}: in {self.place} a query cannot tell the file from the schema, as both are named "
                f"{table.schema}; name another file in FEATUREKIT_WAREHOUSE"
            )

    @contextmanager
    def session(self) -> Iterator[WarehouseSession]:
        """Open a transaction; see `Warehouse.session`."""
        # the file's lock is the process's: threads would get into each other's transactions
        turn = _turns.setdefault(os.path.realpath(self._path), threading.Lock())
        if not turn.acquire(timeout=self._patience):
            raise WarehouseBusy(place=self.place)
        try:
            with self._transaction() as session:
                yield session
        finally:
            turn.release()

    @contextmanager
    def _transaction(self) -> Iterator[WarehouseSession]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        opened = self._connect()
        con = self._patiently(opened)
        try:
            con.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false; BEGIN TRANSACTION")
            yield _Session(con)
            con.execute("COMMIT")
        finally:
            con.close()  # what was not committed is undone; whoever opened it may not close it after an error
            opened.__exit__(None, None, None)

    def _patiently(self, opened: AbstractContextManager[duckdb.DuckDBPyConnection]) -> duckdb.DuckDBPyConnection:
        try:
            return opened.__enter__()
        except _LOCKED as error:
            raise WarehouseBusy(place=self.place) from error

    @contextmanager
    def _open(self) -> Iterator[duckdb.DuckDBPyConnection]:
        tries = Retrying(
            retry=retry_if_exception_type(_LOCKED),
            stop=stop_after_delay(self._patience),
            wait=wait_random_exponential(multiplier=0.05, max=2),
            reraise=True,
        )
        con = tries(duckdb.connect, self._path)
        try:
            yield con
        finally:
            con.close()


class _Session:
    """A transaction on a connection to a file."""

    def __init__(self, con: duckdb.DuckDBPyConnection) -> None:
        self._con = con

    def run(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows."""
        return self._con.execute(statement).fetchall()

    def insert(self, table: str, fields: Sequence[Field], rows: pa.Table) -> None:
        """Insert rows into a table."""
        columns = ", ".join(quoted(field.name) for field in fields)
        self._con.register("_featurekit_rows", rows)
        self._con.execute(f"INSERT INTO {table} ({columns}) SELECT {columns} FROM _featurekit_rows")
        self._con.unregister("_featurekit_rows")

    def type_of(self, field: Field) -> str:
        """Return the SQL type that holds a declared one."""
        return duckdb_type(field.dtype)

    def lock(self, name: str) -> None:
        """Do nothing: whoever has the file open for writing is alone."""
