"""The answer of a read: an Arrow table that turns into the frame of any library, row for row as the spine was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from featurekit_dagster.engine.arrow import to_arrow
from featurekit_dagster.engine.transform import to_pandas

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl


class FeatureFrame:
    """Feature values, one row per spine row or per answer row.

    Args:
        features: The answer's own columns.
        spine: The frame they were asked for; its columns come first. None for reads without a spine.
        timestamp_key: The spine's time column; it comes back aware, in UTC.
        timestamps: That column in UTC microseconds.
    """

    def __init__(
        self,
        features: pa.Table,
        spine: Any = None,
        timestamp_key: str | None = None,
        timestamps: pa.ChunkedArray | None = None,
    ) -> None:
        self._features = features
        self._spine = spine
        self._timestamp_key = timestamp_key
        self._timestamps = timestamps

    def to_arrow(self) -> pa.Table:
        """Return an Arrow table."""
        if self._spine is None:
            return self._features
        table = to_arrow(self._spine)
        if self._timestamp_key is not None and self._timestamps is not None:
            position = table.column_names.index(self._timestamp_key)
            table = table.set_column(position, self._timestamp_key, self._timestamps)
        for name in self._features.column_names:
            table = table.append_column(self._features.schema.field(name), self._features[name])
        return table

    def to_pandas(self) -> pd.DataFrame:
        """Return a pandas frame; a pandas spine keeps its index, order and the types of its other columns.

        Integers stay integers: a column of them with NULLs has a nullable type. Timestamps are aware, in UTC.
        """
        features = to_pandas(self._features)
        if not hasattr(self._spine, "iloc"):
            return features if self._spine is None else to_pandas(self.to_arrow())
        frame = self._spine.copy()
        if self._timestamp_key is not None and self._timestamps is not None:
            times = self._timestamps.to_pandas()
            times.index = frame.index
            frame[self._timestamp_key] = times
        features.index = frame.index
        for name in features.columns:
            frame[name] = features[name]
        return frame

    def to_polars(self) -> pl.DataFrame:
        """Return a polars frame."""
        import polars as pl  # noqa: PLC0415 - loaded when asked for

        frame = pl.from_arrow(self.to_arrow())
        if not isinstance(frame, pl.DataFrame):
            raise TypeError("an Arrow table became no polars frame")
        return frame

    @property
    def columns(self) -> list[str]:
        """Names of all columns, in order."""
        spine = list(self._spine.columns if hasattr(self._spine, "columns") else ()) if self._spine is not None else []
        if isinstance(self._spine, pa.Table):
            spine = self._spine.column_names
        return [*map(str, spine), *self._features.column_names]

    @property
    def schema(self) -> pa.Schema:
        """Names and Arrow types of all columns."""
        return self.to_arrow().schema

    def __len__(self) -> int:
        return int(self._features.num_rows)

    def __repr__(self) -> str:
        return f"FeatureFrame({len(self):,} rows: {', '.join(self.columns)})"
