"""Rules of stream feature views: their source and its batch side, how they follow it, and what batch jobs do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from featurekit_dagster.domain.feature_view import (
    AggregationLeadingEdge,
    BatchTriggerType,
    FeatureView,
    StreamProcessingMode,
)
from featurekit_dagster.domain.schedule_rules import wants_aggregates
from featurekit_dagster.domain.sources import BatchSource, SourceRange
from featurekit_dagster.domain.stream_sources import StreamRange, StreamSource
from featurekit_dagster.domain.windows import format_duration
from featurekit_dagster.domain.wording import described

if TYPE_CHECKING:
    from featurekit_dagster.domain.view_rules import Draft


def resolve_source(draft: Draft) -> SourceRange | None:
    """Resolve the stream source and return the span of its batch side that the transformation is handed, if any.

    The batch side is cut to the interval unless `source` says otherwise.
    """
    given = draft.given["source"]
    used = given.of_interval if isinstance(given, StreamSource) else given
    draft.resolved["stream_source"] = used.source if isinstance(used, StreamRange) else None
    if isinstance(used, StreamRange):
        return used.batch
    if isinstance(given, BatchSource | SourceRange):
        draft.faults.append(
            "source has no stream; give StreamSource(name=, stream_config=, batch_config=), or declare a "
            "batch_feature_view"
        )
    else:
        draft.faults.append(f"source is {described(given)}; give a StreamSource, one only")
    return None


def batch_side_advice(given: Any) -> str | None:
    """Return what to give instead of a stream source to a batch feature view; None for anything else."""
    source = given.source if isinstance(given, StreamRange) else given
    if not isinstance(source, StreamSource):
        return None
    what = f"stream source {source.name!r} is given as a source of a batch feature view"
    if source.batch_source is None:
        return f"{what}, but it has no batch_config; declare a stream_feature_view"
    return f"{what}; give its batch side, which is the attribute batch_source, or declare a stream_feature_view"


def resolve_processing(draft: Draft) -> None:
    """Resolve how rows are kept and followed: compaction, the mode of a stream, and who starts batch jobs."""
    _resolve_compaction(draft)
    if draft.get("is_stream"):
        _resolve_mode(draft)
        _resolve_stream_trigger(draft)
    elif draft.given["batch_trigger"] is BatchTriggerType.NO_BATCH_MATERIALIZATION:
        draft.faults.append(
            "batch_trigger is NO_BATCH_MATERIALIZATION, but a batch feature view has nothing else; give "
            "BatchTriggerType.MANUAL, or online=False and offline=False"
        )


def _resolve_compaction(draft: Draft) -> None:
    new, old = draft.given["compaction_enabled"], draft.given["batch_compaction_enabled"]
    if new is not None and old is not None:
        draft.faults.append("compaction_enabled is given beside its old name batch_compaction_enabled; keep the first")
    draft.resolved["compaction_enabled"] = bool(new or old)


def _resolve_mode(draft: Draft) -> None:
    source: StreamSource | None = draft.get("stream_source")
    mode, edge = draft.given["stream_processing_mode"], draft.given["aggregation_leading_edge"]
    has_aggregates, is_compacted = wants_aggregates(draft), draft.get("compaction_enabled")
    if mode is StreamProcessingMode.TIME_INTERVAL and is_compacted and has_aggregates:
        draft.faults.append(
            "stream_processing_mode is TIME_INTERVAL with compaction_enabled, which keeps every event by itself; leave "
            "one out"
        )
    if mode is None and ((source is not None and source.is_push) or (is_compacted and has_aggregates)):
        mode = StreamProcessingMode.CONTINUOUS
    elif mode is None and has_aggregates:
        mode = StreamProcessingMode.TIME_INTERVAL
    if edge is not None and not has_aggregates:
        draft.faults.append("aggregation_leading_edge is given without aggregations; leave it out")
    default = AggregationLeadingEdge.WALL_CLOCK_TIME if has_aggregates else None
    draft.resolved |= {"stream_processing_mode": mode, "aggregation_leading_edge": edge or default}


def _resolve_stream_trigger(draft: Draft) -> None:
    source: StreamSource | None = draft.get("stream_source")
    trigger = draft.given["batch_trigger"]
    if source is None or source.batch_source is not None:
        draft.resolved["batch_trigger"] = trigger or BatchTriggerType.SCHEDULED
        return
    if trigger not in (None, BatchTriggerType.NO_BATCH_MATERIALIZATION):
        draft.faults.append(
            f"batch_trigger is {trigger.value}, but source {source.name!r} has no batch_config that batch jobs could "
            "read; leave it out"
        )
    draft.resolved["batch_trigger"] = BatchTriggerType.NO_BATCH_MATERIALIZATION


def check_watermark(draft: Draft) -> None:
    """Refuse a watermark over another column than the one in which the view has its times.

    Source: Streaming Materialization, Online Data with Stream Processing (the watermark column must correspond).
    """
    source: StreamSource | None = draft.get("stream_source")
    if source is None or not source.stream_config.watermark_delay_threshold:
        return
    column, timestamp = source.stream_config.timestamp_field, draft.get("timestamp_field")
    if column is not None and timestamp and column != timestamp:
        draft.faults.append(
            f"the watermark of stream source {source.name!r} is over its timestamp_field {column!r}, but the view has "
            f"its times in {timestamp!r}; give both one name"
        )


def check_freshness(draft: Draft) -> None:
    """Resolve how old the newest event may get; it is a matter of what is online."""
    name, interval = "expected_feature_freshness", draft.get("aggregation_interval")
    draft.resolved[name] = expected = draft.given[name]
    if expected is None:
        return
    if not draft.get("online"):
        draft.faults.append(f"{name} is given without online=True; leave it out")
    if interval is not None and expected < 2 * interval:
        draft.faults.append(
            f"{name} {format_duration(expected)} is less than twice the aggregation_interval; a tile is whole once it "
            f"is over, so give at least {format_duration(2 * interval)}"
        )


def stream_warnings(view: FeatureView) -> Iterator[str]:
    """Yield what is allowed of a stream view that is written online, but seldom meant.

    Source: Streaming Materialization, Online Data with Stream Processing (nearly mandatory watermark).
    """
    source = view.stream_source
    if source is None or not view.online or source.stream_config.watermark_delay_threshold:
        return
    remedy = f"give {type(source.stream_config).__name__} a watermark_delay_threshold"
    if source.stream_config.deduplication_columns:
        yield f"{source.name} is deduplicated without a watermark, so every event is remembered for good; {remedy}"
    if view.is_tiled:
        yield f"aggregates of intervals without a watermark: events count however late they come; {remedy}"
