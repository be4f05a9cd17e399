"""Events out of JSON, by the declared fields: what does not fit is refused by field and rule, nothing is converted.

A whole batch is decoded at once; only the events in which something is wrong, or may be, are looked at one by one. A
refusal never holds a value. The one thing rounded is a decimal number, to the nearest float of its field's type.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from operator import attrgetter
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from featurekit_dagster.arrow_types import TIMESTAMP, arrow_schema
from featurekit_dagster.domain.schema import Field, String, Timestamp
from featurekit_dagster.intervals import to_us
from featurekit_dagster.streams.event_types import (
    column_of,
    decoded_type,
    event_struct,
    member_time,
    parse_times,
)

EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
_EARLIEST_US = to_us(EARLIEST)
_LONGEST_NAME = 100
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

NO_OBJECT = "the event is no JSON object"
UNKNOWN = "is no field of the source"
MISSING = "is missing; give null where there is no value"
NULL = "is null, but events need one"
TWICE = "is given twice"
OUT_OF_RANGE = "is out of the range of {dtype}"
WRONG_TYPE = "is no {dtype}"
NO_TIME = "is no time; give ISO 8601 text with at most six decimals, as 2024-01-31T08:30:00.5Z (UTC without an offset)"
TOO_EARLY = f"lies before {EARLIEST:%Y-%m-%d}"
TOO_LATE = "lies too far ahead of now"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an event was refused.

    Args:
        index: Its place among the payloads, from 0.
        field: The field concerned; empty where the event as a whole is unusable.
        rule: What the field breaks; never a value.
    """

    index: int
    field: str
    rule: str


@dataclass(frozen=True, slots=True)
class Decoded:
    """The events of some payloads.

    Args:
        rows: A column per declared field, a row per accepted event, in the order of the payloads.
        accepted: The place of each row's payload among the payloads.
        refused: At least one for each other payload, in the order of the payloads.
    """

    rows: pa.Table
    accepted: Sequence[int]
    refused: Sequence[Refusal]


def decode(
    payloads: Sequence[bytes],
    fields: Sequence[Field],
    *,
    never_null: Sequence[str] = (),
    time_field: str | None = None,
    latest: datetime | None = None,
    allow_unknown: bool = False,
) -> Decoded:
    """Return the events of JSON documents, and why the others are refused.

    Refused are: what is no object, a field that is missing, unknown or given twice, a value of another type (`1.9` or
    `1.0` for an integer, text for a number), an integer or float out of range, null where `never_null` forbids it, a
    time that is no ISO 8601 text or needs more than microseconds, and an event time outside [1970-01-01, latest].

    Args:
        payloads: One JSON document each.
        fields: The declared fields; `Bytes` are base64 text, members of a `Struct` obey the same rules.
        never_null: Fields that must have a value, such as join keys.
        time_field: The field that tells when the event happened, never null; None for none.
        latest: Last instant, aware, that an event may claim; None for no limit.
        allow_unknown: Whether other fields are passed over; then one that is given twice counts as its last value.

    Raises:
        Unsupported: A declared field has a name that cannot be decoded.
    """
    event_format = _format(
        tuple(fields), frozenset([*never_null, *([time_field] if time_field else [])]), allow_unknown
    )
    return event_format.decode(payloads, time_field, latest)


@lru_cache(maxsize=256)
def _format(fields: tuple[Field, ...], never_null: frozenset[str], allow_unknown: bool) -> _EventFormat:
    return _EventFormat(fields, never_null, allow_unknown=allow_unknown)


class _EventFormat:
    """Decoders for events with certain fields."""

    def __init__(self, fields: tuple[Field, ...], never_null: frozenset[str], *, allow_unknown: bool) -> None:
        self._fields, self._allow_unknown = fields, allow_unknown
        self._schema = arrow_schema(fields)
        self._nothing = self._schema.empty_table()
        self._getters = [attrgetter(f"c{place}") for place in range(len(fields))]
        self._is_flat = not any(field.dtype.is_nested for field in fields)
        struct = event_struct(fields, never_null, allow_unknown=allow_unknown)
        self._events = msgspec.json.Decoder(struct, dec_hook=member_time)
        self._members: Any = msgspec.json.Decoder(dict[str, msgspec.Raw])
        self._values = {
            field.name: (
                field,
                field.name not in never_null,
                msgspec.json.Decoder(decoded_type(field.dtype, is_member=False), dec_hook=member_time),
            )
            for field in fields
        }

    def decode(self, payloads: Sequence[bytes], time_field: str | None, latest: datetime | None) -> Decoded:
        """Decode payloads; see `decode`."""
        accepted: list[int] = []
        refused: list[Refusal] = []
        pieces: list[pa.Table] = []
        waiting = [(0, len(payloads))]
        while waiting:
            start, end = waiting.pop()
            rows = self._at_once(payloads[start:end])
            if rows is not None:
                accepted += range(start, end)
                pieces.append(rows)
            elif end - start > 1:  # the wrong ones are found by halving, so a few of them cost little
                middle = (start + end) // 2
                waiting += [(middle, end), (start, middle)]
            elif faults := self._faults(start, payloads[start]):
                refused += faults
            else:
                accepted.append(start)
                pieces.append(self._rows([self._events.decode(payloads[start])])[0])
        rows = pieces[0] if len(pieces) == 1 else pa.concat_tables([self._nothing, *pieces]).combine_chunks()
        if time_field is None:
            return Decoded(rows, accepted, refused)
        return _with_times_in(rows, accepted, refused, time_field, latest)

    def _at_once(self, payloads: Sequence[bytes]) -> pa.Table | None:
        """Return the events of all payloads; None if something is wrong with one of them, or may be."""
        together = b"\n".join(payloads)
        if together.count(b"\n") != max(len(payloads) - 1, 0):
            return None
        try:
            events: list[Any] = self._events.decode_lines(together)
        except _UNDECODABLE:
            return None
        if len(events) != len(payloads):
            return None
        rows, texts = self._rows(events)
        if rows is None or self._allow_unknown:
            return rows
        if self._is_flat:
            return rows if _has_each_name_once(together, len(events) * len(self._fields), texts) else None
        return rows if all(map(_has_members_once, payloads)) else None

    def _rows(self, events: list[Any]) -> tuple[pa.Table | None, list[pa.Array]]:
        """Return events as rows, None if a text is no time; and all texts."""
        columns, texts = [], []
        for get, field in zip(self._getters, self._fields, strict=True):
            values = list(map(get, events))
            column = column_of(values, String if field.dtype == Timestamp else field.dtype)
            if field.dtype in (String, Timestamp):
                texts.append(column)
            columns.append(parse_times(column) if field.dtype == Timestamp else column)
        if any(column is None for column in columns):
            return None, texts
        return pa.Table.from_arrays(columns, schema=self._schema), texts

    def _faults(self, index: int, payload: bytes) -> list[Refusal]:
        """Return everything that is wrong with one event."""
        try:
            members = self._members.decode(payload)
            names = _names(payload)
        except (*_UNDECODABLE, ValueError):
            return [Refusal(index, "", NO_OBJECT)]
        strict, known = not self._allow_unknown, self._values.keys()
        faults = [(name[:_LONGEST_NAME], UNKNOWN) for name in members if strict and name not in known]
        for name, (field, may_be_null, decoder) in self._values.items():
            if name not in members:
                faults.append((name, MISSING))
            elif strict and names.count(name) > 1:
                faults.append((name, TWICE))
            elif rule := _fault(bytes(members[name]), field, decoder, may_be_null=may_be_null):
                faults.append((name, rule))
        return [Refusal(index, name, rule) for name, rule in faults]


def _has_each_name_once(together: bytes, names: int, texts: Sequence[pa.Array]) -> bool:
    """Tell whether surely no field is given twice: each colon is accounted for by a field or a text.

    The decoder keeps the last value of a field that comes twice and says nothing.
    """
    if b"\\u" in together and b"\\u003a" in together.lower():  # an escaped colon
        return False
    return together.count(b":") == names + sum(map(_colons_in, texts))


def _colons_in(texts: pa.Array) -> int:
    """Return the number of colons in a column of texts that is no slice."""
    data = texts.buffers()[2]
    return 0 if data is None else data.to_pybytes().count(b":")


def _has_members_once(payload: bytes) -> bool:
    """Tell whether no object of a document has a member twice."""
    try:
        json.loads(payload, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return False
    return True


class _MemberTwiceError(ValueError):
    """An object has a member twice."""


def _names(payload: bytes) -> list[str]:
    """Return the names of an object's members as often as they are given."""
    pairs: list[tuple[str, Any]] = json.loads(payload, object_pairs_hook=list)
    return [name for name, _ in pairs]


def _once(pairs: list[tuple[str, Any]]) -> None:
    if len({name for name, _ in pairs}) < len(pairs):
        raise _MemberTwiceError


def _fault(value: bytes, field: Field, decoder: Any, *, may_be_null: bool) -> str | None:
    """Return the rule that a value breaks."""
    if value == b"null":
        return None if may_be_null else NULL
    wrong = WRONG_TYPE.format(dtype=field.dtype)
    try:
        decoded = decoder.decode(value)
        if field.dtype == Timestamp:
            return None if parse_times(pa.array([decoded])) is not None else NO_TIME
        if field.dtype.is_nested:
            json.loads(value, object_pairs_hook=_once)
    except _MemberTwiceError:
        return TWICE
    except msgspec.ValidationError as error:
        # The only messages that name a bound, or end so, are those of numbers that do not fit.
        is_range = ">= " in str(error) or "<= " in str(error) or "out of range" in str(error)
        return OUT_OF_RANGE.format(dtype=field.dtype) if is_range else wrong
    except _UNDECODABLE:
        return wrong
    return None


def _with_times_in(
    rows: pa.Table, accepted: Sequence[int], refused: list[Refusal], time_field: str, latest: datetime | None
) -> Decoded:
    """Refuse rows with event times outside [1970-01-01, latest]."""
    times = rows[time_field]
    span = pc.min_max(times)
    is_in = span["min"].value is None or (
        span["min"].value >= _EARLIEST_US and (latest is None or span["max"].value <= to_us(latest))
    )
    if is_in:
        return Decoded(rows, accepted, refused)
    is_early = pc.less(times, pa.scalar(EARLIEST, TIMESTAMP))
    is_late = pc.greater(times, pa.scalar(latest, TIMESTAMP)) if latest is not None else pc.is_null(times)
    wrong = pc.or_(is_early, is_late)
    early, late = is_early.to_pylist(), is_late.to_pylist()
    absurd = [
        Refusal(accepted[row], time_field, TOO_EARLY if early[row] else TOO_LATE)
        for row in range(len(rows))
        if early[row] or late[row]
    ]
    kept = [accepted[row] for row in range(len(rows)) if not (early[row] or late[row])]
    return Decoded(rows.filter(pc.invert(wrong)), kept, sorted([*refused, *absurd], key=attrgetter("index")))
