"""What is refused about parameters, sources and the timestamp of a view."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from featurekit_dagster.domain.context import materialization_context
from featurekit_dagster.domain.feature_service import FeatureService
from featurekit_dagster.domain.schema import Field, Timestamp
from featurekit_dagster.domain.sources import BatchSource, FilteredSource, pandas_batch_config
from tests.unit.domain.declared import (
    SCHEMA,
    TRANSACTIONS,
    USER,
    faults,
    file_source,
    plain,
    spending,
)

KEY = SCHEMA[0]
AMOUNT = SCHEMA[2]


def test_the_function_has_one_parameter_for_each_source() -> None:
    assert faults(plain, sources=[TRANSACTIONS, file_source("merchants")]) == (
        "spending takes 1 parameter besides the context (transactions), but 2 sources are given; make them equal",
    )


def test_the_context_is_not_counted_as_a_source() -> None:
    def one(transactions: Any, context: Any = materialization_context()) -> Any:  # noqa: B008
        return transactions, context

    assert plain(one).context_parameter == "context"
    assert faults(plain, one, sources=[TRANSACTIONS, TRANSACTIONS]) == (
        "one takes 1 parameter besides the context (transactions), but 2 sources are given; make them equal",
    )


def test_a_function_without_parameters_is_refused() -> None:
    def none() -> None:
        return None

    assert faults(plain, none) == (
        "none takes 0 parameters besides the context (none), but 1 source is given; make them equal",
    )


def test_parameters_can_be_given_by_name() -> None:
    def collects(*frames: Any, **more: Any) -> Any:
        return frames, more

    assert faults(plain, collects) == (
        "parameters *frames, **more of collects cannot be given by name; write one ordinary parameter for each source",
    )


def test_the_context_parameter_name_is_a_parameter() -> None:
    assert faults(plain, context_parameter_name="context") == (
        "context_parameter_name 'context' is not a parameter of spending; it has transactions",
    )


def test_only_one_parameter_receives_the_context() -> None:
    def two(transactions: Any, context: Any = materialization_context(), other: Any = None) -> Any:  # noqa: B008
        return transactions, context, other

    assert faults(plain, two, context_parameter_name="other") == (
        "parameters context, other all receive the context; keep one",
    )


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (plain(), "a FeatureView"),
        (partial(spending), "a partial"),
        (len, "a builtin_function_or_method"),
        (int, "a type"),
    ],
)
def test_only_a_function_is_decorated(given: Any, what: str) -> None:
    found = faults(plain, given, name="spending")
    assert found == (f"{what} is decorated; decorate the function that is the transformation",)


def test_a_feature_view_as_source_is_refused() -> None:
    assert faults(plain, sources=[plain()]) == (
        "a FeatureView is given as a source; a batch feature view reads BatchSource, FilteredSource(...) or "
        "source.select_range(...)",
    )


@pytest.mark.parametrize(
    ("source", "what"),
    [
        (plain().with_name("other"), "a FeatureReference"),
        (FeatureService(name="service", features=[plain()]), "a FeatureService"),
        (TRANSACTIONS.batch_config, "a FileConfig"),
        ("transactions", "'transactions'"),
        (None, "None"),
    ],
)
def test_anything_else_as_source_is_refused(source: Any, what: str) -> None:
    (fault,) = faults(plain, sources=[source])
    assert fault.startswith(f"{what} is given as a source; a batch feature view reads BatchSource")


def test_a_view_reads_at_least_one_source() -> None:
    assert faults(plain, sources=[]) == ("sources is empty; a feature view reads at least one BatchSource",)


def test_a_source_read_filtered_has_a_timestamp_field() -> None:
    assert faults(plain, sources=[FilteredSource(file_source(timestamp_field=None))]) == (
        "source 'transactions' is read filtered, but has no timestamp_field; give one in its batch_config, "
        "or use it unfiltered",
    )
    assert plain(sources=[file_source(timestamp_field=None).unfiltered()])


def test_a_function_that_cannot_filter_is_not_read_filtered() -> None:
    @pandas_batch_config()
    def made() -> None:
        return None

    source = BatchSource(name="made", batch_config=made)
    assert faults(plain, sources=[FilteredSource(source)]) == (
        "source 'made' is read filtered, but its function cannot filter; declare it with "
        "supports_time_filtering=True, or use it unfiltered",
    )
    assert plain(sources=[source])


def test_without_timestamp_field_the_schema_has_exactly_one_timestamp() -> None:
    assert faults(plain, schema=[KEY, AMOUNT]) == (
        "timestamp_field is not given and no column is a Timestamp; name the event time column",
    )
    assert faults(plain, schema=[*SCHEMA, Field("seen_at", Timestamp)]) == (
        "timestamp_field is not given and the columns have 2 Timestamps (timestamp, seen_at); "
        "name the event time column",
    )
    assert plain(schema=[*SCHEMA, Field("seen_at", Timestamp)], timestamp_field="timestamp").feature_names == (
        "amount",
        "seen_at",
    )


def test_the_timestamp_field_is_a_timestamp() -> None:
    assert faults(plain, timestamp_field="amount") == (
        "timestamp_field 'amount' is declared Float64; it must be Timestamp",
    )


def test_the_timestamp_field_is_no_join_key() -> None:
    hour = type(USER)(name="hour", join_keys=[Field("timestamp", Timestamp)])
    assert faults(plain, entities=[USER, hour], timestamp_field="timestamp") == (
        "timestamp_field 'timestamp' is a join key; name a column of its own",
    )
