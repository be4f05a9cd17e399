"""Rules of a feature view's times: schedule, tiles, windows, and how a backfill is cut."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from featurekit_dagster.domain.feature_view import Aggregation, BatchTriggerType, StreamProcessingMode
from featurekit_dagster.domain.windows import LifetimeWindow, TimeWindow, TimeWindowSeries, format_duration
from featurekit_dagster.intervals import ceil_time, floor_time, format_time, is_aligned

if TYPE_CHECKING:
    from featurekit_dagster.domain.aggregation import AggregateFeature
    from featurekit_dagster.domain.view_rules import Draft

_ZERO, _DAY = timedelta(0), timedelta(days=1)
_NO_SERIES = "a TimeWindowSeries is not taken"
_ONE_BY_ONE = "declare one TimeWindow for each of its windows"
_FIRST_TIME = datetime.min.replace(tzinfo=UTC)


def check_schedule(draft: Draft) -> None:
    """Resolve `batch_schedule` and check what depends on it."""
    schedule = draft.get("batch_schedule") or _default_schedule(draft)
    draft.resolved["batch_schedule"] = schedule
    if schedule is None and not {"batch_schedule", "aggregation_interval"} & draft.wrong:
        draft.faults.append("batch_schedule is not given; it is the width of one interval, such as timedelta(days=1)")
    longest = draft.get("max_backfill_interval")
    if longest is not None and schedule is not None and longest % schedule:
        draft.faults.append(
            f"max_backfill_interval {format_duration(longest)} is not a multiple of batch_schedule "
            f"{format_duration(schedule)}; give a multiple of it"
        )
    _check_manual_backfill(draft, schedule)
    _check_reach(draft, schedule or _ZERO)


def _default_schedule(draft: Draft) -> timedelta | None:
    """Return one day for what has no tiles to follow: continuous streams, and streams without a batch side."""
    if draft.get("is_stream") and (is_continuous(draft) or not draft.get("inputs")):
        return _DAY
    tile: timedelta | None = draft.given["aggregation_interval"]
    return tile


def is_continuous(draft: Draft) -> bool:
    """Tell whether a stream is followed event by event."""
    return draft.get("stream_processing_mode") is StreamProcessingMode.CONTINUOUS


def _check_manual_backfill(draft: Draft, schedule: timedelta | None) -> None:
    end: datetime | None = draft.get("manual_trigger_backfill_end_time")
    if end is None:
        return
    given = f"manual_trigger_backfill_end_time {format_time(end)}"
    if draft.get("batch_trigger") in (BatchTriggerType.SCHEDULED, BatchTriggerType.NO_BATCH_MATERIALIZATION):
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
    aggregates: Sequence[AggregateFeature] = draft.get("aggregates")
    tile = _resolved_tile(draft)
    draft.resolved["aggregation_interval"] = tile
    if not wants_aggregates(draft):
        _refuse_without_aggregates(draft)
        return
    schedule = draft.get("batch_schedule")
    if tile is not None and schedule is not None and schedule % tile:
        draft.faults.append(
            f"aggregation_interval {format_duration(tile)} does not divide batch_schedule "
            f"{format_duration(schedule)}; give a divisor of it"
        )
    for feature in aggregates:
        _check_window(draft, feature, tile)
        if feature.is_series and draft.get("compaction_enabled"):
            draft.faults.append(f"feature {feature.name!r}: {_NO_SERIES} with compaction_enabled; {_ONE_BY_ONE}")
        if feature.is_series and draft.get("secondary_key") is not None:
            draft.faults.append(
                f"feature {feature.name!r}: {_NO_SERIES} beside aggregation_secondary_key, which makes every feature "
                f"an array already; {_ONE_BY_ONE}"
            )
    _check_lifetime(draft, tile)


def _resolved_tile(draft: Draft) -> timedelta | None:
    """Return the tile size of a view that has tiles."""
    tile: timedelta | None = draft.given["aggregation_interval"]
    is_stream, is_compacted = draft.get("is_stream"), draft.get("compaction_enabled")
    if not wants_aggregates(draft):
        return None
    if is_continuous(draft) or is_compacted:
        if tile is not None and is_stream:
            why = "compaction_enabled" if is_compacted else "stream_processing_mode CONTINUOUS"
            draft.faults.append(
                f"aggregation_interval is given with {why}, where every event counts by itself; leave it out"
            )
        return None
    if draft.is_missing("aggregation_interval"):
        draft.faults.append("aggregations without aggregation_interval; give the tile size, such as timedelta(hours=1)")
    return tile


def _refuse_without_aggregates(draft: Draft) -> None:
    for name in ("aggregation_interval", "aggregation_secondary_key", "lifetime_start_time"):
        if draft.given[name] is not None:
            draft.faults.append(f"{name} is given without aggregations; leave it out")


def wants_aggregates(draft: Draft) -> bool:
    """Tell whether aggregate features are declared, rightly or wrongly."""
    features = [*(draft.given["features"] or ()), *(draft.given["aggregations"] or ())]
    unknown = {"features", "aggregations"} & draft.wrong
    return bool(unknown) or bool(draft.given["aggregations"]) or any(isinstance(f, Aggregation) for f in features)


def _check_window(draft: Draft, feature: AggregateFeature, tile: timedelta | None) -> None:
    window, what = feature.window, f"feature {feature.name!r}:"
    lengths: dict[str, timedelta] = {}
    if isinstance(window, TimeWindow):
        if window.window_size <= _ZERO:
            draft.faults.append(f"{what} window_size {window.window_size} is not positive; give a longer one")
        else:
            lengths["window_size"] = window.window_size
        if window.offset > _ZERO:
            draft.faults.append(f"{what} offset {window.offset} is positive; a window looks back, so give zero or less")
        else:
            lengths["offset"] = window.offset
    elif isinstance(window, TimeWindowSeries):
        lengths |= {"series_start": window.series_start, "series_end": window.series_end}
        lengths |= {"window_size": window.window_size, "step_size": window.step}
    for name, length in lengths.items():
        if tile is not None and length % tile:
            sign = "-" if length < _ZERO else ""
            draft.faults.append(
                f"{what} {name} {sign}{format_duration(length)} is not a multiple of aggregation_interval "
                f"{format_duration(tile)}; give a multiple of it"
            )


def _check_lifetime(draft: Draft, tile: timedelta | None) -> None:
    start: datetime | None = draft.get("lifetime_start_time")
    lifetimes = [f.name for f in draft.get("aggregates") if isinstance(f.window, LifetimeWindow)]
    if start is None:
        if lifetimes and draft.is_missing("lifetime_start_time"):
            draft.faults.append(
                f"feature {lifetimes[0]!r}: a LifetimeWindow without lifetime_start_time; give the first instant that "
                "counts"
            )
        return
    if not lifetimes and not {"features", "aggregations"} & draft.wrong:
        draft.faults.append("lifetime_start_time is given without a LifetimeWindow; leave it out")
    elif tile is not None and not is_aligned(start, tile):
        nearest = _nearest(start, tile)
        draft.faults.append(
            f"lifetime_start_time {format_time(start)} is not on the {format_duration(tile)} grid of the Unix epoch, "
            f"on which aggregation_interval puts tiles; {nearest}"
        )


def _nearest(time: datetime, width: timedelta) -> str:
    """Return the advice to take one of the two neighbours on a grid, as far as they are in the calendar."""
    texts = []
    for neighbour in (floor_time, ceil_time):
        with suppress(OverflowError):
            texts.append(format_time(neighbour(time, width)))
    return f"nearest are {' and '.join(texts)}" if len(texts) > 1 else "move it there"


def _check_reach(draft: Draft, schedule: timedelta) -> None:
    start = draft.get("feature_start_time")
    lifetime = draft.get("lifetime_start_time")
    if lifetime is not None and lifetime - _FIRST_TIME < schedule:
        draft.faults.append(
            f"lifetime_start_time {format_time(lifetime)} less one batch_schedule is before year 1; give a later time"
        )
    reach = max((feature.window.reach for feature in draft.get("aggregates")), default=_ZERO)
    if start is not None and start - _FIRST_TIME < reach + schedule:
        draft.faults.append(
            f"feature_start_time {format_time(start)} less the widest window and one batch_schedule is before year 1; "
            "give a later time or a shorter window"
        )
