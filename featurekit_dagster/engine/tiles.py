"""Tiles of raw events: one GROUP BY that builds every partial column in a single pass.

The SQL is DuckDB's; lists of distinct values and sketches are finished from the values that it collects per tile.
Neighbours: `rollup` combines tiles into windows; `domain.aggregation` says which partials exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurekit_dagster.arrow_types import TIMESTAMP, arrow_type
from featurekit_dagster.domain.aggregation import LIST_FUNCTIONS, PartialColumn
from featurekit_dagster.domain.schema import Int64
from featurekit_dagster.engine.columns import as_type, present
from featurekit_dagster.engine.rollup import ANCHOR_TIME
from featurekit_dagster.engine.rollup_lists import Lists, distinct_of
from featurekit_dagster.engine.sketches import finish_digest, finish_hll, hll_code_sql
from featurekit_dagster.errors import TileOverflow
from featurekit_dagster.sql_text import literal, quoted

_OVERFLOW = "featurekit-tile-overflow"
_INT64_BITS = 63
# Room for so many rows when their number is packed below their time; wider tiles take a HUGEINT.
_ROW_BITS = 31
# Rows of one piece of a stream of events, one of DuckDB's row groups.
_PIECE_ROWS = 122_880
# DuckDB's arg_min and arg_max return no more values than this.
_MOST_VALUES = 999_999


def build_tiles(
    con: duckdb.DuckDBPyConnection,
    relation: str,
    *,
    keys: Sequence[str],
    timestamp: str,
    tile_us: int,
    partials: Iterable[PartialColumn],
) -> pa.Table:
    """Return a relation's tiles: columns `keys`, `_anchor_time`, then the partial columns in their types; no order.

    An event belongs to the tile `[start, start + tile_us)` that holds its timestamp; starts are multiples of `tile_us`
    since the Unix epoch, before 1970 too. A tile exists where an event exists, also if all its values are NULL. NULL
    keys form a group. NaN and infinities are kept; a sum of floats is compensated. `last` and the lists take values in
    order of time; of several at one instant, the one that comes later in the relation is the later one.

    Args:
        con: Connection that knows the relation.
        relation: A name or a parenthesised query, in the order that decides ties.
        keys: Join keys, and the secondary key if there is one.
        timestamp: Event time, TIMESTAMP (read as UTC) or TIMESTAMPTZ. Events without one are left out.
        tile_us: Tile size in microseconds.
        partials: What to build.

    Raises:
        TileOverflow: The sum of integers of one tile does not fit 64 bits.
    """
    wanted = tuple(partials)
    table = _run(con, _tile_query(relation, keys, timestamp, tile_us, wanted, _MOST_VALUES), wanted)
    if _longest_ordered(table) >= _MOST_VALUES:
        table = _run(con, _tile_query(relation, keys, timestamp, tile_us, wanted, 0), wanted)
    return _finished(table, len(keys), wanted)


def _run(con: duckdb.DuckDBPyConnection, query: str, partials: Sequence[PartialColumn]) -> pa.Table:
    try:
        return con.sql(query).to_arrow_table()
    except duckdb.InvalidInputException as error:
        if _OVERFLOW not in str(error):
            raise
        sums = tuple(partial.column for partial in partials if partial.kind == "sum" and partial.dtype.is_integer)
        raise TileOverflow(columns=sums) from None


def _longest_ordered(table: pa.Table) -> int:
    """Return the length of the longest list of all values of a tile in order of time."""
    names = [name for name in table.column_names if name.startswith("__ordered")]
    return max((pc.max(pc.list_value_length(table.column(name))).as_py() or 0 for name in names), default=0)


def _tile_query(
    relation: str, keys: Sequence[str], timestamp: str, tile_us: int, partials: Sequence[PartialColumn], most: int
) -> str:
    """Return the SQL of a relation's tiles: keys, `_anchor_time`, then what the partial columns are finished from.

    Lists of at most `most` values are made by a heap, longer ones by sorting, at three times the cost. The other
    arguments are those of `build_tiles`.
    """
    states = {_state(partial): _expression(partial, tile_us, most) for partial in partials}
    names = "".join(f"{quoted(key)}, " for key in keys)
    rows = f"SELECT *, epoch_us({quoted(timestamp)}) AS __us"
    if any("__row" in expression for expression in states.values()):
        rows += ", row_number() OVER () AS __row"
    rows += f" FROM {relation} WHERE {quoted(timestamp)} IS NOT NULL"
    start = f"__us - (__us % {tile_us} + {tile_us}) % {tile_us}"
    columns = "".join(f", {expression} AS {quoted(name)}" for name, expression in states.items())
    groups = ", ".join(str(number + 1) for number in range(len(keys) + 1))
    tiles = f"SELECT {names}{start} AS __start{columns} FROM ({rows}) GROUP BY {groups}"
    built = "".join(f", {quoted(name)}" for name in states)
    return f"SELECT {names}make_timestamptz(__start) AS {quoted(ANCHOR_TIME)}{built} FROM ({tiles})"


def _state(partial: PartialColumn) -> str:
    """Return the name of what a partial column is finished from; several may share it."""
    if partial.kind in ("last_distinct", "first_distinct"):
        return f"__ordered {partial.column}"
    if partial.kind.startswith("hll"):
        return f"__codes {partial.size} {partial.column}"
    return f"__values {partial.column}" if partial.kind.startswith("digest") else partial.name


def _expression(partial: PartialColumn, tile_us: int, most: int) -> str:
    """Return the SQL aggregate of what a partial column is finished from."""
    if partial.kind in LIST_FUNCTIONS:
        return _ordered(partial, tile_us, most)
    column = quoted(partial.column)
    double = f"CAST({column} AS DOUBLE)"
    collected = f"FILTER ({column} IS NOT NULL)"
    expressions = {
        "count": f"count({column})",
        "min": f"min({column})",
        "max": f"max({column})",
        "mean": f"favg({double})",
        "m2": f"var_pop({double}) * count({column})",
        "last": f"arg_max({column}, {_recency(tile_us)})",
        "digest_means": f"list({double}) {collected}",
        "digest_weights": f"list({double}) {collected}",
    }
    if partial.kind.startswith("hll"):
        return f"list({_code(partial)}) {collected}"
    return _sum(partial) if partial.kind == "sum" else expressions[partial.kind]


def _sum(partial: PartialColumn) -> str:
    double, whole = f"CAST({quoted(partial.column)} AS DOUBLE)", f"sum({quoted(partial.column)})"
    if partial.dtype.is_integer:
        too_large = f"{whole} NOT BETWEEN -{1 << 63} AND {(1 << 63) - 1}"
        return f"CASE WHEN {too_large} THEN error({literal(_OVERFLOW)}) ELSE CAST({whole} AS BIGINT) END"
    # A compensated sum turns infinities into NaN; the plain one does not.
    return f"CASE WHEN isfinite(fsum({double})) THEN fsum({double}) ELSE sum({double}) END"


def _ordered(partial: PartialColumn, tile_us: int, most: int) -> str:
    """Return the SQL of the values that a list is cut from, in order of time; NULL without any."""
    column = quoted(partial.column)
    some = f"FILTER ({column} IS NOT NULL)"
    distinct = partial.kind in ("last_distinct", "first_distinct")
    count = most if distinct else partial.size
    if 0 < count <= most:
        if partial.kind == "last_n":
            return f"list_reverse(arg_max({column}, {_recency(tile_us)}, {count}) {some})"
        return f"arg_min({column}, {_recency(tile_us)}, {count}) {some}"
    cut = "" if distinct else f"[-{count}:]" if partial.kind == "last_n" else f"[:{count}]"
    return f"(list({column} ORDER BY __us, __row) {some}){cut}"


def _recency(tile_us: int) -> str:
    """Return the SQL of a number that grows with (time, input order) within a tile."""
    if (tile_us - 1).bit_length() + _ROW_BITS <= _INT64_BITS:
        return f"((__us % {tile_us} + {tile_us}) % {tile_us}) * {1 << _ROW_BITS} + __row"
    return f"CAST(__us AS HUGEINT) * {1 << _INT64_BITS} + __row"


def _code(partial: PartialColumn) -> str:
    # told to be an integer, a text is cast to text, which costs nothing; the partial does not know its column's type
    return hll_code_sql(quoted(partial.column), Int64, partial.size)


def _finished(table: pa.Table, keys: int, partials: Sequence[PartialColumn]) -> pa.Table:
    """Return the tiles of what was collected: the first `keys` columns, `_anchor_time` and the partial columns."""
    columns = [*table.columns[:keys], table.column(keys).cast(TIMESTAMP)]
    sketches: dict[str, tuple[pa.ListArray, pa.ListArray]] = {}
    for partial in partials:
        name = _state(partial)
        found = table.column(name)
        if partial.kind in ("last_distinct", "first_distinct"):
            found = distinct_of(Lists.of(found), partial.size, last=partial.kind == "last_distinct")
        elif partial.kind in LIST_FUNCTIONS:
            found = Lists.of(found).array()
        elif name != partial.name:
            if name not in sketches:
                sketches[name] = _sketch(partial, Lists.of(found))
            found = sketches[name][partial.kind in ("hll_registers", "digest_weights")]
        columns.append(as_type(found, arrow_type(partial.dtype)))
    return pa.table(columns, names=[*table.column_names[: keys + 1], *(partial.name for partial in partials)])


def _sketch(partial: PartialColumn, collected: Lists) -> tuple[pa.ListArray, pa.ListArray]:
    finish = finish_hll if partial.kind.startswith("hll") else finish_digest
    return finish(collected.array(), partial.size)


def event_tiles(
    con: duckdb.DuckDBPyConnection,
    relation: str,
    *,
    keys: Sequence[str],
    timestamp: str,
    partials: Iterable[PartialColumn],
) -> pa.Table:
    """Return every event as a tile of its own, in the relation's order: `keys`, `_anchor_time`, partial columns.

    `_anchor_time` is the event's own time. `roll_up` with `tile_us=1` combines them to the same features as tiles, and
    to windows with ends between two tiles.

    Args:
        con: Connection that knows the relation.
        relation: A name or a parenthesised query, in the order that decides ties.
        keys: Join keys, and the secondary key if there is one.
        timestamp: Event time, TIMESTAMP (read as UTC) or TIMESTAMPTZ. Events without one are left out.
        partials: What to build.
    """
    return event_tile_pieces(con, relation, keys=keys, timestamp=timestamp, partials=partials).read_all()


def event_tile_pieces(
    con: duckdb.DuckDBPyConnection,
    relation: str,
    *,
    keys: Sequence[str],
    timestamp: str,
    partials: Iterable[PartialColumn],
) -> pa.RecordBatchReader:
    """Return what `event_tiles` returns, made piece by piece as it is read; `con` has to stay open until then.

    Reading it raises `duckdb.Error` where the relation cannot be computed.
    """
    wanted = tuple(partials)
    states = {own_state(partial): _own_value(partial) for partial in wanted}
    found = con.sql(_event_query(relation, keys, timestamp, states)).to_arrow_reader(_PIECE_ROWS)
    schema = single_tiles(found.schema.empty_table(), len(keys), wanted).schema

    def pieces() -> Iterator[pa.RecordBatch]:
        try:
            for batch in found:
                yield from single_tiles(pa.Table.from_batches([batch]), len(keys), wanted).to_batches()
        except OSError as error:  # what DuckDB says while it is read comes as Arrow's word
            raise duckdb.Error(str(error)) from None

    return pa.RecordBatchReader.from_batches(schema, pieces())


def single_tiles(table: pa.Table, keys: int, partials: Sequence[PartialColumn]) -> pa.Table:
    """Return single events as tiles: the first `keys` columns, `_anchor_time` and the partial columns."""
    keyed = [
        as_type(column, TIMESTAMP) if pa.types.is_timestamp(column.type) else column for column in table.columns[:keys]
    ]
    columns = [*keyed, as_type(table.column(keys), TIMESTAMP)]
    sketches: dict[str, tuple[pa.ListArray, pa.ListArray]] = {}
    for partial in partials:
        name = own_state(partial)
        found = table.column(name)
        if partial.kind in LIST_FUNCTIONS:
            found = _singles(found).array()
        elif name != partial.name:
            if name not in sketches:
                sketches[name] = _sketch(partial, _singles(found))
            found = sketches[name][partial.kind in ("hll_registers", "digest_weights")]
        columns.append(found.cast(arrow_type(partial.dtype)))
    return pa.table(columns, names=[*table.column_names[: keys + 1], *(partial.name for partial in partials)])


def _event_query(relation: str, keys: Sequence[str], timestamp: str, states: Mapping[str, str]) -> str:
    names = "".join(f"{quoted(key)}, " for key in keys)
    columns = "".join(f", {expression} AS {quoted(name)}" for name, expression in states.items())
    anchor = f"make_timestamptz(epoch_us({quoted(timestamp)})) AS {quoted(ANCHOR_TIME)}"
    return f"SELECT {names}{anchor}{columns} FROM {relation} WHERE {quoted(timestamp)} IS NOT NULL"


def own_state(partial: PartialColumn) -> str:
    """Return the name of what a partial column of a single event is finished from."""
    return f"__value {partial.column}" if partial.kind in LIST_FUNCTIONS else _state(partial)


def _own_value(partial: PartialColumn) -> str:
    """Return the SQL of a partial column over a single event, or of what it is finished from."""
    column, kind = quoted(partial.column), partial.kind
    if kind == "count":
        return f"CAST({column} IS NOT NULL AS BIGINT)"
    if kind == "m2":
        return f"CASE WHEN {column} IS NOT NULL THEN CAST(0 AS DOUBLE) END"
    if kind in ("mean", "digest_means", "digest_weights") or (kind == "sum" and not partial.dtype.is_integer):
        return f"CAST({column} AS DOUBLE)"
    if kind.startswith("hll"):
        return _code(partial)
    return f"CAST({column} AS BIGINT)" if kind == "sum" else column


def _singles(column: pa.ChunkedArray) -> Lists:
    """Return a list per value: empty where it is NULL, else of the one value."""
    flags = present(column)
    offsets = np.arange(len(column) + 1) if flags is None else np.concatenate(([0], np.cumsum(flags)))
    return Lists(column.drop_null().combine_chunks(), offsets)
