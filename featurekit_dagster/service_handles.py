"""Feature services of a workspace, as people use them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from featurekit_dagster.dataset_handles import DatasetJob, DatasetOrigin, saved
from featurekit_dagster.domain.feature_service import FeatureService
from featurekit_dagster.errors import ReadError
from featurekit_dagster.materialization_data import MaterializationJobData, job_data
from featurekit_dagster.serving.frame import FeatureFrame
from featurekit_dagster.serving.historical import features_for_spine
from featurekit_dagster.serving.online import OnlineReader
from featurekit_dagster.serving.vector import FeatureVector

if TYPE_CHECKING:
    from featurekit_dagster.sdk import Workspace


class FeatureServiceHandle:
    """A feature service of a workspace."""

    def __init__(self, workspace: Workspace, service: FeatureService) -> None:
        self._workspace = workspace
        self.declaration = service
        self._reader: OnlineReader | None = None

    def __repr__(self) -> str:
        return f"<feature service {self.name!r} of workspace {self._workspace.name!r}>"

    @property
    def name(self) -> str:
        """Name of the service."""
        return self.declaration.name

    @property
    def join_keys(self) -> list[str]:
        """Every column that a read has to give."""
        return list(self.declaration.join_keys)

    @property
    def features(self) -> list[str]:
        """Names of the features with their namespaces, `<namespace>__<feature>`."""
        return [f"{r.label}__{name}" for r in self.declaration.references for name in r.feature_names]

    def get_features_for_events(
        self,
        events: Any,
        timestamp_key: str | None = None,
        from_source: bool | None = None,
        *,
        allow_gaps: bool = False,
    ) -> FeatureFrame:
        """Return the events with the features of every view, as columns `<namespace>__<feature>`.

        Arguments and errors are those of `FeatureViewHandle.get_features_for_events`.
        """
        return self._for_spine(events, timestamp_key, from_source, "__", allow_gaps)

    def get_historical_features(
        self,
        spine: Any,
        timestamp_key: str | None = None,
        from_source: bool | None = False,
        save: bool = False,
        save_as: str | None = None,
        *,
        allow_gaps: bool = False,
    ) -> FeatureFrame:
        """Return the spine with the features of every view, as columns `<namespace>.<feature>`.

        Arguments and errors are those of `FeatureViewHandle.get_historical_features` with a spine.
        """
        frame = self._for_spine(spine, timestamp_key, from_source, ".", allow_gaps)
        return saved(frame, self.name, save=save, save_as=save_as)

    def create_dataset(
        self,
        name: str,
        spine: Any,
        timestamp_key: str | None = None,
        from_source: bool | None = None,
        *,
        allow_gaps: bool = False,
        bucket_rows: int | None = None,
        job_retry_times: int | None = None,
    ) -> DatasetJob:
        """Start a job that keeps a spine with the features of every view as a dataset.

        Arguments and errors are those of `FeatureViewHandle.create_dataset`.
        """
        origin = self._origin(spine, timestamp_key, from_source, "__").allowing(allow_gaps)
        return origin.start(name, bucket_rows=bucket_rows, job_retry_times=job_retry_times)

    def list_jobs(self) -> list[MaterializationJobData]:
        """Return the jobs that make datasets of this service's features, newest first.

        What its views are materialized by are jobs of the views.
        """
        of_no_view = [job_data(job, self._workspace.dagster_url) for job in self._workspace.jobs("")]
        return [job for job in of_no_view if job.feature_service == self.name]

    def get_online_features(
        self, join_keys: Mapping[str, Any], include_join_keys_in_response: bool = False
    ) -> FeatureVector:
        """Return the newest features of every view, named `<namespace>.<feature>`.

        A view with a wildcard join key that is not given answers with a list per feature, one element per stored key.

        Args:
            join_keys: Spine column to value, for every view of the service.
            include_join_keys_in_response: Whether the vector begins with the join keys.

        Raises:
            ReadError: Online serving is not enabled, or a join key is missing, unknown or of the wrong type.
        """
        if self._reader is None:
            if not self.declaration.online_serving_enabled:
                raise ReadError(f"feature service {self.name!r}: online_serving_enabled=False, so it serves no vectors")
            self._reader = OnlineReader(self.name, self.declaration.references, self._workspace.stores, qualified=True)
        return self._reader.one(join_keys, include_join_keys_in_response)

    def _for_spine(
        self, spine: Any, timestamp_key: str | None, from_source: bool | None, separator: str, allow_gaps: bool
    ) -> FeatureFrame:
        frame = features_for_spine(
            self.declaration.references,
            self._workspace.stores,
            spine,
            timestamp_key,
            from_source=from_source,
            separator=separator,
            allow_gaps=allow_gaps,
        )
        return frame.with_origin(self._origin(spine, timestamp_key, from_source, separator).allowing(allow_gaps))

    def _origin(self, spine: Any, timestamp_key: str | None, from_source: bool | None, separator: str) -> DatasetOrigin:
        workspace, references = self._workspace, self.declaration.references
        return DatasetOrigin.of_spine(
            workspace, references, spine, timestamp_key, from_source, separator, service=self.name
        )
