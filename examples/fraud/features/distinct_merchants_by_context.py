"""Distinct merchants of seven days, by a whole source that the function filters itself.

The listing is printed in "Custom ETL Features with Incremental Backfills", under "Materialization Context".
"""
# The page writes naive times, which are UTC, and no type hints.
# ruff: noqa: ANN001, ANN201, B008, D103, DTZ001
# mypy: allow-untyped-defs

from datetime import datetime, timedelta

import pandas as pd

from examples.fraud.data_sources.transactions import transactions
from examples.fraud.entities import warehouse_user as user
from featurekit_dagster import Field, Int64, String, Timestamp, batch_feature_view, materialization_context


@batch_feature_view(
    sources=[transactions],
    entities=[user],
    mode="pandas",
    online=True,
    offline=True,
    batch_schedule=timedelta(days=1),
    schema=[Field("USER_ID", String), Field("TIMESTAMP", Timestamp), Field("DISTINCT_MERCHANT_COUNT_7D", Int64)],
    feature_start_time=datetime(2020, 10, 10),
    ttl=timedelta(days=1),
    incremental_backfills=True,
)
def user_distinct_merchant_transaction_count_7d(transactions, context=materialization_context()):
    start_time = pd.to_datetime(context.start_time) - pd.Timedelta(days=6)
    end_time = pd.to_datetime(context.end_time)
    filtered_transactions = transactions[
        (transactions["TIMESTAMP"] >= start_time) & (transactions["TIMESTAMP"] < end_time)
    ]
    result = (
        filtered_transactions.groupby("USER_ID").agg(DISTINCT_MERCHANT_COUNT_7D=("MERCHANT", "nunique")).reset_index()
    )
    result["TIMESTAMP"] = end_time - pd.Timedelta(microseconds=1)
    return result
