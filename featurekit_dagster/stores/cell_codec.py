"""Cells of variable width as bytes: text, lists and other nested values of an online record. Used by `packing.py`.

```
String, Bytes     their bytes
Array             a struct code and the elements as narrow as the column allows, for numbers, truth values and times;
                  0 and msgpack where an element is NULL, or is text or nested
Map, Struct       msgpack
NULL              empty; the record says apart from it that the cell is NULL
```

A raw cell has times as microseconds and truth values as 0 and 1, in lists too, so that lists are cheap to read where
only a few elements are wanted; `user_value` makes of it what users see. Inside maps and structs all is as users see it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import msgpack
import numpy as np
import pyarrow as pa

from featurekit_dagster.domain.schema import (
    Bool,
    Bytes,
    DataType,
    Float32,
    Float64,
    Int32,
    Int64,
    String,
    Timestamp,
)
from featurekit_dagster.intervals import from_us

Decode = Callable[[bytes], Any]
Convert = Callable[[Any], Any]

_PLAIN: dict[DataType, pa.DataType] = {
    Int32: pa.int32(),
    Int64: pa.int64(),
    Bool: pa.int8(),
    Timestamp: pa.int64(),
    Float32: pa.float32(),
    Float64: pa.float64(),
}
_NARROW = tuple((code, np.iinfo(f"<i{size}"), size) for code, size in (("b", 1), ("h", 2), ("i", 4), ("q", 8)))
_SIZES = {ord(code): struct.calcsize(code) for code in "bhiqfd"}
_PACKED = b"\x00"


def encode_cells(dtype: DataType, cells: pa.Array) -> np.ndarray[Any, Any]:
    """Return a column of variable width as bytes objects; NULL is empty."""
    found = np.empty(len(cells), object)
    if dtype.name == "Array":
        found[:] = _list_cells(dtype, cells)
    elif dtype.is_nested:
        values = cells.to_pylist(maps_as_pydicts="strict")
        found[:] = [b"" if value is None else msgpack.packb(value, datetime=True) for value in values]
    else:
        found[:] = [cell or b"" for cell in cells.cast(pa.large_binary()).to_pylist()]
    return found


def encode_raw(dtype: DataType, lists: Sequence[Sequence[Any]]) -> np.ndarray[Any, Any]:
    """Return lists of raw values, as `decoder` makes them, as bytes objects again."""
    return encode_cells(dtype, pa.array(lists, _raw_type(dtype)))


def _raw_type(dtype: DataType) -> pa.DataType:
    if dtype.name == "Array":
        return pa.list_(_raw_type(dtype.children[0]))
    return pa.large_string() if dtype == String else pa.large_binary() if dtype == Bytes else _PLAIN[dtype]


def decoder(dtype: DataType) -> Decode:
    """Return what makes a raw cell of its bytes; those of a NULL cell become anything."""
    if dtype == String:
        return bytes.decode
    if dtype == Bytes:
        return _as_it_is
    return _decode_list if dtype.name == "Array" else _decode_packed


def user_value(dtype: DataType) -> Convert | None:
    """Return what makes of a raw value, not NULL, what users see; None where it is that already."""
    if dtype == Timestamp:
        return from_us
    if dtype == Bool:
        return bool
    if dtype.name != "Array":
        return None
    convert = user_value(dtype.children[0])
    if convert is None:
        return list
    return lambda values: [None if value is None else convert(value) for value in values]


def _list_cells(dtype: DataType, cells: pa.Array) -> list[bytes]:
    """Return lists as bytes."""
    element = dtype.children[0]
    starts, values = _flat(cells)
    if element not in _PLAIN:
        return _msgpack_lists(element, cells, starts, values)
    values = values.cast(_PLAIN[element]) if values.type != _PLAIN[element] else values
    code, numbers = _narrowed(values)
    size, head, raw = struct.calcsize(code), code.encode(), numbers.tobytes()
    ends = (starts * size).tolist()
    found = [head + raw[a:b] for a, b in pairwise(ends)]
    if values.null_count:
        odd = np.flatnonzero(_counts(values.is_null(), starts))
        some = cells.take(pa.array(odd))
        for row, cell in zip(odd.tolist(), _msgpack_lists(element, some, *_flat(some)), strict=True):
            found[row] = cell
    return _without_null_rows(found, cells)


def _flat(cells: pa.Array) -> tuple[np.ndarray[Any, Any], pa.Array]:
    """Return where each list begins, and the last one ends, in the values, and the values."""
    if not len(cells):
        return np.zeros(1, np.int32), cells.values.slice(0, 0)
    offsets = cells.offsets.to_numpy()
    first = int(offsets[0])
    return offsets - first, cells.values.slice(first, int(offsets[-1]) - first)


def _counts(flags: pa.Array, starts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return how many elements of each list are flagged."""
    before = np.append(0, np.cumsum(flags.to_numpy(zero_copy_only=False)))
    return np.asarray(np.diff(before[starts]))


def _narrowed(values: pa.Array) -> tuple[str, np.ndarray[Any, Any]]:
    """Return the narrowest struct code that holds all numbers, and the numbers so; NULL is any of them."""
    if values.null_count:
        values = values.fill_null(pa.scalar(0, values.type))
    numbers = values.to_numpy(zero_copy_only=False)
    if numbers.dtype.kind == "f":
        return ("f" if numbers.dtype.itemsize == 4 else "d"), numbers  # noqa: PLR2004 - bytes of a Float32
    low, high = (int(numbers.min()), int(numbers.max())) if len(numbers) else (0, 0)
    code, _, size = next(known for known in _NARROW if known[1].min <= low and high <= known[1].max)
    return code, numbers.astype(f"<i{size}", copy=False)


def _msgpack_lists(element: DataType, cells: pa.Array, starts: np.ndarray[Any, Any], values: pa.Array) -> list[bytes]:
    flat, bounds, pack = _raw_values(element, values), starts.tolist(), msgpack.Packer(datetime=True).pack
    found = [_PACKED + pack(flat[a:b]) for a, b in pairwise(bounds)]
    return _without_null_rows(found, cells)


def _without_null_rows(found: list[bytes], cells: pa.Array) -> list[bytes]:
    """Make the cells of NULL rows empty."""
    if cells.null_count:
        for row in np.flatnonzero(cells.is_null().to_numpy(zero_copy_only=False)).tolist():
            found[row] = b""
    return found


def _raw_values(dtype: DataType, values: pa.Array) -> list[Any]:
    """Return an Arrow column as raw Python values, without a scalar object for each, which is what makes Arrow slow."""
    if dtype.name == "Array":
        starts, elements = _flat(values)
        flat, bounds = _raw_values(dtype.children[0], elements), starts.tolist()
        lists: list[Any] = [flat[a:b] for a, b in pairwise(bounds)]
        if values.null_count:
            for row in np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False)).tolist():
                lists[row] = None
        return lists
    if dtype.is_nested:
        return list(values.to_pylist(maps_as_pydicts="strict"))
    if dtype in _PLAIN:
        values = values.cast(_PLAIN[dtype])
        return list(values.to_pylist() if values.null_count else values.to_numpy(zero_copy_only=False).tolist())
    return list(values.to_numpy(zero_copy_only=False).tolist())


@lru_cache(maxsize=4096)
def _unpacker(code: int, size: int) -> Callable[[bytes, int], tuple[Any, ...]]:
    """Return what reads a list's elements, from its bytes and where they begin."""
    return struct.Struct(f"<{size // _SIZES[code]}{chr(code)}").unpack_from


def flat_numbers(cells: Sequence[bytes]) -> np.ndarray[Any, Any]:
    """Return the elements of some lists of numbers, none of them NULL, one after another."""
    codes = {cell[:1] for cell in cells}
    if len(codes) > 1:
        return np.concatenate([np.frombuffer(cell, f"<{chr(cell[0])}", offset=1) for cell in cells])
    raw = b"".join([cell[1:] for cell in cells])
    return np.frombuffer(raw, f"<{codes.pop().decode()}") if codes else np.zeros(0)


def _decode_list(raw: bytes) -> Sequence[Any] | None:
    if not raw:
        return None
    code = raw[0]
    if code:
        return _unpacker(code, len(raw) - 1)(raw, 1)
    values: list[Any] = msgpack.unpackb(raw[1:], timestamp=3, strict_map_key=False)
    return values


def _decode_packed(raw: bytes) -> Any:  # noqa: ANN401 - a value of any type
    return msgpack.unpackb(raw, timestamp=3, strict_map_key=False) if raw else None


def _as_it_is(raw: bytes) -> bytes:
    return raw
