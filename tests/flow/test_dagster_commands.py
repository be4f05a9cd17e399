"""Command lines of Dagster on a workspace, for real; `test_control_plane_routes.py` and `test_readme.py` run others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flow.payments import day, payments_workspace

pytestmark = pytest.mark.slow

CONFIG = "{view: spending, start: '2023-01-02', end: '2023-01-05'}"


@pytest.fixture
def home(tmp_path: Path, project_root: Path) -> Path:
    """A Dagster home with the project's settings."""
    (tmp_path / "dagster").mkdir()
    shutil.copy(project_root / "dagster.yaml", tmp_path / "dagster" / "dagster.yaml")
    return tmp_path / "dagster"


def run(project_root: Path, home: Path, *command: str) -> str:
    """Run a command of this environment at the project's root; return what it printed."""
    places = {"DAGSTER_HOME": str(home), "PAYMENTS_FOLDER": str(home.parent / "data"), "DAGSTER_DISABLE_TELEMETRY": "1"}
    program = str(Path(sys.executable).with_name(command[0]))
    done = subprocess.run(
        [program, *command[1:]],
        cwd=project_root,
        env={**os.environ, **places},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_overwrite_materializes_the_range_in_one_job(project_root: Path, home: Path) -> None:
    (home / "config.yaml").write_text(CONFIG)
    definitions = project_root / "tests" / "flow" / "payments_definitions.py"
    command = ["dagster", "job", "execute", "-f", str(definitions), "-j", "overwrite", "-c", str(home / "config.yaml")]
    run(project_root, home, *command)
    workspace = payments_workspace(home.parent / "data", now=day(10))
    (job,) = workspace.stores.ledger.jobs(workspace.name, "spending")
    assert (job.interval.start, job.interval.end) == (day(1), day(4))
    assert (job.state, job.trigger) == ("SUCCESS", "manual")


def test_dg_accepts_the_project_and_lists_its_definitions(project_root: Path, home: Path) -> None:
    assert "All definitions loaded successfully." in run(project_root, home, "dg", "check", "defs")
