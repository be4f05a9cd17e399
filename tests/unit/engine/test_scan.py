"""Sources are read to their range, as far down as they can be cut, and say what is wrong without their values."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from deltalake import write_deltalake
from pyarrow import parquet

from featurekit_dagster import (
    BatchSource,
    DatetimePartitionColumn,
    DeltaTableConfig,
    FileConfig,
    FilteredSource,
    SqlConfig,
    TectonTimeConstant,
    pandas_batch_config,
)
from featurekit_dagster.domain.sources import FilterContext, SourceRange
from featurekit_dagster.engine.duck import connect
from featurekit_dagster.engine.scan import register_inputs
from featurekit_dagster.errors import DeclarationError, SourceError
from featurekit_dagster.intervals import Interval
from featurekit_dagster.sql_text import quoted

DAY, HOUR, MICROSECOND = timedelta(days=1), timedelta(hours=1), timedelta(microseconds=1)
FIRST = datetime(2024, 3, 1)  # noqa: DTZ001 - sources hold naive UTC as well
TIMES = [FIRST - MICROSECOND, FIRST, FIRST + DAY - MICROSECOND, FIRST + DAY, FIRST + DAY + HOUR]
INSIDE = [1, 2]
DAY_OF_TEST = Interval(FIRST, FIRST + DAY)
ROWS = pl.DataFrame({"n": range(5), "ts": TIMES}, schema={"n": pl.Int64, "ts": pl.Datetime("us")})


def scanned(used: SourceRange, interval: Interval = DAY_OF_TEST, mocks: Mapping[str, Any] | None = None) -> pa.Table:
    with connect() as con:
        names = register_inputs(con, {"rows": used}, interval, mocks)
        return con.sql(f"FROM {quoted(names['rows'])}").to_arrow_table()


def numbers(used: SourceRange, interval: Interval = DAY_OF_TEST) -> list[int]:
    return sorted(scanned(used, interval)["n"].to_pylist())


def source(config: Any) -> BatchSource:
    return BatchSource(name="rows", batch_config=config)


def files(uri: Path | str, file_format: str = "parquet", **options: Any) -> BatchSource:
    return source(FileConfig(uri=str(uri), file_format=file_format, timestamp_field="ts", **options))


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", ["parquet", "csv", "json"])
def test_every_format_is_cut_to_the_interval(tmp_path: Path, file_format: str) -> None:
    path = tmp_path / f"rows.{file_format}"
    if file_format == "json":
        ROWS.with_columns(pl.col("ts").dt.strftime("%Y-%m-%d %H:%M:%S%.6f")).write_ndjson(path)
    else:
        getattr(ROWS, f"write_{file_format}")(path)
    assert numbers(FilteredSource(files(path, file_format))) == INSIDE
    assert scanned(FilteredSource(files(path, file_format))).schema.field("ts").type == pa.timestamp("us")


@pytest.mark.parametrize("uri", ["", "*/*.parquet", "a/b.parquet"])
def test_a_folder_a_glob_and_a_file_are_read(tmp_path: Path, uri: str) -> None:
    (tmp_path / "a").mkdir()
    ROWS.write_parquet(tmp_path / "a" / "b.parquet")
    assert numbers(FilteredSource(files(tmp_path / uri))) == INSIDE


@pytest.mark.parametrize(
    "kind",
    [
        pa.timestamp("us"),
        pa.timestamp("us", "UTC"),
        pa.timestamp("us", "America/New_York"),
        pa.timestamp("ns"),
        pa.timestamp("ms"),
        pa.timestamp("s"),
    ],
    ids=str,
)
def test_times_of_every_unit_and_zone_become_naive_utc(tmp_path: Path, kind: pa.DataType) -> None:
    exact = kind.unit in ("us", "ns")
    times = [t.replace(microsecond=0) if not exact else t for t in TIMES]
    arrow = pa.table({"n": range(5), "ts": pa.array(times, pa.timestamp("us")).cast(pa.timestamp("us", "UTC"))})
    column = arrow["ts"].cast(pa.timestamp("us")).cast(kind) if kind.tz is None else arrow["ts"].cast(kind)
    parquet.write_table(arrow.set_column(1, "ts", column), tmp_path / "rows.parquet")
    table = scanned(FilteredSource(files(tmp_path / "rows.parquet")))
    assert table["n"].to_pylist() == INSIDE
    assert table.schema.field("ts").type == pa.timestamp("us")
    assert table["ts"].to_pylist() == [times[n] for n in INSIDE]


@pytest.mark.parametrize("kind", ["datetime64[ns]", "datetime64[us]"])
def test_a_range_wider_than_nanoseconds_is_read(tmp_path: Path, kind: str) -> None:
    frame = pd.DataFrame({"n": [1, 2], "ts": pd.Series([FIRST, FIRST + DAY]).astype(kind)})
    frame.to_parquet(tmp_path / "rows.parquet")
    wide = Interval(datetime(1000, 1, 1), datetime(9999, 1, 1))  # noqa: DTZ001 - read as UTC
    assert numbers(FilteredSource(files(tmp_path / "rows.parquet")), wide) == [1, 2]
    assert numbers(FilteredSource(files(tmp_path / "rows.parquet")), Interval(wide.start, FIRST + DAY)) == [1]


def test_a_text_column_is_parsed_by_its_format(tmp_path: Path) -> None:
    rows = ROWS.with_columns(pl.col("ts").dt.strftime("%d.%m.%Y %H:%M:%S%.6f"))
    rows.write_csv(tmp_path / "rows.csv")
    config = files(tmp_path / "rows.csv", "csv", timestamp_format="%d.%m.%Y %H:%M:%S.%f")
    table = scanned(FilteredSource(config))
    assert table["n"].to_pylist() == INSIDE
    assert table["ts"].to_pylist() == [TIMES[n] for n in INSIDE]


def test_a_text_column_without_a_format_is_filtered_and_handed_over_as_it_is(tmp_path: Path) -> None:
    ROWS.with_columns(pl.col("ts").dt.strftime("%Y-%m-%dT%H:%M:%S%.6f")).write_parquet(tmp_path / "rows.parquet")
    table = scanned(FilteredSource(files(tmp_path / "rows.parquet")))
    assert table["n"].to_pylist() == INSIDE
    assert table.schema.field("ts").type == pa.string()


PARTITIONS: dict[str, tuple[list[DatetimePartitionColumn], str]] = {
    "date": ([DatetimePartitionColumn("day", "date")], "day=%Y-%m-%d"),
    "year, month and day": (
        [DatetimePartitionColumn(n, n) for n in ("year", "month", "day")],
        "year=%Y/month=%-m/day=%-d",
    ),
    "padded": (
        [DatetimePartitionColumn(n, n, zero_padded=True) for n in ("year", "month", "day")],
        "year=%Y/month=%m/day=%d",
    ),
    "hours": (
        [DatetimePartitionColumn(n, n) for n in ("year", "month", "day", "hour")],
        "year=%Y/month=%m/day=%d/hour=%H",
    ),
    "year and month": ([DatetimePartitionColumn("y", "year"), DatetimePartitionColumn("m", "month")], "y=%Y/m=%m"),
    "year": ([DatetimePartitionColumn("y", "year")], "y=%Y"),
    "year and day": ([DatetimePartitionColumn("y", "year"), DatetimePartitionColumn("d", "day")], "y=%Y/d=%d"),
}


@pytest.mark.parametrize("kind", list(PARTITIONS))
def test_files_of_other_partitions_are_never_opened(tmp_path: Path, kind: str) -> None:
    columns, pattern = PARTITIONS[kind]
    for n, time in enumerate(TIMES):
        folder = tmp_path / time.strftime(pattern)
        folder.mkdir(parents=True, exist_ok=True)
        pl.DataFrame({"n": [n], "ts": [time]}).write_parquet(folder / f"{n}.parquet")
    for year in (2023, 2025):
        unreadable = tmp_path / datetime(year, 3, 1).strftime(pattern)  # noqa: DTZ001 - a name
        unreadable.mkdir(parents=True)
        (unreadable / "broken.parquet").write_bytes(b"no such format")
    used = files(tmp_path, datetime_partition_columns=columns)
    assert numbers(FilteredSource(used)) == INSIDE
    assert numbers(FilteredSource(used, start_time_offset=-HOUR)) == [0, *INSIDE]
    with pytest.raises(SourceError, match="source 'rows' cannot be read"):
        numbers(used.unfiltered())


def test_a_neighbouring_day_is_never_opened(tmp_path: Path) -> None:
    for day in (1, 2, 3):
        folder = tmp_path / f"date=2024-03-0{day}"
        folder.mkdir()
        (folder / "rows.parquet").write_bytes(b"no such format")
    ROWS.write_parquet(tmp_path / "date=2024-03-02" / "rows.parquet")
    used = files(tmp_path, datetime_partition_columns=[DatetimePartitionColumn("date", "date")])
    assert numbers(FilteredSource(used), Interval(FIRST + DAY, FIRST + 2 * DAY)) == [3, 4]


def test_a_missing_file_is_told_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"source 'rows' cannot be read: IO Error: No files found.*none\.parquet"):
        scanned(FilteredSource(files(tmp_path / "none.parquet")))


def test_a_column_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    ROWS.rename({"ts": "when"}).write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(SourceError, match="source 'rows' cannot be read: it has no column 'ts'; there are n, when"):
        scanned(FilteredSource(files(tmp_path / "rows.parquet")))


# ---- tables and databases --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zone", [None, "UTC"])
def test_a_delta_table_is_cut_to_the_interval(tmp_path: Path, zone: str | None) -> None:
    write_deltalake(str(tmp_path / "table"), ROWS.with_columns(pl.col("ts").dt.replace_time_zone(zone)).to_arrow())
    used = source(DeltaTableConfig(uri=str(tmp_path / "table"), timestamp_field="ts"))
    table = scanned(FilteredSource(used))
    assert sorted(table["n"].to_pylist()) == INSIDE
    assert table.schema.field("ts").type == pa.timestamp("us")
    assert numbers(used.unfiltered()) == [0, 1, 2, 3, 4]


def test_a_missing_delta_table_is_told_by_its_path(tmp_path: Path) -> None:
    used = source(DeltaTableConfig(uri=str(tmp_path / "none"), timestamp_field="ts"))
    with pytest.raises(SourceError, match="source 'rows' cannot be read: there is no Delta table at .*none"):
        scanned(FilteredSource(used))


def database(path: Path, times: list[str]) -> BatchSource:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("CREATE TABLE visits (n INTEGER, ts TEXT)")
        connection.executemany("INSERT INTO visits VALUES (?, ?)", list(enumerate(times)))
    connection.close()
    return source(
        SqlConfig(url=f"sqlite:///{path}", query="SELECT n, ts FROM visits WHERE n >= 0", timestamp_field="ts")
    )


@pytest.mark.parametrize("separator", [" ", "T"])
@pytest.mark.parametrize("timespec", ["auto", "microseconds"])
def test_times_that_sqlite_holds_as_text_are_cut_exactly(tmp_path: Path, separator: str, timespec: str) -> None:
    used = database(tmp_path / "rows.db", [t.isoformat(separator, timespec) for t in TIMES])
    assert numbers(FilteredSource(used)) == INSIDE
    assert numbers(FilteredSource(used), Interval(FIRST + HOUR, FIRST + DAY + MICROSECOND)) == [2, 3]
    assert numbers(used.unfiltered()) == [0, 1, 2, 3, 4]


def test_a_database_never_tells_its_url(tmp_path: Path) -> None:
    table = database(tmp_path / "rows.db", [])
    assert "sqlite" not in repr(table)
    for config in (
        SqlConfig(url=f"sqlite:///{tmp_path}/secret/none.db", query="SELECT 1 AS n", timestamp_field="ts"),
        SqlConfig(url=f"sqlite:///{tmp_path}/secret.db", query="SELECT * FROM nothing WHERE a = 'secret'"),
        SqlConfig(url="nothing://secret:secret@secret/", query="SELECT 1 AS n"),
        SqlConfig(url="secret", query="SELECT 1 AS n"),
    ):
        used = source(config)
        with pytest.raises(SourceError, match="^source 'rows' cannot be read: ") as error:
            scanned(used.unfiltered() if config.timestamp_field is None else FilteredSource(used))
        assert "secret" not in str(error.value)


# ---- functions -------------------------------------------------------------------------------------------------------


def test_a_function_that_filters_is_told_the_naive_range() -> None:
    told: list[FilterContext] = []

    @pandas_batch_config(supports_time_filtering=True)
    def rows(filter_context: FilterContext) -> pd.DataFrame:
        told.append(filter_context)
        return ROWS.to_pandas()

    assert numbers(FilteredSource(source(rows), start_time_offset=-DAY)) == [0, 1, 2, 3, 4]
    assert told == [FilterContext(FIRST - DAY, FIRST + DAY)]
    assert numbers(source(rows).unfiltered()) == [0, 1, 2, 3, 4]
    assert told[1] == FilterContext(None, None)


def test_a_function_that_does_not_filter_is_called_without_a_range() -> None:
    @pandas_batch_config(data_delay=HOUR)
    def rows() -> pd.DataFrame:
        return ROWS.to_pandas()

    assert source(rows).data_delay == HOUR
    assert numbers(source(rows).unfiltered()) == [0, 1, 2, 3, 4]
    assert len(rows()) == 5


def test_what_a_function_raises_is_told_by_its_type_only() -> None:
    @pandas_batch_config()
    def rows() -> pd.DataFrame:
        raise ValueError("user 271828 is broken")

    with pytest.raises(SourceError, match="source 'rows' cannot be read: ValueError") as error:
        scanned(source(rows).unfiltered())
    assert "271828" not in str(error.value)


# ---- ranges ----------------------------------------------------------------------------------------------------------

START, END = TectonTimeConstant.MATERIALIZATION_START_TIME, TectonTimeConstant.MATERIALIZATION_END_TIME
PAST, FUTURE = TectonTimeConstant.UNBOUNDED_PAST, TectonTimeConstant.UNBOUNDED_FUTURE


@pytest.mark.parametrize(
    ("start", "end", "found"),
    [
        (START, END, [1, 2]),
        (START - MICROSECOND, END + MICROSECOND, [0, 1, 2, 3]),
        (PAST, END, [0, 1, 2]),
        (START, FUTURE, [1, 2, 3, 4]),
        (PAST, FUTURE, [0, 1, 2, 3, 4]),
        (FIRST + DAY, FUTURE, [3, 4]),
        ((FIRST + DAY).replace(tzinfo=timezone(HOUR)), END + DAY, [2, 3, 4]),
        (START, START, []),
    ],
)
def test_a_selected_range_is_half_open(tmp_path: Path, start: Any, end: Any, found: list[int]) -> None:
    ROWS.write_parquet(tmp_path / "rows.parquet")
    expected = found if start != (FIRST + DAY).replace(tzinfo=timezone(HOUR)) else [2, 3, 4]
    assert numbers(files(tmp_path / "rows.parquet").select_range(start, end)) == expected


def test_a_range_that_ends_before_it_starts_for_a_job_is_refused(tmp_path: Path) -> None:
    ROWS.write_parquet(tmp_path / "rows.parquet")
    used = files(tmp_path / "rows.parquet").select_range(START, FIRST - DAY)
    with pytest.raises(DeclarationError, match="start is after end"):
        scanned(used)


def test_a_mock_is_cut_like_a_source_with_a_time_column_and_whole_for_a_function(tmp_path: Path) -> None:
    assert sorted(scanned(FilteredSource(files(tmp_path)), mocks={"rows": ROWS})["n"].to_pylist()) == INSIDE

    @pandas_batch_config(supports_time_filtering=True)
    def rows(filter_context: FilterContext) -> pd.DataFrame:
        raise AssertionError("a mocked function is not called")

    assert len(scanned(FilteredSource(source(rows)), mocks={"rows": ROWS})) == 5
