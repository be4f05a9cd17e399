"""Rules of a feature view's times: schedule, tiles, windows, and how a backfill is cut."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from featurekit_dagster.domain.feature_view import Aggregation, BatchTriggerType
from featurekit_dagster.domain.windows import format_duration
from featurekit_dagster.intervals import format_time, is_aligned

if TYPE_CHECKING:
    from featurekit_dagster.domain.aggregation import AggregateFeature
    from featurekit_dagster.domain.view_rules import Draft

_ZERO = timedelta(0)
_FIRST_TIME = datetime.min.replace(tzinfo=UTC)


def check_schedule(draft: Draft) -> None:
    """Resolve `batch_schedule` and check what depends on it."""
    schedule = draft.get("batch_schedule") or draft.get("aggregation_interval")
    draft.resolved["batch_schedule"] = schedule
    if draft.is_missing("batch_schedule") and draft.is_missing("aggregation_interval"):
        draft.faults.append("batch_schedule is not given; it is the width of one interval, such as timedelta(days=1)")
    longest = draft.get("max_backfill_interval")
    if longest is not None and schedule is not None and longest % schedule:
        draft.faults.append(
            f"max_backfill_interval {format_duration(longest)} is not a multiple of batch_schedule "
            f"{format_duration(schedule)}; give a multiple of it"
        )
    _check_manual_backfill(draft, schedule)
    _check_reach(draft, schedule or _ZERO)


def _check_manual_backfill(draft: Draft, schedule: timedelta | None) -> None:
    end: datetime | None = draft.get("manual_trigger_backfill_end_time")
    if end is None:
        return
    given = f"manual_trigger_backfill_end_time {format_time(end)}"
    if draft.given["batch_trigger"] is BatchTriggerType.SCHEDULED:
        draft.faults.append(
            f"{given} is given, but batch_trigger is not BatchTriggerType.MANUAL; set it or leave the time out"
        )
    if schedule is not None and not is_aligned(end, schedule):
        draft.faults.append(f"{given} is not on the {format_duration(schedule)} grid of the Unix epoch; move it there")
    start = draft.get("feature_start_time")
    if start is not None and end <= start:
        draft.faults.append(f"{given} is not after feature_start_time {format_time(start)}; give a later time")


def check_aggregates(draft: Draft) -> None:
    """Check tile size and windows, and that settings of one kind of view are not used with the other."""
    aggregates = draft.get("aggregates")
    tile = draft.resolved["aggregation_interval"] = draft.given["aggregation_interval"]
    if not _wants_aggregates(draft):
        if tile is not None:
            draft.faults.append("aggregation_interval is given without aggregations; leave it out")
            draft.resolved["aggregation_interval"] = None
        return
    if draft.is_missing("aggregation_interval"):
        draft.faults.append("aggregations without aggregation_interval; give the tile size, such as timedelta(hours=1)")
    schedule = draft.get("batch_schedule")
    if tile is not None and schedule is not None and schedule % tile:
        draft.faults.append(
            f"aggregation_interval {format_duration(tile)} does not divide batch_schedule "
            f"{format_duration(schedule)}; give a divisor of it"
        )
    for feature in aggregates:
        _check_window(draft, feature, tile)


def _wants_aggregates(draft: Draft) -> bool:
    features = [*(draft.given["features"] or ()), *(draft.given["aggregations"] or ())]
    unknown = {"features", "aggregations"} & draft.wrong
    return bool(unknown) or bool(draft.given["aggregations"]) or any(isinstance(f, Aggregation) for f in features)


def _check_window(draft: Draft, feature: AggregateFeature, tile: timedelta | None) -> None:
    size, offset = feature.window.window_size, feature.window.offset
    what = f"feature {feature.name!r}:"
    if size <= _ZERO:
        draft.faults.append(f"{what} window_size {size} is not positive; give a longer one")
    elif tile is not None and size % tile:
        draft.faults.append(
            f"{what} window_size {format_duration(size)} is not a multiple of aggregation_interval "
            f"{format_duration(tile)}; give a multiple of it"
        )
    if offset > _ZERO:
        draft.faults.append(f"{what} offset {offset} is positive; a window looks back, so give zero or less")
    elif tile is not None and offset % tile:
        draft.faults.append(
            f"{what} offset -{format_duration(offset)} is not a multiple of aggregation_interval "
            f"{format_duration(tile)}; give a multiple of it"
        )


def _check_reach(draft: Draft, schedule: timedelta) -> None:
    start = draft.get("feature_start_time")
    reach = max((feature.window.reach for feature in draft.get("aggregates")), default=_ZERO)
    if start is not None and start - _FIRST_TIME < reach + schedule:
        draft.faults.append(
            f"feature_start_time {format_time(start)} less the widest window and one batch_schedule is before year 1; "
            "give a later time or a shorter window"
        )
