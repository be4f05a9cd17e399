"""A process that uses a ledger: `python -m tests.support.ledger_client COMMAND PATH ...`, one function per command.

It prints `ready`, waits for a line, does its work and prints what came of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from featurekit_dagster.errors import OverlappingMaterialization
from featurekit_dagster.intervals import Interval
from featurekit_dagster.stores.ledger import Ledger
from featurekit_dagster.stores.ledger_records import JobRecord

ROOT = Path(__file__).resolve().parents[2]
T0 = datetime(2024, 3, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def day(number: int) -> Interval:
    """Return one day of the days that the commands claim."""
    return Interval(T0 + number * DAY, T0 + (number + 1) * DAY)


def claim_day(ledger: Ledger, number: int) -> JobRecord:
    """Claim one day of the view."""
    return ledger.claim(
        workspace="w",
        view="v",
        interval=day(number),
        online=True,
        offline=True,
        trigger="manual",
        run_id="run-of-client",
    )


def race(path: str, days: str) -> None:
    """Claim day after day and finish those won; print their numbers."""
    ledger = Ledger(path, clock=lambda: datetime.now(UTC))
    won = []
    for number in range(int(days)):
        try:
            job = claim_day(ledger, number)
        except OverlappingMaterialization:
            continue
        ledger.succeed(job.id, stats={"rows_offline": number})
        won.append(number)
    print(*won, flush=True)


def hold(path: str, lease: str) -> None:
    """Claim day 0, take a lease, say so, and wait to be killed."""
    ledger = Ledger(path, clock=lambda: T0)
    job = claim_day(ledger, 0)
    ledger.acquire(lease, job.id, timedelta(days=1000))
    print(job.id, flush=True)
    sys.stdin.readline()


def fork(path: str) -> None:
    """Use a ledger, fork, and use it in both processes; print the coverage in days."""
    ledger = Ledger(path, clock=lambda: T0)
    ledger.succeed(claim_day(ledger, 0).id, stats={})
    child = os.fork()
    number = 2 if child else 1
    for offset in (0, 2, 4):
        ledger.succeed(claim_day(ledger, number + offset).id, stats={})
    if not child:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print(sum(i.duration // DAY for i in ledger.coverage("w", "v", "online")), flush=True)


def start(command: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a client process and wait until it is ready."""
    line = [sys.executable, "-m", "tests.support.ledger_client", command, *map(str, arguments)]
    process = subprocess.Popen(line, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    """Let a process that is ready begin."""
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def answer(process: subprocess.Popen[str]) -> str:
    """Return the next line that a process prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str], *, kill: bool = False) -> None:
    """Let a process end, or kill it, and close its pipes."""
    if kill:
        process.kill()
    process.communicate(timeout=300)


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    print("ready", flush=True)
    sys.stdin.readline()
    {"race": race, "hold": hold, "fork": fork}[command](*rest)
