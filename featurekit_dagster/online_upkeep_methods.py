"""The methods of a feature view by which people keep its records in the online store small."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.job_waiting import wait_for_job
from featurekit_dagster.materialization_data import MaterializationJobData, job_data
from featurekit_dagster.stores.ledger_records import COMPACTION, ONLINE_CLEAN_UP

if TYPE_CHECKING:
    from featurekit_dagster.sdk import Workspace


class OnlineUpkeepMethods:
    """What a feature view of a workspace offers for what it has online.

    Source: Job Types, Compaction.
    """

    _workspace: Workspace
    declaration: FeatureView

    def compact(self) -> MaterializationJobData | None:
        """Lay out the online tiles as large as the windows allow, trim them, and return the job when it is done.

        The Dagster job `compaction` does the same every day. No answer changes. Features whose windows were declared
        after the last compaction, and need smaller or older tiles than it left, are answered again afterwards.

        Returns:
            The job; None where nothing is online yet, or another process is at it.

        Raises:
            JobFailedException: It was not done; answers are as they were.
            NotKeptOnline: The view has no aggregates online.
        """
        return self._keep(COMPACTION)

    def clean_up_online(self) -> MaterializationJobData | None:
        """Remove expired rows, or tiles that no window reaches any more, and return the job when it is done.

        The Dagster job `online_clean_up` does the same every day. No answer changes, and the history stays.

        Returns:
            The job; None where nothing is online yet, or another process is at it.

        Raises:
            JobFailedException: It was not done to the end; the rest is done the next time.
            NotKeptOnline: The view is not online, or what it has there never expires.
        """
        return self._keep(ONLINE_CLEAN_UP)

    def _keep(self, kind: str) -> MaterializationJobData | None:
        from featurekit_dagster.orchestration.compaction import queue_upkeep

        workspace = self._workspace
        for job in queue_upkeep(kind, workspace, workspace.stores, [self.declaration.name], "manual"):
            return job_data(wait_for_job(workspace, job.id, None), workspace.dagster_url)
        return None
