"""The Stream Ingest API under requests made of its own OpenAPI page, and under damaged ones: nothing wrong gets in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from featurekit_dagster.ingest_app import IngestLimits
from tests.conftest import SOAK
from tests.support.event_checker import judge
from tests.support.push import SCHEMA, IngestServer, ingest_server, log_of, payment, payments_workspace

# That what is forbidden is refused is held against the log; schemathesis takes 413 for an acceptance.
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
KINDS = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
QUICK, TIMES = 10, 10 if SOAK else 1


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IngestServer]:
    limits = IngestLimits(visible_time=timedelta(0), events=4)  # so that too many are few bytes
    with ingest_server(payments_workspace(tmp_path_factory.mktemp("ingest")), limits) as running:
        yield running


def _many(requests: int, cases: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    quiet = settings(max_examples=requests, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    quiet(given(cases)(check))()


def _follow_the_page(server: IngestServer, kind: schemathesis.GenerationMode, requests: int) -> dict[int, int]:
    """Send what the page allows, or forbids; hold every answer to the page, and every logged event to the checker."""
    operation = schemathesis.openapi.from_url(f"{server.url}/openapi.json")["/ingest"]["POST"]
    log, statuses = log_of(server.workspace), dict[int, int]()

    def check(case: Any) -> None:
        before = log.newest()
        answer = case.call_and_validate(base_url=server.url, headers=server.headers, checks=CHECKS)
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        _check_log(answer.request.body, log.read(before, 10_000).records, answer.status_code, answer.json())

    _many(requests, operation.as_strategy(kind), check)
    log.close()
    return statuses


def _check_log(sent: Any, logged: Any, status: int, answer: dict[str, Any]) -> None:
    """Hold what was logged to what was sent: exactly its events after a 200, and nothing after any other answer."""
    if status != 200:
        assert not logged
        return
    asked = json.loads(sent, object_pairs_hook=_once)
    assert asked.keys() <= {"workspace", "source", "records", "dry_run"}
    assert (asked["workspace"], asked["source"], asked.get("dry_run", False)) == ("prod", "payments", answer["dry_run"])
    for event in asked["records"]:
        assert judge(json.dumps(event).encode(), SCHEMA, {"user", "ts"})[0] is not None
    assert answer["accepted"] == len(asked["records"])
    assert [json.loads(event) for event in logged] == ([] if answer["dry_run"] else asked["records"])


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs), "a member is given twice"
    return dict(pairs)


def _damage(server: IngestServer, requests: int) -> dict[int, int]:
    """Send requests with a few bytes changed; what is taken must be what a plain reader finds in them."""
    log, statuses = log_of(server.workspace), dict[int, int]()
    body = json.dumps({"workspace": "prod", "source": "payments", "records": [payment(1), payment(2)]}).encode()
    bits = st.sampled_from([b"", b'"', b",", b"{", b"}", b"]", b":", b"1", b"null", b'"ts":', b"\\", b"\x00", b"\xff"])
    edits = st.lists(st.tuples(st.integers(0, len(body)), st.integers(0, 4), bits | st.binary(max_size=3)), max_size=3)

    def check(damages: list[tuple[int, int, bytes]]) -> None:
        sent = body
        for place, length, instead in damages:
            sent = sent[:place] + instead + sent[place + length :]
        before = log.newest()
        answer = server.send_raw(sent)
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        assert answer.status_code in (200, 400, 404, 422)
        _check_log(sent, log.read(before, 10_000).records, answer.status_code, answer.json())

    _many(requests, edits, check)
    log.close()
    return statuses


@pytest.mark.parametrize("kind", KINDS, ids=["allowed", "forbidden"])
def test_answers_are_as_the_page_says(server: IngestServer, kind: schemathesis.GenerationMode) -> None:
    assert sum(_follow_the_page(server, kind, QUICK).values()) >= QUICK // 2


def test_a_damaged_request_gets_nothing_wrong_in(server: IngestServer) -> None:
    assert {200, 400} <= _damage(server, QUICK).keys()


@pytest.mark.slow
def test_thousands_of_allowed_requests_are_answered_as_the_page_says(server: IngestServer) -> None:
    statuses = _follow_the_page(server, KINDS[0], 240 * TIMES)
    assert statuses[200] > sum(statuses.values()) / 10


@pytest.mark.slow
def test_thousands_of_forbidden_requests_are_refused(server: IngestServer) -> None:
    assert {400, 422} <= _follow_the_page(server, KINDS[1], 160 * TIMES).keys()


@pytest.mark.slow
def test_thousands_of_damaged_requests_get_nothing_wrong_in(server: IngestServer) -> None:
    assert {200, 400, 404, 422} == _damage(server, 1_600 * TIMES).keys()


def test_the_page_itself_needs_no_key(server: IngestServer) -> None:
    assert httpx.get(f"{server.url}/openapi.json").status_code == 200
