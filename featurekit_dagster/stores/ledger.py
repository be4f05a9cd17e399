"""The record of jobs, attempts, coverage and leases, shared by all processes of one host.

Every change is one short transaction under SQLite's write lock, so two claims of the same range cannot both win.
Planning gets a snapshot and never this object.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, insert, inspect, or_, select
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import Row

from featurekit_dagster.errors import (
    JobStateError,
    LedgerOnOtherHost,
    LedgerVersionMismatch,
    NotFoundError,
)
from featurekit_dagster.intervals import Interval, IntervalSet, from_us, to_us
from featurekit_dagster.planning.tasks import LedgerSnapshot
from featurekit_dagster.stores.ledger_claims import (
    Place,
    cover,
    covered_in,
    dead_jobs,
    fail_dead,
    refusal_of,
)
from featurekit_dagster.stores.ledger_leases import LEASE_TIME, Lease, LeaseBook
from featurekit_dagster.stores.ledger_processes import current_process, host_id
from featurekit_dagster.stores.ledger_records import (
    ACTIVE_STATES,
    FAILURE,
    RUNNING,
    SUCCESS,
    JobRecord,
    attempt_of,
    end_jobs,
    fail_active,
    fail_jobs,
    interval_of,
    job_of,
    read_coverage,
    read_jobs,
    written_stores,
)
from featurekit_dagster.stores.ledger_tables import (
    SCHEMA_VERSION,
    WRITE,
    attempts,
    coverage,
    facts,
    jobs,
    metadata,
    open_engine,
    views,
)

_KNOWN_IDS_SHOWN = 5
_ONE_JOB = select(jobs).where(jobs.c.id == bindparam("job"))


def _hex_id() -> str:
    return uuid.uuid4().hex


class Ledger:
    """The ledger at one place; any number of threads and processes may use it at once.

    Args:
        url: Path of the SQLite file, or its `sqlite:///` URL. It is created when missing, its directory is not.
        clock: Returns "now", aware.
        new_id: Returns a new unique name.
        host: Name of this host; by default found out.

    Raises:
        LedgerOnOtherHost: Another host made the ledger.
        LedgerVersionMismatch: The ledger has another schema version.
        Unsupported: The URL is of a database other than SQLite.
    """

    def __init__(
        self,
        url: str | Path,
        *,
        clock: Callable[[], datetime],
        new_id: Callable[[], str] = _hex_id,
        host: str | None = None,
    ) -> None:
        self._location = str(url)
        self._clock, self._new_id = clock, new_id
        self._engine = open_engine(url)
        self._leases = LeaseBook(self._write, clock)
        self._prepare(host or host_id())

    def close(self) -> None:
        """Close all connections; the next use opens new ones."""
        self._engine.dispose()

    def claim(
        self,
        *,
        workspace: str,
        view: str,
        interval: Interval,
        online: bool,
        offline: bool,
        overwrite: bool = False,
        trigger: str,
        run_id: str | None = None,
        generation: int = 1,
        kind: str = "BATCH",
    ) -> JobRecord:
        """Take a range for writing and return its new, running job.

        Jobs that overlap but whose process has ended are failed on the way.

        Args:
            workspace: Name of the workspace.
            view: The feature view.
            interval: The range to be written.
            online: Whether the online store will be written.
            offline: Whether the offline store will be written; one of the two must be.
            overwrite: Whether covered parts may be written again; running jobs are never overlapped.
            trigger: What asked for it: `schedule`, `backfill`, `manual`, `dagster_ui`, ...
            run_id: The Dagster run that will do it.
            generation: Generation of the view's stored layout.
            kind: What kind of job it is.

        Raises:
            OverlappingMaterialization: In a store to be written, the range overlaps a running job, or, without
                `overwrite`, what is covered.

        Source: Manually Trigger Materialization, Overwriting previously materialized data; that running jobs are never
        overlapped, and that each store counts for itself, is ours.
        """
        place = Place(workspace, view, generation)
        stores = written_stores(online=online, offline=offline)
        if not stores:
            raise ValueError(f"{view}: a job writes online, offline or both; neither was asked for")
        now_us = to_us(self._clock())
        chosen = {"online": online, "offline": offline, "overwrite": overwrite, "trigger": trigger, "kind": kind}
        with self._write() as connection:
            refusal = refusal_of(connection, place, interval, stores, overwrite=overwrite, now_us=now_us)
            if refusal is None:
                return self._insert_job(connection, place, interval, chosen, run_id, now_us)
        raise refusal

    def succeed(self, job_id: str, *, stats: Mapping[str, int]) -> None:
        """Record that a job has written its stores: SUCCESS and its coverage, in one transaction.

        A job that succeeded already is left as it is.

        Raises:
            JobStateError: The job was ended otherwise in the meantime; its range is not covered.
            NotFoundError: There is no such job.
        """
        with self._write() as connection:
            row = self._active_row(connection, job_id, SUCCESS)
            if row is None:
                return
            stores = written_stores(online=row.online, offline=row.offline)
            interval = interval_of(row.start_us, row.end_us)
            cover(connection, Place(row.workspace, row.view, row.generation), stores, interval)
            now_us = to_us(self._clock())
            end_jobs(
                connection, [job_id], state=SUCCESS, attempt_state=SUCCESS, reason=None, now_us=now_us, stats=stats
            )

    def fail(self, job_id: str, *, reason: str) -> None:
        """Record that a job has failed; its range is free again, what was covered stays covered.

        A job that failed already keeps its first reason.

        Args:
            job_id: The job.
            reason: One sentence without join keys or feature values.

        Raises:
            JobStateError: The job succeeded or was cancelled.
            NotFoundError: There is no such job.
        """
        with self._write() as connection:
            if self._active_row(connection, job_id, FAILURE) is not None:
                fail_jobs(connection, [job_id], reason, to_us(self._clock()))

    def abandon(self, job_ids: Sequence[str] = (), *, run_id: str | None = None, reason: str) -> tuple[str, ...]:
        """Fail those of the given jobs, and of a run's jobs, that still count as running; return their ids."""
        given: ColumnElement[bool] = jobs.c.id.in_(job_ids)
        if run_id is not None:
            given = or_(given, jobs.c.id.in_(select(attempts.c.job_id).where(attempts.c.run_id == run_id)))
        with self._write() as connection:
            return fail_active(connection, given, reason, to_us(self._clock()))

    def abandon_dead(self, workspace: str) -> tuple[str, ...]:
        """Fail the running jobs of a workspace whose process has ended on this host; return their ids."""
        with self._engine.connect() as connection:
            if not dead_jobs(connection, workspace):
                return ()
        with self._write() as connection:
            return fail_dead(connection, workspace, to_us(self._clock()))

    def coverage(self, workspace: str, view: str, store: str, generation: int = 1) -> IntervalSet:
        """Return what of a view is materialized in `online` or `offline`."""
        with self._engine.connect() as connection:
            return covered_in(connection, Place(workspace, view, generation), store)

    def jobs(
        self,
        workspace: str,
        view: str | None = None,
        states: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> list[JobRecord]:
        """Return jobs of a workspace, newest first.

        Args:
            workspace: Name of the workspace.
            view: Only jobs of this view.
            states: Only jobs in one of these states.
            limit: At most so many.
        """
        conditions = [jobs.c.workspace == workspace]
        if view is not None:
            conditions.append(jobs.c.view == view)
        if states is not None:
            conditions.append(jobs.c.state.in_(states))
        with self._engine.connect() as connection:
            return read_jobs(connection, *conditions, limit=limit)

    def job(self, job_id: str) -> JobRecord:
        """Return one job.

        Raises:
            NotFoundError: There is no such job.
        """
        with self._engine.connect() as connection:
            found = read_jobs(connection, jobs.c.id == job_id)
            if not found:
                raise self._unknown(connection, job_id)
            return found[0]

    def snapshot(self, workspace: str) -> LedgerSnapshot:
        """Return what is covered, claimed and failed in a workspace at one moment.

        Jobs whose process has ended are failed first, so that nothing waits for them. Of a failed job counts what is
        still missing in a store that it was to write.
        """
        self.abandon_dead(workspace)
        with self._engine.connect() as connection:
            covered = read_coverage(connection, coverage.c.workspace == workspace)
            wanted_states = jobs.c.state.in_((*ACTIVE_STATES, FAILURE))
            found = read_jobs(connection, jobs.c.workspace == workspace, wanted_states)
        running: dict[str, list[Interval]] = {}
        failed: dict[str, list[Interval]] = {}
        for job in found:
            if job.state == FAILURE:
                for store in job.stores:
                    missing = IntervalSet([job.interval]).subtract(covered.get((job.view, store), IntervalSet()))
                    failed.setdefault(job.view, []).extend(missing)
            else:
                running.setdefault(job.view, []).append(job.interval)
        return LedgerSnapshot(covered=covered, running=_merged(running), failed=_merged(failed))

    def register(self, workspace: str, view: str) -> datetime:
        """Return when a view was first asked about here; a view that is known already keeps its time."""
        key = {"workspace": workspace, "view": view}
        with self._write() as connection:
            new = {**key, "created_us": to_us(self._clock())}
            connection.execute(sqlite_insert(views).values(**new).on_conflict_do_nothing())
            known = select(views.c.created_us).filter_by(**key)
            return from_us(connection.execute(known).scalar_one())

    def acquire(self, name: str, holder: str, ttl: timedelta = LEASE_TIME) -> Lease:
        """Take a lease; see `LeaseBook.acquire`."""
        return self._leases.acquire(name, holder, ttl)

    def renew(self, lease: Lease) -> None:
        """Let a lease last its time again from now; see `LeaseBook.renew`."""
        self._leases.renew(lease)

    def release(self, lease: Lease) -> None:
        """Give a lease back; see `LeaseBook.release`."""
        self._leases.release(lease)

    def lease(
        self, name: str, holder: str, ttl: timedelta = LEASE_TIME, wait: timedelta = timedelta(0)
    ) -> AbstractContextManager[Lease]:
        """Hold a lease for the body of a `with`; see `LeaseBook.held`."""
        return self._leases.held(name, holder, ttl, wait)

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with self._engine.connect().execution_options(**WRITE) as connection, connection.begin():
            yield connection

    def _prepare(self, host: str) -> None:
        """Create what is missing, and refuse a ledger of another host or version."""
        with self._write() as connection:
            found = {}
            if inspect(connection).has_table(facts.name):
                found = {row.name: row.value for row in connection.execute(select(facts))}
            if found.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
                version = found["schema_version"]
                raise LedgerVersionMismatch(location=self._location, found=version, wanted=SCHEMA_VERSION)
            if found.get("host", host) != host:
                raise LedgerOnOtherHost(location=self._location)
            if not found:
                metadata.create_all(connection)
                values = {"schema_version": SCHEMA_VERSION, "host": host}
                connection.execute(insert(facts), [{"name": k, "value": v} for k, v in values.items()])

    def _insert_job(
        self,
        connection: Connection,
        place: Place,
        interval: Interval,
        chosen: Mapping[str, object],
        run_id: str | None,
        now_us: int,
    ) -> JobRecord:
        started = {"state": RUNNING, "created_us": now_us, "updated_us": now_us, "reason": None}
        job = {
            "id": self._new_id(),
            **asdict(place),
            **chosen,
            **started,
            "start_us": interval.start_us,
            "end_us": interval.end_us,
            "next_attempt_us": None,
            "stats": "{}",
            "process": str(current_process()),
        }
        attempt = {"id": self._new_id(), "job_id": job["id"], "number": 1, "run_id": run_id, **started}
        connection.execute(insert(jobs), job)
        connection.execute(insert(attempts), attempt)
        return job_of(job, (attempt_of(attempt),))

    def _active_row(self, connection: Connection, job_id: str, wanted: str) -> Row[Any] | None:
        """Return the row of a job that may still end; None when it is in the wanted state already."""
        row = connection.execute(_ONE_JOB, {"job": job_id}).one_or_none()
        if row is None:
            raise self._unknown(connection, job_id)
        if row.state in ACTIVE_STATES:
            return row
        if row.state == wanted:
            return None
        raise JobStateError(job_id=job_id, state=row.state, wanted=wanted, reason=row.reason)

    def _unknown(self, connection: Connection, job_id: str) -> NotFoundError:
        newest = select(jobs.c.id).order_by(jobs.c.sequence.desc()).limit(_KNOWN_IDS_SHOWN)
        return NotFoundError(kind="job", name=job_id, known=list(connection.execute(newest).scalars()))


def _merged(spans: Mapping[str, Sequence[Interval]]) -> dict[str, IntervalSet]:
    return {view: IntervalSet(intervals) for view, intervals in spans.items() if intervals}
