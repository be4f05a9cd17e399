"""Join keys as bytes whose order is the order of the keys.

Each column's bytes say where they end; so no key is a prefix of another, and all keys that share first columns lie
side by side. NULL is a value and sorts first. Used by `lmdb.py` and `record_runs.py`; values are in `packing.py`.
"""

from __future__ import annotations

import hashlib
import operator
import struct
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from featurekit_dagster.domain.schema import Bool, Bytes, DataType, Field, Int32, Int64, String, Timestamp
from featurekit_dagster.errors import JoinKeyMismatch, KeyTooLong
from featurekit_dagster.intervals import from_us, to_us
from featurekit_dagster.stores.online import Key, OnlineLayout

MAX_KEY_BYTES = 400
"""Longest encoded key that is stored as it is; the store's own limit leaves room for generation and chunk."""

CHUNK_BYTES = 8
SLOT_BIT = 15

_SIGN = 1 << 63
_PACK_U64 = struct.Struct(">Q").pack
_UNPACK_U64 = struct.Struct(">Q").unpack_from
_NULL_INT = bytes(9)
_NULL_BOOL = b"\x00\x00"
_NULL_TEXT = b"\x00"
# A zero byte inside a text is followed by 0xff, the end of the text by 0x01: no text is a prefix of another, and the
# shorter of two sorts first.
_ZERO, _ESCAPED_ZERO, _END = b"\x00", b"\x00\xff", b"\x00\x01"
_HASHED = b"\x02"

_NUL = "\x00"
# Characters whose UTF-8 form fits a key whatever they are.
_SURELY_SHORT = 99

_WIDTHS = {Int32: 9, Int64: 9, Timestamp: 9, Bool: 2}


def chunk_suffix(chunk: int) -> bytes:
    """Return the last 8 bytes of a stored key: the chunk number, negative ones first."""
    return _PACK_U64(chunk + _SIGN)


def chunk_suffixes(chunks: np.ndarray[Any, np.dtype[np.int64]]) -> list[bytes]:
    """Return `chunk_suffix` of every chunk number; rows of one write share a few of them."""
    numbers = chunks.tolist()
    known = {chunk: chunk_suffix(chunk) for chunk in set(numbers)}
    return [known[chunk] for chunk in numbers]


def chunks_of(stored_keys: Iterable[bytes]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return `chunk_of` of every stored key."""
    words = np.frombuffer(b"".join([key[-CHUNK_BYTES:] for key in stored_keys]), ">u8").astype(np.uint64)
    return (words ^ np.uint64(_SIGN)).view(np.int64)


def chunk_of(stored_key: bytes) -> int:
    """Return the chunk number of a stored key of a tiled view."""
    chunk: int = _UNPACK_U64(stored_key, len(stored_key) - CHUNK_BYTES)[0] - _SIGN
    return chunk


def _encode_int(value: Any) -> bytes:
    if value is None:
        return _NULL_INT
    if isinstance(value, bool):
        raise TypeError
    return b"\x01" + _PACK_U64(operator.index(value) + _SIGN)


def _encode_timestamp(value: Any) -> bytes:
    if value is None:
        return _NULL_INT
    if not isinstance(value, datetime):
        raise TypeError
    return b"\x01" + _PACK_U64(to_us(value) + _SIGN)


def _encode_bool(value: Any) -> bytes:
    if value is None:
        return _NULL_BOOL
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError
    return b"\x01\x01" if value else b"\x01\x00"


def _encode_text(value: Any) -> bytes:
    if value is None:
        return _NULL_TEXT
    if not isinstance(value, str):
        raise TypeError
    return b"\x01" + value.encode().replace(_ZERO, _ESCAPED_ZERO) + _END


def _encode_bytes(value: Any) -> bytes:
    if value is None:
        return _NULL_TEXT
    if not isinstance(value, bytes):
        raise TypeError
    return b"\x01" + value.replace(_ZERO, _ESCAPED_ZERO) + _END


_ENCODERS: dict[DataType, Callable[[Any], bytes]] = {
    Int32: _encode_int,
    Int64: _encode_int,
    Timestamp: _encode_timestamp,
    Bool: _encode_bool,
    String: _encode_text,
    Bytes: _encode_bytes,
}


def _decode_value(dtype: DataType, raw: bytes, at: int) -> tuple[Any, int]:
    """Return one column's value and where the next column begins."""
    width = _WIDTHS.get(dtype)
    if width is not None:
        if not raw[at]:
            return None, at + width
        if dtype == Bool:
            return raw[at + 1] == 1, at + width
        number = _UNPACK_U64(raw, at + 1)[0] - _SIGN
        return (from_us(number) if dtype == Timestamp else number), at + width
    if not raw[at]:
        return None, at + 1
    end = at + 1
    while raw[(end := raw.index(_ZERO, end)) + 1] != _END[1]:
        end += 2
    text = raw[at + 1 : end].replace(_ESCAPED_ZERO, _ZERO)
    return (text.decode() if dtype == String else text), end + len(_END)


def _encode_fixed_column(dtype: DataType, column: pa.Array) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return an integer, timestamp or bool column as one row of bytes per value."""
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    rows = np.zeros((len(column), _WIDTHS[dtype]), np.uint8)
    rows[:, 0] = valid
    if dtype == Bool:
        rows[:, 1] = column.fill_null(False).to_numpy(zero_copy_only=False)
        return rows
    number = column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    rows[:, 1:] = _big_endian(number)
    rows[~valid, 1:] = 0
    return rows


def _big_endian(numbers: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return 8 bytes per number that sort as the numbers do."""
    return (numbers.view(np.uint64) ^ np.uint64(_SIGN)).astype(">u8").view(np.uint8).reshape(-1, CHUNK_BYTES)


def _split_rows(rows: np.ndarray[Any, np.dtype[np.uint8]]) -> list[bytes]:
    width, raw = rows.shape[1], rows.tobytes()
    return [raw[at : at + width] for at in range(0, len(raw), width)]


def _encode_text_column(column: pa.Array) -> list[bytes]:
    """Return the encoded values of a column of texts or bytes."""
    texts = column.cast(pa.large_binary())
    data = texts.buffers()[2]
    if texts.null_count or texts.offset or data is None or _ZERO in data.to_pybytes():
        return list(map(_encode_bytes, texts.to_pylist()))
    return [b"\x01" + text + _END for text in texts.to_pylist()]


def encode_key_columns(fields: Sequence[Field], columns: Sequence[pa.Array]) -> list[bytes]:
    """Return the encoded key of every row, whole and without a generation.

    Args:
        fields: The join keys.
        columns: One array per join key, in Arrow types of the declared ones.
    """
    pieces: list[list[bytes]] = []
    for field, column in zip(fields, columns, strict=True):
        if field.dtype in _WIDTHS:
            pieces.append(_split_rows(_encode_fixed_column(field.dtype, column)))
        else:
            pieces.append(_encode_text_column(column))
    return pieces[0] if len(pieces) == 1 else list(map(b"".join, zip(*pieces, strict=True)))


def split_key(fields: Sequence[Field], encoded: bytes) -> list[bytes]:
    """Return the part of each join key in a whole encoded key without a generation."""
    found, at = [], 0
    for field in fields:
        _, end = _decode_value(field.dtype, encoded, at)
        found.append(encoded[at:end])
        at = end
    return found


class KeyCodec:
    """Encodes the join keys of one layout, one at a time or by column.

    Args:
        layout: Layout of the stored generation; its number begins every stored key, with the slot as
            highest bit.
    """

    def __init__(self, layout: OnlineLayout) -> None:
        self._layout = layout
        self._fields = layout.key_fields
        self._prefix = struct.pack(">H", layout.generation | layout.slot << SLOT_BIT)
        self._encoders = tuple(_ENCODERS[field.dtype] for field in self._fields)
        self.encode = self._compile()

    @property
    def generation_prefix(self) -> bytes:
        """What every stored key of the generation begins with."""
        return self._prefix

    def _compile(self) -> Callable[[Key], bytes]:
        """Return `encode`: the general form, or a shorter way to the same for one key of a usual type.

        `encode(key)` returns the stored form of a key, without a chunk number.

        Raises:
            JoinKeyMismatch: A value has the wrong type, or there are too few or too many.
            KeyTooLong: The key of a wildcard view has more than 400 encoded bytes.
        """
        begin, general = self._prefix + b"\x01", self._encode_any

        def encode_integer(key: Key) -> bytes:
            if len(key) == 1 and type(value := key[0]) is int and -_SIGN <= value < _SIGN:
                return begin + _PACK_U64(value + _SIGN)
            return general(key)

        def encode_text(key: Key) -> bytes:
            if len(key) == 1 and type(value := key[0]) is str and len(value) < _SURELY_SHORT and _NUL not in value:
                try:
                    return begin + value.encode() + _END
                except UnicodeEncodeError:
                    pass
            return general(key)

        if len(self._fields) == 1 and self._fields[0].dtype in (Int32, Int64):
            return encode_integer
        if len(self._fields) == 1 and self._fields[0].dtype == String:
            return encode_text
        return general

    def _encode_any(self, key: Key) -> bytes:
        if len(key) != len(self._encoders):
            raise self._wrong_count(len(key), len(self._encoders))
        try:
            encoded = b"".join([encode(value) for encode, value in zip(self._encoders, key, strict=True)])
        except (TypeError, ValueError, struct.error):
            encoded = None
        if encoded is None:
            raise self._mismatch(key)
        if len(encoded) > MAX_KEY_BYTES:
            return self._hashed(encoded)
        return self._prefix + encoded

    def encode_prefix(self, prefix: Key) -> bytes:
        """Return what the stored forms of all keys that begin with `prefix` begin with.

        Raises:
            JoinKeyMismatch: A value has the wrong type, or there are more values than join keys.
        """
        if len(prefix) > len(self._encoders):
            raise self._wrong_count(len(prefix), len(self._encoders))
        try:
            encoded = b"".join([encode(value) for encode, value in zip(self._encoders, prefix, strict=False)])
        except (TypeError, ValueError, struct.error):
            encoded = None
        if encoded is None:
            raise self._mismatch(prefix)
        return self._prefix + encoded

    def decode(self, stored: bytes) -> Key:
        """Return the key of a stored form that is not hashed; a chunk number after it is ignored."""
        at, values = len(self._prefix), []
        for field in self._fields:
            value, at = _decode_value(field.dtype, stored, at)
            values.append(value)
        return tuple(values)

    def encode_columns(self, columns: Sequence[pa.Array]) -> tuple[list[bytes], dict[bytes, bytes]]:
        """Return the stored form of every row of the key columns, and the whole encoded key of each that is hashed.

        Args:
            columns: One array per join key, in Arrow types of the declared ones.

        Raises:
            KeyTooLong: As for `encode`.
        """
        encoded, prefix = encode_key_columns(self._fields, columns), self._prefix
        if max(map(len, encoded), default=0) <= MAX_KEY_BYTES:
            return [prefix + key for key in encoded], {}
        full = {self._hashed(key): key for key in encoded if len(key) > MAX_KEY_BYTES}
        return [prefix + key if len(key) <= MAX_KEY_BYTES else self._hashed(key) for key in encoded], full

    def is_hashed(self, stored: bytes) -> bool:
        """Tell whether the stored form is a hash, so that its values begin with the whole key."""
        return stored.startswith(_HASHED, len(self._prefix))

    def _hashed(self, encoded: bytes) -> bytes:
        if self._layout.is_wildcard:
            raise KeyTooLong(view=self._layout.view, given_bytes=len(encoded), max_bytes=MAX_KEY_BYTES)
        return self._prefix + _HASHED + hashlib.sha256(encoded).digest()

    def _wrong_count(self, given: int, expected: int) -> JoinKeyMismatch:
        names = ", ".join(field.name for field in self._fields)
        what, rule = f"a key of {given} values", f"takes {expected} ({names})"
        return JoinKeyMismatch(view=self._layout.view, what=what, rule=rule)

    def _mismatch(self, key: Key) -> JoinKeyMismatch:
        """Return the error of the first value that cannot be encoded; it names column and type, never the value."""
        fault: Field = self._fields[0]
        given = "nothing"
        for field, encode, value in zip(self._fields, self._encoders, key, strict=False):
            try:
                encode(value)
            except (TypeError, ValueError, struct.error):
                fault, given = field, type(value).__name__
                break
        what, rule = f"join key {fault.name} got a {given}", f"takes {fault.dtype} there"
        return JoinKeyMismatch(view=self._layout.view, what=what, rule=rule)
