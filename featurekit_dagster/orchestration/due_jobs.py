"""Starting what the ledger says is due: first attempts of what was asked for, and further ones of what failed.

One sensor per workspace does it in a deployment; without a daemon `run_due` does the same in this process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import dagster as dg

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.orchestration.assets import AssetJob
from featurekit_dagster.orchestration.chore_list import CHORES
from featurekit_dagster.orchestration.chores import chore_requests
from featurekit_dagster.orchestration.draining import drain_outdated, overtaken_views
from featurekit_dagster.orchestration.partitions import RANGE_END, RANGE_START, interval_of_keys, key_range
from featurekit_dagster.orchestration.publish import queue_unpublished
from featurekit_dagster.orchestration.resources import BoundWorkspace, FeatureStores, resource_key
from featurekit_dagster.orchestration.translator import JOB_BATCH, UNFINISHED, run_tags
from featurekit_dagster.stores.ledger import Ledger
from featurekit_dagster.stores.ledger_records import ACTIVE_STATES, JobRecord
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

SECONDS_BETWEEN_LOOKS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class DueRun:
    """Waiting jobs that one run carries out: those of one batch whose ranges touch.

    Args:
        view: The feature view.
        batch: Name of the batch.
        interval: From the first job's start to the last one's end.
        jobs: The jobs, in order of time.
    """

    view: str
    batch: str
    interval: Interval
    jobs: tuple[JobRecord, ...]

    @property
    def trigger(self) -> str:
        """What asked for the jobs."""
        return self.jobs[0].trigger


def due_runs(due: Iterable[JobRecord]) -> list[DueRun]:
    """Return the runs for jobs that are due; jobs without a batch are left out."""
    found = []
    materializing = (job for job in due if job.batch and job.request is None)
    batched = sorted(materializing, key=lambda job: (job.view, job.batch or "", job.interval))
    for (view, batch), jobs in groupby(batched, key=lambda job: (job.view, job.batch or "")):
        row = deque(jobs)
        for interval in IntervalSet(job.interval for job in row):
            inside = []
            while row and row[0].interval.start < interval.end:
                inside.append(row.popleft())
            found.append(DueRun(view=view, batch=batch, interval=interval, jobs=tuple(inside)))
    return found


def run_tags_of(view: FeatureView, run: DueRun) -> dict[str, str]:
    """Return the tags of the Dagster run that carries out waiting jobs."""
    keys = key_range(view, run.interval)
    return run_tags(view, run.trigger) | {RANGE_START: keys.start, RANGE_END: keys.end, JOB_BATCH: run.batch}


def run_request(view: FeatureView, run: DueRun, instance: dg.DagsterInstance, job_name: str) -> dg.RunRequest | None:
    """Return the request of a run, or None while an earlier one of the same jobs has not ended.

    Its key names this attempt, since a key is good for one run for ever: how often the jobs were tried, and how many
    runs were started that may have ended before they began any.
    """
    tags = run_tags_of(view, run)
    same = {name: tags[name] for name in (JOB_BATCH, RANGE_START, RANGE_END)}
    batch = dg.RunsFilter(job_name=job_name, tags={JOB_BATCH: run.batch}, statuses=list(UNFINISHED))
    if any(_overlaps(view, unfinished, run.interval) for unfinished in instance.get_runs(batch)):
        return None
    started = instance.get_runs_count(dg.RunsFilter(job_name=job_name, tags=same))
    return _request(run, tags, started, job_name)


def first_request(view: FeatureView, run: DueRun, job_name: str) -> dg.RunRequest:
    """Return the request of a run whose batch was just made, so that no run of it can exist."""
    return _request(run, run_tags_of(view, run), 0, job_name)


def _request(run: DueRun, tags: Mapping[str, str], started: int, job_name: str) -> dg.RunRequest:
    tried = sum(len(job.attempts) for job in run.jobs)
    key = f"{run.batch}:{tags[RANGE_START]}:{tags[RANGE_END]}:{tried}.{started}"
    return dg.RunRequest(run_key=key, tags=dict(tags), job_name=job_name)


def _overlaps(view: FeatureView, run: dg.DagsterRun, interval: Interval) -> bool:
    keys = dg.PartitionKeyRange(run.tags[RANGE_START], run.tags[RANGE_END])
    return interval_of_keys(view, keys).overlaps(interval)


def due_jobs_sensor(
    workspace: BoundWorkspace,
    jobs: Mapping[str, AssetJob],
    chores: Iterable[dg.JobDefinition] = (),
    prefix: str | None = None,
) -> dg.SensorDefinition:
    """Return the sensor that starts a run for everything that is due.

    Args:
        workspace: The workspace.
        jobs: The asset job of each view that is an asset.
        chores: The jobs that carry out chores.
        prefix: First part of every name, if wanted.
    """
    resource = resource_key(prefix)

    @dg.sensor(
        name=f"{prefix}_start_due_jobs" if prefix else "start_due_jobs",
        jobs=[*jobs.values(), *chores],
        minimum_interval_seconds=SECONDS_BETWEEN_LOOKS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        required_resource_keys={resource},
        description="Starts the jobs that were asked for or are to be tried again, as the ledger says.",
    )
    def look(context: dg.SensorEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        opened: FeatureStores = getattr(context.resources, resource)
        stores = opened.open(workspace)
        ledger, followed = stores.ledger, newest_views(workspace, stores)
        end_orphans(ledger, workspace.name, context.instance)
        due = [run for run in due_runs(ledger.due(workspace.name)) if run.view in jobs and run.view in followed]
        requests = []
        for run in due:
            view = workspace.repo.view(run.view)
            if not (is_adopted_run_going(ledger, run) or end_cancelled(ledger, run, view, context.instance)):
                requests.append(run_request(view, run, context.instance, jobs[run.view].name))
        queue_unpublished(workspace, stores, followed)
        requests += chore_requests(CHORES, workspace, stores, context.instance, prefix)
        yield from [request for request in requests if request is not None]
        if not any(requests):
            yield dg.SkipReason("runs of all due jobs are on their way" if due else "no job is due")

    return look


def newest_views(
    workspace: BoundWorkspace, stores: WorkspaceStores, views: Sequence[FeatureView] | None = None
) -> frozenset[str]:
    """Return the views of which no other code location has newer code, after their jobs of older code were drained.

    Args:
        workspace: The workspace.
        stores: Where its ledger is.
        views: The views to look at; all by default.
    """
    chosen = workspace.repo.views if views is None else views
    overtaken = overtaken_views(stores, chosen, workspace.loaded_at)
    newest = [view for view in chosen if view.name not in overtaken]
    drain_outdated(stores, newest)
    return frozenset(view.name for view in newest)


def is_adopted_run_going(ledger: Ledger, due: DueRun) -> bool:
    """Tell whether the run that claimed the jobs, whose name their batch has, still carries out others of them."""
    active = ledger.jobs(due.jobs[0].workspace, due.view, states=ACTIVE_STATES, batch=due.batch)
    return any(job.next_attempt_at is None and job.attempts[-1].run_id == due.batch for job in active)


def end_cancelled(ledger: Ledger, due: DueRun, view: FeatureView, instance: dg.DagsterInstance) -> bool:
    """Cancel waiting jobs whose run a person has cancelled in Dagster before it began them; tell whether one was."""
    cancelled = dg.RunsFilter(tags={JOB_BATCH: due.batch}, statuses=[dg.DagsterRunStatus.CANCELED])
    adopted = dg.RunsFilter(run_ids=[due.batch], statuses=[dg.DagsterRunStatus.CANCELED])
    is_cancelled = any(_overlaps(view, run, due.interval) for run in instance.get_runs(cancelled))
    if not is_cancelled and not instance.get_runs_count(adopted):
        return False
    for job in due.jobs:
        ledger.cancel(job.id)
    return True


def end_orphans(ledger: Ledger, workspace: str, instance: dg.DagsterInstance) -> Sequence[str]:
    """End the attempts whose process, or whose run in Dagster, has ended without saying so; return the jobs' ids.

    This is how jobs are found of runs that ended while no daemon was there to notice, or on another host.
    """
    lost = list(ledger.abandon_dead(workspace))
    for job in ledger.under_way(workspace):
        run_id = job.attempts[-1].run_id if job.attempts else None
        run = None if run_id is None else instance.get_run_by_id(run_id)
        if run is not None and run.is_finished:
            if run.status is dg.DagsterRunStatus.CANCELED:
                ledger.stop(job.id, reason="its run was cancelled in Dagster")
            else:
                ledger.abandon([job.id], reason="its run ended without a word")
            lost.append(job.id)
    return lost
