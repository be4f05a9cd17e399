"""A process that compacts a view again and again until it is killed; it says each time that it has begun."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

from featurekit_dagster import Aggregation, BatchSource, FileConfig, TimeWindow, Workspace
from featurekit_dagster.execution.compaction import clean_up_view, compact_view
from tests.support.visits import DAY, HOUR, latest, totals, workspace_of

WINDOWS = {"days": (DAY, 3 * DAY), "hours": (6 * HOUR, 3 * DAY), "half days": (12 * HOUR, 2 * DAY)}


def declared(folder: Path, windows: str) -> Workspace:
    """Return the workspace in a folder, with windows that need tiles of one of three sizes."""
    file = FileConfig(uri=str(folder / "visits.parquet"), file_format="parquet", timestamp_field="ts")
    source = BatchSource(name="visits", batch_config=file)
    aggregations = [
        Aggregation("visits", function, TimeWindow(size), name=f"{function}_{number}")
        for function in ("count", "sum", "min", "last", "stddev_pop")
        for number, size in enumerate(WINDOWS[windows])
    ]
    return workspace_of(folder, [totals(source, aggregations=aggregations), latest(source, ttl=5 * DAY)])


def main(folder: Path) -> None:
    print("ready", flush=True)
    while True:
        for windows in WINDOWS:
            workspace = declared(folder, windows)
            keep = {"holder": "killed", "check": lambda: None, "patience": timedelta(0)}
            compact_view(workspace.repo.view("totals"), workspace.stores, **keep)
            clean_up_view(workspace.repo.view("newest"), workspace.stores, **keep)
            workspace.stores.online.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
