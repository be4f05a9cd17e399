"""One law: the oracle, the source, the offline store and the online store give one answer at one instant."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
from hypothesis import HealthCheck, given, note, settings

from featurekit_dagster import Workspace
from featurekit_dagster.execution.materialize import run_tasks
from tests.conftest import SOAK
from tests.laws.worlds import MICROSECOND, SCHEMA, World, build, worlds
from tests.support import oracle, oracle_ranges
from tests.support.oracle import utc

EXAMPLES = 2_000 if SOAK else 20


def materialize(workspace: Workspace) -> None:
    for plan in workspace.plan():
        for run in plan.runs:
            list(run_tasks(workspace.repo.view(plan.view), run.tasks, workspace.stores, trigger="backfill"))


def room(function: str, numbers: Sequence[float]) -> float:
    """How far a float answer over these numbers may be off: what rounding can do, not what is convenient."""
    sizes = [abs(float(number)) for number in numbers if math.isfinite(number)]
    if function in ("sum", "mean"):
        return 1e-12 * sum(sizes)
    widest = max(sizes, default=0.0)
    return 1e-9 * widest**2 if function.startswith("var") else 1e-4 * widest


def agree(world: World, key: dict[str, Any], ours: Sequence[Any], theirs: Sequence[Any]) -> bool:
    """Whether answers for a key are the oracle's."""
    if not isinstance(world.judged, oracle.AggregateView):
        return all(oracle.agrees(a, b) for a, b in zip(ours, theirs, strict=True))
    functions = [None] * (len(theirs) - len(world.judged.aggregates)) + list(world.judged.aggregates)
    for mine, wanted, feature in zip(ours, theirs, functions, strict=True):
        if oracle.agrees(mine, wanted):
            continue
        if feature is None or feature.function not in ("sum", "mean") and feature.function[:3] not in ("var", "std"):
            return False
        values = [e[feature.column] for e in oracle.of_key(world.events, key) if e[feature.column] is not None]
        if not oracle.agrees(mine, wanted, room(feature.function, values) * 1e9):
            return False
    return True


def check_spine(world: World, handle: Any) -> None:
    spine = pl.DataFrame(world.spine, schema={name: SCHEMA[name] for name in ("user", "shop", "ts")})
    wanted = [oracle.answers_at(world.events, world.key_of(q), q["ts"], world.judged) for q in world.spine]
    for from_source in (True, False):
        answer = handle.get_features_for_events(spine, from_source=from_source).to_arrow()
        assert answer["ts"].to_pylist() == [utc(q["ts"]) for q in world.spine]
        rows = list(zip(*(answer[f"view__{name}"].to_pylist() for name in handle.features), strict=True))
        for question, ours, theirs in zip(world.spine, rows, wanted, strict=True):
            note((from_source, question, ours, theirs))
            assert agree(world, world.key_of(question), ours, theirs)


def check_range(world: World, handle: Any) -> None:
    """What a range says at a moment is what a spine row of that moment is told."""
    start, end = map(utc, world.range)
    for from_source in (True, False):
        rows = handle.get_features_in_range(*world.range, from_source=from_source).to_arrow().to_pylist()
        for key in world.distinct_keys():
            mine = [row for row in rows if world.key_of(row) == key]
            mine.sort(key=lambda row: row["_valid_from"])
            pieces = oracle_ranges.pieces(world.events, key, start, end, world.judged)
            note((from_source, key, mine, pieces))
            assert all(row["_valid_from"] < row["_valid_to"] <= end for row in mine)
            assert all(a["_valid_to"] <= b["_valid_from"] for a, b in zip(mine, mine[1:], strict=False))
            bounds = {t for p in pieces for t in (p.start, p.end)} | {
                row[name] for row in mine for name in ("_valid_from", "_valid_to")
            }
            for moment in {m + d for m in bounds for d in (-MICROSECOND, 0 * MICROSECOND)}:
                check_moment(world, handle.features, key, moment, mine, pieces)


def check_moment(
    world: World,
    features: Sequence[str],
    key: dict[str, Any],
    moment: datetime,
    rows: Sequence[dict[str, Any]],
    pieces: Sequence[oracle_ranges.Piece],
) -> None:
    row = next((r for r in rows if r["_valid_from"] <= moment < r["_valid_to"]), None)
    piece = next((p for p in pieces if p.start <= moment < p.end), None)
    assert (row is None) == (piece is None), moment
    if row is not None and piece is not None:
        assert agree(world, key, [row[name] for name in features], piece.values), moment


def check_history(world: World, handle: Any) -> None:
    """The older range form, of views whose rows or tiles are stored."""
    start, end = world.range
    wanted = oracle_ranges.history(world.events, world.keys, start, end, world.judged)
    for from_source in (True, False):
        rows = handle.get_historical_features(start_time=start, end_time=end, from_source=from_source).to_arrow()
        note((from_source, rows.to_pylist(), wanted))
        assert rows.num_rows == len(wanted)
        left = list(wanted)
        for row in rows.to_pylist():
            values = [row[name] for name in handle.features]
            fitting = (
                w
                for w in left
                if w[0] == world.key_of(row)
                and (w[2], w[3]) == (row["ts"], row["_effective_timestamp"])
                and agree(world, w[0], values, w[1])
            )
            found = next(fitting, None)
            assert found is not None, row
            left.remove(found)


PARTIALS = {
    "count": "count",
    "sum": "sum",
    "min": "min",
    "max": "max",
    "last": "last",
    "last_n": "last_non_distinct_n{}",
    "last_distinct": "lastn{}",
    "first_n": "first_non_distinct_n{}",
    "first_distinct": "first_distinct_n{}",
}


def check_partials(world: World, handle: Any, from_source: bool) -> None:
    """The tiles of a span, and in each the functions of its own events."""
    view = world.judged
    assert isinstance(view, oracle.AggregateView)
    start, end = world.range
    assert view.feature_start_time is not None
    names = [*world.keys, *([view.secondary_key] if view.secondary_key else [])]
    wanted = oracle_ranges.tiles(world.events, names, max(start, view.feature_start_time), end, view)
    rows = handle.get_partial_aggregates(start, end, from_source=from_source).to_arrow().to_pylist()
    met = {(tuple(row[name] for name in names), row["_interval_start_time"]): row for row in rows}
    note((from_source, rows))
    assert len(met) == len(rows)
    assert set(met) == set(wanted)
    for place, events in wanted.items():
        for feature in view.aggregates:
            if feature.function in PARTIALS:
                values = [event[feature.column] for event in events if event[feature.column] is not None]
                theirs = oracle.combine(feature.function, values, feature.dtype, feature.n)
                mine = met[place][f"{PARTIALS[feature.function].format(feature.n)}_{feature.column}"]
                space = room("sum", values if feature.function == "sum" else []) * 1e9
                assert oracle.agrees(mine, None if theirs == [] else theirs, space), (place, feature)


def check_run(world: World, handle: Any) -> None:
    """A dry run sees only the events of its span, in tiles laid back from its end."""
    assert isinstance(world.judged, oracle.AggregateView)
    wanted = oracle_ranges.run_full(world.events, world.keys, *world.range, world.judged)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the span is no multiple of the tile, or short
        rows = handle.run(*world.range, aggregation_level="full").to_arrow().to_pylist()
    note((rows, wanted))
    met = {(tuple(row[name] for name in world.keys), row["ts"]): row for row in rows}
    assert set(met) == set(wanted)
    for place, theirs in wanted.items():
        key = dict(zip(world.keys, place[0], strict=True))
        assert agree(world, key, [met[place][name] for name in handle.features], theirs), place


def check_online(world: World, handle: Any, now: datetime) -> None:
    for key in world.distinct_keys():
        vector = list(handle.get_online_features(key).to_dict().values())
        theirs = oracle.answers_at(world.events, key, now, world.judged)
        note((key, vector, theirs))
        assert agree(world, key, vector, theirs)


# A world takes longer to draw than hypothesis likes; a world is large.
@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(world=worlds())
def test_source_store_and_online_answer_as_the_oracle_does(world: World) -> None:
    with tempfile.TemporaryDirectory() as name:
        workspace = build(world, Path(name))
        materialize(workspace)
        handle = workspace.get_feature_view("view")
        check_spine(world, handle)
        check_range(world, handle)
        if not world.kind.endswith("events"):
            check_history(world, handle)
        if world.kind.endswith("tiles"):
            check_partials(world, handle, from_source=len(world.events) % 2 == 0)
            check_run(world, handle)
        if world.is_online:
            check_online(world, handle, workspace.now())
        workspace.stores.online.close()
