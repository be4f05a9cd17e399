"""Running the command line in a test, on a workspace of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from featurekit_dagster.cli import app
from featurekit_dagster.sdk import Workspace
from tests.conftest import ROOT

SHOP_MODULE = """
from pathlib import Path
from tests.unit.cli_shop import shop_workspace
workspace = shop_workspace(Path("."))
"""


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


def in_subprocess(folder: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Return what became of a Python script, run in a folder, whose workspace is the shop in that folder."""
    (folder / "shop.py").write_text(SHOP_MODULE)
    command = [sys.executable, "-c", script, *arguments]
    environment = {"PYTHONPATH": str(ROOT), "FEATUREKIT_WORKSPACE": "shop:workspace", "PATH": os.defpath}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
