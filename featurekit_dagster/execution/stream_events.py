"""What a poll brought becomes rows of a view: decoded, late and repeated events left out, transformed.

One event that cannot become a row never holds up the others: it is found by halving and becomes a dead letter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from featurekit_dagster.arrow_types import arrow_schema
from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.domain.schema import Field
from featurekit_dagster.domain.stream_sources import PushConfig, StreamSource
from featurekit_dagster.engine.columns import microseconds, rows_where
from featurekit_dagster.engine.stream_rows import batch_side_fields, transform_events
from featurekit_dagster.errors import (
    FeatureKitError,
    OutputSchemaMismatch,
    SourceError,
    TransformError,
    safe_reason,
)
from featurekit_dagster.execution.stream_post_processing import PostProcessor, texts_of
from featurekit_dagster.intervals import to_us
from featurekit_dagster.stores.stream_state import DeadLetter
from featurekit_dagster.streams.decoding import TOO_LATE, decode
from featurekit_dagster.streams.deduplication import Deduplication
from featurekit_dagster.streams.reading import StreamBatch
from featurekit_dagster.streams.watermark import Watermark

FUTURE = timedelta(days=1)
"""How far ahead of now an event may be; one from the far future would make all others late."""

# A batch that is halved more often than this has more wrong events than right ones.
_MOST_TRIALS = 4_096
_UNFIT = (TransformError, OutputSchemaMismatch)
IntArray = np.ndarray[Any, np.dtype[np.int64]]
BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
Seen = Callable[[Sequence[bytes]], Iterable[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolledEvents:
    """The events of some source partitions that count.

    Args:
        rows: Rows of the view's transformation.
        watermark: The watermark after them.
        marks: Marks of the events that count, with their times, where events are deduplicated.
        letters: Dead letters.
        events: Per source partition how many events came.
        late: Per source partition how many of them were behind the watermark.
        duplicates: Per source partition how many of them had come before.
    """

    rows: pa.Table
    watermark: Watermark
    marks: Sequence[tuple[bytes, int]] = ()
    letters: Sequence[DeadLetter] = ()
    events: Mapping[str, int] = field(default_factory=dict)
    late: Mapping[str, int] = field(default_factory=dict)
    duplicates: Mapping[str, int] = field(default_factory=dict)


class EventProcessor:
    """Makes rows of the events of a stream view.

    Args:
        view: A stream feature view.

    Raises:
        SourceError: The batch side, which says what columns events have, cannot be read.
    """

    def __init__(self, view: FeatureView) -> None:
        if view.stream_source is None:
            raise ValueError(f"{view.name} follows no stream")
        self._view, self._source = view, view.stream_source
        config = self._source.stream_config
        self._fields = _fields(view, self._source)
        self._time = config.timestamp_field or view.timestamp_field
        self._is_strict = isinstance(config, PushConfig)
        function, self._input = config.post_processor, self._fields
        self._post_processor = None
        if function is not None:
            by_row = isinstance(config, PushConfig) and config.post_processor_mode != "pandas"
            self._post_processor = PostProcessor(function, self._fields, by_row=by_row)
        if isinstance(config, PushConfig) and config.input_schema:
            self._input = tuple(config.input_schema)
        self._deduplication = Deduplication(tuple(config.deduplication_columns))
        self.no_rows = arrow_schema(view.columns).empty_table()
        """What the transformation makes of no events."""

    def process(
        self,
        batches: Sequence[StreamBatch],
        watermark: Watermark,
        now: datetime,
        seen: Seen,
        forgotten_us: int | None = None,
    ) -> PolledEvents:
        """Return what counts of the batches, which may be several of one source partition.

        Args:
            batches: What polls brought, in order.
            watermark: As of before them.
            now: The time.
            seen: Tells which marks are remembered.
            forgotten_us: Up to when marks were forgotten; events up to then are late, as they may have come before.
        """
        payloads = [payload for batch in batches for payload in batch.payloads]
        owners = [batch.partition for batch in batches for _ in batch.payloads]
        names = sorted({batch.partition for batch in batches})
        rows, places, letters = self._decoded(payloads, owners, now)
        sizes = [len(batch.payloads) for batch in batches]
        owner_codes = np.repeat(np.array([names.index(batch.partition) for batch in batches], np.int64), sizes)
        counts, codes = _counts(names, owner_codes), owner_codes[places]
        times = self._times(rows)
        droppable = max((us for us in (watermark.at(to_us(now)), forgotten_us) if us is not None), default=None)
        is_late = np.zeros(rows.num_rows, bool) if times is None or droppable is None else times <= droppable
        is_new, marks = self._new(rows, times, ~is_late, seen)
        made, unfit = self._transformed(rows_where(rows, is_new), np.flatnonzero(is_new))
        letters += [_letter(owners[places[at]], reason, payloads[places[at]]) for at, reason in unfit]
        newest = {name: _newest(times, codes == code) for code, name in enumerate(names)}
        if times is None:
            newest = dict.fromkeys(names, _newest(microseconds(made[self._view.timestamp_field])[0]))
        for name in (each for each in names if counts[each]):
            watermark = watermark.seen(name, newest[name], to_us(now))
        return PolledEvents(
            rows=made,
            watermark=watermark,
            marks=marks,
            letters=letters,
            events=counts,
            late=_counts(names, codes[is_late]),
            duplicates=_counts(names, codes[~is_late & ~is_new]),
        )

    def _decoded(
        self, payloads: Sequence[bytes], owners: Sequence[str], now: datetime
    ) -> tuple[pa.Table, IntArray, list[DeadLetter]]:
        """Return rows of the source, the place of each one's payload, and dead letters."""
        if self._post_processor is not None and not self._is_strict:
            records, places = texts_of(payloads)
            wrong = sorted({*range(len(payloads))} - {*places.tolist()})
            reasons = dict.fromkeys(wrong, "the event is no text")
        else:
            timed = self._time if any(each.name == self._time for each in self._input) else None
            found = decode(
                payloads, self._input, time_field=timed, latest=now + FUTURE, allow_unknown=not self._is_strict
            )
            records, places, reasons = found.rows, np.array(found.accepted, np.int64), {}
            for refusal in found.refused:
                reasons.setdefault(refusal.index, f"{refusal.field} {refusal.rule}".strip())
        if self._post_processor is not None:
            made = self._post_processor.apply(records)
            reasons |= {int(places[at]): reason for at, reason in made.refused}
            records, places = made.rows, places[made.places]
            times = self._times(records)
            if times is not None and (far := times > to_us(now + FUTURE)).any():
                reasons |= dict.fromkeys(places[far].tolist(), f"{self._time} {TOO_LATE}")
                records, places = records.filter(pa.array(~far)), places[~far]
        return records, places, [_letter(owners[at], reason, payloads[at]) for at, reason in sorted(reasons.items())]

    def _times(self, rows: pa.Table) -> IntArray | None:
        """Return the event times; None where only the transformation knows them."""
        if rows.schema.get_field_index(self._time) < 0:
            return None
        return microseconds(rows[self._time])[0]

    def _new(
        self,
        rows: pa.Table,
        times: IntArray | None,
        counts: BoolArray,
        seen: Seen,
    ) -> tuple[BoolArray, list[tuple[bytes, int]]]:
        """Return which rows count and did not come before, and their marks."""
        columns = self._deduplication.columns
        if not columns or times is None:
            return counts, []
        at = np.flatnonzero(counts)
        marks = self._deduplication.marks([rows[name].take(pa.array(at)).to_pylist() for name in columns])
        is_first = self._deduplication.first_of_each(marks, set(seen(marks)))
        is_new = counts.copy()
        is_new[at] = is_first
        found = zip(marks, times[at].tolist(), is_first, strict=True)
        return is_new, [(mark, time) for mark, time, first in found if first]

    def _transformed(self, rows: pa.Table, places: IntArray) -> tuple[pa.Table, list[tuple[int, str]]]:
        """Return the transformation's rows, and which source rows it cannot be applied to, with the reason."""
        made: list[pa.Table] = []
        unfit: list[tuple[int, str]] = []
        waiting, trials = [(0, rows.num_rows)] if rows.num_rows else [], 0
        while waiting:
            start, end = waiting.pop()
            trials += 1
            try:
                made.append(transform_events(self._view, rows.slice(start, end - start)))
            except _UNFIT as error:
                if end - start <= 1 or trials > _MOST_TRIALS:
                    unfit += [(at, _reason(error)) for at in places[start:end].tolist()]
                else:
                    middle = (start + end) // 2
                    waiting += [(middle, end), (start, middle)]
        return made[0] if len(made) == 1 else pa.concat_tables([self.no_rows, *made]), unfit


def _fields(view: FeatureView, source: StreamSource) -> tuple[Field, ...]:
    """Return the columns of the source's events: as declared, as in its batch side, or those of the view."""
    declared = source.schema
    if declared:
        return tuple(declared)
    if view.inputs:
        try:
            return batch_side_fields(view)
        except SourceError:
            pass  # nothing was written there yet
    return view.columns


def _letter(partition: str, reason: str, payload: bytes) -> DeadLetter:
    return DeadLetter(partition=partition, reason=reason, payload=payload)


def _reason(error: FeatureKitError) -> str:
    """Return an error of ours as it is; none of them quotes a value."""
    return str(error) if isinstance(error, _UNFIT) else safe_reason(error)


def _counts(names: Sequence[str], codes: IntArray) -> dict[str, int]:
    return dict(zip(names, np.bincount(codes, minlength=len(names)).tolist(), strict=True))


def _newest(times: IntArray | None, chosen: BoolArray | slice = slice(None)) -> list[int]:
    """Return the newest of the chosen times; none if there are none."""
    own: Any = [] if times is None else times[chosen]
    return [int(np.max(own))] if len(own) else []
