"""One law: the oracle, the source, the offline store and the online store give one answer at one instant."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
from hypothesis import given, note, settings
from hypothesis import strategies as st

from featurekit_dagster import (
    Aggregation,
    BatchSource,
    Entity,
    FeatureView,
    Field,
    FileConfig,
    FilteredSource,
    Float64,
    Int64,
    String,
    Timestamp,
    TimeWindow,
    Workspace,
    batch_feature_view,
)
from featurekit_dagster.execution.materialize import run_tasks
from tests.conftest import SOAK
from tests.support import oracle

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
# Naive, as the events are in their file.
ORIGINS = tuple(datetime.fromisoformat(day) for day in ("2024-03-01", "1970-01-01", "1969-12-30"))
SPAN = 6 * DAY
EXAMPLES = 2_000 if SOAK else 25
NUMERIC = ("count", "sum", "mean", "min", "max", "last", "var_samp", "var_pop", "stddev_samp", "stddev_pop")
SCHEMA = {"user": pl.String, "shop": pl.Int64, "ts": pl.Datetime("us"), "v": pl.Float64, "k": pl.Int64, "s": pl.String}
FIELDS = [
    Field("user", String),
    Field("shop", Int64),
    Field("ts", Timestamp),
    Field("v", Float64),
    Field("k", Int64),
    Field("s", String),
]


@dataclass(frozen=True)
class World:
    """Events, questions, and the declaration under test in our words and in the oracle's."""

    origin: datetime
    events: list[dict[str, Any]]
    spine: list[dict[str, Any]]
    options: dict[str, Any]
    delay: timedelta
    judged: oracle.AggregateView | oracle.LatestView


@st.composite
def worlds(draw: st.DrawFn) -> World:
    origin = draw(st.sampled_from(ORIGINS))
    schedule = draw(st.sampled_from([HOUR, 6 * HOUR, DAY]))
    delay = draw(st.sampled_from([timedelta(0), 20 * MINUTE, 3 * HOUR]))
    start = origin + draw(st.sampled_from([timedelta(0), DAY, 30 * HOUR + 17 * MINUTE]))
    keys = st.fixed_dictionaries(
        {"user": st.sampled_from(["a", "b", None]), "shop": st.sampled_from([1, -(2**40), None])}
    )
    numbers = (
        st.floats(-1e6, 1e6)
        | st.sampled_from([math.nan, math.inf, -math.inf])
        | st.sampled_from([1e20, 1.0, -1e20])
        | st.none()
    )
    values = st.fixed_dictionaries(
        {"v": numbers, "k": st.none() | st.integers(-(2**53), 2**53), "s": st.none() | st.sampled_from(["x", "y", ""])}
    )
    event = st.builds(lambda k, t, v: {**k, "ts": t, **v}, keys, _times(origin, schedule), values)
    events = draw(st.lists(event, max_size=25, unique_by=lambda e: (e["user"], e["shop"], e["ts"])))
    question = st.builds(lambda k, t: {**k, "ts": t}, keys, _times(origin, schedule, delay))
    spine = draw(st.lists(question, min_size=1, max_size=12))
    common = {"batch_schedule": schedule, "feature_start_time": start}
    if draw(st.booleans()):
        options, judged = _aggregates(draw, schedule)
    else:
        ttl = draw(st.sampled_from([None, HOUR, 90 * MINUTE, DAY, 2 * DAY]))
        options, judged = {"ttl": ttl}, oracle.LatestView(features=("v", "k", "s"), ttl=ttl, batch_schedule=schedule)
    judged = type(judged)(**{**_fields(judged), **common, "data_delay": delay})
    return World(origin, events, spine, {**options, **common}, delay, judged)


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def _times(origin: datetime, schedule: timedelta, delay: timedelta = timedelta(0)) -> st.SearchStrategy[datetime]:
    """Times anywhere, and one microsecond around the edges of the schedule."""
    anywhere = st.integers(0, SPAN // timedelta(microseconds=1)).map(lambda us: origin + timedelta(microseconds=us))
    near = st.builds(
        lambda n, us: origin + n * schedule + delay + timedelta(microseconds=us),
        st.integers(0, SPAN // schedule),
        st.sampled_from([-1, 0, 1]),
    )
    return anywhere | near


def _aggregates(draw: st.DrawFn, schedule: timedelta) -> tuple[dict[str, Any], oracle.AggregateView]:
    tile = draw(st.sampled_from([t for t in (10 * MINUTE, HOUR, 6 * HOUR, DAY) if not schedule % t]))
    window = st.builds(
        TimeWindow, st.integers(1, 30).map(lambda n: n * tile), st.integers(-5, 0).map(lambda n: n * tile)
    )
    numeric = st.tuples(st.sampled_from([("v", "Float64"), ("k", "Int64")]), st.sampled_from(NUMERIC), window)
    text = st.tuples(st.just(("s", "String")), st.sampled_from(("count", "last")), window)
    chosen = draw(st.lists(numeric | text, min_size=1, max_size=5, unique_by=lambda c: (c[0], c[1], c[2])))
    aggregations = [Aggregation(column, function, window) for (column, _), function, window in chosen]
    judged = oracle.AggregateView(
        aggregates=[
            oracle.Aggregate(column=c, function=f, size=w.window_size, offset=w.offset, dtype=d)
            for (c, d), f, w in chosen
        ],
        batch_schedule=schedule,
    )
    return {"aggregations": aggregations, "aggregation_interval": tile}, judged


def build(world: World, folder: Path) -> Workspace:
    pl.DataFrame(world.events, schema=SCHEMA).write_parquet(folder / "events.parquet")
    source = BatchSource(
        name="events",
        batch_config=FileConfig(
            uri=str(folder / "events.parquet"), file_format="parquet", timestamp_field="ts", data_delay=world.delay
        ),
    )

    def view(events: pl.DataFrame) -> pl.DataFrame:
        return events

    declared: FeatureView = batch_feature_view(
        mode="polars",
        sources=[FilteredSource(source)],
        entities=[Entity(name="pair", join_keys=["user", "shop"])],
        schema=FIELDS,
        online=True,
        offline=True,
        **world.options,
    )(view)
    return Workspace("laws", [declared], home=folder / "home", clock=world.origin + SPAN + 2 * DAY + 5 * HOUR)


def materialize(workspace: Workspace) -> None:
    for plan in workspace.plan():
        for run in plan.runs:
            list(run_tasks(workspace.repo.view(plan.view), run.tasks, workspace.stores, trigger="backfill"))


def expected(world: World, key: dict[str, Any], time: datetime) -> list[Any]:
    if isinstance(world.judged, oracle.AggregateView):
        return oracle.aggregate_at(world.events, key, time, world.judged)
    return oracle.latest_at(world.events, key, time, world.judged)


def agrees(ours: Any, theirs: Any, scale: float) -> bool:
    if isinstance(theirs, float) and isinstance(ours, float):
        if math.isnan(theirs) or math.isinf(theirs):
            return ours == theirs or (math.isnan(ours) and math.isnan(theirs))
        return abs(ours - theirs) <= 1e-9 * scale + 1e-9 * abs(theirs)
    return bool(ours == theirs)


@settings(max_examples=EXAMPLES)
@given(world=worlds())
def test_source_store_and_online_answer_as_the_oracle_does(world: World) -> None:
    finite = [abs(e["v"]) for e in world.events if e["v"] is not None and math.isfinite(e["v"])]
    # variances grow with the square of their values
    scale = max([1.0, *finite]) ** 2 if isinstance(world.judged, oracle.AggregateView) else 0.0
    with tempfile.TemporaryDirectory() as name:
        workspace = build(world, Path(name))
        materialize(workspace)
        handle = workspace.get_feature_view("view")
        spine = pl.DataFrame(world.spine, schema={n: SCHEMA[n] for n in ("user", "shop", "ts")})
        wanted = [expected(world, {"user": q["user"], "shop": q["shop"]}, q["ts"]) for q in world.spine]
        for from_source in (True, False):
            answer = handle.get_features_for_events(spine, from_source=from_source).to_arrow()
            given_rows = list(zip(*(answer[f"view__{f}"].to_pylist() for f in handle.features), strict=True))
            note(f"from_source={from_source}: {given_rows} wanted {wanted}")
            for ours, theirs in zip(given_rows, wanted, strict=True):
                assert all(agrees(a, b, scale) for a, b in zip(ours, theirs, strict=True))
        for key in {(q["user"], q["shop"]) for q in world.spine}:
            join_keys = {"user": key[0], "shop": key[1]}
            vector = list(handle.get_online_features(join_keys).to_dict().values())
            theirs = expected(world, join_keys, workspace.now())
            note(f"online: {vector} wanted {theirs}")
            assert all(agrees(a, b, scale) for a, b in zip(vector, theirs, strict=True))
        workspace.stores.online.close()
