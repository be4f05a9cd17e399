"""The decorator that users write: `batch_feature_view`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from featurekit_dagster.domain.entity import Entity
from featurekit_dagster.domain.feature_view import Aggregation, BatchTriggerType, DeltaConfig, FeatureView
from featurekit_dagster.domain.schema import DataType, Field
from featurekit_dagster.domain.sources import BatchSource, SourceRange
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
    batch_schedule: timedelta | str | None = None,
    feature_start_time: datetime | None = None,
    online: bool = False,
    offline: bool = False,
    ttl: timedelta | str | None = None,
    batch_trigger: BatchTriggerType = BatchTriggerType.SCHEDULED,
    manual_trigger_backfill_end_time: datetime | None = None,
    max_backfill_interval: timedelta | str | None = None,
    incremental_backfills: bool = False,
    online_serving_index: Sequence[str] | None = None,
    offline_store: DeltaConfig | None = None,
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
        mode: `"pandas"`, `"polars"`, or `"sql"` (the function returns a DuckDB query; its parameters are relation
            names).
        sources: A plain `BatchSource` is handed over whole; `FilteredSource(...)` and `select_range(...)` cut it.
        entities: What the features describe; their join keys must be columns of the output.
        schema: Typed columns of the output: join keys, timestamp and feature columns.
        features: Instead of `schema` and `aggregations`: only `Attribute`s, or only `Aggregate`s; join keys are then
            typed by their entities.
        aggregations: Aggregate features over columns of the schema; they need `aggregation_interval`.
        timestamp_field: Event time column; may be left out when the schema has exactly one Timestamp that is no join
            key.
        name: The view's name; the function's by default.
        aggregation_interval: Tile size of aggregates; divides `batch_schedule`.
        batch_schedule: Width of one interval, aligned to the Unix epoch; `aggregation_interval` by default.
        feature_start_time: First instant of features, naive is UTC; required when `online` or `offline`.
        online: Whether the online store is written.
        offline: Whether the offline store is written.
        ttl: How long a row may be served; None is for ever. Plain features only.
        batch_trigger: MANUAL leaves all jobs to people and other systems.
        manual_trigger_backfill_end_time: With MANUAL, the end of an automatic backfill from `feature_start_time`.
        max_backfill_interval: Longest range of one backfill job; a multiple of `batch_schedule`.
        incremental_backfills: One query and one job per interval instead of one for a whole range.
        online_serving_index: Join keys that an online read has to give; at most one may be left out.
        offline_store: Layout of the offline table.
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
