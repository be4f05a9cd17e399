"""What is planned when a view was changed: nothing, all that was there, or what a moved end or a wider window adds."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurekit_dagster.domain.feature_view import Aggregation, BatchTriggerType, FeatureView
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.planning.generations import Change
from featurekit_dagster.planning.planner import plan_removed, plan_view
from featurekit_dagster.planning.tasks import LedgerSnapshot, RemovedView, Task, ViewPlan
from tests.unit.domain.declared import DAY, HOUR, START, aggregated
from tests.unit.planning.test_planner import NOW, covered, span, view_of

CODE = Change(what="transformation", text="the transformation's code", keepable=True)
COLUMN = Change(what="column fee", text="new column fee: Float64", keepable=False)
MANUAL = BatchTriggerType.MANUAL


def rebuilding(before: IntervalSet, *done: Interval, **more: Any) -> LedgerSnapshot:
    """Return what the ledger knows while generation 2 is built, of which some days are done in both stores."""
    stores = ("online", "offline")
    return LedgerSnapshot(
        covered={("spending", store): IntervalSet(done) for store in stores},
        generation={"spending": 2},
        superseded={("spending", store): before for store in stores},
        **more,
    )


def intervals(plan: ViewPlan) -> list[Interval]:
    return [run.interval for run in plan.runs]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ((CODE,), "changed: the transformation's code; waits for `featurekit apply --rebuild or --keep`"),
        (
            (COLUMN, CODE),
            "changed: new column fee: Float64; the transformation's code; waits for `featurekit apply --rebuild`",
        ),
    ],
)
def test_nothing_is_planned_of_a_view_that_waits_for_a_decision(changes: tuple[Change, ...], said: str) -> None:
    plan = plan_view(view_of(), LedgerSnapshot(changes={"spending": changes}), NOW)
    assert (plan.runs, plan.partitions, plan.changes, plan.reason) == ((), 0, changes, said)
    assert plan.wanted == span(0, 10)
    assert plan.needs_decision
    assert plan.is_destructive
    assert not plan_view(view_of(), LedgerSnapshot(), NOW).is_destructive


def test_a_rebuild_plans_all_of_the_new_generation_and_counts_what_is_done() -> None:
    plan = plan_view(view_of(), rebuilding(IntervalSet([span(0, 10)]), span(0, 3)), NOW)
    assert (intervals(plan), plan.generation) == ([span(3, 10)], 2)
    assert plan.reason == "rebuild as generation 2 (3 of 10 intervals done)"
    assert not plan.needs_decision


def test_a_rebuild_of_a_manual_view_plans_what_was_there_and_nothing_more() -> None:
    view = view_of(batch_trigger=MANUAL)
    before = IntervalSet([span(1, 3), span(6, 7)])
    plan = plan_view(view, rebuilding(before, span(1, 2)), NOW)
    assert (intervals(plan), plan.wanted) == ([span(2, 3), span(6, 7)], None)
    assert plan.reason == "rebuild as generation 2 (1 of 3 intervals done)"
    done = plan_view(view, rebuilding(before, span(1, 3), span(6, 7)), NOW)
    assert (done.runs, done.reason) == ((), "rebuild as generation 2 (3 of 3 intervals done)")


def test_a_rebuild_leaves_out_what_lies_before_the_start_or_is_not_complete_on_a_wider_grid() -> None:
    before = IntervalSet([span(-4, 2.5), span(8, 9.5)])
    plan = plan_view(view_of(batch_trigger=MANUAL), rebuilding(before), START + 9.5 * DAY)
    assert intervals(plan) == [span(0, 3), span(8, 9)]


def test_a_store_that_was_not_covered_is_not_part_of_a_manual_views_rebuild() -> None:
    snapshot = LedgerSnapshot(
        generation={"spending": 2}, superseded={("spending", "offline"): IntervalSet([span(0, 2)])}
    )
    plan = plan_view(view_of(batch_trigger=MANUAL), snapshot, NOW)
    assert plan.tasks == (Task(view="spending", interval=span(0, 2), online=False, offline=True),)


def test_jobs_of_a_rebuild_that_wait_or_run_are_not_planned_twice() -> None:
    running = {"spending": IntervalSet([span(3, 5)])}
    plan = plan_view(view_of(), rebuilding(IntervalSet([span(0, 10)]), span(0, 3), running=running), NOW)
    assert intervals(plan) == [span(5, 10)]
    assert plan.reason == "rebuild as generation 2 (3 of 10 intervals done); running: " + str(span(3, 5))


# ---- what needs no decision


@pytest.mark.parametrize(
    ("start", "end", "added"),
    [
        (START - 3 * DAY, None, [span(-3, 0)]),
        (START + 3 * DAY, None, []),
        (START, START + 8 * DAY, [span(6, 8)]),
        (START, START + 4 * DAY, []),
        (START - 2 * DAY, START + 8 * DAY, [span(-2, 0), span(6, 8)]),
    ],
)
def test_moving_either_end_plans_only_what_is_not_materialized(start: Any, end: Any, added: list[Interval]) -> None:
    view = view_of(
        batch_trigger=MANUAL,
        feature_start_time=start,
        manual_trigger_backfill_end_time=START + 6 * DAY if end is None else end,
    )
    assert intervals(plan_view(view, covered(span(0, 6)), NOW)) == added


def weeks(count: int) -> FeatureView:
    windows = [Aggregation("amount", "sum", n * 7 * DAY) for n in range(1, count + 1)]
    return aggregated(aggregations=windows)


def test_a_wider_window_over_stored_tiles_only_extends_the_range_to_the_left() -> None:
    known = covered(span(-7, 10))
    assert intervals(plan_view(weeks(1), known, NOW)) == []
    assert intervals(plan_view(weeks(2), known, NOW)) == [span(-14, -7)]


# ---- coverage on another grid


def test_an_interval_that_is_covered_in_part_is_overwritten_as_a_whole() -> None:
    plan = plan_view(view_of(), covered(span(0, 2.5), span(4, 9.5)), START + 10.5 * DAY)
    assert [(task.interval, task.overwrite) for task in plan.tasks] == [
        (span(2, 3), True),
        (span(3, 4), False),
        (span(9, 10), True),
    ]


def test_a_store_that_is_whole_is_not_overwritten_beside_one_that_is_covered_in_part() -> None:
    snapshot = LedgerSnapshot(
        covered={
            ("spending", "offline"): IntervalSet([span(0, 2.5)]),
            ("spending", "online"): IntervalSet([span(0, 10)]),
        }
    )
    assert [(task.interval, task.online, task.overwrite) for task in plan_view(view_of(), snapshot, NOW).tasks] == [
        (span(2, 3), False, True),
        (span(3, 10), False, False),
    ]


def test_an_interval_in_which_a_job_of_another_grid_runs_is_left_to_the_next_plan() -> None:
    plan = plan_view(view_of(), covered(span(0, 2.25), running=(span(2.25, 2.5), span(5.5, 6))), NOW)
    assert intervals(plan) == [span(3, 5), span(6, 10)]


hours = st.integers(0, 239)


@given(st.lists(st.tuples(hours, hours), max_size=5), st.lists(st.tuples(hours, hours), max_size=3))
def test_plans_lie_on_the_grid_touch_no_running_job_and_cover_every_whole_interval_without_one(
    covered_hours: list[tuple[int, int]], running_hours: list[tuple[int, int]]
) -> None:
    def spans(pairs: list[tuple[int, int]]) -> IntervalSet:
        return IntervalSet(Interval(START + min(pair) * HOUR, START + (max(pair) + 1) * HOUR) for pair in pairs)

    done, running = spans(covered_hours), spans(running_hours)
    snapshot = covered(*done, running=tuple(running))
    plan = plan_view(view_of(), snapshot, NOW)
    planned = IntervalSet(intervals(plan))
    assert all(interval.is_aligned(DAY) for interval in planned)
    assert not planned.intersect(running)
    for cell in span(0, 10).split_on_grid(DAY):
        is_done, is_busy = done.covers(cell), running.overlaps(cell)
        assert planned.overlaps(cell) == (not is_done and not is_busy)
        overwrites = [task for task in plan.tasks if task.overwrite and task.interval.overlaps(cell)]
        assert bool(overwrites) == (planned.overlaps(cell) and done.overlaps(cell))
    assert sum((run.interval.duration for run in plan.runs), timedelta(0)) == sum(
        (interval.duration for interval in planned), timedelta(0)
    )


# ---- views that are declared no more


def test_removed_views_are_listed_while_something_of_them_is_stored() -> None:
    stored = RemovedView(view="b", generations=(1, 2), covered={"offline": IntervalSet([span(0, 1)])})
    other = RemovedView(view="a", generations=(1,), covered={"online": IntervalSet([span(0, 1)])})
    empty = RemovedView(view="c", generations=(1,), covered={})
    assert plan_removed(LedgerSnapshot(undeclared={"b": stored, "c": empty, "a": other})) == (other, stored)
    assert plan_removed(LedgerSnapshot()) == ()
