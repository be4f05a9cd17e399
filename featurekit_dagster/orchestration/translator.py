"""How declarations look in Dagster: pure translation of views and sources to asset specs.

Nothing secret may appear: of a SQL source neither address nor query, of a URI no user and no parameters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import dagster as dg

from featurekit_dagster.domain.aggregation import AggregateFeature, distinct_spans
from featurekit_dagster.domain.feature_service import FeatureService
from featurekit_dagster.domain.feature_view import BatchTriggerType, FeatureView
from featurekit_dagster.domain.schema import Field, Timestamp
from featurekit_dagster.domain.sources import BatchSource, DeltaTableConfig, FileConfig, SqlConfig
from featurekit_dagster.domain.windows import Span, TimeWindowSeries, format_duration
from featurekit_dagster.engine.local import stored_fields
from featurekit_dagster.intervals import format_time, from_us
from featurekit_dagster.orchestration.partitions import partitions_of
from featurekit_dagster.orchestration.resources import BoundWorkspace
from featurekit_dagster.planning.fingerprint import fingerprint
from featurekit_dagster.planning.planner import stores_of

SOURCES = "sources"
UNFINISHED = (
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)
"""States of runs that have not ended."""

KIND, VIEW, TRIGGER = "featurekit/kind", "featurekit/view", "featurekit/trigger"
JOB_BATCH = "featurekit/batch"
"""Tag of a run that carries out waiting jobs of the ledger: the name of their batch."""
BATCH = "BATCH"

_TAG_KEY = re.compile(r"([A-Za-z0-9_.-]{1,63}/)?[A-Za-z0-9_.-]{1,63}")
_TAG_VALUE = re.compile(r"[A-Za-z0-9_.-]{0,63}")
_OWNER = re.compile(r"team:.+|[^@\s]+@[^@\s]+\.[^@\s]+")


def view_key(view: FeatureView, prefix: str | None = None) -> dg.AssetKey:
    """Return the asset key of a view: its name, below `prefix` if there is one."""
    return dg.AssetKey([prefix, view.name] if prefix else [view.name])


def source_key(source: BatchSource, prefix: str | None = None) -> dg.AssetKey:
    """Return the asset key of a source, apart from the views so that both may have one name."""
    parts = [SOURCES, re.sub(r"[^\w.-]", "_", source.name)]
    return dg.AssetKey([prefix, *parts] if prefix else parts)


def view_spec(view: FeatureView, workspace: BoundWorkspace, prefix: str | None = None) -> dg.AssetSpec:
    """Return the asset of a view that writes a store; one partition is one batch interval."""
    services = [service.name for service in workspace.repo.services if uses(service, view)]
    return dg.AssetSpec(
        view_key(view, prefix),
        deps=[source_key(source, prefix) for source in view.sources],
        partitions_def=partitions_of(view, workspace.fixed_now),
        # a run reports its partitions itself, as each job commits, and has no other output
        skippable=True,
        description=view.description,
        group_name=view_group(view),
        owners=owners_of(view.owner),
        tags=_tags(view),
        kinds={"deltalake", "duckdb"} if view.offline else {"duckdb"},
        code_version=fingerprint(view),
        metadata=_view_metadata(view, services),
        freshness_policy=None if workspace.fixed_now else _freshness(view),
    )


def table_spec(view: FeatureView, workspace: BoundWorkspace, prefix: str | None = None) -> dg.AssetSpec:
    """Return a feature table as an external asset without partitions: rows are ingested, nothing materializes it."""
    services = [service.name for service in workspace.repo.services if uses(service, view)]
    of_jobs = ("featurekit/batch_schedule", "featurekit/batch_trigger")
    return dg.AssetSpec(
        view_key(view, prefix),
        description=view.description,
        group_name=view_group(view),
        owners=owners_of(view.owner),
        tags=_tags(view),
        kinds={"deltalake", "duckdb"} if view.offline else {"duckdb"},
        code_version=fingerprint(view),
        metadata={name: fact for name, fact in _view_metadata(view, services).items() if name not in of_jobs},
    )


def source_spec(source: BatchSource, prefix: str | None = None) -> dg.AssetSpec:
    """Return a source as an external asset, which Dagster shows and never runs."""
    kind, place = _kind_and_place(source)
    metadata = {
        "featurekit/timestamp_field": source.timestamp_field,
        "featurekit/data_delay": format_duration(source.data_delay),
        "dagster/uri": place,
    }
    return dg.AssetSpec(
        source_key(source, prefix),
        description=source.description,
        group_name=SOURCES,
        owners=owners_of(source.owner),
        tags=_valid_tags(source.tags),
        kinds={kind},
        metadata={name: value for name, value in metadata.items() if value is not None},
    )


def uses(service: FeatureService, view: FeatureView) -> bool:
    """Tell whether a feature service reads a view."""
    return any(reference.view is view for reference in service.references)


def run_tags(view: FeatureView, trigger: str | None = None) -> dict[str, str]:
    """Return the tags of a run of one view; without `trigger` the run is adopted by the asset that it runs."""
    tags = {VIEW: view.name, KIND: BATCH, "dagster/max_retries": "0"}
    return tags if trigger is None else tags | {TRIGGER: trigger}


def feature_schema(view: FeatureView) -> dg.TableSchema:
    """Return the columns that a read of the view gives: join keys, timestamp, features."""
    keys = [_column(key, "Join key.", nullable=True) for key in view.join_keys]
    time = _column(Field(view.timestamp_field, Timestamp), "Event time (UTC).", nullable=False)
    return dg.TableSchema(columns=[*keys, time, *_feature_columns(view)])


def _feature_columns(view: FeatureView) -> Iterable[dg.TableColumn]:
    if not view.aggregates:
        return [_column(field, None, nullable=True) for field in view.attributes]
    spans, key = distinct_spans(view.aggregates), view.secondary_key
    listed = [] if key is None else [f"Values of {key.name} with events over {_span_in_words(s)}." for s in spans]
    of_each = "" if key is None else f"For each value of {key.name}: "
    texts = [*listed, *(of_each + _in_words(feature) for feature in view.aggregates)]
    described = zip(view.features, view.defaults, texts, strict=True)
    return [_column(field, text, nullable=default is None) for field, default, text in described]


def _in_words(feature: AggregateFeature) -> str:
    """Return a feature in words, such as `last 3 of page over 7d, ending 1d before the edge.`."""
    spans, window = feature.spans, feature.window
    what = f"{_function_in_words(feature)} of {feature.column.name}"
    if isinstance(window, TimeWindowSeries):
        step = format_duration(window.step)
        ends = "" if not spans[-1].end_us else f", the newest {_ago(spans[-1].end_us)}"
        return f"{what} over {len(spans)} windows of {window.label}, one every {step}, oldest first{ends}."
    return f"{what} over {_span_in_words(spans[0])}."


def _function_in_words(feature: AggregateFeature) -> str:
    match feature.function:
        case "last_n" | "first_n":
            return f"{feature.function.removesuffix('_n')} {feature.n}"
        case "last_distinct" | "first_distinct":
            return f"{feature.function.removesuffix('_distinct')} {feature.n} distinct"
        case "approx_count_distinct":
            return f"approximate number of distinct values (precision {feature.precision})"
        case "approx_percentile":
            return f"approximate percentile {feature.percentile:g} (precision {feature.precision})"
    return feature.function


def _span_in_words(span: Span) -> str:
    if span.begin_us is None:
        return "all time" if span.since_us is None else f"all time since {format_time(from_us(span.since_us))}"
    size = format_duration(timedelta(microseconds=span.end_us - span.begin_us))
    return f"{size}, {_ago(span.end_us)}" if span.end_us else size


def _ago(end_us: int) -> str:
    return f"ending {format_duration(timedelta(microseconds=-end_us))} before the edge"


def _column(field: Field, description: str | None, *, nullable: bool) -> dg.TableColumn:
    constraints = dg.TableColumnConstraints(nullable=nullable)
    return dg.TableColumn(field.name, str(field.dtype), description=description, constraints=constraints)


def _view_metadata(view: FeatureView, services: list[str]) -> dict[str, Any]:
    stored = dg.TableSchema(columns=[dg.TableColumn(f.name, str(f.dtype)) for f in stored_fields(view)])
    facts = {
        "mode": view.mode,
        "join_keys": ", ".join(view.key_names),
        "stores": ", ".join(stores_of(view)),
        "batch_schedule": format_duration(view.batch_schedule),
        "batch_trigger": view.batch_trigger.value,
        "aggregation_interval": _duration(view.aggregation_interval),
        "aggregation_secondary_key": view.secondary_key and view.secondary_key.name,
        "lifetime_start_time": view.lifetime_start_time and format_time(view.lifetime_start_time),
        "compaction_enabled": view.compaction_enabled and "yes",
        "stream_source": view.stream_source and view.stream_source.name,
        "stream_processing_mode": view.stream_processing_mode and view.stream_processing_mode.value,
        "data_delay": _duration(view.data_delay),
        "ttl": _duration(view.ttl),
        "feature_start_time": view.feature_start_time and format_time(view.feature_start_time),
        "feature_services": ", ".join(services),
        "defined_in": view.defined_in and Path(view.defined_in).name,
        "tags": dict(view.tags) if view.tags else None,
    }
    named = {f"featurekit/{name}": value for name, value in facts.items() if value}
    return {"dagster/column_schema": feature_schema(view), "featurekit/stored_columns": stored, **named}


def _duration(duration: timedelta | None) -> str | None:
    return format_duration(duration) if duration else None


def view_group(view: FeatureView) -> str:
    """Return the group of a view: views of the same entities stand together."""
    return re.sub(r"[^A-Za-z0-9_]", "_", "_".join(entity.name for entity in view.entities)) or "features"


def owners_of(owner: str | None) -> list[str]:
    """Return the owner, if Dagster takes it: an e-mail address or `team:` and a name."""
    return [owner] if owner and _OWNER.fullmatch(owner) else []


def _tags(view: FeatureView) -> dict[str, str]:
    own = {"featurekit/mode": view.mode, "featurekit/batch_trigger": view.batch_trigger.value}
    return _valid_tags(view.tags) | own


def _valid_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that Dagster takes; all of them stand in the metadata."""
    return {key: value for key, value in tags.items() if _TAG_KEY.fullmatch(key) and _TAG_VALUE.fullmatch(value)}


def _freshness(view: FeatureView) -> dg.FreshnessPolicy | None:
    """A scheduled view has failed when one whole interval was left out; nobody waits for one that has no schedule."""
    if view.batch_trigger is not BatchTriggerType.SCHEDULED:
        return None
    late = view.batch_schedule + view.data_delay
    return dg.FreshnessPolicy.time_window(fail_window=late + view.batch_schedule, warn_window=late)


def _kind_and_place(source: BatchSource) -> tuple[str, str | None]:
    config = source.batch_config
    if isinstance(config, FileConfig):
        return config.file_format, _public(config.uri)
    if isinstance(config, DeltaTableConfig):
        return "deltalake", _public(config.uri)
    return ("sql", None) if isinstance(config, SqlConfig) else ("python", None)


def _public(uri: str) -> str:
    """Return a URI without user, password and parameters."""
    if "://" not in uri:
        return uri
    parts = urlsplit(uri)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
