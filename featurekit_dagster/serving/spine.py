"""Reading a spine: which of its columns are keys and time, in the types that the features are stored in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurekit_dagster.domain.schema import DataType
from featurekit_dagster.engine.arrow import TIMESTAMP, arrow_type, to_arrow
from featurekit_dagster.errors import SpineError
from featurekit_dagster.serving.frame import FeatureFrame
from featurekit_dagster.serving.stored import Mask, Times


@dataclass(frozen=True, slots=True)
class Spine:
    """The rows that features are asked for.

    Args:
        original: The frame as it was given.
        timestamp_key: Its time column.
        times: That column in UTC microseconds, possibly with NULLs.
        keys: Spine column to its values, in the declared type of the join key.
    """

    original: Any
    timestamp_key: str
    times: pa.ChunkedArray
    keys: Mapping[str, pa.ChunkedArray]

    def __len__(self) -> int:
        return len(self.times)

    def times_us(self) -> Times:
        """Return the times as integer microseconds; NULLs are 0 (see `is_null`)."""
        filled: Times = pc.fill_null(self.times.cast(pa.int64()), 0).to_numpy()
        return filled

    def is_null(self) -> Mask:
        """Return which rows have no time."""
        missing: Mask = pc.is_null(self.times).to_numpy()
        return missing

    def with_features(self, features: pa.Table) -> FeatureFrame:
        """Return the spine with feature columns beside it."""
        return FeatureFrame(features, self.original, self.timestamp_key, self.times)


def read_spine(frame: Any, keys: Mapping[str, DataType], timestamp_key: str | None) -> Spine:
    """Return a frame as a spine.

    Args:
        frame: pandas, polars, Arrow, or a `FeatureFrame`; one row per question.
        keys: Spine column that holds a join key, to the key's declared type.
        timestamp_key: The time column; may be left out when exactly one column holds timestamps.

    Raises:
        SpineError: A column is missing, is of a type that cannot hold the key, or no time column can be told.
    """
    original = frame.to_arrow() if isinstance(frame, FeatureFrame) else frame
    names = column_names(original)
    missing = [name for name in keys if name not in names]
    if missing:
        raise SpineError(f"join key {', '.join(map(repr, missing))} is not in the spine; it has {', '.join(names)}")
    timestamp_key = timestamp_key or _only_timestamp(original, [name for name in names if name not in keys])
    if timestamp_key not in names:
        raise SpineError(f"timestamp_key {timestamp_key!r} is not in the spine; it has {', '.join(names)}")
    table = select_columns(original, [*keys, *([] if timestamp_key in keys else [timestamp_key])])
    times = _as_times(table[timestamp_key], timestamp_key)
    return Spine(original, timestamp_key, times, {name: as_key(table[name], t, name) for name, t in keys.items()})


def column_names(frame: Any) -> list[str]:
    """Return the names of a frame's columns."""
    if isinstance(frame, pa.Table | pa.RecordBatch):
        return list(frame.schema.names)
    if hasattr(frame, "collect_schema"):
        return list(frame.collect_schema().names())
    if hasattr(frame, "columns"):
        return list(map(str, frame.columns))
    raise SpineError(f"a {type(frame).__name__} is no frame; give a pandas, polars or Arrow table")


def select_columns(frame: Any, names: Sequence[str]) -> pa.Table:
    """Return some columns as Arrow; the others need not be of a type that Arrow knows."""
    names = list(names)
    if isinstance(frame, pa.Table | pa.RecordBatch):
        return to_arrow(frame.select(names))
    return to_arrow(frame.select(names) if hasattr(frame, "select") else frame[names])


def as_key(column: pa.ChunkedArray, dtype: DataType, name: str) -> pa.ChunkedArray:
    """Return key values in the declared type; every value stays the same.

    Raises:
        SpineError: The values cannot all be of the declared type.
    """
    wanted, given = arrow_type(dtype), column.type
    if pa.types.is_dictionary(given):
        column, given = column.cast(given.value_type), given.value_type
    if given == wanted:
        return column
    numbers = (pa.types.is_integer(given) or pa.types.is_floating(given)) and dtype.is_integer
    texts = (pa.types.is_large_string(given) or pa.types.is_string_view(given)) and wanted == pa.string()
    blobs = (pa.types.is_large_binary(given) or pa.types.is_binary_view(given)) and wanted == pa.binary()
    times = pa.types.is_timestamp(given) and wanted == TIMESTAMP
    if not (numbers or texts or blobs or times or pa.types.is_null(given)):
        raise SpineError(f"column {name!r} is {given}, but the join key is {dtype}; convert it")
    try:
        return column.cast(wanted, safe=True)
    except pa.ArrowInvalid:
        raise SpineError(f"column {name!r} is {given}, and its values do not all fit the join key's {dtype}") from None


def _only_timestamp(frame: Any, names: Sequence[str]) -> str:
    found = []
    for name in names:
        try:
            kind = select_columns(frame, [name]).schema.types[0]
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
            continue
        if pa.types.is_timestamp(kind):
            found.append(name)
    if len(found) != 1:
        what = f"has {len(found)} time columns ({', '.join(found)})" if found else "has no time column"
        raise SpineError(f"the spine {what}; name the one to use as timestamp_key")
    return found[0]


def _as_times(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    if pa.types.is_null(column.type) or (len(column) and column.null_count == len(column)):
        raise SpineError(f"timestamp_key {name!r} is empty in every row")
    if not pa.types.is_timestamp(column.type):
        raise SpineError(f"timestamp_key {name!r} is {column.type}, not a timestamp; convert it")
    if column.type.unit == "ns":
        # a time between two microseconds sees exactly what the earlier one sees, also before 1970: floor
        nanoseconds = column.cast(pa.int64()).combine_chunks()
        values = np.floor_divide(pc.fill_null(nanoseconds, 0).to_numpy(), 1000)
        floored = pa.array(values, mask=pc.is_null(nanoseconds).to_numpy(zero_copy_only=False))
        return pa.chunked_array([floored.cast(TIMESTAMP)])
    return column.cast(TIMESTAMP)
