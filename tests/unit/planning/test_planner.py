"""What is planned: the seeds' own example, gaps, stores, manual views, moved starts."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurekit_dagster.domain.feature_view import Aggregation, BatchTriggerType, FeatureView
from featurekit_dagster.domain.sources import FilteredSource
from featurekit_dagster.domain.windows import TimeWindow
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.planning.planner import plan_view, split_tasks, wanted_interval
from featurekit_dagster.planning.tasks import LedgerSnapshot, RunPlan, Task, ViewPlan
from tests.unit.domain.declared import DAY, HOUR, START, TRANSACTIONS, aggregated, file_source, plain

EMPTY = LedgerSnapshot()
JANUARY_1_2023 = datetime(2023, 1, 1, tzinfo=UTC)
MAY_1_2023 = datetime(2023, 5, 1, tzinfo=UTC)
SINCE_JANUARY = Interval(JANUARY_1_2023, MAY_1_2023)
NOW = START + 10 * DAY
MANUAL = BatchTriggerType.MANUAL


def seed_view(**changes: Any) -> FeatureView:
    """Declare a daily view that is registered on 1 May 2023 and begins on 1 January 2023."""
    sources = [FilteredSource(TRANSACTIONS, start_time_offset=-6 * DAY)]
    return plain(sources=sources, feature_start_time=JANUARY_1_2023, batch_schedule="1d", **changes)


def view_of(**changes: Any) -> FeatureView:
    return plain(sources=[FilteredSource(TRANSACTIONS)], **changes)


def span(first: float, last: float) -> Interval:
    return Interval(START + first * DAY, START + last * DAY)


def task(interval: Interval, *, online: bool = True, offline: bool = True) -> Task:
    return Task(view="spending", interval=interval, online=online, offline=offline)


def covered(
    *intervals: Interval, online: bool = True, offline: bool = True, running: tuple[Interval, ...] = ()
) -> LedgerSnapshot:
    done = IntervalSet(intervals)
    stores = {("spending", store): done for store, used in (("online", online), ("offline", offline)) if used}
    return LedgerSnapshot(covered=stores, running={"spending": IntervalSet(running)})


# ---- the example of the seeds


def test_incremental_backfills_of_120_days_are_120_jobs_120_queries_and_1_run() -> None:
    plan = plan_view(seed_view(incremental_backfills=True), EMPTY, MAY_1_2023)
    days = tuple(Interval(JANUARY_1_2023 + n * DAY, JANUARY_1_2023 + (n + 1) * DAY) for n in range(120))
    assert (plan.jobs, plan.queries, len(plan.runs), plan.partitions) == (120, 120, 1, 120)
    assert plan.runs == (RunPlan(view="spending", interval=SINCE_JANUARY, tasks=tuple(map(task, days))),)
    assert plan.tasks[-1] == task(Interval(MAY_1_2023 - DAY, MAY_1_2023))


def test_an_optimized_backfill_of_120_days_is_1_job_1_query_and_1_run() -> None:
    plan = plan_view(seed_view(), EMPTY, MAY_1_2023)
    assert (plan.jobs, plan.queries, len(plan.runs), plan.partitions) == (1, 1, 1, 120)
    assert replace(plan, limits=None) == ViewPlan(
        view="spending",
        runs=(RunPlan(view="spending", interval=SINCE_JANUARY, tasks=(task(SINCE_JANUARY),)),),
        wanted=SINCE_JANUARY,
        reason="initial backfill of [2023-01-01T00:00Z, 2023-05-01T00:00Z)",
        partitions=120,
    )


@pytest.mark.parametrize(
    ("longest", "jobs"), [("1d", 120), ("7d", 18), ("30d", 4), ("50d", 3), ("119d", 2), ("120d", 1), ("365d", 1)]
)
def test_a_backfill_is_cut_into_range_by_max_backfill_interval_jobs_rounded_up(longest: str, jobs: int) -> None:
    plan = plan_view(seed_view(max_backfill_interval=longest), EMPTY, MAY_1_2023)
    assert (plan.jobs, plan.queries, len(plan.runs)) == (jobs, jobs, 1)
    assert IntervalSet(task.interval for task in plan.tasks) == IntervalSet([SINCE_JANUARY])


def test_jobs_are_cut_from_the_start_and_the_last_one_is_the_shorter() -> None:
    plan = plan_view(seed_view(max_backfill_interval="50d"), EMPTY, MAY_1_2023)
    starts = [JANUARY_1_2023 + days * DAY for days in (0, 50, 100, 120)]
    assert plan.tasks == tuple(task(Interval(*ends)) for ends in zip(starts, starts[1:], strict=False))


def test_incremental_backfills_are_not_made_longer_by_max_backfill_interval() -> None:
    assert plan_view(seed_view(incremental_backfills=True, max_backfill_interval="30d"), EMPTY, MAY_1_2023).jobs == 120


# ---- when a view wants what


def test_nothing_is_planned_before_the_first_interval_is_complete() -> None:
    plan = plan_view(view_of(), EMPTY, START + DAY - timedelta(microseconds=1))
    reason = "no interval is complete yet at 2024-01-01T23:59:59.999999Z"
    assert replace(plan, limits=None) == ViewPlan(view="spending", runs=(), wanted=None, reason=reason)
    assert plan_view(view_of(), EMPTY, START + DAY).tasks == (task(span(0, 1)),)


def test_a_data_delay_holds_the_last_interval_back() -> None:
    view = plain(sources=[FilteredSource(file_source(delay=2 * HOUR))])
    assert wanted_interval(view, START + DAY + 2 * HOUR - timedelta(microseconds=1)) is None
    assert wanted_interval(view, START + DAY + 2 * HOUR) == span(0, 1)


def test_a_backfill_of_aggregates_begins_the_widest_window_before_the_feature_start_time() -> None:
    window = TimeWindow(3 * DAY, offset=-DAY)
    view = aggregated(sources=[FilteredSource(TRANSACTIONS)], aggregations=[Aggregation("amount", "sum", window)])
    plan = plan_view(view, EMPTY, START + DAY)
    assert plan.tasks == (task(span(-4, 1)),)
    assert plan.reason == (
        "initial backfill of [2023-12-28T00:00Z, 2024-01-02T00:00Z), which begins 4d before feature_start_time "
        "for the widest window"
    )


def test_a_window_shorter_than_the_schedule_still_costs_a_whole_interval() -> None:
    view = aggregated(
        sources=[FilteredSource(TRANSACTIONS)], aggregations=[Aggregation("amount", "sum", timedelta(hours=1))]
    )
    plan = plan_view(view, EMPTY, START + DAY)
    assert plan.tasks == (task(span(-1, 1)),)
    assert "which begins 1d before feature_start_time" in plan.reason


def test_a_feature_start_time_off_the_grid_begins_with_the_interval_it_lies_in() -> None:
    view = view_of(feature_start_time=START + 5 * HOUR)
    assert plan_view(view, EMPTY, START + DAY).tasks == (task(span(0, 1)),)


def test_weeks_are_planned_from_thursday_to_thursday() -> None:
    view = view_of(batch_schedule="7d")
    thursday = datetime(2023, 12, 28, tzinfo=UTC)
    assert plan_view(view, EMPTY, thursday + 8 * DAY).tasks == (task(Interval(thursday, thursday + 7 * DAY)),)


def test_a_start_before_1970_is_planned_on_the_same_grid() -> None:
    start = datetime(1969, 12, 30, 6, tzinfo=UTC)
    plan = plan_view(view_of(feature_start_time=start), EMPTY, datetime(1970, 1, 2, tzinfo=UTC))
    assert plan.tasks == (task(Interval(datetime(1969, 12, 30, tzinfo=UTC), datetime(1970, 1, 2, tzinfo=UTC))),)


@pytest.mark.parametrize(("online", "offline"), [(True, False), (False, True)])
def test_a_view_is_planned_for_the_stores_it_writes(online: bool, offline: bool) -> None:
    plan = plan_view(view_of(online=online, offline=offline), EMPTY, START + DAY)
    assert plan.tasks == (task(span(0, 1), online=online, offline=offline),)


def test_a_view_that_writes_no_store_is_not_planned() -> None:
    plan = plan_view(view_of(online=False, offline=False), EMPTY, NOW)
    assert replace(plan, limits=None) == ViewPlan(
        view="spending", runs=(), wanted=None, reason="it writes no store (online and offline are both False)"
    )


# ---- what is there already


def test_a_covered_view_is_up_to_date() -> None:
    plan = plan_view(view_of(), covered(span(0, 10)), NOW)
    assert (plan.runs, plan.reason) == ((), "up to date to 2024-01-11T00:00Z")


def test_every_gap_is_a_run_of_its_own() -> None:
    plan = plan_view(view_of(), covered(span(1, 3), span(4, 9)), NOW)
    gaps = (span(0, 1), span(3, 4), span(9, 10))
    assert plan.runs == tuple(RunPlan(view="spending", interval=gap, tasks=(task(gap),)) for gap in gaps)
    assert plan.partitions == 3
    assert plan.reason == "gaps in [2024-01-01T00:00Z, 2024-01-11T00:00Z)"


def test_a_range_that_only_one_store_misses_is_planned_for_that_store() -> None:
    snapshot = LedgerSnapshot(
        covered={
            ("spending", "offline"): IntervalSet([span(0, 6)]),
            ("spending", "online"): IntervalSet([span(2, 4), span(8, 10)]),
        }
    )
    plan = plan_view(view_of(), snapshot, NOW)
    assert plan.tasks == (
        task(span(0, 2), offline=False),
        task(span(4, 6), offline=False),
        task(span(6, 8)),
        task(span(8, 10), online=False),
    )
    assert len(plan.runs) == 4


def test_a_view_that_only_the_online_store_misses_is_planned_for_it() -> None:
    plan = plan_view(view_of(), covered(span(0, 10), online=False), NOW)
    assert plan.tasks == (task(span(0, 10), offline=False),)


def test_what_running_jobs_have_claimed_is_not_planned_again() -> None:
    plan = plan_view(view_of(), covered(span(0, 5), running=(span(5, 8),)), NOW)
    assert plan.tasks == (task(span(8, 10)),)


def test_a_view_whose_rest_is_running_says_so() -> None:
    plan = plan_view(view_of(), covered(span(0, 5), running=(span(5, 10),)), NOW)
    assert plan.runs == ()
    assert plan.reason == ("up to date to 2024-01-11T00:00Z; running: [2024-01-06T00:00Z, 2024-01-11T00:00Z)")


def test_what_failed_is_planned_again() -> None:
    snapshot = LedgerSnapshot(failed={"spending": IntervalSet([span(0, 1)])})
    assert plan_view(view_of(), snapshot, START + DAY).tasks == (task(span(0, 1)),)


def test_coverage_of_another_view_counts_for_nothing() -> None:
    other = LedgerSnapshot(covered={("other", "online"): IntervalSet([span(0, 10)])})
    assert plan_view(view_of(), other, NOW).tasks == (task(span(0, 10)),)


def test_incremental_backfills_of_gaps_are_jobs_of_one_interval_each() -> None:
    plan = plan_view(view_of(incremental_backfills=True), covered(span(2, 8)), NOW)
    assert plan.tasks == tuple(task(span(n, n + 1)) for n in (0, 1, 8, 9))
    assert [len(run.tasks) for run in plan.runs] == [2, 2]


@pytest.mark.parametrize(("moved", "missing"), [(-3, (-3, 0)), (-30, (-30, 0))])
def test_an_earlier_feature_start_time_plans_only_what_is_not_materialized(
    moved: int, missing: tuple[int, int]
) -> None:
    view = view_of(feature_start_time=START + moved * DAY)
    assert plan_view(view, covered(span(0, 10)), NOW).tasks == (task(span(*missing)),)


def test_a_later_feature_start_time_plans_nothing_and_a_wider_window_what_it_reaches() -> None:
    assert plan_view(view_of(feature_start_time=START + 3 * DAY), covered(span(0, 10)), NOW).tasks == ()
    wider = aggregated(aggregations=[Aggregation("amount", "sum", 30 * DAY)])
    assert plan_view(wider, covered(span(-7, 10)), NOW).tasks == (task(span(-30, -7)),)


# ---- manual views


def test_a_manual_view_is_not_planned() -> None:
    plan = plan_view(view_of(batch_trigger=MANUAL), EMPTY, NOW)
    assert (plan.runs, plan.wanted) == ((), None)
    assert plan.reason == "its jobs are triggered by hand (batch_trigger=MANUAL)"


def test_a_manual_view_with_a_backfill_end_is_backfilled_to_it() -> None:
    view = view_of(batch_trigger=MANUAL, manual_trigger_backfill_end_time=START + 4 * DAY)
    plan = plan_view(view, EMPTY, NOW)
    assert plan.wanted == span(0, 4)
    assert plan.tasks == (task(span(0, 4)),)
    assert plan_view(view, EMPTY, START + 2 * DAY).tasks == (task(span(0, 2)),)
    assert plan_view(view, covered(span(0, 4)), NOW).reason == "up to date to 2024-01-05T00:00Z"


def test_a_moved_backfill_end_plans_only_what_is_not_materialized() -> None:
    view = view_of(
        batch_trigger=MANUAL,
        feature_start_time=START - 2 * DAY,
        manual_trigger_backfill_end_time=START + 6 * DAY,
    )
    assert plan_view(view, covered(span(0, 4)), NOW).tasks == (task(span(-2, 0)), task(span(4, 6)))


# ---- warnings and several views


def test_a_view_whose_every_job_reads_its_whole_source_is_warned_about() -> None:
    (warning,) = plan_view(plain(), EMPTY, NOW).warnings
    assert warning == (
        "every job reads the whole of transactions, because it is used unfiltered and the function takes no context; "
        "FilteredSource(...) hands over only the interval"
    )
    assert plan_view(view_of(), EMPTY, NOW).warnings == ()
    assert plan_view(plain(online=False, offline=False), EMPTY, NOW).warnings == ()


def test_an_overwrite_is_cut_like_a_backfill() -> None:
    view = view_of(max_backfill_interval="2d")
    tasks = split_tasks(view, span(0, 3), online=False, offline=True, overwrite=True)
    assert tasks == tuple(
        Task(view="spending", interval=piece, online=False, offline=True, overwrite=True)
        for piece in (span(0, 2), span(2, 3))
    )


# ---- laws

days = st.tuples(st.integers(-3, 12), st.integers(1, 5)).map(lambda pair: span(pair[0], pair[0] + pair[1]))
day_sets = st.lists(days, max_size=4)


@given(day_sets, day_sets, day_sets, st.sampled_from([None, "1d", "2d", "3d"]), st.booleans())
def test_a_plan_is_exactly_what_is_missing_in_each_store(
    offline: list[Interval], online: list[Interval], running: list[Interval], longest: str | None, incremental: bool
) -> None:
    view = view_of(max_backfill_interval=longest, incremental_backfills=incremental)
    snapshot = LedgerSnapshot(
        covered={("spending", "offline"): IntervalSet(offline), ("spending", "online"): IntervalSet(online)},
        running={"spending": IntervalSet(running)},
    )
    plan = plan_view(view, snapshot, NOW)
    wanted = IntervalSet([span(0, 10)]).subtract(running)
    for store, done in (("offline", offline), ("online", online)):
        planned = [task.interval for task in plan.tasks if getattr(task, store)]
        assert IntervalSet(planned) == wanted.subtract(done)
        assert sum((piece.duration for piece in planned), timedelta(0)) == sum(
            (piece.duration for piece in IntervalSet(planned)), timedelta(0)
        )
    assert [task.interval.start for task in plan.tasks] == sorted(task.interval.start for task in plan.tasks)
    assert all(run.interval.is_aligned(DAY) for run in plan.runs)
    assert plan.partitions == sum(run.interval.duration // DAY for run in plan.runs)
