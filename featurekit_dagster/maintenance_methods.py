"""The methods of a feature view by which people maintain its offline table and refill its online store."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.errors import MaintenanceFailed
from featurekit_dagster.materialization_data import MaterializationJobData, job_data

if TYPE_CHECKING:
    from featurekit_dagster.sdk import Workspace
    from featurekit_dagster.stores.ledger_records import JobRecord


class MaintenanceMethods:
    """What a feature view of a workspace offers for the upkeep of its stores.

    Source: Job Types, Delta Maintenance.
    """

    _workspace: Workspace
    declaration: FeatureView

    def maintain(self, retention: timedelta = timedelta(days=7)) -> list[MaterializationJobData]:
        """Tidy the offline table in this process, as the weekly job does, and return the jobs that tell of it.

        Partitions that were written in parts since the last time get few sorted files, files that newer ones replaced
        before the retention are deleted, and so are columns and generations that nothing uses any more. No row changes.

        Args:
            retention: How long replaced files are kept, whole hours; a read that lasts longer fails.

        Raises:
            MaintenanceFailed: It was not finished; doing it again goes on.
            TectonValidationError: The retention is negative.
        """
        from featurekit_dagster.orchestration.maintenance import maintain_in_process
        from featurekit_dagster.orchestration.run import failure_text, open_instance

        jobs: list[JobRecord] = []
        with open_instance(self._workspace) as instance:
            result = maintain_in_process(
                self._workspace, [self.declaration.name], instance, retention, on_job=jobs.append
            )
        failure = failure_text(result)
        if failure is not None:
            raise MaintenanceFailed(reason=failure)
        return [job_data(job, self._workspace.dagster_url) for job in jobs]

    def refill_online(self) -> list[MaterializationJobData]:
        """Ask for the online store to be filled with what it lacks of the offline store; return the jobs, which wait.

        For a store that was emptied, or that the view was moved to. The ledger is first told what the store really has.
        `wait_for_materialization_job` waits for a job.

        Raises:
            NothingToRefillFrom: The view does not write both stores.
            LeaseHeld: A job is writing the view.
            ChangedDeclaration: The view was changed since it was materialized, so that a person has to decide.
        """
        from featurekit_dagster.execution.refill import look_for_gaps, queue_refill

        stores = self._workspace.stores
        missing = look_for_gaps(self.declaration, stores).missing
        jobs = queue_refill(self.declaration, stores, missing)
        return [job_data(job, self._workspace.dagster_url) for job in jobs]
