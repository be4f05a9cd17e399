"""The rows of the comparison with Feast, and who says what is right about them.

Both sides are asked where their rules agree. Ours sees the rows of an hour at its end, Feast sees a row at its own
time: the spine asks at full hours, and no row lies on one. A ttl ends alike there. A NULL key has no rows. Feast has no
rule for rows of equal key and time, so a cell whose row is one of those is not judged.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq

VIEW_ROWS, SPINE_ROWS, USERS, SHOPS, DAYS = 760_000, 500_000, 50_000, 20_000, 365
START = datetime(2024, 1, 1, tzinfo=UTC)
FEATURES = ("amount", "number")
# Name, join keys, ttl.
VIEWS: tuple[tuple[str, tuple[str, ...], timedelta | None], ...] = (
    ("by_user", ("user_id",), None),
    ("by_shop", ("shop_id",), timedelta(days=90)),
    ("by_pair", ("user_id", "shop_id"), timedelta(days=180)),
)


def generate(folder: Path, scale: int) -> None:
    """Write one Parquet file per view, named after it, and `spine.parquet`; the same rows every time.

    Args:
        folder: Where the files go.
        scale: What all sizes are divided by.
    """
    from featurekit_dagster.engine.duck import connect  # Feast's environment has nothing of ours, and reads VIEWS

    with connect() as con:
        for number, (name, keys, _) in enumerate(VIEWS):
            # One row in a hundred has the key and time of the one before.
            drawn = _drawn("(i - (i % 100 = 99)::INT)", 10 * number, "1 + {} % 3_599_999_999", scale)
            con.execute(
                f"COPY (SELECT {', '.join(keys)}, ts, amount, number FROM (SELECT {drawn}, i AS number, "
                f"hash(i, 99) % 1000 / 8.0 AS amount FROM range({VIEW_ROWS // scale}) r(i)) "
                f"ORDER BY ts, number) TO '{folder}/{name}.parquet'"
            )
        con.execute(
            f"COPY ({_spine_query(scale)}) TO '{folder}/spine.parquet'",
        )


def _drawn(row: str, salt: int, within_hour: str, scale: int) -> str:
    """Return the columns `user_id`, `shop_id` (one of four of the user) and `ts`, drawn from a row's number."""

    def draw(number: int) -> str:
        return f"hash({row}, {salt + number})"

    user = f"({draw(0)} % {USERS // scale})"
    start_us = f"{draw(1)} % {DAYS * 24} * 3_600_000_000 + {within_hour.format(draw(2))}"
    return (
        f"{user}::BIGINT AS user_id, 'shop-' || hash({user} * 4 + {draw(3)} % 4) % {SHOPS // scale} AS shop_id, "
        f"TIMESTAMPTZ '{START}' + to_microseconds(({start_us})::BIGINT) AS ts"
    )


def _spine_query(scale: int) -> str:
    """Return the query of the spine: of a hundred rows, one is there twice and one repeats a key and time.

    Two have a NULL user, two a NULL shop, one a user that nobody knows; one of a thousand has no time. No order.
    """
    return (
        "SELECT row_id, shop_id: CASE WHEN kind NOT IN (17, 27) THEN shop_id END, "
        "user_id: CASE WHEN kind = 57 THEN -1 - user_id WHEN kind NOT IN (7, 27) THEN user_id END, "
        "event_timestamp: CASE WHEN row % 1000 <> 37 THEN ts END "
        f"FROM (SELECT i, row, row % 100 AS kind, row_id, {_drawn('row', 70, '3_600_000_000', scale)} "
        "FROM (SELECT i, i - (i % 100 = 49)::INT AS row_id, i - (i % 100 IN (49, 99))::INT AS row "
        f"FROM range({SPINE_ROWS // scale}) r(i))) ORDER BY hash(i)"
    )


@dataclass(frozen=True)
class Verdict:
    """What became of the spine's rows, and how many of the judged cells differ."""

    lost: int
    multiplied: int
    differing: int
    in_order: bool

    @property
    def flawless(self) -> bool:
        """Whether every row came back once, in its place and right."""
        return self.in_order and not (self.lost or self.multiplied or self.differing)


class Judge:
    """Knows what is right by plain SQL: the newest row of each key by an as-of join, gone when its ttl is over.

    Args:
        folder: Where the rows are, and the answers (`<form>.answer.parquet`).
    """

    def __init__(self, folder: Path) -> None:
        from featurekit_dagster.engine.duck import connect  # as in `generate`

        self.folder = folder
        self.con = connect()
        self.con.execute(f"CREATE VIEW spine AS FROM '{folder}/spine.parquet'")
        columns, joins = ["s.row_id"], []
        for name, keys, ttl in VIEWS:
            same = " AND ".join(f"{name}.{key} = s.{key}" for key in keys)
            joins.append(
                f"ASOF LEFT JOIN (SELECT {', '.join(keys)}, ts, count(*) AS rows, any_value(amount) AS amount, "
                f"any_value(number) AS number FROM '{folder}/{name}.parquet' GROUP BY ALL) {name} "
                f"ON {same} AND {name}.ts <= s.event_timestamp"
            )
            ttl_us = None if ttl is None else ttl // timedelta(microseconds=1)
            alive = "true" if ttl_us is None else f"{name}.ts + to_microseconds({ttl_us}) >= s.event_timestamp"
            columns.append(f"coalesce({name}.rows = 1 OR NOT {alive}, true) AS {name}_judged")
            columns += [f"CASE WHEN {alive} THEN {name}.{feature} END AS {name}__{feature}" for feature in FEATURES]
        self.con.execute(
            f"CREATE TABLE expected AS SELECT {', '.join(columns)} FROM (SELECT DISTINCT * FROM spine) s "
            + " ".join(joins)
        )

    def cells(self) -> tuple[int, int]:
        """Return how many cells are judged, and how many of them hold a value."""
        judged = " + ".join(f"2 * {name}_judged::INT" for name, _, _ in VIEWS)
        filled = " + ".join(f"2 * ({name}_judged AND {name}__number IS NOT NULL)::INT" for name, _, _ in VIEWS)
        query = f"SELECT sum({judged})::BIGINT, sum({filled})::BIGINT FROM spine JOIN expected USING (row_id)"
        (counts,) = self.con.sql(query).fetchall()
        return counts[0], counts[1]

    def verdict(self, form: str) -> Verdict:
        """Judge a form's answer; a spine row is known by its `row_id`."""
        answer = f"'{self.folder}/{form}.answer.parquet'"
        counts = "(SELECT row_id, count(*) AS rows FROM {} GROUP BY row_id)"
        more = "sum(greatest(coalesce({}.rows, 0) - coalesce({}.rows, 0), 0))::BIGINT"
        ((lost, multiplied),) = self.con.sql(
            f"SELECT {more.format('s', 'a')}, {more.format('a', 's')} "
            f"FROM {counts.format('spine')} s FULL JOIN {counts.format(answer)} a USING (row_id)"
        ).fetchall()
        # A frame of pandas spells a missing number NaN.
        differs = " + ".join(
            f"({name}_judged AND nullif(a.{name}__{feature}::DOUBLE, 'NaN'::DOUBLE) "
            f"IS DISTINCT FROM e.{name}__{feature}::DOUBLE)::INT"
            for name, _, _ in VIEWS
            for feature in FEATURES
        )
        query = f"SELECT coalesce(sum({differs}), 0)::BIGINT FROM {answer} a JOIN expected e USING (row_id)"
        ((differing,),) = self.con.sql(query).fetchall()
        files = ("spine.parquet", f"{form}.answer.parquet")
        asked, got = (pq.read_table(self.folder / file, columns=["row_id"]) for file in files)
        in_order = asked["row_id"].to_pylist() == got["row_id"].to_pylist()
        return Verdict(lost, multiplied, differing, in_order)
