"""What users write to declare feature views: `batch_feature_view` and `stream_feature_view`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, overload

from featurekit_dagster.domain.entity import Entity
from featurekit_dagster.domain.feature_view import (
    Aggregation,
    AggregationLeadingEdge,
    BatchTriggerType,
    DeltaConfig,
    FeatureView,
    StreamProcessingMode,
)
from featurekit_dagster.domain.offline_config import OfflineStoreConfig
from featurekit_dagster.domain.online_stores import OnlineStoreConfig
from featurekit_dagster.domain.publishing import PublishFeaturesConfig
from featurekit_dagster.domain.schema import DataType, Field
from featurekit_dagster.domain.sources import BatchSource, SourceRange
from featurekit_dagster.domain.stream_sources import StreamRange, StreamSource
from featurekit_dagster.domain.view_rules import resolve


def Attribute(name: str, dtype: DataType) -> Field:  # noqa: N802 - the spelling of the seeds' later versions
    """Return a plain feature: a typed column of the transformation's output."""
    return Field(name, dtype)


def batch_feature_view(
    *,
    mode: str,
    sources: Sequence[BatchSource | SourceRange],
    entities: Sequence[Entity],
    schema: Sequence[Field] | None = None,
    features: Sequence[Field | Aggregation] | None = None,
    aggregations: Sequence[Aggregation] | None = None,
    timestamp_field: str | None = None,
    name: str | None = None,
    aggregation_interval: timedelta | str | None = None,
    aggregation_secondary_key: str | None = None,
    batch_schedule: timedelta | str | None = None,
    feature_start_time: datetime | None = None,
    lifetime_start_time: datetime | None = None,
    online: bool = False,
    offline: bool = False,
    ttl: timedelta | str | None = None,
    batch_trigger: BatchTriggerType = BatchTriggerType.SCHEDULED,
    manual_trigger_backfill_end_time: datetime | None = None,
    max_backfill_interval: timedelta | str | None = None,
    incremental_backfills: bool = False,
    compaction_enabled: bool | None = None,
    batch_compaction_enabled: bool | None = None,
    online_serving_index: Sequence[str] | None = None,
    online_store: OnlineStoreConfig | None = None,
    offline_store: DeltaConfig | OfflineStoreConfig | None = None,
    publish_features_config: PublishFeaturesConfig | None = None,
    context_parameter_name: str | None = None,
    description: str | None = None,
    owner: str | None = None,
    tags: Mapping[str, str] | None = None,
    **other: Any,
) -> Callable[[Callable[..., Any]], FeatureView]:
    """Declare a batch feature view; decorates its transformation.

    The function takes one parameter per source, in order, and may take one more that receives the
    `MaterializationContext`: the one whose default value is `materialization_context()`, or the one named by
    `context_parameter_name`. Its rows are cut to `[start, end)` of the interval by their timestamp.

    Args:
        mode: `"pandas"`, `"polars"`, `"sql"` (the function returns a DuckDB query; its parameters are relation names),
            or `"python"` (the function takes one row of one source as a dict, and returns a dict, or None to leave the
            row out).
        sources: A plain `BatchSource` is handed over whole; `FilteredSource(...)` and `select_range(...)` cut it.
        entities: What the features describe; their join keys must be columns of the output.
        schema: Typed columns of the output: join keys, timestamp and feature columns.
        features: Instead of `schema` and `aggregations`: only `Attribute`s, or only `Aggregate`s; join keys are then
            typed by their entities.
        aggregations: Aggregate features over columns of the schema; they need `aggregation_interval`, but for
            `compaction_enabled`.
        timestamp_field: Event time column; may be left out when the schema has exactly one Timestamp that is no join
            key.
        name: The view's name; the function's by default.
        aggregation_interval: Tile size of aggregates; divides `batch_schedule`. With `compaction_enabled` it is no more
            than the default of `batch_schedule`.
        aggregation_secondary_key: A String column of the output that is no join key; each feature becomes an array of
            answers, one per value of it with events in the window, beside an array of the values.
        batch_schedule: Width of one interval, aligned to the Unix epoch; `aggregation_interval` by default.
        feature_start_time: First instant of features, naive is UTC; required when `online` or `offline`.
        lifetime_start_time: First instant that counts in a `LifetimeWindow`, naive is UTC; on the grid of
            `aggregation_interval`.
        online: Whether the online store is written.
        offline: Whether the offline store is written.
        ttl: How long a row may be served; None is for ever. Plain features only.
        batch_trigger: MANUAL leaves all jobs to people and other systems.
        manual_trigger_backfill_end_time: With MANUAL, the end of an automatic backfill from `feature_start_time`.
        max_backfill_interval: Longest range of one backfill job; a multiple of `batch_schedule`.
        incremental_backfills: One query and one job per interval instead of one for a whole range.
        compaction_enabled: Whether events are stored one by one instead of in tiles, so that windows begin and end at
            their exact times, and feature names leave the interval out. Offline only.
        batch_compaction_enabled: Old name of `compaction_enabled`.
        online_serving_index: Join keys that an online read has to give; at most one may be left out.
        online_store: `RedisConfig` or `DynamoConfig`; the workspace's store by default.
        offline_store: Layout of the offline table, and whether full features are published.
        publish_features_config: Publishes full features in the warehouse after each materialization.
        context_parameter_name: The parameter that receives the context.
        description: What the features are.
        owner: Who maintains the view.
        tags: Key-value pairs for people.
        **other: Refused, each with what to do instead.

    Returns:
        A decorator that turns the function into a `FeatureView`.

    Raises:
        DeclarationError: One or more rules are broken; all of them are listed.

    Source: Manually Trigger Materialization; Custom ETL Features with Incremental Backfills.
    """
    given = dict(locals())

    def declare(function: Callable[..., Any]) -> FeatureView:
        return FeatureView(**resolve(function, given))

    return declare


@overload
def stream_feature_view(
    *, source: StreamSource | StreamRange, entities: Sequence[Entity], mode: str, **arguments: Any
) -> Callable[[Callable[..., Any]], FeatureView]: ...
@overload
def stream_feature_view(
    *, source: StreamSource | StreamRange, entities: Sequence[Entity], mode: None = None, **arguments: Any
) -> FeatureView: ...
def stream_feature_view(
    *,
    source: StreamSource | StreamRange,
    entities: Sequence[Entity],
    mode: str | None = None,
    schema: Sequence[Field] | None = None,
    features: Sequence[Field | Aggregation] | None = None,
    aggregations: Sequence[Aggregation] | None = None,
    timestamp_field: str | None = None,
    name: str | None = None,
    aggregation_interval: timedelta | str | None = None,
    aggregation_secondary_key: str | None = None,
    stream_processing_mode: StreamProcessingMode | None = None,
    aggregation_leading_edge: AggregationLeadingEdge | None = None,
    batch_schedule: timedelta | str | None = None,
    feature_start_time: datetime | None = None,
    lifetime_start_time: datetime | None = None,
    online: bool = False,
    offline: bool = False,
    ttl: timedelta | str | None = None,
    batch_trigger: BatchTriggerType | None = None,
    manual_trigger_backfill_end_time: datetime | None = None,
    max_backfill_interval: timedelta | str | None = None,
    compaction_enabled: bool | None = None,
    batch_compaction_enabled: bool | None = None,
    expected_feature_freshness: timedelta | str | None = None,
    online_serving_index: Sequence[str] | None = None,
    online_store: OnlineStoreConfig | None = None,
    offline_store: DeltaConfig | OfflineStoreConfig | None = None,
    publish_features_config: PublishFeaturesConfig | None = None,
    context_parameter_name: str | None = None,
    description: str | None = None,
    owner: str | None = None,
    tags: Mapping[str, str] | None = None,
    **other: Any,
) -> FeatureView | Callable[[Callable[..., Any]], FeatureView]:
    """Declare a stream feature view; decorates its transformation, or stands alone where there is none.

    Batch jobs and historical reads apply the transformation to the batch side of the source, cut to the interval. Rows
    and windows are seen at the instant asked for, whatever the schedule of batch jobs: an event with the timestamp `t`
    counts at `t`, or, in tiles, from the end of its tile on.

    Args:
        source: A `StreamSource`; `FilteredSource(...)` of one hands over more of its batch side.
        entities: As in `batch_feature_view`, as all arguments that are not named here.
        mode: As in `batch_feature_view`. None: there is no function, the declared columns of the rows pass through
            unchanged, and the call returns the view; `name` is then required.
        schema: As in `batch_feature_view`.
        features: As in `batch_feature_view`.
        aggregations: As in `batch_feature_view`.
        timestamp_field: As in `batch_feature_view`.
        name: As in `batch_feature_view`.
        aggregation_interval: Tile size; required in `TIME_INTERVAL` mode, and refused in `CONTINUOUS` mode.
        aggregation_secondary_key: As in `batch_feature_view`.
        stream_processing_mode: `TIME_INTERVAL`: windows are `[edge - size, edge)` with the end of the last whole tile
            as edge. `CONTINUOUS`: windows are `(t - size, t]`. By default `CONTINUOUS` for push sources and with
            `compaction_enabled`, else `TIME_INTERVAL` for aggregates.
        aggregation_leading_edge: Where windows end when read online; `WALL_CLOCK_TIME` by default.
        batch_schedule: Width of one interval of batch jobs; one day by default in `CONTINUOUS` mode, and
            `aggregation_interval` in tiles.
        feature_start_time: As in `batch_feature_view`.
        lifetime_start_time: As in `batch_feature_view`.
        online: Refused by this version.
        offline: As in `batch_feature_view`.
        ttl: As in `batch_feature_view`.
        batch_trigger: `SCHEDULED` by default; `NO_BATCH_MATERIALIZATION` for a push source without `batch_config`.
        manual_trigger_backfill_end_time: As in `batch_feature_view`.
        max_backfill_interval: As in `batch_feature_view`.
        compaction_enabled: As in `batch_feature_view`; there can be no `aggregation_interval` then.
        batch_compaction_enabled: Old name of `compaction_enabled`.
        expected_feature_freshness: How old the newest event, or in tiles the end of its tile, may get before the asset
            check `fresh` fails; None has no such check. Online only; at least twice the `aggregation_interval`.
        online_serving_index: As in `batch_feature_view`.
        offline_store: As in `batch_feature_view`.
        online_store: As in `batch_feature_view`.
        publish_features_config: As in `batch_feature_view`.
        context_parameter_name: As in `batch_feature_view`.
        description: As in `batch_feature_view`.
        owner: As in `batch_feature_view`.
        tags: As in `batch_feature_view`.
        **other: Refused, each with what to do instead.

    Returns:
        The view without a `mode`, else a decorator that turns the function into one.

    Raises:
        DeclarationError: One or more rules are broken; all of them are listed.
    """
    given = {**locals(), "is_stream": True}

    def declare(function: Callable[..., Any]) -> FeatureView:
        return FeatureView(**resolve(function, given))

    return FeatureView(**resolve(None, given)) if mode is None else declare
