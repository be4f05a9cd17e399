"""What happens to jobs in the ledger's tables: every change of a state is an event of `planning.job_state`.

Every function works inside a transaction that the ledger has opened.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, insert, or_, select, update
from sqlalchemy.engine import Row

from featurekit_dagster.errors import JobNotWaiting, JobStateError
from featurekit_dagster.intervals import from_us, to_us
from featurekit_dagster.planning.job_state import FOLLOWED, JobEvent, JobState, RetryPolicy, next_state
from featurekit_dagster.stores.ledger_processes import current_process
from featurekit_dagster.stores.ledger_records import ACTIVE_STATES, STREAM
from featurekit_dagster.stores.ledger_tables import attempts, jobs

NOBODY = ""
PENDING, ATTEMPT_RUNNING, CANCELLING = "PENDING", "RUNNING", "CANCELLING"
PROCESS_ENDED = "its process ended"
_ATTEMPT_ENDS = {
    JobEvent.SUCCEED: "SUCCESS",
    JobEvent.FAIL: "ERROR",
    JobEvent.GIVE_UP: "ERROR",
    JobEvent.STOP: "CANCELLED",
}

# Built once: making a statement costs more than running it.
_MOVE = (
    update(jobs)
    .where(jobs.c.id == bindparam("job"))
    .values(
        state=bindparam("to_state"),
        reason=bindparam("why"),
        updated_us=bindparam("at_us"),
        next_attempt_us=bindparam("again_us"),
        process=bindparam("by"),
        attempts_used=bindparam("used"),
        stats=bindparam("counts"),
    )
)
_MOVE_ATTEMPT = (
    update(attempts)
    .where(
        attempts.c.job_id == bindparam("job"),
        or_(*(attempts.c.state == state for state in (PENDING, ATTEMPT_RUNNING, CANCELLING))),
    )
    .values(state=bindparam("to_state"), reason=bindparam("why"), updated_us=bindparam("at_us"))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One event of one job, as the ledger carries it out.

    Args:
        job: The job's row.
        event: What happens.
        reason: Why, for an event that is no success; it stands at the job and at its attempt.
        next_attempt_us: When it is tried next; None when it is not, or is under way.
        stats: Counts of a success.
    """

    job: Row[Any]
    event: JobEvent
    reason: str | None = None
    next_attempt_us: int | None = None
    stats: Mapping[str, int] | None = None

    @property
    def state(self) -> JobState:
        """The state that the job gets.

        Raises:
            JobStateError: The event cannot happen in the job's state.
        """
        state = next_state(JobState(self.job.state), self.event)
        if state is None:
            raise JobStateError(
                job_id=self.job.id, state=self.job.state, event=self.event.value, reason=self.job.reason
            )
        return state


def is_live(job: Row[Any]) -> bool:
    """Tell whether an attempt of a job is under way."""
    return job.state in ACTIVE_STATES and job.process != NOBODY


def is_in_run(run_id: str | None) -> ColumnElement[bool]:
    """Return the condition that a job's attempt under way, not an earlier one, is carried by a Dagster run."""
    under_way = attempts.c.state.in_((PENDING, ATTEMPT_RUNNING, CANCELLING))
    return jobs.c.id.in_(select(attempts.c.job_id).where(attempts.c.run_id == run_id, under_way))


def is_of_this_process(job: Row[Any]) -> bool:
    """Tell whether the attempt of a job that is under way, if there is one, is under way in the process that asks."""
    return bool(job.process == str(current_process()))


def check_attempt(job: Row[Any], event: JobEvent) -> None:
    """Refuse that this process ends an attempt that is not its own: its lease ran out and somebody else went on.

    Raises:
        JobStateError: No attempt of the job is under way in this process.
    """
    if job.state in ACTIVE_STATES and not is_of_this_process(job):
        because = "its attempt was taken over" if is_live(job) else job.reason
        raise JobStateError(job_id=job.id, state=job.state, event=event.value, reason=because)


def carry_out(connection: Connection, moves: Sequence[Move], now_us: int) -> None:
    """Put jobs, and the attempts that an event ends, into their next states.

    Raises:
        JobStateError: An event cannot happen in the state of its job; nothing is changed.
    """
    changes, ended = [], []
    for move in moves:
        state, row = move.state, move.job
        ends = move.event in _ATTEMPT_ENDS
        changes.append(
            {
                "job": row.id,
                "to_state": state.value,
                "why": move.reason if ends or move.event is JobEvent.CANCEL else None,
                "at_us": now_us,
                "again_us": move.next_attempt_us,
                "by": NOBODY if ends or move.event is JobEvent.RETRY else row.process,
                "used": 0 if move.event is JobEvent.RETRY else row.attempts_used,
                "counts": row.stats if move.stats is None else json.dumps(dict(move.stats)),
            }
        )
        to_state = _ATTEMPT_ENDS.get(
            move.event, CANCELLING if state is JobState.MANUAL_CANCELLATION_REQUESTED else None
        )
        if to_state is not None:
            ended.append({"job": row.id, "to_state": to_state, "why": move.reason, "at_us": now_us})
    if changes:
        connection.execute(_MOVE, changes)
    if ended:
        connection.execute(_MOVE_ATTEMPT, ended)


def insert_jobs(connection: Connection, rows: Sequence[Mapping[str, Any]], now_us: int) -> None:
    """Insert jobs that wait for their first attempt."""
    waiting = {
        "state": JobState.RUNNING.value,
        "created_us": now_us,
        "updated_us": now_us,
        "reason": None,
        "next_attempt_us": now_us,
        "stats": "{}",
        "process": NOBODY,
        "max_attempts": 1,
        "attempts_used": 0,
        "batch": None,
        "code_version": None,
        "request": None,
    }
    if rows:
        connection.execute(insert(jobs), [{**waiting, **row} for row in rows])


def begin_attempt(
    connection: Connection, job: Row[Any], attempt_id: str, run_id: str | None, now_us: int
) -> dict[str, Any]:
    """Let an attempt of a job begin in this process; return the attempt's row.

    Raises:
        JobNotWaiting: The job is not waiting for an attempt.
    """
    state = next_state(JobState(job.state), JobEvent.START)
    if state is None or is_live(job):
        raise JobNotWaiting(job_id=job.id, state=job.state, event="START", reason=job.reason)
    number = connection.execute(select(attempts.c.number).where(attempts.c.job_id == job.id)).scalars().all()
    attempt = {
        "id": attempt_id,
        "job_id": job.id,
        "number": len(number) + 1,
        "run_id": run_id,
        "state": ATTEMPT_RUNNING,
        "created_us": now_us,
        "updated_us": now_us,
        "reason": None,
    }
    connection.execute(insert(attempts), attempt)
    started = {
        "job": job.id,
        "to_state": state.value,
        "why": None,
        "at_us": now_us,
        "again_us": None,
        "by": str(current_process()),
        "used": job.attempts_used + 1,
        "counts": "{}",
    }
    connection.execute(_MOVE, [started])
    return attempt


def failed(job: Row[Any], reason: str, now_us: int, *, lost: bool = False, permanent: bool = False) -> Move:
    """Return the event of an attempt that ended with an error: another one follows, or the job is given up."""
    policy = FOLLOWED if job.kind == STREAM else RetryPolicy(max_attempts=job.max_attempts)
    again = policy.next_attempt(from_us(now_us), max(job.attempts_used, 1), lost=lost, permanent=permanent)
    if again is None or job.state != JobState.RUNNING:
        return Move(job=job, event=JobEvent.GIVE_UP, reason=reason)
    return Move(job=job, event=JobEvent.FAIL, reason=reason, next_attempt_us=to_us(again))


def lose(
    connection: Connection,
    condition: ColumnElement[bool],
    reason: str,
    now_us: int,
    is_lost: Callable[[Row[Any]], bool] = lambda _: True,
) -> tuple[str, ...]:
    """End the attempts under way, of jobs that meet a condition, as lost with their process; return the jobs' ids."""
    active = select(jobs).where(jobs.c.state.in_(ACTIVE_STATES), jobs.c.process != NOBODY, condition)
    found = [row for row in connection.execute(active.order_by(jobs.c.sequence)) if is_lost(row)]
    lose_rows(connection, found, reason, now_us)
    return tuple(row.id for row in found)


def lose_rows(connection: Connection, rows: Iterable[Row[Any]], reason: str, now_us: int) -> None:
    """End the attempts of jobs as lost with their process."""
    carry_out(connection, [failed(row, reason, now_us, lost=True) for row in rows], now_us)
