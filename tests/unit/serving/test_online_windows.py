"""Online reads of lists, sketches, series, lifetimes and secondary keys, from materialization to the vector."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from featurekit_dagster import (
    Aggregation,
    Array,
    BatchSource,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    FileConfig,
    FilteredSource,
    Float64,
    Int64,
    LifetimeWindow,
    String,
    Timestamp,
    TimeWindow,
    TimeWindowSeries,
    Workspace,
    approx_count_distinct,
    approx_percentile,
    batch_feature_view,
    first_distinct,
    last,
)
from featurekit_dagster.serving.vector import MISSING_DATA, PRESENT, UNKNOWN
from featurekit_dagster.stores.online import OnlineWrite
from tests.support.visits import DAY, FIRST, HOUR, day, materialize, workspace_of

USER = Entity(name="user", join_keys=[Field("user", Int64)])
SHOP_USER = Entity(name="shop_user", join_keys=[Field("user", Int64), Field("shop", String)])
SCHEMA = {"user": pl.Int64, "shop": pl.String, "ts": pl.Datetime("us", "UTC"), "amount": pl.Float64, "page": pl.String}
FIELDS = [
    Field("user", Int64),
    Field("shop", String),
    Field("ts", Timestamp),
    Field("amount", Float64),
    Field("page", String),
]
Row = tuple[int | None, str | None, datetime, float | None, str | None]


def bought(
    user: int | None, when: float, amount: float | None, page: str | None = "home", shop: str | None = "a"
) -> Row:
    return (user, shop, day(when), amount, page)


def write(folder: Path, rows: Sequence[Row]) -> BatchSource:
    pl.DataFrame(list(rows), schema=SCHEMA, orient="row").write_parquet(folder / "buys.parquet")
    config = FileConfig(uri=str(folder / "buys.parquet"), file_format="parquet", timestamp_field="ts")
    return BatchSource(name="buys", batch_config=config)


def view(source: BatchSource, aggregations: Sequence[Aggregation], **changes: Any) -> FeatureView:
    arguments: dict[str, Any] = {
        "mode": "polars",
        "name": "buying",
        "sources": [FilteredSource(source)],
        "entities": [USER],
        "schema": FIELDS,
        "batch_schedule": DAY,
        "aggregation_interval": HOUR,
        "feature_start_time": FIRST,
        "aggregations": aggregations,
        "online": True,
        "offline": True,
    }

    @batch_feature_view(**(arguments | changes))
    def buying(buys: pl.DataFrame) -> pl.DataFrame:
        return buys

    return buying


ROWS = [
    bought(1, 10.25, 1.0, "home"),
    bought(1, 10.3, 2.0, "cart"),
    bought(1, 10.5, None, None),
    bought(1, 10.6, 3.0, "home"),
    bought(1, 8.5, 8.0, "old"),
    bought(2, 7.5, 7.0, "far"),
    bought(None, 10.5, 5.0, "null"),
]
SERIES = TimeWindowSeries(series_start=-3 * DAY, window_size=DAY)
MANY = [
    Aggregation("amount", "sum", TimeWindow(DAY), name="sum_1d"),
    Aggregation("page", last(2), TimeWindow(DAY), name="pages"),
    Aggregation("page", first_distinct(5), TimeWindow(3 * DAY), name="first_pages"),
    Aggregation("page", approx_count_distinct(), TimeWindow(3 * DAY), name="how_many"),
    Aggregation("amount", approx_percentile(0.5), TimeWindow(3 * DAY), name="median"),
    Aggregation("amount", "count", SERIES, name="counts"),
    Aggregation("amount", "sum", LifetimeWindow(), name="ever"),
    Aggregation("ts", last(1), TimeWindow(DAY), name="times"),
]
NOTHING = {
    "sum_1d": None,
    "pages": [],
    "first_pages": [],
    "how_many": 0,
    "median": None,
    "counts": [0, 0, 0],
    "ever": None,
    "times": [],
}
SINCE = {"lifetime_start_time": day(2)}


def world(folder: Path, declared: Any, **keywords: Any) -> Workspace:
    workspace = workspace_of(folder, [declared], **keywords)
    materialize(workspace, declared.name)
    return workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("windows")
    return world(folder, view(write(folder, ROWS), MANY, **SINCE))


def offline(workspace: Workspace, keys: dict[str, Any]) -> dict[str, Any]:
    """Return what a spine row gets."""
    schema = {"user": pl.Int64, "shop": pl.String}
    asked = pl.DataFrame(
        {name: pl.Series([value], dtype=schema[name]) for name, value in keys.items()} | {"ts": [day(11)]}
    )
    frame = workspace.get_feature_view("buying").get_features_for_events(asked).to_arrow()
    (row,) = frame.drop_columns([*keys, "ts"]).to_pylist()
    return {name.removeprefix("buying__"): value for name, value in row.items()}


def test_a_vector_holds_lists_sketches_series_and_lifetimes(workspace: Workspace) -> None:
    vector = workspace.get_feature_view("buying").get_online_features({"user": 1})
    assert vector.to_dict() == {
        "sum_1d": 6.0,
        "pages": ["cart", "home"],
        "first_pages": ["old", "home", "cart"],
        "how_many": 3,
        "median": 2.5,
        "counts": [1, 0, 3],
        "ever": 14.0,
        "times": [day(10.6)],
    }
    assert set(vector.statuses.values()) == {PRESENT}


def test_online_is_what_a_spine_row_at_the_edge_gets(workspace: Workspace) -> None:
    handle = workspace.get_feature_view("buying")
    users = (1, 2, None, 3)
    many = handle.get_online_features_many([{"user": user} for user in users] * 3)
    for user, several in zip(users, many, strict=False):
        vector = handle.get_online_features({"user": user})
        assert vector.to_dict() == several.to_dict() == offline(workspace, {"user": user})


def test_an_unknown_key_has_empty_lists_of_its_own(workspace: Workspace) -> None:
    handle = workspace.get_feature_view("buying")
    vector = handle.get_online_features({"user": 3})
    assert vector.to_dict() == NOTHING
    assert set(vector.statuses.values()) == {MISSING_DATA}
    vector.to_dict()["pages"].append("mine")
    vector.to_dict()["counts"].append(1)
    assert handle.get_online_features({"user": 3}).to_dict() == NOTHING


def test_a_key_with_tiles_in_some_windows_has_defaults_in_the_others(workspace: Workspace) -> None:
    vector = workspace.get_feature_view("buying").get_online_features({"user": 2}).to_dict()
    assert vector == NOTHING | {"ever": 7.0}


def test_lists_go_into_frames_and_arrays(workspace: Workspace) -> None:
    vector = workspace.get_feature_view("buying").get_online_features({"user": 1}, True)
    frame = vector.to_pandas()
    assert frame.shape == (1, 9)
    assert frame.loc[0, "pages"] == ["cart", "home"]
    assert vector.to_pandas(return_effective_times=True).loc[2, "value"] == ["cart", "home"]
    values = vector.to_numpy()
    assert values.shape == (9,)
    assert values[0] == 1
    assert values[6] == [1, 0, 3]
    assert vector.to_numpy(return_effective_times=True).shape == (9, 2)


def test_every_feature_needs_its_own_windows_covered(tmp_path: Path) -> None:
    declared = view(write(tmp_path, ROWS), MANY, **SINCE)
    workspace = workspace_of(tmp_path, [declared])
    handle = workspace.get_feature_view("buying")
    materialize(workspace, "buying", day(10), day(11))
    vector = handle.get_online_features({"user": 1})
    short = {"sum_1d": 6.0, "pages": ["cart", "home"], "times": [day(10.6)]}
    assert vector.to_dict() == dict.fromkeys(vector.to_dict()) | short
    assert vector.statuses == dict.fromkeys(vector.statuses, UNKNOWN) | dict.fromkeys(short, PRESENT)
    materialize(workspace, "buying", day(8), day(10))
    vector = handle.get_online_features({"user": 1})
    assert {name for name, status in vector.statuses.items() if status is UNKNOWN} == {"ever"}
    materialize(workspace, "buying", day(2), day(8))
    assert handle.get_online_features({"user": 1}).to_dict()["ever"] == 14.0


def test_a_service_takes_some_features_in_its_own_order(tmp_path: Path) -> None:
    declared = view(write(tmp_path, ROWS), MANY, **SINCE)
    service = FeatureService(name="service", features=[declared[["counts", "pages", "sum_1d"]]])
    workspace = workspace_of(tmp_path, [declared, service])
    materialize(workspace, "buying")
    vector = workspace.get_feature_service("service").get_online_features({"user": 1}).to_dict()
    assert vector == {"buying.counts": [1, 0, 3], "buying.pages": ["cart", "home"], "buying.sum_1d": 6.0}


BY_SHOP = [
    Aggregation("amount", "sum", TimeWindow(DAY), name="sum_1d"),
    Aggregation("page", last(2), TimeWindow(3 * DAY), name="pages"),
    Aggregation("amount", "count", TimeWindow(3 * DAY), name="count_3d"),
]
SHOP_ROWS = [
    bought(1, 10.25, 1.0, "x", "b"),
    bought(1, 10.5, 2.0, "y", "a"),
    bought(1, 10.6, 4.0, "z", "a"),
    bought(1, 10.7, None, None, "c"),
    bought(1, 8.5, 8.0, "w", "d"),
    bought(2, 8.5, 9.0, "v", "a"),
]
OF_USER_1 = {
    "shop_keys_1d": ["a", "b", "c"],
    "shop_keys_3d": ["a", "b", "c", "d"],
    "sum_1d": [6.0, 1.0, None],
    "pages": [["y", "z"], ["x"], [], ["w"]],
    "count_3d": [2, 1, 0, 1],
}


def by_shop(folder: Path, rows: Sequence[Row] = SHOP_ROWS) -> FeatureView:
    return view(write(folder, rows), BY_SHOP, aggregation_secondary_key="shop")


def test_features_are_broken_down_by_the_secondary_key(tmp_path: Path) -> None:
    workspace = world(tmp_path, by_shop(tmp_path))
    handle = workspace.get_feature_view("buying")
    vector = handle.get_online_features({"user": 1})
    assert vector.to_dict() == OF_USER_1 == offline(workspace, {"user": 1})
    assert set(vector.statuses.values()) == {PRESENT}
    (other, unknown) = handle.get_online_features_many([{"user": 2}, {"user": 9}])
    assert other.to_dict() == {
        "shop_keys_1d": [],
        "shop_keys_3d": ["a"],
        "sum_1d": [],
        "pages": [["v"]],
        "count_3d": [1],
    }
    assert unknown.to_dict() == dict.fromkeys(OF_USER_1, []) == offline(workspace, {"user": 9})
    assert set(unknown.statuses.values()) == {MISSING_DATA}


def test_a_job_with_a_secondary_key_counts_a_tile_of_all_its_values_once(tmp_path: Path) -> None:
    workspace = workspace_of(tmp_path, [by_shop(tmp_path)])
    (report,) = materialize(workspace, "buying", day(10), day(11))
    assert report.rows == 4
    assert report.offline is not None
    assert report.offline.rows_written == 4
    assert report.online == OnlineWrite(rows_written=4, rows_skipped=0)
    (again,) = materialize(workspace, "buying", day(8), day(9))
    assert again.online == OnlineWrite(rows_written=2, rows_skipped=0)


def test_the_keys_of_a_window_can_be_asked_for_alone_and_out_of_order(tmp_path: Path) -> None:
    declared = by_shop(tmp_path)
    service = FeatureService(name="service", features=[declared[["count_3d", "shop_keys_1d"]]])
    workspace = workspace_of(tmp_path, [declared, service])
    materialize(workspace, "buying")
    vector = workspace.get_feature_service("service").get_online_features({"user": 1}).to_dict()
    assert vector == {"buying.count_3d": [2, 1, 0, 1], "buying.shop_keys_1d": ["a", "b", "c"]}


def test_an_overwrite_takes_secondary_keys_and_whole_keys_away(tmp_path: Path) -> None:
    workspace = world(tmp_path, by_shop(tmp_path))
    write(tmp_path, [bought(1, 10.25, 1.0, "x", "b")])
    materialize(workspace, "buying", day(8), day(11), overwrite=True)
    handle = workspace.get_feature_view("buying")
    left, gone = handle.get_online_features_many([{"user": 1}, {"user": 2}])
    assert left.to_dict() == {
        "shop_keys_1d": ["b"],
        "shop_keys_3d": ["b"],
        "sum_1d": [1.0],
        "pages": [["x"]],
        "count_3d": [1],
    }
    assert left.to_dict() == offline(workspace, {"user": 1})
    assert gone.to_dict() == dict.fromkeys(OF_USER_1, []) == offline(workspace, {"user": 2})


def test_an_overwrite_that_empties_a_key_leaves_it_with_empty_lists(tmp_path: Path) -> None:
    workspace = world(tmp_path, view(write(tmp_path, ROWS), MANY, **SINCE))
    write(tmp_path, ROWS[4:])
    materialize(workspace, "buying", day(10), day(11), overwrite=True)
    handle = workspace.get_feature_view("buying")
    vector = handle.get_online_features({"user": 1}).to_dict()
    assert vector == offline(workspace, {"user": 1})
    assert vector["pages"] == []
    assert vector["ever"] == 8.0
    assert vector["how_many"] == 1
    assert handle.get_online_features({"user": None}).to_dict()["pages"] == ["null"]


@pytest.mark.parametrize("secondary", [True, False])
def test_the_online_store_is_filled_from_what_is_offline(tmp_path: Path, secondary: bool) -> None:
    changes: dict[str, Any] = {"aggregation_secondary_key": "shop"} if secondary else SINCE
    aggregations = BY_SHOP if secondary else MANY
    rows = SHOP_ROWS if secondary else ROWS
    declared = view(write(tmp_path, rows), aggregations, **changes)
    workspace = workspace_of(tmp_path, [declared])
    materialize(workspace, "buying", day(2), day(11), online=False)
    (tmp_path / "buys.parquet").unlink()
    materialize(workspace, "buying", day(2), day(11), offline=False)
    handle = workspace.get_feature_view("buying")
    assert handle.get_online_features({"user": 1}).to_dict() == offline(workspace, {"user": 1})


def test_a_wildcard_read_answers_lists_of_lists(tmp_path: Path) -> None:
    source = write(tmp_path, SHOP_ROWS)
    declared = view(source, BY_SHOP, entities=[SHOP_USER], online_serving_index=["user"])
    service = FeatureService(name="service", features=[declared])
    workspace = workspace_of(tmp_path, [declared, service])
    materialize(workspace, "buying")
    vector = workspace.get_feature_service("service").get_online_features({"user": 1})
    assert vector.to_dict() == {
        "shop": ["a", "b", "c", "d"],
        "buying.sum_1d": [6.0, 1.0, None, None],
        "buying.pages": [["y", "z"], ["x"], [], ["w"]],
        "buying.count_3d": [2, 1, 0, 1],
    }
    assert set(vector.statuses.values()) == {PRESENT}


def test_before_the_features_begin_everything_is_null(tmp_path: Path) -> None:
    declared = view(write(tmp_path, ROWS), MANY, feature_start_time=day(12), **SINCE)
    now = [day(12)]
    workspace = world(tmp_path, declared, now=lambda: now[0])
    handle = workspace.get_feature_view("buying")
    assert handle.get_online_features({"user": 1}).to_dict()["ever"] == 14.0
    now[0] = day(12) - HOUR
    vector = handle.get_online_features({"user": 1})
    assert set(vector.to_dict().values()) == {None}
    assert set(vector.statuses.values()) == {MISSING_DATA}


def test_a_lifetime_begins_with_its_first_tile_and_lies_further_back_than_any_window(tmp_path: Path) -> None:
    rows = [bought(1, 2 - 1e-6, 100.0), bought(1, 2, 1.0), bought(1, 5, 2.0)]
    aggregations = [
        Aggregation("amount", "sum", LifetimeWindow(), name="ever"),
        Aggregation("page", last(9), LifetimeWindow(), name="pages"),
    ]
    workspace = world(tmp_path, view(write(tmp_path, rows), aggregations, **SINCE), now=day(200))
    vector = workspace.get_feature_view("buying").get_online_features({"user": 1})
    assert vector.to_dict() == {"ever": 3.0, "pages": ["home", "home"]}


def test_a_list_as_a_plain_feature_is_served_as_a_list(tmp_path: Path) -> None:
    times = [day(1), None]
    pl.DataFrame(
        {"user": [1], "ts": [day(10.5)], "times": [times], "words": [["a", None]], "odd": [[float("inf"), None]]}
    ).write_parquet(tmp_path / "lists.parquet")
    config = FileConfig(uri=str(tmp_path / "lists.parquet"), file_format="parquet", timestamp_field="ts")

    @batch_feature_view(
        mode="polars",
        sources=[FilteredSource(BatchSource(name="lists", batch_config=config))],
        entities=[USER],
        schema=[
            Field("user", Int64),
            Field("ts", Timestamp),
            Field("times", Array(Timestamp)),
            Field("words", Array(String)),
            Field("odd", Array(Float64)),
        ],
        batch_schedule=DAY,
        feature_start_time=FIRST,
        online=True,
        offline=True,
    )
    def lists(rows: pl.DataFrame) -> pl.DataFrame:
        return rows

    workspace = world(tmp_path, lists)
    vector = workspace.get_feature_view("lists").get_online_features({"user": 1})
    assert vector.to_dict() == {"times": times, "words": ["a", None], "odd": [float("inf"), None]}
