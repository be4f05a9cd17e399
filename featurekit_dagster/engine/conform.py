"""Whether a transformation's output is what was declared; values are only widened where nothing is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa

from featurekit_dagster.arrow_types import TIMESTAMP, arrow_schema, arrow_type
from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.domain.schema import DataType, Field
from featurekit_dagster.engine.arrow import floored_to_microseconds
from featurekit_dagster.errors import OutputSchemaMismatch
from featurekit_dagster.sql_text import duckdb_type, quoted

_INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT")


def column_faults(view: FeatureView, names: Sequence[str]) -> list[str]:
    """Return what is missing from the output and what is there too much."""
    declared = [column.name for column in view.columns]
    faults = [f"column {n!r} is missing (there are {', '.join(names) or 'none'})" for n in declared if n not in names]
    faults += [f"column {n!r} is not declared; leave it out or add it to schema" for n in names if n not in declared]
    return faults


def conform_table(view: FeatureView, table: pa.Table, advice: str = "convert it in the transformation") -> pa.Table:
    """Return the declared columns in order, with the declared types.

    Integers may change width and become floats, and floats become integers, where every value stays the same (pandas
    turns integers with missing values into floats). Timestamps come in any unit and zone; naive ones are UTC, and one
    between two microseconds becomes the earlier.

    Args:
        view: The feature view.
        table: Rows.
        advice: What to do about a column of another type.

    Raises:
        OutputSchemaMismatch: A column is missing, too much, or has values that its declared type cannot hold.
    """
    schema = arrow_schema(view.columns)
    if table.schema.equals(schema):
        return table if table.schema.metadata is None else table.replace_schema_metadata(None)
    faults = column_faults(view, table.column_names)
    columns = []
    for field in view.columns:
        if field.name in table.column_names:
            try:
                columns.append(_conformed(table[field.name], field.dtype))
            except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
                got = table.schema.field(field.name).type
                faults.append(f"column {field.name!r} is {got}, declared {field.dtype}, and its values do not all fit")
            except TypeError:
                got = table.schema.field(field.name).type
                faults.append(f"column {field.name!r} is {got}, declared {field.dtype}; {advice}")
    if faults:
        raise OutputSchemaMismatch(view=view.name, faults=faults)
    return pa.table(columns, schema=schema)


def _conformed(column: pa.ChunkedArray, dtype: DataType) -> pa.ChunkedArray:
    wanted, given = arrow_type(dtype), column.type
    if pa.types.is_dictionary(given):
        column, given = column.cast(given.value_type), given.value_type
    if given == wanted:
        return column
    if not _is_compatible(given, dtype):
        raise TypeError
    if pa.types.is_timestamp(given) and given.unit == "ns":
        return floored_to_microseconds(column)
    return column.cast(wanted, safe=True)


def _is_compatible(given: pa.DataType, dtype: DataType) -> bool:
    """Tell whether values of a type may be values of a declared one, if none of them changes."""
    wanted = arrow_type(dtype)
    if given == wanted or pa.types.is_null(given):
        return True
    if pa.types.is_timestamp(given):
        return bool(wanted == TIMESTAMP)
    if dtype.is_numeric:
        narrows = given == pa.float64() and wanted == pa.float32()
        return bool((pa.types.is_integer(given) or pa.types.is_floating(given)) and not narrows)
    if dtype.fields:
        members = {given.field(n).name: given.field(n).type for n in _members(given)}
        same = list(members) == [member.name for member in dtype.fields]
        return same and all(_is_compatible(members[member.name], member.dtype) for member in dtype.fields)
    if dtype.name == "Map":
        kinds = [given.key_type, given.item_type] if pa.types.is_map(given) else []
        return len(kinds) == 2 and all(map(_is_compatible, kinds, dtype.children))
    if dtype.name == "Array":
        return _is_one_of(given, _LISTS) and _is_compatible(given.value_type, dtype.children[0])
    return any(_is_one_of(given, kinds) and _is_one_of(wanted, kinds) for kinds in (_TEXTS, _BLOBS))


_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_BLOBS = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


def _is_one_of(given: pa.DataType, kinds: Sequence[Callable[[pa.DataType], bool]]) -> bool:
    return any(is_kind(given) for is_kind in kinds)


def _members(given: pa.DataType) -> range:
    return range(given.num_fields if pa.types.is_struct(given) else 0)


def conform_query(view: FeatureView, query: str, types: Mapping[str, str]) -> str:
    """Return the query with the declared columns in order and of the declared types.

    Args:
        view: The feature view.
        query: What the transformation returned.
        types: Its columns and their DuckDB types.

    Raises:
        OutputSchemaMismatch: A column is missing, too much, or of a type that is not the declared one.
    """
    faults = column_faults(view, list(types))
    for field in view.columns:
        given = types.get(field.name)
        if given is not None and not _fits(given, field.dtype):
            faults.append(
                f"column {field.name!r} is {given}, declared {field.dtype}; "
                f"write CAST({field.name} AS {duckdb_type(field.dtype)})"
            )
    if faults:
        raise OutputSchemaMismatch(view=view.name, faults=faults)
    columns = ", ".join(f"{_cast(f, types[f.name])} AS {quoted(f.name)}" for f in view.columns)
    return f"SELECT {columns} FROM ({query})"


def _cast(field: Field, given: str) -> str:
    if field.dtype.name == "Timestamp" and given == "TIMESTAMP":
        # the same as a cast in UTC, at a quarter of its cost
        return f"make_timestamptz(epoch_us({quoted(field.name)}))"
    return f"{quoted(field.name)}::{duckdb_type(field.dtype)}"


def _fits(given: str, dtype: DataType) -> bool:
    """Tell whether a DuckDB type may be cast to a declared one without losing anything silently (overflow raises)."""
    if dtype.is_integer:
        return given in _INTEGERS
    if dtype.is_float:
        return given in (*_INTEGERS[:3], "FLOAT") or (dtype.name == "Float64" and given in ("DOUBLE", "BIGINT"))
    if dtype.name == "Timestamp":
        return given.startswith("TIMESTAMP")
    if dtype.is_nested:
        return given.endswith("]") or given.startswith(("STRUCT", "MAP"))
    return given in (duckdb_type(dtype), '"NULL"')
