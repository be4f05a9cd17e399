"""A view whose days are written hour by hour, and a process that maintains its table and is killed."""

from __future__ import annotations

import os
import signal
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb

from featurekit_dagster import (
    BatchSource,
    Entity,
    Field,
    FileConfig,
    FilteredSource,
    Float64,
    Int64,
    String,
    Timestamp,
    Workspace,
    batch_feature_view,
)
from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.execution.maintenance import maintain_view
from featurekit_dagster.execution.materialize import run_tasks

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
START = datetime(2024, 3, 1, tzinfo=UTC)
EVENTS = """
    SELECT (hash(i) % 500)::BIGINT AS user_id, TIMESTAMP '2024-03-01' + to_seconds(i * {step}) AS event_time,
        (i % 97)::DOUBLE AS amount, 'm' || i % 7 AS merchant
    FROM range({rows}) AS t(i)
"""


def make_source(root: Path, days: int, rows: int) -> None:
    """Write events evenly over some days."""
    query = EVENTS.format(step=days * 86_400 // rows, rows=rows)
    with duckdb.connect() as con:
        con.execute(f"COPY ({query}) TO '{root / 'events.parquet'}'")


def make_view(root: Path, *columns: tuple[str, object]) -> FeatureView:
    """Return the view `payments`, with the given columns beside key and time; its schedule is an hour."""
    config = FileConfig(uri=str(root / "events.parquet"), file_format="parquet", timestamp_field="event_time")
    chosen = columns or (("amount", Float64), ("merchant", String))
    names = ", ".join(name for name, _ in chosen)

    def payments(events: str) -> str:
        return f"SELECT user_id, event_time, {names} FROM {events}"

    return batch_feature_view(
        sources=[FilteredSource(BatchSource(name="events", batch_config=config))],
        entities=[Entity(name="user", join_keys=[Field("user_id", Int64)])],
        mode="sql",
        batch_schedule=HOUR,
        max_backfill_interval=HOUR,
        feature_start_time=START,
        online=False,
        offline=True,
        timestamp_field="event_time",
        schema=[Field("user_id", Int64), Field("event_time", Timestamp), *(Field(n, t) for n, t in chosen)],  # type: ignore[arg-type]
    )(payments)


def declared(root: Path, days: int, *columns: tuple[str, object]) -> Workspace:
    """Return the workspace some days after the start."""
    return Workspace("w", [make_view(root, *columns)], home=root / "home", clock=lambda: START + days * DAY)


def materialize(workspace: Workspace) -> None:
    """Do what is missing, one job per hour."""
    (view,), (plan,) = workspace.repo.views, workspace.plan()
    for run in plan.runs:
        for _ in run_tasks(view, run.tasks, workspace.stores, trigger="backfill"):
            pass


def die() -> None:
    """End this process at once, as kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)


def maintain_and_die(root: Path, seconds: float) -> None:
    """Maintain the table, say `begun` after the first step, and die so long after."""
    workspace = declared(root, 1)
    (view,) = workspace.repo.views

    def on_step(step: str) -> None:
        if not timers:
            print(f"begun after {step}", flush=True)
            timers.append(threading.Timer(seconds, die))
            timers[0].start()

    timers: list[threading.Timer] = []
    for _ in maintain_view(view, workspace.stores, trigger="manual", retention=timedelta(0), on_step=on_step):
        pass
    die()
