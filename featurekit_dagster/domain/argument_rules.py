"""Rules of single arguments: each is of its kind, and what is not taken is refused with what to do instead.

The rules that relate arguments to each other (`view_rules`, `column_rules`, `schedule_rules`) come after these and may
rely on the kinds. An argument of a wrong kind is replaced by None, so that it cannot hide faults of the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from featurekit_dagster.domain.feature_view import (
    AggregationLeadingEdge,
    BatchTriggerType,
    DeltaConfig,
    StreamProcessingMode,
)
from featurekit_dagster.domain.offline_config import OfflineStoreConfig, config_faults, layout_of
from featurekit_dagster.domain.online_stores import OnlineStoreConfig
from featurekit_dagster.domain.windows import parse_duration, size_fault
from featurekit_dagster.domain.wording import described
from featurekit_dagster.intervals import from_us, to_us

_TEXTS = (
    "name",
    "timestamp_field",
    "context_parameter_name",
    "aggregation_secondary_key",
    "description",
    "owner",
)
_FLAGS = ("online", "offline", "incremental_backfills")
_OPTIONAL_FLAGS = ("compaction_enabled", "batch_compaction_enabled")
_LISTS = ("schema", "features", "aggregations", "online_serving_index")
_TIMES = ("feature_start_time", "lifetime_start_time", "manual_trigger_backfill_end_time")
_DURATIONS = ("aggregation_interval", "batch_schedule", "ttl", "max_backfill_interval", "expected_feature_freshness")

_ENUMS: tuple[tuple[str, type[Enum]], ...] = (
    ("stream_processing_mode", StreamProcessingMode),
    ("aggregation_leading_edge", AggregationLeadingEdge),
)
_ABSENT: Mapping[str, Any] = {
    "is_stream": False,
    "is_table": False,
    "source": None,
    "sources": (),
    "incremental_backfills": False,
    "stream_processing_mode": None,
    "aggregation_leading_edge": None,
    "expected_feature_freshness": None,
    "publish_features_config": None,
}
"""Arguments that one kind of view does not take."""

_LOCAL = "jobs run where Dagster runs them; leave it out"
_OF_STREAMS = "it belongs to stream_feature_view; leave it out"
_ONE_STREAM = "it is called source, one StreamSource"
_SEVERAL = "it is called sources, a list with one entry for each parameter of the function"
_BATCH_REMEDIES = {
    "source": _SEVERAL,
    "inputs": _SEVERAL,
    "stream_processing_mode": _OF_STREAMS,
    "aggregation_leading_edge": _OF_STREAMS,
    "aggregation_mode": "aggregates are in whole tiles; leave it out",
}
_STREAM_REMEDIES = {
    "sources": _ONE_STREAM,
    "inputs": _ONE_STREAM,
    "aggregation_mode": "it is called stream_processing_mode",
    "incremental_backfills": "a stream feature view has no incremental backfills; leave it out",
}
_NO_JOBS = "rows of a feature table come by ingest(), not by jobs; leave it out"
_NOT_COMPUTED = "a feature table keeps the rows it is given; leave it out, or declare a batch_feature_view"
_TABLE_REMEDIES = {
    **dict.fromkeys(("source", "sources", "inputs", "mode", "context_parameter_name"), _NOT_COMPUTED),
    **dict.fromkeys(("aggregations", "aggregation_interval", "aggregation_secondary_key"), _NOT_COMPUTED),
    **dict.fromkeys(("lifetime_start_time", "compaction_enabled", "batch_compaction_enabled"), _NOT_COMPUTED),
    **dict.fromkeys(("batch_schedule", "batch_trigger", "manual_trigger_backfill_end_time"), _NO_JOBS),
    **dict.fromkeys(("max_backfill_interval", "incremental_backfills", "batch_compute"), _NO_JOBS),
    "publish_features_config": "features are published as batch jobs write them; leave it out",
    "feature_start_time": "a feature table begins with its oldest row; leave it out",
    "stream_processing_mode": _OF_STREAMS,
    "aggregation_leading_edge": _OF_STREAMS,
}
_REMEDIES = {
    "entity": "it is called entities, a list",
    "timestamp_key": "it is called timestamp_field",
    "time_column": "it is called timestamp_field",
    "aggregation_slide_period": "it is called aggregation_interval",
    "backfill_config": "how a backfill is cut is said by max_backfill_interval and incremental_backfills",
    "max_batch_aggregation_interval": "it is called max_backfill_interval",
    "schedule_offset": "a schedule waits for the data_delay of the sources; give that in their batch_config",
    "serving_ttl": "it is called ttl",
    "family": "views are grouped by tags; leave it out",
    "batch_compute": _LOCAL,
    "batch_cluster_config": _LOCAL,
    "environment": "the process's own environment is used; leave it out",
    "stream_compute": _LOCAL,
    "stream_cluster_config": _LOCAL,
    "stream_tiling_enabled": "how a stream is tiled online is not chosen by this version; leave it out",
    "output_stream": "features are not written to a stream by this version; leave it out",
    "offline_config": "it is called offline_store",
    "online_config": "it is called online_store",
    "cache_config": "online reads are not cached; leave it out",
    "monitor_freshness": "staleness is an asset check of every view; leave it out",
    "expected_feature_freshness": "the staleness check knows the schedule and the data_delay; leave it out",
    "alert_email": "alerts are sent by Dagster; set them up there and leave it out",
    "data_quality_enabled": "null rates and row counts are in the metadata of every run; leave it out",
    "skip_default_expectations": "the asset checks of a view cannot be left out one by one; leave it out",
    "run_transformation_validation": "the output is checked against the schema by every job; leave it out",
    "prevent_destroy": "a view that is no longer declared keeps what it has stored; leave it out",
    "options": "there are no further options; leave it out",
    "secrets": "secrets are not handed over by this version; read them inside the function",
    "resource_providers": "resources are not handed over by this version; make them inside the function",
    "job_retry_times": "retries are not set per view; leave it out",
}


def checked_arguments(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], frozenset[str]]:
    """Return the arguments with each value of its kind, the faults found, and the names of the faulty ones.

    Durations come back as timedelta, times as plain aware UTC datetimes, lists as lists; a faulty value is None.
    """
    checked = {**_ABSENT, **given}
    found = dict(_found_faults(checked))
    checked |= dict.fromkeys(found)
    special = _TABLE_REMEDIES if checked["is_table"] else _BATCH_REMEDIES
    special = _STREAM_REMEDIES if checked["is_stream"] else special
    faults = [*found.values(), *(_refusal(name, special) for name in checked.pop("other", ()))]
    return checked, faults, frozenset(found)


def _found_faults(checked: dict[str, Any]) -> list[tuple[str, str]]:
    """Convert the arguments in place and return `(name, fault)` of those that cannot be converted."""
    found: list[tuple[str, str | None]] = []
    found += [(name, _text_fault(name, checked[name])) for name in _TEXTS]
    found += [(name, _flag_fault(name, checked[name])) for name in _FLAGS]
    found += [(name, _flag_fault(name, checked[name])) for name in _OPTIONAL_FLAGS if checked[name] is not None]
    for name in _LISTS:
        checked[name], fault = _as_list(name, checked[name])
        found.append((name, fault))
    for name in _TIMES:
        checked[name], fault = _as_time(name, checked[name])
        found.append((name, fault))
    for name in _DURATIONS:
        checked[name], fault = as_duration(name, checked[name])
        found.append((name, fault))
    found.append(("batch_trigger", _trigger_fault(checked["batch_trigger"], is_stream=checked["is_stream"])))
    found += [(name, _enum_fault(name, checked[name], kind)) for name, kind in _ENUMS]
    found += config_faults(checked["offline_store"], checked["publish_features_config"])
    found.append(("offline_store", _offline_store_fault(checked["offline_store"])))
    found.append(("online_store", _online_store_fault(checked["online_store"])))
    found.append(("tags", _tags_fault(checked["tags"])))
    return [(name, fault) for name, fault in found if fault]


def _refusal(name: str, special: Mapping[str, str]) -> str:
    remedy = special.get(name) or _REMEDIES.get(name, "no such argument; leave it out or correct its spelling")
    return f"{name} is not taken: {remedy}"


def _text_fault(name: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        return f"{name} is {described(value)}; give text"
    if value == "" and name not in ("description", "owner"):
        return f"{name} is empty; leave it out or give a name"
    return None


def _flag_fault(name: str, value: Any) -> str | None:
    return None if isinstance(value, bool) else f"{name} is {described(value)}; give True or False"


def _as_list(name: str, value: Any) -> tuple[list[Any] | None, str | None]:
    if value is None or isinstance(value, list | tuple):
        return None if value is None else list(value), None
    return None, f"{name} is {described(value)}; give a list"


def _as_time(name: str, value: Any) -> tuple[datetime | None, str | None]:
    if value is None:
        return None, None
    # A missing time of pandas is a datetime that differs from itself
    if not isinstance(value, datetime) or value != value:  # noqa: PLR0124
        return None, f"{name} is {described(value)}; give a datetime, which is UTC unless it says otherwise"
    try:
        return from_us(to_us(value)), None
    except OverflowError:
        return None, f"{name} is outside the years 1 to 9999 in UTC; give a time inside"


def as_duration(name: str, value: Any) -> tuple[timedelta | None, str | None]:
    """Return a duration given as timedelta or text, or None with its fault; None is no fault."""
    if isinstance(value, str):
        try:
            value = parse_duration(value)
        except ValueError as error:
            return None, f"{name}: {error}"
    fault = None if value is None else duration_fault(name, value)
    return (None, fault) if fault else (value, None)


def duration_fault(name: str, value: Any) -> str | None:
    """Return why a value is no usable duration, or None."""
    if not isinstance(value, timedelta):
        return f"{name} is {described(value)}; give a timedelta or text such as '1d12h'"
    if value <= timedelta(0):
        return f"{name} {value} is not positive; give a longer one"
    return size_fault(name, value)


def _trigger_fault(value: Any, *, is_stream: bool) -> str | None:
    if isinstance(value, BatchTriggerType) or (value is None and is_stream):
        return None
    return f"batch_trigger is {described(value)}; give BatchTriggerType.SCHEDULED or BatchTriggerType.MANUAL"


def _enum_fault(name: str, value: Any, kind: type[Enum]) -> str | None:
    if value is None or isinstance(value, kind):
        return None
    return f"{name} is {described(value)}; give {' or '.join(str(member) for member in kind)}"


def _offline_store_fault(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, DeltaConfig | OfflineStoreConfig):
        return f"offline_store is {described(value)}; give a DeltaConfig or an OfflineStoreConfig"
    layout = layout_of(value)
    if not isinstance(layout, DeltaConfig):
        return f"staging_table_format of offline_store is {described(layout)}; give a DeltaConfig"
    return duration_fault("time_partition_size of offline_store", layout.time_partition_size)


def _online_store_fault(value: Any) -> str | None:
    if value is None or isinstance(value, OnlineStoreConfig):
        return None
    return f"online_store is {described(value)}; give a RedisConfig or a DynamoConfig"


def _tags_fault(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        return f"tags is {described(value)}; give a mapping of text to text"
    if not all(isinstance(part, str) for pair in value.items() for part in pair):
        return "tags has a key or value that is no text; write both as text"
    return None
