"""Follows a Redis stream from an entry id of our own; no consumer group is made.

An event is the JSON document in one field of an entry: the one that the option `payload_field` names, else `data`, else
the entry's only field. The other options are redis-py's, as text. A position is the id of the last entry read and,
after a slash, how many entries were added up to it, which tells the lag and whether entries were trimmed unread.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any

import redis

from featurekit_dagster.domain.stream_sources import RedisStreamConfig
from featurekit_dagster.errors import StreamPositionLost, StreamUnavailable
from featurekit_dagster.streams.patience import Patience
from featurekit_dagster.streams.reading import OLDEST, ONLY_PARTITION, PartitionLag, StreamBatch

_PAYLOAD_FIELD = "payload_field"
_USUAL_FIELD = "data"
_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 30.0
_RETRY_SECONDS = 0.2
_LONGEST_BLOCK_MS = 10_000
_AWAY = (redis.ConnectionError, redis.TimeoutError)


class RedisReader:
    """Reads the entries of a Redis stream; see `StreamReader`.

    Args:
        source: Name of the source.
        config: Its declaration.
    """

    def __init__(self, source: str, config: RedisStreamConfig) -> None:
        self._source, self._config, self._key = source, config, config.stream_key
        options = dict(config.options)
        field = options.pop(_PAYLOAD_FIELD, None)
        self._field = None if field is None else field.encode()
        defaults: dict[str, Any] = {"socket_timeout": _ANSWER_SECONDS, "socket_connect_timeout": _CONNECT_SECONDS}
        try:
            self._client: Any = redis.Redis.from_url(config.url, **{**defaults, **options})
        except (ValueError, TypeError) as error:  # their text quotes the URL
            raise StreamUnavailable(source=source, reason="its url or options are not accepted") from error
        self._patience = Patience(source)
        self._last: bytes | None = None
        self._count: int | None = None
        self._lag = PartitionLag(ONLY_PARTITION, None)
        self._is_new = False

    def partitions(self) -> tuple[str, ...]:
        """Return the one source partition."""
        return (ONLY_PARTITION,)

    def seek(self, positions: Mapping[str, str | None]) -> None:
        """Follow the stream from an entry on; see `StreamReader.seek`."""
        self._last, self._is_new = None, False
        if ONLY_PARTITION not in positions:
            return
        position = positions[ONLY_PARTITION]
        facts = self._facts()
        self._is_new = position is None or position == OLDEST
        if position is not None and position != OLDEST:
            last, _, count = position.partition("/")
            self._last, self._count = last.encode(), int(count) if count else None
            self._check_kept(facts)
        elif position is None and self._config.initial_stream_position == "latest":
            self._last, self._count = facts["last"], facts["added"]
        else:
            self._last = b"0-0"
            self._count = None if facts["added"] is None else facts["added"] - facts["length"]

    def poll(self, most: int, timeout: timedelta) -> list[StreamBatch]:
        """Return the next entries; see `StreamReader.poll`."""
        if self._last is None:
            return []
        if self._is_new:
            self._is_new = False
            return [StreamBatch(partition=ONLY_PARTITION, payloads=(), position=self._position)]
        try:
            facts, entries = self._read(most)
            if not entries and timeout:
                wait_ms = max(1, min(int(timeout / timedelta(milliseconds=1)), _LONGEST_BLOCK_MS))
                if self._client.xread({self._key: self._last}, count=1, block=wait_ms):
                    facts, entries = self._read(most)
        except _AWAY as error:
            self._patience.failed(error, min(_RETRY_SECONDS, timeout.total_seconds()))
            return []
        except redis.RedisError as error:
            raise StreamUnavailable(source=self._source, reason=type(error).__name__) from error
        self._patience.reached()
        self._check_kept(facts)
        if not entries:
            return []
        if self._count is not None:
            self._count += len(entries)
        self._last = entries[-1][0]
        payloads = [self._payload(fields) for _, fields in entries]
        return [StreamBatch(partition=ONLY_PARTITION, payloads=payloads, position=self._position)]

    def lag(self) -> tuple[PartitionLag, ...]:
        """Return how many entries were added behind the last one read; None from servers that do not count them.

        While the server is out of reach it is what was told last, for as long as `poll` waits for the server, too.
        """
        if self._last is None:
            return ()
        try:
            facts = self._told_facts()
        except _AWAY as error:
            self._patience.failed(error, 0.0)
            return (self._lag,)
        except redis.RedisError as error:
            raise StreamUnavailable(source=self._source, reason=type(error).__name__) from error
        is_counted = facts["added"] is not None and self._count is not None
        self._lag = PartitionLag(ONLY_PARTITION, max(facts["added"] - self._count, 0) if is_counted else None)
        return (self._lag,)

    def parents(self) -> Mapping[str, Collection[str]]:
        """Return nothing: there is one partition."""
        return {}

    def retention(self) -> timedelta | None:
        """Return nothing: a Redis stream keeps so many entries, or all, whatever their age."""
        return None

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    @property
    def _position(self) -> str:
        assert self._last is not None
        return self._last.decode() if self._count is None else f"{self._last.decode()}/{self._count}"

    def _payload(self, fields: Mapping[bytes, bytes]) -> bytes:
        """Return the document of an entry; nothing, which no decoder takes, where there is none."""
        if self._field is not None:
            return fields.get(self._field, b"")
        usual = fields.get(_USUAL_FIELD.encode())
        if usual is not None:
            return usual
        return next(iter(fields.values())) if len(fields) == 1 else b""

    def _facts(self) -> Mapping[str, Any]:
        """Return length, last id, first id and number of entries ever added of the stream as it is now."""
        try:
            return self._told_facts()
        except redis.RedisError as error:
            raise StreamUnavailable(source=self._source, reason=type(error).__name__) from error

    def _told_facts(self) -> Mapping[str, Any]:
        """Return the same, or raise what the client raises where the server is out of reach."""
        try:
            return self._facts_of(self._client.xinfo_stream(self._key))
        except redis.ResponseError as error:
            return self._facts_of(error)

    def _read(self, most: int) -> tuple[Mapping[str, Any], list[tuple[bytes, Mapping[bytes, bytes]]]]:
        """Return the facts of the stream and its next entries, both of one moment."""
        with self._client.pipeline(transaction=True) as together:
            together.xinfo_stream(self._key)
            together.xread({self._key: self._last}, count=most)
            info, found = together.execute(raise_on_error=False)
        if isinstance(found, redis.RedisError):
            raise found
        return self._facts_of(info), _entries(found)

    def _facts_of(self, info: Any) -> Mapping[str, Any]:
        if isinstance(info, redis.ResponseError) and "no such key" in str(info):
            return {"length": 0, "last": b"0-0", "first": None, "added": 0, "deleted": b"0-0"}
        if isinstance(info, Exception):
            raise StreamUnavailable(source=self._source, reason=type(info).__name__) from info
        first = info["first-entry"]
        return {
            "length": info["length"],
            "last": info["last-generated-id"],
            "first": None if first is None else first[0],
            "added": info.get("entries-added"),
            "deleted": info.get("max-deleted-entry-id", b"0-0"),
        }

    def _check_kept(self, facts: Mapping[str, Any]) -> None:
        """Raise if entries behind the last one read were trimmed, or the stream was begun again.

        Entries that were deleted one by one are counted like trimmed ones, so where there are such ahead nothing can be
        told.
        """
        if self._count is None or facts["added"] is None or self._last is None:
            return
        first, last = facts["first"], _number(self._last)
        is_behind = facts["added"] - facts["length"] > self._count and _number(facts["deleted"]) <= last
        is_trimmed = is_behind and (first is None or _number(first) > last)
        if is_trimmed or facts["added"] < self._count:
            oldest = None if first is None else first.decode()
            raise StreamPositionLost(
                source=self._source, partition=ONLY_PARTITION, position=self._position, oldest=oldest
            )


def _number(entry: bytes) -> tuple[int, int]:
    milliseconds, sequence = entry.split(b"-")
    return int(milliseconds), int(sequence)


def _entries(found: Any) -> list[tuple[bytes, Mapping[bytes, bytes]]]:
    """Return the entries of an answer of XREAD about one stream, in either version of the protocol."""
    if not found:
        return []
    if isinstance(found, Mapping):
        (streams,) = found.values()
        return [entry for entries in streams for entry in entries]
    return list(found[0][1])
