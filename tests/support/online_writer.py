"""A process that writes rounds of tiles into an online store until it is told to stop; arguments ROOT KEYS ROUNDS.

A fourth one is the URL of a server; the root then tells the store there from others.
"""

from __future__ import annotations

import sys
from datetime import timedelta

from featurekit_dagster.domain.online_stores import RedisConfig, online_store_at
from featurekit_dagster.intervals import EPOCH, Interval, IntervalSet
from featurekit_dagster.stores.lmdb import LmdbOnlineStore
from featurekit_dagster.stores.online import OnlineStore
from featurekit_dagster.stores.redis_table import open_redis
from tests.support.online_records import TILES, Tiles, tile_records

HOURS = 130


def opened(root: str, url: str | None) -> OnlineStore:
    """Return the store in a folder or on a server."""
    config = None if url is None else online_store_at(url)
    return open_redis(config, within=root) if isinstance(config, RedisConfig) else LmdbOnlineStore(root)


def write_rounds(root: str, keys: int, rounds: int, url: str | None = None) -> None:
    """Write every key's tiles with the number of the round in all of them; the coverage counts the rounds."""
    store = opened(root, url)
    for number in range(1, rounds + 1):
        values = (number, float(number))
        tiles: Tiles = {((f"user {key}",), hour): values for key in range(keys) for hour in range(0, HOURS, 5)}
        covered = IntervalSet([Interval(EPOCH, EPOCH + timedelta(hours=number))])
        store.write(TILES, tile_records(TILES, tiles), covered=covered, epoch=number)
        print(number, flush=True)


if __name__ == "__main__":
    write_rounds(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
