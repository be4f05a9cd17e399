"""`featurekit maintain`: the offline tables of a workspace are tidied."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from featurekit_dagster.cli_options import AsJson, ViewNames, WorkspaceName, open_workspace
from featurekit_dagster.cli_output import open_console, print_json, print_line, print_table
from featurekit_dagster.errors import MaintenanceFailed

if TYPE_CHECKING:
    from featurekit_dagster.stores.ledger_records import JobRecord


def maintain(
    views: ViewNames = None,
    retention_hours: Annotated[
        int, typer.Option("--retention-hours", min=0, help="Keep replaced files for so long; reads last less.")
    ] = 168,
    workspace: WorkspaceName = None,
    json: AsJson = False,
) -> None:
    """Tidy the offline tables.

    What was written in parts is sorted, and files are deleted that newer ones have replaced. The Dagster job
    delta_maintenance does the same every week; this is one run of it, in this process. Columns and generations that
    nothing uses any more go, too. No row changes. Doing it again after an error does what is left.
    """
    from featurekit_dagster.orchestration.maintenance import maintain_in_process
    from featurekit_dagster.orchestration.run import failure_text, open_instance

    bound = open_workspace(workspace)
    names = [bound.repo.view(name).name for name in dict.fromkeys(views or ())]
    jobs: list[JobRecord] = []
    with open_instance(bound) as instance:
        result = maintain_in_process(bound, names, instance, timedelta(hours=retention_hours), on_job=jobs.append)
    if json:
        shown = ("id", "view", "generation", "kind", "state", "stats")
        print_json({name: getattr(job, name) for name in shown} for job in jobs)
    else:
        _print_jobs(jobs)
    failure = failure_text(result)
    if failure is not None:
        raise MaintenanceFailed(reason=failure)


def _print_jobs(jobs: Sequence[JobRecord]) -> None:
    console = open_console()
    if not jobs:
        print_line(console, "There is no table to maintain.")
        return
    titles = ("Feature view", "Generation", "Partitions sorted", "Files", "Megabytes", "Files deleted")
    rows: list[tuple[object, ...]] = []
    for job in jobs:
        stats = job.stats
        if "files_before" not in stats:
            rows.append((job.view, job.generation, "removed, nothing used it", None, None, None))
            continue
        files = f"{stats['files_before']:,} -> {stats['files_after']:,}"
        megabytes = " -> ".join(f"{stats[name] / 1e6:,.1f}" for name in ("bytes_before", "bytes_after"))
        rows.append((job.view, job.generation, stats["partitions_sorted"], files, megabytes, stats["files_deleted"]))
    print_table(console, titles, rows)
