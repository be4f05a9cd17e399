"""Random declarations with events and questions, in our words and in the oracle's."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
from hypothesis import strategies as st

from featurekit_dagster import (
    Aggregation,
    BatchSource,
    Bool,
    Entity,
    FeatureView,
    Field,
    FileConfig,
    FilteredSource,
    Float64,
    Int64,
    KafkaConfig,
    LifetimeWindow,
    StreamProcessingMode,
    StreamSource,
    String,
    Timestamp,
    TimeWindow,
    TimeWindowSeries,
    Workspace,
    aggregation_functions,
    batch_feature_view,
    stream_feature_view,
)
from tests.support import oracle, oracle_ranges
from tests.support.clock import Clock

MICROSECOND, MINUTE, HOUR, DAY = timedelta(microseconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
NOTHING = timedelta(0)
# Naive, as the events are in their file.
ORIGINS = tuple(datetime.fromisoformat(day) for day in ("2024-03-01", "1970-01-01", "1969-12-30"))
KINDS = ("batch tiles", "batch rows", "batch events", "stream tiles", "stream rows", "stream events")
NUMERIC = ("sum", "mean", "min", "max", "var_samp", "var_pop", "stddev_samp", "stddev_pop", "approx_percentile")
MAKERS = {"last_n": "last", "first_n": "first"}
SCHEMA = {
    "user": pl.String,
    "shop": pl.Int64,
    "ts": pl.Datetime("us"),
    "part": pl.String,
    "v": pl.Float64,
    "k": pl.Int64,
    "s": pl.String,
    "b": pl.Boolean,
    "at": pl.Datetime("us"),
}
TYPES = {
    "user": String,
    "shop": Int64,
    "ts": Timestamp,
    "part": String,
    "v": Float64,
    "k": Int64,
    "s": String,
    "b": Bool,
    "at": Timestamp,
}
COLUMNS = ("v", "k", "s", "b", "at")
ENTITIES = (
    (("user",),),
    (("user", "shop"),),
    (("user",), ("shop",)),
    (("shop",), ("user",)),
)


@dataclass(frozen=True)
class World:
    """Events, questions, and the declaration under test in our words and in the oracle's."""

    kind: str
    origin: datetime
    entities: tuple[tuple[str, ...], ...]
    events: list[dict[str, Any]]
    spine: list[dict[str, Any]]
    range: tuple[datetime, datetime]
    options: dict[str, Any]
    delay: timedelta
    judged: oracle.AggregateView | oracle.LatestView
    keys: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", tuple(name for names in self.entities for name in names))

    def key_of(self, row: dict[str, Any]) -> dict[str, Any]:
        return {name: row[name] for name in self.keys}

    def distinct_keys(self) -> list[dict[str, Any]]:
        met = {tuple(row[name] for name in self.keys) for row in (*self.events, *self.spine)}
        return [dict(zip(self.keys, values, strict=True)) for values in met]

    @property
    def now(self) -> datetime:
        """A moment as of which everything that is asked can be known."""
        asked = max(self.range[1], *(row["ts"] for row in self.spine))
        return asked + 2 * self.judged.batch_schedule + self.delay

    @property
    def is_online(self) -> bool:
        return self.kind.startswith("batch")


@st.composite
def worlds(draw: st.DrawFn, kinds: tuple[str, ...] = KINDS, origins: tuple[datetime, ...] = ORIGINS) -> World:
    kind, origin = draw(st.sampled_from(kinds)), draw(st.sampled_from(origins))
    schedule = draw(st.sampled_from([HOUR, 6 * HOUR, DAY]))
    delay = draw(st.sampled_from([NOTHING, 20 * MINUTE, 3 * HOUR]))
    spread = draw(st.sampled_from([3 * HOUR, DAY, 4 * DAY]))
    begin = origin + draw(st.sampled_from([-2 * DAY, -DAY, NOTHING, spread / 2 + 17 * MINUTE]))
    common = {"batch_schedule": schedule, "feature_start_time": begin}
    if kind.endswith("rows"):
        ttl = draw(st.sampled_from([None, HOUR, 90 * MINUTE, DAY, 2 * DAY]))
        options: dict[str, Any] = {"ttl": ttl, **common}
        judged: Any = oracle.LatestView(
            features=COLUMNS, ttl=ttl, data_delay=delay, stream=kind.startswith("stream"), **common
        )
    else:
        options, judged = draw(aggregates(kind, origin, schedule))
        options |= common
        judged = oracle.AggregateView(data_delay=delay, **common, **judged)
    keys = draw(st.lists(some_keys(), min_size=1, max_size=3))
    ties = draw(st.booleans())
    rows = event_rows(keys, times(origin, spread, schedule))
    number = draw(st.sampled_from([0, 5, 10, 14, 18, 22, 26]))
    events = draw(st.lists(rows, min_size=number, max_size=number + 4, unique_by=None if ties else _moment))
    asked = questions(keys, origin, spread, events, judged)
    spine = draw(st.lists(asked, min_size=6, max_size=14))
    first = origin + draw(st.sampled_from([NOTHING, spread / 3 + 7 * MINUTE, spread / 2 + 11 * MICROSECOND]))
    last = max(first, begin) + draw(
        st.sampled_from([HOUR, spread / 2 + 13 * MINUTE, spread, spread + DAY + MICROSECOND])
    )
    entities = draw(st.sampled_from(ENTITIES))
    return World(kind, origin, entities, events, spine, (first, last), options, delay, judged)


def _moment(event: dict[str, Any]) -> tuple[Any, ...]:
    return event["user"], event["shop"], event["ts"]


def some_keys() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {"user": st.sampled_from(["a", "b", None]), "shop": st.sampled_from([1, -(2**40), None])}
    )


def event_rows(keys: list[dict[str, Any]], moments: st.SearchStrategy[datetime]) -> st.SearchStrategy[dict[str, Any]]:
    numbers = (
        st.floats(-1e6, 1e6)
        | st.sampled_from([math.nan, math.inf, -math.inf])
        | st.sampled_from([1e20, 1.0, -1e20, 0.0, -0.0])
        | st.none()
    )
    values = st.fixed_dictionaries(
        {
            "part": st.sampled_from(["p", "q", "", None]),
            "v": numbers,
            "k": st.none() | st.integers(-(2**53), 2**53),
            "s": st.none() | st.sampled_from(["x", "y", "", "é"]),
            "b": st.none() | st.booleans(),
            "at": st.none() | st.sampled_from([ORIGINS[1], ORIGINS[0] + MICROSECOND]),
        }
    )
    return st.builds(lambda k, t, v: {**k, "ts": t, **v}, st.sampled_from(keys), moments, values)


def times(origin: datetime, spread: timedelta, schedule: timedelta) -> st.SearchStrategy[datetime]:
    """Times anywhere, and one microsecond around the edges of the schedule."""
    anywhere = st.integers(0, spread // MICROSECOND).map(lambda us: origin + timedelta(microseconds=us))
    near = st.builds(
        lambda n, us: origin + n * schedule + timedelta(microseconds=us),
        st.integers(0, spread // schedule),
        st.sampled_from([-1, 0, 1]),
    )
    return anywhere | near


def questions(
    keys: list[dict[str, Any]],
    origin: datetime,
    spread: timedelta,
    events: list[dict[str, Any]],
    judged: oracle.AggregateView | oracle.LatestView,
) -> st.SearchStrategy[dict[str, Any]]:
    """Questions at any time, and around the moments at which an event comes into sight and goes out of it."""
    grid, delay = judged.batch_schedule, judged.data_delay
    moments = times(origin, spread + DAY, grid)
    distances = {NOTHING} if isinstance(judged, oracle.AggregateView) or judged.ttl is None else {NOTHING, judged.ttl}
    if isinstance(judged, oracle.AggregateView):
        grid, delay = oracle_ranges.grid_of(judged)
        for size, offset in oracle.distinct_stretches(judged):
            distances |= {-offset} if size is None else {-offset, size / 2 - offset, size - offset}
    last = origin + spread + 2 * DAY

    def question(key: dict[str, Any], moment: datetime) -> dict[str, Any]:
        return {"user": key["user"], "shop": key["shop"], "ts": min(moment, last)}

    def near(event: dict[str, Any], distance: timedelta, us: int, at_once: bool) -> dict[str, Any]:
        moment: datetime = event["ts"] + distance
        if not at_once:
            moment = oracle.floor(moment, grid).replace(tzinfo=None) + grid + delay
        return question(event, moment + timedelta(microseconds=us))

    anywhere = st.builds(question, st.sampled_from(keys) | some_keys(), moments)
    if not events:
        return anywhere
    some, far = st.sampled_from(events), st.sampled_from(sorted(d for d in distances if d <= spread + 2 * DAY))
    steps, at_once = st.sampled_from([-1, 0, 0, 1]), st.sampled_from([False, False, True])
    close = st.builds(near, some, far, steps, at_once)
    return close | close | close | anywhere


@st.composite
def aggregates(
    draw: st.DrawFn, kind: str, origin: datetime, schedule: timedelta
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the declaration, and what the oracle has to know beside the schedule."""
    tile = draw(st.sampled_from([t for t in (10 * MINUTE, HOUR, 6 * HOUR, DAY) if not schedule % t]))
    options: dict[str, Any] = {"aggregation_interval": tile}
    judged: dict[str, Any] = {"tile": tile}
    if kind == "batch events":
        options, judged = {"compaction_enabled": True}, {}
    elif kind == "stream events":
        options, judged = {}, {"stream": "CONTINUOUS"}
    elif kind == "stream tiles":
        judged["stream"] = "TIME_INTERVAL"
    secondary = draw(st.sampled_from([None, None, "part"]))
    lifetime = (origin + draw(st.sampled_from([-DAY, NOTHING, DAY]))) if draw(st.booleans()) else None
    plain_only = secondary is not None or kind == "batch events"
    shapes = [_windows(tile)]
    shapes += [] if plain_only else [_series(tile)]
    shapes += [] if lifetime is None else [st.just((LifetimeWindow(), {"size": None}))]
    chosen = draw(
        st.lists(
            st.tuples(_functions(), st.one_of(shapes)),
            min_size=1,
            max_size=5,
            unique_by=lambda c: repr((c[0], c[1][0])),
        )
    )
    has_lifetime = any(isinstance(window, LifetimeWindow) for _, (window, _) in chosen)
    options["lifetime_start_time"] = judged["lifetime_start_time"] = lifetime if has_lifetime else None
    options["aggregation_secondary_key"] = judged["secondary_key"] = secondary
    options["aggregations"] = [
        Aggregation(column, _declared(function, given), window, name=f"f{number}")
        for number, ((column, function, given), (window, _)) in enumerate(chosen)
    ]
    judged["aggregates"] = [
        oracle.Aggregate(column=column, function=function, dtype=str(TYPES[column]), **given, **said)
        for (column, function, given), (_, said) in chosen
    ]
    return {name: value for name, value in options.items() if value is not None}, judged


def _windows(tile: timedelta) -> st.SearchStrategy[tuple[Any, dict[str, Any]]]:
    sizes, offsets = st.integers(1, 30).map(lambda n: n * tile), st.integers(-5, 0).map(lambda n: n * tile)
    return st.builds(lambda s, o: (TimeWindow(s, o), {"size": s, "offset": o}), sizes, offsets)


def _series(tile: timedelta) -> st.SearchStrategy[tuple[Any, dict[str, Any]]]:
    def one(size: int, step: int | None, end: int, count: int, rest: int) -> tuple[Any, dict[str, Any]]:
        start = end * tile - (size + (count - 1) * (step or size) + rest) * tile
        said = {"size": size * tile, "series_start": start, "series_end": end * tile}
        said |= {"step": None if step is None else step * tile}
        window = TimeWindowSeries(
            series_start=start, series_end=said["series_end"], step_size=said["step"], window_size=said["size"]
        )
        return window, said

    steps = st.none() | st.integers(1, 6)
    return st.builds(one, st.integers(1, 6), steps, st.integers(-3, 0), st.integers(2, 4), st.integers(0, 2))


def _functions() -> st.SearchStrategy[tuple[str, str, dict[str, Any]]]:
    numeric = st.tuples(st.sampled_from(["v", "k"]), st.sampled_from(NUMERIC), st.just({}))
    ranked = st.tuples(
        st.sampled_from(["v", "k"]),
        st.just("approx_percentile"),
        st.sampled_from([{"percentile": p} for p in (0.0, 0.3, 1.0)]),
    )
    anything = st.tuples(st.sampled_from(COLUMNS), st.sampled_from(["count", "last"]), st.just({}))
    listed = st.tuples(
        st.sampled_from(COLUMNS), st.sampled_from(oracle.LISTS), st.sampled_from([{"n": n} for n in (1, 2, 5)])
    )
    distinct = st.tuples(st.sampled_from(["k", "s"]), st.just("approx_count_distinct"), st.just({}))
    return numeric | ranked | anything | listed | distinct


def _declared(function: str, given: dict[str, Any]) -> Any:
    if function == "approx_percentile":
        return aggregation_functions.approx_percentile(given.get("percentile", 0.5))
    if function in oracle.LISTS or function == "approx_count_distinct":
        return getattr(aggregation_functions, MAKERS.get(function, function))(**given)
    return function


def build(world: World, folder: Path, clock: Clock | None = None, **stream_settings: Any) -> Workspace:
    """Return the workspace of a world; a stream view is online if there is a clock to move.

    Args:
        world: What is declared.
        folder: Where everything is.
        clock: Tells what time it is.
        stream_settings: Further settings of the stream, where there is one.
    """
    pl.DataFrame(world.events, schema=SCHEMA).write_parquet(folder / "events.parquet")
    config = FileConfig(
        uri=str(folder / "events.parquet"), file_format="parquet", timestamp_field="ts", data_delay=world.delay
    )
    is_aggregate = isinstance(world.judged, oracle.AggregateView)
    names = [*world.keys, "ts", *(["part"] if is_aggregate else []), *COLUMNS]
    options = {
        "name": "view",
        "mode": "polars",
        "entities": [Entity(name="_".join(keys), join_keys=list(keys)) for keys in world.entities],
        "schema": [Field(name, TYPES[name]) for name in names],
        "timestamp_field": "ts",
        "offline": True,
        **world.options,
    }

    def view(events: pl.DataFrame) -> pl.DataFrame:
        return events.select(names)

    declared: FeatureView
    if world.kind.startswith("stream"):
        mode = {"stream events": StreamProcessingMode.CONTINUOUS, "stream tiles": StreamProcessingMode.TIME_INTERVAL}
        stream = KafkaConfig(
            kafka_bootstrap_servers="unused:9092",
            topics="events",
            timestamp_field="ts",
            initial_stream_position="trim_horizon",
            **stream_settings,
        )
        source = StreamSource(name="events", stream_config=stream, batch_config=config)
        if world.kind in mode:
            options["stream_processing_mode"] = mode[world.kind]
        declared = stream_feature_view(source=source, online=clock is not None, **options)(view)
    else:
        batch = BatchSource(name="events", batch_config=config)
        declared = batch_feature_view(sources=[FilteredSource(batch)], online=world.is_online, **options)(view)
    return Workspace("laws", [declared], home=folder / "home", clock=clock or world.now)
