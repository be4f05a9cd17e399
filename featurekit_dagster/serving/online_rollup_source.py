"""The roll-up of one key's packed tiles written out as one Python function per view.

Looping over windows, columns and features costs more than the sums themselves when there are a few dozen tiles. So the
loops are unrolled once per view, for keys with one or two chunks, as most have. Only numbers and names made here enter
the source. Whatever is unusual (NULLs, NaN, infinities of both signs) is left to the other ways of
`online_rollup_fixed`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from math import fsum
from typing import Any

from featurekit_dagster.serving.online_rollup_windows import (
    CompiledWindow,
    float_max,
    float_min,
    float_sum,
    last,
    merge_moments,
)
from featurekit_dagster.stores.online import TILES_PER_CHUNK, PackedTiles

LEAD = struct.Struct("<QQQ")
"""Words 0 to 2 of a value: which tiles are there, which are from batch, which columns have NULLs (up to 64 columns)."""

ShortWay = Callable[[PackedTiles, int], Any]
Unpack = Callable[[bytes, int], tuple[Any, ...]]


def write_short_way(
    windows: Sequence[CompiledWindow],
    defaults: Sequence[Any],
    names: Sequence[str],
    unpackers: Sequence[Unpack],
    chunks: int,
) -> ShortWay:
    """Return a function that rolls up exactly so many chunks.

    It takes the packed chunks and the edge's tile, and returns the slots, None if no tile lies in a window, or
    NotImplemented where only the general way will do.

    Args:
        windows: What to compute.
        defaults: Per slot, its value over an empty window.
        names: Names of the tile columns (`<kind>_<column>`), in stored order.
        unpackers: By number of tiles, what unpacks a chunk's columns.
        chunks: How many chunks there will be.
    """
    scope: dict[str, Any] = {
        "unpack_lead": LEAD.unpack_from,
        "unpackers": unpackers,
        "fsum": fsum,
        "merge_moments": merge_moments,
    }
    lines = ["def roll_up(packed, edge):", f"    {_targets(chunks)} = packed"]
    lines += [line for chunk in range(chunks) for line in _unpacking(chunk)]
    bounds = sorted({bound for window in windows for bound in _bounds(window)})
    places = {bound: place for place, bound in enumerate(bounds)}
    lines += [line for bound, place in places.items() for chunk in range(chunks) for line in _rank(bound, place, chunk)]
    empty = " and ".join(f"not ({_length(window, places, chunks)})" for window in windows)
    lines += [f"    if {empty}:", "        return None", "    try:"]
    for number, window in enumerate(windows):
        lines.append(f"        if {_length(window, places, chunks)}:")
        lines += [" " * 12 + line for line in _window(number, window, places, names, chunks, scope)]
        lines.append("        else:")
        positions = [position for position, *_ in window.outputs] + [position for position, *_ in window.means]
        lines += [f"            f{position} = {defaults[position]!r}" for position in positions]
    lines += ["    except (OverflowError, ValueError):", "        return NotImplemented"]
    lines.append(f"    return [{', '.join(f'f{position}' for position in range(len(defaults)))}]")
    exec("\n".join(lines), scope)
    written: ShortWay = scope["roll_up"]
    return written


def _targets(chunks: int) -> str:
    return ", ".join(f"(chunk{chunk}, value{chunk})" for chunk in range(chunks)) + ","


def _unpacking(chunk: int) -> list[str]:
    """Return the lines that unpack a chunk."""
    return [
        f"    present{chunk}, _, nulls = unpack_lead(value{chunk})",
        "    if nulls:",
        "        return NotImplemented",
        f"    rows{chunk} = present{chunk}.bit_count()",
        f"    cells{chunk} = unpackers[rows{chunk}](value{chunk}, {LEAD.size})",
        f"    start{chunk} = chunk{chunk} * {TILES_PER_CHUNK}",
        f"    edge{chunk} = edge - start{chunk}",
    ]


def _bounds(window: CompiledWindow) -> tuple[str, str]:
    """Return the expressions of a window's first tile and the first one after it, relative to a chunk's first tile."""
    end = f"edge{{chunk}} + {window.end}"
    if window.since is None:
        return f"edge{{chunk}} + {window.begin}", end
    return f"min({window.since} - start{{chunk}}, {end})", end


def _rank(bound: str, place: int, chunk: int) -> list[str]:
    """Return the lines that find how many of a chunk's tiles come before a bound."""
    rank, inside = f"r{place}_{chunk}", f"(present{chunk} & ((1 << slot) - 1)).bit_count()"
    return [
        f"    slot = {bound.format(chunk=chunk)}",
        f"    {rank} = 0 if slot <= 0 else rows{chunk} if slot >= {TILES_PER_CHUNK} else {inside}",
    ]


def _length(window: CompiledWindow, places: dict[str, int], chunks: int) -> str:
    """Return the expression of the number of tiles in a window."""
    low, high = (places[bound] for bound in _bounds(window))
    return " + ".join(f"r{high}_{chunk} - r{low}_{chunk}" for chunk in range(chunks))


def _cells(column: int, window: CompiledWindow, places: dict[str, int], chunks: int) -> str:
    """Return the expression of a column's cells in a window."""
    low, high = (places[bound] for bound in _bounds(window))
    parts = []
    for chunk in range(chunks):
        offset = f"rows{chunk} * {column} + " if column else ""
        parts.append(f"cells{chunk}[{offset}r{low}_{chunk} : {offset}r{high}_{chunk}]")
    return " + ".join(parts)


def _window(
    number: int,
    window: CompiledWindow,
    places: dict[str, int],
    names: Sequence[str],
    chunks: int,
    scope: dict[str, Any],
) -> Iterable[str]:
    """Yield the lines that compute one window's slots."""
    columns = [column for column, _ in window.measures] + [column for group, _ in window.joints for column in group]
    for column in dict.fromkeys(columns):
        yield f"c{column} = {_cells(column, window, places, chunks)}"
    finite = set()
    for place, (column, reduce) in enumerate(window.measures):
        if reduce is float_sum:
            yield f"v{place} = fsum(c{column})"
            finite.add(names[column].removeprefix("sum_"))
            yield f"if v{place} != v{place}:"
            yield "    return NotImplemented"
    for place, (column, reduce) in enumerate(window.measures):
        if reduce in (float_min, float_max):
            function = "min" if reduce is float_min else "max"
            # A tile's sum is NaN where its greatest value is, and with no sum at hand the cells are summed to see.
            if names[column].split("_", 1)[1] not in finite:
                yield f"nan = sum(c{column})"
                yield "if nan != nan:"
                yield "    return NotImplemented"
            yield f"v{place} = {function}(c{column})"
        elif reduce is last:
            yield f"v{place} = c{column}[-1]"
        elif reduce is not float_sum:
            yield f"v{place} = {'sum' if reduce is sum else 'min' if reduce is min else 'max'}(c{column})"
    for place, (group, _) in enumerate(window.joints, start=len(window.measures)):
        yield f"v{place} = merge_moments({', '.join(f'c{column}' for column in group)})"
    yield from _features(number, window, scope)


def _features(number: int, window: CompiledWindow, scope: dict[str, Any]) -> Iterable[str]:
    """Yield the lines that turn what was computed into slots."""
    for position, place, finish in window.outputs:
        if finish is None:
            yield f"f{position} = v{place}"
        else:
            scope[f"finish{number}_{position}"] = finish
            yield f"f{position} = finish{number}_{position}(v{place})"
    for position, total, count, finish in window.means:
        scope[f"finish{number}_{position}"] = finish
        value = f"v{total}" if finish is float else f"finish{number}_{position}(v{total})"
        yield f"f{position} = {value} / v{count} if v{count} else None"
