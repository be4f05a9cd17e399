"""What readers do when a server goes away, drops events, or changes its partitions."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from featurekit_dagster.domain.schema import Field, Int64
from featurekit_dagster.domain.sources import FileConfig
from featurekit_dagster.domain.stream_sources import (
    KafkaConfig,
    KinesisConfig,
    PushConfig,
    RedisStreamConfig,
    StreamConfig,
    StreamSource,
)
from featurekit_dagster.errors import StreamExtraMissing, StreamPositionLost, StreamUnavailable
from featurekit_dagster.streams.kafka import KafkaReader
from featurekit_dagster.streams.kinesis import ENDED, KinesisReader
from featurekit_dagster.streams.patience import Patience
from featurekit_dagster.streams.push_log import PushLog, push_log_path
from featurekit_dagster.streams.readers import open_reader
from featurekit_dagster.streams.reading import ONLY_PARTITION
from featurekit_dagster.streams.redis_streams import RedisReader
from tests.support.stream_servers import Relay, free_port, kafka_broker, kinesis_server, valkey_server
from tests.support.streams import AWS, MOMENT, KafkaStream, KinesisStream, RedisStream, drain


def _events(first: int, count: int) -> list[bytes]:
    return [b'{"n": %d}' % number for number in range(first, first + count)]


def _flat(seen: dict[str, list[bytes]]) -> list[bytes]:
    return sorted((payload for payloads in seen.values() for payload in payloads), key=lambda text: int(text[6:-1]))


@pytest.fixture(scope="module")
def mock_kafka() -> Iterator[str]:
    """Brokers inside librdkafka, which know the ends of their partitions."""
    from confluent_kafka import Producer

    cluster = Producer({"test.mock.num.brokers": 3, "bootstrap.servers": "ignored"})
    yield ",".join(f"{each.host}:{each.port}" for each in cluster.list_topics(timeout=30).brokers.values())
    assert cluster.flush(0) == 0  # the brokers live as long as this producer


@pytest.fixture(scope="module")
def kinesis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server whose streams are of one test each."""
    with kinesis_server(tmp_path_factory.mktemp("kinesis")) as url:
        yield url


def _topic(brokers: str, name: str) -> KafkaStream:
    """Return a topic of four partitions that the mock brokers make of themselves."""
    from confluent_kafka import Producer

    made = KafkaStream.__new__(KafkaStream)
    made.brokers, made.topic, made.partitions = brokers, name, 4
    made._producer = Producer({"bootstrap.servers": brokers, "linger.ms": 0})
    return made


def test_kafka_tells_ends_lag_and_lost_offsets(mock_kafka: str) -> None:
    stream = _topic(mock_kafka, "ends")
    stream.append(_events(0, 40))
    reader, seen = stream.open("latest"), {}
    reader.seek(dict.fromkeys(reader.partitions()))
    begun = {batch.partition: batch.position for batch in reader.poll(10, MOMENT)}
    assert begun == {f"ends/{number}": "10" for number in range(4)}
    stream.append(_events(40, 20))
    deadline = time.monotonic() + 120  # the ends are those that came with the last fetch of each partition
    while sum(lag.events or 0 for lag in reader.lag()) < 20 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert sum(lag.events or 0 for lag in reader.lag()) == 20
    drain(reader, 6, 20, seen)
    assert _flat(seen) == _events(40, 20)
    assert sum(lag.events or 0 for lag in reader.lag()) == 0
    reader.seek({"ends/1": "5000"})
    with pytest.raises(StreamPositionLost, match="'visits' .* position 5000 of partition ends/1"):
        drain(reader, 1, 1, seen)
    reader.close()


def test_a_partition_that_is_newer_than_the_first_read_is_read_from_its_oldest_event(mock_kafka: str) -> None:
    stream = _topic(mock_kafka, "newer")
    stream.append(_events(0, 8))
    reader, seen = stream.open("latest"), {}
    reader.seek({"newer/0": "2", "newer/1": None})
    drain(reader, 10, 2, seen)
    assert _flat(seen) == [b'{"n": 1}', b'{"n": 5}']
    reader.close()


def test_kafka_goes_on_after_its_broker_was_out_of_reach(tmp_path: Path) -> None:
    port = free_port()
    relay, seen = Relay(port), {}
    with kafka_broker(tmp_path, advertised=port) as behind:
        relay.connect(behind)
        stream = KafkaStream(f"127.0.0.1:{port}")
        stream.append(_events(0, 30))
        reader = stream.open()
        reader.seek(dict.fromkeys(reader.partitions()))
        drain(reader, 10, 10, seen)
        relay.cut()
        for _ in range(8):
            for batch in reader.poll(10, MOMENT):
                seen.setdefault(batch.partition, []).extend(batch.payloads)
        relay.connect(behind)
        stream.append(_events(30, 30))
        drain(reader, 10, 60 - len(_flat(seen)), seen)
        reader.close()
        relay.cut()
    assert _flat(seen) == _events(0, 60)


def test_redis_goes_on_after_its_server_was_killed(tmp_path: Path) -> None:
    port, seen = free_port(), {}
    with valkey_server(tmp_path, port) as url:
        stream = RedisStream(url)
        stream.append(_events(0, 30))
        reader = stream.open()
        reader.seek({ONLY_PARTITION: None})
        drain(reader, 10, 10, seen)
        lag = reader.lag()
        assert lag[0].events
        time.sleep(1.1)  # the server syncs its log of writes every second
    assert reader.poll(10, timedelta(milliseconds=300)) == []
    assert reader.lag() == lag
    with valkey_server(tmp_path, port):
        stream.append(_events(30, 30))
        drain(reader, 10, 50, seen)
        reader.close()
    assert _flat(seen) == _events(0, 60)


def test_redis_entries_trimmed_unread_are_told_and_read_ones_are_not_missed(tmp_path: Path) -> None:
    with valkey_server(tmp_path) as url:
        stream = RedisStream(url)
        stream.append(_events(0, 20))
        reader = stream.open()
        reader.seek({ONLY_PARTITION: None})
        position = drain(reader, 10, 10, {})[ONLY_PARTITION]
        stream.client.xtrim(stream.key, maxlen=10, approximate=False)
        reader.seek({ONLY_PARTITION: position})
        stream.client.xtrim(stream.key, maxlen=9, approximate=False)
        with pytest.raises(StreamPositionLost):
            reader.poll(10, MOMENT)
        with pytest.raises(StreamPositionLost, match="'visits' no longer keeps"):
            reader.seek({ONLY_PARTITION: position})
        reader.close()


def test_a_waiting_redis_read_ends_with_the_first_entry(tmp_path: Path) -> None:
    with valkey_server(tmp_path) as url:
        stream = RedisStream(url)
        reader = stream.open()
        reader.seek({ONLY_PARTITION: "0-0/0"})
        threading.Timer(0.2, stream.append, [_events(0, 1)]).start()
        begun = time.monotonic()
        (batch,) = reader.poll(10, timedelta(seconds=600))
        assert list(batch.payloads) == _events(0, 1)
        assert time.monotonic() - begun < 300, "it waited to the end of its time"
        reader.close()


def test_the_field_of_a_redis_entry_that_holds_the_event_can_be_named(tmp_path: Path) -> None:
    with valkey_server(tmp_path) as url:
        stream = RedisStream(url, payload_field="body")
        plain = RedisStream(url)
        for key in (stream.key, plain.key):
            stream.client.xadd(key, {"body": "1", "data": "2"})
            stream.client.xadd(key, {"other": "3"})
            stream.client.xadd(key, {"other": "4", "another": "5"})
        found = []
        for each in (stream, plain):
            reader, seen = each.open(), {}
            reader.seek({ONLY_PARTITION: None})
            drain(reader, 10, 3, seen)
            found.append(seen[ONLY_PARTITION])
            reader.close()
    assert found == [[b"1", b"", b""], [b"2", b"3", b""]]


def test_the_children_of_a_split_shard_follow_their_parent(kinesis: str) -> None:
    stream, seen = KinesisStream(kinesis), {}
    stream.append(_events(0, 40))
    reader = stream.open("latest")
    before = reader.partitions()
    reader.seek({shard: "oldest" for shard in before})
    positions = drain(reader, 10, 15, seen)
    shard = stream.client.list_shards(StreamName=stream.name)["Shards"][0]
    span = shard["HashKeyRange"]
    middle = (int(span["StartingHashKey"]) + int(span["EndingHashKey"])) // 2
    stream.client.split_shard(StreamName=stream.name, ShardToSplit=shard["ShardId"], NewStartingHashKey=str(middle))
    stream.append(_events(40, 40))
    after = reader.partitions()
    assert len(set(after) - set(before)) == 2
    reader.seek({name: positions.get(name) or (None if name not in before else "oldest") for name in after})
    order = []
    while (shard["ShardId"], ENDED) not in order or len(_flat(seen)) < 80:
        batches = reader.poll(10, 8 * MOMENT)
        assert batches, "nothing came while events were missing"
        for batch in batches:
            order.append((batch.partition, batch.position))
            seen.setdefault(batch.partition, []).extend(batch.payloads)
    reader.close()
    assert _flat(seen) == _events(0, 80)
    children = set(after) - set(before)
    begun = [place for place, (name, position) in enumerate(order) if name in children and position.startswith("after")]
    assert order.index((shard["ShardId"], ENDED)) < min(begun)


def test_kinesis_is_asked_again_where_it_is_too_busy_or_a_place_in_it_has_expired(kinesis: str) -> None:
    refusals = [
        ("GetShardIterator", "ProvisionedThroughputExceededException"),
        ("GetShardIterator", "LimitExceededException"),
        ("GetRecords", "ProvisionedThroughputExceededException"),
        ("GetRecords", "ExpiredIteratorException"),
    ]

    def refuse(model: Any, **_: Any) -> tuple[Any, dict[str, Any]] | None:
        for place, (operation, code) in enumerate(refusals):
            if operation == model.name:
                del refusals[place]
                return SimpleNamespace(status_code=400), {"Error": {"Code": code}, "ResponseMetadata": {}}
        return None

    stream = KinesisStream(kinesis)
    stream.append(_events(0, 40))
    reader, seen = stream.open(), {}
    reader.seek(dict.fromkeys(reader.partitions()))
    positions = drain(reader, 10, 40, seen)
    reader.close()
    reader = stream.open()
    reader._client.meta.events.register(  # type: ignore[attr-defined]
        "before-call.kinesis", refuse
    )
    reader.seek(positions)
    stream.append(_events(40, 40))
    drain(reader, 40, 40, seen)
    reader.close()
    assert not refusals
    assert _flat(seen) == _events(0, 80)


def test_a_stream_that_is_not_there_is_told_without_its_address(kinesis: str) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    config = KinesisConfig(stream_name="none", region="us-west-2", options={"endpoint_url": kinesis, **AWS})
    with pytest.raises(StreamUnavailable, match="'visits' cannot be read: ResourceNotFoundException"):
        KinesisReader("visits", config).partitions()
    redis = RedisReader("visits", RedisStreamConfig(url=f"redis://:secret@{nowhere}/0", stream_key="visits"))
    with pytest.raises(StreamUnavailable) as refused:
        redis.seek({ONLY_PARTITION: None})
    assert nowhere not in str(refused.value)
    with pytest.raises(StreamUnavailable, match="its url or options are not accepted") as refused:
        RedisReader("visits", RedisStreamConfig(url="secret://x:secret@y", stream_key="visits"))
    assert "secret" not in str(refused.value)
    with pytest.raises(StreamUnavailable, match="its options are not accepted"):
        KafkaReader("visits", KafkaConfig(kafka_bootstrap_servers=nowhere, topics="a", options={"no.such": "secret"}))


def test_a_kafka_topic_that_is_not_there_is_told(tmp_path: Path) -> None:
    with kafka_broker(tmp_path) as port:
        reader = KafkaReader("visits", KafkaConfig(kafka_bootstrap_servers=f"127.0.0.1:{port}", topics="none"))
        with pytest.raises(StreamUnavailable, match="there is no topic 'none'"):
            reader.partitions()
        reader.close()


def test_each_kind_of_source_has_its_reader(tmp_path: Path) -> None:
    batch = FileConfig(uri="rows.parquet", file_format="parquet", timestamp_field="ts")
    configs = {
        "KafkaReader": KafkaConfig(kafka_bootstrap_servers="127.0.0.1:1", topics="a"),
        "KinesisReader": KinesisConfig(stream_name="a", region="us-west-2", options=AWS),
        "RedisReader": RedisStreamConfig(url="redis://127.0.0.1:1", stream_key="a"),
    }
    for name, config in configs.items():
        source = StreamSource(name="visits", stream_config=config, batch_config=batch)
        reader = open_reader(source, tmp_path, workspace="prod")
        assert type(reader).__name__ == name
        reader.close()
    pushed = StreamSource(name="visits", stream_config=PushConfig(timestamp_field="ts"), schema=[Field("n", Int64)])
    PushLog(push_log_path(tmp_path, "prod", "visits")).append(_events(0, 1))
    reader, seen = open_reader(pushed, tmp_path, workspace="prod"), {}
    reader.seek({ONLY_PARTITION: None})
    drain(reader, 1, 1, seen)
    assert _flat(seen) == _events(0, 1)


@pytest.mark.parametrize(
    ("library", "extra", "config"),
    [
        ("confluent_kafka", "kafka", KafkaConfig(kafka_bootstrap_servers="127.0.0.1:1", topics="a")),
        ("botocore", "kinesis", KinesisConfig(stream_name="a", region="us-west-2")),
        ("redis", "redis", RedisStreamConfig(url="redis://127.0.0.1:1", stream_key="a")),
    ],
)
def test_a_library_that_is_not_installed_is_told_with_its_extra(
    library: str, extra: str, config: StreamConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    batch = FileConfig(uri="rows.parquet", file_format="parquet", timestamp_field="ts")
    source = StreamSource(name="visits", stream_config=config, batch_config=batch)
    with pytest.raises(StreamExtraMissing, match=rf"pip install 'featurekit_dagster\[{extra}\]'"):
        open_reader(source, tmp_path, workspace="prod")


def test_kafka_gives_up_once_its_brokers_were_away_for_long(tmp_path: Path) -> None:
    with kafka_broker(tmp_path) as port:
        stream = KafkaStream(f"127.0.0.1:{port}")
        stream.append(_events(0, 3))
        config = KafkaConfig(
            kafka_bootstrap_servers=stream.brokers, topics=stream.topic, initial_stream_position="trim_horizon"
        )
        reader = KafkaReader("visits", config, patience_seconds=0.5)
        reader.seek(dict.fromkeys(reader.partitions()))
        drain(reader, 10, 3, {})
    with pytest.raises(StreamUnavailable, match="no broker answers"):
        drain(reader, 10, 1, {})
    reader.close()


def test_a_server_out_of_reach_is_waited_for_and_then_told() -> None:
    patience, error = Patience("visits", seconds=0.05), ConnectionError()
    patience.failed(error, 0.1)
    patience.reached()
    patience.failed(error, 0.1)
    with pytest.raises(StreamUnavailable, match="'visits' cannot be read: it has not answered for 0 s"):
        patience.failed(error, 0)
