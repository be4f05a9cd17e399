"""A small shop that has something to do for every public job: orders, refunds that are pushed, scores of customers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from deltalake import write_deltalake

from featurekit_dagster import (
    Aggregation,
    Attribute,
    BatchSource,
    DeltaTableConfig,
    Entity,
    FeatureService,
    FeatureTable,
    FeatureView,
    Field,
    FileConfig,
    FilteredSource,
    Float64,
    PublishFeaturesConfig,
    PushConfig,
    StreamProcessingMode,
    StreamSource,
    String,
    Timestamp,
    TimeWindow,
    Workspace,
    batch_feature_view,
    stream_feature_view,
)
from featurekit_dagster.execution.materialize import run_tasks
from featurekit_dagster.intervals import Interval
from featurekit_dagster.planning.tasks import Task

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
FIRST, NOW = datetime(2024, 3, 1, tzinfo=UTC), datetime(2024, 3, 7, 12, tzinfo=UTC)
DAYS = 6
CUSTOMERS = tuple(f"secret-customer-{name}" for name in ("ada", "ben", "cem", "dot"))
GONE = CUSTOMERS[0]
"""Ordered nothing but on the first day."""
CUSTOMER = Entity(name="customer", join_keys=[Field("customer", String)])
EVENTS = [Field("customer", String), Field("made_at", Timestamp), Field("amount", Float64)]


def shop_workspace(folder: Path) -> Workspace:
    """Return the workspace over what `open_shop` has written."""
    orders = BatchSource(
        name="orders",
        batch_config=FileConfig(uri=str(folder / "orders.parquet"), file_format="parquet", timestamp_field="made_at"),
        description="One row for each order.",
    )
    spent, last_order, refunded = _spent(orders), _last_order(orders), _refunded(folder)
    scores = FeatureTable(
        name="scores",
        entities=[CUSTOMER],
        features=[Attribute("score", Float64)],
        timestamp_field="made_at",
        online=True,
        offline=True,
        description="Scores that the shop computes elsewhere.",
    )
    checkout = FeatureService(name="checkout", features=[spent, last_order])
    return Workspace("shop", [checkout, refunded, scores], home=folder / "home", clock=NOW)


def open_shop(folder: Path) -> Workspace:
    """Write the data, and materialize two views up to now: one of them offline only, the other in two jobs a day."""
    folder.mkdir(parents=True, exist_ok=True)
    orders = _rows(hours=3, days=DAYS + 1)
    orders[(orders["customer"] != GONE) | (orders["made_at"] < pd.Timestamp("2024-03-02"))].to_parquet(
        folder / "orders.parquet"
    )
    write_deltalake(str(folder / "refunds"), _aware(_rows(hours=6, days=DAYS + 1)))
    scores = _rows(hours=24, days=1).rename(columns={"amount": "score"})
    scores.to_parquet(folder / "scores.parquet")
    spine = _rows(hours=12, days=DAYS)[["customer", "made_at"]]
    spine[spine["made_at"] >= pd.Timestamp("2024-03-04")].to_parquet(folder / "spine.parquet")
    pd.DataFrame({"customer": [CUSTOMERS[1]]}).to_parquet(folder / "keys.parquet")
    workspace = shop_workspace(folder)
    _materialize(workspace, "spent", DAY / 2, online=True)
    _materialize(workspace, "last_order", DAYS * DAY, online=False)
    workspace.stores.online.close()
    return workspace


def _spent(orders: BatchSource) -> FeatureView:
    @batch_feature_view(
        **_facts(orders),
        mode="sql",
        batch_schedule=DAY / 2,
        aggregation_interval=HOUR,
        aggregations=[
            Aggregation("amount", function, TimeWindow(window))
            for function in ("sum", "count")
            for window in (DAY, 3 * DAY)
        ],
        publish_features_config=PublishFeaturesConfig(),
        description="What a customer spent.",
    )
    def spent(orders: str) -> str:
        return f"SELECT customer, made_at, amount FROM {orders}"

    return spent


def _last_order(orders: BatchSource) -> FeatureView:
    @batch_feature_view(
        **_facts(orders), mode="sql", batch_schedule=DAY, ttl=2 * DAY, description="A customer's last order."
    )
    def last_order(orders: str) -> str:
        return f"SELECT customer, made_at, amount FROM {orders}"

    return last_order


def _facts(orders: BatchSource) -> dict[str, Any]:
    return {
        "sources": [FilteredSource(orders)],
        "entities": [CUSTOMER],
        "schema": EVENTS,
        "timestamp_field": "made_at",
        "feature_start_time": FIRST,
        "online": True,
        "offline": True,
        "owner": "team:shop",
    }


def _refunded(folder: Path) -> FeatureView:
    source = StreamSource(
        name="refunds",
        stream_config=PushConfig(timestamp_field="made_at"),
        batch_config=DeltaTableConfig(uri=str(folder / "refunds"), timestamp_field="made_at"),
        schema=EVENTS,
        description="Refunds, sent as they happen.",
    )
    return stream_feature_view(
        name="refunded",
        source=source,
        entities=[CUSTOMER],
        schema=EVENTS,
        aggregations=[Aggregation("amount", "sum", TimeWindow(DAY), name="refunded_in_a_day")],
        stream_processing_mode=StreamProcessingMode.CONTINUOUS,
        batch_schedule=DAY,
        feature_start_time=FIRST,
        online=True,
        offline=True,
        description="What a customer got back.",
    )


def _rows(*, hours: int, days: int) -> pd.DataFrame:
    """Return a row for each customer every so many hours; times are without a zone."""
    rows = [
        {"customer": customer, "made_at": FIRST.replace(tzinfo=None) + number * HOUR, "amount": float(number % 7 + 1)}
        for number in range(1, 24 * days, hours)
        for customer in CUSTOMERS
    ]
    return pd.DataFrame(rows).astype({"made_at": "datetime64[us]"})


def _aware(rows: pd.DataFrame) -> pa.Table:
    types = pa.schema([("customer", pa.string()), ("made_at", pa.timestamp("us", tz="UTC")), ("amount", pa.float64())])
    return pa.Table.from_pandas(
        rows.assign(made_at=rows["made_at"].dt.tz_localize("UTC")), schema=types, preserve_index=False
    )


def _materialize(workspace: Workspace, name: str, step: timedelta, *, online: bool) -> None:
    """Materialize the whole days of a view with a job for each step."""
    tasks = [
        Task(view=name, interval=interval, online=online, offline=True, overwrite=False)
        for interval in Interval(FIRST, FIRST + DAYS * DAY).split_on_grid(step)
    ]
    list(run_tasks(workspace.repo.view(name), tasks, workspace.stores, trigger="backfill"))
