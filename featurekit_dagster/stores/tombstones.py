"""Tombstones: what every store knows about join keys that were deleted, without the keys themselves.

A record of a deleted key exists no more if its time (the start of its tile, else its timestamp) is before the key's
cutoff: the moment of the deletion, or never-ending time for a permanent one. That one rule holds for reads, writes and
removal, offline and online. A tile that began before the deletion and ended after it is refused as a whole, since it
cannot be told which of its events are the older ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from featurekit_dagster.arrow_types import record_type
from featurekit_dagster.domain.schema import Field
from featurekit_dagster.stores.key_codec import encode_key_columns, split_key
from featurekit_dagster.stores.record_runs import dense_codes

FOR_EVER_US = (1 << 63) - 1
"""Cutoff of a permanent tombstone, in microseconds since 1970: no record is as late."""

NOT_DELETED_US = -(1 << 63)
HASH_BYTES = 32


@dataclass(frozen=True, slots=True)
class Tombstones:
    """The tombstones of one feature view; the same for all of its generations.

    Args:
        salt: What every hash begins with; drawn once per view.
        version: Grows with every change; a store does not take older ones than it has.
        cutoffs: Hash of a key to the time in microseconds since 1970 before which its records are deleted.
    """

    salt: bytes = field(repr=False)
    version: int
    cutoffs: Mapping[bytes, int] = field(repr=False)

    def cutoffs_of(self, hashes: Iterable[bytes]) -> list[int | None]:
        """Return the cutoff of each hash, None where there is no tombstone."""
        return list(map(self.cutoffs.get, hashes))


class KeyHasher:
    """Makes the hash of join keys under which their tombstones are kept: SHA-256 of salt and encoded key.

    The columns of a key are hashed in the order of their names, so that neither the order of the declaration nor an
    `online_serving_index` changes what is deleted.

    Args:
        fields: The join keys, in the order of the encoded form (`OnlineLayout.key_fields` online).
        salt: Salt of the view's tombstones.
    """

    def __init__(self, fields: Sequence[Field], salt: bytes) -> None:
        self._fields, self._salt = tuple(fields), salt
        self._places = sorted(range(len(self._fields)), key=lambda at: self._fields[at].name)
        self._is_sorted = self._places == list(range(len(self._fields)))

    def of_encoded(self, encoded: bytes) -> bytes:
        """Return the hash of a key as `key_codec` encodes it: whole, without generation and chunk."""
        if not self._is_sorted:
            pieces = split_key(self._fields, encoded)
            encoded = b"".join([pieces[at] for at in self._places])
        return hashlib.sha256(self._salt + encoded).digest()

    def of_columns(self, columns: Sequence[pa.Array]) -> list[bytes]:
        """Return the hash of every row of the key columns, one array per field in the order of the fields.

        The arrays are of the Arrow types in which the online store takes values.
        """
        places = self._places
        encoded = encode_key_columns([self._fields[at] for at in places], [columns[at] for at in places])
        salt, sha256 = self._salt, hashlib.sha256
        return [sha256(salt + key).digest() for key in encoded]


def hidden_rows(
    rows: pa.Table, fields: Sequence[Field], time_column: str, tombstones: Tombstones
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which rows are of a deleted key and before its cutoff. Each distinct key is hashed once.

    Args:
        rows: The join keys and the time column, of type `timestamp[us, tz=UTC]`; other columns are ignored.
        fields: The join keys.
        time_column: When a row is: the start of its tile, or its timestamp. NULL is never hidden.
        tombstones: Those of the view.
    """
    if not rows.num_rows or not tombstones.cutoffs:
        return np.zeros(rows.num_rows, bool)
    columns = [rows[field.name].cast(record_type(field.dtype)).combine_chunks() for field in fields]
    codes, first_rows = dense_codes(columns)
    hashes = KeyHasher(fields, tombstones.salt).of_columns([column.take(pa.array(first_rows)) for column in columns])
    cutoffs = np.array([tombstones.cutoffs.get(each, NOT_DELETED_US) for each in hashes], np.int64)
    times = rows[time_column].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).fill_null(FOR_EVER_US)
    hidden: np.ndarray[Any, np.dtype[np.bool_]] = times.to_numpy() < cutoffs[codes]
    return hidden


def visible_rows(rows: pa.Table, fields: Sequence[Field], time_column: str, tombstones: Tombstones) -> pa.Table:
    """Return the rows that `hidden_rows` does not name; the same table where there are none such."""
    hidden = hidden_rows(rows, fields, time_column, tombstones)
    return rows.filter(pa.array(~hidden)) if hidden.any() else rows
