"""A checker of events too simple to be wrong: it judges the decoder."""

from __future__ import annotations

import base64
import json
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from featurekit_dagster.domain.schema import DataType, Field

_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d)(?::(\d\d)(?::(\d\d)(?:\.(\d{1,6}))?)?)?(Z|[+-]\d\d(?::?\d\d)?)?)?", re.ASCII
)
_FLOAT32_LIMIT = float.fromhex("0x1.ffffffp+127")


class Wrong(Exception):
    """A value is none of its type."""


class Number(str):
    """A JSON number with a point or an exponent, as it was written."""


def judge(payload: bytes, fields: list[Field], never_null: set[str]) -> tuple[dict[str, Any] | None, set[str]]:
    """Return the row of an event, or None and the names of the fields that are wrong (empty: the whole event)."""
    try:
        pairs = json.loads(payload.decode(), object_pairs_hook=_Pairs, parse_float=Number, parse_constant=_refuse)
        payload.decode().encode()
        json.dumps(pairs, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, Wrong):
        return None, {""}
    if not isinstance(pairs, _Pairs):
        return None, {""}
    given = [name for name, _ in pairs]
    wrong = {name for name in given if name not in {field.name for field in fields}}
    row = {}
    for field in fields:
        values = [value for name, value in pairs if name == field.name]
        try:
            if len(values) != 1 or (values[0] is None and field.name in never_null):
                raise Wrong
            row[field.name] = None if values[0] is None else _value(values[0], field.dtype)
        except Wrong:
            wrong.add(field.name)
    return (None, wrong) if wrong else (row, set())


class _Pairs(list[tuple[str, Any]]):
    """An object's members as they were written."""


def _refuse(_: str) -> None:
    raise Wrong


def _value(value: Any, dtype: DataType) -> Any:  # noqa: PLR0912 - one case per type
    if value is None:
        return None
    kind = dtype.name
    if kind == "String" and isinstance(value, str) and not isinstance(value, Number):
        return value
    if kind == "Bool" and isinstance(value, bool):
        return value
    if kind in ("Int32", "Int64") and isinstance(value, int) and not isinstance(value, bool):
        bits = int(kind[3:])
        if -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
            return value
    if kind in ("Float32", "Float64") and isinstance(value, int | Number) and not isinstance(value, bool):
        number = float(value) if abs(float(value)) != float("inf") else None
        if number is not None and (kind == "Float64" or abs(number) < _FLOAT32_LIMIT):
            return number
    if kind == "Bytes" and isinstance(value, str) and not isinstance(value, Number):
        try:
            return base64.b64decode(value, validate=True)
        except ValueError:
            raise Wrong from None
    if kind == "Timestamp" and isinstance(value, str) and not isinstance(value, Number):
        return _time(value)
    if kind == "Array" and type(value) is list:
        return [_value(each, dtype.children[0]) for each in value]
    if kind == "Struct" and isinstance(value, _Pairs):
        members = {member.name: member.dtype for member in dtype.fields}
        if sorted(name for name, _ in value) == sorted(members):
            return {name: _value(each, members[name]) for name, each in value}
    raise Wrong


def _time(text: str) -> datetime:
    match = _TIME.fullmatch(text)
    if match is None:
        raise Wrong
    *parts, fraction, zone = match.groups()
    numbers = [int(part or 0) for part in parts]
    offset = UTC
    if zone and zone != "Z":
        digits = zone[1:].replace(":", "").ljust(4, "0")
        hours, minutes = int(digits[:2]), int(digits[2:])
        if hours > 23 or minutes > 59:
            raise Wrong
        offset = timezone((1 if zone[0] == "+" else -1) * timedelta(hours=hours, minutes=minutes))
    try:
        return datetime(*numbers, int((fraction or "").ljust(6, "0")), offset).astimezone(UTC)
    except (ValueError, OverflowError):
        raise Wrong from None
