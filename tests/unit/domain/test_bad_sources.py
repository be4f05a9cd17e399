"""What is refused about sources and the spans that are read of them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from featurekit_dagster.domain.sources import (
    BatchSource,
    DatetimePartitionColumn,
    DeltaTableConfig,
    FileConfig,
    FilteredSource,
    HiveSource,
    SqlConfig,
    TectonTimeConstant,
    pandas_batch_config,
)
from featurekit_dagster.errors import DeclarationError
from featurekit_dagster.intervals import Interval
from tests.unit.domain.declared import DAY, START, TRANSACTIONS, faults, plain

T = TectonTimeConstant
FILE = {"uri": "rows.csv", "file_format": "csv"}
DELTA = {"uri": "table"}
SQL = {"url": "sqlite://", "query": "SELECT 1"}


@pytest.mark.parametrize(
    ("kind", "arguments", "changes", "fault"),
    [
        (FileConfig, FILE, {"file_format": "xml"}, "file_format 'xml' is not known; it is one of parquet, csv, json"),
        (FileConfig, FILE, {"uri": ""}, "uri is empty; give the path of a file, a folder or a glob"),
        (FileConfig, FILE, {"uri": 5}, "uri is an int; give the path of a file, a folder or a glob as text"),
        (FileConfig, FILE, {"timestamp_field": ""}, "timestamp_field is empty; give a name"),
        (
            FileConfig,
            FILE,
            {"datetime_partition_columns": ["year"]},
            "'year' is in datetime_partition_columns; give DatetimePartitionColumn(name, datepart)",
        ),
        (DeltaTableConfig, DELTA, {"uri": ""}, "uri is empty; give the path of the Delta table"),
        (SqlConfig, SQL, {"url": ""}, "url is empty; give a SQLAlchemy URL"),
        (SqlConfig, SQL, {"query": " \n"}, "query is empty; give a SELECT"),
        (SqlConfig, SQL, {"query": None}, "query is None; give a SELECT as text"),
    ],
)
def test_a_configuration_says_where_its_rows_are(
    kind: Callable[..., Any], arguments: dict[str, Any], changes: dict[str, Any], fault: str
) -> None:
    assert faults(kind, **(arguments | changes)) == (fault,)


@pytest.mark.parametrize(("kind", "arguments"), [(FileConfig, FILE), (DeltaTableConfig, DELTA), (SqlConfig, SQL)])
@pytest.mark.parametrize(
    ("delay", "fault"),
    [
        (-DAY, "data_delay -1 day, 0:00:00 is negative; data cannot be complete before its interval ends, "),
        (timedelta(microseconds=1), "data_delay 0:00:00.000001 is not in whole seconds; round it"),
        (timedelta(days=3_652_501), "data_delay 3652501 days, 0:00:00 is over 10,000 years; give a shorter one"),
        (3600, "data_delay is an int; give a timedelta"),
    ],
)
def test_a_data_delay_is_a_duration_of_whole_seconds(
    kind: Callable[..., Any], arguments: dict[str, Any], delay: Any, fault: str
) -> None:
    (found,) = faults(kind, **arguments, data_delay=delay)
    assert found.startswith(fault)


def test_the_data_delay_of_a_function_obeys_the_same_rules() -> None:
    with pytest.raises(DeclarationError, match="pandas_batch_config: 1 fault\n  - data_delay -1 day, 0:00:00 is neg"):
        pandas_batch_config(data_delay=-DAY)


def test_all_faults_of_a_configuration_are_reported_at_once() -> None:
    with pytest.raises(DeclarationError) as refused:
        FileConfig(uri="", file_format="orc", timestamp_field="", data_delay=-DAY)
    assert refused.value.subject == "FileConfig ''"
    assert [fault.split(" ")[0] for fault in refused.value.faults] == [
        "uri",
        "timestamp_field",
        "data_delay",
        "file_format",
    ]


def test_a_database_url_is_never_shown() -> None:
    url = "postgresql://reader:secret@db/rows"
    with pytest.raises(DeclarationError) as refused:
        SqlConfig(url=url, query="", data_delay=-DAY)
    assert "secret" not in str(refused.value) + repr(SqlConfig(url=url, query="SELECT 1"))


def test_a_date_part_is_known() -> None:
    assert faults(DatetimePartitionColumn, "week", "week") == (
        "datepart 'week' is not known; it is one of year, month, day, hour, date",
    )


def test_a_source_has_a_name_and_a_configuration_of_a_known_kind() -> None:
    assert faults(BatchSource, name="", batch_config="rows.csv") == (
        "name is empty; give a name",
        "batch_config is 'rows.csv'; it is a FileConfig, a DeltaTableConfig, a SqlConfig or a function decorated with "
        "pandas_batch_config",
    )


def test_a_hive_source_is_refused_with_what_to_use_instead() -> None:
    assert faults(HiveSource, database="fraud", table="transactions", timestamp_field="timestamp") == (
        "there is no Hive metastore here; read the table's files with FileConfig(uri, file_format), a Delta table "
        "with DeltaTableConfig(uri), or a database with SqlConfig(url, query)",
    )


def test_a_filtered_source_filters_a_source() -> None:
    assert faults(FilteredSource, plain()) == ("source is a FeatureView; give a BatchSource or a StreamSource",)


def test_a_start_time_offset_reaches_back() -> None:
    with pytest.raises(DeclarationError) as refused:
        FilteredSource(TRANSACTIONS, start_time_offset=DAY)
    assert str(refused.value) == (
        "FilteredSource of source 'transactions': 1 fault\n"
        "  - start_time_offset 1 day, 0:00:00 is positive; it reaches back, so give zero or less"
    )
    assert faults(FilteredSource, TRANSACTIONS, start_time_offset="-6d") == (
        "start_time_offset is '-6d'; give a timedelta of zero or less",
    )


@pytest.mark.parametrize(
    ("start", "end", "fault"),
    [
        (START + DAY, START, "start_time 2024-01-02T00:00Z is after end_time 2024-01-01T00:00Z; exchange them"),
        (T.UNBOUNDED_FUTURE, START, "start_time is UNBOUNDED_FUTURE; nothing lies after it"),
        (START, T.UNBOUNDED_PAST, "end_time is UNBOUNDED_PAST; nothing lies before it"),
        ("2024-01-01", START, "start_time is '2024-01-01'; give a datetime, or a TectonTimeConstant, moved by a "),
        (START, 5, "end_time is an int; give a datetime, or a TectonTimeConstant, moved by a timedelta or not"),
    ],
)
def test_a_range_begins_before_it_ends(start: Any, end: Any, fault: str) -> None:
    (found,) = faults(TRANSACTIONS.select_range, start, end)
    assert found.startswith(fault)


@pytest.mark.parametrize("constant", [T.UNBOUNDED_PAST, T.UNBOUNDED_FUTURE])
def test_an_unbounded_end_cannot_be_moved(constant: TectonTimeConstant) -> None:
    fault = f"{constant.name} + 1 day, 0:00:00 has no meaning; use {constant.name} alone"
    assert faults(lambda: constant + DAY) == (fault,)
    with pytest.raises(DeclarationError):
        constant - DAY
    with pytest.raises(TypeError):
        constant + 5  # type: ignore[operator]


def test_a_range_whose_ends_cross_in_a_job_is_refused_there() -> None:
    crossed = TRANSACTIONS.select_range(T.MATERIALIZATION_END_TIME, START)
    assert crossed.evaluate(Interval(START - DAY, START)) == (START, START)
    assert faults(crossed.evaluate, Interval(START, START + DAY)) == (
        "select_range gives 2024-01-02T00:00Z to 2024-01-01T00:00Z for [2024-01-01T00:00Z, 2024-01-02T00:00Z): "
        "start is after end",
    )


def test_a_filtered_source_hands_over_the_interval_and_what_its_offset_adds() -> None:
    interval = Interval(START, START + DAY)
    assert FilteredSource(TRANSACTIONS).evaluate(interval) == (START, START + DAY)
    assert FilteredSource(TRANSACTIONS, start_time_offset=-6 * DAY).evaluate(interval) == (START - 6 * DAY, START + DAY)
    assert TRANSACTIONS.unfiltered().evaluate(interval) == (None, None)
    assert not TRANSACTIONS.unfiltered().is_filtered


def test_a_naive_end_of_a_range_is_utc() -> None:
    naive = datetime(2024, 1, 1)  # noqa: DTZ001 - the point of the test
    assert TRANSACTIONS.select_range(naive, T.UNBOUNDED_FUTURE).evaluate(Interval(START, START + DAY)) == (START, None)


def test_a_plain_source_is_handed_over_whole() -> None:
    (used,) = plain().inputs.values()
    assert used == TRANSACTIONS.unfiltered()
