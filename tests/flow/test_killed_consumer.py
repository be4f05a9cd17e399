"""A consumer killed anywhere and started again: no event is lost, none counts twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from featurekit_dagster.streams.push_log import PushLog
from tests.support import killed_consumer
from tests.support.dagster_processes import wait_for
from tests.support.forked import run_forked
from tests.support.killed_consumer import EVENTS, USERS

ROOT = Path(__file__).resolve().parents[2]
KILLS = 200 if os.environ.get("FEATUREKIT_SOAK") else 20
POINTS = ["polled", "transforming", "combining", "records put", "state put", "committed"]
LONGEST_DELAY_SECONDS = 0.03  # about three commits


def kill(root: Path, point: str, commits: int, logged: int = EVENTS) -> str:
    """Start a consumer that dies; return where it died, or nothing where it was at the end of the log before."""
    died = run_forked(root, killed_consumer.follow, root, point, commits)
    if died.code == 0:
        assert died.said.split()[-1] == str(logged)
        return ""
    assert died.code == -signal.SIGKILL, died.said
    return (root / killed_consumer.STEP).read_text().strip()


def anywhere() -> str:
    """Return a point that is a moment."""
    return f"{random.uniform(0, LONGEST_DELAY_SECONDS):.4f}"


def check(root: Path) -> None:
    """Read the log to its end, in this process, and compare every user's features."""
    killed_consumer.follow(root, "end", 0)
    workspace = killed_consumer.open_workspace(root, killed_consumer.make_view())
    handle = workspace.get_feature_view("totals")
    for user in range(USERS):
        amounts = [event["amount"] for event in killed_consumer.events() if event["user"] == user]
        found = handle.get_online_features({"user": user}).to_dict()
        assert found == {"sum": sum(amounts), "count": len(amounts)}
    layout = workspace.stores.online_layout(killed_consumer.make_view())
    assert workspace.stores.online.checkpoints(layout)["0"].events == EVENTS
    workspace.stores.online.close()
    workspace.stores.ledger.close()


@pytest.mark.slow
def test_a_consumer_killed_at_each_point_loses_nothing_and_counts_nothing_twice(tmp_path: Path) -> None:
    PushLog(killed_consumer.log_path(tmp_path)).append(killed_consumer.documents())
    for point in ("transforming", "records put", "state put"):
        assert kill(tmp_path, point, random.randrange(2, 6)) == point
    check(tmp_path)


@pytest.mark.slow
def test_of_two_consumers_of_one_partition_one_is_turned_away_and_sums_are_exact(tmp_path: Path) -> None:
    PushLog(killed_consumer.log_path(tmp_path)).append(killed_consumer.documents())
    command = [sys.executable, "-m", "tests.support.killed_consumer", str(tmp_path), "waits", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(2)]  # type: ignore[call-overload]
    wait_for("one is turned away", lambda: any(process.poll() is not None for process in both))
    (tmp_path / killed_consumer.ENOUGH).touch()
    said = [process.communicate(timeout=600)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1]
    assert [("LeaseHeld" in text) for text in said].count(True) == 1
    check(tmp_path)


@pytest.mark.slow
def test_it_does_so_however_often_it_is_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, documents = PushLog(killed_consumer.log_path(tmp_path)), killed_consumer.documents()
    log.append(documents[: EVENTS // 2])
    landed: Counter[str] = Counter()
    for number in range(KILLS):
        logged = EVENTS // 2 if number <= KILLS // 2 else EVENTS
        point = POINTS[number // 2 % len(POINTS)] if number % 2 else anywhere()
        where = kill(tmp_path, point, random.randrange(1, 3), logged)
        landed[f"{where or 'at the end before'}{'' if number % 2 else ' (at random)'}"] += 1
        if number == KILLS // 2:
            log.append(documents[EVENTS // 2 :])
    with capsys.disabled():
        print(f"\n{KILLS} kills: " + ", ".join(f"{count} {step}" for step, count in sorted(landed.items())))
    at_the_end = sum(count for where, count in landed.items() if where.startswith("at the end"))
    assert KILLS - at_the_end > KILLS // 2
    check(tmp_path)
