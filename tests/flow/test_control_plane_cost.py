"""The benchmark of plan, ticks and status measures what it says; its figures are compared with targets by people."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_every_case_of_a_small_history_is_measured_beside_its_target(project_root: Path) -> None:
    command = [sys.executable, str(project_root / "benchmarks" / "control_plane.py"), "--json", "--quick"]
    printed = subprocess.run(
        [*command, "--case", "history"], check=True, capture_output=True, text=True, cwd=project_root
    ).stdout
    results = list(map(json.loads, printed.splitlines()))
    assert [line["case"].partition(",")[0] for line in results] == [
        "plan",
        "status",
        "featurekit plan",
        "tick that starts 2 runs",
        "tick that finds everything started",
    ]
    assert all(line["ours"] > 0 and line["target"] > 0 for line in results)
