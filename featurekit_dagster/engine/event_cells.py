"""Events that are at hand as tiles of their own, without DuckDB: for the few events of one commit of a stream.

`tiles.event_tiles` makes the same of what a query yields, and is faster for many.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurekit_dagster.arrow_types import TIMESTAMP, arrow_type
from featurekit_dagster.domain.aggregation import LIST_FUNCTIONS, PartialColumn
from featurekit_dagster.engine.columns import as_type
from featurekit_dagster.engine.rollup import ANCHOR_TIME
from featurekit_dagster.engine.sketches import hll_code
from featurekit_dagster.engine.tiles import own_state, single_tiles


def event_cells(rows: pa.Table, *, keys: Sequence[str], timestamp: str, partials: Sequence[PartialColumn]) -> pa.Table:
    """Return every row as a tile of its own, in order: `keys`, `_anchor_time` (its own time), partial columns.

    Args:
        rows: Rows with a timestamp each.
        keys: Join keys, and the secondary key if there is one.
        timestamp: Name of the event time column.
        partials: What to build.
    """
    states = {own_state(partial): _cells(partial, rows[partial.column]) for partial in partials}
    columns = {**{key: rows[key] for key in keys}, ANCHOR_TIME: as_type(rows[timestamp], TIMESTAMP)}
    table = pa.table([*columns.values(), *states.values()], names=[*columns, *states])
    return single_tiles(table, len(keys), partials)


def _cells(partial: PartialColumn, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return what a partial column of single events is finished from."""
    kind = partial.kind
    if kind in LIST_FUNCTIONS:
        return column
    if kind == "count":
        return column.is_valid().cast(pa.int64())
    if kind == "m2":
        return pc.if_else(column.is_valid(), 0.0, pa.scalar(None, pa.float64()))
    if kind.startswith("hll"):
        return _codes(column, partial.size)
    if kind in ("mean", "digest_means", "digest_weights"):
        return as_type(column, pa.float64())
    return as_type(column, arrow_type(partial.dtype))


def _codes(column: pa.ChunkedArray, precision: int) -> pa.ChunkedArray:
    """Return the code of each value; equal ones are hashed once."""
    encoded = column.combine_chunks().dictionary_encode()
    codes = [hll_code(value, precision) for value in encoded.dictionary.to_pylist()]
    known = pa.array(np.array(codes, np.int64))
    return pa.chunked_array([known.take(encoded.indices)])
