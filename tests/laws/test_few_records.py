"""Sorting a few online records is another way than sorting many; both bring them into the same order."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurekit_dagster.domain.schema import Field, Float64, Int64, String
from featurekit_dagster.stores import record_runs
from featurekit_dagster.stores.key_codec import KeyCodec
from featurekit_dagster.stores.online import OnlineLayout
from featurekit_dagster.stores.packing import ValueCodec
from featurekit_dagster.stores.record_runs import RecordRuns

LONG = "x" * 500
ROWS = st.lists(
    st.tuples(st.sampled_from([None, "", "a", "a\0", "b", LONG]), st.integers(-3, 3), st.integers(-200, 200)),
    max_size=40,
)


def _found(tile_us: int | None, rows: list[tuple[str | None, int, int]], *, from_stream: bool) -> list[Any]:
    layout = OnlineLayout(
        workspace="prod",
        view="v",
        generation=1,
        key_fields=(Field("user", String), Field("shop", Int64)),
        index_length=2,
        tile_us=tile_us,
        value_fields=(Field("amount", Float64),),
    )
    users, shops, times = ([row[place] for row in rows] for place in range(3))
    table = {
        "user": pa.array(users, pa.large_string()),
        "shop": pa.array(shops, pa.int64()),
        layout.time_column: pa.array(times, pa.int64()).cast(pa.timestamp("us", "UTC")),
        "amount": pa.array([float(at) for at in range(len(rows))], pa.float64()),
    }
    values = ValueCodec(layout.value_fields, is_tiled=tile_us is not None)
    runs = RecordRuns(layout, pa.table(table), KeyCodec(layout), values, from_stream=from_stream)
    slabs = [(slab.keys, slab.base_keys, slab.key_starts, values.pack(slab.block)) for slab in runs.slabs()]
    return [slabs, runs.order.tolist(), runs.full_keys]


@pytest.mark.parametrize("from_stream", [False, True])
@pytest.mark.parametrize("tile_us", [None, 1])
@given(rows=ROWS)
def test_few_records_are_sorted_as_many_are(
    tile_us: int | None, from_stream: bool, rows: list[tuple[str | None, int, int]]
) -> None:
    few = _found(tile_us, rows, from_stream=from_stream)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_runs, "_FEW_ROWS", -1)
        assert few == _found(tile_us, rows, from_stream=from_stream)
