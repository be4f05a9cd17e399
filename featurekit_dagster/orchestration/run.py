"""Runs in this process, without a daemon: what `featurekit materialize` and the demo use."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import dagster as dg

from featurekit_dagster.orchestration.assets import view_asset
from featurekit_dagster.orchestration.materializations import BACKFILL, MANUAL
from featurekit_dagster.orchestration.partitions import key_range
from featurekit_dagster.orchestration.resources import BoundWorkspace, FeatureStores, resource_key
from featurekit_dagster.orchestration.schedules import RANGE_END, RANGE_START
from featurekit_dagster.orchestration.translator import run_tags
from featurekit_dagster.planning.tasks import RunPlan

SETTINGS = "dagster.yaml"
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
        settings.write_text(files(__package__).joinpath(SETTINGS).read_text(encoding="utf-8"), encoding="utf-8")
    return folder


def open_instance(workspace: BoundWorkspace) -> dg.DagsterInstance:
    """Return the Dagster instance whose runs and events are kept in `dagster_home`; use it as a context manager."""
    return dg.DagsterInstance.from_config(str(dagster_home(workspace)))


def materialize_in_process(
    workspace: BoundWorkspace,
    run: RunPlan,
    instance: dg.DagsterInstance,
    on_progress: OnProgress | None = None,
) -> dg.ExecuteInProcessResult:
    """Carry out one planned run as one ranged Dagster run in this process, and return when it has ended.

    A plan without overwrite fills what is missing of its range when it starts; one with overwrite replaces all of it.

    Args:
        workspace: Declarations bound to stores and a clock.
        run: The planned run.
        instance: Where Dagster keeps runs and events, see `open_instance`.
        on_progress: Called once before the first partition and after each one.

    Returns:
        Dagster's result. It is not successful when a job failed; `failure_text` says why.
    """
    view = workspace.repo.view(run.view)
    keys, total, done = key_range(view, run.interval), run.interval.duration // view.batch_schedule, 0

    def count(partition: str) -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(Progress(view=view.name, done=done, total=total))

    if on_progress is not None:
        on_progress(Progress(view=view.name, done=0, total=total))
    overwrite = any(task.overwrite for task in run.tasks)
    config = {
        "overwrite": overwrite or None,
        "online": any(task.online for task in run.tasks),
        "offline": any(task.offline for task in run.tasks),
    }
    asset = view_asset(view, workspace, on_partition=count)
    return dg.materialize(
        [asset],
        instance=instance,
        resources={resource_key(None): FeatureStores.of(workspace)},
        run_config={"ops": {asset.node_def.name: {"config": config}}, "loggers": _QUIET},
        tags={**run_tags(view, MANUAL if overwrite else BACKFILL), RANGE_START: keys.start, RANGE_END: keys.end},
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
