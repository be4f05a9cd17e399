"""Rows of a feature table: checked, put into the offline store, then into the online store, then recorded.

Each step can be repeated. Rows that are in the offline store when an ingest ends too early reach the online store by
the next one, or by `finish_ingests`; rows that are not are nowhere, and are ingested again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.engine.local import stored_schema
from featurekit_dagster.errors import JobStateError, NotAFeatureTable, NothingToRefillFrom, safe_reason
from featurekit_dagster.execution.held_online import held_online
from featurekit_dagster.execution.online_rows import online_rows
from featurekit_dagster.execution.table_rows import checked_rows
from featurekit_dagster.intervals import Interval, from_us
from featurekit_dagster.planning.fingerprint import fingerprint
from featurekit_dagster.planning.generations import StoredShape
from featurekit_dagster.planning.job_state import MANAGED
from featurekit_dagster.planning.tasks import OFFLINE, ONLINE
from featurekit_dagster.stores.key_codec import KeyCodec
from featurekit_dagster.stores.ledger_leases import Lease
from featurekit_dagster.stores.ledger_records import ACTIVE_STATES, INGEST, JobRecord
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

PATIENCE = timedelta(seconds=60)
CLAIMED, WRITTEN_OFFLINE, WRITTEN_ONLINE = "claimed", "written_offline", "written_online"
REFILL = "refill"
_NOT_KEPT = "it ended before its rows were in the offline store; ingest them again"
OnStep = Callable[[str], None]


def _ignore(step: str) -> None:
    """Do nothing at a step."""


@dataclass(frozen=True, slots=True)
class _Ingest:
    """One job under the table's lease; the stores are pinned to the generation that it writes."""

    view: FeatureView
    stores: WorkspaceStores
    job: JobRecord
    lease: Lease


def ingest_rows(
    view: FeatureView,
    frame: Any,
    stores: WorkspaceStores,
    *,
    trigger: str = "manual",
    run_id: str | None = None,
    wait: timedelta = PATIENCE,
    on_step: OnStep = _ignore,
) -> JobRecord:
    """Put rows into the stores of a feature table, all of them or none, and return the job.

    Offline a row takes the place of the one with the same keys and time; online that of the one it is newer than, or as
    new as. So the same rows may be ingested again, and rows in any order. What earlier ingests have left unfinished is
    finished first, and what the online store has lost is brought there from offline.

    Args:
        view: A feature table.
        frame: pandas, polars or Arrow frame.
        stores: Where rows and record are kept.
        trigger: What asked for it.
        run_id: The Dagster run that does it.
        wait: How long to wait for another process that ingests.
        on_step: Called with the name of each finished step.

    Raises:
        RowsRefused: The rows do not fit the declaration.
        NotAFeatureTable: The view is another one, or keeps no rows.
        KeyTooLong: A join key is longer than the online store takes.
        ChangedDeclaration: The table was changed, and nobody has decided what becomes of what is stored.
        LeaseHeld: Another process ingests, or maintains the table, for longer than `wait`.
    """
    _check_table(view)
    rows = checked_rows(view, frame, stores.clock())
    if view.online and view.wildcard_join_key is not None:
        _check_key_lengths(view, rows, stores)
    with stores.ledger.lease(_lease_name(view, stores), holder=run_id or "ingest", wait=wait) as lease:
        writer = _writer(view, stores)
        _finish_left(view, writer, lease, run_id)
        _refill(view, writer, lease, run_id)
        job = _claim(view, writer, lease, _span(view, rows), trigger=trigger, run_id=run_id, offline=view.offline)
        _carry_out(_Ingest(view, writer, job, lease), rows, on_step)
    return stores.ledger.job(job.id)


def refill_table(
    view: FeatureView, stores: WorkspaceStores, *, run_id: str | None = None, wait: timedelta = PATIENCE
) -> tuple[JobRecord, ...]:
    """Bring online what of a feature table is offline only, as after its online store was emptied; return the jobs.

    There is one for each contiguous stretch of time. An ingest does it first, too, since it covers whole days.

    Args:
        view: A feature table.
        stores: Where rows and record are kept.
        run_id: The Dagster run that does it.
        wait: How long to wait for a process that ingests.

    Raises:
        NotAFeatureTable: The view is another one.
        NothingToRefillFrom: It does not write both stores.
        ChangedDeclaration: As for `ingest_rows`.
        LeaseHeld: As for `ingest_rows`.
    """
    _check_table(view)
    if not (view.online and view.offline):
        raise NothingToRefillFrom(view=view.name)
    with stores.ledger.lease(_lease_name(view, stores), holder="refill", wait=wait) as lease:
        writer = _writer(view, stores)
        return (*_finish_left(view, writer, lease, run_id), *_refill(view, writer, lease, run_id))


def finish_ingests(
    view: FeatureView, stores: WorkspaceStores, *, run_id: str | None = None, wait: timedelta = PATIENCE
) -> tuple[JobRecord, ...]:
    """Bring online what ingests that ended too early have left offline only; return their jobs.

    Args:
        view: A feature table.
        stores: Where rows and record are kept.
        run_id: The Dagster run that does it.
        wait: How long to wait for a process that ingests.

    Raises:
        NotAFeatureTable: The view is another one.
        ChangedDeclaration: As for `ingest_rows`.
        LeaseHeld: As for `ingest_rows`.
    """
    _check_table(view)
    if not unfinished_ingests(view, stores):
        return ()
    with stores.ledger.lease(_lease_name(view, stores), holder="ingest", wait=wait) as lease:
        return _finish_left(view, _writer(view, stores), lease, run_id)


def unfinished_ingests(view: FeatureView, stores: WorkspaceStores) -> list[JobRecord]:
    """Return the ingests of a feature table that have not ended, oldest first; the record is not made for it."""
    if not stores.has_ledger:
        return []
    active = stores.ledger.jobs(stores.workspace, view.name, ACTIVE_STATES)
    return [job for job in reversed(active) if job.kind == INGEST]


def _check_table(view: FeatureView) -> None:
    if not view.is_table:
        reason = "it is a feature view, whose rows are computed; only a FeatureTable takes rows by ingest()"
        raise NotAFeatureTable(name=view.name, reason=reason)
    if not (view.online or view.offline):
        reason = "it keeps no rows (online and offline are both False); declare one of them True"
        raise NotAFeatureTable(name=view.name, reason=reason)


def _check_key_lengths(view: FeatureView, rows: pa.Table, stores: WorkspaceStores) -> None:
    """Refuse keys before anything is written that the online store would refuse later."""
    layout = stores.online_layout(view)
    KeyCodec(layout).encode_columns([rows[field.name].combine_chunks() for field in layout.key_fields])


def _lease_name(view: FeatureView, stores: WorkspaceStores) -> str:
    return f"batch:{stores.workspace}/{view.name}"


def _writer(view: FeatureView, stores: WorkspaceStores) -> WorkspaceStores:
    return stores.pinned(view, stores.ledger.open_generation(stores.workspace, view.name, StoredShape.of(view)))


def _span(view: FeatureView, rows: pa.Table) -> Interval:
    """Return the days of the rows: coverage of many ingests stays short on a grid."""
    ends = pc.min_max(rows[view.timestamp_field].cast(pa.int64())).as_py()
    return Interval(from_us(ends["min"]), from_us(ends["max"] + 1)).aligned_outward(view.batch_schedule)


def _refill(view: FeatureView, stores: WorkspaceStores, lease: Lease, run_id: str | None) -> tuple[JobRecord, ...]:
    """Write online what is offline and not there; each ingest writes both, so that is what was lost."""
    if not (view.online and view.offline):
        return ()
    held, done = held_online(view, stores), []
    for interval in stores.coverage(view, OFFLINE).subtract(held):
        job = _claim(view, stores, lease, interval, trigger=REFILL, run_id=run_id, offline=False)
        _carry_out(_Ingest(view, stores, job, lease), None, _ignore)
        done.append(stores.ledger.job(job.id))
    return tuple(done)


def _claim(
    view: FeatureView,
    stores: WorkspaceStores,
    lease: Lease,
    interval: Interval,
    *,
    trigger: str,
    run_id: str | None,
    offline: bool,
) -> JobRecord:
    return stores.ledger.claim(
        workspace=stores.workspace,
        view=view.name,
        interval=interval,
        online=view.online,
        offline=offline,
        overwrite=True,
        trigger=trigger,
        run_id=run_id,
        policy=MANAGED,
        generation=stores.generation(view),
        code_version=fingerprint(view),
        kind=INGEST,
        lease=lease,
    )


def _finish_left(view: FeatureView, stores: WorkspaceStores, lease: Lease, run_id: str | None) -> tuple[JobRecord, ...]:
    """Finish, or give up, every ingest before: under the lease none of them can be under way."""
    ledger, left = stores.ledger, unfinished_ingests(view, stores)
    ledger.abandon([job.id for job in left if job.next_attempt_at is None], reason="its lease was taken over")
    done = []
    for job in unfinished_ingests(view, stores):
        if job.generation != stores.generation(view):
            ledger.drain(job.id)
        else:
            begun = _Ingest(view, stores, ledger.begin(job.id, run_id=run_id, lease=lease), lease)
            _carry_out(begun, None, _ignore)
        done.append(ledger.job(job.id))
    return tuple(done)


def _carry_out(ingest: _Ingest, rows: pa.Table | None, on_step: OnStep) -> None:
    """Write rows, or what an earlier attempt has put into the offline store, and record it."""
    view, stores, job = ingest.view, ingest.stores, ingest.job
    is_kept, stats = False, {} if rows is None else {"rows": rows.num_rows}
    try:
        on_step(CLAIMED)
        if rows is None:
            is_kept = view.offline and (not job.offline or _is_committed(ingest))
            if not is_kept:
                stores.ledger.fail(job.id, reason=_NOT_KEPT, permanent=True)
                return
            served = stores.read_offline(view, stored_schema(view), job.interval)
        else:
            kept, served = (stores.without_deleted(view, rows, store) for store in (OFFLINE, ONLINE))
            deleted = rows.num_rows - (kept if view.offline else served).num_rows
            stats |= {"rows_deleted": deleted} if deleted else {}
            if view.offline:
                stats |= _write_offline(ingest, kept)
                is_kept = True
        on_step(WRITTEN_OFFLINE)
        stats |= _write_online(ingest, served) if view.online else {}
        on_step(WRITTEN_ONLINE)
        stores.ledger.succeed(job.id, stats=stats, lease=ingest.lease)
    except Exception as error:
        # whatever happened, the ledger must not go on saying that the job runs; the error itself goes on
        with suppress(JobStateError):
            again = is_kept and getattr(error, "retryable", True)
            stores.ledger.fail(job.id, reason=safe_reason(error), permanent=not again)
        raise


def _is_committed(ingest: _Ingest) -> bool:
    return ingest.stores.offline.upserts(ingest.view.name, ingest.job.generation).has_commit_of(ingest.job.id)


def _write_offline(ingest: _Ingest, rows: pa.Table) -> dict[str, int]:
    view, stores, job = ingest.view, ingest.stores, ingest.job
    schema = stored_schema(view)
    written = stores.offline.upserts(view.name, job.generation).write(
        rows.select(schema.names),
        job.interval,
        schema=schema,
        time_column=view.timestamp_field,
        keys=view.key_names,
        job_id=job.id,
        epoch=ingest.lease.epoch,
        coverage=stores.coverage(view, OFFLINE),
        time_partition_size=view.offline_store.time_partition_size,
    )
    return {"rows_offline": written.rows_written, "rows_replaced": written.rows_replaced}


def _write_online(ingest: _Ingest, rows: pa.Table) -> dict[str, int]:
    view, stores, span = ingest.view, ingest.stores, ingest.job.interval
    stores.sync_tombstones(view)
    written = stores.online.write(
        stores.online_layout(view),
        online_rows(view, rows.select(stored_schema(view).names), span, stores.clock()),
        covered=held_online(view, stores).union([span]),
        epoch=ingest.lease.epoch,
    )
    return {"rows_online": written.rows_written, "rows_online_skipped": written.rows_skipped}
