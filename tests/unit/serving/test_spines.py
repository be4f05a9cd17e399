"""A spine comes back row for row, with what its rows could have known."""

from __future__ import annotations

from datetime import timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from featurekit_dagster import Workspace
from featurekit_dagster.errors import SpineError, TectonValidationError
from featurekit_dagster.handles import FeatureViewHandle
from featurekit_dagster.serving.frame import FeatureFrame
from tests.support.visits import (
    DAY,
    MICROSECOND,
    day,
    latest,
    materialize,
    totals,
    visit,
    workspace_of,
    write_visits,
)

NOON = day(5.5)
NAIVE_NOON = NOON.replace(tzinfo=None)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("spines")
    rows = [
        visit(1, 2.5, 10.0, 2**53 + 1),
        visit(2, 3.25, 20.0, 7),
        visit(None, 3.5, 30.0, 8),
        visit(-3, 4, None, None),
    ]
    source = write_visits(folder, rows)
    workspace = workspace_of(folder, [latest(source), totals(source)])
    for name in workspace.list_feature_views():
        materialize(workspace, name)
    return workspace


@pytest.fixture
def newest(workspace: Workspace) -> FeatureViewHandle:
    return workspace.get_feature_view("newest")


def visits(frame: FeatureFrame) -> list[Any]:
    return frame.to_arrow()["newest__visits"].to_pylist()


KNOWN = [2**53 + 1, 7, None]


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"user": [1, 2, 9], "ts": [NOON] * 3}),
        pl.DataFrame({"user": [1, 2, 9], "ts": [NOON] * 3}),
        pl.LazyFrame({"user": [1, 2, 9], "ts": [NOON] * 3}),
        pa.table({"user": [1, 2, 9], "ts": [NOON] * 3}),
        pa.RecordBatch.from_pydict({"user": [1, 2, 9], "ts": [NOON] * 3}),
        FeatureFrame(pa.table({"user": [1, 2, 9], "ts": [NOON] * 3})),
    ],
    ids=lambda frame: f"{type(frame).__module__.split('.')[0]}.{type(frame).__name__}",
)
def test_every_kind_of_frame_is_a_spine(newest: FeatureViewHandle, frame: Any) -> None:
    answer = newest.get_features_for_events(frame)
    features = ["newest__amount", "newest__visits", "newest__page"]
    assert answer.columns == answer.to_arrow().column_names == ["user", "ts", *features]
    assert visits(answer) == KNOWN
    assert answer.to_polars()["newest__visits"].to_list() == KNOWN
    assert len(answer) == len(answer.to_pandas()) == 3
    assert answer.to_pandas()["newest__visits"].dtype == pd.Int64Dtype()


def test_a_pandas_spine_keeps_index_order_duplicates_and_the_types_of_other_columns(newest: FeatureViewHandle) -> None:
    spine = pd.DataFrame(
        {
            "label": pd.Categorical(["a", "b", "a", None]),
            "user": [2, 1, 2, 1],
            "anything": [object(), {1}, None, 3.5],
            "ts": [NOON] * 4,
            "small": np.array([1, 2, 3, 4], dtype="int8"),
            "day": pd.period_range("2024-01-01", periods=4, freq="D"),
        },
        index=pd.Index([7, 7, 3, 1], name="row"),
    )
    before = spine.copy()
    answer = newest.get_features_for_events(spine).to_pandas()
    assert answer.index.equals(spine.index)
    assert answer.index.name == "row"
    others = ["label", "user", "anything", "small", "day"]
    pd.testing.assert_frame_equal(answer[others], spine[others])
    assert list(answer.columns[:6]) == list(spine.columns)
    assert answer["newest__visits"].tolist() == [7, 2**53 + 1, 7, 2**53 + 1]
    pd.testing.assert_frame_equal(spine, before)


def test_a_polars_spine_keeps_the_types_of_other_columns(newest: FeatureViewHandle) -> None:
    spine = pl.DataFrame(
        {
            "user": [2, 1],
            "ts": [NOON, NOON],
            "kind": pl.Series(["x", "y"], dtype=pl.Enum(["x", "y"])),
            "group": pl.Series(["x", "y"], dtype=pl.Categorical),
            "long": pl.Series([timedelta(1), None]),
            "thing": pl.Series([object(), object()], dtype=pl.Object),
        }
    )
    answer = newest.get_features_for_events(spine).to_polars()
    others = ["user", "kind", "group", "long", "thing"]
    assert answer.select(others).schema == spine.select(others).schema
    assert answer["newest__visits"].to_list() == [7, 2**53 + 1]


def test_a_lazy_spine_is_computed_once(newest: FeatureViewHandle) -> None:
    calls = []

    def counted(frame: pl.DataFrame) -> pl.DataFrame:
        calls.append(1)
        return frame

    spine = pl.LazyFrame({"user": [1], "ts": [NOON]}).map_batches(counted)
    answer = newest.get_features_for_events(spine)
    assert answer.columns[:2] == ["user", "ts"]
    assert visits(answer) == [2**53 + 1]
    assert len(calls) == 1


@pytest.mark.parametrize(
    "times",
    [
        pd.Series([NAIVE_NOON]),
        pd.Series([NOON]),
        pd.Series([NOON.astimezone(timezone(timedelta(hours=-9)))]),
        pd.Series([NAIVE_NOON]).astype("datetime64[ns]"),
        pd.Series([NAIVE_NOON]).astype("datetime64[s]"),
        pd.Series([NOON], dtype=object),
    ],
    ids=["naive", "aware", "another zone", "nanoseconds", "seconds", "objects"],
)
def test_times_of_every_kind_mean_the_same_moment_and_come_back_aware(
    newest: FeatureViewHandle, times: pd.Series[Any]
) -> None:
    answer = newest.get_features_for_events(pd.DataFrame({"user": [1], "ts": times}))
    assert visits(answer) == [2**53 + 1]
    assert answer.schema.field("ts").type == pa.timestamp("us", "UTC")
    assert answer.to_pandas()["ts"].tolist() == [pd.Timestamp(NOON)]
    assert str(answer.to_pandas()["ts"].dtype.tz) == "UTC"


def test_a_row_effective_one_microsecond_later_is_not_joined(newest: FeatureViewHandle) -> None:
    visible = day(3)
    spine = pl.DataFrame({"user": [1, 1], "ts": [visible - MICROSECOND, visible]})
    assert visits(newest.get_features_for_events(spine)) == [None, 2**53 + 1]


def test_a_time_between_two_microseconds_sees_what_the_earlier_one_sees(newest: FeatureViewHandle) -> None:
    nanoseconds = int(day(3).timestamp()) * 10**9
    times = pd.to_datetime([nanoseconds - 1, nanoseconds, nanoseconds + 1])
    assert visits(newest.get_features_for_events(pd.DataFrame({"user": [1] * 3, "ts": times}))) == [
        None,
        2**53 + 1,
        2**53 + 1,
    ]


@pytest.mark.parametrize("view", ["newest", "totals"])
def test_a_row_without_time_has_no_features(workspace: Workspace, view: str) -> None:
    handle = workspace.get_feature_view(view)
    spine = pd.DataFrame({"user": [1, 1], "ts": [pd.NaT, pd.Timestamp("2024-01-03")]})
    answer = handle.get_features_for_events(spine).to_pandas()
    names = [f"{view}__{name}" for name in handle.features]
    assert answer[names].isna().all(axis=1).tolist() == [True, False]
    assert answer["ts"].isna().tolist() == [True, False]


@pytest.mark.parametrize("view", ["newest", "totals"])
@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"user": np.array([], "int64"), "ts": np.array([], "datetime64[us]"), "x": np.array([], "int8")}),
        pd.DataFrame({"user": [], "ts": [], "x": []}, dtype=object),
        pl.DataFrame(schema={"user": pl.Int64, "ts": pl.Datetime("us"), "x": pl.Int8}),
        pa.table({"user": pa.array([], pa.int64()), "ts": pa.array([], pa.timestamp("us")), "x": pa.nulls(0)}),
    ],
    ids=["pandas", "pandas without types", "polars", "Arrow"],
)
def test_no_row_in_is_no_row_out(workspace: Workspace, view: str, frame: Any) -> None:
    handle = workspace.get_feature_view(view)
    answer = handle.get_features_for_events(frame, timestamp_key="ts")
    assert len(answer) == 0
    assert answer.to_pandas().columns.tolist() == ["user", "ts", "x", *(f"{view}__{name}" for name in handle.features)]


def test_null_is_a_key_and_equals_null(newest: FeatureViewHandle) -> None:
    assert visits(newest.get_features_for_events(pl.DataFrame({"user": [None, 1], "ts": [NOON, NOON]}))) == [
        8,
        2**53 + 1,
    ]


def test_integer_keys_may_come_as_floats_but_only_whole_ones(newest: FeatureViewHandle) -> None:
    spine = pd.DataFrame({"user": [1.0, np.nan, 2.0], "ts": [NOON] * 3})
    answer = newest.get_features_for_events(spine)
    assert visits(answer) == [2**53 + 1, 8, 7]
    assert answer.to_pandas()["user"].dtype == np.float64
    with pytest.raises(SpineError, match="'user' is double, and its values do not all fit the join key's Int64") as e:
        newest.get_features_for_events(pd.DataFrame({"user": [1.37], "ts": [NOON]}))
    assert "1.37" not in str(e.value)


@pytest.mark.parametrize(
    "keys",
    [
        pd.Series([1, 2, 9], dtype="int8"),
        pd.Series([1, 2, 9], dtype="uint64"),
        pd.Series([1, 2, 9], dtype="Int64"),
        pd.Series([1, 2, 9], dtype="category"),
        pd.Series([1, 2, 9], dtype=object),
    ],
    ids=lambda series: str(series.dtype),
)
def test_integers_of_every_width_are_keys(newest: FeatureViewHandle, keys: pd.Series[Any]) -> None:
    assert visits(newest.get_features_for_events(pd.DataFrame({"user": keys, "ts": [NOON] * 3}))) == KNOWN


def test_integers_of_an_aggregate_stay_exact_integers(workspace: Workspace) -> None:
    spine = pd.DataFrame({"user": [1, 9], "ts": [day(4)] * 2})
    answer = workspace.get_feature_view("totals").get_features_for_events(spine).to_pandas()
    assert answer["totals__visits_3d"].dtype == pd.Int64Dtype()
    assert answer["totals__visits_3d"].tolist() == [2**53 + 1, pd.NA]
    assert answer["totals__count_3d"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ({"ts": [NOON]}, "join key 'user' is not in the spine; it has ts"),
        ({"user": ["secret"], "ts": [NOON]}, "column 'user' is (large_)?string, but the join key is Int64"),
        ({"user": [True], "ts": [NOON]}, "column 'user' is bool, but the join key is Int64"),
        ({"user": [1], "x": [1.5]}, "the spine has no time column; besides join keys it has x; add one"),
        ({"user": [1], "a": [NOON], "b": [NOON]}, r"the spine has 2 time columns \(a, b\); name the one to use"),
        ({"user": [1], "ts": [NOON], "newest__page": [1]}, "columns with the names of features: newest__page"),
        ({"user": [1], "ts": ["2024-01-05"]}, "the spine has no time column"),
    ],
)
def test_a_spine_that_cannot_be_read_is_refused_without_its_values(
    newest: FeatureViewHandle, frame: dict[str, Any], message: str
) -> None:
    for kind in (pd.DataFrame, pl.DataFrame, pa.table):
        with pytest.raises(SpineError, match=message) as error:
            newest.get_features_for_events(kind(frame))
        assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (["2024-01-05"], "timestamp_key 'ts' is (large_)?string, not a timestamp; convert it"),
        ([20240105], "timestamp_key 'ts' is int64, not a timestamp; convert it"),
        ([pd.NaT], "timestamp_key 'ts' is empty in every row"),
        ([None], "timestamp_key 'ts' is empty in every row"),
    ],
)
def test_a_time_column_that_is_named_has_to_hold_times(
    newest: FeatureViewHandle, times: list[Any], message: str
) -> None:
    with pytest.raises(SpineError, match=message):
        newest.get_features_for_events(pd.DataFrame({"user": [1], "ts": times}), timestamp_key="ts")


@pytest.mark.parametrize(("unit", "time"), [("s", 2**62), ("us", 2**59)])
def test_a_time_after_the_last_year_is_refused_without_its_value(
    newest: FeatureViewHandle, unit: str, time: int
) -> None:
    spine = pa.table({"user": [1], "ts": pa.array([time], pa.timestamp(unit))})
    with pytest.raises(SpineError, match="timestamp_key 'ts' has times after the year 9999") as error:
        newest.get_features_for_events(spine)
    assert str(time) not in str(error.value)


def test_a_timestamp_key_that_is_not_there_is_refused(newest: FeatureViewHandle) -> None:
    with pytest.raises(SpineError, match="timestamp_key 'when' is not in the spine; it has user, ts"):
        newest.get_features_for_events(pd.DataFrame({"user": [1], "ts": [NOON]}), timestamp_key="when")


def test_something_else_is_no_spine(newest: FeatureViewHandle) -> None:
    for nothing in (5, [1, 2], {"user": [1]}):
        with pytest.raises(TectonValidationError, match="is no frame; give a pandas, polars or Arrow table"):
            newest.get_features_for_events(nothing)


def test_a_key_column_of_mixed_objects_is_refused_without_its_values(newest: FeatureViewHandle) -> None:
    for mixed in ([1, "secret"], ["secret", 1], [2**70, 1], [object(), 1]):
        spine = pd.DataFrame({"user": pd.Series(mixed, dtype=object), "ts": [NOON] * 2})
        with pytest.raises(SpineError, match="column 'user'") as error:
            newest.get_features_for_events(spine)
        assert "secret" not in str(error.value)
        assert str(2**70) not in str(error.value)


def test_other_columns_may_have_any_name_and_hold_anything(newest: FeatureViewHandle) -> None:
    spine = pd.DataFrame({"user": [1], "ts": [NOON], 3: [2**70], ("a", 1): [object()]})
    answer = newest.get_features_for_events(spine).to_pandas()
    assert list(answer.columns[:4]) == list(spine.columns)
    assert answer["newest__visits"].tolist() == [2**53 + 1]


def test_the_answer_of_one_view_is_a_spine_for_another(workspace: Workspace) -> None:
    spine = pl.DataFrame({"user": [1, 2], "ts": [day(3), day(4)]})
    first = workspace.get_feature_view("newest").get_features_for_events(spine)
    both = workspace.get_feature_view("totals").get_features_for_events(first)
    assert both.columns[:2] == ["user", "ts"]
    assert both.to_arrow()["totals__sum_1d"].to_pylist() == [10.0, 20.0]
    assert visits(both) == [2**53 + 1, 7]


def test_hundreds_of_features_are_joined_without_a_warning(tmp_path: Path) -> None:
    from featurekit_dagster import Aggregation, TimeWindow

    source = write_visits(tmp_path, [visit(1, 2.5)])
    windows = [Aggregation("amount", "sum", TimeWindow(n * DAY)) for n in range(1, 151)]
    workspace = workspace_of(tmp_path, [totals(source, aggregations=windows, aggregation_interval=DAY)])
    handle = workspace.get_feature_view("totals")
    answer = handle.get_features_for_events(pd.DataFrame({"user": [1], "ts": [day(3)]}), from_source=True).to_pandas()
    assert answer.shape == (1, 152)
    assert answer.iloc[0, 2:].tolist() == [1.0] * 150
