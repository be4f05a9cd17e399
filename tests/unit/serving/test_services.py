"""Vectors of services, and reads that leave the wildcard join key out."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest

from featurekit_dagster import Aggregation, Entity, FeatureService, Field, Int64, TimeWindow, Workspace
from featurekit_dagster.domain.schema import Float64, String, Timestamp
from featurekit_dagster.errors import ReadError
from featurekit_dagster.serving.vector import MISSING_DATA, PRESENT, UNKNOWN, FeatureVector
from tests.support.visits import (
    DAY,
    day,
    latest,
    materialize,
    totals,
    visit,
    workspace_of,
    write_visits,
)

ROWS = [visit(1, 10.5, 4.0, 2), visit(1, 9.5, 2.0, 3), visit(2, 7.5, 9.0, 9), visit(None, 10.25, 1.0, 1)]


def statuses(vector: FeatureVector) -> set[Any]:
    return set(vector.statuses.values())


def times(vector: FeatureVector) -> set[datetime | None]:
    return set(vector.effective_times)


# ---- services --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("services")
    source = write_visits(folder, ROWS)
    newest, rolled = latest(source), totals(source)
    pairs = FeatureService(
        name="pairs",
        features=[
            newest[["visits"]].with_name("buyer").with_join_key_map({"user": "buyer_id"}),
            newest.with_name("seller").with_join_key_map({"user": "seller_id"})[["page", "visits"]],
            rolled[["count_3d"]].with_join_key_map({"user": "buyer_id"}),
        ],
    )
    off = FeatureService(name="off", features=[newest], online_serving_enabled=False)
    workspace = workspace_of(folder, [pairs, off])
    for name in workspace.list_feature_views():
        materialize(workspace, name)
    return workspace


def test_a_service_reads_selected_features_under_namespaces_with_mapped_keys(serving: Workspace) -> None:
    service = serving.get_feature_service("pairs")
    assert service.join_keys == ["buyer_id", "seller_id"]
    vector = service.get_online_features({"buyer_id": 1, "seller_id": 2})
    assert vector.to_dict() == {"buyer.visits": 2, "seller.page": "home", "seller.visits": 9, "totals.count_3d": 2}
    shown = service.get_online_features({"seller_id": 99, "buyer_id": 1}, include_join_keys_in_response=True)
    assert set(list(shown.to_dict())[:2]) == {"buyer_id", "seller_id"}
    assert shown.statuses["seller.page"] is MISSING_DATA
    assert shown.statuses["buyer.visits"] is PRESENT
    assert shown.slo_info == {"PRESENT": 4, "MISSING_DATA": 2, "UNKNOWN": 0}
    with pytest.raises(
        ReadError, match="^pairs: join keys seller_id missing and user unknown; give buyer_id, seller_id"
    ):
        service.get_online_features({"buyer_id": 1, "user": 2})


def test_a_service_joins_the_same_to_a_spine(serving: Workspace) -> None:
    service = serving.get_feature_service("pairs")
    spine = pd.DataFrame({"buyer_id": [1, 1, 9], "seller_id": [2, 1, 2], "ts": [day(11)] * 3, "label": [0, 1, 0]})
    answer = service.get_features_for_events(spine).to_arrow()
    assert answer.column_names == ["buyer_id", "seller_id", "ts", "label", *service.features]
    assert answer["buyer__visits"].to_pylist() == [2, 2, None]
    assert answer["seller__visits"].to_pylist() == [9, 2, 9]
    assert answer["totals__count_3d"].to_pylist() == [2, 2, 0]


def test_a_service_that_is_not_served_says_so(serving: Workspace) -> None:
    with pytest.raises(ReadError, match="'off': online_serving_enabled=False, so it serves no vectors"):
        serving.get_feature_service("off").get_online_features({"user": 1})


# ---- wildcards -------------------------------------------------------------------------------------------------------

PAIR = Entity(name="pair", join_keys=[Field("user", Int64), Field("shop", String)])
PAIR_FIELDS = [Field("user", Int64), Field("shop", String), Field("ts", Timestamp), Field("amount", Float64)]
PAIR_ROWS = [(1, "a", 10.5, 1.0), (1, "b", 9.5, 2.0), (1, "c", 3.5, 4.0), (2, "a", 10.5, 8.0), (1, None, 10.25, 16.0)]


def pair_workspace(folder: Path, given: list[Any] = PAIR_ROWS, holes: bool = False) -> Workspace:
    source = write_visits(folder, [])
    rows = [(user, shop, day(when), amount) for user, shop, when, amount in given]
    schema = {"user": pl.Int64, "shop": pl.String, "ts": pl.Datetime("us", "UTC"), "amount": pl.Float64}
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(folder / "visits.parquet")
    common: dict[str, Any] = {"entities": [PAIR], "schema": PAIR_FIELDS, "online_serving_index": ["user"]}
    windows = [Aggregation("amount", f, TimeWindow(n * DAY), name=f"{f}_{n}d") for f, n in (("sum", 1), ("count", 3))]
    views = [
        totals(source, aggregations=windows, **common),
        latest(source, ttl=5 * DAY, **common),
        totals(source, name="whole", aggregations=windows, entities=[PAIR], schema=PAIR_FIELDS),
    ]
    services = [
        FeatureService(name="one", features=[views[0], views[2]]),
        FeatureService(name="two", features=[views[0][["count_3d", "sum_1d"]], views[1].with_name("last")]),
    ]
    workspace = workspace_of(folder, [*views, *services])
    for name in workspace.list_feature_views():
        if holes:
            materialize(workspace, name, day(10), day(11))
        else:
            materialize(workspace, name)
    return workspace


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return pair_workspace(tmp_path_factory.mktemp("wildcards"))


def by_key(vector: FeatureVector, key: str) -> dict[Any, dict[str, Any]]:
    """Return the lists of a wildcard read by key value."""
    answer = vector.to_dict()
    keys = answer.pop(key)
    assert len(set(keys)) == len(keys)
    return {k: {name: values[i] for name, values in answer.items()} for i, k in enumerate(keys)}


def test_a_wildcard_read_is_every_matching_key_with_its_features(pairs: Workspace) -> None:
    handle = pairs.get_feature_view("totals")
    assert handle.wildcard_join_key == "shop"
    vector = handle.get_online_features({"user": 1})
    found = by_key(vector, "shop")
    assert found == {
        None: {"sum_1d": 16.0, "count_3d": 1},
        "a": {"sum_1d": 1.0, "count_3d": 1},
        "b": {"sum_1d": None, "count_3d": 1},
    }
    for shop, features in found.items():
        assert handle.get_online_features({"user": 1, "shop": shop}).to_dict() == features
    assert statuses(vector) == {PRESENT}
    rows = by_key(pairs.get_feature_view("newest").get_online_features({"user": 1}), "shop")
    assert rows == {None: {"amount": 16.0}, "a": {"amount": 1.0}, "b": {"amount": 2.0}}


def test_a_wildcard_read_without_a_match_is_empty_lists(pairs: Workspace) -> None:
    for name in ("totals", "newest"):
        vector = pairs.get_feature_view(name).get_online_features({"user": 99}, include_join_keys_in_response=True)
        features = pairs.get_feature_view(name).features
        assert vector.to_dict() == {"user": 99, "shop": [], **{feature: [] for feature in features}}
        assert [vector.statuses[feature] for feature in features] == [MISSING_DATA] * len(features)


def test_the_index_has_to_be_given(pairs: Workspace) -> None:
    with pytest.raises(ReadError, match="totals: join keys user missing; give user, shop"):
        pairs.get_feature_view("totals").get_online_features({"shop": "a"})
    with pytest.raises(ReadError, match="whole: join keys shop missing; give user, shop"):
        pairs.get_feature_view("whole").get_online_features({"user": 1})
    with pytest.raises(ReadError, match="one: join keys shop missing"):
        pairs.get_feature_service("one").get_online_features({"user": 1})


def test_many_wildcard_reads_are_as_one(pairs: Workspace) -> None:
    for name in ("totals", "newest"):
        handle = pairs.get_feature_view(name)
        keys = [{"user": 1}, {"user": 2}, {"user": 1, "shop": "a"}]
        assert [v.to_dict(True) for v in handle.get_online_features_many(keys)] == [
            handle.get_online_features(key).to_dict(True) for key in keys
        ]


def test_views_of_a_service_match_on_the_same_keys(pairs: Workspace) -> None:
    service = pairs.get_feature_service("two")
    vector = service.get_online_features({"user": 1})
    assert by_key(vector, "shop") == {
        None: {"totals.count_3d": 1, "totals.sum_1d": 16.0, "last.amount": 16.0},
        "a": {"totals.count_3d": 1, "totals.sum_1d": 1.0, "last.amount": 1.0},
        "b": {"totals.count_3d": 1, "totals.sum_1d": None, "last.amount": 2.0},
    }
    full = service.get_online_features({"user": 1, "shop": "c"})
    assert full.to_dict() == {"totals.count_3d": 0, "totals.sum_1d": None, "last.amount": None}


def test_a_key_that_only_one_view_of_a_service_knows_has_the_defaults_of_the_other(tmp_path: Path) -> None:
    workspace = pair_workspace(tmp_path, [(1, "old", 8.25, 1.0), (1, "new", 10.5, 2.0)])
    narrow = FeatureService(
        name="narrow",
        features=[workspace.repo.view("totals")[["sum_1d", "count_3d"]], workspace.repo.view("newest")],
    )
    late = workspace_of(tmp_path, [narrow], now=day(13))
    for name in late.list_feature_views():
        materialize(late, name)
    assert by_key(late.get_feature_service("narrow").get_online_features({"user": 1}), "shop") == {
        "new": {"totals.sum_1d": None, "totals.count_3d": 1, "newest.amount": 2.0},
        "old": {"totals.sum_1d": None, "totals.count_3d": 0, "newest.amount": 1.0},
    }


def test_a_wildcard_read_over_a_hole_is_unknown(tmp_path: Path) -> None:
    workspace = pair_workspace(tmp_path, holes=True)
    vector = workspace.get_feature_view("totals").get_online_features({"user": 1})
    assert vector.to_dict() == {"shop": [None, "a"], "sum_1d": [16.0, 1.0], "count_3d": [None, None]}
    assert vector.statuses == {"shop": UNKNOWN, "sum_1d": PRESENT, "count_3d": UNKNOWN}
    rows = workspace.get_feature_view("newest").get_online_features({"user": 1})
    assert rows.to_dict() == {"shop": [None, "a"], "amount": [16.0, 1.0]}
    assert statuses(rows) == {UNKNOWN}, "another shop may be missing"
    for name in ("totals", "newest"):
        assert UNKNOWN in statuses(workspace.get_feature_view(name).get_online_features({"user": 99}))


def test_all_reads_of_a_service_are_as_of_one_moment(serving: Workspace) -> None:
    ticks = itertools.count()
    workspace = Workspace(
        "world", list(serving.repo.services), home=serving.home, clock=lambda: day(11) + next(ticks) * timedelta(days=1)
    )
    vector = workspace.get_feature_service("pairs").get_online_features({"buyer_id": 1, "seller_id": 1})
    assert next(ticks) == 1, "the clock is read once"
    assert times(vector) == {day(11)}
