"""What every reader of a stream does, each against a real server: nothing is lost, and nothing comes twice."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from featurekit_dagster.streams.reading import OLDEST, StreamReader
from tests.support.streams import MOMENT, Servers, Stream, drain, servers

KINDS = ("push", "kafka", "redis", "kinesis")
TELLS_ITS_END = ("push", "redis")  # the Kafka broker of these tests does not, but librdkafka's own does
COUNT = 120


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with servers(tmp_path_factory.mktemp("servers")) as started:
        yield started


@pytest.fixture(params=KINDS)
def stream(request: pytest.FixtureRequest, running: Servers, tmp_path: Path) -> Stream:
    return running.stream(request.param, tmp_path)


def _events(first: int, count: int) -> list[bytes]:
    return [b'{"n": %d}' % number for number in range(first, first + count)]


def _all(reader: StreamReader) -> dict[str, str | None]:
    return dict.fromkeys(reader.partitions())


def _numbers(seen: dict[str, list[bytes]]) -> list[int]:
    """Return the numbers of the events of all partitions, each of which is in order."""
    by_partition = [[int(payload[6:-1]) for payload in payloads] for payloads in seen.values()]
    assert all(numbers == sorted(numbers) for numbers in by_partition)
    return sorted(number for numbers in by_partition for number in numbers)


def test_every_event_comes_once_in_bounded_batches(stream: Stream) -> None:
    stream.append(_events(0, COUNT))
    reader, seen = stream.open(), {}
    reader.seek(_all(reader))
    drain(reader, 7, COUNT, seen)
    assert _numbers(seen) == list(range(COUNT))
    assert reader.poll(7, MOMENT) == []
    reader.close()


def test_a_reader_that_is_started_again_goes_on_at_its_positions(stream: Stream) -> None:
    chance, seen = random.Random(3), {}
    positions: dict[str, str | None] = {}
    for turn in range(8):
        stream.append(_events(turn * 20, 20))
        reader = stream.open()
        reader.seek(_all(reader) | positions)
        left = (turn + 1) * 20 - len(_numbers(seen))
        positions |= drain(reader, chance.randint(1, 9), chance.randint(0, left), seen)
        reader.close()
    reader = stream.open()
    reader.seek(_all(reader) | positions)
    drain(reader, 50, 160 - len(_numbers(seen)), seen)
    reader.close()
    assert _numbers(seen) == list(range(160))


def test_seeking_back_repeats_what_came_after(stream: Stream) -> None:
    stream.append(_events(0, 30))
    reader, first, second = stream.open(), {}, {}
    reader.seek(_all(reader))
    positions = drain(reader, 10, 30, first)
    stream.append(_events(30, 30))
    drain(reader, 10, 30, first)
    reader.seek(_all(reader) | positions)
    drain(reader, 10, 30, second)
    assert _numbers(first) == list(range(60))
    assert _numbers(second) == list(range(30, 60))
    reader.close()


def test_a_first_poll_tells_where_each_partition_begins(stream: Stream) -> None:
    reader = stream.open()
    reader.seek(_all(reader))
    begun = {batch.partition: batch.position for batch in reader.poll(5, MOMENT)}
    assert begun.keys() == set(reader.partitions())
    stream.append(_events(0, 9))
    again, seen = stream.open(), {}
    again.seek(begun)
    drain(again, 5, 9, seen)
    assert _numbers(seen) == list(range(9))
    reader.close()
    again.close()


def test_only_assigned_partitions_are_followed(stream: Stream) -> None:
    stream.append(_events(0, 60))
    seen: dict[str, list[bytes]] = {}
    reader = stream.open()
    for partition in reader.partitions():
        reader.seek({partition: OLDEST})
        before = set(seen)
        drain(reader, 100, 60 if len(reader.partitions()) == 1 else 10, seen)
        assert set(seen) - before == {partition}
    reader.seek({})
    assert reader.poll(5, timedelta(0)) == []
    assert reader.lag() == ()
    reader.close()


@pytest.mark.parametrize("stream", ["redis", "kinesis"], indirect=True)
def test_a_first_read_at_latest_begins_behind_what_is_there(stream: Stream) -> None:
    stream.append(_events(0, 10))
    reader, seen = stream.open("latest"), {}
    reader.seek(_all(reader))
    assert all(not batch.payloads for batch in reader.poll(10, MOMENT))
    stream.append(_events(10, 10))
    drain(reader, 10, 10, seen)
    assert _numbers(seen) == list(range(10, 20))
    reader.close()


@pytest.mark.parametrize("stream", TELLS_ITS_END, indirect=True)
def test_lag_is_what_is_still_to_be_polled(stream: Stream) -> None:
    stream.append(_events(0, 10))
    reader = stream.open()
    reader.seek(_all(reader))
    assert sum(lag.events or 0 for lag in reader.lag()) == 10
    drain(reader, 4, 4, {})
    assert sum(lag.events or 0 for lag in reader.lag()) == 6
    reader.close()
