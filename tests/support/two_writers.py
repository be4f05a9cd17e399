"""A process that materializes days of a view, as the SDK or as a run that a person starts in Dagster's UI.

Its argument is a folder. It reads commands, one a line (`ui FIRST END`, `sdk FIRST END`: days `[FIRST, END)`), and
answers each by a line of JSON. While the file `closed` is in the folder, the transformation waits; it writes down when
it works.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pandas as pd

from featurekit_dagster import (
    BatchSource,
    Entity,
    Field,
    FileConfig,
    FilteredSource,
    Float64,
    String,
    Timestamp,
    Workspace,
    batch_feature_view,
)
from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.errors import OverlappingMaterialization
from tests.flow.payments import DAY, FIRST, day, run_asset

DAYS = 10
VIEW = "payments_of_user"
CLOSED, WORK = "closed", "work.log"


def write_down(folder: Path, what: str) -> None:
    """Add a line with this process's number."""
    with (folder / WORK).open("a") as log:
        log.write(f"{os.getpid()} {what}\n")


def make_view(folder: Path) -> FeatureView:
    """Return a view of rows in both stores, one job and one query per range."""
    config = FileConfig(uri=str(folder / "payments.parquet"), file_format="parquet", timestamp_field="paid_at")

    def payments_of_user(payments: pd.DataFrame) -> pd.DataFrame:
        write_down(folder, "begins")
        while (folder / CLOSED).exists():
            time.sleep(0.02)
        write_down(folder, "ends")
        return payments[["user_id", "paid_at", "amount"]]

    return batch_feature_view(
        name=VIEW,
        mode="pandas",
        sources=[FilteredSource(BatchSource(name="payments", batch_config=config))],
        entities=[Entity(name="user", join_keys=[Field("user_id", String)])],
        schema=[Field("user_id", String), Field("paid_at", Timestamp), Field("amount", Float64)],
        timestamp_field="paid_at",
        batch_schedule=DAY,
        feature_start_time=FIRST,
        online=True,
        offline=True,
    )(payments_of_user)


def make_workspace(folder: Path) -> Workspace:
    """Return the workspace of the view, ten days after its start."""
    return Workspace("two_writers", [make_view(folder)], home=folder / "home", clock=day(DAYS))


def ui(workspace: Workspace, first: int, end: int) -> dict[str, Any]:
    """Run the asset's job over a range of partitions; return whether it succeeded, and what Dagster shows if not."""
    from featurekit_dagster.orchestration.run import failure_text, open_instance

    with open_instance(workspace) as instance:
        result = run_asset(workspace, VIEW, first, end, instance)
        return {"success": result.success, "text": failure_text(result), "id": result.run_id}


def sdk(workspace: Workspace, first: int, end: int) -> dict[str, Any]:
    """Trigger a job and wait for it; return whether it succeeded, and the text of a refusal."""
    handle = workspace.get_feature_view(VIEW)
    try:
        job_id = handle.trigger_materialization_job(day(first), day(end), online=True, offline=True)
    except OverlappingMaterialization as refused:
        return {"success": False, "text": str(refused), "id": refused.job_id}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there is no daemon
        job = handle.wait_for_materialization_job(job_id)
    return {"success": job.state == "SUCCESS", "text": None, "id": job_id}


def main(folder: Path) -> None:
    """Answer commands until there are no more."""
    workspace = make_workspace(folder)
    workspace.definitions()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        how, first, end = line.split()
        print(json.dumps({"ui": ui, "sdk": sdk}[how](workspace, int(first), int(end))), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
