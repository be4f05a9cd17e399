"""The one map from declared types to Arrow types. Engine, stores and streams share it; it knows declarations only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

import pyarrow as pa

from featurekit_dagster.domain.schema import DataType, Field

TIMESTAMP = pa.timestamp("us", tz="UTC")

_SCALARS: Mapping[str, pa.DataType] = {
    "String": pa.string(),
    "Int32": pa.int32(),
    "Int64": pa.int64(),
    "Float32": pa.float32(),
    "Float64": pa.float64(),
    "Bool": pa.bool_(),
    "Bytes": pa.binary(),
    "Timestamp": TIMESTAMP,
}
_RECORD_SCALARS: Mapping[str, pa.DataType] = {**_SCALARS, "String": pa.large_string(), "Bytes": pa.large_binary()}


def arrow_type(dtype: DataType) -> pa.DataType:
    """Return the Arrow type that stores and returns values of a declared type; timestamps are UTC microseconds."""
    return _mapped(dtype, _SCALARS)


def record_type(dtype: DataType) -> pa.DataType:
    """Return the Arrow type in which online stores take values: `arrow_type` with 64-bit offsets of texts and bytes.

    A column of many packed records may hold more than 2 GiB of them.
    """
    return _mapped(dtype, _RECORD_SCALARS)


def arrow_schema(fields: Iterable[Field]) -> pa.Schema:
    """Return the Arrow schema of declared columns."""
    return _schema(tuple(fields))


@lru_cache(maxsize=1024)
def _schema(fields: tuple[Field, ...]) -> pa.Schema:
    return pa.schema([(field.name, arrow_type(field.dtype)) for field in fields])


def _mapped(dtype: DataType, scalars: Mapping[str, pa.DataType]) -> pa.DataType:
    if dtype.name == "Array":
        return pa.list_(_mapped(dtype.children[0], scalars))
    if dtype.name == "Map":
        return pa.map_(_mapped(dtype.children[0], scalars), _mapped(dtype.children[1], scalars))
    if dtype.name == "Struct":
        return pa.struct([(member.name, _mapped(member.dtype, scalars)) for member in dtype.fields])
    return scalars[dtype.name]
