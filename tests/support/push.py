"""A workspace with a push source of payments, and its Stream Ingest API on a port of this machine."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from featurekit_dagster import (
    Aggregation,
    DeltaTableConfig,
    Entity,
    Field,
    Float64,
    Int64,
    PushConfig,
    StreamProcessingMode,
    StreamSource,
    String,
    Timestamp,
    TimeWindow,
    Workspace,
    stream_feature_view,
)
from featurekit_dagster.ingest_app import IngestLimits, ingest_app
from featurekit_dagster.stores.ingest_keys import IngestKeys
from featurekit_dagster.streams.push_log import PushLog, push_log_path
from tests.support.clock import Clock

NOW = datetime(2024, 1, 10, 12, 0, tzinfo=UTC)
SCHEMA = [Field("user", String), Field("amount", Float64), Field("items", Int64), Field("ts", Timestamp)]


def payments_workspace(folder: Path, now: datetime = NOW, late: timedelta | None = None, **more: Any) -> Workspace:
    """Return a workspace with the push source `payments`, whose events may be `late`, and a continuous view of it."""
    table = DeltaTableConfig(uri=str(folder / "payments"), timestamp_field="ts")
    config = PushConfig(timestamp_field="ts", watermark_delay_threshold=late)
    source = StreamSource(name="payments", stream_config=config, batch_config=table, schema=SCHEMA)
    view = stream_feature_view(
        name="paid",
        source=source,
        entities=[Entity(name="user", join_keys=["user"])],
        schema=SCHEMA,
        aggregations=[
            Aggregation("amount", "sum", TimeWindow(timedelta(hours=1)), name="sum"),
            Aggregation("items", "count", TimeWindow(timedelta(hours=1)), name="count"),
        ],
        stream_processing_mode=StreamProcessingMode.CONTINUOUS,
        batch_schedule=timedelta(days=1),
        feature_start_time=datetime(2024, 1, 1, tzinfo=UTC),
        online=True,
        offline=True,
        **more,
    )
    return Workspace("prod", [view], home=folder / "home", clock=Clock(now))


def payment(number: int = 0, **changes: Any) -> dict[str, Any]:
    """Return an event that fits."""
    event = {"user": f"u{number % 7}", "amount": number + 0.5, "items": number, "ts": "2024-01-10T11:30:00Z"}
    return {**event, **changes}


def log_of(workspace: Workspace) -> PushLog:
    """Return the log of the payments."""
    return PushLog(push_log_path(workspace.home, workspace.name, "payments"))


@dataclass
class IngestServer:
    """A server and a key for it."""

    workspace: Workspace
    url: str
    key: str
    client: httpx.Client

    def send(self, records: Any, **changes: Any) -> httpx.Response:
        """Send events."""
        body = {"workspace": "prod", "source": "payments", "records": records, **changes}
        return self.client.post("/ingest", json=body, headers=self.headers)

    @property
    def headers(self) -> dict[str, str]:
        """Say who sends."""
        return {"Authorization": f"Bearer {self.key}"}

    def send_raw(self, body: bytes, **headers: str) -> httpx.Response:
        """Send a body as it is."""
        sent = {**self.headers, "Content-Type": "application/json", **headers}
        return self.client.post("/ingest", content=body, headers=sent)


@contextmanager
def ingest_server(
    workspace: Workspace, limits: IngestLimits | None = None, *, applies: bool = False, key_name: str = "tests"
) -> Iterator[IngestServer]:
    """Serve a workspace's API in a thread of this process, which `applies` what is sent or leaves that to others."""
    keys = IngestKeys.of(workspace.home, workspace.name)
    key = keys.create(key_name)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = ingest_app(workspace, keys, limits, applies=applies)
        config = uvicorn.Config(app, access_log=False, log_config=None, ws="none", timeout_keep_alive=300)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
                yield IngestServer(workspace, url, key, client)
        finally:
            server.should_exit = True
            thread.join(300)
