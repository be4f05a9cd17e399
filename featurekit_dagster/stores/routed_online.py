"""One online store in front of several: each view's records lie where its declaration says.

A view that is declared no more may lie in any of them, so what is asked about it by name alone is asked of all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurekit_dagster.domain.online_stores import OnlinePlaces, OnlineStoreConfig
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.stores.online import Key, OnlineLayout, OnlineRemoval, OnlineSnapshot, OnlineStore, OnlineWrite

if TYPE_CHECKING:
    import pyarrow as pa

    from featurekit_dagster.stores.online_upkeep import Trimmed
    from featurekit_dagster.stores.stream_state import (
        Combine,
        DeadLetter,
        Refuse,
        StreamCheckpoint,
        StreamCommit,
        StreamWrite,
    )
    from featurekit_dagster.stores.tombstones import Tombstones


def open_online(home: Path, places: OnlinePlaces) -> OnlineStore:
    """Return the online store of a workspace.

    Args:
        home: The home directory, where the embedded store lies.
        places: Where views are served from.
    """

    def opened(config: OnlineStoreConfig | None) -> OnlineStore:
        if config is None:
            from featurekit_dagster.stores.lmdb import LmdbOnlineStore  # noqa: PLC0415 - perhaps it is not used

            return LmdbOnlineStore(home / "online")
        from featurekit_dagster.stores.remote import open_remote  # noqa: PLC0415 - most workspaces have none

        return open_remote(config)

    return RoutedOnlineStore(opened, places) if places.views else opened(places.usual)


class RoutedOnlineStore:
    """Hands every call to the store of its view (see `OnlineStore`).

    Args:
        opened: Opens the store of a declaration; that of None is the embedded one.
        places: Where views are served from.
    """

    def __init__(self, opened: Callable[[OnlineStoreConfig | None], OnlineStore], places: OnlinePlaces) -> None:
        self._opener, self._places = opened, places
        self._opened: dict[OnlineStoreConfig | None, OnlineStore] = {}
        self._lock = threading.Lock()

    def store_of(self, view: str) -> OnlineStore:
        """Return the store of a view, opened if it was not."""
        return self._open(self._places.of(view))

    def _open(self, config: OnlineStoreConfig | None) -> OnlineStore:
        known = self._opened.get(config)
        if known is None:
            with self._lock:
                known = self._opened.get(config)
                if known is None:
                    known = self._opened[config] = self._opener(config)
        return known

    def _where(self, view: str) -> list[OnlineStore]:
        """Return the stores in which a view may lie, its own first."""
        places = self._places
        return [self._open(each) for each in dict.fromkeys([places.of(view), places.usual, *places.views.values()])]

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
        return self.store_of(layout.view).write(
            layout,
            records,
            covered=covered,
            epoch=epoch,
            replace=replace,
            keep_stream=keep_stream,
            combine=combine,
        )

    def placed(self, layout: OnlineLayout) -> OnlineLayout:
        """Return the layout with the slot and the tile size in use (see `OnlineUpkeep.placed`)."""
        return self.store_of(layout.view).placed(layout)

    def use(self, layout: OnlineLayout, *, epoch: int) -> None:
        """Let the generation use another slot from now on (see `OnlineUpkeep.use`)."""
        self.store_of(layout.view).use(layout, epoch=epoch)

    def holds(self, layout: OnlineLayout) -> bool:
        """Tell whether there is anything in a slot (see `OnlineUpkeep.holds`)."""
        return self.store_of(layout.view).holds(layout)

    def clear(self, layout: OnlineLayout, *, epoch: int) -> None:
        """Remove everything from a slot that is not in use (see `OnlineUpkeep.clear`)."""
        self.store_of(layout.view).clear(layout, epoch=epoch)

    def trim(self, layout: OnlineLayout, since_us: int | None, *, epoch: int, check: Callable[[], None]) -> Trimmed:
        """Remove what lies before a time, in short transactions (see `OnlineUpkeep.trim`)."""
        return self.store_of(layout.view).trim(layout, since_us, epoch=epoch, check=check)

    def snapshot(self, layout: OnlineLayout) -> AbstractContextManager[OnlineSnapshot]:
        """Return a context that gives coverage and records of one moment."""
        return self.store_of(layout.view).snapshot(layout)

    def read(
        self, layout: OnlineLayout, keys: Sequence[Key], since_us: int | None = None, until_us: int | None = None
    ) -> list[list[tuple[Any, ...]]]:
        """Return the records of each key as `OnlineSnapshot.read` does."""
        return self.store_of(layout.view).read(layout, keys, since_us, until_us)

    def read_prefix(
        self, layout: OnlineLayout, prefix: Key, since_us: int | None = None, until_us: int | None = None
    ) -> dict[Key, list[tuple[Any, ...]]]:
        """Return the records of all keys with a prefix as `OnlineSnapshot.read_prefix` does."""
        return self.store_of(layout.view).read_prefix(layout, prefix, since_us, until_us)

    def keys_besides(self, layout: OnlineLayout, given: pa.Table, interval: Interval) -> list[Key]:
        """Return other keys than the given ones that have tiles in an interval (see `OnlineStore.keys_besides`)."""
        return self.store_of(layout.view).keys_besides(layout, given, interval)

    def sample_keys(self, layout: OnlineLayout, count: int, seed: int, interval: Interval | None = None) -> list[Key]:
        """Return some of the stored keys (see `OnlineStore.sample_keys`)."""
        return self.store_of(layout.view).sample_keys(layout, count, seed, interval)

    def coverage(self, layout: OnlineLayout) -> IntervalSet:
        """Return what has been written online."""
        return self.store_of(layout.view).coverage(layout)

    def stream_write(
        self, layout: OnlineLayout, records: pa.Table, *, combine: Combine, commit: StreamCommit, refuse: Refuse
    ) -> StreamWrite:
        """Write what a stream brought and its checkpoints (see `OnlineStore.stream_write`)."""
        store = self.store_of(layout.view)
        return store.stream_write(layout, records, combine=combine, commit=commit, refuse=refuse)

    def checkpoints(self, layout: OnlineLayout) -> Mapping[str, StreamCheckpoint]:
        """Return how far each source partition was read."""
        return self.store_of(layout.view).checkpoints(layout)

    def seen_marks(self, layout: OnlineLayout, marks: Collection[bytes]) -> Set[bytes]:
        """Return those of the marks of events that are remembered."""
        return self.store_of(layout.view).seen_marks(layout, marks)

    def dead_letters(self, layout: OnlineLayout, partition: str, most: int) -> Sequence[DeadLetter]:
        """Return the oldest dead letters of a source partition that nobody has taken away."""
        return self.store_of(layout.view).dead_letters(layout, partition, most)

    def drop_dead_letters(self, layout: OnlineLayout, partition: str, up_to: int) -> None:
        """Forget the dead letters of a source partition up to a number, inclusive."""
        self.store_of(layout.view).drop_dead_letters(layout, partition, up_to)

    def tombstones(self, workspace: str, view: str) -> Tombstones | None:
        """Return the tombstones that writes of a view are checked against; None before the first."""
        return self.store_of(view).tombstones(workspace, view)

    def set_tombstones(self, workspace: str, view: str, tombstones: Tombstones) -> None:
        """Let these be the tombstones of a view where it lies (see `OnlineStore.set_tombstones`)."""
        self.store_of(view).set_tombstones(workspace, view, tombstones)

    def remove_deleted(self, layout: OnlineLayout, keys: pa.Table | None) -> OnlineRemoval:
        """Remove what the tombstones hide (see `OnlineStore.remove_deleted`)."""
        return self.store_of(layout.view).remove_deleted(layout, keys)

    def generations(self, workspace: str, view: str) -> tuple[int, ...]:
        """Return the generations of a view that something is covered of, in the store where it lies."""
        return self.store_of(view).generations(workspace, view)

    def drop(self, workspace: str, view: str, generation: int | None, *, epoch: int) -> None:
        """Remove a stored generation, or everything of a view, wherever it lies (see `OnlineStore.drop`)."""
        for store in self._where(view):
            store.drop(workspace, view, generation, epoch=epoch)

    def close(self) -> None:
        """Release files, connections and memory; the stores open them again when they are next used."""
        for store in list(self._opened.values()):
            store.close()
