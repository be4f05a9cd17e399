"""What is planned for streams, and for windows that begin long before the features."""

from __future__ import annotations

from featurekit_dagster.domain.feature_view import Aggregation, BatchTriggerType, StreamProcessingMode
from featurekit_dagster.domain.stream_sources import PushConfig, StreamSource
from featurekit_dagster.domain.windows import LifetimeWindow, TimeWindowSeries
from featurekit_dagster.intervals import Interval
from featurekit_dagster.planning.planner import plan_view
from featurekit_dagster.planning.tasks import LedgerSnapshot
from tests.unit.domain.declared import DAY, START, aggregated, streamed
from tests.unit.planning.test_planner import EMPTY, NOW


def test_a_stream_view_is_planned_for_its_batch_side_and_offline_only() -> None:
    view = streamed()
    plan = plan_view(view, EMPTY, NOW)
    assert [(t.interval, t.online, t.offline) for t in plan.tasks] == [(Interval(START - 7 * DAY, NOW), False, True)]


def test_online_batch_jobs_are_planned_up_to_the_interval_in_which_the_stream_began_and_offline_for_ever() -> None:
    view, first = streamed(online=True), START - 7 * DAY
    plan = plan_view(view, EMPTY, NOW)
    assert [(t.interval, t.online, t.offline) for t in plan.tasks] == [(Interval(first, NOW), True, True)]
    began = START + 2 * DAY
    plan = plan_view(view, LedgerSnapshot(stream_starts={view.name: began + DAY / 3}), NOW)
    assert [(t.interval, t.online, t.offline) for t in plan.tasks] == [
        (Interval(first, began), True, True),
        (Interval(began, NOW), False, True),
    ]


def test_a_plan_warns_of_a_stream_without_a_watermark() -> None:
    tiled = {"stream_processing_mode": StreamProcessingMode.TIME_INTERVAL, "aggregation_interval": DAY}
    (warning,) = plan_view(streamed(online=True, **tiled), EMPTY, NOW).warnings
    assert warning.startswith("aggregates of intervals without a watermark: ")
    assert (
        plan_view(streamed(**tiled), EMPTY, NOW).warnings == plan_view(streamed(online=True), EMPTY, NOW).warnings == ()
    )


def test_a_stream_without_batch_side_is_not_planned_and_says_why() -> None:
    plan = plan_view(streamed(source=StreamSource(name="payments", stream_config=PushConfig())), EMPTY, NOW)
    assert (plan.tasks, plan.wanted) == ((), None)
    assert plan.reason == "its source has no batch_config, and events reach it by its stream only"


def test_a_stream_view_without_batch_jobs_is_not_planned_and_says_why() -> None:
    plan = plan_view(streamed(batch_trigger=BatchTriggerType.NO_BATCH_MATERIALIZATION), EMPTY, NOW)
    assert (plan.tasks, plan.wanted) == ((), None)
    assert plan.reason == "it has no batch jobs (batch_trigger=NO_BATCH_MATERIALIZATION)"


def test_a_backfill_of_lifetimes_begins_where_they_begin() -> None:
    start = START - 40 * DAY
    features = [Aggregation("amount", "sum", LifetimeWindow()), Aggregation("amount", "sum", 7 * DAY)]
    view = aggregated(aggregations=features, lifetime_start_time=start)
    plan = plan_view(view, EMPTY, NOW)
    assert plan.wanted == Interval(start, NOW)
    assert plan.reason.endswith("which begins 40d before feature_start_time to reach lifetime_start_time")


def test_a_lifetime_shorter_than_the_widest_window_moves_nothing() -> None:
    features = [Aggregation("amount", "sum", LifetimeWindow()), Aggregation("amount", "sum", 7 * DAY)]
    for start in (START - 5 * DAY, START + 5 * DAY):
        plan = plan_view(aggregated(aggregations=features, lifetime_start_time=start), EMPTY, NOW)
        assert plan.wanted == Interval(START - 7 * DAY, NOW)
        assert plan.reason.endswith("which begins 7d before feature_start_time for the widest window")


def test_a_lifetime_that_begins_after_the_features_alone_begins_the_backfill_with_the_features() -> None:
    features = [Aggregation("amount", "sum", LifetimeWindow())]
    plan = plan_view(aggregated(aggregations=features, lifetime_start_time=START + 5 * DAY), EMPTY, NOW)
    assert plan.wanted == Interval(START, NOW)
    assert plan.reason == f"initial backfill of {plan.wanted}"


def test_a_series_is_backfilled_from_its_oldest_window_on() -> None:
    window = TimeWindowSeries(series_start=-9 * DAY, window_size=DAY, series_end=-2 * DAY)
    plan = plan_view(aggregated(aggregations=[Aggregation("amount", "sum", window)]), EMPTY, NOW)
    assert plan.wanted == Interval(START - 9 * DAY, NOW)
