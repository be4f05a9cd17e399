"""Functions whose partial columns are lists or sketches, through every reading method, from store and source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from featurekit_dagster import (
    Aggregation,
    TimeWindow,
    approx_count_distinct,
    approx_percentile,
    first,
    first_distinct,
    last,
    last_distinct,
)
from featurekit_dagster.handles import FeatureViewHandle
from tests.support.clicks import asked, batch, both_ways, compacted, continuous, followed, ranged, tiled, values
from tests.support.visits import DAY, HOUR, day, visit

SPAN = TimeWindow(4 * DAY)
LISTS = [
    Aggregation("amount", function, SPAN, name=name)
    for name, function in (
        ("last_2", last(2)),
        ("last_distinct_2", last_distinct(2)),
        ("first_2", first(2)),
        ("first_distinct_2", first_distinct(2)),
        ("last", "last"),
    )
]
SKETCHES = [
    Aggregation("visits", approx_count_distinct(), SPAN, name="distinct"),
    Aggregation("amount", approx_percentile(0.5), SPAN, name="median"),
]
ROWS = [
    visit(1, 3.25, 1.0),
    visit(1, 3.25 + 1 / 96, None),
    visit(1, 3.5, 2.0),
    visit(1, 3.75, 2.0),
    visit(1, 5.5, 3.0),
    visit(2, 5.5, None),
]


@pytest.fixture(params=["batch", "compacted", "tiled", "continuous"])
def handle(request: Any, tmp_path: Path) -> FeatureViewHandle:
    features = [*LISTS, *SKETCHES]
    if request.param in ("batch", "compacted"):
        view = {"batch": batch, "compacted": compacted}[request.param](tmp_path, ROWS, *features)
    else:
        view = {"tiled": tiled, "continuous": continuous}[request.param](followed(tmp_path, ROWS), *features)
    return both_ways(tmp_path, view)[0]


def test_lists_and_sketches_answer_alike_from_store_and_source(handle: FeatureViewHandle) -> None:
    nothing = ([], [], [], [], None, 0, None)
    answers = asked(handle, (1, day(4)), (1, day(6)), (2, day(6)), (7, day(6)))
    assert answers[0][:5] == ([2.0, 2.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0], 2.0)
    assert answers[1][:5] == ([2.0, 3.0], [2.0, 3.0], [1.0, 2.0], [1.0, 2.0], 3.0)
    assert answers[1][5:] == (1, 2.0)
    # a key whose values are all NULL has its lists empty, but its visits are counted
    assert answers[2] == ([], [], [], [], None, 1, None)
    assert answers[3] == nothing


def test_ranges_change_with_lists_and_leave_nothing_but_defaults_out(handle: FeatureViewHandle) -> None:
    spans = ranged(handle, day(1), day(11), "last_2", "first_distinct_2", "distinct")
    own = [row for row in spans if row[0] and row[2]]
    assert own[0][:2] in [([1.0], [1.0]), ([2.0, 2.0], [1.0, 2.0])]
    assert all(before[-1] <= after[-2] for before, after in zip(own, own[1:], strict=False))
    assert spans[-1][:3] == ([], [], 1)
    assert max(row[-1] for row in spans) <= day(11)


def test_histories_and_runs_know_lists(handle: FeatureViewHandle) -> None:
    stored, computed = (handle.get_historical_features(from_source=way) for way in (False, True))
    names = ["user", "ts", *handle.features, "_effective_timestamp"]
    assert sorted(values(stored, *names), key=str) == sorted(values(computed, *names), key=str)
    assert len(handle.run(day(2), day(6))) == len(stored)


def test_partial_aggregates_show_lists_of_nothing_as_null_and_sketches_of_nothing_as_empty(tmp_path: Path) -> None:
    handle, _ = both_ways(tmp_path, batch(tmp_path, ROWS, *LISTS, *SKETCHES))
    for from_source in (False, True):
        answer = handle.get_partial_aggregates(day(3), day(6), from_source=from_source)
        assert answer.columns == [
            "user",
            "last_non_distinct_n2_amount",
            "lastn2_amount",
            "first_non_distinct_n2_amount",
            "first_distinct_n2_amount",
            "last_amount",
            "approx_count_distinct_indices_visits",
            "approx_count_distinct_registers_visits",
            "approx_percentile_processed_means_amount",
            "approx_percentile_processed_weights_amount",
            "_interval_start_time",
            "_interval_end_time",
        ]
        shown = values(answer, *answer.columns[:5], *answer.columns[8:10], "_interval_start_time")
        assert (2, None, None, None, None, [], [], day(5.5)) in shown
        assert (1, [3.0], [3.0], [3.0], [3.0], [3.0], [1.0], day(5.5)) in shown


def test_a_run_of_tiles_names_functions_with_their_parameters(tmp_path: Path) -> None:
    handle, _ = both_ways(tmp_path, batch(tmp_path, ROWS, *LISTS, *SKETCHES))
    answer = handle.run(day(3), day(4), aggregation_level="partial")
    assert answer.columns[1:-2] == [
        "amount_last_2_1h",
        "amount_last_distinct_2_1h",
        "amount_first_2_1h",
        "amount_first_distinct_2_1h",
        "amount_last_1h",
        "visits_approx_count_distinct_1h",
        "amount_approx_percentile_p0_5_1h",
    ]
    assert sorted(values(answer, "tile_end_time", "amount_last_2_1h")) == [
        (day(3.25) + HOUR, [1.0]),
        (day(3.5) + HOUR, [2.0]),
        (day(3.75) + HOUR, [2.0]),
    ]
