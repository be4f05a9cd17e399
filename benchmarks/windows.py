"""Rolling windows of 1, 7 and 30 days: ours beside the best forms of DuckDB that we know of.

Sums from Parquet events to the answer; then each family of functions from stored one-hour tiles, beside DuckDB over
tiles of the same length (or over the events, where tiles do not help it); then the same with building the tiles; then
20 million events within 2 GB of memory; then how our cost grows. `--full` adds more windows and views.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
from measuring import Case, Form, Growth, run
from peers import sql
from peers.rolling import distinct_lists, prefix_asof, range_join
from window_data import HOUR_US, Size, Tiles, prepare

from featurekit_dagster.domain.aggregation import AggregateFeature, partial_columns
from featurekit_dagster.domain.schema import Field, Float64, Int64, String
from featurekit_dagster.domain.windows import TimeWindow
from featurekit_dagster.engine.buckets import Rows, asked_only, roll_up_in_buckets
from featurekit_dagster.engine.duck import connect
from featurekit_dagster.engine.tiles import build_tiles, event_tiles

DAYS = (1, 7, 30)
TEN_DAYS = tuple(range(3, 31, 3))
V, C, K = Field("v", Float64), Field("c", String), Field("k", Int64)
SUMS = ("count", "sum", "mean")
ALL = (*SUMS, "min", "max", "last")
# DuckDB hands rows over in batches of so many.
BATCH_ROWS = 122_880


def features(functions: Sequence[str], days: Sequence[int] = DAYS) -> list[AggregateFeature]:
    columns = {"last_distinct": C, "first_distinct": C, "approx_count_distinct": K}
    return [
        AggregateFeature(
            name=f"{function}_{day}",
            column=columns.get(function, V),
            function=function,
            window=TimeWindow(timedelta(day)),
            n=3 if function.startswith(("last_", "first_")) else 0,
            precision={"approx_count_distinct": 8, "approx_percentile": 100}.get(function, 0),
            percentile=0.5 if function == "approx_percentile" else 0.0,
        )
        for function in functions
        for day in days
    ]


def probes(con: duckdb.DuckDBPyConnection, folder: Path) -> pa.Table:
    return con.sql(f"SELECT row_id, user_id, edge AS _edge FROM '{folder}/spine.parquet'").to_arrow_table()


def answer(rows: Rows, asked: pa.Table, wanted: Sequence[AggregateFeature]) -> pa.Table:
    found = roll_up_in_buckets(rows, asked, keys=("user_id",), tile_us=HOUR_US, features=wanted)
    return found.add_column(0, "row_id", asked.column("row_id"))


def ours_from_events(folder: Path) -> pa.Table:
    wanted = features(SUMS)
    with connect() as con:
        rows = event_tiles(
            con, f"'{folder}/events.parquet'", keys=["user_id"], timestamp="ts", partials=partial_columns(wanted)
        )
        return answer(rows, probes(con, folder), wanted)


def ours_end_to_end(folder: Path) -> pa.Table:
    wanted = features(ALL)
    with connect() as con:
        tiles = build_tiles(
            con,
            f"'{folder}/events.parquet'",
            keys=["user_id"],
            timestamp="ts",
            tile_us=HOUR_US,
            partials=partial_columns(wanted),
        )
        return answer(tiles, probes(con, folder), wanted)


def ours_from_tiles(
    file: str, functions: Sequence[str], days: Sequence[int] = DAYS, *, views: int = 1, memory: str | None = None
) -> Form:
    """Roll up stored tiles as they are read, for one view or for several of the same size."""

    def form(folder: Path) -> pa.Table:
        if memory is not None:
            os.environ["FEATUREKIT_MEMORY"] = memory
        wanted = features(functions, days)
        names = ", ".join(partial.name for partial in partial_columns(wanted))
        tiles = f"(SELECT user_id, _anchor_time, {names} FROM '{folder}/{file}.parquet')"
        with connect() as con:
            asked = probes(con, folder)
            for _ in range(views):
                query = asked_only(con, tiles, asked, keys=("user_id",))
                found = answer(con.sql(query).to_arrow_reader(BATCH_ROWS), asked, wanted)
        return found

    return form


def repeated(form: Form, views: int) -> Form:
    """The same for several views, one after the other."""
    return lambda folder: [form(folder) for _ in range(views)][0]


TILE_SUMS = {
    "count": "CAST(coalesce(sum(e.n) {inside}, 0) AS BIGINT)",
    "sum": "sum(e.s) {inside}",
    "mean": "sum(e.s) {inside} / sum(e.n) {inside}",
}
TILE_EXTREMES = {"min": "min(e.mn) {inside}", "max": "max(e.mx) {inside}"}
TILE_LAST = {"last": "arg_max(e.l, e.ts) {inside}"}
TILE_ALL = {**TILE_SUMS, **TILE_EXTREMES, **TILE_LAST}
TILE_VARIANCES = {
    name: "CASE WHEN sum(e.n) {inside} > " + str(least) + " THEN (sum(e.q) {inside} - sum(e.s) {inside} "
    "* sum(e.s) {inside} / sum(e.n) {inside}) / (sum(e.n) {inside} - " + str(least) + ") END"
    for name, least in (("var_samp", 1), ("var_pop", 0))
}
TILE_LISTS = {
    "last_n": "coalesce(list_slice(flatten(list(e.newest ORDER BY e.ts) {inside}), -3, -1), [])",
    "first_n": "coalesce(list_slice(flatten(list(e.oldest ORDER BY e.ts) {inside}), 1, 3), [])",
}
EVENT_SUMS = {"count": "count(e.v) {inside}", "sum": "sum(e.v) {inside}", "mean": "avg(e.v) {inside}"}
EVENT_LISTS = {
    "last_n": "coalesce(list_reverse(max_by(e.v, e.ts, 3) {inside}), [])",
    "first_n": "coalesce(min_by(e.v, e.ts, 3) {inside}, [])",
}
EVENT_ESTIMATES = {
    "approx_count_distinct": "coalesce(approx_count_distinct(e.k) {inside}, 0)",
    "approx_percentile": "approx_quantile(e.v, 0.5) {inside}",
}
PREFIX_SUMS = {
    "count": "CAST({n} AS BIGINT)",
    "sum": "CASE WHEN {n} > 0 THEN {s} END",
    "mean": "CASE WHEN {n} > 0 THEN {s} / {n} END",
}
PREFIX_VARIANCES = {
    name: "CASE WHEN {n} > " + str(least) + " THEN ({q} - {s} * {s} / {n}) / ({n} - " + str(least) + ") END"
    for name, least in (("var_samp", 1), ("var_pop", 0))
}
SUMS_SQL = ", count(v) AS n, sum(v) AS s"
VARIANCES_SQL = f"{SUMS_SQL}, sum(v * v) AS q"
ALL_SQL = f"{SUMS_SQL}, min(v) AS mn, max(v) AS mx, arg_max(v, ts) AS l"
LISTS_SQL = ", list_reverse(max_by(v, ts, 3)) AS newest, min_by(v, ts, 3) AS oldest"
EVENTS = "'{folder}/events.parquet'"


def stored(name: str) -> str:
    """SQL of the peer's own file of tiles."""
    return f"'{{folder}}/{name}_peer.parquet'"


def built(partials: str) -> str:
    """SQL of tiles that are built on the fly."""
    return "(" + sql("tiles", events="{folder}/events.parquet", partials=partials) + ")"


TILES = {
    "all": Tiles("all", features(ALL), ALL_SQL),
    "sums": Tiles("sums", features(SUMS), SUMS_SQL),
    "variances": Tiles("variances", features(("var_samp", "var_pop")), VARIANCES_SQL),
    "lists": Tiles("lists", features(("last_n", "first_n")), LISTS_SQL),
    "distinct": Tiles("distinct", features(("last_distinct", "first_distinct"))),
    "approx": Tiles("approx", features(("approx_count_distinct", "approx_percentile"))),
}


def joined(tiles: str, expressions: Mapping[str, str], days: Sequence[int] = DAYS) -> dict[str, Form]:
    return {"range join of tiles": range_join(stored(tiles), expressions, days)}


def prefixes(tiles: str, columns: str, expressions: Mapping[str, str], days: Sequence[int] = DAYS) -> dict[str, Form]:
    return {"prefix sums, ASOF, of tiles": prefix_asof(stored(tiles), dict(zip(columns, columns, strict=True)),
                                                       expressions, days)}  # fmt: skip


def families(size: Size) -> dict[str, tuple[str, tuple[str, ...], dict[str, Form]]]:
    """Per family: its file of tiles, its functions, and the peers that are worth their time at this size."""
    few = size.spine <= 100_000
    lists = {"range join of events": range_join(EVENTS, EVENT_LISTS, DAYS)} if few else joined("lists", TILE_LISTS)
    # DuckDB's estimates of 400,000 rows need more memory than it gets.
    estimates = {"range join of events": range_join(EVENTS, EVENT_ESTIMATES, DAYS)} if few else {}
    return {
        "all": ("all", ALL, joined("all", TILE_ALL)),
        "sums": ("all", SUMS, {**joined("all", TILE_SUMS), **prefixes("all", "ns", PREFIX_SUMS)}),
        "variances": ("variances", ("var_samp", "var_pop"),
                      {**joined("variances", TILE_VARIANCES), **prefixes("variances", "nsq", PREFIX_VARIANCES)}),
        "extremes": ("all", ("min", "max"), joined("all", TILE_EXTREMES)),
        "last": ("all", ("last",), joined("all", TILE_LAST)),
        "lists": ("lists", ("last_n", "first_n"), lists),
        "distinct": ("distinct", ("last_distinct", "first_distinct"), {"range join of events": distinct_lists(DAYS)}),
        "approx": ("approx", ("approx_count_distinct", "approx_percentile"), estimates),
    }  # fmt: skip


def family_cases(name: str, size: Size, target: float) -> list[Case]:
    return [
        Case(
            name=f"{family}_{name}",
            prepare=prepare(size, TILES[tiles]),
            ours=ours_from_tiles(tiles, functions),
            peers=peers,
            target=None if family == "approx" else target,
            # Sums of squares lose digits where the values of a window lie close together.
            tolerance=1e-7 if family == "variances" else 1e-9,
            is_estimate=family == "approx",
        )
        for family, (tiles, functions, peers) in families(size).items()
    ]


def sums_from_events(name: str, hot: int, target: float) -> Case:
    one = {"n": "1", "s": "v"}
    return Case(
        name=f"events_2m_100k_{name}",
        prepare=prepare(Size(2_000_000, 100_000, 100_000, hot)),
        ours=ours_from_events,
        peers={
            "range join of events": range_join(EVENTS, EVENT_SUMS, DAYS),
            "range join of tiles": range_join(built(SUMS_SQL), TILE_SUMS, DAYS),
            "prefix sums, ASOF, of events": prefix_asof(EVENTS, one, PREFIX_SUMS, DAYS),
        },
        target=target,
    )


def end_to_end(name: str, size: Size, target: float) -> Case:
    # A range join of the 5M events themselves is slower than this at either size, and would take minutes.
    return Case(
        name=f"end_to_end_{name}",
        prepare=prepare(size),
        ours=ours_end_to_end,
        peers={"range join of tiles": range_join(built(ALL_SQL), TILE_ALL, DAYS)},
        target=target,
    )


def grown(name: str, size: Size, days: Sequence[int] = DAYS) -> Case:
    return Case(name=f"growth_{name}", prepare=prepare(size, TILES["all"]), ours=ours_from_tiles("all", ALL, days))


def grid_case(windows: int, views: int) -> Case:
    days = {1: (30,), 3: DAYS, 10: TEN_DAYS}[windows]
    peers = {**joined("sums", TILE_SUMS, days), **prefixes("sums", "ns", PREFIX_SUMS, days)}
    return Case(
        name=f"grid_{windows}_windows_{views}_views",
        prepare=prepare(LARGE, TILES["sums"]),
        ours=ours_from_tiles("sums", SUMS, days, views=views),
        peers={name: repeated(form, views) for name, form in peers.items()},
        target=0.3,
    )


SMALL, LARGE = Size(5_000_000, 100_000, 500_000, 5_000), Size(5_000_000, 400_000, 500_000, 5_000)
HUGE = Size(20_000_000, 1_000_000, 2_000_000, 20_000)
EVENT_STEPS = {
    "growth_events_1m": 1_250_000,
    "growth_events_2m": 2_500_000,
    "growth_events_5m": 5_000_000,
}
SPINE_STEPS = {"growth_spine_50k": 50_000, "growth_spine_100k": 100_000, "growth_spine_400k": 400_000}
WINDOW_STEPS = {"growth_windows_1": (30,), "growth_windows_3": DAYS, "growth_windows_10": TEN_DAYS}

CASES = [
    sums_from_events("uniform", 0, 0.6),
    sums_from_events("skewed", 1_000, 0.35),
    *family_cases("5m_100k", SMALL, 0.5),
    *family_cases("5m_400k", LARGE, 0.3),
    end_to_end("5m_100k", SMALL, 0.85),
    end_to_end("5m_400k", LARGE, 0.6),
    Case(
        name="sums_20m_1m_in_2gb",
        prepare=prepare(HUGE, TILES["sums"]),
        ours=ours_from_tiles("sums", SUMS, memory="2GB"),
        peers=prefixes("sums", "ns", PREFIX_SUMS),
        target=0.3,
        most_mb=2_400,
    ),
    *(
        grown(name.removeprefix("growth_"), Size(events, 100_000, 500_000, 5_000))
        for name, events in EVENT_STEPS.items()
    ),
    *(
        grown(name.removeprefix("growth_"), Size(5_000_000, spine, 500_000, 5_000))
        for name, spine in SPINE_STEPS.items()
    ),
    *(grown(name.removeprefix("growth_"), SMALL, days) for name, days in WINDOW_STEPS.items()),
]
FULL_CASES = [grid_case(windows, views) for windows in (1, 3, 10) for views in (1, 3, 10)]
GROWTH = [
    Growth("events", EVENT_STEPS),
    Growth("spine", SPINE_STEPS),
    Growth("windows", {name: len(days) for name, days in WINDOW_STEPS.items()}),
]

if __name__ == "__main__":
    run(__doc__ or "", __file__, CASES, full=FULL_CASES, growth=GROWTH)
