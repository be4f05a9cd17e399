"""The stores of one workspace, opened when they are first used, and which generation of its views is used in them.

Reads use the generation that the ledger says answers for now, writers the one that they were given. Each store's
libraries are imported with it: planning needs the ledger alone, and the command line starts without any.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.domain.online_stores import OnlinePlaces
from featurekit_dagster.intervals import Interval, IntervalSet, floor_time
from featurekit_dagster.planning.fingerprint import fingerprint
from featurekit_dagster.planning.generations import StoredShape, laid_out_fields, resolve
from featurekit_dagster.planning.job_state import MANAGED, RetryPolicy
from featurekit_dagster.planning.online_tiles import first_tile_us
from featurekit_dagster.planning.tasks import OFFLINE, ONLINE

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from featurekit_dagster.stores.datasets import Datasets
    from featurekit_dagster.stores.dead_letters import DeadLetters
    from featurekit_dagster.stores.ledger import Ledger
    from featurekit_dagster.stores.ledger_records import JobRecord
    from featurekit_dagster.stores.offline import OfflineStore
    from featurekit_dagster.stores.online import OnlineLayout, OnlineStore
    from featurekit_dagster.stores.tombstone_registry import TombstoneRegistry

LEDGER_VARIABLE = "FEATUREKIT_LEDGER"
_SECONDS_BETWEEN_LOOKS = 1.0
_FOR_EVER = datetime(9999, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineVersion:
    """What the offline table of a view is at one moment.

    Args:
        generation: Generation of the table.
        version: Version of the table; None where there is none yet.
        coverage: What is materialized in it.
    """

    generation: int
    version: int | None
    coverage: IntervalSet


@dataclass(frozen=True)
class WorkspaceStores:
    """Where one workspace keeps its rows and its record.

    Args:
        workspace: Name of the workspace.
        home: Local directory with `ledger.db` and `online/`.
        lake: Root of the offline tables: a local path or any URI that delta-rs takes. A workspace keeps its tables
            below its name, so that two of them in one lake never write the same table.
        clock: Returns "now".
        pins: View to the generation that is used in both stores, for a writer.
        versions: View to the state of its offline table that is read, for reads that must not see later commits.
        origin: The stores that these were pinned from; they open what both use.
        places: Where views are served from; by default all from the home directory.
    """

    workspace: str
    home: Path
    lake: str
    clock: Callable[[], datetime] = field(repr=False)
    pins: Mapping[str, int] = field(default_factory=dict, repr=False, hash=False)
    versions: Mapping[str, OfflineVersion] = field(default_factory=dict, repr=False, hash=False, kw_only=True)
    origin: WorkspaceStores | None = field(default=None, repr=False, hash=False)
    places: OnlinePlaces = field(default=OnlinePlaces(), repr=False, hash=False, kw_only=True)
    _used: dict[str, _Used] = field(default_factory=dict, init=False, repr=False, compare=False)
    _placed: dict[str, tuple[_Used, OnlineLayout]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def ledger(self) -> Ledger:
        """The record of jobs and coverage: at `$FEATUREKIT_LEDGER`, a PostgreSQL URL, else in the home directory."""
        if self.origin is not None:
            return self.origin.ledger
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
        if self.origin is not None:
            return self.origin.offline
        from featurekit_dagster.stores.delta import DeltaOfflineStore

        return DeltaOfflineStore(f"{self.lake.rstrip('/')}/{self.workspace}")

    @cached_property
    def online(self) -> OnlineStore:
        """What models read from while they serve."""
        if self.origin is not None:
            return self.origin.online
        from featurekit_dagster.stores.routed_online import open_online

        return open_online(self.home, self.places)

    @cached_property
    def datasets(self) -> Datasets:
        """The datasets that were made of feature values."""
        from featurekit_dagster.stores.datasets import Datasets

        return Datasets(f"{self.lake.rstrip('/')}/{self.workspace}")

    @cached_property
    def tombstones(self) -> TombstoneRegistry:
        """What was deleted, and must not come back."""
        if self.origin is not None:
            return self.origin.tombstones
        from featurekit_dagster.stores.tombstone_registry import TombstoneRegistry

        return TombstoneRegistry(f"{self.lake.rstrip('/')}/{self.workspace}/_featurekit/tombstones")

    def without_deleted(
        self, view: FeatureView, rows: pa.Table, store: str = OFFLINE, *, time_column: str | None = None
    ) -> pa.Table:
        """Return rows without those that tombstones hide in a store; the same table where there are none such.

        Args:
            view: The feature view.
            rows: Its join keys and a time column, beside others.
            store: `online` or `offline`.
            time_column: When a row is; the view's stored time column by default.
        """
        found = self.tombstones.load(view.name)
        hidden = None if found is None else found.online if store == ONLINE else found.offline
        if hidden is None or not hidden.cutoffs:
            return rows
        from featurekit_dagster.stores.tombstones import visible_rows

        return visible_rows(rows, view.join_keys, time_column or view.stored_time_column, hidden)

    def sync_tombstones(self, view: FeatureView) -> None:
        """Let the online store have the tombstones of a view; every writer does so before it begins."""
        found = self.tombstones.load(view.name)
        if found is not None:
            self.online.set_tombstones(self.workspace, view.name, found.online)

    def pinned(self, view: FeatureView, generation: int) -> WorkspaceStores:
        """Return the same stores for a writer of one generation of a view, whatever is read meanwhile."""
        pins = {**self.pins, view.name: generation}
        return self._with(pins, self.versions)

    def at_versions(self, versions: Mapping[str, OfflineVersion]) -> WorkspaceStores:
        """Return the same stores for reads that see offline tables as they were, whatever is written meanwhile.

        Args:
            versions: View to the state of its table; the others are read as they are now.
        """
        pins = {name: version.generation for name, version in versions.items()}
        return self._with({**self.pins, **pins}, {**self.versions, **versions})

    def offline_version(self, view: FeatureView) -> OfflineVersion:
        """Return what the offline table of a view is now, for `at_versions`; what it covers is in its version."""
        generation = self.generation(view)
        coverage = self.coverage(view, OFFLINE)
        version = self.offline.version(view.name, generation) if self.offline.exists(view.name, generation) else None
        return OfflineVersion(generation=generation, version=version, coverage=coverage)

    def _with(self, pins: Mapping[str, int], versions: Mapping[str, OfflineVersion]) -> WorkspaceStores:
        origin = self.origin or self
        return WorkspaceStores(self.workspace, self.home, self.lake, self.clock, pins, origin, versions=versions)

    def standing_at(self, time: datetime) -> WorkspaceStores:
        """Return the same stores for a reader to whom it is always one time, given as aware UTC."""
        return replace(self, clock=lambda: time, origin=self.origin or self)

    def queue(
        self,
        view: FeatureView,
        intervals: Sequence[Interval],
        *,
        online: bool,
        offline: bool,
        trigger: str,
        overwrite: bool = False,
        policy: RetryPolicy = MANAGED,
    ) -> list[JobRecord]:
        """Put jobs of a declaration into the ledger, for the generation that it writes; see `Ledger.queue`.

        Raises:
            ChangedDeclaration: The view was changed, and nobody has decided what becomes of what is stored.
            OverlappingMaterialization: A range is taken; then no job was made.
        """
        return self.ledger.queue(
            workspace=self.workspace,
            view=view.name,
            intervals=intervals,
            online=online,
            offline=offline,
            overwrite=overwrite,
            trigger=trigger,
            policy=policy,
            generation=self.ledger.open_generation(self.workspace, view.name, StoredShape.of(view)),
            code_version=fingerprint(view),
        )

    def generation(self, view: FeatureView, store: str = OFFLINE) -> int:
        """Return the generation of a view that is used in `online` or `offline`."""
        used = self._using(view)
        return used.online if store == ONLINE else used.offline

    def dead_letters(self, view: FeatureView) -> DeadLetters:
        """Return where the events of a stream view go that could not become rows."""
        from featurekit_dagster.stores.dead_letters import DeadLetters

        return DeadLetters(f"{self.lake.rstrip('/')}/{self.workspace}/dead_letters/{view.name}")

    def coverage(self, view: FeatureView, store: str) -> IntervalSet:
        """Return what the ledger knows to be materialized of a view in `online` or `offline`."""
        if store == OFFLINE and view.name in self.versions:
            return self.versions[view.name].coverage
        return self.ledger.coverage(self.workspace, view.name, store, self.generation(view, store))

    def provided(self, view: FeatureView, store: str) -> IntervalSet:
        """Return what is materialized of a view in `online` or `offline`, or is brought there by its stream."""
        covered = self.coverage(view, store)
        if store != ONLINE or not view.is_stream:
            return covered
        start = self.ledger.stream_start(self.workspace, view.name, self.generation(view, store))
        if start is None:
            return covered
        return covered.union([Interval(floor_time(start, view.batch_schedule), _FOR_EVER)])

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
        generation, seen = self.generation(view), self.versions.get(view.name)
        if not self.offline.exists(view.name, generation) or (seen is not None and seen.version is None):
            return None
        registered = self.tombstones.load(view.name)
        # once a deletion is through, the rows are gone from the table, but not from its former versions
        hidden = None if registered is None else registered.pending if seen is None else registered.offline
        is_hiding = hidden is not None and bool(hidden.cutoffs)
        read = dict.fromkeys([*columns, *view.key_names, view.stored_time_column]) if is_hiding else columns
        relation = self.offline.relation(
            con,
            view.name,
            schema=schema,
            time_column=view.stored_time_column,
            interval=interval,
            columns=list(read),
            generation=generation,
            version=None if seen is None else seen.version,
        )
        if hidden is None or not is_hiding:
            return relation
        from featurekit_dagster.stores.hidden_rows import visible_relation

        return visible_relation(
            con, relation, view.join_keys, time_column=view.stored_time_column, columns=columns, tombstones=hidden
        )

    def online_layout(self, view: FeatureView) -> OnlineLayout:
        """Return how a view is stored online: serving index first, then the other join keys.

        It is the same object until another generation, or another slot of it, is used.
        """
        used = self._using(view)
        known = self._placed.get(view.name)
        return known[1] if known is not None and known[0] is used else self._place(view, used)

    def _place(self, view: FeatureView, used: _Used) -> OnlineLayout:
        """Return the layout of what is used of a view, with the slot and the tile size that the store says."""
        found, known = used.layout, self._placed.get(view.name)
        if view.online and not view.is_stream and found.tile_us is not None:
            placed = self.online.placed(found)
            same = (layout for layout in (found, *(known or ())[1:]) if layout == placed)
            found = next(same, placed)
        self._placed[view.name] = (used, found)
        return found

    def relaid(self, layout: OnlineLayout, epoch: int) -> None:
        """Let reads and writes use another slot of a generation from now on; see `OnlineUpkeep.use`."""
        self.online.use(layout, epoch=epoch)
        self.ledger.generation_changes += 1  # whoever shares the ledger in this process looks again at once

    def _using(self, view: FeatureView) -> _Used:
        """Return what is used of a view; the ledger is asked again after a second, or when it was written here."""
        known = self._used.get(view.name)
        ledger: Ledger | None = self.__dict__.get("ledger")
        changes = 0 if ledger is None else ledger.generation_changes
        now = time.monotonic()
        if known is not None and known.view is view and known.changes == changes and now < known.until:
            return known
        found = self._find(view, changes, now + _SECONDS_BETWEEN_LOOKS)
        if known is not None and known.view is view and known.layout == found.layout:
            found = replace(found, layout=known.layout)
        self._used[view.name] = found
        return found

    def _find(self, view: FeatureView, changes: int, until: float) -> _Used:
        shape = StoredShape.of(view)
        records = self.ledger.generations(self.workspace, view.name) if self.has_ledger else ()
        pin = self.pins.get(view.name)
        resolved = resolve(shape, records)
        offline, online = (resolved.read, resolved.read_online) if pin is None else (pin, pin)
        stored = next((record.shape for record in records if record.generation == online), None)
        layout = self._layout(view, online, stored)
        return _Used(view=view, until=until, changes=changes, offline=offline, online=online, layout=layout)

    def _layout(self, view: FeatureView, generation: int, stored: StoredShape | None) -> OnlineLayout:
        from featurekit_dagster.stores.online import OnlineLayout

        by_name = {key.name: key for key in view.join_keys}
        index = view.online_serving_index
        others = [name for name in view.key_names if name not in index]
        return OnlineLayout(
            workspace=self.workspace,
            view=view.name,
            generation=generation,
            key_fields=tuple(by_name[name] for name in (*index, *others)),
            index_length=len(index),
            tile_us=first_tile_us(view),
            value_fields=laid_out_fields(view, stored),
            dropped=() if stored is None else stored.online_dropped,
            is_stream=view.is_stream,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Used:
    """Which generations of a view are used.

    Args:
        view: The declaration.
        until: When to ask the ledger again, by the monotonic clock.
        changes: What `Ledger.generation_changes` was.
        offline: Generation in the offline store.
        online: Generation in the online store.
        layout: How that is stored online.
    """

    view: FeatureView
    until: float
    changes: int
    offline: int
    online: int
    layout: OnlineLayout
