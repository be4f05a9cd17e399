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
    String,
    Timestamp,
    TimeWindow,
    batch_feature_view,
)
from featurekit_dagster.planning.fingerprint import code_text, fingerprint

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
    assert code_text(made["f"]) != code_text(made["g"])
    assert code_text(made["f"]) == code_text(made["f"])
