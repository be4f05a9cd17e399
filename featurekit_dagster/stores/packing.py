"""Rows as bytes: the value format of the online store, in 8-byte words and column by column inside each value.

A value holds rows of one key: the tiles of one chunk, or the one row of a latest-value view. Thousands are packed,
unpacked and merged at once as a `Block` of NumPy columns; one alone is read by `struct`. Next to `key_codec.py`.

```
word 0          tiles: bit s is set if the tile of slot s is there; row: timestamp in microseconds
word 1          bit s is set if that tile came from a batch job (row: bit 0); a stream's is clear
null columns    one bit per value column: it has a NULL here (a word per 64 columns)
null rows       for each such column a word: bit r is set if row r is NULL
columns         per column a word per row: Int32 Int64 Bool Timestamp as i64, Float32 Float64 as f64,
                others the byte length of their cell
heap            the cells of those other columns (see `cell_codec.py`); zeros up to a whole word
```
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from featurekit_dagster.arrow_types import record_type
from featurekit_dagster.domain.schema import (
    Bool,
    DataType,
    Field,
    Float32,
    Float64,
    Int32,
    Int64,
    Timestamp,
)
from featurekit_dagster.stores.cell_codec import decoder, encode_cells, user_value

IntArray = np.ndarray[Any, np.dtype[np.int64]]
WordArray = np.ndarray[Any, np.dtype[np.uint64]]
BoolArray = np.ndarray[Any, np.dtype[np.bool_]]

WORD_BYTES = 8
_LEAD = struct.Struct("<qQ")
_ONE = np.uint64(1)

_CODES = {Int32: "q", Int64: "q", Bool: "q", Timestamp: "q", Float32: "d", Float64: "d"}


@dataclass(frozen=True, slots=True)
class Block:
    """The rows of many values, as columns.

    Args:
        owners: Per row the number of its value, ascending; every value has a row.
        leads: Per row the tile's slot in its chunk, ascending within a value, or the row's timestamp in microseconds.
        from_batch: Per row whether a batch job wrote it.
        columns: Per value column its cells: int64, float64, or objects (bytes) where the width varies; 0 where NULL.
        nulls: Per value column which rows are NULL, or None if no row is.
    """

    owners: IntArray
    leads: IntArray
    from_batch: BoolArray
    columns: list[np.ndarray[Any, Any]]
    nulls: list[BoolArray | None]

    def take(self, rows: IntArray | BoolArray | slice, owners: IntArray) -> Block:
        """Return the given rows (positions, a mask or a slice) as rows of other values."""
        return Block(
            owners,
            self.leads[rows],
            self.from_batch[rows],
            [column[rows] for column in self.columns],
            [None if null is None else null[rows] for null in self.nulls],
        )


class ValueCodec:
    """Packs rows of one layout into values and unpacks them.

    Args:
        fields: Value columns, in stored order.
        is_tiled: Whether values hold tiles (else one row each).
    """

    def __init__(self, fields: Sequence[Field], *, is_tiled: bool) -> None:
        self.fields = tuple(fields)
        self._is_tiled = is_tiled
        self._types: dict[str, pa.DataType] | None = None
        self._variable = [at for at, field in enumerate(self.fields) if field.dtype not in _CODES]
        self._codes = "".join(_CODES.get(field.dtype, "q") for field in self.fields)
        self.lead_words = 2 + -(-len(self.fields) // 64)
        self.null_mask_words = range(2, self.lead_words)
        self.lead_bytes = self.lead_words * WORD_BYTES
        self.struct_of_rows = lru_cache(maxsize=128)(self._struct_of_rows)
        self._decoders = {at: decoder(self.fields[at].dtype) for at in self._variable}
        converts = [(at, user_value(field.dtype)) for at, field in enumerate(self.fields)]
        self._converts = [(at, convert) for at, convert in converts if convert is not None]

    def types_beside(self, keys: Sequence[Field]) -> dict[str, pa.DataType]:
        """Return the Arrow types of key columns and value columns, by name; it is always asked with the same keys."""
        if self._types is None:
            self._types = {field.name: record_type(field.dtype) for field in (*keys, *self.fields)}
        return self._types

    @property
    def is_fixed(self) -> bool:
        """Whether all columns have a fixed width."""
        return not self._variable

    @property
    def variable_columns(self) -> Sequence[int]:
        """Places of the columns of variable width."""
        return self._variable

    # ---- many values -----------------------------------------------------------------------------------------------

    def column_cells(self, column: int, cells: pa.Array) -> tuple[np.ndarray[Any, Any], BoolArray | None]:
        """Return an Arrow column of `record_type` as a block's cells and NULLs."""
        dtype = self.fields[column].dtype
        null = cells.is_null().to_numpy(zero_copy_only=False) if cells.null_count else None
        code = _CODES.get(dtype)
        if code is None:
            return encode_cells(dtype, cells), null
        if null is not None:
            cells = cells.fill_null(pa.scalar(0, pa.int64()).cast(cells.type))
        if dtype == Timestamp:
            cells = cells.cast(pa.int64())
        return cells.to_numpy(zero_copy_only=False).astype("<i8" if code == "q" else "<f8", copy=False), null

    def pack(self, block: Block) -> list[bytes]:
        """Return the values of a block, in order."""
        if not len(block.owners):
            return []
        starts = np.flatnonzero(np.diff(block.owners, prepend=-1))
        counts = np.diff(starts, append=len(block.owners))
        positions = np.arange(len(block.owners)) - np.repeat(starts, counts)
        null_bits = [
            None if null is None else np.bitwise_or.reduceat(_bit(null, positions), starts) for null in block.nulls
        ]
        null_words = np.zeros(len(starts), np.int64)
        for bits in null_bits:
            if bits is not None:
                null_words += bits != 0
        sizes = self.lead_words + null_words + len(self.fields) * counts
        ends = np.cumsum(sizes)
        begins = ends - sizes
        words = np.zeros(int(ends[-1]), np.uint64)
        if self._is_tiled:
            words[begins] = np.bitwise_or.reduceat(_ONE << block.leads.astype(np.uint64), starts)
            words[begins + 1] = np.bitwise_or.reduceat(_bit(block.from_batch, block.leads), starts)
        else:
            words[begins] = block.leads.view(np.uint64)
            words[begins + 1] = block.from_batch
        self._put_nulls(words, begins, null_bits)
        self._put_columns(words, begins + self.lead_words + null_words, counts, positions, block)
        raw = words.tobytes()
        bounds = (ends * WORD_BYTES).tolist()
        values = [raw[a:b] for a, b in zip([0, *bounds], bounds, strict=False)]
        return self._with_heaps(values, block, starts) if self._variable else values

    def _put_nulls(self, words: WordArray, begins: IntArray, null_bits: list[WordArray | None]) -> None:
        """Write which columns and rows are NULL."""
        free = begins + self.lead_words
        for column, bits in enumerate(null_bits):
            if bits is not None:
                has_null = np.flatnonzero(bits)
                words[begins[has_null] + 2 + column // 64] |= _ONE << np.uint64(column % 64)
                words[free[has_null]] = bits[has_null]
                free[has_null] += 1

    def _put_columns(
        self, words: WordArray, begins: IntArray, counts: IntArray, positions: IntArray, block: Block
    ) -> None:
        """Write the cells, or their lengths."""
        count = int(counts[0])
        if len(words) == len(begins) * (self.lead_words + count * len(self.fields)) and (counts == count).all():
            # Values of one size are the rows of a table, and a column is a part of it.
            table = words.reshape(len(begins), -1)
            for column, cells in enumerate(block.columns):
                first = self.lead_words + column * count
                table[:, first : first + count] = stored_words(cells).reshape(-1, count)
            return
        at = np.repeat(begins, counts) + positions
        step = np.repeat(counts, counts)
        for column, cells in enumerate(block.columns):
            words[at] = stored_words(cells)
            if column + 1 < len(block.columns):
                at += step

    def _with_heaps(self, values: list[bytes], block: Block, starts: IntArray) -> list[bytes]:
        """Return the values with the cells of variable columns behind them."""
        heaps = [block.columns[column].tolist() for column in self._variable]
        found = []
        ends = [*starts[1:].tolist(), len(block.owners)]
        for value, a, b in zip(values, starts.tolist(), ends, strict=True):
            heap = b"".join([cell for cells in heaps for cell in cells[a:b]])
            found.append(value + heap + bytes(-len(heap) % WORD_BYTES))
        return found

    def unpack(self, values: Sequence[bytes], *, with_heaps: bool = True) -> Block:
        """Return the rows of some values as a block; without heaps, columns of variable width are their lengths."""
        words = np.frombuffer(b"".join(values), np.uint64)
        sizes = np.fromiter(map(len, values), np.int64, len(values)) // WORD_BYTES
        begins = np.cumsum(sizes) - sizes
        owners, leads, from_batch = self._unpack_leads(words, begins)
        counts = np.bincount(owners, minlength=len(values))
        starts = np.cumsum(counts) - counts
        positions = np.arange(len(owners)) - np.repeat(starts, counts)
        nulls, null_words = self._unpack_nulls(words, begins, owners, positions)
        at = (begins + self.lead_words + null_words)[owners] + positions
        step = counts[owners]
        columns: list[np.ndarray[Any, Any]] = []
        for code in self._codes:
            columns.append(words[at].view("<i8" if code == "q" else "<f8"))
            at += step
        if self._variable and with_heaps:
            heap_at = (begins + self.lead_words + null_words + len(self.fields) * counts) * WORD_BYTES
            self._unpack_heaps(words.tobytes(), heap_at.tolist(), owners.tolist(), columns)
        return Block(owners, leads, from_batch, columns, nulls)

    def unpack_alike(self, values: Sequence[bytes]) -> tuple[IntArray, list[np.ndarray[Any, Any]]] | None:
        """Return what chunks have that have tiles in the same slots, columns of fixed width and no NULLs.

        Returns:
            The slots, and per column a matrix of one row per value and one column per slot; None if they are not alike.
        """
        if self._variable or any(values[0][2 * WORD_BYTES : self.lead_bytes]):
            return None
        if len(set(map(len, values))) > 1:
            return None
        table = np.frombuffer(b"".join(values), np.uint64).reshape(len(values), -1)
        if (table[:, : self.lead_words] != table[0, : self.lead_words]).any():
            return None
        slots = np.flatnonzero(np.unpackbits(table[0, :1].view(np.uint8), bitorder="little"))
        columns: list[np.ndarray[Any, Any]] = []
        for at, code in enumerate(self._codes):
            first = self.lead_words + at * len(slots)
            columns.append(table[:, first : first + len(slots)].view("<i8" if code == "q" else "<f8"))
        return slots, columns

    def _unpack_leads(self, words: WordArray, begins: IntArray) -> tuple[IntArray, IntArray, BoolArray]:
        """Return owner, lead and source of every row."""
        first, second = words[begins], words[begins + 1]
        if not self._is_tiled:
            return np.arange(len(begins)), first.view(np.int64), second.astype(bool)
        present = np.unpackbits(first.view(np.uint8), bitorder="little").reshape(-1, 64)
        owners, slots = np.nonzero(present)
        batch = np.unpackbits(second.view(np.uint8), bitorder="little").reshape(-1, 64)
        return owners, slots, batch[owners, slots].astype(bool)

    def _unpack_nulls(
        self, words: WordArray, begins: IntArray, owners: IntArray, positions: IntArray
    ) -> tuple[list[BoolArray | None], IntArray]:
        """Return the NULLs of every column, and how many words of null rows each value has."""
        nulls: list[BoolArray | None] = [None] * len(self.fields)
        taken = np.zeros(len(begins), np.int64)
        masks = [words[begins + word] for word in self.null_mask_words]
        if not any(mask.any() for mask in masks):
            return nulls, taken
        for column in range(len(self.fields)):
            has_null = (masks[column // 64] >> np.uint64(column % 64) & _ONE).astype(bool)
            if has_null.any():
                bits = np.where(has_null, words[begins + self.lead_words + taken * has_null], np.uint64(0))
                nulls[column] = (bits[owners] >> positions.astype(np.uint64) & _ONE).astype(bool)
                taken += has_null
        return nulls, taken

    def _unpack_heaps(
        self, raw: bytes, heap_at: list[int], owners: list[int], columns: list[np.ndarray[Any, Any]]
    ) -> None:
        """Replace the lengths of variable columns by their cells."""
        for column in self._variable:
            lengths = columns[column].tolist()
            cells = np.empty(len(lengths), object)
            for row, (owner, length) in enumerate(zip(owners, lengths, strict=True)):
                cells[row] = raw[heap_at[owner] : heap_at[owner] + length]
                heap_at[owner] += length
            columns[column] = cells

    # ---- one value -------------------------------------------------------------------------------------------------

    def _struct_of_rows(self, rows: int) -> struct.Struct:
        """Return the struct of the columns section of a value of `rows` rows."""
        return struct.Struct("<" + "".join(f"{rows}{code}" for code in self._codes))

    def columns(self, value: bytes) -> list[Sequence[Any]]:
        """Return each column's cells as raw Python values (see `cell_codec`); NULL is None."""
        found = self.packed_columns(value, self._variable)
        for column, decode in self._decoders.items():
            found[column] = [None if cell is None else decode(cell) for cell in found[column]]
        return found

    def packed_columns(self, value: bytes, wanted: Collection[int]) -> list[Sequence[Any]]:
        """Return `columns` with those of variable width as bytes, or as lengths where they are not wanted."""
        rows = presence(value).bit_count() if self._is_tiled else 1
        mask = int.from_bytes(value[2 * WORD_BYTES : self.lead_bytes], "little")
        at = self.lead_bytes + mask.bit_count() * WORD_BYTES
        layout = self.struct_of_rows(rows)
        flat = layout.unpack_from(value, at)
        found: list[Sequence[Any]] = [flat[first : first + rows] for first in range(0, len(flat), rows)]
        at += layout.size
        for column in self._variable:
            if column in wanted:
                ends = list(accumulate(found[column], initial=at))
                found[column] = [value[a:b] for a, b in pairwise(ends)]
                at = ends[-1]
            else:
                at += sum(found[column])
        if mask:
            self._hide_nulls(value, mask, found)
        return found

    def _hide_nulls(self, value: bytes, mask: int, columns: list[Sequence[Any]]) -> None:
        at = self.lead_bytes
        for column, cells in enumerate(columns):
            if mask >> column & 1:
                bits = int.from_bytes(value[at : at + WORD_BYTES], "little")
                columns[column] = [None if bits >> row & 1 else cell for row, cell in enumerate(cells)]
                at += WORD_BYTES

    def rows(self, value: bytes) -> list[tuple[Any, ...]]:
        """Return `(slot, *cells)` of each tile, or `(timestamp in microseconds, *cells)` of the row, for users."""
        columns = self.columns(value)
        for at, convert in self._converts:
            columns[at] = [None if cell is None else convert(cell) for cell in columns[at]]
        if not self._is_tiled:
            return list(zip([lead_time(value)[0]], *columns, strict=True))
        present = presence(value)
        return list(zip([slot for slot in range(64) if present >> slot & 1], *columns, strict=True))


def is_fixed(dtype: DataType) -> bool:
    """Tell whether all cells of a type have one width."""
    return dtype in _CODES


def presence(value: bytes) -> int:
    """Return the bits of the slots of which a packed chunk has tiles."""
    return int.from_bytes(value[:WORD_BYTES], "little")


def lead_time(value: bytes, at: int = 0) -> tuple[int, int]:
    """Return (timestamp in microseconds, source bit) of the packed row that begins at `at`, for `wins`."""
    timestamp, source = _LEAD.unpack_from(value, at)
    return timestamp, source


def stored_words(cells: np.ndarray[Any, Any]) -> WordArray:
    """Return cells as stored words: their own bits, or the lengths of those of variable width."""
    fixed = np.fromiter(map(len, cells), np.int64, len(cells)) if cells.dtype == object else cells
    return fixed.view(np.uint64)


def _bit(flags: BoolArray, positions: IntArray) -> WordArray:
    """Return a word per row with the row's bit set where its flag is."""
    bits: WordArray = flags.astype(np.uint64) << positions.astype(np.uint64)
    return bits
