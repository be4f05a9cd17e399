"""Follows a Kinesis stream from sequence numbers of our own.

A source partition is a shard. A shard that was split or merged ends; its children are listed by `partitions` and are
followed from their oldest record, once the parents that are assigned to the same reader have ended. Options are those
of `boto3.client`, as text (`endpoint_url`, `aws_access_key_id`, ...).

A position is `after SEQUENCE`, `from TIME` before the first record of a first read at `latest`, `oldest`, or `ended`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import botocore.exceptions

from featurekit_dagster.domain.stream_sources import KinesisConfig
from featurekit_dagster.errors import StreamPositionLost, StreamUnavailable
from featurekit_dagster.streams.patience import Patience
from featurekit_dagster.streams.reading import ENDED, OLDEST, PartitionLag, StreamBatch

_MOST_RECORDS = 10_000
_RETRY_SECONDS = 0.5
_TURN_SECONDS = 0.21
"""A shard answers five reads a second, whoever asks."""
_EXPIRED = "ExpiredIteratorException"
_THROTTLED = ("ProvisionedThroughputExceededException", "LimitExceededException", "KMSThrottlingException")


class KinesisReader:
    """Reads the shards of a Kinesis stream; see `StreamReader`.

    Args:
        source: Name of the source.
        config: Its declaration.
        clock: Returns "now", aware; where a first read at `latest` begins.
        turn_seconds: How long a shard is left alone after a read.
    """

    def __init__(
        self,
        source: str,
        config: KinesisConfig,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        turn_seconds: float = _TURN_SECONDS,
    ) -> None:
        self._source, self._config, self._clock, self._turn = source, config, clock, turn_seconds
        try:
            self._client: Any = boto3.client("kinesis", region_name=config.region, **dict(config.options))
        except (botocore.exceptions.BotoCoreError, ValueError, TypeError) as error:
            raise StreamUnavailable(source=source, reason=f"its options are not accepted ({_code(error)})") from error
        self._patience = Patience(source)
        self._parents: dict[str, set[str]] = {}
        self._positions: dict[str, str] = {}
        self._iterators: dict[str, str] = {}
        self._behind: dict[str, timedelta | None] = {}
        self._asked: dict[str, float] = {}
        self._unsaid: set[str] = set()

    def partitions(self) -> tuple[str, ...]:
        """Return all shards that still keep records, ended ones among them."""
        shards: list[Mapping[str, Any]] = []
        question: dict[str, str] = {"StreamName": self._config.stream_name}
        while question:
            try:
                answer = self._client.list_shards(**question)
            except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
                raise StreamUnavailable(source=self._source, reason=_code(error)) from error
            shards += answer["Shards"]
            question = {"NextToken": answer["NextToken"]} if answer.get("NextToken") else {}
        for shard in shards:
            parents = (shard.get("ParentShardId"), shard.get("AdjacentParentShardId"))
            self._parents[shard["ShardId"]] = {parent for parent in parents if parent}
        return tuple(sorted(shard["ShardId"] for shard in shards))

    def seek(self, positions: Mapping[str, str | None]) -> None:
        """Follow these shards; see `StreamReader.seek`."""
        if positions and not positions.keys() <= self._parents.keys():
            self.partitions()
        is_first = not any(positions.values()) and self._config.initial_stream_position == "latest"
        start = f"from {self._clock().isoformat()}" if is_first else OLDEST
        self._positions = {shard: start if position is None else position for shard, position in positions.items()}
        self._unsaid = {shard for shard, position in positions.items() if position in (None, OLDEST)}
        self._iterators, self._behind, self._asked = {}, {}, {}
        for shard, position in self._positions.items():
            if position.startswith("after "):
                self._look_up(shard)

    def poll(self, most: int, timeout: timedelta) -> list[StreamBatch]:
        """Return what comes next; see `StreamReader.poll`."""
        batches = [StreamBatch(partition=shard, payloads=(), position=self._positions[shard]) for shard in self._unsaid]
        self._unsaid = set()
        deadline = time.monotonic() + timeout.total_seconds()
        while not batches:
            left = most
            for shard in self._due():
                batch = self._poll_shard(shard, left)
                if batch is not None:
                    batches.append(batch)
                    left -= len(batch.payloads)
                if left <= 0:
                    break
            now = time.monotonic()
            if batches or now >= deadline:
                break
            time.sleep(min(deadline - now, max(self._turn / 4, 0.005)))
        return batches

    def lag(self) -> tuple[PartitionLag, ...]:
        """Return how long ago the records came in that each shard is at; Kinesis does not count them."""
        return tuple(
            PartitionLag(shard, 0 if position == ENDED else None, self._behind.get(shard))
            for shard, position in self._positions.items()
        )

    def parents(self) -> Mapping[str, Collection[str]]:
        """Return the shards that each shard was split or merged from."""
        return self._parents

    def retention(self) -> timedelta | None:
        """Return the stream's retention period; None where we may not ask."""
        try:
            answer = self._client.describe_stream_summary(StreamName=self._config.stream_name)
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
            return None
        return timedelta(hours=answer["StreamDescriptionSummary"]["RetentionPeriodHours"])

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _due(self) -> list[str]:
        """Return the shards that may be asked now, those first that were asked longest ago."""
        now = time.monotonic()
        due = [
            shard
            for shard, position in self._positions.items()
            if position != ENDED
            and now - self._asked.get(shard, -self._turn) >= self._turn
            and all(self._positions.get(parent, ENDED) == ENDED for parent in self._parents.get(shard, ()))
        ]
        return sorted(due, key=lambda shard: self._asked.get(shard, 0.0))

    def _poll_shard(self, shard: str, most: int) -> StreamBatch | None:
        """Return the next records of a shard, or that it has ended; None if there are none now."""
        self._asked[shard] = time.monotonic()
        try:
            answer = self._client.get_records(ShardIterator=self._iterator(shard), Limit=min(most, _MOST_RECORDS))
        except botocore.exceptions.ClientError as error:
            if _code(error) == _EXPIRED:
                self._iterators.pop(shard, None)
            elif _code(error) not in _THROTTLED:
                raise StreamUnavailable(source=self._source, reason=_code(error)) from error
            return None
        except botocore.exceptions.BotoCoreError as error:
            self._patience.failed(error, _RETRY_SECONDS)
            return None
        self._patience.reached()
        records = answer["Records"]
        behind_ms = answer.get("MillisBehindLatest")
        self._behind[shard] = None if behind_ms is None else timedelta(milliseconds=behind_ms)
        if records:
            self._positions[shard] = f"after {records[-1]['SequenceNumber']}"
        following = answer.get("NextShardIterator")
        if following:
            self._iterators[shard] = following
        elif not records:
            self._positions[shard] = ENDED
        else:  # that it has ended is told once its last records were
            self._iterators.pop(shard, None)
        if not records and following:
            return None
        payloads = [record["Data"] for record in records]
        return StreamBatch(partition=shard, payloads=payloads, position=self._positions[shard])

    def _look_up(self, shard: str) -> None:
        """Find out whether a shard can be read on where it stands; a service that is too busy is asked by a poll.

        Raises:
            StreamPositionLost: It cannot.
            StreamUnavailable: The service cannot be reached, or does not answer us.
        """
        try:
            self._iterator(shard)
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            if _code(error) not in _THROTTLED:
                raise StreamUnavailable(source=self._source, reason=_code(error)) from error

    def _iterator(self, shard: str) -> str:
        """Return where to read a shard on, as the service wants it told."""
        known = self._iterators.get(shard)
        if known is not None:
            return known
        position = self._positions[shard]
        how: dict[str, Any] = {"ShardIteratorType": "TRIM_HORIZON"}
        if position.startswith("after "):
            how = {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "StartingSequenceNumber": position[len("after ") :]}
        elif position.startswith("from "):
            how = {"ShardIteratorType": "AT_TIMESTAMP", "Timestamp": datetime.fromisoformat(position[len("from ") :])}
        try:
            answer = self._client.get_shard_iterator(StreamName=self._config.stream_name, ShardId=shard, **how)
        except botocore.exceptions.ClientError as error:
            gone = ("InvalidArgumentException", "ResourceNotFoundException")
            if position.startswith("after ") and _code(error) in gone:
                raise StreamPositionLost(source=self._source, partition=shard, position=position) from error
            raise
        iterator: str = answer["ShardIterator"]
        self._iterators[shard] = iterator
        return iterator


def _code(error: Exception) -> str:
    """Return the name of an error; its text may hold addresses."""
    if isinstance(error, botocore.exceptions.ClientError):
        return str(error.response.get("Error", {}).get("Code", "ClientError"))
    return type(error).__name__
