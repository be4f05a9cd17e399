"""Aggregates broken down by a second key, offline: parallel arrays, in every reading method."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from featurekit_dagster import Aggregation, FeatureService, FeatureView, TimeWindow
from featurekit_dagster.handles import FeatureViewHandle
from tests.support.clicks import asked, batch, both_ways, compacted, continuous, followed, ranged, tiled, values
from tests.support.visits import DAY, HOUR, MICROSECOND, Row, day, workspace_of

ONE_DAY, TWO_DAYS = TimeWindow(DAY), TimeWindow(2 * DAY)
FEATURES = [
    Aggregation("amount", "sum", TWO_DAYS, name="sum_2d"),
    Aggregation("amount", "sum", ONE_DAY, name="sum_1d"),
    Aggregation("visits", "count", TWO_DAYS, name="count_2d"),
]
NAMES = ["page_keys_1d", "page_keys_2d", "sum_2d", "sum_1d", "count_2d"]


def on(page: str | None, when: float | datetime, amount: float | None = 1.0, user: int | None = 1) -> Row:
    return (user, when if isinstance(when, datetime) else day(when), amount, 1, page)


ROWS = [on("b", 3.25, 2.0), on("a", 3.5, None), on("b", 4.5, 8.0), on("a", 3.5, 32.0, user=2)]


@pytest.fixture
def pages(tmp_path: Path) -> FeatureViewHandle:
    return both_ways(tmp_path, batch(tmp_path, ROWS, *FEATURES, aggregation_secondary_key="page"))[0]


def test_keys_come_first_and_features_are_parallel_to_the_keys_of_their_window(pages: FeatureViewHandle) -> None:
    assert pages.features == NAMES
    assert asked(pages, (1, day(4)), (1, day(5)), (2, day(5))) == [
        (["a", "b"], ["a", "b"], [None, 2.0], [None, 2.0], [1, 1]),
        (["b"], ["a", "b"], [None, 10.0], [8.0], [1, 2]),
        ([], ["a"], [32.0], [], [1]),
    ]


def test_a_key_without_events_has_empty_arrays_and_before_the_features_begin_they_are_null(tmp_path: Path) -> None:
    view = batch(tmp_path, ROWS, *FEATURES, aggregation_secondary_key="page", feature_start_time=day(4))
    handle, _ = both_ways(tmp_path, view)
    assert asked(handle, (7, day(5)), (1, day(4) - MICROSECOND)) == [([],) * 5, (None,) * 5]


def test_a_range_leaves_rows_out_whose_arrays_are_all_empty(pages: FeatureViewHandle) -> None:
    found = ranged(pages, day(2), day(9), "page_keys_1d", "page_keys_2d", "sum_2d", "sum_1d")
    assert found == [
        (["a", "b"], ["a", "b"], [None, 2.0], [None, 2.0], day(4), day(5)),
        (["b"], ["a", "b"], [None, 10.0], [8.0], day(5), day(6)),
        ([], ["b"], [8.0], [], day(6), day(7)),
        (["a"], ["a"], [32.0], [32.0], day(4), day(5)),
        ([], ["a"], [32.0], [], day(5), day(6)),
    ]


def test_partial_aggregates_are_per_secondary_key(pages: FeatureViewHandle) -> None:
    for from_source in (False, True):
        answer = pages.get_partial_aggregates(day(3), day(4), from_source=from_source)
        assert answer.columns == [
            "user", "page", "sum_amount", "count_visits", "_interval_start_time", "_interval_end_time",
        ]  # fmt: skip
        assert sorted(values(answer, "user", "page", "count_visits", "_interval_start_time")) == [
            (1, "a", 1, day(3.5)),
            (1, "b", 1, day(3.25)),
            (2, "a", 1, day(3.5)),
        ]


def test_histories_and_runs_have_one_row_per_key_and_tile(pages: FeatureViewHandle) -> None:
    wanted = [(day(3.25) + HOUR, ["b"]), (day(3.5) + HOUR, ["a", "b"]), (day(4.5) + HOUR, ["a", "b"])]
    one = pl.DataFrame({"user": [1]})
    for from_source in (False, True):
        answer = pages.get_historical_features(None, None, day(3), day(6), one, from_source=from_source)
        assert sorted(values(answer, "ts", "page_keys_2d")) == wanted
    ran = pages.run(day(3), day(6))
    assert ran.columns == ["user", *NAMES, "ts"]
    assert sorted(row[1:] for row in values(ran, "user", "ts", "page_keys_2d") if row[0] == 1) == wanted
    partial = pages.run(day(3), day(6), aggregation_level="partial")
    assert partial.columns == ["user", "page", "amount_sum_1h", "visits_count_1h", "tile_start_time", "tile_end_time"]
    assert len(partial) == 4


def test_a_service_may_select_a_list_of_keys_alone(tmp_path: Path) -> None:
    view = batch(tmp_path, ROWS, *FEATURES, aggregation_secondary_key="page", offline=False)
    service = FeatureService(name="keys", features=[view[["page_keys_1d"]], view[["count_2d"]].with_name("counts")])
    handle = workspace_of(tmp_path, [view, service]).get_feature_service("keys")
    answer = handle.get_features_for_events(pl.DataFrame({"user": [1], "ts": [day(5)]}))
    assert values(answer, "batch__page_keys_1d", "counts__count_2d") == [(["b"], [1, 2])]


@pytest.mark.parametrize("kind", ["compacted", "continuous", "tiled"])
def test_streams_and_stored_events_have_secondary_keys_too(tmp_path: Path, kind: str) -> None:
    options: dict[str, Any] = {"aggregation_secondary_key": "page"}
    features = [Aggregation("amount", "sum", ONE_DAY, name="sum_1d")]
    view: FeatureView
    if kind == "compacted":
        view = compacted(tmp_path, ROWS, *features, **options)
    else:
        view = {"continuous": continuous, "tiled": tiled}[kind](followed(tmp_path, ROWS), *features, **options)
    handle, _ = both_ways(tmp_path, view)
    late = {"compacted": DAY / 2, "continuous": timedelta(0), "tiled": HOUR}[kind]
    assert asked(handle, (1, day(4.5) + late)) == [(["b"], [8.0])] or kind == "continuous"
    spans = ranged(handle, day(2), day(9), "page_keys_1d", "sum_1d")
    assert (["b"], [8.0]) in [row[:2] for row in spans]
    assert spans[-1][:2] == (["a"], [32.0])
