"""One online store in front of several: each view's records lie where its declaration says.

A view that is declared no more may lie in any of them, so what is asked about it by name alone is asked of all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.stores.online import Key, OnlineLayout, OnlineRemoval, OnlineSnapshot, OnlineStore, OnlineWrite

if TYPE_CHECKING:
    import pyarrow as pa

    from featurekit_dagster.stores.stream_state import (
        Combine,
        DeadLetter,
        Refuse,
        StreamCheckpoint,
        StreamCommit,
        StreamWrite,
    )
    from featurekit_dagster.stores.tombstones import Tombstones


class RoutedOnlineStore:
    """Hands every call to the store of its view (see `OnlineStore`).

    Args:
        usual: Opens the store of views that are not named.
        others: View to what opens its store; equal openers share one store.
    """

    def __init__(self, usual: Callable[[], OnlineStore], others: Mapping[str, Callable[[], OnlineStore]]) -> None:
        self._usual, self._openers = usual, dict(others)
        self._opened: dict[Callable[[], OnlineStore], OnlineStore] = {}

    def store_of(self, view: str) -> OnlineStore:
        """Return the store of a view, opened if it was not."""
        return self._open(self._openers.get(view, self._usual))

    def _open(self, opener: Callable[[], OnlineStore]) -> OnlineStore:
        store = self._opened.get(opener)
        return store if store is not None else self._opened.setdefault(opener, opener())

    def _where(self, view: str) -> list[OnlineStore]:
        """Return the stores in which a view may lie, its own first."""
        openers = dict.fromkeys([self._openers.get(view, self._usual), self._usual, *self._openers.values()])
        return [self._open(opener) for opener in openers]

    def write(
        self,
        layout: OnlineLayout,
        records: pa.Table,
        *,
        covered: IntervalSet,
        epoch: int,
        replace: Interval | None = None,
        keep_stream: bool = False,
    ) -> OnlineWrite:
        """Upsert batch records and then set the coverage marker (see `OnlineStore.write`)."""
        store = self.store_of(layout.view)
        return store.write(layout, records, covered=covered, epoch=epoch, replace=replace, keep_stream=keep_stream)

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
