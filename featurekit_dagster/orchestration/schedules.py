"""One schedule per view: when an interval is complete, it starts a run for everything that is missing.

What is missing is the ledger's answer; the tick only leaves out what is queued, given up or cancelled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import dagster as dg

from featurekit_dagster.domain.feature_view import BatchTriggerType, FeatureView
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.orchestration.assets import AssetJob
from featurekit_dagster.orchestration.materializations import SCHEDULE
from featurekit_dagster.orchestration.partitions import cron_of, interval_of_keys, key_range
from featurekit_dagster.orchestration.reconcile import reconcile
from featurekit_dagster.orchestration.resources import BoundWorkspace, FeatureStores, resource_key
from featurekit_dagster.orchestration.translator import VIEW, run_tags
from featurekit_dagster.planning.planner import plan_view
from featurekit_dagster.planning.tasks import ViewPlan
from featurekit_dagster.stores.ledger_records import JobRecord

RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
MOST_FAILURES = 10

_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


@dataclass(frozen=True, slots=True, kw_only=True)
class DueWindows:
    """What a tick found.

    Args:
        windows: The contiguous ranges to start a run for.
        reason: Why there are none, or not all that are missing, in words.
    """

    windows: tuple[Interval, ...]
    reason: str


def due_windows(plan: ViewPlan, jobs: Sequence[JobRecord], in_runs: IntervalSet) -> DueWindows:
    """Return what of a plan a tick should start.

    Args:
        plan: What is missing.
        jobs: The view's failed and cancelled jobs.
        in_runs: What queued and running runs carry.
    """
    missing = IntervalSet(run.interval for run in plan.runs)
    cancelled = IntervalSet(job.interval for job in jobs if job.state == "MANUALLY_CANCELLED")
    given_up = _reached(MOST_FAILURES, [job.interval for job in jobs if job.state == "FAILURE"])
    left_out = {
        "is queued or running": missing.intersect(in_runs),
        "was cancelled by hand": missing.intersect(cancelled),
        f"failed {MOST_FAILURES} times and waits for a run by hand": missing.intersect(given_up),
    }
    reasons = [plan.reason] if not missing else []
    reasons += [f"{intervals} {why}" for why, intervals in left_out.items() if intervals]
    windows = missing.subtract(in_runs).subtract(cancelled).subtract(given_up)
    return DueWindows(windows=windows.intervals, reason="; ".join(reasons))


def _reached(depth: int, intervals: Sequence[Interval]) -> IntervalSet:
    """Return the instants that lie in at least `depth` of the intervals."""
    edges = sorted({time for interval in intervals for time in (interval.start, interval.end)})
    pieces = [Interval(start, end) for start, end in pairwise(edges)]
    return IntervalSet(piece for piece in pieces if sum(i.overlaps(piece) for i in intervals) >= depth)


def view_schedule(
    view: FeatureView,
    workspace: BoundWorkspace,
    asset: dg.AssetsDefinition,
    job: AssetJob,
    prefix: str | None = None,
) -> dg.ScheduleDefinition:
    """Return the schedule of a view: it ticks when an interval's sources are complete, `end + data_delay`.

    With a clock that stands still nothing new can become complete, so the schedule is off at first.
    """
    resource = resource_key(prefix)
    fixed = workspace.fixed_now is not None

    @dg.schedule(
        name=f"{job.name}_schedule",
        job=job,
        cron_schedule=cron_of(view.batch_schedule, view.data_delay),
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.STOPPED if fixed else dg.DefaultScheduleStatus.RUNNING,
        required_resource_keys={resource},
        description=f"Starts one run per contiguous range of {view.name} that is complete and not materialized.",
    )
    def tick(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        opened: FeatureStores = getattr(context.resources, resource)
        stores = opened.open(workspace)
        restated = reconcile(view, asset, stores, context.instance)
        plan = plan_view(view, stores.ledger.snapshot(stores.workspace), workspace.now())
        states = ("FAILURE", "MANUALLY_CANCELLED")
        ended = stores.ledger.jobs(stores.workspace, view.name, states=states)
        due = due_windows(plan, ended, _in_runs(view, context.instance, job.name))
        for window in due.windows:
            yield _request(view, window, ended, context.instance, job.name)
        if not due.windows:
            again = f"; {restated:,} covered partitions reported again" if restated else ""
            yield dg.SkipReason(f"{view.name}: {due.reason}{again}")

    return tick


def has_schedule(view: FeatureView) -> bool:
    """Tell whether anything of a view is materialized without being asked for.

    Source: Manually Trigger Materialization, Automatic Backfill for Manually-Materialized Feature Views.
    """
    scheduled = view.batch_trigger is BatchTriggerType.SCHEDULED
    return scheduled or view.manual_trigger_backfill_end_time is not None


def _request(
    view: FeatureView, window: Interval, ended: Iterable[JobRecord], instance: dg.DagsterInstance, job_name: str
) -> dg.RunRequest:
    """Return the request of one run; its key names this attempt, since a key is good for one run for ever."""
    keys = key_range(view, window)
    tags = {RANGE_START: keys.start, RANGE_END: keys.end}
    tried = sum(job.interval.overlaps(window) for job in ended)
    started = instance.get_runs_count(dg.RunsFilter(job_name=job_name, tags=tags))
    return dg.RunRequest(
        run_key=f"{view.name}:{keys.start}:{keys.end}:{tried}.{started}", tags=run_tags(view, SCHEDULE) | tags
    )


def _in_runs(view: FeatureView, instance: dg.DagsterInstance, job_name: str) -> IntervalSet:
    """Return what unfinished runs of a view's job carry."""
    filters = dg.RunsFilter(job_name=job_name, tags={VIEW: view.name}, statuses=_UNFINISHED)
    ranges = [
        dg.PartitionKeyRange(run.tags.get(RANGE_START, single), run.tags.get(RANGE_END, single))
        for run in instance.get_runs(filters)
        if (single := run.tags.get("dagster/partition", "")) or RANGE_START in run.tags
    ]
    return IntervalSet(interval_of_keys(view, keys) for keys in ranges)
