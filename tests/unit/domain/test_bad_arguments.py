"""How faults are reported, and what is refused of a single argument."""

from __future__ import annotations

from typing import Any

import pytest

from featurekit_dagster.domain.aggregation import FUNCTION_NAMES, PARAMETERIZED
from featurekit_dagster.domain.feature_view import Aggregation, DeltaConfig
from featurekit_dagster.domain.schema import Field, Int64
from featurekit_dagster.errors import DeclarationError
from tests.unit.domain.declared import (
    DAY,
    SCHEMA,
    START,
    SUM_OF_A_WEEK,
    TRANSACTIONS,
    USER,
    aggregated,
    faults,
    plain,
    spending,
)

AMOUNT = SCHEMA[2]
FUNCTIONS = ", ".join((*FUNCTION_NAMES, *PARAMETERIZED.values()))


def aggregation(**changes: Any) -> Aggregation:
    return Aggregation(**({"column": "amount", "function": "sum", "time_window": 7 * DAY} | changes))


def test_the_error_names_the_view_and_counts_its_faults() -> None:
    with pytest.raises(DeclarationError) as refused:
        plain(mode="scala")
    assert refused.value.subject == "feature view 'spending'"
    assert str(refused.value) == (
        "feature view 'spending': 1 fault\n  - mode 'scala' is not known; it is one of pandas, polars, python, sql"
    )
    assert isinstance(refused.value, ValueError)
    assert not refused.value.retryable


def test_five_faults_of_one_declaration_are_reported_at_once() -> None:
    with pytest.raises(DeclarationError) as refused:
        aggregated(
            mode="spark_sql",
            sources=[TRANSACTIONS, TRANSACTIONS],
            aggregations=[aggregation(function="avg")],
            feature_start_time=None,
            max_backfill_interval="36h",
        )
    assert str(refused.value) == (
        "feature view 'spending': 5 faults\n"
        "  - mode 'spark_sql' is not known; it is one of pandas, polars, python, sql\n"
        "  - online=True and offline=True without feature_start_time; give the first instant to materialize\n"
        "  - spending takes 1 parameter besides the context (transactions), but 2 sources are given; make them equal\n"
        f"  - aggregation 'avg of amount': function 'avg' is not known; use one of {FUNCTIONS}\n"
        "  - max_backfill_interval 1d12h is not a multiple of batch_schedule 1d; give a multiple of it"
    )


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("online", "no", "online is 'no'; give True or False"),
        ("offline", 1, "offline is an int; give True or False"),
        ("incremental_backfills", None, "incremental_backfills is None; give True or False"),
        ("compaction_enabled", "yes", "compaction_enabled is 'yes'; give True or False"),
        ("lifetime_start_time", 2024, "lifetime_start_time is an int; give a datetime, which is UTC "),
        ("aggregation_secondary_key", ["a"], "aggregation_secondary_key is a list; give text"),
        ("aggregation_secondary_key", "", "aggregation_secondary_key is empty; leave it out or give a name"),
        ("feature_start_time", "2024-01-01", "feature_start_time is '2024-01-01'; give a datetime, which is UTC "),
        ("feature_start_time", START.date(), "feature_start_time is a date; give a datetime, which is UTC "),
        ("manual_trigger_backfill_end_time", 5, "manual_trigger_backfill_end_time is an int; give a datetime, "),
        ("batch_trigger", "MANUAL", "batch_trigger is 'MANUAL'; give BatchTriggerType.SCHEDULED or "),
        ("batch_trigger", None, "batch_trigger is None; give BatchTriggerType.SCHEDULED or BatchTriggerType.MANUAL"),
        ("offline_store", "delta", "offline_store is 'delta'; give a DeltaConfig or an OfflineStoreConfig"),
        (
            "offline_store",
            DeltaConfig(time_partition_size=-DAY),
            "time_partition_size of offline_store -1 day, 0:00:00 is not positive",
        ),
        ("schema", "amount", "schema is 'amount'; give a list"),
        ("schema", [AMOUNT, "user_id"], "'user_id' is in schema; give Field(name, type)"),
        ("schema", [Field("", Int64)], "a column has the name ''; give a text that is not empty"),
        ("aggregations", SUM_OF_A_WEEK, "aggregations is an Aggregation; give a list"),
        ("aggregations", ["sum"], "'sum' is given as an aggregation; give Aggregation(column=, function=, ...)"),
        ("features", [5], "an int is given as a feature; give Attribute or Aggregate"),
        ("timestamp_field", ["timestamp"], "timestamp_field is a list; give text"),
        ("context_parameter_name", [], "context_parameter_name is a list; give text"),
        ("online_serving_index", "user_id", "online_serving_index is 'user_id'; give a list"),
        ("tags", ["fraud"], "tags is a list; give a mapping of text to text"),
        ("tags", {"tier": 1}, "tags has a key or value that is no text; write both as text"),
        ("owner", 5, "owner is an int; give text"),
        ("name", 5, "name is an int; give text"),
        ("mode", None, "mode None is not known; it is one of pandas, polars, python, sql"),
    ],
)
def test_a_value_of_a_wrong_kind_is_refused_with_a_sentence(argument: str, value: Any, message: str) -> None:
    found = faults(plain, **{argument: value})
    assert any(fault.startswith(message) for fault in found), found


def test_a_value_of_a_wrong_kind_is_not_also_called_missing() -> None:
    for argument in ("feature_start_time", "batch_schedule", "batch_trigger"):
        assert len(faults(plain, **{argument: 5})) == 1
    assert len(faults(aggregated, aggregation_interval=5)) == 1


def test_a_single_source_or_entity_needs_no_list() -> None:
    view = plain(sources=TRANSACTIONS, entities=USER)
    assert view.sources == (TRANSACTIONS,)
    assert view.entities == (USER,)


def test_the_declaration_is_not_changed_by_changing_its_arguments_later() -> None:
    tags = {"tier": "1"}
    view = plain(spending, tags=tags)
    tags["tier"] = "2"
    assert view.tags == {"tier": "1"}


NOT_OFFERED = [
    # of batch views in later versions
    "batch_compute",
    "monitor_freshness",
    "data_quality_enabled",
    "skip_default_expectations",
    "expected_feature_freshness",
    "alert_email",
    "run_transformation_validation",
    "options",
    "cache_config",
    "environment",
    "secrets",
    "resource_providers",
    "prevent_destroy",
    # of batch views in earlier versions
    "max_batch_aggregation_interval",
    "backfill_config",
    # of stream views
    "source",
    "stream_processing_mode",
    "aggregation_leading_edge",
    "stream_compute",
    "output_stream",
    "stream_tiling_enabled",
]


@pytest.mark.parametrize("argument", NOT_OFFERED)
def test_an_argument_that_is_not_offered_is_refused_with_what_to_do_instead(argument: str) -> None:
    (fault,) = faults(plain, **{argument: None})
    assert fault.startswith(f"{argument} is not taken: ")
    assert "no such argument" not in fault


@pytest.mark.parametrize(
    ("argument", "remedy"),
    [
        ("max_batch_aggregation_interval", "it is called max_backfill_interval"),
        ("environment", "the process's own environment is used; leave it out"),
        ("stream_processing_mode", "it belongs to stream_feature_view; leave it out"),
        ("source", "it is called sources, a list with one entry for each parameter of the function"),
        ("stream_tiling_enabled", "how a stream is tiled online is not chosen by this version; leave it out"),
        ("cache_config", "online reads are not cached; leave it out"),
        ("online_config", "it is called online_store"),
        ("monitor_freshness", "staleness is an asset check of every view; leave it out"),
        ("batch_shedule", "no such argument; leave it out or correct its spelling"),
    ],
)
def test_the_remedy_of_an_argument_that_is_not_offered_is_true(argument: str, remedy: str) -> None:
    assert faults(plain, **{argument: 1}) == (f"{argument} is not taken: {remedy}",)


def test_both_spellings_of_compaction_are_one_fault() -> None:
    assert faults(plain, online=False, compaction_enabled=True, batch_compaction_enabled=False) == (
        "compaction_enabled is given beside its old name batch_compaction_enabled; keep the first",
    )
    assert plain(online=False, batch_compaction_enabled=True).compaction_enabled
    assert not plain(compaction_enabled=False).compaction_enabled
