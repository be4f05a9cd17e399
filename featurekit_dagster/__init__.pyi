from .domain.context import MaterializationContext, materialization_context
from .domain.declarations import Attribute, batch_feature_view
from .domain.entity import Entity
from .domain.feature_service import FeatureService
from .domain.feature_view import Aggregate, Aggregation, BatchTriggerType, DeltaConfig, FeatureView
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
from .domain.windows import TimeWindow
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
    "Entity",
    "FeatureKitError",
    "FeatureService",
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
    "Map",
    "MaterializationContext",
    "NotFoundError",
    "NotMaterialized",
    "OverlappingMaterialization",
    "SqlConfig",
    "String",
    "Struct",
    "TectonTimeConstant",
    "TectonValidationError",
    "TimeWindow",
    "Timestamp",
    "Workspace",
    "batch_feature_view",
    "get_workspace",
    "materialization_context",
    "pandas_batch_config",
]
