"""Reads of an online store on a server: as few round trips as possible, and each join key as of one moment.

Coverage is read first and records after it, so a reader never believes more than what is stored. Only embedded stores
hold one moment for all keys of a snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from featurekit_dagster.stores.key_codec import CHUNK_BYTES, chunk_of, chunk_suffix
from featurekit_dagster.stores.online import Key, PackedTiles
from featurekit_dagster.stores.record_snapshot import RecordSnapshot, whole_bounds

if TYPE_CHECKING:
    from featurekit_dagster.stores.remote_environment import RemoteTransaction

# Up to this many chunks of a key are asked for by name; of more, the server looks which exist.
_CHUNKS_BY_NAME = 64
_KEYS_AT_ONCE = 2_000
_RECORDS_AT_ONCE = 1_000


class RemoteSnapshot(RecordSnapshot):
    """Reads of one generation (see `OnlineSnapshot`)."""

    __slots__ = ()

    @property
    def _remote(self) -> RemoteTransaction:
        return cast("RemoteTransaction", self._transaction)

    def packed_tiles(self, key: Key, since_us: int, until_us: int) -> PackedTiles:
        """Return a key's stored chunks that may hold tiles starting in `[since_us, until_us)`, and perhaps others."""
        return self.packed_tiles_many([key], since_us, until_us)[0]

    def packed_tiles_many(self, keys: Sequence[Key], since_us: int, until_us: int) -> list[PackedTiles]:
        """Return `packed_tiles` of each key, in order."""
        view, table = self._view, self._remote.table
        bases = list(map(view.encode, keys))
        first, last = since_us // view.chunk_us, (until_us - 1) // view.chunk_us
        if last < first:
            return [[] for _ in bases]
        if last - first >= _CHUNKS_BY_NAME:
            return [self._chunks(base, first, last) for base in bases]
        suffixes = view.chunk_suffixes(first, last)
        found: list[PackedTiles] = []
        step = max(1, _KEYS_AT_ONCE // len(suffixes))
        for begin in range(0, len(bases), step):
            some = bases[begin : begin + step]
            values = iter(table.get([base + suffix for base in some for _, suffix in suffixes]))
            for _ in some:
                found.append([(n, value) for n, _ in suffixes if (value := next(values)[1]) is not None])
        return found

    def _chunks(self, base: bytes, first: int, last: int) -> PackedTiles:
        """Return the chunks of one key between two numbers, inclusive, as of one moment."""
        end = base + chunk_suffix(last) + b"\x00"
        return [(chunk_of(key), value) for key, value in self._whole(base + chunk_suffix(first), end)]

    def _whole(self, begin: bytes, end: bytes | None) -> list[tuple[bytes, bytes]]:
        """Return all records between two keys as of one moment."""
        most = _RECORDS_AT_ONCE
        while True:
            page = self._remote.table.scan(begin, end, most)
            if len(page) < most:
                return [(key, value) for key, (_, value) in page if value is not None]
            most = max(most, len(page)) * 4

    def _scan_prefix(self, prefix: Key) -> Iterator[tuple[bytes, bytes]]:
        begin, view = self._begin_of(prefix), self._view
        end, suffix = _after(begin), 0 if view.layout.tile_us is None else CHUNK_BYTES
        most, at = _RECORDS_AT_ONCE, begin
        while True:
            page = self._remote.table.scan(at, end, most)
            if len(page) < most:
                yield from ((key, value) for key, (_, value) in page if value is not None)
                return
            # the last key may go on in the next page: it is asked for again, so that it is of one moment
            last = page[-1][0][: len(page[-1][0]) - suffix] if suffix else page[-1][0]
            whole = [(key, value) for key, (_, value) in page if not key.startswith(last)]
            most = most if whole else max(most, len(page)) * 4
            yield from ((key, value) for key, value in whole if value is not None)
            at = last

    def read(
        self, keys: Sequence[Key], since_us: int | None = None, until_us: int | None = None
    ) -> list[list[tuple[Any, ...]]]:
        """Return the records of each key, in order (see `OnlineSnapshot.read`)."""
        view = self._view
        if view.layout.tile_us is not None:
            since, until = whole_bounds(since_us, until_us)
            packed = self.packed_tiles_many(keys, since, until)
            return [self._tiles(tiles, since, until) for tiles in packed]
        values = [value for _, value in self._remote.table.get(list(map(view.keys.encode, keys)))]
        return [[] if value is None else view.values.rows(value) for value in values]


def _after(prefix: bytes) -> bytes | None:
    """Return the first key after all that begin so; None if there is none."""
    bare = prefix.rstrip(b"\xff")
    return bare[:-1] + bytes([bare[-1] + 1]) if bare else None
