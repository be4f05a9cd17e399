"""What is refused of stream sources, and how a workspace knows them."""

from __future__ import annotations

from typing import Any

import pytest

from featurekit_dagster.domain.repo import Repository
from featurekit_dagster.domain.sources import BatchSource, FileConfig
from featurekit_dagster.domain.stream_sources import (
    KafkaConfig,
    KinesisConfig,
    PushConfig,
    RedisStreamConfig,
    StreamSource,
)
from tests.unit.domain.declared import HOUR, SCHEMA, TRANSACTIONS, faults, plain
from tests.unit.domain.test_stream_views import BARE_PUSH, FILES, KAFKA, PUSH, declared

KAFKA_ARGUMENTS: dict[str, Any] = {"kafka_bootstrap_servers": "broker:9092", "topics": "payments"}


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (PushConfig, {"timestamp_field": 5}, "timestamp_field is an int; give text"),
        (PushConfig, {"log_offline": "yes"}, "log_offline is 'yes'; it has no effect, so leave it out"),
        (PushConfig, {"watermark_delay_threshold": -HOUR}, "watermark_delay_threshold -1 day, 23:00:00 is negative; "),
        (PushConfig, {"deduplication_columns": "id"}, "deduplication_columns is no list of names; give column names"),
        (PushConfig, {"post_processor": "f"}, "post_processor is 'f'; give a function"),
        (PushConfig, {"post_processor_mode": "python"}, "post_processor_mode is given without post_processor; leave "),
        (PushConfig, {"input_schema": []}, "input_schema is given without post_processor; leave it out"),
        (
            PushConfig,
            {"post_processor": len, "post_processor_mode": "spark"},
            "post_processor_mode is 'spark'; give python or pandas",
        ),
        (
            PushConfig,
            {"post_processor": len, "input_schema": ["id"]},
            "'id' is in input_schema; give Field(",
        ),
        (KafkaConfig, KAFKA_ARGUMENTS | {"topics": ""}, "topics is empty; give a topic"),
        (KafkaConfig, KAFKA_ARGUMENTS | {"kafka_bootstrap_servers": 1}, "kafka_bootstrap_servers is an int; give "),
        (
            KafkaConfig,
            KAFKA_ARGUMENTS | {"watermark_delay_threshold": -HOUR},
            "watermark_delay_threshold -1 day, 23:00:00 is negative; give zero or more",
        ),
        (
            KafkaConfig,
            KAFKA_ARGUMENTS | {"watermark_delay_threshold": "10m"},
            "watermark_delay_threshold is '10m'; give a timedelta",
        ),
        (KafkaConfig, KAFKA_ARGUMENTS | {"deduplication_columns": "id"}, "deduplication_columns is no list of names; "),
        (KafkaConfig, KAFKA_ARGUMENTS | {"initial_stream_position": "oldest"}, "initial_stream_position is 'oldest'; "),
        (KafkaConfig, KAFKA_ARGUMENTS | {"post_processor": "f"}, "post_processor is 'f'; give a function"),
        (KafkaConfig, KAFKA_ARGUMENTS | {"options": []}, "options is a list; give a mapping of text to text"),
        (KinesisConfig, {"stream_name": "s", "region": None}, "region is None; give an AWS region as text"),
        (RedisStreamConfig, {"url": "", "stream_key": "s"}, "url is empty; give a Redis URL"),
    ],
)
def test_a_stream_configuration_is_checked(kind: Any, values: dict[str, Any], message: str) -> None:
    (fault,) = faults(kind, **values)
    assert fault.startswith(message)


def test_addresses_with_passwords_are_not_shown() -> None:
    secret = RedisStreamConfig(url="redis://:hunter2@host", stream_key="s", options={"password": "hunter2"})
    assert "hunter2" not in repr(StreamSource(name="s", stream_config=secret, batch_config=FILES))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "name is empty; give a name"),
        ({"stream_config": FILES}, "stream_config is a FileConfig; it is a PushConfig, a KafkaConfig, a KinesisConfig"),
        ({"batch_config": TRANSACTIONS}, "batch_config is a BatchSource; it is a FileConfig, a DeltaTableConfig, a "),
        ({"batch_config": None}, "batch_config is not given; only a push source may be without, so say where its rows"),
        ({"schema": SCHEMA}, "schema is given, but only the events of a push source are checked against one; leave it"),
        ({"stream_config": PushConfig(), "schema": ["a"]}, "'a' is in schema; give Field(name, type)"),
        ({"stream_config": PushConfig(), "schema": "a"}, "schema is 'a'; give a list"),
    ],
)
def test_a_stream_source_is_checked(changes: dict[str, Any], message: str) -> None:
    correct = {"name": "payments", "stream_config": KAFKA.stream_config, "batch_config": FILES}
    (fault,) = faults(StreamSource, **(correct | changes))
    assert fault.startswith(message)


def test_equal_stream_sources_are_one() -> None:
    again = StreamSource(name="payments", stream_config=PushConfig(), batch_config=FILES)
    assert again == PUSH
    assert hash(again) == hash(PUSH)
    assert again != BARE_PUSH


def test_a_workspace_has_the_streams_and_their_batch_sides_once() -> None:
    views = [declared(name=name, source=PUSH) for name in ("a", "b")]
    found = Repository.gather([*views, plain(name="c", sources=[PUSH.batch_source])])
    assert found.stream_sources == (PUSH,)
    assert found.sources == (PUSH.batch_source,)


def test_a_source_and_a_stream_source_of_one_name_are_refused() -> None:
    other = BatchSource(name="payments", batch_config=FileConfig(uri="other.parquet", file_format="parquet"))
    for stream in (PUSH, BARE_PUSH):
        found = faults(Repository.gather, [stream, other])
        assert "a source and a stream source are both 'payments'; rename one" in found
    assert "two different objects are stream source 'payments'; rename one" in faults(
        Repository.gather, [PUSH, BARE_PUSH]
    )
