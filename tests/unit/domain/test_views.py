"""What a correct declaration means."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pandas as pd
import pytest

from featurekit_dagster.domain.context import materialization_context
from featurekit_dagster.domain.declarations import Attribute
from featurekit_dagster.domain.entity import Entity
from featurekit_dagster.domain.feature_view import Aggregate, Aggregation, BatchTriggerType
from featurekit_dagster.domain.schema import Array, Bytes, Field, Float64, Int64, Map, String, Struct, Timestamp
from featurekit_dagster.domain.windows import TimeWindow, format_duration, parse_duration
from tests.unit.domain.declared import (
    DAY,
    HOUR,
    MERCHANT,
    SCHEMA,
    START,
    TRANSACTIONS,
    USER,
    aggregated,
    file_source,
    plain,
)


def test_the_features_of_a_schema_are_its_columns_but_keys_and_timestamp() -> None:
    view = plain(schema=[Field("last", String), *SCHEMA])
    assert view.feature_names == ("last", "amount")
    assert view.key_names == ("user_id",)
    assert view.timestamp_field == "timestamp"
    assert not view.is_aggregate


def test_every_column_of_the_schema_must_come_back_from_an_aggregate_view() -> None:
    view = aggregated(schema=[*SCHEMA, Field("merchant", String)])
    assert {column.name for column in view.columns} == {"user_id", "timestamp", "amount", "merchant"}
    assert view.feature_names == ("amount_sum_7d_1h",)


def test_the_later_spelling_declares_the_same_view() -> None:
    typed = Entity(name="user", join_keys=[Field("user_id", String)])
    later = {"schema": None, "aggregations": None, "entities": [typed], "timestamp_field": "timestamp"}
    feature = Aggregate(input_column=Field("amount", Float64), function="sum", time_window=7 * DAY)
    assert aggregated(**later, features=[feature]).aggregates == aggregated().aggregates
    attributes = plain(**later, features=[Attribute("amount", Float64)])
    assert attributes.attributes == plain().attributes
    assert set(attributes.columns) == set(plain().columns)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "amount_sum_7d_1h"),
        ({"function": "variance"}, "amount_variance_7d_1h"),
        ({"time_window": timedelta(hours=36)}, "amount_sum_1d12h_1h"),
        ({"time_window": TimeWindow(DAY, offset=-HOUR)}, "amount_sum_1d_1h_offset_1h"),
        ({"name": "spent"}, "spent"),
    ],
)
def test_an_aggregate_is_named_after_column_function_window_and_tile(changes: dict[str, Any], name: str) -> None:
    given = {"column": "amount", "function": "sum", "time_window": 7 * DAY} | changes
    assert aggregated(aggregations=[Aggregation(**given)]).feature_names == (name,)


def test_features_of_one_column_share_their_partial_columns() -> None:
    functions = ("sum", "mean", "count", "min", "variance", "stddev_pop")
    view = aggregated(aggregations=[Aggregation("amount", function, DAY) for function in functions])
    assert [partial.name for partial in view.partials] == [
        "sum_amount",
        "count_amount",
        "min_amount",
        "mean_amount",
        "m2_amount",
    ]


def test_the_materialization_start_is_on_the_grid_and_before_the_widest_window() -> None:
    start = START + 5 * HOUR
    assert plain(feature_start_time=start).materialization_start == START
    window = TimeWindow(2 * DAY, offset=-DAY)
    wide = aggregated(feature_start_time=start, aggregations=[Aggregation("amount", "sum", window)])
    assert wide.materialization_start == START - 3 * DAY


@pytest.mark.parametrize(
    "time",
    [
        datetime(2024, 1, 1),  # noqa: DTZ001 - naive is UTC
        datetime(2024, 1, 1, 5, 30, tzinfo=timezone(timedelta(hours=5, minutes=30))),
        pd.Timestamp("2024-01-01"),
        pd.Timestamp("2024-01-01", tz="UTC"),
    ],
)
def test_times_become_plain_aware_utc(time: datetime) -> None:
    resolved = plain(feature_start_time=time).feature_start_time
    assert resolved == START
    assert type(resolved) is datetime
    assert resolved.tzinfo is UTC


def test_the_context_is_found_by_its_default_or_by_its_name() -> None:
    def marked(transactions: Any, moment: Any = materialization_context()) -> Any:  # noqa: B008
        return transactions, moment

    def named(transactions: Any, moment: Any) -> Any:
        return transactions, moment

    assert plain(marked).context_parameter == "moment"
    assert plain(named, context_parameter_name="moment").context_parameter == "moment"
    assert list(plain(marked).inputs) == ["transactions"]


def test_sources_belong_to_parameters_in_order() -> None:
    def joined(spent: Any, merchants: Any) -> Any:
        return spent, merchants

    merchants = file_source("merchants", delay=HOUR)
    view = plain(joined, sources=[TRANSACTIONS, merchants])
    assert {name: used.source for name, used in view.inputs.items()} == {"spent": TRANSACTIONS, "merchants": merchants}
    assert view.data_delay == HOUR
    twice = plain(joined, sources=[TRANSACTIONS, TRANSACTIONS])
    assert twice.sources == (TRANSACTIONS,)


def test_join_keys_come_in_the_order_of_the_entities() -> None:
    view = plain(entities=[MERCHANT, USER])
    assert view.key_names == ("merchant_id", "user_id")
    assert view.online_serving_index == ("merchant_id", "user_id")
    assert view.wildcard_join_key is None
    assert plain(entities=[MERCHANT, USER], online_serving_index=["user_id"]).wildcard_join_key == "merchant_id"


@pytest.mark.parametrize("dtype", [String, Int64, Bytes, Timestamp])
def test_join_keys_are_of_types_that_can_be_compared(dtype: Any) -> None:
    view = plain(schema=[Field("user_id", dtype), *SCHEMA[1:]], timestamp_field="timestamp")
    assert view.join_keys == (Field("user_id", dtype),)


def test_names_and_descriptions_come_from_the_function() -> None:
    view = plain()
    assert (view.name, view.description) == ("spending", "What users spend.")
    assert view.defined_in is not None
    assert view.defined_in.endswith("declared.py")
    assert plain(name="other", description="Else.").description == "Else."


def test_defaults_are_those_of_the_pages() -> None:
    view = plain(online=False, offline=False, feature_start_time=None)
    assert (view.ttl, view.batch_trigger, view.max_backfill_interval) == (None, BatchTriggerType.SCHEDULED, None)
    assert not view.incremental_backfills
    assert view.offline_store.time_partition_size == DAY


def test_a_reference_keeps_what_the_other_calls_said() -> None:
    reference = plain().with_name("payer").with_join_key_map({"user_id": "payer_id"})[["amount"]]
    assert (reference.label, reference.spine_keys, reference.feature_names) == ("payer", ("payer_id",), ("amount",))
    assert plain()[["amount"]].label == "spending"


def test_types_are_written_as_users_write_them() -> None:
    nested = Struct([Field("a", Array(Map(String, Int64)))])
    assert str(nested) == "Struct([a: Array(Map(String, Int64))])"
    assert nested.is_nested
    assert not nested.is_numeric


@pytest.mark.parametrize(
    ("text", "duration"),
    [("1d", DAY), ("1d12h", 36 * HOUR), ("90m", 1.5 * HOUR), ("1h30m5s", timedelta(seconds=5405)), ("0s", DAY - DAY)],
)
def test_durations_are_read_and_written(text: str, duration: timedelta) -> None:
    assert parse_duration(text) == duration
    assert parse_duration(format_duration(duration)) == duration


def test_a_week_is_written_as_7d() -> None:
    assert format_duration(timedelta(weeks=1)) == "7d"
