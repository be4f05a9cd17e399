"""Join key values of an online read, in the types they are stored in."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from operator import index
from typing import Any

import numpy as np

from featurekit_dagster.domain.schema import Bool, Bytes, DataType, Int32, Int64, String, Timestamp
from featurekit_dagster.errors import ReadError
from featurekit_dagster.intervals import as_utc

_BITS = {Int32: 31, Int64: 63}
_ACCEPTED: dict[DataType, type] = {String: str, Bytes: bytes, Bool: bool, Timestamp: datetime}


def key_converter(subject: str, name: str, dtype: DataType) -> Callable[[Any], Any]:
    """Return a function that checks one join key value and returns it as stored; None is a key value of its own.

    Args:
        subject: The view or service, for messages.
        name: The join key.
        dtype: Its declared type.

    The function raises ReadError for a value of another type, and for an integer out of range; never with the value.
    """

    def refuse(value: Any) -> ReadError:
        return ReadError(f"{subject}: join key {name!r} is a {type(value).__name__}; it must be {dtype}")

    def integer(value: Any) -> Any:
        if type(value) is not int:
            if value is None:
                return None
            if isinstance(value, bool):
                raise refuse(value)
            try:
                value = index(value)
            except TypeError:
                raise refuse(value) from None
        if not -limit <= value < limit:
            raise ReadError(f"{subject}: join key {name!r} is out of the range of {dtype}")
        return value

    def other(value: Any) -> Any:
        if isinstance(value, accepted) or value is None:
            if not isinstance(value, datetime):
                return value
            if isinstance(value.year, int):  # pandas' NaT is a datetime, too
                return as_utc(value)
        if dtype == Bool and isinstance(value, np.bool_):
            return bool(value)
        raise refuse(value)

    if dtype in _BITS:
        limit = 1 << _BITS[dtype]
        return integer
    accepted = _ACCEPTED[dtype]
    return other
