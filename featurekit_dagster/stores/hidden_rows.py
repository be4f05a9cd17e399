"""A relation of DuckDB without the rows of deleted keys, for the time until they are gone from the files."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import duckdb
import numpy as np
import pyarrow as pa

from featurekit_dagster.arrow_types import record_type
from featurekit_dagster.domain.schema import Field
from featurekit_dagster.sql_text import quoted
from featurekit_dagster.stores.tombstones import KeyHasher, Tombstones

CUTOFF = "featurekit_cutoff"
"""Column beside join keys: the time in microseconds since 1970 before which their rows are deleted."""

_names = itertools.count(1)


def deleted_keys(con: duckdb.DuckDBPyConnection, relation: str, fields: Sequence[Field], found: Tombstones) -> pa.Table:
    """Return those keys of a relation that have a tombstone, with their cutoffs: an exact list, never hashes.

    Args:
        con: Connection in which the relation is known.
        relation: SQL that stands after FROM.
        fields: The join keys, which are among its columns.
        found: The tombstones.
    """
    listed = ", ".join(quoted(field.name) for field in fields)
    return with_cutoffs(con.sql(f"SELECT DISTINCT {listed} FROM {relation}").to_arrow_table(), fields, found)


def with_cutoffs(keys: pa.Table, fields: Sequence[Field], found: Tombstones) -> pa.Table:
    """Return those of some distinct join keys that have a tombstone, with their cutoffs.

    Args:
        keys: The join keys; other columns are left out.
        fields: The join keys.
        found: The tombstones.
    """
    keys = keys.select([field.name for field in fields])
    columns = [keys[field.name].cast(record_type(field.dtype)).combine_chunks() for field in fields]
    cutoffs = list(map(found.cutoffs.get, KeyHasher(fields, found.salt).of_columns(columns)))
    at = np.array([place for place, cutoff in enumerate(cutoffs) if cutoff is not None], np.int64)
    times = pa.array([cutoffs[place] for place in at.tolist()], pa.int64())
    return keys.take(pa.array(at)).append_column(CUTOFF, times)


def visible_relation(
    con: duckdb.DuckDBPyConnection,
    relation: str,
    fields: Sequence[Field],
    *,
    time_column: str,
    columns: Sequence[str],
    tombstones: Tombstones,
) -> str:
    """Return SQL that stands after FROM in `con` and yields the rows of a relation that tombstones do not hide.

    The keys of the relation are read once for it.

    Args:
        con: Connection in which the text will be used; the hidden keys are registered there.
        relation: The same with all rows; it has the join keys, the time column and `columns`.
        fields: The join keys.
        time_column: When a row is.
        columns: What to return, in this order.
        tombstones: Those of the view.
    """
    hidden = deleted_keys(con, relation, fields, tombstones)
    listed = ", ".join(f"r.{quoted(name)}" for name in columns)
    if not hidden.num_rows:
        return f"(SELECT {listed} FROM {relation} AS r)"
    name = f"featurekit_deleted_{next(_names)}"
    con.register(name, hidden)
    same = " AND ".join(f"d.{quoted(each.name)} IS NOT DISTINCT FROM r.{quoted(each.name)}" for each in fields)
    before = f"epoch_us(r.{quoted(time_column)}) < d.{CUTOFF}"
    return (
        f"(SELECT {listed} FROM {relation} AS r WHERE NOT EXISTS (SELECT 1 FROM {name} AS d WHERE {same} AND {before}))"
    )
