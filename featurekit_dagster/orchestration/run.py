"""Runs in this process, without a daemon: what `featurekit materialize` and the demo use."""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import dagster as dg

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.intervals import Interval
from featurekit_dagster.orchestration.assets import view_asset
from featurekit_dagster.orchestration.chore_list import chore_of
from featurekit_dagster.orchestration.chores import JOB_ID, run_chore
from featurekit_dagster.orchestration.due_jobs import DueRun, due_runs, end_orphans, newest_views, run_tags_of
from featurekit_dagster.orchestration.in_process import ONE_RUN
from featurekit_dagster.orchestration.materializations import BACKFILL, MANUAL
from featurekit_dagster.orchestration.partitions import RANGE_END, RANGE_START, key_range
from featurekit_dagster.orchestration.publish import FEATURE_PUBLISH
from featurekit_dagster.orchestration.resources import BoundWorkspace, FeatureStores, resource_key
from featurekit_dagster.orchestration.translator import run_tags
from featurekit_dagster.planning.tasks import RunPlan
from featurekit_dagster.stores.ledger_records import FEATURE_EXPORT

SETTINGS = "dagster.yaml"
_LOCK = ".featurekit.lock"
_SILENCE_SECONDS = 180.0
_QUIET = {"console": {"config": {"log_level": "CRITICAL"}}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is.

    Args:
        view: The feature view.
        done: Partitions that are done.
        total: Partitions of the run.
    """

    view: str
    done: int
    total: int


OnProgress = Callable[[Progress], None]


def dagster_home(workspace: BoundWorkspace) -> Path:
    """Return `$DAGSTER_HOME`, else `<home>/dagster`; settings are put there when there are none."""
    given = os.environ.get("DAGSTER_HOME")
    folder = Path(given) if given else workspace.home / "dagster"
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / SETTINGS
    if not settings.exists():
        whole = folder / f".{SETTINGS}.{uuid.uuid4().hex}"  # another process must not read a part of it
        whole.write_text(files(__package__).joinpath(SETTINGS).read_text(encoding="utf-8"), encoding="utf-8")
        whole.replace(settings)
    return folder


def open_instance(workspace: BoundWorkspace) -> dg.DagsterInstance:
    """Return the Dagster instance whose runs and events are kept in `dagster_home`; use it as a context manager."""
    folder = dagster_home(workspace)
    with open(folder / _LOCK, "a") as lock:  # processes that make Dagster's databases at once break them
        fcntl.flock(lock, fcntl.LOCK_EX)
        return dg.DagsterInstance.from_config(str(folder))


def materialize_in_process(
    workspace: BoundWorkspace,
    run: RunPlan,
    instance: dg.DagsterInstance,
    on_progress: OnProgress | None = None,
) -> dg.ExecuteInProcessResult:
    """Carry out one planned run as one ranged Dagster run in this process, and return when it has ended.

    A plan without overwrite fills what is missing of its range when it starts; one with overwrite replaces all of it.
    A job that fails is tried again by the daemon; where none gives a sign of life this was its only attempt, so that
    asking again does it again. What is to be published then is published here, too.

    Args:
        workspace: Declarations bound to stores and a clock.
        run: The planned run.
        instance: Where Dagster keeps runs and events, see `open_instance`.
        on_progress: Called once before the first partition and after each one.

    Returns:
        Dagster's result. It is not successful when a job failed; `failure_text` says why.
    """
    view = workspace.repo.view(run.view)
    keys = key_range(view, run.interval)
    overwrite = any(task.overwrite for task in run.tasks)
    config = {
        "overwrite": overwrite or None,
        "online": any(task.online for task in run.tasks),
        "offline": any(task.offline for task in run.tasks),
        "managed_retries": has_daemon(instance),
    }
    tags = {**run_tags(view, MANUAL if overwrite else BACKFILL), RANGE_START: keys.start, RANGE_END: keys.end}
    result = _execute(workspace, view, run.interval, tags, config, instance, on_progress)
    if not has_daemon(instance):
        for job in workspace.stores.ledger.unfinished_chores(workspace.name, FEATURE_EXPORT, view.name):
            run_chore(FEATURE_PUBLISH, workspace, instance, {JOB_ID: job.id})
    return result


def run_due(
    workspace: BoundWorkspace, instance: dg.DagsterInstance, job_id: str | None = None
) -> list[dg.ExecuteInProcessResult]:
    """Carry out in this process the jobs that are due, as the sensor of a deployment would; return Dagster's results.

    Args:
        workspace: Declarations bound to stores and a clock.
        instance: Where Dagster keeps runs and events.
        job_id: Only the run that carries this job; all that is due by default.
    """
    ledger, followed = workspace.stores.ledger, newest_views(workspace, workspace.stores)
    end_orphans(ledger, workspace.name, instance)
    waiting = [(job, chore_of(job.kind)) for job in ledger.due(workspace.name) if job.request is not None]
    done = [
        run_chore(chore, workspace, instance, {JOB_ID: job.id})
        for job, chore in waiting
        if chore is not None and job_id in (None, job.id)
    ]
    due = [run for run in due_runs(ledger.due(workspace.name)) if run.view in followed]
    chosen = [run for run in due if job_id is None or any(job.id == job_id for job in run.jobs)]
    return done + [_run_waiting(workspace, run, instance) for run in chosen]


def _run_waiting(workspace: BoundWorkspace, run: DueRun, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    view = workspace.repo.view(run.view)
    return _execute(workspace, view, run.interval, run_tags_of(view, run), {}, instance, None)


def has_daemon(instance: dg.DagsterInstance) -> bool:
    """Tell whether a daemon that starts what is due has given a sign of life within the last minutes."""
    beat = instance.get_daemon_heartbeats().get("SENSOR")
    return beat is not None and time.time() - beat.timestamp < _SILENCE_SECONDS


def _execute(
    workspace: BoundWorkspace,
    view: FeatureView,
    interval: Interval,
    tags: Mapping[str, str],
    config: Mapping[str, Any],
    instance: dg.DagsterInstance,
    on_progress: OnProgress | None,
) -> dg.ExecuteInProcessResult:
    total, done = interval.duration // view.batch_schedule, 0

    def count(partition: str) -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(Progress(view=view.name, done=done, total=total))

    if on_progress is not None:
        on_progress(Progress(view=view.name, done=0, total=total))
    asset = view_asset(view, workspace, on_partition=count)
    with ONE_RUN:
        return dg.materialize(
            [asset],
            instance=instance,
            resources={resource_key(None): FeatureStores.of(workspace)},
            run_config={"ops": {asset.node_def.name: {"config": dict(config)}}, "loggers": _QUIET},
            tags=dict(tags),
            raise_on_error=False,
        )


def failure_text(result: dg.ExecuteInProcessResult) -> str | None:
    """Return why a run failed, as one text for people; None when it did not."""
    if result.success:
        return None
    for event in result.all_events:
        failure = event.step_failure_data if event.is_step_failure else None
        if failure is not None and failure.user_failure_data is not None:
            return failure.user_failure_data.description
    return "the run failed before its first job; see its page in Dagster"
