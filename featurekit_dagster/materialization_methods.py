"""The methods of a feature view by which people trigger, watch, cancel and repeat materialization jobs."""

from __future__ import annotations

import warnings
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.errors import NotFoundError, WrongJobKind
from featurekit_dagster.execution.open_interval import queue_open_interval
from featurekit_dagster.execution.overwriting import overwrite_caution
from featurekit_dagster.job_waiting import wait_for_job
from featurekit_dagster.materialization_arguments import (
    check_flags,
    check_job_id,
    check_stores,
    check_timeout,
    check_times,
)
from featurekit_dagster.materialization_data import (
    MATERIALIZATION_KINDS,
    MaterializationJobData,
    job_data,
    status_frame,
)
from featurekit_dagster.planning.job_state import MANAGED, ONCE
from featurekit_dagster.planning.planner import check_interval, plan_view
from featurekit_dagster.planning.tasks import ONLINE

if TYPE_CHECKING:
    import pandas as pd

    from featurekit_dagster.intervals import Interval
    from featurekit_dagster.sdk import Workspace
    from featurekit_dagster.stores.ledger_records import JobRecord


class MaterializationMethods:
    """What a feature view of a workspace offers for its materialization jobs.

    Source: Manually Trigger Materialization; SDK page.
    """

    _workspace: Workspace
    declaration: FeatureView

    def trigger_materialization_job(
        self,
        start_time: datetime,
        end_time: datetime,
        online: bool,
        offline: bool,
        use_tecton_managed_retries: bool = True,
        overwrite: bool = False,
        *,
        managed_retries: bool | None = None,
    ) -> str:
        """Ask for a window to be materialized and return the id of its job; the job waits for its turn.

        It is started by the daemon; `wait_for_materialization_job` does it in this process where there is none.

        Args:
            start_time: First instant inside, on the epoch grid of `batch_schedule`; naive is UTC.
            end_time: First instant after, on the grid; at most the end of the last complete interval. An online job of
                a stream view may also be for just the current interval: it writes what there is up to now.
            online: Whether the online store is written.
            offline: Whether the offline store is written.
            use_tecton_managed_retries: Whether a failed attempt is followed by others: after 5 minutes, then twice as
                long each time, 10 attempts in all. A permanent error is not tried again.
            overwrite: Whether the window may replace what was materialized before: offline it is deleted and written
                again, online rows that are newer or equal are put in place.
            managed_retries: The same as `use_tecton_managed_retries`.

        Raises:
            WrongJobArgument: A time is no datetime, or a flag no boolean.
            PlanError: The window is off the grid, empty, before the materialization start or not complete yet, or the
                view does not write a chosen store.
            TooManyPartitions: The view is new and has more partitions than Dagster can take.
            ChangedDeclaration: The view was changed since it was materialized, so that a person has to decide.
            OverlappingMaterialization: The window overlaps a job that waits or runs, or, without `overwrite`, what is
                materialized in a chosen store.

        Source: Manually Trigger Materialization, Triggering a new materialization job.
        """
        view, workspace = self.declaration, self._workspace
        check_times(view.name, start_time=start_time, end_time=end_time)
        flags = {"online": online, "offline": offline, "overwrite": overwrite}
        wanted = use_tecton_managed_retries if managed_retries is None else managed_retries
        check_flags(view.name, **flags, use_tecton_managed_retries=wanted)
        alone = online and not offline and not overwrite
        interval = check_interval(view, start_time, end_time, workspace.now(), is_open=alone)
        check_stores(view, online=online, offline=offline)
        if interval.end > workspace.now():
            policy = MANAGED if wanted else ONCE
            return queue_open_interval(view, interval, workspace.stores, trigger="manual", policy=policy).id
        workspace.check_partitions([view])
        (job,) = workspace.stores.queue(
            view,
            [interval],
            online=online,
            offline=offline,
            overwrite=overwrite,
            trigger="manual",
            policy=MANAGED if wanted else ONCE,
        )
        if overwrite and online and (caution := self._caution(interval)):
            warnings.warn(caution, stacklevel=2)
        return job.id

    def wait_for_materialization_job(self, job_id: str, timeout: timedelta | None = None) -> MaterializationJobData:
        """Return a job when it has succeeded; without a daemon to start it, it is carried out in this process.

        Args:
            job_id: The job.
            timeout: How long to wait; None is for ever. A job that is found successful late is returned all the same.

        Raises:
            JobFailedException: The job is in any state but RUNNING and SUCCESS.
            JobTimeoutException: The time is over; the job goes on.
            EndlessJob: It follows a stream, so it never succeeds.
            NotFoundError: There is no such job.

        Source: Manually Trigger Materialization, Waiting for job completion.
        """
        check_timeout(self.declaration.name, timeout)
        self._materialization_job(job_id)
        return self._shown(wait_for_job(self._workspace, job_id, timeout))

    def get_materialization_job(self, job_id: str) -> MaterializationJobData:
        """Return a materialization job of this view.

        Raises:
            NotFoundError: The view has no such job.
            WrongJobKind: It is a job of another kind.
        """
        return self._shown(self._materialization_job(job_id))

    def list_materialization_jobs(self) -> list[MaterializationJobData]:
        """Return the materialization jobs of this view, newest first."""
        return [job for job in self.list_jobs() if job.job_type in MATERIALIZATION_KINDS]

    def get_job(self, job_id: str) -> MaterializationJobData:
        """Return a job of this view, of any kind.

        Raises:
            NotFoundError: The view has no such job.
        """
        return self._shown(self._job(job_id))

    def list_jobs(self) -> list[MaterializationJobData]:
        """Return the jobs of this view, of all kinds, newest first."""
        return [self._shown(job) for job in self._workspace.jobs(self.declaration.name)]

    def cancel_materialization_job(self, job_id: str) -> MaterializationJobData:
        """Ask for a job to be cancelled and return it; it is tried no more, and nothing fills its window by itself.

        A job that waits is cancelled at once. One that runs is MANUAL_CANCELLATION_REQUESTED until it has seen the
        request, then MANUALLY_CANCELLED. One that has ended is returned as it is.

        Raises:
            NotFoundError: The view has no such job.
            WrongJobKind: It is a job of another kind.

        Source: Manually Trigger Materialization, Canceling a materialization job.
        """
        self._materialization_job(job_id)
        return self._shown(self._workspace.stores.ledger.cancel(job_id))

    def retry_materialization_job(self, job_id: str) -> MaterializationJobData:
        """Ask for a job that has ended to be done again, with all its attempts, and return it.

        Raises:
            JobStateError: The job has not ended.
            OverlappingMaterialization: Another job has its window now.
            NotFoundError: The view has no such job.
            WrongJobKind: It is a job of another kind.

        Source: Job Types, Materialization Job States (MANUAL_RETRY).
        """
        self._materialization_job(job_id)
        return self._shown(self._workspace.stores.ledger.retry(job_id))

    def materialization_status(
        self, verbose: bool = False, limit: int = 1000, sort_columns: str | None = None, errors_only: bool = False
    ) -> pd.DataFrame:
        """Return the materialization jobs as a frame: one row per attempt, and one per job that waits for its first.

        Args:
            verbose: Whether to show the columns that help to find errors.
            limit: At most so many rows; counted before `errors_only`, so that fewer may be shown than there are.
            sort_columns: Names of columns, separated by commas, in whatever case; ascending.
            errors_only: Keep only attempts that ended with an error.

        Raises:
            TectonValidationError: A column to sort by does not exist.

        Source: SDK page, materialization_status.
        """
        view, workspace = self.declaration, self._workspace
        planned = [run.interval for run in plan_view(view, workspace.snapshot(), workspace.now()).runs]
        return status_frame(
            workspace.jobs(view.name),
            planned,
            workspace.dagster_url,
            verbose=verbose,
            limit=limit,
            sort_columns=sort_columns,
            errors_only=errors_only,
        )

    def _caution(self, interval: Interval) -> str | None:
        """Return what has to be said about an overwrite of the online store; None where nothing was written there."""
        view, workspace = self.declaration, self._workspace
        covered = workspace.stores.coverage(view, ONLINE)
        return overwrite_caution(view, interval, covered, workspace.jobs(view.name))

    def _materialization_job(self, job_id: str) -> JobRecord:
        """Return a materialization job of this view.

        Raises:
            NotFoundError: There is no such job, or it is another view's.
            WrongJobKind: It is a job of another kind.
        """
        job = self._job(job_id)
        if job.kind not in MATERIALIZATION_KINDS:
            raise WrongJobKind(view=job.view, job_id=job.id, kind=job.kind)
        return job

    def _job(self, job_id: str) -> JobRecord:
        """Return a job of this view.

        Raises:
            NotFoundError: There is no such job, or it is another view's.
        """
        workspace, view = self._workspace, self.declaration.name
        check_job_id(view, job_id)
        if workspace.stores.has_ledger:
            with suppress(NotFoundError):
                found = workspace.stores.ledger.job(job_id)
                if (found.workspace, found.view) == (workspace.name, view):
                    return found
        newest = [job.id for job in workspace.jobs(view)[:5]]
        raise NotFoundError(kind=f"job of {view}", name=job_id, known=newest)

    def _shown(self, job: JobRecord) -> MaterializationJobData:
        return job_data(job, self._workspace.dagster_url)
