"""Rolling windows in DuckDB's SQL: the best formulation of each family that we know of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from featurekit_dagster.engine.duck import connect
from peers import sql

Form = Callable[[Path], pa.Table]


def range_join(rows: str, expressions: Mapping[str, str], days: Sequence[int]) -> Form:
    """A range join; `expressions` say how a function is computed over the rows `{inside}` the window."""

    def form(folder: Path) -> pa.Table:
        columns = [
            f"{text.format(inside=f'FILTER (e.ts >= s.edge - INTERVAL {day} DAY)')} AS {function}_{day}"
            for function, text in expressions.items()
            for day in days
        ]
        return _run("range_join", folder, rows=rows.format(folder=folder), features=",\n  ".join(columns),
                    widest=str(max(days)))  # fmt: skip

    return form


def prefix_asof(tiles: str, columns: Mapping[str, str], expressions: Mapping[str, str], days: Sequence[int]) -> Form:
    """Prefix sums; `columns` are what is summed, `expressions` the answers from the sums `{name}` of a window."""

    def form(folder: Path) -> pa.Table:
        running = (f"sum({text}) OVER (PARTITION BY user_id ORDER BY ts) AS {name}" for name, text in columns.items())
        found = (f"coalesce(p.{name}, 0) AS {name}" for name in columns)
        sides = (f"max({name}) FILTER (days = {day}) AS {name}{day}" for name in columns for day in (0, *days))
        features = (
            f"{text.format(**{name: f'({name}0 - {name}{day})' for name in columns})} AS {function}_{day}"
            for function, text in expressions.items()
            for day in days
        )
        return _run(
            "prefix_asof",
            folder,
            tiles=tiles.format(folder=folder),
            ends=str([0, *days]),
            running=", ".join(running),
            found=", ".join(found),
            sides=", ".join(sides),
            features=",\n  ".join(features),
        )

    return form


def distinct_lists(days: Sequence[int]) -> Form:
    """The three newest and the three oldest distinct values, in order of time."""

    def form(folder: Path) -> pa.Table:
        inside = {day: f"FILTER (e.ts >= s.edge - INTERVAL {day} DAY)" for day in days}
        times = [f"{side}(e.ts) {inside[day]} AS {side}{day}" for side in ("max", "min") for day in days]
        lists = [f"{side}_by(c, {side}{day}, 3) FILTER ({side}{day} IS NOT NULL) AS {side}_list{day}"
                 for side in ("max", "min") for day in days]  # fmt: skip
        features = [f"coalesce(list_reverse(max_list{day}), []) AS last_distinct_{day}" for day in days]
        features += [f"coalesce(min_list{day}, []) AS first_distinct_{day}" for day in days]
        return _run("distinct_lists", folder, times=",\n    ".join(times), lists=",\n    ".join(lists),
                    features=",\n  ".join(features), widest=str(max(days)))  # fmt: skip

    return form


def _run(name: str, folder: Path, **places: str) -> pa.Table:
    with connect() as con:
        return con.sql(sql(name, folder=str(folder), **places)).to_arrow_table()
