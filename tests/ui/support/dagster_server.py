"""A Dagster webserver (alone, or with its daemon) on a free port, with a home of its own, that ends with the test."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.architecture.python_files import ROOT

_READY = "{ workspaceOrError { ... on Workspace { locationEntries { name loadStatus locationOrLoadError { __typename "
_READY += "... on PythonError { message causes { message } } } } } } }"

# A shell that starts tests in the background makes them ignore SIGINT; Dagster copies that to SIGTERM and never ends.
_WITH_SIGNALS = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
)


@dataclass(frozen=True)
class DagsterServer:
    """A running server; `pid` leads the process group of all its processes."""

    pid: int
    url: str
    home: Path
    log: Path

    def graphql(self, query: str, **variables: Any) -> dict[str, Any]:
        """Return the `data` of a GraphQL answer; errors of the query are raised."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        if "errors" in answer:
            raise AssertionError(answer["errors"])
        return answer["data"]


@contextlib.contextmanager
def dagster_server(
    definitions: Path,
    home: Path,
    *,
    daemon: bool = False,
    environment: Mapping[str, str] | None = None,
    timeout_seconds: float = 180,
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
    port = _free_port()
    script = Path(sys.executable).with_name("dagster" if daemon else "dagster-webserver")
    command = [str(script), *(["dev"] if daemon else []), "-h", "127.0.0.1", "-p", str(port), "-f", str(definitions)]
    log = home / "server.log"
    settings = {"DAGSTER_HOME": str(home), "DAGSTER_DISABLE_TELEMETRY": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", _WITH_SIGNALS, *command],
            cwd=ROOT,
            env={**os.environ, **settings, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = DagsterServer(process.pid, f"http://127.0.0.1:{port}", home, log)
    try:
        _wait_until_loaded(server, process, time.monotonic() + timeout_seconds)
        yield server
    finally:
        _end(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_loaded(server: DagsterServer, process: subprocess.Popen[bytes], deadline: float) -> None:
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"the server ended with {process.returncode}:\n{_tail(server.log)}")
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            entries = server.graphql(_READY)["workspaceOrError"]["locationEntries"]
            errors = [e["locationOrLoadError"] for e in entries if "message" in (e["locationOrLoadError"] or {})]
            reasons = [reason["message"] for error in errors for reason in (error, *error["causes"])]
            if reasons:
                raise AssertionError("the definitions do not load:\n" + "".join(reasons))
            if entries and all(entry["loadStatus"] == "LOADED" for entry in entries):
                return
        time.sleep(0.5)
    raise AssertionError(f"the server was not ready in time:\n{_tail(server.log)}")


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-4_000:]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the whole process group: asked first, killed after 20 seconds; children that outlive the leader too."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(20)
