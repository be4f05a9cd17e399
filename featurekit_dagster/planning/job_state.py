"""The states of a job, what may happen to it, and when it is tried again. Pure: the ledger remembers, this decides.

One table says what every event does in every state; what it leaves out is refused. Beside it stands the retry policy:
how many attempts a job has and how long it waits between two of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType


class JobState(StrEnum):
    """The state of a job.

    Source: Job Types, Materialization Job States.
    """

    RUNNING = "RUNNING"
    DRAINING = "DRAINING"
    DRAINED = "DRAINED"
    MANUAL_RETRY = "MANUAL_RETRY"
    MANUAL_CANCELLATION_REQUESTED = "MANUAL_CANCELLATION_REQUESTED"
    MANUALLY_CANCELLED = "MANUALLY_CANCELLED"
    FAILURE = "FAILURE"
    SUCCESS = "SUCCESS"

    @property
    def is_final(self) -> bool:
        """Whether nothing more happens unless somebody asks for a retry."""
        return self in _FINAL


class JobEvent(StrEnum):
    """Something that happens to a job.

    `START`: an attempt begins. `SUCCEED`: it has written everything. `FAIL`: it ended with an error and there is an
    attempt left. `GIVE_UP`: it ended with an error and there is none, or the error is permanent. `STOP`: it ended
    because it was told to, or there was none when it would have been told. `CANCEL`, `DRAIN`, `RETRY`: somebody asks.
    """

    START = "START"
    SUCCEED = "SUCCEED"
    FAIL = "FAIL"
    GIVE_UP = "GIVE_UP"
    STOP = "STOP"
    CANCEL = "CANCEL"
    DRAIN = "DRAIN"
    RETRY = "RETRY"


_FINAL = frozenset({JobState.DRAINED, JobState.MANUALLY_CANCELLED, JobState.FAILURE, JobState.SUCCESS})
_S, _E = JobState, JobEvent

TRANSITIONS = MappingProxyType(
    {
        (_S.RUNNING, _E.START): _S.RUNNING,
        (_S.RUNNING, _E.SUCCEED): _S.SUCCESS,
        (_S.RUNNING, _E.FAIL): _S.RUNNING,
        (_S.RUNNING, _E.GIVE_UP): _S.FAILURE,
        # Nobody asked the ledger: its run was cancelled in Dagster, which is taken as a person's wish.
        (_S.RUNNING, _E.STOP): _S.MANUALLY_CANCELLED,
        (_S.RUNNING, _E.CANCEL): _S.MANUAL_CANCELLATION_REQUESTED,
        (_S.RUNNING, _E.DRAIN): _S.DRAINING,
        (_S.MANUAL_RETRY, _E.START): _S.RUNNING,
        (_S.MANUAL_RETRY, _E.STOP): _S.MANUALLY_CANCELLED,
        (_S.MANUAL_RETRY, _E.CANCEL): _S.MANUAL_CANCELLATION_REQUESTED,
        (_S.MANUAL_RETRY, _E.DRAIN): _S.DRAINING,
        (_S.MANUAL_RETRY, _E.RETRY): _S.MANUAL_RETRY,
        # The attempt had committed everything before it saw the request: what is covered is no longer cancelled.
        (_S.MANUAL_CANCELLATION_REQUESTED, _E.SUCCEED): _S.SUCCESS,
        (_S.MANUAL_CANCELLATION_REQUESTED, _E.FAIL): _S.MANUALLY_CANCELLED,
        (_S.MANUAL_CANCELLATION_REQUESTED, _E.GIVE_UP): _S.MANUALLY_CANCELLED,
        (_S.MANUAL_CANCELLATION_REQUESTED, _E.STOP): _S.MANUALLY_CANCELLED,
        (_S.MANUAL_CANCELLATION_REQUESTED, _E.CANCEL): _S.MANUAL_CANCELLATION_REQUESTED,
        (_S.MANUAL_CANCELLATION_REQUESTED, _E.DRAIN): _S.MANUAL_CANCELLATION_REQUESTED,
        (_S.DRAINING, _E.SUCCEED): _S.SUCCESS,
        (_S.DRAINING, _E.FAIL): _S.DRAINED,
        (_S.DRAINING, _E.GIVE_UP): _S.DRAINED,
        (_S.DRAINING, _E.STOP): _S.DRAINED,
        (_S.DRAINING, _E.CANCEL): _S.MANUAL_CANCELLATION_REQUESTED,
        (_S.DRAINING, _E.DRAIN): _S.DRAINING,
        # A final state is left by a retry alone; asking to end what has ended changes nothing.
        **{(state, _E.RETRY): _S.MANUAL_RETRY for state in _FINAL},
        **{(state, event): state for state in _FINAL for event in (_E.CANCEL, _E.DRAIN)},
    }
)
"""What each event makes of each state; a pair that is not in it is refused."""


def next_state(state: JobState, event: JobEvent) -> JobState | None:
    """Return the state after an event, or None where the event cannot happen in that state."""
    return TRANSITIONS.get((state, event))


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often a job is tried and how long it waits in between.

    Args:
        max_attempts: Attempts in all when they end with an error; 1 is no retry.
        max_lost: Attempts in all when their process was lost; such a loss is tried again at once.
        first_wait: Wait after the first failure; each further one waits twice as long.
        longest_wait: No wait is longer.

    Source: Manually Trigger Materialization (managed retries); figures of the reference service.
    """

    max_attempts: int = 10
    max_lost: int = 100
    first_wait: timedelta = timedelta(minutes=5)
    longest_wait: timedelta = timedelta(days=1)

    def next_attempt(self, now: datetime, attempts: int, *, lost: bool, permanent: bool) -> datetime | None:
        """Return when to try again, or None when the job is given up.

        Args:
            now: When the last attempt ended.
            attempts: How many there were since the last manual retry, at least one.
            lost: Whether its process was lost, rather than that it failed.
            permanent: Whether trying again cannot help.
        """
        if permanent or self.max_attempts <= 1:
            return None
        if lost:
            return now if attempts < self.max_lost else None
        if attempts >= self.max_attempts:
            return None
        return now + self.wait_after(attempts)

    def wait_after(self, failures: int) -> timedelta:
        """Return how long to wait after so many failures in a row, at least one."""
        doublings = min(failures - 1, 24)  # more than any longest wait has room for
        return min(self.first_wait * (1 << doublings), self.longest_wait)


MANAGED = RetryPolicy()
ONCE = RetryPolicy(max_attempts=1, max_lost=1)
_MANY = 1_000_000_000
FOLLOWED = RetryPolicy(
    max_attempts=_MANY, max_lost=_MANY, first_wait=timedelta(seconds=5), longest_wait=timedelta(minutes=5)
)
"""A stream is followed for ever."""
