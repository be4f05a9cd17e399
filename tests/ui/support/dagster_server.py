"""A Dagster webserver (alone, or with its daemon) on a free port, with a home of its own, that ends with the test."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.architecture.python_files import ROOT
from tests.support.dagster_processes import (
    Process,
    end_process,
    graphql,
    is_loaded,
    script,
    start_process,
    tail,
)
from tests.support.stream_servers import free_port

PATIENT = {"DAGSTER_GRPC_TIMEOUT_SECONDS": "600"}
"""Environment in which Dagster's processes wait for each other as long as a busy machine needs."""


@dataclass(frozen=True)
class DagsterServer:
    """A running server; `pid` leads the process group of all its processes."""

    pid: int
    url: str
    home: Path
    log: Path

    def graphql(self, query: str, **variables: Any) -> dict[str, Any]:
        """Return the `data` of a GraphQL answer; errors of the query are raised."""
        return graphql(self.url, query, variables)


@contextlib.contextmanager
def dagster_server(
    definitions: Path,
    home: Path,
    *,
    daemon: bool = False,
    environment: Mapping[str, str] | None = None,
    timeout_seconds: float = 300,
) -> Iterator[DagsterServer]:
    """Serve a definitions file until the block ends.

    Args:
        definitions: The Python file to load.
        home: Folder for `dagster.yaml` (the project's own), runs and logs.
        daemon: Whether schedules, sensors and the run queue work too (`dagster dev`).
        environment: Added to the processes' environment.
        timeout_seconds: How long to wait until the code location is loaded.
    """
    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "dagster.yaml", home / "dagster.yaml")
    port, log = free_port(), home / "server.log"
    program = [script("dagster"), "dev"] if daemon else [script("dagster-webserver")]
    command = [*program, "-h", "127.0.0.1", "-p", str(port), "-f", str(definitions)]
    process = start_process(command, {"DAGSTER_HOME": str(home), **PATIENT, **(environment or {})}, log)
    server = DagsterServer(process.pid, f"http://127.0.0.1:{port}", home, log)
    try:
        _wait_until_loaded(server, process, time.monotonic() + timeout_seconds)
        yield server
    finally:
        end_process(process)


def _wait_until_loaded(server: DagsterServer, process: Process, deadline: float) -> None:
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"the server ended with {process.returncode}:\n{tail(server.log)}")
        if is_loaded(server.url):
            return
        time.sleep(0.5)
    raise AssertionError(f"the server was not ready in time:\n{tail(server.log)}")
