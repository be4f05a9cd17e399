"""The command line: what has to be done, doing it, how far it is, and reading features.

Every command imports what it needs when it runs, so that `--help` and `plan` stay quick. Exit codes: 0 done,
1 refused or failed, 2 wrong usage, 3 something waits for a decision.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from featurekit_dagster.cli_apply import NEEDS_DECISION, apply
from featurekit_dagster.cli_consistency import check_consistency
from featurekit_dagster.cli_dataset import dataset
from featurekit_dagster.cli_deletion import add_deletion_commands
from featurekit_dagster.cli_ingest import ingest
from featurekit_dagster.cli_input import frame_path, parse_time
from featurekit_dagster.cli_integration_test import integration_test
from featurekit_dagster.cli_jobs import add_job_commands
from featurekit_dagster.cli_maintain import maintain
from featurekit_dagster.cli_online_upkeep import clean_up, compact
from featurekit_dagster.cli_options import AsJson, ViewNames, WorkspaceName, open_workspace
from featurekit_dagster.cli_publish import publish
from featurekit_dagster.cli_refill import refill_online
from featurekit_dagster.cli_repair import repair
from featurekit_dagster.cli_replay import replay, run_stream
from featurekit_dagster.cli_stream import stream
from featurekit_dagster.cli_table import ingest_table
from featurekit_dagster.domain.schema import Field
from featurekit_dagster.errors import FeatureKitError, NotFoundError

if TYPE_CHECKING:
    from featurekit_dagster.domain.feature_view import FeatureView
    from featurekit_dagster.sdk import Workspace


class _Commands(TyperGroup):
    """All commands; an error of ours becomes one message and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        usual, warnings.formatwarning = warnings.formatwarning, _warning_text
        try:
            return super().invoke(ctx)
        except FeatureKitError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from None
        finally:
            warnings.formatwarning = usual


def _warning_text(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return a warning as a sentence; with the place in the code only where it is meant for who wrote that."""
    if category is UserWarning:
        return f"warning: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


app = typer.Typer(
    name="featurekit",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Feature views on Dagster: plan, materialize and read features.",
)

Start = Annotated[
    datetime | None, typer.Option(parser=parse_time, metavar="TIME", help="First instant inside, ISO; UTC by default.")
]
End = Annotated[
    datetime | None, typer.Option(parser=parse_time, metavar="TIME", help="First instant after, ISO; UTC by default.")
]


@app.command()
def plan(views: ViewNames = None, workspace: WorkspaceName = None, json: AsJson = False) -> None:
    """Say what has to be done, and what has changed.

    It says, too, what would go, and changes nothing. Exit code 3 when something waits for featurekit apply: a view
    whose declaration has changed, or one that is declared no more and of which something is stored.
    """
    from featurekit_dagster.cli_output import open_console, print_json
    from featurekit_dagster.cli_plan import PlanReview, plan_records, print_plan

    review = PlanReview.of(open_workspace(workspace), views)
    if json:
        print_json(plan_records(review))
    else:
        print_plan(open_console(), review)
    if review.is_destructive:
        raise typer.Exit(NEEDS_DECISION)


@app.command()
def materialize(
    views: ViewNames = None,
    start: Start = None,
    end: End = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is there; needs --start and --end.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Do the jobs here and now, or leave them to the daemon.")
    ] = True,
    workspace: WorkspaceName = None,
    json: AsJson = False,
) -> None:
    """Do what is missing up to now, or a given interval.

    The jobs run in this process, as Dagster runs that its UI shows like any other; with --no-wait they are queued for
    the daemon, and `featurekit wait` waits for one of them. Exit code 3 when a view was left out because it waits for
    featurekit apply.
    """
    from featurekit_dagster.cli_materialize import (
        asked_runs,
        carry_out,
        cautions,
        missing_runs,
        queue_runs,
        with_failed_as_missing,
    )
    from featurekit_dagster.cli_output import open_console, print_json, print_line, print_notes, to_the_second
    from featurekit_dagster.cli_reports import outcome_record, print_outcomes, print_queued

    if (start is None) != (end is None) or (overwrite and start is None):
        raise typer.BadParameter("give --start and --end together; --overwrite needs both")
    bound = open_workspace(workspace)
    now, chosen, snapshot = bound.now(), _views(bound, views), bound.snapshot()
    if wait:
        snapshot = with_failed_as_missing(snapshot, bound.jobs())
    if start is not None and end is not None:
        work = asked_runs(bound, chosen, snapshot, start, end, overwrite=overwrite)
    else:
        work = missing_runs(chosen, snapshot, now)
    if not json:
        print_line(open_console(), f"Materialization of workspace {bound.name} at {to_the_second(now)}", style="bold")
        print_notes(open_console(), [(each.view.name, each.note) for each in work])
    print_notes(open_console(stderr=True), cautions(bound, work), title="Warnings")
    waiting = start is None and any(view.name in snapshot.changes for view in chosen)
    if not wait:
        print_queued(open_console(), queue_runs(bound, work), json=json)
        raise typer.Exit(NEEDS_DECISION if waiting else 0)
    outcomes = carry_out(bound, work, open_console(stderr=True), quiet=json)
    if json:
        print_json(outcome_record(each) for each in outcomes)
    elif outcomes:
        print_outcomes(open_console(), outcomes)
    if not all(outcome.is_success for outcome in outcomes):
        raise typer.Exit(1)
    if waiting:
        raise typer.Exit(NEEDS_DECISION)


@app.command()
def status(
    views: ViewNames = None,
    limit: Annotated[int, typer.Option(min=0, help="List at most so many jobs.")] = 20,
    workspace: WorkspaceName = None,
    json: AsJson = False,
) -> None:
    """Say how far views are materialized.

    Jobs that run or failed are listed, too.
    """
    from featurekit_dagster.cli_output import open_console, print_json
    from featurekit_dagster.cli_reports import ViewStatus, print_status, status_jobs, status_record

    bound = open_workspace(workspace)
    now, snapshot = bound.now(), bound.snapshot()
    statuses = [ViewStatus.of(view, snapshot, status_jobs(bound, view), now) for view in _views(bound, views)]
    if json:
        print_json(status_record(each, limit) for each in statuses)
    else:
        print_status(open_console(), bound.name, statuses, now, limit)


@app.command()
def get(
    name: Annotated[str, typer.Argument(metavar="VIEW_OR_SERVICE", help="Feature view or feature service.")],
    join_keys: Annotated[list[str], typer.Argument(metavar="KEY=VALUE", help="One per join key.")],
    workspace: WorkspaceName = None,
    json: AsJson = False,
) -> None:
    """Read the newest features of one entity, from online."""
    from featurekit_dagster.cli_input import parse_keys
    from featurekit_dagster.cli_output import open_console, print_json
    from featurekit_dagster.cli_reports import print_vector, vector_records

    bound = open_workspace(workspace)
    handle, fields = _readable(bound, name)
    records = vector_records(handle.get_online_features(parse_keys(join_keys, fields)))
    if json:
        print_json(records)
    else:
        print_vector(open_console(), records)


@app.command()
def historical(
    name: Annotated[str, typer.Argument(metavar="VIEW_OR_SERVICE", help="Feature view or feature service.")],
    spine: Annotated[
        Path | None,
        typer.Option(callback=frame_path, exists=True, dir_okay=False, help="Join keys and times: .parquet or .csv."),
    ] = None,
    timestamp_key: Annotated[str | None, typer.Option(help="Time column of the spine, when it has several.")] = None,
    start: Start = None,
    end: End = None,
    from_source: Annotated[
        bool | None, typer.Option("--from-source/--from-store", help="Where the values come from.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(callback=frame_path, dir_okay=False, help="Write to this .parquet or .csv file.")
    ] = None,
    workspace: WorkspaceName = None,
    json: AsJson = False,
) -> None:
    """Read features as of a spine's times, or of a range."""
    from featurekit_dagster.cli_input import read_spine, write_frame
    from featurekit_dagster.cli_reports import print_frame_head

    if (spine is None) == (start is None) or (start is None) != (end is None):
        raise typer.BadParameter("give either --spine, or --start and --end")
    handle, fields = _readable(open_workspace(workspace), name)
    if spine is not None:
        frame = handle.get_features_for_events(read_spine(spine, fields), timestamp_key, from_source)
    elif hasattr(handle, "get_features_in_range"):
        frame = handle.get_features_in_range(start, end, from_source=from_source)
    else:
        raise typer.BadParameter(f"{name!r} is a feature service, which is read with --spine")
    table = frame.to_arrow()
    if out is not None:
        write_frame(table, out)
    print_frame_head(table, out, json=json)


add_job_commands(app)
add_deletion_commands(app)
app.command()(apply)
app.command()(repair)
app.command("refill-online")(refill_online)
app.command()(maintain)
app.command()(compact)
app.command("clean-up")(clean_up)
app.command()(publish)
app.add_typer(dataset)
app.add_typer(ingest)
app.command("ingest-table")(ingest_table)
app.command("run-stream")(run_stream)
app.command("check-consistency")(check_consistency)
app.add_typer(integration_test)
app.command()(replay)
app.add_typer(stream)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def dev(context: typer.Context, workspace: WorkspaceName = None) -> None:
    """Open the Dagster UI of this project.

    It can be reached from this machine only. Other options, such as --port, go to `dagster dev`.
    """
    from featurekit_dagster.cli_dagster import dev_command

    dev_command(open_workspace(workspace), context.args).become()


@app.command()
def demo() -> None:
    """Run the example of the repository, from end to end."""
    from featurekit_dagster.cli_dagster import run_demo

    raise typer.Exit(run_demo())


def _readable(workspace: Workspace, name: str) -> tuple[Any, list[Field]]:
    """Return the handle of a view, or of a service, and its join keys with their types."""
    services = {service.name: service for service in workspace.repo.services}
    views = {view.name: view for view in workspace.repo.views}
    if name in views:
        return workspace.get_feature_view(name), list(views[name].join_keys)
    if name not in services:
        raise NotFoundError(kind="feature view or feature service", name=name, known=[*views, *services])
    pairs = [(r.join_key_map.get(k.name, k.name), k.dtype) for r in services[name].references for k in r.view.join_keys]
    return workspace.get_feature_service(name), [Field(key, dtype) for key, dtype in dict(pairs).items()]


def _views(workspace: Workspace, names: Sequence[str] | None) -> list[FeatureView]:
    return [workspace.repo.view(name) for name in dict.fromkeys(names)] if names else list(workspace.repo.views)
