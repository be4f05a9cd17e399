"""Feature views: the declaration of one set of features, as a value.

`batch_feature_view` (in `declarations`) gathers what the user wrote, `view_rules` checks it and finds every fault at
once, and `FeatureView` is what all other parts of the project read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum
from functools import cached_property
from typing import Any

from featurekit_dagster.domain.aggregation import (
    AggregateFeature,
    AggregationFunction,
    PartialColumn,
    distinct_spans,
    partial_columns,
    secondary_keys_name,
    time_columns,
)
from featurekit_dagster.domain.entity import Entity
from featurekit_dagster.domain.online_stores import OnlineStoreConfig
from featurekit_dagster.domain.publishing import PublishFeaturesConfig
from featurekit_dagster.domain.schema import Array, Field
from featurekit_dagster.domain.sources import BatchSource, SourceRange
from featurekit_dagster.domain.stream_sources import StreamSource
from featurekit_dagster.domain.windows import LifetimeWindow, Window
from featurekit_dagster.errors import DeclarationError
from featurekit_dagster.intervals import duration_us, floor_time

ANCHOR_TIME = "_anchor_time"
PASS_THROUGH, INGESTED = "pass_through", "ingested"
_ZERO = timedelta(0)


class BatchTriggerType(Enum):
    """Who starts batch jobs: the schedule, only people and other systems, or nobody (push sources without a batch one).

    Source: Manually Trigger Materialization, Disabling scheduled batch jobs for a Feature View.
    """

    SCHEDULED = "SCHEDULED"
    MANUAL = "MANUAL"
    NO_BATCH_MATERIALIZATION = "NO_BATCH_MATERIALIZATION"


class StreamProcessingMode(Enum):
    """Whether aggregates of a stream view move with every event, or at the end of each aggregation interval."""

    TIME_INTERVAL = "TIME_INTERVAL"
    CONTINUOUS = "CONTINUOUS"


class AggregationLeadingEdge(Enum):
    """Where windows of a stream view end when it is read online: at the clock, or at the newest event of the stream."""

    WALL_CLOCK_TIME = "WALL_CLOCK_TIME"
    LATEST_EVENT_TIME = "LATEST_EVENT_TIME"


@dataclass(frozen=True, slots=True)
class Aggregation:
    """One aggregate feature, with the type of its column taken from the view's schema.

    Args:
        column: A column of the transformation's output; a `Field` brings its own type.
        function: Name of the function, such as `"sum"`, or a function with parameters, such as `last(3)`.
        time_window: The span to look back over; a bare timedelta means `TimeWindow`.
        name: Replaces the whole generated feature name.

    Source: Manually Trigger Materialization, example of a feature view.
    """

    column: str | Field
    function: str | AggregationFunction
    time_window: Window | timedelta
    name: str | None = None


def Aggregate(  # noqa: N802 - the spelling of the seeds' later versions
    *,
    input_column: Field,
    function: str | AggregationFunction,
    time_window: Window | timedelta,
    name: str | None = None,
) -> Aggregation:
    """Return an aggregate feature in the spelling of later versions."""
    return Aggregation(input_column, function, time_window, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaConfig:
    """How the offline table is laid out.

    Args:
        time_partition_size: Width of one hive partition of the table; one day by default.
    """

    time_partition_size: timedelta = timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class FeatureView:
    """A checked declaration: every field is resolved, typed and consistent.

    Args:
        name: Unique in the workspace; also the asset key.
        function: The transformation; None where rows pass through unchanged.
        mode: `pandas`, `polars`, `python` or `sql`; `pass_through` without a function, `ingested` of a feature table.
        inputs: Parameter name to the source span it is handed, in the function's order.
        context_parameter: The parameter that receives the `MaterializationContext`, if any.
        entities: What the features describe.
        join_keys: Typed key columns, in the order of the entities.
        timestamp_field: Name of the event time column.
        columns: Every column the transformation must return, typed: join keys, timestamp, inputs of features.
        attributes: Plain features; empty for aggregate views.
        aggregates: Aggregate features; empty otherwise.
        aggregation_interval: Tile size of aggregate views that have tiles, else None.
        batch_schedule: Width of one batch interval.
        secondary_key: The column whose values each aggregate is broken down by, if any.
        lifetime_start_time: Where lifetime windows begin.
        compaction_enabled: Whether events are stored untiled, and names leave the interval out.
        is_stream: Whether the view follows a stream; its offline half then comes from the stream's batch source.
        stream_processing_mode: How a stream view follows its stream; None where it does not say.
        stream_source: The stream of a stream view; `inputs` then holds its batch side, if it has one.
        aggregation_leading_edge: Of a stream view with aggregates, else None.
        expected_feature_freshness: How old the newest event of a stream view may get; None where nobody has said.
        is_table: Whether it is a feature table: it has no transformation and no source, its rows are ingested.
        online_store: Where it is served from; None is the workspace's store.
        publish: Whether and from when on full features go to the warehouse; None where they do not.
    """

    name: str
    function: Callable[..., Any] | None
    mode: str
    inputs: Mapping[str, SourceRange]
    context_parameter: str | None
    entities: tuple[Entity, ...]
    join_keys: tuple[Field, ...]
    timestamp_field: str
    columns: tuple[Field, ...]
    attributes: tuple[Field, ...]
    aggregates: tuple[AggregateFeature, ...]
    aggregation_interval: timedelta | None
    batch_schedule: timedelta
    ttl: timedelta | None = None
    feature_start_time: datetime | None = None
    online: bool = False
    offline: bool = False
    batch_trigger: BatchTriggerType = BatchTriggerType.SCHEDULED
    manual_trigger_backfill_end_time: datetime | None = None
    max_backfill_interval: timedelta | None = None
    incremental_backfills: bool = False
    secondary_key: Field | None = None
    lifetime_start_time: datetime | None = None
    compaction_enabled: bool = False
    is_stream: bool = False
    stream_processing_mode: StreamProcessingMode | None = None
    stream_source: StreamSource | None = None
    aggregation_leading_edge: AggregationLeadingEdge | None = None
    expected_feature_freshness: timedelta | None = None
    is_table: bool = False
    online_serving_index: tuple[str, ...] = ()
    offline_store: DeltaConfig = DeltaConfig()
    online_store: OnlineStoreConfig | None = None
    publish: PublishFeaturesConfig | None = None
    description: str | None = None
    owner: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    defined_in: str | None = None

    def __hash__(self) -> int:
        return hash(self.name)

    def __getitem__(self, names: Sequence[str]) -> FeatureReference:
        """Return a reference to some of the features, for a feature service."""
        return FeatureReference(view=self)[names]

    def with_name(self, namespace: str) -> FeatureReference:
        """Return a reference whose features carry `namespace` instead of the view's name."""
        return FeatureReference(view=self, namespace=namespace)

    def with_join_key_map(self, join_key_map: Mapping[str, str]) -> FeatureReference:
        """Return a reference whose join keys are read from other spine columns (`{view key: spine column}`)."""
        return FeatureReference(view=self, join_key_map=dict(join_key_map))

    @property
    def is_aggregate(self) -> bool:
        """Whether features are aggregates over windows."""
        return bool(self.aggregates)

    @property
    def is_seen_at_once(self) -> bool:
        """Whether what is known of it is seen when it happens, not a batch interval later: streams, feature tables."""
        return self.is_stream or self.is_table

    @property
    def is_rewritten_online(self) -> bool:
        """Whether batch jobs of a stream view replace online what the stream has brought, so that it covers the rest.

        Source: semantics of `compaction_enabled`.
        """
        return self.is_stream and self.is_aggregate and self.compaction_enabled

    @property
    def is_continuous(self) -> bool:
        """Whether windows end at the very instant asked for instead of at the end of a tile."""
        return self.is_aggregate and self.stream_processing_mode is StreamProcessingMode.CONTINUOUS

    @property
    def is_tiled(self) -> bool:
        """Whether the offline store keeps tiles; an untiled aggregate view keeps its events."""
        return self.is_aggregate and not self.compaction_enabled and not self.is_continuous

    @property
    def tile_us(self) -> int | None:
        """Tile size in microseconds: 1 where every event is a tile of its own, None without aggregates."""
        if not self.is_aggregate:
            return None
        interval = self.aggregation_interval
        return duration_us(interval) if self.is_tiled and interval is not None else 1

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the output features: lists of secondary keys, then features in order of declaration."""
        return tuple(feature.name for feature in self.features)

    @property
    def features(self) -> tuple[Field, ...]:
        """The output features with their types."""
        if self.secondary_key is None:
            return tuple(Field(f.name, f.dtype) for f in self.aggregates) or self.attributes
        key = self.secondary_key
        listed = (Field(secondary_keys_name(key.name, s), Array(key.dtype)) for s in distinct_spans(self.aggregates))
        return (*listed, *(Field(f.name, Array(f.dtype)) for f in self.aggregates))

    @property
    def defaults(self) -> tuple[Any, ...]:
        """What each of `features` is where nothing is known of the key."""
        if self.secondary_key is not None:
            return tuple([] for _ in self.features)
        return tuple(f.default for f in self.aggregates) or (None,) * len(self.attributes)

    @cached_property
    def key_names(self) -> tuple[str, ...]:
        """Names of the join keys."""
        return tuple(key.name for key in self.join_keys)

    @cached_property
    def tile_keys(self) -> tuple[str, ...]:
        """What a stored tile or event is of: the join keys, and the secondary key if there is one."""
        return self.key_names if self.secondary_key is None else (*self.key_names, self.secondary_key.name)

    @cached_property
    def partials(self) -> tuple[PartialColumn, ...]:
        """Partial columns of a stored tile; empty for views without aggregates."""
        return partial_columns(self.aggregates)

    @cached_property
    def online_partials(self) -> tuple[PartialColumn, ...]:
        """Columns of a tile in the online store: `partials`, and the times of values where a stream adds to tiles."""
        partials = self.partials
        return (*partials, *time_columns(partials)) if self.is_stream and self.is_tiled else partials

    @property
    def sources(self) -> tuple[BatchSource, ...]:
        """The sources, each once."""
        return tuple(dict.fromkeys(used.source for used in self.inputs.values()))

    @property
    def data_delay(self) -> timedelta:
        """Largest data delay of the sources."""
        return max((source.data_delay for source in self.sources), default=_ZERO)

    @property
    def reach(self) -> timedelta:
        """How far before a right edge the widest window begins, lifetimes apart; zero without aggregates."""
        return max((feature.window.reach for feature in self.aggregates), default=_ZERO)

    @property
    def has_lifetime(self) -> bool:
        """Whether a window begins at `lifetime_start_time`."""
        return any(isinstance(feature.window, LifetimeWindow) for feature in self.aggregates)

    @property
    def materialization_start(self) -> datetime | None:
        """Start of the first interval to materialize, on the schedule's grid: where the widest window begins."""
        if self.feature_start_time is None:
            return None
        start = self.feature_start_time - self.reach
        if self.has_lifetime and self.lifetime_start_time is not None:
            start = min(start, self.lifetime_start_time)
        return floor_time(start, self.batch_schedule)

    @property
    def stored_time_column(self) -> str:
        """The time column of the offline table: tile start, or the row's own timestamp."""
        return ANCHOR_TIME if self.is_tiled else self.timestamp_field

    @property
    def wildcard_join_key(self) -> str | None:
        """The join key that the online serving index leaves out, or None."""
        left_out = [name for name in self.key_names if name not in self.online_serving_index]
        return left_out[0] if left_out else None


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureReference:
    """A view as a feature service uses it: some of its features, under a name, with its keys read from named columns.

    Args:
        view: The feature view.
        selected: Features to use; all of them when empty.
        namespace: Replaces the view's name in front of the features.
        join_key_map: View key to spine column; keys that are not named keep their own name.
    """

    view: FeatureView
    selected: tuple[str, ...] = ()
    namespace: str | None = None
    join_key_map: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, names: Sequence[str]) -> FeatureReference:
        """Return the same reference with only these features, one or several; their service checks the names.

        Raises:
            DeclarationError: It is no list of names, or an empty one.
        """
        selected = [names] if isinstance(names, str) else names
        if not isinstance(selected, list | tuple) or not selected or not all(isinstance(n, str) for n in selected):
            raise DeclarationError(
                subject=f"feature view {self.view.name!r}",
                faults=['features are selected by a list of their names, such as view[["a_feature"]]'],
            )
        return replace(self, selected=tuple(selected))

    def with_name(self, namespace: str) -> FeatureReference:
        """Return the same reference under another name."""
        return replace(self, namespace=namespace)

    def with_join_key_map(self, join_key_map: Mapping[str, str]) -> FeatureReference:
        """Return the same reference with its join keys read from other spine columns (`{view key: spine column}`)."""
        return replace(self, join_key_map=dict(join_key_map))

    @property
    def label(self) -> str:
        """What stands in front of the features."""
        return self.namespace or self.view.name

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The features it brings, in order."""
        return self.selected or self.view.feature_names

    @property
    def spine_keys(self) -> tuple[str, ...]:
        """The spine columns that hold the view's join keys, in the view's order."""
        return tuple(self.join_key_map.get(name, name) for name in self.view.key_names)
