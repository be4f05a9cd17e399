"""`featurekit publish`: full features go to the warehouse."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from featurekit_dagster.cli_input import parse_time
from featurekit_dagster.cli_options import AsJson, ViewNames, WorkspaceName, open_workspace
from featurekit_dagster.errors import PublishingFailed

if TYPE_CHECKING:
    from featurekit_dagster.stores.ledger_records import JobRecord


def publish(
    views: ViewNames = None,
    start: Annotated[
        datetime | None,
        typer.Option(parser=parse_time, metavar="TIME", help="Publish again from here, ISO; UTC by default."),
    ] = None,
    end: Annotated[
        datetime | None, typer.Option(parser=parse_time, metavar="TIME", help="Publish again up to here.")
    ] = None,
    workspace: WorkspaceName = None,
    json: AsJson = False,
) -> None:
    """Publish full features in the warehouse.

    Published is what is materialized and not there yet, or a range again. The Dagster job feature_publish does the same
    after each materialization; this is one run of it, in this process.
    """
    from featurekit_dagster.cli_output import open_console, print_json, print_line, print_table, short_interval
    from featurekit_dagster.orchestration.publish import publish_in_process
    from featurekit_dagster.orchestration.run import failure_text, open_instance

    if (start or end) and len(views or ()) != 1:
        raise typer.BadParameter("give one feature view with --start and --end")
    bound = open_workspace(workspace)
    names = [bound.repo.view(name).name for name in dict.fromkeys(views or ())]
    jobs: list[JobRecord] = []
    with open_instance(bound) as instance:
        results = publish_in_process(bound, names, instance, start, end, on_job=jobs.append)
    failures = [text for result in results if (text := failure_text(result)) is not None]
    if json:
        shown = ("id", "view", "interval", "state", "stats")
        print_json({name: getattr(job, name) for name in shown} for job in jobs)
    elif jobs:
        titles = ("Feature view", "Window", "Intervals", "Changes", "Replaced")
        print_table(open_console(), titles, [_row(job, short_interval(job.interval)) for job in jobs])
    elif not failures:
        print_line(open_console(), "Everything that is materialized is published.")
    if failures:
        raise PublishingFailed(reason="; ".join(failures))


def _row(job: JobRecord, interval: str) -> Sequence[object]:
    return (job.view, interval, job.stats["windows"], job.stats["rows"], job.stats["rows_replaced"])
