"""A correct declaration of each kind, to be changed one argument at a time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from featurekit_dagster.domain.declarations import batch_feature_view, stream_feature_view
from featurekit_dagster.domain.entity import Entity
from featurekit_dagster.domain.feature_view import Aggregation, FeatureView
from featurekit_dagster.domain.schema import Field, Float64, String, Timestamp
from featurekit_dagster.domain.sources import BatchSource, FileConfig
from featurekit_dagster.domain.stream_sources import PushConfig, StreamSource
from featurekit_dagster.domain.windows import TimeWindow
from featurekit_dagster.errors import DeclarationError

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
START = datetime(2024, 1, 1, tzinfo=UTC)

USER = Entity(name="user", join_keys=["user_id"])
MERCHANT = Entity(name="merchant", join_keys=[Field("merchant_id", String)])
SCHEMA = [Field("user_id", String), Field("timestamp", Timestamp), Field("amount", Float64)]
SUM_OF_A_WEEK = Aggregation(column="amount", function="sum", time_window=TimeWindow(window_size=7 * DAY))


def file_source(
    name: str = "transactions", timestamp_field: str | None = "timestamp", delay: timedelta = timedelta(0)
) -> BatchSource:
    config = FileConfig(
        uri="transactions.parquet", file_format="parquet", timestamp_field=timestamp_field, data_delay=delay
    )
    return BatchSource(name=name, batch_config=config)


TRANSACTIONS = file_source()


def spending(transactions: Any) -> Any:
    """What users spend."""
    return transactions


def plain_arguments(**changes: Any) -> dict[str, Any]:
    """Return the arguments of a correct view without aggregates, changed."""
    correct = {
        "mode": "pandas",
        "sources": [TRANSACTIONS],
        "entities": [USER],
        "schema": SCHEMA,
        "batch_schedule": DAY,
        "feature_start_time": START,
        "online": True,
        "offline": True,
    }
    return correct | changes


def plain(function: Callable[..., Any] = spending, **changes: Any) -> FeatureView:
    """Declare a view without aggregates."""
    return batch_feature_view(**plain_arguments(**changes))(function)


def aggregated(function: Callable[..., Any] = spending, **changes: Any) -> FeatureView:
    """Declare a view with one aggregate: the sum of 7 days, in tiles of one hour."""
    correct = {"aggregations": [SUM_OF_A_WEEK], "aggregation_interval": HOUR}
    return plain(function, **(correct | changes))


def streamed(**changes: Any) -> FeatureView:
    """Declare a continuous view of a push source with a batch side: the sum of 7 days."""
    push = StreamSource(name="payments", stream_config=PushConfig(), batch_config=TRANSACTIONS.batch_config)
    given: dict[str, Any] = {
        "name": "spending",
        "source": push,
        "entities": [USER],
        "schema": SCHEMA,
        "aggregations": [SUM_OF_A_WEEK],
        "feature_start_time": START,
        "offline": True,
    }
    return stream_feature_view(**(given | changes))


def faults(declare: Callable[..., Any], *args: Any, **arguments: Any) -> tuple[str, ...]:
    """Return the faults of a declaration; it must have some."""
    try:
        declared = declare(*args, **arguments)
    except DeclarationError as error:
        return error.faults
    raise AssertionError(f"{declared!r} was accepted")
