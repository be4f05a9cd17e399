"""Answers of windows, before they are handed out to probes as Arrow columns. Used by `rollup`.

An answer may be asked for by many probes; nothing is copied before it is known by how many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from featurekit_dagster.engine.columns import BoolArray, Int64Array, Values, numpy_type, to_column

# So many elements in one list array at most; its offsets have 32 bits.
_CHUNK = 1 << 27


@dataclass(frozen=True, slots=True)
class Numbers:
    """One number per window; `valid` says where there is one, None means everywhere."""

    values: Values
    valid: BoolArray | None

    def take(self, cells: Int64Array | None, known: BoolArray | None, dtype: pa.DataType) -> pa.Array:
        """Return the chosen windows' answers (None: all of them), NULL where `known` is not set."""
        values = self.values.astype(numpy_type(dtype), copy=False)
        valid = self.valid
        if cells is not None:
            values = values[cells]
            valid = None if valid is None else valid[cells]
        return to_column(values, _both(valid, known), dtype).chunk(0)


@dataclass(frozen=True, slots=True)
class Places:
    """One value of any type per window: the row of `values` where it stands, -1 for NULL."""

    values: pa.Array
    rows: Int64Array

    def take(self, cells: Int64Array | None, known: BoolArray | None, dtype: pa.DataType) -> pa.Array:
        """Return the chosen windows' answers (None: all of them), NULL where `known` is not set."""
        rows = self.rows if cells is None else self.rows[cells]
        there = rows >= 0
        if known is not None:
            there &= known
        return self.values.take(as_indices(rows, there)).cast(dtype)


@dataclass(frozen=True, slots=True)
class Slices:
    """One list per window: `lengths` values from `starts` on, in `values` or, if given, in what `rows` choose of it."""

    values: pa.Array
    starts: Int64Array
    lengths: Int64Array
    rows: Int64Array | None = None

    def take(self, cells: Int64Array | None, known: BoolArray | None, dtype: pa.DataType) -> pa.Array:
        """Return the chosen windows' lists (None: all of them), NULL where `known` is not set."""
        starts = self.starts if cells is None else self.starts[cells]
        lengths = self.lengths if cells is None else self.lengths[cells]
        if known is not None:
            lengths = np.where(known, lengths, 0)
        positions = expand(starts, lengths)
        if self.rows is not None:
            positions = self.rows[positions]
        values = self.values.take(as_indices(positions)).cast(dtype.value_type)
        return list_array(lengths, values, known, dtype)


Answers = Numbers | Places | Slices


def stack(answers: Sequence[Answers]) -> Answers:
    """Return the answers of several spans as one, window after window and span after span within each."""
    first = answers[0]
    if isinstance(first, Numbers):
        valid = [one.valid for one in answers if isinstance(one, Numbers)]
        flags = [np.ones(len(first.values), np.bool_) if one is None else one for one in valid]
        numbers = _interleave([one.values for one in answers if isinstance(one, Numbers)])
        return Numbers(numbers, None if all(one is None for one in valid) else _interleave(flags))
    if isinstance(first, Places):
        return Places(first.values, _interleave([one.rows for one in answers if isinstance(one, Places)]))
    slices = [one for one in answers if isinstance(one, Slices)]
    lengths = _interleave([one.lengths for one in slices])
    rows = [one.rows for one in slices if one.rows is not None]
    if not rows:
        return Slices(first.values, _interleave([one.starts for one in slices]), lengths)
    before = np.cumsum([0, *(len(one) for one in rows[:-1])])
    starts = _interleave([one.starts + skipped for one, skipped in zip(slices, before, strict=True)])
    return Slices(first.values, starts, lengths, np.concatenate(rows))


def spread(
    answers: Answers, target: Int64Array, known: BoolArray | None, dtype: pa.DataType, *, width: int | None = None
) -> pa.ChunkedArray:
    """Return for each probe the answer it asks for.

    Args:
        answers: One per window; of a series, `width` per window.
        target: Window of each probe.
        known: Which probes get an answer, the others NULL; None for all.
        dtype: Type of the column.
        width: How many answers make the list of a series; None when the answer itself is wanted.
    """
    chunks = []
    for part in _parts(answers, target, width or 1):
        mine = target[part]
        there = None if known is None else known[part]
        if width is None:
            chunks.append(answers.take(mine, there, dtype))
        else:
            cells = (mine[:, None] * width + np.arange(width)).ravel()
            values = answers.take(cells, None, dtype.value_type)
            chunks.append(list_array(np.full(len(mine), width), values, there, dtype))
    return pa.chunked_array(chunks, dtype)


def list_array(lengths: Int64Array, values: pa.Array, known: BoolArray | None, dtype: pa.DataType) -> pa.ListArray:
    """Return lists of these lengths over consecutive values, NULL where `known` is not set.

    Raises:
        OverflowError: There are more than 2**31 - 1 values.
    """
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    if offsets[-1] >= 1 << 31:
        raise OverflowError(f"lists of {int(offsets[-1]):,} values do not fit one array; cut the rows")
    bitmap = None if known is None else pa.py_buffer(np.packbits(known, bitorder="little"))
    places = pa.py_buffer(offsets.astype(np.int32))
    return pa.Array.from_buffers(dtype, len(lengths), [bitmap, places], children=[values])


def as_indices(positions: Int64Array, there: BoolArray | None = None) -> pa.Array:
    """Return positions for Arrow's `take`, NULL where `there` is not set; `pa.array` would import pandas."""
    return to_column(positions, there, pa.int64()).chunk(0)


def expand(starts: Int64Array, lengths: Int64Array) -> Int64Array:
    """Return all positions of the slices, one slice after the other."""
    heads = np.cumsum(lengths) - lengths
    return np.repeat(starts - heads, lengths) + np.arange(int(lengths.sum()))


def _parts(answers: Answers, target: Int64Array, width: int) -> Iterator[slice]:
    """Yield stretches of the probes whose lists fit one array."""
    sizes: Int64Array | None = None
    if isinstance(answers, Slices):
        sizes = np.cumsum(answers.lengths.reshape(-1, width).sum(axis=1)[target] + width)
    start = 0
    while start < len(target):
        if sizes is None:
            stop = start + max(_CHUNK // width, 1)
        else:
            before = int(sizes[start - 1]) if start else 0
            stop = max(int(np.searchsorted(sizes, before + _CHUNK, side="right")), start + 1)
        yield slice(start, stop)
        start = stop


def _interleave(columns: Sequence[Values]) -> Values:
    return np.stack(columns, axis=1).ravel()


def _both(left: BoolArray | None, right: BoolArray | None) -> BoolArray | None:
    if left is None or right is None:
        return right if left is None else left
    return left & right
