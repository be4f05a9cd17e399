"""Reading a spine: which of its columns are keys and time, in the types that the features are stored in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from featurekit_dagster.arrow_types import TIMESTAMP, arrow_type
from featurekit_dagster.domain.schema import DataType
from featurekit_dagster.engine.arrow import UNCONVERTIBLE, floored_to_microseconds, to_arrow
from featurekit_dagster.engine.columns import microseconds, present
from featurekit_dagster.errors import SpineError, TectonValidationError
from featurekit_dagster.intervals import to_us
from featurekit_dagster.serving.frame import FeatureFrame, column_names
from featurekit_dagster.serving.stored import Mask, Times

_LAST_US = to_us(datetime.max.replace(tzinfo=UTC))


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
        """Return the times as integer microseconds; NULLs are a time that occurs, or 0 (see `is_null`)."""
        return microseconds(self.times)[0]

    def is_null(self) -> Mask:
        """Return which rows have no time."""
        there = present(self.times)
        return np.zeros(len(self.times), dtype=bool) if there is None else ~there

    def with_features(self, features: pa.Table) -> FeatureFrame:
        """Return the spine with feature columns beside it."""
        return FeatureFrame(features, self.original, self.timestamp_key, self.times)


def read_spine(frame: Any, keys: Mapping[str, DataType], timestamp_key: str | None, *, is_part: bool = False) -> Spine:
    """Return a frame as a spine.

    Args:
        frame: pandas, polars, Arrow, or a `FeatureFrame`; one row per question.
        keys: Spine column that holds a join key, to the key's declared type.
        timestamp_key: The time column; may be left out when exactly one column holds timestamps.
        is_part: Whether it is a part of a larger spine, so that no row of it need have a time.

    Raises:
        SpineError: A column is missing, is of a type that cannot hold the key, or no time column can be told.
    """
    original = _computed(frame)
    names = column_names(original)
    missing = [name for name in keys if name not in names]
    if missing:
        raise SpineError(f"join key {', '.join(map(repr, missing))} is not in the spine; it has {', '.join(names)}")
    timestamp_key = timestamp_key or _only_timestamp(original, [name for name in names if name not in keys])
    if timestamp_key not in names:
        raise SpineError(f"timestamp_key {timestamp_key!r} is not in the spine; it has {', '.join(names)}")
    table = select_columns(original, [*keys, *([] if timestamp_key in keys else [timestamp_key])])
    times = _as_times(table[timestamp_key], timestamp_key, is_part=is_part)
    return Spine(original, timestamp_key, times, {name: as_key(table[name], t, name) for name, t in keys.items()})


def _computed(frame: Any) -> Any:
    """Return a frame that holds its rows: one that computes them could give others, or another order, next time."""
    if isinstance(frame, FeatureFrame | pa.RecordBatch):
        return to_arrow(frame)
    return frame.collect() if hasattr(frame, "collect") else frame


def select_columns(frame: Any, names: Sequence[str]) -> pa.Table:
    """Return some columns as Arrow; the others need not be of a type that Arrow knows.

    Raises:
        SpineError: A column holds objects that Arrow has no type for.
        TectonValidationError: A name is there more than once.
    """
    return pa.table({name: _select(frame, name) for name in names})


def _select(frame: Any, name: str) -> pa.ChunkedArray:
    try:
        if hasattr(frame, "iloc"):
            named = [str(label) == name for label in frame.columns]
            part = frame.loc[:, named]
            return to_arrow(part.set_axis([name] * sum(named), axis=1))[name]
        return to_arrow(frame.select([name]))[name]
    except UNCONVERTIBLE:
        raise SpineError(f"column {name!r} holds values that are not all of one type; convert it") from None


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
            kind = _select(frame, name).type
        except TectonValidationError:
            continue
        if pa.types.is_timestamp(kind):
            found.append(name)
    if len(found) != 1:
        if found:
            raise SpineError(
                f"the spine has {len(found)} time columns ({', '.join(found)}); name the one to use as timestamp_key"
            )
        raise SpineError(
            f"the spine has no time column; besides join keys it has {', '.join(names) or 'nothing'}; add one, or "
            "convert one to timestamps"
        )
    return found[0]


def _as_times(column: pa.ChunkedArray, name: str, *, is_part: bool) -> pa.ChunkedArray:
    if len(column) and column.null_count == len(column) and not is_part:
        raise SpineError(f"timestamp_key {name!r} is empty in every row")
    if pa.types.is_null(column.type):
        return column.cast(TIMESTAMP)
    if not pa.types.is_timestamp(column.type):
        raise SpineError(f"timestamp_key {name!r} is {column.type}, not a timestamp; convert it")
    if column.type.unit == "ns":
        # a time between two microseconds sees exactly what the earlier one sees
        return floored_to_microseconds(column)
    try:
        times = column.cast(TIMESTAMP)
        if times.null_count < len(times) and microseconds(times)[0].max() > _LAST_US:
            raise pa.ArrowInvalid
    except pa.ArrowInvalid:
        raise SpineError(f"timestamp_key {name!r} has times after the year 9999; leave them out") from None
    return times
