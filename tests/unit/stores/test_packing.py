"""Keys and values of the online store as bytes."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurekit_dagster.arrow_types import record_type
from featurekit_dagster.domain.schema import (
    Array,
    Bool,
    Bytes,
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
from featurekit_dagster.errors import JoinKeyMismatch, KeyTooLong
from featurekit_dagster.stores.key_codec import KeyCodec, chunk_of, chunk_suffix
from featurekit_dagster.stores.online import Key, OnlineLayout
from featurekit_dagster.stores.packing import Block, ValueCodec
from featurekit_dagster.stores.tile_merge import insert_tiles, merge_blocks

KEY_FIELDS = (
    Field("text", String),
    Field("number", Int64),
    Field("raw", Bytes),
    Field("flag", Bool),
    Field("time", Timestamp),
    Field("small", Int32),
)
KEYS = st.tuples(
    st.none() | st.text(st.sampled_from("\x00\x01a\xffé\U0001f600"), max_size=4),
    st.none() | st.integers(-(2**63), 2**63 - 1),
    st.none() | st.binary(max_size=4),
    st.none() | st.booleans(),
    st.none() | st.datetimes(timezones=st.just(UTC)),
    st.none() | st.integers(-(2**31), 2**31 - 1),
)


def layout(*fields: Field, index_length: int | None = None, tile_us: int | None = None) -> OnlineLayout:
    length = len(fields) if index_length is None else index_length
    return OnlineLayout(
        workspace="w", view="v", key_fields=fields, index_length=length, tile_us=tile_us, value_fields=()
    )


def sort_key(key: Key) -> tuple[Any, ...]:
    values = [v.encode() if isinstance(v, str) else v for v in key]
    return tuple([(v is not None, v if v is not None else 0) for v in values])


class TestKeys:
    @given(KEYS)
    def test_a_key_comes_back_as_it_was(self, key: Key) -> None:
        codec = KeyCodec(layout(*KEY_FIELDS))
        assert codec.decode(codec.encode(key)) == key

    @given(KEYS, KEYS)
    def test_the_order_of_the_bytes_is_the_order_of_the_keys(self, one: Key, other: Key) -> None:
        codec = KeyCodec(layout(*KEY_FIELDS))
        assert (codec.encode(one) < codec.encode(other)) == (sort_key(one) < sort_key(other))
        assert (codec.encode(one) == codec.encode(other)) == (one == other)

    @given(KEYS, KEYS)
    def test_no_key_is_a_prefix_of_another(self, one: Key, other: Key) -> None:
        codec = KeyCodec(layout(*KEY_FIELDS))
        assert one == other or not codec.encode(one).startswith(codec.encode(other))

    @given(st.lists(KEYS, max_size=6))
    def test_columns_are_encoded_as_single_keys_are(self, keys: list[Key]) -> None:
        codec = KeyCodec(layout(*KEY_FIELDS))
        columns = list(zip(*keys, strict=True)) if keys else [()] * len(KEY_FIELDS)
        arrays = [pa.array(c, record_type(f.dtype)) for c, f in zip(columns, KEY_FIELDS, strict=True)]
        assert codec.encode_columns(arrays) == (list(map(codec.encode, keys)), {})

    @pytest.mark.parametrize("field", [Field("k", Int64), Field("k", String)])
    @given(st.none() | st.integers(-(2**63), 2**63 - 1), st.none() | st.text(max_size=120))
    def test_the_short_way_of_one_key_agrees_with_the_general_one(
        self, field: Field, number: int | None, text: str | None
    ) -> None:
        single, double = KeyCodec(layout(field)), KeyCodec(layout(field, Field("other", Bool)))
        value = number if field.dtype == Int64 else text
        assert single.encode((value,)) + b"\x00\x00" == double.encode((value, None))

    @given(KEYS, st.integers(1, 5))
    def test_the_leading_values_begin_the_key(self, key: Key, count: int) -> None:
        codec = KeyCodec(layout(*KEY_FIELDS))
        assert codec.encode(key).startswith(codec.encode_prefix(key[:count]))

    @given(st.integers(-(2**62), 2**62), st.integers(-(2**62), 2**62))
    def test_chunks_sort_by_number(self, one: int, other: int) -> None:
        assert (chunk_suffix(one) < chunk_suffix(other)) == (one < other)
        assert chunk_of(b"key" + chunk_suffix(one)) == one

    def test_naive_datetimes_are_utc(self) -> None:
        codec = KeyCodec(layout(Field("t", Timestamp)))
        naive = datetime(2024, 1, 1)  # noqa: DTZ001 - the point of the test
        assert codec.encode((naive,)) == codec.encode((datetime(2024, 1, 1, tzinfo=UTC),))

    def test_a_long_key_is_hashed_and_others_are_not(self) -> None:
        codec = KeyCodec(layout(Field("k", String)))
        assert not codec.is_hashed(codec.encode(("a" * 397,)))
        assert codec.is_hashed(codec.encode(("a" * 398,)))
        stored, full = codec.encode_columns([pa.array(["a" * 398, "b"], pa.large_string())])
        assert stored == [codec.encode(("a" * 398,)), codec.encode(("b",))]
        assert list(full) == stored[:1]

    def test_a_wildcard_view_refuses_a_long_key_without_showing_it(self) -> None:
        codec = KeyCodec(layout(Field("k", String), Field("m", Int64), index_length=1))
        with pytest.raises(KeyTooLong, match="409 encoded bytes") as caught:
            codec.encode(("secret" * 66 + "a", 1))
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            (Field("k", Int64), "secret"),
            (Field("k", Int64), True),
            (Field("k", Int64), 2**63),
            (Field("k", Int64), 1.0),
            (Field("k", String), b"secret"),
            (Field("k", String), "\ud800secret"),
            (Field("k", Bytes), "secret"),
            (Field("k", Bool), 1),
            (Field("k", Timestamp), 5),
        ],
    )
    def test_a_value_of_another_type_is_refused_without_showing_it(self, field: Field, value: object) -> None:
        with pytest.raises(JoinKeyMismatch, match="join key k got a") as caught:
            KeyCodec(layout(field)).encode((value,))
        assert "secret" not in str(caught.value)
        assert caught.value.__cause__ is caught.value.__context__ is None

    @pytest.mark.parametrize("key", [(), (1, 2)])
    def test_a_wrong_number_of_values_is_refused(self, key: Key) -> None:
        with pytest.raises(JoinKeyMismatch, match=r"takes 1 \(k\)"):
            KeyCodec(layout(Field("k", Int64))).encode(key)


FLOATS = st.floats(width=64)
VALUES: dict[str, tuple[Field, st.SearchStrategy[Any]]] = {
    "int": (Field("int", Int64), st.integers(-(2**63), 2**63 - 1)),
    "float": (Field("float", Float64), FLOATS),
    "small": (Field("small", Int32), st.integers(-(2**31), 2**31 - 1)),
    "single": (Field("single", Float32), st.floats(width=32)),
    "flag": (Field("flag", Bool), st.booleans()),
    "time": (Field("time", Timestamp), st.datetimes(timezones=st.just(UTC))),
    "text": (Field("text", String), st.text(max_size=5)),
    "raw": (Field("raw", Bytes), st.binary(max_size=9)),
    "list": (Field("list", Array(Int64)), st.lists(st.none() | st.integers(-5, 5), max_size=3)),
    "struct": (
        Field("struct", Struct([Field("a", Timestamp), Field("b", String)])),
        st.fixed_dictionaries({"a": st.just(datetime(2024, 1, 1, 0, 0, 0, 1, tzinfo=UTC)), "b": st.text(max_size=2)}),
    ),
    "map": (
        Field("map", Map(String, Float64)),
        st.dictionaries(st.text(max_size=2), st.floats(-1, 1), max_size=2),
    ),
}
FIXED = ("int", "float", "small", "single", "flag", "time")


def same(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    return type(one) is type(other) and one == other


@st.composite
def tile_sets(
    draw: st.DrawFn, names: tuple[str, ...], nulls: bool = True, least: int = 1
) -> list[dict[int, tuple[Any, ...]]]:
    """Chunks as slot to cells."""
    cells = st.tuples(*[st.none() | VALUES[name][1] if nulls else VALUES[name][1] for name in names])
    return draw(
        st.lists(st.dictionaries(st.integers(0, 63), cells, min_size=least, max_size=6), min_size=1, max_size=4)
    )


def block(codec: ValueCodec, chunks: list[dict[int, tuple[Any, ...]]], batch: bool = True) -> Block:
    rows = [(owner, slot, cells) for owner, chunk in enumerate(chunks) for slot, cells in sorted(chunk.items())]
    columns = [
        codec.column_cells(at, pa.array([cells[at] for _, _, cells in rows], record_type(field.dtype)))
        for at, field in enumerate(codec.fields)
    ]
    return Block(
        np.array([owner for owner, _, _ in rows]),
        np.array([slot for _, slot, _ in rows]),
        np.full(len(rows), batch),
        [column for column, _ in columns],
        [null for _, null in columns],
    )


def codec_of(names: tuple[str, ...]) -> ValueCodec:
    return ValueCodec([VALUES[name][0] for name in names], is_tiled=True)


def check_rows(codec: ValueCodec, value: bytes, chunk: dict[int, tuple[Any, ...]]) -> None:
    found = codec.rows(value)
    assert [slot for slot, *_ in found] == sorted(chunk)
    for slot, *cells in found:
        assert all(map(same, cells, chunk[slot])), (cells, chunk[slot])


class TestValues:
    @pytest.mark.parametrize("names", [tuple(VALUES), FIXED, ("int",), ("text",)])
    @given(data=st.data())
    def test_tiles_come_back_as_they_were(self, names: tuple[str, ...], data: st.DataObject) -> None:
        codec, chunks = codec_of(names), data.draw(tile_sets(names))
        for value, chunk in zip(codec.pack(block(codec, chunks)), chunks, strict=True):
            check_rows(codec, value, chunk)

    @given(tile_sets(tuple(VALUES)))
    def test_a_block_comes_back_from_its_values(self, chunks: list[dict[int, tuple[Any, ...]]]) -> None:
        codec = codec_of(tuple(VALUES))
        values = codec.pack(block(codec, chunks))
        assert codec.pack(codec.unpack(values)) == values

    @given(tile_sets(("int", "float")), st.binary(max_size=3))
    def test_whole_words_behind_a_value_change_nothing(
        self, chunks: list[dict[int, tuple[Any, ...]]], trailer: bytes
    ) -> None:
        codec = codec_of(("int", "float"))
        values = codec.pack(block(codec, chunks))
        longer = [value + trailer * 8 for value in values]
        assert codec.pack(codec.unpack(longer)) == values
        for value, chunk in zip(longer, chunks, strict=True):
            check_rows(codec, value, chunk)

    @given(st.lists(st.tuples(st.integers(-(2**62), 2**62), *[st.none() | s for _, s in VALUES.values()]), min_size=1))
    def test_latest_rows_come_back_as_they_were(self, rows: list[tuple[Any, ...]]) -> None:
        fields = [field for field, _ in VALUES.values()]
        codec = ValueCodec(fields, is_tiled=False)
        columns = [
            codec.column_cells(at, pa.array([row[at + 1] for row in rows], record_type(field.dtype)))
            for at, field in enumerate(fields)
        ]
        packed = codec.pack(
            Block(
                np.arange(len(rows)),
                np.array([row[0] for row in rows]),
                np.ones(len(rows), bool),
                [column for column, _ in columns],
                [null for _, null in columns],
            )
        )
        for value, row in zip(packed, rows, strict=True):
            (found,) = codec.rows(value)
            assert found[0] == row[0]
            assert all(map(same, found[1:], row[1:]))

    def test_more_columns_than_a_word_has_bits_keep_their_nulls(self) -> None:
        codec = ValueCodec([Field(f"c{at}", Int64) for at in range(130)], is_tiled=True)
        cells = tuple([None if at % 3 == 0 else at for at in range(130)])
        (value,) = codec.pack(block(codec, [{5: cells, 6: cells[::-1]}]))
        check_rows(codec, value, {5: cells, 6: cells[::-1]})

    @given(tile_sets(("int", "single"), nulls=False))
    def test_chunks_alike_unpack_to_the_matrix_of_their_cells(self, chunks: list[dict[int, tuple[Any, ...]]]) -> None:
        codec = codec_of(("int", "single"))
        first = chunks[0]
        for value in (codec.pack(block(codec, [first] * 3)),):
            found = codec.unpack_alike(value)
            assert found is not None
            assert found[0].tolist() == sorted(first)
            assert found[1][0].tolist() == [[first[slot][0] for slot in sorted(first)]] * 3
        values = codec.pack(block(codec, chunks))
        alike = codec.unpack_alike(values)
        assert (alike is not None) == all(chunk.keys() == first.keys() for chunk in chunks)


class TestMerging:
    @given(data=st.data())
    @pytest.mark.parametrize("names", [("int", "float"), ("int", "text", "list")])
    def test_new_tiles_replace_and_join_the_old_ones(self, names: tuple[str, ...], data: st.DataObject) -> None:
        codec = codec_of(names)
        olds = data.draw(tile_sets(names))
        news = [data.draw(tile_sets(names).map(lambda chunks: chunks[0])) for _ in olds]
        merged, refused = merge_blocks(block(codec, olds), block(codec, news))
        assert refused == 0
        for value, old, new in zip(codec.pack(merged), olds, news, strict=True):
            check_rows(codec, value, old | new)

    @given(data=st.data())
    def test_the_short_way_gives_the_same_bytes(self, data: st.DataObject) -> None:
        names = FIXED
        codec = codec_of(names)
        olds = data.draw(tile_sets(names, nulls=False))
        news = [data.draw(tile_sets(names, nulls=False).map(lambda chunks: chunks[0])) for _ in olds]
        general, _ = merge_blocks(block(codec, olds), block(codec, news))
        assert insert_tiles(codec, codec.pack(block(codec, olds)), block(codec, news)) == codec.pack(general)

    @pytest.mark.parametrize("names", [tuple(VALUES), ("text",), ("list", "int", "raw")])
    @given(data=st.data())
    def test_one_tile_put_in_among_texts_and_lists_is_one_merged(
        self, names: tuple[str, ...], data: st.DataObject
    ) -> None:
        codec = codec_of(names)
        olds = data.draw(tile_sets(names, nulls=False))
        cells = st.tuples(*[VALUES[name][1] for name in names])
        news = [data.draw(st.dictionaries(st.integers(0, 63), cells, min_size=1, max_size=1)) for _ in olds]
        general, _ = merge_blocks(block(codec, olds), block(codec, news))
        assert insert_tiles(codec, codec.pack(block(codec, olds)), block(codec, news)) == codec.pack(general)

    def test_nulls_streams_and_several_texts_go_the_general_way(self) -> None:
        codec = codec_of(("int",))
        full, empty = block(codec, [{1: (1,)}]), block(codec, [{2: (None,)}])
        assert insert_tiles(codec, codec.pack(full), empty) is None
        assert insert_tiles(codec, codec.pack(empty), full) is None
        assert insert_tiles(codec, codec.pack(full), block(codec, [{2: (1,)}], batch=False)) is None
        texts = codec_of(("text", "int"))
        full, empty = block(texts, [{1: ("a", 1)}]), block(texts, [{2: (None, 1)}])
        assert insert_tiles(texts, texts.pack(empty), full) is None
        assert insert_tiles(texts, texts.pack(full), empty) is None
        assert insert_tiles(texts, texts.pack(full), block(texts, [{2: ("a", 1), 3: ("b", 1)}])) is None

    def test_a_stream_tile_does_not_replace_a_batch_tile_but_a_batch_tile_does_replace_a_stream_tile(self) -> None:
        codec = codec_of(("int",))
        batch, stream = block(codec, [{1: (10,), 2: (20,)}]), block(codec, [{2: (21,), 3: (30,)}], batch=False)
        merged, refused = merge_blocks(batch, stream)
        assert refused == 1
        assert codec.rows(codec.pack(merged)[0]) == [(1, 10), (2, 20), (3, 30)]
        merged, refused = merge_blocks(stream, batch)
        assert refused == 0
        assert codec.rows(codec.pack(merged)[0]) == [(1, 10), (2, 20), (3, 30)]
        assert merged.from_batch.tolist() == [True, True, False]


def test_timestamps_keep_their_microseconds() -> None:
    codec = ValueCodec([Field("t", Timestamp)], is_tiled=True)
    time = datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    (value,) = codec.pack(block(codec, [{0: (time,), 1: (time + timedelta(microseconds=1),)}]))
    assert codec.rows(value) == [(0, time), (1, datetime(1970, 1, 1, tzinfo=UTC))]
