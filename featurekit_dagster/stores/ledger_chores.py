"""Chores in the ledger: jobs that claim no range and cover nothing, with what was asked for kept beside them.

They are queued, tried again, cancelled and shown like any other job; batch jobs of their view go on beside them. What
they write they write under the leases of whatever they write.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import update

from featurekit_dagster.intervals import Interval, to_us
from featurekit_dagster.planning.job_state import MANAGED, JobEvent, RetryPolicy
from featurekit_dagster.stores.ledger_jobs import JobBook
from featurekit_dagster.stores.ledger_lifecycle import Move, carry_out, check_attempt, insert_jobs
from featurekit_dagster.stores.ledger_records import ACTIVE_STATES, JobRecord, read_jobs
from featurekit_dagster.stores.ledger_tables import jobs


class ChoreBook(JobBook):
    """The chores of one ledger."""

    def queue_chore(
        self,
        *,
        workspace: str,
        view: str,
        kind: str,
        trigger: str,
        interval: Interval,
        request: Mapping[str, Any],
        generation: int = 1,
        online: bool = False,
        offline: bool = False,
        policy: RetryPolicy = MANAGED,
    ) -> JobRecord:
        """Ask for a chore and return its job, whose first attempt is due now.

        Args:
            workspace: Name of the workspace.
            view: The feature view, or empty where it is about none.
            kind: What kind of job it is.
            trigger: What asked for it.
            interval: What it is about, as people are shown it; it is not claimed.
            request: What was asked for: names, places and settings that JSON can hold. Never join keys or values.
            generation: Generation of the view's stored layout.
            online: Whether it changes the online store.
            offline: Whether it changes the offline store.
            policy: How often it is tried.
        """
        now_us, job_id = to_us(self._clock()), self._new_id()
        what = {"kind": kind, "trigger": trigger, "online": online, "offline": offline, "overwrite": False}
        place = {"workspace": workspace, "view": view, "generation": generation}
        span = {"start_us": interval.start_us, "end_us": interval.end_us}
        asked = {"request": json.dumps(dict(request)), "max_attempts": policy.max_attempts}
        with self._write() as connection:
            insert_jobs(connection, [{"id": job_id, **place, **what, **span, **asked}], now_us)
            return read_jobs(connection, jobs.c.id == job_id)[0]

    def finish_chore(self, job_id: str, *, stats: Mapping[str, int]) -> JobRecord:
        """Record that a chore was done and return its job; coverage stays as it is.

        Args:
            job_id: The job.
            stats: Counts of what was done.

        Raises:
            JobStateError: The job was ended otherwise in the meantime, or somebody else tries it.
        """
        with self._write() as connection:
            row = self._row(connection, job_id)
            check_attempt(row, JobEvent.SUCCEED)
            carry_out(connection, [Move(job=row, event=JobEvent.SUCCEED, stats=stats)], to_us(self._clock()))
            return read_jobs(connection, jobs.c.id == job_id)[0]

    def report_chore(
        self, job_id: str, *, stats: Mapping[str, int], request: Mapping[str, Any] | None = None
    ) -> JobRecord:
        """Remember how far a chore is while its attempt is under way here, for people and for its next attempt.

        Args:
            job_id: The job.
            stats: Counts of what was done so far.
            request: What is remembered of the request from now on; None leaves it.

        Raises:
            JobStateError: The attempt was ended, or somebody else goes on with the job.
        """
        values: dict[str, str] = {"stats": json.dumps(dict(stats))}
        if request is not None:
            values["request"] = json.dumps(dict(request))
        with self._write() as connection:
            check_attempt(self._row(connection, job_id), JobEvent.SUCCEED)
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(**values))
            return read_jobs(connection, jobs.c.id == job_id)[0]

    def unfinished_chores(self, workspace: str, kind: str, view: str | None = None) -> list[JobRecord]:
        """Return the chores of a kind that wait or are under way, newest first; of one view if it is given."""
        own = [jobs.c.workspace == workspace, jobs.c.kind == kind, jobs.c.request.is_not(None)]
        if view is not None:
            own.append(jobs.c.view == view)
        with self._engine.connect() as connection:
            return read_jobs(connection, *own, jobs.c.state.in_(ACTIVE_STATES))

    def retry(self, job_id: str) -> JobRecord:
        """Ask for a job that has ended to be done again, as `JobBook.retry`; a chore stands in nobody's way.

        Raises:
            JobStateError: The job has not ended.
            OverlappingMaterialization: As for `JobBook.retry`.
            RetiredGeneration: As for `JobBook.retry`.
            DeletionNotRetried: It removed a generation.
            IngestNotRetried: It is an ingest.
            NotFoundError: There is no such job.
        """
        now_us = to_us(self._clock())
        with self._write() as connection:
            row = self._row(connection, job_id)
            if row.request is not None:
                carry_out(connection, [Move(job=row, event=JobEvent.RETRY, next_attempt_us=now_us)], now_us)
                own = update(jobs).where(jobs.c.id == job_id)
                connection.execute(own.values(max_attempts=MANAGED.max_attempts))
                return read_jobs(connection, jobs.c.id == job_id)[0]
        return super().retry(job_id)
