"""`featurekit refill-online`: an online store that was emptied gets what the offline store has."""

from __future__ import annotations

from typing import Annotated

import typer

from featurekit_dagster.cli_options import AsJson, WorkspaceName, open_workspace
from featurekit_dagster.cli_output import open_console, print_json, print_line, print_table
from featurekit_dagster.planning.job_state import JobState


def refill_online(
    views: Annotated[list[str], typer.Argument(metavar="VIEW", help="Feature views and feature tables.")],
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the jobs, or only ask for them.")] = True,
    workspace: WorkspaceName = None,
    json: AsJson = False,
) -> None:
    """Fill online stores with what only the offline one has.

    For a store that was emptied, or that a view was moved to. The ledger is told first what the store really has; then
    batch jobs write online what lies offline. The source is not read. A feature table is filled at once, without a run.
    """
    bound = open_workspace(workspace)
    handles = [bound.get_feature_view(name) for name in dict.fromkeys(views)]
    jobs = [(handle, job) for handle in handles for job in handle.refill_online()]
    if wait:
        jobs = [
            (h, job if job.state == JobState.SUCCESS else h.wait_for_materialization_job(job.id)) for h, job in jobs
        ]
    rows = [(h.name, j.id, j.state, j.start_time, j.end_time, j.stats.get("rows_online")) for h, j in jobs]
    if json:
        print_json([dict(zip(("view", "job", "state", "start", "end", "rows_online"), r, strict=True)) for r in rows])
        return
    console = open_console()
    if not rows:
        print_line(console, "Nothing is missing online.")
        return
    shown = [(*r[:3], f"{r[3]:%Y-%m-%dT%H:%MZ}", f"{r[4]:%Y-%m-%dT%H:%MZ}" if r[4] else None, r[5]) for r in rows]
    print_table(console, ("Feature view", "Job", "State", "From", "To", "Rows online"), shown)
