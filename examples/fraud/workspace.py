"""The fraud listings as workspaces: each in one of its own, because two views have the same name.

Their clocks stand still a month after the features begin, so that a plan stays short.
"""

from __future__ import annotations

from datetime import UTC, datetime

from examples.fraud.data_sources.transactions import HOME
from examples.fraud.features import distinct_merchants_by_context, distinct_merchants_filtered, transaction_counts
from featurekit_dagster import Workspace

filtered = Workspace(
    "fraud_filtered",
    [distinct_merchants_filtered],
    home=HOME / "fraud_filtered",
    clock=datetime(2020, 11, 10, tzinfo=UTC),
)
by_context = Workspace(
    "fraud_by_context",
    [distinct_merchants_by_context],
    home=HOME / "fraud_by_context",
    clock=datetime(2020, 11, 10, tzinfo=UTC),
)
manual = Workspace(
    "fraud_manual",
    [transaction_counts],
    home=HOME / "fraud_manual",
    clock=datetime(2022, 6, 1, tzinfo=UTC),
)
