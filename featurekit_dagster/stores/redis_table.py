"""Records of an online store in Redis or Valkey, on one server or in a cluster.

All of a view lies under one hash tag, so in one slot of a cluster: a commit is one script, and it changes everything or
nothing there, as on a single server. A record is a string of its version and its value; a sorted set of all keys gives
their order.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import quote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from featurekit_dagster.domain.online_stores import RedisConfig
from featurekit_dagster.errors import OnlineStoreRefused
from featurekit_dagster.stores.remote import RemoteOnlineStore
from featurekit_dagster.stores.remote_patience import patiently
from featurekit_dagster.stores.remote_table import ABSENT, Stored

_CONNECT_SECONDS, _ANSWER_SECONDS = 5.0, 15.0
_VERSION_BYTES = 8
_PAGE = 5_000
_AWAY = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.ReadOnlyError,  # what was the primary is none any more
    redis.exceptions.RedisClusterException,
    redis.exceptions.TryAgainError,
)

# KEYS: index, counter, token, the keys to be checked, the keys to be changed. A version is a number that only grows;
# after a loss of the counter it goes on with the time. The token tells a commit that is sent again from another one.
_COMMIT = """
if redis.call('EXISTS', KEYS[3]) == 1 then return {} end
local prefix, checks, changes = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local stale = {}
for i = 1, checks do
  if redis.call('GETRANGE', KEYS[3 + i], 0, 7) ~= ARGV[3 + i] then stale[#stale + 1] = i - 1 end
end
if #stale > 0 then return stale end
local number = redis.call('INCR', KEYS[2])
if number == 1 then
  local time = redis.call('TIME')
  number = tonumber(time[1]) * 1000000 + tonumber(time[2])
  redis.call('SET', KEYS[2], string.format('%.0f', number))
end
local version = struct.pack('>I8', number)
for i = 1, changes do
  local key, change = KEYS[3 + checks + i], ARGV[3 + checks + i]
  local member = string.sub(key, prefix + 1)
  if string.byte(change) == 49 then
    redis.call('SET', key, version .. string.sub(change, 2))
    redis.call('ZADD', KEYS[1], 0, member)
  else
    redis.call('DEL', key)
    redis.call('ZREM', KEYS[1], member)
  end
end
redis.call('SET', KEYS[3], '1', 'EX', 120)
return {}
"""

_SCAN = """
local members = redis.call('ZRANGEBYLEX', KEYS[1], ARGV[2], ARGV[3], 'LIMIT', 0, ARGV[4])
local found = {}
for i = 1, #members do
  found[2 * i - 1] = members[i]
  found[2 * i] = redis.call('GET', ARGV[1] .. members[i]) or ''
end
return found
"""


class RedisTable:
    """The records of one view (see `RemoteTable`).

    Args:
        client: Client of the server or the cluster.
        names: What tells it from other tables: the store's own word, the workspace, the view.
        place: Where the server is, for messages.
    """

    def __init__(self, client: Any, names: Sequence[str], place: str) -> None:
        self._client, self._place = client, place
        tag = f"{{{'/'.join(quote(name, safe='') for name in names)}}}:".encode()
        self._records, self._index, self._counter, self._token = (tag + kind for kind in (b"r:", b"keys", b"n", b"t:"))

    def _call(self, name: str, *arguments: Any) -> Any:
        """Send a command; send it again for some seconds if the server does not answer."""
        return patiently(partial(self._send, name, *arguments), away=_AWAY, place=self._place)

    def _send(self, name: str, *arguments: Any) -> Any:
        try:
            return self._client.execute_command(name, *arguments)
        except _AWAY as error:
            # a wrong password counts as a failed connection there, but waiting does not help
            if isinstance(error, redis.AuthenticationError):
                raise OnlineStoreRefused(place=self._place, reason=type(error).__name__) from error
            raise
        except redis.ResponseError as error:
            # its text may quote an argument
            raise OnlineStoreRefused(place=self._place, reason=type(error).__name__) from error

    def expect(self, prefix: bytes, *, is_tiled: bool) -> None:
        """Do nothing: every record is stored alone."""

    def get(self, keys: Sequence[bytes]) -> list[Stored]:
        """Return what is stored under each key, all as of one moment."""
        if not keys:
            return []
        records = self._records
        return [_split(raw) for raw in self._call("MGET", *[records + key for key in keys])]

    def following(self, begin: bytes, end: bytes | None, most: int) -> list[bytes]:
        """Return the first stored keys from one on."""
        found: list[bytes] = self._call("ZRANGEBYLEX", self._index, *_between(begin, end), "LIMIT", 0, most)
        return found

    def scan(self, begin: bytes, end: bytes | None, most: int) -> list[tuple[bytes, Stored]]:
        """Return the same with what is stored under them, all as of one moment."""
        flat = self._call("EVAL", _SCAN, 1, self._index, self._records, *_between(begin, end), most)
        return [(key, _split(raw)) for key, raw in zip(flat[::2], flat[1::2], strict=True)]

    def commit(self, expected: Mapping[bytes, bytes], changes: Mapping[bytes, bytes | None]) -> Collection[bytes]:
        """Change records if no other has changed (see `RemoteTable.commit`)."""
        records, checked = self._records, list(expected)
        keys = [self._index, self._counter, self._token + os.urandom(12)]
        keys += [records + key for key in checked]
        keys += [records + key for key in changes]
        values = [b"0" if value is None else b"1" + value for value in changes.values()]
        counts = (len(records), len(checked), len(changes))
        stale = self._call("EVAL", _COMMIT, len(keys), *keys, *counts, *expected.values(), *values)
        return [checked[place] for place in stale]

    def clear(self) -> None:
        """Remove all records, the index last, so that an interrupted call is done again by the next one."""
        begin, most = b"", _PAGE
        while keys := self.following(begin, None, most):
            self._call("UNLINK", *[self._records + key for key in keys])
            begin = keys[-1] + b"\x00"
        self._call("UNLINK", self._index, self._counter)

    def close(self) -> None:
        """Leave the connections to the other views of the store; they are closed with it."""


def _between(begin: bytes, end: bytes | None) -> tuple[bytes, bytes]:
    return b"[" + begin, b"+" if end is None else b"(" + end


def _split(raw: bytes | None) -> Stored:
    return (raw[:_VERSION_BYTES], raw[_VERSION_BYTES:]) if raw else (ABSENT, None)


def open_redis(config: RedisConfig, *, within: str = "featurekit") -> RemoteOnlineStore:
    """Return the store on a server or a cluster; nothing is connected yet.

    Args:
        config: Its declaration, with an endpoint.
        within: What all of its keys begin with; stores under other words know nothing of each other.
    """
    endpoint = config.primary_endpoint or ""
    parts = urlsplit(endpoint if "://" in endpoint else f"rediss://{endpoint}")
    place = f"{parts.hostname}:{parts.port or 6379}"
    number = parts.path.strip("/")
    settings: dict[str, Any] = {
        "host": parts.hostname,
        "port": parts.port or 6379,
        "username": config.username,
        "password": config.password,
        "ssl": parts.scheme == "rediss",
        "socket_timeout": _ANSWER_SECONDS,
        "socket_connect_timeout": _CONNECT_SECONDS,
    }
    opened: list[Any] = []

    def client() -> Any:
        # a cluster's client asks for the slots when it is made
        if not opened:
            opened.append(patiently(partial(_client, config, settings, number, place), away=_AWAY, place=place))
        return opened[0]

    def disconnect() -> None:
        while opened:
            opened.pop().close()

    def table(workspace: str, view: str) -> RedisTable:
        return RedisTable(client(), [within, workspace, view], place)

    return RemoteOnlineStore(table, place, disconnect)


def _client(config: RedisConfig, settings: dict[str, Any], number: str, place: str) -> Any:
    retry = Retry(NoBackoff(), 0)
    if config.cluster:
        try:
            return redis.RedisCluster(**settings, retry=retry)
        except redis.AuthenticationError as error:
            raise OnlineStoreRefused(place=place, reason=type(error).__name__) from error
    return redis.Redis(**settings, db=int(number or 0), retry=retry)
