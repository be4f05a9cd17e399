"""A small workspace for the flows through a whole Dagster: 120 days of rides, and pings for a schedule of minutes.

What it is told lies in its folder, so that a code location in another process sees the same; the clock is a file too.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from featurekit_dagster import (
    Aggregation,
    BatchSource,
    BatchTriggerType,
    Entity,
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
from featurekit_dagster.domain.feature_view import FeatureView

DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)
RIDERS = ("secret-rider-ada", "secret-rider-ben", "secret-rider-cem")
DAYS, DAYS_WITH_DATA, MINUTES_WITH_DATA = 120, 125, 240
_FORMAT = "%Y-%m-%dT%H:%MZ"


@dataclass(frozen=True)
class Rides:
    """The folder of one such workspace.

    Args:
        folder: For data, stores, clock, and the list of queries.
        first: First day with data; the pings begin 120 days later.
    """

    folder: Path
    first: datetime

    @classmethod
    def make(cls, folder: Path, first: datetime, *, fixed: bool) -> Rides:
        """Write the data; it is the end of the 120th day, for ever if `fixed`, else until the clock is moved."""
        folder.mkdir(parents=True, exist_ok=True)
        made = cls(folder, first)
        (folder / "first").write_text(first.isoformat())
        (folder / ("fixed" if fixed else "now")).write_text(made.day(DAYS).isoformat())
        _write_events(folder / "rides.parquet", first, DAY, DAYS_WITH_DATA)
        _write_events(folder / "pings.parquet", made.day(DAYS), MINUTE, MINUTES_WITH_DATA)
        return made

    @classmethod
    def at(cls, folder: Path) -> Rides:
        """Return the workspace that `make` prepared."""
        return cls(folder, datetime.fromisoformat((folder / "first").read_text()))

    def day(self, number: int) -> datetime:
        """Return the start of the n-th day, counted from zero."""
        return self.first + number * DAY

    def minute(self, number: int) -> datetime:
        """Return the start of the n-th minute of the pings."""
        return self.day(DAYS) + number * MINUTE

    def key(self, number: int) -> str:
        """Return the partition key of the n-th day."""
        return self.day(number).strftime(_FORMAT)

    def now(self) -> datetime:
        """Return what the clock says."""
        return datetime.fromisoformat((self.folder / "now").read_text())

    def set_clock(self, now: datetime) -> None:
        """Move the clock of every process; replaced as a whole, so that nobody reads half of it."""
        (self.folder / "now.new").write_text(now.isoformat())
        (self.folder / "now.new").replace(self.folder / "now")

    def queries(self, view: str) -> int:
        """Return how often the transformation of a view has run, in whatever process."""
        return len(self.query_pids(view))

    def query_pids(self, view: str) -> list[int]:
        """Return the process of each query of a view, in order of time."""
        log = self.folder / "queries"
        lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
        return [int(pid) for name, pid in lines if name == view]

    @contextlib.contextmanager
    def held(self, view: str) -> Iterator[None]:
        """Let queries of a view begin, and end only after the block."""
        mark = self.folder / f"hold_{view}"
        mark.touch()
        try:
            yield
        finally:
            mark.unlink()

    def workspace(self) -> Workspace:
        """Return the workspace; its clock stands still for definitions, too, if it was made so."""
        fixed = self.folder / "fixed"
        clock = datetime.fromisoformat(fixed.read_text()) if fixed.exists() else self.now
        views = [self._last_ride(), self._distance(), self._last_ping()]
        return Workspace("rides", views, home=self.folder / "home", clock=clock)

    def _last_ride(self) -> FeatureView:
        folder = self.folder

        @batch_feature_view(
            **self._facts("rides"),
            mode="pandas",
            batch_schedule=DAY,
            batch_trigger=BatchTriggerType.MANUAL,
            incremental_backfills=True,
            feature_start_time=self.first,
            description="The last ride; each day is a query and a job of its own.",
        )
        def last_ride(rides: pd.DataFrame) -> pd.DataFrame:
            _note_query(folder, "last_ride")
            return rides[["rider_id", "rode_at", "km"]]

        return last_ride

    def _distance(self) -> FeatureView:
        @batch_feature_view(
            **self._facts("rides"),
            mode="sql",
            batch_schedule=DAY,
            batch_trigger=BatchTriggerType.MANUAL,
            aggregation_interval=DAY,
            aggregations=[Aggregation(column="km", function="sum", time_window=TimeWindow(window_size=DAY))],
            feature_start_time=self.day(1),
            description="How far a rider went in a day.",
        )
        def distance(rides: str) -> str:
            return f"SELECT rider_id, rode_at, km FROM {rides}"

        return distance

    def _last_ping(self) -> FeatureView:
        folder = self.folder

        @batch_feature_view(
            **self._facts("pings"),
            mode="pandas",
            batch_schedule=MINUTE,
            feature_start_time=self.day(DAYS),
            description="The last ping; the schedule looks each minute.",
        )
        def last_ping(pings: pd.DataFrame) -> pd.DataFrame:
            _note_query(folder, "last_ping")
            return pings[["rider_id", "rode_at", "km"]]

        return last_ping

    def _facts(self, source: str) -> dict[str, Any]:
        config = FileConfig(
            uri=str(self.folder / f"{source}.parquet"), file_format="parquet", timestamp_field="rode_at"
        )
        return {
            "sources": [FilteredSource(BatchSource(name=source, batch_config=config))],
            "entities": [Entity(name="rider", join_keys=[Field("rider_id", String)])],
            "schema": [Field("rider_id", String), Field("rode_at", Timestamp), Field("km", Float64)],
            "timestamp_field": "rode_at",
            "online": True,
            "offline": True,
            "owner": "team:rides",
        }


def _note_query(folder: Path, view: str) -> None:
    with (folder / "queries").open("a") as log:
        log.write(f"{view} {os.getpid()}\n")
    while (folder / f"hold_{view}").exists():
        time.sleep(0.1)


def _write_events(file: Path, first: datetime, step: timedelta, count: int) -> None:
    """Write one event per rider and step; each lies inside the step."""
    rows = [
        {
            "rider_id": rider,
            "rode_at": (first + number * step + step * turn / 8).replace(tzinfo=None),
            "km": float(number),
        }
        for number in range(count)
        for turn, rider in enumerate(RIDERS, 1)
    ]
    pd.DataFrame(rows).to_parquet(file)
