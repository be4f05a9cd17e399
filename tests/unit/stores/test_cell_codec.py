"""Cells of variable width as bytes: every value comes back, lists of numbers as small as they can be."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurekit_dagster.arrow_types import record_type
from featurekit_dagster.domain.schema import (
    Array,
    Bool,
    Bytes,
    DataType,
    Field,
    Float32,
    Float64,
    Int32,
    Int64,
    Map,
    String,
    Struct,
    Timestamp,
)
from featurekit_dagster.stores.cell_codec import decoder, encode_cells, user_value

ELEMENTS: dict[DataType, st.SearchStrategy[Any]] = {
    Int32: st.integers(-(2**31), 2**31 - 1),
    Int64: st.integers(-(2**63), 2**63 - 1) | st.integers(0, 200),
    Float32: st.floats(width=32),
    Float64: st.floats(width=64),
    Bool: st.booleans(),
    Timestamp: st.datetimes(timezones=st.just(UTC)),
    String: st.text(max_size=3),
    Bytes: st.binary(max_size=3),
    Struct([Field("a", Timestamp), Field("b", Array(Int64))]): st.fixed_dictionaries(
        {"a": st.just(datetime(1969, 1, 1, tzinfo=UTC)), "b": st.lists(st.integers(0, 3), max_size=2)}
    ),
    Map(String, Float64): st.dictionaries(st.text(max_size=2), st.floats(-1, 1), max_size=2),
}


def read_back(dtype: DataType, values: list[Any], skip: int = 0) -> list[Any]:
    """Return a column after it was bytes; the first rows are cut off as Arrow does, which shifts its offsets."""
    cells = encode_cells(dtype, pa.array(values, record_type(dtype)).slice(skip))
    decode, convert = decoder(dtype), user_value(dtype)
    raw = [decode(cell) for cell in cells]
    return [value if convert is None else convert(value) for value in raw]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("element", ELEMENTS, ids=str)
@pytest.mark.parametrize("depth", [1, 2])
@given(data=st.data())
def test_a_list_comes_back_as_it_was(element: DataType, depth: int, data: st.DataObject) -> None:
    dtype, values = Array(element), st.lists(st.none() | ELEMENTS[element], max_size=4)
    if depth > 1:
        dtype, values = Array(dtype), st.lists(st.none() | values, max_size=3)
    column = data.draw(st.lists(values, min_size=1, max_size=5))
    skip = data.draw(st.integers(0, len(column)))
    found = read_back(dtype, column, skip)
    assert len(found) == len(column) - skip
    assert all(map(same, found, column[skip:])), (found, column)


def test_a_missing_list_is_empty_bytes_and_an_empty_one_is_not() -> None:
    for dtype in (Array(Int64), Array(String), Array(Array(Float64))):
        missing, empty = encode_cells(dtype, pa.array([None, []], record_type(dtype)))
        assert missing == b""
        assert decoder(dtype)(missing) is None
        assert empty
        assert list(decoder(dtype)(empty)) == []


@pytest.mark.parametrize(
    ("dtype", "values", "size"),
    [
        (Int64, [0, 100], 1),
        (Int64, [-129], 2),
        (Int64, [70_000], 4),
        (Int64, [-(2**63)], 8),
        (Bool, [True, False], 1),
        (Float32, [1.5], 4),
        (Float64, [math.nan], 8),
    ],
)
def test_numbers_are_as_narrow_as_the_column_allows(dtype: DataType, values: list[Any], size: int) -> None:
    (cell,) = encode_cells(Array(dtype), pa.array([values], record_type(Array(dtype))))
    assert len(cell) == 1 + size * len(values)


def test_times_and_truth_values_are_raw_until_a_user_sees_them() -> None:
    time = datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    (cell,) = encode_cells(Array(Timestamp), pa.array([[time, None]], record_type(Array(Timestamp))))
    assert list(decoder(Array(Timestamp))(cell)) == [-1, None]
    assert read_back(Array(Array(Bool)), [[[True], None]]) == [[[True], None]]
