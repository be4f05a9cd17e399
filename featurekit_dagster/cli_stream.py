"""The commands about streams: how far they are, what they refused, pausing and resuming them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurekit_dagster.cli_options import AsJson, WorkspaceName, open_workspace
from featurekit_dagster.errors import NotAStream

if TYPE_CHECKING:
    from featurekit_dagster.domain.feature_view import FeatureView
    from featurekit_dagster.sdk import Workspace
    from featurekit_dagster.stores.ledger_records import JobRecord

ViewName = Annotated[str, typer.Argument(metavar="VIEW", help="A stream feature view that is written online.")]

stream = typer.Typer(
    name="stream",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Look at streams, pause and resume them. Shown is also what they have refused.",
)


@stream.command()
def status(
    views: Annotated[
        list[str] | None, typer.Argument(metavar="VIEW", help="Stream feature views; all that are online by default.")
    ] = None,
    workspace: WorkspaceName = None,
    json: AsJson = False,
) -> None:
    """Say whether streams are followed, and how far."""
    from featurekit_dagster.cli_output import open_console, print_json, print_table, short_time

    bound = open_workspace(workspace)
    chosen = [_view(bound, name) for name in views] if views else [v for v in bound.repo.views if _is_followed(v)]
    records = [stream_record(bound, view) for view in chosen]
    if json:
        print_json(records)
        return
    if not records:
        typer.echo("No feature view follows a stream.")
        return
    times = ("newest_event", "watermark")
    rows = [
        tuple(short_time(each[name]) if name in times and each[name] else each[name] for name in _SHOWN)
        for each in records
    ]
    print_table(open_console(), tuple(_SHOWN.values()), rows)
    for warning in (each["warning"] for each in records if each["warning"]):
        typer.echo(f"Warning: {warning}", err=True)


@stream.command()
def pause(view: ViewName, workspace: WorkspaceName = None) -> None:
    """Let nobody follow a view's stream.

    What is online stays, and ages.
    """
    bound = open_workspace(workspace)
    name = _view(bound, view).name
    bound.stores.ledger.pause_stream(bound.name, name)
    typer.echo(f"Paused the stream of {name}; featurekit stream resume {name} lets it go on where it is.")


@stream.command()
def resume(view: ViewName, workspace: WorkspaceName = None) -> None:
    """Let a stream be followed again.

    It was paused, or its job was cancelled.
    """
    bound = open_workspace(workspace)
    name = _view(bound, view).name
    bound.stores.ledger.resume_stream(bound.name, name)
    typer.echo(f"Resumed the stream of {name}; its sensor in Dagster starts the run that follows it.")


@stream.command()
def dead_letters(view: ViewName, workspace: WorkspaceName = None, json: AsJson = False) -> None:
    """Say why events of a stream could not become rows.

    With each reason is said how many there are; the events are not shown.
    """
    from featurekit_dagster.cli_output import open_console, print_json, print_table, short_time

    bound = open_workspace(workspace)
    letters = bound.stores.dead_letters(_view(bound, view))
    records = letters.by_reason().to_pylist()
    if json:
        print_json(records)
        return
    if not records:
        typer.echo(f"Every event of the stream of {view} has become a row.")
        return
    rows = [(each["events"], short_time(each["first"]), short_time(each["last"]), each["reason"]) for each in records]
    print_table(open_console(), ("Events", "First", "Last", "Reason"), rows)
    typer.echo(f"The events are in the Delta table {letters.location}")


_SHOWN = {
    "view": "Feature view",
    "state": "State",
    "events": "Events",
    "lag": "To be read",
    "late": "Late",
    "duplicates": "Twice",
    "superseded": "In batch",
    "dead_letters": "Dead letters",
    "newest_event": "Newest event",
    "watermark": "Watermark",
}


def stream_record(workspace: Workspace, view: FeatureView) -> dict[str, Any]:
    """Return how far a view's stream is, as its runs have said last; counts are None before the first run."""
    from datetime import timedelta

    from featurekit_dagster.intervals import from_us
    from featurekit_dagster.planning.stream_gap import retention_warning
    from featurekit_dagster.stores.ledger_streams import newest_of_groups, summed_stats

    place, jobs, paused = (workspace.name, view.name), [], None
    if workspace.stores.has_ledger:
        ledger = workspace.stores.ledger
        jobs, paused = newest_of_groups(ledger.stream_jobs(*place)), ledger.stream_paused(*place)
    stats: dict[str, Any] = dict(summed_stats([job.stats for job in jobs]))
    counts = {name: stats.get(name) for name in ("events", "lag", "late", "duplicates", "superseded", "dead_letters")}
    times = {
        name: None if stats.get(f"{name}_us") is None else from_us(stats[f"{name}_us"])
        for name in ("newest_event", "watermark", "reported")
    }
    kept = stats.get("retention_seconds")
    newest = max(jobs, key=lambda job: job.created_at, default=None)
    return {
        "view": view.name,
        "state": "PAUSED" if paused is not None else _state([job.state for job in jobs]),
        "job": None if newest is None else newest.id,
        "run_id": None if newest is None or not newest.attempts else newest.attempts[-1].run_id,
        "reason": next((job.reason for job in jobs if job.reason is not None), None),
        **counts,
        **times,
        "warning": retention_warning(view, None if kept is None else timedelta(seconds=kept), workspace.now()),
        "shares": [_share_record(job) for job in jobs] if len(jobs) > 1 else [],
    }


def _state(states: list[str]) -> str:
    """Return the state of a stream: that of its jobs, or how many have each where they differ."""
    if len(set(states)) > 1:
        return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    return states[0] if states else "NOT STARTED"


def _share_record(job: JobRecord) -> dict[str, Any]:
    share, count = job.stream_group
    return {
        "share": f"{share + 1} of {count}",
        "state": job.state,
        "job": job.id,
        "run_id": job.attempts[-1].run_id if job.attempts else None,
        "reason": job.reason,
        "events": job.stats.get("events"),
        "lag": job.stats.get("lag"),
    }


def _is_followed(view: FeatureView) -> bool:
    return view.is_stream and view.online


def _view(workspace: Workspace, name: str) -> FeatureView:
    """Return a view whose stream is followed.

    Raises:
        NotFoundError: There is no such view.
        NotAStream: It follows none.
    """
    view = workspace.repo.view(name)
    if not _is_followed(view):
        raise NotAStream(view=view.name, is_stream=view.is_stream)
    return view
