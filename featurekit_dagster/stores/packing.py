"""Rows as bytes: the value format of the online store, column by column inside each value.

A value holds rows of one key: the tiles of one chunk, or the one row of a latest-value view. It is written by the
thousand with slices of whole columns, and read by one `struct` call or by NumPy. Neighbours: `key_codec.py`, `lmdb.py`.

```
u8 rows · u8 flags (1: NULLs present)
lead        per row: u8 tag, or for latest-value rows i64 timestamp and u8 tag
null bits   per row: one bit per column, only if flags say so
fixed       per column: its rows, little endian (Int32 4, Int64 8, Float32 4, Float64 8, Bool 1, Timestamp 8 bytes)
lengths     per variable column: u32 byte length of each row
heap        per variable column: its rows (UTF-8, bytes, or msgpack for nested types)
```
A tag is `2 * slot + source bit` (1 batch, 0 stream): tags ascend with the tile's slot in its chunk whatever the source.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import msgpack
import numpy as np
import pyarrow as pa

from featurekit_dagster.domain.schema import (
    Bool,
    Bytes,
    DataType,
    Field,
    Float32,
    Float64,
    Int32,
    Int64,
    String,
    Timestamp,
)
from featurekit_dagster.intervals import from_us

BATCH = 1
TILE_LEAD_BYTES = 1
ROW_LEAD = struct.Struct("<qB")

_HEADER_BYTES = 2
_HAS_NULLS = 1
_HEADERS = [[bytes((rows, flags)) for flags in (0, _HAS_NULLS)] for rows in range(256)]

_FIXED = {Int32: "i", Int64: "q", Float32: "f", Float64: "d", Bool: "?", Timestamp: "q"}
_ARROW = {
    Int32: pa.int32(),
    Int64: pa.int64(),
    Float32: pa.float32(),
    Float64: pa.float64(),
    Bool: pa.bool_(),
    Timestamp: pa.timestamp("us", "UTC"),
    String: pa.large_string(),
    Bytes: pa.large_binary(),
}


def arrow_type(dtype: DataType) -> pa.DataType:
    """Return the Arrow type in which the online store takes values of a declared type."""
    if dtype.fields:
        return pa.struct([pa.field(member.name, arrow_type(member.dtype)) for member in dtype.fields])
    if len(dtype.children) == 2:
        return pa.map_(arrow_type(dtype.children[0]), arrow_type(dtype.children[1]))
    if dtype.children:
        return pa.list_(arrow_type(dtype.children[0]))
    return _ARROW[dtype]


def _heap_column(dtype: DataType, column: pa.Array) -> pa.Array:
    """Return a variable-width column as binary; nested values become msgpack."""
    if not dtype.is_nested:
        return column.cast(pa.large_binary())
    values = column.to_pylist(maps_as_pydicts="strict")
    packed = [None if value is None else msgpack.packb(value, datetime=True) for value in values]
    return pa.array(packed, pa.large_binary())


def _decode_heap(dtype: DataType, raw: bytes) -> Any:
    if dtype == String:
        return raw.decode()
    if dtype == Bytes:
        return raw
    return msgpack.unpackb(raw, timestamp=3, strict_map_key=False)


class ValueCodec:
    """Packs rows of one layout into values, merges values and unpacks them.

    Args:
        fields: Value columns, in stored order.
        lead_bytes: Width of a row's lead: 1 for tiles, 9 for latest-value rows.
    """

    def __init__(self, fields: Sequence[Field], lead_bytes: int) -> None:
        self.fields = tuple(fields)
        self._lead_bytes = lead_bytes
        self._fixed = [at for at, field in enumerate(self.fields) if field.dtype in _FIXED]
        self._variable = [at for at, field in enumerate(self.fields) if field.dtype not in _FIXED]
        self._codes = [_FIXED[self.fields[at].dtype] for at in self._fixed]
        self._fixed_bytes = [struct.calcsize("<" + code) for code in self._codes]
        self._null_bytes = -(-len(self.fields) // 8)
        self._is_plain = not self._variable and lead_bytes == TILE_LEAD_BYTES
        self._plain_widths = [lead_bytes, *self._fixed_bytes]
        self.struct_of_rows = lru_cache(maxsize=256)(self._struct_of_rows)

    # ---- writing ---------------------------------------------------------------------------------------------------

    def pack_runs(
        self,
        lead: np.ndarray[Any, np.dtype[np.uint8]],
        columns: Sequence[pa.Array],
        starts: np.ndarray[Any, np.dtype[np.int64]],
    ) -> list[bytes]:
        """Return one value per run of consecutive rows.

        Args:
            lead: One row of lead bytes per row.
            columns: The value columns in Arrow types of `arrow_type`, contiguous, rows as in `lead`.
            starts: First row of each run, ascending from 0; a run holds 1 to 255 rows.
        """
        rows = len(lead)
        ends = np.append(starts[1:], rows)
        flags, nulls = self._null_runs(columns, rows, starts, ends)
        counts = (ends - starts).tolist()
        sections: list[list[bytes]] = [[_HEADERS[n][flag] for n, flag in zip(counts, flags, strict=True)]]
        sections.append(_slices(lead.tobytes(), starts, ends, self._lead_bytes))
        if nulls is not None:
            sections.append(nulls)
        for at, code, width in zip(self._fixed, self._codes, self._fixed_bytes, strict=True):
            sections.append(_slices(_fixed_bytes(columns[at], code), starts, ends, width))
        heaps: list[list[bytes]] = []
        for at in self._variable:
            offsets, data = _heap_buffers(_heap_column(self.fields[at].dtype, columns[at]))
            lengths = np.diff(offsets).astype("<u4").tobytes()
            sections.append(_slices(lengths, starts, ends, 4))
            heaps.append(_slices(data, offsets[starts], offsets[ends], 1))
        return list(map(b"".join, zip(*sections, *heaps, strict=True)))

    def _null_runs(
        self,
        columns: Sequence[pa.Array],
        rows: int,
        starts: np.ndarray[Any, np.dtype[np.int64]],
        ends: np.ndarray[Any, np.dtype[np.int64]],
    ) -> tuple[list[int], list[bytes] | None]:
        """Return each run's flags and, if any row has a NULL, each run's null bits (empty where it has none)."""
        if not any(column.null_count for column in columns):
            return [0] * len(starts), None
        bits = np.zeros((rows, self._null_bytes), np.uint8)
        for at, column in enumerate(columns):
            if column.null_count:
                bits[:, at // 8] |= column.is_null().to_numpy(zero_copy_only=False).astype(np.uint8) << (at % 8)
        has_null = np.logical_or.reduceat(bits.any(axis=1), starts).tolist()
        slices = _slices(bits.tobytes(), starts, ends, self._null_bytes)
        return [int(has) for has in has_null], [raw if has else b"" for raw, has in zip(slices, has_null, strict=True)]

    def merge_tiles(self, old: bytes, new: bytes) -> tuple[bytes, int]:
        """Return the tiles of both values, and how many of `new` were refused.

        Where both have a tile of one slot, `wins` decides: the times are equal, so batch beats stream, else the new one
        wins.
        """
        old_rows, new_rows = old[0], new[0]
        if self._is_plain and not old[1] and not new[1] and old[1 + old_rows] >> 1 < new[_HEADER_BYTES] >> 1:
            parts = [_HEADERS[old_rows + new_rows][0]]
            old_at = new_at = _HEADER_BYTES
            for width in self._plain_widths:
                old_end, new_end = old_at + width * old_rows, new_at + width * new_rows
                parts += (old[old_at:old_end], new[new_at:new_end])
                old_at, new_at = old_end, new_end
            return b"".join(parts), 0
        picks, refused = _merge_picks(old[2 : 2 + old_rows], new[2 : 2 + new_rows])
        return self._gather((old, new), picks), refused

    def without_slots(self, value: bytes, first: int, last: int) -> bytes | None:
        """Return the value without the tiles of slots `first..last`, or None if nothing is left."""
        rows = value[0]
        picks = [(0, row) for row in range(rows) if not first <= value[_HEADER_BYTES + row] >> 1 <= last]
        if len(picks) == rows:
            return value
        return self._gather((value,), picks) if picks else None

    def _gather(self, values: Sequence[bytes], picks: Sequence[tuple[int, int]]) -> bytes:
        """Return a value of the picked (value, row) pairs, in order."""
        rows = [self._row_sections(value) for value in values]
        with_nulls = any(any(rows[value][row][1]) for value, row in picks)
        chosen = [rows[value][row] for value, row in picks]
        parts = [_HEADERS[len(picks)][with_nulls]]
        for section, pieces in enumerate(zip(*chosen, strict=True)):
            if section != 1 or with_nulls:
                parts.extend(pieces)
        return b"".join(parts)

    def _row_sections(self, value: bytes) -> list[tuple[bytes, ...]]:
        """Return, per row, its bytes in every section; null bits are always given."""
        count, at = value[0], _HEADER_BYTES
        sections: list[list[bytes]] = []
        widths = [self._lead_bytes, self._null_bytes, *self._fixed_bytes, *([4] * len(self._variable))]
        for section, width in enumerate(widths):
            if section == 1 and not value[1]:
                sections.append([bytes(width)] * count)
                continue
            sections.append([value[at + row * width : at + (row + 1) * width] for row in range(count)])
            at += width * count
        for lengths in sections[len(widths) - len(self._variable) :]:
            ends = list(accumulate((int.from_bytes(raw, "little") for raw in lengths), initial=at))
            sections.append([value[start:end] for start, end in zip(ends, ends[1:], strict=False)])
            at = ends[-1]
        return list(zip(*sections, strict=True))

    # ---- reading ---------------------------------------------------------------------------------------------------

    def _struct_of_rows(self, rows: int) -> struct.Struct:
        """Return the struct of the fixed and length sections of a value of `rows` rows."""
        return struct.Struct("<" + "".join(f"{rows}{code}" for code in [*self._codes, *("I" * len(self._variable))]))

    def data_offset(self, value: bytes) -> int:
        """Return where the fixed section begins."""
        rows = value[0]
        return _HEADER_BYTES + rows * (self._lead_bytes + (self._null_bytes if value[1] else 0))

    @property
    def is_fixed(self) -> bool:
        """Whether all columns have a fixed width."""
        return not self._variable

    @property
    def column_dtypes(self) -> list[np.dtype[Any]]:
        """NumPy types of the fixed columns, in stored order; only meaningful where `is_fixed`."""
        return [np.dtype("<" + code) if code != "?" else np.dtype(np.bool_) for code in self._codes]

    def columns(self, value: bytes) -> list[Sequence[Any]]:
        """Return each column's stored values, NULL as None and timestamps as microseconds."""
        rows, at = value[0], self.data_offset(value)
        layout = self.struct_of_rows(rows)
        flat = layout.unpack_from(value, at)
        found: list[Sequence[Any]] = [()] * len(self.fields)
        for position, column in enumerate(self._fixed):
            found[column] = flat[position * rows : (position + 1) * rows]
        at += layout.size
        for position, column in enumerate(self._variable, start=len(self._fixed)):
            ends = list(accumulate(flat[position * rows : (position + 1) * rows], initial=at))
            found[column] = [value[start:end] for start, end in zip(ends, ends[1:], strict=False)]
            at = ends[-1]
        nulls = self._null_columns(value) if value[1] else None
        for column, field in enumerate(self.fields):
            null = nulls[column] if nulls else None
            if null:
                found[column] = [None if hidden else item for hidden, item in zip(null, found[column], strict=True)]
            if field.dtype not in _FIXED:
                found[column] = [None if item is None else _decode_heap(field.dtype, item) for item in found[column]]
        return found

    def _null_columns(self, value: bytes) -> list[list[bool] | None]:
        """Return, per column, which rows are NULL, or None if no row is."""
        start = _HEADER_BYTES + value[0] * self._lead_bytes
        step, end = self._null_bytes, start + value[0] * self._null_bytes
        found: list[list[bool] | None] = []
        for column in range(len(self.fields)):
            null = [bool(bits >> (column % 8) & 1) for bits in value[start + column // 8 : end : step]]
            found.append(null if any(null) else None)
        return found

    def tile_rows(self, value: bytes, chunk_start: int) -> Iterator[tuple[Any, ...]]:
        """Yield `(tile number, *values)` of each tile; `chunk_start` is the number of the chunk's first tile."""
        numbers = [chunk_start + (tag >> 1) for tag in value[2 : 2 + value[0]]]
        return zip(numbers, *self._public_columns(value), strict=True)

    def latest_row(self, value: bytes) -> tuple[Any, ...]:
        """Return `(timestamp in microseconds, *values)` of a latest-value record."""
        timestamp = ROW_LEAD.unpack_from(value, _HEADER_BYTES)[0]
        return (timestamp, *(column[0] for column in self._public_columns(value)))

    def _public_columns(self, value: bytes) -> list[Sequence[Any]]:
        columns = self.columns(value)
        for at, field in enumerate(self.fields):
            if field.dtype == Timestamp:
                columns[at] = [None if us is None else from_us(us) for us in columns[at]]
        return columns


def lead_time(value: bytes, at: int = 0) -> tuple[int, int]:
    """Return (timestamp in microseconds, source bit) of the latest-value record that begins at `at`, for `wins`."""
    timestamp, tag = ROW_LEAD.unpack_from(value, at + _HEADER_BYTES)
    return timestamp, tag & 1


def _merge_picks(old_tags: bytes, new_tags: bytes) -> tuple[list[tuple[int, int]], int]:
    """Return (value, row) of the tiles of a merged value in slot order, and how many new ones lost."""
    chosen = {tag >> 1: (0, row) for row, tag in enumerate(old_tags)}
    refused = 0
    for row, tag in enumerate(new_tags):
        held = chosen.get(tag >> 1)
        # The slot is the timestamp here, so `wins` comes down to the source bits.
        if held is not None and held[0] == 0 and old_tags[held[1]] & 1 > tag & 1:
            refused += 1
        else:
            chosen[tag >> 1] = (1, row)
    return [chosen[slot] for slot in sorted(chosen)], refused


def _slices(
    raw: bytes | memoryview,
    starts: np.ndarray[Any, np.dtype[np.int64]],
    ends: np.ndarray[Any, np.dtype[np.int64]],
    width: int,
) -> list[bytes]:
    return [raw[a:b] for a, b in zip((starts * width).tolist(), (ends * width).tolist(), strict=True)]  # type: ignore[misc]


def _fixed_bytes(column: pa.Array, code: str) -> bytes:
    """Return the values of a fixed-width column as stored; NULL is zero."""
    if code == "?":
        raw: bytes = column.fill_null(False).to_numpy(zero_copy_only=False).astype(np.uint8).tobytes()
        return raw
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    if column.null_count:
        column = column.fill_null(0)
    values: np.ndarray[Any, Any] = column.to_numpy(zero_copy_only=False)
    return values.astype("<" + code, copy=False).tobytes()


def _heap_buffers(column: pa.Array) -> tuple[np.ndarray[Any, np.dtype[np.int64]], memoryview]:
    """Return the offsets of a large binary column (one more than rows) and the bytes that they index."""
    _, offsets, data = column.buffers()
    first = column.offset
    found = np.frombuffer(offsets, np.int64)[first : first + len(column) + 1]
    return found, memoryview(data) if data is not None else memoryview(b"")
