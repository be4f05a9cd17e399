"""A process that is killed while it ingests: online and offline agree again with the next ingest."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from featurekit_dagster.execution.table_ingest import CLAIMED, WRITTEN_OFFLINE, WRITTEN_ONLINE
from tests.conftest import ROOT
from tests.support.scores import FIRST, HOUR, Table, rows


@pytest.mark.parametrize("step", [CLAIMED, WRITTEN_OFFLINE, WRITTEN_ONLINE])
def test_an_ingest_killed_at_any_step_leaves_nothing_half_done(step: str, tmp_path: Path) -> None:
    table = Table(tmp_path)
    table.handle.ingest(rows(("a", FIRST, 1.0)))
    command = [sys.executable, "-m", "tests.support.killed_ingest", str(tmp_path), step]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -9
    # the clock of these tests stands still, so the lease of the dead process is taken when it has run out
    table.clock.now += timedelta(hours=1)
    table.handle.ingest(rows(("c", FIRST, 4.0)))
    arrived = step != CLAIMED
    newest = {"a": 2.0, "b": 3.0, "c": 4.0} if arrived else {"a": 1.0, "b": None, "c": 4.0}
    assert {user: table.online(user) for user in newest} == newest
    expected = [("a", FIRST, 1.0), ("c", FIRST, 4.0)]
    expected += [("a", FIRST + HOUR, 2.0), ("b", FIRST, 3.0)] if arrived else []
    assert table.stored() == sorted(expected, key=str)
    states = [job.state for job in table.handle.list_jobs()]
    assert states == ["SUCCESS", "SUCCESS" if arrived else "FAILURE", "SUCCESS"]
