"""What the online stores have in common: records and state in the order of their keys, one environment per view.

An environment is what LMDB offers, and what `remote_environment.py` offers over a server: transactions that read a
consistent state and change it at once. Records lie in key order (generation, join keys, chunk number); before them
generation 0 holds what is known about each generation: its layout and its coverage marker. `record_writer.py` has the
write side, `record_snapshot.py` the read side.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.stores.lmdb_environment import LmdbEnvironment, ReadTransaction
from featurekit_dagster.stores.online import Key, OnlineLayout, OnlineRemoval, OnlineWrite
from featurekit_dagster.stores.online_upkeep import Trimmed
from featurekit_dagster.stores.record_keys import keys_besides, sample_keys
from featurekit_dagster.stores.record_removal import drop_everything, drop_slots
from featurekit_dagster.stores.record_runs import RecordRuns
from featurekit_dagster.stores.record_snapshot import RecordSnapshot, StoredView, marked_generations
from featurekit_dagster.stores.record_stream import (
    StreamKeys,
    drop_letters,
    seen_marks,
    stored_checkpoints,
    stored_letters,
    write_stream,
)
from featurekit_dagster.stores.record_tombstones import remove_deleted, set_tombstones, stored_tombstones
from featurekit_dagster.stores.record_upkeep import clear, holds, placed, trim, use
from featurekit_dagster.stores.record_writer import write_records
from featurekit_dagster.stores.stream_state import (
    Combine,
    DeadLetter,
    Refuse,
    StreamCheckpoint,
    StreamCommit,
    StreamWrite,
)
from featurekit_dagster.stores.tombstones import Tombstones

if TYPE_CHECKING:
    import lmdb
    import pyarrow as pa

_T = TypeVar("_T")

_REMEMBERED_LAYOUTS = 256


class RecordStore(ABC):
    """Online store over environments of key-ordered records (see `OnlineStore`); a subclass opens them."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._environments: dict[tuple[str, str], LmdbEnvironment] = {}
        self._views: dict[OnlineLayout, StoredView] = {}
        # A layout takes microseconds to hash; one that a caller keeps is found by identity, so it is kept alive here.
        self._views_by_identity: dict[int, tuple[OnlineLayout, StoredView]] = {}

    @abstractmethod
    def _open(self, workspace: str, view: str) -> LmdbEnvironment:
        """Return the environment of a view; each call is one more user of it."""

    @abstractmethod
    def _release(self, environment: LmdbEnvironment) -> None:
        """Count one user of an environment less."""

    def _view(self, layout: OnlineLayout) -> StoredView:
        known = self._views_by_identity.get(id(layout))
        if known is not None:
            return known[1]
        with self._lock:
            view = self._views.get(layout)
            if view is None:
                place = (layout.workspace, layout.view)
                environment = self._environments.get(place)
                if environment is None:
                    environment = self._environments[place] = self._open(*place)
                view = self._views[layout] = self._made(layout, environment)
            if len(self._views_by_identity) >= _REMEMBERED_LAYOUTS:
                self._views_by_identity.clear()
            self._views_by_identity[id(layout)] = (layout, view)
            return view

    def _made(self, layout: OnlineLayout, environment: LmdbEnvironment) -> StoredView:
        """Return a layout compiled, before anything of it is read or written."""
        return StoredView(layout, environment)

    def write(
        self,
        layout: OnlineLayout,
        records: pa.Table,
        *,
        covered: IntervalSet,
        epoch: int,
        replace: Interval | None = None,
        keep_stream: bool = False,
        combine: Combine | None = None,
    ) -> OnlineWrite:
        """Upsert batch records and then set the coverage marker (see `OnlineStore.write`)."""
        if replace is not None and layout.tile_us is None:
            raise ValueError(f"{layout.view}: only tiles can be replaced by interval; rows are upserted")
        view = self._view(layout)
        runs = RecordRuns(layout, records, view.keys, view.values, combine=combine)
        generation = view.generation()
        refused, deleted = write_records(generation, runs, replace, epoch, keep_stream=keep_stream)
        generation.write_under(epoch, partial(view.put_marker, covered=covered, epoch=epoch))
        view.environment.sync()
        written = runs.rows - refused - deleted
        skipped = runs.given_rows - written - deleted
        return OnlineWrite(rows_written=written, rows_skipped=skipped, rows_deleted=deleted)

    def snapshot(self, layout: OnlineLayout) -> RecordSnapshot:
        """Return a context that gives coverage and records of one moment."""
        return RecordSnapshot(self._view(layout))

    def read(
        self,
        layout: OnlineLayout,
        keys: Sequence[Key],
        since_us: int | None = None,
        until_us: int | None = None,
    ) -> list[list[tuple[Any, ...]]]:
        """Return the records of each key as `OnlineSnapshot.read` does."""
        with self.snapshot(layout) as snapshot:
            return snapshot.read(keys, since_us, until_us)

    def read_prefix(
        self, layout: OnlineLayout, prefix: Key, since_us: int | None = None, until_us: int | None = None
    ) -> dict[Key, list[tuple[Any, ...]]]:
        """Return the records of all keys with a prefix as `OnlineSnapshot.read_prefix` does."""
        with self.snapshot(layout) as snapshot:
            return snapshot.read_prefix(prefix, since_us, until_us)

    def keys_besides(self, layout: OnlineLayout, given: pa.Table, interval: Interval) -> list[Key]:
        """Return other keys than the given ones that have tiles in an interval (see `OnlineStore.keys_besides`)."""
        return keys_besides(self._view(layout), given, interval)

    def sample_keys(self, layout: OnlineLayout, count: int, seed: int, interval: Interval | None = None) -> list[Key]:
        """Return some of the stored keys, chosen as if by chance (see `OnlineStore.sample_keys`)."""
        return sample_keys(self._view(layout), count, seed, interval)

    def coverage(self, layout: OnlineLayout) -> IntervalSet:
        """Return what has been written online."""
        with self.snapshot(layout) as snapshot:
            return snapshot.coverage

    def placed(self, layout: OnlineLayout) -> OnlineLayout:
        """Return the layout with the slot and the tile size in use (see `OnlineUpkeep.placed`)."""
        return placed(self._view(layout))

    def use(self, layout: OnlineLayout, *, epoch: int) -> None:
        """Let the generation use another slot from now on (see `OnlineUpkeep.use`)."""
        use(self._view(self.placed(layout)), self._view(layout), epoch)

    def holds(self, layout: OnlineLayout) -> bool:
        """Tell whether there is anything in a slot (see `OnlineUpkeep.holds`)."""
        return holds(self._view(layout))

    def clear(self, layout: OnlineLayout, *, epoch: int) -> None:
        """Remove everything from a slot that is not in use (see `OnlineUpkeep.clear`)."""
        if self.placed(layout).slot == layout.slot:
            raise ValueError(f"{layout.view}: slot {layout.slot} of generation {layout.generation} is in use")
        clear(self._view(layout), epoch)

    def trim(self, layout: OnlineLayout, since_us: int | None, *, epoch: int, check: Callable[[], None]) -> Trimmed:
        """Remove what lies before a time, in short transactions (see `OnlineUpkeep.trim`)."""
        return trim(self._view(layout), since_us, epoch, check)

    def stream_write(
        self,
        layout: OnlineLayout,
        records: pa.Table,
        *,
        combine: Combine,
        commit: StreamCommit,
        refuse: Refuse,
    ) -> StreamWrite:
        """Write what a stream brought and its checkpoints in one transaction (see `OnlineStore.stream_write`)."""
        view = self._view(layout)
        runs = RecordRuns(layout, records, view.keys, view.values, from_stream=True)
        return write_stream(view.generation(), view.stream, runs, combine, commit, refuse)

    def checkpoints(self, layout: OnlineLayout) -> Mapping[str, StreamCheckpoint]:
        """Return how far each source partition was read."""
        return self._look(layout, stored_checkpoints, {})

    def seen_marks(self, layout: OnlineLayout, marks: Collection[bytes]) -> Set[bytes]:
        """Return those of the marks that are remembered."""
        return self._look(layout, partial(seen_marks, marks=marks), set())

    def dead_letters(self, layout: OnlineLayout, partition: str, most: int) -> Sequence[DeadLetter]:
        """Return the oldest dead letters of a source partition that nobody has taken away."""
        return self._look(layout, partial(stored_letters, partition=partition, most=most), [])

    def drop_dead_letters(self, layout: OnlineLayout, partition: str, up_to: int) -> None:
        """Forget the dead letters of a source partition up to a number, inclusive."""
        view = self._view(layout)
        view.environment.transact(lambda t: drop_letters(t, view.stream, partition, up_to))

    def _look(self, layout: OnlineLayout, read: Callable[[lmdb.Transaction[bytes], StreamKeys], _T], nothing: _T) -> _T:
        """Return what `read` finds of a stream's state."""
        view = self._view(layout)
        with ReadTransaction(view.environment) as transaction:
            return nothing if transaction is None else read(transaction, view.stream)

    def tombstones(self, workspace: str, view: str) -> Tombstones | None:
        """Return the tombstones that writes of a view are checked against; None before the first."""
        with self._opened(workspace, view) as environment:
            return stored_tombstones(environment)

    def set_tombstones(self, workspace: str, view: str, tombstones: Tombstones) -> None:
        """Let these be the tombstones of a view (see `OnlineStore.set_tombstones`)."""
        with self._opened(workspace, view) as environment:
            set_tombstones(environment, tombstones)

    def remove_deleted(self, layout: OnlineLayout, keys: pa.Table | None) -> OnlineRemoval:
        """Remove what the tombstones hide (see `OnlineStore.remove_deleted`)."""
        return remove_deleted(self._view(layout), keys)

    def generations(self, workspace: str, view: str) -> tuple[int, ...]:
        """Return the generations with a coverage marker (see `OnlineStore.generations`)."""
        with self._opened(workspace, view) as environment, ReadTransaction(environment) as transaction:
            return () if transaction is None else marked_generations(transaction)

    def drop(self, workspace: str, view: str, generation: int | None, *, epoch: int) -> None:
        """Remove a generation, or everything of a view (see `OnlineStore.drop`)."""
        with self._opened(workspace, view) as environment:
            if generation is None:
                drop_everything(environment)
            else:
                drop_slots(environment, f"batch:{workspace}/{view}", generation, epoch)

    @contextmanager
    def _opened(self, workspace: str, view: str) -> Iterator[LmdbEnvironment]:
        """Return the environment of a view whatever its layout."""
        environment = self._open(workspace, view)
        try:
            yield environment
        finally:
            self._release(environment)

    def close(self) -> None:
        """Release files and memory; the store opens them again when it is next used."""
        with self._lock:
            self._views.clear()
            self._views_by_identity.clear()
            environments, self._environments = list(self._environments.values()), {}
        for environment in environments:
            self._release(environment)
