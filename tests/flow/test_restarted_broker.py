"""A loop that follows a stream while its broker goes away and comes back: nothing is lost, nothing counts twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from featurekit_dagster import FeatureView, StreamSource, Workspace
from featurekit_dagster.domain.stream_sources import KafkaConfig, RedisStreamConfig, StreamConfig
from featurekit_dagster.execution.stream import run_stream_loop
from featurekit_dagster.streams.readers import open_reader
from tests.support.clicks import continuous
from tests.support.followed import json_of
from tests.support.stream_servers import Relay, free_port, kafka_broker, valkey_server
from tests.support.streams import KafkaStream, RedisStream
from tests.support.visits import visit, write_visits

pytestmark = pytest.mark.slow

NOW = datetime(2024, 1, 3, 12, tzinfo=UTC)
EVERY_WRITE = ("--appendfsync", "always")  # what was answered for outlives a kill


def made(folder: Path, config: StreamConfig) -> tuple[FeatureView, Workspace]:
    batch = write_visits(folder, [], timedelta(0)).batch_config
    view = continuous(StreamSource(name="visits", stream_config=config, batch_config=batch), online=True)
    return view, Workspace("w", [view], home=folder / "home", clock=NOW)


@contextmanager
def followed(view: FeatureView, workspace: Workspace) -> Iterator[None]:
    """Follow the view's stream in a thread during the block, which must not fail."""
    stop, errors, source = threading.Event(), [], view.stream_source
    assert source is not None

    def follow() -> None:
        reader = open_reader(source, workspace.stores.home, workspace="w")
        try:
            run_stream_loop(view, reader, workspace.stores, stop=stop)
        except BaseException as error:
            errors.append(error)
        finally:
            reader.close()

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(300)
        workspace.stores.online.close()
    assert (errors, thread.is_alive()) == ([], False)


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(3_000):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("not within five minutes")


def events(first: int, count: int) -> list[bytes]:
    return [json_of(visit(1, NOW - timedelta(seconds=n % 60), float(n))) for n in range(first, first + count)]


def seen(workspace: Workspace) -> tuple[float | None, int | None]:
    found = workspace.get_feature_view("live").get_online_features({"user": 1}).to_dict()
    return found["sum"], found["count"]


def test_a_redis_server_that_is_killed_and_started_again_while_its_stream_is_followed(tmp_path: Path) -> None:
    port = free_port()
    with ExitStack() as following:
        with valkey_server(tmp_path, port, options=EVERY_WRITE) as url:
            stream = RedisStream(url)
            stream.append(events(0, 50))
            config = RedisStreamConfig(
                url=url, stream_key=stream.key, timestamp_field="ts", initial_stream_position="trim_horizon"
            )
            view, workspace = made(tmp_path, config)
            following.enter_context(followed(view, workspace))
            wait_until(lambda: seen(workspace)[1] == 50)
        with valkey_server(tmp_path, port, options=EVERY_WRITE):
            stream.append(events(50, 50))
            wait_until(lambda: seen(workspace)[1] == 100)
            assert seen(workspace)[0] == sum(range(100))
            following.close()


def test_a_kafka_broker_that_is_out_of_reach_for_a_while(tmp_path: Path) -> None:
    port = free_port()
    relay = Relay(port)
    with kafka_broker(tmp_path, advertised=port) as behind:
        relay.connect(behind)
        stream = KafkaStream(f"127.0.0.1:{port}")
        stream.append(events(0, 90))
        config = KafkaConfig(
            kafka_bootstrap_servers=stream.brokers,
            topics=stream.topic,
            timestamp_field="ts",
            initial_stream_position="trim_horizon",
        )
        view, workspace = made(tmp_path, config)
        with followed(view, workspace):
            wait_until(lambda: seen(workspace)[1] == 90)
            for round_ in range(2):
                relay.cut()
                time.sleep(1)
                relay.connect(behind)
                stream.append(events(90 + 90 * round_, 90))
                wait_until(lambda until=180 + 90 * round_: seen(workspace)[1] == until)  # type: ignore[misc]
            assert seen(workspace)[0] == sum(range(270))
        relay.cut()
