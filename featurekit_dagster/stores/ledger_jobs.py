"""Jobs in the ledger: how they are made, tried, ended, cancelled and asked for again.

Each method is one transaction under the database's write lock, so two claims of the same range cannot both win.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, or_, select, update

from featurekit_dagster.errors import DeletionNotRetried, IngestNotRetried, JobStateError, OverlappingMaterialization
from featurekit_dagster.intervals import Interval, to_us
from featurekit_dagster.planning.job_state import MANAGED, ONCE, JobEvent, JobState, RetryPolicy
from featurekit_dagster.stores.ledger_claims import (
    Place,
    any_dead,
    cover,
    first_refusal,
    lose_dead,
    refusal_of,
    uncover_all,
)
from featurekit_dagster.stores.ledger_generations import GenerationBook, check_not_retired
from featurekit_dagster.stores.ledger_leases import Lease, check_held
from featurekit_dagster.stores.ledger_lifecycle import (
    NOBODY,
    Move,
    begin_attempt,
    carry_out,
    check_attempt,
    failed,
    insert_jobs,
    is_in_run,
    is_live,
    is_of_this_process,
    lose,
)
from featurekit_dagster.stores.ledger_records import (
    ACTIVE_STATES,
    DELETION,
    INGEST,
    STREAM,
    JobRecord,
    attempt_of,
    interval_of,
    job_of,
    read_jobs,
    written_stores,
)
from featurekit_dagster.stores.ledger_tables import jobs

_OF_BATCH = select(jobs).where(jobs.c.batch == bindparam("name")).order_by(jobs.c.sequence)


class JobBook(GenerationBook):
    """The jobs of one ledger."""

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
        policy: RetryPolicy = ONCE,
        batch: str | None = None,
        generation: int = 1,
        code_version: str | None = None,
        kind: str = "BATCH",
        lease: Lease | None = None,
    ) -> JobRecord:
        """Take a range for writing at once and return its new job, whose first attempt is under way in this process.

        Args:
            workspace: Name of the workspace.
            view: The feature view.
            interval: The range to be written.
            online: Whether the online store will be written.
            offline: Whether the offline store will be written; one of the two must be.
            overwrite: Whether covered parts may be written again; queued and running jobs are never overlapped.
            trigger: What asked for it: `schedule`, `backfill`, `manual`, `dagster_ui`, ...
            run_id: The Dagster run that will do it.
            policy: How often the job is tried.
            batch: Name under which further attempts are started; without one nobody starts them.
            generation: Generation of the view's stored layout.
            code_version: Fingerprint of the declaration that is carried out.
            kind: What kind of job it is.
            lease: The lease under which it is done, which must still be held.

        Raises:
            OverlappingMaterialization: In a store to be written, the range overlaps a queued or running job, or,
                without `overwrite`, what is covered.
            LeaseLost: The lease was taken over.

        Source: Manually Trigger Materialization, Overwriting previously materialized data; that running jobs are never
        overlapped, and that each store counts for itself, is ours.
        """
        place = Place(workspace, view, generation)
        facts = {"online": online, "offline": offline, "overwrite": overwrite, "trigger": trigger, "kind": kind}
        facts |= {"max_attempts": policy.max_attempts, "batch": batch, "code_version": code_version}
        now_us = to_us(self._clock())
        with self._write() as connection:
            check_held(connection, lease)
            refusal, found = self._insert(connection, place, [interval], facts, now_us)
            if refusal is None:
                job = self._row(connection, found[0])
                attempt = begin_attempt(connection, job, self._new_id(), run_id, now_us)
                return job_of(self._row(connection, job.id)._mapping, (attempt_of(attempt),))
        raise refusal

    def queue(
        self,
        *,
        workspace: str,
        view: str,
        intervals: Sequence[Interval],
        online: bool,
        offline: bool,
        overwrite: bool = False,
        trigger: str,
        policy: RetryPolicy = MANAGED,
        generation: int = 1,
        code_version: str | None = None,
        kind: str = "BATCH",
    ) -> list[JobRecord]:
        """Take ranges for writing later and return their new jobs, one batch whose first attempts are due now.

        Args:
            workspace: Name of the workspace.
            view: The feature view.
            intervals: The ranges, disjoint, one job each, in order of time.
            online: Whether the online store will be written.
            offline: Whether the offline store will be written; one of the two must be.
            overwrite: Whether covered parts may be written again.
            trigger: What asked for it.
            policy: How often each job is tried.
            generation: Generation of the view's stored layout.
            code_version: Fingerprint of the declaration that is carried out.
            kind: What kind of jobs they are.

        Raises:
            OverlappingMaterialization: As for `claim`; then no job was made.
        """
        place = Place(workspace, view, generation)
        facts = {"online": online, "offline": offline, "overwrite": overwrite, "trigger": trigger, "kind": kind}
        facts |= {"max_attempts": policy.max_attempts, "batch": self._new_id(), "code_version": code_version}
        with self._write() as connection:
            refusal, _ = self._insert(connection, place, intervals, facts, to_us(self._clock()))
            if refusal is None:
                made = connection.execute(_OF_BATCH, {"name": facts["batch"]}).mappings()
                return [job_of(row, ()) for row in made]
        raise refusal

    def begin(
        self, job_id: str, *, run_id: str | None = None, code_version: str | None = None, lease: Lease | None = None
    ) -> JobRecord:
        """Let a waiting job's next attempt begin in this process.

        Args:
            job_id: The job.
            run_id: The Dagster run that does it.
            code_version: Fingerprint of the declaration that is carried out, where the job does not say it yet.
            lease: The lease under which it is done, which must still be held.

        Raises:
            JobNotWaiting: It has ended, was cancelled, or an attempt is under way.
            LeaseLost: The lease was taken over.
            NotFoundError: There is no such job.
        """
        with self._write() as connection:
            check_held(connection, lease)
            row = self._row(connection, job_id)
            begin_attempt(connection, row, self._new_id(), run_id, to_us(self._clock()))
            if code_version is not None and row.code_version is None:
                own = update(jobs).where(jobs.c.id == job_id)
                connection.execute(own.values(code_version=code_version))
            return read_jobs(connection, jobs.c.id == job_id)[0]

    def under_way(self, workspace: str) -> list[JobRecord]:
        """Return the jobs of a workspace that have an attempt under way, newest first."""
        with self._engine.connect() as connection:
            live = (jobs.c.state.in_(ACTIVE_STATES), jobs.c.process != NOBODY)
            return read_jobs(connection, jobs.c.workspace == workspace, *live)

    def due(self, workspace: str) -> list[JobRecord]:
        """Return the jobs of a workspace whose next attempt is due, in order of view and time; none of streams."""
        due = (jobs.c.kind != STREAM, jobs.c.next_attempt_us <= to_us(self._clock()))
        with self._engine.connect() as connection:
            found = read_jobs(connection, jobs.c.workspace == workspace, jobs.c.state.in_(ACTIVE_STATES), *due)
        return sorted(found, key=lambda job: (job.view, job.interval))

    def look(self, job_id: str, *, lease: Lease | None = None) -> JobState:
        """Return the state of a job whose attempt is under way in this process.

        Args:
            job_id: The job.
            lease: The lease under which it is done, which must still be held.

        Raises:
            LeaseLost: The lease was taken over.
            JobStateError: Somebody else has ended the attempt.
            NotFoundError: There is no such job.
        """
        with self._engine.connect() as connection:
            check_held(connection, lease)
            row = self._row(connection, job_id)
        check_attempt(row, JobEvent.SUCCEED)
        if JobState(row.state).is_final:
            raise JobStateError(job_id=job_id, state=row.state, event=JobEvent.SUCCEED.value, reason=row.reason)
        return JobState(row.state)

    def succeed(self, job_id: str, *, stats: Mapping[str, int], lease: Lease | None = None) -> None:
        """Record that a job has written its stores: SUCCESS and its coverage, in one transaction.

        After a deletion nothing of its generation is covered in its stores. A job that succeeded already is left as it
        is.

        Args:
            job_id: The job.
            stats: Counts of what was done.
            lease: The lease under which it was done, which must still be held.

        Raises:
            LeaseLost: The lease was taken over.
            JobStateError: The job was ended otherwise in the meantime, or somebody else tries it; its range is not
                covered by this.
            NotFoundError: There is no such job.
        """
        with self._write() as connection:
            check_held(connection, lease)
            row = self._row(connection, job_id)
            if row.state == JobState.SUCCESS.value:
                return
            check_attempt(row, JobEvent.SUCCEED)
            carry_out(connection, [Move(job=row, event=JobEvent.SUCCEED, stats=stats)], to_us(self._clock()))
            stores = written_stores(online=row.online, offline=row.offline)
            interval = interval_of(row.start_us, row.end_us)
            place = Place(row.workspace, row.view, row.generation)
            if row.kind == DELETION:
                uncover_all(connection, place, stores)
                return
            cover(connection, place, stores, interval)
            self._switch_if_built(connection, place)

    def fail(self, job_id: str, *, reason: str, permanent: bool = False) -> None:
        """Record that a job's attempt ended with an error; another follows if the job has one left.

        A job that is given up leaves its range free; what was covered stays covered. Without an attempt under way in
        this process nothing changes, so that the first reason stays and nobody fails what somebody else has taken over.

        Args:
            job_id: The job.
            reason: One sentence without join keys or feature values.
            permanent: Whether another attempt cannot help.

        Raises:
            JobStateError: The job succeeded or was cancelled.
            NotFoundError: There is no such job.
        """
        now_us = to_us(self._clock())
        with self._write() as connection:
            row = self._row(connection, job_id)
            is_own = is_live(row) and is_of_this_process(row)
            if is_own or row.state in (JobState.SUCCESS.value, JobState.MANUALLY_CANCELLED.value):
                carry_out(connection, [failed(row, reason, now_us, permanent=permanent)], now_us)

    def cancel(self, job_id: str) -> JobRecord:
        """Ask for a job to be cancelled; one without an attempt under way is cancelled at once.

        A job that has ended, or was asked to end before, is left as it is. The attempt that sees the request calls
        `stop`.

        Raises:
            NotFoundError: There is no such job.

        Source: Job Types, Materialization Job States (MANUAL_CANCELLATION_REQUESTED, MANUALLY_CANCELLED).
        """
        return self._end(job_id, JobEvent.CANCEL, "it was cancelled by hand")

    def drain(self, job_id: str) -> JobRecord:
        """Let a job end without further attempts, as `cancel` does; its range may be filled again without being asked.

        Raises:
            NotFoundError: There is no such job.

        Source: Job Types, Materialization Job States (DRAINING, DRAINED).
        """
        return self._end(job_id, JobEvent.DRAIN, "it was drained for newer code")

    def stop(self, job_id: str, *, reason: str) -> None:
        """Record that the attempt of a job ended because it was told to; of a job that nobody cancelled, by Dagster.

        Raises:
            JobStateError: The job has no attempt that could have been told.
            NotFoundError: There is no such job.
        """
        with self._write() as connection:
            row = self._row(connection, job_id)
            carry_out(connection, [Move(job=row, event=JobEvent.STOP, reason=reason)], to_us(self._clock()))

    def retry(self, job_id: str) -> JobRecord:
        """Ask for a job that has ended to be done again, with all its attempts; it is due now and overwrites.

        It is done by the code that is deployed when it begins.

        Raises:
            JobStateError: The job has not ended.
            OverlappingMaterialization: Another job has the range now.
            RetiredGeneration: What the job wrote has been replaced by a newer generation.
            DeletionNotRetried: It is a deletion.
            IngestNotRetried: It is an ingest.
            NotFoundError: There is no such job.

        Source: Job Types, Materialization Job States (MANUAL_RETRY).
        """
        now_us = to_us(self._clock())
        with self._write() as connection:
            row = self._row(connection, job_id)
            if row.kind == DELETION:
                raise DeletionNotRetried(job_id=job_id, view=row.view)
            if row.kind == INGEST:
                raise IngestNotRetried(job_id=job_id, table=row.view)
            move = Move(job=row, event=JobEvent.RETRY, next_attempt_us=now_us)
            if move.state.value != row.state:
                place = Place(row.workspace, row.view, row.generation)
                check_not_retired(connection, place, job_id)
                stores = written_stores(online=row.online, offline=row.offline)
                interval = interval_of(row.start_us, row.end_us)
                refusal = refusal_of(connection, place, interval, stores, overwrite=True, now_us=now_us)
                if refusal is not None:
                    raise refusal
            carry_out(connection, [move], now_us)
            # a batch of its own, so that what was said to the former one (a cancelled run) is not said to this
            own = update(jobs).where(jobs.c.id == job_id)
            new = {"batch": self._new_id(), "max_attempts": MANAGED.max_attempts, "code_version": None}
            connection.execute(own.values(**new))
            return read_jobs(connection, jobs.c.id == job_id)[0]

    def abandon(self, job_ids: Sequence[str] = (), *, run_id: str | None = None, reason: str) -> tuple[str, ...]:
        """End the attempts under way of the given jobs, and of a run's jobs, as lost; return the jobs' ids."""
        given: ColumnElement[bool] = jobs.c.id.in_(job_ids)
        if run_id is not None:
            given = or_(given, is_in_run(run_id))
        with self._write() as connection:
            return lose(connection, given, reason, to_us(self._clock()))

    def abandon_dead(self, workspace: str) -> tuple[str, ...]:
        """End the attempts of a workspace whose process has ended on this host; return the ids of their jobs."""
        with self._engine.connect() as connection:
            if not any_dead(connection, workspace):
                return ()
        with self._write() as connection:
            return lose_dead(connection, workspace, to_us(self._clock()))

    def _insert(
        self,
        connection: Connection,
        place: Place,
        intervals: Sequence[Interval],
        facts: Mapping[str, Any],
        now_us: int,
    ) -> tuple[OverlappingMaterialization | None, list[str]]:
        """Insert one waiting job per range and return their ids; none where one of them is refused."""
        stores = written_stores(online=facts["online"], offline=facts["offline"])
        if not stores:
            raise ValueError(f"{place.view}: a job writes online, offline or both; neither was asked for")
        overwrite = facts["overwrite"]
        refusal = first_refusal(connection, place, intervals, stores, overwrite=overwrite, now_us=now_us)
        if refusal is not None:
            return refusal, []
        ids = [self._new_id() for _ in intervals]
        shared = {**asdict(place), **facts}
        spans = ({"start_us": interval.start_us, "end_us": interval.end_us} for interval in intervals)
        insert_jobs(connection, [{"id": name, **shared, **span} for name, span in zip(ids, spans, strict=True)], now_us)
        return None, ids

    def _end(self, job_id: str, event: JobEvent, reason: str) -> JobRecord:
        """Ask a job to end; without an attempt under way it has ended with that."""
        now_us = to_us(self._clock())
        with self._write() as connection:
            row = self._row(connection, job_id)
            if row.state in ACTIVE_STATES:
                carry_out(connection, [Move(job=row, event=event, reason=reason)], now_us)
                if not is_live(row):
                    asked = self._row(connection, job_id)
                    carry_out(connection, [Move(job=asked, event=JobEvent.STOP, reason=reason)], now_us)
            return read_jobs(connection, jobs.c.id == job_id)[0]
