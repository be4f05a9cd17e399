"""What a stream feature view means, and what is refused of it and of its source."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from featurekit_dagster.domain.context import materialization_context
from featurekit_dagster.domain.declarations import stream_feature_view
from featurekit_dagster.domain.entity import Entity
from featurekit_dagster.domain.feature_view import (
    Aggregate,
    Aggregation,
    AggregationLeadingEdge,
    BatchTriggerType,
    FeatureView,
    StreamProcessingMode,
)
from featurekit_dagster.domain.schema import Field, Float64, String
from featurekit_dagster.domain.sources import FileConfig, FilteredSource, pandas_batch_config
from featurekit_dagster.domain.stream_rules import stream_warnings
from featurekit_dagster.domain.stream_sources import (
    KafkaConfig,
    PushConfig,
    StreamSource,
)
from featurekit_dagster.domain.windows import TimeWindow, TimeWindowSeries
from featurekit_dagster.intervals import Interval
from featurekit_dagster.planning.grid import Timing
from tests.unit.domain.declared import (
    DAY,
    HOUR,
    SCHEMA,
    START,
    SUM_OF_A_WEEK,
    TRANSACTIONS,
    USER,
    faults,
    plain,
    spending,
)

FILES = TRANSACTIONS.batch_config
PUSH = StreamSource(name="payments", stream_config=PushConfig(), batch_config=FILES)
BARE_PUSH = StreamSource(name="payments", stream_config=PushConfig())
KAFKA = StreamSource(
    name="payments",
    stream_config=KafkaConfig(kafka_bootstrap_servers="broker:9092", topics="payments"),
    batch_config=FILES,
)
AGGREGATES: dict[str, Any] = {"aggregations": [SUM_OF_A_WEEK]}
CONTINUOUS, TIME_INTERVAL = StreamProcessingMode.CONTINUOUS, StreamProcessingMode.TIME_INTERVAL


def declared(function: Callable[..., Any] = spending, **changes: Any) -> FeatureView:
    """Declare a stream view without aggregates, changed."""
    correct: dict[str, Any] = {
        "mode": "pandas",
        "source": KAFKA,
        "entities": [USER],
        "schema": SCHEMA,
        "batch_schedule": DAY,
        "feature_start_time": START,
        "offline": True,
    }
    made = stream_feature_view(**(correct | changes))
    return made if isinstance(made, FeatureView) else made(function)


def test_a_stream_view_is_handed_the_batch_side_of_its_source_cut_to_the_interval() -> None:
    view = declared()
    used = view.inputs["transactions"]
    assert used.source is KAFKA.batch_source
    assert used.evaluate(Interval(START, START + DAY)) == (START, START + DAY)
    assert (view.is_stream, view.stream_source, view.sources) == (True, KAFKA, (KAFKA.batch_source,))


def test_more_of_the_batch_side_is_handed_over_where_that_is_said() -> None:
    view = declared(source=FilteredSource(KAFKA, start_time_offset=-DAY))
    assert view.inputs["transactions"].evaluate(Interval(START, START + DAY)) == (START - DAY, START + DAY)
    assert not declared(source=KAFKA.unfiltered()).inputs["transactions"].is_filtered


@pytest.mark.parametrize(
    ("source", "changes", "mode"),
    [
        (PUSH, {}, CONTINUOUS),
        (PUSH, AGGREGATES, CONTINUOUS),
        (PUSH, AGGREGATES | {"stream_processing_mode": TIME_INTERVAL, "aggregation_interval": HOUR}, TIME_INTERVAL),
        (KAFKA, {}, None),
        (KAFKA, AGGREGATES | {"aggregation_interval": HOUR}, TIME_INTERVAL),
        (KAFKA, AGGREGATES | {"stream_processing_mode": CONTINUOUS}, CONTINUOUS),
        (KAFKA, AGGREGATES | {"compaction_enabled": True}, CONTINUOUS),
    ],
)
def test_push_sources_are_followed_continuously_and_others_in_intervals(
    source: StreamSource, changes: dict[str, Any], mode: StreamProcessingMode | None
) -> None:
    assert declared(source=source, **changes).stream_processing_mode is mode


def test_windows_of_a_continuous_view_end_at_the_instant_asked_for() -> None:
    view = declared(**AGGREGATES, stream_processing_mode=CONTINUOUS)
    assert view.feature_names == ("amount_sum_7d_continuous",)
    assert (view.is_continuous, view.is_tiled, view.tile_us, Timing.of(view).closed_us) == (True, False, 1, 1)


def test_windows_of_an_interval_view_end_with_a_whole_tile() -> None:
    view = declared(**AGGREGATES, aggregation_interval=HOUR, batch_schedule=None)
    assert view.feature_names == ("amount_sum_7d_1h",)
    assert (view.is_continuous, view.is_tiled, view.batch_schedule) == (False, True, HOUR)
    assert (Timing.of(view).grid_us, Timing.of(view).closed_us) == (3_600_000_000, 0)


def test_an_untiled_stream_view_leaves_the_interval_out_of_its_names() -> None:
    view = declared(**AGGREGATES, compaction_enabled=True)
    assert view.feature_names == ("amount_sum_7d",)
    assert not view.is_tiled


@pytest.mark.parametrize("source", [PUSH, BARE_PUSH])
def test_the_batch_schedule_of_a_continuous_view_is_a_day_where_none_is_given(source: StreamSource) -> None:
    assert declared(source=source, batch_schedule=None).batch_schedule == DAY
    assert declared(source=source, **AGGREGATES, batch_schedule=None).batch_schedule == DAY
    assert declared(source=source, **AGGREGATES, batch_schedule=HOUR).batch_schedule == HOUR


def test_a_stream_view_without_aggregates_has_a_batch_schedule() -> None:
    assert faults(declared, batch_schedule=None) == (
        "batch_schedule is not given; it is the width of one interval, such as timedelta(days=1)",
    )


def test_batch_jobs_are_scheduled_where_there_is_a_batch_side() -> None:
    assert declared().batch_trigger is BatchTriggerType.SCHEDULED
    assert declared(source=BARE_PUSH).batch_trigger is BatchTriggerType.NO_BATCH_MATERIALIZATION
    assert declared(batch_trigger=BatchTriggerType.MANUAL).batch_trigger is BatchTriggerType.MANUAL
    assert faults(declared, source=BARE_PUSH, batch_trigger=BatchTriggerType.SCHEDULED) == (
        "batch_trigger is SCHEDULED, but source 'payments' has no batch_config that batch jobs could read; leave it "
        "out",
    )
    assert faults(plain, batch_trigger=BatchTriggerType.NO_BATCH_MATERIALIZATION) == (
        "batch_trigger is NO_BATCH_MATERIALIZATION, but a batch feature view has nothing else; give "
        "BatchTriggerType.MANUAL, or online=False and offline=False",
    )


def test_a_view_without_batch_side_reads_nothing() -> None:
    view = declared(source=BARE_PUSH)
    assert (dict(view.inputs), view.sources, view.data_delay) == ({}, (), timedelta(0))


def test_the_function_may_be_left_out() -> None:
    view = declared(mode=None, name="payments")
    assert (view.name, view.function, view.mode, view.description) == ("payments", None, "pass_through", None)
    assert list(view.inputs) == ["payments"]
    odd = StreamSource(name="pay ments", stream_config=PushConfig(), batch_config=FILES)
    assert list(declared(mode=None, name="payments", source=odd).inputs) == ["rows"]


def test_a_view_without_function_has_a_name() -> None:
    assert faults(declared, mode=None) == (
        "name is not given; give it where there is no function, or the mode of the function",
    )
    assert faults(declared, mode=None, name="a b") == (
        "name 'a b' is not an identifier; use letters, digits and underscores",
    )


@pytest.mark.parametrize("mode", ["pandas", "polars", "python", "sql"])
def test_the_modes_are_those_of_batch_views(mode: str) -> None:
    assert declared(mode=mode).mode == mode
    assert plain(mode=mode).mode == mode


def test_a_function_has_one_parameter_besides_the_context() -> None:
    def two(transactions: Any, merchants: Any) -> Any:
        return transactions, merchants

    def with_context(transactions: Any, context: Any = materialization_context()) -> Any:  # noqa: B008
        return transactions, context

    assert faults(declared, two) == (
        "two takes 2 parameters besides the context (transactions, merchants), but 1 source is given; make them equal",
    )
    assert declared(with_context).context_parameter == "context"


def test_rows_of_two_sources_are_not_taken_one_by_one() -> None:
    def two(transactions: Any, merchants: Any) -> Any:
        return transactions, merchants

    assert faults(plain, two, mode="python", sources=[TRANSACTIONS, TRANSACTIONS]) == (
        "mode 'python' takes one row of one source at a time, not of 2; use another mode",
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (TRANSACTIONS, "source has no stream; give StreamSource(name=, stream_config=, batch_config=), or declare a "),
        (FilteredSource(TRANSACTIONS), "source has no stream; give StreamSource(name=, stream_config=, batch_config=)"),
        ([KAFKA], "source is a list; give a StreamSource, one only"),
        (None, "source is None; give a StreamSource, one only"),
        (plain(), "source is a FeatureView; give a StreamSource, one only"),
    ],
)
def test_a_stream_view_follows_one_stream(source: Any, message: str) -> None:
    (fault,) = faults(declared, source=source)
    assert fault.startswith(message)


def test_a_batch_view_reads_the_batch_side_of_a_stream_where_it_is_told_to() -> None:
    assert faults(plain, sources=[KAFKA]) == (
        "stream source 'payments' is given as a source of a batch feature view; give its batch side, which is the "
        "attribute batch_source, or declare a stream_feature_view",
    )
    assert faults(plain, sources=[FilteredSource(KAFKA)]) == faults(plain, sources=[KAFKA])
    assert faults(plain, sources=[BARE_PUSH]) == (
        "stream source 'payments' is given as a source of a batch feature view, but it has no batch_config; declare a "
        "stream_feature_view",
    )
    assert plain(sources=[KAFKA.batch_source]).sources == (KAFKA.batch_source,)


def test_a_batch_side_that_cannot_be_filtered_is_refused() -> None:
    whole = StreamSource(name="payments", stream_config=PushConfig(), batch_config=pandas_batch_config()(lambda: None))
    (fault,) = faults(declared, source=whole)
    assert fault.startswith("source 'payments' is read filtered, but its function cannot filter; ")
    assert declared(source=whole.unfiltered()).sources == (whole.batch_source,)
    without = FileConfig(uri="rows.parquet", file_format="parquet")
    (fault,) = faults(declared, source=StreamSource(name="p", stream_config=PushConfig(), batch_config=without))
    assert fault.startswith("source 'p' is read filtered, but has no timestamp_field; ")


@pytest.mark.parametrize(
    "changes", [{}, AGGREGATES | {"stream_processing_mode": CONTINUOUS}, AGGREGATES | {"aggregation_interval": HOUR}]
)
def test_a_stream_view_may_be_online(changes: dict[str, Any]) -> None:
    assert declared(online=True, **changes).online


def watermarked(**settings: Any) -> StreamSource:
    config = KafkaConfig(kafka_bootstrap_servers="broker:9092", topics="payments", **settings)
    return StreamSource(name="payments", stream_config=config, batch_config=FILES)


def test_a_watermark_is_over_the_timestamps_of_the_view() -> None:
    other = {"timestamp_field": "arrived_at", "watermark_delay_threshold": HOUR}
    assert faults(declared, source=watermarked(**other)) == (
        "the watermark of stream source 'payments' is over its timestamp_field 'arrived_at', but the view has its "
        "times in 'timestamp'; give both one name",
    )
    assert declared(source=watermarked(timestamp_field="timestamp", watermark_delay_threshold=HOUR)).is_stream
    assert declared(source=watermarked(timestamp_field="arrived_at")).is_stream


def test_what_grows_without_a_watermark_is_warned_of() -> None:
    tiled = {**AGGREGATES, "aggregation_interval": HOUR, "online": True}
    unbounded = watermarked(deduplication_columns=["id"])
    forgotten, late = stream_warnings(declared(source=unbounded, **tiled))
    remedy = "give KafkaConfig a watermark_delay_threshold"
    assert forgotten == (
        f"payments is deduplicated without a watermark, so every event is remembered for good; {remedy}"
    )
    assert late == f"aggregates of intervals without a watermark: events count however late they come; {remedy}"
    bounded = watermarked(deduplication_columns=["id"], watermark_delay_threshold=HOUR)
    for view in (declared(source=bounded, **tiled), declared(source=unbounded), declared(online=True)):
        assert list(stream_warnings(view)) == []


def test_a_continuous_view_has_no_aggregation_interval() -> None:
    assert faults(declared, **AGGREGATES, source=PUSH, aggregation_interval=HOUR) == (
        "aggregation_interval is given with stream_processing_mode CONTINUOUS, where every event counts by itself; "
        "leave it out",
    )
    assert faults(declared, **AGGREGATES, compaction_enabled=True, aggregation_interval=HOUR) == (
        "aggregation_interval is given with compaction_enabled, where every event counts by itself; leave it out",
    )


def test_an_interval_view_has_an_aggregation_interval() -> None:
    assert faults(declared, **AGGREGATES) == (
        "aggregations without aggregation_interval; give the tile size, such as timedelta(hours=1)",
    )
    assert faults(declared, **AGGREGATES, aggregation_interval=5 * HOUR) == (
        "aggregation_interval 5h does not divide batch_schedule 1d; give a divisor of it",
        "feature 'amount_sum_7d_5h': window_size 7d is not a multiple of aggregation_interval 5h; give a multiple of "
        "it",
    )


def test_an_untiled_view_is_not_followed_in_intervals() -> None:
    assert faults(declared, **AGGREGATES, compaction_enabled=True, stream_processing_mode=TIME_INTERVAL) == (
        "stream_processing_mode is TIME_INTERVAL with compaction_enabled, which keeps every event by itself; leave one "
        "out",
    )


def test_windows_of_a_continuous_view_need_no_grid() -> None:
    windows = [TimeWindow(timedelta(seconds=7), timedelta(seconds=-1))]
    windows += [TimeWindowSeries(series_start=timedelta(seconds=-10), window_size=timedelta(seconds=5))]  # type: ignore[list-item]
    view = declared(source=PUSH, aggregations=[Aggregation("amount", "sum", window) for window in windows])
    assert view.feature_names == (
        "amount_sum_7s_continuous_offset_1s",
        "amount_sum_5s_continuous_series_10s_0s_5s",
    )


def test_the_leading_edge_is_kept_for_aggregates() -> None:
    newest = AggregationLeadingEdge.LATEST_EVENT_TIME
    view = declared(source=PUSH, **AGGREGATES, aggregation_leading_edge=newest)
    assert view.aggregation_leading_edge is newest
    assert declared(source=PUSH, **AGGREGATES).aggregation_leading_edge is AggregationLeadingEdge.WALL_CLOCK_TIME
    assert declared().aggregation_leading_edge is None
    assert faults(declared, aggregation_leading_edge=newest) == (
        "aggregation_leading_edge is given without aggregations; leave it out",
    )


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("stream_processing_mode", "CONTINUOUS", "stream_processing_mode is 'CONTINUOUS'; give StreamProcessingMode."),
        ("aggregation_leading_edge", 1, "aggregation_leading_edge is an int; give AggregationLeadingEdge.WALL_CLOCK"),
        ("batch_trigger", "MANUAL", "batch_trigger is 'MANUAL'; give BatchTriggerType.SCHEDULED or "),
        ("mode", "spark_sql", "mode 'spark_sql' is not known; it is one of pandas, polars, python, sql"),
        ("sources", [KAFKA], "sources is not taken: it is called source, one StreamSource"),
        (
            "incremental_backfills",
            True,
            "incremental_backfills is not taken: a stream feature view has no incremental ",
        ),
        ("aggregation_mode", 1, "aggregation_mode is not taken: it is called stream_processing_mode"),
        ("output_stream", 1, "output_stream is not taken: features are not written to a stream by this version"),
        ("stream_compute", 1, "stream_compute is not taken: jobs run where Dagster runs them; leave it out"),
    ],
)
def test_a_wrong_argument_is_refused_with_a_sentence(argument: str, value: Any, message: str) -> None:
    (fault,) = faults(declared, **{argument: value})
    assert fault.startswith(message)


def test_both_spellings_declare_the_same_stream_view() -> None:
    later = declared(
        schema=None,
        entities=[Entity(name="user", join_keys=[Field("user_id", String)])],
        timestamp_field="timestamp",
        source=PUSH,
        features=[Aggregate(input_column=Field("amount", Float64), function="sum", time_window=7 * DAY)],
    )
    assert later.aggregates == declared(source=PUSH, **AGGREGATES).aggregates


def test_how_fresh_a_stream_should_be_is_a_matter_of_what_is_online() -> None:
    online = {"source": PUSH, "online": True}
    assert declared(**online, expected_feature_freshness="30m").expected_feature_freshness == timedelta(minutes=30)
    assert declared(**online).expected_feature_freshness is None
    assert faults(declared, expected_feature_freshness=HOUR) == (
        "expected_feature_freshness is given without online=True; leave it out",
    )
    assert faults(declared, **online, expected_feature_freshness=timedelta(0)) == (
        "expected_feature_freshness 0:00:00 is not positive; give a longer one",
    )
    tiles = {**online, **AGGREGATES, "stream_processing_mode": TIME_INTERVAL, "aggregation_interval": HOUR}
    (fault,) = faults(declared, **tiles, expected_feature_freshness=HOUR)
    assert fault.endswith("so give at least 2h")
