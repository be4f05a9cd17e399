"""A warehouse in a PostgreSQL database."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pyarrow as pa

from featurekit_dagster.domain.schema import DataType, Field
from featurekit_dagster.errors import Unsupported, WarehouseBusy
from featurekit_dagster.sql_text import quoted
from featurekit_dagster.stores.warehouse import Warehouse, WarehouseSession

if TYPE_CHECKING:
    import psycopg

_BATCH_ROWS = 10_000
_CONNECT_SECONDS = 30
_TYPES = {
    "String": "text",
    "Int32": "integer",
    "Int64": "bigint",
    "Float32": "real",
    "Float64": "double precision",
    "Bool": "boolean",
    "Bytes": "bytea",
    "Timestamp": "timestamptz",
}


class PostgresWarehouse(Warehouse):
    """Published features in a PostgreSQL database.

    Arrays of plain values are arrays there; whatever else holds other values is `jsonb`.

    Args:
        url: URL of the database; user and password are shown nowhere.
    """

    longest_name_bytes = 63
    has_index = True

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        super().__init__(f"postgresql://{parts.netloc.rpartition('@')[2]}{parts.path}")
        self._url = url

    @contextmanager
    def session(self) -> Iterator[WarehouseSession]:
        """Open a transaction; see `Warehouse.session`.

        Raises:
            Unsupported: The driver is not installed.
        """
        if find_spec("psycopg") is None:
            raise Unsupported(
                "publishing in PostgreSQL needs the driver psycopg; install it: "
                "pip install 'featurekit_dagster[postgres]'"
            )
        import psycopg

        try:
            connection = psycopg.connect(self._url, connect_timeout=_CONNECT_SECONDS)
        except psycopg.OperationalError:
            raise WarehouseBusy(place=self.place) from None  # its text may quoted the user
        with connection:
            connection.execute("SET TIME ZONE 'UTC'")
            yield _Session(connection)


class _Session:
    """A transaction on a connection."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def run(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows."""
        cursor = self._connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []

    def insert(self, table: str, fields: Sequence[Field], rows: pa.Table) -> None:
        """Insert rows into a table.

        Raises:
            Unsupported: A text has a NUL character, which PostgreSQL cannot hold.
        """
        import psycopg

        columns = ", ".join(quoted(field.name) for field in fields)
        names = [field.name for field in fields]
        is_json = [_sql_type(field.dtype) == "jsonb" for field in fields]
        with self._connection.cursor() as cursor, cursor.copy(f"COPY {table} ({columns}) FROM STDIN".encode()) as copy:
            for batch in rows.select(names).to_batches(_BATCH_ROWS):
                cells = [
                    _jsons(c) if as_json else c.to_pylist() for c, as_json in zip(batch.columns, is_json, strict=True)
                ]
                for row in zip(*cells, strict=True):
                    try:
                        copy.write_row(row)
                    except psycopg.DataError:
                        raise Unsupported(
                            "a text to be published has a NUL character, which PostgreSQL cannot hold; take it out in "
                            "the transformation, or publish in a DuckDB file"
                        ) from None

    def type_of(self, field: Field) -> str:
        """Return the SQL type that holds a declared one."""
        return _sql_type(field.dtype)

    def lock(self, name: str) -> None:
        """Wait for others who have locked the name, and let others wait."""
        self._connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"featurekit {name}",))


def _sql_type(dtype: DataType) -> str:
    if dtype.name == "Array" and not dtype.children[0].is_nested:
        return f"{_TYPES[dtype.children[0].name]}[]"
    return "jsonb" if dtype.is_nested else _TYPES[dtype.name]


def _jsons(column: pa.Array) -> list[str | None]:
    """Return values as JSON."""
    values = column.to_pylist(maps_as_pydicts="strict") if _has_map(column.type) else column.to_pylist()
    return [None if value is None else json.dumps(_plain(value)) for value in values]


def _has_map(dtype: pa.DataType) -> bool:
    if pa.types.is_map(dtype):
        return True
    return any(_has_map(dtype.field(number).type) for number in range(dtype.num_fields))


def _plain(value: Any) -> Any:
    """Return a value in what JSON knows; numbers that are none, times and bytes as text."""
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_plain(member) for member in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    return value.hex() if isinstance(value, bytes) else value
