"""Cases of our own in the format of the folder, answered by the oracle: run this module to write them again.

They hold what the reference folder's cases leave out: lifetimes, small tiles, compound keys, null keys, ranges off
every grid, other names of columns, other types, refusals.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.conformance.cases import Case, as_time, build_view
from tests.conformance.judged import oracle_view
from tests.support import oracle, oracle_ranges

FOLDER = Path(__file__).parent / "extra"
FIRST = datetime.fromisoformat("2024-01-01")
MICROSECOND, HOUR, DAY = timedelta(microseconds=1), timedelta(hours=1), timedelta(days=1)
TIME = pa.timestamp("us")
EVENTS = pa.schema(
    [
        ("user_id", pa.string()),
        ("shop", pa.int64()),
        ("ts", TIME),
        ("v", pa.float64()),
        ("k", pa.int64()),
        ("s", pa.string()),
        ("ok", pa.bool_()),
        ("seen", TIME),
    ]
)
Json = dict[str, Any]


def seconds(duration: timedelta) -> Json:
    return {"seconds": duration.total_seconds()}


def window(size: timedelta, offset: timedelta = 0 * DAY) -> Json:
    return {"kind": "window", "size_s": size.total_seconds(), "offset_s": offset.total_seconds()}


def aggregate(column: str, dtype: str, function: str, over: Json, args: Any = None, name: str | None = None) -> Json:
    return {"column": column, "dtype": dtype, "function": function, "window": over, "args": args, "name": name}


def aggregates(over: Iterable[Json]) -> list[Json]:
    """Return plain functions and lists over each window."""
    return [
        aggregate(column, dtype, function, one, args)
        for one in over
        for column, dtype, function, args in (
            ("v", "float", "sum", None),
            ("k", "int", "min", None),
            ("k", "int", "max", None),
            ("s", "str", "count", None),
            ("s", "str", "last", [2]),
            ("s", "str", "first_distinct", [2]),
        )
    ]


def declarations() -> Iterator[tuple[str, Json, list[Json]]]:
    """Yield name, declaration and queries of every case."""
    attributes = [("v", "float"), ("k", "int"), ("s", "str"), ("ok", "bool"), ("seen", "timestamp")]
    plain = {"attributes": [{"name": name, "dtype": dtype} for name, dtype in attributes]}
    lifetime, uneven = {"kind": "lifetime"}, span(FIRST + 30 * HOUR + 7 * MICROSECOND, FIRST + 5 * DAY + 13 * HOUR)
    ranged = {"method": "get_features_in_range", **uneven}
    events = {"method": "get_features_for_events"}
    old = {"method": "get_historical_features", **uneven}
    yield (
        "x_lifetime_1h",
        {
            "aggregation_interval": seconds(HOUR),
            "batch_schedule": seconds(6 * HOUR),
            "data_delay": seconds(HOUR),
            "lifetime_start_time": "2024-01-02T03:00:00",
            "aggregates": aggregates([lifetime, window(DAY)]),
        },
        [events, ranged, old],
    )
    yield (
        "x_10m_two_keys_one_entity",
        {
            "entities": [["user_id", "shop"]],
            "aggregation_interval": seconds(HOUR / 6),
            "batch_schedule": seconds(HOUR),
            "aggregates": aggregates([window(HOUR / 2), window(3 * HOUR, -HOUR / 6)]),
        },
        [events, ranged, old],
    )
    yield (
        "x_ttl_off_schedule",
        {
            "batch_schedule": seconds(HOUR),
            "ttl": seconds(1.5 * HOUR),
            "data_delay": seconds(HOUR / 3),
            **plain,
        },
        [events, ranged, ranged | {"max_lookback": seconds(2 * DAY)}, old],
    )
    yield (
        "x_stream_ttl_two_entities",
        {
            "kind": "stream",
            "entities": [["shop"], ["user_id"]],
            "batch_schedule": seconds(DAY),
            "ttl": seconds(7 * HOUR),
            **plain,
        },
        [events, ranged, ranged | {"entities": [{"shop": 1, "user_id": "u1"}, {"shop": 9, "user_id": "none"}]}],
    )
    yield (
        "x_stream_interval_named",
        {
            "kind": "stream",
            "mode": "TIME_INTERVAL",
            "aggregation_interval": seconds(2 * HOUR),
            "aggregates": [
                aggregate("ok", "bool", "last", window(DAY), name="last_ok"),
                aggregate("ok", "bool", "last", window(DAY), [3], name="oks"),
                aggregate("seen", "timestamp", "last", window(2 * DAY), name="last_seen"),
                aggregate("seen", "timestamp", "count", window(2 * DAY), name="n_seen"),
                aggregate("k", "int", "mean", window(4 * HOUR, -2 * HOUR)),
            ],
        },
        [events | {"timestamp_key": "asked_at"}, ranged],
    )
    yield (
        "x_stream_compaction",
        {
            "kind": "stream",
            "compaction_enabled": True,
            "batch_schedule": seconds(DAY),
            "aggregates": aggregates([window(5 * HOUR), window(DAY, -HOUR)]),
        },
        [events, ranged, {"method": "get_partial_aggregates", **uneven, **refused()}],
    )
    yield (
        "x_continuous_lifetime",
        {
            "kind": "stream",
            "mode": "CONTINUOUS",
            "lifetime_start_time": "2024-01-02T00:00:00",
            "aggregates": [
                aggregate("v", "float", "stddev_samp", lifetime),
                aggregate("k", "int", "sum", lifetime),
                aggregate("s", "str", "approx_count_distinct", window(2 * DAY), []),
                aggregate("v", "float", "approx_percentile", window(2 * DAY), [0.5]),
            ],
        },
        [events, ranged, {"method": "get_partial_aggregates", **uneven, **refused()}],
    )
    yield (
        "x_secondary_key_range",
        {
            "aggregation_secondary_key": "s",
            "aggregation_interval": seconds(6 * HOUR),
            "batch_schedule": seconds(DAY),
            "aggregates": [aggregate("k", "int", f, window(n * DAY)) for n in (1, 2) for f in ("sum", "count")],
            "source_columns_used": ["k", "s"],
        },
        [events, ranged],
    )
    yield (
        "x_series_range",
        {
            "aggregation_interval": seconds(HOUR),
            "batch_schedule": seconds(2 * HOUR),
            "aggregates": [
                aggregate("v", "float", "count", series(4, 1, 2)),
                aggregate("k", "int", "max", series(6, 2, 1)),
            ],
        },
        [events, ranged],
    )
    before = span(FIRST - 3 * DAY, FIRST - 2 * DAY)
    yield (
        "x_refusals",
        {
            "aggregation_interval": seconds(HOUR),
            "aggregates": [aggregate("v", "float", "sum", window(HOUR))],
        },
        [
            ranged | before | refused(),
            ranged | {"max_lookback": seconds(DAY)} | refused(),
            {"method": "get_historical_features", "timestamp_key": "ts", **uneven, **refused()},
            {"method": "run_transformation", "start_time": uneven["start_time"], **refused()},
            {"method": "run", "aggregation_level": "whole", **uneven, **refused()},
        ],
    )


def series(start: int, size: int, step: int) -> Json:
    hours = {"series_start_s": -start, "series_end_s": 0, "step_s": step, "size_s": size}
    return {"kind": "series", **{name: value * 3600 for name, value in hours.items()}}


def span(start: datetime, end: datetime) -> Json:
    return {"start_time": start.isoformat(), "end_time": end.isoformat()}


def refused() -> Json:
    return {"refused": True, "error_type": "TectonValidationError"}


def made_events(choose: random.Random) -> list[Json]:
    """Return sixty events of three users, one without a name, some on the edges of hours, no two at one time."""
    rows, met = [], set()
    while len(rows) < 60:
        at = (
            FIRST
            + choose.randrange(6 * 24) * HOUR
            + choose.choice([0 * HOUR, -MICROSECOND, MICROSECOND, choose.randrange(3_600_000_000) * MICROSECOND])
        )
        if at in met:
            continue
        met.add(at)
        values = {
            "v": choose.choice([None, round(choose.uniform(-50, 50), 3)])
            if choose.random() < 0.3
            else choose.uniform(0, 9),
            "k": None if choose.random() < 0.1 else choose.randrange(-100, 100),
            "s": choose.choice([None, "a", "b", "c"]),
            "ok": choose.choice([None, True, False]),
            "seen": choose.choice([None, at - DAY, FIRST]),
        }
        rows.append(
            {"user_id": choose.choice(["u1", "u2", None]), "shop": choose.choice([1, 2, None]), "ts": at, **values}
        )
    return rows


def made_spine(choose: random.Random, events: list[Json], time: str) -> list[Json]:
    """Return questions about known and unknown keys, near events and anywhere."""
    rows = []
    for number in range(30):
        at = FIRST + choose.randrange(7 * 24 * 60) * HOUR / 60
        if number % 2:
            at = choose.choice(events)["ts"] + choose.choice([0 * HOUR, MICROSECOND, HOUR, DAY, DAY - MICROSECOND])
        keys = {"user_id": choose.choice(["u1", "u2", None, "absent"]), "shop": choose.choice([1, 2, None])}
        rows.append({**keys, time: at, "row_id": number})
    return rows


def write_case(folder: Path, name: str, declaration: Json, queries: list[Json]) -> None:
    """Write a case: its declaration, its inputs, and the oracle's answer to each of its queries."""
    choose, folder = random.Random(name), folder / name
    folder.mkdir(parents=True)
    said = {"kind": "batch", "entities": [["user_id"]], "feature_start_time": "2024-01-02T00:00:00", "name": name}
    said |= {"timestamp_field": "ts", **declaration}
    time = next((q["timestamp_key"] for q in queries if "timestamp_key" in q and "refused" not in q), "ts")
    events = made_events(choose)
    spine = pa.schema([("user_id", pa.string()), ("shop", pa.int64()), (time, TIME), ("row_id", pa.int64())])
    pq.write_table(pa.Table.from_pylist(events, EVENTS), folder / "events.parquet")
    pq.write_table(pa.Table.from_pylist(made_spine(choose, events, time), spine), folder / "spine.parquet")
    case = Case(folder, {"case": name, "engine": "oracle", "declaration": said, "queries": queries})
    for number, query in enumerate(queries):
        query["file"] = f"expected_{number}.parquet"
        if "refused" not in query:
            table = ANSWERS[query["method"]](case, query)
            query |= {"rows": table.num_rows, "columns": table.column_names}
            pq.write_table(table, folder / query["file"])
    (folder / "case.json").write_text(json.dumps(case.content, indent=1) + "\n", encoding="utf-8")


def shown(value: Any) -> Any:
    """Return an answer as a cell: of an estimate, what an exact function says."""
    if isinstance(value, oracle.Roughly):
        return value.count
    if isinstance(value, oracle.Ranked):
        ranked = sorted(value.values)
        return ranked[min(len(ranked) - 1, int(value.percentile * len(ranked)))]
    return [shown(element) for element in value] if isinstance(value, list) else value


def for_events(case: Case, query: Json) -> pa.Table:
    view, judged = build_view(case, case.declarations[0]), oracle_view(case.declarations[0])
    table = case.spine
    rows = table.to_pylist()
    keys = [{name: row[name] for name in view.key_names} for row in rows]
    answers = [
        oracle.answers_at(case.events, k, row[case.spine_time], judged) for k, row in zip(keys, rows, strict=True)
    ]
    for number, name in enumerate(view.feature_names):
        table = table.append_column(f"{view.name}__{name}", pa.array([shown(answer[number]) for answer in answers]))
    return table


def in_range(case: Case, query: Json) -> pa.Table:
    view, judged = build_view(case, case.declarations[0]), oracle_view(case.declarations[0])
    met = {tuple(event[name] for name in view.key_names): None for event in case.events}
    rows = []
    for values in met:
        key = dict(zip(view.key_names, values, strict=True))
        if "entities" in query and key not in query["entities"]:
            continue
        for piece in oracle_ranges.pieces(
            case.events, key, as_time(query["start_time"]), as_time(query["end_time"]), judged
        ):
            told = dict(zip(view.feature_names, map(shown, piece.values), strict=True))
            rows.append({**key, **told, "_valid_from": piece.start, "_valid_to": piece.end})
    return naive(rows)


def history(case: Case, query: Json) -> pa.Table:
    view, judged = build_view(case, case.declarations[0]), oracle_view(case.declarations[0])
    start, end = as_time(query["start_time"]), as_time(query["end_time"])
    return naive(
        [
            {
                **key,
                **dict(zip(view.feature_names, map(shown, values), strict=True)),
                "ts": at,
                "_effective_timestamp": seen,
            }
            for key, values, at, seen in oracle_ranges.history(case.events, view.key_names, start, end, judged)
        ]
    )


def naive(rows: list[Json]) -> pa.Table:
    """Return rows as a table whose times have no zone."""
    return pa.Table.from_pylist(
        [{n: v.replace(tzinfo=None) if isinstance(v, datetime) else v for n, v in row.items()} for row in rows]
    )


ANSWERS: dict[str, Callable[[Case, Json], pa.Table]] = {
    "get_features_for_events": for_events,
    "get_features_in_range": in_range,
    "get_historical_features": history,
}


def write_all(folder: Path) -> None:
    """Write every case anew."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, declaration, queries in declarations():
        write_case(folder, name, declaration, queries)


if __name__ == "__main__":
    write_all(FOLDER)
