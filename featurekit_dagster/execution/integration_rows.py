"""What must hold of a transformation, whatever it computes: three laws, checked on the rows that it makes of events.

Rows of an interval depend on the interval alone, not on what else is computed with it; rows before a time do not
change when later events come; and a stream's rows, made of a few events at a time, are those of the batch side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import cycle
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from featurekit_dagster.arrow_types import TIMESTAMP
from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.engine.local import compute_rows
from featurekit_dagster.engine.sameness import is_same
from featurekit_dagster.execution.integration_view import ViewUnderTest
from featurekit_dagster.execution.stream_events import EventProcessor
from featurekit_dagster.intervals import Interval, to_us
from featurekit_dagster.streams.reading import ONLY_PARTITION, StreamBatch
from featurekit_dagster.streams.watermark import Watermark

_MOST_CELLS, _MOST_CUTS = 24, 4
_PIECES = (1, 2, 5, 1, 20, 100)


@dataclass(frozen=True, slots=True)
class RowDifference:
    """How two sets of rows differ; names and counts only.

    Args:
        only_first: Rows that only the first has.
        only_second: Rows that only the second has.
        columns: Columns in which rows of one key and time differ.
        changed: How many such rows there are.
    """

    only_first: int
    only_second: int
    columns: tuple[str, ...]
    changed: int

    def __bool__(self) -> bool:
        return bool(self.only_first or self.only_second or self.changed)

    def in_words(self, first: str, second: str) -> str:
        """Return what differs; `first` and `second` say where rows are."""
        said = [f"{self.changed:,} rows have another {', '.join(self.columns)}"] if self.changed else []
        said += [f"{self.only_first:,} rows are only there {first}"] if self.only_first else []
        said += [f"{self.only_second:,} rows are only there {second}"] if self.only_second else []
        return "; ".join(said)


def row_difference(view: FeatureView, one: pa.Table, other: pa.Table) -> RowDifference:
    """Compare two sets of rows of a transformation, in whatever order; floats may differ by rounding.

    Args:
        view: The view that they are of.
        one: Columns `view.columns`.
        other: The same.
    """
    left, right = _counted(one), _counted(other)
    place = [one.column_names.index(name) for name in (*view.key_names, view.timestamp_field)]
    by_place: dict[str, list[tuple[Any, ...]]] = {}
    for row in _rest(left, right, one):
        by_place.setdefault(repr([row[at] for at in place]), []).append(row)
    only_second = changed = 0
    columns: dict[str, None] = {}
    for row in _rest(right, left, other):
        alike = by_place.get(repr([row[at] for at in place]))
        if not alike:
            only_second += 1
            continue
        differing = [at for at, (a, b) in enumerate(zip(alike.pop(), row, strict=True)) if not is_same(a, b)]
        columns |= dict.fromkeys(one.column_names[at] for at in differing)
        changed += bool(differing)
    return RowDifference(sum(map(len, by_place.values())), only_second, tuple(columns), changed)


def _counted(rows: pa.Table) -> Counter[str]:
    return Counter(map(repr, _tuples(rows)))


def _tuples(rows: pa.Table) -> Iterator[tuple[Any, ...]]:
    return (tuple(row.values()) for row in rows.to_pylist())


def _rest(mine: Counter[str], theirs: Counter[str], rows: pa.Table) -> list[tuple[Any, ...]]:
    """Return the rows that the other side has not, or not so often, in order of their text."""
    left, found = mine - theirs, []
    for row in _tuples(rows):
        text = repr(row)
        if left[text] > 0:
            left[text] -= 1
            found.append(row)
    return sorted(found, key=repr)


def cells(view: FeatureView, interval: Interval) -> list[Interval]:
    """Return an interval cut on the grid of the schedule into a few contiguous parts, as jobs of a backfill are."""
    grid = list(interval.split_on_grid(view.batch_schedule))
    step = -(-len(grid) // _MOST_CELLS)
    parts = (grid[at : at + step] for at in range(0, len(grid), step))
    return [Interval(part[0].start, part[-1].end) for part in parts]


def whole_rows(tested: ViewUnderTest, tables: Mapping[str, Any] | None = None, end: datetime | None = None) -> pa.Table:
    """Return the rows of the interval up to an end as one backfill computes them.

    Args:
        tested: The view.
        tables: Frames instead of all of its events.
        end: On the grid; the end of the interval by default.
    """
    view, interval = tested.history, Interval(tested.interval.start, end or tested.interval.end)
    if view.incremental_backfills:
        parts = interval.split_on_grid(view.batch_schedule)
        return pa.concat_tables([compute_rows(view, part, tables) for part in parts])
    return compute_rows(view, interval, tables)


def by_intervals(tested: ViewUnderTest) -> pa.Table:
    """Return the rows of the interval as jobs of one or some batch intervals each compute them."""
    return pa.concat_tables([compute_rows(tested.history, part) for part in cells(tested.history, tested.interval)])


def future_differences(tested: ViewUnderTest, rows: pa.Table) -> Iterator[tuple[datetime, RowDifference]]:
    """Yield for some times how the rows before them change when all later events are taken away.

    Args:
        tested: The view.
        rows: What `whole_rows` returns.
    """
    view = tested.history
    edges = [cell.end for cell in tested.interval.split_on_grid(view.batch_schedule)][:-1]
    chosen = edges[:: -(-len(edges) // _MOST_CUTS)] if edges else []
    for time in chosen:
        known = {name: given.before(time) for name, given in tested.events.items()}
        before = rows.filter(pc.less(rows[view.timestamp_field], pa.scalar(time, TIMESTAMP)))
        yield time, row_difference(view, before, whole_rows(tested, known, time))


@dataclass(frozen=True, slots=True)
class StreamRows:
    """What the code of a stream makes of events.

    Args:
        rows: Rows of the transformation.
        refused: Why events became no rows, to how many there were.
    """

    rows: pa.Table
    refused: Mapping[str, int]


def stream_rows(view: FeatureView, payloads: Sequence[bytes], now: datetime) -> StreamRows:
    """Return what a stream loop makes of events, now few and now many at a time.

    Args:
        view: A stream feature view.
        payloads: One record of the stream each, in order.
        now: The time.
    """
    processor, seen = EventProcessor(view), set[bytes]()
    watermark, tables, refused = Watermark.starting(None, {ONLY_PARTITION: None}, to_us(now)), [], Counter[str]()
    sizes, at = cycle(_PIECES), 0
    while at < len(payloads):
        piece = payloads[at : at + next(sizes)]
        at += len(piece)
        batch = StreamBatch(partition=ONLY_PARTITION, payloads=piece, position=str(at))
        found = processor.process([batch], watermark, now, seen.intersection)
        seen.update(mark for mark, _ in found.marks)
        tables.append(found.rows)
        refused.update(letter.reason for letter in found.letters)
    return StreamRows(pa.concat_tables([processor.no_rows, *tables]), refused)


def reasons_in_words(refused: Mapping[str, int]) -> str:
    """Return why events became no rows, the most frequent first."""
    ordered: Iterable[tuple[str, int]] = Counter(refused).most_common(3)
    return "; ".join(f"{count:,} events: {reason}" for reason, count in ordered)
