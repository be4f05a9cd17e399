"""The one recipe: claim, compute, write offline, write online, record. Readable top to bottom.

Each step can be repeated, and the record comes last, so a crash anywhere means "do it again".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.engine.columns import microseconds
from featurekit_dagster.engine.local import compute_stored, stored_schema
from featurekit_dagster.errors import (
    JobNotWaiting,
    JobStateError,
    JobStopped,
    LeaseLost,
    MaterializationFailed,
    safe_reason,
)
from featurekit_dagster.execution.cancellation import StopWatch, stop_watch
from featurekit_dagster.execution.held_online import held_online
from featurekit_dagster.execution.online_rows import complete_part, larger_tiles, online_rows
from featurekit_dagster.execution.publish import outdate, queue_missing
from featurekit_dagster.execution.vanished_keys import clear_vanished_keys
from featurekit_dagster.intervals import Interval, from_us
from featurekit_dagster.planning.fingerprint import fingerprint
from featurekit_dagster.planning.generations import StoredShape
from featurekit_dagster.planning.grid import floor_us
from featurekit_dagster.planning.job_state import ONCE, JobState, RetryPolicy
from featurekit_dagster.planning.tasks import OFFLINE, ONLINE, Task
from featurekit_dagster.stores.ledger_leases import Lease
from featurekit_dagster.stores.ledger_records import JobRecord
from featurekit_dagster.stores.offline import OfflineWrite
from featurekit_dagster.stores.online import OnlineWrite
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

CLAIMED, COMPUTED, WRITTEN_OFFLINE, WRITTEN_ONLINE = "claimed", "computed", "written_offline", "written_online"
OnStep = Callable[[str, Task], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReport:
    """What one successful job did; counts only, never values.

    Args:
        job: The ledger's record.
        rows: Rows or tiles of the interval.
        rows_by_start: Start of each batch interval that has rows, to their number.
        null_counts: Stored column to its number of NULLs.
        offline: What the offline write did; None when the job did not write there.
        online: What the online write did; None when the job did not write there.
        keys_cleared: Keys that had tiles in the interval before an overwrite, and have none any more.
    """

    job: JobRecord
    rows: int
    rows_by_start: Mapping[datetime, int] = field(default_factory=dict)
    null_counts: Mapping[str, int] = field(default_factory=dict)
    offline: OfflineWrite | None = None
    online: OnlineWrite | None = None
    keys_cleared: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """What a job has put into its stores; see `JobReport`."""

    rows: pa.Table
    offline: OfflineWrite | None
    online: OnlineWrite | None
    keys_cleared: int
    rows_deleted: int

    def stats(self, *, overwrite: bool) -> dict[str, int]:
        """Return the counts that the ledger keeps: of an overwrite also what it found online."""
        stats = {"rows": self.rows.num_rows}
        if self.offline is not None:
            stats |= {"rows_offline": self.offline.rows_written, "rows_replaced": self.offline.rows_replaced}
        if self.online is not None:
            stats["rows_online"] = self.online.rows_written
            if overwrite:
                stats |= {"rows_online_skipped": self.online.rows_skipped, "keys_cleared": self.keys_cleared}
        if self.rows_deleted:
            stats["rows_deleted"] = self.rows_deleted
        return stats


def _ignore(step: str, task: Task) -> None:
    """Do nothing at a step."""


def run_tasks(
    view: FeatureView,
    tasks: Iterable[Task],
    stores: WorkspaceStores,
    *,
    trigger: str,
    run_id: str | None = None,
    policy: RetryPolicy = ONCE,
    on_step: OnStep = _ignore,
) -> Iterator[JobReport]:
    """Run the jobs of one contiguous range, one after another, and yield a report as each commits.

    A job that fails leaves the finished ones finished, and the later ones are still tried. A run whose lease was taken
    over, or of which a job was drained for newer code, ends at once and leaves them to its successor.

    Args:
        view: The feature view.
        tasks: What to do, in order.
        stores: Where rows and record are kept.
        trigger: Who asked: `schedule`, `backfill`, `manual`, `dagster_ui`.
        run_id: The Dagster run that carries the jobs; those that it claims form a batch of that name.
        policy: How often a job that is claimed here is tried; a job that waited has its own.
        on_step: Called with the name of each finished step.

    Raises:
        MaterializationFailed: At least one job failed; raised after the last one was tried.
        LeaseHeld: Another process is writing the view; nothing was started, so it can be tried again.
        ChangedDeclaration: The view was changed, and nobody has decided what becomes of what is stored.
    """
    failures: list[tuple[Interval, Exception]] = []
    name = f"batch:{stores.workspace}/{view.name}"
    with stores.ledger.lease(name, holder=run_id or "in process") as lease:
        writer = _writer(view, stores)
        for task in tasks:
            try:
                job = _begin(view, task, writer, lease, trigger, run_id, policy)
                yield _run_job(view, task, writer, job, lease, on_step=on_step)
            except JobNotWaiting:
                continue  # the ledger knows it; the other jobs of the run are unharmed
            except JobStopped as stopped:
                if stores.ledger.job(stopped.job_id).state == JobState.DRAINED:
                    break  # newer code does what is left
            except LeaseLost as lost:
                failures.append((task.interval, lost))
                break  # whoever has the lease now does what is left
            except Exception as error:  # noqa: BLE001 - kept, and raised once the later jobs were tried
                failures.append((task.interval, error))
    if view.publish is not None:
        queue_missing(view, stores, trigger=trigger)
    if failures:
        raise MaterializationFailed(view=view.name, failures=failures) from failures[0][1]


def _writer(view: FeatureView, stores: WorkspaceStores) -> WorkspaceStores:
    """Return the stores with the generation pinned that jobs of the declaration write.

    Raises:
        ChangedDeclaration: A person has to decide which that is.
    """
    return stores.pinned(view, stores.ledger.open_generation(stores.workspace, view.name, StoredShape.of(view)))


def _run_job(
    view: FeatureView,
    task: Task,
    stores: WorkspaceStores,
    job: JobRecord,
    lease: Lease,
    *,
    on_step: OnStep,
) -> JobReport:
    on_step(CLAIMED, task)
    with stop_watch(stores.ledger, job.id, lease) as watch:
        try:
            written = _write_stores(view, task, stores, job, lease, watch, on_step)
            outdate(view, stores, task.interval)
            stores.ledger.succeed(job.id, stats=written.stats(overwrite=task.overwrite), lease=lease)
        except Exception as error:
            # whatever happened, the ledger must not go on saying that the job runs; the error itself goes on
            with suppress(JobStateError):  # somebody else has ended the attempt or has taken the job over
                _end_attempt(stores, job, watch, error)
            if watch.is_told:
                raise JobStopped(job_id=job.id) from error
            raise
    return _report(view, stores.ledger.job(job.id), written)


def _end_attempt(stores: WorkspaceStores, job: JobRecord, watch: StopWatch, error: Exception) -> None:
    """Tell the ledger that an attempt has ended, because it was told to or by an error."""
    if watch.is_told:
        stores.ledger.stop(job.id, reason="it was told to end")
    else:
        stores.ledger.fail(job.id, reason=safe_reason(error), permanent=not getattr(error, "retryable", True))


def _write_stores(
    view: FeatureView,
    task: Task,
    stores: WorkspaceStores,
    job: JobRecord,
    lease: Lease,
    watch: StopWatch,
    on_step: OnStep,
) -> _Written:
    """Compute an interval and write it to the stores of its task, asking before each commit whether to go on."""
    computed = _rows_to_write(view, task, stores)
    on_step(COMPUTED, task)
    watch.check()
    # under the lease, so whatever is deleted later finds what is written here
    rows, served = (stores.without_deleted(view, computed, store) for store in (OFFLINE, ONLINE))
    cleared = clear_vanished_keys(view, task, stores, served, lease.epoch)
    offline = _write_offline(view, task, stores, rows, job, lease) if task.offline else None
    on_step(WRITTEN_OFFLINE, task)
    watch.check()
    online = _write_online(view, task, stores, served, lease) if task.online else None
    on_step(WRITTEN_ONLINE, task)
    watch.check()
    left = rows if task.offline else served
    deleted = computed.num_rows - left.num_rows
    return _Written(rows=left, offline=offline, online=online, keys_cleared=cleared, rows_deleted=deleted)


def _begin(
    view: FeatureView,
    task: Task,
    stores: WorkspaceStores,
    lease: Lease,
    trigger: str,
    run_id: str | None,
    policy: RetryPolicy,
) -> JobRecord:
    """Let a waiting job's attempt begin, or claim the range of a task that has no job yet.

    A waiting job of other code, or of a generation that is not written any more, is drained.

    Raises:
        JobNotWaiting: It was drained, or does not wait any more.
    """
    generation, code = stores.generation(view), fingerprint(view)
    if task.job_id is not None:
        waiting = stores.ledger.job(task.job_id)
        if waiting.generation != generation or waiting.code_version not in (None, code):
            drained = stores.ledger.drain(task.job_id)
            raise JobNotWaiting(job_id=drained.id, state=drained.state, event="START", reason=drained.reason)
        return stores.ledger.begin(task.job_id, run_id=run_id, code_version=code, lease=lease)
    return stores.ledger.claim(
        workspace=stores.workspace,
        view=task.view,
        interval=task.interval,
        online=task.online,
        offline=task.offline,
        overwrite=task.overwrite,
        trigger=trigger,
        run_id=run_id,
        policy=policy,
        batch=run_id,
        generation=generation,
        code_version=code,
        lease=lease,
    )


def _rows_to_write(view: FeatureView, task: Task, stores: WorkspaceStores) -> pa.Table:
    """Return the interval's rows: from the offline store when only the online store lacks them, else computed."""
    if not task.offline and not task.overwrite and stores.coverage(view, OFFLINE).covers(task.interval):
        return stores.read_offline(view, stored_schema(view), task.interval)
    if not view.incremental_backfills:
        return compute_stored(view, task.interval)
    cells = task.interval.split_on_grid(view.batch_schedule)
    return pa.concat_tables([compute_stored(view, cell) for cell in cells])


def _write_offline(
    view: FeatureView, task: Task, stores: WorkspaceStores, rows: pa.Table, job: JobRecord, lease: Lease
) -> OfflineWrite:
    return stores.offline.replace_interval(
        view.name,
        rows,
        task.interval,
        time_column=view.stored_time_column,
        sort_by=(*view.key_names, view.stored_time_column),
        job_id=job.id,
        epoch=lease.epoch,
        coverage=stores.coverage(view, OFFLINE).union([task.interval]),
        generation=stores.generation(view),
        time_partition_size=view.offline_store.time_partition_size,
        schema=stored_schema(view),
    )


def _write_online(
    view: FeatureView, task: Task, stores: WorkspaceStores, rows: pa.Table, lease: Lease
) -> OnlineWrite | None:
    """Upsert what can be served of the interval's rows; None where nothing of it is complete yet.

    Of a stream view an overwrite replaces what the stream has written too, any other job only adds to it, unless the
    view's jobs all replace it.
    """
    now = stores.clock()
    part = complete_part(view, task.interval, now)
    if part is None:
        return None
    layout = stores.online_layout(view)
    return stores.online.write(
        layout,
        online_rows(view, rows, part, now),
        covered=held_online(view, stores).union([part]),
        epoch=lease.epoch,
        replace=part if view.is_aggregate else None,
        keep_stream=view.is_stream and not (task.overwrite or view.is_rewritten_online),
        combine=larger_tiles(view, layout),
    )


def _report(view: FeatureView, job: JobRecord, written: _Written) -> JobReport:
    schedule_us, rows = view.batch_schedule // timedelta(microseconds=1), written.rows
    starts, counts = np.unique(
        floor_us(microseconds(rows[view.stored_time_column])[0], schedule_us), return_counts=True
    )
    return JobReport(
        job=job,
        rows=rows.num_rows,
        rows_by_start={from_us(int(s)): int(c) for s, c in zip(starts, counts, strict=True)},
        null_counts={name: rows[name].null_count for name in rows.column_names},
        offline=written.offline,
        online=written.online,
        keys_cleared=written.keys_cleared,
    )
