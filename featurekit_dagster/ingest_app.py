"""The Stream Ingest API over HTTP: `POST /ingest` takes events of push sources, all of a request or none.

Whoever runs the app on several processes of one host may: each logs into the same log of a source, one of them applies
it, and each answers when that one has. Neither logs nor error texts hold an event's values.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import anyio
import anyio.to_thread
import msgspec
from fastapi import FastAPI, Request, Response

from featurekit_dagster.errors import NotAPushSource
from featurekit_dagster.execution.ingest import IngestResult, PushSource
from featurekit_dagster.execution.push_applier import PushApplier
from featurekit_dagster.ingest_schema import answers_schema, request_schema
from featurekit_dagster.sdk import Workspace, get_workspace
from featurekit_dagster.stores.ingest_keys import IngestKey, IngestKeys

_log = logging.getLogger("featurekit.ingest")
_JSON = "application/json"
SERVED_VARIABLE = "FEATUREKIT_SERVED_WORKSPACE"
"""Set by `featurekit ingest serve` for its processes: the workspace's name, or nothing for the only one."""
_NAP_SECONDS, _SWITCH_SECONDS = 0.002, 0.0005
_PATIENT_AGAIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestLimits:
    """How much the app takes.

    Args:
        body_bytes: Largest body; a larger one is refused before it is read.
        events: Most events of a request.
        requests: Most requests at once; others are told to come again.
        threads: How many of them are checked and logged at the same time.
        body_time: How long a body may take to come in.
        visible_time: How long to wait for CONTINUOUS views to have the events online before the answer.
    """

    body_bytes: int = 4 << 20
    events: int = 5_000
    requests: int = 32
    threads: int = 4
    body_time: timedelta = timedelta(seconds=30)
    visible_time: timedelta = timedelta(seconds=2)


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    workspace: str
    source: str
    records: msgspec.Raw
    dry_run: bool = False


class _Refusal(Exception):
    """A request is answered with an error."""

    def __init__(self, status: int, error: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(error)
        self.status, self.headers = status, dict(headers or {})


_REQUEST = msgspec.json.Decoder(_Request)
_RECORDS = msgspec.json.Decoder(list[msgspec.Raw])


class IngestService:
    """What the app does with requests.

    Args:
        workspace: The workspace whose push sources take events.
        keys: Who may send.
        limits: How much is taken.
    """

    def __init__(self, workspace: Workspace, keys: IngestKeys, limits: IngestLimits) -> None:
        self._workspace, self._keys, self._limits = workspace, keys, limits
        self.sources: dict[str, PushSource] = {}
        for source in workspace.repo.stream_sources:
            try:
                self.sources[source.name] = PushSource(source, workspace.repo.views, workspace.stores)
            except NotAPushSource as error:
                _log.info("%s", error)
        self._visible = {name: _Visibility(push) for name, push in self.sources.items()}
        self._appliers = [
            PushApplier(push, workspace.stores, self._visible[name].tell) for name, push in self.sources.items()
        ]
        self._under_way = 0
        self._threads = anyio.CapacityLimiter(limits.threads)

    @asynccontextmanager
    async def applying(self, _: FastAPI) -> AsyncIterator[None]:
        """Apply what is sent, in threads, for as long as the server runs."""
        for applier in self._appliers:
            applier.start()
        try:
            yield
        finally:
            for applier in self._appliers:
                await anyio.to_thread.run_sync(applier.stop)

    async def answer(self, request: Request) -> Response:
        """Answer a request, whatever becomes of it."""
        begun = time.monotonic()
        try:
            status, answer, headers = await self._answer(request)
        except _Refusal as refusal:
            status, answer, headers = refusal.status, {"error": str(refusal)}, refusal.headers
        except sqlite3.Error as error:
            status, answer, headers = 503, {"error": "the log cannot be written now"}, {"Retry-After": "5"}
            _log.error("the log cannot be written: %s", type(error).__name__)
        except Exception as error:  # noqa: BLE001 - a traceback would quote values
            status, answer, headers = 500, {"error": "the server failed"}, {}
            _log.error("a request failed: %s", type(error).__name__)
        _log.info("status=%d ms=%d", status, (time.monotonic() - begun) * 1000)
        return Response(msgspec.json.encode(answer), status, headers, _JSON)

    async def _answer(self, request: Request) -> tuple[int, dict[str, Any], dict[str, str]]:
        key = self._key_of(request)
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != _JSON:
            raise _Refusal(415, f"the content type is not {_JSON}")
        if self._under_way >= self._limits.requests:
            raise _Refusal(429, "too many requests at once; come again", {"Retry-After": "1"})
        async with AsyncExitStack() as stack:
            self._under_way += 1
            stack.callback(self._ended)
            body = await self._body(request)
            push, is_dry, result = await anyio.to_thread.run_sync(self._take, body, key, limiter=self._threads)
            visible = None
            if result.sequence is not None:
                visible = await self._visible[push.name].wait(result.sequence, self._limits.visible_time)
        refused = [{"index": each.index, "field": each.field, "rule": each.rule} for each in result.refused]
        _log.info("source=%s accepted=%d refused=%d key=%s", push.name, result.accepted, len(refused), key.name)
        if refused:
            return 422, {"error": "events do not fit the source; none was logged", "refused": refused}, {}
        answer = {"accepted": result.accepted, "sequence": result.sequence, "visible": visible, "dry_run": is_dry}
        return 200, answer, {}

    def _ended(self) -> None:
        self._under_way -= 1

    def _key_of(self, request: Request) -> IngestKey:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        key = self._keys.find(given.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            raise _Refusal(401, "give an API key: Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"})
        return key

    async def _body(self, request: Request) -> bytes:
        """Read the body, no more of it than is taken."""
        most = self._limits.body_bytes
        too_large = _Refusal(413, f"the body is larger than {most:,} bytes; send fewer events", {"Connection": "close"})
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_time.total_seconds()):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > most:
                        raise too_large
        except TimeoutError:
            raise _Refusal(408, "the body took too long to come in", {"Connection": "close"}) from None
        return bytes(body)

    def _take(self, body: bytes, key: IngestKey) -> tuple[PushSource, bool, IngestResult]:
        """Check a body, and log its events."""
        asked, records = _parsed(body)
        if not key.allows(asked.source):
            raise _Refusal(403, "the key may not send to this source")
        push = self.sources.get(asked.source)
        if asked.workspace != self._workspace.name or push is None:
            raise _Refusal(404, "there is no such push source in such a workspace here")
        if len(records) > self._limits.events:
            raise _Refusal(413, f"a request takes at most {self._limits.events:,} events")
        return push, asked.dry_run, push.ingest(records, dry_run=asked.dry_run)


class _Visibility:
    """Waits for events to be online, on behalf of all requests of a source at once.

    What this process applies wakes it; for what another one applies it looks again and again. After a wait in vain
    nobody waits for a while: nobody applies, and events are logged all the same.
    """

    def __init__(self, push: PushSource) -> None:
        self._push = push
        self._applied: int | None = None
        self._looked_at = float("-inf")
        self._impatient_until = float("-inf")
        self._moved = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def tell(self) -> None:
        """Say, from any thread, that more has been applied."""
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # the server has ended meanwhile
                loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._looked_at = float("-inf")
        self._moved.set()
        self._moved = asyncio.Event()

    async def wait(self, sequence: int, timeout: timedelta) -> bool | None:
        """Return whether events up to a number were online in time; None where no view moves with each event."""
        self._loop = asyncio.get_running_loop()
        deadline = time.monotonic() + timeout.total_seconds()
        while True:
            moved, applied = self._moved, self._look()
            if applied is None or applied >= sequence:
                return None if applied is None else True
            now = time.monotonic()
            if now < self._impatient_until:
                return False
            if now >= deadline:
                self._impatient_until = now + _PATIENT_AGAIN_SECONDS
                return False
            with suppress(TimeoutError):
                await asyncio.wait_for(moved.wait(), _NAP_SECONDS)

    def _look(self) -> int | None:
        now = time.monotonic()
        if now - self._looked_at >= _NAP_SECONDS:
            before, self._applied, self._looked_at = self._applied, self._push.applied(), now
            if before != self._applied:
                self._impatient_until = float("-inf")
        return self._applied


def _parsed(body: bytes) -> tuple[_Request, list[bytes]]:
    """Return a request and the text of each of its events."""
    try:
        asked = _REQUEST.decode(body)
        records = bytes(asked.records)
        events = [bytes(event) for event in _RECORDS.decode(records)]
        # The decoder takes the last of two members with one name. To look at names the events are left out, unless
        # they may stand there twice.
        around = body.replace(records, b"null") if body.count(records) == 1 else body
        names = [name for name, _ in json.loads(around, object_pairs_hook=list)]
    except msgspec.ValidationError as error:
        raise _Refusal(400, f"the body is no request: {error}") from None
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise _Refusal(400, "the body is no JSON") from None
    if len(set(names)) < len(names):
        raise _Refusal(400, "the body has a member twice")
    return asked, events


def ingest_app(
    workspace: Workspace, keys: IngestKeys | None = None, limits: IngestLimits | None = None, *, applies: bool = True
) -> FastAPI:
    """Return the app of a workspace's push sources, with its own OpenAPI page at `/openapi.json`.

    Args:
        workspace: The workspace.
        keys: Who may send; by default those that `featurekit ingest create-key` made.
        limits: How much is taken.
        applies: Whether the process also applies what is sent, unless another one does; if not, it only logs and waits.
    """
    limits = limits or IngestLimits()
    service = IngestService(workspace, keys or IngestKeys.of(workspace.home, workspace.name), limits)
    app = FastAPI(
        title=f"Stream Ingest API of {workspace.name}",
        docs_url=None,
        redoc_url=None,
        lifespan=service.applying if applies else None,
    )
    route: Callable[[Request], Awaitable[Response]] = service.answer
    app.add_api_route(
        "/ingest",
        route,
        methods=["POST"],
        summary="Log events of a push source, all of them or none",
        response_class=Response,
        responses=answers_schema(),
        openapi_extra={"requestBody": request_schema(workspace.name, service.sources.values(), limits.events)},
    )
    app.add_api_route("/health", _health, methods=["GET"], summary="Tell that the server runs")
    scheme = {"type": "http", "scheme": "bearer"}
    made = app.openapi()
    made.setdefault("components", {})["securitySchemes"] = {"key": scheme}
    made["paths"]["/ingest"]["post"]["security"] = [{"key": []}]
    return app


def served_app() -> FastAPI:
    """Return the app of `featurekit ingest serve`, in each of its processes."""
    # Threads that apply must not keep those that answer waiting, for Python's usual 5 ms above all.
    sys.setswitchinterval(_SWITCH_SECONDS)
    return ingest_app(get_workspace(os.environ.get(SERVED_VARIABLE) or None))


async def _health() -> dict[str, str]:
    return {"status": "ok"}
