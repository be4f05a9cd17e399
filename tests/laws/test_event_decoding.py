"""Events are decoded as a plain checker says, one by one and in batches, and no refusal holds a value."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurekit_dagster.domain.schema import (
    Array,
    Bool,
    Bytes,
    DataType,
    Field,
    Float32,
    Float64,
    Int32,
    Int64,
    Map,
    String,
    Struct,
    Timestamp,
)
from featurekit_dagster.errors import Unsupported
from featurekit_dagster.streams.decoding import decode
from tests.support.event_checker import judge

POINT = Struct([Field("x", Int32), Field("at", Timestamp)])
TYPES = (String, Int32, Int64, Float32, Float64, Bool, Bytes, Timestamp, Array(String), Array(Timestamp), POINT)
EPOCH = datetime.fromisoformat("1970-01-01T00:00:00")
NAMES = ("user", "amount", "a b", "at.time", "é", "x:y", "q'`")

WORDS = """
null true false 0 -0 1 -1 1.0 1.9 1e3 1E400 -1e400 1e-400 NaN Infinity 01 [] {} [null] [1] [[1]] [true,null] [1.5,2] {
3.4028235677973362e38 3.4028235677973366e38 2147483647 2147483648 -2147483649 9223372036854775807 9223372036854775808
-9223372036854775809
"""
NASTY = [
    *WORDS.split(),
    *('""', '"x"', '":"', '"\\u003a\\u003A"', '"a\\nb"', '"\\ud800"', '"\\ud83d\\ude00"', '"a\\"b:c"', "'x'", '"aGk="'),
    *('"aGk"', '"aG k="', '"=="', '["a:b", null]', '{"x": 1}', '{"x": 1, "at": null}', '{"x": 1, "x": 2, "at": null}'),
    *('{"x": 1.0, "at": "2024-01-01"}', '{"at": "2024-01-01", "x": null}', '{"x": 2, "at": "yesterday"}', "\n", ""),
    *('"2024-01-01"', '"2024-02-30T00:00"', '"2024-01-01T10"', '"2024-01-01 10:20:30.123456-05:30"', '"2024-01-01Z"'),
    *('"2024-01-01T10:20:30.1234567Z"', '"0001-01-01T00:00:00+01:00"', '"9999-12-31T23:59:59.999999Z"', '"1"'),
    *('"2024-01-01T24:00:00Z"', '"2024-01-01T10:20:60Z"', '"2024-01-01T10:20:30+0530"', '"20240101T102030Z"'),
    *('["2024-01-01T10:20:30Z", null, "2024-01-01"]', '["2024-01-01T10:20:30.Z"]', '"2024-01-01T10:20:30 Z"'),
]


def _good(dtype: DataType) -> st.SearchStrategy[str]:
    times = st.integers(-(10**16), 10**16).map(lambda us: (EPOCH + timedelta(microseconds=us)).isoformat())
    strategies: dict[str, st.SearchStrategy[Any]] = {
        "String": st.text(),
        "Int32": st.integers(-(2**31), 2**31 - 1),
        "Int64": st.integers(-(2**63), 2**63 - 1),
        "Float32": st.floats(width=32, allow_nan=False, allow_infinity=False) | st.integers(-(2**31), 2**31),
        "Float64": st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70),
        "Bool": st.booleans(),
        "Bytes": st.sampled_from(["", "aGk=", "/+8="]),
        "Timestamp": st.tuples(times, st.sampled_from(["", "Z", "+05:30", "-0800"])).map("".join),
    }
    if dtype.name == "Array":
        return st.lists(_good(dtype.children[0]), max_size=3).map(lambda texts: f"[{', '.join(texts)}]")
    if dtype.name == "Struct":
        members = st.tuples(*(_good(member.dtype) for member in dtype.fields))
        return members.map(lambda texts: f'{{"x": {texts[0]}, "at": {texts[1]}}}')
    return st.tuples(strategies[dtype.name], st.booleans()).map(lambda pair: json.dumps(pair[0], ensure_ascii=pair[1]))


@st.composite
def _batches(draw: st.DrawFn) -> tuple[list[Field], list[bytes]]:
    dtypes = draw(st.lists(st.sampled_from(TYPES), min_size=1, max_size=4))
    fields = [Field(name, dtype) for name, dtype in zip(draw(st.permutations(NAMES)), dtypes, strict=False)]
    payloads = []
    for _ in range(draw(st.integers(0, 12))):
        members = [(json.dumps(field.name), draw(_good(field.dtype))) for field in draw(st.permutations(fields))]
        damage = draw(st.sampled_from(["none"] * 6 + ["value", "extra", "missing", "twice", "whole", "cut"]))
        place = draw(st.integers(0, len(members) - 1))
        if damage == "value":
            members[place] = (members[place][0], draw(st.sampled_from(NASTY)))
        elif damage == "extra":
            members.append((json.dumps(draw(st.text(max_size=3))), "1"))
        elif damage == "missing":
            del members[place]
        elif damage == "twice":
            members.append((members[place][0], draw(st.sampled_from([members[place][1], *NASTY]))))
        colon = draw(st.sampled_from([":", ": ", " :"]))
        text = "{" + ", ".join(f"{name}{colon}{value}" for name, value in members) + "}"
        if damage == "whole":
            text = draw(st.sampled_from([*NASTY, "{}\n{}", text + text, text + "\n", "\ufeff" + text]))
        payload = text.encode(errors="surrogatepass")
        payloads.append(payload[: draw(st.integers(0, len(payload)))] if damage == "cut" else payload)
    return fields, payloads


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC)
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _expected(row: dict[str, Any], fields: list[Field]) -> dict[str, Any]:
    singles = {field.name for field in fields if field.dtype == Float32}
    return {name: float(np.float32(v)) if name in singles and v is not None else v for name, v in row.items()}


@given(batch=_batches(), needed=st.sets(st.sampled_from(NAMES)))
def test_a_batch_is_decoded_as_a_plain_checker_judges_each_event(
    batch: tuple[list[Field], list[bytes]], needed: set[str]
) -> None:
    fields, payloads = batch
    never_null = needed & {field.name for field in fields}
    judged = [judge(payload, fields, never_null) for payload in payloads]
    decoded = decode(payloads, fields, never_null=sorted(never_null))
    assert list(decoded.accepted) == [index for index, (row, _) in enumerate(judged) if row is not None]
    expected = [_expected(row, fields) for row, _ in judged if row is not None]
    assert [_plain(row) for row in decoded.rows.to_pylist()] == expected
    refused: dict[int, set[str]] = {}
    for each in decoded.refused:
        refused.setdefault(each.index, set()).add(each.field)
    assert refused == {index: wrong for index, (row, wrong) in enumerate(judged) if row is None}


FIELDS = [Field("user", String), Field("amount", Int64), Field("at", Timestamp)]
GOOD = b'{"user": "u1", "amount": 5, "at": "2024-01-01T10:00:00Z"}'


def _refusals(*payloads: bytes, fields: list[Field] = FIELDS, **options: Any) -> list[tuple[int, str, str]]:
    options = {"never_null": ["user"], "time_field": "at", **options}
    return [(each.index, each.field, each.rule) for each in decode(payloads, fields, **options).refused]


@pytest.mark.parametrize(
    ("payload", "field", "rule"),
    [
        (b"[]", "", "the event is no JSON object"),
        (b'{"user": "u1", "at": "2024-01-01T10:00:00Z"}', "amount", "is missing; give null where there is no value"),
        (GOOD.replace(b"}", b', "more": 1}'), "more", "is no field of the source"),
        (GOOD.replace(b"}", b', "amount": 5}'), "amount", "is given twice"),
        (GOOD.replace(b"5", b"1.9"), "amount", "is no Int64"),
        (GOOD.replace(b"5", b'"5"'), "amount", "is no Int64"),
        (GOOD.replace(b"5", b"9223372036854775808"), "amount", "is out of the range of Int64"),
        (GOOD.replace(b'"u1"', b"null"), "user", "is null, but events need one"),
        (GOOD.replace(b'"2024-01-01T10:00:00Z"', b"null"), "at", "is null, but events need one"),
        (GOOD.replace(b"2024", b"1969"), "at", "lies before 1970-01-01"),
        (GOOD.replace(b"T10", b" noon "), "at", "is no time; give ISO 8601 text with at most six decimals"),
        (GOOD.replace(b"2024", b"3024"), "at", "lies too far ahead of now"),
    ],
)
def test_each_fault_is_told_with_its_field_and_rule(payload: bytes, field: str, rule: str) -> None:
    found = _refusals(GOOD, payload, GOOD, latest=datetime(2024, 1, 2, tzinfo=UTC))
    assert [(index, name) for index, name, _ in found] == [(1, field)]
    assert found[0][2].startswith(rule)


def test_all_faults_of_an_event_are_told_at_once() -> None:
    found = _refusals(b'{"user": 1, "amount": 1.5, "more": 1}')
    assert {field for _, field, _ in found} == {"user", "amount", "at", "more"}


def test_a_refusal_holds_no_value() -> None:
    secret = "s3cr3t"
    wrong = f'{{"user": ["{secret}"], "amount": "{secret}", "at": "{secret}"}}'.encode()
    found = _refusals(wrong, f'"{secret}"'.encode(), secret.encode())
    assert len(found) == 5
    assert all(secret not in f"{field} {rule}" for _, field, rule in found)


def test_an_event_time_may_be_as_late_as_the_limit_and_as_early_as_1970() -> None:
    limit = datetime(2024, 1, 1, 10, tzinfo=UTC)
    assert _refusals(GOOD, GOOD.replace(b"2024-01-01T10", b"1970-01-01T00"), latest=limit) == []
    later = GOOD.replace(b"10:00:00Z", b"10:00:00.000001Z")
    assert [(index, field) for index, field, _ in _refusals(later, latest=limit)] == [(0, "at")]


def test_other_fields_are_passed_over_where_that_is_allowed() -> None:
    more = GOOD.replace(b"}", b', "more": {"a": [1]}}')
    assert _refusals(more, allow_unknown=True) == []
    assert decode([more], FIELDS, allow_unknown=True).rows.column_names == ["user", "amount", "at"]


def test_maps_have_their_keys_as_text() -> None:
    fields = [Field("counts", Map(Int64, Float64)), Field("names", Map(String, String))]
    good, bad = b'{"counts": {"7": 1.5}, "names": {"a": null}}', b'{"counts": {"x": 1.5}, "names": {"a": 1}}'
    decoded = decode([good, bad], fields)
    assert decoded.rows.to_pylist() == [{"counts": [(7, 1.5)], "names": [("a", None)]}]
    assert [(each.index, each.field) for each in decoded.refused] == [(1, "counts"), (1, "names")]


@pytest.mark.parametrize("depth", [100, 100_000])
def test_deep_nesting_is_refused_like_anything_else(depth: int) -> None:
    deep = b'{"user": ' + b"[" * depth
    assert [field for _, field, _ in _refusals(deep, deep + b"]" * depth + b"}")][0] == ""


def test_a_name_that_cannot_be_decoded_is_refused() -> None:
    with pytest.raises(Unsupported, match="rename it"):
        decode([], [Field('a"b', String)])
