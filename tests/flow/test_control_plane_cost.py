"""What planning, ticks and the status cost at many partitions: the benchmark's own numbers, held to its targets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def measured(root: Path, *options: str) -> dict[str, dict[str, Any]]:
    """Return what the benchmark prints, by case."""
    command = [sys.executable, str(root / "benchmarks" / "control_plane.py"), "--json", *options]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout
    return {line["case"]: line for line in map(json.loads, printed.splitlines())}


def over_target(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return the cases whose CPU seconds, or whose ratio where there is a peer, are over their targets."""
    values = {case: line["ours"] if line["ratio"] is None else line["ratio"] for case, line in results.items()}
    return {case: value for case, value in values.items() if value > results[case]["target"]}


def test_plan_tick_and_status_of_a_small_history_stay_under_their_targets(project_root: Path) -> None:
    results = measured(project_root, "--quick", "--case", "history")
    assert [case.partition(",")[0] for case in results] == [
        "plan",
        "status",
        "featurekit plan",
        "tick that starts 2 runs",
        "tick that finds everything started",
    ]
    assert over_target(results) == {}


def test_as_many_jobs_as_partitions_are_planned_and_queued_in_linear_time(project_root: Path) -> None:
    few, many = (measured(project_root, "--case", "queue", "--partitions", n) for n in ("1000", "4000"))
    assert over_target(many) == {}
    for small, large in zip(few.values(), many.values(), strict=True):
        assert large["ours"] < 10 * (small["ours"] + 0.02), small["case"]


@pytest.mark.slow
def test_plan_tick_and_status_at_20_000_partitions_stay_under_a_second(project_root: Path) -> None:
    results = measured(project_root, "--case", "history")
    assert all("20,000 partitions" in case for case in results)
    assert over_target(results) == {}


@pytest.mark.slow
def test_ranged_run_costs_less_than_twice_its_bare_events(project_root: Path) -> None:
    results = measured(project_root, "--case", "run", "--run-partitions", "300")
    assert len(results) == 1
    assert over_target(results) == {}
