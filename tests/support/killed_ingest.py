"""A process that ingests and kills itself at a step: `python -m tests.support.killed_ingest HOME STEP`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from featurekit_dagster.execution.table_ingest import ingest_rows
from tests.support.scores import FIRST, HOUR, Table, rows

if __name__ == "__main__":
    home, wanted = sys.argv[1:]

    def on_step(step: str) -> None:
        if step == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    table = Table(Path(home))
    ingest_rows(table.view, rows(("a", FIRST + HOUR, 2.0), ("b", FIRST, 3.0)), table.stores, on_step=on_step)
