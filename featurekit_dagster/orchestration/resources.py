"""What orchestration needs of a workspace, and its stores as a Dagster resource.

The resource lets a deployment point the stores elsewhere by configuration; the clock stays the workspace's own.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Protocol

import dagster as dg
from pydantic import Field

from featurekit_dagster.domain.repo import Repository
from featurekit_dagster.planning.tasks import LedgerSnapshot
from featurekit_dagster.stores.workspace_stores import WorkspaceStores


class BoundWorkspace(Protocol):
    """Declarations bound to stores and a clock; `sdk.Workspace` is one."""

    @property
    def name(self) -> str:
        """Name of the workspace."""
        ...

    @property
    def repo(self) -> Repository:
        """Its declarations."""
        ...

    @property
    def home(self) -> Path:
        """Local directory of ledger and online store."""
        ...

    @property
    def lake(self) -> str:
        """Root of the offline tables."""
        ...

    @property
    def fixed_now(self) -> datetime | None:
        """The time of a clock that stands still, else None."""
        ...

    @property
    def loaded_at(self) -> datetime:
        """When this process made it, by the real clock."""
        ...

    @property
    def stores(self) -> WorkspaceStores:
        """The stores at `home` and `lake`."""
        ...

    def now(self) -> datetime:
        """Return the workspace's time, aware UTC."""
        ...

    def snapshot(self) -> LedgerSnapshot:
        """Return what the ledger knows now; nothing where none exists yet."""
        ...


class FeatureStores(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Where a workspace keeps its rows and its record."""

    home: str = Field(description="Local directory with the ledger and the online store.")
    lake: str = Field(description="Root of the offline tables: a path or any URI that delta-rs takes.")

    def open(self, workspace: BoundWorkspace) -> WorkspaceStores:
        """Return the stores: the workspace's own unless other places are configured."""
        if (self.home, self.lake) == (str(workspace.home), workspace.lake):
            return workspace.stores
        return WorkspaceStores(
            workspace=workspace.name,
            home=Path(self.home),
            lake=self.lake,
            clock=workspace.now,
            places=workspace.stores.places,
        )

    @classmethod
    def of(cls, workspace: BoundWorkspace) -> FeatureStores:
        """Return the resource with the places that the workspace declares."""
        return cls(home=str(workspace.home), lake=workspace.lake)


def resource_key(prefix: str | None) -> str:
    """Return the name of the resource; workspaces under different prefixes have their own."""
    return f"{prefix}_feature_stores" if prefix else "feature_stores"
