"""Options that several commands take, and the workspace that they are about."""

from __future__ import annotations

import importlib
import itertools
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featurekit_dagster.errors import FeatureKitError

if TYPE_CHECKING:
    from featurekit_dagster.sdk import Workspace

WorkspaceName = Annotated[
    str | None,
    typer.Option("--workspace", metavar="NAME", help="Workspace of pyproject.toml; the only one by default."),
]
ViewNames = Annotated[list[str] | None, typer.Argument(metavar="VIEW", help="Feature views; all by default.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def open_workspace(name: str | None) -> Workspace:
    """Return the workspace that a command is about; see `sdk.get_workspace`.

    Raises:
        Exit: The project's own module raises an error, which is shown as of its first line in the project.
    """
    from featurekit_dagster.sdk import get_workspace

    try:
        return get_workspace(name)
    except FeatureKitError:
        raise
    except Exception as error:  # whatever the project's code does when it is imported
        shown = traceback.TracebackException.from_exception(error)
        shown.stack = traceback.StackSummary.from_list(_frames_of_project(shown.stack))
        typer.echo(
            f"error: the module of the workspace cannot be imported\n{''.join(shown.format())}", err=True, nl=False
        )
        raise typer.Exit(1) from None


def _frames_of_project(frames: Sequence[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    """Return the frames from the first one on that is neither ours nor of Python's import."""
    package, importer = str(Path(__file__).parent), str(Path(importlib.__file__).parent)
    mine = (package, importer, "<frozen importlib")
    return list(itertools.dropwhile(lambda frame: frame.filename.startswith(mine), frames))
