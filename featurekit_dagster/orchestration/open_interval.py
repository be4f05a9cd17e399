"""The public job `fill_open_interval`: online jobs of stream views whose interval has not ended.

Dagster has no partition for such an interval, so these jobs are chores: they claim no range and report no partition.
"""

# No `from __future__ import annotations`: Dagster wants the types of its fields as objects.

from collections.abc import Mapping
from typing import Any

import dagster as dg

from featurekit_dagster.execution.open_interval import fill_open_interval, queue_open_interval
from featurekit_dagster.orchestration.chores import Chore, ChoreRun
from featurekit_dagster.orchestration.resources import BoundWorkspace
from featurekit_dagster.planning.planner import check_interval, open_interval
from featurekit_dagster.stores.ledger_records import BATCH, JobRecord
from featurekit_dagster.stores.workspace_stores import WorkspaceStores


def _queue(
    workspace: BoundWorkspace, stores: WorkspaceStores, config: Mapping[str, Any], trigger: str
) -> list[JobRecord]:
    """Return the job that fills the current interval of a view.

    Raises:
        NotFoundError: There is no such view.
        PlanError: It follows no stream online, or has no batch jobs.
    """
    view, now = workspace.repo.view(config.get("view", "")), workspace.now()
    interval = open_interval(view, now)
    check_interval(view, interval.start, interval.end, now, is_open=True)
    return [queue_open_interval(view, interval, stores, trigger=trigger)]


def _carry_out(run: ChoreRun) -> Mapping[str, int]:
    view = run.workspace.repo.view(run.job.view)
    return fill_open_interval(view, run.job.interval, run.stores, run.check, run.job.id)


OPEN_INTERVAL = Chore(
    kind=BATCH,
    job_name="fill_open_interval",
    description="Write online what the batch source of a stream view has of the current interval, up to now.",
    config={"view": dg.Field(str, is_required=False, description="Needed: name of a stream view with online=True.")},
    names={"view": lambda workspace: (view.name for view in workspace.repo.views if view.is_stream and view.online)},
    queue=_queue,
    carry_out=_carry_out,
)
