"""A five-minute view with a long history: tens of thousands of partitions, hundreds of jobs, some holes.

This module is also what the benchmark's project imports, so it must not load Dagster; `partition_events` does.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from featurekit_dagster import (
    Aggregation,
    BatchSource,
    Entity,
    FeatureView,
    Field,
    FileConfig,
    FilteredSource,
    Float64,
    Int64,
    Timestamp,
    TimeWindow,
    Workspace,
    batch_feature_view,
)
from featurekit_dagster.intervals import Interval, IntervalSet

STEP = timedelta(minutes=5)
FIRST = datetime(2023, 1, 1, tzinfo=UTC)
VIEW = "spending"
JOBS, FAILED_ATTEMPTS = 600, 30


def make_workspace(folder: Path, partitions: int, *, incremental: bool = False) -> Workspace:
    """Return a workspace with one view of five-minute intervals, of which `partitions` are complete.

    Args:
        folder: Where `events.parquet` and the stores are.
        partitions: How many intervals are complete.
        incremental: Whether the view keeps rows, with a job of its own for each interval; else it aggregates.
    """
    config = FileConfig(uri=str(folder / "events.parquet"), file_format="parquet", timestamp_field="happened_at")
    window = TimeWindow(window_size=STEP)
    aggregates = {
        "aggregation_interval": STEP,
        "aggregations": [Aggregation(column="amount", function="sum", time_window=window)],
    }

    @batch_feature_view(
        sources=[FilteredSource(BatchSource(name="events", batch_config=config))],
        entities=[Entity(name="user", join_keys=[Field("user_id", Int64)])],
        mode="sql",
        schema=[Field("user_id", Int64), Field("happened_at", Timestamp), Field("amount", Float64)],
        batch_schedule=STEP,
        feature_start_time=FIRST if incremental else FIRST + STEP,
        online=True,
        offline=True,
        **({"incremental_backfills": True} if incremental else aggregates),
    )
    def spending(events: str) -> str:
        return f"SELECT user_id, happened_at, amount FROM {events}"

    return Workspace("benchmark", [spending], home=folder / "home", clock=FIRST + partitions * STEP)


def make_events(file: Path, partitions: int) -> None:
    """Write one event per interval."""
    import duckdb

    at = f"TIMESTAMP '{FIRST:%Y-%m-%d}' + to_microseconds(i * {STEP // timedelta(microseconds=1)})"
    rows = f"SELECT (i % 10)::BIGINT AS user_id, {at} AS happened_at, 1.0::DOUBLE AS amount"
    duckdb.sql(f"COPY ({rows} FROM range({partitions}) t(i)) TO '{file}' (FORMAT parquet)")


def holes_of(partitions: int) -> frozenset[int]:
    """Return the numbers of the intervals that are not covered: one of a thousand, spread evenly."""
    return frozenset(range(50, partitions, 1_000))


def fill_ledger(workspace: Workspace, partitions: int) -> None:
    """Record hundreds of jobs that cover everything but the holes; some needed several attempts, holes failed once."""
    ledger, width = workspace.stores.ledger, max(1, partitions // JOBS)
    holes = IntervalSet(Interval(at(n), at(n + 1)) for n in holes_of(partitions))
    facts = {"workspace": workspace.name, "view": VIEW, "online": True, "offline": True, "trigger": "schedule"}
    starts = range(0, partitions, width)
    spans = [Interval(at(n), at(min(n + width, partitions))) for n in starts]
    for number, span in enumerate(spans):
        for part in IntervalSet([span]).subtract(holes):
            if number < FAILED_ATTEMPTS:
                ledger.fail(ledger.claim(interval=part, **facts).id, reason="its source was away")
            ledger.succeed(ledger.claim(interval=part, **facts).id, stats={"rows": 1})
    for hole in holes:
        ledger.fail(ledger.claim(interval=hole, **facts).id, reason="its source was away")


def at(number: int) -> datetime:
    """Return the start of the n-th interval, counted from zero."""
    return FIRST + number * STEP


def view_of(workspace: Workspace) -> FeatureView:
    """Return the workspace's only view."""
    return workspace.repo.view(VIEW)
