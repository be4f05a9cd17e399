"""Whatever values a declaration is given, it is accepted or refused with sentences."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from featurekit_dagster.domain import aggregation_functions
from featurekit_dagster.domain.aggregation import AggregationFunction
from featurekit_dagster.domain.context import materialization_context
from featurekit_dagster.domain.declarations import batch_feature_view, stream_feature_view
from featurekit_dagster.domain.entity import Entity
from featurekit_dagster.domain.feature_service import FeatureService
from featurekit_dagster.domain.feature_view import (
    Aggregation,
    AggregationLeadingEdge,
    BatchTriggerType,
    DeltaConfig,
    FeatureView,
    StreamProcessingMode,
)
from featurekit_dagster.domain.repo import Repository
from featurekit_dagster.domain.schema import Array, Field, Float64, Int64, String, Timestamp
from featurekit_dagster.domain.sources import BatchSource, DeltaTableConfig, FileConfig, FilteredSource, SqlConfig
from featurekit_dagster.domain.stream_sources import (
    KafkaConfig,
    KinesisConfig,
    PushConfig,
    RedisStreamConfig,
    StreamSource,
)
from featurekit_dagster.domain.windows import LifetimeWindow, TimeWindow, TimeWindowSeries
from featurekit_dagster.errors import DeclarationError
from featurekit_dagster.intervals import EPOCH
from featurekit_dagster.planning.fingerprint import fingerprint
from featurekit_dagster.planning.grid import Timing
from featurekit_dagster.planning.planner import plan_view
from featurekit_dagster.planning.tasks import LedgerSnapshot
from tests.unit.domain.declared import DAY, SCHEMA, START, SUM_OF_A_WEEK, TRANSACTIONS, USER, plain, plain_arguments

NOW = datetime(2024, 3, 1, tzinfo=UTC)


def with_context(transactions: Any, context: Any = materialization_context()) -> Any:  # noqa: B008
    return transactions, context


def with_three(a: Any, b: Any, c: Any) -> Any:
    return a, b, c


class Callable:
    def __call__(self, transactions: Any) -> Any:
        return transactions


texts = st.sampled_from(["", "a", "user_id", "timestamp", "amount", "1d", "7d", "25h", "1d1d", "9" * 30 + "d", "größe"])
times = st.one_of(
    st.datetimes(),
    st.datetimes(timezones=st.timezones()),
    st.sampled_from(
        [
            datetime.min.replace(tzinfo=UTC),
            datetime.max.replace(tzinfo=UTC),
            NOW,
            pd.NaT,
            pd.Timestamp("2024-01-01 00:00:00.000000001Z"),
        ]
    ),
)
durations = st.one_of(
    st.timedeltas(),
    st.integers(-100, 100).map(lambda hours: timedelta(hours=hours)),
    st.sampled_from([timedelta.max, timedelta.min, timedelta(days=1, microseconds=1), timedelta(days=900_000)]),
)
odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.binary(max_size=3),
    st.just(object()),
    st.just(date(2024, 1, 1)),
    st.just(float),
    st.sampled_from([FeatureView, plain(), BatchTriggerType.MANUAL, DeltaConfig(), Float64]),
)
anything = st.one_of(odd, texts, times, durations)
types = st.sampled_from([String, Int64, Float64, Timestamp, Array(Int64)])
fields = st.builds(Field, st.one_of(texts, anything), st.one_of(types, anything))
lengths = st.one_of(durations, st.integers(-50, 50).map(lambda days: timedelta(days=days)), anything)
windows = st.one_of(
    durations,
    st.builds(TimeWindow, lengths, lengths),
    st.builds(TimeWindowSeries, series_start=lengths, window_size=lengths, step_size=lengths, series_end=lengths),
    st.just(LifetimeWindow()),
)
named = st.sampled_from(["last_n", "last_distinct", "first_n", "first_distinct", "approx_percentile", "mode"])
calls = st.builds(
    AggregationFunction,
    st.one_of(named, st.just("approx_count_distinct"), anything),
    st.one_of(st.integers(0, 3), anything),
    st.one_of(st.sampled_from([0, 8, 100]), anything),
    st.one_of(st.floats(0, 1), anything),
)
plain_names = st.sampled_from(["sum", "count", "last", "avg", "first", "approx_count_distinct", "last_distinct"])
aggregations = st.builds(
    Aggregation,
    st.one_of(texts, fields, anything),
    st.one_of(plain_names, calls, st.sampled_from([aggregation_functions.last, len]), anything),
    st.one_of(windows, anything),
    st.one_of(st.none(), texts, anything),
)


def lists(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    some = st.one_of(parts, anything)
    return st.one_of(st.lists(some, max_size=3), st.lists(some, max_size=2).map(tuple), parts, anything)


entity_values = st.sampled_from([USER, Entity(name="merchant", join_keys=[Field("merchant_id", String)])])
PUSH = StreamSource(name="events", stream_config=PushConfig(), batch_config=TRANSACTIONS.batch_config)
BARE_PUSH = StreamSource(name="events", stream_config=PushConfig())
KAFKA = StreamSource(
    name="events",
    stream_config=KafkaConfig(kafka_bootstrap_servers="broker:9092", topics="events"),
    batch_config=TRANSACTIONS.batch_config,
)
STREAMS = [PUSH, BARE_PUSH, KAFKA, FilteredSource(KAFKA), BARE_PUSH.unfiltered()]
source_values = st.sampled_from([TRANSACTIONS, FilteredSource(TRANSACTIONS), TRANSACTIONS.unfiltered(), *STREAMS])
ARGUMENTS: Mapping[str, st.SearchStrategy[Any]] = {
    "mode": st.sampled_from(["pandas", "polars", "python", "sql", "spark_sql"]),
    "sources": lists(source_values),
    "entities": lists(entity_values),
    "schema": lists(fields),
    "features": lists(st.one_of(fields, aggregations)),
    "aggregations": lists(aggregations),
    "timestamp_field": texts,
    "name": texts,
    "aggregation_interval": durations,
    "aggregation_secondary_key": st.sampled_from(["amount", "merchant_id", "user_id", "größe"]),
    "lifetime_start_time": times,
    "compaction_enabled": st.booleans(),
    "batch_compaction_enabled": st.booleans(),
    "batch_schedule": durations,
    "feature_start_time": times,
    "online": st.booleans(),
    "offline": st.booleans(),
    "ttl": durations,
    "batch_trigger": st.sampled_from(BatchTriggerType),
    "manual_trigger_backfill_end_time": times,
    "max_backfill_interval": durations,
    "incremental_backfills": st.booleans(),
    "online_serving_index": lists(texts),
    "offline_store": st.builds(DeltaConfig, time_partition_size=st.one_of(durations, anything)),
    "context_parameter_name": texts,
    "description": texts,
    "owner": texts,
    "tags": st.dictionaries(texts, st.one_of(texts, odd), max_size=2),
    "cache_config": anything,
}
OF_BATCHES = ("sources", "incremental_backfills")
STREAM_ARGUMENTS = {name: values for name, values in ARGUMENTS.items() if name not in OF_BATCHES} | {
    "source": source_values,
    "stream_processing_mode": st.sampled_from(StreamProcessingMode),
    "aggregation_leading_edge": st.sampled_from(AggregationLeadingEdge),
}
BASES: tuple[dict[str, Any], ...] = ({}, {"aggregations": [SUM_OF_A_WEEK], "aggregation_interval": "1h"})
functions = st.sampled_from([with_context, with_three, lambda x: x, len, print, Callable(), Callable, None, plain()])


def with_one(transactions: Any) -> Any:
    return transactions


def refusal(declare: Any) -> tuple[str, ...]:
    """Return the faults of a declaration, none when it is accepted."""
    try:
        declare()
    except DeclarationError as refused:
        check_refusal(refused)
        return refused.faults
    return ()


def check_refusal(refused: DeclarationError) -> None:
    assert refused.faults
    assert all(isinstance(fault, str) and fault for fault in refused.faults)
    assert len(set(refused.faults)) == len(refused.faults)


@st.composite
def view_arguments(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(sorted(ARGUMENTS)), max_size=6, unique=True))
    changed = {name: draw(st.one_of(ARGUMENTS[name], anything)) for name in names}
    return plain_arguments(**draw(st.sampled_from(BASES))) | changed


def stream_arguments(**changes: Any) -> dict[str, Any]:
    """Return the arguments of a correct stream view without aggregates, changed."""
    correct = {"mode": "pandas", "source": KAFKA, "entities": [USER], "schema": SCHEMA, "batch_schedule": DAY}
    return correct | {"feature_start_time": START, "offline": True} | changes


@st.composite
def stream_view_arguments(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(sorted(STREAM_ARGUMENTS)), max_size=6, unique=True))
    changed = {name: draw(st.one_of(STREAM_ARGUMENTS[name], anything)) for name in names}
    return stream_arguments(**draw(st.sampled_from(BASES))) | {"source": draw(st.sampled_from(STREAMS))} | changed


def check_view(view: FeatureView) -> None:
    """Whatever is accepted answers what the other parts of the project ask of it."""
    assert view.feature_names
    assert len(view.features) == len(view.defaults) == len(set(view.feature_names))
    assert view.materialization_start is None or view.materialization_start.tzinfo is UTC
    assert {*view.tile_keys, view.timestamp_field} <= {column.name for column in view.columns}
    assert len({partial.name.lower() for partial in view.partials}) == len(view.partials)
    assert (view.aggregation_interval is not None) == view.is_tiled
    assert isinstance(view.batch_schedule, timedelta)
    assert Timing.of(view).grid_us > 0
    assert not (view.online and view.is_stream)
    plan = plan_view(view, LedgerSnapshot(), NOW)
    assert plan.reason
    assert fingerprint(view)


@given(view_arguments(), st.one_of(st.just(with_context), functions))
def test_a_view_is_accepted_or_refused_with_sentences(arguments: dict[str, Any], function: Any) -> None:
    try:
        view = batch_feature_view(**arguments)(function)
    except DeclarationError as refused:
        check_refusal(refused)
        return
    check_view(view)


@given(stream_view_arguments(), st.one_of(st.just(with_context), functions))
def test_a_stream_view_is_accepted_or_refused_with_sentences(arguments: dict[str, Any], function: Any) -> None:
    try:
        declared = stream_feature_view(**arguments)
        view = declared if isinstance(declared, FeatureView) else declared(function)
    except DeclarationError as refused:
        check_refusal(refused)
        return
    assert view.is_stream
    check_view(view)


FUNCTIONS = ("last", "last_distinct", "first", "first_distinct", "approx_count_distinct", "approx_percentile")
PARAMETERS = st.one_of(st.integers(-2, 2_000), st.floats(-1, 2), anything)


@given(st.sampled_from(FUNCTIONS), st.lists(PARAMETERS, min_size=1, max_size=1))
def test_a_function_is_made_or_refused_with_sentences(name: str, values: list[Any]) -> None:
    refusal(lambda: getattr(aggregation_functions, name)(*values))


READ: dict[str, Any] = {
    "timestamp_field": None,
    "watermark_delay_threshold": None,
    "deduplication_columns": (),
    "initial_stream_position": "latest",
    "post_processor": None,
    "options": {},
}


@given(
    st.sampled_from(
        [
            Entity,
            BatchSource,
            FeatureService,
            FileConfig,
            DeltaTableConfig,
            SqlConfig,
            StreamSource,
            PushConfig,
            KafkaConfig,
            KinesisConfig,
            RedisStreamConfig,
        ]
    ),
    st.dictionaries(
        st.sampled_from(
            [
                "name",
                "join_keys",
                "batch_config",
                "features",
                "uri",
                "file_format",
                "url",
                "query",
                "timestamp_field",
                "data_delay",
                "stream_config",
                "schema",
                "watermark_delay_threshold",
                "deduplication_columns",
                "initial_stream_position",
                "post_processor",
                "options",
                "topics",
                "log_offline",
            ]
        ),
        st.one_of(anything, lists(st.one_of(fields, source_values))),
    ),
)
def test_other_declarations_are_accepted_or_refused_with_sentences(kind: Any, values: dict[str, Any]) -> None:
    needed = {
        Entity: {"name": "user", "join_keys": ["user_id"]},
        BatchSource: {"name": "rows", "batch_config": TRANSACTIONS.batch_config},
        FeatureService: {"name": "service", "features": [plain()]},
        FileConfig: {"uri": "rows.csv", "file_format": "csv", "timestamp_field": None, "data_delay": timedelta(0)},
        DeltaTableConfig: {"uri": "rows", "timestamp_field": None, "data_delay": timedelta(0)},
        SqlConfig: {"url": "sqlite://", "query": "SELECT 1", "timestamp_field": None, "data_delay": timedelta(0)},
        StreamSource: {"name": "s", "stream_config": PushConfig(), "batch_config": None, "schema": None},
        PushConfig: {"timestamp_field": None, "log_offline": False},
        KafkaConfig: {"kafka_bootstrap_servers": "b:9092", "topics": "t"} | READ,
        KinesisConfig: {"stream_name": "s", "region": "r"} | READ,
        RedisStreamConfig: {"url": "redis://", "stream_key": "s"} | READ,
    }[kind]
    refusal(lambda: kind(**(needed | {name: value for name, value in values.items() if name in needed})))


@given(st.one_of(anything, lists(st.one_of(source_values, entity_values))))
def test_a_workspace_is_gathered_or_refused_with_sentences(declarations: Any) -> None:
    refusal(lambda: Repository.gather(declarations))


@given(st.data())
def test_a_single_wrong_value_gives_faults_about_itself_only(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(ARGUMENTS.keys() - {"sources", "entities", "schema"})))
    value = data.draw(odd)
    found = refusal(lambda: batch_feature_view(**plain_arguments(**{name: value}))(with_one))
    assert len(found) <= 1 or name in ("features", "aggregations"), found


@given(st.data())
def test_a_single_wrong_value_of_a_stream_view_gives_faults_about_itself_only(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(STREAM_ARGUMENTS.keys() - {"source", "entities", "schema", "mode"})))
    value = data.draw(odd)
    found = refusal(lambda: stream_feature_view(**stream_arguments(**{name: value}))(with_one))
    assert len(found) <= 1 or name in ("features", "aggregations"), found


@given(st.integers(-70 * 366, 130 * 365).map(lambda days: EPOCH + timedelta(days=days)), durations)
def test_an_accepted_view_can_be_planned(start: datetime, schedule: timedelta) -> None:
    try:
        view = plain(schema=SCHEMA, feature_start_time=start, batch_schedule=schedule)
    except DeclarationError:
        return
    plan = plan_view(view, LedgerSnapshot(), NOW)
    assert plan.jobs == len(plan.runs) <= 1
