"""What functions accept, store and answer."""

from __future__ import annotations

from datetime import timedelta

import pytest

from featurekit_dagster.domain.aggregation import (
    FUNCTION_NAMES,
    AggregateFeature,
    PartialColumn,
    check_function,
    feature_name,
    partial_columns,
)
from featurekit_dagster.domain.schema import Array, Bool, DataType, Field, Float32, Float64, Int32, Int64, String
from featurekit_dagster.domain.windows import TimeWindow

DAY = TimeWindow(timedelta(days=1))


def feature(function: str, dtype: DataType = Float64, window: TimeWindow = DAY) -> AggregateFeature:
    return AggregateFeature(name=function, column=Field("v", dtype), function=function, window=window)


def test_unknown_function_is_refused_with_the_known_ones() -> None:
    fault = check_function("first", Int64)
    assert fault is not None
    assert all(name in fault for name in FUNCTION_NAMES)


@pytest.mark.parametrize("dtype", [String, Bool, Array(Int64)], ids=str)
def test_only_count_and_last_take_what_is_no_number(dtype: DataType) -> None:
    assert [name for name in FUNCTION_NAMES if check_function(name, dtype) is None] == ["count", "last"]


@pytest.mark.parametrize("dtype", [Int32, Int64, Float32, Float64], ids=str)
def test_numbers_are_taken_by_all_functions(dtype: DataType) -> None:
    assert [check_function(name, dtype) for name in FUNCTION_NAMES] == [None] * len(FUNCTION_NAMES)


@pytest.mark.parametrize(
    ("function", "dtype", "answer"),
    [
        ("count", String, Int64),
        ("sum", Int32, Int32),
        ("sum", Float32, Float32),
        ("min", Int32, Int32),
        ("last", String, String),
        ("mean", Int32, Float64),
        ("stddev", Float32, Float64),
    ],
)
def test_types_of_answers(function: str, dtype: DataType, answer: DataType) -> None:
    assert feature(function, dtype).dtype == answer


def test_only_a_count_is_zero_where_there_is_nothing() -> None:
    assert {name: feature(name).default for name in FUNCTION_NAMES} == {
        name: 0 if name == "count" else None for name in FUNCTION_NAMES
    }


def test_functions_of_one_column_share_partial_columns() -> None:
    week = TimeWindow(timedelta(days=7))
    features = [feature("mean", Int32), feature("sum", Int32, week), feature("count", Int32), feature("var_pop", Int32)]
    assert partial_columns(features) == (
        PartialColumn("sum_v", "sum", "v", Int64),
        PartialColumn("count_v", "count", "v", Int64),
        PartialColumn("mean_v", "mean", "v", Float64),
        PartialColumn("m2_v", "m2", "v", Float64),
    )


@pytest.mark.parametrize(
    ("function", "size", "offset", "name"),
    [
        ("sum", timedelta(days=1), timedelta(0), "v_sum_1d_1h"),
        ("count", timedelta(hours=36), timedelta(0), "v_count_1d12h_1h"),
        ("mean", timedelta(minutes=90), timedelta(0), "v_mean_1h30m_1h"),
        ("variance", timedelta(days=7), timedelta(0), "v_variance_7d_1h"),
        ("count", timedelta(days=1), timedelta(hours=-1), "v_count_1d_1h_offset_1h"),
    ],
)
def test_names_of_features(function: str, size: timedelta, offset: timedelta, name: str) -> None:
    assert feature_name("v", function, TimeWindow(size, offset), "1h") == name
