"""Roll-ups and joins over more rows than memory holds, on all cores.

Rows are read once, piece by piece, and get the exact code of their join key; rows of keys that no probe has are dropped
at once. What fits the budget stays in memory, and threads share the keys; what does not is cut by code into files, and
buckets of them are computed one after another. Neighbours: `keys` makes the codes, `rollup` computes, `memory` knows
the budget.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurekit_dagster.domain.aggregation import AggregateFeature
from featurekit_dagster.engine.columns import Int64Array, numbers, rows_at, to_column
from featurekit_dagster.engine.keys import ABSENT, KeyEncoder
from featurekit_dagster.engine.memory import Limits
from featurekit_dagster.engine.rollup import roll_up
from featurekit_dagster.sql_text import quoted

Rows: TypeAlias = pa.Table | pa.RecordBatchReader
Compute = Callable[[pa.Table, pa.Table, tuple[str, ...]], pa.Table]

_CODE = "_key_code"
_ASKED = "featurekit_asked"
# With more probes, looking up every row costs DuckDB about what fewer rows save.
_FEW_PROBES = 1 << 18
# Below this many rows in memory, codes and pieces cost more than they save; below the second, threads do.
_SMALL_ROWS = 1 << 20
_THREADED_ROWS = 1 << 22
_PIECE_ROWS = 1 << 20
# A bucket is made of whole files, so there are many more files than buckets.
_FILES = 128
_BLOCK_ROWS = 1 << 20
# Working space of the kernel: so many bytes per row beyond the row itself, and per question.
_WORK_BYTES_PER_ROW = 128
_WORK_BYTES_PER_PROBE = 96
_MOST_KEPT = 0.75
_MOST_THREADS = 64


def roll_up_in_buckets(
    tiles: Rows,
    probes: pa.Table,
    *,
    keys: tuple[str, ...],
    tile_us: int,
    features: Sequence[AggregateFeature],
    secondary_key: str | None = None,
    limits: Limits | None = None,
) -> pa.Table:
    """Return what `roll_up` returns, within a memory budget and on all cores.

    Args:
        tiles: As `roll_up` takes them; a reader (`relation.to_arrow_reader(...)`) is never in memory as a whole.
        probes: As `roll_up` takes them.
        keys: Join keys.
        tile_us: Tile size in microseconds.
        features: What to compute.
        secondary_key: A further key column of the tiles, or None.
        limits: Memory and threads; those of the machine when None.

    Raises:
        AggregationOverflow: A window's sum of integers does not fit the feature's type.
        InvalidMemoryBudget: `FEATUREKIT_MEMORY` is no size.
        UnsupportedKeyType: A key column cannot be compared.
    """

    def compute(rows: pa.Table, asked: pa.Table, names: tuple[str, ...]) -> pa.Table:
        return roll_up(rows, asked, keys=names, tile_us=tile_us, features=features, secondary_key=secondary_key)

    return in_buckets(tiles, probes, keys=keys, compute=compute, limits=limits)


def in_buckets(
    rows: Rows, probes: pa.Table, *, keys: tuple[str, ...], compute: Compute, limits: Limits | None = None
) -> pa.Table:
    """Return what `compute(rows, probes, keys)` returns, computed for some of the keys at a time.

    The budget holds for rows, working space and answers together, but the rows of one key are never cut.

    Args:
        rows: Columns `keys` and others. The rows of a key reach `compute` in the order they come in here.
        probes: Columns `keys` and others.
        keys: Join keys; NULL is a key and equals NULL.
        compute: Takes rows, probes and the names of their key columns, which are not always `keys`; returns one row
            per probe, in the probes' order. It may be given rows of keys that no probe has. It runs in several threads.
        limits: Memory and threads; those of the machine when None.

    Raises:
        UnsupportedKeyType: A key column cannot be compared.
    """
    limits = limits or Limits.of_machine()
    pieces = _pieces(rows)
    first = next(pieces)
    if first.num_rows < (_THREADED_ROWS if isinstance(rows, pa.Table) else _SMALL_ROWS):
        return compute(first, probes, keys)
    encoder = KeyEncoder(probes, first.schema, keys, expected_rows=first.num_rows)
    asked = _with_codes(probes, keys, encoder.probes)
    room = limits.budget_bytes - asked.nbytes - _WORK_BYTES_PER_PROBE * asked.num_rows
    with _Rows(room, encoder.count) as held:
        held.add(_coded(first, encoder, keys))
        del first
        for piece in pieces:
            held.add(_coded(piece, encoder, keys))
        return _computed(held.cut(encoder.probes, limits.threads), asked, encoder.probes, compute, limits.threads)


def asked_only(con: duckdb.DuckDBPyConnection, relation: str, probes: pa.Table, *, keys: tuple[str, ...]) -> str:
    """Return a query of the rows whose keys some probe has; of all rows where the probes are too many for that to pay.

    DuckDB then skips what it can before it makes Arrow rows. The rows come in no order, so this is for rows of which
    there is one per key and time, as stored tiles are.

    Args:
        con: Must stay open while the query runs, and takes one such query at a time.
        relation: A name or a parenthesised query with the columns `keys`.
        probes: Columns `keys`.
        keys: Join keys; NULL is a key and equals NULL.

    Raises:
        UnsupportedKeyType: A key column cannot be compared.
    """
    if not keys or probes.num_rows > _FEW_PROBES:
        return f"FROM {relation}"
    schema = con.sql(f"FROM {relation} LIMIT 0").to_arrow_table().schema
    codes = KeyEncoder(probes, schema, keys, expected_rows=0)
    first = np.zeros(codes.count, np.int64)
    first[codes.probes] = np.arange(probes.num_rows)
    con.register(_ASKED, rows_at(probes.select(list(keys)), first if probes.num_rows else first[:0]))
    same = " AND ".join(f"r.{quoted(key)} IS NOT DISTINCT FROM a.{quoted(key)}" for key in keys)
    return f"SELECT r.* FROM {relation} r SEMI JOIN {_ASKED} a ON {same}"


def _pieces(rows: Rows) -> Iterator[pa.Table]:
    """Yield rows in pieces of about a million, at least one piece; a table, which is in memory anyway, in one."""
    if isinstance(rows, pa.Table):
        yield rows
        return
    batches: list[pa.RecordBatch] = []
    count, is_first = 0, True
    for batch in rows:
        batches.append(batch)
        count += batch.num_rows
        if count >= _PIECE_ROWS:
            table, batches, count, is_first = pa.Table.from_batches(batches), [], 0, False
            yield table
            del table
    if batches or is_first:
        yield pa.Table.from_batches(batches, rows.schema)


def _with_codes(table: pa.Table, keys: tuple[str, ...], codes: Int64Array) -> pa.Table:
    """Return a table with the codes of its keys instead of the keys."""
    return table.drop_columns(list(keys)).append_column(_CODE, to_column(codes, None, pa.int64()))


def _coded(piece: pa.Table, encoder: KeyEncoder, keys: tuple[str, ...]) -> pa.Table:
    """Return a piece with codes instead of keys; where many of its rows are of keys without a probe, without these."""
    codes = encoder.codes(piece)
    coded, known = _with_codes(piece, keys, codes), codes != ABSENT
    if np.count_nonzero(known) > _MOST_KEPT * len(codes):
        return coded
    return coded.take(to_column(np.flatnonzero(known), None, pa.int64())).combine_chunks()


@dataclass(frozen=True, slots=True)
class _Cut:
    """Rows in buckets.

    Args:
        bucket_of_code: The bucket of each key code.
        loads: Gives the rows of each bucket, perhaps with rows of other codes.
        crowded: Which buckets are so large that none is to be computed beside them.
    """

    bucket_of_code: Int64Array
    loads: Sequence[Callable[[], pa.Table]]
    crowded: Sequence[bool]


class _Rows:
    """Coded rows: in memory as long as they have room there with the working space they need, else in files."""

    def __init__(self, room: int, code_count: int) -> None:
        self._room, self._code_count = room, code_count
        self._held: list[pa.Table] = []
        self._bytes = 0
        self._files: _Files | None = None

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._held.clear()
        if self._files is not None:
            self._files.remove()

    def add(self, piece: pa.Table) -> None:
        """Take in some rows, in their order."""
        if self._files is None:
            self._held.append(piece)
            self._bytes += _needed(piece.nbytes, piece.num_rows)
            if self._bytes <= self._room or len(self._held) == 1:
                return
            self._files = _Files(piece.schema)
            self._held.reverse()
            while self._held:
                self._files.write(self._held.pop())
            return
        self._files.write(piece)

    def cut(self, probe_codes: Int64Array, threads: int) -> _Cut:
        """Return buckets of about equal size, at least one per thread where that pays."""
        if self._files is not None:
            return self._files.cut(self._code_count, self._room // threads)
        rows = pa.concat_tables(self._held)
        self._held.clear()
        threads = 1 if rows.num_rows < _THREADED_ROWS else min(threads, _MOST_THREADS)
        weights = np.bincount(probe_codes, minlength=self._code_count)
        for chunk in rows.column(_CODE).chunks if threads > 1 else ():
            weights += np.bincount(numbers(pa.chunked_array([chunk])) + 1, minlength=self._code_count + 1)[1:]
        done = np.cumsum(weights) - weights
        bucket_of_code = done * threads // max(int(weights.sum()), 1)
        return _Cut(bucket_of_code, [lambda: rows] * threads, [False] * threads)


def _needed(row_bytes: int, row_count: int) -> int:
    """Return how much memory rows need while they are computed."""
    return row_bytes + _WORK_BYTES_PER_ROW * row_count


class _Files:
    """Rows in temporary files, one per remainder of their code."""

    def __init__(self, schema: pa.Schema) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="featurekit-")
        self._paths = [str(Path(self._folder.name, str(number))) for number in range(_FILES)]
        self._writers = [pa.ipc.new_stream(path, schema) for path in self._paths]
        self._sizes = np.zeros(_FILES, np.int64)

    def write(self, piece: pa.Table) -> None:
        """Append rows to their files, without those of no probe."""
        codes = numbers(piece.column(_CODE))
        numbered = np.where(codes == ABSENT, _FILES, codes % _FILES).astype(np.uint8)
        order = np.argsort(numbered, kind="stable")
        counts = np.bincount(numbered, minlength=_FILES + 1)[:_FILES]
        ends = np.cumsum(counts)
        rows = piece.take(to_column(order[: ends[-1]], None, pa.int64()))
        for number in np.flatnonzero(counts):
            part = rows.slice(int(ends[number] - counts[number]), int(counts[number])).combine_chunks()
            self._writers[number].write_table(part)
            self._sizes[number] += _needed(part.nbytes, part.num_rows)

    def cut(self, code_count: int, share: int) -> _Cut:
        """Return buckets of whole files, each at most `share` bytes unless it is a single file."""
        for writer in self._writers:
            writer.close()
        groups: list[list[int]] = []
        filled = 0
        for number, size in enumerate(self._sizes.tolist()):
            if not groups or filled + size > share:
                groups.append([])
                filled = 0
            groups[-1].append(number)
            filled += size
        bucket_of_file = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        loads = [partial(self._load, group) for group in groups]
        crowded = [int(self._sizes[group].sum()) > share for group in groups]
        return _Cut(bucket_of_file[np.arange(code_count) % _FILES], loads, crowded)

    def _load(self, group: Sequence[int]) -> pa.Table:
        tables = []
        for number in group:
            with pa.OSFile(self._paths[number]) as file, pa.ipc.open_stream(file) as reader:
                tables.append(reader.read_all())
            Path(self._paths[number]).unlink()
        return pa.concat_tables(tables)

    def remove(self) -> None:
        """Close and delete the files."""
        for writer in self._writers:
            writer.close()
        self._folder.cleanup()


def _computed(cut: _Cut, asked: pa.Table, codes: Int64Array, compute: Compute, threads: int) -> pa.Table:
    """Return the answers of all probes, in their order."""
    bucket_of_probe = cut.bucket_of_code[codes].astype(np.uint8)
    order = np.argsort(bucket_of_probe, kind="stable")
    ends = np.cumsum(np.bincount(bucket_of_probe, minlength=len(cut.loads)))

    def answer(bucket: int) -> pa.Table:
        start = int(ends[bucket - 1]) if bucket else 0
        probes = asked.take(to_column(order[start : ends[bucket]], None, pa.int64()))
        return compute(cut.loads[bucket](), probes, (_CODE,))

    buckets = range(len(cut.loads))
    if len(buckets) == 1:
        return answer(0)
    answers: dict[int, pa.Table] = {bucket: answer(bucket) for bucket in buckets if cut.crowded[bucket]}
    others = [bucket for bucket in buckets if bucket not in answers]
    with ThreadPoolExecutor(threads, thread_name_prefix="featurekit-bucket") as pool:
        answers.update(zip(others, pool.map(answer, others), strict=True))
    return _in_order([answers[bucket] for bucket in buckets], bucket_of_probe)


def _in_order(answers: Sequence[pa.Table], bucket_of_probe: npt.NDArray[np.uint8]) -> pa.Table:
    """Return the answers of all probes from those of each bucket; in blocks, for texts and lists have 32-bit ends."""
    done = np.zeros(len(answers), np.int64)
    blocks = [answers[0].slice(0, 0)]
    for start in range(0, len(bucket_of_probe), _BLOCK_ROWS):
        buckets = bucket_of_probe[start : start + _BLOCK_ROWS]
        counts = np.bincount(buckets, minlength=len(answers))
        parts = [table.slice(int(at), int(n)) for table, at, n in zip(answers, done, counts, strict=True)]
        place = np.empty(len(buckets), np.int64)
        place[np.argsort(buckets, kind="stable")] = np.arange(len(buckets))
        blocks.append(pa.concat_tables(parts).combine_chunks().take(to_column(place, None, pa.int64())))
        done += counts
    return pa.concat_tables(blocks)
