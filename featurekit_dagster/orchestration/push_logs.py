"""One sensor per workspace that takes what was sent to push sources to their Delta tables, where batch jobs find it."""

from __future__ import annotations

import dagster as dg

from featurekit_dagster.domain.sources import DeltaTableConfig
from featurekit_dagster.domain.stream_sources import StreamSource
from featurekit_dagster.errors import FeatureKitError, safe_reason
from featurekit_dagster.execution.ingest_drain import DrainReport, drain_push_log
from featurekit_dagster.orchestration.resources import BoundWorkspace, FeatureStores, resource_key
from featurekit_dagster.orchestration.translator import source_key

SECONDS_BETWEEN_LOOKS = 60
COMMITS_PER_LOOK = 20
"""Of 50,000 events each; a tick has to end before Dagster gives it up, and the next one goes on."""


def is_drained(source: StreamSource) -> bool:
    """Tell whether a source has a log of events, and a Delta table that takes them."""
    return source.is_push and isinstance(source.batch_config, DeltaTableConfig)


def drain_sensors(workspace: BoundWorkspace, prefix: str | None = None) -> list[dg.SensorDefinition]:
    """Return the sensor that drains the logs of a workspace's push sources; none where there is nothing to drain.

    Args:
        workspace: The workspace.
        prefix: First part of every name, if wanted.
    """
    sources = [source for source in workspace.repo.stream_sources if is_drained(source)]
    if not sources:
        return []
    resource = resource_key(prefix)

    @dg.sensor(
        name=f"{prefix}_drain_push_logs" if prefix else "drain_push_logs",
        minimum_interval_seconds=SECONDS_BETWEEN_LOOKS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        required_resource_keys={resource},
        description="Takes the events of push sources from their logs to their Delta tables, each once.",
    )
    def look(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        opened: FeatureStores = getattr(context.resources, resource)
        stores = opened.open(workspace)
        told, events = [], []
        for source in sources:
            try:
                report = drain_push_log(source, workspace.repo.views, stores, most_commits=COMMITS_PER_LOOK)
            except FeatureKitError as error:  # the other sources need not wait for it
                told.append(f"{source.name} was not drained: {safe_reason(error)}")
                context.log.error(told[-1])
                continue
            told.append(f"{source.name}: {report.rows:,} events drained")
            if report.rows or report.refused:
                events.append(_observation(source, report, prefix))
        return dg.SensorResult(asset_events=events, skip_reason="; ".join(told))

    return [look]


def _observation(source: StreamSource, report: DrainReport, prefix: str | None) -> dg.AssetObservation:
    assert source.batch_source is not None
    counts = {"rows": report.rows, "refused": report.refused, "drained": report.drained, "trimmed": report.trimmed}
    metadata = {f"featurekit/{name}": value for name, value in counts.items()}
    return dg.AssetObservation(source_key(source.batch_source, prefix), metadata=metadata)
