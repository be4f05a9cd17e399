"""Cutting rows into buckets, files and threads changes no answer."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurekit_dagster.domain.aggregation import AggregateFeature
from featurekit_dagster.domain.schema import Field, Float64, Int64, String
from featurekit_dagster.domain.windows import TimeWindow
from featurekit_dagster.engine import buckets
from featurekit_dagster.engine.buckets import asked_only, in_buckets, roll_up_in_buckets
from featurekit_dagster.engine.duck import connect
from featurekit_dagster.engine.memory import Limits, memory_budget
from featurekit_dagster.engine.rollup import ANCHOR_TIME, EDGE, roll_up
from featurekit_dagster.errors import AggregationOverflow, InvalidMemoryBudget, UnsupportedKeyType

HOUR_US = 3_600_000_000
TIME = pa.timestamp("us", "UTC")
KEYS = {
    pa.int64(): st.sampled_from([0, 1, 2, 3, -1, 2**62, -(2**63), 2**63 - 1]),
    pa.string(): st.sampled_from(["", "a", "b", "ä", "z"]),
    pa.bool_(): st.booleans(),
}
FEATURES = [
    AggregateFeature(
        name=f"{function}_{hours}", column=column, function=function, window=TimeWindow(timedelta(hours=hours)), n=n
    )
    for function, column, n in [
        ("count", Field("v", Float64), 0),
        ("mean", Field("v", Float64), 0),
        ("sum", Field("i", Int64), 0),
        ("max", Field("v", Float64), 0),
        ("last", Field("s", String), 0),
        ("last_n", Field("s", String), 2),
    ]
    for hours in (1, 5)
]
VALUES = {
    "count_v": (pa.int64(), st.integers(0, 3)),
    "sum_v": (pa.float64(), st.none() | st.sampled_from([0.1, -2.5, 1e300, float("inf")])),
    "sum_i": (pa.int64(), st.none() | st.integers(-5, 5)),
    "max_v": (pa.float64(), st.none() | st.sampled_from([0.5, float("nan")])),
    "last_s": (pa.string(), st.none() | st.sampled_from(["x", "y", "zz"])),
    "last_non_distinct_n2_s": (pa.list_(pa.string()), st.lists(st.sampled_from(["p", "q"]), max_size=2)),
}


@pytest.fixture(autouse=True)
def spill_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Let three rows count as many; afterwards no file is left."""
    monkeypatch.setattr(buckets, "_SMALL_ROWS", 1)
    monkeypatch.setattr(buckets, "_THREADED_ROWS", 1)
    monkeypatch.setattr(buckets, "_PIECE_ROWS", 3)
    monkeypatch.setattr(buckets, "_BLOCK_ROWS", 4)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert not list(tmp_path.iterdir())


def table(rows: list[tuple[Any, ...]], names: list[str], types: list[pa.DataType]) -> pa.Table:
    columns = [pa.array([row[place] for row in rows], dtype) for place, dtype in enumerate(types)]
    return pa.table(columns, names=names)


@st.composite
def cases(draw: st.DrawFn) -> tuple[pa.Table, pa.Table, tuple[str, ...]]:
    types = draw(st.lists(st.sampled_from(list(KEYS)), max_size=2))
    keys = tuple(f"k{number}" for number in range(len(types)))
    key = st.tuples(*[st.none() | KEYS[dtype] for dtype in types])
    hour = st.integers(0, 8).map(lambda hours: hours * HOUR_US)
    tile = st.tuples(key, hour, *[values for _, values in VALUES.values()]).map(lambda row: (*row[0], *row[1:]))
    probe = st.tuples(key, st.none() | hour).map(lambda row: (*row[0], row[1]))
    tiles = table(
        draw(st.lists(tile, max_size=14)),
        [*keys, ANCHOR_TIME, *VALUES],
        [*types, TIME, *[dtype for dtype, _ in VALUES.values()]],
    )
    return tiles, table(draw(st.lists(probe, max_size=9)), [*keys, EDGE], [*types, TIME]), keys


def as_text(answer: pa.Table) -> str:
    """NaN is no reason for two answers to differ."""
    return str(answer.schema) + str(answer.to_pylist())


@given(
    case=cases(),
    threads=st.integers(1, 3),
    budget=st.sampled_from([1, 700, 3_000, 1 << 30]),
    files=st.integers(1, 7),
    is_stream=st.booleans(),
)
def test_buckets_files_and_threads_change_no_answer(
    case: tuple[pa.Table, pa.Table, tuple[str, ...]], threads: int, budget: int, files: int, is_stream: bool
) -> None:
    tiles, probes, keys = case
    expected = roll_up(tiles, probes, keys=keys, tile_us=HOUR_US, features=FEATURES)
    rows = tiles.to_reader(max_chunksize=2) if is_stream else tiles
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets, "_FILES", files)
        limits = Limits(budget_bytes=budget, threads=threads)
        found = roll_up_in_buckets(rows, probes, keys=keys, tile_us=HOUR_US, features=FEATURES, limits=limits)
    assert as_text(found) == as_text(expected)


@given(case=cases(), budget=st.sampled_from([1, 1 << 30]), files=st.integers(1, 7))
def test_a_secondary_key_stays_with_its_rows(
    case: tuple[pa.Table, pa.Table, tuple[str, ...]], budget: int, files: int
) -> None:
    tiles, probes, keys = case
    tiles = tiles.append_column("other", pa.array([number % 3 for number in range(tiles.num_rows)], pa.int64()))
    sums = [feature for feature in FEATURES if feature.function in ("count", "sum")]
    arguments: dict[str, Any] = {"keys": keys, "tile_us": HOUR_US, "features": sums, "secondary_key": "other"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets, "_FILES", files)
        limits = Limits(budget_bytes=budget, threads=2)
        found = roll_up_in_buckets(tiles.to_reader(max_chunksize=2), probes, limits=limits, **arguments)
    assert as_text(found) == as_text(roll_up(tiles, probes, **arguments))


def test_every_bucket_gets_its_rows_in_their_order_and_no_others() -> None:
    rows = pa.table({"k": [3, 1, None, 1, 3, 7, None], "v": list(range(7))})
    probes = pa.table({"k": pa.array([None, 1, 5, 3], pa.int64()), "row": list(range(4))})

    def joined(part: pa.Table, asked: pa.Table, names: tuple[str, ...]) -> pa.Table:
        codes, values = part[names[0]].to_pylist(), part["v"].to_pylist()
        found = [
            [v for code, v in zip(codes, values, strict=True) if code == mine] for mine in asked[names[0]].to_pylist()
        ]
        return pa.table({"row": asked["row"], "found": pa.array(found, pa.list_(pa.int64()))})

    limits = Limits(budget_bytes=1, threads=2)
    answer = in_buckets(rows.to_reader(max_chunksize=1), probes, keys=("k",), compute=joined, limits=limits)
    assert answer.to_pydict() == {"row": [0, 1, 2, 3], "found": [[2, 6], [1, 3], [], [0, 4]]}


def test_an_error_in_a_bucket_is_raised_and_leaves_no_file() -> None:
    top = 2**63 - 1
    tiles = table(
        [(1, 0, top), (1, HOUR_US, top), (2, 0, 1)], ["k", ANCHOR_TIME, "sum_i"], [pa.int64(), TIME, pa.int64()]
    )
    probes = table([(1, 5 * HOUR_US), (2, 5 * HOUR_US)], ["k", EDGE], [pa.int64(), TIME])
    sums = [feature for feature in FEATURES if feature.function == "sum"]
    with pytest.raises(AggregationOverflow):
        roll_up_in_buckets(tiles.to_reader(1), probes, keys=("k",), tile_us=HOUR_US, features=sums,
                           limits=Limits(budget_bytes=1, threads=2))  # fmt: skip


def test_a_float_key_is_refused_before_anything_is_cut() -> None:
    rows = pa.table({"k": [1.0]})
    with pytest.raises(UnsupportedKeyType):
        in_buckets(rows, rows, keys=("k",), compute=lambda part, _, __: part)


@pytest.mark.parametrize(
    ("given", "size"),
    [("2GB", 2 * 10**9), ("512MB", 512 * 10**6), ("1.5 GiB", 3 << 29), ("1000", 1000), ("4kb", 4000)],
)
def test_the_budget_is_what_the_environment_says(given: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATUREKIT_MEMORY", given)
    assert memory_budget() == size


@pytest.mark.parametrize("given", ["much", "2XB", "-1GB", "0", "GB"])
def test_a_budget_that_is_no_size_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATUREKIT_MEMORY", given)
    with pytest.raises(InvalidMemoryBudget, match="FEATUREKIT_MEMORY"):
        memory_budget()


def test_without_a_word_the_budget_is_no_more_than_half_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEATUREKIT_MEMORY", raising=False)
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < memory_budget() <= total // 2
    assert Limits.of_machine().threads >= 1


def test_answers_are_in_the_order_of_the_probes_whatever_the_buckets() -> None:
    rng = np.random.default_rng(3)
    rows = pa.table({"k": pa.array(rng.integers(0, 50, 500)), "v": pa.array(np.arange(500))})
    probes = pa.table({"k": pa.array(rng.integers(0, 60, 90)), "row": pa.array(np.arange(90))})
    limits = Limits(budget_bytes=2_000, threads=3)
    answer = in_buckets(rows.to_reader(50), probes, keys=("k",), compute=lambda _, asked, __: asked.select(["row"]),
                        limits=limits)  # fmt: skip
    assert answer["row"].to_pylist() == list(range(90))


@given(case=cases())
def test_rows_of_other_keys_are_left_out_and_no_others(case: tuple[pa.Table, pa.Table, tuple[str, ...]]) -> None:
    tiles, probes, keys = case
    with connect() as con:
        con.register("tiles", tiles)
        found = con.sql(asked_only(con, "tiles", probes, keys=keys)).to_arrow_table()
    asked = set(zip(*(probes[key].to_pylist() for key in keys), strict=True))
    expected = [row for row in tiles.to_pylist() if not keys or tuple(row[key] for key in keys) in asked]
    assert sorted(map(str, found.to_pylist())) == sorted(map(str, expected))


def test_a_key_of_another_kind_is_refused_before_rows_are_asked_for() -> None:
    with connect() as con, pytest.raises(UnsupportedKeyType):
        asked_only(con, "(SELECT 1 AS k)", pa.table({"k": ["1"]}), keys=("k",))
