"""How the frames of other libraries come in as Arrow tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurekit_dagster.arrow_types import TIMESTAMP
from featurekit_dagster.errors import TectonValidationError

UNCONVERTIBLE = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError)
"""What Arrow raises for values that it has no type for; its text quotes them."""


def to_arrow(frame: Any) -> pa.Table:
    """Return a pandas, polars, Arrow or DuckDB frame, or one of our own, as an Arrow table in the same row order.

    Raises:
        TectonValidationError: It is something else, or column names repeat.
    """
    if isinstance(frame, pa.Table):
        table = frame
    elif isinstance(frame, pa.RecordBatch):
        table = pa.Table.from_batches([frame])
    elif hasattr(frame, "to_arrow"):
        table = frame.to_arrow()
    elif hasattr(frame, "collect"):
        table = frame.collect().to_arrow()
    elif hasattr(frame, "iloc"):
        table = pa.Table.from_pandas(frame, preserve_index=False)
    elif hasattr(frame, "to_arrow_table"):
        table = frame.to_arrow_table()
    else:
        raise TectonValidationError(f"a {type(frame).__name__} is no frame; give a pandas, polars or Arrow table")
    if len(set(table.column_names)) < table.num_columns:
        repeated = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
        raise TectonValidationError(f"columns {', '.join(repeated)} appear more than once; rename them")
    return table


def floored_to_microseconds(times: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return nanosecond times in UTC microseconds: a time in between becomes the earlier one, also before 1970."""
    nanoseconds = times.cast(pa.int64()).combine_chunks()
    values = np.floor_divide(pc.fill_null(nanoseconds, 0).to_numpy(), 1000)
    floored = pa.array(values, mask=pc.is_null(nanoseconds).to_numpy(zero_copy_only=False))
    return pa.chunked_array([floored.cast(TIMESTAMP)])
