"""A feature table of scores and its rows, for tests of ingesting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from featurekit_dagster import (
    Attribute,
    Entity,
    FeatureService,
    FeatureTable,
    FeatureView,
    Field,
    Float64,
    Int64,
    String,
    Workspace,
)
from tests.support.clock import Clock

FIRST = datetime(2024, 1, 1, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
USER = Entity(name="user", join_keys=[Field("user_id", String)])
SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("scored_at", pa.timestamp("us", tz="UTC")),
        ("score", pa.float64()),
        ("rank", pa.int64()),
    ]
)


def scores(**options: Any) -> FeatureView:
    """Return the declared table; every option of `FeatureTable` may be given another value."""
    declared: dict[str, Any] = {
        "name": "scores",
        "entities": [USER],
        "features": [Attribute("score", Float64), Attribute("rank", Int64)],
        "timestamp_field": "scored_at",
        "online": True,
        "offline": True,
    }
    return FeatureTable(**(declared | options))


def rows(*given: tuple[str | None, datetime | None, float | None] | tuple[Any, ...]) -> pa.Table:
    """Return rows of (user, time, score), with a rank that follows from the score."""
    listed = [
        {"user_id": user, "scored_at": at, "score": score, "rank": None if score is None else int(score)}
        for user, at, score in given
    ]
    return pa.Table.from_pylist(listed, schema=SCHEMA)


def events(table: pa.Table) -> list[Mapping[str, Any]]:
    """Return rows as the oracle takes them."""
    listed: Sequence[Mapping[str, Any]] = table.to_pylist()
    return list(listed)


class Table:
    """A workspace with one table and a clock that is moved by hand.

    Args:
        home: Where it keeps everything.
        options: Of the declaration.
    """

    def __init__(self, home: Path, **options: Any) -> None:
        self.clock = Clock(FIRST + 30 * DAY)
        self.view = scores(**options)
        service = FeatureService(name="ranking", features=[self.view[[self.view.feature_names[0]]]])
        self.workspace = Workspace("scoring", [self.view, service], home=home, clock=self.clock)
        self.handle = self.workspace.get_feature_table("scores")
        self.stores = self.workspace.stores

    def online(self, user: str | None, at: datetime | None = None) -> float | None:
        """Return a user's score online, now or at another time."""
        before, self.clock.now = self.clock.now, at or self.clock.now
        try:
            found = self.handle.get_online_features({"user_id": user}).to_dict()["score"]
        finally:
            self.clock.now = before
        return None if found is None else float(found)

    def stored(self) -> list[tuple[Any, ...]]:
        """Return all rows offline as (user, time, score), in order."""
        table = self.handle.get_historical_features().to_arrow()
        listed = table.select(["user_id", "scored_at", "score"]).to_pylist()
        return sorted((tuple(row.values()) for row in listed), key=str)
