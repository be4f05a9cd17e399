"""`featurekit compact` and `featurekit clean-up`: what lies online is kept small."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from featurekit_dagster.cli_options import AsJson, ViewNames, WorkspaceName, open_workspace
from featurekit_dagster.errors import OnlineUpkeepFailed

if TYPE_CHECKING:
    from featurekit_dagster.stores.ledger_records import JobRecord


def compact(views: ViewNames = None, workspace: WorkspaceName = None, json: AsJson = False) -> None:
    """Lay out online tiles as large as windows allow.

    What no window reaches any more is trimmed. No answer changes. The Dagster job compaction does the same every day;
    this is one run of it, in this process.
    """
    _keep("compaction", views, workspace, json)


def clean_up(views: ViewNames = None, workspace: WorkspaceName = None, json: AsJson = False) -> None:
    """Remove from the online store what no read asks for.

    These are expired rows, and tiles that no window reaches any more. No answer changes. The Dagster job
    online_clean_up does the same every day; this is one run of it, in this process.
    """
    _keep("online_clean_up", views, workspace, json)


def _keep(job_name: str, views: list[str] | None, workspace: str | None, json: bool) -> None:
    from featurekit_dagster.cli_output import open_console, print_json, print_line, print_table
    from featurekit_dagster.orchestration.compaction import CLEAN_UP, ONLINE_COMPACTION, keep_in_process
    from featurekit_dagster.orchestration.run import failure_text, open_instance

    bound = open_workspace(workspace)
    chore = next(each for each in (ONLINE_COMPACTION, CLEAN_UP) if each.job_name == job_name)
    jobs: list[JobRecord] = []
    with open_instance(bound) as instance:
        result = keep_in_process(chore, bound, dict.fromkeys(views or ()), instance, on_job=jobs.append)
    if json:
        shown = ("id", "view", "kind", "state", "stats")
        print_json({name: getattr(job, name) for name in shown} for job in jobs)
    elif jobs:
        titles = ("Feature view", "Laid out anew", "Stored values", "Megabytes", "Removed")
        print_table(open_console(), titles, [_row(job) for job in jobs])
    else:
        print_line(open_console(), "There is nothing online that could be kept small.")
    failure = failure_text(result)
    if failure is not None:
        raise OnlineUpkeepFailed(reason=failure)


def _row(job: JobRecord) -> Sequence[object]:
    stats = job.stats
    values = f"{stats['values_before']:,} -> {stats['values_after']:,}"
    megabytes = " -> ".join(f"{stats[name] / 1e6:,.1f}" for name in ("bytes_before", "bytes_after"))
    return (job.view, "yes" if stats["laid_out_anew"] else "no", values, megabytes, stats.get("removed"))
