"""Feature tables: features that are made elsewhere and handed over row by row, by `ingest`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from featurekit_dagster.domain.entity import Entity
from featurekit_dagster.domain.feature_view import BatchTriggerType, DeltaConfig, FeatureView
from featurekit_dagster.domain.online_stores import OnlineStoreConfig
from featurekit_dagster.domain.schema import Field
from featurekit_dagster.domain.view_rules import resolve_table

_NOT_TAKEN: Mapping[str, Any] = {
    "aggregations": None,
    "aggregation_interval": None,
    "aggregation_secondary_key": None,
    "batch_schedule": None,
    "batch_trigger": BatchTriggerType.NO_BATCH_MATERIALIZATION,
    "batch_compaction_enabled": None,
    "compaction_enabled": None,
    "context_parameter_name": None,
    "feature_start_time": None,
    "lifetime_start_time": None,
    "manual_trigger_backfill_end_time": None,
    "max_backfill_interval": None,
    "mode": None,
}
"""What only views take that are computed; whoever gives one of them to a table is told why not."""


def FeatureTable(  # noqa: N802 - the spelling of the service that is followed
    *,
    name: str,
    entities: Sequence[Entity],
    features: Sequence[Field] | None = None,
    schema: Sequence[Field] | None = None,
    timestamp_field: str | None = None,
    ttl: timedelta | str | None = None,
    online: bool = False,
    offline: bool = False,
    online_serving_index: Sequence[str] | None = None,
    offline_store: DeltaConfig | None = None,
    online_store: OnlineStoreConfig | None = None,
    description: str | None = None,
    owner: str | None = None,
    tags: Mapping[str, str] | None = None,
    **other: Any,
) -> FeatureView:
    """Declare a feature table: plain features without source, transformation or schedule, filled by `ingest`.

    It is read as a feature view is, and feature services take it as one. A row is seen from its own timestamp on, and
    with a `ttl` until `timestamp + ttl`. What was ingested is all there is: reads never meet a gap.

    Args:
        name: The table's name, unique among tables and feature views.
        entities: What the features describe; their join keys are columns of the rows.
        features: `Attribute`s, the typed features; join keys are then typed by their entities.
        schema: Instead of `features`: all columns, typed: join keys, timestamp and features.
        timestamp_field: The column of times; may be left out when `schema` has exactly one Timestamp that is no join
            key.
        ttl: How long a row may be served; None is for ever.
        online: Whether rows are kept in the online store: of each join key the newest.
        offline: Whether rows are kept in the offline store: all of them.
        online_serving_index: Join keys that an online read has to give; at most one may be left out.
        offline_store: Layout of the offline table.
        online_store: `RedisConfig` or `DynamoConfig`; the workspace's store by default.
        description: What the features are.
        owner: Who maintains the table.
        tags: Key-value pairs for people.
        **other: Refused, each with what to do instead.

    Returns:
        The table, as a `FeatureView` whose `is_table` is True.

    Raises:
        DeclarationError: One or more rules are broken; all of them are listed.
    """
    given = {**_NOT_TAKEN, **locals(), "is_table": True}
    return FeatureView(**resolve_table(given))
