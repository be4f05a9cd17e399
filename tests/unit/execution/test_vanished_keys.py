"""Overwrites online of keys that are in the source no more: what is read afterwards is what is offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from featurekit_dagster import Aggregation, TimeWindow, Workspace
from featurekit_dagster.domain.sources import BatchSource
from tests.support.visits import DAY, SCHEMA, Row, day, materialize, totals, visit, workspace_of, write_visits

ROWS = [visit(1, n + 0.5, float(n), n) for n in range(1, 11)]
LATER = [visit(2, 10.5, 5.0, 5)]


def rewrite(folder: Path, rows: list[Row]) -> None:
    pl.DataFrame(rows, schema=SCHEMA, orient="row").write_parquet(folder / "visits.parquet")


def overwrite(workspace: Workspace, **stores: bool) -> int:
    """Overwrite the tenth day; return how many keys were cleared online."""
    (report,) = materialize(workspace, "totals", day(10), day(11), overwrite=True, **stores)
    return report.keys_cleared


def counts(workspace: Workspace, *users: int) -> list[Any]:
    """Return what is counted online of the three days to the eleventh."""
    vectors = workspace.get_feature_view("totals").get_online_features_many([{"user": user} for user in users])
    return [vector.to_dict()["count_3d"] for vector in vectors]


@pytest.fixture
def source(tmp_path: Path) -> BatchSource:
    return write_visits(tmp_path, ROWS)


@pytest.fixture
def workspace(tmp_path: Path, source: BatchSource) -> Workspace:
    opened = workspace_of(tmp_path, [totals(source)])
    materialize(opened, "totals")
    assert counts(opened, 1, 2) == [3, 0]
    return opened


def test_a_key_that_vanished_is_cleared_once(tmp_path: Path, workspace: Workspace) -> None:
    rewrite(tmp_path, LATER)
    assert overwrite(workspace) == 1
    assert counts(workspace, 1, 2) == [2, 1]
    assert overwrite(workspace) == 0
    assert counts(workspace, 1, 2) == [2, 1]


def test_a_key_that_comes_back_is_counted_again_and_cleared_again(tmp_path: Path, workspace: Workspace) -> None:
    cleared = []
    for rows, expected in ((LATER, [2, 1]), (ROWS, [3, 0]), (LATER, [2, 1])):
        rewrite(tmp_path, rows)
        cleared.append(overwrite(workspace))
        assert counts(workspace, 1, 2) == expected
    assert cleared == [1, 1, 1]


def test_an_overwrite_of_one_store_after_the_other_clears_as_one_of_both_does(
    tmp_path: Path, workspace: Workspace
) -> None:
    rewrite(tmp_path, LATER)
    assert overwrite(workspace, online=False) == 0
    assert counts(workspace, 1, 2) == [3, 0], "online waits for its own job"
    assert overwrite(workspace, offline=False) == 1
    assert counts(workspace, 1, 2) == [2, 1]


def test_an_overwrite_of_both_after_one_of_the_offline_store_clears_what_that_one_forgot(
    tmp_path: Path, workspace: Workspace
) -> None:
    rewrite(tmp_path, LATER)
    overwrite(workspace, online=False)
    assert overwrite(workspace) == 1
    assert counts(workspace, 1, 2) == [2, 1]


def test_a_view_without_an_offline_store_is_cleared_too(tmp_path: Path, source: BatchSource) -> None:
    opened = workspace_of(tmp_path, [totals(source, offline=False)])
    materialize(opened, "totals")
    rewrite(tmp_path, LATER)
    assert overwrite(opened) == 1
    assert counts(opened, 1, 2) == [2, 1]


def test_tiles_of_a_secondary_key_and_lists_are_cleared(tmp_path: Path, source: BatchSource) -> None:
    aggregations = [
        Aggregation("amount", "sum", TimeWindow(3 * DAY), name="sum_3d"),
        Aggregation("amount", "stddev_samp", TimeWindow(3 * DAY), name="spread_3d"),
        Aggregation("visits", "count", TimeWindow(3 * DAY), name="count_3d"),
    ]
    view = totals(source, aggregations=aggregations, aggregation_secondary_key="page")
    opened = workspace_of(tmp_path, [view])
    materialize(opened, "totals")
    rewrite(tmp_path, LATER)
    assert [overwrite(opened), overwrite(opened)] == [1, 0]
    assert counts(opened, 1, 2) == [[2], [1]]
