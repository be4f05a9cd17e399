"""From declarations and the record to tasks. Pure: the snapshot and the time are arguments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta

from featurekit_dagster.domain.feature_view import BatchTriggerType, FeatureView
from featurekit_dagster.domain.stream_rules import stream_warnings
from featurekit_dagster.domain.windows import format_duration
from featurekit_dagster.errors import BeforeFeatureStart, IntervalNotComplete, MisalignedInterval, PlanError
from featurekit_dagster.intervals import Interval, IntervalSet, as_utc, ceil_time, floor_time, format_time, is_aligned
from featurekit_dagster.planning.generations import Change
from featurekit_dagster.planning.grid import last_complete_end, last_ready_end
from featurekit_dagster.planning.partition_limits import limit_warnings, partition_limits
from featurekit_dagster.planning.tasks import OFFLINE, ONLINE, LedgerSnapshot, RemovedView, RunPlan, Task, ViewPlan

_BATCH_REMEDY = "give its source a batch_config, and the view batch_trigger=BatchTriggerType.MANUAL"


def plan_view(view: FeatureView, snapshot: LedgerSnapshot, now: datetime) -> ViewPlan:
    """Return what has to be done so that the view is materialized up to `now`.

    Running jobs count as done; an interval that failed is planned again by whoever asks.

    Args:
        view: The feature view.
        snapshot: What is covered and claimed.
        now: Time of planning.
    """
    wanted, changes = wanted_interval(view, now), snapshot.changes.get(view.name, ())
    by_store = {store: _wanted_in(view, wanted, snapshot, store, now) for store in stores_of(view)}
    runs = () if changes else tuple(_missing_runs(view, by_store, snapshot))
    if changes:
        reason = _why_waiting(changes)
    elif any(by_store.values()):
        reason = _reason(view, wanted, by_store, runs, snapshot)
    else:
        reason = _why_nothing(view, now)
    return ViewPlan(
        view=view.name,
        runs=runs,
        wanted=wanted,
        reason=reason,
        warnings=(*_warnings(view), *limit_warnings(view, now)),
        partitions=sum((run.interval.duration // view.batch_schedule for run in runs), 0),
        generation=snapshot.generation.get(view.name, 1),
        changes=changes,
        limits=partition_limits(view, now),
    )


def plan_removed(snapshot: LedgerSnapshot) -> tuple[RemovedView, ...]:
    """Return the views that are declared no more and of which something is still stored, in order of their names."""
    return tuple(removed for _, removed in sorted(snapshot.undeclared.items()) if any(removed.covered.values()))


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


def open_interval(view: FeatureView, now: datetime) -> Interval:
    """Return the batch interval that has begun and not ended."""
    start = last_complete_end(view, now)
    return Interval(start, start + view.batch_schedule)


def check_interval(
    view: FeatureView, start: datetime, end: datetime, now: datetime, *, is_open: bool = False
) -> Interval:
    """Return the interval that a person asked for, if it may be materialized.

    Args:
        view: The feature view.
        start: First instant inside; naive is UTC.
        end: First instant after; naive is UTC.
        now: Time of asking; the end may be at most `floor(now, batch_schedule)`, data delay not counted.
        is_open: Whether it may be the current interval, too; of a stream view that is written online only then.

    Raises:
        MisalignedInterval: An end is off the epoch grid of `batch_schedule`.
        BeforeFeatureStart: The start is before the materialization start.
        IntervalNotComplete: The end is after the last complete interval.
        PlanError: The start is not before the end, the view writes no store, or it has no batch materialization.

    Source: Manually Trigger Materialization, Triggering a new materialization job; Streaming Materialization (the
    online job for the period after a stream's start).
    """
    first = view.materialization_start
    if view.is_table:
        raise PlanError(f"{view.name}: {_no_batch(view)}; ingest what is missing")
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
    if is_open and view.is_stream and view.online and Interval(start, end) == open_interval(view, now):
        return Interval(start, end)
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
    return _missing_runs(view, {store: IntervalSet([wanted]) for store in stores_of(view)}, snapshot)


def _missing_runs(view: FeatureView, wanted: Mapping[str, IntervalSet], snapshot: LedgerSnapshot) -> Iterator[RunPlan]:
    """Yield one run per contiguous range in which the same stores are missing, on the view's grid, in order of time.

    An interval of the grid that is covered in part, because the grid was another, is written as a whole.
    """
    in_part = {store: _covered_in_part(view, whole, snapshot, store) for store, whole in wanted.items()}
    missing = {
        store: IntervalSet(_on_grid(view, (gap for i in whole for gap in missing_intervals(view, i, snapshot, store))))
        for store, whole in wanted.items()
    }
    pieces = [(*piece, False) for piece in _by_stores(missing)] + [(*piece, True) for piece in _by_stores(in_part)]
    for interval, to_online, to_offline, overwrite in sorted(pieces):
        tasks = split_tasks(view, interval, online=to_online, offline=to_offline, overwrite=overwrite)
        yield RunPlan(view=view.name, interval=interval, tasks=tasks)


def _by_stores(missing: Mapping[str, IntervalSet]) -> list[tuple[Interval, bool, bool]]:
    """Return ranges with whether the online and the offline store are missing there."""
    offline, online = missing.get(OFFLINE, IntervalSet()), missing.get(ONLINE, IntervalSet())
    both = offline.intersect(online)
    pieces = [(i, True, True) for i in both]
    pieces += [(i, False, True) for i in offline.subtract(both)]
    return pieces + [(i, True, False) for i in online.subtract(both)]


def _on_grid(view: FeatureView, gaps: Iterable[Interval]) -> Iterator[Interval]:
    """Yield what of gaps is whole intervals of the view's grid."""
    for gap in gaps:
        start, end = ceil_time(gap.start, view.batch_schedule), floor_time(gap.end, view.batch_schedule)
        if start < end:
            yield Interval(start, end)


def _covered_in_part(view: FeatureView, wanted: IntervalSet, snapshot: LedgerSnapshot, store: str) -> IntervalSet:
    """Return the intervals of the view's grid that are covered in part; none that a job has claimed."""
    width = view.batch_schedule
    covered = snapshot.coverage(view.name, store)
    ends = (time for i in covered for time in (i.start, i.end) if not is_aligned(time, width))
    cells = IntervalSet(Interval(floor_time(time, width), ceil_time(time, width)) for time in ends)
    running = snapshot.running.get(view.name, IntervalSet())
    found = (cell for i in cells for cell in i.split_on_grid(width))
    return IntervalSet(
        cell for cell in found if wanted.covers(cell) and not covered.covers(cell) and not running.overlaps(cell)
    )


def _wanted_in(
    view: FeatureView, wanted: Interval | None, snapshot: LedgerSnapshot, store: str, now: datetime
) -> IntervalSet:
    """Return what should be materialized in a store; while it is built anew, also all that there was before.

    Of what there was, nothing before the materialization start, nothing that is not complete on today's grid. Online
    a stream brings itself what is after its start, so batch jobs only write what is before, unless they replace it.
    """
    whole = IntervalSet([] if wanted is None else [wanted])
    streamed = None if view.is_rewritten_online else snapshot.stream_starts.get(view.name)
    if store == ONLINE and streamed is not None:
        whole = _before(whole, floor_time(streamed, view.batch_schedule))
    start, end = view.materialization_start, last_complete_end(view, now)
    before = snapshot.superseded.get((view.name, store), IntervalSet())
    if start is None or start >= end:
        return whole
    width = view.batch_schedule
    if store == ONLINE and streamed is not None:
        before = _before(before, floor_time(streamed, width))
    return whole.union(IntervalSet(i.aligned_outward(width) for i in before).intersect([Interval(start, end)]))


def _before(intervals: IntervalSet, end: datetime) -> IntervalSet:
    """Return what of intervals is before a time."""
    return IntervalSet(Interval(i.start, min(i.end, end)) for i in intervals if i.start < end)


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
    yield from stream_warnings(view)


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
    if view.is_table:
        return "it is a feature table, whose rows come by ingest()"
    if not view.inputs:
        return "its source has no batch_config, and events reach it by its stream only"
    return "it has no batch jobs (batch_trigger=NO_BATCH_MATERIALIZATION)"


def _why_waiting(changes: Iterable[Change]) -> str:
    """Return what has changed and what a person can do, in words."""
    keep = " or --keep" if all(change.keepable for change in changes) else ""
    return f"changed: {'; '.join(change.text for change in changes)}; waits for `featurekit apply --rebuild{keep}`"


def _reason(
    view: FeatureView,
    wanted: Interval | None,
    by_store: Mapping[str, IntervalSet],
    runs: tuple[RunPlan, ...],
    snapshot: LedgerSnapshot,
) -> str:
    whole = _all(by_store.values())
    running = snapshot.running.get(view.name, IntervalSet()).intersect(whole)
    if any(name == view.name for name, _ in snapshot.superseded):
        return _how_far(view, by_store, snapshot) + (f"; running: {running}" if running else "")
    if wanted is None or not runs:
        return f"up to date to {format_time(whole.intervals[-1].end)}" + (f"; running: {running}" if running else "")
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


def _how_far(view: FeatureView, by_store: Mapping[str, IntervalSet], snapshot: LedgerSnapshot) -> str:
    """Return how much of a generation that is being built is done."""
    whole = _all(by_store.values())
    lacking = _all(wanted.subtract(snapshot.coverage(view.name, store)) for store, wanted in by_store.items())
    total = sum(i.duration // view.batch_schedule for i in whole)
    left = sum(i.aligned_outward(view.batch_schedule).duration // view.batch_schedule for i in lacking)
    generation = snapshot.generation.get(view.name, 1)
    return f"rebuild as generation {generation} ({total - left:,} of {total:,} intervals done)"


def _all(sets: Iterable[IntervalSet]) -> IntervalSet:
    return IntervalSet(interval for each in sets for interval in each)
