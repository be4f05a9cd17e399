"""Whatever values a declaration is given, it is accepted or refused with sentences."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from featurekit_dagster.domain.context import materialization_context
from featurekit_dagster.domain.declarations import batch_feature_view
from featurekit_dagster.domain.entity import Entity
from featurekit_dagster.domain.feature_service import FeatureService
from featurekit_dagster.domain.feature_view import Aggregation, BatchTriggerType, DeltaConfig, FeatureView
from featurekit_dagster.domain.repo import Repository
from featurekit_dagster.domain.schema import Array, Field, Float64, Int64, String, Timestamp
from featurekit_dagster.domain.sources import BatchSource, DeltaTableConfig, FileConfig, FilteredSource, SqlConfig
from featurekit_dagster.domain.windows import TimeWindow
from featurekit_dagster.errors import DeclarationError
from featurekit_dagster.intervals import EPOCH
from featurekit_dagster.planning.planner import plan_view
from featurekit_dagster.planning.tasks import LedgerSnapshot
from tests.unit.domain.declared import SCHEMA, SUM_OF_A_WEEK, TRANSACTIONS, USER, plain, plain_arguments

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
windows = st.one_of(durations, st.builds(TimeWindow, st.one_of(durations, anything), st.one_of(durations, anything)))
aggregations = st.builds(
    Aggregation,
    st.one_of(texts, fields, anything),
    st.one_of(st.sampled_from(["sum", "count", "last", "avg"]), anything),
    st.one_of(windows, anything),
    st.one_of(st.none(), texts, anything),
)


def lists(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    some = st.one_of(parts, anything)
    return st.one_of(st.lists(some, max_size=3), st.lists(some, max_size=2).map(tuple), parts, anything)


entity_values = st.sampled_from([USER, Entity(name="merchant", join_keys=[Field("merchant_id", String)])])
source_values = st.sampled_from([TRANSACTIONS, FilteredSource(TRANSACTIONS), TRANSACTIONS.unfiltered()])
ARGUMENTS: Mapping[str, st.SearchStrategy[Any]] = {
    "mode": st.sampled_from(["pandas", "polars", "sql", "spark_sql"]),
    "sources": lists(source_values),
    "entities": lists(entity_values),
    "schema": lists(fields),
    "features": lists(st.one_of(fields, aggregations)),
    "aggregations": lists(aggregations),
    "timestamp_field": texts,
    "name": texts,
    "aggregation_interval": durations,
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


@given(view_arguments(), st.one_of(st.just(with_context), functions))
def test_a_view_is_accepted_or_refused_with_sentences(arguments: dict[str, Any], function: Any) -> None:
    try:
        view = batch_feature_view(**arguments)(function)
    except DeclarationError as refused:
        check_refusal(refused)
        return
    assert view.feature_names
    assert view.materialization_start is None or view.materialization_start.tzinfo is UTC
    assert {key.name for key in view.join_keys} <= {column.name for column in view.columns}


@given(
    st.sampled_from([Entity, BatchSource, FeatureService, FileConfig, DeltaTableConfig, SqlConfig]),
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


@given(st.integers(-70 * 366, 130 * 365).map(lambda days: EPOCH + timedelta(days=days)), durations)
def test_an_accepted_view_can_be_planned(start: datetime, schedule: timedelta) -> None:
    try:
        view = plain(schema=SCHEMA, feature_start_time=start, batch_schedule=schedule)
    except DeclarationError:
        return
    plan = plan_view(view, LedgerSnapshot(), NOW)
    assert plan.jobs == len(plan.runs) <= 1
