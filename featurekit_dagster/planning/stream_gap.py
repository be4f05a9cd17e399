"""What neither batch jobs nor a stream bring online: the time between them, where the stream forgets too soon."""

from __future__ import annotations

from datetime import datetime, timedelta

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.domain.windows import format_duration
from featurekit_dagster.intervals import floor_time, format_time


def retention_warning(view: FeatureView, retention: timedelta | None, now: datetime) -> str | None:
    """Return what to say about a stream that keeps its events for less than an interval of batch jobs; else None.

    Batch jobs write online what was before the interval in which the stream is first read, and of that interval the
    stream may have lost the beginning.

    Args:
        view: A stream view that is written online.
        retention: How long the stream keeps its events; None where that is not known.
        now: The time.

    Source: Streaming Materialization, Initializing Online Data from the Historical Batch Source.
    """
    schedule = view.batch_schedule
    if retention is None or retention >= schedule or not view.inputs:
        return None
    start = floor_time(now, schedule)
    bounds = (format_time(start), format_time(start + schedule))
    return (
        f"{view.name}: its stream keeps events for {format_duration(retention)}, less than the batch_schedule "
        f"{format_duration(schedule)}; where its first read is of now, the beginning of [{bounds[0]}, {bounds[1]}) is "
        f"missing online. Let it keep them longer, or fill the gap by trigger_materialization_job({bounds[0]!r}, "
        f"{bounds[1]!r}, online=True, offline=False)"
    )
