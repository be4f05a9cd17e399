"""The parts of integration tests that need no stores: made-up events, and how sets of rows are compared."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurekit_dagster import (
    Aggregation,
    BatchSource,
    Entity,
    FeatureView,
    Field,
    FileConfig,
    FilteredSource,
    Float64,
    String,
    Timestamp,
    TimeWindow,
    batch_feature_view,
)
from featurekit_dagster.errors import EventsNotUsable
from featurekit_dagster.execution.integration_events import generated_events, given_events
from featurekit_dagster.execution.integration_report import IntegrationReport, StepState
from featurekit_dagster.execution.integration_rows import cells, row_difference
from featurekit_dagster.execution.integration_view import interval_of_events
from featurekit_dagster.intervals import Interval

DAY, FIRST = timedelta(days=1), datetime(2024, 1, 1, tzinfo=UTC)
WEEK = Interval(FIRST, FIRST + 7 * DAY)


@pytest.fixture
def view(tmp_path: Path) -> FeatureView:
    """A view of a file that does not exist yet."""
    config = FileConfig(uri=str(tmp_path / "visits.parquet"), file_format="parquet", timestamp_field="seen_at")

    @batch_feature_view(
        sources=[FilteredSource(BatchSource(name="visits", batch_config=config))],
        entities=[Entity(name="user", join_keys=["user"])],
        mode="sql",
        schema=[Field("user", String), Field("seen_at", Timestamp), Field("spent", Float64)],
        aggregations=[Aggregation("spent", "sum", TimeWindow(DAY))],
        aggregation_interval=DAY,
        batch_schedule=DAY,
        feature_start_time=FIRST,
    )
    def visits_of_user(visits: str) -> str:
        return f"FROM {visits}"

    return visits_of_user


def rows(*given: tuple[Any, ...]) -> pa.Table:
    users, days, spent = zip(*given, strict=True) if given else ((), (), ())
    times = pa.array([FIRST + day * DAY for day in days], pa.timestamp("us", "UTC"))
    return pa.table({"user": pa.array(users, pa.string()), "seen_at": times, "spent": pa.array(spent, pa.float64())})


def made_up(view: FeatureView, seed: int = 0, count: int = 200) -> pa.Table:
    return generated_events(view, "visits", view.inputs["visits"], WEEK, seed=seed, count=count).rows


def test_made_up_events_are_the_same_again_and_others_for_another_seed(view: FeatureView) -> None:
    assert made_up(view).equals(made_up(view))
    assert not made_up(view).equals(made_up(view, seed=1))


def test_made_up_events_lie_in_the_interval_and_on_both_sides_of_each_edge(view: FeatureView) -> None:
    times = set(made_up(view)["seen_at"].to_pylist())
    assert min(times) == WEEK.start
    assert max(times) == WEEK.end - timedelta(microseconds=1)
    assert {cell.start for cell in WEEK.split_on_grid(DAY)} < times


def test_made_up_events_have_the_columns_of_the_source_where_it_can_be_read(view: FeatureView, tmp_path: Path) -> None:
    assert made_up(view).column_names == ["user", "seen_at", "spent"]
    kinds = {
        "user": pa.int32(),
        "seen_at": pa.timestamp("ns"),
        "shop": pa.large_string(),
        "open": pa.bool_(),
        "day": pa.date32(),
        "tags": pa.list_(pa.string()),
        "at": pa.struct([("x", pa.float32()), ("y", pa.int8())]),
        "price": pa.decimal128(9, 2),
        "raw": pa.binary(),
        "left_at": pa.timestamp("us", "America/New_York"),
    }
    pq.write_table(pa.schema(kinds.items()).empty_table(), tmp_path / "visits.parquet")
    made = made_up(view)
    assert made.column_names == list(kinds)
    assert [name for name in kinds if made[name].null_count] == []
    assert len(made["user"].unique()) == 12


def test_given_events_need_the_time_column_and_its_times(view: FeatureView) -> None:
    used = view.inputs["visits"]
    as_text = pa.table({"user": ["a"], "seen_at": ["2024-01-05 08:00:00"], "spent": [1.0]})
    events = given_events(view, "visits", used, as_text)
    assert interval_of_events(view, [events]) == Interval(FIRST + 4 * DAY, FIRST + 5 * DAY)
    for wrong in ("soon", None):
        column = pa.array([wrong], pa.string())
        with pytest.raises(EventsNotUsable, match="seen_at") as refused:
            given_events(view, "visits", used, as_text.set_column(1, "seen_at", column))
        assert "soon" not in str(refused.value)


def test_events_before_a_time_are_those_that_were_there(view: FeatureView) -> None:
    events = given_events(view, "visits", view.inputs["visits"], rows(("a", 0, 1.0), ("a", 1, 2.0), ("a", 2, 3.0)))
    assert events.before(FIRST + DAY)["spent"].to_pylist() == [1.0]


def test_rows_are_compared_as_sets_in_which_rows_may_repeat(view: FeatureView) -> None:
    one = rows(("a", 0, 1.0), ("a", 0, 1.0), ("b", 1, None), ("c", 2, 0.1 + 0.2))
    assert not row_difference(view, one, rows(("c", 2, 0.3), ("b", 1, None), ("a", 0, 1.0), ("a", 0, 1.0)))
    found = row_difference(view, one, rows(("a", 0, 1.0), ("b", 1, 2.0), ("c", 2, 0.3), ("d", 2, 1.0)))
    assert (found.only_first, found.only_second, found.changed, found.columns) == (1, 1, 1, ("spent",))
    assert found.in_words("here", "there") == (
        "1 rows have another spent; 1 rows are only there here; 1 rows are only there there"
    )


def test_an_interval_is_cut_into_few_parts_that_follow_each_other(view: FeatureView) -> None:
    assert cells(view, WEEK) == list(WEEK.split_on_grid(DAY))
    year = cells(view, Interval(FIRST, FIRST + 365 * DAY))
    assert len(year) <= 24
    assert [part.start for part in year[1:]] == [part.end for part in year[:-1]]


def test_an_error_in_a_step_fails_it_and_quotes_nothing_of_others() -> None:
    report = IntegrationReport(view="v", kind="batch")
    with report.taking("one"):
        raise ValueError("secret-value")
    with report.taking("two") as step:
        step.skip("There is none.")
    assert report.failed == ["one"]
    assert "secret" not in str(report.record())
    assert report.stats() == {"steps_passed": 0, "steps_failed": 1, "steps_skipped": 1}
    assert report.step("two").state is StepState.SKIPPED
