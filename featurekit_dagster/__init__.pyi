from .domain.aggregation_functions import (
    approx_count_distinct,
    approx_percentile,
    first,
    first_distinct,
    last,
    last_distinct,
)
from .domain.context import MaterializationContext, materialization_context
from .domain.declarations import Attribute, batch_feature_view, stream_feature_view
from .domain.entity import Entity
from .domain.feature_service import FeatureService
from .domain.feature_table import FeatureTable
from .domain.feature_view import (
    Aggregate,
    Aggregation,
    AggregationLeadingEdge,
    BatchTriggerType,
    DeltaConfig,
    FeatureView,
    StreamProcessingMode,
)
from .domain.offline_config import OfflineStoreConfig
from .domain.online_stores import DynamoConfig, RedisConfig
from .domain.publishing import PublishFeaturesConfig
from .domain.schema import (
    Array,
    Bool,
    Bytes,
    Field,
    Float32,
    Float64,
    Int32,
    Int64,
    Map,
    String,
    Struct,
    Timestamp,
)
from .domain.sources import (
    BatchSource,
    DatetimePartitionColumn,
    DeltaTableConfig,
    FileConfig,
    FilteredSource,
    HiveSource,
    SqlConfig,
    TectonTimeConstant,
    pandas_batch_config,
)
from .domain.stream_sources import KafkaConfig, KinesisConfig, PushConfig, RedisStreamConfig, StreamSource
from .domain.windows import LifetimeWindow, TimeWindow, TimeWindowSeries
from .errors import (
    DeclarationError,
    FeatureKitError,
    NotFoundError,
    NotMaterialized,
    OverlappingMaterialization,
    TectonValidationError,
)
from .sdk import Workspace, get_workspace
from .serving.vector import FeatureVector

__all__ = [
    "Aggregate",
    "Aggregation",
    "AggregationLeadingEdge",
    "Array",
    "Attribute",
    "BatchSource",
    "BatchTriggerType",
    "Bool",
    "Bytes",
    "DatetimePartitionColumn",
    "DeclarationError",
    "DeltaConfig",
    "DeltaTableConfig",
    "DynamoConfig",
    "Entity",
    "FeatureKitError",
    "FeatureService",
    "FeatureTable",
    "FeatureVector",
    "FeatureView",
    "Field",
    "FileConfig",
    "FilteredSource",
    "Float32",
    "Float64",
    "HiveSource",
    "Int32",
    "Int64",
    "KafkaConfig",
    "KinesisConfig",
    "LifetimeWindow",
    "Map",
    "MaterializationContext",
    "NotFoundError",
    "NotMaterialized",
    "OfflineStoreConfig",
    "OverlappingMaterialization",
    "PublishFeaturesConfig",
    "PushConfig",
    "RedisConfig",
    "RedisStreamConfig",
    "SqlConfig",
    "StreamProcessingMode",
    "StreamSource",
    "String",
    "Struct",
    "TectonTimeConstant",
    "TectonValidationError",
    "TimeWindow",
    "TimeWindowSeries",
    "Timestamp",
    "Workspace",
    "approx_count_distinct",
    "approx_percentile",
    "batch_feature_view",
    "first",
    "first_distinct",
    "get_workspace",
    "last",
    "last_distinct",
    "materialization_context",
    "pandas_batch_config",
    "stream_feature_view",
]
