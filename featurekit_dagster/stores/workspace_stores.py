"""The stores of one workspace, opened when they are first used, and how its views are laid out in them.

Each store's libraries are imported with it: planning needs the ledger alone, and the command line starts without any.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.domain.schema import Array, Field
from featurekit_dagster.intervals import Interval, IntervalSet

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from featurekit_dagster.stores.ledger import Ledger
    from featurekit_dagster.stores.offline import OfflineStore
    from featurekit_dagster.stores.online import OnlineLayout, OnlineStore

LEDGER_VARIABLE = "FEATUREKIT_LEDGER"


@dataclass(frozen=True)
class WorkspaceStores:
    """Where one workspace keeps its rows and its record.

    Args:
        workspace: Name of the workspace.
        home: Local directory with `ledger.db` and `online/`.
        lake: Root of the offline tables: a local path or any URI that delta-rs takes. A workspace keeps its tables
            below its name, so that two of them in one lake never write the same table.
        clock: Returns "now".
    """

    workspace: str
    home: Path
    lake: str
    clock: Callable[[], datetime] = field(repr=False)

    @cached_property
    def ledger(self) -> Ledger:
        """The record of jobs and coverage: at `$FEATUREKIT_LEDGER`, a PostgreSQL URL, else in the home directory."""
        from featurekit_dagster.stores.ledger import Ledger

        self.home.mkdir(parents=True, exist_ok=True)
        return Ledger(os.environ.get(LEDGER_VARIABLE) or self.home / "ledger.db", clock=self.clock)

    @property
    def has_ledger(self) -> bool:
        """Whether there is a record yet; asking for it would create one."""
        return bool(os.environ.get(LEDGER_VARIABLE)) or (self.home / "ledger.db").exists()

    @cached_property
    def offline(self) -> OfflineStore:
        """The history of all feature values."""
        from featurekit_dagster.stores.delta import DeltaOfflineStore

        return DeltaOfflineStore(f"{self.lake.rstrip('/')}/{self.workspace}")

    @cached_property
    def online(self) -> OnlineStore:
        """What models read from while they serve."""
        from featurekit_dagster.stores.lmdb import LmdbOnlineStore

        return LmdbOnlineStore(self.home / "online")

    def coverage(self, view: FeatureView, store: str) -> IntervalSet:
        """Return what the ledger knows to be materialized of a view in `online` or `offline`."""
        return self.ledger.coverage(self.workspace, view.name, store)

    def read_offline(
        self, view: FeatureView, schema: pa.Schema, interval: Interval, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Return the stored rows with `start <= time < end`; none before the first write.

        Args:
            view: The feature view.
            schema: The stored columns and their types; one that was never written reads NULL.
            interval: `[start, end)`.
            columns: Those of `schema` to return, in this order; None for all.
        """
        import duckdb
        import pyarrow as pa

        names = schema.names if columns is None else list(columns)
        with duckdb.connect() as con:
            con.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
            relation = self.offline_relation(con, view, schema, interval, names)
            empty = pa.Table.from_batches([], schema=schema).select(names)
            return empty if relation is None else con.sql(f"FROM {relation}").to_arrow_table().cast(empty.schema)

    def offline_relation(
        self,
        con: duckdb.DuckDBPyConnection,
        view: FeatureView,
        schema: pa.Schema,
        interval: Interval,
        columns: Sequence[str],
    ) -> str | None:
        """Return SQL that stands after FROM in `con` and yields the stored rows; None before the first write.

        Args:
            con: Connection in which the text will be used.
            view: The feature view.
            schema: The stored columns and their types; one that was never written reads NULL.
            interval: `[start, end)`.
            columns: Those of `schema` to return, in this order.
        """
        if not self.offline.exists(view.name):
            return None
        return self.offline.relation(
            con, view.name, schema=schema, time_column=view.stored_time_column, interval=interval, columns=columns
        )

    def online_layout(self, view: FeatureView) -> OnlineLayout:
        """Return how a view is stored online: serving index first, then the other join keys."""
        from featurekit_dagster.stores.online import OnlineLayout

        by_name = {key.name: key for key in view.join_keys}
        index = view.online_serving_index
        others = [name for name in view.key_names if name not in index]
        return OnlineLayout(
            workspace=self.workspace,
            view=view.name,
            key_fields=tuple(by_name[name] for name in (*index, *others)),
            index_length=len(index),
            tile_us=view.tile_us,
            value_fields=_online_fields(view),
            is_stream=view.is_stream,
        )


def _online_fields(view: FeatureView) -> tuple[Field, ...]:
    """Return the columns of an online record: partial columns or features; lists beside those of a secondary key."""
    fields = tuple(Field(p.name, p.dtype) for p in view.online_partials) or view.attributes
    if view.secondary_key is None:
        return fields
    return tuple(Field(field.name, Array(field.dtype)) for field in (view.secondary_key, *fields))
