"""One schedule per view: when an interval is complete, it starts a run for everything that is missing.

What is missing is the ledger's answer. The tick queues it there and asks for its first run; further attempts are
started by the workspace's sensor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import dagster as dg

from featurekit_dagster.domain.feature_view import BatchTriggerType, FeatureView
from featurekit_dagster.errors import ChangedDeclaration, OverlappingMaterialization
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.orchestration.assets import AssetJob
from featurekit_dagster.orchestration.due_jobs import due_runs, first_request, newest_views
from featurekit_dagster.orchestration.materializations import SCHEDULE
from featurekit_dagster.orchestration.partitions import RANGE_END, RANGE_START, cron_of, interval_of_keys
from featurekit_dagster.orchestration.reconcile import reconcile
from featurekit_dagster.orchestration.resources import BoundWorkspace, FeatureStores, resource_key
from featurekit_dagster.orchestration.translator import JOB_BATCH, UNFINISHED, VIEW
from featurekit_dagster.planning.generations import StoredShape
from featurekit_dagster.planning.job_state import JobState
from featurekit_dagster.planning.planner import plan_view, split_tasks
from featurekit_dagster.planning.tasks import RunPlan, ViewPlan
from featurekit_dagster.stores.ledger_records import JobRecord
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

MOST_FAILURES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class DueWindows:
    """What a tick found.

    Args:
        runs: What to start: one per contiguous range in which the same stores are missing.
        reason: Why there are none, or not all that are missing, in words.
    """

    runs: tuple[RunPlan, ...]
    reason: str


def due_windows(
    view: FeatureView, plan: ViewPlan, left_alone: IntervalSet, jobs: Sequence[JobRecord], in_runs: IntervalSet
) -> DueWindows:
    """Return what of a plan a tick should start.

    Args:
        view: The feature view.
        plan: What is missing, and neither waits nor runs.
        left_alone: What nothing fills until somebody asks.
        jobs: The view's failed jobs.
        in_runs: What queued and running runs carry that the ledger does not know yet.
    """
    missing = IntervalSet(run.interval for run in plan.runs)
    often = _reached(MOST_FAILURES, [job.interval for job in jobs])
    left_out = {
        "is queued or running": missing.intersect(in_runs),
        "was cancelled by hand or given up, and waits for a person": missing.intersect(left_alone),
        f"failed {MOST_FAILURES} times and waits for a person": missing.intersect(often).subtract(left_alone),
    }
    reasons = [plan.reason] if not missing else []
    reasons += [f"{intervals} {why}" for why, intervals in left_out.items() if intervals]
    wanted = missing.subtract(in_runs).subtract(left_alone).subtract(often)
    runs = [part for run in plan.runs for part in _parts(view, run, wanted)]
    return DueWindows(runs=tuple(runs), reason="; ".join(reasons))


def _parts(view: FeatureView, run: RunPlan, wanted: IntervalSet) -> Iterator[RunPlan]:
    """Yield what of a planned run is wanted, one run per contiguous range."""
    task = run.tasks[0]
    for interval in wanted.intersect([run.interval]):
        tasks = split_tasks(view, interval, online=task.online, offline=task.offline, overwrite=task.overwrite)
        yield RunPlan(view=view.name, interval=interval, tasks=tasks)


def _reached(depth: int, intervals: Sequence[Interval]) -> IntervalSet:
    """Return the instants that lie in at least `depth` of the intervals."""
    steps = Counter(interval.start for interval in intervals)
    steps.subtract(interval.end for interval in intervals)
    edges = sorted(steps)
    depths = accumulate(steps[time] for time in edges)
    return IntervalSet(
        Interval(start, end) for (start, end), reached in zip(pairwise(edges), depths, strict=False) if reached >= depth
    )


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
        if view.name not in newest_views(workspace, stores, [view]):
            yield dg.SkipReason(
                f"{view.name}: a code location that was loaded later has other code of it; reload this one"
            )
            return
        restated = reconcile(view, asset, stores, context.instance)
        snapshot = stores.ledger.snapshot(stores.workspace, {view.name: StoredShape.of(view)})
        plan = plan_view(view, snapshot, workspace.now())
        failed = stores.ledger.jobs(stores.workspace, view.name, states=[JobState.FAILURE.value])
        left_alone = snapshot.left_alone.get(view.name, IntervalSet())
        due = due_windows(view, plan, left_alone, failed, _in_runs(view, context.instance, job.name))
        requests = [_queue(view, run, stores, job.name) for run in due.runs]
        yield from [request for request in requests if request is not None]
        if not due.runs:
            again = f"; {restated:,} covered partitions reported again" if restated else ""
            yield dg.SkipReason(f"{view.name}: {due.reason}{again}")

    return tick


def has_schedule(view: FeatureView) -> bool:
    """Tell whether anything of a view is materialized without being asked for.

    Source: Manually Trigger Materialization, Automatic Backfill for Manually-Materialized Feature Views.
    """
    scheduled = view.batch_trigger is BatchTriggerType.SCHEDULED
    return scheduled or view.manual_trigger_backfill_end_time is not None


def _queue(view: FeatureView, run: RunPlan, stores: WorkspaceStores, job_name: str) -> dg.RunRequest | None:
    """Put a planned run's jobs into the ledger and return the request that starts them; None if somebody was faster."""
    task = run.tasks[0]
    try:
        made = stores.queue(
            view,
            [task.interval for task in run.tasks],
            online=task.online,
            offline=task.offline,
            overwrite=task.overwrite,
            trigger=SCHEDULE,
        )
    except (OverlappingMaterialization, ChangedDeclaration):
        return None
    (due,) = due_runs(made)
    return first_request(view, due, job_name)


def _in_runs(view: FeatureView, instance: dg.DagsterInstance, job_name: str) -> IntervalSet:
    """Return what unfinished runs of a view's job carry."""
    filters = dg.RunsFilter(job_name=job_name, tags={VIEW: view.name}, statuses=list(UNFINISHED))
    ranges = [
        dg.PartitionKeyRange(run.tags.get(RANGE_START, single), run.tags.get(RANGE_END, single))
        for run in instance.get_runs(filters)
        if ((single := run.tags.get("dagster/partition", "")) or RANGE_START in run.tags) and JOB_BATCH not in run.tags
    ]
    return IntervalSet(interval_of_keys(view, keys) for keys in ranges)
