"""What compaction of online tiles saves: bytes and reads of the same view before and after, and what it costs itself.

A view with hourly tiles, a daily schedule and windows of 1, 7 and 30 days has an event per key and hour. It is
materialized, read one key at a time through the public API, compacted and read again. The peer is the view before.
Answers are compared before anything is timed. All times are CPU time of this process.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

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
from featurekit_dagster.execution.compaction import compact_view
from featurekit_dagster.execution.materialize import run_tasks

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
END = datetime(2024, 3, 1, tzinfo=UTC)
DAYS, ROUNDS = 31, 5
TARGET = 0.5


def declare(folder: Path) -> Workspace:
    """Return a workspace with the view, as of the end of its events."""
    config = FileConfig(uri=str(folder / "events.parquet"), file_format="parquet", timestamp_field="ts")

    @batch_feature_view(
        name="spending",
        sources=[FilteredSource(BatchSource(name="events", batch_config=config))],
        entities=[Entity(name="user", join_keys=[Field("user_id", Int64)])],
        mode="polars",
        schema=[Field("user_id", Int64), Field("ts", Timestamp), Field("amount", Float64)],
        aggregation_interval=HOUR,
        batch_schedule=DAY,
        aggregations=[
            Aggregation("amount", function, TimeWindow(window_size=days * DAY))
            for function in ("sum", "count", "max")
            for days in (1, 7, 30)
        ],
        feature_start_time=END - DAY,
        online=True,
        offline=True,
    )
    def spending(events: Any) -> Any:  # noqa: ANN401 - polars
        return events

    return Workspace("benchmark", [spending], home=folder / "home", clock=END)


def write_events(folder: Path, keys: int) -> None:
    """Write an event of every key in every hour."""
    hours = np.arange(DAYS * 24) * 3_600_000_000 + round((END - DAYS * DAY).timestamp()) * 1_000_000 + 1
    events = {
        "user_id": np.tile(np.arange(keys), len(hours)),
        "ts": pa.array(np.repeat(hours, keys), pa.timestamp("us", "UTC")),
        "amount": np.random.default_rng(7).integers(1, 10_000, keys * len(hours)) / 100,
    }
    pq.write_table(pa.table(events), folder / "events.parquet")


def measure(keys: int, reads: int) -> dict[str, float]:
    """Return CPU seconds of a read before and after, bytes before and after, and CPU seconds of the compaction."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_events(folder, keys)
        workspace = declare(folder)
        view, handle = workspace.repo.view("spending"), workspace.get_feature_view("spending")
        for run in workspace.plan()[0].runs:
            list(run_tasks(view, run.tasks, workspace.stores, trigger="backfill"))
        users = [{"user_id": user} for user in random.Random(3).choices(range(keys), k=reads)]
        answers, before = [_answer(handle, user) for user in users], _seconds(handle, users)
        started = time.process_time()
        done = compact_view(view, workspace.stores, holder="benchmark", check=lambda: None, patience=timedelta(0))
        took = time.process_time() - started
        for user, answer in zip(users, answers, strict=True):
            if not _alike(_answer(handle, user), answer):
                raise SystemExit(f"key {user}: another answer than before")
        sizes = {name: float(done[name]) for name in ("bytes_before", "bytes_after")}
        return {"before": before, "after": _seconds(handle, users), **sizes, "compaction": took}


def _answer(handle: Any, user: dict[str, int]) -> list[Any]:  # noqa: ANN401 - a handle
    return list(handle.get_online_features(user).to_dict().values())


def _alike(left: Sequence[Any], right: Sequence[Any]) -> bool:
    return all(math.isclose(a, b, rel_tol=1e-12) for a, b in zip(left, right, strict=True))


def _seconds(handle: Any, users: list[dict[str, int]]) -> float:  # noqa: ANN401 - a handle
    """Return the median over some rounds of the CPU seconds of one read."""
    rounds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        for user in users:
            handle.get_online_features(user)
        rounds.append((time.process_time() - started) / len(users))
    return statistics.median(rounds)


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description="Online reads and bytes of a view before and after its compaction.")
    parser.add_argument("--json", action="store_true", help="one JSON object per case and nothing else")
    parser.add_argument("--quick", action="store_true", help="small sizes: checks the answers, says little about speed")
    options = parser.parse_args()
    keys, reads = (100, 200) if options.quick else (2_000, 3_000)
    found = measure(keys, reads)
    name = "get_online_features after compaction, hourly tiles of 30 days"
    ratio, kept = found["after"] / found["before"], found["bytes_after"] / found["bytes_before"]
    if options.json:
        seconds = {"ours": round(found["after"], 9), "peer": round(found["before"], 9), "ratio": round(ratio, 3)}
        print(json.dumps({"case": name, **seconds, "bytes_ratio": round(kept, 3), "target": TARGET}))
        return
    print(f"{name}: {ratio:.2f} of the time before (target {TARGET}), {kept:.3f} of the bytes")
    print(f"  {found['before'] * 1e6:.1f} -> {found['after'] * 1e6:.1f} us per read")
    megabytes = " -> ".join(f"{found[which] / 1e6:.1f}" for which in ("bytes_before", "bytes_after"))
    per_key = found["compaction"] / keys * 1e3
    print(
        f"  {megabytes} MB for {keys:,} keys; the compaction took {found['compaction']:.1f} s, {per_key:.2f} ms per key"
    )


if __name__ == "__main__":
    main()
