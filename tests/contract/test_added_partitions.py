"""Partitions that come to a Kafka topic while loops follow it, with a real broker.

The broker of the tests cannot add partitions to a topic. So the topic has all of them from the beginning, and the
readers are told of some of them later; what they then read of the new ones is the broker's own answer.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from featurekit_dagster.domain.stream_sources import KafkaConfig
from featurekit_dagster.execution import stream_partitions
from featurekit_dagster.streams.kafka import KafkaReader
from tests.contract.test_shared_streams import LOOPS, checkpoints, events, followed, made, wait_until
from tests.support.stream_servers import kafka_broker
from tests.support.streams import KafkaStream


@pytest.mark.slow
def test_a_partition_that_is_added_is_read_from_its_oldest_event_by_one_of_the_loops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_partitions, "SECONDS_BETWEEN_LOOKS", 0.2)
    asked, shown = KafkaReader.partitions, [2]
    monkeypatch.setattr(KafkaReader, "partitions", lambda reader: asked(reader)[: shown[0]])
    with kafka_broker(tmp_path) as port:
        stream = KafkaStream(f"127.0.0.1:{port}", partitions=4)
        stream.append(events(0, 40))
        config = KafkaConfig(
            kafka_bootstrap_servers=stream.brokers,
            topics=stream.topic,
            initial_stream_position="latest",  # which is not for partitions that come later
            parallelism=LOOPS,
        )
        view, workspace = made(tmp_path, config)

        def read(what: str) -> dict[str, object]:
            found = checkpoints(view, workspace)
            return {name.rpartition("/")[2]: getattr(known, what) for name, known in found.items()}

        with followed(view, workspace):
            wait_until(lambda: len(read("position")) == 2 and None not in read("position").values())
            stream.append(events(40, 80))
            wait_until(lambda: read("position") == {"0": "30", "1": "30"})
            shown[0] = 4
            wait_until(lambda: read("position") == dict.fromkeys("0123", "30"))
            assert (read("events")["2"], read("events")["3"]) == (30, 30)
            stream.append(events(120, 40))
            wait_until(lambda: read("position") == dict.fromkeys("0123", "40"))
        assert (read("events")["2"], read("events")["3"]) == (40, 40)
        assert set(read("duplicates").values()) == {0}
