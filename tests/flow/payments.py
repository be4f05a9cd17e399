"""A small workspace for the tests that go through Dagster: card payments, two views, a day that can be made to fail."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd

from featurekit_dagster import (
    Aggregation,
    BatchSource,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    FileConfig,
    FilteredSource,
    Float64,
    String,
    Timestamp,
    TimeWindow,
    Workspace,
    batch_feature_view,
)

DAY = timedelta(days=1)
FIRST = datetime(2023, 1, 1, tzinfo=UTC)
USERS = ("secret-user-anna", "secret-user-bert", "secret-user-cleo")
AMOUNT = 98765.4321
RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


def day(number: int) -> datetime:
    """Return the start of the n-th day, counted from zero."""
    return FIRST + number * DAY


def key(number: int) -> str:
    """Return the partition key of the n-th day."""
    return day(number).strftime("%Y-%m-%dT00:00Z")


def keys(first: int, end: int) -> list[str]:
    """Return the partition keys of the days `[first, end)`."""
    return [key(number) for number in range(first, end)]


def write_payments(folder: Path, days: int) -> Path:
    """Write one payment per user and day, and return the file; every fifth amount is missing."""
    rows = [
        {
            "user_id": user,
            "paid_at": (day(number) + timedelta(hours=8 + turn)).replace(tzinfo=None),
            "amount": None if number % 5 == 4 else AMOUNT + number,
        }
        for number in range(days)
        for turn, user in enumerate(USERS)
    ]
    file = folder / "payments.parquet"
    pd.DataFrame(rows).to_parquet(file)
    return file


def payments_workspace(
    folder: Path,
    *,
    now: datetime | Callable[[], datetime],
    days: int = 12,
    data_delay: timedelta = timedelta(0),
    **options: Any,
) -> Workspace:
    """Return a workspace with an aggregate view `spending` (both stores) and the rows `last_payment` (offline only).

    `last_payment` runs one job per day and fails on the days that stand in the file `broken_days`.

    Args:
        folder: For data and stores.
        now: A fixed time, or a clock.
        days: Days with data, from 1 January 2023.
        data_delay: Delay of the source.
        options: Further arguments of `spending`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = FileConfig(
        uri=str(write_payments(folder, days)),
        file_format="parquet",
        timestamp_field="paid_at",
        data_delay=data_delay,
    )
    payments = BatchSource(name="payments", batch_config=config, description="Card payments.")
    user = Entity(name="user", join_keys=[Field("user_id", String)])
    shared = {
        "sources": [FilteredSource(payments)],
        "entities": [user],
        "schema": [Field("user_id", String), Field("paid_at", Timestamp), Field("amount", Float64)],
        "batch_schedule": DAY,
        "offline": True,
        "owner": "team:payments",
    }
    views = [_spending({**shared, **options}), _last_payment(shared, folder / "broken_days")]
    return Workspace("payments", [FeatureService(name="fraud", features=views)], home=folder / "home", clock=now)


def _spending(options: dict[str, Any]) -> FeatureView:
    def spending(payments: str) -> str:
        """What a user spent."""
        return f"SELECT user_id, paid_at, amount FROM {payments}"

    aggregations = [
        Aggregation(column="amount", function=function, time_window=TimeWindow(window_size=DAY))
        for function in ("sum", "count")
    ]
    return batch_feature_view(
        **{"aggregation_interval": DAY, **options},
        mode="sql",
        aggregations=aggregations,
        feature_start_time=day(1),
        online=True,
    )(spending)


def _last_payment(options: dict[str, Any], broken_days: Path) -> FeatureView:
    def last_payment(payments: pd.DataFrame) -> pd.DataFrame:
        broken = json.loads(broken_days.read_text()) if broken_days.exists() else []
        if set(payments["paid_at"].dt.strftime("%Y-%m-%dT00:00Z")) & set(broken):
            raise ValueError(f"no rate for {payments['user_id'].iloc[0]}")
        return payments[["user_id", "paid_at", "amount"]]

    return batch_feature_view(
        **options,
        mode="pandas",
        incremental_backfills=True,
        feature_start_time=FIRST,
        description="The last payment.",
    )(last_payment)


def break_days(folder: Path, days: Iterable[int]) -> None:
    """Make `last_payment` fail on these days, and on no other."""
    (folder / "broken_days").write_text(json.dumps([key(number) for number in days]))


def run_asset(
    workspace: Workspace,
    view: str,
    first: int,
    end: int,
    instance: dg.DagsterInstance,
    *,
    tags: dict[str, str] | None = None,
    config: dict[str, Any] | None = None,
) -> dg.ExecuteInProcessResult:
    """Materialize days `[first, end)` as the UI does: the asset job, a range of partitions, no tag of ours."""
    job = workspace.definitions().resolve_job_def(f"materialize_{view}")
    return job.execute_in_process(
        instance=instance,
        run_config={"ops": {view: {"config": config or {}}}},
        tags={RANGE_START: key(first), RANGE_END: key(end - 1), **(tags or {})},
        raise_on_error=False,
    )


def materialized(result: dg.ExecuteInProcessResult, node: str) -> dict[str, dict[str, Any]]:
    """Return the partitions that a node of a run reported, and their metadata as plain values."""
    events = result.asset_materializations_for_node(node)
    return {event.partition or "": {name: value.value for name, value in event.metadata.items()} for event in events}


def statuses(workspace: Workspace, view: str, instance: dg.DagsterInstance, count: int) -> list[str | None]:
    """Return how Dagster shows the first `count` days of a view: the first letter of each status, or None."""
    asset = workspace.definitions().resolve_assets_def(view)
    assert asset.partitions_def is not None
    found = instance.get_status_by_partition(dg.AssetKey(view), keys(0, count), asset.partitions_def) or {}
    return [None if (status := found.get(k)) is None else status.value[0] for k in keys(0, count)]
