"""Two processes write one view at once, one as the SDK and one as a run of Dagster's UI: overlaps are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from featurekit_dagster.engine.local import stored_schema
from featurekit_dagster.intervals import Interval, IntervalSet
from tests.conftest import ROOT
from tests.flow.payments import day, write_payments
from tests.support.two_writers import CLOSED, VIEW, WORK, make_workspace


class Writer:
    """A process of `tests.support.two_writers`."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "tests.support.two_writers", str(folder)]
        environment = {**os.environ, "DAGSTER_HOME": str(folder / "dagster")}
        self._log = (folder / f"writer_{time.monotonic_ns()}.log").open("w+")
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def start(self, how: str, first: int, end: int) -> None:
        """Let it begin to materialize days `[first, end)`."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{how} {first} {end}\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Return what came of it."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise AssertionError(self._log.read()[-4_000:])
        return json.loads(line)

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._log.close()


class Contest:
    """Two writers of the view in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_payments(folder, 10)
        self.one, self.other = Writer(folder), Writer(folder)
        for writer in (self.one, self.other):
            assert writer.answer() == "ready"
        self.workspace = make_workspace(folder)
        self.gate = folder / CLOSED

    def lines(self) -> list[list[str]]:
        """Return who has written down what."""
        return [line.split() for line in (self.folder / WORK).read_text().splitlines()]

    def start_and_hold(self, writer: Writer, how: str, first: int, end: int) -> str:
        """Let a writer begin and wait in its transformation; return the id of its job."""
        self.gate.touch()
        before = len(self.lines()) if (self.folder / WORK).exists() else 0
        writer.start(how, first, end)
        self.wait_for(lambda: (self.folder / WORK).exists() and len(self.lines()) > before)
        jobs = self.workspace.stores.ledger.jobs("two_writers", states=["RUNNING"])
        (held,) = [job for job in jobs if job.interval == Interval(day(first), day(end))]
        return held.id

    @staticmethod
    def wait_for(condition: Callable[[], bool]) -> None:
        """Return when a condition holds, which it must within some minutes."""
        deadline = time.monotonic() + 300
        while not condition():
            assert time.monotonic() < deadline, "not within 300 seconds"
            time.sleep(0.05)

    def covered(self, store: str) -> IntervalSet:
        """Return what is covered."""
        return self.workspace.stores.coverage(self.workspace.repo.view(VIEW), store)

    def check(self, *spans: tuple[int, int]) -> None:
        """Coverage and contents are these days, and never were two at work at once."""
        expected = IntervalSet(Interval(day(first), day(end)) for first, end in spans)
        assert self.covered("offline") == self.covered("online") == expected
        view = self.workspace.repo.view(VIEW)
        rows = self.workspace.stores.read_offline(view, stored_schema(view), Interval(day(0), day(10)))
        times = rows["paid_at"].to_pylist()
        counted = {n: sum(day(n) <= time < day(n + 1) for time in times) for n in range(10)}
        assert counted == {n: 3 * any(first <= n < end for first, end in spans) for n in range(10)}
        work = self.lines()
        for begun, ended in zip(work[::2], work[1::2], strict=True):
            assert (begun[0], begun[1], ended[1]) == (ended[0], "begins", "ends")


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Contest]:
    contest = Contest(tmp_path_factory.mktemp("contest"))
    yield contest
    contest.one.end()
    contest.other.end()


@pytest.mark.slow
def test_overlaps_are_refused_with_the_holders_job_and_disjoint_ranges_are_done_one_after_the_other(
    writers: Contest,
) -> None:
    one, other = writers.one, writers.other

    holder = writers.start_and_hold(one, "ui", 0, 3)
    other.start("sdk", 2, 5)
    refused = other.answer()
    assert (refused["success"], refused["id"]) == (False, holder)
    assert f"job {holder} is queued or running there; wait for it or cancel it first" in refused["text"]
    writers.gate.unlink()
    assert one.answer()["success"]
    writers.check((0, 3))

    holder = writers.start_and_hold(other, "sdk", 4, 6)
    one.start("ui", 3, 5)
    refused = one.answer()
    assert not refused["success"]
    assert f"job {holder} is queued or running there; wait for it or cancel it first" in refused["text"]
    writers.gate.unlink()
    assert other.answer()["success"]
    writers.check((0, 3), (4, 6))

    writers.start_and_hold(one, "ui", 3, 4)
    other.start("sdk", 6, 8)
    jobs = writers.workspace.stores.ledger.jobs
    writers.wait_for(lambda: any(job.interval.start == day(6) for job in jobs("two_writers")))
    work = len(writers.lines())
    time.sleep(1)
    assert len(writers.lines()) == work, "the second waits while the first is at work"
    writers.gate.unlink()
    assert one.answer()["success"]
    assert other.answer()["success"]
    writers.check((0, 8))

    one.start("ui", 8, 9)
    other.start("sdk", 9, 10)
    assert one.answer()["success"]
    assert other.answer()["success"]
    writers.check((0, 10))
    assert all(job.state == "SUCCESS" for job in jobs("two_writers"))
