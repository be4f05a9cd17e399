"""Layouts and record tables for tests of the online store."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from featurekit_dagster.arrow_types import record_type
from featurekit_dagster.domain.schema import Field, Float64, Int64, String
from featurekit_dagster.intervals import Interval, IntervalSet, from_us
from featurekit_dagster.stores.online import Key, OnlineLayout, OnlineStore, OnlineWrite

Tiles = dict[tuple[Key, int], tuple[Any, ...]]

HOUR_US = 3_600_000_000
COVERED = IntervalSet([Interval(datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 2, 1, tzinfo=UTC))])

TILES = OnlineLayout(
    workspace="test",
    view="tiles",
    key_fields=(Field("user", String),),
    index_length=1,
    tile_us=HOUR_US,
    value_fields=(Field("count_v", Int64), Field("sum_v", Float64)),
)
ROWS = OnlineLayout(
    workspace="test",
    view="rows",
    key_fields=(Field("user", String),),
    index_length=1,
    tile_us=None,
    value_fields=(Field("plan", String), Field("score", Float64)),
)
WILDCARD = OnlineLayout(
    workspace="test",
    view="wildcard",
    key_fields=(Field("user", String), Field("merchant", Int64)),
    index_length=1,
    tile_us=HOUR_US,
    value_fields=(Field("count_v", Int64),),
)


def records(layout: OnlineLayout, rows: Sequence[tuple[Any, ...]]) -> pa.Table:
    """Return a table of rows given as (*key, time in microseconds, *values)."""
    width = len(layout.key_fields)
    names = [*layout.key_fields, Field(layout.time_column, Int64), *layout.value_fields]
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(names)
    arrays = {f.name: pa.array(column, record_type(f.dtype)) for f, column in zip(names, columns, strict=True)}
    arrays[layout.time_column] = pa.array(map(from_us, columns[width]), pa.timestamp("us", "UTC"))
    return pa.table(arrays)


def tile_records(layout: OnlineLayout, tiles: Tiles) -> pa.Table:
    """Return a table of tiles given by (key, tile number)."""
    tile_us = layout.tile_us or 1
    return records(layout, [(*key, number * tile_us, *values) for (key, number), values in tiles.items()])


def write(store: OnlineStore, layout: OnlineLayout, table: pa.Table, replace: Interval | None = None) -> OnlineWrite:
    """Write records with the usual coverage."""
    return store.write(layout, table, covered=COVERED, epoch=1, replace=replace)


def stored(store: OnlineStore, layout: OnlineLayout, keys: list[Key]) -> Tiles:
    """Return all stored tiles of some keys."""
    found = store.read(layout, keys)
    tile_us = layout.tile_us or 1
    return {(key, row[0] // tile_us): row[1:] for key, rows in zip(keys, found, strict=True) for row in rows}
