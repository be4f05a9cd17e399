"""A running job that is told to end or taken over: the ledger is watched, and what DuckDB computes is interrupted.

What runs in Python cannot be interrupted and is asked at the next step; a commit that has begun is finished.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import OperationalError

from featurekit_dagster.engine.duck import Interruptible, interruptible
from featurekit_dagster.errors import JobStateError, JobStopped, LeaseLost
from featurekit_dagster.planning.job_state import JobState
from featurekit_dagster.stores.ledger import Ledger
from featurekit_dagster.stores.ledger_leases import Lease

POLL_SECONDS = 1.0
_TOLD = (JobState.MANUAL_CANCELLATION_REQUESTED, JobState.DRAINING)


class StopWatch:
    """Whether one job was told to end, and whether it is still this process that does it.

    Args:
        ledger: Where the flag is.
        job_id: The job.
        lease: The lease under which it is done, if it is done under one.
        work: What computes for it.
    """

    def __init__(self, ledger: Ledger, job_id: str, lease: Lease | None, work: Interruptible) -> None:
        self._ledger, self._job_id, self._lease, self._work = ledger, job_id, lease, work
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"watch of job {job_id}", daemon=True)
        self.is_told = False

    def check(self) -> None:
        """Look at the flag now; called before everything that cannot be taken back.

        Raises:
            JobStopped: The job was told to end.
            LeaseLost: The lease was taken over.
            JobStateError: Somebody else has ended the attempt.
        """
        self.is_told = self._ledger.look(self._job_id, lease=self._lease) in _TOLD
        if self.is_told:
            raise JobStopped(job_id=self._job_id)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def end(self) -> None:
        """Watch no longer."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            try:
                self.check()
            except (JobStopped, JobStateError, LeaseLost):
                self._work.interrupt()
                return
            except OperationalError:
                continue  # the ledger was busy for long; the next look is soon


@contextmanager
def stop_watch(ledger: Ledger, job_id: str, lease: Lease | None) -> Iterator[StopWatch]:
    """Watch a job's flag during the body of a `with`, and interrupt its DuckDB connections when it is set."""
    with interruptible() as work:
        watch = StopWatch(ledger, job_id, lease, work)
        watch.start()
        try:
            yield watch
        finally:
            watch.end()
