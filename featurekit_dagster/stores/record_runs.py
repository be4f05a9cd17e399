"""Online records in store order: an Arrow table becomes stored keys and blocks of rows, some rows at a time.

Everything here works on whole columns and writes nothing. `key_codec.py` and `packing.py` say how bytes look,
`record_writer.py` writes what comes out.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurekit_dagster.errors import OnlineRecordsMismatch, OnlineTileOverflow
from featurekit_dagster.stores.key_codec import KeyCodec, chunk_suffixes
from featurekit_dagster.stores.online import TILES_PER_CHUNK, OnlineLayout
from featurekit_dagster.stores.packing import Block, IntArray, ValueCodec
from featurekit_dagster.stores.stream_state import Combine

# Small enough to stay in the processor's cache from packing to writing.
_ROWS_PER_SLAB = 1 << 15
# Below this a sort of Python's beats a dozen calls of Arrow and NumPy.
_FEW_ROWS = 400
_TIME = pa.timestamp("us", "UTC")
# A contiguous Arrow string column must stay below 2 GiB; larger ones take 64-bit offsets, at the price of a copy.
_SMALL_BYTES = 1 << 31


@dataclass(frozen=True, slots=True)
class RecordSlab:
    """Consecutive stored records of whole keys.

    Args:
        keys: Stored key of each record, with chunk number; ascending.
        block: Rows of the records; value `i` belongs to key `i`.
        key_starts: First record of each join key, ascending from 0.
        base_keys: Stored key of each join key, without chunk number.
        begin: Place of its first row among those of the write.
    """

    keys: list[bytes]
    block: Block
    key_starts: list[int]
    base_keys: list[bytes]
    begin: int


class RecordRuns:
    """The records of one write, sorted by stored key and time.

    Args:
        layout: Layout of the stored generation.
        records: Key columns, time column and value columns, in any order of columns and rows.
        keys: Codec of the layout's keys.
        values: Codec of the layout's values.
        from_stream: Whether a stream writes; of tiles, all rows of one key and start are kept then.
        combine: Makes one tile of all rows whose times lie in it.

    Raises:
        OnlineRecordsMismatch: A column is missing or of another type, or a time is NULL or off the tile grid.
        KeyTooLong: A wildcard view got a key of more than 400 encoded bytes.
    """

    def __init__(
        self,
        layout: OnlineLayout,
        records: pa.Table,
        keys: KeyCodec,
        values: ValueCodec,
        *,
        from_stream: bool = False,
        combine: Combine | None = None,
    ) -> None:
        self._layout, self._key_codec, self._value_codec = layout, keys, values
        self._from_batch, self._combine = not from_stream, combine
        self._keys, times, self._columns = _conform(
            layout, records, values.types_beside(layout.key_fields), on_grid=combine is None
        )
        self._tile_us = layout.tile_us
        # rows that are combined are sorted by their own times first
        self._times = times if self._tile_us is None or combine is not None else times // self._tile_us
        self.given_rows = len(times)
        self.order = np.arange(len(times))
        if len(times) <= _FEW_ROWS:
            self._sort_few()
        else:
            self._starts = np.flatnonzero(_key_changes(self._keys, len(times)))
            if not self._encode_runs():
                self._sort()
        if combine is not None and self._tile_us is not None:
            self._times = self._times // self._tile_us
        elif not from_stream or self._tile_us is None:
            self._drop_superseded()

    @property
    def rows(self) -> int:
        """Rows that are left: one per key and tile, or one per key."""
        if self._combine is None:
            return len(self._times)
        changes = np.diff(self._times, prepend=-1) != 0
        changes[self._starts] = True
        return int(np.count_nonzero(changes))

    @property
    def full_keys(self) -> dict[bytes, bytes]:
        """Whole encoded key of every stored key that is hashed."""
        return self._full_keys

    def _sort_few(self) -> None:
        """Do what `_encode_runs` and `_sort` do, without what they pay whatever the number of rows."""
        encoded, self._full_keys = self._key_codec.encode_columns(self._keys)
        marked = list(zip(encoded, self._times.tolist(), strict=True))
        order = sorted(range(len(marked)), key=marked.__getitem__)
        ascending = [encoded[row] for row in order]
        starts = [at for at, key in enumerate(ascending) if not at or key != ascending[at - 1]]
        self._starts, self._base_keys = np.array(starts, np.int64), [ascending[at] for at in starts]
        rows = np.array(order, np.int64)
        if (rows != self.order).any():
            self.order, self._times, taken = rows, self._times[rows], pa.array(rows)
            self._columns = [column.take(taken) for column in self._columns]

    def _encode_runs(self) -> bool:
        """Encode one key per run of equal keys; tell whether runs and the times in each are in store order already."""
        starts = self._starts
        if len(starts) > 1 and len(starts) * 2 > self.given_rows and not self._looks_sorted():
            return False
        picked = [column.take(pa.array(starts)) for column in self._keys]
        self._base_keys, self._full_keys = self._key_codec.encode_columns(picked)
        if not _ascends(self._base_keys):
            return False
        backward = self._times[1:] < self._times[:-1]
        backward[starts[1:] - 1] = False
        return not bool(backward.any())

    def _looks_sorted(self) -> bool:
        """Tell from a sample whether encoding every run is likely to pay; a wrong answer costs time only."""
        sample = self._starts[:: -(-len(self._starts) // 1000)]
        encoded, _ = self._key_codec.encode_columns([column.take(pa.array(sample)) for column in self._keys])
        return _ascends(encoded)

    def _sort(self) -> None:
        """Bring the rows into the order of stored key and time; equal ones keep their input order."""
        codes, first_rows = dense_codes(self._keys)
        encoded, self._full_keys = self._key_codec.encode_columns([c.take(pa.array(first_rows)) for c in self._keys])
        order = sorted(range(len(encoded)), key=encoded.__getitem__)
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        ranks = rank[codes]
        rows = _stable_order(ranks, self._times)
        ranks, self.order = ranks[rows], rows
        self._times = self._times[rows]
        self._starts = np.flatnonzero(np.diff(ranks, prepend=-1))
        self._base_keys = [encoded[at] for at in order]
        taken = pa.array(rows)
        self._columns = [column.take(taken) for column in self._columns]

    def _drop_superseded(self) -> None:
        """Keep the last row of each key and tile, or of each key."""
        rows = len(self._times)
        if not rows:
            return
        keep = np.empty(rows, bool)
        keep[-1] = True
        keep[:-1] = False if self._tile_us is None else self._times[1:] != self._times[:-1]
        keep[self._starts[1:] - 1] = True
        if keep.all():
            return
        before = np.cumsum(keep) - keep
        self._starts = before[self._starts]
        self._times, self.order = self._times[keep], self.order[keep]
        mask = pa.array(keep)
        self._columns = [column.filter(mask) for column in self._columns]

    def slabs(self) -> Iterator[RecordSlab]:
        """Yield the packed records in store order, whole keys each."""
        bounds = np.append(self._starts, len(self._times))
        first = 0
        while first < len(self._starts):
            last = max(first + 1, int(np.searchsorted(bounds, bounds[first] + _ROWS_PER_SLAB, "right")) - 1)
            yield self._pack(first, last)
            first = last

    def _pack(self, first: int, last: int) -> RecordSlab:
        """Pack the keys `first` to `last - 1`."""
        begin = int(self._starts[first])
        end = int(self._starts[last]) if last < len(self._starts) else len(self._times)
        times = self._times[begin:end]
        key_starts = self._starts[first:last] - begin
        base_keys = self._base_keys[first:last]
        if self._tile_us is None:
            block = self._block(begin, end, np.arange(len(times)), times)
            return RecordSlab(base_keys, block, list(range(len(base_keys))), base_keys, begin)
        chunks = times // TILES_PER_CHUNK
        changes = np.empty(len(chunks), bool)
        np.not_equal(chunks[1:], chunks[:-1], out=changes[1:])
        changes[key_starts] = True
        starts = np.flatnonzero(changes)
        block = self._block(begin, end, np.cumsum(changes) - 1, times - chunks * TILES_PER_CHUNK)
        owners = np.searchsorted(key_starts, starts, "right") - 1
        suffixes = chunk_suffixes(chunks[starts])
        keys = [base_keys[owner] + suffix for owner, suffix in zip(owners.tolist(), suffixes, strict=True)]
        return RecordSlab(keys, block, np.searchsorted(starts, key_starts).tolist(), base_keys, begin)

    def _block(self, begin: int, end: int, owners: IntArray, leads: IntArray) -> Block:
        """Return the value columns of rows `begin` to `end - 1` as a block."""
        cells = [self._value_codec.column_cells(at, c.slice(begin, end - begin)) for at, c in enumerate(self._columns)]
        from_batch = np.full(end - begin, self._from_batch)
        block = Block(owners, leads, from_batch, [column for column, _ in cells], [null for _, null in cells])
        return block if self._combine is None else self._combined(block, self._combine)

    def _combined(self, block: Block, combine: Combine) -> Block:
        """Return one row for all of one value and slot."""
        changes = np.diff(block.owners * TILES_PER_CHUNK + block.leads, prepend=-1) != 0
        columns, nulls, wrong = combine(block.columns, block.nulls, np.cumsum(changes) - 1)
        if wrong is not None:
            raise OnlineTileOverflow(view=self._layout.view, count=len(wrong))
        starts = np.flatnonzero(changes)
        return Block(block.owners[starts], block.leads[starts], block.from_batch[starts], columns, nulls)


def _ascends(keys: list[bytes]) -> bool:
    return not any(map(operator.ge, keys, islice(keys, 1, None)))


def _conform(
    layout: OnlineLayout, records: pa.Table, types: Mapping[str, pa.DataType], *, on_grid: bool
) -> tuple[list[pa.Array], IntArray, list[pa.Array]]:
    """Return key columns, times in microseconds and value columns, contiguous and of the layout's types."""
    faults, columns, given = [], {}, records.column_names
    for name, dtype in {**types, layout.time_column: _TIME}.items():
        if name not in given and name in layout.dropped:
            columns[name] = _nothing(dtype, records.num_rows)
            continue
        if name not in given:
            faults.append(f"column {name} is missing, there are {', '.join(given)}")
            continue
        try:
            columns[name] = _contiguous(records[name], dtype)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            faults.append(f"column {name} is {records[name].type}, which cannot become {dtype} without loss")
    time, times = columns.get(layout.time_column), np.zeros(0, np.int64)
    if time is not None and time.null_count:
        faults.append(f"column {layout.time_column} has {time.null_count} NULLs")
    elif time is not None:
        times = _microseconds(time)
        if on_grid and layout.tile_us is not None and layout.tile_us > 1:
            off_grid = int(np.count_nonzero(times // layout.tile_us * layout.tile_us != times))
            if off_grid:
                faults.append(f"{off_grid} values of {layout.time_column} are not on the grid of {layout.tile_us} us")
    if faults:
        raise OnlineRecordsMismatch(view=layout.view, faults=faults)
    keys = [columns[field.name] for field in layout.key_fields]
    return keys, times, [columns[field.name] for field in layout.value_fields]


def _nothing(dtype: pa.DataType, rows: int) -> pa.Array:
    """Return a column for what is declared no more: NULLs, or empty lists, as lists are never NULL in a tile."""
    is_list = pa.types.is_list(dtype) or pa.types.is_large_list(dtype)
    return pa.array([[]] * rows, dtype) if is_list else pa.nulls(rows, dtype)


def _contiguous(column: pa.ChunkedArray, dtype: pa.DataType) -> pa.Array:
    if pa.types.is_string(column.type) and pa.types.is_large_string(dtype) and column.nbytes < _SMALL_BYTES:
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if column.type != dtype:
        column = column.cast(dtype)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _microseconds(time: pa.Array) -> IntArray:
    us: IntArray = time.view(pa.int64()).to_numpy(zero_copy_only=False)
    return us


def _key_changes(keys: list[pa.Array], rows: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Tell for each row whether its key differs from the one before; NULL equals NULL."""
    changes = np.zeros(rows, bool)
    if rows:
        changes[0] = True
    for column in keys:
        left, right = column.slice(0, max(rows - 1, 0)), column.slice(1)
        changes[1:] |= pc.fill_null(pc.not_equal(left, right), False).to_numpy(zero_copy_only=False)
        if column.null_count:
            is_null = column.is_null().to_numpy(zero_copy_only=False)
            changes[1:] |= is_null[1:] != is_null[:-1]
    return changes


def dense_codes(keys: list[pa.Array]) -> tuple[IntArray, IntArray]:
    """Return a number per row, equal for equal keys and counted from 0, and one row of each number."""
    codes: IntArray | None = None
    for column in keys:
        encoded = column.dictionary_encode(null_encoding="encode")
        own = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        if codes is None:
            codes = own
        else:
            # Both factors are below the row count, so the product fits; dense again at once, so it stays so.
            joined = pa.array(codes * len(encoded.dictionary) + own)
            codes = joined.dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)
    if codes is None:
        raise ValueError("a layout has at least one join key")
    first_rows = np.empty(int(codes.max(initial=-1)) + 1, np.int64)
    first_rows[codes] = np.arange(len(codes))
    return codes, first_rows


def _stable_order(ranks: IntArray, times: IntArray) -> IntArray:
    """Return the row order by rank and time; equal ones in input order."""
    low = int(times.min(initial=0))
    span = int(times.max(initial=0)) - low + 1
    if (int(ranks.max(initial=0)) + 1) * span < 1 << 63:
        return np.argsort(ranks * span + (times - low), kind="stable")
    return np.lexsort((times, ranks))
