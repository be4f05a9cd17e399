"""Maintenance of tables in the ledger: a job that claims no range and covers nothing.

Batch jobs go on beside it; they and it take turns with the view's lease.
"""

from __future__ import annotations

from sqlalchemy import select

from featurekit_dagster.errors import MaintenanceNotRetried, MaintenanceUnderWay
from featurekit_dagster.intervals import Interval, to_us
from featurekit_dagster.stores.ledger_chores import ChoreBook
from featurekit_dagster.stores.ledger_claims import lose_dead
from featurekit_dagster.stores.ledger_leases import Lease, check_held
from featurekit_dagster.stores.ledger_lifecycle import begin_attempt, insert_jobs
from featurekit_dagster.stores.ledger_records import ACTIVE_STATES, DELTA_MAINTENANCE, JobRecord, read_jobs
from featurekit_dagster.stores.ledger_tables import jobs


class MaintenanceBook(ChoreBook):
    """The maintenance jobs of one ledger."""

    def begin_maintenance(
        self,
        *,
        workspace: str,
        view: str,
        generation: int,
        interval: Interval,
        trigger: str,
        run_id: str | None,
        lease: Lease,
    ) -> JobRecord:
        """Let the maintenance of a table begin in this process and return its job, which has one attempt.

        Args:
            workspace: Name of the workspace.
            view: The feature view.
            generation: Generation of the table.
            interval: What the table covers, from its first instant to its last.
            trigger: What asked for it.
            run_id: The Dagster run that does it.
            lease: The view's lease, which must still be held.

        Raises:
            MaintenanceUnderWay: Another process maintains it.
            LeaseLost: The lease was taken over.
        """
        now_us, job_id = to_us(self._clock()), self._new_id()
        place = {"workspace": workspace, "view": view, "generation": generation}
        what = {"kind": DELTA_MAINTENANCE, "trigger": trigger, "online": False, "offline": True, "overwrite": True}
        span = {"start_us": interval.start_us, "end_us": interval.end_us}
        own = [jobs.c[name] == value for name, value in place.items()]
        active = select(jobs.c.id).where(*own, jobs.c.kind == DELTA_MAINTENANCE, jobs.c.state.in_(ACTIVE_STATES))
        with self._write() as connection:
            check_held(connection, lease)
            lose_dead(connection, workspace, now_us)
            other = connection.execute(active).scalars().first()
            if other is None:
                insert_jobs(connection, [{"id": job_id, **place, **what, **span}], now_us)
                begin_attempt(connection, self._row(connection, job_id), self._new_id(), run_id, now_us)
                return read_jobs(connection, jobs.c.id == job_id)[0]
        raise MaintenanceUnderWay(view=view, job_id=other)

    def retry(self, job_id: str) -> JobRecord:
        """Ask for a job that has ended to be done again, as `ChoreBook.retry`.

        Raises:
            MaintenanceNotRetried: It is a maintenance.
        """
        with self._engine.connect() as connection:
            row = self._row(connection, job_id)
        if row.kind == DELTA_MAINTENANCE:
            raise MaintenanceNotRetried(job_id=job_id, view=row.view)
        return super().retry(job_id)
