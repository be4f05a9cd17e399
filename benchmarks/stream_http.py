"""The ingest process of `stream.py`: events over HTTP, applied where they are taken, beside a sender of its own."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import uvicorn

from featurekit_dagster import Workspace
from featurekit_dagster.ingest_app import ingest_app
from featurekit_dagster.stores.ingest_keys import IngestKeys

READY = "ready"
"""A file that a follower makes when it has begun."""
CONNECTIONS = 8
_SWITCH_SECONDS = 0.0005


def serve(workspace: Workspace, folder: Path, stop: threading.Event) -> None:
    """Serve and apply until told to stop; the folder learns where and with which key."""
    keys = IngestKeys.of(workspace.home, workspace.name)
    sys.setswitchinterval(_SWITCH_SECONDS)  # as `featurekit ingest serve` does
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(ingest_app(workspace, keys), access_log=False, log_level="warning", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        (folder / "server.json").write_text(json.dumps([listener.getsockname()[1], keys.create("benchmark")]))
        while not workspace.stores.ledger.stream_jobs(workspace.name, workspace.repo.views[0].name):
            stop.wait(0.05)
        (folder / READY).touch()
        stop.wait()
        server.should_exit = True
        thread.join()


class ToServer:
    """Sends each batch of events as one request, several at a time."""

    def __init__(self, folder: Path) -> None:
        self._port, key = json.loads((folder / "server.json").read_text())
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self._pool = ThreadPoolExecutor(CONNECTIONS)
        self._own = threading.local()
        self._sent: list[Future[None]] = []

    def send(self, payloads: Sequence[bytes]) -> None:
        """Hand a request over."""
        body = b'{"workspace":"benchmark","source":"events","records":[' + b",".join(payloads) + b"]}"
        self._sent.append(self._pool.submit(self._post, body))

    def _post(self, body: bytes) -> None:
        if not hasattr(self._own, "connection"):
            self._own.connection = HTTPConnection("127.0.0.1", self._port, timeout=30)
        self._own.connection.request("POST", "/ingest", body, self._headers)
        answer = self._own.connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise RuntimeError(f"the server answered {answer.status}")

    def finish(self) -> None:
        """Wait for all answers."""
        for each in self._sent:
            each.result()
