"""Views over the visits of `visits` that follow a stream, store events, or break aggregates down by a second key."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl

from featurekit_dagster import (
    Aggregation,
    FeatureView,
    KafkaConfig,
    StreamProcessingMode,
    StreamSource,
    TimeWindow,
    Workspace,
    stream_feature_view,
)
from featurekit_dagster.handles import FeatureViewHandle
from featurekit_dagster.serving.frame import FeatureFrame
from tests.support.visits import DAY, FIELDS, FIRST, HOUR, USER, Row, latest, materialize, workspace_of, write_visits

CONTINUOUS, TIME_INTERVAL = StreamProcessingMode.CONTINUOUS, StreamProcessingMode.TIME_INTERVAL


def followed(folder: Path, rows: Sequence[Row], delay: timedelta = timedelta(0)) -> StreamSource:
    """Write the batch side of a stream of visits, and return the stream."""
    batch = write_visits(folder, rows, delay)
    stream = KafkaConfig(kafka_bootstrap_servers="broker:9092", topics="visits", timestamp_field="ts")
    return StreamSource(name="visits", stream_config=stream, batch_config=batch.batch_config)


def live(source: StreamSource, **changes: Any) -> FeatureView:
    """Declare a stream view, by default of the newest visit; rows pass through unchanged."""
    arguments: dict[str, Any] = {
        "name": "live",
        "source": source,
        "entities": [USER],
        "schema": FIELDS,
        "batch_schedule": DAY,
        "feature_start_time": FIRST,
        "offline": True,
    }
    view = stream_feature_view(**(arguments | changes))
    assert isinstance(view, FeatureView)
    return view


def sums(*aggregations: Aggregation, default: timedelta = HOUR) -> dict[str, Any]:
    """Return the aggregations to declare; without any, the sum and the number of visits in a span."""
    plain = (
        Aggregation("amount", "sum", TimeWindow(default), name="sum"),
        Aggregation("visits", "count", TimeWindow(default), name="count"),
    )
    return {"aggregations": list(aggregations or plain)}


def continuous(source: StreamSource, *aggregations: Aggregation, **changes: Any) -> FeatureView:
    """Declare windows that end at the very instant asked for, by default of one hour."""
    return live(source, stream_processing_mode=CONTINUOUS, **sums(*aggregations), **changes)


def tiled(source: StreamSource, *aggregations: Aggregation, **changes: Any) -> FeatureView:
    """Declare windows of whole tiles of an hour, by default of two hours."""
    arguments = {"stream_processing_mode": TIME_INTERVAL, "aggregation_interval": HOUR}
    return live(source, **arguments, **sums(*aggregations, default=2 * HOUR), **changes)


def batch(folder: Path, rows: Sequence[Row], *aggregations: Aggregation, **changes: Any) -> FeatureView:
    """Declare a batch view of aggregates, offline only, with tiles of an hour and a schedule of one day."""
    delay = changes.pop("delay", timedelta(0))
    options = {"name": "batch", "aggregation_interval": HOUR, "online": False} | changes
    return latest(write_visits(folder, rows, delay), **sums(*aggregations, default=DAY), **options)


def compacted(folder: Path, rows: Sequence[Row], *aggregations: Aggregation, **changes: Any) -> FeatureView:
    """Declare a batch view that stores events."""
    return batch(folder, rows, *aggregations, aggregation_interval=None, compaction_enabled=True, **changes)


def both_ways(folder: Path, view: FeatureView, now: Any = None) -> tuple[FeatureViewHandle, Workspace]:
    """Return a view that is materialized up to now, to be read from the store and from the source."""
    workspace = workspace_of(folder, [view], **({} if now is None else {"now": now}))
    materialize(workspace, view.name)
    return workspace.get_feature_view(view.name), workspace


def asked(handle: FeatureViewHandle, *questions: tuple[Any, Any]) -> list[tuple[Any, ...]]:
    """Return the features of (user, time) questions, which store and source have to agree on."""
    spine = pl.DataFrame(list(questions), schema={"user": pl.Int64, "ts": pl.Datetime("us", "UTC")}, orient="row")
    stored, computed = (
        values(handle.get_features_for_events(spine, from_source=from_source), *_labelled(handle))
        for from_source in (False, True)
    )
    assert stored == computed
    return stored


def _labelled(handle: FeatureViewHandle) -> list[str]:
    return [f"{handle.name}__{name}" for name in handle.features]


def values(frame: FeatureFrame, *columns: str) -> list[tuple[Any, ...]]:
    """Return some columns of an answer, row by row."""
    table = frame.to_arrow()
    return list(zip(*(table[name].to_pylist() for name in columns), strict=True))


def ranged(handle: FeatureViewHandle, start: Any, end: Any, *columns: str, **options: Any) -> list[tuple[Any, ...]]:
    """Return columns of a range in order of key and time, which store and source have to agree on."""
    names = [*columns, "_valid_from", "_valid_to"]
    stored, computed = (
        values(handle.get_features_in_range(start, end, from_source=from_source, **options), "user", *names)
        for from_source in (False, True)
    )
    stored, computed = (sorted(rows, key=lambda row: (str(row[0]), row[-2])) for rows in (stored, computed))
    assert stored == computed
    return [row[1:] for row in stored]
