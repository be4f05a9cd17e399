"""A process that stops itself (SIGSTOP) at a named point of the job of 2 March 2024; its arguments are ROOT VIEW POINT.

When it is continued it goes on as if nothing had happened, and prints what came of its run.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.errors import MaterializationFailed
from featurekit_dagster.execution.materialize import COMPUTED, WRITTEN_OFFLINE, WRITTEN_ONLINE, run_tasks
from featurekit_dagster.intervals import Interval
from featurekit_dagster.planning.tasks import Task
from featurekit_dagster.stores import delta, record_store
from featurekit_dagster.stores.ledger import Ledger
from featurekit_dagster.stores.lmdb_environment import LmdbEnvironment
from featurekit_dagster.stores.workspace_stores import WorkspaceStores
from tests.support.killed_run import DAY, DAYS, NOW, START, make_view, missing_tasks

HIT = START + DAY
LATER = NOW + timedelta(minutes=5)
"""When the lease of a process that was stopped at `NOW` has run out."""

BEFORE_DELTA, BEFORE_ONLINE, BEFORE_LEDGER = COMPUTED, WRITTEN_OFFLINE, WRITTEN_ONLINE
AT_DELTA, AT_LEDGER = "at the Delta commit", "at the transaction of the ledger"
AT_ONLINE, INSIDE_ONLINE, AT_MARKER = "at online transaction", "inside online transaction", "at the coverage marker"
BETWEEN_JOBS = "between two jobs"


def open_stores(root: Path, now: datetime) -> WorkspaceStores:
    """Return the stores as they are seen at a time."""
    return WorkspaceStores(workspace="w", home=root / "home", lake=str(root / "lake"), clock=lambda: now)


def queue_days(root: Path, view: FeatureView) -> None:
    """Ask for one job per day from 1 March on, after the tiles before it were made, which windows reach back to."""
    stores = open_stores(root, NOW)
    before = [task for task in missing_tasks(view, stores) if task.interval.start < START]
    list(run_tasks(view, before, stores, trigger="manual"))
    stores.online.close()
    days = list(Interval(START, START + DAYS * DAY).split_on_grid(DAY))
    stores.ledger.queue(workspace="w", view=view.name, intervals=days, online=True, offline=True, trigger="manual")
    stores.ledger.close()


def carry_out(
    root: Path,
    view: FeatureView,
    run_id: str,
    now: datetime,
    on_step: Callable[[str, Task], None] = lambda step, task: None,
) -> dict[str, Any]:
    """Carry out what waits; return the days of the jobs done, and day and kind of each error."""
    stores, done, errors = open_stores(root, now), [], []
    try:
        for report in run_tasks(view, _waiting(stores), stores, trigger="manual", run_id=run_id, on_step=on_step):
            done.append(report.job.interval.start.day)
            on_step(BETWEEN_JOBS, Task(view=view.name, interval=report.job.interval, online=True, offline=True))
    except MaterializationFailed as failed:
        errors = [[interval.start.day, type(error).__name__] for interval, error in failed.failures]
    stores.online.close()
    stores.ledger.close()
    return {"done": done, "errors": errors}


def _waiting(stores: WorkspaceStores) -> Iterator[Task]:
    """Yield what waits, looked up when the first is wanted, which is when the view's lease is held."""
    for job in stores.ledger.due("w"):
        again = bool(job.attempts)
        yield Task(view=job.view, interval=job.interval, online=True, offline=True, overwrite=again, job_id=job.id)


class Stopper:
    """Stops the process once, at its point of the job of 2 March.

    Args:
        point: A step of the recipe or the end of the job, or one of its commits: the writing call of the Delta
            library, the n-th transaction of the online store, its coverage marker, or the ledger's transaction.
    """

    def __init__(self, point: str) -> None:
        self.point = point
        self._in_hit_job, self._transactions = False, 0

    def on_step(self, step: str, task: Task) -> None:
        """Stop here, if the point is a step."""
        self._in_hit_job = task.interval.start == HIT
        self.reached(step)

    def reached(self, place: str) -> None:
        """Stop here, if this is the point."""
        if self._in_hit_job and place == self.point:
            self.point = ""
            os.kill(os.getpid(), signal.SIGSTOP)

    def watch_commits(self) -> None:
        """Let all that this process commits come by here just before."""
        delta.write_deltalake = self._after(AT_DELTA, delta.write_deltalake)
        Ledger.succeed = self._after(AT_LEDGER, Ledger.succeed)
        write_records, transact = record_store.write_records, LmdbEnvironment.transact

        def stop_behind_records(*arguments: Any, **options: Any) -> Any:
            refused = write_records(*arguments, **options)
            self.reached(AT_MARKER)
            return refused

        def stop_at_transaction(environment: LmdbEnvironment, body: Callable[[Any], Any]) -> Any:
            self._transactions += self._in_hit_job
            self.reached(f"{AT_ONLINE} {self._transactions}")
            return transact(environment, self._after(f"{INSIDE_ONLINE} {self._transactions}", body))

        record_store.write_records = stop_behind_records
        LmdbEnvironment.transact = stop_at_transaction

    def _after(self, place: str, body: Callable[..., Any]) -> Callable[..., Any]:
        def stop_first(*arguments: Any, **options: Any) -> Any:
            self.reached(place)
            return body(*arguments, **options)

        return stop_first


def main(root: Path, name: str, point: str) -> None:
    """Run until the point, stop, go on when continued, and print what came of it."""
    stopper = Stopper(point)
    stopper.watch_commits()
    view = make_view(name, root / "events.parquet")
    print(json.dumps(carry_out(root, view, "the first run", NOW, stopper.on_step)), flush=True)


if __name__ == "__main__":
    folder, view_name, where = sys.argv[1:]
    main(Path(folder), view_name, where)
