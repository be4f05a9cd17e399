"""Distinct merchants of seven days, by a source that reaches six days further back than the job.

The listing is printed in "Custom ETL Features with Incremental Backfills", under "Filtered Source".
"""
# The page writes naive times, which are UTC, and no type hints.
# ruff: noqa: ANN001, ANN201, B008, D103, DTZ001
# mypy: allow-untyped-defs

from datetime import datetime, timedelta

import pandas as pd

from examples.fraud.data_sources.transactions import transactions
from examples.fraud.entities import warehouse_user as user
from featurekit_dagster import (
    Field,
    FilteredSource,
    Int64,
    String,
    Timestamp,
    batch_feature_view,
    materialization_context,
)


@batch_feature_view(
    sources=[FilteredSource(transactions, start_time_offset=timedelta(days=-6))],
    entities=[user],
    mode="pandas",
    online=True,
    batch_schedule=timedelta(days=1),
    schema=[Field("USER_ID", String), Field("TIMESTAMP", Timestamp), Field("DISTINCT_MERCHANT_COUNT_7D", Int64)],
    feature_start_time=datetime(2020, 10, 10),
    offline=True,
    ttl=timedelta(days=1),
    incremental_backfills=True,
)
def user_distinct_merchant_transaction_count_7d(transactions, context=materialization_context()):
    end_time = pd.to_datetime(context.end_time)
    start_time = end_time - pd.Timedelta(days=7)
    recent_transactions = transactions[
        (transactions["TIMESTAMP"] >= start_time) & (transactions["TIMESTAMP"] < end_time)
    ]
    result = (
        recent_transactions.groupby("USER_ID").agg(DISTINCT_MERCHANT_COUNT_7D=("MERCHANT", "nunique")).reset_index()
    )
    result["TIMESTAMP"] = end_time - pd.Timedelta(microseconds=1)
    return result
