"""One hash for the contents of a table, made from its rows piece by piece.

Equal tables have equal hashes however they were cut. Names and types of the columns count, and the order of the rows;
floats count by their bits, so 0.0 and -0.0 differ, but every NaN is one and the same.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurekit_dagster.engine.storable import type_text


class ContentHash:
    """The hash of rows that come one after the other.

    Args:
        schema: Names and types of the columns, as `storable` makes them.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._columns = [_ColumnHash(field.type) for field in schema]

    def add(self, table: pa.Table) -> None:
        """Take in the next rows; the columns are found by their names."""
        for field, column in zip(self._schema, self._columns, strict=True):
            for chunk in table[field.name].chunks:
                column.add(chunk)

    def hexdigest(self) -> str:
        """Return the hash of all rows so far as 64 hexadecimal digits."""
        whole = hashlib.sha256()
        for field, column in zip(self._schema, self._columns, strict=True):
            whole.update(repr((field.name, type_text(field.type), column.hexdigest())).encode())
        return whole.hexdigest()


class _ColumnHash:
    """The hash of values of one type: which are NULL, then lengths, then what they hold, each in a hash of its own."""

    def __init__(self, kind: pa.DataType) -> None:
        self._kind = _plain(kind)
        self._hashes = [hashlib.sha256() for _ in range(3)]
        members: list[pa.DataType] = []
        if pa.types.is_struct(self._kind):
            members = [member.type for member in self._kind]
        elif pa.types.is_list(self._kind):
            members = [self._kind.value_type]
        self._members = [_ColumnHash(member) for member in members]

    def add(self, given: pa.Array) -> None:
        """Take in the next values."""
        there, lengths, contents = self._hashes
        values = given.cast(pa.string()).cast(self._kind) if pa.types.is_decimal(given.type) else given.cast(self._kind)
        there.update(pc.is_valid(values).cast(pa.uint8()).to_numpy().tobytes())
        if pa.types.is_struct(self._kind):
            for member, inner in zip(values.flatten(), self._members, strict=True):
                inner.add(member)
        elif pa.types.is_list(self._kind):
            lengths.update(_bytes_of(pc.list_value_length(values).cast(pa.int64())))
            self._members[0].add(values.flatten())
        elif pa.types.is_large_binary(self._kind):
            lengths.update(_bytes_of(pc.binary_length(values)))
            contents.update(_joined(values))
        else:
            contents.update(_bytes_of(values))

    def hexdigest(self) -> str:
        """Return the hash of all values so far."""
        parts = [each.hexdigest() for each in self._hashes] + [each.hexdigest() for each in self._members]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return a type of numbers, bytes, lists or structs that tells the same values apart."""
    if pa.types.is_boolean(kind):
        return pa.uint8()
    if pa.types.is_timestamp(kind):
        return pa.int64()
    if pa.types.is_date32(kind):
        return pa.int32()
    if pa.types.is_map(kind):
        return pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)]))
    if pa.types.is_decimal(kind) or pa.types.is_string(kind) or pa.types.is_binary(kind):
        return pa.large_binary()
    return kind


def _bytes_of(values: pa.Array) -> bytes:
    """Return numbers as bytes, 0 for NULL and one NaN for all."""
    found: npt.NDArray[Any] = pc.fill_null(values, 0).to_numpy(zero_copy_only=False)
    if found.dtype.kind == "f" and np.isnan(found).any():
        found = np.where(np.isnan(found), np.array(np.nan, found.dtype), found)
    return found.astype(found.dtype.newbyteorder("<"), copy=False).tobytes()


def _joined(values: pa.Array) -> bytes:
    """Return what texts hold, one after the other; nothing for NULL."""
    kept = values.drop_null()
    if not len(kept):
        return b""
    offsets = np.frombuffer(kept.buffers()[1], np.int64, len(kept) + 1, kept.offset * 8)
    return bytes(memoryview(kept.buffers()[2])[int(offsets[0]) : int(offsets[-1])])
