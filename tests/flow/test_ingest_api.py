"""The Stream Ingest API on a real port: what it takes, what it refuses, and that its logs hold no values."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from featurekit_dagster.ingest_app import IngestLimits
from featurekit_dagster.stores.ingest_keys import KEY_VARIABLE, IngestKeys
from tests.support.push import IngestServer, ingest_server, log_of, payment, payments_workspace

QUICK = IngestLimits(visible_time=timedelta(milliseconds=20), body_bytes=200_000, events=100)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[IngestServer]:
    with ingest_server(payments_workspace(tmp_path), QUICK) as running:
        yield running


def _logged(server: IngestServer) -> int:
    log = log_of(server.workspace)
    newest = log.newest()
    log.close()
    return newest


def test_events_are_logged_before_the_answer(server: IngestServer) -> None:
    answer = server.send([payment(1), payment(2)])
    assert (answer.status_code, answer.json()) == (
        200,
        {"accepted": 2, "sequence": 2, "visible": False, "dry_run": False},
    )
    records = log_of(server.workspace).read(0, 10).records
    assert [json.loads(record) for record in records] == [payment(1), payment(2)]
    assert server.send([]).json()["accepted"] == 0


def test_a_dry_run_logs_nothing(server: IngestServer) -> None:
    answer = server.send([payment(1)], dry_run=True)
    assert (answer.status_code, answer.json()["accepted"], _logged(server)) == (200, 1, 0)


def test_every_event_that_does_not_fit_is_told_with_its_field(server: IngestServer) -> None:
    answer = server.send([payment(1), payment(2, items="2"), payment(3, extra=1), 7])
    assert answer.status_code == 422
    assert [(each["index"], each["field"]) for each in answer.json()["refused"]] == [
        (1, "items"),
        (2, "extra"),
        (3, ""),
    ]
    assert _logged(server) == 0


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"source": "none"}, 404),
        ({"workspace": "none"}, 404),
        ({"dry_run": "yes"}, 400),
        ({"more": 1}, 400),
        ({"records": {}}, 400),
        ({"records": [payment()] * 101}, 413),
    ],
)
def test_a_request_that_is_none_of_ours_is_refused(server: IngestServer, changes: dict[str, Any], status: int) -> None:
    answer = server.send(**{"records": [payment(1)], **changes})
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert _logged(server) == 0


NOT_OURS = ("httpx", "httpcore", "uvicorn.access")
"""The client's, and a log that pytest listens to though the server has switched it off (tests/flow/test_ingest_cli)."""

GOOD = json.dumps({"workspace": "prod", "source": "payments", "records": [payment(1)]}).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"records": [' + b"[" * 50_000,
        GOOD + b"x",
        GOOD.replace(b'"records": [', b'"records": [], "records": ['),
        GOOD.replace(b"}]}", b'}], "records": [{"user": 1}]}'),
        GOOD[:-1] + b', "records": ' + GOOD[GOOD.index(b"[") :],
        GOOD[:-1] + b', "source": "payments"}',
    ],
)
def test_a_body_that_is_no_json_or_says_a_thing_twice_is_refused(server: IngestServer, body: bytes) -> None:
    assert server.send_raw(body).status_code == 400
    assert _logged(server) == 0


def test_pretty_printed_requests_are_taken(server: IngestServer) -> None:
    assert server.send_raw(json.dumps(json.loads(GOOD), indent=4).encode()).json()["accepted"] == 1


def test_a_body_of_another_type_is_refused(server: IngestServer) -> None:
    assert server.send_raw(GOOD, **{"Content-Type": "text/plain"}).status_code == 415
    assert server.send_raw(GOOD, **{"Content-Type": "application/json; charset=utf-8"}).status_code == 200


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer x", "Bearer fk.tests.wrong", "Basic {key}", "Bearer {key}x"])
def test_nobody_sends_without_a_key(server: IngestServer, given: str) -> None:
    answer = server.send_raw(GOOD, Authorization=given.format(key=server.key))
    assert (answer.status_code, answer.headers["www-authenticate"], _logged(server)) == (401, "Bearer", 0)


def test_a_key_sends_only_to_its_sources_and_only_until_it_is_revoked(server: IngestServer) -> None:
    keys = IngestKeys.of(server.workspace.home, "prod")
    narrow, right = keys.create("narrow", ["other"]), keys.create("right", ["payments"])
    assert server.send_raw(GOOD, Authorization=f"Bearer {narrow}").status_code == 403
    assert server.send_raw(GOOD, Authorization=f"bearer {right}").status_code == 200
    keys.revoke("right")
    assert server.send_raw(GOOD, Authorization=f"Bearer {right}").status_code == 401


def test_a_key_may_come_from_the_environment(server: IngestServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "a-long-secret-of-the-deployment")
    assert server.send_raw(GOOD, Authorization="Bearer a-long-secret-of-the-deployment").status_code == 200
    monkeypatch.setenv(KEY_VARIABLE, "short")
    assert server.send_raw(GOOD, Authorization="Bearer short").status_code == 401


def _begun(server: IngestServer, *, length: int | None) -> socket.socket:
    """Return a connection over which the head of a request was sent."""
    url = httpx.URL(server.url)
    head = (
        f"POST /ingest HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\nContent-Type: application/json\r\n"
    )
    head += f"Content-Length: {length}\r\n\r\n" if length else "Transfer-Encoding: chunked\r\n\r\n"
    connection = socket.create_connection((str(url.host), url.port or 0), timeout=60)
    connection.sendall(head.encode())
    return connection


def _endless(server: IngestServer, mebibytes: int, *, length: int | None) -> bytes:
    """Send a huge body as long as the server takes it, and return the answer's first line."""
    chunk = b" " * (1 << 20)
    framed = chunk if length else b"%x\r\n%s\r\n" % (len(chunk), chunk)
    with _begun(server, length=length) as connection:
        try:
            for _ in range(mebibytes):
                connection.sendall(framed)
        except OSError:  # the server has had enough
            pass
        try:
            return connection.recv(1_000).split(b"\r\n")[0]
        except ConnectionResetError:
            return b"reset"


@pytest.mark.parametrize("is_announced", [True, False])
def test_a_body_of_a_gigabyte_is_refused_without_being_kept(server: IngestServer, is_announced: bool) -> None:
    server.send([payment(1)])
    before = psutil.Process().memory_info().rss
    answer = _endless(server, 1_024, length=1 << 30 if is_announced else None)
    assert answer == b"reset" or b" 413 " in answer
    assert psutil.Process().memory_info().rss - before < 64 << 20
    assert server.send([payment(2)]).status_code == 200


def test_a_body_that_does_not_come_in_is_given_up(tmp_path: Path) -> None:
    limits = IngestLimits(body_time=timedelta(milliseconds=200))
    with ingest_server(payments_workspace(tmp_path), limits) as server:
        assert b" 408 " in _endless(server, 0, length=10)


def test_too_many_requests_at_once_are_told_to_come_again(tmp_path: Path) -> None:
    limits = IngestLimits(requests=2, visible_time=timedelta(milliseconds=20), body_time=timedelta(minutes=10))
    statuses: list[int] = []
    with ingest_server(payments_workspace(tmp_path), limits) as server, ExitStack() as stack:
        slow = [stack.enter_context(_begun(server, length=1)) for _ in range(limits.requests)]
        while 429 not in statuses and len(statuses) < 1_000:
            statuses.append(server.send([payment(1)]).status_code)
        assert set(statuses) in ({429}, {200, 429})
        assert _logged(server) == statuses.count(200)
        for connection in slow:
            connection.sendall(b"{")
            assert b" 400 " in connection.recv(1_000)
        assert server.send([payment(1)]).status_code == 200


def test_a_log_that_cannot_be_written_is_told_and_nothing_is_accepted(server: IngestServer) -> None:
    folder = server.workspace.home / "push" / "prod"
    folder.mkdir(parents=True)
    (folder / "payments.db").write_bytes(b"no database" * 100)
    assert server.send([payment(1)]).status_code == 503


def test_logs_hold_counts_and_no_values(server: IngestServer, caplog: pytest.LogCaptureFixture) -> None:
    secret = "s3cr3tvalue"
    with caplog.at_level(logging.DEBUG):
        server.send([payment(1, user=secret)])
        server.send([payment(1, user=secret, items=secret)])
        server.send_raw(f'{{"workspace": "{secret}"'.encode())
        server.send([payment(1)], source=secret)
        httpx.post(f"{server.url}/ingest?user={secret}", json={"user": secret}, headers={"Authorization": secret})
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith(NOT_OURS)]
    assert "source=payments accepted=1 refused=0 key=tests" in ours
    assert not [line for line in ours if secret in line or server.key in line]


def test_the_page_of_the_api_describes_each_source(server: IngestServer) -> None:
    page = httpx.get(f"{server.url}/openapi.json").json()
    (form,) = page["paths"]["/ingest"]["post"]["requestBody"]["content"]["application/json"]["schema"]["oneOf"]
    assert form["properties"]["source"] == {"const": "payments"}
    event = form["properties"]["records"]["items"]
    assert event["properties"]["user"] == {"type": "string"}
    assert event["properties"]["items"]["type"] == ["integer", "null"]
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
