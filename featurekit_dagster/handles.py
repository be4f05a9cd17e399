"""Feature views and services of a workspace, as people use them: every read, and what is known about them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from featurekit_dagster.deletion_methods import DeletionMethods
from featurekit_dagster.domain.aggregation import AggregateFeature, AggregationFunction
from featurekit_dagster.domain.feature_view import FeatureReference, FeatureView
from featurekit_dagster.errors import ReadError
from featurekit_dagster.intervals import Interval, as_utc
from featurekit_dagster.maintenance_methods import MaintenanceMethods
from featurekit_dagster.materialization_methods import MaterializationMethods
from featurekit_dagster.online_upkeep_methods import OnlineUpkeepMethods
from featurekit_dagster.planning.grid import last_complete_end
from featurekit_dagster.publish_methods import PublishMethods
from featurekit_dagster.reading_methods import ReadingMethods
from featurekit_dagster.serving.frame import FeatureFrame
from featurekit_dagster.serving.online import OnlineReader
from featurekit_dagster.serving.run import run_view
from featurekit_dagster.serving.vector import FeatureVector
from featurekit_dagster.stream_methods import StreamMethods
from featurekit_dagster.verification_methods import VerificationMethods

if TYPE_CHECKING:
    from featurekit_dagster.sdk import Workspace


class FeatureViewHandle(
    ReadingMethods,
    MaterializationMethods,
    MaintenanceMethods,
    StreamMethods,
    PublishMethods,
    OnlineUpkeepMethods,
    VerificationMethods,
    DeletionMethods,
):
    """A feature view of a workspace.

    Properties of the declaration are read through: `name`, `description`, `owner`, `tags`, `ttl`, `online`, `offline`,
    `batch_schedule`, `aggregation_interval`, `feature_start_time`, `timestamp_field`, `entities`, `sources`,
    `online_serving_index`, `wildcard_join_key`, `defined_in` and the others of `FeatureView`.

    Source: SDK page.
    """

    def __init__(self, workspace: Workspace, view: FeatureView) -> None:
        self._workspace = workspace
        self.declaration = view
        self._reader: OnlineReader | None = None

    def __repr__(self) -> str:
        return f"<feature view {self.name!r} of workspace {self.workspace!r}>"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "declaration":
            raise AttributeError(name)
        return getattr(self.declaration, name)

    def run_transformation(
        self, start_time: datetime, end_time: datetime, mock_inputs: Mapping[str, Any] | None = None
    ) -> FeatureFrame:
        """Return the transformation's rows with `start_time <= timestamp < end_time`.

        Args:
            start_time: First instant, naive is UTC.
            end_time: First instant after, naive is UTC.
            mock_inputs: Parameter to a frame that is used instead of its source.

        Raises:
            ReadError: The range is empty, or a mock has no parameter.
            TransformError: The transformation failed.
        """
        level = "disabled" if self.declaration.is_aggregate else None
        return FeatureFrame(run_view(self.declaration, self._interval(start_time, end_time), level, mock_inputs))

    def run(
        self,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        aggregation_level: str | None = None,
        mock_inputs: Mapping[str, Any] | None = None,
        **mock_sources: Any,
    ) -> FeatureFrame:
        """Run the view on a span of its sources or of given frames, storing nothing.

        Args:
            start_time: First instant; `end_time` minus one schedule by default, else the start of the last complete
                interval.
            end_time: First instant after; `start_time` plus one schedule by default, else the end of the last complete
                one.
            aggregation_level: `disabled`, `partial` or `full`, the default; not for views without aggregates, and
                `partial` not for views that store events.
            mock_inputs: Frames by the function's parameter; the other sources are read.
            **mock_sources: The same, one argument per parameter.

        Raises:
            ReadError: The level does not fit, a mock has no parameter, or the range is empty.
            TransformError: The transformation failed.

        Source: SDK page, run.
        """
        schedule = self.declaration.batch_schedule
        if end_time is None:
            end_time = (
                last_complete_end(self.declaration, self._workspace.now())
                if start_time is None
                else start_time + schedule
            )
        interval = self._interval(end_time - schedule if start_time is None else start_time, end_time)
        mocks = {**(mock_inputs or {}), **mock_sources}
        return FeatureFrame(run_view(self.declaration, interval, aggregation_level, mocks))

    def get_online_features(
        self, join_keys: Mapping[str, Any], include_join_keys_in_response: bool = False
    ) -> FeatureVector:
        """Return the newest features of one entity.

        Args:
            join_keys: Join key to value.
            include_join_keys_in_response: Whether the vector begins with the join keys.

        Raises:
            ReadError: The view is not online, or a join key is missing, unknown or of the wrong type.

        Source: SDK page, get_online_features.
        """
        return self.online_reader.one(join_keys, include_join_keys_in_response)

    def get_online_features_many(
        self, join_keys: Sequence[Mapping[str, Any]], include_join_keys_in_response: bool = False
    ) -> list[FeatureVector]:
        """Return the newest features of many entities, in order, all as of one moment.

        Args:
            join_keys: One mapping per entity.
            include_join_keys_in_response: Whether each vector begins with its join keys.

        Raises:
            ReadError: As in `get_online_features`.
        """
        return self.online_reader.many(join_keys, include_join_keys_in_response)

    @property
    def online_reader(self) -> OnlineReader:
        """The view's online reader, made at the first read."""
        if self._reader is None:
            reference = FeatureReference(view=self.declaration)
            self._reader = OnlineReader(self.name, (reference,), self._workspace.stores, qualified=False)
        return self._reader

    def summary(self) -> dict[str, Any]:
        """Return what is declared and known about the view, as a flat mapping of names to values."""
        names = (
            "name workspace description owner tags entity_names join_keys features aggregations "
            "aggregation_secondary_key aggregation_interval compaction_enabled lifetime_start_time is_stream "
            "stream_processing_mode timestamp_field feature_start_time batch_schedule ttl max_data_delay online "
            "offline online_serving_index wildcard_join_key created_at defined_in id url"
        )
        return {name: getattr(self, name) for name in names.split()}

    @property
    def id(self) -> str:
        """Stable identifier of the view in its workspace."""
        return uuid.uuid5(uuid.NAMESPACE_URL, f"featurekit:{self.workspace}/{self.name}").hex

    @property
    def workspace(self) -> str:
        """Name of the workspace."""
        return self._workspace.name

    @property
    def created_at(self) -> datetime:
        """When the workspace's ledger first saw the view."""
        return self._workspace.stores.ledger.register(self.workspace, self.name)

    @property
    def url(self) -> str:
        """The view's page in the Dagster UI."""
        return f"{self._workspace.dagster_url}/assets/{self.name}"

    @property
    def features(self) -> list[str]:
        """Names of the output features."""
        return list(self.declaration.feature_names)

    @property
    def aggregations(self) -> list[str]:
        """The aggregate features in words: `spent_7d: sum of amount over 7d`."""
        return [f"{feature.name}: {_in_words(feature)}" for feature in self.declaration.aggregates]

    @property
    def aggregation_secondary_key(self) -> str | None:
        """Name of the column by whose values each aggregate is broken down, or None."""
        key = self.declaration.secondary_key
        return None if key is None else key.name

    @property
    def join_keys(self) -> list[str]:
        """Names of the join keys."""
        return list(self.declaration.key_names)

    @property
    def entity_names(self) -> list[str]:
        """Names of the entities."""
        return [entity.name for entity in self.declaration.entities]

    @property
    def max_data_delay(self) -> timedelta:
        """Largest data delay of the sources."""
        return self.declaration.data_delay

    def get_feature_columns(self) -> list[str]:
        """Return the names of the output features."""
        return self.features

    def get_timestamp_field(self) -> str:
        """Return the name of the event time column."""
        return self.declaration.timestamp_field

    def _interval(self, start_time: datetime, end_time: datetime) -> Interval:
        if as_utc(start_time) >= as_utc(end_time):
            raise ReadError(f"{self.name}: start_time {start_time} is not before end_time {end_time}")
        return Interval(start_time, end_time)


def _in_words(feature: AggregateFeature) -> str:
    """Return what a feature is made of: `last_3 of page over 1d offset 1h`."""
    function = AggregationFunction(feature.function, feature.n, feature.precision, feature.percentile).label
    window = f"{feature.window.label}{feature.window.suffix}".replace("_", " ")
    return f"{function} of {feature.column.name} over {window}"
