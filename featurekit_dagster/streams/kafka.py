"""Follows Kafka topics from offsets of our own.

Partitions are assigned outright, so no consumer group moves them and nothing is committed to the broker. A source
partition is `topic/number`, a position is the offset of the next event. The client reconnects by itself; while the
brokers are away nothing comes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any

from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType  # type: ignore[attr-defined]

from featurekit_dagster.domain.stream_sources import KafkaConfig
from featurekit_dagster.errors import StreamPositionLost, StreamUnavailable
from featurekit_dagster.streams.reading import OLDEST, PartitionLag, StreamBatch

_log = logging.getLogger("featurekit.kafka")
_ANSWER_SECONDS = 30.0
_PROBE_SECONDS = 5.0
_RETENTION = "retention.ms"
_QUEUED_KILOBYTES = 16 * 1024
_DEFAULTS: Mapping[str, str | int] = {"queued.max.messages.kbytes": _QUEUED_KILOBYTES}
_OURS: Mapping[str, str | int | bool] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",  # another choice would go on elsewhere without a word
}


class KafkaReader:
    """Reads the topics of a Kafka source; see `StreamReader`.

    Args:
        source: Name of the source.
        config: Its declaration; `options` are librdkafka's, as text.
        patience_seconds: How long no broker may be in reach.
    """

    def __init__(self, source: str, config: KafkaConfig, *, patience_seconds: float = 60.0) -> None:
        self._patience_seconds = patience_seconds
        self._source, self._config = source, config
        self._topics = sorted({topic.strip() for topic in config.topics.split(",") if topic.strip()})
        self._next: dict[str, int] = {}
        self._unsaid: set[str] = set()
        settings: dict[str, Any] = {"group.id": f"featurekit-{source}", **_DEFAULTS, **config.options}
        settings |= {"bootstrap.servers": config.kafka_bootstrap_servers, **_OURS, "error_cb": self._note}
        self._down_since: float | None = None
        try:
            self._consumer = Consumer(settings, logger=_log)
        except KafkaException as error:
            raise StreamUnavailable(source=source, reason=f"its options are not accepted ({_code(error)})") from error

    def partitions(self) -> tuple[str, ...]:
        """Return all partitions of all topics."""
        found = []
        for topic in self._topics:
            try:
                known = self._consumer.list_topics(topic, _ANSWER_SECONDS).topics[topic]
            except KafkaException as error:
                raise StreamUnavailable(source=self._source, reason=_code(error)) from error
            if known.error is not None or not known.partitions:
                raise StreamUnavailable(source=self._source, reason=f"there is no topic {topic!r}")
            found += [f"{topic}/{number}" for number in sorted(known.partitions)]
        return tuple(found)

    def seek(self, positions: Mapping[str, str | None]) -> None:
        """Follow these partitions from these offsets on; see `StreamReader.seek`."""
        is_first = not any(positions.values()) and self._config.initial_stream_position == "latest"
        self._next, self._unsaid = {}, set()
        for partition, position in positions.items():
            if position is not None and position != OLDEST:
                self._next[partition] = int(position)
                continue
            oldest, newest = self._ends(partition)
            self._next[partition] = newest if is_first and position is None else oldest
            self._unsaid.add(partition)
        try:
            self._consumer.assign([_place(partition, offset) for partition, offset in self._next.items()])
        except KafkaException as error:
            raise StreamUnavailable(source=self._source, reason=_code(error)) from error

    def poll(self, most: int, timeout: timedelta) -> list[StreamBatch]:
        """Return what comes next; see `StreamReader.poll`."""
        payloads: dict[str, list[bytes]] = {partition: [] for partition in self._unsaid}
        wait = 0.0 if self._unsaid else timedelta.total_seconds(timeout)
        self._unsaid = set()
        # A consumer that is told to wait for many messages waits until it has them all, so wait for one of them.
        first = self._consumer.poll(wait)
        self._check_brokers(is_up=first is not None)
        more = self._consumer.consume(most - 1, 0) if first is not None and most > 1 else []
        for message in [*([] if first is None else [first]), *more]:
            if (error := message.error()) is not None:
                self._check(message, error)
                continue
            partition = f"{message.topic()}/{message.partition()}"
            payloads.setdefault(partition, []).append(message.value() or b"")
            offset = message.offset()
            assert offset is not None
            self._next[partition] = offset + 1
        return [
            StreamBatch(partition=partition, payloads=found, position=str(self._next[partition]))
            for partition, found in payloads.items()
        ]

    def lag(self) -> tuple[PartitionLag, ...]:
        """Return the number of offsets between each partition's position and its end, as the brokers told it last."""
        lags = []
        for partition, offset in self._next.items():
            known = self._consumer.get_watermark_offsets(_place(partition, OFFSET_END), cached=True)
            end = known[1] if known is not None and known[1] >= offset else self._ends(partition)[1]
            lags.append(PartitionLag(partition, max(end - offset, 0)))
        return tuple(lags)

    def parents(self) -> Mapping[str, Collection[str]]:
        """Return nothing: a partition of Kafka never ends."""
        return {}

    def retention(self) -> timedelta | None:
        """Return the shortest `retention.ms` of the topics; None where they keep all, or we may not ask."""
        settings: dict[str, Any] = {**self._config.options, "bootstrap.servers": self._config.kafka_bootstrap_servers}
        asked = [ConfigResource(ResourceType.TOPIC, topic) for topic in self._topics]
        try:
            client = AdminClient(settings, logger=_log)  # what it answers comes while it lives
            answers = client.describe_configs(asked, request_timeout=_PROBE_SECONDS)
            facts = [answer.result(_ANSWER_SECONDS).get(_RETENTION) for answer in answers.values()]
        except (KafkaException, TimeoutError):
            return None
        kept = [int(fact.value) for fact in facts if fact is not None and fact.value is not None]
        return min((timedelta(milliseconds=ms) for ms in kept if ms >= 0), default=None)

    def close(self) -> None:
        """Leave the brokers."""
        self._consumer.close()

    def _ends(self, partition: str) -> tuple[int, int]:
        """Return the offset of the oldest event of a partition, and the one that the next event will have."""
        try:
            ends = self._consumer.get_watermark_offsets(_place(partition, OFFSET_END), _ANSWER_SECONDS)
        except KafkaException as error:
            raise StreamUnavailable(source=self._source, reason=_code(error)) from error
        if ends is None:
            raise StreamUnavailable(source=self._source, reason="the brokers did not answer in time")
        return ends

    def _note(self, error: KafkaError) -> None:
        """Take note that no broker is in reach, which the client tells from within `poll`."""
        if error.code() == KafkaError._ALL_BROKERS_DOWN and self._down_since is None:
            self._down_since = time.monotonic()

    def _check_brokers(self, *, is_up: bool) -> None:
        """Give up if no broker has been in reach for long; that one is back is told by its first event or answer."""
        if is_up:
            self._down_since = None
        if self._down_since is None or time.monotonic() - self._down_since < self._patience_seconds:
            return
        try:
            self._consumer.list_topics(self._topics[0], _PROBE_SECONDS)
        except KafkaException as error:
            raise StreamUnavailable(source=self._source, reason=f"no broker answers ({_code(error)})") from error
        self._down_since = None

    def _check(self, message: Message, error: KafkaError) -> None:
        """Raise for an error that does not pass by itself."""
        lost = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)
        if error.code() in lost:
            partition = f"{message.topic()}/{message.partition()}"
            raise StreamPositionLost(
                source=self._source, partition=partition, position=str(self._next.get(partition, "unknown"))
            )
        gone = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_PARTITION, KafkaError._UNKNOWN_TOPIC)
        refused = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED)
        if error.fatal() or error.code() in (*gone, *refused, KafkaError._AUTHENTICATION):
            raise StreamUnavailable(source=self._source, reason=error.name())


def _place(partition: str, offset: int) -> TopicPartition:
    topic, number = partition.rsplit("/", 1)
    return TopicPartition(topic, int(number), offset)


def _code(error: KafkaException) -> str:
    """Return the name of an error; its text may hold addresses."""
    cause = error.args[0] if error.args else None
    return cause.name() if isinstance(cause, KafkaError) else type(error).__name__
