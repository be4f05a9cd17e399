"""A process that makes a dataset of three views, for tests that cancel it, kill it and measure it."""

from __future__ import annotations

import os
import resource
import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb

from featurekit_dagster import (
    Aggregation,
    BatchSource,
    Entity,
    FeatureService,
    Field,
    FileConfig,
    FilteredSource,
    Float64,
    Int64,
    String,
    Timestamp,
    TimeWindow,
    Workspace,
    batch_feature_view,
)
from featurekit_dagster.dataset_handles import DatasetJob
from featurekit_dagster.execution.materialize import run_tasks
from tests.support.datasets import after_buckets

DAY, FIRST, DAYS = timedelta(days=1), datetime(2024, 1, 1, tzinfo=UTC), 60
WINDOWS = [TimeWindow(window_size=days * DAY) for days in (1, 7, 30)]
COLUMNS = [Field("user_id", Int64), Field("ts", Timestamp), Field("amount", Float64), Field("shop", String)]
EVENTS = """
    COPY (
        SELECT (hash(i) % {users})::BIGINT AS user_id,
            TIMESTAMP '2024-01-01' + to_microseconds((hash(i, 1) % 5184000000000)::BIGINT) AS ts,
            CASE WHEN i % 11 = 0 THEN NULL ELSE (hash(i, 2) % 100000) / 100 END AS amount,
            'shop ' || (hash(i, 3) % 500) AS shop
        FROM range({events}) t(i) ORDER BY ts
    ) TO '{folder}/events.parquet'
"""
SPINE = """
    COPY (
        SELECT (hash(i, 4) % {users})::BIGINT AS user_id,
            TIMESTAMP '2024-01-31' + to_microseconds((hash(i, 5) % 2592000000000)::BIGINT) AS asked_at,
            i AS label
        FROM range({rows}) t(i)
    ) TO '{folder}/spine.parquet'
"""


def large_workspace(folder: Path) -> Workspace:
    """Return the workspace of a folder that `prepare` has filled."""
    config = FileConfig(uri=str(folder / "events.parquet"), file_format="parquet", timestamp_field="ts")
    source = BatchSource(name="events", batch_config=config)
    user = Entity(name="user", join_keys=[Field("user_id", Int64)])
    shared = {"sources": [FilteredSource(source)], "entities": [user], "mode": "sql", "schema": COLUMNS}
    shared |= {"batch_schedule": DAY, "offline": True, "feature_start_time": FIRST + 30 * DAY}

    def of_events(events: str) -> str:
        return f"SELECT user_id, ts, amount, shop FROM {events}"

    def aggregates(column: str, *functions: str) -> list[Aggregation]:
        return [Aggregation(column=column, function=f, time_window=w) for f in functions for w in WINDOWS]

    amounts = batch_feature_view(
        **shared, name="amounts", aggregation_interval=DAY, aggregations=aggregates("amount", "sum", "mean", "stddev")
    )
    shops = batch_feature_view(
        **shared, name="shops", aggregation_interval=DAY, aggregations=aggregates("shop", "count", "last")
    )
    newest = batch_feature_view(**shared, name="newest", ttl=20 * DAY)
    views = [declare(of_events) for declare in (amounts, shops, newest)]
    return Workspace("large", [FeatureService(name="all", features=views)], home=folder / "home")


def prepare(folder: Path, *, events: int, users: int, rows: int, bucket_rows: int, datasets: list[str]) -> None:
    """Fill a folder with events, materialized views, a spine, and datasets that wait."""
    with duckdb.connect() as con:
        con.execute(EVENTS.format(users=users, events=events, folder=folder))
        con.execute(SPINE.format(users=users, rows=rows, folder=folder))
    workspace = large_workspace(folder)
    for view in workspace.repo.views:
        start = FIRST if view.is_aggregate else FIRST + 30 * DAY
        run = workspace.plan_interval(view.name, start, FIRST + DAYS * DAY, overwrite=False)
        list(run_tasks(view, run.tasks, workspace.stores, trigger="backfill"))
    service = workspace.get_feature_service("all")
    for name in datasets:
        service.create_dataset(name, folder / "spine.parquet", bucket_rows=bucket_rows)


def job_of(workspace: Workspace, name: str) -> DatasetJob:
    """Return the job of a dataset."""
    record = workspace.stores.datasets.request(name)
    assert record is not None
    return DatasetJob(workspace, record["job_id"], name)


def main(folder: str, name: str, buckets: str) -> None:
    """Carry out the job of a dataset and print the most memory that this process has had, in bytes.

    Once so many buckets are stored the process stops itself, until it is continued.
    """
    with after_buckets(int(buckets), lambda: os.kill(os.getpid(), signal.SIGSTOP)):
        job_of(large_workspace(Path(folder)), name).complete()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    main(*sys.argv[1:])
