"""First and last values, distinct or not, over many ranges of sorted tiles that hold lists. Used by `rollup`, `tiles`.

The values of all tiles stand one after the other in (key, time) order, so the last n of a window are a slice. The last
n distinct ones are the last n positions whose value does not come again before the window ends; a walk from the end
finds them, and a tree of maxima lets it pass a stretch without any in one step, so that a window of a million equal
values costs a few steps as well. Forwards is backwards in a mirror.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurekit_dagster.engine.columns import Int64Array, numbers, present, to_column
from featurekit_dagster.engine.keys import sort_packed
from featurekit_dagster.engine.rollup_answers import Slices, as_indices, list_array
from featurekit_dagster.engine.rollup_sums import Ranges

# So many found positions are held at once.
_BLOCK = 1 << 22


@dataclass(frozen=True, slots=True)
class Lists:
    """Lists of consecutive tiles: the values of tile `i` are `values[offsets[i]:offsets[i + 1]]`."""

    values: pa.Array
    offsets: Int64Array

    @classmethod
    def of(cls, column: pa.ChunkedArray | pa.Array, rows: Int64Array | None = None) -> Lists:
        """Return the chosen rows of a list column; NULL is an empty list."""
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks()
        if rows is not None:
            column = column.take(as_indices(rows))
        found = pa.chunked_array([pc.list_value_length(column)])
        there, lengths = present(found), numbers(found)
        offsets = np.zeros(len(column) + 1, np.int64)
        np.cumsum(lengths if there is None else np.where(there, lengths, 0), out=offsets[1:])
        return cls(column.flatten(), offsets)

    def array(self) -> pa.ListArray:
        """Return the lists as an array without NULLs."""
        return list_array(np.diff(self.offsets), self.values, None, pa.list_(self.values.type))

    def inside(self, part: Ranges) -> Ranges:
        """Return the positions of values that ranges of tiles hold."""
        return Ranges(self.offsets[part.low], self.offsets[part.high])


def newest(lists: Lists, part: Ranges, n: int) -> Slices:
    """Return the last `n` values of each range of tiles, in order of time."""
    held = lists.inside(part)
    lengths = np.minimum(held.lengths, n)
    return Slices(lists.values, held.high - lengths, lengths)


def oldest(lists: Lists, part: Ranges, n: int) -> Slices:
    """Return the first `n` values of each range of tiles, in order of time."""
    held = lists.inside(part)
    return Slices(lists.values, held.low, np.minimum(held.lengths, n))


def newest_distinct(lists: Lists, parts: Sequence[Ranges], n: int) -> list[Slices]:
    """Return the last `n` distinct values of each range of tiles, each at its newest place, in order of time.

    NaN equals NaN, and 0.0 equals -0.0. Ranges that end alike (their `high` is one array) share one walk.
    """
    codes = _equality_codes(lists.values)
    if codes is None:
        return [newest(lists, part, n) for part in parts]
    walker = _Walker(codes)
    answers: dict[int, Slices] = {}
    for ends in {id(part.high) for part in parts}:
        places = [place for place, part in enumerate(parts) if id(part.high) == ends]
        held = [lists.inside(parts[place]) for place in places]
        rows, stops, counts = walker.walk([one.low for one in held], held[0].high, n)
        for place, count in zip(places, counts, strict=True):
            answers[place] = Slices(lists.values, stops - count, count, rows)
    return [answers[place] for place in range(len(parts))]


def oldest_distinct(lists: Lists, parts: Sequence[Ranges], n: int) -> list[Slices]:
    """Return the first `n` distinct values of each range of tiles, each at its oldest place, in order of time.

    NaN equals NaN, and 0.0 equals -0.0.
    """
    codes = _equality_codes(lists.values)
    if codes is None:
        return [oldest(lists, part, n) for part in parts]
    walker, size = _Walker(codes[::-1]), len(codes)
    answers = []
    for part in parts:
        held = lists.inside(part)
        rows, stops, (count,) = walker.walk([size - held.high], size - held.low, n)
        # in the mirror the last found stands first, so that the list as a whole is turned as well
        answers.append(Slices(lists.values, len(rows) - stops, count, size - 1 - rows[::-1]))
    return answers


def distinct_of(lists: Lists, n: int, *, last: bool) -> pa.ListArray:
    """Return at most `n` distinct values of each tile: the last ones at their newest place, or the first at the oldest.

    Args:
        lists: All values of each tile, in order of time.
        n: How many are kept.
        last: Whether the last or the first ones are.
    """
    tiles = np.arange(len(lists.offsets))
    every = Ranges(tiles[:-1], tiles[1:])
    (found,) = newest_distinct(lists, [every], n) if last else oldest_distinct(lists, [every], n)
    return found.take(None, None, pa.list_(lists.values.type))


def _equality_codes(values: pa.Array) -> Int64Array | None:
    """Return integers that are equal where values are; None when all values differ."""
    if pa.types.is_floating(values.type):
        # adding zero makes -0.0 a 0.0; one NaN stands for all bit patterns of it
        plain = numbers(pa.chunked_array([values])) + 0
        plain[np.isnan(plain)] = np.nan
        values = to_column(plain, None, values.type).chunk(0)
    encoded = values.dictionary_encode()
    if len(encoded.dictionary) == len(values):
        return None
    return numbers(pa.chunked_array([encoded.indices])).astype(np.int64)


class _Walker:
    """Finds, from the end of a range backwards, the positions whose value does not come again in the range."""

    def __init__(self, codes: Int64Array) -> None:
        size = len(codes)
        width = np.dtype(np.int32) if size < 1 << 31 else np.dtype(np.int64)
        ordered, order = sort_packed(codes.astype(np.int64), None)
        order = np.arange(size) if order is None else order
        again = np.full(size, size, width)
        same = np.flatnonzero(ordered[1:] == ordered[:-1])
        again[order[same]] = order[same + 1]
        levels = [again]
        # level k holds the latest next occurrence of each aligned stretch of 2**k positions; a rest is never asked for
        while len(levels[-1]) > 1:
            below = levels[-1][: len(levels[-1]) // 2 * 2]
            levels.append(np.maximum(below[::2], below[1::2]))
        self._levels = np.cumsum([0, *(len(level) for level in levels[:-1])])
        self._tree = np.concatenate(levels)

    def walk(
        self, lows: Sequence[Int64Array], high: Int64Array, n: int
    ) -> tuple[Int64Array, Int64Array, list[Int64Array]]:
        """Return the last `n` positions of ranges `[low, high)` whose value does not come again before `high`.

        Args:
            lows: Left ends, several for each right end; only the widest range is walked.
            high: Right ends.
            n: How many positions at most.

        Returns:
            The positions, ascending within a range; where those of each range stop; and for each of `lows`, how many
            of them (the last ones) lie in the range.
        """
        rows, stops = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        counts: list[list[Int64Array]] = [[np.zeros(0, np.int64)] for _ in lows]
        step, done = max(_BLOCK // max(n, 1), 1), 0
        for start in range(0, len(high), step):
            part = slice(start, start + step)
            found = self._walk_block(np.minimum.reduce([low[part] for low in lows]), high[part], n)
            kept = found[:, ::-1].ravel()
            rows.append(kept[kept >= 0])
            stops.append(done + np.cumsum((found >= 0).sum(axis=1)))
            done += len(rows[-1])
            for number, low in zip(counts, lows, strict=True):
                number.append((found >= low[part, None]).sum(axis=1))
        return np.concatenate(rows), np.concatenate(stops), [np.concatenate(number) for number in counts]

    def _walk_block(self, low: Int64Array, high: Int64Array, n: int) -> Int64Array:
        """Return the found positions, one row per range, newest first, -1 where there are fewer."""
        found = np.full((len(low), n), -1, np.int64)
        count = np.zeros(len(low), np.int64)
        level = np.zeros(len(low), np.int64)
        at = high.copy()
        alive = np.flatnonzero(at > low)
        while len(alive):
            place, depth, end = at[alive], level[alive], high[alive]
            absent = self._tree[self._levels[depth] + (place >> depth) - 1] < end
            hit = ~absent & (depth == 0)
            hits = alive[hit]
            found[hits, count[hits]] = place[hit] - 1
            count[hits] += 1
            # a stretch without any is passed, one with some is looked at in halves, a position found is left behind
            place -= np.where(absent | hit, np.left_shift(1, depth), 0)
            wider = absent & ((place >> depth) & 1 == 0)
            at[alive] = place
            level[alive] = np.minimum(depth + np.where(wider, 1, np.where(absent | hit, 0, -1)), len(self._levels) - 1)
            alive = alive[(place > low[alive]) & (count[alive] < n)]
        return found
