"""The public jobs `compaction` and `online_clean_up`, and their daily schedules: online stores are kept small."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import dagster as dg

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.errors import NotKeptOnline
from featurekit_dagster.execution.compaction import clean_up_view, compact_view
from featurekit_dagster.intervals import Interval
from featurekit_dagster.orchestration.chores import Chore, ChoreRun, run_chore
from featurekit_dagster.orchestration.resources import BoundWorkspace
from featurekit_dagster.planning.generations import StoredShape, resolve
from featurekit_dagster.planning.tasks import ONLINE
from featurekit_dagster.stores.ledger_records import COMPACTION, ONLINE_CLEAN_UP, JobRecord
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

_CONFIG = {"views": dg.Field([str], default_value=[], description="Names of feature views; all of them by default.")}


def queue_upkeep(
    kind: str, workspace: BoundWorkspace, stores: WorkspaceStores, names: Sequence[str], trigger: str
) -> list[JobRecord]:
    """Ask for the upkeep of views in the online store and return a job for each, one that waits already included.

    Args:
        kind: COMPACTION or ONLINE_CLEAN_UP.
        workspace: The workspace.
        stores: Where its ledger is.
        names: The views; none are all for which there is anything to do.
        trigger: What asks for it.

    Raises:
        NotKeptOnline: A named view is not written online, or has nothing that could be kept small.
        NotFoundError: There is no view of that name.
    """
    views = [workspace.repo.view(name) for name in dict.fromkeys(names)]
    for view in views:
        if not _is_kept(kind, view):
            raise NotKeptOnline(view=view.name, is_online=view.online)
    chosen = views or [v for v in workspace.repo.views if _is_kept(kind, v) and _is_decided(v, stores)]
    made = [_queued(kind, view, stores, trigger) for view in chosen]
    return [job for job in made if job is not None]


def _is_kept(kind: str, view: FeatureView) -> bool:
    """Tell whether a view has anything online that the kind of chore could make small."""
    return view.online and (view.is_aggregate or (kind == ONLINE_CLEAN_UP and view.ttl is not None))


def _is_decided(view: FeatureView, stores: WorkspaceStores) -> bool:
    """Tell whether what is stored follows the declaration; a changed one waits for a person."""
    records = stores.ledger.generations(stores.workspace, view.name)
    return resolve(StoredShape.of(view), records).write is not None


def _queued(kind: str, view: FeatureView, stores: WorkspaceStores, trigger: str) -> JobRecord | None:
    """Return the job of a view; None where nothing of it is online yet, or another process is at it."""
    spans = list(stores.provided(view, ONLINE))
    if not spans and not view.is_seen_at_once:
        return None
    unfinished = stores.ledger.unfinished_chores(stores.workspace, kind, view.name)
    if unfinished:
        return next((job for job in unfinished if job.next_attempt_at is not None), None)
    now = stores.clock()
    start = min((span.start for span in spans), default=view.feature_start_time or now)
    end = max((min(span.end, now) for span in spans), default=now)
    return stores.ledger.queue_chore(
        workspace=stores.workspace,
        view=view.name,
        kind=kind,
        trigger=trigger,
        interval=Interval(start, max(end, start + timedelta(microseconds=1))),
        request={},
        generation=stores.generation(view, ONLINE),
        online=True,
    )


def _names(kind: str, workspace: BoundWorkspace) -> Iterable[str]:
    return (view.name for view in workspace.repo.views if _is_kept(kind, view))


def _queue(
    kind: str, workspace: BoundWorkspace, stores: WorkspaceStores, config: Mapping[str, Any], trigger: str
) -> list[JobRecord]:
    return queue_upkeep(kind, workspace, stores, config["views"], trigger)


def _carry_out(keep: Callable[..., dict[str, int]], run: ChoreRun) -> Mapping[str, int]:
    view = run.workspace.repo.view(run.job.view)
    return keep(view, run.stores, holder=run.job.id, check=run.check)


ONLINE_COMPACTION = Chore(
    kind=COMPACTION,
    job_name="compaction",
    description="Lay out the online tiles of feature views as large as their windows allow, and trim them.",
    config=_CONFIG,
    names={"views": partial(_names, COMPACTION)},
    queue=partial(_queue, COMPACTION),
    carry_out=partial(_carry_out, compact_view),
    cron="30 3 * * *",
)
CLEAN_UP = Chore(
    kind=ONLINE_CLEAN_UP,
    job_name="online_clean_up",
    description="Remove expired rows, and tiles that no window reaches any more, from the online store.",
    config=_CONFIG,
    names={"views": partial(_names, ONLINE_CLEAN_UP)},
    queue=partial(_queue, ONLINE_CLEAN_UP),
    carry_out=partial(_carry_out, clean_up_view),
    cron="30 4 * * *",
)


def keep_in_process(
    chore: Chore,
    workspace: BoundWorkspace,
    views: Iterable[str],
    instance: dg.DagsterInstance,
    on_job: Callable[[JobRecord], None] | None = None,
) -> dg.ExecuteInProcessResult:
    """Carry out the upkeep of views in this process, as a run that Dagster shows like any other.

    Args:
        chore: `ONLINE_COMPACTION` or `CLEAN_UP`.
        workspace: Declarations bound to stores and a clock.
        views: Names of feature views; none are all for which there is anything to do.
        instance: Where Dagster keeps runs and events.
        on_job: Called with each finished job of the ledger.
    """
    return run_chore(chore, workspace, instance, {"views": list(views)}, on_job)
