"""Three processes trigger, cancel and retry at random while a daemon runs the jobs and some of its runs are killed."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from featurekit_dagster.errors import JobStateError, OverlappingMaterialization
from featurekit_dagster.intervals import IntervalSet, to_us
from featurekit_dagster.planning.tasks import OFFLINE, ONLINE
from featurekit_dagster.stores.ledger_records import ACTIVE_STATES, JobRecord
from tests.conftest import ROOT, SOAK
from tests.laws.test_many_processes import RECORDS, worker_processes
from tests.support.dagster_processes import dagster_deployment, wait_for
from tests.support.random_writers import DAYS, STORES, WorkerProcess, make_source, make_views, open_stores, span, stamps

DEFINITIONS = ROOT / "tests" / "support" / "random_writers_definitions.py"
ROUNDS = range(100 if SOAK else 2)
STEPS = 10
PATIENCE_SECONDS = 1_800


def running(root: Path) -> tuple[str, int] | None:
    """Return the job of an attempt under way and its process, as the ledger's table has them."""
    with closing(sqlite3.connect(root / "home" / "ledger.db")) as ledger:
        found = ledger.execute("SELECT id, process FROM jobs WHERE process != '' AND state = 'RUNNING'").fetchall()
    return (found[0][0], int(found[0][1].split("|")[3])) if found else None


def kill(root: Path) -> bool:
    """Kill the process of an attempt, and tell whether that was before its job was done."""
    wait_for("something runs", lambda: running(root) is not None or not unfinished(root), PATIENCE_SECONDS)
    if (found := running(root)) is None:
        return False
    job_id, pid = found
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait_for("the process is gone", lambda: not is_alive(pid))
    return job_id in unfinished(root)


def is_alive(pid: int) -> bool:
    """Tell whether a process can do anything more."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def jobs_of(root: Path) -> list[JobRecord]:
    stores = open_stores(root)
    found = stores.ledger.jobs("w")
    stores.ledger.close()
    return found


@contextmanager
def started(root: Path) -> Iterator[list[WorkerProcess]]:
    """Run a Dagster over a fresh folder, and three processes beside it; the rounds follow one another there."""
    root.mkdir()
    make_source(root)
    environment = {"RANDOM_WRITERS_FOLDER": str(root)}
    with dagster_deployment(DEFINITIONS, root / "dagster", environment), worker_processes() as workers:
        for worker in workers:
            worker.open(root)
        yield workers


def act(root: Path, workers: list[WorkerProcess], chance: random.Random) -> str:
    """Let one thing happen; return what it was."""
    worker, jobs = chance.choice(workers), jobs_of(root)
    what = chance.choices(["trigger", "cancel", "retry", "kill"], [6, 2, 2, 3])[0]
    if what == "kill":
        return what if kill(root) else "kill too late"
    if what == "trigger" or not jobs:
        view = chance.choice(list(STORES))
        first = chance.randrange(DAYS - 2)
        stores = chance.choice([STORES[view], STORES[view], (OFFLINE,)])
        worker.ask("trigger", view, first, first + chance.randrange(3), stores, chance.random() < 0.6, True)
    else:
        worker.ask(what, chance.choice(jobs).id)
    return what


def unfinished(root: Path) -> list[str]:
    """Return the jobs that have not ended."""
    return [job.id for job in jobs_of(root) if job.state in ACTIVE_STATES]


def settle(root: Path) -> None:
    """Wait until all jobs have ended, and ask again for those whose writers may have left what is not recorded."""
    stores = open_stores(root)
    while True:
        wait_for("all jobs have ended", lambda: not unfinished(root), PATIENCE_SECONDS)
        unsettled = [job for job in jobs_of(root) if job.state == "MANUALLY_CANCELLED" and job.attempts]
        if not unsettled:
            break
        for job in unsettled:
            with suppress(JobStateError, OverlappingMaterialization):
                stores.ledger.retry(job.id)
    stores.ledger.close()


def check(root: Path) -> None:
    """Coverage is what jobs have done, and every record has the stamp of the last that wrote its day there."""
    stores, found = open_stores(root), stamps(root)
    done = sorted((job for job in jobs_of(root) if job.state == "SUCCESS"), key=lambda job: job.attempts[-1].updated_at)
    for name, view in make_views(root).items():
        for store in STORES[name]:
            writers = [job for job in done if job.view == name and store in job.stores]
            assert stores.coverage(view, store) == IntervalSet(job.interval for job in writers)
            for number in range(-1, DAYS + 1):
                last = [job for job in writers if job.interval.overlaps(span(number, number))][-1:]
                records = found[name, store].get(number, [])
                assert len(records) == (RECORDS[name, store] if last else 0), (name, store, number, last)
                for job in last:
                    attempt = job.attempts[-1]
                    assert all(to_us(attempt.created_at) <= stamp <= to_us(attempt.updated_at) for stamp in records)
    stores.ledger.close()


def further_attempts(root: Path) -> int:
    """Return how often jobs were tried again, as those are whose process was killed."""
    return sum(len(job.attempts[1:]) for job in jobs_of(root))


@pytest.mark.slow
def test_whatever_happens_beside_a_daemon_coverage_equals_contents_and_no_window_is_doubled_or_lost(
    tmp_path: Path,
) -> None:
    root = tmp_path / "rounds"
    with started(root) as workers:
        for seed in ROUNDS:
            happened, chance, before = [], random.Random(seed), further_attempts(root)
            while len(happened) < STEPS or "kill" not in happened:
                happened.append(act(root, workers, chance))
                time.sleep(chance.uniform(0, 1))
            settle(root)
            check(root)
            assert further_attempts(root) > before, happened
    assert ONLINE in {store for job in jobs_of(root) for store in job.stores}
