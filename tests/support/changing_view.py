"""A small view that is declared in several ways, one after another, over one lake; and a process that runs its jobs.

`python -m tests.support.changing_view ROOT VARIANT STEP NUMBER HOW`: at a step of the n-th job the process kills
itself (`die`), or says so and goes on when the file ROOT/go is there (`wait`).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb

from featurekit_dagster import (
    Aggregation,
    BatchSource,
    BatchTriggerType,
    Entity,
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
from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.execution.materialize import JobReport, OnStep, run_tasks
from featurekit_dagster.planning.tasks import Task

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
START = datetime(2024, 3, 1, tzinfo=UTC)
DAYS = 4
NOW = START + DAYS * DAY
SUM, COUNT = (Aggregation("amount", function, TimeWindow(DAY)) for function in ("sum", "count"))
MAX = Aggregation("amount", "max", TimeWindow(DAY))
COLUMNS = [("user_id", Int64), ("region", String), ("event_time", Timestamp), ("amount", Float64)]
EVENTS = f"""
    SELECT i % 3 AS user_id, CASE i % 2 WHEN 0 THEN 'north' ELSE 'south' END AS region,
        TIMESTAMP '2024-03-01' + to_hours(i) AS event_time, (i % 7 + 1)::DOUBLE AS amount
    FROM range({DAYS * 24}) AS t(i)
"""


def tiles(events: str) -> str:
    """Return events as they are."""
    return f"SELECT user_id, region, event_time, amount FROM {events}"


def doubled(events: str) -> str:
    """Return events with twice their amount."""
    return f"SELECT user_id, region, event_time, 2 * amount AS amount FROM {events}"


VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "doubled": {"function": doubled},
    "wider": {"aggregations": [MAX, SUM, COUNT]},
    "fewer": {"aggregations": [COUNT]},
    "moved": {"aggregations": [COUNT, SUM]},
    "longer": {"aggregations": [SUM, COUNT, Aggregation("amount", "sum", TimeWindow(2 * DAY))]},
    "coarser": {"aggregation_interval": 2 * HOUR},
    "half_days": {"batch_schedule": DAY / 2, "max_backfill_interval": DAY / 2},
    "two_days": {"batch_schedule": 2 * DAY, "max_backfill_interval": 2 * DAY},
    "by_user": {"online_serving_index": ["user_id"]},
    "manual": {"function": doubled, "batch_trigger": BatchTriggerType.MANUAL},
    "rows": {"aggregations": [], "schema": [*COLUMNS, ("fee", Float64)]},
    "fewer_rows": {"aggregations": [], "schema": COLUMNS},
}


def make_source(root: Path) -> None:
    """Write the events that every variant reads."""
    with duckdb.connect() as con:
        con.execute(f"COPY ({EVENTS}) TO '{root / 'events.parquet'}'")


def make_view(root: Path, variant: str) -> FeatureView:
    """Return the view as one of `VARIANTS` declares it; its name is always the same."""
    config = FileConfig(uri=str(root / "events.parquet"), file_format="parquet", timestamp_field="event_time")
    given = {"function": tiles, "aggregations": [SUM, COUNT], "schema": COLUMNS} | VARIANTS[variant]
    function, aggregations = given.pop("function"), given.pop("aggregations")
    given["schema"] = [Field(*column) for column in given["schema"]]
    if aggregations:
        given = {"aggregation_interval": HOUR, "aggregations": aggregations} | given
    elif len(given["schema"]) > len(COLUMNS):
        function = with_fee
    facts = {
        "name": "tiles",
        "sources": [FilteredSource(BatchSource(name="events", batch_config=config))],
        "entities": [Entity(name="place", join_keys=[Field("user_id", Int64), Field("region", String)])],
        "mode": "sql",
        "batch_schedule": DAY,
        "max_backfill_interval": DAY,
        "feature_start_time": START + DAY,
        "online": True,
        "offline": True,
        "timestamp_field": "event_time",
    }
    return batch_feature_view(**(facts | given))(function)


def with_fee(events: str) -> str:
    """Return events with a fee."""
    return f"SELECT user_id, region, event_time, amount, amount / 10 AS fee FROM {events}"


def declared(root: Path, variant: str, now: datetime = NOW) -> Workspace:
    """Return a new workspace with the view as a variant declares it."""
    return Workspace("w", [make_view(root, variant)], home=root / "home", clock=lambda: now)


def run(workspace: Workspace, most: int | None = None, on_step: OnStep | None = None) -> list[JobReport]:
    """Run what is planned of the view, or the first jobs of it."""
    (view,) = workspace.repo.views
    (plan,) = workspace.plan()
    more = {} if on_step is None else {"on_step": on_step}
    return list(run_tasks(view, plan.tasks[:most], workspace.stores, trigger="manual", run_id="run", **more))


@contextmanager
def variants(lake: Path) -> Iterator[Callable[..., Workspace]]:
    """Give what `declared` does over one lake; whatever it opened is closed."""
    opened: list[Workspace] = []

    def make(variant: str, **more: Any) -> Workspace:
        opened.append(declared(lake, variant, **more))
        return opened[-1]

    yield make
    for workspace in opened:
        close(workspace)


def close(workspace: Workspace) -> None:
    """Close the workspace's stores."""
    workspace.stores.online.close()
    workspace.stores.ledger.close()


def main(root: Path, variant: str, step: str, number: int, how: str) -> None:
    """Run what is planned, and do something at a step of the n-th job."""
    done = 0

    def on_step(finished: str, _: Task) -> None:
        nonlocal done
        done += finished == step
        if finished == step and done == number:
            print(finished, flush=True)
            if how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            while not (root / "go").exists():
                time.sleep(0.02)

    run(declared(root, variant), on_step=on_step)


if __name__ == "__main__":
    folder, name, at, count, end = sys.argv[1:]
    main(Path(folder), name, at, int(count), end)
