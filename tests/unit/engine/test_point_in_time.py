"""Latest rows and change edges, beside loops."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurekit_dagster.domain.aggregation import AggregateFeature, distinct_spans
from featurekit_dagster.domain.schema import Field, Float64
from featurekit_dagster.domain.windows import LifetimeWindow, TimeWindow
from featurekit_dagster.engine.point_in_time import change_edges, latest_positions
from featurekit_dagster.engine.rollup import ANCHOR_TIME, EDGE, roll_up

TIMESTAMP = pa.timestamp("us", "UTC")
START = datetime(1970, 1, 1, tzinfo=UTC)
keys = st.sampled_from(["a", "b", None])
moments = st.none() | st.integers(-5, 5) | st.sampled_from([-(2**63), 2**63 - 1])
rows_lists = st.lists(st.tuples(keys, moments, st.none() | st.integers(-2, 2)), max_size=25)
probe_lists = st.lists(st.tuples(keys | st.just("unknown"), moments), max_size=15)


def table(rows: list[tuple[Any, ...]], *names: str) -> pa.Table:
    types = [pa.string(), pa.int64(), pa.int64()]
    return pa.table(
        {name: pa.array([row[place] for row in rows], types[place]) for place, name in enumerate(names)},
    )


@given(rows=rows_lists, probes=probe_lists, ordered=st.booleans())
def test_the_last_row_not_after_the_probe_is_found(rows: Any, probes: Any, ordered: bool) -> None:
    found = latest_positions(
        table(rows, "k", "ts", "order"),
        table(probes, "k", "at"),
        keys=["k"],
        row_time="ts",
        probe_time="at",
        row_order="order" if ordered else None,
    )
    assert found.dtype == np.int64
    for (key, at), got in zip(probes, found, strict=True):
        visible = [
            (ts, (order is not None, order or 0) if ordered else None, place)
            for place, (own, ts, order) in enumerate(rows)
            if own == key and ts is not None and at is not None and ts <= at
        ]
        assert got == (max(visible)[2] if visible else -1)


def test_a_row_one_microsecond_late_is_not_seen() -> None:
    rows = pa.table({"k": [1, 1], "ts": pa.array([START, START + timedelta(microseconds=1)], TIMESTAMP)})
    probes = pa.table({"k": [1], "at": pa.array([START], TIMESTAMP)})
    assert latest_positions(rows, probes, keys=["k"], row_time="ts", probe_time="at").tolist() == [0]


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("probes", [0, 3])
def test_empty_sides(rows: int, probes: int) -> None:
    left = pa.table({"k": pa.array([1] * rows, pa.int64()), "ts": pa.array([0] * rows, pa.int64())})
    right = pa.table({"k": pa.array([1] * probes, pa.int64()), "at": pa.array([0] * probes, pa.int64())})
    found = latest_positions(left, right, keys=["k"], row_time="ts", probe_time="at")
    assert found.tolist() == [rows - 1 if rows else -1] * probes


windows = st.lists(
    st.builds(
        lambda size, offset: TimeWindow(timedelta(microseconds=size), timedelta(microseconds=-offset)),
        st.integers(1, 5).map(lambda tiles: tiles * 2),
        st.integers(0, 2).map(lambda tiles: tiles * 2),
    ),
    min_size=1,
    max_size=3,
)


@given(
    events=st.lists(st.tuples(keys, st.integers(-8, 13)), max_size=8, unique=True),
    windows=windows,
    since=st.none() | st.integers(-4, 6).map(lambda tiles: tiles * 2),
    tile=st.sampled_from([1, 2]),
    schedule=st.sampled_from([2, 6]),
)
def test_answers_change_only_at_change_edges(
    events: Any, windows: list[TimeWindow], since: int | None, tile: int, schedule: int
) -> None:
    features = [counted(str(place), window) for place, window in enumerate(windows)]
    if since is not None:
        features.append(replace(counted("ever", LifetimeWindow()), lifetime_start_us=since))
    # each row counts apart, and the event of a tile may lie anywhere in it
    tiles = pa.table(
        {
            "k": pa.array([key for key, _ in events], pa.string()),
            ANCHOR_TIME: pa.array([at for _, at in events], pa.int64()).cast(TIMESTAMP),
            "count_v": pa.array([1 << place for place in range(len(events))], pa.int64()),
        }
    )
    spans = distinct_spans(features)
    schedule = 1 if tile == 1 and schedule == 2 else schedule
    found = change_edges(tiles, keys=["k"], tile_us=tile, grid_us=schedule, spans=spans)
    edges = list(zip(found.column("k").to_pylist(), found.column(EDGE).cast(pa.int64()).to_pylist(), strict=True))
    assert len(set(edges)) == len(edges)
    grid = list(range(-24, 48, schedule))
    for key in {key for key, _ in events}:
        own = [edge for other, edge in edges if other == key]
        assert own == sorted(own)
        assert all(edge % schedule == 0 for edge in own)
        probes = pa.table(
            {"k": pa.array([key] * len(grid), pa.string()), EDGE: pa.array(grid, pa.int64()).cast(TIMESTAMP)}
        )
        answers = roll_up(tiles, probes, keys=("k",), tile_us=tile, features=features).to_pylist()
        changed = {edge for edge, before, after in zip(grid[1:], answers, answers[1:], strict=False) if before != after}
        assert changed <= set(own)


def counted(name: str, window: TimeWindow | LifetimeWindow) -> AggregateFeature:
    return AggregateFeature(name=name, column=Field("v", Float64), function="count", window=window)
