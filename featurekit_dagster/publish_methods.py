"""What a feature view of a workspace offers about its table in the warehouse."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.intervals import Interval, as_utc
from featurekit_dagster.job_waiting import wait_for_job
from featurekit_dagster.materialization_arguments import check_times
from featurekit_dagster.materialization_data import MaterializationJobData, job_data

if TYPE_CHECKING:
    from featurekit_dagster.sdk import Workspace


class PublishMethods:
    """What a feature view of a workspace offers about its table in the warehouse.

    Source: Job Types, Feature Publish.
    """

    _workspace: Workspace
    declaration: FeatureView

    @property
    def published_features_path(self) -> str | None:
        """Where full features are published, `<warehouse>#<schema>.<view>`; None of a view that is not published."""
        from featurekit_dagster.execution.publish import path_of

        return path_of(self.declaration, self._workspace.stores)

    def publish(
        self, start_time: datetime | None = None, end_time: datetime | None = None
    ) -> list[MaterializationJobData]:
        """Publish full features in the warehouse, and return the jobs that did it when they have succeeded.

        Without a range it is what is materialized and not published yet; a range is published again. Without a daemon
        it is done in this process.

        Args:
            start_time: First instant of event time, naive is UTC; the beginning of the history by default.
            end_time: First instant after, naive is UTC; now by default.

        Raises:
            JobFailedException: It was not published.
            NotPublished: The view is not declared to be published.
            NothingToPublish: Nothing of the range can be.
            WrongJobArgument: A time is none.
        """
        from featurekit_dagster.execution.publish import queue_missing, queue_range

        view, stores = self.declaration, self._workspace.stores
        given = {"start_time": start_time, "end_time": end_time}
        check_times(view.name, **{name: time for name, time in given.items() if time is not None})
        if start_time is None and end_time is None:
            jobs = queue_missing(view, stores, trigger="manual")
        else:
            first = view.materialization_start if start_time is None else as_utc(start_time)
            last = self._workspace.now() if end_time is None else as_utc(end_time)
            jobs = [queue_range(view, stores, Interval(first or last, last), trigger="manual")]
        done = [wait_for_job(self._workspace, job.id, None) for job in jobs]
        return [job_data(job, self._workspace.dagster_url) for job in done]
