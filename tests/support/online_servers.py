"""Online stores of every kind, for tests: a store's place is a folder, of which servers keep the records apart."""

from __future__ import annotations

import atexit
import hashlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path

import boto3

from featurekit_dagster.domain.online_stores import DynamoConfig, RedisConfig, online_store_at
from featurekit_dagster.stores.dynamodb_table import open_dynamodb
from featurekit_dagster.stores.lmdb import LmdbOnlineStore
from featurekit_dagster.stores.online import OnlineStore
from featurekit_dagster.stores.redis_table import open_redis
from featurekit_dagster.stores.remote import RemoteOnlineStore
from tests.support.stream_servers import free_port, process, valkey_server

_LOCK, _STACK = threading.Lock(), ExitStack()
atexit.register(_STACK.close)


def valkey_url() -> str:
    """Return the URL of a server of this process, started by the first call; it ends with the process."""
    with _LOCK:
        return _valkey()


def dynamodb_config() -> DynamoConfig:
    """Return where a server of this process answers like DynamoDB; the first call starts it."""
    with _LOCK:
        return _dynamodb()


@cache
def _valkey() -> str:
    return _STACK.enter_context(valkey_server(Path(tempfile.mkdtemp()), appends=False))


@cache
def _dynamodb() -> DynamoConfig:
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "nobody")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "nothing")
    port, folder = free_port(), Path(tempfile.mkdtemp())
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    _STACK.enter_context(process(command, port, folder / "dynamodb.log"))
    return DynamoConfig(region="us-east-1", endpoint_url=f"http://127.0.0.1:{port}")


def valkey_store(place: Path) -> RemoteOnlineStore:
    """Open a store of its own for a folder, the same one for the same real folder."""
    config = online_store_at(valkey_url())
    assert isinstance(config, RedisConfig)
    return open_redis(config, within=str(place.resolve()))


def dynamodb_store(place: Path) -> RemoteOnlineStore:
    """Open a store of its own for a folder, the same one for the same real folder."""
    name = hashlib.sha256(str(place.resolve()).encode()).hexdigest()[:20]
    return open_dynamodb(replace(dynamodb_config(), table_prefix=f"t{name}"))


def drop_dynamodb_tables() -> None:
    """Delete all tables; the emulator copies all of them for every transaction."""
    config = dynamodb_config()
    client = boto3.client("dynamodb", region_name=config.region, endpoint_url=config.endpoint_url)
    for table in client.list_tables()["TableNames"]:
        client.delete_table(TableName=table)
    client.close()


OPENERS: dict[str, Callable[[Path], OnlineStore]] = {
    "lmdb": LmdbOnlineStore,
    "valkey": valkey_store,
}
"""What opens a store of each kind; `test_online_store_dynamodb.py` asks DynamoDB, whose emulator is slow."""
