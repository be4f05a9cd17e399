"""`featurekit materialize` beside a real daemon: what fails in the command is tried again by the daemon."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
import yaml

from featurekit_dagster import Workspace
from featurekit_dagster.intervals import format_time
from featurekit_dagster.orchestration.run import has_daemon
from tests.architecture.python_files import ROOT
from tests.flow.payments import break_days, day, payments_workspace
from tests.support.dagster_processes import end_process, script, start_process, tail, wait_for

NOW = day(3) + timedelta(hours=1)
DEFINITIONS = """
from datetime import datetime
from pathlib import Path

from tests.flow.payments import payments_workspace

folder = Path(__file__).parent
workspace = payments_workspace(folder / "data", now=lambda: datetime.fromisoformat((folder / "now").read_text()))
defs = workspace.definitions()
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A project in `tmp_path` that the command line and the daemon find."""
    (tmp_path / "payments_project.py").write_text(DEFINITIONS)
    (tmp_path / "now").write_text(NOW.isoformat())
    home = tmp_path / "dagster"
    home.mkdir()
    shutil.copy(ROOT / "dagster.yaml", home / "dagster.yaml")
    location = {"python_file": {"relative_path": "payments_project.py"}}
    (tmp_path / "workspace.yaml").write_text(yaml.safe_dump({"load_from": [location]}))
    return {
        "DAGSTER_HOME": str(home),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)]),
        "FEATUREKIT_WORKSPACE": "payments_project:workspace",
    }


@pytest.fixture
def daemon(tmp_path: Path, environment: dict[str, str]) -> Iterator[None]:
    command = [script("dagster-daemon"), "run", "-w", str(tmp_path / "workspace.yaml")]
    process = start_process(command, environment, tmp_path / "daemon.log")
    try:
        with dg.DagsterInstance.from_config(environment["DAGSTER_HOME"]) as instance:
            wait_for("the daemon gives a sign of life", lambda: has_daemon(instance))
        yield
    finally:
        end_process(process)
        print(tail(tmp_path / "daemon.log"))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return payments_workspace(tmp_path / "data", now=NOW)


@pytest.mark.slow
@pytest.mark.usefixtures("daemon")
def test_what_fails_in_the_command_is_tried_again_by_the_daemon(
    tmp_path: Path, environment: dict[str, str], workspace: Workspace
) -> None:
    break_days(tmp_path / "data", [1])
    command = [script("featurekit"), "materialize", "last_payment"]
    variables = {**os.environ, **environment, "COLUMNS": "140"}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    again = NOW + timedelta(minutes=5)
    assert done.returncode == 1, done.stderr
    expected = f"The daemon tries 1 failed job again, first at {format_time(again)}; featurekit jobs shows them.\n"
    assert done.stdout.endswith(expected), done.stdout
    (failed,) = [job for job in workspace.jobs("last_payment") if job.interval.start == day(1)]
    assert (failed.state, failed.next_attempt_at, len(failed.attempts)) == ("RUNNING", again, 1)
    break_days(tmp_path / "data", [])
    (tmp_path / "now").write_text(again.isoformat())
    wait_for("the daemon has done it", lambda: workspace.stores.ledger.job(failed.id).state == "SUCCESS")
    assert [attempt.state for attempt in workspace.stores.ledger.job(failed.id).attempts] == ["ERROR", "SUCCESS"]
