"""A small world for the tests of reads: visits of users in ten days of January 2024, and views over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

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
    String,
    Timestamp,
    TimeWindow,
    Workspace,
    batch_feature_view,
)
from featurekit_dagster.execution.materialize import JobReport, run_tasks
from featurekit_dagster.intervals import Interval
from featurekit_dagster.planning.tasks import Task

HOUR, DAY, MICROSECOND = timedelta(hours=1), timedelta(days=1), timedelta(microseconds=1)
FIRST = datetime(2024, 1, 1, tzinfo=UTC)
NOW = datetime(2024, 1, 11, tzinfo=UTC)
SCHEMA = {
    "user": pl.Int64,
    "ts": pl.Datetime("us", "UTC"),
    "amount": pl.Float64,
    "visits": pl.Int64,
    "page": pl.String,
}
FIELDS = [
    Field("user", Int64),
    Field("ts", Timestamp),
    Field("amount", Float64),
    Field("visits", Int64),
    Field("page", String),
]
USER = Entity(name="user", join_keys=[Field("user", Int64)])
Row = tuple[int | None, datetime, float | None, int | None, str | None]


def day(number: float) -> datetime:
    """Return a moment of January 2024: 1 is its first midnight, 1.5 the first noon."""
    return FIRST + (number - 1) * DAY


def visit(user: int | None, when: float | datetime, amount: float | None = 1.0, visits: int | None = 1) -> Row:
    """Return one row of the source."""
    return (user, when if isinstance(when, datetime) else day(when), amount, visits, "home")


def write_visits(folder: Path, rows: Iterable[Row], delay: timedelta = timedelta(0)) -> BatchSource:
    """Write the source's file, and return the source."""
    pl.DataFrame(list(rows), schema=SCHEMA, orient="row").write_parquet(folder / "visits.parquet")
    config = FileConfig(
        uri=str(folder / "visits.parquet"), file_format="parquet", timestamp_field="ts", data_delay=delay
    )
    return BatchSource(name="visits", batch_config=config)


def _as_it_is(visits: pl.DataFrame) -> pl.DataFrame:
    return visits


def latest(source: BatchSource, transformation: Callable[..., Any] = _as_it_is, **changes: Any) -> FeatureView:
    """Declare a view of the newest visit, materialized in both stores."""
    arguments: dict[str, Any] = {
        "mode": "polars",
        "name": "newest",
        "sources": [FilteredSource(source)],
        "entities": [USER],
        "schema": FIELDS,
        "batch_schedule": DAY,
        "feature_start_time": FIRST,
        "online": True,
        "offline": True,
    }
    return batch_feature_view(**(arguments | changes))(transformation)


def totals(source: BatchSource, transformation: Callable[..., Any] = _as_it_is, **changes: Any) -> FeatureView:
    """Declare a view of sums, counts and means over one and three days, materialized in both stores."""
    aggregations = [
        Aggregation("amount", "sum", TimeWindow(DAY), name="sum_1d"),
        Aggregation("visits", "count", TimeWindow(3 * DAY), name="count_3d"),
        Aggregation("visits", "sum", TimeWindow(3 * DAY), name="visits_3d"),
        Aggregation("amount", "mean", TimeWindow(3 * DAY), name="mean_3d"),
    ]
    options: dict[str, Any] = {"name": "totals", "aggregation_interval": HOUR, "aggregations": aggregations}
    return latest(source, transformation, **(options | changes))


def workspace_of(folder: Path, declarations: Sequence[Any], now: Any = NOW) -> Workspace:
    """Return a workspace whose stores are in a folder."""
    return Workspace("world", declarations, home=folder / "home", clock=now)


def materialize(
    workspace: Workspace,
    view: str,
    start: datetime | None = None,
    end: datetime | None = None,
    *,
    overwrite: bool = False,
    online: bool | None = None,
    offline: bool | None = None,
) -> list[JobReport]:
    """Materialize all of a view that is missing by now, or one interval of it."""
    declared = workspace.repo.view(view)
    if start is None or end is None:
        (plan,) = workspace.plan([view])
        tasks = list(plan.tasks)
    else:
        stores = {
            "online": declared.online if online is None else online,
            "offline": declared.offline if offline is None else offline,
        }
        tasks = [Task(view=view, interval=Interval(start, end), overwrite=overwrite, **stores)]
    return list(run_tasks(declared, tasks, workspace.stores, trigger="test"))
