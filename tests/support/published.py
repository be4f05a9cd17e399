"""A published view over events that change, and a comparison of what is published with what reads answer."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from featurekit_dagster import (
    Aggregation,
    Attribute,
    BatchSource,
    Entity,
    FeatureView,
    FileConfig,
    Int64,
    KafkaConfig,
    LifetimeWindow,
    PublishFeaturesConfig,
    StreamProcessingMode,
    StreamSource,
    String,
    TimeWindow,
    Workspace,
    batch_feature_view,
    last,
    stream_feature_view,
)
from featurekit_dagster.domain.schema import Field, Timestamp
from featurekit_dagster.execution.materialize import run_tasks
from featurekit_dagster.execution.publish import Published, publish
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.planning.tasks import Task
from featurekit_dagster.serving.published import changes_in
from featurekit_dagster.serving.ranges import features_in_range
from featurekit_dagster.serving.stored import StoredRows
from featurekit_dagster.stores.ledger_records import FEATURE_EXPORT, JobRecord
from featurekit_dagster.stores.warehouse import Warehouse
from tests.support.clock import Clock

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
BEGIN = datetime(2024, 3, 1, tzinfo=UTC)
DAYS = 10
KINDS = ("tiles", "lifetime", "rows", "rows with ttl", "stream tiles", "stream events", "stream rows")
Event = tuple[str, int, int | None]
"""Key, hour since `BEGIN`, value."""


def day(number: int) -> datetime:
    return BEGIN + number * DAY


def write_events(file: Path, events: Sequence[Event]) -> None:
    rows = {
        "user": pd.Series([user for user, _, _ in events], dtype="str"),
        "ts": pd.Series([BEGIN.replace(tzinfo=None) + n * HOUR for _, n, _ in events], dtype="datetime64[us]"),
        "v": pd.Series([value for _, _, value in events], dtype="Int64"),
    }
    pd.DataFrame(rows).to_parquet(file)


def published_view(kind: str, file: Path, *, start: datetime | None = None) -> FeatureView:
    """Return a view named `seen` that is published from the third day on, or from `start`."""
    config = FileConfig(uri=str(file), file_format="parquet", timestamp_field="ts", data_delay=2 * HOUR)
    fields = [Field("user", String), Field("ts", Timestamp), Field("v", Int64)]
    given: dict[str, Any] = {
        "entities": [Entity(name="user", join_keys=[Field("user", String)])],
        "timestamp_field": "ts",
        "batch_schedule": DAY,
        "feature_start_time": day(2),
        "offline": True,
        "publish_features_config": PublishFeaturesConfig(publish_start_time=start),
    }
    windows: list[Any] = [TimeWindow(window_size=DAY), TimeWindow(window_size=3 * DAY, offset=-DAY)]
    if kind == "lifetime":
        windows.append(LifetimeWindow())
        given["lifetime_start_time"] = day(1)
    if "rows" in kind:
        given |= {"features": [Attribute("v", Int64)], "ttl": 30 * HOUR if "ttl" in kind else None}
    else:
        given |= {"schema": fields, "aggregations": [Aggregation("v", f, w) for w in windows for f in ("sum", last(2))]}
    if kind in ("tiles", "lifetime", "stream tiles"):
        given["aggregation_interval"] = 6 * HOUR
    if not kind.startswith("stream"):
        return batch_feature_view(
            mode="pandas", name="seen", sources=[BatchSource(name="events", batch_config=config)], **given
        )(seen)
    stream = KafkaConfig(kafka_bootstrap_servers="127.0.0.1:9", topics="seen", timestamp_field="ts")
    mode = StreamProcessingMode.TIME_INTERVAL if kind == "stream tiles" else StreamProcessingMode.CONTINUOUS
    if kind != "stream rows":
        given["stream_processing_mode"] = mode
    source = StreamSource(name="events", stream_config=stream, batch_config=config)
    return stream_feature_view(mode="pandas", name="seen", source=source, **given)(seen)


def seen(events: pd.DataFrame) -> pd.DataFrame:
    return events


def workspace_of(folder: Path, view: FeatureView) -> Workspace:
    return Workspace("world", [view], home=folder / "home", clock=Clock(day(DAYS + 3)))


def materialize(workspace: Workspace, first: int, end: int) -> None:
    """Materialize days, those that are covered again."""
    interval = Interval(day(first), day(end))
    task = Task(view="seen", interval=interval, online=False, offline=True, overwrite=True)
    list(run_tasks(workspace.repo.view("seen"), [task], workspace.stores, trigger="test"))


def export(workspace: Workspace, warehouse: Warehouse | None = None) -> list[JobRecord]:
    """Carry out the jobs that are to publish, and return them."""
    view, ledger = workspace.repo.view("seen"), workspace.stores.ledger
    done = []
    for waiting in reversed(ledger.unfinished_chores("world", FEATURE_EXPORT)):
        job = ledger.begin(waiting.id, run_id=None)
        stored = StoredRows.choose(view, workspace.stores, from_source=False)

        def changes(span: Interval, is_continued: bool, stored: StoredRows = stored) -> Any:
            return changes_in(stored, span.start_us, span.end_us, is_continued=is_continued)

        published = Published.of(view, workspace.stores, warehouse)
        stats = publish(published, job, changes, lambda: None)
        done.append(ledger.finish_chore(job.id, stats=stats))
    return done


def rows_published(workspace: Workspace, warehouse: Warehouse | None = None) -> list[tuple[Any, ...]]:
    """Return what people see in the warehouse: join keys, features, from and to when."""
    published = Published.of(workspace.repo.view("seen"), workspace.stores, warehouse)
    with published.warehouse.session() as session:
        found = session.run("SELECT * FROM world.seen")
    return sorted((tuple(_comparable(cell) for cell in row) for row in found), key=repr)


def rows_expected(workspace: Workspace, windows: IntervalSet) -> list[tuple[Any, ...]]:
    """Return what reads answer for the times that windows are published for."""
    view = workspace.repo.view("seen")
    published = Published.of(view, workspace.stores)
    stored = StoredRows.choose(view, workspace.stores, from_source=False)
    first = view.publish.publish_start_time if view.publish is not None else None
    found: list[tuple[Any, ...]] = []
    for run in windows:
        span = published.rules.shown(run)
        start_us = span.start_us if first is None else max(span.start_us, Interval(first, day(99)).start_us)
        answer = features_in_range(stored, start_us, span.end_us)
        found += zip(*(column.to_pylist() for column in answer.columns), strict=True)
    return sorted((tuple(_comparable(cell) for cell in row) for row in found), key=repr)


def _comparable(cell: Any) -> Any:
    if isinstance(cell, datetime):
        return cell.astimezone(UTC)
    return cell
