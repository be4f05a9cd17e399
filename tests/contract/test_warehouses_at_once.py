"""Several publish at once: what each of them publishes is there, once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from featurekit_dagster.domain.schema import Bool, Field, Int64, Timestamp
from featurekit_dagster.errors import Unsupported
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.stores.warehouse import ENDED, VALID_FROM, Warehouse, WarehouseTable
from featurekit_dagster.stores.warehouse_duckdb import DuckDBWarehouse
from featurekit_dagster.stores.warehouse_postgres import PostgresWarehouse
from tests.support.postgres import new_database

_USER, _COUNT = Field("user", Int64), Field("count", Int64)
_FIELDS = (_USER, _COUNT, Field(VALID_FROM, Timestamp), Field(ENDED, Bool))
_START = datetime(2024, 1, 1, tzinfo=UTC)
_DAYS = 4


@pytest.fixture(params=["duckdb", "postgres"])
def warehouse(request: pytest.FixtureRequest, tmp_path: Path) -> Warehouse:
    if request.param == "duckdb":
        return DuckDBWarehouse(tmp_path / "home" / "warehouse.duckdb")
    return PostgresWarehouse(new_database(request.getfixturevalue("postgres_url")))


def table(name: str, schema: str = "prod") -> WarehouseTable:
    return WarehouseTable(schema=schema, name=name, keys=(_USER,), features=(_COUNT,), identity="1", shown_after_us=0)


def day(number: int) -> datetime:
    return _START + timedelta(days=number)


def publish(warehouse: Warehouse, published: WarehouseTable, number: int) -> None:
    columns = (
        pa.array([number], pa.int64()),
        pa.array([7], pa.int64()),
        pa.array([day(number)], pa.timestamp("us", tz="UTC")),
        pa.array([False], pa.bool_()),
    )
    rows = pa.table(list(columns), names=[field.name for field in _FIELDS])
    warehouse.replace(published, _FIELDS, rows, Interval(day(number), day(number + 1)))


def test_days_and_views_that_are_published_first_at_once_are_all_there(warehouse: Warehouse) -> None:
    barrier = threading.Barrier(_DAYS)

    def go(number: int) -> None:
        barrier.wait()
        publish(warehouse, table("seen"), number)
        publish(warehouse, table(f"seen_{number}"), number)

    with ThreadPoolExecutor(_DAYS) as threads:
        list(threads.map(go, range(_DAYS)))

    assert warehouse.published(table("seen")) == IntervalSet([Interval(day(0), day(_DAYS))])
    with warehouse.session() as session:
        assert session.run('SELECT "user" FROM prod.seen ORDER BY 1') == [(number,) for number in range(_DAYS)]
        for number in range(_DAYS):
            assert session.run(f"SELECT count(*) FROM prod.seen_{number}") == [(1,)]


def test_a_file_that_is_named_as_the_workspace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="cannot tell the file from the schema"):
        publish(DuckDBWarehouse(tmp_path / "Prod.duckdb"), table("seen"), 0)
