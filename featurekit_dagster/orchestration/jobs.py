"""The public jobs `backfill` and `overwrite`: one run for a whole range, given by view, start and end.

They suit the launchpad, `dagster job execute` and `dagster job launch`, where a range of partitions cannot be given.
"""

# No `from __future__ import annotations`: Dagster wants the type of `context` as an object, not as text.

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import dagster as dg

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.errors import FeatureKitError, PlanError
from featurekit_dagster.intervals import Interval, as_utc
from featurekit_dagster.orchestration.assets import AssetRun
from featurekit_dagster.orchestration.launchpad import some_of
from featurekit_dagster.orchestration.materializations import BACKFILL, MANUAL, MaterializationRequest
from featurekit_dagster.orchestration.resources import BoundWorkspace, FeatureStores, resource_key
from featurekit_dagster.orchestration.translator import BATCH, KIND, TRIGGER, VIEW, view_key
from featurekit_dagster.planning.grid import last_ready_end
from featurekit_dagster.planning.planner import stores_of

_TAGS = {KIND: BATCH, "dagster/max_retries": "0"}
_TIME = "ISO text such as 2024-01-01 or 2024-01-01T06:00; without a zone it is UTC."


def backfill_job(workspace: BoundWorkspace, prefix: str | None = None) -> dg.JobDefinition:
    """Return the job that fills what is missing in a range and leaves covered parts alone."""
    return _range_job(
        workspace,
        prefix,
        name="backfill",
        trigger=BACKFILL,
        overwrite=None,
        description="Materialize what is missing of a feature view in [start, end); all that is missing by default.",
    )


def overwrite_job(workspace: BoundWorkspace, prefix: str | None = None) -> dg.JobDefinition:
    """Return the job that computes a range again and replaces what is there."""
    return _range_job(
        workspace,
        prefix,
        name="overwrite",
        trigger=MANUAL,
        overwrite=True,
        description="Compute a feature view again in [start, end) and replace what is stored there.",
    )


def _range_job(
    workspace: BoundWorkspace,
    prefix: str | None,
    *,
    name: str,
    trigger: str,
    overwrite: bool | None,
    description: str,
) -> dg.JobDefinition:
    full_name, resource = f"{prefix}_{name}" if prefix else name, resource_key(prefix)
    op_name = f"{full_name}_range"
    times_needed = overwrite is True
    names = some_of(v.name for v in workspace.repo.views if stores_of(v) and not v.is_table)
    schema = {
        "view": dg.Field(str, description=f"Name of the feature view: {names}."),
        "start": dg.Field(str, is_required=times_needed, description=f"First instant inside: {_TIME}"),
        "end": dg.Field(str, is_required=times_needed, description=f"First instant after: {_TIME}"),
    }

    @dg.op(name=op_name, config_schema=schema, required_resource_keys={resource}, description=description)
    def materialize_range(context: dg.OpExecutionContext) -> None:
        stores: FeatureStores = getattr(context.resources, resource)
        view, interval = _asked_for(workspace, context.op_config)
        context.instance.add_run_tags(context.run_id, {VIEW: view.name, TRIGGER: trigger})
        run = AssetRun(view, view_key(view, prefix), workspace, stores.open(workspace), context.instance, context.log)
        request = MaterializationRequest(interval=interval, trigger=trigger, run_id=context.run_id, overwrite=overwrite)
        key = view_key(view, prefix)
        for event in run.events(request):
            told = event if isinstance(event, dg.AssetMaterialization) else event.evaluation(key)
            context.log_event(told)  # type: ignore[arg-type]  # checks are taken as well

    @dg.config_mapping(config_schema=schema)
    def of_op(given: Mapping[str, Any]) -> dict[str, Any]:
        return {"ops": {op_name: {"config": dict(given)}}}

    @dg.job(name=full_name, config=of_op, tags=_TAGS, executor_def=dg.in_process_executor, description=description)
    def job() -> None:
        materialize_range()

    return job


def _asked_for(workspace: BoundWorkspace, config: Mapping[str, str]) -> tuple[FeatureView, Interval]:
    """Return the view and range of a run's configuration.

    Raises:
        dagster.Failure: The view is not known, writes no store, or a time cannot be read.
    """
    refusal = "the range is empty: nothing is complete yet"
    try:
        view = workspace.repo.view(config["view"])
        first = view.materialization_start
        if view.is_table:
            raise PlanError(f"{view.name}: it is a feature table, whose rows are ingested; run the job 'ingest'")
        if first is None:
            raise PlanError(f"{view.name}: it writes no store; there is nothing to materialize")
        start = datetime.fromisoformat(config["start"]) if "start" in config else first
        end = datetime.fromisoformat(config["end"]) if "end" in config else last_ready_end(view, workspace.now())
        if as_utc(start) < as_utc(end):
            return view, Interval(start, end)
    except (FeatureKitError, ValueError) as error:
        refusal = str(error)
    raise dg.Failure(description=refusal, allow_retries=False)
