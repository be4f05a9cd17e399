"""From a workspace to Dagster definitions: assets with their checks, jobs, schedules, sensors, resources."""

from __future__ import annotations

import dagster as dg

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.errors import DeclarationError
from featurekit_dagster.orchestration.assets import asset_job_of, view_asset
from featurekit_dagster.orchestration.chore_list import chore_jobs, chore_schedules
from featurekit_dagster.orchestration.consistency import consistency_check
from featurekit_dagster.orchestration.due_jobs import due_jobs_sensor
from featurekit_dagster.orchestration.jobs import backfill_job, overwrite_job
from featurekit_dagster.orchestration.maintenance import maintenance_job, maintenance_schedule
from featurekit_dagster.orchestration.partitions import count_fault, schedule_fault
from featurekit_dagster.orchestration.publish import published_asset, published_views, warehouse_resources
from featurekit_dagster.orchestration.push_logs import drain_sensors
from featurekit_dagster.orchestration.refill import refill_job
from featurekit_dagster.orchestration.resources import BoundWorkspace, FeatureStores, resource_key
from featurekit_dagster.orchestration.schedules import has_schedule, view_schedule
from featurekit_dagster.orchestration.streams import follows_stream, stream_job
from featurekit_dagster.orchestration.supervision import supervisor
from featurekit_dagster.orchestration.tables import table_definitions
from featurekit_dagster.orchestration.translator import source_spec
from featurekit_dagster.planning.planner import stores_of


def build_definitions(workspace: BoundWorkspace, prefix: str | None = None) -> dg.Definitions:
    """Return the definitions of a workspace: each view that writes a store is an asset.

    Each source and each feature table is an external one.

    Args:
        workspace: Declarations bound to stores and a clock.
        prefix: First part of every asset key and name; needed only where several workspaces share a code location.

    Raises:
        DeclarationError: A `batch_schedule` cannot be partitions, or makes too many; all such views are listed.
    """
    views = [view for view in workspace.repo.views if stores_of(view) and not view.is_table]
    _check_partitions(workspace, views)
    assets = {view.name: view_asset(view, workspace, prefix) for view in views}
    jobs = {view.name: asset_job_of(view, assets[view.name]) for view in views}
    schedules = [
        view_schedule(view, workspace, assets[view.name], jobs[view.name], prefix)
        for view in views
        if has_schedule(view)
    ]
    streams = {view.name: stream_job(view, workspace, prefix) for view in views if follows_stream(view)}
    supervisors = [supervisor(workspace.repo.view(name), workspace, job, prefix) for name, job in streams.items()]
    public = [backfill_job(workspace, prefix), overwrite_job(workspace, prefix), maintenance_job(workspace, prefix)]
    refill = refill_job(workspace, prefix)
    chores = chore_jobs(workspace, prefix)
    computed = dg.Definitions(
        assets=[
            *(source_spec(source, prefix) for source in workspace.repo.sources),
            *assets.values(),
            *(published_asset(view, workspace, prefix) for view in published_views(workspace)),
        ],
        asset_checks=[consistency_check(view, workspace, prefix) for view in views if view.online],
        jobs=[*jobs.values(), *streams.values(), *public, refill, *chores.values()],
        schedules=[
            *schedules,
            maintenance_schedule(workspace, public[-1], prefix),
            *chore_schedules(workspace, chores, prefix),
        ],
        sensors=[
            *([due_jobs_sensor(workspace, jobs, chores.values(), prefix)] if jobs or chores else []),
            *supervisors,
            *drain_sensors(workspace, prefix),
        ],
        resources={
            resource_key(prefix): FeatureStores.of(workspace),
            **warehouse_resources(workspace, prefix),
        },
        executor=dg.in_process_executor,
    )
    return dg.Definitions.merge(computed, table_definitions(workspace, prefix))


def _check_partitions(workspace: BoundWorkspace, views: list[FeatureView]) -> None:
    faults = [fault for view in views if (fault := schedule_fault(view))]
    if not faults:
        snapshot, now = workspace.snapshot(), workspace.now()
        faults = [fault for view in views if (fault := count_fault(view, snapshot, now))]
    if faults:
        raise DeclarationError(subject=f"workspace {workspace.name!r}", faults=faults)
