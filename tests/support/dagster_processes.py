"""Dagster as a deployment runs it: webserver, daemon and code location, each a process that a test can stop and start.

Everything listens on free ports of the loopback address and ends with the block, by process group.
"""

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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from tests.architecture.python_files import ROOT
from tests.support.stream_servers import free_port

Process = subprocess.Popen[bytes]

CODE, WEB, DAEMON = "code", "web", "daemon"
LOCATION = "location"

_LOADED = "{ workspaceOrError { ... on Workspace { locationEntries { loadStatus locationOrLoadError { __typename "
_LOADED += "... on PythonError { message causes { message } } } } } } }"
_HEALTH = "{ instance { daemonHealth { allDaemonStatuses { daemonType required healthy lastHeartbeatTime } } } }"

# Dagster gives up a run whose process needs longer to import its code.
_PATIENT = {"DAGSTER_GRPC_TIMEOUT_SECONDS": "600"}

# A shell that starts tests in the background makes them ignore SIGINT; Dagster copies that to SIGTERM and never ends.
_WITH_SIGNALS = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
)


def script(name: str) -> str:
    """Return the path of a command of this environment."""
    return str(Path(sys.executable).with_name(name))


def start_process(command: list[str], environment: Mapping[str, str], log: Path) -> Process:
    """Start a command at the project's root as leader of a process group; what it prints is added to `log`."""
    settings = {"DAGSTER_DISABLE_TELEMETRY": "1", "PYTHONUNBUFFERED": "1", **_PATIENT}
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-c", _WITH_SIGNALS, *command],
            cwd=ROOT,
            env={**os.environ, **settings, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def end_process(process: Process) -> None:
    """End a whole process group: asked first, killed after 20 seconds; children that outlive the leader too."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(20)


def tail(log: Path) -> str:
    """Return the end of a log."""
    return log.read_text(encoding="utf-8", errors="replace")[-4_000:] if log.exists() else ""


def graphql(url: str, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `data` of a webserver's GraphQL answer; errors of the query are raised."""
    body = json.dumps({"query": query, "variables": dict(variables)}).encode()
    request = urllib.request.Request(f"{url}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as response:
        answer = json.load(response)
    if "errors" in answer:
        raise AssertionError(answer["errors"])
    return answer["data"]


def wait_for(
    what: str, condition: Callable[[], bool], timeout_seconds: float = 900, *, pause_seconds: float = 0.25
) -> None:
    """Return when a condition holds.

    Raises:
        AssertionError: It does not in time; the text names `what`.
    """
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_seconds:.0f} seconds: {what}")
        time.sleep(pause_seconds)


def is_loaded(url: str) -> bool:
    """Tell whether a webserver answers and has loaded all its code locations.

    Raises:
        AssertionError: A code location does not load; the text is the reason.
    """
    try:
        entries = graphql(url, _LOADED, {})["workspaceOrError"]["locationEntries"]
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
    errors = [e["locationOrLoadError"] for e in entries if "message" in (e["locationOrLoadError"] or {})]
    reasons = [reason["message"] for error in errors for reason in (error, *error["causes"])]
    if reasons:
        raise AssertionError("the definitions do not load:\n" + "".join(reasons))
    return bool(entries) and all(entry["loadStatus"] == "LOADED" for entry in entries)


@dataclass(frozen=True)
class DagsterDeployment:
    """A Dagster whose parts are processes of their own.

    Args:
        definitions: The Python file of the code location.
        home: `$DAGSTER_HOME`; the logs of the processes lie there too.
        environment: Added to the environment of all processes.
        port: Of the code location; the webserver has `web_port`.
    """

    definitions: Path
    home: Path
    environment: Mapping[str, str]
    port: int = field(default_factory=free_port)
    web_port: int = field(default_factory=free_port)
    processes: dict[str, Process] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Address of the user interface."""
        return f"http://127.0.0.1:{self.web_port}"

    @property
    def workspace_file(self) -> str:
        """The file that names the code location."""
        return str(self.home / "workspace.yaml")

    def graphql(self, query: str, **variables: Any) -> dict[str, Any]:
        """Return the `data` of a GraphQL answer; errors of the query are raised."""
        return graphql(self.url, query, variables)

    def instance(self) -> dg.DagsterInstance:
        """Return the instance of this deployment; use it as a context manager."""
        return dg.DagsterInstance.from_config(str(self.home))

    def start(self, *names: str) -> None:
        """Start parts that do not run, and wait until each does its work."""
        commands = {
            CODE: ["dagster", "api", "grpc", "-h", "127.0.0.1", "-p", str(self.port), "-f", str(self.definitions)],
            WEB: ["dagster-webserver", "-h", "127.0.0.1", "-p", str(self.web_port), "-w", self.workspace_file],
            DAEMON: ["dagster-daemon", "run", "-w", self.workspace_file],
        }
        began = time.time()
        for name in names:
            program, *rest = commands[name]
            started = start_process([script(program), *rest], self._variables(), self.home / f"{name}.log")
            self.processes[name] = started
            if name == CODE:  # whoever asks it too early does not ask again soon
                self._wait("the code location listens", self._code_listens)
        if WEB in names:
            self._wait("the code location is loaded", lambda: is_loaded(self.url))
        if DAEMON in names:
            self._wait("the daemon gives signs of life", lambda: self._daemon_beats_since(began))

    def end(self, *names: str) -> None:
        """End parts; those that do not run stay as they are."""
        for name in names:
            if (process := self.processes.pop(name, None)) is not None:
                end_process(process)

    def run(self, *command: str) -> str:
        """Run a command of this environment at the project's root and return what it printed; it must succeed."""
        done = subprocess.run(
            [script(command[0]), *command[1:]],
            cwd=ROOT,
            env={**os.environ, "DAGSTER_DISABLE_TELEMETRY": "1", **_PATIENT, **self._variables()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def _variables(self) -> dict[str, str]:
        return {"DAGSTER_HOME": str(self.home), **self.environment}

    def _wait(self, what: str, condition: Callable[[], bool]) -> None:
        def holds() -> bool:
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise AssertionError(f"{name} ended with {process.returncode}:\n{tail(self.home / f'{name}.log')}")
            return condition()

        wait_for(what, holds)

    def _code_listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _daemon_beats_since(self, began: float) -> bool:
        try:
            daemons = self.graphql(_HEALTH)["instance"]["daemonHealth"]["allDaemonStatuses"]
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False  # a busy webserver
        needed = [d for d in daemons if d["required"]]
        return bool(needed) and all((d["lastHeartbeatTime"] or 0) > began for d in needed)


@contextlib.contextmanager
def dagster_deployment(
    definitions: Path, home: Path, environment: Mapping[str, str], *parts: str
) -> Iterator[DagsterDeployment]:
    """Run a Dagster until the block ends; its processes' logs stay in `home`, their ends are shown if the block fails.

    Args:
        definitions: The Python file of the code location.
        home: Folder for `dagster.yaml` (the project's own), runs and logs.
        environment: Added to the processes' environment.
        parts: What to start at once; everything by default.
    """
    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "dagster.yaml", home / "dagster.yaml")
    deployment = DagsterDeployment(definitions, home, environment)
    server = {"host": "127.0.0.1", "port": deployment.port, "location_name": LOCATION}
    (home / "workspace.yaml").write_text(yaml.safe_dump({"load_from": [{"grpc_server": server}]}))
    try:
        deployment.start(*(parts or (CODE, WEB, DAEMON)))
        yield deployment
    finally:
        deployment.end(DAEMON, WEB, CODE)
