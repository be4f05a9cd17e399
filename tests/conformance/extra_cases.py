"""Cases of our own in the format of the folder, answered by the oracle: run this module to write them again.

They hold what the reference folder's cases leave out: lifetimes, small tiles, compound keys, null keys, ranges off
every grid, other names of columns, other types, refusals.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.conformance.cases import Case, as_time, build_view
from tests.conformance.extra_declarations import DAY, DECLARATIONS, FIRST, HOUR, MICROSECOND, Json
from tests.conformance.judged import oracle_view
from tests.support import oracle, oracle_ranges

FOLDER = Path(__file__).parent / "extra"
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
    for name, declaration, queries in DECLARATIONS:
        write_case(folder, name, declaration, [dict(query) for query in queries])


if __name__ == "__main__":
    write_all(FOLDER)
