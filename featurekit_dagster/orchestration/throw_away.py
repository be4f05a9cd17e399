"""A workspace of one view that is thrown away: own home, lake, ledger and Dagster instance, a clock set by hand.

It keeps clear of what the environment says about stores, so that nothing of the user's is read or written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

import dagster as dg

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.domain.repo import Repository
from featurekit_dagster.orchestration.resources import FeatureStores
from featurekit_dagster.planning.generations import StoredShape
from featurekit_dagster.planning.tasks import LedgerSnapshot
from featurekit_dagster.stores.ledger import Ledger
from featurekit_dagster.stores.lmdb import LmdbOnlineStore
from featurekit_dagster.stores.workspace_stores import WorkspaceStores


@dataclass
class HandClock:
    """A clock that stands where it was put."""

    time: datetime

    def __call__(self) -> datetime:
        """Return the time."""
        return self.time


class ThrowAwayWorkspace:
    """One view bound to stores in a folder (see `BoundWorkspace`).

    Args:
        view: The view.
        folder: Where everything is kept.
        clock: Tells the time.
        loaded_at: When it was made.
    """

    def __init__(self, view: FeatureView, folder: Path, clock: HandClock, loaded_at: datetime) -> None:
        self.name, self.home, self.lake = "integration_test", folder / "home", str(folder / "lake")
        streams = () if view.stream_source is None else (view.stream_source,)
        self.repo = Repository((view,), (), view.sources, view.entities, streams)
        self.loaded_at, self._clock = loaded_at, clock

    @property
    def fixed_now(self) -> datetime | None:
        """The time: the clock moves only by hand."""
        return self._clock()

    def now(self) -> datetime:
        """Return the time."""
        return self._clock()

    @cached_property
    def stores(self) -> WorkspaceStores:
        """The stores in the folder."""
        stores = WorkspaceStores(workspace=self.name, home=self.home, lake=self.lake, clock=self._clock)
        self.home.mkdir(parents=True, exist_ok=True)
        # set before they are first used, since by themselves they would follow the environment
        stores.__dict__["ledger"] = Ledger(self.home / "ledger.db", clock=self._clock)
        stores.__dict__["online"] = LmdbOnlineStore(self.home / "online")
        return stores

    @property
    def resource(self) -> FeatureStores:
        """The stores as a Dagster resource."""
        return FeatureStores.of(self)

    def snapshot(self) -> LedgerSnapshot:
        """Return what the ledger knows now."""
        return self.stores.ledger.snapshot(self.name, {view.name: StoredShape.of(view) for view in self.repo.views})


@contextmanager
def throw_away_folder() -> Iterator[Path]:
    """Give a folder that only this user can read, and that is removed with everything in it."""
    with tempfile.TemporaryDirectory(prefix="featurekit_integration_test_") as folder:
        yield Path(folder)


@contextmanager
def throw_away_instance(folder: Path) -> Iterator[dg.DagsterInstance]:
    """Give a Dagster instance of its own."""
    with dg.DagsterInstance.ephemeral(tempdir=str(folder)) as instance:
        yield instance
