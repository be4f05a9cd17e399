"""Tiles of a view with a secondary key, nested: one row per join keys and tile, secondary keys and partials as lists.

An online read wants all secondary keys of an entity at once; side by side they are one stored value.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurekit_dagster.domain.aggregation import PartialColumn
from featurekit_dagster.engine.columns import Int64Array, microseconds
from featurekit_dagster.engine.keys import encode_keys
from featurekit_dagster.engine.rollup import ANCHOR_TIME


def nest_tiles(tiles: pa.Table, keys: Sequence[str], secondary_key: str, partials: Sequence[PartialColumn]) -> pa.Table:
    """Return one row per join keys and tile, with parallel lists of its secondary keys and their partial columns.

    Args:
        tiles: One row per join keys, secondary key and `_anchor_time`, in any order.
        keys: Join keys.
        secondary_key: The column whose values become the first list; ascending in each row, NULL last.
        partials: The columns that become the other lists.

    Returns:
        The columns `keys`, `_anchor_time`, `secondary_key` and the partial columns.
    """
    order, starts = _groups(tiles, keys, secondary_key)
    first = pa.array(order[starts[:-1]])
    columns = {name: tiles[name].take(first) for name in (*keys, ANCHOR_TIME)}
    offsets, rows = pa.array(starts, pa.int32()), pa.array(order)
    for name in (secondary_key, *(partial.name for partial in partials)):
        values = tiles[name].take(rows).combine_chunks()
        columns[name] = pa.chunked_array([pa.ListArray.from_arrays(offsets, values)])
    return pa.table(columns)


def _groups(tiles: pa.Table, keys: Sequence[str], secondary_key: str) -> tuple[Int64Array, Int64Array]:
    """Return the rows by join keys, time and secondary key, and where each pair of join keys and time begins."""
    codes = encode_keys(tiles, tiles, keys).probes
    times = microseconds(tiles[ANCHOR_TIME])[0]
    # NULL gets the last rank
    ranks = pc.rank(tiles[secondary_key].combine_chunks()).to_numpy()
    order = np.lexsort((ranks, times, codes))
    codes, times = codes[order], times[order]
    changes = np.ones(len(order), bool)
    changes[1:] = (codes[1:] != codes[:-1]) | (times[1:] != times[:-1])
    return order, np.append(np.flatnonzero(changes), len(order))
