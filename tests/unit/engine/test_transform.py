"""A transformation sees naive UTC and exact values, and its rows are cut to the interval."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest
from pyarrow import parquet

from featurekit_dagster import (
    Array,
    BatchSource,
    FeatureView,
    Field,
    FileConfig,
    FilteredSource,
    Int64,
    Map,
    PushConfig,
    SqlConfig,
    StreamSource,
    String,
    Struct,
    Timestamp,
    stream_feature_view,
)
from featurekit_dagster.engine.local import compute_rows, compute_stored
from featurekit_dagster.errors import OutputSchemaMismatch, SourceError, TransformError
from featurekit_dagster.intervals import Interval
from tests.support.visits import DAY, FIELDS, MICROSECOND, SCHEMA, USER, day, latest, totals, visit, write_visits

SPAN = Interval(day(2), day(3))
EDGES = [visit(n, t) for n, t in enumerate([day(2) - MICROSECOND, day(2), day(3) - MICROSECOND, day(3)])]
MODES: dict[str, Any] = {
    "pandas": lambda visits: visits,
    "polars": lambda visits: visits,
    "python": lambda visits: visits,
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


@pytest.mark.parametrize("mode", list(MODES))
def test_what_a_function_raises_is_told_by_its_type_only(tmp_path: Path, mode: str) -> None:
    def broken(visits: Any) -> Any:
        raise KeyError("user 271828")

    with pytest.raises(TransformError, match="^newest: the transformation raised KeyError$"):
        compute_rows(latest(write_visits(tmp_path, EDGES), broken, mode=mode), SPAN)


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
    # a text that is wrong stays wrong; what fails on a row may be another day's rows
    assert refused.value.retryable is not any(name in message for name in ("Parser", "Binder", "Catalog"))


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


@pytest.mark.parametrize("mode", list(MODES))
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


def test_rows_are_taken_one_by_one_and_left_out_where_nothing_is_returned(tmp_path: Path) -> None:
    def doubled(visit: dict[str, Any]) -> dict[str, Any] | None:
        return visit | {"amount": visit["amount"] * 2} if visit["user"] != 1 else None

    source = write_visits(tmp_path, [visit(n, 2.5, amount=n + 0.5) for n in range(4)])
    table = compute_rows(latest(source, doubled, mode="python"), SPAN)
    assert dict(zip(table["user"].to_pylist(), table["amount"].to_pylist(), strict=True)) == {0: 1.0, 2: 5.0, 3: 7.0}
    nothing = compute_rows(latest(source, lambda visits: None, mode="python"), SPAN)
    assert (nothing.num_rows, nothing.column_names) == (0, [field.name for field in FIELDS])


def test_a_row_is_a_dict_of_plain_values_in_naive_utc_beside_the_context(tmp_path: Path) -> None:
    seen: list[Any] = []

    def kept(visit: dict[str, Any], context: Any) -> dict[str, Any] | None:
        seen.append((type(visit["user"]), visit["ts"], visit["visits"]))
        return visit if context.start_time <= visit["ts"] < context.end_time else None

    source = write_visits(tmp_path, [visit(1, 2.5, visits=None), visit(2, 9)])
    view = latest(source, kept, mode="python", sources=[source], context_parameter_name="context")
    assert compute_rows(view, SPAN)["user"].to_pylist() == [1]
    assert (int, datetime(2024, 1, 2, 12), None) in seen  # noqa: DTZ001 - naive is UTC


def test_rows_come_back_in_any_order_of_columns_with_times_of_any_zone(tmp_path: Path) -> None:
    def turned(visit: dict[str, Any]) -> dict[str, Any]:
        zone = timezone(timedelta(hours=5)) if visit["user"] else None
        time = visit["ts"].replace(tzinfo=zone) + (timedelta(hours=5) if zone else timedelta(0))
        return dict(reversed(visit.items())) | {"ts": time}

    table = compute_rows(latest(write_visits(tmp_path, [visit(n, 2.5) for n in range(2)]), turned, mode="python"), SPAN)
    assert table["ts"].to_pylist() == [day(2.5)] * 2


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda visit: [visit], TransformError, "mode 'python' returns a dict for each row, or None, not a list"),
        (lambda visit: {"user": 1}, OutputSchemaMismatch, "column 'page' is missing"),
        (lambda visit: visit | {"other": 1}, OutputSchemaMismatch, "column 'other' is not declared"),
        (lambda visit: visit | {"page": 5}, OutputSchemaMismatch, "column 'page' is int64, declared String"),
        (lambda visit: visit | {"visits": 1.5}, OutputSchemaMismatch, "its values do not all fit"),
        (
            lambda visit: visit | {"page": 5 if visit["user"] else "271828"},
            OutputSchemaMismatch,
            "column 'page' holds values that are not all of one type",
        ),
        (
            lambda visit: {k: v for k, v in visit.items() if k != "page" or visit["user"]},
            OutputSchemaMismatch,
            "column 'page' is missing from 1 of 2 rows",
        ),
    ],
)
def test_a_row_that_is_not_as_declared_is_refused_without_it(
    tmp_path: Path, function: Any, error: type[Exception], message: str
) -> None:
    source = write_visits(tmp_path, [visit(n, 2.5) for n in range(2)])
    with pytest.raises(error) as refused:
        compute_rows(latest(source, function, mode="python"), SPAN)
    assert message in str(refused.value)
    assert "271828" not in str(refused.value)


def test_lists_maps_and_records_of_rows_are_kept(tmp_path: Path) -> None:
    nested = [Field("a", Array(Int64)), Field("m", Map(String, Int64)), Field("r", Struct([Field("x", String)]))]

    def function(visits: dict[str, Any]) -> dict[str, Any]:
        n = visits["user"]
        return {"user": n, "ts": visits["ts"], "a": [n] * n, "m": {"k": n}, "r": {"x": str(n)}}

    source = write_visits(tmp_path, [visit(n, 2.5) for n in range(2)])
    table = compute_rows(latest(source, function, mode="python", schema=[*FIELDS[:2], *nested]), SPAN).sort_by("user")
    assert table["a"].to_pylist() == [[], [1]]
    assert table["m"].to_pylist() == [[("k", 0)], [("k", 1)]]
    assert table["r"].to_pylist() == [{"x": "0"}, {"x": "1"}]


def passed(source: BatchSource, **changes: Any) -> FeatureView:
    stream = StreamSource(name="visits", stream_config=PushConfig(), batch_config=source.batch_config)
    given: dict[str, Any] = {"source": stream, "entities": [USER], "schema": FIELDS, "name": "newest"}
    return stream_feature_view(**(given | changes))


def test_rows_without_a_function_pass_through_and_columns_that_are_not_declared_stay_behind(tmp_path: Path) -> None:
    source = write_visits(tmp_path, EDGES)
    table = compute_rows(passed(source), SPAN)
    assert sorted(table["user"].to_pylist()) == [1, 2]
    fewer = compute_rows(passed(source, schema=FIELDS[:3]), SPAN)
    assert fewer.column_names == ["user", "ts", "amount"]
    assert fewer.equals(table.select(fewer.column_names))


def test_rows_that_pass_through_have_the_declared_columns(tmp_path: Path) -> None:
    source = write_visits(tmp_path, EDGES)
    with pytest.raises(OutputSchemaMismatch, match="column 'price' is missing"):
        compute_rows(passed(source, schema=[*FIELDS, Field("price", Int64)]), SPAN)
    with pytest.raises(OutputSchemaMismatch, match="column 'page' is .*, declared Int64"):
        compute_rows(passed(source, schema=[*FIELDS[:4], Field("page", Int64)]), SPAN)


def test_frames_in_place_of_the_source_pass_through_too(tmp_path: Path) -> None:
    frame = pl.DataFrame([visit(7, 2.5), visit(8, 9)], schema=SCHEMA, orient="row")
    table = compute_rows(passed(write_visits(tmp_path, [])), SPAN, {"visits": frame})
    assert table["user"].to_pylist() == [7]


def test_a_stream_without_batch_side_has_no_rows_to_transform() -> None:
    bare = StreamSource(name="visits", stream_config=PushConfig())
    with pytest.raises(TransformError, match="newest: its stream source has no batch_config, so there are no rows"):
        compute_rows(stream_feature_view(source=bare, entities=[USER], schema=FIELDS, name="newest"), SPAN)
