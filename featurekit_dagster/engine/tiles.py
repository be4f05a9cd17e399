"""Tiles of raw events: one GROUP BY that builds every partial column in a single pass.

The SQL is DuckDB's. Neighbours: `rollup` combines tiles into windows; `domain.aggregation` says which partials exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import duckdb
import pyarrow as pa

from featurekit_dagster.domain.aggregation import PartialColumn
from featurekit_dagster.engine.arrow import arrow_type
from featurekit_dagster.engine.duck import literal, quoted
from featurekit_dagster.engine.rollup import ANCHOR_TIME
from featurekit_dagster.errors import TileOverflow

_OVERFLOW = "featurekit-tile-overflow"
_INT64_BITS = 63
# Room for so many rows when their number is packed below their time; wider tiles take a HUGEINT.
_ROW_BITS = 31


def tile_query(
    relation: str, *, keys: Sequence[str], timestamp: str, tile_us: int, partials: Iterable[PartialColumn]
) -> str:
    """Return the SQL of a relation's tiles: columns `keys`, `_anchor_time`, then the partial columns; no order.

    An event belongs to the tile `[start, start + tile_us)` that holds its timestamp; starts are multiples of `tile_us`
    since the Unix epoch, before 1970 too. A tile exists where an event exists, also if all its values are NULL. NULL
    keys form a group. NaN and infinities are kept; a sum of floats is compensated. `last` is the value of the latest
    event that has one; of several at that instant the one that comes later in the relation.

    Args:
        relation: A name or a parenthesised query, in the order that decides ties of `last`.
        keys: Join keys.
        timestamp: Event time, TIMESTAMP (read as UTC) or TIMESTAMPTZ. Events without one are left out.
        tile_us: Tile size in microseconds.
        partials: What to build. A sum of integers beyond 64 bits fails the query; `build_tiles` says so in words.
    """
    wanted = tuple(partials)
    names = ", ".join(quoted(key) + ", " for key in keys).replace(", , ", ", ")
    rows = f"SELECT *, epoch_us({quoted(timestamp)}) AS __us"
    if any(partial.kind == "last" for partial in wanted):
        rows += ", row_number() OVER () AS __row"
    rows += f" FROM {relation} WHERE {quoted(timestamp)} IS NOT NULL"
    start = f"__us - (__us % {tile_us} + {tile_us}) % {tile_us}"
    columns = "".join(f", {_expression(partial, tile_us)} AS {quoted(partial.name)}" for partial in wanted)
    groups = ", ".join(str(number + 1) for number in range(len(keys) + 1))
    tiles = f"SELECT {names}{start} AS __start{columns} FROM ({rows}) GROUP BY {groups}"
    built = "".join(f", {quoted(partial.name)}" for partial in wanted)
    return f"SELECT {names}make_timestamptz(__start) AS {quoted(ANCHOR_TIME)}{built} FROM ({tiles})"


def _expression(partial: PartialColumn, tile_us: int) -> str:
    """Return the SQL aggregate of one partial column."""
    column = quoted(partial.column)
    double = f"CAST({column} AS DOUBLE)"
    whole = f"sum({column})"
    expressions = {
        "count": f"count({column})",
        "min": f"min({column})",
        "max": f"max({column})",
        "mean": f"favg({double})",
        "m2": f"var_pop({double}) * count({column})",
        "last": f"arg_max({column}, {_recency(tile_us)})",
    }
    if partial.kind != "sum":
        return expressions[partial.kind]
    if partial.dtype.is_integer:
        too_large = f"{whole} NOT BETWEEN -{1 << 63} AND {(1 << 63) - 1}"
        return f"CASE WHEN {too_large} THEN error({literal(_OVERFLOW)}) ELSE CAST({whole} AS BIGINT) END"
    # A compensated sum turns infinities into NaN; the plain one does not.
    return f"CASE WHEN isfinite(fsum({double})) THEN fsum({double}) ELSE sum({double}) END"


def _recency(tile_us: int) -> str:
    """Return the SQL of a number that grows with (time, input order) within a tile."""
    if (tile_us - 1).bit_length() + _ROW_BITS <= _INT64_BITS:
        return f"((__us % {tile_us} + {tile_us}) % {tile_us}) * {1 << _ROW_BITS} + __row"
    return f"CAST(__us AS HUGEINT) * {1 << _INT64_BITS} + __row"


def build_tiles(
    con: duckdb.DuckDBPyConnection,
    relation: str,
    *,
    keys: Sequence[str],
    timestamp: str,
    tile_us: int,
    partials: Iterable[PartialColumn],
) -> pa.Table:
    """Return a relation's tiles as `tile_query` describes them, partial columns in their declared types.

    Raises:
        TileOverflow: The sum of integers of one tile does not fit 64 bits.
    """
    wanted = tuple(partials)
    query = tile_query(relation, keys=keys, timestamp=timestamp, tile_us=tile_us, partials=wanted)
    try:
        table: pa.Table = con.sql(query).to_arrow_table()
    except duckdb.InvalidInputException as error:
        if _OVERFLOW not in str(error):
            raise
        sums = tuple(partial.column for partial in wanted if partial.kind == "sum" and partial.dtype.is_integer)
        raise TileOverflow(columns=sums) from None
    for partial in wanted:
        place = table.schema.get_field_index(partial.name)
        table = table.set_column(place, partial.name, table.column(place).cast(arrow_type(partial.dtype)))
    place = table.schema.get_field_index(ANCHOR_TIME)
    return table.set_column(place, ANCHOR_TIME, table.column(place).cast(pa.timestamp("us", "UTC")))


def row_query(relation: str, *, keys: Sequence[str], timestamp: str, partials: Iterable[PartialColumn]) -> str:
    """Return the SQL that makes every event a tile of its own: `keys`, `_anchor_time` and the partial columns.

    For one answer straight from the source it spares the GROUP BY: `roll_up` combines the rows to the same features as
    the tiles. `_anchor_time` is the event's own time. Rows of one tile are taken in the order they come in, so a `last`
    needs them in order of time, or `tile_us=1` (windows and edges are whole tiles all the same).

    Args:
        relation: A name or a parenthesised query.
        keys: Join keys.
        timestamp: Event time, TIMESTAMP (read as UTC) or TIMESTAMPTZ. Events without one are left out.
        partials: What to build.
    """
    names = "".join(f"{quoted(key)}, " for key in keys)
    columns = "".join(f", {_own_value(partial)} AS {quoted(partial.name)}" for partial in partials)
    anchor = f"make_timestamptz(epoch_us({quoted(timestamp)})) AS {quoted(ANCHOR_TIME)}"
    return f"SELECT {names}{anchor}{columns} FROM {relation} WHERE {quoted(timestamp)} IS NOT NULL"


def _own_value(partial: PartialColumn) -> str:
    """Return the SQL of a partial column over a single event."""
    column = quoted(partial.column)
    if partial.kind == "count":
        return f"CAST({column} IS NOT NULL AS BIGINT)"
    if partial.kind == "m2":
        return f"CASE WHEN {column} IS NOT NULL THEN CAST(0 AS DOUBLE) END"
    if partial.kind == "mean" or (partial.kind == "sum" and not partial.dtype.is_integer):
        return f"CAST({column} AS DOUBLE)"
    return f"CAST({column} AS BIGINT)" if partial.kind == "sum" else column
