"""What a warehouse promises, held by a DuckDB file and by a real PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from featurekit_dagster import Array, Bool, Bytes, Float32, Float64, Int32, Int64, Map, String, Struct
from featurekit_dagster.domain.schema import Field, Timestamp
from featurekit_dagster.errors import Unsupported, WarehouseBusy
from featurekit_dagster.execution.delete_keys import KeyRemoval
from featurekit_dagster.execution.publish import Published, queue_range, unpublish_keys
from featurekit_dagster.execution.removal import remove_view
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.stores.warehouse import ENDED, VALID_FROM, Warehouse, WarehouseTable
from featurekit_dagster.stores.warehouse_duckdb import DuckDBWarehouse
from featurekit_dagster.stores.warehouse_postgres import PostgresWarehouse
from featurekit_dagster.stores.warehouses import WAREHOUSE_VARIABLE, open_warehouse
from tests.support.postgres import new_database
from tests.support.published import (
    day,
    export,
    materialize,
    published_view,
    rows_expected,
    rows_published,
    workspace_of,
    write_events,
)

KEY = Field("user", String)
EVENTS = [("a", 20, 1), ("b", 50, 2), ("a", 75, 3), ("c", 100, None), ("a", 130, 3), ("b", 200, 4)]
FEATURES: dict[Field, list[Any]] = {
    Field("i", Int32): [1, None],
    Field("n", Int64): [2**62, -1],
    Field("r", Float32): [1.5, float("nan")],
    Field("x", Float64): [float("inf"), 1e-300],
    Field("s", String): ["it's \\ \t\n ü", ""],
    Field("b", Bool): [True, None],
    Field("raw", Bytes): [b"\x00\xff", None],
    Field("at", Timestamp): [datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), None],
    Field("list", Array(Int64)): [[1, None, 3], []],
    Field("texts", Array(String)): [["a,{}", '"'], None],
    Field("lists", Array(Array(Int64))): [[[1], []], [None]],
    Field("map", Map(String, Float64)): [{"k": 1.5}, {}],
    Field("struct", Struct([Field("p", Int64), Field("q", Array(String))])): [{"p": 1, "q": ["x"]}, None],
}


@pytest.fixture(params=["duckdb", "postgres"])
def warehouse(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Warehouse:
    if request.param == "postgres":
        monkeypatch.setenv(WAREHOUSE_VARIABLE, new_database(request.getfixturevalue("postgres_url")))
    return open_warehouse(tmp_path / "home")


def table_of(*features: Field, identity: str = "1") -> WarehouseTable:
    return WarehouseTable(
        schema="we need 'quotes\"", name="seen", keys=(KEY,), features=features, identity=identity, shown_after_us=0
    )


def put(warehouse: Warehouse, table: WarehouseTable, first: int, end: int, *users: str, value: int = 1) -> int:
    """Publish days in which each of some keys begins to have a value on the first one."""
    fields = (KEY, *table.features, Field(VALID_FROM, Timestamp), Field(ENDED, Bool))
    columns = {
        "user": pa.array(users, pa.string()),
        **{feature.name: pa.array([value] * len(users), pa.int64()) for feature in table.features},
        VALID_FROM: pa.array([day(first)] * len(users), pa.timestamp("us", tz="UTC")),
        ENDED: pa.array([False] * len(users), pa.bool_()),
    }
    return warehouse.replace(table, fields, pa.table(columns), Interval(day(first), day(end)))


def shown(warehouse: Warehouse, table: WarehouseTable) -> list[tuple[Any, ...]]:
    with warehouse.session() as session:
        name = table.schema.replace('"', '""')
        return sorted(session.run(f'SELECT * FROM "{name}".seen'))


def test_published_rows_are_what_reads_answer(warehouse: Warehouse, tmp_path: Path) -> None:
    file = tmp_path / "events.parquet"
    write_events(file, EVENTS)
    workspace = workspace_of(tmp_path, published_view("tiles", file))
    materialize(workspace, 0, 6)
    (job,) = export(workspace)
    assert job.stats["rows"] > job.stats["rows_replaced"] == 0
    published = Published.of(workspace.repo.view("seen"), workspace.stores)
    assert type(published.warehouse) is type(warehouse)
    assert rows_published(workspace) == rows_expected(workspace, published.windows()) != []
    write_events(file, [(user, hour, 9) for user, hour, _ in EVENTS])
    materialize(workspace, 1, 3)
    queue_range(workspace.repo.view("seen"), workspace.stores, Interval(day(0), day(6)), trigger="test")
    assert [job.state for job in export(workspace)] == ["SUCCESS", "SUCCESS"]
    assert rows_published(workspace) == rows_expected(workspace, published.windows())


def test_deleted_keys_are_gone_and_the_others_stay(warehouse: Warehouse, tmp_path: Path) -> None:
    file = tmp_path / "events.parquet"
    write_events(file, EVENTS)
    view = published_view("rows", file)
    workspace = workspace_of(tmp_path, view)
    keys = pa.table({"user": ["a", "nobody"]})
    assert unpublish_keys(view, workspace.stores, keys) == 0
    materialize(workspace, 0, 10)
    export(workspace)
    before = rows_published(workspace)
    assert unpublish_keys(view, workspace.stores, keys) > 0
    left = [row for row in before if row[0] != "a"]
    assert rows_published(workspace) == left != before
    assert unpublish_keys(view, workspace.stores, keys) == 0


def test_keys_are_not_looked_for_in_what_was_published_by_other_ones(warehouse: Warehouse) -> None:
    table = table_of(Field("v", Int64))
    put(warehouse, table, 0, 1, "a")
    other = replace(table, keys=(KEY, Field("page", String)))
    assert warehouse.delete_keys(other, pa.table({"user": ["a"], "page": ["home"]})) == 0
    assert warehouse.delete_keys(table, pa.table({"user": ["a"]})) == 1


def test_deleted_keys_are_gone_from_what_a_view_has_published_before_it_was_declared_without(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    file = tmp_path / "events.parquet"
    write_events(file, EVENTS)
    workspace = workspace_of(tmp_path, published_view("rows", file))
    materialize(workspace, 0, 10)
    export(workspace)
    left = [row for row in rows_published(workspace) if row[0] != "a"]
    assert left
    unpublished = workspace_of(tmp_path, replace(workspace.repo.view("seen"), publish=None))
    (job_id,) = unpublished.get_feature_view("seen").delete_keys(pa.table({"user": ["a"]}))
    job = unpublished.stores.ledger.begin(job_id, run_id=None)
    done = KeyRemoval(unpublished.repo.view("seen"), unpublished.stores, job, lambda: None).carry_out()
    assert done["rows_published"] > 0
    assert rows_published(workspace) == left


def test_what_is_published_of_a_removed_view_goes_with_it(warehouse: Warehouse, tmp_path: Path) -> None:
    file = tmp_path / "events.parquet"
    write_events(file, EVENTS)
    view = published_view("rows", file)
    workspace = workspace_of(tmp_path, view)
    materialize(workspace, 0, 4)
    export(workspace)
    published = Published.of(view, workspace.stores)
    assert warehouse.published(published.table) is not None
    remove_view("seen", workspace.stores)
    assert warehouse.published(published.table) is None
    assert not published.windows()


def test_values_of_all_types_come_back(warehouse: Warehouse) -> None:
    from featurekit_dagster.arrow_types import arrow_type

    table = table_of(*FEATURES)
    fields = (KEY, *FEATURES, Field(VALID_FROM, Timestamp), Field(ENDED, Bool))
    values = [["u1", "u2"], *FEATURES.values(), [day(0), day(0)], [False, False]]
    arrays = [pa.array(v, arrow_type(f.dtype)) for f, v in zip(fields, values, strict=True)]
    warehouse.replace(table, fields, pa.table(arrays, names=[f.name for f in fields]), Interval(day(0), day(1)))
    first, second = shown(warehouse, table)
    for given, found in zip(zip(*values[1:-2], strict=True), (first[1:-2], second[1:-2]), strict=True):
        assert [_written(cell) for cell in found] == [_written(cell) for cell in given]


def _written(cell: Any) -> str:
    return repr(cell.astimezone(UTC) if isinstance(cell, datetime) else cell)


def test_a_window_that_is_published_again_replaces_what_was_there(warehouse: Warehouse) -> None:
    table = table_of(Field("v", Int64))
    assert warehouse.published(table) is None
    assert put(warehouse, table, 0, 2, "a", "b") == 0
    assert put(warehouse, table, 4, 5, "c") == 0
    assert put(warehouse, table, 0, 1, "b", value=7) == 2
    assert warehouse.published(table) == IntervalSet([Interval(day(0), day(2)), Interval(day(4), day(5))])
    assert shown(warehouse, table) == [("b", 7, day(0), day(2)), ("c", 1, day(4), day(5))]


def test_a_changed_declaration_begins_anew(warehouse: Warehouse) -> None:
    old, new = table_of(Field("v", Int64)), table_of(Field("v", Int64), Field("w", Int64), identity="2")
    put(warehouse, old, 0, 2, "a")
    assert warehouse.published(new) is None
    put(warehouse, new, 4, 5, "b")
    assert shown(warehouse, new) == [("b", 1, 1, day(4), day(5))]
    assert warehouse.published(old) is None
    warehouse.drop(new)
    assert warehouse.published(new) is None


def test_a_replacement_that_fails_leaves_what_was_there(warehouse: Warehouse) -> None:
    table = table_of(Field("v", Int64))
    put(warehouse, table, 0, 2, "a")
    before = shown(warehouse, table)
    wrong = pa.table({"user": ["a"], "v": ["no number"], VALID_FROM: [day(0)], ENDED: [False]})
    fields = (KEY, *table.features, Field(VALID_FROM, Timestamp), Field(ENDED, Bool))
    with pytest.raises(Exception, match="no number"):
        warehouse.replace(table, fields, wrong, Interval(day(0), day(2)))
    assert shown(warehouse, table) == before


def test_postgres_refuses_names_that_it_would_cut_and_texts_that_it_cannot_hold(postgres_url: str) -> None:
    warehouse = PostgresWarehouse(new_database(postgres_url))
    with pytest.raises(Unsupported, match=f"takes names of at most 63 bytes, and {'x' * 64} is longer"):
        put(warehouse, table_of(Field("x" * 64, Int64)), 0, 1, "a")
    with pytest.raises(Unsupported, match="NUL character"):
        put(warehouse, table_of(Field("v", Int64)), 0, 1, "secret\0")


def test_no_credentials_are_shown_of_a_database_that_cannot_be_reached() -> None:
    warehouse = PostgresWarehouse("postgresql://anna:hunter2@127.0.0.1:1/features?connect_timeout=1")
    assert warehouse.place == "postgresql://127.0.0.1:1/features"
    with pytest.raises(WarehouseBusy) as failed:
        warehouse.published(table_of())
    assert "hunter2" not in f"{failed.value}{failed.value.__cause__}"
    assert "anna" not in str(failed.value)


def test_a_file_that_another_process_writes_is_waited_for(tmp_path: Path) -> None:
    file, table = tmp_path / "warehouse.duckdb", table_of(Field("v", Int64))
    hold = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read(1)"
    with subprocess.Popen(
        [sys.executable, "-c", hold, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        other.stdout.readline()
        with pytest.raises(WarehouseBusy):
            put(DuckDBWarehouse(file, patience_seconds=0.1), table, 0, 1, "a")
        other.stdin.close()
        put(DuckDBWarehouse(file), table, 0, 1, "a")
    assert shown(DuckDBWarehouse(file), table) == [("a", 1, day(0), day(1))]


def test_an_unknown_warehouse_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WAREHOUSE_VARIABLE, "mysql://127.0.0.1/features")
    with pytest.raises(Unsupported, match="is a mysql URL"):
        open_warehouse(tmp_path)
