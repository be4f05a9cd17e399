"""Transactions of a user over three windows, materialized when somebody asks for it.

The listing is printed in "Manually Trigger Materialization"; the page leaves out the first lines of the decorator.
"""
# The page writes naive times, which are UTC, and no type hints.
# ruff: noqa: ANN001, ANN201, D103, DTZ001
# mypy: allow-untyped-defs

from datetime import datetime, timedelta

from examples.fraud.data_sources.transactions import transactions_batch
from examples.fraud.entities import user
from featurekit_dagster import (
    Aggregation,
    BatchTriggerType,
    Field,
    FilteredSource,
    Int64,
    String,
    Timestamp,
    TimeWindow,
    batch_feature_view,
)


@batch_feature_view(
    sources=[FilteredSource(transactions_batch)],
    entities=[user],
    mode="pandas",
    schema=[Field("user_id", String), Field("transaction", Int64), Field("timestamp", Timestamp)],
    aggregation_interval=timedelta(days=1),
    aggregations=[
        Aggregation(column="transaction", function="count", time_window=TimeWindow(window_size=timedelta(days=1))),
        Aggregation(column="transaction", function="count", time_window=TimeWindow(window_size=timedelta(days=30))),
        Aggregation(column="transaction", function="count", time_window=TimeWindow(window_size=timedelta(days=90))),
    ],
    online=True,
    offline=True,
    feature_start_time=datetime(2022, 5, 1),
    description="User transaction totals over a series of time windows, updated daily.",
    batch_trigger=BatchTriggerType.MANUAL,  # Use manual triggers
)
def user_transaction_counts(transactions):
    transactions["transaction"] = 1
    return transactions[["user_id", "transaction", "timestamp"]]
