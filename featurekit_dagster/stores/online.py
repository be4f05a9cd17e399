"""What an online store is: its layout, its contract, and which of two records of one moment wins.

Serving reads through `OnlineStore` and never names an implementation; materialization writes through it. Next to
`lmdb.py` (the embedded implementation) and `packing.py` (what a stored value looks like).
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from featurekit_dagster.domain.schema import Field
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.stores.online_upkeep import OnlineUpkeep
from featurekit_dagster.stores.stream_state import (
    Combine,
    DeadLetter,
    Refuse,
    StreamCheckpoint,
    StreamCommit,
    StreamProgress,
    StreamWrite,
)

if TYPE_CHECKING:
    from featurekit_dagster.stores.tombstones import Tombstones

ANCHOR_TIME = "_anchor_time"
"""Time column of tile records: the tile's start."""

TIMESTAMP = "_timestamp"
"""Time column of latest-value records: the row's own timestamp."""

TILES_PER_CHUNK = 64
"""Tiles of one stored value; chunk `n` begins `64 * n` tiles after the Unix epoch."""

Key = tuple[Hashable, ...]
"""The values of `OnlineLayout.key_fields`, in that order; NULL is None, timestamps are datetimes."""

PackedTiles = list[tuple[int, bytes]]
"""One key's stored values as (chunk number, packed tiles), ascending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineLayout:
    """How one generation of a feature view is stored online.

    Args:
        workspace: Name of the workspace.
        view: Name of the feature view.
        generation: Stored generation, from 1.
        key_fields: Join keys, those of `online_serving_index` first.
        index_length: How many leading `key_fields` a read must give; less than all of them for a wildcard view.
        tile_us: Tile size in microseconds, or None for a latest-value view (one record per key).
        value_fields: Partial columns of a tile, or the features of a row.
        dropped: Names of those that are declared no more; records may come without them.
        is_stream: Whether a stream writes beside batch jobs.
        slot: Which of the generation's two slots, 0 or 1; see `OnlineUpkeep`.
    """

    workspace: str
    view: str
    generation: int = 1
    key_fields: tuple[Field, ...]
    index_length: int
    tile_us: int | None
    value_fields: tuple[Field, ...]
    dropped: tuple[str, ...] = ()
    is_stream: bool = False
    slot: int = 0

    @property
    def is_wildcard(self) -> bool:
        """Whether a read may leave out the last join keys."""
        return self.index_length < len(self.key_fields)

    @property
    def time_column(self) -> str:
        """Name of the time column of the records: `_anchor_time` for tiles, else `_timestamp`."""
        return TIMESTAMP if self.tile_us is None else ANCHOR_TIME


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineWrite:
    """What one write did.

    Args:
        rows_written: Tiles or rows that are now stored.
        rows_skipped: Given tiles or rows that lost against a newer one, of this write or stored before.
        rows_deleted: Given tiles or rows that were refused, because their key was deleted after them.
    """

    rows_written: int
    rows_skipped: int
    rows_deleted: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineRemoval:
    """What was removed of deleted keys.

    Args:
        keys: Keys of which something was removed.
        rows: Tiles or rows that were.
    """

    keys: int
    rows: int


def wins(new: tuple[int, int], old: tuple[int, int]) -> bool:
    """Tell whether a new record replaces an old one of the same key (and tile).

    Each is (timestamp in microseconds, 1 for batch or 0 for stream). The newer timestamp wins; at equal timestamps
    batch beats stream; at equal timestamp and source the new one wins, so that a repeated write is harmless.

    >>> wins((5, 0), (4, 1)), wins((5, 0), (5, 1)), wins((5, 1), (5, 1))
    (True, False, True)

    Source: the seeds' rule for online upserts (newer timestamp first, batch before stream).
    """
    return new >= old


class OnlineSnapshot(Protocol):
    """One consistent view of a stored generation: its coverage and its records agree.

    Valid inside its `with` block and in the thread that opened it.
    """

    @property
    def coverage(self) -> IntervalSet:
        """What has been written online, as of this snapshot."""
        ...

    @property
    def coverage_us(self) -> tuple[tuple[int, int], ...]:
        """What of it was not trimmed away, as ascending, disjoint `[start, end)` pairs in microseconds."""
        ...

    @property
    def trimmed_us(self) -> int | None:
        """Before when records were trimmed away, in microseconds since 1970; None where none were."""
        ...

    @property
    def epoch(self) -> int:
        """The lease epoch of the newest write; 0 before the first."""
        ...

    @property
    def stream(self) -> StreamProgress:
        """What the view has seen of its stream, as of this snapshot."""
        ...

    def packed_tiles(self, key: Key, since_us: int, until_us: int) -> PackedTiles:
        """Return a key's stored chunks that may hold tiles starting in `[since_us, until_us)`, and perhaps others."""
        ...

    def packed_tiles_many(self, keys: Sequence[Key], since_us: int, until_us: int) -> list[PackedTiles]:
        """Return `packed_tiles` of each key, in order."""
        ...

    def packed_tiles_prefix(self, prefix: Key, since_us: int, until_us: int) -> dict[Key, PackedTiles]:
        """Return `packed_tiles` of every stored key that begins with `prefix`, by whole key in key order."""
        ...

    def read(
        self, keys: Sequence[Key], since_us: int | None = None, until_us: int | None = None
    ) -> list[list[tuple[Any, ...]]]:
        """Return the records of each key, in order.

        Tiles are `(start_us, *values)`, ascending, those with `since_us <= start_us < until_us`. A latest-value view
        has `[(timestamp_us, *values)]`, whatever the bounds, or `[]`.
        """
        ...

    def read_prefix(
        self, prefix: Key, since_us: int | None = None, until_us: int | None = None
    ) -> dict[Key, list[tuple[Any, ...]]]:
        """Return the records of every stored key that begins with `prefix`, by whole key in key order."""
        ...


class OnlineStore(OnlineUpkeep, Protocol):
    """Where models read features from: the newest tiles or the newest row of every key."""

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
        """Upsert batch records and then set the coverage marker.

        For every key its records change at once: a concurrent read sees all of them or none. The marker is written
        last, so an interrupted write leaves the interval uncovered and can be repeated.

        Args:
            layout: Layout of the generation; it must be the one of earlier writes.
            records: Columns `key_fields`, the time column and `value_fields`, in any order of columns and rows. Tiles
                begin on the grid of the tile size. Of rows with the same key (and tile) the newest wins, and of equal
                ones the later in the table.
            covered: The whole online coverage after this write.
            epoch: Lease epoch of the writer, stored beside the marker.
            replace: For tiles only: first forget every tile that starts in this interval, of the keys in `records`.
            keep_stream: Whether tiles that a stream has written are not forgotten so. A batch tile of the same key and
                start replaces them all the same.
            combine: Makes one tile of all records of a key whose times lie in it, in order of time, which need not be
                on the grid then. Without it the later one counts.

        Raises:
            OnlineRecordsMismatch: A column is missing, has another type, or a time is NULL or off the tile grid.
            OnlineTileOverflow: The integer sum of a combined tile does not fit 64 bits.
            OnlineLayoutMismatch: The generation was written with another layout.
            KeyTooLong: A wildcard view got a key of more than 400 encoded bytes.
            LeaseLost: Somebody has begun to write under a higher epoch; what was written of this write stays
                uncovered.
        """
        ...

    def snapshot(self, layout: OnlineLayout) -> AbstractContextManager[OnlineSnapshot]:
        """Return a context that gives coverage and records of one moment."""
        ...

    def read(
        self,
        layout: OnlineLayout,
        keys: Sequence[Key],
        since_us: int | None = None,
        until_us: int | None = None,
    ) -> list[list[tuple[Any, ...]]]:
        """Return the records of each key as `OnlineSnapshot.read` does."""
        ...

    def read_prefix(
        self, layout: OnlineLayout, prefix: Key, since_us: int | None = None, until_us: int | None = None
    ) -> dict[Key, list[tuple[Any, ...]]]:
        """Return the records of all keys with a prefix as `OnlineSnapshot.read_prefix` does."""
        ...

    def keys_besides(self, layout: OnlineLayout, given: pa.Table, interval: Interval) -> list[Key]:
        """Return the stored keys other than the given ones that have a tile which starts in an interval; in no order.

        It looks at every stored key of the generation.

        Args:
            layout: Layout of a generation of tiles.
            given: Columns of the join keys, others are ignored; rows may repeat.
            interval: Where tiles start.
        """
        ...

    def sample_keys(self, layout: OnlineLayout, count: int, seed: int, interval: Interval | None = None) -> list[Key]:
        """Return some of the stored keys, chosen as if by chance; the same ones for the same keys and seed.

        Of some thousand records all keys are looked at, and `KeySample` makes the choice; of more those that
        `KeyProbe` finds, which may then be fewer than asked for. So it takes about as long however large the store is.

        Args:
            layout: Layout of a generation.
            count: How many; all of them where there are no more.
            seed: Another one makes another choice.
            interval: Of tiles, only keys with one that starts in it; None for all, and for rows.
        """
        ...

    def coverage(self, layout: OnlineLayout) -> IntervalSet:
        """Return what has been written online."""
        ...

    def stream_write(
        self,
        layout: OnlineLayout,
        records: pa.Table,
        *,
        combine: Combine,
        commit: StreamCommit,
        refuse: Refuse,
    ) -> StreamWrite:
        """Write what a stream brought, and all of its state, in one transaction.

        Tiles are combined with the stored tile of their key and start, unless that is a batch job's: then they change
        nothing. Rows of a latest-value view replace a stored row that does not win.

        Args:
            layout: Layout of the generation; it must be the one of earlier writes.
            records: Columns as for `write`, each row a tile of its own; of one key and start in the order of the
                stream. It may be empty.
            combine: Makes one tile of several.
            commit: What changes beside the records.
            refuse: Makes a dead letter of a row whose tile cannot hold it.

        Raises:
            OnlineRecordsMismatch: As in `write`.
            OnlineLayoutMismatch: As in `write`.
            KeyTooLong: As in `write`.
            DuplicateEvents: Another loop has counted one of the events meanwhile; nothing was written.
            LeaseLost: Somebody has written one of the partitions under a higher epoch; nothing was written.
        """
        ...

    def checkpoints(self, layout: OnlineLayout) -> Mapping[str, StreamCheckpoint]:
        """Return how far each source partition was read."""
        ...

    def seen_marks(self, layout: OnlineLayout, marks: Collection[bytes]) -> Set[bytes]:
        """Return those of the marks of events that are remembered."""
        ...

    def dead_letters(self, layout: OnlineLayout, partition: str, most: int) -> Sequence[DeadLetter]:
        """Return the oldest dead letters of a source partition that nobody has taken away."""
        ...

    def drop_dead_letters(self, layout: OnlineLayout, partition: str, up_to: int) -> None:
        """Forget the dead letters of a source partition up to a number, inclusive."""
        ...

    def tombstones(self, workspace: str, view: str) -> Tombstones | None:
        """Return the tombstones that the store checks writes of a view against; None before the first."""
        ...

    def set_tombstones(self, workspace: str, view: str, tombstones: Tombstones) -> None:
        """Let these be the tombstones of all generations of a view, unless the store has those of a later version.

        From the end of this call on `write` and `stream_write` leave out every record that they hide: of a key with a
        tombstone, one whose time is before the cutoff. They are looked up in the transaction that writes the records,
        so a write that is under way is judged by them, too. `drop` of everything forgets them and a new store has none:
        whoever begins to write a view sets them first where their version differs.
        """
        ...

    def remove_deleted(self, layout: OnlineLayout, keys: pa.Table | None) -> OnlineRemoval:
        """Remove the stored records of a generation that the store's tombstones hide.

        Of each key its records go at once. Together with `set_tombstones`, which comes first, no read finds them from
        the end of this call on, so reads need no tombstones.

        Args:
            layout: Layout of the generation; one that was never written, or was with another layout, holds nothing.
            keys: Columns of the join keys, others are ignored; None for every stored key, each of which is looked at.
        """
        ...

    def generations(self, workspace: str, view: str) -> tuple[int, ...]:
        """Return the generations of a view that something is covered of, ascending."""
        ...

    def drop(self, workspace: str, view: str, generation: int | None, *, epoch: int) -> None:
        """Remove a stored generation, or everything of a view; what is not there is left at that.

        What is covered is forgotten first, so a reader never meets a part of the records. What an interrupted call has
        left is removed by the next one.

        Args:
            workspace: Name of the workspace.
            view: Name of the view, which need not be declared any more.
            generation: The generation; None for everything.
            epoch: Lease epoch of the caller; of a single generation it is kept, so that whoever was overtaken writes
                nothing more into it.

        Raises:
            LeaseLost: Somebody has begun to write the generation under a higher epoch.
        """
        ...

    def close(self) -> None:
        """Release files and memory; the store opens them again when it is next used."""
        ...
