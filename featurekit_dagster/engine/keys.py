"""Exact integer codes for join keys and times.

Point-in-time search works on one sorted int64 per row: the code of its join key above the code of its time. Codes are
made without hashing identity away: two rows share a code when, and only when, all their join keys are equal (NULL is
equal to NULL).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurekit_dagster.engine.columns import BoolArray, Int64Array, int64_values, numbers, to_column
from featurekit_dagster.errors import UnsupportedKeyType

ABSENT = -1
_PACKED_BITS = 63
_DIRECT_SLOTS = 1 << 16
_BLOCK = 1 << 16


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
    encoder = KeyEncoder(probes, rows.schema, keys, expected_rows=rows.num_rows)
    return KeyCodes(encoder.codes(rows), encoder.probes, encoder.count)


class KeyEncoder:
    """Codes of the probes' distinct join keys, for rows that come in pieces.

    Args:
        probes: Has the columns `keys`.
        rows: Schema of the rows.
        keys: Names of the key columns; NULL is a key and equals NULL.
        expected_rows: About how many rows will come; more of them allow a larger table of codes.

    Attributes:
        probes: One code per probe, `0 <= code < count`.
        count: How many codes there are.

    Raises:
        UnsupportedKeyType: A key column is a float, nested, or of different kinds in the two tables.
    """

    def __init__(self, probes: pa.Table, rows: pa.Schema, keys: Sequence[str], *, expected_rows: int) -> None:
        slots = max(_DIRECT_SLOTS, 4 * (expected_rows + probes.num_rows))
        self._columns: list[tuple[str, _Column]] = []
        self._pairs: list[tuple[int, _Integers]] = []
        self.probes, self.count = np.zeros(probes.num_rows, np.int64), 1
        for key in keys:
            column = _Column(key, probes.column(key), rows.field(key).type, slots)
            self._columns.append((key, column))
            if len(self._columns) == 1:
                self.probes, self.count = column.probes, column.count
                continue
            # The pair of two codes is an integer again, whose distinct values get dense codes in their turn.
            pair = self.probes * column.count + column.probes
            integers = _Integers(pair, slots)
            self._pairs.append((column.count, integers))
            self.probes, self.count = integers.codes(pair), integers.count

    def codes(self, rows: pa.Table) -> Int64Array:
        """Return one code per row, `ABSENT` where no probe has the row's key."""
        if not self._columns:
            return np.zeros(rows.num_rows, np.int64)
        found, *others = (column.codes(rows.column(key)) for key, column in self._columns)
        for codes, (count, integers) in zip(others, self._pairs, strict=True):
            pair = found * count + codes
            pair[(found == ABSENT) | (codes == ABSENT)] = ABSENT
            found = integers.codes(pair)
        return found


class _Column:
    """Codes of one key column."""

    def __init__(self, name: str, probes: pa.ChunkedArray, row_type: pa.DataType, slots: int) -> None:
        self._type = _common_type(name, row_type, probes.type)
        probes = _cast(probes, self._type)
        self._null = ABSENT
        self._known: _Integers | pa.Array
        if not pa.types.is_int64(self._type):
            # Arrow's hash table compares the values themselves, and finds NULL by NULL.
            self._known = pc.unique(probes)
            self.probes, self.count = _positions(probes, self._known), max(len(self._known), 1)
            return
        values, nulls = int64_values(probes)
        self._known = _Integers(values if nulls is None else values[~nulls], slots)
        self.probes, self.count = self._known.codes(values), self._known.count
        if nulls is not None:
            self._null = self.count
            self.probes[nulls] = self._null
            self.count += 1

    def codes(self, rows: pa.ChunkedArray) -> Int64Array:
        """Return the code of each value."""
        rows = _cast(rows, self._type)
        if not isinstance(self._known, _Integers):
            return _positions(rows, self._known)
        values, nulls = int64_values(rows)
        found = self._known.codes(values)
        if nulls is not None:
            found[nulls] = self._null
        return found


class _Integers:
    """Codes of int64 values, in ascending order of value where these lie close together."""

    def __init__(self, values: Int64Array, slots: int) -> None:
        self._known: pa.Array | None = None
        low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
        if high - low + 1 > slots:
            self._known = pc.unique(to_column(values, None, pa.int64()))
            self.count = len(self._known)
            return
        # Slot 0 and the last one stay empty: every value outside ends there, also where the difference wraps around.
        self._before = np.array(low, np.int64) - np.ones(1, np.int64)
        places = values - self._before
        there = np.zeros(high - low + 3, np.bool_)
        there[places] = True
        found = np.flatnonzero(there)
        self._table = np.full(len(there), ABSENT, np.int32 if len(found) < 1 << 31 else np.int64)
        self._table[found] = np.arange(len(found))
        self.count = max(len(found), 1)

    def codes(self, values: Int64Array) -> Int64Array:
        """Return the code of each value, `ABSENT` of one that was not given at the start."""
        if self._known is not None:
            return _positions(to_column(values, None, pa.int64()), self._known)
        found = np.empty(len(values), np.int64)
        for start in range(0, len(values), _BLOCK):
            part = slice(start, start + _BLOCK)
            found[part] = self._table.take(values[part] - self._before, mode="clip")
        return found


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


def _positions(column: pa.ChunkedArray, known: pa.Array) -> Int64Array:
    if not len(known):
        return np.full(len(column), ABSENT, np.int64)
    # Positions are int32, and so is what fills the gaps; other types would be cast back and forth.
    found = pc.fill_null(pc.index_in(column, value_set=known), pa.scalar(ABSENT, pa.int32()))
    return numbers(found).astype(np.int64)


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

    def pack_edges(self, codes: Int64Array, edges: Int64Array, *, inclusive: bool = False) -> Int64Array:
        """Return one int64 per edge that is above exactly the packed rows of its key that are earlier than the edge.

        Rows of lower keys are below it too; edges outside the rows' span are clamped to their own key.

        Args:
            codes: Key code of each edge.
            edges: Times in the unit of the rows.
            inclusive: Whether rows at the edge itself are below it as well.
        """
        if self.ranks is not None:
            times = np.searchsorted(self.ranks, edges, side="right" if inclusive else "left")
        else:
            last = self.base + self.top - 1
            times = np.clip(edges, self.base, last) - self.base + (edges >= self.base if inclusive else edges > last)
        return (codes << self.bits) + times


def sort_packed(
    packed: Int64Array, rows: Int64Array | None, within: Int64Array | None = None
) -> tuple[Int64Array, Int64Array | None]:
    """Return packed codes in ascending order and the row number of each; equal ones by `within`, then by row number.

    Args:
        packed: Codes, none negative.
        rows: Row number of each code, ascending; None when code `i` is of row `i`, in the answer as well.
        within: What orders equal codes, if anything does.
    """
    if not len(packed) or (within is None and bool((packed[1:] >= packed[:-1]).all())):
        return packed, rows
    row_numbers = np.arange(len(packed)) if rows is None else rows
    bits = int(row_numbers[-1]).bit_length()
    if within is None and int(packed.max()).bit_length() + bits <= _PACKED_BITS:
        # Sorting one array of numbers is several times faster than finding the order that sorts it.
        joint = (packed << bits) + row_numbers
        joint.sort()
        return joint >> bits, joint & ((1 << bits) - 1)
    order = np.argsort(packed)
    ordered = packed[order]
    same = ordered[1:] == ordered[:-1]
    if same.any():
        # NumPy's quicksort beats its stable sort by far, so only runs of equal values are put right after it.
        tied = np.flatnonzero(np.concatenate((same, [False])) | np.concatenate(([False], same)))
        places = order[tied]
        ranks = (places, ordered[tied]) if within is None else (places, within[places], ordered[tied])
        order[tied] = places[np.lexsort(ranks)]
    return ordered, order if rows is None else rows[order]


def first_of_each(ordered: Int64Array) -> BoolArray:
    """Return which of the sorted values differ from the one before them."""
    fresh = np.ones(len(ordered), np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=fresh[1:])
    return fresh
