"""What values of the declared types look like in JSON, and as Arrow columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from featurekit_dagster.arrow_types import TIMESTAMP, arrow_type
from featurekit_dagster.domain.schema import DataType, Field
from featurekit_dagster.errors import Unsupported
from featurekit_dagster.intervals import to_us

_NAIVE = pa.timestamp("us")
_FIRST_US, _LAST_US = (to_us(end.replace(tzinfo=UTC)) for end in (datetime.min, datetime.max))  # noqa: DTZ901
# Halfway between the largest Float32 and the next power of two; what lies below is rounded to a Float32.
_FLOAT32_LIMIT = (2 - 2**-24) * 2.0**127

_UNUSABLE_NAME = re.compile(r'["\\\x00-\x1f]')
_JSON: dict[str, Any] = {
    "String": str,
    "Int32": Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)],
    "Int64": Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)],
    "Float32": Annotated[float, msgspec.Meta(gt=-_FLOAT32_LIMIT, lt=_FLOAT32_LIMIT)],
    "Float64": float,
    "Bool": bool,
    "Bytes": bytes,
}


class MemberTime:
    """A time inside a nested value; a plain class, so that the decoder leaves its text to `member_time`."""

    __slots__ = ("time",)

    def __init__(self, time: datetime) -> None:
        self.time = time


def event_struct(
    fields: Sequence[Field], never_null: frozenset[str], *, allow_unknown: bool, is_member: bool = False
) -> Any:
    """Return a class with members `c0`, `c1`, ... that a decoder makes of an object with these fields.

    Raises:
        Unsupported: A name has characters that the decoder does not take.
    """
    members = []
    for place, field in enumerate(fields):
        if _UNUSABLE_NAME.search(field.name):
            raise Unsupported(
                f"field {field.name!r} has a quote, a backslash or a control character in its name, with which events "
                "cannot be decoded; rename it"
            )
        dtype = decoded_type(field.dtype, is_member=is_member)
        members.append((f"c{place}", dtype if field.name in never_null else dtype | None))
    return msgspec.defstruct(
        "Event",
        members,
        rename={f"c{place}": field.name for place, field in enumerate(fields)},
        forbid_unknown_fields=not allow_unknown,
        gc=False,
    )


def decoded_type(dtype: DataType, *, is_member: bool = True) -> Any:
    """Return what a decoder makes of a value; a time is left as text unless it is a member of something."""
    if dtype.name == "Array":
        return list[decoded_type(dtype.children[0]) | None]  # type: ignore[misc]
    if dtype.name == "Map":
        key, value = dtype.children
        return dict[decoded_type(key), decoded_type(value) | None]  # type: ignore[misc]
    if dtype.name == "Struct":
        return event_struct(dtype.fields, frozenset(), allow_unknown=False, is_member=True)
    if dtype.name == "Timestamp":
        return MemberTime if is_member else str
    return _JSON[dtype.name]


def column_of(values: list[Any], dtype: DataType) -> pa.Array:
    """Return decoded values as a column."""
    convert = _converter(dtype)
    return pa.array(values if convert is None else map(convert, values), arrow_type(dtype))


def _converter(dtype: DataType) -> Callable[[Any], Any] | None:
    """Return what makes decoded values ready for Arrow; None if they are."""
    if dtype.name == "Timestamp":
        return lambda value: value and value.time
    if dtype.name == "Array":
        inner = _converter(dtype.children[0])
        return None if inner is None else lambda value: value and [inner(each) for each in value]
    if dtype.name == "Map":
        of_value = _converter(dtype.children[1]) or (lambda value: value)
        return lambda value: None if value is None else [(key, of_value(each)) for key, each in value.items()]
    if dtype.name == "Struct":
        members = [(f"c{i}", each.name, _converter(each.dtype)) for i, each in enumerate(dtype.fields)]
        return lambda value: (
            None
            if value is None
            else {
                name: getattr(value, place) if convert is None else convert(getattr(value, place))
                for place, name, convert in members
            }
        )
    return None


def parse_times(column: pa.Array) -> pa.Array | None:
    """Return ISO 8601 texts as UTC times, those without an offset read as UTC; None if one of them is no time."""
    times = _cast_times(column)
    if times is None:
        return None
    span = pc.min_max(times)
    first, last = span["min"].value, span["max"].value  # an offset can lead out of the years that Python knows
    return times if first is None or (first >= _FIRST_US and last <= _LAST_US) else None


def _cast_times(column: pa.Array) -> pa.Array | None:
    for dtype in (TIMESTAMP, _NAIVE):
        try:
            times = column.cast(dtype)
            return times if dtype is TIMESTAMP else times.cast(TIMESTAMP)
        except pa.ArrowInvalid:
            continue
    has_offset = pc.match_substring_regex(column, r"(Z|[+-]\d\d(:?\d\d)?)$")
    has_offset = pc.and_(has_offset, pc.greater(pc.utf8_length(column), len("2024-01-01")))
    nothing = pa.scalar(None, pa.string())
    try:
        aware = pc.if_else(has_offset, column, nothing).cast(TIMESTAMP)
        naive = pc.if_else(has_offset, nothing, column).cast(_NAIVE).cast(TIMESTAMP)
    except pa.ArrowInvalid:
        return None
    return pc.coalesce(aware, naive)


def member_time(_: type, text: Any) -> MemberTime:
    """Return the UTC time of a text inside a nested value, as a decoder's hook.

    Raises:
        ValueError: It is no time.
    """
    times = parse_times(pa.array([text])) if isinstance(text, str) else None
    if times is None:
        raise ValueError("no time")
    return MemberTime(times[0].as_py())
