"""The commands around the Stream Ingest API, in processes of their own, one of which is killed under load."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from featurekit_dagster import Workspace
from featurekit_dagster.stores.ingest_keys import IngestKeys
from featurekit_dagster.stores.ledger_processes import ProcessIdentity
from tests.conftest import ROOT, SOAK
from tests.support.dagster_processes import wait_for
from tests.support.push import log_of, payment, payments_workspace
from tests.support.stream_servers import free_port, process
from tests.unit.cli_runner import bind, output

MODULE = """
from pathlib import Path
from tests.support.dagster_processes import wait_for
from tests.support.push import payments_workspace
workspace = payments_workspace(Path("."))
"""
SERVE = "from featurekit_dagster.cli import app; app()"


@contextmanager
def _serving(folder: Path, *more: str) -> Iterator[tuple[subprocess.Popen[bytes], int, Path]]:
    """Serve a folder's workspace; its log is in the third place."""
    (folder / "pushed.py").write_text(MODULE)
    settings = {"PYTHONPATH": f"{ROOT}:{folder}", "FEATUREKIT_WORKSPACE": "pushed:workspace"}
    before = dict(os.environ)
    os.environ.update(settings)
    port, log = free_port(), folder / f"serve-{free_port()}.log"
    command = [sys.executable, "-c", f"import os; os.chdir({str(folder)!r}); {SERVE}", "ingest", "serve"]
    try:
        with process([*command, "--port", str(port), *more], port, log) as server:
            workers = psutil.Process(server.pid).children(recursive=True)
            try:
                yield server, port, log
            finally:
                for worker in [*workers, *_children(server.pid)]:
                    with suppress(psutil.NoSuchProcess):
                        worker.kill()
    finally:
        os.environ.clear()
        os.environ.update(before)


def _children(pid: int) -> list[psutil.Process]:
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _send(port: int, key: str, records: list[dict[str, object]]) -> httpx.Response:
    body = {"workspace": "prod", "source": "payments", "records": records}
    headers = {"Authorization": f"Bearer {key}"}
    url = f"http://127.0.0.1:{port}/ingest?secret=s3cr3t"
    return httpx.post(url, json=body, headers=headers, timeout=120, verify=False, trust_env=False)


def test_keys_are_made_listed_and_revoked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bind(payments_workspace(tmp_path), tmp_path, monkeypatch)
    assert output("ingest", "keys") == "There are no keys.\n"
    key = output("ingest", "create-key", "shop").strip()
    output("ingest", "create-key", "till", "--source", "payments")
    assert output("ingest", "keys") == "shop: all sources\ntill: payments\n"
    (file,) = (tmp_path / "home" / "push").glob("*.keys.json")
    assert file.stat().st_mode & 0o777 == 0o600
    assert key not in file.read_text()
    assert output("ingest", "revoke-key", "shop") == "Revoked key shop.\n"
    output("ingest", "revoke-key", "shop", exit_code=1)
    output("ingest", "create-key", "till", exit_code=1)
    output("ingest", "create-key", "no name", exit_code=1)
    output("ingest", "create-key", "other", "--source", "none", exit_code=1)
    assert output("ingest", "keys") == "till: payments\n"


def test_nothing_is_served_without_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bind(payments_workspace(tmp_path), tmp_path, monkeypatch)
    output("ingest", "serve", exit_code=1)


def test_drain_takes_what_was_sent_to_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = bind(payments_workspace(tmp_path), tmp_path, monkeypatch)
    workspace.get_stream_source("payments").ingest([payment(1), payment(2)])
    assert output("ingest", "drain") == "payments: 2 events drained\n"
    assert output("ingest", "drain") == "payments: 0 events drained\n"


def test_a_served_event_is_logged_and_the_server_logs_neither_paths_nor_values(tmp_path: Path) -> None:
    workspace = payments_workspace(tmp_path)
    key = IngestKeys.of(workspace.home, "prod").create("shop")
    with _serving(tmp_path) as (_, port, log):
        assert _send(port, key, [payment(1, user="s3cr3t")]).json()["sequence"] == 1
        assert _send(port, key, [payment(1, user="s3cr3t", items="s3cr3t")]).status_code == 422
        text = log.read_text()
    assert "running on" in text
    assert "s3cr3t" not in text
    assert log_of(workspace).newest() == 1


def _killed_under_load(folder: Path, key: str, first: int) -> int:
    """Send events from several threads until the server is killed, and return how many were answered for."""
    answered: dict[int, int] = {}

    def send(writer: int) -> None:
        number = first + writer
        while True:
            try:
                answer = _send(port, key, [payment(number)])
            except httpx.HTTPError:
                return
            answered[answer.json()["sequence"]] = number
            number += 4

    with _serving(folder) as (server, port, _):
        writers = [threading.Thread(target=send, args=(writer,)) for writer in range(4)]
        for writer in writers:
            writer.start()
        wait_for("some events are answered for", lambda: len(answered) >= 10, pause_seconds=0.005)
        server.send_signal(signal.SIGKILL)
        for writer in writers:
            writer.join()
    log = log_of(payments_workspace(folder))
    for sequence, number in answered.items():
        (record,) = log.read(sequence - 1, 1).records
        assert json.loads(record)["items"] == number
    log.close()
    return len(answered)


def _check_online(workspace: Workspace) -> None:
    """Compare what is online with the whole log."""
    log = log_of(workspace)
    events = [json.loads(record) for record in log.read(0, log.newest()).records]
    log.close()
    for user in {event["user"] for event in events}:
        amounts = [event["amount"] for event in events if event["user"] == user]
        found = workspace.get_feature_view("paid").get_online_features({"user": user}).to_dict()
        assert found == {"sum": sum(amounts), "count": len(amounts)}


@pytest.mark.slow
def test_what_a_killed_server_answered_for_is_logged_and_online_once(tmp_path: Path) -> None:
    workspace = payments_workspace(tmp_path)
    key = IngestKeys.of(workspace.home, "prod").create("shop")
    for turn in range(50 if SOAK else 3):
        assert _killed_under_load(tmp_path, key, turn * 1_000_000) >= 10
    with _serving(tmp_path) as (_, port, _):
        wait_for("events are applied", lambda: _is_applied(port, key, 7))
    _check_online(workspace)


@pytest.mark.slow
def test_of_several_processes_another_one_applies_when_that_one_is_killed(tmp_path: Path) -> None:
    workspace = payments_workspace(tmp_path)
    key = IngestKeys.of(workspace.home, "prod").create("shop")
    with _serving(tmp_path, "--workers", "2") as (server, port, _):
        wait_for("events are applied", lambda: _is_applied(port, key, 7))
        (job,) = workspace.stores.ledger.stream_jobs("prod", "paid")
        applier = _applier(workspace)
        assert applier in [child.pid for child in _children(server.pid)]
        os.kill(applier, signal.SIGKILL)
        wait_for("another process applies", lambda: _is_applied(port, key, 14))
        assert _applier(workspace) != applier
        assert workspace.stores.ledger.job(job.id).attempts[0].state == "ERROR"
    _check_online(workspace)


def _applier(workspace: Workspace) -> int:
    """Return the number of the process that holds the lease of the payments."""
    with closing(sqlite3.connect(workspace.home / "ledger.db")) as ledger:
        (process,) = ledger.execute("SELECT process FROM leases WHERE name = 'push:prod/payments'").fetchone()
    return ProcessIdentity.parse(process).pid


def _is_applied(port: int, key: str, number: int) -> bool:
    """Send an event, and tell whether it is online; a connection to a killed process is refused or reset."""
    try:
        return bool(_send(port, key, [payment(number)]).json()["visible"])
    except httpx.HTTPError:
        return False
