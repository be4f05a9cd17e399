"""Rolling windows of 1, 7 and 30 days: the kernel beside DuckDB's range join and its prefix sums with ASOF join.

Three kinds of case: count, sum and mean from Parquet events to the answer; count, sum, mean, min, max and last from
stored one-hour tiles; the same with building the tiles. Half of the events of skewed data belong to one user in a
hundred, and so does half of its spine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
from measuring import Case, Form, run
from peers import sql

from featurekit_dagster.domain.aggregation import AggregateFeature, partial_columns
from featurekit_dagster.domain.schema import Field, Float64
from featurekit_dagster.domain.windows import TimeWindow
from featurekit_dagster.engine.duck import connect
from featurekit_dagster.engine.rollup import roll_up
from featurekit_dagster.engine.tiles import build_tiles, row_query

HOUR_US = 3_600_000_000
DAYS = (1, 7, 30)
SUMS = ("count", "sum", "mean")
ALL = (*SUMS, "min", "max", "last")


def features(functions: Sequence[str]) -> list[AggregateFeature]:
    return [
        AggregateFeature(
            name=f"v_{function}_{days}",
            column=Field("v", Float64),
            function=function,
            window=TimeWindow(timedelta(days)),
        )
        for function in functions
        for days in DAYS
    ]


def user(row: str, salt: int, users: int, hot: int) -> str:
    """SQL of a user id; `hot` of the users (0 for none) get half of the rows."""
    anyone = f"CAST(hash({row}, {salt}) % {users} AS BIGINT)"
    favourite = f"CAST(hash({row}, {salt + 1}) % {max(hot, 1)} AS BIGINT) * {users // max(hot, 1)}"
    return f"CASE WHEN hash({row}, {salt + 2}) % 2 = 0 THEN {favourite} ELSE {anyone} END" if hot else anyone


def generate(*, events: int, spine: int, users: int, hot: int, tiles: bool = False) -> Callable[[Path, bool], None]:
    """Write 90 days of events, a spine over the last 60 of them, and the stored tiles."""

    def prepare(folder: Path, quick: bool) -> None:
        scale = 50 if quick else 1
        rows, probes, people, busy = events // scale, spine // scale, users // scale, hot // scale if hot else 0
        start = "TIMESTAMP '2024-01-01'"
        with connect() as con:
            con.execute(
                f"COPY (SELECT {user('i', 1, people, busy)} AS user_id, hash(i, 5) % 10000 / 100.0 + 0.001 AS v, "
                f"{start} + to_microseconds(CAST(hash(i, 4) % {90 * 24 * HOUR_US} AS BIGINT)) AS ts "
                f"FROM range({rows}) r(i) ORDER BY ts) TO '{folder}/events.parquet'"
            )
            con.execute(
                f"COPY (SELECT i AS row_id, {user('i', 11, people, busy)} AS user_id, "
                f"{start} + to_hours(CAST(30 * 24 + hash(i, 14) % {60 * 24} AS INTEGER)) AS edge "
                f"FROM range({probes}) r(i)) TO '{folder}/spine.parquet'"
            )
            if tiles:
                partials = ", count(v) AS n, sum(v) AS s, min(v) AS mn, max(v) AS mx, arg_max(v, ts) AS l"
                query = sql("tiles", folder=str(folder), partials=partials)
                con.execute(f"COPY ({query} ORDER BY user_id, ts) TO '{folder}/tiles.parquet'")

    return prepare


def probes(con: duckdb.DuckDBPyConnection, folder: Path) -> pa.Table:
    return con.sql(f"SELECT row_id, user_id, edge AS _edge FROM '{folder}/spine.parquet'").to_arrow_table()


def answer(spine: pa.Table, tiles: pa.Table, functions: Sequence[str], tile_us: int) -> pa.Table:
    found = roll_up(tiles, spine, keys=("user_id",), tile_us=tile_us, features=features(functions))
    return found.add_column(0, "row_id", spine.column("row_id"))


def ours_from_events(folder: Path) -> pa.Table:
    with connect() as con:
        query = row_query(
            f"'{folder}/events.parquet'",
            keys=["user_id"],
            timestamp="ts",
            partials=partial_columns(features(SUMS)),
        )
        return answer(probes(con, folder), con.sql(query).to_arrow_table(), SUMS, HOUR_US)


def ours_from_tiles(folder: Path) -> pa.Table:
    with connect() as con:
        tiles = con.sql(
            "SELECT user_id, ts AS _anchor_time, n AS count_v, s AS sum_v, mn AS min_v, mx AS max_v, l AS last_v "
            f"FROM '{folder}/tiles.parquet'"
        ).to_arrow_table()
        return answer(probes(con, folder), tiles, ALL, HOUR_US)


def ours_end_to_end(folder: Path) -> pa.Table:
    with connect() as con:
        tiles = build_tiles(
            con,
            f"'{folder}/events.parquet'",
            keys=["user_id"],
            timestamp="ts",
            tile_us=HOUR_US,
            partials=partial_columns(features(ALL)),
        )
        return answer(probes(con, folder), tiles, ALL, HOUR_US)


def range_join(rows: str, expressions: dict[str, str]) -> Form:
    """A range join; `expressions` say how a function is computed over the rows `{inside}` the window."""

    def form(folder: Path) -> pa.Table:
        columns = [
            f"{text.format(inside=f'FILTER (e.ts >= s.edge - INTERVAL {days} DAY)')} AS v_{function}_{days}"
            for function, text in expressions.items()
            for days in DAYS
        ]
        query = sql("range_join", folder=str(folder), rows=rows.format(folder=folder),
                    features=",\n  ".join(columns))  # fmt: skip
        with connect() as con:
            return con.sql(query).to_arrow_table()

    return form


def prefix_asof(tiles: str) -> Form:
    def form(folder: Path) -> pa.Table:
        with connect() as con:
            query = sql("prefix_asof_sums", folder=str(folder), tiles=tiles.format(folder=folder))
            return con.sql(query).to_arrow_table()

    return form


def built(partials: str) -> str:
    """SQL of tiles that are built on the fly."""
    return "(" + sql("tiles", folder="{folder}", partials=partials) + ")"


TILE_SUMS = {
    "count": "CAST(coalesce(sum(e.n) {inside}, 0) AS BIGINT)",
    "sum": "sum(e.s) {inside}",
    "mean": "sum(e.s) {inside} / sum(e.n) {inside}",
}
TILE_ALL = {
    **TILE_SUMS,
    "min": "min(e.mn) {inside}",
    "max": "max(e.mx) {inside}",
    "last": "arg_max(e.l, e.ts) {inside}",
}
EVENT_SUMS = {"count": "count(e.v) {inside}", "sum": "sum(e.v) {inside}", "mean": "avg(e.v) {inside}"}
BUILT_SUMS = built(", count(v) AS n, sum(v) AS s")
BUILT_ALL = built(", count(v) AS n, sum(v) AS s, min(v) AS mn, max(v) AS mx, arg_max(v, ts) AS l")
EVENTS, TILES = "'{folder}/events.parquet'", "'{folder}/tiles.parquet'"

SUM_PEERS = {
    "range join of events": range_join(EVENTS, EVENT_SUMS),
    "range join of tiles": range_join(BUILT_SUMS, TILE_SUMS),
    "prefix sums, ASOF, of tiles": prefix_asof(BUILT_SUMS),
    "prefix sums, ASOF, of events": prefix_asof("(SELECT user_id, ts, 1 AS n, v AS s FROM '{folder}/events.parquet')"),
}


def stored(name: str, spine: int, *, from_tiles: float, end_to_end: float) -> list[Case]:
    """The two cases over 5M events of 500,000 users, 5,000 of them hot."""
    size = {"events": 5_000_000, "spine": spine, "users": 500_000, "hot": 5_000}
    return [
        Case(
            name=f"rollup_{name}",
            prepare=generate(**size, tiles=True),
            ours=ours_from_tiles,
            peers={"range join of tiles": range_join(TILES, TILE_ALL)},
            target=from_tiles,
        ),
        Case(
            name=f"end_to_end_{name}",
            prepare=generate(**size),
            ours=ours_end_to_end,
            # A range join of the 5M events themselves is slower than this at either size, and would take minutes.
            peers={"range join of tiles": range_join(BUILT_ALL, TILE_ALL)},
            target=end_to_end,
        ),
    ]


CASES = [
    Case(
        name="sums_2m_100k_uniform",
        prepare=generate(events=2_000_000, spine=100_000, users=100_000, hot=0),
        ours=ours_from_events,
        peers=SUM_PEERS,
        target=0.6,
    ),
    Case(
        name="sums_2m_100k_skewed",
        prepare=generate(events=2_000_000, spine=100_000, users=100_000, hot=1_000),
        ours=ours_from_events,
        peers=SUM_PEERS,
        target=0.35,
    ),
    *stored("5m_100k", 100_000, from_tiles=0.5, end_to_end=0.85),
    *stored("5m_400k", 400_000, from_tiles=0.3, end_to_end=0.6),
]

if __name__ == "__main__":
    run(__doc__ or "", __file__, CASES)
