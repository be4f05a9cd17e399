"""Arrow columns read from their buffers."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from featurekit_dagster.engine.columns import int64_values, numbers, present, to_column

cells = st.lists(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=20), max_size=4)


@given(chunks=cells, start=st.integers(0, 30))
def test_every_cell_is_read_whatever_the_chunks_and_the_slice(chunks: list[list[int | None]], start: int) -> None:
    column = pa.chunked_array([pa.array(chunk, pa.int64()) for chunk in chunks], pa.int64()).slice(start)
    wanted = [value for chunk in chunks for value in chunk][start:]
    valid = present(column)
    flags = [True] * len(wanted) if valid is None else valid.tolist()
    assert flags == [value is not None for value in wanted]
    got = numbers(column).tolist()
    assert [value if there else None for value, there in zip(got, flags, strict=True)] == wanted
    filled, missing = int64_values(column)
    assert (missing is None) == (None not in wanted)
    assert {*filled.tolist()} <= {value for value in wanted if value is not None} | {0}


@given(cells=st.lists(st.none() | st.floats(allow_nan=False), max_size=20))
def test_columns_are_written_as_they_are_read(cells: list[float | None]) -> None:
    values = np.array([0.0 if cell is None else cell for cell in cells])
    valid = np.array([cell is not None for cell in cells], np.bool_)
    column = to_column(values, valid, pa.float64())
    column.validate(full=True)
    assert column.to_pylist() == cells


def test_nan_is_a_value_and_no_null() -> None:
    column = to_column(np.array([np.nan, 1.0]), np.array([True, False]), pa.float64())
    assert column.null_count == 1
    assert str(column.to_pylist()) == "[nan, None]"


def test_rolling_up_does_not_import_pandas() -> None:
    program = """
import sys
from datetime import timedelta
import duckdb
from featurekit_dagster.domain.aggregation import AggregateFeature
from featurekit_dagster.domain.schema import Field, Float64
from featurekit_dagster.domain.windows import TimeWindow
from featurekit_dagster.engine.rollup import roll_up
features = [
    AggregateFeature(name=f, column=Field("v", Float64), function=f, window=TimeWindow(timedelta(hours=1)))
    for f in ("count", "sum", "mean", "min", "last")
]
with duckdb.connect() as con:
    con.execute("SET TimeZone = 'UTC'")
    tiles = con.sql(
        "SELECT 1 AS k, TIMESTAMPTZ '2024-01-01' AS _anchor_time, CAST(2 AS BIGINT) AS count_v, "
        "CAST(3 AS DOUBLE) AS sum_v, NULL::DOUBLE AS min_v, CAST(1 AS DOUBLE) AS last_v"
    ).to_arrow_table()
    probes = con.sql("SELECT 1 AS k, TIMESTAMPTZ '2024-01-01 01:00' AS _edge").to_arrow_table()
found = roll_up(tiles, probes, keys=("k",), tile_us=3_600_000_000, features=features).to_pylist()
assert found == [{"count": 2, "sum": 3.0, "mean": 1.5, "min": None, "last": 1.0}], found
assert "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
