"""The public job `online_offline_consistency`: what online reads answer is compared with what is stored offline.

A job of the ledger compares one view. That it was made is its success; what it found is the asset check of the view
and stands in the counts of the job.
"""

# No `from __future__ import annotations`: Dagster wants the type of `context` as an object, not as text.

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import dagster as dg

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.errors import ReadError, TectonValidationError
from featurekit_dagster.intervals import Interval
from featurekit_dagster.orchestration.checks import CheckOutcome
from featurekit_dagster.orchestration.chores import Chore, ChoreRun, run_chore
from featurekit_dagster.orchestration.resources import BoundWorkspace, resource_key
from featurekit_dagster.orchestration.translator import view_key
from featurekit_dagster.planning.grid import last_complete_end
from featurekit_dagster.planning.planner import stores_of
from featurekit_dagster.serving.consistency import SAMPLE, ConsistencyReport, check_consistency
from featurekit_dagster.stores.ledger_records import CONSISTENCY, JobRecord
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

CONSISTENT = "online_as_offline"
WEEKLY = "0 5 * * 0"
DIFFERENCES = ("mismatched", "missing", "extra")
_DIFFERS, _MOST_NAMES = "differs:", 20
_CONFIG = {
    "views": dg.Field([str], default_value=[], description="Names of feature views; all that are online by default."),
    "sample": dg.Field(int, default_value=SAMPLE, description="How many join keys are drawn from each of both stores."),
    "seed": dg.Field(int, default_value=0, description="Another one makes another choice."),
}
OnReport = Callable[[ConsistencyReport], None]


def newest_interval(view: FeatureView, workspace: BoundWorkspace) -> Interval:
    """Return the newest complete batch interval, by which a job about the whole of a view is shown."""
    end = last_complete_end(view, workspace.now())
    return Interval(end - view.batch_schedule, end)


def _queue(
    workspace: BoundWorkspace, stores: WorkspaceStores, config: Mapping[str, Any], trigger: str
) -> list[JobRecord]:
    if config["sample"] < 1:
        raise TectonValidationError(f"sample is {config['sample']}; give at least 1")
    named = [workspace.repo.view(name) for name in dict.fromkeys(config["views"])]
    for view in named:
        if not view.online:
            raise ReadError(f"{view.name} is not materialized online (online=False), so there is nothing to compare")
    chosen = named or [view for view in workspace.repo.views if view.online]
    request = {name: config[name] for name in ("sample", "seed")}
    return [
        stores.ledger.queue_chore(
            workspace=workspace.name,
            view=view.name,
            kind=CONSISTENCY,
            trigger=trigger,
            interval=newest_interval(view, workspace),
            request=request,
            generation=stores.generation(view),
        )
        for view in chosen
    ]


def _names(workspace: BoundWorkspace) -> Iterable[str]:
    return (view.name for view in workspace.repo.views if view.online)


def counts_of(report: ConsistencyReport) -> dict[str, int]:
    """Return what the ledger keeps of a report: counts, and how many answers of which features differ."""
    differing = [each for each in report.features if each.total][:_MOST_NAMES]
    return report.stats() | {f"{_DIFFERS}{each.feature}": each.total for each in differing}


def outcome_of(view: FeatureView, report: ConsistencyReport) -> CheckOutcome:
    """Return the outcome of the asset check; of a stream view, whose two sides may differ for a while, a warning."""
    return CheckOutcome(
        name=CONSISTENT,
        passed=report.is_consistent,
        description=report.description,
        counts=dict(counts_of(report)),
        warns=view.is_stream,
    )


def consistency_check(
    view: FeatureView, workspace: BoundWorkspace, prefix: str | None = None
) -> dg.AssetChecksDefinition:
    """Return the asset check of an online view, which the job tells too; materializations by its own job leave it out.

    Args:
        view: A view that is an asset and is written online.
        workspace: The workspace it is declared in.
        prefix: First part of the asset key, if wanted.
    """
    resource = resource_key(prefix)

    def check(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        stores = getattr(context.op_execution_context.resources, resource).open(workspace)
        return outcome_of(view, check_consistency(view, stores)).result(view_key(view, prefix))

    decorated: dg.AssetChecksDefinition = dg.asset_check(
        asset=view_key(view, prefix),
        name=CONSISTENT,
        description="Online reads of a sample of join keys answer what is stored offline.",
        required_resource_keys={resource},
    )(check)
    return decorated


def _events(
    workspace: BoundWorkspace, stores: WorkspaceStores, job: JobRecord, prefix: str | None
) -> Iterator[dg.AssetCheckEvaluation]:
    """Yield the evaluation of the view's asset check."""
    view = workspace.repo.view(job.view)
    if view.is_table or not stores_of(view):
        return
    total = sum(job.stats[name] for name in DIFFERENCES)
    names = [f"{name.removeprefix(_DIFFERS)} ({count:,})" for name, count in job.stats.items() if _DIFFERS in name]
    compared = f"{job.stats['keys']:,} keys were compared"
    outcome = CheckOutcome(
        name=CONSISTENT,
        passed=not total,
        description=f"{compared}: {', '.join(names)} differ." if total else f"{compared}; all answers are the same.",
        counts=dict(job.stats),
        warns=view.is_stream,
    )
    yield outcome.evaluation(view_key(view, prefix))


def consistency_chore(on_report: OnReport | None = None) -> Chore:
    """Return the kind of chore; whoever carries it out may look at the reports."""

    def carry_out(run: ChoreRun) -> Mapping[str, int]:
        view = run.workspace.repo.view(run.job.view)
        sample, seed = (int(run.request[name]) for name in ("sample", "seed"))
        report = check_consistency(view, run.stores, sample=sample, seed=seed)
        run.log(f"{view.name}: {report.description}")
        if on_report is not None:
            on_report(report)
        return counts_of(report)

    return Chore(
        kind=CONSISTENCY,
        job_name="online_offline_consistency",
        description="Compare what online reads answer with what is stored offline, for a sample of join keys.",
        config=_CONFIG,
        names={"views": _names},
        queue=_queue,
        carry_out=carry_out,
        events=_events,
        cron=WEEKLY,
    )


def compare_in_process(
    workspace: BoundWorkspace,
    views: Iterable[str],
    instance: dg.DagsterInstance,
    on_report: OnReport,
    *,
    sample: int = SAMPLE,
    seed: int = 0,
) -> dg.ExecuteInProcessResult:
    """Compare the stores of views in this process, as a run that Dagster shows like any other.

    Args:
        workspace: Declarations bound to stores and a clock.
        views: Names of feature views; none are all that are online.
        instance: Where Dagster keeps runs and events.
        on_report: Gets the report of each view.
        sample: How many join keys are drawn from each store.
        seed: Another one makes another choice.

    Returns:
        Dagster's result; `run.failure_text` says why it is not successful, which differences are no reason for.
    """
    return run_chore(
        consistency_chore(on_report), workspace, instance, {"views": list(views), "sample": sample, "seed": seed}
    )


ONLINE_OFFLINE_CONSISTENCY = consistency_chore()
