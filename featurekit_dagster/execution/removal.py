"""Removing what is stored: a generation that nothing uses any more, or a view that nobody declares any more.

The data go first and the record last, so an interrupted removal is found and ended by the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from featurekit_dagster.errors import safe_reason
from featurekit_dagster.execution.publish import drop_published
from featurekit_dagster.intervals import Interval
from featurekit_dagster.planning.tasks import OFFLINE, ONLINE
from featurekit_dagster.stores.ledger_leases import Lease
from featurekit_dagster.stores.ledger_records import ACTIVE_STATES, DELETION, JobRecord
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

PATIENCE = timedelta(seconds=30)
DROPPED_OFFLINE, DROPPED_ONLINE, RECORDED = "dropped_offline", "dropped_online", "recorded"
OnStep = Callable[[str], None]


def _ignore(step: str) -> None:
    """Do nothing at a step."""


def remove_generation(
    view_name: str,
    generation: int,
    stores: WorkspaceStores,
    *,
    wait: timedelta = PATIENCE,
    on_step: OnStep = _ignore,
) -> JobRecord | None:
    """Remove what is stored of one generation, and then what the ledger knows of it.

    Its unfinished jobs are drained. Doing it again changes nothing.

    Args:
        view_name: The view, which need not be declared any more.
        generation: A generation that nothing reads or writes.
        stores: Where rows and record are kept.
        wait: How long to wait for a job that writes the view.
        on_step: Called with the name of each finished step.

    Returns:
        The job, of the kind DELETION; None where nothing was covered, so that there is nothing to tell.

    Raises:
        LeaseHeld: A job writes the view all the time; nothing was removed.
    """
    _drain(view_name, generation, stores)
    with stores.ledger.lease(_lease_name(view_name, stores), holder="apply", wait=wait) as lease:
        return _remove(view_name, generation, stores, lease, on_step)


def remove_view(
    view_name: str, stores: WorkspaceStores, *, wait: timedelta = PATIENCE, on_step: OnStep = _ignore
) -> tuple[JobRecord, ...]:
    """Remove everything that is stored of a view, and then what the ledger knows of it but its jobs.

    A view that is declared under the same name later begins anew. Doing it again changes nothing.

    Args:
        view_name: A view that nobody declares any more.
        stores: Where rows and record are kept.
        wait: How long to wait for a job that writes the view.
        on_step: Called with the name of each finished step.

    Returns:
        A job of the kind DELETION for each generation of which something was covered.

    Raises:
        LeaseHeld: A job writes the view all the time; nothing was removed.
    """
    _drain(view_name, None, stores)
    ledger, workspace = stores.ledger, stores.workspace
    with ledger.lease(_lease_name(view_name, stores), holder="apply", wait=wait) as lease:
        drop_published(view_name, stores, wait)
        removed = ledger.snapshot(workspace, {}).undeclared.get(view_name)
        numbers = {1} if removed is None else {1, *removed.generations}
        numbers |= {record.generation for record in ledger.generations(workspace, view_name)}
        made = [_remove(view_name, generation, stores, lease, on_step) for generation in sorted(numbers)]
        stores.online.drop(workspace, view_name, None, epoch=lease.epoch)
        ledger.forget(workspace, view_name)
    return tuple(job for job in made if job is not None)


def _remove(
    view_name: str, generation: int, stores: WorkspaceStores, lease: Lease, on_step: OnStep
) -> JobRecord | None:
    """Remove one generation under the view's lease, as a job where something is covered."""
    ledger, workspace = stores.ledger, stores.workspace
    covered = {store: ledger.coverage(workspace, view_name, store, generation) for store in (OFFLINE, ONLINE)}
    spans = [interval for found in covered.values() for interval in found]
    if not spans:
        _drop(view_name, generation, stores, lease, on_step)
        ledger.forget(workspace, view_name, generation)
        return None
    job = ledger.claim(
        workspace=workspace,
        view=view_name,
        interval=Interval(min(span.start for span in spans), max(span.end for span in spans)),
        online=bool(covered[ONLINE]),
        offline=bool(covered[OFFLINE]),
        overwrite=True,
        trigger="apply",
        generation=generation,
        kind=DELETION,
        lease=lease,
    )
    try:
        rows = stores.offline.row_count(view_name, generation)
        _drop(view_name, generation, stores, lease, on_step)
    except Exception as error:
        # whatever happened, the ledger must not go on saying that the job runs; the error itself goes on
        ledger.fail(job.id, reason=safe_reason(error), permanent=True)
        raise
    ledger.succeed(job.id, stats={} if rows is None else {"rows_removed": rows}, lease=lease)
    on_step(RECORDED)
    ledger.forget(workspace, view_name, generation)
    return ledger.job(job.id)


def _drop(view_name: str, generation: int, stores: WorkspaceStores, lease: Lease, on_step: OnStep) -> None:
    stores.offline.drop(view_name, generation)
    on_step(DROPPED_OFFLINE)
    stores.online.drop(stores.workspace, view_name, generation, epoch=lease.epoch)
    on_step(DROPPED_ONLINE)


def _drain(view_name: str, generation: int | None, stores: WorkspaceStores) -> None:
    """Let unfinished jobs end, so that what is removed is not written again."""
    stores.ledger.abandon_dead(stores.workspace)
    for job in stores.ledger.jobs(stores.workspace, view_name, ACTIVE_STATES):
        if generation in (None, job.generation):
            stores.ledger.drain(job.id)


def _lease_name(view_name: str, stores: WorkspaceStores) -> str:
    return f"batch:{stores.workspace}/{view_name}"
