"""What changes a view's fingerprint, and what does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from featurekit_dagster import (
    Aggregation,
    BatchSource,
    Entity,
    FeatureView,
    Field,
    FileConfig,
    FilteredSource,
    Int64,
    LifetimeWindow,
    PushConfig,
    StreamSource,
    String,
    Timestamp,
    TimeWindow,
    TimeWindowSeries,
    approx_percentile,
    batch_feature_view,
    last,
    last_distinct,
    stream_feature_view,
)
from featurekit_dagster.planning.called_code import called_code_text
from featurekit_dagster.planning.fingerprint import fingerprint

DAY = timedelta(days=1)
SOURCE = BatchSource(name="s", batch_config=FileConfig(uri="f.parquet", file_format="parquet", timestamp_field="ts"))


def view(
    function: Callable[..., str], *, windows: tuple[int, ...] = (1,), names: tuple[str, ...] = ("sum",)
) -> FeatureView:
    return batch_feature_view(
        name="v",
        sources=[FilteredSource(SOURCE)],
        entities=[Entity(name="user", join_keys=[Field("user_id", String)])],
        mode="sql",
        schema=[Field("user_id", String), Field("ts", Timestamp), Field("n", Int64)],
        aggregation_interval=DAY,
        batch_schedule=DAY,
        aggregations=[
            Aggregation(column="n", function=name, time_window=TimeWindow(window_size=days * DAY))
            for name in names
            for days in windows
        ],
        feature_start_time=datetime(2024, 1, 1, tzinfo=UTC),
        offline=True,
    )(function)


def plain(source: str) -> str:
    return f"SELECT user_id, ts, n FROM {source}"


def same(source: str) -> str:
    """Say what it does."""
    # and why
    return f"SELECT user_id, ts, n FROM {source}"


def other(source: str) -> str:
    return f"SELECT user_id, ts, n + 1 AS n FROM {source}"


def test_comments_docstrings_names_and_layout_change_nothing() -> None:
    assert fingerprint(view(plain)) == fingerprint(view(same))


def test_code_changes_it() -> None:
    assert fingerprint(view(plain)) != fingerprint(view(other))


def test_window_over_stored_partial_columns_changes_nothing_and_a_new_partial_column_does() -> None:
    assert fingerprint(view(plain)) == fingerprint(view(plain, windows=(1, 7)))
    assert fingerprint(view(plain)) != fingerprint(view(plain, names=("sum", "max")))


@pytest.mark.parametrize(
    "change",
    [
        {"join_keys": (Field("user_id", Int64),)},
        {"aggregation_interval": DAY / 2},
        {"batch_schedule": 2 * DAY},
        {"mode": "pandas"},
    ],
    ids=str,
)
def test_what_is_stored_changes_it(change: dict[str, object]) -> None:
    assert fingerprint(replace(view(plain), **change)) != fingerprint(view(plain))


@pytest.mark.parametrize(
    "change",
    [{"description": "d"}, {"owner": "o"}, {"tags": {"a": "b"}}, {"online": True}, {"ttl": DAY}, {"name": "w"}],
    ids=str,
)
def test_what_is_only_said_about_it_changes_nothing(change: dict[str, object]) -> None:
    assert fingerprint(replace(view(plain), **change)) == fingerprint(view(plain))


def test_function_without_source_is_told_by_its_instructions() -> None:
    made: dict[str, Callable[..., str]] = {}
    exec("def f(source): return 'a' + source\ndef g(source): return 'b' + source", made)
    assert called_code_text(made["f"]) != called_code_text(made["g"])
    assert called_code_text(made["f"]) == called_code_text(made["f"])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, "bd3d09575cebb2c1"), ({"names": ("sum", "variance")}, "7aeda42d175c8e95")],
)
def test_fingerprints_stay_what_they_were_because_stored_rows_are_known_by_them(
    changes: dict[str, tuple[str, ...]], expected: str
) -> None:
    assert fingerprint(view(plain, **changes)) == expected  # type: ignore[arg-type]


def with_page(**changes: object) -> FeatureView:
    """Return a view of sums over one column, with a text column beside it."""
    given: dict[str, object] = {
        "name": "v",
        "sources": [FilteredSource(SOURCE)],
        "entities": [Entity(name="user", join_keys=[Field("user_id", String)])],
        "mode": "sql",
        "schema": [Field("user_id", String), Field("ts", Timestamp), Field("n", Int64), Field("page", String)],
        "aggregation_interval": DAY,
        "batch_schedule": DAY,
        "aggregations": [Aggregation(column="n", function="sum", time_window=DAY)],
        "feature_start_time": datetime(2024, 1, 1, tzinfo=UTC),
        "offline": True,
    }
    return batch_feature_view(**(given | changes))(plain)  # type: ignore[arg-type]


def test_a_secondary_key_changes_it_because_tiles_are_of_it_too() -> None:
    kinds = [fingerprint(with_page(**changes)) for changes in ({}, {"aggregation_secondary_key": "page"})]
    assert len(set(kinds)) == 2


def test_events_are_not_tiles() -> None:
    events = with_page(compaction_enabled=True)
    assert fingerprint(events) != fingerprint(with_page())
    other = [Aggregation("n", "max", 7 * DAY), Aggregation("n", last(3), DAY)]
    assert fingerprint(with_page(compaction_enabled=True, aggregations=other)) == fingerprint(events)
    more = [*other, Aggregation("page", last(3), DAY)]
    assert fingerprint(with_page(compaction_enabled=True, aggregations=more)) != fingerprint(events)


def test_the_size_of_a_stored_list_or_sketch_changes_it() -> None:
    pairs = [(last(3), last(4)), (last(3), last_distinct(3)), (approx_percentile(0.5), approx_percentile(0.5, 200))]
    for one, other in pairs:
        first, second = (with_page(aggregations=[Aggregation("n", f, DAY)]) for f in (one, other))
        assert fingerprint(first) != fingerprint(second)
    shares = [with_page(aggregations=[Aggregation("n", approx_percentile(p), DAY)]) for p in (0.5, 0.9)]
    assert len(set(map(fingerprint, shares))) == 1


def test_windows_over_stored_tiles_change_nothing_wherever_they_begin_and_however_many_there_are() -> None:
    series = TimeWindowSeries(series_start=-3 * DAY, window_size=DAY)
    windows = (DAY, TimeWindow(DAY, -DAY), series, LifetimeWindow())
    starts = [datetime(2023, month, 1, tzinfo=UTC) for month in (1, 2)]
    views = [with_page(aggregations=[Aggregation("n", "sum", window)]) for window in windows[:3]]
    views += [
        with_page(aggregations=[Aggregation("n", "sum", windows[3])], lifetime_start_time=start) for start in starts
    ]
    assert len(set(map(fingerprint, views))) == 1


def test_rows_that_pass_through_are_not_rows_that_are_transformed() -> None:
    stream = StreamSource(name="s", stream_config=PushConfig(), batch_config=SOURCE.batch_config)
    columns = [Field("user_id", String), Field("ts", Timestamp), Field("n", Int64)]
    user = [Entity(name="user", join_keys=["user_id"])]
    passed = stream_feature_view(source=stream, entities=user, schema=columns, name="v")
    made = stream_feature_view(source=stream, entities=user, schema=columns, name="v", mode="sql")(plain)
    assert fingerprint(passed) != fingerprint(made)
    assert fingerprint(passed) == fingerprint(replace(passed, description="d"))
