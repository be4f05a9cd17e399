"""Streams of one kind each, to be written to by tests and read by the readers."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from featurekit_dagster.domain.stream_sources import KafkaConfig, KinesisConfig, RedisStreamConfig
from featurekit_dagster.streams.kafka import KafkaReader
from featurekit_dagster.streams.kinesis import KinesisReader
from featurekit_dagster.streams.push_log import PushLog, PushLogReader
from featurekit_dagster.streams.reading import StreamReader
from featurekit_dagster.streams.redis_streams import RedisReader
from tests.support.stream_servers import kafka_broker, kinesis_server, valkey_server

MOMENT = timedelta(milliseconds=250)
AWS = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}


class Stream(Protocol):
    """A new, empty stream."""

    def append(self, payloads: Sequence[bytes]) -> None:
        """Add events, spread over the partitions."""

    def open(self, position: str = "trim_horizon") -> StreamReader:
        """Return a reader with an `initial_stream_position`."""


@dataclass
class PushStream:
    """The log of a push source."""

    path: Path

    def append(self, payloads: Sequence[bytes]) -> None:
        PushLog(self.path).append(payloads)

    def open(self, position: str = "trim_horizon") -> StreamReader:
        return PushLogReader(self.path)


class KafkaStream:
    """A topic of three partitions."""

    def __init__(self, brokers: str, partitions: int = 3) -> None:
        from confluent_kafka import Producer
        from confluent_kafka.admin import AdminClient, NewTopic

        self.brokers, self.topic = brokers, f"visits-{uuid.uuid4().hex[:8]}"
        self.partitions = partitions
        admin = AdminClient({"bootstrap.servers": brokers})
        for made in admin.create_topics([NewTopic(self.topic, partitions, 1)]).values():
            made.result(30)
        self._producer = Producer({"bootstrap.servers": brokers, "linger.ms": 0})

    def append(self, payloads: Sequence[bytes]) -> None:
        for number, payload in enumerate(payloads):
            self._producer.produce(self.topic, payload, partition=number % self.partitions)
        assert self._producer.flush(30) == 0

    def open(self, position: str = "trim_horizon") -> StreamReader:
        config = KafkaConfig(kafka_bootstrap_servers=self.brokers, topics=self.topic, initial_stream_position=position)
        return KafkaReader("visits", config)


class RedisStream:
    """A key of its own."""

    def __init__(self, url: str, **options: str) -> None:
        import redis

        self.url, self.key, self.options = url, f"visits-{uuid.uuid4().hex[:8]}", options
        self.client = redis.Redis.from_url(url)

    def append(self, payloads: Sequence[bytes]) -> None:
        for payload in payloads:
            self.client.xadd(self.key, {"data": payload})

    def open(self, position: str = "trim_horizon") -> StreamReader:
        config = RedisStreamConfig(
            url=self.url, stream_key=self.key, initial_stream_position=position, options=self.options
        )
        return RedisReader("visits", config)


class KinesisStream:
    """A stream of two shards."""

    def __init__(self, url: str) -> None:
        import boto3

        self.url, self.name = url, f"visits-{uuid.uuid4().hex[:8]}"
        self.client: Any = boto3.client("kinesis", region_name="us-west-2", endpoint_url=url, **AWS)
        self.client.create_stream(StreamName=self.name, ShardCount=2)

    def append(self, payloads: Sequence[bytes]) -> None:
        for start in range(0, len(payloads), 500):
            records = [{"Data": payload, "PartitionKey": payload.decode()} for payload in payloads[start : start + 500]]
            assert self.client.put_records(StreamName=self.name, Records=records)["FailedRecordCount"] == 0

    def open(self, position: str = "trim_horizon") -> StreamReader:
        options = {"endpoint_url": self.url, **AWS}
        config = KinesisConfig(
            stream_name=self.name, region="us-west-2", initial_stream_position=position, options=options
        )
        return KinesisReader("visits", config, turn_seconds=0.01)


class Servers:
    """Servers that are started when they are first asked for."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._places: dict[str, Any] = {}

    def stream(self, kind: str, folder: Path) -> Stream:
        """Return a new stream of a kind: `push`, `kafka`, `redis` or `kinesis`."""
        if kind == "push":
            return PushStream(folder / "visits.db")
        if kind == "kafka":
            return KafkaStream(f"127.0.0.1:{self._place(kind, kafka_broker)}")
        if kind == "redis":
            return RedisStream(self._place(kind, valkey_server))
        return KinesisStream(self._place(kind, kinesis_server))

    def _place(self, kind: str, start: Any) -> Any:
        if kind not in self._places:
            folder = self._folder / kind
            folder.mkdir()
            self._places[kind] = self._stack.enter_context(start(folder))
        return self._places[kind]


@contextmanager
def servers(folder: Path) -> Iterator[Servers]:
    """Give servers that end with the block."""
    with ExitStack() as stack:
        yield Servers(folder, stack)


def drain(reader: StreamReader, most: int, wanted: int, seen: dict[str, list[bytes]]) -> dict[str, str]:
    """Poll until `wanted` events more were seen or none came for two minutes, and return the last positions."""
    positions: dict[str, str] = {}
    got = empty = 0
    while got < wanted and empty < 480:
        batches = reader.poll(most, MOMENT)
        empty = 0 if batches else empty + 1
        assert sum(len(batch.payloads) for batch in batches) <= most
        assert len({batch.partition for batch in batches}) == len(batches)
        for batch in batches:
            got += len(batch.payloads)
            seen.setdefault(batch.partition, []).extend(batch.payloads)
            positions[batch.partition] = batch.position
    return positions
