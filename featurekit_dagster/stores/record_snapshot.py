"""One layout in one environment, and consistent reads of it. `record_store.py` says what lies where."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from featurekit_dagster.errors import OnlineLayoutMismatch, Unsupported
from featurekit_dagster.intervals import Interval, IntervalSet, from_us
from featurekit_dagster.stores.key_codec import SLOT_BIT, KeyCodec, chunk_of, chunk_suffix
from featurekit_dagster.stores.lmdb_environment import LmdbEnvironment
from featurekit_dagster.stores.online import TILES_PER_CHUNK, Key, OnlineLayout, PackedTiles
from featurekit_dagster.stores.packing import ValueCodec
from featurekit_dagster.stores.record_stream import StreamKeys, decode_progress
from featurekit_dagster.stores.record_writer import Generation
from featurekit_dagster.stores.stream_state import StreamProgress

if TYPE_CHECKING:
    import lmdb

_FORMAT = b"featurekit online 2"
_MARKER_HEAD = struct.Struct("<8sQ")
_SPAN = struct.Struct("<qq")
# Behind the spans of what is covered: before when records were trimmed away, if any were.
_TRIMMED = struct.Struct("<q")
# Up to this many chunks are fetched one by one; of more, a cursor visits only those that exist.
_CHUNKS_BY_GET = 4


@dataclass(frozen=True, slots=True)
class _Marker:
    """What the coverage marker says."""

    epoch: int
    coverage: IntervalSet
    spans: tuple[tuple[int, int], ...]  # without what was trimmed away
    trimmed_us: int | None = None


_NOT_COVERED = _Marker(0, IntervalSet(), ())
_FACTS = b"\x00\x00"
_NO_GENERATION = (1 << 16) - 1


def _signature(layout: OnlineLayout) -> bytes:
    """Return what must stay the same for stored records to be readable."""
    fields = [(field.name, str(field.dtype)) for field in (*layout.key_fields, *layout.value_fields)]
    shape = (len(layout.key_fields), layout.index_length, layout.tile_us, fields)
    return hashlib.sha256(_FORMAT + repr(shape).encode()).digest()[:8]


def marked_generations(transaction: lmdb.Transaction[bytes]) -> tuple[int, ...]:
    """Return the generations with a coverage marker, ascending; whatever else is known of them is skipped."""
    cursor, found, following = transaction.cursor(), [], 1
    while cursor.set_range(_FACTS + struct.pack(">H", following)) and cursor.key().startswith(_FACTS):
        (number,) = struct.unpack_from(">H", cursor.key(), len(_FACTS))
        if number == _NO_GENERATION:
            break
        if transaction.get(_FACTS + struct.pack(">H", number) + b"marker") is not None:
            found.append(number & ~(1 << SLOT_BIT))
        following = number + 1
    return tuple(sorted(set(found)))


def _split_marker(raw: bytes) -> tuple[tuple[tuple[int, int], ...], int | None]:
    """Return what a stored marker says is covered, and before when records were trimmed away."""
    body = raw[_MARKER_HEAD.size :]
    end = len(body) // _SPAN.size * _SPAN.size
    trimmed_us = _TRIMMED.unpack(body[end:])[0] if len(body) > end else None
    return tuple(_SPAN.iter_unpack(body[:end])), trimmed_us


class StoredView:
    """One layout in one environment, with everything compiled that reads and writes of it need."""

    def __init__(self, layout: OnlineLayout, environment: LmdbEnvironment) -> None:
        self.layout, self.environment = layout, environment
        self.keys = KeyCodec(layout)
        self.values = ValueCodec(layout.value_fields, is_tiled=layout.tile_us is not None)
        self.chunk_us = TILES_PER_CHUNK * (layout.tile_us or 1)
        self.signature = _signature(layout)
        meta = _FACTS + self.keys.generation_prefix
        self.layout_key, self.marker_key, self.fence_key = (meta + name for name in (b"layout", b"marker", b"fence"))
        self.stream = StreamKeys(meta)
        self.encode = self.keys.encode
        self.decoded_progress: tuple[bytes | None, StreamProgress] = (None, StreamProgress())
        self.decoded_marker: tuple[bytes, _Marker] = (b"", _NOT_COVERED)
        self._suffixes: tuple[int, int, list[tuple[int, bytes]]] = (0, 0, [(0, chunk_suffix(0))])

    def chunk_suffixes(self, first: int, last: int) -> list[tuple[int, bytes]]:
        """Return chunk numbers and key endings of some chunks; reads at one edge ask for the same ones."""
        known_first, known_last, suffixes = self._suffixes
        if first != known_first or last != known_last:
            suffixes = [(chunk, chunk_suffix(chunk)) for chunk in range(first, last + 1)]
            self._suffixes = (first, last, suffixes)
        return suffixes

    def generation(self) -> Generation:
        """Return what the writer works on."""
        return Generation(
            layout=self.layout,
            environment=self.environment,
            keys=self.keys,
            values=self.values,
            layout_key=self.layout_key,
            marker_key=self.marker_key,
            fence_key=self.fence_key,
            signature=self.signature,
        )

    def decode_marker(self, raw: bytes | None, transaction: lmdb.Transaction[bytes]) -> _Marker:
        """Return what a stored coverage marker says, and remember it with its bytes in `decoded_marker`."""
        if raw is None:
            if transaction.get(self.layout_key, self.signature) != self.signature:
                raise OnlineLayoutMismatch(view=self.layout.view, generation=self.layout.generation)
            return _NOT_COVERED
        signature, epoch = _MARKER_HEAD.unpack_from(raw)
        if signature != self.signature:
            raise OnlineLayoutMismatch(view=self.layout.view, generation=self.layout.generation)
        spans, trimmed_us = _split_marker(raw)
        covered = IntervalSet(Interval(from_us(a), from_us(b)) for a, b in spans)
        if trimmed_us is not None:
            spans = tuple((max(a, trimmed_us), b) for a, b in spans if b > trimmed_us)
        marker = _Marker(epoch, covered, spans, trimmed_us)
        self.decoded_marker = (raw, marker)
        return marker

    def put_marker(self, transaction: lmdb.Transaction[bytes], covered: IntervalSet, epoch: int) -> None:
        """Put the coverage marker; what was trimmed away before is not there again because of it."""
        former = transaction.get(self.marker_key)
        trimmed_us = None if former is None else _split_marker(former)[1]
        spans = b"".join(_SPAN.pack(interval.start_us, interval.end_us) for interval in covered)
        rest = b"" if trimmed_us is None else _TRIMMED.pack(trimmed_us)
        transaction.put(self.marker_key, _MARKER_HEAD.pack(self.signature, epoch) + spans + rest)

    def mark_trimmed(self, transaction: lmdb.Transaction[bytes], since_us: int, epoch: int) -> None:
        """Put into the coverage marker that records before a time are trimmed away; a stream may have had none yet."""
        raw = transaction.get(self.marker_key) or _MARKER_HEAD.pack(self.signature, epoch)
        spans, trimmed_us = _split_marker(raw)
        end = _MARKER_HEAD.size + len(spans) * _SPAN.size
        newest = since_us if trimmed_us is None else max(since_us, trimmed_us)
        transaction.put(self.marker_key, raw[:end] + _TRIMMED.pack(newest))


class RecordSnapshot:
    """One read transaction on one generation (see `OnlineSnapshot`)."""

    __slots__ = ("_marker", "_transaction", "_view")

    def __init__(self, view: StoredView) -> None:
        self._view = view

    def __enter__(self) -> RecordSnapshot:
        view = self._view
        transaction = self._transaction = view.environment.begin_read()
        if transaction is None:
            self._marker = _NOT_COVERED
            return self
        raw = transaction.get(view.marker_key)
        known, self._marker = view.decoded_marker
        if raw != known:
            try:
                self._marker = view.decode_marker(raw, transaction)
            except BaseException:
                self.__exit__(None, None, None)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._transaction is not None:
            self._view.environment.end_read(self._transaction)
            self._transaction = None

    @property
    def coverage(self) -> IntervalSet:
        """What has been written online, as of this snapshot."""
        return self._marker.coverage

    @property
    def coverage_us(self) -> tuple[tuple[int, int], ...]:
        """What of it was not trimmed away, as ascending, disjoint `[start, end)` pairs in microseconds."""
        return self._marker.spans

    @property
    def trimmed_us(self) -> int | None:
        """Before when records were trimmed away, in microseconds since 1970; None where none were."""
        return self._marker.trimmed_us

    @property
    def epoch(self) -> int:
        """The lease epoch of the newest write; 0 before the first."""
        return self._marker.epoch

    @property
    def stream(self) -> StreamProgress:
        """What the view has seen of its stream, as of this snapshot."""
        view, transaction = self._view, self._transaction
        raw = None if transaction is None else transaction.get(view.stream.progress)
        known, progress = view.decoded_progress
        if raw != known:
            progress = decode_progress(raw)
            view.decoded_progress = (raw, progress)
        return progress

    def packed_tiles(self, key: Key, since_us: int, until_us: int) -> PackedTiles:
        """Return a key's stored chunks that may hold tiles starting in `[since_us, until_us)`, and perhaps others."""
        view, transaction = self._view, self._transaction
        base = view.encode(key)
        if transaction is None:
            return []
        first, last = since_us // view.chunk_us, (until_us - 1) // view.chunk_us
        if last - first >= _CHUNKS_BY_GET:
            return list(self._scan_key(transaction, base, first, last))
        get, found = transaction.get, []
        for chunk, suffix in view.chunk_suffixes(first, last):
            value = get(base + suffix)
            if value is not None:
                found.append((chunk, value))
        return found

    @staticmethod
    def _scan_key(
        transaction: lmdb.Transaction[bytes], base: bytes, first: int, last: int
    ) -> Iterator[tuple[int, bytes]]:
        cursor, end = transaction.cursor(), base + chunk_suffix(last)
        if cursor.set_range(base + chunk_suffix(first)):
            for stored, value in cursor:
                if stored > end:
                    return
                yield chunk_of(stored), value

    def packed_tiles_many(self, keys: Sequence[Key], since_us: int, until_us: int) -> list[PackedTiles]:
        """Return `packed_tiles` of each key, in order."""
        view, transaction = self._view, self._transaction
        first, last = since_us // view.chunk_us, (until_us - 1) // view.chunk_us
        if transaction is None or last - first >= _CHUNKS_BY_GET:
            return [self.packed_tiles(key, since_us, until_us) for key in keys]
        bases, get = list(map(view.encode, keys)), transaction.get
        if first == last:
            suffix = chunk_suffix(first)
            values = [get(base + suffix) for base in bases]
            return [[] if value is None else [(first, value)] for value in values]
        suffixes = view.chunk_suffixes(first, last)
        found = [[(chunk, get(base + suffix)) for chunk, suffix in suffixes] for base in bases]
        return [[(chunk, value) for chunk, value in tiles if value is not None] for tiles in found]

    def packed_tiles_prefix(self, prefix: Key, since_us: int, until_us: int) -> dict[Key, PackedTiles]:
        """Return `packed_tiles` of every stored key that begins with `prefix`, by whole key in key order."""
        view = self._view
        first, last = since_us // view.chunk_us, (until_us - 1) // view.chunk_us
        found: dict[bytes, PackedTiles] = {}
        for stored, value in self._scan_prefix(prefix):
            chunk = chunk_of(stored)
            if first <= chunk <= last:
                found.setdefault(stored[: -len(chunk_suffix(0))], []).append((chunk, value))
        return {view.keys.decode(base): tiles for base, tiles in found.items()}

    def _begin_of(self, prefix: Key) -> bytes:
        """Return what the stored form of all keys with a prefix begins with."""
        view = self._view
        if not view.layout.is_wildcard and len(prefix) < len(view.layout.key_fields):
            raise Unsupported(
                f"{view.layout.view}: a read by some of the join keys needs an online_serving_index that lists them"
            )
        return view.keys.encode_prefix(prefix)

    def _scan_prefix(self, prefix: Key) -> Iterator[tuple[bytes, bytes]]:
        begin, transaction = self._begin_of(prefix), self._transaction
        if transaction is None:
            return
        cursor = transaction.cursor()
        if cursor.set_range(begin):
            for stored, value in cursor:
                if not stored.startswith(begin):
                    return
                yield stored, value

    def packed_row(self, key: Key) -> bytes | None:
        """Return the packed record of a key of a latest-value view, or None."""
        view, transaction = self._view, self._transaction
        base = view.keys.encode(key)
        return transaction.get(base) if transaction is not None else None

    def read(
        self, keys: Sequence[Key], since_us: int | None = None, until_us: int | None = None
    ) -> list[list[tuple[Any, ...]]]:
        """Return the records of each key, in order (see `OnlineSnapshot.read`)."""
        view = self._view
        if view.layout.tile_us is None:
            rows = map(self.packed_row, keys)
            return [[] if row is None else view.values.rows(row) for row in rows]
        since, until = whole_bounds(since_us, until_us)
        return [self._tiles(self.packed_tiles(key, since, until), since, until) for key in keys]

    def read_prefix(
        self, prefix: Key, since_us: int | None = None, until_us: int | None = None
    ) -> dict[Key, list[tuple[Any, ...]]]:
        """Return the records of every stored key that begins with `prefix`, by whole key in key order."""
        view = self._view
        if view.layout.tile_us is None:
            decode, rows = view.keys.decode, view.values.rows
            return {decode(stored): rows(value) for stored, value in self._scan_prefix(prefix)}
        since, until = whole_bounds(since_us, until_us)
        packed = self.packed_tiles_prefix(prefix, since, until)
        found = {key: self._tiles(tiles, since, until) for key, tiles in packed.items()}
        return {key: tiles for key, tiles in found.items() if tiles}

    def _tiles(self, packed: PackedTiles, since_us: int, until_us: int) -> list[tuple[Any, ...]]:
        """Return the tiles of packed chunks that start in `[since_us, until_us)`."""
        tile_us = self._view.layout.tile_us or 1
        rows = self._view.values.rows
        return [
            (start, *cells)
            for chunk, value in packed
            for slot, *cells in rows(value)
            if since_us <= (start := (chunk * TILES_PER_CHUNK + slot) * tile_us) < until_us
        ]


def whole_bounds(since_us: int | None, until_us: int | None) -> tuple[int, int]:
    """Return bounds that are never None: all of a stored chunk number's range."""
    return -(1 << 62) if since_us is None else since_us, 1 << 62 if until_us is None else until_us
