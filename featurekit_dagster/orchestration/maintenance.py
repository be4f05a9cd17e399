"""The public job `delta_maintenance` and its weekly schedule: the offline tables of a workspace are tidied."""

# No `from __future__ import annotations`: Dagster wants the type of `context` as an object, not as text.

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any

import dagster as dg

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.errors import FeatureKitError, TectonValidationError, safe_reason
from featurekit_dagster.execution.maintenance import RETENTION, maintain_view
from featurekit_dagster.orchestration.chores import counts_in_words
from featurekit_dagster.orchestration.due_jobs import newest_views
from featurekit_dagster.orchestration.in_process import ONE_RUN
from featurekit_dagster.orchestration.launchpad import with_names
from featurekit_dagster.orchestration.materializations import MANUAL, SCHEDULE
from featurekit_dagster.orchestration.resources import BoundWorkspace, FeatureStores, resource_key
from featurekit_dagster.orchestration.translator import KIND, TRIGGER, view_key
from featurekit_dagster.planning.planner import stores_of
from featurekit_dagster.stores.ledger_records import DELTA_MAINTENANCE, JobRecord

JOB_NAME = "delta_maintenance"
WEEKLY = "0 3 * * 0"
_HOUR = timedelta(hours=1)
_TAGS = {KIND: DELTA_MAINTENANCE, "dagster/max_retries": "0"}
_QUIET = {"console": {"config": {"log_level": "CRITICAL"}}}
_SCHEMA = {
    "views": dg.Field([str], default_value=[], description="Names of feature views; all of them by default."),
    "retention_hours": dg.Field(
        int,
        default_value=RETENTION // _HOUR,
        description="How long files are kept that newer ones have replaced. A read that lasts longer fails.",
    ),
}
_DESCRIPTION = (
    "Tidy the offline tables: sort what was written in parts since the last time, delete old files, and remove what "
    "nothing uses any more."
)
OnJob = Callable[[JobRecord], None]


def maintenance_job(workspace: BoundWorkspace, prefix: str | None = None) -> dg.JobDefinition:
    """Return the job that maintains the tables of all views, or of those in its configuration."""
    name = _name(prefix)
    maintain = _maintenance_op(workspace, prefix, None)

    @dg.config_mapping(config_schema=_schema(workspace))
    def of_op(given: dict[str, Any]) -> dict[str, Any]:
        return {"ops": {maintain.name: {"config": dict(given)}}}

    @dg.job(name=name, config=of_op, tags=_TAGS, executor_def=dg.in_process_executor, description=_DESCRIPTION)
    def job() -> None:
        maintain()

    return job


def maintenance_schedule(
    workspace: BoundWorkspace, job: dg.JobDefinition, prefix: str | None = None
) -> dg.ScheduleDefinition:
    """Return the schedule that maintains all tables every seven days; off at first where the clock stands still."""
    fixed = workspace.fixed_now is not None
    return dg.ScheduleDefinition(
        name=f"{_name(prefix)}_schedule",
        job=job,
        cron_schedule=WEEKLY,
        execution_timezone="UTC",
        tags={TRIGGER: SCHEDULE},
        default_status=dg.DefaultScheduleStatus.STOPPED if fixed else dg.DefaultScheduleStatus.RUNNING,
        description="Maintains the offline tables of all feature views every Sunday.",
    )


def maintain_in_process(
    workspace: BoundWorkspace,
    views: Iterable[str],
    instance: dg.DagsterInstance,
    retention: timedelta = RETENTION,
    on_job: OnJob | None = None,
) -> dg.ExecuteInProcessResult:
    """Carry out the job in this process, as a run that Dagster shows like any other.

    Args:
        workspace: Declarations bound to stores and a clock.
        views: Names of feature views; none are all.
        instance: Where Dagster keeps runs and events.
        retention: How long replaced files are kept, whole hours.
        on_job: Called with each finished job of the ledger.

    Returns:
        Dagster's result; `run.failure_text` says why it is not successful.

    Raises:
        TectonValidationError: The retention is negative.
    """
    if retention < timedelta(0):
        raise TectonValidationError(f"retention is {retention}; give a time of at least 0, 7 days by default")
    maintain = _maintenance_op(workspace, None, on_job)

    @dg.job(name=JOB_NAME, tags=_TAGS, executor_def=dg.in_process_executor, description=_DESCRIPTION)
    def job() -> None:
        maintain()

    given = {"views": list(views), "retention_hours": retention // _HOUR}
    with ONE_RUN:
        return job.execute_in_process(
            instance=instance,
            resources={resource_key(None): FeatureStores.of(workspace)},
            run_config={"ops": {maintain.name: {"config": given}}, "loggers": _QUIET},
            tags={TRIGGER: MANUAL},
            raise_on_error=False,
        )


def _maintenance_op(workspace: BoundWorkspace, prefix: str | None, on_job: OnJob | None) -> dg.OpDefinition:
    resource = resource_key(prefix)

    @dg.op(
        name=f"{_name(prefix)}_tables",
        config_schema=_schema(workspace),
        required_resource_keys={resource},
        description=_DESCRIPTION,
    )
    def maintain(context: dg.OpExecutionContext) -> None:
        opened: FeatureStores = getattr(context.resources, resource)
        stores, config = opened.open(workspace), context.op_config
        views, failed = _chosen(workspace, config["views"]), {}
        newest = newest_views(workspace, stores, views)
        for view in views:
            if view.name not in newest:
                context.log.info(f"{view.name}: a code location that was loaded later has other code of it; left alone")
                continue
            try:
                jobs = maintain_view(
                    view,
                    stores,
                    trigger=context.run.tags.get(TRIGGER, MANUAL),
                    run_id=context.run_id,
                    retention=config["retention_hours"] * _HOUR,
                )
                for job in jobs:
                    _tell(context, view, job, prefix)
                    if on_job is not None:
                        on_job(job)
            except Exception as error:  # noqa: BLE001 - kept, and told once the other views were maintained
                failed[view.name] = safe_reason(error)
        if failed:
            text = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
            raise dg.Failure(description=text, allow_retries=False) from None

    return maintain


def _tell(context: dg.OpExecutionContext, view: FeatureView, job: JobRecord, prefix: str | None) -> None:
    """Log what was done, and show it with the view's asset."""
    facts = counts_in_words(job.stats)
    context.log.info(f"{view.name}: job {job.id} of generation {job.generation}: {facts}")
    metadata: dict[str, Any] = {f"featurekit/{name}": count for name, count in job.stats.items()}
    metadata |= {"featurekit/job": job.id, "featurekit/kind": job.kind, "featurekit/generation": job.generation}
    context.log_event(dg.AssetObservation(asset_key=view_key(view, prefix), metadata=metadata))


def _schema(workspace: BoundWorkspace) -> dict[str, dg.Field]:
    names = (view.name for view in workspace.repo.views if stores_of(view))
    return _SCHEMA | {"views": with_names(_SCHEMA["views"], names)}


def _chosen(workspace: BoundWorkspace, names: Sequence[str]) -> list[FeatureView]:
    """Return the views of a run's configuration.

    Raises:
        dagster.Failure: A name is not known.
    """
    try:
        named = [workspace.repo.view(name) for name in dict.fromkeys(names)]
    except FeatureKitError as error:
        refusal = str(error)
    else:
        return named or [view for view in workspace.repo.views if stores_of(view)]
    raise dg.Failure(description=refusal, allow_retries=False)


def _name(prefix: str | None) -> str:
    return f"{prefix}_{JOB_NAME}" if prefix else JOB_NAME
