"""Comparing values of a column with each other and with a default, nested ones included, without a loop over rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurekit_dagster.engine.columns import BoolArray, Int64Array, numbers, present, to_column


def same_as_previous(column: pa.ChunkedArray) -> BoolArray:
    """Tell for each value but the first whether it is the same as the one before; NULL equals NULL, NaN equals NaN.

    Lists are equal when their elements are, in order; maps likewise.
    """
    values = _array(column)
    places = np.arange(len(values))
    return _same(values, places[1:], places[:-1])


def is_default(column: pa.ChunkedArray, default: Any) -> BoolArray:
    """Tell for each value whether it is a default: None, a number, or a list of equal defaults.

    Args:
        column: Any column; a list column where the default is a list.
        default: What `AggregateFeature.default` may be.
    """
    return _is_default(_array(column), default)


def _array(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return pa.concat_arrays(combined.chunks) if isinstance(combined, pa.ChunkedArray) else combined


def _is_valid(values: pa.Array) -> BoolArray:
    there = present(pa.chunked_array([values]))
    return np.ones(len(values), np.bool_) if there is None else there


def _lengths(values: pa.Array) -> Int64Array:
    """Return the lengths of lists, 0 for NULL."""
    lengths = pa.chunked_array([pc.list_value_length(values)])
    found, there = numbers(lengths).astype(np.int64), present(lengths)
    return found if there is None else np.where(there, found, 0)


def _same(values: pa.Array, left: Int64Array, right: Int64Array) -> BoolArray:
    """Tell for pairs of places whether they hold the same value."""
    if pa.types.is_null(values.type):
        return np.ones(len(left), np.bool_)
    if not pa.types.is_nested(values.type):
        codes = numbers(pa.chunked_array([values.dictionary_encode(null_encoding="encode").indices]))
        same: BoolArray = codes[left] == codes[right]
        return same
    valid = _is_valid(values)
    same = valid[left] == valid[right]
    both = same & valid[left]
    if pa.types.is_struct(values.type):
        for member in values.flatten():
            same &= ~both | _same(member, left, right)
        return same
    return same & (~both | _same_lists(values, left, right))


def _same_lists(values: pa.Array, left: Int64Array, right: Int64Array) -> BoolArray:
    """Tell for pairs of places whether the lists there have the same elements; NULL has none."""
    lengths = _lengths(_as_list(values))
    ends = np.cumsum(lengths)
    starts, elements = ends - lengths, _as_list(values).flatten()
    same: BoolArray = lengths[left] == lengths[right]
    compared = np.where(same, lengths[left], 0)
    pair = np.repeat(np.arange(len(left)), compared)
    step = np.arange(len(pair)) - np.repeat(np.cumsum(compared) - compared, compared)
    equal = _same(elements, starts[left][pair] + step, starts[right][pair] + step)
    same[pair[~equal]] = False
    return same


def _as_list(values: pa.Array) -> pa.Array:
    """Return a list column as it is, and a map as the list of its pairs."""
    if not pa.types.is_map(values.type):
        return values
    pairs = pa.struct([("key", values.type.key_type), ("value", values.type.item_type)])
    return values.cast(pa.list_(pairs))


def _is_default(values: pa.Array, default: Any) -> BoolArray:
    there = _is_valid(values)
    if default is None:
        return ~there
    if not isinstance(default, list):
        same: BoolArray = there & (numbers(pa.chunked_array([values])) == default)
        return same
    found: BoolArray = there & (_lengths(values) == len(default))
    if default and found.any():
        elements = values.take(to_column(np.flatnonzero(found), None, pa.int64()).chunk(0)).flatten()
        found[found] = _is_default(elements, default[0]).reshape(-1, len(default)).all(axis=1)
    return found
