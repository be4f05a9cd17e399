"""What `stream.py` measures with: JSON events of 200 bytes, views of them, and the raw loop that stands beside ours."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lmdb
import msgspec
import numpy as np

from featurekit_dagster import (
    Aggregation,
    AggregationLeadingEdge,
    Entity,
    Field,
    Float64,
    Int64,
    KafkaConfig,
    PushConfig,
    StreamProcessingMode,
    StreamSource,
    String,
    Timestamp,
    TimeWindow,
    Workspace,
    pandas_batch_config,
    stream_feature_view,
)
from featurekit_dagster.execution.stream_follower import MOST_EVENTS
from featurekit_dagster.intervals import EPOCH
from featurekit_dagster.streams.reading import StreamReader

START = datetime(2024, 1, 10, 12, 0, tzinfo=UTC)
EVENT_BYTES = 200
HOUR, DAY, LATE = timedelta(hours=1), timedelta(days=1), timedelta(minutes=10)
PROBE = "probe"
FUNCTIONS = ("count", "sum", "max")
SCHEMA = [
    Field("user_id", String),
    Field("ts", Timestamp),
    Field("amount", Float64),
    Field("items", Int64),
    Field("page", String),
    Field("note", String),
]
_VALUE = struct.Struct("<dqq")
_POLL = timedelta(milliseconds=250)


def event(user: str, us: int, amount: float, items: int) -> bytes:
    """Return one event of 200 bytes."""
    stamp = (EPOCH + timedelta(microseconds=us)).isoformat()
    values = {"user_id": user, "ts": stamp, "amount": amount, "items": items, "page": f"/p/{items}", "note": ""}
    room = EVENT_BYTES - len(msgspec.json.encode(values))
    return msgspec.json.encode({**values, "note": "x" * room})


def events(count: int, keys: int, per_second: int, seed: int = 7) -> list[bytes]:
    """Return events of uniform keys, so many of them in a second of event time."""
    random_state = np.random.default_rng(seed)
    users = random_state.integers(0, keys, count).tolist()
    amounts, items = random_state.integers(1, 10_000, count) / 4, random_state.integers(1, 99, count).tolist()
    first, step = (START - EPOCH) // timedelta(microseconds=1), 1_000_000 // per_second
    rows = zip(users, amounts.tolist(), items, strict=True)
    return [event(f"u{user:07d}", first + at * step, amount, item) for at, (user, amount, item) in enumerate(rows)]


def make_workspace(
    folder: Path, mode: StreamProcessingMode, *, sql: bool = False, servers: str | None = None, topic: str = "events"
) -> Workspace:
    """Return a workspace with one online view of the events, `activity`, whose clock is the real one.

    Args:
        folder: Where everything is stored.
        mode: How the view follows its stream.
        sql: Whether it has a function, in SQL mode.
        servers: Kafka brokers; the events are pushed without.
        topic: The topic there.
    """
    if servers is None:
        source = StreamSource(
            name="events",
            stream_config=PushConfig(timestamp_field="ts", watermark_delay_threshold=LATE),
            schema=SCHEMA,
        )
    else:
        config = KafkaConfig(
            kafka_bootstrap_servers=servers,
            topics=topic,
            timestamp_field="ts",
            watermark_delay_threshold=LATE,
            initial_stream_position="trim_horizon",
        )
        source = StreamSource(
            name="events",
            stream_config=config,
            batch_config=pandas_batch_config(supports_time_filtering=True)(no_batch_side),
        )
    is_tiled = mode is StreamProcessingMode.TIME_INTERVAL
    view = stream_feature_view(
        name="activity",
        source=source,
        entities=[Entity(name="user", join_keys=["user_id"])],
        schema=[field for field in SCHEMA if field.name in ("user_id", "ts", "amount", "items")],
        aggregations=[
            Aggregation(column, function, TimeWindow(window))
            for column, functions in (("amount", FUNCTIONS), ("items", ("sum",)))
            for function in functions
            for window in (HOUR, DAY)
        ],
        stream_processing_mode=mode,
        aggregation_interval=timedelta(minutes=1) if is_tiled else None,
        aggregation_leading_edge=AggregationLeadingEdge.LATEST_EVENT_TIME,
        batch_schedule=DAY,
        feature_start_time=START - DAY,
        online=True,
        **({"mode": "sql"} if sql else {}),
    )
    return Workspace("benchmark", [view(_in_sql) if sql else view], home=folder / "home")


def no_batch_side(context: Any) -> Any:  # noqa: ANN401 - never read
    """Stand for a batch side that nobody reads."""
    raise AssertionError


def _in_sql(events: str) -> str:
    return f"SELECT user_id, ts, amount, items FROM {events} WHERE page <> '/logout'"


class RawLoop:
    """What anybody would write first: poll, decode, one LMDB put per event's key, the position with it.

    Args:
        reader: The stream; the loop follows one partition of it.
        folder: Where its LMDB directory is.
        commit_every: How often it commits; with every poll for zero.
    """

    def __init__(self, reader: StreamReader, folder: Path, commit_every: timedelta) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.environment = lmdb.open(str(folder), map_size=16 << 30, metasync=False)
        self._reader, self._pause, self._decoder = reader, commit_every.total_seconds(), msgspec.json.Decoder()
        (self._partition,) = reader.partitions()
        self.events = 0

    def run(self, is_done: Callable[[], bool]) -> None:
        """Follow the stream until told to stop."""
        with self.environment.begin() as transaction:
            position = transaction.get(b"position")
        self._reader.seek({self._partition: position and position.decode()})
        waiting: list[bytes] = []
        due = time.monotonic() + self._pause
        while not is_done():
            for batch in self._reader.poll(MOST_EVENTS - len(waiting), _POLL):
                waiting += batch.payloads
                position = batch.position.encode()
            if waiting and (len(waiting) >= MOST_EVENTS or time.monotonic() >= due):
                self._commit(waiting, position or b"")
                waiting, due = [], time.monotonic() + self._pause

    def _commit(self, payloads: list[bytes], position: bytes) -> None:
        decode = self._decoder.decode
        with self.environment.begin(write=True) as transaction:
            for payload in payloads:
                values = decode(payload)
                value = _VALUE.pack(values["amount"], values["items"], len(values["ts"]))
                transaction.put(values["user_id"].encode(), value)
            transaction.put(b"position", position)
        self.events += len(payloads)

    def amount(self, user: str) -> float | None:
        """Return the amount of a user's last event."""
        with self.environment.begin() as transaction:
            value = transaction.get(user.encode())
        return None if value is None else _VALUE.unpack(value)[0]
