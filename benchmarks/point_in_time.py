"""Latest values: three views of 760,000 rows each joined to a spine, beside DuckDB's ASOF join and polars' join_asof.

Every form reads Parquet and answers two features per view in the order of the spine.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa
from measuring import Case, run
from peers import sql

from featurekit_dagster.engine.columns import to_column
from featurekit_dagster.engine.duck import connect
from featurekit_dagster.engine.point_in_time import latest_positions

VIEWS = 3
VIEW_ROWS = 760_000
USERS = 50_000
YEAR_US = 365 * 24 * 3_600_000_000


def generate(spine: int) -> Callable[[Path, bool], None]:
    """Write three views over one year and a spine over the same year."""

    def prepare(folder: Path, quick: bool) -> None:
        scale = 50 if quick else 1
        start, users = "TIMESTAMP '2024-01-01'", USERS // scale

        def rows(salt: int) -> str:
            return (
                f"CAST(hash(i, {salt}) % {users} AS BIGINT) AS user_id, "
                f"{start} + to_microseconds(CAST(hash(i, {salt + 1}) % {YEAR_US} AS BIGINT)) AS ts"
            )

        with connect() as con:
            for view in range(VIEWS):
                con.execute(
                    f"COPY (SELECT {rows(10 * view)}, hash(i, 99) % 1000 / 8.0 AS x{view}, i AS y{view} "
                    f"FROM range({VIEW_ROWS // scale}) r(i) ORDER BY ts) TO '{folder}/view{view}.parquet'"
                )
            con.execute(
                f"COPY (SELECT i AS row_id, {rows(50)} FROM range({spine // scale}) r(i)) TO '{folder}/spine.parquet'"
            )

    return prepare


def ours(folder: Path) -> pa.Table:
    with connect() as con:
        spine = con.sql(f"SELECT row_id, user_id, ts FROM '{folder}/spine.parquet'").to_arrow_table()
        answer = spine.select(["row_id"])
        for view in range(VIEWS):
            rows = con.sql(f"SELECT user_id, ts, x{view}, y{view} FROM '{folder}/view{view}.parquet'").to_arrow_table()
            found = latest_positions(rows, spine, keys=["user_id"], row_time="ts", probe_time="ts")
            places = to_column(found, found >= 0, pa.int64())
            for name in (f"x{view}", f"y{view}"):
                answer = answer.append_column(name, rows.column(name).combine_chunks().take(places))
        return answer


def duckdb_asof(folder: Path) -> pa.Table:
    columns = ", ".join(f"v{view}.x{view}, v{view}.y{view}" for view in range(VIEWS))
    joins = "\n".join(
        f"ASOF LEFT JOIN '{folder}/view{view}.parquet' v{view} ON v{view}.user_id = s.user_id AND v{view}.ts <= s.ts"
        for view in range(VIEWS)
    )
    with connect() as con:
        return con.sql(sql("asof_latest", folder=str(folder), columns=columns, joins=joins)).to_arrow_table()


def polars_asof(folder: Path) -> pa.Table:
    spine = pl.read_parquet(folder / "spine.parquet").sort("ts")
    for view in range(VIEWS):
        rows = pl.read_parquet(folder / f"view{view}.parquet").sort("ts")
        spine = spine.join_asof(rows, on="ts", by="user_id", strategy="backward", check_sortedness=False)
    names = [name for view in range(VIEWS) for name in (f"x{view}", f"y{view}")]
    return spine.sort("row_id").select("row_id", *names).to_arrow()


CASES = [
    Case(
        name=f"latest_3x760k_{size // 1000}k",
        prepare=generate(size),
        ours=ours,
        peers={"DuckDB ASOF join": duckdb_asof, "polars join_asof": polars_asof},
        target=1.2,
        against="DuckDB ASOF join",
    )
    for size in (100_000, 500_000)
]

if __name__ == "__main__":
    run(__doc__ or "", __file__, CASES)
