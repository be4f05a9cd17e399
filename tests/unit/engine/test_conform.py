"""The output of a transformation is what was declared, and no value changes on the way."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from featurekit_dagster import Array, Field, Float32, Float64, Int32, Int64, String, Struct, Timestamp
from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.domain.schema import DataType
from featurekit_dagster.engine.conform import conform_table
from featurekit_dagster.engine.local import compute_rows
from featurekit_dagster.errors import OutputSchemaMismatch, TransformError
from featurekit_dagster.intervals import Interval
from tests.support.visits import day, latest, write_visits

WHEN = datetime(2024, 1, 2, 12)  # noqa: DTZ001 - transformations return naive UTC
SPAN = Interval(day(1), day(3))


def view_of(folder: Path, dtype: DataType, **changes: Any) -> FeatureView:
    """Return a view whose output is `user`, `ts` and one column `x` of a type."""
    schema = [Field("user", Int64), Field("ts", Timestamp), Field("x", dtype)]
    return latest(write_visits(folder, []), schema=schema, timestamp_field="ts", **changes)


def conformed(folder: Path, dtype: DataType, values: Any) -> list[Any]:
    """Return what becomes of a column of a pandas, polars or Arrow output."""
    values = values if isinstance(values, pa.Array) else pa.array(values)
    table = pa.table({"user": [1] * len(values), "ts": [WHEN] * len(values), "x": values})
    return list(conform_table(view_of(folder, dtype), table)["x"].to_pylist())


def test_missing_and_extra_columns_are_named_together(tmp_path: Path) -> None:
    table = pa.table({"user": [1], "y": [1], "z": [2]})
    with pytest.raises(OutputSchemaMismatch) as refused:
        conform_table(view_of(tmp_path, Int64), table)
    assert refused.value.faults == (
        "column 'ts' is missing (there are user, y, z)",
        "column 'x' is missing (there are user, y, z)",
        "column 'y' is not declared; leave it out or add it to schema",
        "column 'z' is not declared; leave it out or add it to schema",
    )


def test_columns_come_in_the_declared_order(tmp_path: Path) -> None:
    table = pa.table({"x": [1], "ts": [WHEN], "user": [1]})
    assert conform_table(view_of(tmp_path, Int64), table).column_names == ["user", "ts", "x"]


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (Int64, pa.array([1, None, -5], pa.int8())),
        (Int64, pa.array([2**63 - 1], pa.uint64())),
        (Int32, pa.array([2**31 - 1, -(2**31)], pa.int64())),
        (Int64, pa.array([1.0, None, -(2.0**53)], pa.float64())),
        (Float64, pa.array([2**53, None], pa.int64())),
        (Float64, pa.array([1.5, None], pa.float32())),
        (Float32, pa.array([2**24], pa.int64())),
        (String, pa.array(["a", None], pa.large_string())),
        (String, pa.array(["a", "b", "a"]).dictionary_encode()),
        (Array(Int64), pa.array([[1, None], None, []], pa.large_list(pa.int32()))),
        (Array(String), pa.array([["a"]], pa.list_(pa.large_string()))),
        (Struct([Field("a", Int64)]), pa.array([{"a": 1}, None], pa.struct([("a", pa.int32())]))),
        (String, pa.nulls(2)),
        (Timestamp, pa.nulls(2)),
    ],
    ids=str,
)
def test_values_may_be_stored_otherwise_as_long_as_none_changes(
    tmp_path: Path, dtype: DataType, values: pa.Array
) -> None:
    assert conformed(tmp_path, dtype, values) == values.to_pylist()


@pytest.mark.parametrize(
    ("dtype", "values", "fault"),
    [
        (Int64, [271828.5], "column 'x' is double, declared Int64, and its values do not all fit"),
        (Int64, pa.array([float("nan")]), "column 'x' is double, declared Int64, and its values do not all fit"),
        (Int32, [271828 * 2**31], "column 'x' is int64, declared Int32, and its values do not all fit"),
        (Int64, pa.array([2**64 - 1], pa.uint64()), "column 'x' is uint64, declared Int64, and its values do not all"),
        (Float64, [2**53 + 1], "column 'x' is int64, declared Float64, and its values do not all fit"),
        (Float32, [271828.1], "column 'x' is double, declared Float32; convert it in the transformation"),
        (String, [271828], "column 'x' is int64, declared String; convert it"),
        (Int64, ["271828"], "column 'x' is string, declared Int64; convert it"),
        (Int64, [True], "column 'x' is bool, declared Int64; convert it"),
        (Timestamp, ["2024-01-01"], "column 'x' is string, declared Timestamp; convert it"),
        (Array(Int64), [["271828"]], "column 'x' is list<.*string>, declared Array"),
        (Array(Int64), [271828], "column 'x' is int64, declared Array"),
        (
            Array(Int32),
            [[271828 * 2**31]],
            "column 'x' is list<.*int64>, declared Array.*, and its values do not all fit",
        ),
        (Struct([Field("a", Int64)]), [{"a": 1, "b": 271828}], "column 'x' is struct<.*>, declared Struct"),
        (Struct([Field("a", Int64), Field("b", Int64)]), [{"a": 271828}], "column 'x' is struct<.*>, declared Struct"),
    ],
)
def test_values_that_would_change_are_refused_by_column_and_type_only(
    tmp_path: Path, dtype: DataType, values: Any, fault: str
) -> None:
    with pytest.raises(OutputSchemaMismatch, match=fault) as refused:
        conformed(tmp_path, dtype, values)
    assert "271828" not in str(refused.value)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Tokyo"])
def test_times_of_every_unit_and_zone_are_accepted(tmp_path: Path, unit: str, zone: str | None) -> None:
    moment = datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)
    aware = pa.array([moment, None], pa.timestamp("us", "UTC")).cast(pa.timestamp(unit, "UTC"))
    values = aware.cast(pa.timestamp(unit, zone)) if zone else aware.cast(pa.timestamp(unit))
    assert conformed(tmp_path, Timestamp, values) == [moment, None]


def test_a_time_between_two_microseconds_becomes_the_earlier_one(tmp_path: Path) -> None:
    values = pa.array([1, -1, 1001, None], pa.timestamp("ns"))
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    microsecond = timedelta(microseconds=1)
    assert conformed(tmp_path, Timestamp, values) == [epoch, epoch - microsecond, epoch + microsecond, None]


# ---- through a whole transformation ----------------------------------------------------------------------------------


def computed(folder: Path, dtype: DataType, transformation: Any, mode: str, **changes: Any) -> pa.Table:
    return compute_rows(view_of(folder, dtype, transformation=transformation, mode=mode, **changes), SPAN)


def test_nan_is_null_in_pandas_and_a_value_in_polars(tmp_path: Path) -> None:
    cells = {"user": [1, 2], "ts": [WHEN, WHEN], "x": [np.nan, 1.0]}
    in_pandas = computed(tmp_path, Float64, lambda visits: pd.DataFrame(cells), "pandas")
    assert in_pandas["x"].to_pylist() == [None, 1.0]
    in_polars = computed(tmp_path, Float64, lambda visits: pl.DataFrame(cells), "polars")
    assert in_polars["x"].null_count == 0
    assert np.isnan(in_polars["x"].to_pylist()[0])


def test_integers_that_pandas_made_floats_become_integers_again(tmp_path: Path) -> None:
    cells = {"user": [1, 2], "ts": [WHEN, WHEN], "x": [np.nan, 7.0]}
    assert computed(tmp_path, Int64, lambda visits: pd.DataFrame(cells), "pandas")["x"].to_pylist() == [None, 7]


@pytest.mark.parametrize(
    ("query", "dtype", "value"),
    [
        ("1::TINYINT", Int64, 1),
        ("1.5::FLOAT", Float64, 1.5),
        ("NULL", String, None),
        ("[1, 2]::INTEGER[]", Array(Int64), [1, 2]),
        ("TIMESTAMP '2024-01-01 00:00:00'", Timestamp, datetime(2024, 1, 1, tzinfo=UTC)),
        ("TIMESTAMPTZ '2024-01-01 00:00:00+02'", Timestamp, datetime(2023, 12, 31, 22, tzinfo=UTC)),
    ],
)
def test_a_query_may_return_what_fits_the_declared_type(
    tmp_path: Path, query: str, dtype: DataType, value: Any
) -> None:
    text = f"SELECT 1 AS user, TIMESTAMP '{WHEN}' AS ts, {query} AS x"
    assert computed(tmp_path, dtype, lambda visits: text, "sql")["x"].to_pylist() == [value]


@pytest.mark.parametrize(
    ("query", "dtype", "fault"),
    [
        ("'1' AS x", Int64, r"column 'x' is VARCHAR, declared Int64; write CAST\(x AS BIGINT\)"),
        ("1.5::DOUBLE AS x", Int64, r"column 'x' is DOUBLE, declared Int64; write CAST\(x AS BIGINT\)"),
        ("1.5::DOUBLE AS x", Float32, r"column 'x' is DOUBLE, declared Float32; write CAST\(x AS FLOAT\)"),
        (
            "DATE '2024-01-01' AS x",
            Timestamp,
            r"column 'x' is DATE, declared Timestamp; write CAST\(x AS TIMESTAMPTZ\)",
        ),
        ("1 AS x, 2 AS y", Int64, "column 'y' is not declared; leave it out or add it to schema"),
    ],
)
def test_a_query_of_other_columns_or_types_is_refused(tmp_path: Path, query: str, dtype: DataType, fault: str) -> None:
    text = f"SELECT {query}, 1 AS user, TIMESTAMP '{WHEN}' AS ts"
    with pytest.raises(OutputSchemaMismatch, match=fault):
        computed(tmp_path, dtype, lambda visits: text, "sql")


def test_a_value_that_overflows_in_a_query_is_refused_without_it(tmp_path: Path) -> None:
    text = f"SELECT 1 AS user, TIMESTAMP '{WHEN}' AS ts, (271828 * 2**31)::BIGINT + range AS x FROM range(1)"
    with pytest.raises(
        TransformError, match="the query failed while it ran .*; a value may not fit its type"
    ) as refused:
        computed(tmp_path, Int32, lambda visits: text, "sql")
    assert "271828" not in str(refused.value)
