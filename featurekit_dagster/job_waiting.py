"""Waiting for a job of any kind; where no daemon would start it, it is carried out in this process."""

from __future__ import annotations

import time
import warnings
from datetime import timedelta
from typing import TYPE_CHECKING

from featurekit_dagster.domain.windows import format_duration
from featurekit_dagster.errors import EndlessJob, JobFailedException, JobTimeoutException
from featurekit_dagster.planning.job_state import JobState
from featurekit_dagster.stores.ledger_records import STREAM

if TYPE_CHECKING:
    from featurekit_dagster.sdk import Workspace
    from featurekit_dagster.stores.ledger_records import JobRecord

_FIRST_POLL_SECONDS, _LONGEST_POLL_SECONDS = 0.2, 10.0


def wait_for_job(workspace: Workspace, job_id: str, timeout: timedelta | None) -> JobRecord:
    """Return a job when it has succeeded.

    Args:
        workspace: The workspace.
        job_id: The job, which must be one of the workspace's.
        timeout: How long to wait; None is for ever. A job that is found successful late is returned all the same.

    Raises:
        JobFailedException: The job is in any state but RUNNING and SUCCESS.
        JobTimeoutException: The time is over; the job goes on.
        EndlessJob: It follows a stream.
        NotFoundError: There is no such job.
    """
    started, pause, said = time.monotonic(), _FIRST_POLL_SECONDS, False
    while True:
        job = workspace.stores.ledger.job(job_id)
        if job.state == JobState.SUCCESS:
            return job
        if job.kind == STREAM and job.state == JobState.RUNNING:
            raise EndlessJob(view=job.view, job_id=job.id)
        if job.next_attempt_at is not None and _run_without_daemon(workspace, job, said=said):
            said = True
            continue
        if job.state != JobState.RUNNING:
            raise JobFailedException(job_id=job_id, state=job.state, reason=job.reason)
        if timeout is not None and time.monotonic() - started > timeout.total_seconds():
            raise JobTimeoutException(job_id=job_id, state=job.state, waited=format_duration(timeout))
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_POLL_SECONDS)


def _run_without_daemon(workspace: Workspace, job: JobRecord, *, said: bool) -> bool:
    """Carry out a job that is due in this process where no daemon would; tell whether it was."""
    from featurekit_dagster.orchestration.run import has_daemon, open_instance, run_due

    if job.next_attempt_at is None or job.next_attempt_at > workspace.now():
        return False
    with open_instance(workspace) as instance:
        if has_daemon(instance):
            return False
        if not said:
            warnings.warn(
                f"{job.view or workspace.name}: no Dagster daemon gives a sign of life, so job {job.id} is carried out "
                "in this process; `dagster dev` or `dagster-daemon run` starts one",
                stacklevel=4,
            )
        return bool(run_due(workspace, instance, job.id))
