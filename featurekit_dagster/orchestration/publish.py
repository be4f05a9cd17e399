"""Publishing in Dagster: the public job `feature_publish`, and an asset `<view>_published` behind each view's own.

What was materialized is published by a job of the ledger that its success asks for; who asks in the UI for partitions
of the asset has them published again.
"""

# No `from __future__ import annotations`: Dagster wants the type of `context` as an object, not as text.

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
from dagster_duckdb import DuckDBResource

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.errors import FeatureKitError, TectonValidationError, safe_reason
from featurekit_dagster.execution.publish import Published, path_of, publish, queue_missing, queue_range
from featurekit_dagster.intervals import Interval, as_utc
from featurekit_dagster.orchestration.chores import Chore, ChoreRun, carry_out_job, run_chore
from featurekit_dagster.orchestration.partitions import interval_of_keys, key_of, partitions_of
from featurekit_dagster.orchestration.resources import BoundWorkspace, FeatureStores, resource_key
from featurekit_dagster.orchestration.translator import (
    KIND,
    TRIGGER,
    VIEW,
    feature_schema,
    owners_of,
    view_group,
    view_key,
)
from featurekit_dagster.planning.job_state import ONCE
from featurekit_dagster.serving.published import changes_in
from featurekit_dagster.serving.stored import StoredRows
from featurekit_dagster.stores.ledger_records import FEATURE_EXPORT, JobRecord
from featurekit_dagster.stores.warehouse_duckdb import Connect
from featurekit_dagster.stores.warehouses import open_warehouse, warehouse_file
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

UI = "dagster_ui"
_TIME = "ISO text such as 2024-01-01 or 2024-01-01T06:00; without a zone it is UTC."
_CONFIG = {
    "view": dg.Field(str, is_required=False, description="Name of a feature view; all that are published by default."),
    "start": dg.Field(str, is_required=False, description=f"First instant inside: {_TIME}"),
    "end": dg.Field(str, is_required=False, description=f"First instant after: {_TIME}"),
}


def published_views(workspace: BoundWorkspace) -> list[FeatureView]:
    """Return the views that are published."""
    return [view for view in workspace.repo.views if view.publish is not None]


def queue_unpublished(workspace: BoundWorkspace, stores: WorkspaceStores, views: Iterable[str]) -> list[JobRecord]:
    """Ask for jobs that publish what is not, save what was given up; return them.

    Args:
        workspace: The workspace.
        stores: Where its ledger is.
        views: Names of the views to look at.
    """
    chosen = [view for view in published_views(workspace) if view.name in set(views)]
    return [job for view in chosen for job in queue_missing(view, stores, trigger="schedule", give_up=True)]


def published_of(view: FeatureView, stores: WorkspaceStores) -> Published:
    """Return what is published of a view, a DuckDB file being opened by Dagster's resource."""
    return Published.of(view, stores, open_warehouse(stores.home, _connect_to))


def warehouse_resources(workspace: BoundWorkspace, prefix: str | None = None) -> dict[str, DuckDBResource]:
    """Return the DuckDB file that is published to as a resource, for other assets of a deployment to read."""
    file = warehouse_file(workspace.home)
    if file is None or not published_views(workspace):
        return {}
    return {f"{prefix}_warehouse" if prefix else "warehouse": DuckDBResource(database=str(file))}


def _connect_to(file: Path) -> Connect:
    return DuckDBResource(database=str(file)).get_connection


def _queue(
    workspace: BoundWorkspace, stores: WorkspaceStores, config: Mapping[str, Any], trigger: str
) -> list[JobRecord]:
    if "view" not in config:
        if config:
            raise TectonValidationError("start or end is given without a view; name the view, too")
        return [job for view in published_views(workspace) for job in queue_missing(view, stores, trigger=trigger)]
    view = workspace.repo.view(config["view"])
    if not {"start", "end"} & config.keys():
        return queue_missing(view, stores, trigger=trigger)
    return [queue_range(view, stores, _range(view, stores, config), trigger=trigger)]


def _range(view: FeatureView, stores: WorkspaceStores, config: Mapping[str, str]) -> Interval:
    """Return the range of `start` and `end`, of which either may be left out.

    Raises:
        TectonValidationError: A time cannot be read, or the range is empty.
    """
    try:
        first = view.materialization_start
        start = as_utc(datetime.fromisoformat(config["start"])) if "start" in config else first
        end = as_utc(datetime.fromisoformat(config["end"])) if "end" in config else stores.clock()
        if start is not None and start < end:
            return Interval(start, end)
    except ValueError as error:
        raise TectonValidationError(f"{view.name}: {error}") from error
    raise TectonValidationError(f"{view.name}: start is not before end; give a start before the end")


def _carry_out(run: ChoreRun) -> Mapping[str, int]:
    view = run.workspace.repo.view(run.job.view)
    stored = StoredRows.choose(view, run.stores, from_source=False)

    def changes(span: Interval, is_continued: bool) -> pa.Table:
        return changes_in(stored, span.start_us, span.end_us, is_continued=is_continued)

    return publish(published_of(view, run.stores), run.job, changes, run.check)


def _events(
    workspace: BoundWorkspace, stores: WorkspaceStores, job: JobRecord, prefix: str | None
) -> Iterator[dg.AssetMaterialization]:
    """Yield that the partitions of a job that was done are published."""
    view = workspace.repo.view(job.view)
    done = published_of(view, stores).windows().intersect([job.interval])
    about_job: dict[str, Any] = {f"featurekit/{name}": count for name, count in job.stats.items()}
    about_job |= {"featurekit/job": job.id, "featurekit/trigger": job.trigger}
    cells = [cell for run in done for cell in run.split_on_grid(view.batch_schedule)]
    for number, cell in enumerate(cells, start=1):
        metadata = about_job if number == len(cells) else {"featurekit/job": job.id}
        yield dg.AssetMaterialization(published_key(view, prefix), partition=key_of(cell.start), metadata=metadata)


FEATURE_PUBLISH = Chore(
    kind=FEATURE_EXPORT,
    job_name="feature_publish",
    description="Publish full features of feature views in the warehouse: what is missing, or a range of a view again.",
    config=_CONFIG,
    names={"view": lambda workspace: (view.name for view in published_views(workspace))},
    queue=_queue,
    carry_out=_carry_out,
    events=_events,
)


def published_key(view: FeatureView, prefix: str | None = None) -> dg.AssetKey:
    """Return the key of the asset that is a view's table in the warehouse."""
    *before, name = view_key(view, prefix).path
    return dg.AssetKey([*before, f"{name}_published"])


def published_asset(view: FeatureView, workspace: BoundWorkspace, prefix: str | None = None) -> dg.AssetsDefinition:
    """Return the asset that is a view's table in the warehouse; it has the partitions of the view's own asset."""
    key, resource = published_key(view, prefix), resource_key(prefix)

    def published(context: dg.AssetExecutionContext) -> Iterator[dg.AssetMaterialization]:
        opened: FeatureStores = getattr(context.resources, resource)
        stores = opened.open(workspace)
        if not context.has_partition_key and not context.has_partition_key_range:
            raise dg.Failure(
                description=f"{view.name}: the run has no partitions; give a partition or a range of them, or run the "
                f"job {FEATURE_PUBLISH.name(prefix)!r} with view, start and end",
                allow_retries=False,
            )
        trigger = context.run.tags.get(TRIGGER, UI)
        tags = {VIEW: view.name, KIND: FEATURE_EXPORT, TRIGGER: trigger}
        context.instance.add_run_tags(context.run.run_id, tags)
        try:
            interval = interval_of_keys(view, context.partition_key_range)
            job = queue_range(view, stores, interval, trigger=trigger, policy=ONCE)
            done = carry_out_job(FEATURE_PUBLISH, workspace, stores, job, context.op_execution_context)
        except FeatureKitError as error:
            raise dg.Failure(description=safe_reason(error), allow_retries=False) from None
        yield from _events(workspace, stores, done, prefix)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # backfill_policy
        return dg.multi_asset(
            specs=[_spec(view, workspace, prefix)],
            name="__".join(key.path),
            backfill_policy=dg.BackfillPolicy.single_run(),
            required_resource_keys={resource},
            op_tags={KIND: FEATURE_EXPORT},
        )(published)


def _spec(view: FeatureView, workspace: BoundWorkspace, prefix: str | None) -> dg.AssetSpec:
    file = warehouse_file(workspace.home)
    place = path_of(view, workspace.stores)
    return dg.AssetSpec(
        published_key(view, prefix),
        deps=[view_key(view, prefix)],
        partitions_def=partitions_of(view, workspace.fixed_now),
        skippable=True,
        description=f"Full features of {view.name} in the warehouse, with the times from and to which they held. "
        f"The job {FEATURE_PUBLISH.name(prefix)} writes them whenever {view.name} was materialized.",
        group_name=view_group(view),
        owners=owners_of(view.owner),
        kinds={"duckdb" if file is not None else "postgres"},
        metadata={
            "dagster/column_schema": _schema(view),
            "dagster/relation_identifier": (place or "").partition("#")[2],
        },
    )


def _schema(view: FeatureView) -> dg.TableSchema:
    """Return the columns that people query."""
    columns = [column for column in feature_schema(view).columns if column.name != view.timestamp_field]
    times = [("_valid_from", "First time at which a reader sees it (UTC)."), ("_valid_to", "First time after (UTC).")]
    shown = [dg.TableColumn(name, "Timestamp", description=text) for name, text in times]
    return dg.TableSchema(columns=[*columns, *shown])


def publish_in_process(
    workspace: BoundWorkspace,
    views: Iterable[str],
    instance: dg.DagsterInstance,
    start: datetime | None = None,
    end: datetime | None = None,
    on_job: Callable[[JobRecord], None] | None = None,
) -> list[dg.ExecuteInProcessResult]:
    """Publish in this process, as runs that Dagster shows like any other; return Dagster's results.

    Args:
        workspace: Declarations bound to stores and a clock.
        views: Names of feature views; none are all that are published.
        instance: Where Dagster keeps runs and events.
        start: First instant of a range that is published again; with `end` for one view.
        end: First instant after.
        on_job: Called with each finished job of the ledger.
    """
    times = {"start": start, "end": end}
    given = {name: time.isoformat() for name, time in times.items() if time is not None}
    configs = [{"view": name, **given} for name in views] or [given]
    return [run_chore(FEATURE_PUBLISH, workspace, instance, config, on_job) for config in configs]
