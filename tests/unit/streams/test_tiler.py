"""Tiles combined piece by piece are the tile of all events at once, for every partial column."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurekit_dagster import (
    Aggregation,
    Entity,
    FeatureView,
    Field,
    Float64,
    Int64,
    PushConfig,
    StreamProcessingMode,
    StreamSource,
    String,
    Timestamp,
    TimeWindow,
    aggregation_functions,
    stream_feature_view,
)
from featurekit_dagster.arrow_types import arrow_schema
from featurekit_dagster.domain.aggregation import AggregateFeature
from featurekit_dagster.engine.sketches_of_key import Digest
from featurekit_dagster.execution.stream_records import TileCombiner, stream_records
from featurekit_dagster.intervals import to_us
from featurekit_dagster.planning.generations import laid_out_fields
from featurekit_dagster.serving.online_windows import WindowedFeatures
from featurekit_dagster.stores.lmdb import LmdbOnlineStore
from featurekit_dagster.stores.online import OnlineLayout
from featurekit_dagster.stores.stream_state import DeadLetter, StreamCommit
from featurekit_dagster.streams.tiler import Tiler
from featurekit_dagster.streams.tiler_lists import merge_digests
from tests.support import oracle

HOUR = timedelta(hours=1)
START = datetime(2024, 3, 1, tzinfo=UTC)
NUMBERS = ("count", "sum", "mean", "min", "max", "last", "var_pop")
LISTS = (
    aggregation_functions.last(2),
    aggregation_functions.last_distinct(2),
    aggregation_functions.first(2),
    aggregation_functions.first_distinct(2),
)
COLUMNS = (
    Field("k", Int64),
    Field("v", Float64),
    Field("s", String),
)
EXAMPLES = 2_000 if os.environ.get("FEATUREKIT_SOAK") else 15


def view_of(mode: StreamProcessingMode, secondary: str | None = None) -> FeatureView:
    """A view with every function that its columns allow."""
    functions: list[tuple[Field, Any]] = [(column, f) for column in COLUMNS[:2] for f in (*NUMBERS, *LISTS)]
    functions += [(COLUMNS[2], f) for f in ("count", "last", *LISTS)]
    functions += [(c, aggregation_functions.approx_count_distinct(4)) for c in (COLUMNS[0], COLUMNS[2])]
    functions += [(COLUMNS[1], aggregation_functions.approx_percentile(0.5, 20))]
    tiled = {"aggregation_interval": HOUR} if mode is StreamProcessingMode.TIME_INTERVAL else {}
    made: FeatureView = stream_feature_view(
        name="every",
        source=StreamSource(name="events", stream_config=PushConfig()),
        entities=[Entity(name="user", join_keys=[Field("user", Int64)])],
        schema=[Field("user", Int64), Field("ts", Timestamp), Field("part", String), *COLUMNS],
        timestamp_field="ts",
        aggregations=[
            Aggregation(column=c.name, function=f, time_window=TimeWindow(24 * HOUR), name=f"f{at}")
            for at, (c, f) in enumerate(functions)
        ],
        stream_processing_mode=mode,
        batch_schedule=24 * HOUR,
        feature_start_time=START,
        online=True,
        **tiled,
        **({"aggregation_secondary_key": secondary} if secondary else {}),
    )
    return made


TILED, INSTANT = StreamProcessingMode.TIME_INTERVAL, StreamProcessingMode.CONTINUOUS
VIEWS = {
    "tiles": view_of(TILED),
    "instants": view_of(INSTANT),
    "nested tiles": view_of(TILED, "part"),
    "nested instants": view_of(INSTANT, "part"),
}
EVENTS = st.lists(
    st.fixed_dictionaries(
        {
            "user": st.just(1),
            # few times, so that many events tie
            "ts": st.integers(0, 5).map(lambda minute: START + minute * timedelta(minutes=1)),
            "part": st.sampled_from(["a", "b", None]),
            "k": st.none() | st.integers(-4, 4),
            "v": st.none() | st.sampled_from([0.0, -0.0, 1.5, math.nan, math.inf, -math.inf]) | st.floats(-9, 9),
            "s": st.none() | st.sampled_from(["", "é", "text"]),
        }
    ),
    min_size=1,
    max_size=12,
)


def judged_by(view: FeatureView, mode: StreamProcessingMode) -> oracle.AggregateView:
    """The same view in the oracle's words."""
    aggregates = [
        oracle.Aggregate(
            column=f.column.name,
            function=f.function,
            size=24 * HOUR,
            dtype=str(f.column.dtype),
            n=f.n,
            percentile=f.percentile,
            precision=f.precision or 8,
        )
        for f in view.aggregates
    ]
    secondary = None if view.secondary_key is None else view.secondary_key.name
    return oracle.AggregateView(
        aggregates=aggregates, batch_schedule=HOUR, secondary_key=secondary, stream=mode.value, tile=HOUR
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LmdbOnlineStore]:
    opened = LmdbOnlineStore(tmp_path_factory.mktemp("online"))
    yield opened
    opened.close()


def never(row: int) -> DeadLetter:
    raise AssertionError(row)


@pytest.mark.parametrize("name", VIEWS)
@settings(max_examples=EXAMPLES)
@given(events=EVENTS, cuts=st.sets(st.integers(1, 11), max_size=4), user=st.integers(0, 1 << 60))
def test_a_tile_made_piece_by_piece_is_that_of_all_events_at_once(
    store: LmdbOnlineStore, name: str, events: list[dict[str, Any]], cuts: set[int], user: int
) -> None:
    view, mode = VIEWS[name], INSTANT if name.endswith("instants") else TILED
    events = [{**event, "user": user} for event in events]
    layout = layout_of(view, name)
    combine, schema = TileCombiner(view, layout), arrow_schema(view.columns)
    bounds = [0, *sorted(cut for cut in cuts if cut < len(events)), len(events)]
    for first, end in pairwise(bounds):
        records = stream_records(view, pa.Table.from_pylist(events[first:end], schema))
        commit = StreamCommit(partitions={"0": None}, epochs={"0": 1})
        store.stream_write(layout, records, combine=combine, commit=commit, refuse=never)
    edge = START + HOUR
    rollup = WindowedFeatures(view, range(len(view.features))).rollup(layout.value_fields)
    with store.snapshot(layout) as snapshot:
        found = rollup.one(snapshot.packed_tiles((user,), 0, to_us(edge) + 1), to_us(edge))
    theirs = oracle.aggregate_as_of(events, {"user": user}, edge, judged_by(view, mode))
    assert found is not None
    for mine, truth, field in zip(found, theirs, view.features, strict=True):
        assert oracle.agrees(mine, truth, 100.0), (field.name, mine, truth)
    store.drop(layout.workspace, layout.view, layout.generation, epoch=1)


def layout_of(view: FeatureView, name: str) -> OnlineLayout:
    return OnlineLayout(
        workspace="w",
        view=name,
        key_fields=view.join_keys,
        index_length=1,
        tile_us=view.tile_us,
        value_fields=laid_out_fields(view, None),
        is_stream=True,
    )


def test_a_long_digest_is_cut_down_and_keeps_its_ends_and_its_odd_values() -> None:
    values = [float(number) for number in range(10_000)]
    means, weights = [[-math.inf, math.nan]], [[1.0, 1.0]]
    for value in values:
        means, weights = ([part] for part in merge_digests([*means, [value]], [*weights, [1.0]], compression=50))  # type: ignore[assignment]
    assert len(means[0]) <= 102
    assert sum(weights[0]) == len(values) + 2
    assert means[0][0] == -math.inf
    assert math.isnan(means[0][-1])
    digest = Digest.of(np.array(means[0]), np.array(weights[0]))
    for share in (0.01, 0.25, 0.5, 0.75, 0.99):
        rank = digest.percentile(share)
        assert rank is not None
        assert abs(rank / len(values) - share) < 4 / 48


def test_a_sum_that_does_not_fit_names_its_tiles_and_another_that_does_not_seem_to_fit_is_made_exactly() -> None:
    partial = AggregateFeature(name="f", column=COLUMNS[0], function="sum", window=TimeWindow(HOUR)).partials
    large = (1 << 63) - 1
    rows, groups = np.array([large, -large, large, large, 1, -2, 4]), np.array([0, 0, 0, 1, 1, 1, 2])
    assert Tiler(partial, {}, {})([rows], [None], groups)[2] is None
    columns, _, _ = Tiler(partial, {}, {})([rows], [None], groups)
    assert columns[0].tolist() == [large, large - 1, 4]
    wrong = Tiler(partial, {}, {})([np.array([1, large, 1])], [None], np.array([0, 1, 1]))[2]
    assert wrong is not None
    assert wrong.tolist() == [1]
