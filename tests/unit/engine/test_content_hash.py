"""The hash of contents: the same for equal rows however they are cut, another one for whatever differs."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurekit_dagster.engine.content_hash import ContentHash
from featurekit_dagster.engine.storable import storable, type_text
from featurekit_dagster.errors import UnstorableColumns
from tests.conftest import SOAK

EXAMPLES = 1_000 if SOAK else 8

TYPES: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "integer": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "float": (pa.float64(), st.floats(allow_nan=False)),
    "text": (pa.string(), st.text(max_size=3)),
    "flag": (pa.bool_(), st.booleans()),
    "texts": (pa.list_(pa.string()), st.lists(st.none() | st.text(max_size=2), max_size=3)),
    "pair": (
        pa.struct([("a", pa.int64()), ("b", pa.string())]),
        st.fixed_dictionaries({"a": st.none() | st.integers(0, 3), "b": st.none() | st.text(max_size=1)}),
    ),
    "lists": (
        pa.list_(pa.list_(pa.int64())),
        st.lists(st.none() | st.lists(st.integers(0, 3), max_size=2), max_size=2),
    ),
    "map": (pa.map_(pa.string(), pa.int64()), st.dictionaries(st.text(max_size=1), st.integers(0, 3), max_size=2).map(
        lambda found: list(found.items())
    )),
}  # fmt: skip
ROWS = st.fixed_dictionaries({name: st.none() | values for name, (_, values) in TYPES.items()})
SCHEMA = pa.schema([(name, kind) for name, (kind, _) in TYPES.items()])


def digest(*pieces: pa.Table) -> str:
    content = ContentHash(pieces[0].schema)
    for piece in pieces:
        content.add(piece)
    return content.hexdigest()


@settings(max_examples=EXAMPLES)
@given(st.lists(ROWS, max_size=8), st.lists(st.integers(0, 8), max_size=4))
def test_equal_rows_have_one_hash_however_they_are_cut(rows: list[dict[str, Any]], cuts: list[int]) -> None:
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    bounds = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    pieces = [table.slice(start, end - start) for start, end in zip(bounds, bounds[1:], strict=False)]
    assert digest(*pieces) == digest(table)


@settings(max_examples=EXAMPLES)
@given(st.lists(ROWS, min_size=1, max_size=5), ROWS, st.integers(0, 4), st.sampled_from(SCHEMA.names))
def test_another_value_in_any_cell_is_another_hash(
    rows: list[dict[str, Any]], other: dict[str, Any], place: int, column: str
) -> None:
    place %= len(rows)
    changed = [dict(row) for row in rows]
    changed[place][column] = other[column]
    one, two = (pa.Table.from_pylist(each, schema=SCHEMA) for each in (rows, changed))
    both = repr(one[column].to_pylist()), repr(two[column].to_pylist())  # tells -0.0 from 0.0, as the hash does
    assert (digest(one) == digest(two)) == (both[0] == both[1])


def test_order_names_and_types_count() -> None:
    table = pa.table({"a": [1, 2], "b": [2, 1]})
    others = [
        table.take([1, 0]),
        table.rename_columns(["a", "c"]),
        table.select(["b", "a"]),
        table.set_column(0, "a", table["a"].cast(pa.int32())),
    ]
    assert len({digest(each) for each in (table, *others)}) == 5


def test_null_is_not_what_stands_in_its_place() -> None:
    assert digest(pa.table({"a": pa.array([0, None])})) != digest(pa.table({"a": pa.array([None, 0])}))
    empty = pa.array([[], None], pa.list_(pa.int64()))
    assert digest(pa.table({"a": empty})) != digest(pa.table({"a": empty.take(pa.array([1, 0]))}))


def test_every_nan_is_one_and_zeros_of_two_signs_are_two() -> None:
    quiet, negative = math.nan, math.copysign(math.nan, -1)
    assert digest(pa.table({"a": [quiet]})) == digest(pa.table({"a": [negative]}))
    assert digest(pa.table({"a": [0.0]})) != digest(pa.table({"a": [-0.0]}))


def test_types_that_delta_lacks_become_wider_and_keep_their_values() -> None:
    noon = datetime.fromisoformat("2024-01-01T12:00")
    table = pa.table(
        {
            "u32": pa.array([2**32 - 1], pa.uint32()),
            "u64": pa.array([2**63 - 1], pa.uint64()),
            "category": pa.array(["x"]).dictionary_encode(),
            "nothing": pa.nulls(1),
            "ns": pa.array([1_500], pa.timestamp("ns")),
            "zoned": pa.array([noon], pa.timestamp("s", "Europe/Berlin")),
            "large": pa.array([["x"]], pa.large_list(pa.large_string())),
            "money": pa.array([Decimal("1.50")]),
        }
    )
    kept = storable(table)
    assert {field.name: type_text(field.type) for field in kept.schema} == {
        "u32": "int64",
        "u64": "int64",
        "category": "string",
        "nothing": "string",
        "ns": "timestamp",
        "zoned": "timestamp[UTC]",
        "large": "list<string>",
        "money": "decimal128(3, 2)",
    }
    assert kept.to_pylist()[0] == {
        "u32": 2**32 - 1,
        "u64": 2**63 - 1,
        "category": "x",
        "nothing": None,
        "ns": datetime.fromisoformat("1970-01-01T00:00:00.000001"),
        "zoned": noon.replace(tzinfo=UTC),
        "large": ["x"],
        "money": Decimal("1.50"),
    }
    assert storable(kept).schema == kept.schema


@pytest.mark.parametrize(
    "column",
    [pa.array([2**64 - 1], pa.uint64()), pa.nulls(1, pa.time64("us")), pa.nulls(1, pa.list_(pa.duration("s")))],
)
def test_column_that_delta_cannot_keep_is_named_and_its_value_is_not(column: pa.Array) -> None:
    with pytest.raises(UnstorableColumns) as refused:
        storable(pa.table({"fine": [1], "odd": column}))
    assert refused.value.faults == (f"odd ({column.type})",)
    assert str(2**64 - 1) not in str(refused.value)
