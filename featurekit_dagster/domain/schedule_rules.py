"""Rules of a feature view's times: schedule, tiles, windows, and how a backfill is cut."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from featurekit_dagster.domain.feature_view import BatchTriggerType
from featurekit_dagster.domain.windows import format_duration
from featurekit_dagster.intervals import format_time, is_aligned

if TYPE_CHECKING:
    from featurekit_dagster.domain.aggregation import AggregateFeature
    from featurekit_dagster.domain.view_rules import Draft

_ZERO = timedelta(0)


def check_schedule(draft: Draft) -> None:
    """Resolve `batch_schedule` and check what depends on it."""
    schedule = draft.get("batch_schedule") or draft.get("aggregation_interval")
    draft.resolved["batch_schedule"] = schedule
    if schedule is None:
        if draft.given["batch_schedule"] is None and draft.given["aggregation_interval"] is None:
            draft.faults.append(
                "batch_schedule is not given; it is the width of one interval, such as timedelta(days=1)"
            )
        return
    longest = draft.get("max_backfill_interval")
    if longest is not None and longest % schedule:
        draft.faults.append(
            f"max_backfill_interval {format_duration(longest)} is not a multiple of batch_schedule "
            f"{format_duration(schedule)}; give a multiple of it"
        )
    _check_manual_backfill(draft, schedule)


def _check_manual_backfill(draft: Draft, schedule: timedelta) -> None:
    end: datetime | None = draft.get("manual_trigger_backfill_end_time")
    if end is None:
        return
    given = f"manual_trigger_backfill_end_time {format_time(end)}"
    if draft.given["batch_trigger"] is not BatchTriggerType.MANUAL:
        draft.faults.append(
            f"{given} is given, but batch_trigger is not BatchTriggerType.MANUAL; set it or leave the time out"
        )
    if not is_aligned(end, schedule):
        draft.faults.append(f"{given} is not on the {format_duration(schedule)} grid of the Unix epoch; move it there")
    start = draft.get("feature_start_time")
    if start is not None and end <= start:
        draft.faults.append(f"{given} is not after feature_start_time {format_time(start)}; give a later time")


def check_aggregates(draft: Draft) -> None:
    """Check tile size and windows, and that settings of one kind of view are not used with the other."""
    aggregates = draft.get("aggregates")
    tile = draft.get("aggregation_interval")
    wanted = bool(aggregates or draft.given["aggregations"])
    if not wanted:
        if tile is not None:
            draft.faults.append("aggregation_interval is given without aggregations; leave it out")
            draft.resolved["aggregation_interval"] = None
        return
    if tile is None:
        if draft.given["aggregation_interval"] is None:
            draft.faults.append(
                "aggregations without aggregation_interval; give the tile size, such as timedelta(hours=1)"
            )
        return
    schedule = draft.get("batch_schedule")
    if schedule is not None and schedule % tile:
        draft.faults.append(
            f"aggregation_interval {format_duration(tile)} does not divide batch_schedule {format_duration(schedule)}"
        )
    for feature in aggregates:
        _check_window(draft, feature, tile)


def _check_window(draft: Draft, feature: AggregateFeature, tile: timedelta) -> None:
    size, offset = feature.window.window_size, feature.window.offset
    of_tiles = f"a multiple of aggregation_interval {format_duration(tile)}"
    if size < tile:
        draft.faults.append(
            f"feature {feature.name!r}: window_size {size} is smaller than aggregation_interval {format_duration(tile)}"
        )
    elif size % tile:
        draft.faults.append(f"feature {feature.name!r}: window_size {format_duration(size)} is not {of_tiles}")
    if offset > _ZERO:
        draft.faults.append(
            f"feature {feature.name!r}: offset {offset} is positive; a window looks back, so give zero or less"
        )
    elif offset % tile:
        draft.faults.append(f"feature {feature.name!r}: offset -{format_duration(offset)} is not {of_tiles}")
