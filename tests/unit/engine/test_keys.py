"""Key codes are exact, time codes keep the order."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurekit_dagster.engine.keys import ABSENT, KeyEncoder, TimePacking, encode_keys, sort_packed
from featurekit_dagster.errors import UnsupportedKeyType

MOMENT = datetime(2024, 1, 1, tzinfo=UTC)
COLUMNS = {
    pa.string(): st.sampled_from(["", "a", "b", "a\x00", "ä"]),
    pa.int64(): st.sampled_from([0, 1, 5, -1, 2**62, -(2**63), 2**63 - 1]),
    pa.int32(): st.integers(-3, 3),
    pa.binary(): st.sampled_from([b"", b"\x00", b"a"]),
    pa.bool_(): st.booleans(),
    pa.timestamp("us", "UTC"): st.sampled_from([MOMENT, MOMENT.replace(microsecond=1)]),
}


@given(data=st.data(), types=st.lists(st.sampled_from(list(COLUMNS)), min_size=1, max_size=3))
def test_two_rows_share_a_code_exactly_when_all_keys_are_equal(data: st.DataObject, types: list[pa.DataType]) -> None:
    row = st.tuples(*[st.none() | COLUMNS[dtype] for dtype in types])
    names = [f"k{number}" for number in range(len(types))]

    def table(rows: list[tuple[Any, ...]]) -> pa.Table:
        arrays = [pa.array([row[place] for row in rows], dtype) for place, dtype in enumerate(types)]
        return pa.table(arrays, names=names)

    rows, probes = data.draw(st.lists(row, max_size=12)), data.draw(st.lists(row, max_size=12))
    codes = encode_keys(table(rows), table(probes), names)
    assert codes.rows.dtype == codes.probes.dtype == np.int64
    assert all(0 <= code < codes.count for code in codes.probes)
    for one, code in zip(probes, codes.probes, strict=True):
        assert [other == one for other in probes] == (codes.probes == code).tolist()
        assert [other == one for other in rows] == (codes.rows == code).tolist()
    assert [one in probes for one in rows] == (codes.rows != ABSENT).tolist()


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (pa.array([1, 2], pa.int32()), pa.array([2, 3], pa.int64())),
        (pa.array(["1", "2"], pa.string()), pa.array(["2", "3"], pa.large_string())),
        (pa.array(["1", "2"]).dictionary_encode(), pa.array(["2", "3"])),
        (pa.array(["1", "2"], pa.string_view()), pa.array(["2", "3"])),
        (pa.array([1, 2], pa.timestamp("us")), pa.array([2_000, 3_000], pa.timestamp("ns", "UTC"))),
    ],
    ids=["int widths", "string widths", "dictionary", "string view", "timestamp units"],
)
def test_representations_of_one_kind_of_key_match(left: pa.Array, right: pa.Array) -> None:
    codes = encode_keys(pa.table({"k": left}), pa.table({"k": right}), ["k"])
    assert codes.rows.tolist() == [ABSENT, codes.probes[0]]


@pytest.mark.parametrize(
    ("left", "right"), [(pa.array([1.0]), pa.array([1.0])), (pa.array(["1"]), pa.array([1])), (pa.array([[1]]),) * 2]
)
def test_keys_without_identity_and_mixed_kinds_are_refused(left: pa.Array, right: pa.Array) -> None:
    with pytest.raises(UnsupportedKeyType, match="join key 'k'"):
        encode_keys(pa.table({"k": left}), pa.table({"k": right}), ["k"])


def test_many_chunks_and_far_integers_are_coded() -> None:
    rows = pa.table({"k": pa.chunked_array([[1, 2**60], [], [None, 3]], pa.int64())})
    probes = pa.table({"k": pa.chunked_array([[3], [2**60], [None]], pa.int64())})
    codes = encode_keys(rows, probes, ["k"])
    assert codes.rows.tolist() == [ABSENT, codes.probes[1], codes.probes[2], codes.probes[0]]


@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(-(2**63), 2**63 - 1) | st.integers(-5, 5)), max_size=20),
    edges=st.lists(st.tuples(st.integers(0, 3), st.integers(-(2**63), 2**63 - 1) | st.integers(-6, 6)), max_size=20),
)
def test_an_edge_lies_above_exactly_the_earlier_rows_of_its_key(
    rows: list[tuple[int, int]], edges: list[tuple[int, int]]
) -> None:
    codes, times = np.array([row[0] for row in rows], np.int64), np.array([row[1] for row in rows], np.int64)
    packing = TimePacking.fit(times, 4)
    packed = packing.pack_rows(codes, times)
    edge_codes, edge_times = np.array([edge[0] for edge in edges], np.int64), np.array([e[1] for e in edges], np.int64)
    for edge, needle in zip(edges, packing.pack_edges(edge_codes, edge_times), strict=True):
        assert (packed < needle).tolist() == [row < edge for row in rows]
    for edge, needle in zip(edges, packing.pack_edges(edge_codes, edge_times, inclusive=True), strict=True):
        assert (packed < needle).tolist() == [row <= edge for row in rows]


@given(
    values=st.lists(st.sampled_from([0, 1, 2, 2**40, 2**62]), max_size=50), within=st.booleans(), numbered=st.booleans()
)
def test_order_is_stable(values: list[int], within: bool, numbered: bool) -> None:
    rows = np.arange(len(values)) * 3 if numbered else None
    ordered, order = sort_packed(np.array(values, np.int64), rows, -np.arange(len(values)) if within else None)
    wanted = sorted(range(len(values)), key=lambda place: (values[place], -place if within else place))
    assert ordered.tolist() == sorted(values)
    if order is None:
        assert not numbered
        assert wanted == list(range(len(values)))
    else:
        assert order.tolist() == [place * 3 if numbered else place for place in wanted]


def test_two_to_the_31_keys_and_a_decade_of_microseconds_in_rows_keep_their_order() -> None:
    first, last, keys = 0, 10 * 366 * 86_400_000_000, 2**31
    rng = np.random.default_rng(7)
    times = np.sort(np.concatenate(([first, 1, last - 1, last], rng.integers(first, last, 2_000))))
    packing = TimePacking.fit(times, keys)
    assert packing.ranks is not None, "31 and 49 bits are more than one integer has, so times are coded by rank"
    assert packing.bits + 31 <= 63
    for code in (0, 1, 2**30, keys - 1):
        codes = np.full(len(times), code)
        packed = packing.pack_rows(codes, times)
        assert packed.min() >= 0
        assert (np.diff(packed) > 0).all() == (np.diff(times) > 0).all()
        assert (packed >> packing.bits == code).all()
        for edge in (first - 1, first, 1, int(times[500]), last, last + 1):
            before = packing.pack_edges(codes[:1], np.array([edge]))
            until = packing.pack_edges(codes[:1], np.array([edge]), inclusive=True)
            assert np.searchsorted(packed, before)[0] == (times < edge).sum()
            assert np.searchsorted(packed, until)[0] == (times <= edge).sum()


def test_two_to_the_31_keys_and_136_years_of_seconds_fill_one_integer_exactly() -> None:
    times = np.array([0, 2**32 - 2])
    packing = TimePacking.fit(times, 2**31)
    assert packing.ranks is None
    assert packing.bits == 32
    top = packing.pack_edges(np.array([2**31 - 1]), np.array([2**62]))
    assert int(top[0]) == 2**63 - 1, "the edge after every row of the last key is the largest integer there is"
    assert packing.pack_rows(np.array([2**31 - 1]), times[1:])[0] == 2**63 - 2


def test_more_keys_and_distinct_times_than_one_integer_holds_are_refused_before_they_are_packed() -> None:
    with pytest.raises(OverflowError, match="63 bits"):
        TimePacking.fit(np.array([0, 1, 2**62]), 2**62)


@given(
    values=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=6),
    steps=st.lists(st.integers(-3, 3), max_size=6),
)
def test_rows_in_pieces_get_the_codes_of_the_whole(values: list[int], steps: list[int]) -> None:
    near = [min(max(values[0] + step, -(2**63)), 2**63 - 1) for step in steps]
    rows = pa.table({"k": pa.array([*near, *values, -(2**63), 2**63 - 1, None], pa.int64())})
    probes = pa.table({"k": pa.array([values[0], *near], pa.int64())})
    whole = encode_keys(rows, probes, ["k"])
    encoder = KeyEncoder(probes, rows.schema, ["k"], expected_rows=1)
    assert [int(encoder.codes(rows.slice(place, 1))[0]) for place in range(rows.num_rows)] == whole.rows.tolist()
    asked = set(probes["k"].to_pylist())
    assert [code != ABSENT for code in whole.rows] == [value in asked for value in rows["k"].to_pylist()]
