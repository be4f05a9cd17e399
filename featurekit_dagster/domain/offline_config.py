"""What a view says about its offline store, and the rules of publishing, which may be said there or on its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from featurekit_dagster.domain.feature_view import DeltaConfig
from featurekit_dagster.domain.publishing import PublishFeaturesConfig
from featurekit_dagster.domain.wording import described
from featurekit_dagster.intervals import from_us, to_us


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineStoreConfig:
    """The offline store of a view, and whether its full features are published.

    Args:
        staging_table_format: Layout of the offline table.
        publish_full_features: Whether full features go to the warehouse after each materialization.
        publish_start_time: From when on they do, UTC; None is from the beginning of the features.

    Source: Job Types, Feature Publish.
    """

    staging_table_format: DeltaConfig = DeltaConfig()
    publish_full_features: bool = False
    publish_start_time: datetime | None = None


def layout_of(offline_store: DeltaConfig | OfflineStoreConfig | None) -> DeltaConfig:
    """Return the layout of the offline table."""
    if isinstance(offline_store, OfflineStoreConfig):
        return offline_store.staging_table_format
    return offline_store or DeltaConfig()


def config_faults(offline_store: Any, publish_features_config: Any) -> list[tuple[str, str]]:
    """Return `(argument, fault)` of what is of a wrong kind; the layout's own size is judged elsewhere."""
    faults = []
    if isinstance(offline_store, OfflineStoreConfig):
        if not isinstance(offline_store.publish_full_features, bool):
            given = described(offline_store.publish_full_features)
            faults.append(("offline_store", f"publish_full_features of offline_store is {given}; give True or False"))
        elif (fault := _time_fault(offline_store.publish_start_time)) is not None:
            faults.append(("offline_store", f"publish_start_time of offline_store {fault}"))
    if isinstance(publish_features_config, PublishFeaturesConfig):
        if (fault := _time_fault(publish_features_config.publish_start_time)) is not None:
            faults.append(("publish_features_config", f"publish_start_time of publish_features_config {fault}"))
    elif publish_features_config is not None:
        given = described(publish_features_config)
        faults.append(("publish_features_config", f"publish_features_config is {given}; give a PublishFeaturesConfig"))
    return faults


def publishing_of(
    given: Mapping[str, Any], *, offline: bool, has_history: bool
) -> tuple[PublishFeaturesConfig | None, list[str]]:
    """Return what a declaration says about publishing, and its faults.

    Args:
        given: The arguments `offline_store` and `publish_features_config`, each of its kind or None.
        offline: Whether the view is kept offline.
        has_history: Whether batch jobs write that; of a feature table and of a stream without a batch source they do
            not.

    Source: what may be declared, both settings at once refused.
    """
    own, store = given.get("publish_features_config"), given["offline_store"]
    in_store = isinstance(store, OfflineStoreConfig) and store.publish_full_features
    faults = []
    if isinstance(store, OfflineStoreConfig) and not in_store and store.publish_start_time is not None:
        faults.append("publish_start_time without publish_full_features=True; give both or neither")
    if own is not None and in_store:
        faults.append("publish_features_config beside publish_full_features=True of offline_store; keep one of them")
    if own is None and not in_store:
        return None, faults
    if not has_history:
        faults.append("features are published as batch jobs write them, and this has no batch source; leave it out")
    elif not offline:
        faults.append("features are published from the offline store, and offline is False; set offline=True")
    start = own.publish_start_time if own is not None else store.publish_start_time
    return PublishFeaturesConfig(publish_start_time=None if start is None else from_us(to_us(start))), faults


def _time_fault(value: Any) -> str | None:
    # A missing time of pandas is a datetime that differs from itself
    if value is None:
        return None
    if not isinstance(value, datetime) or value != value:  # noqa: PLR0124
        return f"is {described(value)}; give a datetime, which is UTC unless it says otherwise"
    try:
        from_us(to_us(value))
    except OverflowError:
        return "is outside the years 1 to 9999 in UTC; give a time inside"
    return None
