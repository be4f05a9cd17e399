"""Names, texts and types as they stand in SQL; what DuckDB is told, and as far as names go PostgreSQL, too."""

from __future__ import annotations

from featurekit_dagster.domain.schema import DataType

_SCALARS = {
    "String": "VARCHAR",
    "Int32": "INTEGER",
    "Int64": "BIGINT",
    "Float32": "FLOAT",
    "Float64": "DOUBLE",
    "Bool": "BOOLEAN",
    "Bytes": "BLOB",
    "Timestamp": "TIMESTAMPTZ",
}


def quoted(name: str) -> str:
    """Return a column or relation name as a SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return a text as a SQL string."""
    return "'" + text.replace("'", "''") + "'"


def duckdb_type(dtype: DataType) -> str:
    """Return the DuckDB type of a declared type."""
    if dtype.name == "Array":
        return f"{duckdb_type(dtype.children[0])}[]"
    if dtype.name == "Map":
        return f"MAP({', '.join(map(duckdb_type, dtype.children))})"
    if dtype.name == "Struct":
        return f"STRUCT({', '.join(f'{quoted(member.name)} {duckdb_type(member.dtype)}' for member in dtype.fields)})"
    return _SCALARS[dtype.name]
