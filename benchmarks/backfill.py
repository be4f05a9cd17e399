"""What a backfill of 365 daily partitions costs over the bare writes of its events.

Ours is the whole recipe (read, tiles, Delta, online store, ledger, checks) in one ranged run; the peer is an asset that
only yields one materialization per partition, in the same instance. Both are measured in CPU seconds of this process.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import duckdb

from featurekit_dagster import (
    Aggregation,
    BatchSource,
    Entity,
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
from featurekit_dagster.orchestration.run import failure_text, materialize_in_process, open_instance

DAY = timedelta(days=1)
FIRST = datetime(2023, 1, 1, tzinfo=UTC)
FORMAT = "%Y-%m-%dT%H:%MZ"
TARGET = 2.0
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def make_events(file: Path, days: int, rows: int) -> None:
    """Write `rows` events of 10,000 users, spread evenly over the days."""
    step = f"to_microseconds(i * {days * 86_400_000_000 // rows})"
    duckdb.sql(
        f"COPY (SELECT (hash(i) % 10_000)::BIGINT AS user_id, TIMESTAMP '{FIRST:%Y-%m-%d}' + {step} AS happened_at, "
        f"(hash(i + 1) % 1_000)::DOUBLE AS amount FROM range({rows}) t(i)) TO '{file}' (FORMAT parquet)"
    )


def make_workspace(folder: Path, days: int, rows: int) -> Workspace:
    """Return a workspace with one aggregate view that writes both stores."""
    file = folder / "events.parquet"
    make_events(file, days, rows)
    config = FileConfig(uri=str(file), file_format="parquet", timestamp_field="happened_at")

    @batch_feature_view(
        sources=[FilteredSource(BatchSource(name="events", batch_config=config))],
        entities=[Entity(name="user", join_keys=[Field("user_id", Int64)])],
        mode="sql",
        schema=[Field("user_id", Int64), Field("happened_at", Timestamp), Field("amount", Float64)],
        aggregation_interval=DAY,
        batch_schedule=DAY,
        aggregations=[
            Aggregation(column="amount", function=function, time_window=TimeWindow(window_size=DAY))
            for function in ("sum", "count", "max")
        ],
        feature_start_time=FIRST + DAY,
        online=True,
        offline=True,
    )
    def spending(events: str) -> str:
        return f"SELECT user_id, happened_at, amount FROM {events}"

    return Workspace("benchmark", [spending], home=folder / "home", clock=FIRST + days * DAY)


def bare_asset(days: int) -> dg.AssetsDefinition:
    """Return an asset that does nothing but report its partitions."""
    partitions = dg.TimeWindowPartitionsDefinition(
        start=FIRST, end=FIRST + days * DAY, fmt=FORMAT, cron_schedule="0 0 * * *", timezone="UTC"
    )

    def body() -> Iterator[dg.AssetMaterialization]:
        for number in range(days):
            metadata = {"dagster/row_count": number}
            yield dg.AssetMaterialization("bare", partition=(FIRST + number * DAY).strftime(FORMAT), metadata=metadata)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        spec = dg.AssetSpec("bare", partitions_def=partitions, skippable=True)
        return dg.multi_asset(specs=[spec], name="bare", backfill_policy=dg.BackfillPolicy.single_run())(body)


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """Return the CPU and wall seconds of a call."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def run_bare(instance: dg.DagsterInstance, days: int) -> None:
    tags = {
        "dagster/asset_partition_range_start": FIRST.strftime(FORMAT),
        "dagster/asset_partition_range_end": (FIRST + (days - 1) * DAY).strftime(FORMAT),
    }
    dg.materialize([bare_asset(days)], instance=instance, tags=tags, run_config=QUIET)


def run_ours(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    (plan,) = workspace.plan()
    (run,) = plan.runs
    result = materialize_in_process(workspace, run, instance)
    if not result.success:
        raise SystemExit(failure_text(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--rows", type=int, default=350_000)
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = make_workspace(Path(folder), given.days, given.rows)
        with open_instance(workspace) as instance:
            run_bare(instance, 1)  # the first run of a process loads modules
            bare_cpu, bare_wall = measured(lambda: run_bare(instance, given.days))
            cpu, wall = measured(lambda: run_ours(workspace, instance))
    line = {
        "case": f"backfill of {given.days} daily partitions, {given.rows} rows, CPU seconds",
        "ours": round(cpu, 2),
        "peer": round(bare_cpu, 2),
        "ratio": round(cpu / bare_cpu, 2),
        "target": TARGET,
        "wall_ours": round(wall, 1),
        "wall_peer": round(bare_wall, 1),
    }
    print(json.dumps(line) if given.json else "\n".join(f"{name:10} {value}" for name, value in line.items()))


if __name__ == "__main__":
    main()
