"""A writer that was stopped past its lease and overtaken commits nothing more when it goes on, wherever it stood."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pytest

from featurekit_dagster.domain.feature_view import FeatureView
from tests.conftest import ROOT, SOAK
from tests.support import killed_run, stopped_writer
from tests.support.killed_run import DAY, START
from tests.support.stopped_writer import (
    AT_DELTA,
    AT_LEDGER,
    AT_MARKER,
    AT_ONLINE,
    BEFORE_DELTA,
    BEFORE_LEDGER,
    BEFORE_ONLINE,
    BETWEEN_JOBS,
    INSIDE_ONLINE,
    LATER,
    carry_out,
    queue_days,
)

pytestmark = pytest.mark.slow

REDUCED = [AT_DELTA, f"{AT_ONLINE} 1", AT_LEDGER]
OTHERS = [BEFORE_DELTA, BEFORE_ONLINE, f"{AT_ONLINE} 3", AT_MARKER, BEFORE_LEDGER]
POINTS = [*REDUCED, *OTHERS] if SOAK else REDUCED


class World(NamedTuple):
    """Events as they were and as they are later, and what is left when the first day is made of the former."""

    folder: Path
    view: FeatureView
    left: dict[int, tuple[object, ...]]


def use_events(world: World, root: Path, which: str) -> None:
    """Put the events `early` or `late` in place at once, so that a reader sees one or the other."""
    shutil.copy(world.folder / f"{which}.parquet", root / "copy")
    os.replace(root / "copy", root / "events.parquet")


@pytest.fixture(scope="module", params=["tiles", "rows"] if SOAK else ["tiles"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    killed_run.make_source(folder / "early.parquet")
    later = f"SELECT * REPLACE (amount + 1000 AS amount) FROM '{folder / 'early.parquet'}'"
    with duckdb.connect() as con:
        con.execute(f"COPY ({later}) TO '{folder / 'late.parquet'}'")
    left = {}
    for days in (1, 2, 3):
        root = folder / f"{days} early days"
        root.mkdir()
        world = World(folder, killed_run.make_view(request.param, root / "events.parquet"), left)
        use_events(world, root, "early")
        stores = killed_run.open_stores(root)
        tasks = killed_run.missing_tasks(world.view, stores)
        early = [task for task in tasks if task.interval.start < START + days * DAY]
        list(killed_run.run_tasks(world.view, early, stores, trigger="manual"))
        stores.online.close()
        use_events(world, root, "late")
        killed_run.run(root, world.view)
        left[days] = killed_run.stored(root, world.view)
    assert left[1][:2] != left[2][:2]
    return world


class Stopped:
    """A process that has stopped itself at a point."""

    def __init__(self, root: Path, view: str, point: str) -> None:
        command = [sys.executable, "-m", "tests.support.stopped_writer", str(root), view, point]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        seen = os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert seen is not None
        assert seen.si_code == os.CLD_STOPPED, self.process.communicate()[1]

    def go_on(self) -> dict[str, Any]:
        """Let it go on, and return what came of its run."""
        self.process.send_signal(signal.SIGCONT)
        told, errors = self.process.communicate(timeout=300)
        assert self.process.returncode == 0, errors
        return json.loads(told)


@contextmanager
def stopped_at(world: World, root: Path, point: str) -> Iterator[Stopped]:
    """Let a process begin on early events and stop at a point; then the events are the late ones."""
    use_events(world, root, "early")
    view = killed_run.make_view(world.view.name, root / "events.parquet")
    queue_days(root, view)
    stopped = Stopped(root, view.name, point)
    try:
        use_events(world, root, "late")
        yield stopped
    finally:
        stopped.process.kill()
        stopped.process.communicate()


def states(root: Path) -> list[tuple[int, str, list[str]]]:
    """Return day, state and the states of the attempts of each job."""
    stores = stopped_writer.open_stores(root, LATER)
    jobs = [
        (job.interval.start.day, job.state, [a.state for a in job.attempts])
        for job in stores.ledger.jobs("w")
        if job.batch
    ]
    stores.ledger.close()
    return sorted(jobs)


@pytest.mark.parametrize("point", POINTS)
def test_a_writer_stopped_past_its_lease_and_overtaken_commits_nothing_when_it_goes_on(
    tmp_path: Path, world: World, point: str
) -> None:
    with stopped_at(world, tmp_path, point) as stopped:
        assert carry_out(tmp_path, world.view, "the second run", LATER) == {"done": [2, 3], "errors": []}
        overtaken = killed_run.stored(tmp_path, world.view)
        assert overtaken == world.left[1]
        versions = killed_run.open_stores(tmp_path).offline.version(world.view.name)
        before = states(tmp_path)
        assert before == [
            (1, "SUCCESS", ["SUCCESS"]),
            (2, "SUCCESS", ["ERROR", "SUCCESS"]),
            (3, "SUCCESS", ["SUCCESS"]),
        ]
        assert stopped.go_on() == {"done": [1], "errors": [[2, "LeaseLost"]]}
    assert killed_run.stored(tmp_path, world.view) == overtaken
    assert killed_run.open_stores(tmp_path).offline.version(world.view.name) == versions
    assert states(tmp_path) == before


def test_a_writer_stopped_between_two_jobs_and_overtaken_begins_no_other(tmp_path: Path, world: World) -> None:
    with stopped_at(world, tmp_path, BETWEEN_JOBS) as stopped:
        assert carry_out(tmp_path, world.view, "the second run", LATER) == {"done": [3], "errors": []}
        before = states(tmp_path)
        assert stopped.go_on() == {"done": [1, 2], "errors": [[3, "LeaseLost"]]}
    assert killed_run.stored(tmp_path, world.view) == world.left[2]
    assert states(tmp_path) == before == [(day, "SUCCESS", ["SUCCESS"]) for day in (1, 2, 3)]


def test_a_writer_that_is_overtaken_by_one_that_has_written_nothing_yet_commits_nothing(
    tmp_path: Path, world: World
) -> None:
    with stopped_at(world, tmp_path, BEFORE_DELTA) as stopped:
        stores = stopped_writer.open_stores(tmp_path, LATER)
        version = stores.offline.version(world.view.name)
        with stores.ledger.lease(f"batch:w/{world.view.name}", "the second run"):
            assert stopped.go_on() == {"done": [1], "errors": [[2, "LeaseLost"]]}
            assert stores.offline.version(world.view.name) == version
        stores.ledger.close()
        assert carry_out(tmp_path, world.view, "the third run", LATER) == {"done": [2, 3], "errors": []}
    assert killed_run.stored(tmp_path, world.view) == world.left[1]


def test_a_writer_stopped_inside_a_transaction_is_waited_for_and_commits_that_one_only(
    tmp_path: Path, world: World
) -> None:
    """LMDB has one write lock; its holder cannot be overtaken inside, and what it commits is then written over."""
    results: list[dict[str, Any]] = []

    def overtake() -> None:
        results.append(carry_out(tmp_path, world.view, "the second run", LATER))

    with stopped_at(world, tmp_path, f"{INSIDE_ONLINE} 2") as stopped:
        second = threading.Thread(target=overtake)
        second.start()
        second.join(1.5)
        assert second.is_alive()
        assert stopped.go_on() == {"done": [1], "errors": [[2, "LeaseLost"]]}
        second.join(300)
    assert results == [{"done": [2, 3], "errors": []}]
    assert killed_run.stored(tmp_path, world.view) == world.left[1]


def test_a_writer_that_was_stopped_and_that_nobody_has_overtaken_goes_on(tmp_path: Path, world: World) -> None:
    with stopped_at(world, tmp_path, BEFORE_ONLINE) as stopped:
        use_events(world, tmp_path, "early")
        assert stopped.go_on() == {"done": [1, 2, 3], "errors": []}
    assert states(tmp_path) == [(day, "SUCCESS", ["SUCCESS"]) for day in (1, 2, 3)]
    assert killed_run.stored(tmp_path, world.view) == world.left[3]
