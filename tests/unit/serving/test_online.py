"""Vectors: what is there, what is not, what cannot be known, and as of when."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from featurekit_dagster import FeatureService, Int32, Int64, Workspace
from featurekit_dagster.domain.schema import Bool, Bytes, DataType, String, Timestamp
from featurekit_dagster.errors import ReadError
from featurekit_dagster.handles import FeatureViewHandle
from featurekit_dagster.serving.join_key_values import key_converter
from featurekit_dagster.serving.vector import MISSING_DATA, PRESENT, UNKNOWN, FeatureVector
from tests.support.visits import (
    DAY,
    HOUR,
    MICROSECOND,
    day,
    latest,
    materialize,
    totals,
    visit,
    workspace_of,
    write_visits,
)

DEFAULTS = {"sum_1d": None, "count_3d": 0, "visits_3d": None, "mean_3d": None}
ROWS = [visit(1, 10.5, 4.0, 2), visit(1, 9.5, 2.0, 3), visit(2, 7.5, 9.0, 9), visit(None, 10.25, 1.0, 1)]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("online")
    source = write_visits(folder, ROWS)
    workspace = workspace_of(folder, [latest(source, ttl=2 * DAY), totals(source)])
    for name in workspace.list_feature_views():
        materialize(workspace, name)
    return workspace


def statuses(vector: FeatureVector) -> set[Any]:
    return set(vector.statuses.values())


def times(vector: FeatureVector) -> set[datetime | None]:
    return set(vector.effective_times)


def test_a_vector_holds_the_newest_features(workspace: Workspace) -> None:
    newest = workspace.get_feature_view("newest").get_online_features({"user": 1})
    assert newest.to_dict() == {"amount": 4.0, "visits": 2, "page": "home"}
    rolled = workspace.get_feature_view("totals").get_online_features({"user": 1})
    assert rolled.to_dict() == {"sum_1d": 4.0, "count_3d": 2, "visits_3d": 5, "mean_3d": 3.0}
    for vector in (newest, rolled):
        assert statuses(vector) == {PRESENT}
        assert times(vector) == {day(11)}


def test_one_and_many_agree(workspace: Workspace) -> None:
    keys = [{"user": user} for user in (1, 2, None, 99, 1, -(2**63), 2**63 - 1, *range(100, 110))]
    for name in workspace.list_feature_views():
        handle = workspace.get_feature_view(name)
        for with_keys in (False, True):
            many = handle.get_online_features_many(keys, with_keys)
            one = [handle.get_online_features(key, with_keys) for key in keys]
            assert [v.to_dict(True) for v in many] == [v.to_dict(True) for v in one]
            assert [v.statuses for v in many] == [v.statuses for v in one]
        assert handle.get_online_features_many([]) == []


def test_an_unknown_entity_has_the_defaults_and_data_missing(workspace: Workspace) -> None:
    newest = workspace.get_feature_view("newest").get_online_features({"user": 99})
    assert newest.to_dict() == {"amount": None, "visits": None, "page": None}
    rolled = workspace.get_feature_view("totals").get_online_features({"user": 99})
    assert rolled.to_dict() == DEFAULTS
    assert statuses(newest) == statuses(rolled) == {MISSING_DATA}
    assert times(newest) == times(rolled) == {day(11)}


def test_none_is_a_key_of_its_own(workspace: Workspace) -> None:
    assert workspace.get_feature_view("newest").get_online_features({"user": None}).to_dict()["amount"] == 1.0


def test_an_expired_row_is_not_served(workspace: Workspace) -> None:
    vector = workspace.get_feature_view("newest").get_online_features({"user": 2})
    assert set(vector.to_dict().values()) == {None}
    assert statuses(vector) == {MISSING_DATA}


def test_a_row_expires_at_the_moment_of_the_clock_rule(tmp_path: Path) -> None:
    # visible until floor(ts + ttl) + schedule + delay
    now = [day(3)]
    view = latest(write_visits(tmp_path, [visit(1, 2.5)], delay=HOUR), ttl=36 * HOUR)
    workspace = workspace_of(tmp_path, [view], now=lambda: now[0])
    now[0] = day(3) + HOUR
    materialize(workspace, "newest")
    handle = workspace.get_feature_view("newest")
    expiry = day(5) + HOUR
    for moment, status in ((day(3) + HOUR, PRESENT), (expiry - MICROSECOND, PRESENT), (expiry, MISSING_DATA)):
        now[0] = moment
        vector = handle.get_online_features({"user": 1})
        assert statuses(vector) == {status}
        asked = pl.DataFrame({"user": [1], "ts": [moment]})
        offline = handle.get_features_for_events(asked, from_source=True).to_arrow()["newest__amount"].to_pylist()
        assert offline == [vector.to_dict()["amount"]]
        assert times(vector) == {day(3)}


def test_nothing_materialized_is_unknown_as_of_no_time(tmp_path: Path) -> None:
    source = write_visits(tmp_path, ROWS)
    workspace = workspace_of(tmp_path, [latest(source), totals(source)])
    for name in workspace.list_feature_views():
        handle = workspace.get_feature_view(name)
        for vector in (handle.get_online_features({"user": 1}), *handle.get_online_features_many([{"user": 1}] * 9)):
            assert set(vector.to_dict().values()) == {None}
            assert statuses(vector) == {UNKNOWN}
            assert times(vector) == {None}


def test_a_feature_whose_window_meets_a_hole_is_unknown_and_the_others_are_not(tmp_path: Path) -> None:
    source = write_visits(tmp_path, ROWS)
    workspace = workspace_of(tmp_path, [latest(source), totals(source)])
    for name in workspace.list_feature_views():
        materialize(workspace, name, day(8), day(9))
        materialize(workspace, name, day(10), day(11))
    rolled = workspace.get_feature_view("totals")
    for user, total, status in ((1, 4.0, PRESENT), (2, None, MISSING_DATA)):
        for vector in (
            rolled.get_online_features({"user": user}),
            rolled.get_online_features_many([{"user": user}])[0],
        ):
            assert vector.to_dict() == dict.fromkeys(DEFAULTS) | {"sum_1d": total}
            assert vector.statuses == dict.fromkeys(DEFAULTS, UNKNOWN) | {"sum_1d": status}
            assert times(vector) == {day(11)}
    newest = workspace.get_feature_view("newest")
    assert statuses(newest.get_online_features({"user": 1})) == {PRESENT}
    absent = newest.get_online_features({"user": 99})
    assert statuses(absent) == {UNKNOWN}
    assert set(absent.to_dict().values()) == {None}


def test_an_older_row_behind_a_hole_is_unknown(tmp_path: Path) -> None:
    workspace = workspace_of(tmp_path, [latest(write_visits(tmp_path, [visit(1, 8.5)]))])
    materialize(workspace, "newest", day(8), day(9))
    materialize(workspace, "newest", day(10), day(11))
    assert statuses(workspace.get_feature_view("newest").get_online_features({"user": 1})) == {UNKNOWN}
    materialize(workspace, "newest", day(9), day(10))
    assert statuses(workspace.get_feature_view("newest").get_online_features({"user": 1})) == {PRESENT}


def test_the_effective_time_never_passes_coverage_nor_the_clock(tmp_path: Path) -> None:
    now = [day(6)]
    source = write_visits(tmp_path, [visit(1, n + 0.5) for n in range(1, 11)], delay=3 * HOUR)
    workspace = workspace_of(tmp_path, [totals(source)], now=lambda: now[0])
    handle = workspace.get_feature_view("totals")
    first = workspace.repo.view("totals").materialization_start
    assert first is not None
    materialize(workspace, "totals", first, day(6))
    # data delay: the clock's edge is a day behind until three in the morning, whatever is there
    for moment, effective in (
        (day(6), day(5)),
        (day(6) + 3 * HOUR - MICROSECOND, day(5)),
        (day(6) + 3 * HOUR, day(6)),
        (day(7) + 3 * HOUR, day(6)),
        (day(30), day(6)),
    ):
        now[0] = moment
        vector = handle.get_online_features({"user": 1})
        assert times(vector) == {effective}
        # data of the day before the edge, not of any later one
        assert vector.to_dict()["sum_1d"] == 1.0
        assert vector.to_dict()["count_3d"] == 3


def test_the_effective_time_asks_the_same_offline(workspace: Workspace) -> None:
    for name in workspace.list_feature_views():
        handle = workspace.get_feature_view(name)
        vector = handle.get_online_features({"user": 1})
        asked = pl.DataFrame({"user": [1], "ts": [vector.effective_times[0]]})
        (row,) = handle.get_features_for_events(asked).to_arrow().drop_columns(["user", "ts"]).to_pylist()
        assert list(row.values()) == list(vector.to_dict().values())


def test_features_that_have_not_begun_are_missing(tmp_path: Path) -> None:
    source = write_visits(tmp_path, [visit(1, 9.5)])
    workspace = workspace_of(tmp_path, [totals(source, feature_start_time=day(11)), latest(source)], now=day(11))
    materialize(workspace, "totals", day(8), day(10))
    handle = workspace.get_feature_view("totals")
    for vector in (handle.get_online_features({"user": 1}), handle.get_online_features_many([{"user": 1}])[0]):
        assert set(vector.to_dict().values()) == {None}
        assert statuses(vector) == {MISSING_DATA}
    materialize(workspace, "totals", day(10), day(11))
    assert handle.get_online_features({"user": 1}).to_dict()["count_3d"] == 1


def test_a_view_that_is_offline_only_serves_no_vector(tmp_path: Path) -> None:
    source = write_visits(tmp_path, ROWS)
    view = latest(source, online=False)
    service = FeatureService(name="both", features=[totals(source), view])
    workspace = workspace_of(tmp_path, [service])
    message = r"newest is not materialized online \(online=False\)"
    with pytest.raises(ReadError, match=f"^newest: {message}"):
        workspace.get_feature_view("newest").get_online_features({"user": 1})
    with pytest.raises(ReadError, match=f"^both: {message}"):
        workspace.get_feature_service("both").get_online_features({"user": 1})


# ---- the vector ------------------------------------------------------------------------------------------------------


def test_a_vector_turns_into_a_dict_a_frame_and_an_array(workspace: Workspace) -> None:
    vector = workspace.get_feature_view("newest").get_online_features({"user": 1})
    assert vector.to_dict(return_effective_times=True)["visits"] == {"value": 2, "effective_time": day(11)}
    assert vector.to_pandas().to_dict("records") == [vector.to_dict()]
    timed = vector.to_pandas(return_effective_times=True)
    assert timed.columns.tolist() == ["name", "value", "effective_time"]
    assert timed["name"].tolist() == ["amount", "visits", "page"]
    assert timed["effective_time"].tolist() == [pd.Timestamp(day(11))] * 3
    assert vector.to_numpy().tolist() == [4.0, 2, "home"]
    assert vector.to_numpy(return_effective_times=True).tolist() == [[4.0, day(11)], [2, day(11)], ["home", day(11)]]
    assert vector.slo_info == {"PRESENT": 3, "MISSING_DATA": 0, "UNKNOWN": 0}
    assert "visits" in repr(vector)


def test_lists_stay_one_value_each_in_an_array() -> None:
    vector = FeatureVector(["a", "b"], [[1, 2], [3, 4]], [PRESENT] * 2, [None] * 2)
    assert vector.to_numpy().tolist() == [[1, 2], [3, 4]]
    assert vector.to_numpy().shape == (2,)
    assert vector.to_numpy(return_effective_times=True).shape == (2, 2)
    assert vector.to_pandas().shape == (1, 2)


def test_join_keys_are_in_the_vector_when_asked_for(workspace: Workspace) -> None:
    vector = workspace.get_feature_view("newest").get_online_features({"user": 1}, include_join_keys_in_response=True)
    assert list(vector.to_dict()) == ["user", "amount", "visits", "page"]
    assert vector.to_dict(return_effective_times=True)["user"] == {"value": 1, "effective_time": None}


# ---- join keys -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "join keys user missing; give user"),
        ({"user": 1, "shop": 271828}, "join keys shop unknown; give user"),
        ({"shop": 271828}, "join keys user missing and shop unknown; give user"),
        ({"user": "271828"}, "join key 'user' is a str; it must be Int64"),
        ({"user": 271828.0}, "join key 'user' is a float; it must be Int64"),
        ({"user": True}, "join key 'user' is a bool; it must be Int64"),
        ({"user": np.True_}, "join key 'user' is a bool.*; it must be Int64"),
        ({"user": np.array([271828, 2])}, "join key 'user' is a ndarray; it must be Int64"),
        ({"user": 271828 * 2**64}, "join key 'user' is out of the range of Int64"),
        ([271828], "join_keys is a list; give a mapping of user"),
        (None, "join_keys is a NoneType; give a mapping of user"),
    ],
)
def test_keys_that_are_wrong_are_refused_without_their_values(workspace: Workspace, keys: Any, message: str) -> None:
    handle: FeatureViewHandle = workspace.get_feature_view("newest")
    for read in (handle.get_online_features, lambda given: handle.get_online_features_many([given])):
        with pytest.raises(ReadError, match=f"^newest: {message}$") as error:
            read(keys)
        assert "271828" not in str(error.value)


@pytest.mark.parametrize(
    ("dtype", "right", "wrong"),
    [
        (Int64, [0, 2**63 - 1, -(2**63), np.int8(3), np.uint64(7)], [2**63, "1", 1.0, b"1", np.float64(1)]),
        (Int32, [2**31 - 1, -(2**31), np.int64(3)], [2**31, -(2**31) - 1, np.int64(2**31), False]),
        (String, ["", "ä", np.str_("x")], [1, b"x", None.__class__]),
        (Bytes, [b"", b"\x00"], ["x", 1, bytearray(b"x")]),
        (Bool, [True, False, np.True_], [1, 0, "True"]),
        (Timestamp, [day(1), day(1).replace(tzinfo=None), pd.Timestamp(day(1))], ["2024-01-01", 1, pd.NaT]),
    ],
)
def test_a_key_value_is_of_its_declared_type(dtype: DataType, right: list[Any], wrong: list[Any]) -> None:
    convert = key_converter("view", "key", dtype)
    assert convert(None) is None
    for value in right:
        stored = convert(value)
        assert stored == (day(1) if dtype == Timestamp else value)
        assert type(stored) in {int, str, bytes, bool, datetime, type(value)}
    for value in wrong:
        with pytest.raises(ReadError, match="^view: join key 'key' is"):
            convert(value)
