"""How declared types look in Arrow, and how the frames of other libraries come in."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurekit_dagster.domain.schema import DataType, Field
from featurekit_dagster.errors import TectonValidationError

TIMESTAMP = pa.timestamp("us", tz="UTC")
UNCONVERTIBLE = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError)
"""What Arrow raises for values that it has no type for; its text quotes them."""

_SCALARS = {
    "String": pa.string(),
    "Int32": pa.int32(),
    "Int64": pa.int64(),
    "Float32": pa.float32(),
    "Float64": pa.float64(),
    "Bool": pa.bool_(),
    "Bytes": pa.binary(),
    "Timestamp": TIMESTAMP,
}


def arrow_type(dtype: DataType) -> pa.DataType:
    """Return the Arrow type that stores and returns values of a declared type; timestamps are UTC microseconds."""
    if dtype.name == "Array":
        return pa.list_(arrow_type(dtype.children[0]))
    if dtype.name == "Map":
        return pa.map_(arrow_type(dtype.children[0]), arrow_type(dtype.children[1]))
    if dtype.name == "Struct":
        return pa.struct([(member.name, arrow_type(member.dtype)) for member in dtype.fields])
    return _SCALARS[dtype.name]


def arrow_schema(fields: Iterable[Field]) -> pa.Schema:
    """Return the Arrow schema of declared columns."""
    return _schema(tuple(fields))


@lru_cache(maxsize=1024)
def _schema(fields: tuple[Field, ...]) -> pa.Schema:
    return pa.schema([(field.name, arrow_type(field.dtype)) for field in fields])


def to_arrow(frame: Any) -> pa.Table:
    """Return a pandas, polars, Arrow or DuckDB frame, or one of our own, as an Arrow table in the same row order.

    Raises:
        TectonValidationError: It is something else, or column names repeat.
    """
    if isinstance(frame, pa.Table):
        table = frame
    elif isinstance(frame, pa.RecordBatch):
        table = pa.Table.from_batches([frame])
    elif hasattr(frame, "to_arrow"):
        table = frame.to_arrow()
    elif hasattr(frame, "collect"):
        table = frame.collect().to_arrow()
    elif hasattr(frame, "iloc"):
        table = pa.Table.from_pandas(frame, preserve_index=False)
    elif hasattr(frame, "to_arrow_table"):
        table = frame.to_arrow_table()
    else:
        raise TectonValidationError(f"a {type(frame).__name__} is no frame; give a pandas, polars or Arrow table")
    if len(set(table.column_names)) < table.num_columns:
        repeated = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
        raise TectonValidationError(f"columns {', '.join(repeated)} appear more than once; rename them")
    return table


def floored_to_microseconds(times: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return nanosecond times in UTC microseconds: a time in between becomes the earlier one, also before 1970."""
    nanoseconds = times.cast(pa.int64()).combine_chunks()
    values = np.floor_divide(pc.fill_null(nanoseconds, 0).to_numpy(), 1000)
    floored = pa.array(values, mask=pc.is_null(nanoseconds).to_numpy(zero_copy_only=False))
    return pa.chunked_array([floored.cast(TIMESTAMP)])
