"""What a declaration of an online store takes, and what a URL of one means."""

from __future__ import annotations

from typing import Any

import pytest

from featurekit_dagster import DeclarationError, DynamoConfig, RedisConfig
from featurekit_dagster.domain.online_stores import OnlinePlaces, default_redis, online_store_at


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"primary_endpoint": "host:1"}, "primary_endpoint is given without authentication_token"),
        ({"authentication_token": "x"}, "authentication_token is given without primary_endpoint"),
        ({"primary_endpoint": "http://host", "authentication_token": ""}, "primary_endpoint has another shape"),
        ({"primary_endpoint": "redis://:pw@host", "authentication_token": ""}, "holds a user or a password"),
        ({"primary_endpoint": "host:99999", "authentication_token": ""}, "a port that is no number up to 65535"),
        ({"primary_endpoint": 5, "authentication_token": ""}, "primary_endpoint is an int"),
        ({"cluster": 1}, "cluster is an int; give True or False"),
    ],
)
def test_a_redis_config_that_cannot_be_used_is_refused(given: dict[str, Any], fault: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        RedisConfig(**given)
    assert len(caught.value.faults) == 1
    assert fault in caught.value.faults[0]
    assert "pw@" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"replica_regions": ["eu-west-1"]}, "make the tables global in AWS"),
        ({"table_prefix": "a b"}, "give 1 to 40 letters"),
        ({"region": ""}, "region is empty"),
    ],
)
def test_a_dynamo_config_that_cannot_be_used_is_refused(given: dict[str, Any], fault: str) -> None:
    with pytest.raises(DeclarationError, match=fault):
        DynamoConfig(**given)


def test_the_password_is_not_shown_and_is_looked_up_where_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = RedisConfig(primary_endpoint="host:1", authentication_token="hidden")
    assert plain.password == "hidden"
    assert "hidden" not in repr(plain)
    named = RedisConfig(primary_endpoint="host:1", authentication_token="env:FK_TOKEN")
    with pytest.raises(DeclarationError, match="environment variable FK_TOKEN; set it"):
        _ = named.password
    monkeypatch.setenv("FK_TOKEN", "found")
    assert named.password == "found"
    assert RedisConfig(primary_endpoint="host:1", authentication_token="").password is None


def test_a_url_names_a_store() -> None:
    assert online_store_at("rediss://me:p%40w@host:6380/2?cluster=true") == RedisConfig(
        primary_endpoint="rediss://host:6380/2", authentication_token="p@w", username="me", cluster=True
    )
    assert online_store_at("dynamodb://eu-west-1/shop?endpoint_url=http://127.0.0.1:1") == DynamoConfig(
        region="eu-west-1", table_prefix="shop", endpoint_url="http://127.0.0.1:1"
    )
    assert online_store_at("dynamodb://") == DynamoConfig()
    with pytest.raises(DeclarationError) as caught:
        online_store_at("mysql://me:secret@host")
    assert "secret" not in str(caught.value)


def test_a_view_is_served_from_its_own_store_else_the_workspaces_else_the_environments_else_from_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, usual = DynamoConfig(table_prefix="own"), RedisConfig()
    assert OnlinePlaces.named(None, {}).of("v") is None
    monkeypatch.setenv("FEATUREKIT_ONLINE_STORE", "dynamodb:///env")
    assert OnlinePlaces.named(None, {"v": own}).of("v") == own
    assert OnlinePlaces.named(usual, {"v": own}).of("w") == usual
    assert OnlinePlaces.named(None, {}).of("v") == DynamoConfig(table_prefix="env")
    with pytest.raises(DeclarationError, match="it is an int"):
        OnlinePlaces.named(5, {})  # type: ignore[arg-type]


def test_a_redis_config_without_endpoint_means_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_redis() is None
    monkeypatch.setenv("FEATUREKIT_REDIS_URL", "redis://host:1/3")
    assert default_redis() == RedisConfig(primary_endpoint="redis://host:1/3", authentication_token="")
