"""New tiles and stored ones of the same chunks become one: the general way over rows, and the short way over words.

Both answer alike; the short way fits nearly every materialization (batch tiles, no NULLs, and one tile per value where
cells have a variable width) and moves stored words and heaps as they are. `packing.py` has the value format.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from featurekit_dagster.stores.packing import (
    WORD_BYTES,
    Block,
    BoolArray,
    IntArray,
    ValueCodec,
    WordArray,
    stored_words,
)

_ONE = np.uint64(1)


def merge_tiles(codec: ValueCodec, olds: Sequence[bytes], new: Block) -> tuple[list[bytes], int]:
    """Return packed chunks holding the tiles of `olds` and of `new`, and how many of `new` lost.

    Where both have a tile of one slot, `wins` decides: the times are equal, so batch beats stream, else the new wins.

    Args:
        codec: Codec of the values.
        olds: Stored chunks, one for each value of `new`, without what may follow a value.
        new: Tiles to add; every value of it has one.
    """
    merged = insert_tiles(codec, olds, new)
    if merged is not None:
        return merged, 0
    block, refused = merge_blocks(codec.unpack(olds), new)
    return codec.pack(block), refused


def merge_blocks(old: Block, new: Block) -> tuple[Block, int]:
    """Return the tiles of both, value by value, and how many of `new` lost against a stored batch tile."""
    slots = np.concatenate((old.owners * 64 + old.leads, new.owners * 64 + new.leads))
    order = np.argsort(slots, kind="stable")
    sorted_slots = slots[order]
    first_of_two = np.flatnonzero(sorted_slots[1:] == sorted_slots[:-1])
    from_batch = np.concatenate((old.from_batch, new.from_batch))
    new_loses = from_batch[order[first_of_two]] & ~from_batch[order[first_of_two + 1]]
    keep = np.ones(len(order), bool)
    keep[first_of_two + new_loses] = False
    return concatenated(old, new).take(order[keep], sorted_slots[keep] // 64), int(np.count_nonzero(new_loses))


def concatenated(first: Block, second: Block) -> Block:
    """Return the rows of both, those of the first first, in no order of values."""
    nulls = [
        None if a is None and b is None else np.concatenate((_or_clear(a, first), _or_clear(b, second)))
        for a, b in zip(first.nulls, second.nulls, strict=True)
    ]
    return Block(
        np.concatenate((first.owners, second.owners)),
        np.concatenate((first.leads, second.leads)),
        np.concatenate((first.from_batch, second.from_batch)),
        [np.concatenate(pair) for pair in zip(first.columns, second.columns, strict=True)],
        nulls,
    )


def insert_tiles(codec: ValueCodec, olds: Sequence[bytes], new: Block) -> list[bytes] | None:
    """Return `olds` with the tiles of `new` put in or replaced, or None where only the general way will do.

    Stored words keep their order: a tile that was there is overwritten in place, another adds one word to each column.
    """
    if not new.from_batch.all() or any(null is not None for null in new.nulls):
        return None
    if not codec.is_fixed and len(new.owners) > len(olds):
        return None
    present = np.frombuffer(b"".join([old[:WORD_BYTES] for old in olds]), np.uint64)
    held = np.bitwise_count(present).astype(np.int64)
    sizes = codec.lead_words + len(codec.fields) * held
    words = _words_of(codec, olds, sizes)
    if words is None:
        return None
    begins = np.cumsum(sizes) - sizes
    bits = _ONE << new.leads.astype(np.uint64)
    before = np.bitwise_count(present[new.owners] & (bits - _ONE)).astype(np.int64)
    is_added = (present[new.owners] & bits) == 0
    added = np.bincount(new.owners, is_added, len(olds)).astype(np.int64)
    earlier = np.cumsum(is_added) - is_added
    first_rows = np.searchsorted(new.owners, np.arange(len(olds)))
    ranks = before + earlier - earlier[first_rows][new.owners]
    width = len(codec.fields)
    result_begins = begins + width * (np.cumsum(added) - added)
    out = np.empty(len(words) + width * int(added.sum()), np.uint64)
    at = (result_begins + codec.lead_words)[new.owners] + ranks
    step = (held + added)[new.owners]
    places = [at + column * step for column in range(width)]
    out[_old_places(len(out), places, is_added)] = words
    for place, cells in zip(places, new.columns, strict=True):
        out[place] = stored_words(cells)
    _mark(out, result_begins, bits, first_rows)
    ends = ((result_begins + sizes + width * added) * WORD_BYTES).tolist()
    raw = out.tobytes()
    values = [raw[a:b] for a, b in pairwise([0, *ends])]
    if codec.is_fixed:
        return values
    return [value + heap for value, heap in zip(values, _heaps(codec, olds, held, before, is_added, new), strict=True)]


def _words_of(codec: ValueCodec, olds: Sequence[bytes], sizes: IntArray) -> WordArray | None:
    """Return the words of all values without their heaps; None where one has NULLs."""
    heads = olds
    if not codec.is_fixed:
        heads = [old[:size] for old, size in zip(olds, (sizes * WORD_BYTES).tolist(), strict=True)]
    words = np.frombuffer(b"".join(heads), np.uint64)
    begins = np.cumsum(sizes) - sizes
    # NULLs bring words of their own, which are cut off with a heap but not without one
    if len(words) != sizes.sum() or any(words[begins + word].any() for word in codec.null_mask_words):
        return None
    return words


def _heaps(
    codec: ValueCodec, olds: Sequence[bytes], held: IntArray, ranks: IntArray, is_added: BoolArray, new: Block
) -> Iterator[bytes]:
    """Yield the heap of each value after its one new tile was put in at its rank, or in the place of another."""
    cells = [(column, new.columns[column].tolist()) for column in codec.variable_columns]
    tiles = zip(olds, held.tolist(), ranks.tolist(), is_added.tolist(), strict=True)
    for number, (old, rows, rank, adds) in enumerate(tiles):
        layout = codec.struct_of_rows(rows)
        lengths = layout.unpack_from(old, codec.lead_bytes)
        at, parts = codec.lead_bytes + layout.size, []
        for column, added in cells:
            first = column * rows
            begin = at + sum(lengths[first : first + rank])
            rest = begin if adds else begin + lengths[first + rank]
            end = at + sum(lengths[first : first + rows])
            parts += [old[at:begin], added[number], old[rest:end]]
            at = end
        heap = b"".join(parts)
        yield heap + bytes(-len(heap) % WORD_BYTES)


def _old_places(size: int, places: list[IntArray], is_added: BoolArray) -> BoolArray:
    """Return which words of the result are stored words."""
    old = np.ones(size, bool)
    for place in places:
        old[place[is_added]] = False
    return old


def _mark(out: WordArray, begins: IntArray, bits: WordArray, first_rows: IntArray) -> None:
    """Set the bits of the new tiles as present and as from batch."""
    added: np.ndarray[Any, np.dtype[np.uint64]] = np.bitwise_or.reduceat(bits, first_rows)
    out[begins] |= added
    out[begins + 1] |= added


def _or_clear(null: BoolArray | None, block: Block) -> BoolArray:
    return np.zeros(len(block.owners), bool) if null is None else null
