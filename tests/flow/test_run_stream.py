from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest
import redis
from typer.testing import CliRunner

from featurekit_dagster import (
    Entity,
    Field,
    FileConfig,
    Int64,
    RedisStreamConfig,
    StreamSource,
    String,
    Timestamp,
    Workspace,
    stream_feature_view,
)
from featurekit_dagster.cli import app
from featurekit_dagster.errors import ReadError
from featurekit_dagster.execution.stream_preview import StreamRun
from tests.support.push import payments_workspace
from tests.support.stream_servers import valkey_server

NOW = datetime(2024, 1, 10, 12, tzinfo=UTC)
KEY = "visits"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with ExitStack() as stack:
        yield stack.enter_context(valkey_server(tmp_path_factory.mktemp("valkey")))


@pytest.fixture
def visits(url: str, tmp_path: Path) -> Workspace:
    """A view of the visits that took a while, and a stream without any."""
    redis.Redis.from_url(url).delete(KEY)
    config = RedisStreamConfig(
        url=url, stream_key=KEY, initial_stream_position="trim_horizon", deduplication_columns=["number"]
    )
    side = FileConfig(uri=str(tmp_path / "none.parquet"), file_format="parquet", timestamp_field="ts")

    @stream_feature_view(
        source=StreamSource(name="visits", stream_config=config, batch_config=side),
        entities=[Entity(name="user", join_keys=["user"])],
        mode="python",
        schema=[Field("user", String), Field("number", Int64), Field("ts", Timestamp)],
        batch_schedule=timedelta(days=1),
        feature_start_time=NOW - timedelta(days=1),
    )
    def long_visits(visits: dict) -> dict | None:
        return visits if visits["number"] >= 0 else None

    return Workspace("prod", [long_visits], home=tmp_path / "home", clock=NOW)


def send(url: str, *numbers: int) -> None:
    client = redis.Redis.from_url(url)
    for number in numbers:
        client.xadd(KEY, {"data": json.dumps({"user": "u1", "number": number, "ts": "2024-01-10T11:00:00Z"})})


def wait_for(run: StreamRun, rows: int) -> None:
    deadline = time.monotonic() + 120
    while run.rows < rows and run.is_running and time.monotonic() < deadline:
        time.sleep(0.02)
    assert run.rows == rows


def test_rows_of_the_transformation_come_into_the_table_and_nothing_else_is_written(
    visits: Workspace, url: str
) -> None:
    with duckdb.connect() as connection:
        with visits.get_feature_view("long_visits").run_stream("rows", connection=connection) as run:
            send(url, 1, -1, 2, 2)
            wait_for(run, 2)
            assert connection.sql("SELECT number FROM rows ORDER BY number").fetchall() == [(1,), (2,)]
            send(url, 3)
            wait_for(run, 3)
        assert not run.is_running
        assert connection.sql("SELECT count(*) FROM rows").fetchall() == [(3,)]
    assert not (visits.home / "online").exists()
    assert not visits.stores.has_ledger


def test_a_run_with_a_checkpoint_goes_on_where_the_last_one_stood(visits: Workspace, url: str, tmp_path: Path) -> None:
    handle = visits.get_feature_view("long_visits")
    send(url, 1, 2)
    with duckdb.connect() as connection:
        for expected in ([1, 2], [3]):
            with handle.run_stream("rows", tmp_path / "kept", connection=connection) as run:
                wait_for(run, len(expected))
            numbers = [number for (number,) in connection.sql("SELECT number FROM rows ORDER BY number").fetchall()]
            assert numbers == expected
            send(url, 3)


def test_another_table_of_that_name_is_not_replaced(visits: Workspace) -> None:
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE rows AS SELECT 1 AS mine")
        with pytest.raises(ReadError, match="other columns"):
            visits.get_feature_view("long_visits").run_stream("rows", connection=connection)
        assert connection.sql("FROM rows").fetchall() == [(1,)]


def test_push_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="push source 'payments'"):
        payments_workspace(tmp_path).get_feature_view("paid").run_stream("rows")


def test_the_command_prints_rows_as_json_up_to_its_limit(
    visits: Workspace, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(url, 1, 2, 3)
    monkeypatch.setattr("featurekit_dagster.sdk.get_workspace", lambda name=None: visits)
    done = CliRunner().invoke(app, ["run-stream", "long_visits", "--limit", "2"])
    assert done.exit_code == 0, done.output
    assert [json.loads(line)["number"] for line in done.output.splitlines()] == [1, 2]
