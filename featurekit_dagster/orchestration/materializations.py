"""What a Dagster run of a view does: it finds its tasks in the ledger, carries them out, and reports its partitions.

The asset of a view and the jobs `backfill` and `overwrite` share this; only how they are asked differs.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dagster as dg

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.errors import LeaseHeld, MaterializationFailed, OverlappingMaterialization, PlanError
from featurekit_dagster.execution.materialize import JobReport, run_tasks
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.orchestration.lineage import column_lineage
from featurekit_dagster.orchestration.partitions import key_of
from featurekit_dagster.planning.generations import StoredShape
from featurekit_dagster.planning.job_state import MANAGED, ONCE
from featurekit_dagster.planning.planner import missing_runs, split_tasks, stores_of
from featurekit_dagster.planning.tasks import OFFLINE, ONLINE, LedgerSnapshot, Task
from featurekit_dagster.stores.ledger_records import ACTIVE_STATES, JobRecord
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

SCHEDULE, BACKFILL, MANUAL, ADOPTED = "schedule", "backfill", "manual", "dagster_ui"

_POLL_SECONDS = 1.0
_FRAMES_SHOWN = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class MaterializationRequest:
    """What one run of one view was asked to do.

    Args:
        interval: The range, on the view's grid.
        trigger: Who asked: `schedule`, `backfill`, `manual`; `dagster_ui` for a run that the ledger does not know.
        run_id: The Dagster run.
        overwrite: True replaces everything in the range, False refuses what is covered already; None lets the trigger
            decide: schedule and backfill leave covered parts alone, an adopted run replaces them.
        online: Whether the online store is written, where the view has one.
        offline: Whether the offline store is written, where the view has one.
        batch: The waiting jobs of the ledger that the run carries out; whatever else is said about stores and
            overwriting then stands with them. None for a run that claims its jobs itself.
        managed_retries: Whether a job that the run claims and that fails is tried again without being asked.
    """

    interval: Interval
    trigger: str
    run_id: str
    overwrite: bool | None = None
    online: bool = True
    offline: bool = True
    batch: str | None = None
    managed_retries: bool = True


def tasks_of(
    view: FeatureView,
    request: MaterializationRequest,
    snapshot: LedgerSnapshot,
    jobs: Sequence[JobRecord] = (),
) -> tuple[Task, ...]:
    """Return the tasks of a run, in order of time.

    Of an adopted run, parts that are covered in every chosen store are overwritten and all others are normal tasks.
    A job in the range that failed and waits to be tried again is tried again by this run.

    Args:
        view: The feature view.
        request: What the run was asked to do.
        snapshot: What is covered and claimed.
        jobs: The view's jobs that have not ended.

    Raises:
        PlanError: The view writes none of the chosen stores.
    """
    online, offline = view.online and request.online, view.offline and request.offline
    if not (online or offline):
        raise PlanError(f"{view.name}: it does not write the chosen stores; it writes {', '.join(stores_of(view))}")
    again = [job for job in _waiting(jobs, request) if job.attempts and job.online <= online and job.offline <= offline]
    tasks = [_task_of(job) for job in again]
    rest = IntervalSet([request.interval]).subtract(job.interval for job in again)
    if request.overwrite is not None:
        for interval in rest:
            tasks += split_tasks(view, interval, online=online, offline=offline, overwrite=request.overwrite)
        return tuple(sorted(tasks, key=lambda task: task.interval))
    chosen = replace(view, online=online, offline=offline)
    missing = tuple(missing_runs(chosen, request.interval, snapshot))
    tasks += [task for run in missing for task in run.tasks]
    if request.trigger == ADOPTED:
        for interval in rest.subtract(run.interval for run in missing):
            tasks += split_tasks(view, interval, online=online, offline=offline, overwrite=True)
    return tuple(sorted(tasks, key=lambda task: task.interval))


def waiting_tasks(request: MaterializationRequest, jobs: Iterable[JobRecord]) -> tuple[Task, ...]:
    """Return the tasks of those jobs of a batch that wait for an attempt, inside the run's range, in order of time."""
    return tuple(_task_of(job) for job in sorted(_waiting(jobs, request), key=lambda job: job.interval))


def _waiting(jobs: Iterable[JobRecord], request: MaterializationRequest) -> Iterator[JobRecord]:
    wanted = IntervalSet([request.interval])
    return (job for job in jobs if job.next_attempt_at is not None and wanted.covers(job.interval))


def _task_of(job: JobRecord) -> Task:
    """Return the task of a job's next attempt; what an earlier one has written is replaced."""
    return Task(
        view=job.view,
        interval=job.interval,
        online=job.online,
        offline=job.offline,
        overwrite=job.overwrite or bool(job.attempts),
        job_id=job.id,
    )


def materializations(
    view: FeatureView,
    key: dg.AssetKey,
    request: MaterializationRequest,
    stores: WorkspaceStores,
    log: logging.Logger,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[dg.AssetMaterialization]:
    """Carry out a run, and yield a materialization for each partition that now has every store its view writes.

    A run whose range was covered in the meantime finds nothing to do. While another run writes the view, it waits.

    Args:
        view: The feature view.
        key: Its asset key.
        request: What the run was asked to do.
        stores: Where rows and record are kept.
        log: Told about each job.
        is_cancelled: Tells, of a run that was interrupted, whether a person cancelled it in Dagster.

    Raises:
        MaterializationFailed: At least one job failed; raised after the last one was tried.
        PlanError: The view writes none of the chosen stores.
    """
    try:
        for report in _reports(view, request, stores, log):
            job = report.job
            log.info(f"{view.name}: job {job.id} wrote {report.rows:,} rows of {job.interval}")
            covered = covered_everywhere(view, stores).intersect([job.interval])
            about_job = _about_job(report) | _lineage(view, key, job.interval)
            yield from _partitions(view, key, report, covered, about_job)
    finally:
        _end_unfinished(view, request, stores, is_cancelled)


def covered_everywhere(view: FeatureView, stores: WorkspaceStores) -> IntervalSet:
    """Return what is covered in every store that the view writes, by batch jobs or by its stream."""
    first, *others = (stores.provided(view, store) for store in stores_of(view))
    for covered in others:
        first = first.intersect(covered)
    return first


def failure_of(failed: MaterializationFailed) -> dg.Failure:
    """Return what Dagster is told about failed jobs: which, why, and where, but no value and no foreign text.

    Raise it outside any `except` block: Dagster stores the text of every exception in the chain.
    """
    metadata: dict[str, Any] = {}
    for number, (interval, error) in enumerate(failed.failures[:10], 1):
        metadata[f"featurekit/failed_{number}"] = f"{interval}: {_where(error)}"
    return dg.Failure(description=str(failed), metadata=metadata, allow_retries=False)


def _reports(
    view: FeatureView, request: MaterializationRequest, stores: WorkspaceStores, log: logging.Logger
) -> Iterator[JobReport]:
    waits = False
    while True:
        tasks = _planned(view, request, stores, log)
        try:
            policy = MANAGED if request.managed_retries else ONCE
            yield from run_tasks(view, tasks, stores, trigger=request.trigger, run_id=request.run_id, policy=policy)
        except LeaseHeld as held:
            if not waits:
                _refuse_overlap(view, request, stores)
                log.info(f"waiting: {held}")
            waits = True
        else:
            return
        time.sleep(_POLL_SECONDS)


def _refuse_overlap(view: FeatureView, request: MaterializationRequest, stores: WorkspaceStores) -> None:
    """Refuse what a person wants written that a job is writing now; what only fills gaps waits for its turn instead.

    Raises:
        OverlappingMaterialization: A job under way overlaps the range in a chosen store.
    """
    if request.batch is not None or (request.overwrite is None and request.trigger != ADOPTED):
        return
    chosen = {OFFLINE: request.offline, ONLINE: request.online}
    for job in stores.ledger.jobs(stores.workspace, view.name, states=ACTIVE_STATES):
        overlap = IntervalSet([request.interval]).intersect([job.interval])
        shared = [store for store in job.stores if chosen[store]]
        if overlap and shared and job.next_attempt_at is None:
            raise OverlappingMaterialization(
                view=view.name,
                interval=request.interval,
                store=shared[0],
                overlap=overlap,
                running=True,
                job_id=job.id,
            )


def _planned(
    view: FeatureView, request: MaterializationRequest, stores: WorkspaceStores, log: logging.Logger
) -> Iterator[Task]:
    """Yield the tasks; computed when the first is wanted, which is when this run alone writes the view."""
    if request.batch is None:
        jobs = stores.ledger.jobs(stores.workspace, view.name, states=ACTIVE_STATES)
        snapshot = stores.ledger.snapshot(stores.workspace, {view.name: StoredShape.of(view)})
        tasks = tasks_of(view, request, snapshot, jobs)
    else:
        tasks = waiting_tasks(request, stores.ledger.jobs(stores.workspace, view.name, batch=request.batch))
    replaced = IntervalSet(task.interval for task in tasks if task.overwrite)
    if not tasks:
        why = "is covered already" if request.batch is None else "has no job that waits"
        log.info(f"{view.name}: nothing to do, {request.interval} {why}")
    else:
        log.info(f"{view.name}: {_count(len(tasks), 'job')} for {request.interval} ({request.trigger})")
    if replaced:
        log.info(f"{view.name}: overwrites {replaced}")
    yield from tasks


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _partitions(
    view: FeatureView, key: dg.AssetKey, report: JobReport, covered: IntervalSet, about_job: Mapping[str, Any]
) -> Iterator[dg.AssetMaterialization]:
    """Yield one event per partition, each with its own row count; the last one also tells about the whole job."""
    cells = [cell for interval in covered for cell in interval.split_on_grid(view.batch_schedule)]
    for number, cell in enumerate(cells, 1):
        metadata: dict[str, Any] = {
            "dagster/row_count": report.rows_by_start.get(cell.start, 0),
            "featurekit/window_start": dg.MetadataValue.timestamp(cell.start),
            "featurekit/window_end": dg.MetadataValue.timestamp(cell.end),
            "featurekit/job": report.job.id,
        }
        if report.job.overwrite:
            metadata["featurekit/overwrite"] = True
        if number == len(cells):
            metadata |= about_job
        yield dg.AssetMaterialization(key, partition=key_of(cell.start), metadata=metadata)


def _about_job(report: JobReport) -> dict[str, Any]:
    job = report.job
    facts: dict[str, Any] = {
        "job_interval": str(job.interval),
        "job_rows": report.rows,
        "job_trigger": job.trigger,
        "job_stores": ", ".join(job.stores),
        "job_null_rates": {
            column: round(nulls / report.rows, 4) for column, nulls in report.null_counts.items() if report.rows
        },
    }
    if report.offline is not None:
        facts |= {
            "job_rows_offline": report.offline.rows_written,
            "job_rows_replaced": report.offline.rows_replaced,
            "job_offline_bytes": report.offline.bytes,
            "job_offline_version": report.offline.version,
        }
    if report.online is not None:
        facts["job_rows_online"] = report.online.rows_written
        if job.overwrite:
            facts |= {"job_rows_online_skipped": report.online.rows_skipped, "job_keys_cleared": report.keys_cleared}
    return {f"featurekit/{name}": value for name, value in facts.items()}


def _lineage(view: FeatureView, key: dg.AssetKey, interval: Interval) -> dict[str, Any]:
    prefix, _, _ = "/".join(key.path).rpartition("/")
    found = column_lineage(view, interval, prefix or None)
    return {} if found is None else {"dagster/column_lineage": found}


def _end_unfinished(
    view: FeatureView, request: MaterializationRequest, stores: WorkspaceStores, is_cancelled: Callable[[], bool]
) -> None:
    """Record what an interrupt left running: cancelled if a person wanted it, else lost, so that it is tried again."""
    ledger = stores.ledger
    left = [
        job.id
        for job in ledger.jobs(stores.workspace, view.name, states=ACTIVE_STATES)
        # the last attempt alone: an earlier one of this run says that somebody else has gone on with the job
        if job.next_attempt_at is None and job.attempts and job.attempts[-1].run_id == request.run_id
    ]
    if not left:
        return
    if is_cancelled():
        for job_id in left:
            ledger.stop(job_id, reason="its run was cancelled in Dagster")
    else:
        ledger.abandon(left, reason="its run was ended before it was done")


def _where(error: BaseException) -> str:
    """Return the kinds of an error and its causes, and the lines where the innermost was raised."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    frames = traceback.extract_tb(chain[-1].__traceback__)[-_FRAMES_SHOWN:]
    lines = ", ".join(f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in frames)
    return " from ".join(type(link).__name__ for link in chain) + (f" at {lines}" if lines else "")
