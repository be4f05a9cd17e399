"""Windows of every secondary key that has a tile in them. Used by `rollup`.

Tiles are sorted by (join keys, secondary key, time), so the secondary keys of a join key are neighbours. Each distinct
(join keys, edge) is expanded to them, the same searches find each one's windows, and empty ones are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurekit_dagster.arrow_types import arrow_type
from featurekit_dagster.domain.aggregation import AggregateFeature, distinct_spans, secondary_keys_name
from featurekit_dagster.domain.windows import Span
from featurekit_dagster.engine.columns import Int64Array, numbers
from featurekit_dagster.engine.keys import TimePacking, first_of_each, sort_packed
from featurekit_dagster.engine.rollup_answers import Slices, as_indices, expand, list_array, spread
from featurekit_dagster.engine.rollup_kernel import Kernel
from featurekit_dagster.engine.rollup_search import Placed, Questions, find_bounds
from featurekit_dagster.engine.rollup_sums import Ranges

# So many pairs of a question and a secondary key are looked at at once.
_BLOCK = 1 << 22


@dataclass(frozen=True, slots=True)
class _Groups:
    """The distinct (join keys, secondary key) of the tiles, in ascending order, and the tiles in (group, time) order.

    Args:
        names: The distinct secondary keys, ascending, NULL last.
        join_codes: Join key code of each group.
        name_places: Place of each group's secondary key in `names`.
        codes: What stands for each group in `packed`.
        starts: Position of the first tile of each group, and one more: the number of tiles.
        rows: Row number of each tile; None for all rows as they are.
        packed: Packed (group, time) of each tile.
        packing: How they are packed.
    """

    names: pa.Array
    join_codes: Int64Array
    name_places: Int64Array
    codes: Int64Array
    starts: Int64Array
    rows: Int64Array | None
    packed: Int64Array
    packing: TimePacking


def roll_up_secondary(
    tiles: pa.Table, asked: Questions, features: Sequence[AggregateFeature], secondary_key: str
) -> pa.Table:
    """Return the lists of secondary keys and the features parallel to them, as `roll_up` describes them.

    A secondary key that is NULL is a key as well and comes last (ours; the seed pages are silent, and leaving it out
    would lose events).

    Raises:
        AggregationOverflow: A window's sum of integers does not fit the feature's type.
        UnsupportedKeyType: A key column cannot be compared.
    """
    groups = _grouped(tiles, asked, secondary_key)
    spans = distinct_spans(features)
    key_type = tiles.schema.field(secondary_key).type
    types = [pa.list_(key_type)] * len(spans) + [pa.list_(arrow_type(feature.dtype)) for feature in features]
    names = [*(secondary_keys_name(secondary_key, span) for span in spans), *(feature.name for feature in features)]
    blocks = [_block(groups, tiles, asked, features, part) for part in _parts(groups, asked)]
    columns = [
        _handed_out(pa.chunked_array([block[place] for block in blocks], dtype), asked)
        for place, dtype in enumerate(types)
    ]
    return pa.table(columns, schema=pa.schema(list(zip(names, types, strict=True))))


def _handed_out(lists: pa.ChunkedArray, asked: Questions) -> pa.ChunkedArray:
    """Return for each probe the list of its question."""
    if asked.known is None and len(asked.target) == len(lists) and bool((np.diff(asked.target) == 1).all()):
        return lists
    whole = lists.combine_chunks()
    offsets = numbers(pa.chunked_array([whole.offsets])).astype(np.int64)
    answers = Slices(whole.values, offsets[:-1], np.diff(offsets))
    return spread(answers, asked.target, asked.known, lists.type)


def _grouped(tiles: pa.Table, asked: Questions, secondary_key: str) -> _Groups:
    """Sort the tiles in reach by (join keys, secondary key, time)."""
    column = tiles.column(secondary_key)
    if asked.rows is not None:
        column = column.take(as_indices(asked.rows))
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    order = numbers(pa.chunked_array([pc.array_sort_indices(encoded.dictionary)])).astype(np.int64)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    size = max(len(order), 1)
    pairs = asked.row_codes * size + rank[numbers(pa.chunked_array([encoded.indices]))]
    members: Int64Array | None = None
    try:
        packing = TimePacking.fit(asked.starts, asked.count * size)
    except OverflowError:
        members, pairs = np.unique(pairs, return_inverse=True)
        packing = TimePacking.fit(asked.starts, len(members))
    packed, rows = sort_packed(packing.pack_rows(pairs, asked.starts), asked.rows)
    codes = packed >> packing.bits
    starts = np.flatnonzero(first_of_each(codes))
    codes = codes[starts]
    pairs = codes if members is None else members[codes]
    return _Groups(
        names=encoded.dictionary.take(as_indices(order)),
        join_codes=pairs // size,
        name_places=pairs % size,
        codes=codes,
        starts=np.append(starts, len(packed)),
        rows=rows,
        packed=packed,
        packing=packing,
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """Consecutive questions, and for each of them its groups `[first, first + count)`."""

    questions: slice
    first: Int64Array
    count: Int64Array


def _parts(groups: _Groups, asked: Questions) -> Iterator[_Part]:
    """Yield the questions in stretches of a bounded number of groups; a single one may have more."""
    first = np.searchsorted(groups.join_codes, asked.codes)
    count = np.searchsorted(groups.join_codes, asked.codes, side="right") - first
    ends = np.cumsum(count)
    start = 0
    while start < len(first):
        before = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, before + _BLOCK, side="right")), start + 1)
        yield _Part(slice(start, stop), first[start:stop], count[start:stop])
        start = stop


def _block(
    groups: _Groups, tiles: pa.Table, asked: Questions, features: Sequence[AggregateFeature], part: _Part
) -> list[pa.ListArray]:
    """Return the lists of the part's questions: keys per span, then features."""
    held = np.repeat(np.arange(len(part.first)), part.count)
    group = expand(part.first, part.count)
    bounds = {span: (low[part.questions], high[part.questions]) for span, (low, high) in asked.bounds.items()}
    held, group = _with_tiles(groups, bounds, held, group)
    moved: dict[int, Int64Array] = {}
    for bound in (bound for pair in asked.bounds.values() for bound in pair):
        moved.setdefault(id(bound), bound[part.questions][held])
    ranges = find_bounds(
        groups.packed,
        groups.packing,
        groups.codes[group],
        {span: (moved[id(low)], moved[id(high)]) for span, (low, high) in asked.bounds.items()},
    )
    used = slice(int(groups.starts[part.first].min()), int(groups.starts[part.first + part.count].max()))
    return _lists(groups, tiles, features, _Expanded(held, group, ranges, len(part.first), used))


def _with_tiles(
    groups: _Groups, bounds: Mapping[Span, tuple[Int64Array, Int64Array]], held: Int64Array, group: Int64Array
) -> tuple[Int64Array, Int64Array]:
    """Return the pairs of question and group that have a tile between the first window's begin and the last one's end.

    Of many secondary keys few are seen at one edge, so that all further searches are for few.
    """
    first = np.minimum.reduce([low for low, _ in bounds.values()])[held]
    last = np.maximum.reduce([high for _, high in bounds.values()])[held]
    codes = groups.codes[group]
    low = np.searchsorted(groups.packed, groups.packing.pack_edges(codes, first))
    high = np.searchsorted(groups.packed, groups.packing.pack_edges(codes, last))
    seen = high > low
    return held[seen], group[seen]


@dataclass(frozen=True, slots=True)
class _Expanded:
    """Pairs of a question and a group of its key, questions ascending, groups ascending within each.

    Args:
        held: The question of each pair.
        group: The group of each pair.
        ranges: Windows of each pair.
        questions: How many questions there are.
        used: Positions of all tiles of the questions' keys.
    """

    held: Int64Array
    group: Int64Array
    ranges: Mapping[Span, Ranges]
    questions: int
    used: slice


def _lists(
    groups: _Groups, tiles: pa.Table, features: Sequence[AggregateFeature], pairs: _Expanded
) -> list[pa.ListArray]:
    """Return per span the keys that have a tile in it, and per feature an answer for each of them."""
    seen = {span: np.flatnonzero(part.high > part.low) for span, part in pairs.ranges.items()}
    inside = {
        span: Ranges(part.low[seen[span]] - pairs.used.start, part.high[seen[span]] - pairs.used.start)
        for span, part in pairs.ranges.items()
    }
    lengths = {span: np.bincount(pairs.held[kept], minlength=pairs.questions) for span, kept in seen.items()}
    rows = np.arange(tiles.num_rows) if groups.rows is None else groups.rows
    codes = groups.packed[pairs.used] >> groups.packing.bits
    kernel = Kernel(Placed(rows[pairs.used], codes, inside), tiles, features)
    columns = []
    for span in distinct_spans(features):
        names = groups.names.take(as_indices(groups.name_places[pairs.group[seen[span]]]))
        columns.append(list_array(lengths[span], names, None, pa.list_(names.type)))
    for feature in features:
        (answers,), dtype = kernel.answers(feature), arrow_type(feature.dtype)
        columns.append(list_array(lengths[feature.spans[0]], answers.take(None, None, dtype), None, pa.list_(dtype)))
    return columns
