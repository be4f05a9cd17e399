"""Running the command line in a test, on a workspace of the test's own."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from featurekit_dagster.cli import app
from featurekit_dagster.sdk import Workspace


def bind(workspace: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Let the command line find a workspace of this process, by the variable FEATUREKIT_WORKSPACE."""
    module = ModuleType("cli_shop_of_this_test")
    module.__dict__["workspace"] = workspace
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("FEATUREKIT_WORKSPACE", f"{module.__name__}:workspace")
    monkeypatch.chdir(folder)
    return workspace


def output(*arguments: str, width: int = 80, exit_code: int = 0) -> str:
    """Return what a command prints to standard output, without spaces at the ends of lines."""
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": str(width)})
    assert result.exit_code == exit_code, result.output
    return "\n".join(line.rstrip() for line in result.stdout.splitlines()) + "\n"
