"""Options that several commands take, and the workspace that they are about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from featurekit_dagster.sdk import Workspace

WorkspaceName = Annotated[
    str | None,
    typer.Option("--workspace", metavar="NAME", help="Workspace of pyproject.toml; the only one by default."),
]
ViewNames = Annotated[list[str] | None, typer.Argument(metavar="VIEW", help="Feature views; all by default.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def open_workspace(name: str | None) -> Workspace:
    """Return the workspace that a command is about; see `sdk.get_workspace`."""
    from featurekit_dagster.sdk import get_workspace

    return get_workspace(name)
