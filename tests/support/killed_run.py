"""A process that runs materialization jobs and kills itself at a named point.

`POINT` is a step of the recipe, or `<step>+<seconds>` for so long after it. The job of 2 March 2024 is hit.
"""

from __future__ import annotations

import os
import signal
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from featurekit_dagster import (
    Aggregation,
    BatchSource,
    Entity,
    Field,
    FileConfig,
    FilteredSource,
    Float64,
    Int64,
    String,
    Timestamp,
    TimeWindow,
    batch_feature_view,
)
from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.engine.local import stored_schema
from featurekit_dagster.execution.materialize import WRITTEN_ONLINE, JobReport, run_tasks
from featurekit_dagster.intervals import Interval
from featurekit_dagster.planning.planner import plan_view
from featurekit_dagster.planning.tasks import Task
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
START = datetime(2024, 3, 1, tzinfo=UTC)
DAYS, USERS, EVENTS = 3, 8_000, 40_000
NOW = START + DAYS * DAY
SEED_QUERY = f"""
    SELECT
        hash(i, 1) % {USERS} AS user_id,
        TIMESTAMP '2024-03-01' + to_microseconds((hash(i, 2) % {DAYS * 86_400_000_000}::UBIGINT)::BIGINT) AS event_time,
        (hash(i, 3) % 1000)::BIGINT AS amount,
        'm' || hash(i, 4) % 50 AS merchant
    FROM range({EVENTS}) AS t(i)
"""


def make_source(path: Path) -> None:
    """Write the events that the views read."""
    with duckdb.connect() as con:
        con.execute(f"COPY (SELECT * REPLACE (user_id::BIGINT AS user_id) FROM ({SEED_QUERY})) TO '{path}'")


def make_view(name: str, source: Path) -> FeatureView:
    """Return the view `tiles` (aggregates over hourly tiles) or `rows` (the latest event of a user)."""
    events = BatchSource(
        name="events", batch_config=FileConfig(uri=str(source), file_format="parquet", timestamp_field="event_time")
    )
    facts = {
        "sources": [FilteredSource(events)],
        "entities": [Entity(name="user", join_keys=[Field("user_id", Int64)])],
        "mode": "sql",
        "batch_schedule": DAY,
        "max_backfill_interval": DAY,
        "feature_start_time": START,
        "online": True,
        "offline": True,
        "timestamp_field": "event_time",
        "name": name,
    }
    return _rows_view(facts) if name == "rows" else _tiles_view(facts)


def _rows_view(facts: dict[str, Any]) -> FeatureView:
    columns = [("user_id", Int64), ("event_time", Timestamp), ("amount", Int64), ("merchant", String)]

    @batch_feature_view(**facts, schema=[Field(*column) for column in columns])
    def rows(events: str) -> str:
        return f"SELECT user_id, event_time, amount, merchant FROM {events}"

    return rows


def _tiles_view(facts: dict[str, Any]) -> FeatureView:
    columns = [("user_id", Int64), ("event_time", Timestamp), ("amount", Int64), ("price", Float64)]
    aggregated = [("amount", "sum"), ("amount", "count"), ("price", "max"), ("price", "last")]

    @batch_feature_view(
        **facts,
        schema=[Field(*column) for column in columns],
        aggregation_interval=HOUR,
        aggregations=[
            Aggregation(column=column, function=function, time_window=TimeWindow(window_size=DAY))
            for column, function in aggregated
        ],
    )
    def tiles(events: str) -> str:
        return f"SELECT user_id, event_time, amount, CAST(amount AS DOUBLE) / 7 AS price FROM {events}"

    return tiles


def open_stores(root: Path) -> WorkspaceStores:
    """Return the stores of a run."""
    return WorkspaceStores(workspace="w", home=root / "home", lake=str(root / "lake"), clock=lambda: NOW)


def missing_tasks(view: FeatureView, stores: WorkspaceStores) -> tuple[Task, ...]:
    """Return what is left to do."""
    return plan_view(view, stores.ledger.snapshot("w"), NOW).tasks


def run(root: Path, view: FeatureView) -> list[JobReport]:
    """Do what is left to do."""
    stores = open_stores(root)
    reports = list(run_tasks(view, missing_tasks(view, stores), stores, trigger="manual"))
    stores.online.close()
    stores.ledger.close()
    return reports


def stored(root: Path, view: FeatureView) -> tuple[pa.Table, list[list[tuple[object, ...]]], list[str]]:
    """Return everything that a run leaves behind: offline rows, online records, what is covered where."""
    stores = open_stores(root)
    schema = stored_schema(view)
    rows = stores.read_offline(view, schema, Interval(START - DAY, NOW + DAY))
    rows = rows.sort_by([(name, "ascending") for name in schema.names])
    layout = stores.online_layout(view)
    records = stores.online.read(layout, [(user,) for user in range(USERS)])
    covered = [str(stores.coverage(view, store)) for store in ("offline", "online")]
    covered += [str(stores.offline.coverage(view.name)), str(stores.online.coverage(layout))]
    stores.online.close()
    stores.ledger.close()
    return rows, records, covered


def run_and_die(root: Path, name: str, point: str) -> None:
    """Run the missing jobs of a view and die at the given point of the job of 2 March 2024."""
    view = make_view(name, root / "events.parquet")
    step, _, delay = point.partition("+")
    hit = START + DAY

    def on_step(finished: str, task: Task) -> None:
        if task.interval.start == hit:
            print(finished, flush=True)
            if finished == step and not delay:
                die()
            elif finished == step:
                threading.Timer(float(delay), die).start()
            elif finished == WRITTEN_ONLINE:
                die()  # the timer comes too late; the job must not finish

    stores = open_stores(root)
    for _ in run_tasks(view, missing_tasks(view, stores), stores, trigger="manual", on_step=on_step):
        pass


def die() -> None:
    """End this process at once, as kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)
