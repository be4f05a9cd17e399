"""From declarations and the record to tasks. Pure: the snapshot and the time are arguments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta

from featurekit_dagster.domain.feature_view import BatchTriggerType, FeatureView
from featurekit_dagster.domain.windows import format_duration
from featurekit_dagster.errors import BeforeFeatureStart, IntervalNotComplete, MisalignedInterval, PlanError
from featurekit_dagster.intervals import Interval, IntervalSet, as_utc, ceil_time, floor_time, format_time, is_aligned
from featurekit_dagster.planning.grid import last_complete_end, last_ready_end
from featurekit_dagster.planning.tasks import OFFLINE, ONLINE, LedgerSnapshot, RunPlan, Task, ViewPlan

_BATCH_REMEDY = "give its source a batch_config, and the view batch_trigger=BatchTriggerType.MANUAL"


def plan_views(views: Iterable[FeatureView], snapshot: LedgerSnapshot, now: datetime) -> tuple[ViewPlan, ...]:
    """Return the plan of every view, in the given order."""
    return tuple(plan_view(view, snapshot, now) for view in views)


def plan_view(view: FeatureView, snapshot: LedgerSnapshot, now: datetime) -> ViewPlan:
    """Return what has to be done so that the view is materialized up to `now`.

    Running jobs count as done; an interval that failed is planned again by whoever asks.

    Args:
        view: The feature view.
        snapshot: What is covered and claimed.
        now: Time of planning.
    """
    wanted = wanted_interval(view, now)
    warnings = tuple(_warnings(view))
    if wanted is None:
        return ViewPlan(view=view.name, runs=(), wanted=None, reason=_why_nothing(view, now), warnings=warnings)
    runs = tuple(missing_runs(view, wanted, snapshot))
    partitions = sum((run.interval.duration // view.batch_schedule for run in runs), 0)
    reason = _reason(view, wanted, runs, snapshot)
    return ViewPlan(view=view.name, runs=runs, wanted=wanted, reason=reason, warnings=warnings, partitions=partitions)


def wanted_interval(view: FeatureView, now: datetime) -> Interval | None:
    """Return the range that should be materialized at `now` without anybody asking, or None.

    From the materialization start to the end of the last ready interval; for a MANUAL view to
    `manual_trigger_backfill_end_time`, and nothing without one; nothing of a view without batch materialization.

    Source: Manually Trigger Materialization, Automatic Backfill for Manually-Materialized Feature Views.
    """
    start = view.materialization_start
    if start is None or not stores_of(view) or view.batch_trigger is BatchTriggerType.NO_BATCH_MATERIALIZATION:
        return None
    end = last_ready_end(view, now)
    if view.batch_trigger is BatchTriggerType.MANUAL:
        if view.manual_trigger_backfill_end_time is None:
            return None
        end = min(end, view.manual_trigger_backfill_end_time)
    return Interval(start, end) if start < end else None


def stores_of(view: FeatureView) -> tuple[str, ...]:
    """Return the stores that a view writes."""
    return tuple(store for store, used in ((OFFLINE, view.offline), (ONLINE, view.online)) if used)


def split_tasks(
    view: FeatureView, interval: Interval, *, online: bool, offline: bool, overwrite: bool = False
) -> tuple[Task, ...]:
    """Return the tasks of one contiguous range.

    One for the whole range; `ceil(range / max_backfill_interval)` of them, cut from the start, when that is given; one
    per interval with `incremental_backfills`.

    Source: Custom ETL Features with Incremental Backfills (120 days, 120 queries).
    """
    step = view.batch_schedule if view.incremental_backfills else view.max_backfill_interval
    pieces = _cut(interval, step)
    return tuple(
        Task(view=view.name, interval=piece, online=online, offline=offline, overwrite=overwrite) for piece in pieces
    )


def check_interval(view: FeatureView, start: datetime, end: datetime, now: datetime) -> Interval:
    """Return the interval that a person asked for, if it may be materialized.

    Args:
        view: The feature view.
        start: First instant inside; naive is UTC.
        end: First instant after; naive is UTC.
        now: Time of asking; the end may be at most `floor(now, batch_schedule)`, data delay not counted.

    Raises:
        MisalignedInterval: An end is off the epoch grid of `batch_schedule`.
        BeforeFeatureStart: The start is before the materialization start.
        IntervalNotComplete: The end is after the last complete interval.
        PlanError: The start is not before the end, the view writes no store, or it has no batch materialization.

    Source: Manually Trigger Materialization, Triggering a new materialization job.
    """
    first = view.materialization_start
    if first is None or not stores_of(view):
        raise PlanError(f"{view.name}: it writes no store; declare online=True or offline=True and feature_start_time")
    if view.batch_trigger is BatchTriggerType.NO_BATCH_MATERIALIZATION:
        raise PlanError(f"{view.name}: {_no_batch(view)}; {_BATCH_REMEDY}")
    start, end = as_utc(start), as_utc(end)
    if start >= end:
        remedy = "exchange them" if start > end else "give a later end"
        raise PlanError(f"{view.name}: start {format_time(start)} is not before end {format_time(end)}; {remedy}")
    for what, time in (("start", start), ("end", end)):
        if not is_aligned(time, view.batch_schedule):
            raise misaligned(view, what, time)
    if start < first:
        raise BeforeFeatureStart(view=view.name, given=format_time(start), first=format_time(first))
    last = last_complete_end(view, now)
    if end > last:
        raise IntervalNotComplete(view=view.name, given=format_time(end), last=format_time(last))
    return Interval(start, end)


def misaligned(view: FeatureView, what: str, time: datetime) -> MisalignedInterval:
    """Return the refusal of a time that is off a view's grid, with the nearest ones that are on it."""
    width = view.batch_schedule
    before, after = floor_time(time, width), ceil_time(time, width)
    return MisalignedInterval(
        view=view.name,
        what=what,
        given=format_time(time),
        rule=f"is not on the {format_duration(width)} grid of the Unix epoch",
        remedy=f"nearest are {format_time(before)} and {format_time(after)}",
    )


def missing_intervals(view: FeatureView, wanted: Interval, snapshot: LedgerSnapshot, store: str) -> IntervalSet:
    """Return what of `wanted` is neither covered in a store nor claimed by a running job."""
    taken = snapshot.coverage(view.name, store).union(snapshot.running.get(view.name, IntervalSet()))
    return IntervalSet([wanted]).subtract(taken)


def missing_runs(view: FeatureView, wanted: Interval, snapshot: LedgerSnapshot) -> Iterator[RunPlan]:
    """Yield one run per contiguous range of `wanted` in which the same stores are missing, in order of time."""
    offline = missing_intervals(view, wanted, snapshot, OFFLINE) if view.offline else IntervalSet()
    online = missing_intervals(view, wanted, snapshot, ONLINE) if view.online else IntervalSet()
    both = offline.intersect(online)
    pieces = [(i, True, True) for i in both]
    pieces += [(i, False, True) for i in offline.subtract(both)]
    pieces += [(i, True, False) for i in online.subtract(both)]
    for interval, to_online, to_offline in sorted(pieces):
        tasks = split_tasks(view, interval, online=to_online, offline=to_offline)
        yield RunPlan(view=view.name, interval=interval, tasks=tasks)


def _cut(interval: Interval, step: timedelta | None) -> Iterator[Interval]:
    start = interval.start
    while start < interval.end:
        end = interval.end if step is None else min(start + step, interval.end)
        yield Interval(start, end)
        start = end


def _warnings(view: FeatureView) -> Iterator[str]:
    plain = [used.source.name for used in view.inputs.values() if not used.is_filtered]
    if plain and view.context_parameter is None and stores_of(view):
        yield (
            f"every job reads the whole of {', '.join(plain)}, because it is used unfiltered and the function takes no "
            "context; FilteredSource(...) hands over only the interval"
        )


def _why_nothing(view: FeatureView, now: datetime) -> str:
    if not stores_of(view):
        return "it writes no store (online and offline are both False)"
    if view.batch_trigger is BatchTriggerType.NO_BATCH_MATERIALIZATION:
        return _no_batch(view)
    if view.batch_trigger is BatchTriggerType.MANUAL and view.manual_trigger_backfill_end_time is None:
        return "its jobs are triggered by hand (batch_trigger=MANUAL)"
    return f"no interval is complete yet at {format_time(now)}"


def _no_batch(view: FeatureView) -> str:
    """Return why batch jobs have nothing to do with a view."""
    if not view.inputs:
        return "its source has no batch_config, and events reach it by its stream only"
    return "it has no batch jobs (batch_trigger=NO_BATCH_MATERIALIZATION)"


def _reason(view: FeatureView, wanted: Interval, runs: tuple[RunPlan, ...], snapshot: LedgerSnapshot) -> str:
    if not runs:
        running = snapshot.running.get(view.name, IntervalSet()).intersect([wanted])
        return f"up to date to {format_time(wanted.end)}" + (f"; running: {running}" if running else "")
    covered = any(snapshot.coverage(view.name, store).overlaps(wanted) for store in stores_of(view))
    if covered:
        return f"gaps in {wanted}"
    begin = view.feature_start_time
    if begin is None or begin <= wanted.start or not (view.reach or view.has_lifetime):
        return f"initial backfill of {wanted}"
    # the schedule's grid may lie before either
    is_lifetime = view.lifetime_start_time is not None and view.lifetime_start_time < begin - view.reach
    what = "to reach lifetime_start_time" if is_lifetime else "for the widest window"
    back = format_duration(begin - wanted.start)
    return f"initial backfill of {wanted}, which begins {back} before feature_start_time {what}"
