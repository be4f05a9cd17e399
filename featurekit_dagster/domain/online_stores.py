"""Where what is served online is kept, if not in the files of one host: Redis (or Valkey) and DynamoDB."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

from featurekit_dagster.domain.source_rules import raise_faults, required_text_faults
from featurekit_dagster.domain.wording import described

ONLINE_STORE_VARIABLE = "FEATUREKIT_ONLINE_STORE"
REDIS_VARIABLE = "FEATUREKIT_REDIS_URL"
_SECRET_PREFIX = "env:"
_REDIS_SCHEMES, _DYNAMO_SCHEME = ("redis", "rediss"), "dynamodb"
_TABLE_PREFIX = re.compile(r"[A-Za-z0-9_-]{1,40}")
_SHAPES = "redis://HOST:PORT/NUMBER, rediss://HOST:PORT (TLS) or dynamodb://REGION/TABLE_PREFIX"


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisConfig:
    """A Redis or Valkey server, or a cluster of them.

    Args:
        primary_endpoint: `host:port`, which is spoken to over TLS, or `redis://host:port/number` without and
            `rediss://host:port/number` with TLS. None is the server of `$FEATUREKIT_REDIS_URL`.
        authentication_token: The password, or `env:NAME`: the environment variable that holds it when the store is
            opened. It has to be given with an endpoint; an empty text says that the server asks for none.
        username: The user that the password is of; None is the server's default user.
        cluster: Whether the endpoint is a node of a cluster.

    Raises:
        DeclarationError: One or more rules are broken.

    Source: Online store (`RedisConfig(primary_endpoint, authentication_token)`).
    """

    primary_endpoint: str | None = None
    authentication_token: str | None = field(default=None, repr=False)
    username: str | None = None
    cluster: bool = False

    def __post_init__(self) -> None:
        token, faults = self.authentication_token, []
        if self.primary_endpoint is not None:
            faults += _endpoint_faults(self.primary_endpoint)
            if token is None:
                faults.append(
                    "primary_endpoint is given without authentication_token; give the password, best as 'env:NAME', "
                    "or an empty text where the server asks for none"
                )
        elif token is not None:
            faults.append("authentication_token is given without primary_endpoint; give both or neither")
        if token is not None and not isinstance(token, str):
            faults.append("authentication_token is no text; give the password, best as 'env:NAME'")
        if not isinstance(self.cluster, bool):
            faults.append(f"cluster is {described(self.cluster)}; give True or False")
        raise_faults("RedisConfig", faults)

    @property
    def password(self) -> str | None:
        """The password, looked up where it is kept; None for none.

        Raises:
            DeclarationError: The environment variable is not set.
        """
        token = self.authentication_token or None
        if token is None or not token.startswith(_SECRET_PREFIX):
            return token
        name = token.removeprefix(_SECRET_PREFIX)
        if name not in os.environ:
            raise_faults("RedisConfig", [f"authentication_token names the environment variable {name}; set it"])
        return os.environ[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamoConfig:
    """Tables of DynamoDB, one per generation of a feature view; credentials are those that boto3 finds.

    Args:
        replica_regions: Refused unless empty: make the tables global in AWS instead.
        region: Its AWS region; None is the one that boto3 finds.
        table_prefix: What the names of the tables begin with.
        endpoint_url: Another server that answers like DynamoDB.

    Raises:
        DeclarationError: One or more rules are broken.

    Source: Online store (`DynamoConfig(replica_regions)`).
    """

    replica_regions: Sequence[str] = ()
    region: str | None = None
    table_prefix: str = "featurekit"
    endpoint_url: str | None = None

    def __post_init__(self) -> None:
        faults = []
        if self.replica_regions:
            faults.append("replica_regions is not taken; leave it out and make the tables global in AWS")
        if self.region is not None:
            faults += required_text_faults("region", self.region, "an AWS region")
        if not isinstance(self.table_prefix, str) or not _TABLE_PREFIX.fullmatch(self.table_prefix):
            faults.append(f"table_prefix is {described(self.table_prefix)}; give 1 to 40 letters, digits, _ or -")
        raise_faults("DynamoConfig", faults)


OnlineStoreConfig = RedisConfig | DynamoConfig


@dataclass(frozen=True, slots=True)
class OnlinePlaces:
    """Where the views of a workspace are served from; None is the embedded store, files in the home directory.

    Args:
        usual: The store of views that name none.
        views: View to the store that it names.
    """

    usual: OnlineStoreConfig | None = None
    views: Mapping[str, OnlineStoreConfig] = field(default_factory=dict, hash=False)

    def of(self, view: str) -> OnlineStoreConfig | None:
        """Return where a view is served from."""
        return self.views.get(view, self.usual)

    @classmethod
    def named(cls, usual: OnlineStoreConfig | str | None, views: Mapping[str, OnlineStoreConfig]) -> OnlinePlaces:
        """Return the places of a workspace.

        Args:
            usual: Its store, a URL of one, or None: that of `$FEATUREKIT_ONLINE_STORE`, else the embedded one.
            views: View to the store that it names.

        Raises:
            DeclarationError: It is no store, or the URL has another shape.
        """
        given = os.environ.get(ONLINE_STORE_VARIABLE) or None if usual is None else usual
        found = online_store_at(given) if isinstance(given, str) else given
        if found is not None and not isinstance(found, OnlineStoreConfig):
            raise_faults("online store", [f"it is {described(found)}; give a RedisConfig, a DynamoConfig or a URL"])
        return cls(found, dict(views))


def online_store_at(url: str) -> OnlineStoreConfig:
    """Return the store that a URL names.

    Args:
        url: `redis://`, `rediss://` (with `?cluster=true` for a cluster) or `dynamodb://REGION/TABLE_PREFIX` (with
            `?endpoint_url=` for another server than Amazon's).

    Raises:
        DeclarationError: It has another shape; what was given is not repeated, since it may hold a password.
    """
    parts = urlsplit(url)
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    if parts.scheme in _REDIS_SCHEMES and parts.hostname:
        host = parts.netloc.rpartition("@")[2]
        return RedisConfig(
            primary_endpoint=f"{parts.scheme}://{host}{parts.path}",
            authentication_token=unquote(parts.password or ""),
            username=unquote(parts.username) if parts.username else None,
            cluster=options.get("cluster", "").lower() in ("1", "true"),
        )
    if parts.scheme == _DYNAMO_SCHEME:
        prefix = parts.path.strip("/") or "featurekit"
        return DynamoConfig(
            region=parts.netloc or None, table_prefix=prefix, endpoint_url=options.get("endpoint_url") or None
        )
    raise_faults("online store", [f"its URL has another shape than {_SHAPES}"])
    raise AssertionError("there was a fault")


def default_redis() -> RedisConfig | None:
    """Return the server that a `RedisConfig` without endpoint means; None if nobody has named one."""
    url = os.environ.get(REDIS_VARIABLE)
    found = online_store_at(url) if url else None
    return found if isinstance(found, RedisConfig) else None


def _endpoint_faults(endpoint: object) -> list[str]:
    faults = required_text_faults("primary_endpoint", endpoint, "host:port or a redis:// URL")
    if faults or not isinstance(endpoint, str):
        return faults
    parts = urlsplit(endpoint if "://" in endpoint else f"rediss://{endpoint}")
    if parts.scheme not in _REDIS_SCHEMES or not parts.hostname:
        return ["primary_endpoint has another shape than host:port, redis://host:port or rediss://host:port"]
    if parts.username or parts.password:
        return ["primary_endpoint holds a user or a password; give them as username and authentication_token"]
    try:
        _ = parts.port
    except ValueError:
        return ["primary_endpoint has a port that is no number up to 65535; correct it"]
    return []
