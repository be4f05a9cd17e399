"""One asset per feature view: a run materializes a contiguous range of its partitions.

The body turns Dagster's keys into an interval, has the recipe carried out, and tells Dagster what is covered now.
"""

# No `from __future__ import annotations`: Dagster wants the type of `context` as an object, not as text.

import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import dagster as dg

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.errors import MaterializationFailed, PlanError
from featurekit_dagster.orchestration.checks import CheckOutcome, check_specs, check_view
from featurekit_dagster.orchestration.materializations import (
    ADOPTED,
    MaterializationRequest,
    failure_of,
    materializations,
)
from featurekit_dagster.orchestration.partitions import interval_of_keys
from featurekit_dagster.orchestration.reconcile import restate_after_run
from featurekit_dagster.orchestration.resources import BoundWorkspace, FeatureStores, resource_key
from featurekit_dagster.orchestration.translator import JOB_BATCH, TRIGGER, run_tags, view_key, view_spec
from featurekit_dagster.planning.planner import check_interval
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

OnPartition = Callable[[str], None]
AssetJob = Any  # what `define_asset_job` returns; its class has no public name


CONFIG = {
    "overwrite": dg.Field(
        dg.Noneable(bool),
        default_value=None,
        is_required=False,
        description="True replaces everything in the range, False refuses a range that is covered already. By default "
        "missing parts are filled, and covered ones are replaced when a person starts the run.",
    ),
    "online": dg.Field(bool, default_value=True, description="Write the online store, where the view has one."),
    "offline": dg.Field(bool, default_value=True, description="Write the offline store, where the view has one."),
    "managed_retries": dg.Field(
        bool,
        default_value=True,
        description="Try a job that fails again: 5 minutes later, then twice as long each time, 10 times in all.",
    ),
}


@dataclass(frozen=True, slots=True)
class AssetRun:
    """One run of one view's asset, whatever started it.

    Args:
        view: The feature view.
        key: Its asset key.
        workspace: The workspace, for its clock.
        stores: Where rows and record are kept.
        instance: Where events are kept.
        log: The run's log.
    """

    view: FeatureView
    key: dg.AssetKey
    workspace: BoundWorkspace
    stores: WorkspaceStores
    instance: dg.DagsterInstance
    log: logging.Logger

    def events(self, request: MaterializationRequest) -> Iterator[dg.AssetMaterialization | CheckOutcome]:
        """Yield the materialization of each partition as its job commits, and the results of the checks at the end.

        Raises:
            dagster.Failure: A job failed or the request was refused; partitions yielded before stay materialized.
        """
        failure: dg.Failure | None = None
        done: set[str] = set()
        try:
            check_interval(self.view, request.interval.start, request.interval.end, self.workspace.now())
            cancelled = partial(_is_cancelled, self.instance, request.run_id)
            for event in materializations(self.view, self.key, request, self.stores, self.log, cancelled):
                done.add(event.partition or "")
                yield event
        except MaterializationFailed as failed:
            failure = failure_of(failed)
        except PlanError as refused:
            failure = dg.Failure(description=str(refused), allow_retries=False)
        restate_after_run(self.view, self.key, self.stores, self.instance, request.interval, done, failed=bool(failure))
        yield from check_view(self.view, self.stores, self.workspace.now(), request.interval)
        if failure is not None:
            raise failure


def _is_cancelled(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Tell whether a person has asked Dagster to end a run."""
    run = instance.get_run_by_id(run_id)
    return run is not None and run.status in (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)


def view_asset(
    view: FeatureView,
    workspace: BoundWorkspace,
    prefix: str | None = None,
    on_partition: OnPartition | None = None,
) -> dg.AssetsDefinition:
    """Return the asset of a view.

    Args:
        view: A view that writes a store.
        workspace: The workspace it is declared in.
        prefix: First part of the asset key, if wanted.
        on_partition: Called with the key of each partition that is done; for progress in this process.
    """
    key, resource = view_key(view, prefix), resource_key(prefix)

    def materialize(context: dg.AssetExecutionContext) -> Iterator[dg.AssetMaterialization | dg.AssetCheckResult]:
        opened: FeatureStores = getattr(context.resources, resource)
        stores = opened.open(workspace)
        chosen = {check.name for check in context.selected_asset_check_keys}
        if not context.selected_asset_keys:
            found: Iterator[dg.AssetMaterialization | CheckOutcome] = check_view(view, stores, workspace.now())
        else:
            run = AssetRun(view, key, workspace, stores, context.instance, context.log)
            if TRIGGER not in context.run.tags:  # so that the view's runs are found whatever started them
                context.instance.add_run_tags(context.run.run_id, run_tags(view, ADOPTED))
            found = run.events(_requested(view, context))
        for event in found:
            if isinstance(event, dg.AssetMaterialization):
                yield event
                if on_partition is not None:
                    on_partition(event.partition or "")
            elif event.name in chosen:
                yield event.result(key)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # backfill_policy; without it a range is one run per partition
        return dg.multi_asset(
            specs=[view_spec(view, workspace, prefix)],
            check_specs=check_specs(view, key),
            can_subset=True,  # the checks can be run alone
            name="__".join(key.path),
            backfill_policy=dg.BackfillPolicy.single_run(),
            config_schema=CONFIG,
            required_resource_keys={resource},
        )(materialize)


def asset_job_of(view: FeatureView, asset: dg.AssetsDefinition) -> AssetJob:
    """Return the job that materializes partitions of one view; its schedule runs it, and `dagster job` can."""
    return dg.define_asset_job(
        f"materialize_{'__'.join(asset.key.path)}",
        # without the check of consistency, which looks at every key online
        selection=dg.AssetSelection.assets(asset).without_checks() | dg.AssetSelection.checks(*asset.check_keys),
        description=f"Materialize partitions of {view.name}.",
        tags=run_tags(view),
        executor_def=dg.in_process_executor,
    )


def _requested(view: FeatureView, context: dg.AssetExecutionContext) -> MaterializationRequest:
    """Return what the run was asked to do, from its partitions, tags and configuration.

    Raises:
        dagster.Failure: It was started without partitions.
    """
    if not context.has_partition_key and not context.has_partition_key_range:
        raise dg.Failure(
            description=f"{view.name}: the run has no partitions; give a partition or a range of them, or run the job "
            "'backfill' with view, start and end",
            allow_retries=False,
        )
    return MaterializationRequest(
        interval=interval_of_keys(view, context.partition_key_range),
        trigger=context.run.tags.get(TRIGGER, ADOPTED),
        run_id=context.run.run_id,
        batch=context.run.tags.get(JOB_BATCH),
        **context.op_execution_context.op_config,
    )
