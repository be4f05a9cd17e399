"""Arrow columns as NumPy arrays and back, exactly.

Arrow's own `to_numpy` turns integers with NULL into floats and imports pandas on the way, which costs a cold process
more than most answers; so buffers are read directly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Int64Array = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Values = npt.NDArray[Any]

_NUMPY_TYPES = {
    pa.int8(): np.int8,
    pa.int16(): np.int16,
    pa.int32(): np.int32,
    pa.int64(): np.int64,
    pa.uint8(): np.uint8,
    pa.uint16(): np.uint16,
    pa.uint32(): np.uint32,
    pa.uint64(): np.uint64,
    pa.float32(): np.float32,
    pa.float64(): np.float64,
}


def numpy_type(dtype: pa.DataType) -> np.dtype[Any]:
    """Return the NumPy type of an Arrow number."""
    return np.dtype(_NUMPY_TYPES[dtype])


def numbers(column: pa.ChunkedArray) -> Values:
    """Return a column of numbers; what stands where it is NULL is arbitrary. The array may not be written to."""
    kind = numpy_type(column.type)
    chunks = [np.frombuffer(chunk.buffers()[1], kind, len(chunk), chunk.offset * kind.itemsize)
              for chunk in column.chunks if len(chunk)]  # fmt: skip
    if len(chunks) == 1:
        return chunks[0]
    return np.concatenate(chunks) if chunks else np.zeros(0, kind)


def present(column: pa.ChunkedArray) -> BoolArray | None:
    """Return where a column is not NULL; None where it never is NULL."""
    if not column.null_count:
        return None
    flags = [_bits(pc.is_valid(chunk)) for chunk in column.chunks]
    return np.concatenate(flags)


def _bits(flags: pa.BooleanArray) -> BoolArray:
    """Return a Boolean array without NULLs."""
    end = flags.offset + len(flags)
    packed = np.frombuffer(flags.buffers()[1], np.uint8)
    return np.unpackbits(packed, count=end, bitorder="little")[flags.offset :].view(np.bool_)


def int64_values(column: pa.ChunkedArray) -> tuple[Int64Array, BoolArray | None]:
    """Return an int64 column, NULL as a value that occurs or 0, and where it is NULL (None: nowhere)."""
    valid, values = present(column), numbers(column)
    if valid is None:
        return values, None
    return np.where(valid, values, values[valid].min() if valid.any() else 0), ~valid


def microseconds(column: pa.ChunkedArray) -> tuple[Int64Array, BoolArray | None]:
    """Return a timestamp or int64 column as `int64_values` does, timestamps in microseconds since the epoch."""
    if pa.types.is_timestamp(column.type):
        column = as_type(column, pa.timestamp("us", column.type.tz))
    return int64_values(as_type(column, pa.int64()))


def as_type(column: pa.ChunkedArray, dtype: pa.DataType) -> pa.ChunkedArray:
    """Return a column as another type; one that has it already is not touched, which Arrow takes its time for."""
    return column if column.type == dtype else column.cast(dtype)


def rows_where(table: pa.Table, chosen: BoolArray) -> pa.Table:
    """Return the rows of a table that are chosen, in order."""
    return table if chosen.all() else rows_at(table, np.flatnonzero(chosen))


def rows_at(table: pa.Table, places: Int64Array) -> pa.Table:
    """Return the rows of a table at some places, in that order."""
    return table.take(to_column(places, None, pa.int64()))


def to_column(values: Values, valid: BoolArray | None, dtype: pa.DataType) -> pa.ChunkedArray:
    """Return numbers as an Arrow column of `dtype`, whose width is that of `values`, NULL where `valid` is not set."""
    bitmap = None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little"))
    array = pa.Array.from_buffers(dtype, len(values), [bitmap, pa.py_buffer(np.ascontiguousarray(values))])
    return pa.chunked_array([array])
