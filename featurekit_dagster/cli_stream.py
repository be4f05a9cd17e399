"""The commands about streams: how far they are, pausing and resuming them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurekit_dagster.cli_options import AsJson, WorkspaceName, open_workspace
from featurekit_dagster.errors import NotAStream

if TYPE_CHECKING:
    from featurekit_dagster.domain.feature_view import FeatureView
    from featurekit_dagster.sdk import Workspace

ViewName = Annotated[str, typer.Argument(metavar="VIEW", help="A stream feature view that is written online.")]

stream = typer.Typer(
    name="stream",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Look at the streams of feature views, pause and resume them.",
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


@stream.command()
def pause(view: ViewName, workspace: WorkspaceName = None) -> None:
    """Let nobody follow a view's stream; what is online stays, and ages."""
    bound = open_workspace(workspace)
    name = _view(bound, view).name
    bound.stores.ledger.pause_stream(bound.name, name)
    typer.echo(f"Paused the stream of {name}; featurekit stream resume {name} lets it go on where it is.")


@stream.command()
def resume(view: ViewName, workspace: WorkspaceName = None) -> None:
    """Let a stream that was paused, or whose job was cancelled, be followed again."""
    bound = open_workspace(workspace)
    name = _view(bound, view).name
    bound.stores.ledger.resume_stream(bound.name, name)
    typer.echo(f"Resumed the stream of {name}; its sensor in Dagster starts the run that follows it.")


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
    """Return how far a view's stream is, as its run has said last; counts are None before the first run."""
    from featurekit_dagster.intervals import from_us

    place, job, paused = (workspace.name, view.name), None, None
    if workspace.stores.has_ledger:
        ledger = workspace.stores.ledger
        job, paused = next(iter(ledger.stream_jobs(*place)), None), ledger.stream_paused(*place)
    state = "NOT STARTED" if job is None else job.state
    stats: dict[str, Any] = {} if job is None else dict(job.stats)
    counts = {name: stats.get(name) for name in ("events", "lag", "late", "duplicates", "superseded", "dead_letters")}
    times = {
        name: None if stats.get(f"{name}_us") is None else from_us(stats[f"{name}_us"])
        for name in ("newest_event", "watermark", "reported")
    }
    return {
        "view": view.name,
        "state": "PAUSED" if paused is not None else state,
        "job": None if job is None else job.id,
        "run_id": None if job is None or not job.attempts else job.attempts[-1].run_id,
        "reason": None if job is None else job.reason,
        **counts,
        **times,
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
