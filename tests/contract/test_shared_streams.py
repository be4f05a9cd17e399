"""Two loops that follow one stream of a real server together, and how long servers say that they keep events."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from featurekit_dagster import FeatureView, FileConfig, StreamSource, Workspace
from featurekit_dagster.domain.stream_sources import KafkaConfig, KinesisConfig, StreamConfig
from featurekit_dagster.execution import stream_partitions
from featurekit_dagster.execution.stream import run_stream_loop
from featurekit_dagster.planning.stream_gap import retention_warning
from featurekit_dagster.streams.kafka import KafkaReader
from featurekit_dagster.streams.readers import open_reader
from featurekit_dagster.streams.reading import ENDED
from featurekit_dagster.streams.sharing import Share
from tests.support.clicks import continuous
from tests.support.followed import json_of
from tests.support.stream_servers import kafka_broker, kinesis_server, valkey_server
from tests.support.streams import AWS, KafkaStream, KinesisStream, PushStream, RedisStream
from tests.support.visits import HOUR, visit, write_visits

NOW = datetime(2024, 1, 3, 12, tzinfo=UTC)
LOOPS = 2


def made(folder: Path, config: StreamConfig) -> tuple[FeatureView, Workspace]:
    """Return a view that counts visits, of which those of one number are one visit."""
    once = {"deduplication_columns": ["visits"], "watermark_delay_threshold": HOUR, "timestamp_field": "ts"}
    batch = write_visits(folder, [], timedelta(0)).batch_config
    assert isinstance(batch, FileConfig)
    source = StreamSource(name="visits", stream_config=replace(config, **once), batch_config=batch)
    view = continuous(source, online=True)
    return view, Workspace("w", [view], home=folder / "home", clock=NOW)


def events(first: int, count: int) -> list[bytes]:
    return [json_of(visit(1, NOW - timedelta(seconds=n % 60), 1.0, n)) for n in range(first, first + count)]


@contextmanager
def followed(view: FeatureView, workspace: Workspace) -> Iterator[None]:
    """Let two loops follow the view's stream, each with a reader of its own."""
    stop, errors, source = threading.Event(), [], view.stream_source
    assert source is not None

    def follow(index: int) -> None:
        reader = open_reader(source, workspace.stores.home, workspace="w")
        try:
            share = Share(index, LOOPS)
            run_stream_loop(view, reader, workspace.stores, stop=stop, share=share)
        except BaseException as error:
            errors.append(error)
        finally:
            reader.close()

    threads = [threading.Thread(target=follow, args=(index,)) for index in range(LOOPS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(300)
        workspace.stores.online.close()
    assert errors == []


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(3_000):
        if condition():
            return
        threading.Event().wait(0.1)
    raise AssertionError("not within five minutes")


def counted(workspace: Workspace) -> int:
    return workspace.get_feature_view("live").get_online_features({"user": 1}).to_dict()["count"] or 0


def checkpoints(view: FeatureView, workspace: Workspace) -> Any:
    return workspace.stores.online.checkpoints(workspace.stores.online_layout(view))


def test_events_of_kafka_that_come_over_partitions_of_both_loops_count_once(tmp_path: Path) -> None:
    with kafka_broker(tmp_path) as port:
        stream = KafkaStream(f"127.0.0.1:{port}")
        config = KafkaConfig(
            kafka_bootstrap_servers=stream.brokers,
            topics=stream.topic,
            initial_stream_position="trim_horizon",
            parallelism=LOOPS,
        )
        view, workspace = made(tmp_path, config)
        stream.append(events(0, 300))
        with followed(view, workspace):
            stream.append(events(100, 301))  # each again, mostly over another partition
            wait_until(lambda: sum(known.events for known in checkpoints(view, workspace).values()) == 601)
            assert counted(workspace) == 401
            assert sum(known.duplicates for known in checkpoints(view, workspace).values()) == 200


@pytest.mark.slow
def test_a_shard_that_is_split_while_two_loops_follow_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_partitions, "SECONDS_BETWEEN_LOOKS", 0.5)
    with kinesis_server(tmp_path) as url:
        stream = KinesisStream(url)
        config = KinesisConfig(
            stream_name=stream.name,
            region="us-west-2",
            options={"endpoint_url": url, **AWS},
            initial_stream_position="trim_horizon",
            parallelism=LOOPS,
        )
        view, workspace = made(tmp_path, config)
        stream.append(events(0, 60))
        with followed(view, workspace):
            wait_until(lambda: counted(workspace) == 60)
            for shard in stream.client.list_shards(StreamName=stream.name)["Shards"]:
                span = shard["HashKeyRange"]
                middle = str((int(span["StartingHashKey"]) + int(span["EndingHashKey"])) // 2)
                asked = {"StreamName": stream.name, "ShardToSplit": shard["ShardId"]}
                stream.client.split_shard(**asked, NewStartingHashKey=middle)
            stream.append(events(60, 60))
            wait_until(lambda: counted(workspace) == 120)
            found = checkpoints(view, workspace)
        assert len(found) == 6
        assert [known.position for known in found.values()].count(ENDED) == 2


@pytest.mark.slow
def test_streams_say_how_long_they_keep_events_where_they_know(tmp_path: Path) -> None:
    from confluent_kafka.admin import AdminClient, NewTopic

    with kafka_broker(tmp_path) as port, kinesis_server(tmp_path) as url, valkey_server(tmp_path) as redis:
        brokers = f"127.0.0.1:{port}"
        asked = [NewTopic(name, 1, 1, config={"retention.ms": ms}) for name, ms in (("a", "3600000"), ("b", "-1"))]
        admin = AdminClient({"bootstrap.servers": brokers})
        for topic in admin.create_topics(asked).values():
            topic.result(30)
        kept = {}
        for topics in ("b", "b,a"):
            reader = KafkaReader("visits", KafkaConfig(kafka_bootstrap_servers=brokers, topics=topics))
            kept[topics] = reader.retention()
            reader.close()
        assert kept == {"b": None, "b,a": HOUR}
        for stream, said in ((KinesisStream(url), 24 * HOUR), (RedisStream(redis), None)):
            assert stream.open().retention() == said
        assert PushStream(tmp_path / "visits.db").open().retention() is None


def test_a_stream_that_keeps_less_than_an_interval_of_batch_jobs_is_warned_about(tmp_path: Path) -> None:
    view, _ = made(tmp_path, KafkaConfig(kafka_bootstrap_servers="b:1", topics="t"))
    assert retention_warning(view, None, NOW) is None
    assert retention_warning(view, 24 * HOUR, NOW) is None
    said = retention_warning(view, 6 * HOUR, NOW)
    assert said is not None
    assert said.startswith("live: its stream keeps events for 6h, less than the batch_schedule 1d;")
    named = "trigger_materialization_job('2024-01-03T00:00Z', '2024-01-04T00:00Z', online=True, offline=False)"
    assert said.endswith(named)
