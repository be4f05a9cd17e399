"""Streams in the ledger: the jobs that follow a view's stream, whether it is paused, and how far they are.

A stream has one job, or one per group of its source partitions. It claims no range: batch jobs go on beside it. It has
one attempt per run and ends only when it is told to.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, func, or_, select, update
from sqlalchemy.engine import Row

from featurekit_dagster.errors import JobStateError, StreamFollowed
from featurekit_dagster.intervals import Interval, from_us, to_us
from featurekit_dagster.planning.job_state import JobEvent, JobState
from featurekit_dagster.stores.ledger_claims import Place, cover, lose_dead
from featurekit_dagster.stores.ledger_generations import check_not_retired
from featurekit_dagster.stores.ledger_jobs import JobBook
from featurekit_dagster.stores.ledger_lifecycle import Move, begin_attempt, carry_out, insert_jobs, is_live
from featurekit_dagster.stores.ledger_records import ACTIVE_STATES, STREAM, JobRecord, read_jobs
from featurekit_dagster.stores.ledger_tables import attempts, facts, insert_new, jobs

STEADY_AFTER = timedelta(minutes=10)
"""An attempt that has lasted so long makes those before it forgotten."""

_FOR_EVER_US = to_us(datetime(9999, 1, 1, tzinfo=UTC))
_CANCELLED = "its run was cancelled in Dagster"
_NOT_ADDED: Mapping[str, Callable[[list[int]], int]] = {
    "newest_event_us": max,
    "watermark_us": min,
    "reported_us": min,
    "retention_seconds": min,
}
_STOPPED_STATES = (JobState.MANUALLY_CANCELLED.value, JobState.FAILURE.value)


class StreamBook(JobBook):
    """The streams of one ledger."""

    def follow_stream(
        self,
        *,
        workspace: str,
        view: str,
        generation: int,
        run_id: str | None,
        code_version: str,
        group: int = 0,
        groups: int = 1,
    ) -> JobRecord:
        """Let an attempt to follow a view's stream begin in this process; return its job, which is made if needed.

        Args:
            workspace: Name of the workspace.
            view: The feature view.
            generation: Generation of the view's stored layout.
            run_id: The Dagster run that does it.
            code_version: What the loop does, as one short text.
            group: Which group of the source partitions it is about, from 0 on.
            groups: How many groups there are.

        Raises:
            StreamFollowed: Another process does it already.
        """
        now_us, of_group = to_us(self._clock()), _Group(Place(workspace, view, generation), group, groups)
        with self._write() as connection:
            return self._begin_following(connection, of_group, run_id, code_version, now_us)

    def cancel_stream_run(
        self, *, workspace: str, view: str, generation: int, run_id: str, code_version: str, group: int, groups: int
    ) -> JobRecord | None:
        """Cancel the job of a run that a person has ended before it began to follow; return it.

        None where the ledger knows the run, which then has ended otherwise, or where another run follows.
        """
        now_us, of_group = to_us(self._clock()), _Group(Place(workspace, view, generation), group, groups)
        with self._write() as connection:
            if connection.execute(select(attempts.c.id).where(attempts.c.run_id == run_id).limit(1)).first():
                return None
            try:
                job = self._begin_following(connection, of_group, run_id, code_version, now_us)
            except StreamFollowed:
                return None
            ended = Move(job=self._row(connection, job.id), event=JobEvent.STOP, reason=_CANCELLED)
            carry_out(connection, [ended], now_us)
            return read_jobs(connection, jobs.c.id == job.id)[0]

    def _begin_following(
        self, connection: Connection, group: _Group, run_id: str | None, code_version: str, now_us: int
    ) -> JobRecord:
        place = group.place
        lose_dead(connection, place.workspace, now_us)
        row = _active(connection, group)
        if row is not None and is_live(row):
            raise StreamFollowed(view=place.view, job_id=row.id)
        job_id = self._new_id() if row is None else row.id
        if row is None:
            what = {"kind": STREAM, "trigger": "stream", "online": True, "offline": False, "overwrite": False}
            span = {"start_us": now_us, "end_us": _FOR_EVER_US}
            insert_jobs(connection, [{"id": job_id, **asdict(place), **what, **span, "batch": group.name}], now_us)
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(code_version=code_version))
        begin_attempt(connection, self._row(connection, job_id), self._new_id(), run_id, now_us)
        return read_jobs(connection, jobs.c.id == job_id)[0]

    def report_stream(self, job_id: str, stats: Mapping[str, int]) -> None:
        """Remember how far a stream's job is; failures before count no more once an attempt has lasted long.

        Args:
            job_id: The job.
            stats: Counts and times in microseconds, no values.
        """
        with self._write() as connection:
            row = self._row(connection, job_id)
            values: dict[str, str | int] = {"stats": json.dumps(dict(stats))}
            if to_us(self._clock()) - row.updated_us >= STEADY_AFTER // timedelta(microseconds=1):
                values["attempts_used"] = 1
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(**values))

    def stream_jobs(self, workspace: str, view: str) -> list[JobRecord]:
        """Return the jobs that follow or followed a view's stream, newest first.

        These are the newest of each group of its source partitions, and all that have not ended.
        """
        own = _of_stream(workspace, view)
        newest = select(func.max(jobs.c.sequence)).where(own).group_by(jobs.c.batch)
        with self._engine.connect() as connection:
            return read_jobs(connection, own, or_(jobs.c.sequence.in_(newest), jobs.c.state.in_(ACTIVE_STATES)))

    def cover_online(self, workspace: str, view: str, generation: int, interval: Interval) -> None:
        """Record that what a stream had lost is online now; the interval may end amid a batch interval."""
        with self._write() as connection:
            cover(connection, Place(workspace, view, generation), ("online",), interval)

    def pause_stream(self, workspace: str, view: str) -> None:
        """Let nobody follow a view's stream until it is resumed; a loop that does ends after its next commit."""
        row = {"name": _pause(workspace, view), "value": str(to_us(self._clock()))}
        with self._write() as connection:
            insert_new(connection, facts, row, None)

    def resume_stream(self, workspace: str, view: str) -> None:
        """Let a view's stream be followed again, also if it was paused never but its jobs were cancelled by hand."""
        now_us = to_us(self._clock())
        stopped = {
            job.id for job in newest_of_groups(self.stream_jobs(workspace, view)) if job.state in _STOPPED_STATES
        }
        with self._write() as connection:
            connection.execute(delete(facts).where(facts.c.name == _pause(workspace, view)))
            rows = connection.execute(select(jobs).where(jobs.c.id.in_(stopped), jobs.c.state.in_(_STOPPED_STATES)))
            again = [Move(job=row, event=JobEvent.RETRY, next_attempt_us=now_us) for row in rows.all()]
            carry_out(connection, again, now_us)

    def retry(self, job_id: str) -> JobRecord:
        """Ask for a job that has ended to be done again, as `JobBook.retry`; a stream is then followed again.

        Raises:
            JobStateError: The job has not ended, or another one follows the stream.
            OverlappingMaterialization: As for `JobBook.retry`.
            RetiredGeneration: As for `JobBook.retry`.
            DeletionNotRetried: It is a deletion.
            NotFoundError: There is no such job.
        """
        now_us = to_us(self._clock())
        with self._write() as connection:
            row = self._row(connection, job_id)
            if row.kind == STREAM:
                job = read_jobs(connection, jobs.c.id == job_id)[0]
                other = _active(connection, _Group(Place(job.workspace, job.view, job.generation), *job.stream_group))
                if other is not None and other.id != job_id:
                    because = f"job {other.id} follows the stream now"
                    raise JobStateError(job_id=job_id, state=row.state, event=JobEvent.RETRY.value, reason=because)
                check_not_retired(connection, Place(row.workspace, row.view, row.generation), job_id)
                carry_out(connection, [Move(job=row, event=JobEvent.RETRY, next_attempt_us=now_us)], now_us)
                return read_jobs(connection, jobs.c.id == job_id)[0]
        return super().retry(job_id)

    def stream_paused(self, workspace: str, view: str) -> datetime | None:
        """Return since when a view's stream is paused; None where it is not."""
        with self._engine.connect() as connection:
            found = select(facts.c.value).where(facts.c.name == _pause(workspace, view))
            value = connection.execute(found).scalar_one_or_none()
        return None if value is None else from_us(int(value))


@dataclass(frozen=True, slots=True)
class _Group:
    """One of the groups of source partitions of a generation's stream."""

    place: Place
    group: int
    groups: int

    @property
    def name(self) -> str | None:
        return f"{self.group}/{self.groups}" if self.groups > 1 else None


def newest_of_groups(known: Sequence[JobRecord]) -> list[JobRecord]:
    """Return the newest job of each group that a stream is divided into now, in the order of the groups.

    Args:
        known: Jobs of the stream, newest first.
    """
    found: dict[int, JobRecord] = {}
    for job in known:
        group, groups = job.stream_group
        if groups == known[0].stream_group[1]:
            found.setdefault(group, job)
    return [found[group] for group in sorted(found)]


def summed_stats(parts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Return the stats of a whole stream from those of its groups: counts are added, of times one stands for all."""
    found: dict[str, list[int]] = {}
    for stats in parts:
        for name, value in stats.items():
            found.setdefault(name, []).append(value)
    return {name: _NOT_ADDED.get(name, sum)(values) for name, values in found.items()}


def _pause(workspace: str, view: str) -> str:
    return f"stream_paused:{workspace}/{view}"


def _of_stream(workspace: str, view: str) -> ColumnElement[bool]:
    return and_(jobs.c.workspace == workspace, jobs.c.view == view, jobs.c.kind == STREAM)


def _active(connection: Connection, group: _Group) -> Row[Any] | None:
    """Return the job of a group of a generation's stream that has not ended."""
    place = group.place
    own = (_of_stream(place.workspace, place.view), jobs.c.generation == place.generation, jobs.c.batch == group.name)
    active = select(jobs).where(*own, jobs.c.state.in_(ACTIVE_STATES)).order_by(jobs.c.sequence.desc()).limit(1)
    return connection.execute(active).one_or_none()
