"""What changes a view's fingerprint: what is stored, and nothing else."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from featurekit_dagster.domain.entity import Entity
from featurekit_dagster.domain.feature_view import Aggregation
from featurekit_dagster.domain.schema import Field, Float32, Int64
from featurekit_dagster.planning.fingerprint import code_text, fingerprint
from tests.unit.domain.declared import DAY, SCHEMA, START, SUM_OF_A_WEEK, aggregated, file_source, plain


def doubled(transactions: Any) -> Any:
    return transactions * 2


def doubled_with_words(transactions):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Double."""
    # twice as much

    return transactions * 2  # really


def tripled(transactions: Any) -> Any:
    return transactions * 3


def renamed(text: str, name: str) -> str:
    return text.replace(name, "f")


def test_words_layout_and_types_change_nothing() -> None:
    assert renamed(code_text(doubled_with_words), "doubled_with_words") == renamed(code_text(doubled), "doubled")


def test_the_code_counts() -> None:
    assert renamed(code_text(tripled), "tripled") != renamed(code_text(doubled), "doubled")
    assert fingerprint(plain(doubled, name="v")) != fingerprint(plain(tripled, name="v"))


def test_a_function_without_source_has_a_fingerprint_too() -> None:
    spaces: list[dict[str, Any]] = [{}, {}]
    for space, factor in zip(spaces, (2, 3), strict=True):
        exec(f"def typed(transactions): return transactions * {factor}", space)
    two, three = (fingerprint(plain(space["typed"], name="v")) for space in spaces)
    assert two != three


@pytest.mark.parametrize(
    "changes",
    [
        {"aggregations": [SUM_OF_A_WEEK, Aggregation("amount", "sum", 30 * DAY)]},
        {"description": "Else.", "owner": "somebody", "tags": {"tier": "1"}, "name": "other"},
        {"feature_start_time": START - 30 * DAY},
        {"online": False},
        {"max_backfill_interval": "10d"},
    ],
)
def test_what_is_not_stored_changes_nothing(changes: dict[str, Any]) -> None:
    assert fingerprint(aggregated(**changes)) == fingerprint(aggregated())


@pytest.mark.parametrize(
    "changes",
    [
        {"aggregations": [Aggregation("amount", "min", 7 * DAY)]},
        {"aggregation_interval": timedelta(minutes=30)},
        {"batch_schedule": "2d"},
        {"schema": [Field("user_id", Int64), *SCHEMA[1:]]},
        {
            "entities": [Entity(name="user", join_keys=["merchant_id"])],
            "schema": [*SCHEMA, Field("merchant_id", Int64)],
        },
        {"sources": [file_source("other")]},
        {"mode": "polars"},
    ],
)
def test_what_is_stored_counts(changes: dict[str, Any]) -> None:
    assert fingerprint(aggregated(**changes)) != fingerprint(aggregated())


def test_the_type_of_a_plain_feature_counts() -> None:
    assert fingerprint(plain(schema=[*SCHEMA[:2], Field("amount", Float32)])) != fingerprint(plain())


def test_a_fingerprint_is_16_hexadecimal_digits_and_the_same_each_time() -> None:
    assert fingerprint(plain()) == fingerprint(plain())
    assert len(fingerprint(plain())) == 16
    assert int(fingerprint(plain()), 16) >= 0
