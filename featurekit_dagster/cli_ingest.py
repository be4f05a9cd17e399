"""The commands about events that are sent: serve the Stream Ingest API, its keys, and draining the logs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurekit_dagster.cli_options import WorkspaceName, open_workspace
from featurekit_dagster.errors import NotAPushSource, TectonValidationError, Unsupported

if TYPE_CHECKING:
    from featurekit_dagster.sdk import Workspace
    from featurekit_dagster.stores.ingest_keys import IngestKeys


ingest = typer.Typer(
    name="ingest",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Take events of push sources.",
)


@ingest.command()
def serve(
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port to listen on.")] = 8080,
    host: Annotated[str, typer.Option(help="Address to listen on; this machine only by default.")] = "127.0.0.1",
    workers: Annotated[
        int, typer.Option(min=1, max=64, help="Processes that take requests; one of them applies the events.")
    ] = 1,
    workspace: WorkspaceName = None,
) -> None:
    """Serve the Stream Ingest API until interrupted.

    What is sent is applied to the views of push sources.
    """
    try:
        import uvicorn

        from featurekit_dagster.ingest_app import SERVED_VARIABLE
    except ImportError as error:
        what = "the Stream Ingest API needs libraries that are not installed"
        raise Unsupported(f"{what}; run: pip install 'featurekit_dagster[ingest]'") from error
    bound = open_workspace(workspace)
    if _keys(bound).is_empty:
        raise TectonValidationError("nobody has a key to send events with; run: featurekit ingest create-key NAME")
    os.environ[SERVED_VARIABLE] = workspace or ""
    # No access log: a path may hold what a client should not have put there.
    options: dict[str, Any] = {"host": host, "port": port, "access_log": False, "log_level": "info"}
    uvicorn.run("featurekit_dagster.ingest_app:served_app", factory=True, workers=workers, **options)


@ingest.command("create-key")
def create_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call the key.")],
    source: Annotated[
        list[str] | None, typer.Option(help="A source that it may send to, may be repeated; all by default.")
    ] = None,
    workspace: WorkspaceName = None,
) -> None:
    """Make an API key and show it, this once."""
    bound = open_workspace(workspace)
    scopes = [bound.repo.stream_source(each).name for each in source or ()]
    typer.echo(_keys(bound).create(name, scopes or ("*",)))


@ingest.command()
def keys(workspace: WorkspaceName = None) -> None:
    """List the API keys: names and what each may send to."""
    found = _keys(open_workspace(workspace)).all()
    for key in found:
        typer.echo(f"{key.name}: {'all sources' if key.allows('*') else ', '.join(key.scopes)}")
    if not found:
        typer.echo("There are no keys.")


@ingest.command("revoke-key")
def revoke_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the key.")], workspace: WorkspaceName = None
) -> None:
    """Forget an API key; whoever has it may send no more."""
    _keys(open_workspace(workspace)).revoke(name)
    typer.echo(f"Revoked key {name}.")


@ingest.command()
def drain(workspace: WorkspaceName = None) -> None:
    """Take what was sent to the sources' Delta tables.

    Each event reaches the table of its push source once.
    """
    bound = open_workspace(workspace)
    drained = 0
    for source in bound.repo.stream_sources:
        if not source.is_push:
            continue
        try:
            report = bound.get_stream_source(source.name).drain()
        except NotAPushSource as error:
            typer.echo(str(error), err=True)
            continue
        refused = f", {report.refused:,} do not fit the schema any more" if report.refused else ""
        typer.echo(f"{report.source}: {report.rows:,} events drained{refused}")
        drained += 1
    if not drained:
        typer.echo("There is no push source to drain.")


def _keys(workspace: Workspace) -> IngestKeys:
    from featurekit_dagster.stores.ingest_keys import IngestKeys

    return IngestKeys.of(workspace.home, workspace.name)
