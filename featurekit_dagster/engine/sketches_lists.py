"""Lists of numbers in Arrow columns as flat NumPy arrays, and back. Used by `sketches`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurekit_dagster.engine.columns import Int64Array, Values, numbers, present
from featurekit_dagster.engine.rollup_sums import Ranges, prefix


def flat(lists: pa.ListArray) -> Values:
    """Return the elements of all lists one after the other."""
    return numbers(pa.chunked_array([pc.list_flatten(lists)]))


def parents_of(lists: pa.ListArray) -> Int64Array:
    """Return for each element the number of its list."""
    found: Int64Array = numbers(pa.chunked_array([pc.list_parent_indices(lists)]))
    return found


def bounds_of(lists: pa.ListArray) -> Int64Array:
    """Return where each list begins among the elements of all, and where the last one ends."""
    lengths = pa.chunked_array([pc.list_value_length(lists)])
    valid = present(lengths)
    return prefix(numbers(lengths) if valid is None else np.where(valid, numbers(lengths), 0))


def offsets_of(parents: Int64Array, count: int) -> Values:
    """Return the offsets of `count` lists whose elements have these parents, in order."""
    return np.searchsorted(parents, np.arange(count + 1)).astype(np.int32)


def lists_of(offsets: Values, values: Values, dtype: pa.DataType) -> pa.ListArray:
    """Return lists of numbers."""
    elements = pa.Array.from_buffers(dtype, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])
    bounds = [None, pa.py_buffer(offsets)]
    return pa.Array.from_buffers(pa.list_(dtype), len(offsets) - 1, bounds, children=[elements])


def entry_ranges(ranges: Sequence[Ranges], bounds: Int64Array) -> Ranges:
    """Return ranges of tiles as one group of ranges of the tiles' entries."""
    low = np.concatenate([bounds[part.low] for part in ranges])
    return Ranges(low, np.concatenate([bounds[part.high] for part in ranges]))


def cuts_of(ranges: Sequence[Ranges]) -> Int64Array:
    """Return where the answers of one group of ranges are cut."""
    return np.cumsum([len(part.low) for part in ranges])[:-1]
