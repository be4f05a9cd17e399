"""The record of jobs, attempts, coverage and leases, shared by all processes of one host.

Every change is one short transaction under a lock that all writers share. Planning gets a snapshot, never this object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from functools import cached_property

from sqlalchemy import delete, select

from featurekit_dagster.intervals import IntervalSet, from_us, to_us
from featurekit_dagster.planning.generations import StoredShape, resolve
from featurekit_dagster.planning.tasks import LedgerSnapshot
from featurekit_dagster.stores.ledger_claims import Place, cover, covered_in, uncover
from featurekit_dagster.stores.ledger_generations import read_all_generations
from featurekit_dagster.stores.ledger_leases import LEASE_TIME, Lease, LeaseBook
from featurekit_dagster.stores.ledger_maintenance import MaintenanceBook
from featurekit_dagster.stores.ledger_published import PublishedBook
from featurekit_dagster.stores.ledger_records import ACTIVE_STATES, BATCH, JobRecord, read_jobs
from featurekit_dagster.stores.ledger_snapshot import stream_fact, take_snapshot
from featurekit_dagster.stores.ledger_streams import StreamBook
from featurekit_dagster.stores.ledger_tables import facts, insert_new, jobs, views


class Ledger(StreamBook, MaintenanceBook, PublishedBook):
    """The ledger at one place; any number of threads and processes may use it at once.

    It is opened as `LedgerDatabase` is.
    """

    @cached_property
    def _leases(self) -> LeaseBook:
        return LeaseBook(self._write, self._clock)

    def coverage(self, workspace: str, view: str, store: str, generation: int = 1) -> IntervalSet:
        """Return what of a view is materialized in `online` or `offline`."""
        with self._engine.connect() as connection:
            return covered_in(connection, Place(workspace, view, generation), store)

    def restore_coverage(
        self, workspace: str, view: str, store: str, covered: IntervalSet, generation: int = 1
    ) -> IntervalSet:
        """Let a store's coverage be what the store itself says; return what it was here."""
        place = Place(workspace, view, generation)
        with self._write() as connection:
            before = covered_in(connection, place, store)
            if before != covered:
                uncover(connection, place, store)
                for interval in covered:
                    cover(connection, place, (store,), interval)
        return before

    def jobs(
        self,
        workspace: str,
        view: str | None = None,
        states: Sequence[str] | None = None,
        limit: int | None = None,
        batch: str | None = None,
        id_start: str | None = None,
    ) -> list[JobRecord]:
        """Return jobs of a workspace, newest first.

        Args:
            workspace: Name of the workspace.
            view: Only jobs of this view.
            states: Only jobs in one of these states.
            limit: At most so many.
            batch: Only jobs of this batch.
            id_start: Only jobs whose id begins so.
        """
        conditions = [jobs.c.workspace == workspace]
        if view is not None:
            conditions.append(jobs.c.view == view)
        if states is not None:
            conditions.append(jobs.c.state.in_(states))
        if batch is not None:
            conditions.append(jobs.c.batch == batch)
        if id_start is not None:
            conditions.append(jobs.c.id.startswith(id_start, autoescape=True))
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

    def snapshot(self, workspace: str, shapes: Mapping[str, StoredShape] | None = None) -> LedgerSnapshot:
        """Return what is covered, claimed and failed in a workspace at one moment.

        Attempts whose process has ended are ended first, so that nothing waits for them. Of a failed or cancelled job
        counts what is still missing in a store that it was to write; it is left alone unless a later job asked for it.

        Args:
            workspace: Name of the workspace.
            shapes: What the declarations of all its views store, by which their generations are chosen. Without them
                it is the current generation, and nothing is said about changes.
        """
        self.abandon_dead(workspace)
        with self._engine.connect() as connection:
            return take_snapshot(connection, workspace, shapes)

    def outdated(self, workspace: str, codes: Mapping[str, str], shapes: Mapping[str, StoredShape]) -> list[str]:
        """Return the ids of the unfinished jobs of views that their declarations would not ask for any more.

        Such a job is of other code, writes another generation than is written now, or is off the grid of
        `batch_schedule`.

        Args:
            workspace: Name of the workspace.
            codes: View to the code version of its declaration.
            shapes: View to what its declaration stores.
        """
        unfinished = (jobs.c.state.in_(ACTIVE_STATES), jobs.c.kind == BATCH, jobs.c.view.in_(codes))
        columns = (jobs.c.id, jobs.c.view, jobs.c.generation, jobs.c.code_version, jobs.c.start_us, jobs.c.end_us)
        with self._engine.connect() as connection:
            found = connection.execute(select(*columns).where(jobs.c.workspace == workspace, *unfinished)).all()
            records = read_all_generations(connection, workspace) if found else {}
        written = {view: resolve(shapes[view], records.get(view, ())).write for view in {job.view for job in found}}
        return [
            job.id
            for job in found
            if job.code_version not in (None, codes[job.view])
            or job.generation != written[job.view]
            or any(time % shapes[job.view].batch_schedule_us for time in (job.start_us, job.end_us))
        ]

    def register(self, workspace: str, view: str) -> datetime:
        """Return when a view was first asked about here; a view that is known already keeps its time."""
        key = {"workspace": workspace, "view": view}
        with self._write() as connection:
            new = {**key, "created_us": to_us(self._clock())}
            insert_new(connection, views, new, None)
            known = select(views.c.created_us).filter_by(**key)
            return from_us(connection.execute(known).scalar_one())

    def stream_started(self, workspace: str, view: str, generation: int, start: datetime | None) -> None:
        """Remember from when on a view's stream covers everything online; None forgets it."""
        name = stream_fact(workspace, view, generation)
        with self._write() as connection:
            if start is None:
                connection.execute(delete(facts).where(facts.c.name == name))
            else:
                value = {"value": str(to_us(start))}
                insert_new(connection, facts, {"name": name, **value}, value)

    def stream_start(self, workspace: str, view: str, generation: int) -> datetime | None:
        """Return from when on a view's stream covers everything online; None before it began."""
        name = stream_fact(workspace, view, generation)
        with self._engine.connect() as connection:
            value = connection.execute(select(facts.c.value).where(facts.c.name == name)).scalar_one_or_none()
        return None if value is None else from_us(int(value))

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
