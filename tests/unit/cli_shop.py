"""A small workspace for the tests of the command line: purchases of ten days, three views and a service."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from featurekit_dagster import (
    Aggregation,
    BatchSource,
    BatchTriggerType,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    FileConfig,
    FilteredSource,
    Float64,
    Int64,
    String,
    Timestamp,
    TimeWindow,
    Workspace,
    batch_feature_view,
)

DAY = timedelta(days=1)
FIRST_DAY = datetime(2024, 1, 1, tzinfo=UTC)
NOW = datetime(2024, 1, 11, tzinfo=UTC)
DAYS, USERS = 10, (7, 8)
USER = Entity(name="user", join_keys=[Field("user_id", Int64)])
SCHEMA = [Field("user_id", Int64), Field("bought_at", Timestamp), Field("amount", Float64), Field("shop", String)]


def write_purchases(path: Path) -> None:
    """Write one purchase per user and day, at noon: ten times the day's number, and one more for the second user."""
    import pyarrow as pa
    from pyarrow import parquet

    rows = [
        (user, FIRST_DAY + day * DAY + DAY / 2, 10.0 * (day + 1) + offset, f"s{day}")
        for day in range(DAYS)
        for offset, user in enumerate(USERS)
    ]
    times = pa.timestamp("us", tz="UTC")
    types = [pa.int64(), times, pa.float64(), pa.string()]
    schema = pa.schema([pa.field(f.name, t) for f, t in zip(SCHEMA, types, strict=True)])
    columns = [pa.array(values, kind) for values, kind in zip(zip(*rows, strict=True), types, strict=True)]
    parquet.write_table(pa.Table.from_arrays(columns, schema=schema), path)


def shop_workspace(folder: Path) -> Workspace:
    """Return the workspace whose source and stores are in a folder."""
    file = str(folder / "purchases.parquet")
    source = BatchSource(
        name="purchases", batch_config=FileConfig(uri=file, file_format="parquet", timestamp_field="bought_at")
    )
    spend, last_purchase = _spend(source), _last_purchase(source, folder / "broken")
    service = FeatureService(name="offers", features=[spend, last_purchase[["amount"]]])
    declarations = [spend, _most_recent_purchase(source), last_purchase, service]
    return Workspace("shop", declarations, home=folder / "home", clock=NOW)


def _spend(source: BatchSource) -> FeatureView:
    @batch_feature_view(
        sources=[FilteredSource(source)],
        entities=[USER],
        mode="sql",
        schema=[Field("user_id", Int64), Field("bought_at", Timestamp), Field("amount", Float64)],
        aggregation_interval=DAY,
        batch_schedule=DAY,
        aggregations=[
            Aggregation("amount", function, TimeWindow(window_size=window * DAY), name=f"{function}_{window}d")
            for function in ("sum", "count")
            for window in (1, 3)
        ],
        feature_start_time=FIRST_DAY + 3 * DAY,
        online=True,
        offline=True,
    )
    def spend(purchases: str) -> str:
        """What a user spent."""
        return f"SELECT user_id, bought_at, amount FROM {purchases}"

    return spend


def _most_recent_purchase(source: BatchSource) -> FeatureView:
    @batch_feature_view(
        sources=[source],
        entities=[USER],
        mode="sql",
        schema=SCHEMA,
        batch_schedule=DAY,
        ttl=30 * DAY,
        feature_start_time=FIRST_DAY,
        incremental_backfills=True,
        online=False,
        offline=True,
    )
    def user_most_recent_purchase_with_everything(purchases: str) -> str:
        """The last purchase, with the whole source read each day."""
        return f"SELECT user_id, bought_at, amount, shop FROM {purchases}"

    return user_most_recent_purchase_with_everything


def _last_purchase(source: BatchSource, broken: Path) -> FeatureView:
    @batch_feature_view(
        sources=[FilteredSource(source)],
        entities=[USER],
        mode="sql",
        schema=SCHEMA,
        batch_schedule=DAY,
        ttl=5 * DAY,
        feature_start_time=FIRST_DAY,
        batch_trigger=BatchTriggerType.MANUAL,
        max_backfill_interval=2 * DAY,
        online=True,
        offline=True,
    )
    def last_purchase(purchases: str) -> str:
        """The last purchase, on demand; the fifth day cannot be read while there is a file named `broken`."""
        bad = "bought_at::DATE = DATE '2024-01-05'" if broken.exists() else "false"
        return f"""
            SELECT user_id, bought_at, CASE WHEN {bad} THEN error('never shown') ELSE amount END AS amount, shop
            FROM {purchases}
        """

    return last_purchase
