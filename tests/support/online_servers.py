"""Online stores of every kind, for tests: a store's place is a folder, of which servers keep the records apart."""

from __future__ import annotations

import atexit
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from featurekit_dagster.domain.online_stores import RedisConfig, online_store_at
from featurekit_dagster.stores.lmdb import LmdbOnlineStore
from featurekit_dagster.stores.online import OnlineStore
from featurekit_dagster.stores.redis_table import open_redis
from featurekit_dagster.stores.remote import RemoteOnlineStore
from tests.support.stream_servers import valkey_server

_LOCK = threading.Lock()


def valkey_url() -> str:
    """Return the URL of a server of this process, started by the first call; it ends with the process."""
    with _LOCK:
        return _valkey()


@cache
def _valkey() -> str:
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(valkey_server(Path(tempfile.mkdtemp()), appends=False))


def valkey_store(place: Path) -> RemoteOnlineStore:
    """Open a store of its own for a folder, the same one for the same real folder."""
    config = online_store_at(valkey_url())
    assert isinstance(config, RedisConfig)
    return open_redis(config, within=str(place.resolve()))


OPENERS: dict[str, Callable[[Path], OnlineStore]] = {"lmdb": LmdbOnlineStore, "valkey": valkey_store}
"""What opens a store of each kind."""
