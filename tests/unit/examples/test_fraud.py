"""The listings of the fraud pages declare, plan, and count right."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from examples.fraud import workspace
from examples.fraud.data_sources.transactions import SPANS, data_dir, made_transactions
from examples.fraud.features import distinct_merchants_by_context, distinct_merchants_filtered, transaction_counts
from featurekit_dagster import BatchTriggerType, FeatureView, Field, Int64, MaterializationContext, Workspace
from featurekit_dagster.intervals import Interval
from featurekit_dagster.planning.planner import plan_view
from featurekit_dagster.planning.tasks import LedgerSnapshot

DAY = timedelta(days=1)
DISTINCT = "user_distinct_merchant_transaction_count_7d"
COUNTS = "user_transaction_counts"
COUNT_NAMES = ["transaction_count_1d_1d", "transaction_count_30d_1d", "transaction_count_90d_1d"]
FIRST = datetime(2020, 10, 10, tzinfo=UTC)
MAY_2022 = datetime(2022, 5, 1, tzinfo=UTC)
BOTH = [distinct_merchants_filtered, distinct_merchants_by_context]
TRANSACTIONS = made_transactions()


def distinct_view(module: ModuleType) -> FeatureView:
    return module.user_distinct_merchant_transaction_count_7d  # type: ignore[no-any-return]


@cache
def events() -> list[tuple[str, str, datetime]]:
    times = TRANSACTIONS["TIMESTAMP"].dt.tz_localize("UTC").dt.to_pydatetime()
    return list(zip(TRANSACTIONS["USER_ID"], TRANSACTIONS["MERCHANT"], times, strict=True))


def distinct_merchants(end: datetime) -> dict[str, int]:
    """Count by hand: the merchants of each user in the seven days before `end`."""
    seen: dict[str, set[str]] = {}
    for user, merchant, time in events():
        if end - 7 * DAY <= time < end:
            seen.setdefault(user, set()).add(merchant)
    return {user: len(merchants) for user, merchants in seen.items()}


def counted(end: datetime, days: int, since: datetime) -> dict[str, int]:
    """Count by hand: the transactions of each user in the days before `end`, none before `since`."""
    counts: dict[str, int] = {}
    for user, _, time in events():
        if max(end - days * DAY, since) <= time < end:
            counts[user] = counts.get(user, 0) + 1
    return counts


def naive(time: datetime) -> datetime:
    return time.replace(tzinfo=None)


def as_counts(frame: Any) -> dict[str, int]:
    return dict(zip(frame["USER_ID"], map(int, frame["DISTINCT_MERCHANT_COUNT_7D"]), strict=True))


@pytest.mark.parametrize("module", BOTH)
def test_both_spellings_of_the_distinct_count_declare_the_same_features(module: ModuleType) -> None:
    view = distinct_view(module)
    assert (view.name, view.key_names, view.timestamp_field) == (DISTINCT, ("USER_ID",), "TIMESTAMP")
    assert view.features == (Field("DISTINCT_MERCHANT_COUNT_7D", Int64),)
    assert (view.ttl, view.batch_schedule, view.materialization_start) == (DAY, DAY, FIRST)
    assert (view.context_parameter, list(view.inputs)) == ("context", ["transactions"])
    assert view.incremental_backfills
    assert view.online
    assert view.offline


def test_the_filtered_source_hands_over_seven_days_and_the_plain_one_everything() -> None:
    interval = Interval(FIRST, FIRST + DAY)
    (filtered,) = distinct_view(distinct_merchants_filtered).inputs.values()
    (plain,) = distinct_view(distinct_merchants_by_context).inputs.values()
    assert filtered.evaluate(interval) == (FIRST - 6 * DAY, FIRST + DAY)
    assert plain.evaluate(interval) == (None, None)


def test_the_manual_listing_declares_three_windows_and_no_schedule_of_its_own() -> None:
    view = transaction_counts.user_transaction_counts
    assert list(view.feature_names) == COUNT_NAMES
    assert view.batch_trigger is BatchTriggerType.MANUAL
    assert (view.batch_schedule, view.aggregation_interval, view.reach) == (DAY, DAY, 90 * DAY)
    assert view.materialization_start == MAY_2022 - 90 * DAY == SPANS[1][0]
    assert view.description == "User transaction totals over a series of time windows, updated daily."


@pytest.mark.parametrize("module", BOTH)
def test_each_day_of_the_backfill_is_a_job_of_its_own(module: ModuleType) -> None:
    view = distinct_view(module)
    plan = plan_view(view, LedgerSnapshot(), FIRST + 120 * DAY)
    assert (plan.jobs, plan.queries, len(plan.runs)) == (120, 120, 1)
    assert plan.warnings == ()


@pytest.mark.parametrize("name", ["filtered", "by_context"])
def test_the_workspaces_plan_31_jobs_in_1_run(name: str, tmp_path: Path) -> None:
    shipped: Workspace = getattr(workspace, name)
    own = Workspace(shipped.name, shipped.repo.views, home=tmp_path, clock=shipped.fixed_now)
    (plan,) = own.plan()
    assert (plan.view, plan.jobs, plan.queries, len(plan.runs)) == (DISTINCT, 31, 31, 1)


def test_nobody_but_people_starts_jobs_of_the_manual_view(tmp_path: Path) -> None:
    own = Workspace("manual", [transaction_counts], home=tmp_path, clock=workspace.manual.fixed_now)
    (plan,) = own.plan()
    assert (plan.jobs, plan.reason) == (0, "its jobs are triggered by hand (batch_trigger=MANUAL)")
    run = own.plan_interval(COUNTS, naive(MAY_2022), naive(MAY_2022 + DAY), overwrite=False)
    assert [task.interval for task in run.tasks] == [Interval(MAY_2022, MAY_2022 + DAY)]


@pytest.mark.parametrize("module", BOTH)
@pytest.mark.parametrize("day", [0, 1, 30])
def test_the_plain_function_counts_distinct_merchants_of_seven_days(module: ModuleType, day: int) -> None:
    interval = Interval(FIRST + day * DAY, FIRST + (day + 1) * DAY)
    context = MaterializationContext.for_interval(interval, DAY)
    answer = distinct_view(module).function(TRANSACTIONS.copy(), context=context)
    assert as_counts(answer) == distinct_merchants(interval.end)
    assert set(answer["TIMESTAMP"]) == {pd.Timestamp(naive(interval.end)) - pd.Timedelta(microseconds=1)}


@pytest.mark.parametrize("name", ["filtered", "by_context"])
@pytest.mark.parametrize("mocked", [True, False])
@pytest.mark.parametrize("day", [0, 5])
def test_a_run_of_the_view_counts_distinct_merchants(name: str, mocked: bool, day: int) -> None:
    view = getattr(workspace, name).get_feature_view(DISTINCT)
    start = FIRST + day * DAY
    mocks = {"transactions": TRANSACTIONS} if mocked else {}
    answer = view.run(start_time=naive(start), end_time=naive(start + DAY), **mocks).to_pandas()
    assert as_counts(answer) == distinct_merchants(start + DAY)
    assert list(answer.columns) == ["USER_ID", "TIMESTAMP", "DISTINCT_MERCHANT_COUNT_7D"]
    assert set(answer["TIMESTAMP"]) == {pd.Timestamp(start + DAY) - pd.Timedelta(microseconds=1)}


def test_both_spellings_answer_the_same() -> None:
    answers = [
        getattr(workspace, name).get_feature_view(DISTINCT).run(naive(FIRST), naive(FIRST + DAY)).to_pandas()
        for name in ("filtered", "by_context")
    ]
    pd.testing.assert_frame_equal(*[a.sort_values("USER_ID", ignore_index=True) for a in answers])


def test_a_run_of_the_manual_view_counts_transactions_over_three_windows() -> None:
    start, end = MAY_2022 - 90 * DAY, MAY_2022 + 3 * DAY
    lake = TRANSACTIONS.rename(columns=str.lower)
    view = workspace.manual.get_feature_view(COUNTS)
    answer = view.run(start_time=naive(start), end_time=naive(end), transactions=lake).to_pandas()
    for at in [start + DAY, start + 2 * DAY, start + 30 * DAY, start + 31 * DAY, end - 3 * DAY, end]:
        rows = answer[answer["timestamp"] == at]
        expected = [counted(at, days, start) for days in (1, 30, 90)]
        assert sorted(rows["user_id"]) == sorted(expected[0])
        for name, counts in zip(COUNT_NAMES, expected, strict=True):
            assert dict(zip(rows["user_id"], map(int, rows[name]), strict=True)) == {u: counts[u] for u in expected[0]}
    assert answer["timestamp"].nunique() == (end - start) // DAY


def test_the_source_of_a_run_is_not_changed_by_a_function_that_writes_into_its_frame() -> None:
    lake = TRANSACTIONS.rename(columns=str.lower)
    before = lake.copy()
    view = workspace.manual.get_feature_view(COUNTS)
    rows = view.run(naive(MAY_2022), naive(MAY_2022 + DAY), "disabled", transactions=lake).to_pandas()
    assert set(rows["transaction"]) == {1}
    pd.testing.assert_frame_equal(lake, before)


def test_the_data_are_the_same_each_time_and_hold_the_edges_of_days() -> None:
    pd.testing.assert_frame_equal(made_transactions(), TRANSACTIONS)
    midnight = TRANSACTIONS["TIMESTAMP"].dt.normalize()
    assert (TRANSACTIONS["TIMESTAMP"] == midnight).sum() >= sum((end - start).days for start, end in SPANS)
    last = midnight + pd.Timedelta(days=1) - pd.Timedelta(microseconds=1)
    assert (TRANSACTIONS["TIMESTAMP"] == last).any()


def test_the_files_are_made_once_where_they_are_asked_for(tmp_path: Path) -> None:
    folder = data_dir(tmp_path)
    made = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert set(made) == {"warehouse.parquet", "lake.parquet"}
    assert {path.name: path.stat().st_mtime_ns for path in data_dir(tmp_path).iterdir()} == made
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]
    warehouse, lake = (pd.read_parquet(folder / name) for name in ("warehouse.parquet", "lake.parquet"))
    pd.testing.assert_frame_equal(warehouse, TRANSACTIONS)
    assert list(lake.columns) == ["user_id", "merchant", "amount", "timestamp"]


@pytest.mark.parametrize("module", BOTH)
def test_a_view_knows_the_file_that_declares_it(module: ModuleType) -> None:
    assert distinct_view(module).defined_in == inspect.getsourcefile(module)
