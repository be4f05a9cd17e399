"""Events, spines and stored tiles for `windows.py`, made once per size and shared by its cases.

Half of the events of skewed data belong to one user in a hundred, and so does half of its spine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from peers import sql

from featurekit_dagster.domain.aggregation import AggregateFeature, partial_columns
from featurekit_dagster.engine.duck import connect
from featurekit_dagster.engine.tiles import build_tiles

HOUR_US = 3_600_000_000
_START = "TIMESTAMP '2024-01-01'"


@dataclass(frozen=True)
class Size:
    """How much there is: 90 days of events, and a spine over the last 60 of them."""

    events: int
    spine: int
    users: int
    hot: int = 0

    def quick(self) -> Size:
        """Return a fiftieth of everything."""
        return Size(*(number // 50 for number in (self.events, self.spine, self.users, self.hot)))


@dataclass(frozen=True)
class Tiles:
    """Stored one-hour tiles.

    Args:
        name: Of the file, without its end.
        features: What ours are rolled up to.
        peer: SQL of the partial columns of the peer's own file; empty where it reads ours.
    """

    name: str
    features: Sequence[AggregateFeature]
    peer: str = ""


def prepare(size: Size, *tiles: Tiles) -> Callable[[Path, bool], None]:
    """Return what puts the files of a size into a folder."""

    def link(folder: Path, quick: bool) -> None:
        wanted = size.quick() if quick else size
        events = _events(wanted.events, wanted.users, wanted.hot)
        (folder / "events.parquet").symlink_to(events)
        (folder / "spine.parquet").symlink_to(_spine(wanted))
        for one in tiles:
            for file in _stored(events, one):
                (folder / file.name).symlink_to(file)

    return link


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="windows-")


def _user(row: str, salt: int, users: int, hot: int) -> str:
    """SQL of a user id; `hot` of the users (0 for none) get half of the rows."""
    anyone = f"CAST(hash({row}, {salt}) % {users} AS BIGINT)"
    favourite = f"CAST(hash({row}, {salt + 1}) % {max(hot, 1)} AS BIGINT) * {users // max(hot, 1)}"
    return f"CASE WHEN hash({row}, {salt + 2}) % 2 = 0 THEN {favourite} ELSE {anyone} END" if hot else anyone


@cache
def _events(rows: int, users: int, hot: int) -> Path:
    file = Path(_folder().name, f"events-{rows}-{users}-{hot}.parquet")
    with connect() as con:
        con.execute(
            f"COPY (SELECT {_user('i', 1, users, hot)} AS user_id, hash(i, 5) % 10000 / 100.0 + 0.001 AS v, "
            "'shop ' || (hash(i, 6) % 20) AS c, CAST(hash(i, 7) % 1000 AS BIGINT) AS k, "
            f"{_START} + to_microseconds(CAST(hash(i, 4) % {90 * 24 * HOUR_US} AS BIGINT)) AS ts "
            f"FROM range({rows}) r(i) ORDER BY ts) TO '{file}'"
        )
    return file


@cache
def _spine(size: Size) -> Path:
    file = Path(_folder().name, f"spine-{size.spine}-{size.users}-{size.hot}.parquet")
    with connect() as con:
        con.execute(
            f"COPY (SELECT i AS row_id, {_user('i', 11, size.users, size.hot)} AS user_id, "
            f"{_START} + to_hours(CAST(30 * 24 + hash(i, 14) % {60 * 24} AS INTEGER)) AS edge "
            f"FROM range({size.spine}) r(i)) TO '{file}'"
        )
    return file


_DONE: dict[tuple[Path, str], list[Path]] = {}


def _stored(events: Path, tiles: Tiles) -> list[Path]:
    """Return our file of tiles and the peer's, if it has its own."""
    if (events, tiles.name) in _DONE:
        return _DONE[events, tiles.name]
    folder = events.with_suffix("")
    folder.mkdir(exist_ok=True)
    ours, peer = folder / f"{tiles.name}.parquet", folder / f"{tiles.name}_peer.parquet"
    with connect() as con:
        built = build_tiles(
            con,
            f"'{events}'",
            keys=["user_id"],
            timestamp="ts",
            tile_us=HOUR_US,
            partials=partial_columns(tiles.features),
        )
        con.register("built", built)
        con.execute(f"COPY (SELECT * FROM built ORDER BY user_id, _anchor_time) TO '{ours}'")
        if tiles.peer:
            query = sql("tiles", events=str(events), partials=tiles.peer)
            con.execute(f"COPY ({query} ORDER BY user_id, ts) TO '{peer}'")
    _DONE[events, tiles.name] = [ours, *([peer] if tiles.peer else [])]
    return _DONE[events, tiles.name]
