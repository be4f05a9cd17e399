"""A transformation sees naive UTC and exact values, and its rows are cut to the interval."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest
from pyarrow import parquet

from featurekit_dagster import BatchSource, Field, FileConfig, FilteredSource, Int64, SqlConfig, String, Timestamp
from featurekit_dagster.engine.local import compute_rows, compute_stored
from featurekit_dagster.errors import OutputSchemaMismatch, SourceError, TransformError
from featurekit_dagster.intervals import Interval
from tests.support.visits import DAY, FIELDS, MICROSECOND, day, latest, totals, visit, write_visits

SPAN = Interval(day(2), day(3))
EDGES = [visit(n, t) for n, t in enumerate([day(2) - MICROSECOND, day(2), day(3) - MICROSECOND, day(3)])]
MODES: dict[str, Any] = {
    "pandas": lambda visits: visits,
    "polars": lambda visits: visits,
    "sql": lambda visits: f"SELECT * FROM {visits}",
}


@pytest.mark.parametrize("mode", list(MODES))
def test_rows_outside_the_interval_are_cut_whatever_the_source_gives(tmp_path: Path, mode: str) -> None:
    source = write_visits(tmp_path, EDGES)
    for used in (source, FilteredSource(source), FilteredSource(source, start_time_offset=-DAY)):
        view = latest(source, MODES[mode], mode=mode, sources=[used])
        table = compute_rows(view, SPAN)
        assert sorted(table["user"].to_pylist()) == [1, 2]
        assert table.column_names == [field.name for field in FIELDS]


@pytest.mark.parametrize("mode", ["pandas", "polars"])
def test_a_transformation_sees_naive_utc_and_its_context_compares_with_it(tmp_path: Path, mode: str) -> None:
    seen: list[Any] = []

    def transformation(visits: Any, context: Any) -> Any:
        seen.append(str(visits["ts"].dtype))
        kept = (visits["ts"] >= context.start_time) & (visits["ts"] <= context.end_time_inclusive)
        return visits[kept] if mode == "pandas" else visits.filter(kept)

    source = write_visits(tmp_path, EDGES)
    view = latest(source, transformation, mode=mode, sources=[source], context_parameter_name="context")
    assert sorted(compute_rows(view, SPAN)["user"].to_pylist()) == [1, 2]
    assert seen[0] in ("datetime64[us]", "Datetime(time_unit='us', time_zone=None)", "Datetime(time_unit='us')")


@pytest.mark.parametrize("dtype", [pl.Int64, pl.UInt64, pl.Int32, pl.UInt8])
def test_integers_with_nulls_stay_exact_integers_in_pandas(tmp_path: Path, dtype: Any) -> None:
    largest = {pl.UInt8: 255, pl.Int32: 2**31 - 1}.get(dtype, 2**53 + 1)
    rows = pl.DataFrame({"user": [1, 2], "ts": [day(2.5)] * 2, "x": pl.Series([largest, None], dtype=dtype)})
    rows.write_parquet(tmp_path / "rows.parquet")
    seen: list[Any] = []

    def transformation(rows: pd.DataFrame) -> pd.DataFrame:
        seen.append(pd.api.types.is_integer_dtype(rows["x"].dtype))
        return rows

    source = BatchSource(
        name="rows", batch_config=FileConfig(uri=str(tmp_path / "rows.parquet"), file_format="parquet")
    )
    schema = [Field("user", Int64), Field("ts", Timestamp), Field("x", Int64)]
    view = latest(source, transformation, mode="pandas", sources=[source], schema=schema)
    assert compute_rows(view, SPAN)["x"].to_pylist() == [largest, None]
    assert seen == [True]


@pytest.mark.parametrize("mode", list(MODES))
def test_a_row_without_timestamp_is_refused(tmp_path: Path, mode: str) -> None:
    source = write_visits(tmp_path, EDGES)
    rows = parquet.read_table(tmp_path / "visits.parquet")
    pl.DataFrame(rows).with_columns(ts=pl.when(pl.col("user") > 1).then("ts")).write_parquet(
        tmp_path / "visits.parquet"
    )
    view = latest(source, MODES[mode], mode=mode, sources=[source])
    with pytest.raises(TransformError, match="newest: a row of the output has no ts; leave such rows out or fill it"):
        compute_rows(view, SPAN)


@pytest.mark.parametrize("mode", ["pandas", "polars", "sql"])
def test_what_a_function_raises_is_told_by_its_type_only(tmp_path: Path, mode: str) -> None:
    def broken(visits: Any) -> Any:
        raise KeyError("user 271828")

    with pytest.raises(TransformError, match="^newest: the transformation raised KeyError$"):
        compute_rows(latest(write_visits(tmp_path, []), broken, mode=mode), SPAN)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELEC 1", "the query is refused: Parser Error"),
        ("SELECT nothing FROM {visits}", "the query is refused: Binder Error: .*nothing"),
        ("SELECT * FROM nowhere", "the query is refused: Catalog Error: .*nowhere"),
        ("SELECT * REPLACE ('271828x'::INTEGER AS user) FROM {visits}", "the query"),
        ("SELECT * REPLACE (page::INTEGER AS user) FROM {visits}", "the query failed while it ran .*Exception"),
        ("SELECT * REPLACE (error(page) AS page) FROM {visits}", "the query failed while it ran .*Exception"),
    ],
)
def test_a_query_that_fails_quotes_no_value(tmp_path: Path, query: str, message: str) -> None:
    rows = [(1, day(2.5), 1.0, 1, "271828x")]
    view = latest(write_visits(tmp_path, rows), lambda visits: query.format(visits=visits), mode="sql")
    with pytest.raises(TransformError, match=message) as refused:
        compute_rows(view, SPAN)
    assert "271828" not in str(refused.value)


def test_a_query_has_to_be_a_text(tmp_path: Path) -> None:
    view = latest(write_visits(tmp_path, []), lambda visits: 5, mode="sql")
    with pytest.raises(TransformError, match="mode 'sql' returns the text of a query, not a int"):
        compute_rows(view, SPAN)


def test_something_that_is_no_frame_is_refused(tmp_path: Path) -> None:
    view = latest(write_visits(tmp_path, []), lambda visits: 5)
    with pytest.raises(
        TransformError, match="^newest: the transformation's output: a int is no frame; give a pandas, polars"
    ):
        compute_rows(view, SPAN)


def test_objects_of_no_type_are_refused_without_them(tmp_path: Path) -> None:
    cells = {"user": [1, 2], "ts": [day(2.5)] * 2, "amount": [1.0, 2.0], "visits": [1, 2], "page": ["271828", 7]}
    frame = pd.DataFrame(cells)
    view = latest(write_visits(tmp_path, []), lambda visits: frame, mode="pandas")
    with pytest.raises(
        OutputSchemaMismatch, match="column 'page' holds values that are not all of one type"
    ) as refused:
        compute_rows(view, SPAN)
    assert "271828" not in str(refused.value)


@pytest.mark.parametrize("mode", ["pandas", "polars", "sql"])
def test_a_cell_that_cannot_be_read_is_refused_without_it(tmp_path: Path, mode: str) -> None:
    lines = [f"{n},2024-01-02 12:00:00" for n in range(30_000)]
    (tmp_path / "rows.csv").write_text("\n".join(["user,ts", *lines, "271828x,2024-01-02 12:00:00"]))
    config = FileConfig(uri=str(tmp_path / "rows.csv"), file_format="csv", timestamp_field="ts")
    source = BatchSource(name="rows", batch_config=config)
    schema = [Field("user", Int64), Field("ts", Timestamp), Field("page", String)]
    query = "SELECT *, 'a' AS page FROM {rows}"
    view = latest(source, lambda rows: query.format(rows=rows) if mode == "sql" else rows, mode=mode, schema=schema)
    with pytest.raises((SourceError, TransformError)) as refused:
        compute_rows(view, SPAN)
    assert "271828" not in str(refused.value)


def test_extra_declared_columns_are_allowed_beside_aggregates_and_not_stored(tmp_path: Path) -> None:
    view = totals(write_visits(tmp_path, EDGES))
    assert "page" in [field.name for field in view.columns]
    stored = compute_stored(view, SPAN)
    assert stored.column_names == ["user", "_anchor_time", "sum_amount", "count_visits", "sum_visits", "count_amount"]
    assert sorted(stored["user"].to_pylist()) == [1, 2]


def test_times_that_a_database_holds_as_text_are_converted_by_the_transformation(tmp_path: Path) -> None:
    import sqlite3

    connection = sqlite3.connect(tmp_path / "rows.db")
    with connection:
        connection.execute("CREATE TABLE visits (user INTEGER, ts TEXT, page TEXT)")
        connection.execute("INSERT INTO visits VALUES (1, '2024-01-02 00:00:00', 'a'), (2, '2024-01-03 00:00:00', 'b')")
    connection.close()
    config = SqlConfig(url=f"sqlite:///{tmp_path}/rows.db", query="SELECT * FROM visits", timestamp_field="ts")
    schema = [Field("user", Int64), Field("ts", Timestamp), Field("page", String)]
    view = latest(
        BatchSource(name="rows", batch_config=config),
        lambda rows: f"SELECT user, ts::TIMESTAMP AS ts, page FROM {rows}",
        mode="sql",
        schema=schema,
    )
    (row,) = compute_rows(view, SPAN).to_pylist()
    assert row == {"user": 1, "ts": datetime(2024, 1, 2, tzinfo=day(1).tzinfo), "page": "a"}
