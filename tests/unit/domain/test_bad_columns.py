"""What is refused about names, features, columns and join keys of a view."""

from __future__ import annotations

from typing import Any

import pytest

from featurekit_dagster.domain.aggregation import FUNCTION_NAMES, PARAMETERIZED
from featurekit_dagster.domain.feature_view import Aggregate, Aggregation
from featurekit_dagster.domain.schema import Array, Field, Float64, Int64, String, Struct
from tests.unit.domain.declared import (
    DAY,
    MERCHANT,
    SCHEMA,
    SUM_OF_A_WEEK,
    USER,
    aggregated,
    faults,
    plain,
)

KEY, TIME, AMOUNT = SCHEMA
FUNCTIONS = ", ".join((*FUNCTION_NAMES, *PARAMETERIZED.values()))


def aggregation(**changes: Any) -> Aggregation:
    return Aggregation(**({"column": "amount", "function": "sum", "time_window": 7 * DAY} | changes))


@pytest.mark.parametrize("name", ["spending-daily", "7d_spending", "a b", "größe"])
def test_a_name_is_an_identifier(name: str) -> None:
    assert faults(plain, name=name) == (f"name {name!r} is not an identifier; use letters, digits and underscores",)


def test_a_name_is_not_empty() -> None:
    assert faults(plain, name="") == ("name is empty; leave it out or give a name",)


def test_a_lambda_needs_a_name() -> None:
    assert faults(plain, lambda transactions: transactions) == (
        "name '<lambda>' is not an identifier; use letters, digits and underscores",
    )
    assert plain(lambda transactions: transactions, name="spending").name == "spending"


def test_a_view_without_features_is_refused() -> None:
    message = "there are no features; give schema, features or aggregations"
    assert faults(plain, schema=[KEY, TIME]) == (message,)
    assert message in faults(plain, schema=None)
    assert message in faults(plain, schema=[])


def test_duplicate_feature_names_are_refused() -> None:
    message = "feature name 'amount_sum_7d_1h' is given twice; give one of them a name of its own"
    assert faults(aggregated, aggregations=[SUM_OF_A_WEEK, SUM_OF_A_WEEK]) == (message,)
    named = [aggregation(name="spent"), aggregation(function="mean", name="spent")]
    assert faults(aggregated, aggregations=named) == (
        "feature name 'spent' is given twice; give one of them a name of its own",
    )


def test_a_column_twice_in_the_schema_is_refused() -> None:
    assert faults(plain, schema=[*SCHEMA, AMOUNT]) == ("column 'amount' is twice in schema; keep one",)


def test_names_that_differ_only_in_case_are_refused_because_stores_do_not_tell_them_apart() -> None:
    assert faults(plain, schema=[*SCHEMA, Field("Amount", Float64)]) == (
        "columns 'amount' and 'Amount' differ only in case; rename one",
    )
    assert faults(aggregated, aggregations=[aggregation(name="USER_ID")]) == (
        "columns 'user_id' and 'USER_ID' differ only in case; rename one",
    )


def test_a_feature_named_like_a_key_or_the_timestamp_is_refused() -> None:
    assert faults(aggregated, aggregations=[aggregation(name="user_id"), aggregation(name="timestamp")]) == (
        "feature 'user_id' has the name of a join key or the timestamp; rename it",
        "feature 'timestamp' has the name of a join key or the timestamp; rename it",
    )


@pytest.mark.parametrize("name", ["_anchor_time", "time_partition", "_valid_from", "_EFFECTIVE_timestamp"])
def test_names_that_the_stores_use_are_refused(name: str) -> None:
    message = f"column {name!r} is a name the store uses itself; rename it"
    assert faults(plain, schema=[*SCHEMA, Field(name, Int64)]) == (message,)
    assert faults(aggregated, aggregations=[aggregation(name=name)]) == (message,)


def test_a_join_key_named_like_a_stored_tile_column_is_refused() -> None:
    key = Field("sum_amount", String)
    assert faults(aggregated, schema=[*SCHEMA, key], entities=[type(USER)(name="odd", join_keys=[key])]) == (
        "join key 'sum_amount' has the name under which tiles of column 'amount' are stored; rename one",
    )


def test_attributes_and_aggregates_are_never_mixed() -> None:
    mixed = [Field("amount", Float64), Aggregate(input_column=AMOUNT, function="sum", time_window=DAY)]
    found = faults(aggregated, schema=None, aggregations=None, features=mixed, timestamp_field="timestamp")
    assert "features mixes Attributes with Aggregates; put them into two feature views" in found


def test_two_spellings_of_features_are_not_used_together() -> None:
    assert "features is given beside schema or aggregations; use one spelling" in faults(plain, features=[AMOUNT])


@pytest.mark.parametrize("function", ["avg", "last_n", "last_distinct(3)", "SUM", ""])
def test_an_unknown_function_is_refused_with_the_known_ones(function: str) -> None:
    (fault,) = faults(aggregated, aggregations=[aggregation(function=function)])
    assert fault == f"aggregation '{function} of amount': function {function!r} is not known; use one of {FUNCTIONS}"


def test_a_function_that_is_no_text_is_refused() -> None:
    (fault,) = faults(aggregated, aggregations=[aggregation(function=sum, name="spent")])
    assert fault == (f"aggregation 'spent': function is a builtin_function_or_method; use one of {FUNCTIONS}")


def test_a_function_is_not_applied_to_a_type_it_does_not_take() -> None:
    (fault,) = faults(aggregated, aggregations=[aggregation(column="user_id")])
    assert fault == (
        "aggregation 'sum of user_id': function 'sum' takes integer and float columns, not String; "
        "use count, last or another column"
    )


def test_an_aggregated_column_is_declared_somewhere() -> None:
    assert faults(aggregated, aggregations=[aggregation(column="price")]) == (
        "aggregation 'sum of price': column 'price' has no type; declare it in schema "
        "(declared: user_id, timestamp, amount)",
    )


def test_an_unknown_function_is_not_hidden_by_an_unknown_column() -> None:
    found = faults(aggregated, aggregations=[aggregation(column="price", function="avg", time_window="7d")])
    assert [fault.split(": ")[1].split(" ")[0] for fault in found] == ["time_window", "column", "function"]


def test_a_view_has_an_entity() -> None:
    assert faults(plain, entities=[]) == ("entities is empty; name the entity that the features describe",)


def test_an_entity_is_an_entity() -> None:
    found = faults(plain, entities=["user_id"])
    assert found == ("'user_id' is given as an entity; give an Entity",)


def test_a_join_key_has_a_type() -> None:
    assert faults(plain, schema=[TIME, AMOUNT]) == (
        "join key 'user_id' of entity 'user' has no type; give it in schema, or write "
        "Entity(join_keys=[Field('user_id', String)])",
    )


@pytest.mark.parametrize(
    ("dtype", "why"),
    [
        (Float64, "floats are not compared exactly"),
        (Array(Int64), "it has no single comparable value"),
        (Struct([AMOUNT]), "it has no single comparable value"),
    ],
)
def test_a_join_key_can_be_compared(dtype: Any, why: str) -> None:
    assert faults(plain, schema=[Field("user_id", dtype), TIME, AMOUNT]) == (
        f"join key 'user_id' is {dtype}: {why}; use String, Int32, Int64, Bytes, Bool, Timestamp",
    )


def test_a_join_key_belongs_to_one_entity() -> None:
    other = type(USER)(name="buyer", join_keys=["user_id"])
    assert faults(plain, entities=[USER, other]) == (
        "join key 'user_id' belongs to two entities of the view; rename one",
    )


def test_a_column_is_declared_with_one_type() -> None:
    schema = [*SCHEMA, Field("merchant_id", Int64)]
    assert faults(plain, entities=[USER, MERCHANT], schema=schema) == (
        "column 'merchant_id' is declared Int64 and String; make them equal",
    )


def test_a_column_has_a_type_of_ours() -> None:
    assert faults(plain, schema=[*SCHEMA, Field("n", "Int64"), Field("m", int)]) == (  # type: ignore[arg-type]
        "column 'n' has type 'Int64'; use a type such as String or Int64",
        "column 'm' has type a type; use a type such as String or Int64",
    )


def test_the_serving_index_names_join_keys() -> None:
    both = {"entities": [USER, MERCHANT], "schema": [*SCHEMA, Field("merchant_id", String)]}
    assert plain(**both, online_serving_index=["user_id"]).wildcard_join_key == "merchant_id"
    assert faults(plain, **both, online_serving_index=["amount"]) == (
        "online_serving_index names amount, but the join keys are user_id, merchant_id",
    )
    assert faults(plain, **both, online_serving_index=[]) == (
        "online_serving_index is empty; name at least one join key",
    )
    assert faults(plain, **both, online_serving_index=["user_id", "user_id"]) == (
        "online_serving_index names 'user_id' 2 times; once is enough",
    )


def test_at_most_one_join_key_is_left_out_of_the_serving_index() -> None:
    device = type(USER)(name="device", join_keys=[Field("device_id", String)])
    assert faults(plain, entities=[USER, MERCHANT, device], online_serving_index=["user_id"]) == (
        "online_serving_index leaves out merchant_id, device_id; at most one join key may be left out",
    )
