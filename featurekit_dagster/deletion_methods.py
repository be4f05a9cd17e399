"""The methods of a feature view by which people delete join keys and follow that."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.errors import NotFoundError
from featurekit_dagster.job_waiting import wait_for_job
from featurekit_dagster.materialization_arguments import check_timeout
from featurekit_dagster.materialization_data import MaterializationJobData, job_data, status_frame
from featurekit_dagster.stores.ledger_records import DELETION, JobRecord

if TYPE_CHECKING:
    import pandas as pd

    from featurekit_dagster.sdk import Workspace


class DeletionMethods:
    """What a feature view or feature table of a workspace offers to delete join keys.

    Source: SDK page, delete_keys, deletion_status.
    """

    _workspace: Workspace
    declaration: FeatureView

    def delete_keys(
        self,
        keys: Any,
        online: bool = True,
        offline: bool = True,
        *,
        permanent: bool = False,
        vacuum: bool = False,
    ) -> list[str]:
        """Delete join keys from the stores and return the ids of the jobs that do it; reads do not find them at once.

        All rows of the keys up to now go, the tile that now is in among them, and neither a backfill nor an overwrite,
        a stream or an ingest brings them back. What happens to a key later is stored again, but not after a permanent
        deletion. `wait_for_deletion_job` waits for the end of a job. The source stays as it is.

        Args:
            keys: pandas, polars or Arrow frame with exactly the join keys, 10,000 rows at most.
            online: Whether they are deleted from the online store.
            offline: Whether they are deleted from the offline store, and from what is published of it.
            permanent: Whether what comes later of them is refused, too.
            vacuum: Whether the job deletes the files that held the rows at once, instead of leaving that to maintenance
                seven days later. Reads of the table that are under way then, and former versions of it, fail.

        Returns:
            The ids of the jobs; none where nothing was ever materialized in these stores.

        Raises:
            KeysRefused: Neither store is named, or the frame does not fit; all faults are listed.
            TectonValidationError: It is no frame, or column names repeat.

        Source: SDK page, delete_keys.
        """
        from featurekit_dagster.execution.deletion_request import request_deletion

        job = request_deletion(
            self.declaration,
            keys,
            self._workspace.stores,
            online=online,
            offline=offline,
            permanent=permanent,
            vacuum=vacuum,
        )
        return [] if job is None else [job.id]

    def wait_for_deletion_job(self, job_id: str, timeout: timedelta | None = None) -> MaterializationJobData:
        """Return a job when it has succeeded; without a daemon to start it, it is carried out in this process.

        Its `stats` say per store how many rows are gone, how many files were written again and how large they are, and
        in how many datasets there is a row of a key. `featurekit deletion-status` names these.

        Args:
            job_id: The job.
            timeout: How long to wait; None is for ever.

        Raises:
            JobFailedException: The job is in any state but RUNNING and SUCCESS.
            JobTimeoutException: The time is over; the job goes on.
            NotFoundError: There is no such job.
        """
        check_timeout(self.declaration.name, timeout)
        if job_id not in {job.id for job in self._deletions()}:
            newest = [job.id for job in self._deletions()[:5]]
            raise NotFoundError(kind=f"deletion job of {self.declaration.name}", name=job_id, known=newest)
        return job_data(wait_for_job(self._workspace, job_id, timeout), self._workspace.dagster_url)

    def allow_keys(self, keys: Any) -> int:
        """Let deleted join keys be stored again when they are next written, and return how many were deleted.

        What was deleted does not come back by itself: an overwrite of the past does that, as far as the source has it.

        Args:
            keys: As for `delete_keys`.

        Raises:
            KeysRefused: The frame does not fit, or a job has yet to delete rows of a key; all faults are listed.
            TectonValidationError: It is no frame, or column names repeat.
        """
        from featurekit_dagster.execution.deletion_request import allow

        return allow(self.declaration, keys, self._workspace.stores)

    def deletion_status(
        self, verbose: bool = False, limit: int = 1000, sort_columns: str | None = None, errors_only: bool = False
    ) -> pd.DataFrame:
        """Return the deletion jobs as a frame: one row per attempt, and one per job that waits for its first.

        Args:
            verbose: Whether to show the columns that help to find errors.
            limit: At most so many rows; counted before `errors_only`, so that fewer may be shown than there are.
            sort_columns: Names of columns, separated by commas, in whatever case; ascending.
            errors_only: Keep only attempts that ended with an error.

        Raises:
            TectonValidationError: A column to sort by does not exist.

        Source: SDK page, deletion_status.
        """
        return status_frame(
            self._deletions(),
            [],
            self._workspace.dagster_url,
            verbose=verbose,
            limit=limit,
            sort_columns=sort_columns,
            errors_only=errors_only,
        )

    def _deletions(self) -> list[JobRecord]:
        """Return the deletion jobs of the view, newest first."""
        return [job for job in self._workspace.jobs(self.declaration.name) if job.kind == DELETION]
