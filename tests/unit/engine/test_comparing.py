"""Values compared with their neighbours and with defaults, as Python compares them, without a loop over rows."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurekit_dagster.engine.comparing import is_default, same_as_previous

LEAVES: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.int64(): st.none() | st.integers(-2, 2),
    pa.float64(): st.none() | st.sampled_from([0.5, 1.0, math.nan]),
    pa.string(): st.none() | st.sampled_from(["", "a", "b"]),
    pa.bool_(): st.none() | st.booleans(),
}
KINDS = st.recursive(
    st.sampled_from(list(LEAVES)),
    lambda inner: st.one_of(
        inner.map(pa.list_),
        inner.map(lambda kind: pa.map_(pa.string(), kind)),
        st.tuples(inner, inner).map(lambda kinds: pa.struct([("x", kinds[0]), ("y", kinds[1])])),
    ),
    max_leaves=4,
)


def of_kind(kind: pa.DataType) -> st.SearchStrategy[Any]:
    if kind in LEAVES:
        return LEAVES[kind]
    if pa.types.is_map(kind):
        pairs = st.tuples(st.sampled_from(["a", "b"]), of_kind(kind.item_type))
        return st.none() | st.lists(pairs, max_size=2, unique_by=lambda pair: pair[0])
    if pa.types.is_struct(kind):
        return st.none() | st.fixed_dictionaries({name: of_kind(kind.field(name).type) for name in ("x", "y")})
    return st.none() | st.lists(of_kind(kind.value_type), max_size=2)


@given(data=st.data(), kind=KINDS)
def test_neighbours_of_any_type_are_compared_as_python_compares_them(data: st.DataObject, kind: pa.DataType) -> None:
    few = data.draw(st.lists(of_kind(kind), min_size=1, max_size=3))
    values = data.draw(st.lists(st.sampled_from(few), max_size=8))
    cut = data.draw(st.integers(0, len(values)))
    first = data.draw(st.sampled_from(few))
    # a slice of an array begins in the middle of its buffers
    chunks = [pa.array([first, *values[:cut]], kind).slice(1), pa.array(values[cut:], kind)]
    column = pa.chunked_array(chunks, kind)
    wanted = [repr(one) == repr(other) for one, other in zip(values[1:], values, strict=False)]
    assert same_as_previous(column).tolist() == wanted


@pytest.mark.parametrize(
    ("values", "kind", "default", "wanted"),
    [
        ([None, 0, 1], pa.int64(), 0, [False, True, False]),
        ([None, 0.0], pa.float64(), None, [True, False]),
        ([[], [None], None], pa.list_(pa.string()), [], [True, False, False]),
        ([[0, 0], [0, 1], None, [0]], pa.list_(pa.int64()), [0, 0], [True, False, False, False]),
        ([[None, None], [None, 1.0]], pa.list_(pa.float64()), [None, None], [True, False]),
        ([[[], []], [[], ["a"]]], pa.list_(pa.list_(pa.string())), [[], []], [True, False]),
    ],
)
def test_defaults_are_told_from_answers(values: list[Any], kind: pa.DataType, default: Any, wanted: list[bool]) -> None:
    assert is_default(pa.chunked_array([pa.array(values, kind)]), default).tolist() == wanted
    assert is_default(pa.chunked_array([], kind), default).tolist() == []
