"""Frames as a Delta table can keep them: types that it lacks become wider ones, and names of types that stay."""

from __future__ import annotations

import pyarrow as pa

from featurekit_dagster.arrow_types import TIMESTAMP
from featurekit_dagster.engine.arrow import UNCONVERTIBLE, floored_to_microseconds
from featurekit_dagster.errors import UnstorableColumns

_WIDER = {
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.int64(),
    pa.float16(): pa.float32(),
    pa.null(): pa.string(),
    pa.large_string(): pa.string(),
    pa.string_view(): pa.string(),
    pa.large_binary(): pa.binary(),
    pa.binary_view(): pa.binary(),
    pa.date64(): pa.date32(),
}
_KEPT = {
    pa.int8(),
    pa.int16(),
    pa.int32(),
    pa.int64(),
    pa.float32(),
    pa.float64(),
    pa.bool_(),
    pa.string(),
    pa.binary(),
    pa.date32(),
}


def storable(table: pa.Table) -> pa.Table:
    """Return a table with every column in a type that a Delta table has; values stay the same.

    Unsigned integers become wider signed ones, categories become their values, times are in microseconds (in between,
    the earlier one) and those with a zone in UTC.

    Raises:
        UnstorableColumns: A type has no counterpart, or an unsigned integer is too large for a signed one.
    """
    faults, columns = [], []
    for field, column in zip(table.schema, table.columns, strict=True):
        wanted = storable_type(field.type)
        try:
            columns.append(None if wanted is None else _cast(column, wanted))
        except UNCONVERTIBLE:
            wanted = None
        if wanted is None:
            faults.append(f"{field.name} ({field.type})")
    if faults:
        raise UnstorableColumns(faults=faults)
    return pa.table(columns, names=table.column_names)


def storable_type(given: pa.DataType) -> pa.DataType | None:
    """Return the type under which a Delta table keeps values of a type; None where there is none."""
    if given in _KEPT or pa.types.is_decimal128(given):
        return given
    if given in _WIDER:
        return _WIDER[given]
    if pa.types.is_timestamp(given):
        return pa.timestamp("us") if given.tz is None else TIMESTAMP
    if pa.types.is_dictionary(given):
        return storable_type(given.value_type)
    if pa.types.is_fixed_size_binary(given):
        return pa.binary()
    return _nested_type(given)


def _nested_type(given: pa.DataType) -> pa.DataType | None:
    if pa.types.is_list(given) or pa.types.is_large_list(given) or pa.types.is_fixed_size_list(given):
        item = storable_type(given.value_type)
        return None if item is None else pa.list_(item)
    if pa.types.is_map(given):
        key, item = storable_type(given.key_type), storable_type(given.item_type)
        return None if key is None or item is None else pa.map_(key, item)
    if pa.types.is_struct(given):
        members = [(member.name, storable_type(member.type)) for member in given]
        return None if any(kind is None for _, kind in members) else pa.struct(members)
    return None


def type_text(kind: pa.DataType) -> str:
    """Return a stored type as text that says nothing but what Delta keeps: elements of lists have no name.

    >>> type_text(pa.list_(pa.field("item", pa.int64())))
    'list<int64>'
    """
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"list<{type_text(kind.value_type)}>"
    if pa.types.is_map(kind):
        return f"map<{type_text(kind.key_type)}, {type_text(kind.item_type)}>"
    if pa.types.is_struct(kind):
        return f"struct<{', '.join(f'{member.name}: {type_text(member.type)}' for member in kind)}>"
    if pa.types.is_timestamp(kind):
        return "timestamp" if kind.tz is None else "timestamp[UTC]"
    return str(kind)


def _cast(column: pa.ChunkedArray, wanted: pa.DataType) -> pa.ChunkedArray:
    if column.type == wanted:
        return column
    if pa.types.is_dictionary(column.type):
        return _cast(column.cast(column.type.value_type), wanted)
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        return floored_to_microseconds(column).cast(wanted)
    return column.cast(wanted)
