"""`featurekit apply`: a person's decision about what has changed, and the removal of what nothing uses any more."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurekit_dagster.cli_options import WorkspaceName, open_workspace
from featurekit_dagster.errors import ChangeNotKeepable, TectonValidationError
from featurekit_dagster.intervals import to_us
from featurekit_dagster.planning.fingerprint import fingerprint
from featurekit_dagster.planning.partition_limits import too_many_partitions
from featurekit_dagster.planning.tasks import LedgerSnapshot

if TYPE_CHECKING:
    from featurekit_dagster.cli_plan import PlanReview
    from featurekit_dagster.planning.review import ViewReview
    from featurekit_dagster.sdk import Workspace
    from featurekit_dagster.stores.ledger_records import JobRecord

NEEDS_DECISION = 3
_NEXT = "The schedules do it at their next tick, or run featurekit materialize."
_BATCH_SCHEDULE = "batch_schedule"


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """One thing that was done.

    Args:
        view: The view.
        action: `rebuild`, `keep`, `remove` or `remove_generation`.
        generation: The generation that is written from now on, or was removed; None for a whole view.
        text: What was done, for people.
        job_ids: Jobs that tell it.
    """

    view: str
    action: str
    generation: int | None
    text: str
    job_ids: tuple[str, ...] = ()


def apply(
    views: Annotated[
        list[str] | None, typer.Argument(metavar="VIEW", help="Feature views, also removed ones; all by default.")
    ] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Make what is stored of changed views anew, beside the old.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Let what is stored of changed views stand: no value would differ.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    workspace: WorkspaceName = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text; needs --yes.")] = False,
) -> None:
    """Decide about changed views, and remove what is unused.

    What has changed is what featurekit plan shows; removed is what is declared or used no more.

    Nothing is computed here: a rebuild is carried out by the schedules or featurekit materialize, and reads answer from
    the old rows until the new ones cover as much. Exit code 3 when views have changed and neither --rebuild nor --keep
    is given.
    """
    from featurekit_dagster.cli_output import open_console, print_json, print_line, print_notes, to_the_second
    from featurekit_dagster.cli_plan import DO_IT, PlanReview, plan_records, print_decisions, print_plan

    if rebuild and keep:
        raise typer.BadParameter("give --rebuild or --keep, not both")
    bound = open_workspace(workspace)
    review = PlanReview.of(bound, views)
    if not json:
        title = f"Apply in workspace {bound.name} at {to_the_second(review.now)}"
        print_line(open_console(), title, style="bold")
        print_decisions(open_console(), review)
    _check(review, rebuild=rebuild, keep=keep)
    if _removes_anything(review) or review.decisions:
        _ask(yes=yes, json=json)
    done: list[Done] = []
    try:
        for each in _carry_out(bound, review, rebuild=rebuild):
            done.append(each)
    finally:  # what was done before an error is told, too
        if not json:
            print_notes(open_console(), [(each.view, each.text) for each in done], title="Done")
    left = PlanReview.of(bound, [view.name for view in review.views]) if review.views else None
    if json:
        print_json({"done": [_record(each) for each in done], "plan": plan_records(left) if left else []})
        return
    if not done:
        print_line(open_console(), "There was nothing to apply.")
    if left:
        open_console().print()
        print_plan(open_console(), left, advice=DO_IT if bound.fixed_now else _NEXT)


def _check(review: PlanReview, *, rebuild: bool, keep: bool) -> None:
    """Refuse before anything is done.

    Raises:
        ChangeNotKeepable: What is stored of a view cannot stand.
        TooManyPartitions: A view that would be rebuilt has more partitions than Dagster can take.
    """
    if rebuild:
        changed = {each.plan.view for each in review.decisions}
        for view in review.views:
            too_many = too_many_partitions(view, LedgerSnapshot(), review.now) if view.name in changed else None
            if too_many is not None:
                raise too_many
    if keep:
        for each in review.decisions:
            refused = [change.text for change in each.plan.changes if not change.keepable]
            if refused:
                raise ChangeNotKeepable(view=each.plan.view, changes=refused)
    if review.decisions and not rebuild and not keep:
        names = ", ".join(each.plan.view for each in review.decisions)
        typer.echo(
            f"error: {names} changed, and somebody has to decide what becomes of the stored rows; give --rebuild or "
            "--keep. Nothing was done.",
            err=True,
        )
        raise typer.Exit(NEEDS_DECISION)


def _removes_anything(review: PlanReview) -> bool:
    return bool(review.removed) or any(each.removable_at <= review.now for each in review.retired)


def _ask(*, yes: bool, json: bool) -> None:
    """Ask a person whether to go on.

    Raises:
        TectonValidationError: There is nobody to ask.
        Exit: The answer is no.
    """
    if yes:
        return
    if json or not sys.stdin.isatty():
        raise TectonValidationError(
            "stored rows would be replaced or removed, and there is no terminal to ask at; say --yes. Nothing was done"
        )
    typer.echo()
    if not typer.confirm("Do it?"):
        typer.echo("Nothing was done.")
        raise typer.Exit(1)


def _carry_out(bound: Workspace, review: PlanReview, *, rebuild: bool) -> Iterator[Done]:
    from featurekit_dagster.execution.removal import remove_generation, remove_view

    for each in review.decisions:
        yield _decide(bound, each, rebuild=rebuild)
    for retired in review.retired:
        if retired.removable_at <= review.now:
            job = remove_generation(retired.view, retired.generation, bound.stores)
            text = f"removed generation {retired.generation}, which nothing used any more"
            found = () if job is None else (job,)
            yield _removed(retired.view, "remove_generation", retired.generation, text, found)
    for removed in review.removed:
        jobs = remove_view(removed.view, bound.stores)
        rows = sum(job.stats.get("rows_removed", 0) for job in jobs)
        yield _removed(removed.view, "remove", None, f"removed what was stored of it ({rows:,} offline rows)", jobs)
    for name in review.forgotten:
        remove_view(name, bound.stores)
    wiped = [each.plan.view for each in review.decisions if _has_other_grid(each)]
    wiped += [*(each.view for each in review.removed), *review.forgotten]
    if wiped and _has_dagster(bound):
        from featurekit_dagster.orchestration.wiped_marks import wipe_marks

        wipe_marks(bound, wiped)


def _removed(view: str, action: str, generation: int | None, text: str, jobs: Sequence[JobRecord]) -> Done:
    return Done(view=view, action=action, generation=generation, text=text, job_ids=tuple(job.id for job in jobs))


def _decide(bound: Workspace, each: ViewReview, *, rebuild: bool) -> Done:
    """Let the ledger know what was decided about a changed view; code locations that were loaded before follow this."""
    ledger, view, shape = bound.stores.ledger, each.plan.view, bound.shapes()[each.plan.view]
    ledger.deploy(bound.name, {view: fingerprint(bound.repo.view(view))}, to_us(bound.loaded_at))
    if not rebuild:
        kept = ledger.keep(bound.name, view, shape)
        text = f"generation {kept} stands as it is, under the changed declaration"
        return Done(view=view, action="keep", generation=kept, text=text)
    begun = ledger.rebuild(bound.name, view, shape)
    text = f"generation {begun} is begun; reads answer from generation {each.stored} until it covers as much"
    return Done(view=view, action="rebuild", generation=begun, text=text)


def _has_other_grid(each: ViewReview) -> bool:
    return any(change.what == _BATCH_SCHEDULE for change in each.plan.changes)


def _has_dagster(bound: Workspace) -> bool:
    """Tell whether Dagster has been used here; asking it would make its home."""
    return bool(os.environ.get("DAGSTER_HOME")) or (bound.home / "dagster").exists()


def _record(done: Done) -> dict[str, Any]:
    return {
        "view": done.view,
        "action": done.action,
        "generation": done.generation,
        "text": done.text,
        "job_ids": done.job_ids,
    }
