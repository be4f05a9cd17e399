"""Chores in Dagster: one public job for each kind, whose runs carry out jobs of the ledger that claim no range.

A run from the launchpad or a schedule makes its jobs in the ledger and carries them out. One that the sensor of due
jobs has started carries out the job in its configuration, which somebody asked for elsewhere or which is tried again.
"""

# No `from __future__ import annotations`: Dagster wants the type of `context` as an object, not as text.

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from featurekit_dagster.errors import FeatureKitError, JobNotWaiting, JobStateError, JobStopped, safe_reason
from featurekit_dagster.execution.cancellation import StopWatch, stop_watch
from featurekit_dagster.orchestration.in_process import ONE_RUN
from featurekit_dagster.orchestration.launchpad import with_names
from featurekit_dagster.orchestration.materializations import MANUAL, SCHEDULE
from featurekit_dagster.orchestration.resources import BoundWorkspace, FeatureStores, resource_key
from featurekit_dagster.orchestration.translator import KIND, TRIGGER, UNFINISHED, VIEW, view_key
from featurekit_dagster.planning.job_state import JobState
from featurekit_dagster.planning.planner import stores_of
from featurekit_dagster.stores.ledger_records import JobRecord
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

JOB = "featurekit/job"
JOB_ID = "job_id"
_QUIET = {"console": {"config": {"log_level": "CRITICAL"}}}
_JOB_ID_FIELD = dg.Field(
    str,
    is_required=False,
    description="Id of a job that waits already, as `featurekit jobs` lists it; then nothing else counts here.",
)
Told = dg.AssetMaterialization | dg.AssetCheckEvaluation
Names = Callable[[BoundWorkspace], Iterable[str]]
Events = Callable[[BoundWorkspace, WorkspaceStores, JobRecord, str | None], Iterable[Told]]


@dataclass(frozen=True, slots=True)
class ChoreRun:
    """One attempt of a chore, as the code that does it sees it.

    Args:
        workspace: The workspace, for its declarations and its clock.
        stores: Where rows and record are kept.
        job: The job, whose `request` says what is wanted.
        log: Takes a line for people, without keys or values.
        instance: Where Dagster keeps runs and events.
        watch: Knows whether the job was told to end.
    """

    workspace: BoundWorkspace
    stores: WorkspaceStores
    job: JobRecord
    log: Callable[[str], None]
    instance: dg.DagsterInstance
    watch: StopWatch

    @property
    def request(self) -> Mapping[str, Any]:
        """What was asked for."""
        return self.job.request or {}

    def check(self) -> None:
        """Look whether to go on; call it before whatever cannot be taken back.

        Raises:
            JobStopped: The job was told to end.
            JobStateError: Somebody else has ended the attempt.
        """
        self.watch.check()


@dataclass(frozen=True, slots=True, kw_only=True)
class Chore:
    """A kind of chore and the public Dagster job that carries it out.

    Args:
        kind: What the ledger calls it.
        job_name: Name of the Dagster job.
        description: What it does, for people.
        config: What may be asked for in the launchpad. No field may be required by Dagster, since a run that carries
            out a job of the ledger gives none; `queue` says what is missing.
        queue: Makes the jobs of what was asked for, given workspace, stores, configuration and trigger.
        carry_out: Does one job and returns counts of what was done. It can be repeated.
        names: Fields of `config` that take a name, with what returns those that there are.
        events: Returns what a job that was done has materialized or checked, given workspace, stores, job and prefix.
        cron: When a schedule asks for it with the defaults of `config`; None for no schedule.
    """

    kind: str
    job_name: str
    description: str
    config: Mapping[str, dg.Field]
    queue: Callable[[BoundWorkspace, WorkspaceStores, Mapping[str, Any], str], list[JobRecord]]
    carry_out: Callable[[ChoreRun], Mapping[str, int]]
    names: Mapping[str, Names] = field(default_factory=dict)
    cron: str | None = None
    events: Events | None = None

    def name(self, prefix: str | None) -> str:
        """Return the name of the Dagster job."""
        return f"{prefix}_{self.job_name}" if prefix else self.job_name


def chore_job(chore: Chore, workspace: BoundWorkspace, prefix: str | None = None) -> dg.JobDefinition:
    """Return the public job of a kind of chore."""
    op = _op(chore, workspace, prefix, None)

    @dg.config_mapping(config_schema=_schema(chore, workspace))
    def of_op(given: dict[str, Any]) -> dict[str, Any]:
        return {"ops": {op.name: {"config": dict(given)}}}

    @dg.job(
        name=chore.name(prefix),
        config=of_op,
        # bound here: a sensor whose jobs Dagster binds later is made again by it, with a warning of its own
        resource_defs={resource_key(prefix): FeatureStores.of(workspace)},
        tags=_tags(chore),
        executor_def=dg.in_process_executor,
        description=chore.description,
    )
    def job() -> None:
        op()

    return job


def chore_schedule(
    chore: Chore, job: dg.JobDefinition, workspace: BoundWorkspace, cron: str, prefix: str | None = None
) -> dg.ScheduleDefinition:
    """Return the schedule of a kind of chore; off at first where the clock stands still."""
    fixed = workspace.fixed_now is not None
    return dg.ScheduleDefinition(
        name=f"{chore.name(prefix)}_schedule",
        job=job,
        cron_schedule=cron,
        execution_timezone="UTC",
        tags={TRIGGER: SCHEDULE},
        default_status=dg.DefaultScheduleStatus.STOPPED if fixed else dg.DefaultScheduleStatus.RUNNING,
        description=chore.description,
    )


def chore_requests(
    chores: Iterable[Chore],
    workspace: BoundWorkspace,
    stores: WorkspaceStores,
    instance: dg.DagsterInstance,
    prefix: str | None = None,
) -> Iterator[dg.RunRequest]:
    """Yield a run for every chore that is due and has none on its way; one whose run was cancelled is cancelled."""
    by_kind = {chore.kind: chore for chore in chores}
    for job in stores.ledger.due(workspace.name):
        chore = by_kind.get(job.kind)
        if chore is None or job.request is None:
            continue
        runs = instance.get_runs(dg.RunsFilter(job_name=chore.name(prefix), tags={JOB: job.id}))
        if any(run.status in UNFINISHED for run in runs):
            continue
        begun = {attempt.run_id for attempt in job.attempts}
        if any(run.status is dg.DagsterRunStatus.CANCELED and run.run_id not in begun for run in runs):
            stores.ledger.cancel(job.id)
            continue
        yield dg.RunRequest(
            run_key=f"{job.id}:{len(job.attempts)}.{len(runs)}",
            job_name=chore.name(prefix),
            run_config={JOB_ID: job.id},
            tags={JOB: job.id, TRIGGER: job.trigger} | ({VIEW: job.view} if job.view else {}),
        )


def run_chore(
    chore: Chore,
    workspace: BoundWorkspace,
    instance: dg.DagsterInstance,
    config: Mapping[str, Any],
    on_job: Callable[[JobRecord], None] | None = None,
) -> dg.ExecuteInProcessResult:
    """Carry out chores in this process, as a run that Dagster shows like any other.

    Args:
        chore: What is done.
        workspace: Declarations bound to stores and a clock.
        instance: Where Dagster keeps runs and events.
        config: As in the launchpad, or `{"job_id": ...}` of a job that waits.
        on_job: Called with each job that was done.

    Returns:
        Dagster's result; `run.failure_text` says why it is not successful.
    """
    op = _op(chore, workspace, None, on_job)

    @dg.job(name=chore.job_name, tags=_tags(chore), executor_def=dg.in_process_executor, description=chore.description)
    def job() -> None:
        op()

    with ONE_RUN:
        return job.execute_in_process(
            instance=instance,
            resources={resource_key(None): FeatureStores.of(workspace)},
            run_config={"ops": {op.name: {"config": dict(config)}}, "loggers": _QUIET},
            tags={TRIGGER: MANUAL} | ({JOB: config[JOB_ID]} if JOB_ID in config else {}),
            raise_on_error=False,
        )


def _op(
    chore: Chore, workspace: BoundWorkspace, prefix: str | None, on_job: Callable[[JobRecord], None] | None
) -> dg.OpDefinition:
    resource = resource_key(prefix)

    @dg.op(
        name=f"{chore.name(prefix)}_jobs",
        config_schema=_schema(chore, workspace),
        required_resource_keys={resource},
        description=chore.description,
    )
    def carry_out(context: dg.OpExecutionContext) -> None:
        opened: FeatureStores = getattr(context.resources, resource)
        stores, failed = opened.open(workspace), []
        asked = _asked_for(chore, workspace, stores, context)
        _tag_run(context, asked)
        for job in asked:
            try:
                done = carry_out_job(chore, workspace, stores, job, context)
            except JobNotWaiting:
                context.log.info(f"job {job.id} does not wait any more; there is nothing to do")
            except Exception as error:  # noqa: BLE001 - kept, and told once the other jobs were tried
                failed.append(f"job {job.id}: {safe_reason(error)}")
            else:
                _tell(context, workspace, done, prefix)
                for event in chore.events(workspace, stores, done, prefix) if chore.events is not None else ():
                    context.log_event(event)  # type: ignore[arg-type]  # checks are taken as well
                if on_job is not None:
                    on_job(done)
        if failed:
            raise dg.Failure(description="; ".join(failed), allow_retries=False) from None

    return carry_out


def _asked_for(
    chore: Chore, workspace: BoundWorkspace, stores: WorkspaceStores, context: dg.OpExecutionContext
) -> list[JobRecord]:
    """Return the jobs that a run is to carry out.

    Raises:
        dagster.Failure: What was asked for cannot be done, or there is no such job.
    """
    config = dict(context.op_config)
    trigger = context.run.tags.get(TRIGGER, MANUAL)
    try:
        job_id = config.pop(JOB_ID, None)
        if job_id is not None:
            return [stores.ledger.job(job_id)]
        return chore.queue(workspace, stores, config, trigger)
    except FeatureKitError as error:
        refusal = str(error)
    raise dg.Failure(description=refusal, allow_retries=False)


def _tag_run(context: dg.OpExecutionContext, asked: Sequence[JobRecord]) -> None:
    """Let people find a run by its view, if it is about one, and see what asked for it, whatever has started it."""
    views, triggers = {job.view for job in asked}, {job.trigger for job in asked}
    found = {VIEW: views, TRIGGER: triggers}
    tags = {name: min(values) for name, values in found.items() if len(values) == 1 and name not in context.run.tags}
    context.instance.add_run_tags(context.run_id, {name: value for name, value in tags.items() if value})


def carry_out_job(
    chore: Chore,
    workspace: BoundWorkspace,
    stores: WorkspaceStores,
    job: JobRecord,
    context: dg.OpExecutionContext,
) -> JobRecord:
    """Do one attempt of a job and record how it ended.

    Raises:
        JobNotWaiting: Somebody else does it, or it has ended.
        JobStopped: It was told to end.
    """
    ledger = stores.ledger
    begun = ledger.begin(job.id, run_id=context.run_id)
    try:
        with stop_watch(ledger, begun.id, None) as watch:
            run = ChoreRun(workspace, stores, begun, context.log.info, context.instance, watch)
            try:
                return ledger.finish_chore(begun.id, stats=chore.carry_out(run))
            except Exception as error:
                with suppress(JobStateError):  # somebody else has ended the attempt
                    if watch.is_told or isinstance(error, JobStopped):
                        ledger.stop(begun.id, reason="it was told to end")
                    else:
                        permanent = not getattr(error, "retryable", True)
                        ledger.fail(begun.id, reason=safe_reason(error), permanent=permanent)
                if watch.is_told:
                    raise JobStopped(job_id=begun.id) from error
                raise
    finally:
        _end_interrupted(stores, begun.id, context)


def _end_interrupted(stores: WorkspaceStores, job_id: str, context: dg.OpExecutionContext) -> None:
    """Record what an interrupt left running: cancelled if a person wanted it, else lost, so that it is tried again."""
    job = stores.ledger.job(job_id)
    if JobState(job.state).is_final or job.next_attempt_at is not None or job.attempts[-1].run_id != context.run_id:
        return
    run = context.instance.get_run_by_id(context.run_id)
    if run is not None and run.status in (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED):
        stores.ledger.stop(job_id, reason="its run was cancelled in Dagster")
    else:
        stores.ledger.abandon([job_id], reason="its run was ended before it was done")


def _tell(context: dg.OpExecutionContext, workspace: BoundWorkspace, job: JobRecord, prefix: str | None) -> None:
    """Log what was done, and show it with the view's asset."""
    context.log.info(f"{job.view or workspace.name}: job {job.id} ({job.kind}): {counts_in_words(job.stats)}")
    view = next((view for view in workspace.repo.views if view.name == job.view), None)
    if view is None or not stores_of(view):
        return
    metadata: dict[str, Any] = {f"featurekit/{name}": count for name, count in job.stats.items()}
    metadata |= {"featurekit/job": job.id, "featurekit/kind": job.kind}
    context.log_event(dg.AssetObservation(asset_key=view_key(view, prefix), metadata=metadata))


def counts_in_words(stats: Mapping[str, int]) -> str:
    """Return the counts of a job that was done as one line."""
    return ", ".join(f"{name} {count:,}" for name, count in stats.items()) or "done"


def _schema(chore: Chore, workspace: BoundWorkspace) -> dict[str, dg.Field]:
    named = {name: with_names(chore.config[name], names(workspace)) for name, names in chore.names.items()}
    return {**chore.config, **named, JOB_ID: _JOB_ID_FIELD}


def _tags(chore: Chore) -> dict[str, str]:
    return {KIND: chore.kind, "dagster/max_retries": "0"}
