"""A process that deletes keys and kills itself, some time after it has reached a step so many times."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pyarrow as pa

from featurekit_dagster import BatchSource, FileConfig, Workspace
from featurekit_dagster.execution.delete_keys import KeyRemoval
from featurekit_dagster.execution.deletion_request import request_deletion
from featurekit_dagster.stores.ledger_records import DELETION, JobRecord
from tests.support.visits import day, totals, workspace_of

DELETED, DAYS = (1, 2, 3), 5
END = day(1 + DAYS)


def opened(root: Path, turn: int = 0) -> Workspace:
    """Return the workspace, whose source is there already, some time later each turn, so that leases have run out."""
    config = FileConfig(uri=str(root / "visits.parquet"), file_format="parquet", timestamp_field="ts")
    source = BatchSource(name="visits", batch_config=config)
    return workspace_of(root, [totals(source)], now=END + turn * timedelta(minutes=20))


def deletions(workspace: Workspace) -> list[JobRecord]:
    """Return the jobs that delete keys, newest first."""
    return [job for job in workspace.jobs("totals") if job.kind == DELETION]


def go_on(workspace: Workspace, on_step: Callable[[str], None] = lambda step: None) -> None:
    """Ask for the deletion unless that was done, and carry it out."""
    view, stores = workspace.repo.view("totals"), workspace.stores
    if not deletions(workspace):
        request_deletion(view, pa.table({"user": pa.array(DELETED)}), stores, on_step=on_step)
    stores.ledger.abandon_dead(stores.workspace)
    job = stores.ledger.begin(deletions(workspace)[0].id, run_id=None)
    removal = KeyRemoval(view, stores, job, lambda: None, on_step=on_step)
    stores.ledger.finish_chore(job.id, stats=removal.carry_out())


def killed(root: Path, turn: int, steps: int, seconds: float) -> None:
    """Go on with the deletion; after so many steps, and so long after that, the process is gone."""
    reached = 0

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def on_step(step: str) -> None:
        nonlocal reached
        reached += 1
        if reached == steps and not seconds:
            die()
        elif reached == steps:
            threading.Timer(seconds, die).start()

    go_on(opened(root, turn), on_step)
    if reached >= steps:
        die()
