"""Online stores on servers: Redis (or Valkey) and DynamoDB. `record_store.py` has what they do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from featurekit_dagster.domain.online_stores import RedisConfig, default_redis
from featurekit_dagster.errors import OnlineStoreExtraMissing, OnlineStoreUnnamed
from featurekit_dagster.stores.record_store import RecordStore
from featurekit_dagster.stores.remote_environment import RemoteEnvironment
from featurekit_dagster.stores.remote_snapshot import RemoteSnapshot

if TYPE_CHECKING:
    from featurekit_dagster.domain.online_stores import OnlineStoreConfig
    from featurekit_dagster.stores.lmdb_environment import LmdbEnvironment
    from featurekit_dagster.stores.online import OnlineLayout
    from featurekit_dagster.stores.record_snapshot import StoredView
    from featurekit_dagster.stores.remote_table import RemoteTable

OpenTable = Callable[[str, str], "RemoteTable"]
"""Opens the table of a workspace's view."""


class RemoteOnlineStore(RecordStore):
    """Online store on a server, shared by all who reach it (see `OnlineStore`).

    Args:
        open_table: Opens the table of a view.
        place: Where it is, for messages; never with a password.
        disconnect: Closes the connections that the tables share; the next table opens them again.
    """

    def __init__(self, open_table: OpenTable, place: str, disconnect: Callable[[], None]) -> None:
        super().__init__()
        self._open_table, self._place, self._disconnect = open_table, place, disconnect

    def _open(self, workspace: str, view: str) -> LmdbEnvironment:
        table = self._open_table(workspace, view)
        # it makes the calls that the store needs of LMDB's environments, and no others are made
        return cast("LmdbEnvironment", RemoteEnvironment(table, f"{self._place} ({view})"))

    def _made(self, layout: OnlineLayout, environment: LmdbEnvironment) -> StoredView:
        view = super()._made(layout, environment)
        table = cast("RemoteEnvironment", environment).table
        table.expect(view.keys.generation_prefix, is_tiled=layout.tile_us is not None)
        return view

    def _release(self, environment: LmdbEnvironment) -> None:
        environment.close()

    def close(self) -> None:
        """Close the connections; the store opens them again when it is next used."""
        super().close()
        self._disconnect()

    def snapshot(self, layout: OnlineLayout) -> RemoteSnapshot:
        """Return a context that gives coverage, and records that are at least as new."""
        return RemoteSnapshot(self._view(layout))


def open_remote(config: OnlineStoreConfig) -> RemoteOnlineStore:
    """Return the store of a declaration; nothing is connected before its first use.

    Raises:
        OnlineStoreExtraMissing: The client library is not installed.
        OnlineStoreUnnamed: It names no server, and the environment does not either.
    """
    if not isinstance(config, RedisConfig):
        try:
            from featurekit_dagster.stores.dynamodb_table import open_dynamodb  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise OnlineStoreExtraMissing(kind="DynamoDB", extra="dynamodb") from error
        return open_dynamodb(config)
    named = config if config.primary_endpoint is not None else default_redis()
    if named is None:
        raise OnlineStoreUnnamed
    try:
        from featurekit_dagster.stores.redis_table import open_redis  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise OnlineStoreExtraMissing(kind="Redis", extra="redis") from error
    return open_redis(named)
