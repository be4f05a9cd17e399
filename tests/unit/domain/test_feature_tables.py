"""What a feature table means, and what is refused of it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from featurekit_dagster import (
    Aggregate,
    Aggregation,
    BatchTriggerType,
    DeclarationError,
    Entity,
    FeatureTable,
    FeatureView,
    Field,
    Float64,
    String,
    Timestamp,
    Workspace,
)
from featurekit_dagster.planning.grid import Timing
from featurekit_dagster.planning.planner import plan_view
from featurekit_dagster.planning.tasks import LedgerSnapshot
from tests.support.scores import DAY, FIRST, HOUR, USER, scores


def faults_of(**options: Any) -> str:
    with pytest.raises(DeclarationError) as caught:
        scores(**options)
    return str(caught.value)


def test_a_table_is_a_view_without_source_function_and_schedule() -> None:
    table = scores(ttl="2d", description="Scores.", owner="team:ranking", tags={"a": "b"})
    assert isinstance(table, FeatureView)
    assert (table.is_table, table.function, dict(table.inputs), table.mode) == (True, None, {}, "ingested")
    assert table.feature_names == ("score", "rank")
    assert [column.name for column in table.columns] == ["user_id", "scored_at", "score", "rank"]
    assert table.ttl == 2 * DAY
    assert table.batch_trigger is BatchTriggerType.NO_BATCH_MATERIALIZATION
    assert table.online_serving_index == ("user_id",)


def test_a_schema_names_all_columns_of_a_table() -> None:
    schema = [Field("user_id", String), Field("at", Timestamp), Field("score", Float64)]
    table = scores(
        features=None, schema=schema, entities=[Entity(name="u", join_keys=["user_id"])], timestamp_field=None
    )
    assert table.timestamp_field == "at"
    assert table.feature_names == ("score",)


def test_a_row_is_seen_from_its_own_timestamp_until_its_ttl_is_over() -> None:
    timing = Timing.of(scores(ttl=HOUR))
    assert timing.effective(1_234_567) == 1_234_567
    assert timing.expires(1_234_567) == 1_234_567 + 3_600_000_000


def test_nothing_is_planned_for_a_table() -> None:
    plan = plan_view(scores(), LedgerSnapshot(), FIRST)
    assert plan.runs == ()
    assert plan.reason == "it is a feature table, whose rows come by ingest()"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "pandas"}, "mode is not taken: a feature table keeps the rows it is given"),
        ({"sources": []}, "sources is not taken: a feature table keeps the rows it is given"),
        ({"aggregation_interval": HOUR}, "aggregation_interval is not taken"),
        ({"aggregations": [Aggregation("score", "sum", DAY)]}, "aggregations is not taken"),
        ({"batch_schedule": DAY}, "batch_schedule is not taken: rows of a feature table come by ingest()"),
        ({"batch_trigger": BatchTriggerType.MANUAL}, "batch_trigger is not taken: rows of a feature table come"),
        ({"feature_start_time": FIRST}, "feature_start_time is not taken: a feature table begins with its oldest row"),
        ({"stream_processing_mode": None}, "stream_processing_mode is not taken: it belongs to stream_feature_view"),
        ({"alert_email": "a@b.c"}, "alert_email is not taken: alerts are sent by Dagster"),
        ({"online_store": 1}, "online_store is an int; give a RedisConfig or a DynamoConfig"),
        ({"batch_compute": 1}, "batch_compute is not taken"),
        ({"nonsense": 1}, "nonsense is not taken: no such argument"),
        ({"name": "two words"}, "name 'two words' is not an identifier"),
        ({"name": None}, "name is not given"),
        ({"entities": []}, "entities is empty"),
        ({"features": None}, "there are no features"),
        ({"timestamp_field": None}, "timestamp_field is not given and no column is a Timestamp"),
        ({"timestamp_field": "user_id"}, "timestamp_field 'user_id' is declared String; it must be Timestamp"),
        ({"ttl": timedelta(0)}, "ttl 0:00:00 is not positive"),
        ({"online": 1}, "online is an int; give True or False"),
        ({"online_serving_index": ["nobody"]}, "online_serving_index names nobody"),
        ({"offline_store": "delta"}, "offline_store is 'delta'; give a DeltaConfig or an OfflineStoreConfig"),
        ({"features": [Field("scored_at", Float64)]}, "timestamp_field 'scored_at' is declared Float64"),
    ],
)
def test_wrong_arguments_are_refused_with_what_to_do(options: dict[str, Any], said: str) -> None:
    assert said in faults_of(**options)


def test_aggregates_are_refused() -> None:
    aggregate = Aggregate(input_column=Field("score", Float64), function="sum", time_window=DAY)
    assert "a feature table keeps what it is given" in faults_of(features=[aggregate])


def test_all_faults_of_a_table_are_named_at_once() -> None:
    text = faults_of(name="a b", mode="sql", ttl=3)
    assert text.startswith("feature table 'a b': 3 faults")


def test_a_table_and_a_view_of_one_name_are_refused() -> None:
    with pytest.raises(DeclarationError, match="two different objects are feature view 'scores'"):
        Workspace(
            "two",
            [
                scores(),
                FeatureTable(name="scores", entities=[USER], features=[Field("x", String)], timestamp_field="t"),
            ],
        )
