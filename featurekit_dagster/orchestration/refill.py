"""The public job `refill_online`: an online store that was emptied gets what the offline store has."""

# No `from __future__ import annotations`: Dagster wants the type of `context` as an object, not as text.

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import dagster as dg

from featurekit_dagster.errors import FeatureKitError
from featurekit_dagster.execution.refill import look_for_gaps
from featurekit_dagster.execution.table_ingest import REFILL, refill_table
from featurekit_dagster.orchestration.assets import AssetRun
from featurekit_dagster.orchestration.launchpad import some_of
from featurekit_dagster.orchestration.materializations import MaterializationRequest
from featurekit_dagster.orchestration.resources import BoundWorkspace, FeatureStores, resource_key
from featurekit_dagster.orchestration.tables import ingest_event, tables_of
from featurekit_dagster.orchestration.translator import BATCH, KIND, TRIGGER, VIEW, view_key

P = ParamSpec("P")
T = TypeVar("T")
JOB_NAME = "refill_online"
_TAGS = {KIND: BATCH, "dagster/max_retries": "0"}
_DESCRIPTION = "Fill the online store of a feature view with what it lacks of the offline store."


def refill_job(workspace: BoundWorkspace, prefix: str | None = None) -> dg.JobDefinition:
    """Return the job that refills the online store of the view in its configuration."""
    name, resource = f"{prefix}_{JOB_NAME}" if prefix else JOB_NAME, resource_key(prefix)
    names = some_of(v.name for v in workspace.repo.views if v.online and v.offline)
    schema = {"view": dg.Field(str, description=f"Name of the feature view: {names}.")}

    @dg.op(name=f"{name}_view", config_schema=schema, required_resource_keys={resource}, description=_DESCRIPTION)
    def refill(context: dg.OpExecutionContext) -> None:
        opened: FeatureStores = getattr(context.resources, resource)
        stores = opened.open(workspace)
        name = context.op_config["view"]
        table = next((each for each in tables_of(workspace) if each.name == name), None)
        if table is not None:
            context.instance.add_run_tags(context.run_id, {VIEW: name, TRIGGER: REFILL})
            for job in _allowed(refill_table, table, stores, run_id=context.run_id):
                context.log_event(ingest_event(table, job, prefix))
            return
        found = _allowed(lambda: look_for_gaps(workspace.repo.view(name), stores))
        view = workspace.repo.view(found.view)
        context.instance.add_run_tags(context.run_id, {VIEW: view.name, TRIGGER: REFILL})
        key = view_key(view, prefix)
        run = AssetRun(view, key, workspace, stores, context.instance, context.log)
        for interval in found.missing:
            request = MaterializationRequest(interval=interval, trigger=REFILL, run_id=context.run_id, overwrite=None)
            for event in run.events(request):
                told = event if isinstance(event, dg.AssetMaterialization) else event.evaluation(key)
                context.log_event(told)  # type: ignore[arg-type]  # checks are taken as well

    @dg.config_mapping(config_schema=schema)
    def of_op(given: dict[str, Any]) -> dict[str, Any]:
        return {"ops": {refill.name: {"config": dict(given)}}}

    @dg.job(name=name, config=of_op, tags=_TAGS, executor_def=dg.in_process_executor, description=_DESCRIPTION)
    def job() -> None:
        refill()

    return job


def _allowed(look: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    """Return what a call does.

    Raises:
        dagster.Failure: The view is not known, is written by a job now, or has no history to be refilled from.
    """
    try:
        return look(*given, **named)
    except FeatureKitError as error:
        refusal = str(error)
    raise dg.Failure(description=refusal, allow_retries=False)
