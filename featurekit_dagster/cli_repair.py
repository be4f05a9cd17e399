"""`featurekit repair`: coverage read back from the stores into the ledger, and told to Dagster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurekit_dagster.cli_options import AsJson, ViewNames, WorkspaceName, open_workspace
from featurekit_dagster.cli_output import (
    count_of,
    open_console,
    print_json,
    print_line,
    print_notes,
    print_table,
    short_intervals,
)

if TYPE_CHECKING:
    from rich.console import Console

    from featurekit_dagster.domain.feature_view import FeatureView
    from featurekit_dagster.execution.repair import Repair
    from featurekit_dagster.orchestration.marks import MarksRepair
    from featurekit_dagster.sdk import Workspace

OnReported = Callable[[str, int, int], None]


def repair(
    views: ViewNames = None,
    dagster: Annotated[
        bool, typer.Option("--dagster/--no-dagster", help="Also tell Dagster what is covered, or leave it alone.")
    ] = True,
    workspace: WorkspaceName = None,
    json: AsJson = False,
) -> None:
    """Tell the ledger, and Dagster, what the stores hold.

    For a ledger that was lost or does not agree with the stores. The history of jobs is not restored. Covered
    partitions that Dagster does not show as materialized are reported to it, as events without a run.
    """
    from featurekit_dagster.execution.repair import repair_coverage

    bound = open_workspace(workspace)
    chosen = [bound.repo.view(name) for name in dict.fromkeys(views)] if views else list(bound.repo.views)
    found = list(repair_coverage(chosen, bound.stores))
    console = open_console()
    if not json:
        _print_stores(console, found)
    marks = _repaired_marks(bound, chosen, open_console(stderr=True), quiet=json) if dagster else None
    if json:
        stores = [
            {"view": r.view, "store": r.store, "generation": r.generation, "before": r.before, "after": r.after}
            for r in found
        ]
        told = [{"view": m.view, "reported": m.reported, "wrongly_shown": m.wrong} for m in marks or ()]
        print_json({"stores": stores, "dagster": None if marks is None else told})
    elif marks is not None:
        _print_marks(console, {view.name: view for view in chosen}, marks)


def _repaired_marks(
    workspace: Workspace, views: Sequence[FeatureView], console: Console, *, quiet: bool
) -> list[MarksRepair]:
    from featurekit_dagster.orchestration.marks import repair_marks
    from featurekit_dagster.orchestration.run import open_instance

    with open_instance(workspace) as instance, _progress(console, quiet=quiet) as on_reported:
        found = [repair_marks(view, workspace, instance, on_reported) for view in views]
    return [each for each in found if each is not None]


def _print_stores(console: Console, found: Sequence[Repair]) -> None:
    several = any(r.generation != 1 for r in found)
    rows = [
        (
            r.view,
            *((r.generation,) if several else ()),
            r.store,
            "as it was" if r.before == r.after else short_intervals(r.before),
            short_intervals(r.after),
        )
        for r in found
    ]
    generation = ("Generation",) if several else ()
    print_table(console, ("Feature view", *generation, "Store", "The ledger said", "The store says"), rows)


def _print_marks(console: Console, views: dict[str, FeatureView], marks: Sequence[MarksRepair]) -> None:
    notes = [
        (each.view, f"{count_of(each.reported, 'covered partition')} reported as materialized")
        for each in marks
        if each.reported
    ]
    for each in marks:
        if each.wrong:
            count = sum(interval.duration // views[each.view].batch_schedule for interval in each.wrong)
            notes.append((each.view, f"{count_of(count, 'partition')} shown but not covered, {_remedy(each)}"))
    if notes:
        print_notes(console, notes, title="Dagster")
    else:
        console.print()
        print_line(console, "Dagster shows what is covered.")


def _remedy(marks: MarksRepair) -> str:
    return (
        f"{short_intervals(marks.wrong)}; Dagster cannot take back the marks of single partitions: materialize them, "
        "or wipe the asset in Dagster and repair again"
    )


@contextmanager
def _progress(console: Console, *, quiet: bool) -> Iterator[OnReported]:
    """Show a bar per view whose partitions are reported, on a terminal; elsewhere nothing."""
    if quiet or not console.is_terminal:
        yield lambda view, done, total: None
        return
    from rich.progress import Progress

    with Progress(console=console) as progress:
        bars: dict[str, Any] = {}

        def advance(view: str, done: int, total: int) -> None:
            if view not in bars:
                bars[view] = progress.add_task(f"{view}: telling Dagster", total=total)
            progress.update(bars[view], completed=done)

        yield advance
