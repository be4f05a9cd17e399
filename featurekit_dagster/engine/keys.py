"""Exact integer codes for join keys and times.

Point-in-time search works on one sorted int64 per row: the code of its join key above the code of its time. Codes are
made without hashing identity away: two rows share a code when, and only when, all their join keys are equal (NULL is
equal to NULL).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurekit_dagster.errors import UnsupportedKeyType

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

ABSENT = -1
_PACKED_BITS = 63
_DIRECT_SLOTS = 1 << 16


@dataclass(frozen=True, slots=True)
class KeyCodes:
    """Codes of the join keys of two tables.

    Args:
        rows: One code per row; `ABSENT` where no probe has the row's key.
        probes: One code per probe, `0 <= code < count`.
        count: How many codes there are.
    """

    rows: Int64Array
    probes: Int64Array
    count: int


def encode_keys(rows: pa.Table, probes: pa.Table, keys: Sequence[str]) -> KeyCodes:
    """Return dense codes of the join keys that the probes name, for both tables.

    Two rows get one code when all their key columns are equal, NULL being equal to NULL. Integer widths, string widths
    and timestamp units may differ between the tables. Without keys every row has the same code.

    Args:
        rows: Has the columns `keys`; any number of rows in any order.
        probes: Has the columns `keys`.
        keys: Names of the key columns.

    Raises:
        UnsupportedKeyType: A key column is a float, nested, or of different kinds in the two tables.
    """
    codes: KeyCodes | None = None
    for key in keys:
        column = _encode_column(key, rows.column(key), probes.column(key))
        codes = column if codes is None else _combine(codes, column)
    return codes or KeyCodes(np.zeros(rows.num_rows, np.int64), np.zeros(probes.num_rows, np.int64), 1)


def _combine(left: KeyCodes, right: KeyCodes) -> KeyCodes:
    """Return one code for the pair of two codes, dense again."""
    rows = left.rows * right.count + right.rows
    rows[(left.rows == ABSENT) | (right.rows == ABSENT)] = ABSENT
    return _dense(rows, left.probes * right.count + right.probes)


def _encode_column(name: str, rows: pa.ChunkedArray, probes: pa.ChunkedArray) -> KeyCodes:
    """Return the codes of one key column."""
    common = _common_type(name, rows.type, probes.type)
    rows, probes = _cast(rows, common), _cast(probes, common)
    if not pa.types.is_int64(common):
        return _look_up(rows, probes)
    codes = _dense(_as_int64(rows), _as_int64(probes))
    if not rows.null_count and not probes.null_count:
        return codes
    row_codes, probe_codes, count = codes.rows, codes.probes, codes.count
    probe_nulls = _null_mask(probes)
    row_codes[_null_mask(rows)] = count if probe_nulls.any() else ABSENT
    probe_codes[probe_nulls] = count
    return KeyCodes(row_codes, probe_codes, count + 1)


def _common_type(name: str, rows: pa.DataType, probes: pa.DataType) -> pa.DataType:
    """Return the type in which both sides are compared."""
    left, right = _comparable(rows), _comparable(probes)
    if left is not None and right is not None:
        if left == right and rows == probes and pa.types.is_string(rows):
            return rows
        if left == right or pa.types.is_null(right):
            return left
        if pa.types.is_null(left):
            return right
    raise UnsupportedKeyType(column=name, given=str(rows) if rows == probes else f"{rows} and {probes}")


_COMPARABLE: tuple[tuple[Callable[[pa.DataType], bool], pa.DataType], ...] = (
    (pa.types.is_integer, pa.int64()),
    (pa.types.is_string, pa.large_string()),
    (pa.types.is_large_string, pa.large_string()),
    (pa.types.is_string_view, pa.large_string()),
    (pa.types.is_binary, pa.large_binary()),
    (pa.types.is_large_binary, pa.large_binary()),
    (pa.types.is_binary_view, pa.large_binary()),
    (pa.types.is_fixed_size_binary, pa.large_binary()),
    (pa.types.is_timestamp, pa.timestamp("us", "UTC")),
    (pa.types.is_boolean, pa.bool_()),
    (pa.types.is_null, pa.null()),
)


def _comparable(dtype: pa.DataType) -> pa.DataType | None:
    """Return the widest type of the same kind, or None where a value is no identity (floats, nested values)."""
    plain = dtype.value_type if pa.types.is_dictionary(dtype) else dtype
    return next((wide for fits, wide in _COMPARABLE if fits(plain)), None)


def _cast(column: pa.ChunkedArray, dtype: pa.DataType) -> pa.ChunkedArray:
    """Return the column in `dtype`; timestamps without a zone are UTC."""
    return column if column.type == dtype else column.cast(dtype)


def _as_int64(column: pa.ChunkedArray) -> Int64Array:
    """Return the values as int64, NULL as an arbitrary one that occurs or 0."""
    if column.null_count:
        column = column.fill_null(0)
    return np.asarray(column.to_numpy(), np.int64)


def _null_mask(column: pa.ChunkedArray) -> BoolArray:
    return np.asarray(column.is_null().to_numpy(), np.bool_)


def _look_up(rows: pa.ChunkedArray, probes: pa.ChunkedArray) -> KeyCodes:
    """Return codes by Arrow's hash table, which compares the values themselves and finds NULL by NULL."""
    known = pc.unique(probes)
    return KeyCodes(_positions(rows, known), _positions(probes, known), max(len(known), 1))


def _positions(column: pa.ChunkedArray, known: pa.Array) -> Int64Array:
    if not len(known):
        return np.full(len(column), ABSENT, np.int64)
    found = pc.index_in(column, value_set=known)
    if found.null_count:
        found = found.fill_null(ABSENT)
    return np.asarray(found.to_numpy(), np.int64)


def _dense(rows: Int64Array, probes: Int64Array) -> KeyCodes:
    """Return dense codes of int64 values, in ascending order of value where the probes' values lie close together."""
    if not len(probes):
        return KeyCodes(np.full(len(rows), ABSENT, np.int64), np.zeros(0, np.int64), 1)
    low, high = int(probes.min()), int(probes.max())
    slots = high - low + 1
    if slots > max(_DIRECT_SLOTS, 4 * (len(rows) + len(probes))):
        return _look_up(pa.chunked_array([rows]), pa.chunked_array([probes]))
    present = np.zeros(slots + 1, np.bool_)
    present[probes - low] = True
    table = np.full(slots + 1, ABSENT, np.int64)
    found = np.flatnonzero(present)
    table[found] = np.arange(len(found))
    # Read as unsigned, values below `low` become huge, so that one minimum sends both sides to the empty last slot.
    slot = np.minimum((rows - low).view(np.uint64), np.uint64(slots)).view(np.int64)
    return KeyCodes(table[slot], table[probes - low], len(found))


@dataclass(frozen=True, slots=True)
class TimePacking:
    """How a key code and a time share one int64 so that sorting it sorts by (key, time).

    Args:
        base: Time that gets code 0.
        top: Largest time code of an edge, one above that of the newest row.
        bits: Width of the time part.
        ranks: Sorted distinct row times, where times are coded by rank because the span is too wide.
    """

    base: int
    top: int
    bits: int
    ranks: Int64Array | None

    @classmethod
    def fit(cls, times: Int64Array, key_count: int) -> TimePacking:
        """Return the packing for these row times and so many keys; widths are checked before anything is packed.

        Args:
            times: Row times in any unit.
            key_count: Number of key codes.

        Raises:
            OverflowError: Keys and distinct times together need more than 63 bits.
        """
        if not len(times):
            return cls(0, 1, 1, None)
        low, high = int(times.min()), int(times.max())
        key_bits = (key_count - 1).bit_length()
        top = high - low + 1
        if key_bits + top.bit_length() <= _PACKED_BITS:
            return cls(low, top, top.bit_length(), None)
        ordered = np.sort(times)
        ranks = ordered[np.concatenate(([True], ordered[1:] != ordered[:-1]))]
        top = len(ranks)
        if key_bits + top.bit_length() > _PACKED_BITS:
            raise OverflowError(f"{key_count:,} keys and {top:,} times need over {_PACKED_BITS} bits; cut the rows")
        return cls(0, top, top.bit_length(), ranks)

    def pack_rows(self, codes: Int64Array, times: Int64Array) -> Int64Array:
        """Return one int64 per row; equal ones have equal key and time."""
        times = times - self.base if self.ranks is None else np.searchsorted(self.ranks, times)
        return (codes << self.bits) + times

    def pack_edges(self, codes: Int64Array, edges: Int64Array) -> Int64Array:
        """Return one int64 per edge that is above exactly the packed rows of its key that are earlier than the edge.

        Rows of lower keys are below it too; edges outside the rows' span are clamped to their own key.
        """
        if self.ranks is None:
            times = np.clip(edges, self.base, self.base + self.top) - self.base
        else:
            times = np.searchsorted(self.ranks, edges)
        return (codes << self.bits) + times


def stable_order(packed: Int64Array, within: Int64Array | None = None) -> Int64Array | None:
    """Return the positions that sort `packed`, equal values by `within`, then in input order; None if sorted already.

    NumPy's quicksort is several times faster than its stable sort, so only runs of equal values are put right after it.
    """
    if not len(packed) or (within is None and bool((packed[1:] >= packed[:-1]).all())):
        return None
    order = np.argsort(packed)
    ordered = packed[order]
    same = ordered[1:] == ordered[:-1]
    if same.any():
        tied = np.flatnonzero(np.concatenate((same, [False])) | np.concatenate(([False], same)))
        rows = order[tied]
        ranks = (rows, ordered[tied]) if within is None else (rows, within[rows], ordered[tied])
        order[tied] = rows[np.lexsort(ranks)]
    return order


def microseconds(column: pa.ChunkedArray) -> tuple[Int64Array, BoolArray | None]:
    """Return a timestamp or int64 column as int64 microseconds, and where it is NULL (None where it never is).

    NULL becomes a time that occurs, or 0.
    """
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us", column.type.tz))
    column = column.cast(pa.int64())
    missing: BoolArray | None = None
    if column.null_count:
        missing = _null_mask(column)
        column = column.fill_null(pc.min(column).as_py() or 0)
    return np.asarray(column.to_numpy(), np.int64), missing
