"""The kernel answers what the oracle answers: every function over every window, from tiles and from single events."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurekit_dagster.arrow_types import arrow_type
from featurekit_dagster.domain.aggregation import (
    FUNCTION_NAMES,
    LIST_FUNCTIONS,
    AggregateFeature,
    check_function,
    distinct_spans,
    partial_columns,
    secondary_keys_name,
)
from featurekit_dagster.domain.schema import Bool, Field, Float32, Float64, Int32, Int64, String, Timestamp
from featurekit_dagster.domain.windows import LifetimeWindow, Span, TimeWindow, TimeWindowSeries, Window
from featurekit_dagster.engine.duck import connect
from featurekit_dagster.engine.rollup import ANCHOR_TIME, EDGE, roll_up
from featurekit_dagster.engine.tiles import build_tiles, event_tiles
from featurekit_dagster.intervals import to_us
from tests.support import oracle

SOAK = bool(os.environ.get("FEATUREKIT_SOAK"))
# Four variants of one law: 2,000 examples by default, 100,000 in a soak.
EXAMPLES = 25_000 if SOAK else 80

HOUR = timedelta(hours=1)
HOUR_US = 3_600_000_000
MICROSECOND = timedelta(microseconds=1)
START = datetime(1969, 12, 31, 20, tzinfo=UTC)
LIFETIME_START = START + 6 * HOUR
TIMESTAMP = pa.timestamp("us", "UTC")
KEYS = ("user_id", "shop")
SECONDARY = "label"
COLUMNS = {
    "v": Float64,
    "n": Int64,
    "small": Int32,
    "narrow": Float32,
    "label": String,
    "flag": Bool,
    "seen": Timestamp,
}
SCHEMA = pa.schema(
    [("user_id", pa.string()), ("shop", pa.int64()), ("ts", TIMESTAMP)]
    + [(name, arrow_type(dtype)) for name, dtype in COLUMNS.items()]
)
WINDOWS: tuple[Window, ...] = (
    TimeWindow(3 * HOUR),
    TimeWindow(HOUR),
    TimeWindow(24 * HOUR),
    TimeWindow(2 * HOUR, -HOUR),
    LifetimeWindow(),
    TimeWindowSeries(series_start=-6 * HOUR, window_size=2 * HOUR),
    TimeWindowSeries(series_start=-5 * HOUR, window_size=2 * HOUR, step_size=HOUR, series_end=-HOUR),
)
PARAMETERS: dict[str, tuple[dict[str, Any], ...]] = {
    **{name: ({"n": 1}, {"n": 2}, {"n": 5}) for name in LIST_FUNCTIONS},
    "approx_count_distinct": ({"precision": 8}, {"precision": 4}),
    "approx_percentile": (
        {"precision": 100, "percentile": 0.5},
        {"precision": 100, "percentile": 1.0},
        {"precision": 100, "percentile": 0.1},
    ),
}


def features_over(windows: Sequence[Window]) -> list[AggregateFeature]:
    found = []
    for column, dtype in COLUMNS.items():
        for function in (*FUNCTION_NAMES, *PARAMETERS):
            for options in PARAMETERS.get(function, ({},)):
                if check_function(function, dtype) is None and options.get("precision") != 4:
                    for window in windows:
                        start = to_us(LIFETIME_START) if isinstance(window, LifetimeWindow) else None
                        found.append(
                            AggregateFeature(
                                name=f"f{len(found)}",
                                column=Field(column, dtype),
                                function=function,
                                window=window,
                                lifetime_start_us=start,
                                **options,
                            )
                        )
    return found


ALL = features_over(WINDOWS)
PLAIN_WINDOWS = [feature for feature in ALL if not feature.is_series]

ORDINARY = tuple((place * 7919 % 20_001 - 10_000) / 100 for place in range(50))
AWKWARD = (1e20, -1e20, 1.0, 1e-9, 0.1, -0.0, 0.0, 1_700_000_000.25, 1e15)
SPECIAL = (math.nan, math.inf, -math.inf)
FLOATS = (ORDINARY, (*ORDINARY[:9], *AWKWARD), (*ORDINARY[:9], *SPECIAL))
NUDGES = (0, 0, 0, -1, 1, 1_234_567_890, 60_000_000, -60_000_000)

# Everything is drawn as one number per event and probe: a draw costs more than all the rest of an example.
numbers_drawn = st.integers(0, 2**40 - 1)
event_lists = st.builds(
    lambda kind, numbers: [event(number, FLOATS[kind]) for number in numbers],
    st.integers(0, 2),
    st.lists(numbers_drawn, max_size=24),
)
feature_numbers = st.lists(st.integers(0, 1 << 20), min_size=1, max_size=8)


def event(number: int, floats: Sequence[float]) -> dict[str, Any]:
    """One event; of every column but the time, one in seven values or more is None."""

    def pick(count: int) -> int:
        nonlocal number
        number, rest = divmod(number, count)
        return rest

    hours, nudge, key, skipped, more = pick(31), pick(8), pick(6), pick(7), pick(2)
    choice = number
    return {
        "user_id": ("ann", "bob", None)[key % 3],
        "shop": (7, None)[key // 3],
        "ts": START + hours * HOUR + timedelta(microseconds=NUDGES[nudge]),
        "v": None if skipped == 6 else floats[choice % len(floats)],
        "n": None if skipped == 0 else (choice % 1000 - 500) << (choice % 30),
        "small": None if skipped == 1 else choice % 5,
        "narrow": None if skipped == 2 else (choice % 9) / 8,
        "label": None if skipped == 3 else ("x", "y", "", "zz")[choice % (2 + 2 * more)],
        "flag": None if skipped == 4 else choice % 2 == 0,
        "seen": None if skipped == 5 else START + (choice % 6) * HOUR,
    }


def probe(number: int) -> tuple[str | None, int | None, timedelta | None]:
    """One question: user, shop and the right edge, counted from the start; one in 70 has no edge."""
    user, shop, hours = number % 7, number // 7 % 2, number // 14 % 70 - 5
    edge = None if hours == 64 else hours * HOUR
    return ("ann", "bob", None, "ann", "bob", None, "eve")[user], (7, None)[shop], edge


probe_lists = st.lists(numbers_drawn.map(probe), min_size=1, max_size=8)


def chosen(features: Sequence[AggregateFeature], numbers: Sequence[int]) -> list[AggregateFeature]:
    return [features[place] for place in dict.fromkeys(number % len(features) for number in numbers)]


def probe_table(probes: Sequence[tuple[str | None, int | None, datetime | None]]) -> pa.Table:
    users, shops, edges = zip(*probes, strict=True)
    return pa.table(
        {"user_id": pa.array(users, pa.string()), "shop": pa.array(shops, pa.int64()), EDGE: pa.array(edges, TIMESTAMP)}
    )


CON = connect()
CON.execute("SET threads = 1")


def tiles_of(events: Sequence[dict[str, Any]], keys: Sequence[str], features: Sequence[AggregateFeature]) -> pa.Table:
    CON.register("events", pa.Table.from_pylist(list(events), schema=SCHEMA))
    partials = partial_columns(features)
    return build_tiles(CON, "events", keys=keys, timestamp="ts", tile_us=HOUR_US, partials=partials)


def events_of(events: Sequence[dict[str, Any]], keys: Sequence[str], features: Sequence[AggregateFeature]) -> pa.Table:
    CON.register("events", pa.Table.from_pylist(list(events), schema=SCHEMA))
    return event_tiles(CON, "events", keys=keys, timestamp="ts", partials=partial_columns(features))


Source = Callable[[Sequence[dict[str, Any]], Sequence[str], Sequence[AggregateFeature]], pa.Table]


def judged(span: Span) -> oracle.Stretch:
    """The span as the oracle writes it."""
    if span.begin_us is None:
        return None, timedelta(0)
    return timedelta(microseconds=span.end_us - span.begin_us), timedelta(microseconds=span.end_us)


VIEW = oracle.AggregateView(
    aggregates=(), batch_schedule=HOUR, lifetime_start_time=LIFETIME_START, secondary_key=SECONDARY
)


def check_cell(got: Any, feature: AggregateFeature, mine: Sequence[oracle.Timed], edge: datetime) -> None:
    answers = got if feature.is_series else [got]
    assert len(answers) == len(feature.spans)
    for answer, span in zip(answers, feature.spans, strict=True):
        inside = oracle.in_window(mine, edge, judged(span), VIEW)
        values = [row[feature.column.name] for row in inside if row[feature.column.name] is not None]
        want = oracle.combine(
            feature.function, values, feature.column.dtype.name, feature.n, percentile=feature.percentile
        )
        assert close(answer, want, feature, values), (feature, edge, answer, want)


def close(got: Any, want: Any, feature: AggregateFeature, values: Sequence[Any]) -> bool:
    if isinstance(want, oracle.Roughly | oracle.Ranked):
        return want.holds(got)
    if isinstance(want, list):
        return len(got) == len(want) and all(
            a == b or str(a) == str(b) == "nan" for a, b in zip(got, want, strict=True)
        )
    if got is None or not isinstance(want, float) or not math.isfinite(want):
        return bool(got == want or str(got) == str(want) == "nan")
    if feature.function in ("min", "max", "last"):
        return bool(got == want)
    rounded = 2.0**-23 if feature.value_dtype == Float32 else 0.0
    if feature.function in ("sum", "mean"):
        number = 1 if feature.function == "sum" else len(values)
        return bool(abs(got - want) <= 1e-12 * math.fsum(map(abs, values)) / number + rounded * abs(want))
    moved = 2.0**-50 * max(map(abs, values))
    deviation = want if feature.function.startswith("stddev") else math.sqrt(want)
    if feature.function.startswith("stddev"):
        got, want = got**2, want**2
    return bool(abs(got - want) <= 2e-10 * want + 4 * moved * deviation + 4 * moved**2)


def check(
    answers: pa.Table,
    features: Sequence[AggregateFeature],
    events: Sequence[dict[str, Any]],
    probes: Sequence[tuple[str | None, int | None, datetime | None]],
    secondary: bool,
) -> None:
    assert answers.num_rows == len(probes)
    columns = {name: answers.column(name).to_pylist() for name in answers.column_names}
    for row, (user, shop, edge) in enumerate(probes):
        if edge is None:
            assert all(column[row] is None for column in columns.values())
            continue
        mine = oracle.timed(oracle.of_key(events, {"user_id": user, "shop": shop}), VIEW)
        if not secondary:
            for feature in features:
                check_cell(columns[feature.name][row], feature, mine, edge)
            continue
        for span in distinct_spans(features):
            assert columns[secondary_keys_name(SECONDARY, span)][row] == oracle.keys_over(
                mine, edge, judged(span), VIEW
            )
        for feature in features:
            keys = oracle.keys_over(mine, edge, judged(feature.spans[0]), VIEW)
            assert len(columns[feature.name][row]) == len(keys)
            for key, got in zip(keys, columns[feature.name][row], strict=True):
                check_cell(got, feature, [(at, row) for at, row in mine if row[SECONDARY] == key], edge)


@pytest.mark.parametrize("secondary", [False, True], ids=["plain", "secondary"])
@pytest.mark.parametrize("source", [tiles_of, events_of], ids=["tiles", "events"])
@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_kernel_equals_oracle(source: Source, secondary: bool, data: st.DataObject) -> None:
    events, probes = data.draw(event_lists), data.draw(probe_lists)
    features = chosen(PLAIN_WINDOWS if secondary else ALL, data.draw(feature_numbers))
    nudge = timedelta(0) if source is tiles_of else data.draw(st.integers(-1, 1)) * MICROSECOND
    asked = [(user, shop, None if at is None else START + at + nudge) for user, shop, at in probes]
    tiles = source(events, (*KEYS, SECONDARY) if secondary else KEYS, features)
    answers = roll_up(
        tiles,
        probe_table(asked),
        keys=KEYS,
        tile_us=HOUR_US if source is tiles_of else 1,
        features=features,
        secondary_key=SECONDARY if secondary else None,
    )
    if not secondary:
        assert answers.schema == pa.schema([(feature.name, arrow_type(feature.dtype)) for feature in features])
    check(answers, features, events, asked, secondary)


@pytest.mark.parametrize("secondary", [None, SECONDARY], ids=["plain", "secondary"])
@given(data=st.data())
def test_order_of_tiles_and_probes_does_not_matter(secondary: str | None, data: st.DataObject) -> None:
    features = chosen(PLAIN_WINDOWS, data.draw(feature_numbers))
    tiles = tiles_of(data.draw(event_lists), (*KEYS, *([secondary] if secondary else [])), features)
    probes = [(user, shop, None if at is None else START + at) for user, shop, at in data.draw(probe_lists)]
    shuffled = tiles.take(pa.array(data.draw(st.permutations(range(tiles.num_rows))), pa.int64()))
    turned = pa.array(data.draw(st.permutations(range(len(probes)))), pa.int64())
    table = probe_table(probes)
    plain = roll_up(tiles, table, keys=KEYS, tile_us=HOUR_US, features=features, secondary_key=secondary)
    moved = roll_up(
        shuffled, table.take(turned), keys=KEYS, tile_us=HOUR_US, features=features, secondary_key=secondary
    )
    assert str(plain.take(turned).to_pydict()) == str(moved.to_pydict())


def test_a_tile_is_known_by_its_start_and_columns() -> None:
    assert tiles_of([], KEYS, ALL[:1]).column_names[:3] == [*KEYS, ANCHOR_TIME]
