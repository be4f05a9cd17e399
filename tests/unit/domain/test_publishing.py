from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from featurekit_dagster import (
    Attribute,
    DeclarationError,
    DeltaConfig,
    FeatureTable,
    Int64,
    OfflineStoreConfig,
    PublishFeaturesConfig,
)
from tests.unit.domain.declared import START, USER, faults, plain


def test_a_view_publishes_nothing_by_itself() -> None:
    assert plain().publish is None
    assert plain(offline_store=OfflineStoreConfig()).publish is None


def test_publishing_may_be_said_with_the_offline_store_or_on_its_own() -> None:
    with_store = plain(offline_store=OfflineStoreConfig(publish_full_features=True, publish_start_time=START))
    alone = plain(publish_features_config=PublishFeaturesConfig(publish_start_time=START))
    expected = PublishFeaturesConfig(publish_start_time=START)
    assert with_store.publish == alone.publish == expected


def test_the_layout_of_the_table_may_stand_beside_what_is_published() -> None:
    layout = DeltaConfig(time_partition_size=timedelta(days=7))
    store = OfflineStoreConfig(staging_table_format=layout, publish_full_features=True)
    assert plain(offline_store=store).offline_store == layout


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (
            {
                "offline_store": OfflineStoreConfig(publish_full_features=True),
                "publish_features_config": PublishFeaturesConfig(),
            },
            "publish_features_config beside publish_full_features=True of offline_store; keep one of them",
        ),
        (
            {"offline_store": OfflineStoreConfig(publish_start_time=START)},
            "publish_start_time without publish_full_features=True; give both or neither",
        ),
        (
            {"publish_features_config": PublishFeaturesConfig(), "offline": False, "online": True},
            "features are published from the offline store, and offline is False; set offline=True",
        ),
        ({"publish_features_config": True}, "publish_features_config is a bool; give a PublishFeaturesConfig"),
        (
            {"publish_features_config": PublishFeaturesConfig(publish_start_time=1)},  # type: ignore[arg-type]
            "publish_start_time of publish_features_config is an int; give a datetime, which is UTC unless it says "
            "otherwise",
        ),
        (
            {"offline_store": OfflineStoreConfig(publish_full_features=1)},  # type: ignore[arg-type]
            "publish_full_features of offline_store is an int; give True or False",
        ),
        (
            {"offline_store": OfflineStoreConfig(staging_table_format="delta")},  # type: ignore[arg-type]
            "staging_table_format of offline_store is 'delta'; give a DeltaConfig",
        ),
    ],
)
def test_what_cannot_be_published_is_refused_when_it_is_plain(changes: dict[str, Any], fault: str) -> None:
    assert faults(plain, **changes) == (fault,)


def test_a_feature_table_is_not_published() -> None:
    with pytest.raises(DeclarationError, match="has no batch source"):
        FeatureTable(
            name="given",
            entities=[USER],
            features=[Attribute("score", Int64)],
            timestamp_field="ts",
            offline=True,
            offline_store=OfflineStoreConfig(publish_full_features=True),  # type: ignore[arg-type]
        )
