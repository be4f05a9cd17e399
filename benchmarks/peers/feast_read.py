"""What Feast does in the comparison; runs in Feast's own environment, where nothing of ours is installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import Float64, Int64

KEY_TYPES = {"user_id": ValueType.INT64, "shop_id": ValueType.STRING}


def prepared(
    folder: Path,
    offline_store: str,
    views: Sequence[tuple[str, tuple[str, ...], timedelta | None]],
) -> Callable[[pd.DataFrame], pa.Table]:
    """Register the views in a local registry and return the read that is measured.

    The read takes a spine of join keys and `event_timestamp`.

    Args:
        folder: Holds one Parquet file for each view; gets the registry.
        offline_store: Feast's name of it: `duckdb` or `dask`.
        views: Name, join keys and ttl of each; None is a ttl without end, which Feast writes as zero.
    """
    config = RepoConfig(
        project="comparison",
        provider="local",
        registry=str(folder / f"registry-{offline_store}.db"),
        online_store=None,
        offline_store={"type": offline_store},
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    entities = {key: Entity(name=key, join_keys=[key], value_type=kind) for key, kind in KEY_TYPES.items()}
    declared = [
        FeatureView(
            name=name,
            entities=[entities[key] for key in keys],
            ttl=ttl or timedelta(0),
            schema=[Field(name="amount", dtype=Float64), Field(name="number", dtype=Int64)],
            source=FileSource(name=f"{name}_file", path=str(folder / f"{name}.parquet"), timestamp_field="ts"),
            online=False,
        )
        for name, keys, ttl in views
    ]
    store.apply([*entities.values(), *declared])
    features = [f"{name}:{feature}" for name, _, _ in views for feature in ("amount", "number")]
    return lambda spine: store.get_historical_features(
        entity_df=spine, features=features, full_feature_names=True
    ).to_arrow()
