"""The answer of a read: an Arrow table that turns into the frame of any library, row for row as the spine was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from featurekit_dagster.engine.arrow import UNCONVERTIBLE, to_arrow
from featurekit_dagster.engine.transform import to_pandas
from featurekit_dagster.errors import NotADatasetFrame, SpineError, TectonValidationError

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl


class DatasetStarter(Protocol):
    """Makes a dataset of an answer."""

    def start(self, name: str, *, bucket_rows: int | None, job_retry_times: int | None) -> Any:
        """Start the job and return it."""
        ...


class FeatureFrame:
    """Feature values, one row per spine row or per answer row.

    Args:
        features: The answer's own columns.
        spine: The frame they were asked for; its columns come first. None for reads without a spine.
        timestamp_key: The spine's time column; it comes back aware, in UTC.
        timestamps: That column in UTC microseconds.
        origin: Makes a dataset of the same answer; None where no later read would give it.
    """

    dataset_name: str | None = None
    """Name of the dataset that the answer was kept as, if it was."""

    def __init__(
        self,
        features: pa.Table,
        spine: Any = None,
        timestamp_key: str | None = None,
        timestamps: pa.ChunkedArray | None = None,
        origin: DatasetStarter | None = None,
    ) -> None:
        self._features = features
        self._spine = spine
        self._timestamp_key = timestamp_key
        self._timestamps = timestamps
        self._origin = origin

    def with_origin(self, origin: DatasetStarter) -> FeatureFrame:
        """Return the same frame, of which datasets can be made."""
        return FeatureFrame(self._features, self._spine, self._timestamp_key, self._timestamps, origin)

    def to_arrow(self) -> pa.Table:
        """Return an Arrow table."""
        if self._spine is None:
            return self._features
        table = _spine_as_arrow(self._spine)
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
        import pandas as pd  # noqa: PLC0415 - loaded when asked for

        features.index = frame.index
        return pd.concat([frame, features], axis=1)

    def to_polars(self) -> pl.DataFrame:
        """Return a polars frame; a polars spine keeps the types of its other columns."""
        import polars as pl  # noqa: PLC0415 - loaded when asked for

        if not isinstance(self._spine, pl.DataFrame):
            return pl.DataFrame(self.to_arrow())
        frame = self._spine
        if self._timestamp_key is not None and self._timestamps is not None:
            frame = frame.with_columns(pl.Series(self._timestamp_key, self._timestamps))
        return frame.hstack(pl.DataFrame(self._features))

    @property
    def columns(self) -> list[str]:
        """Names of all columns, in order."""
        spine = [] if self._spine is None else column_names(self._spine)
        return [*spine, *self._features.column_names]

    @property
    def schema(self) -> pa.Schema:
        """Names and Arrow types of all columns."""
        return self.to_arrow().schema

    def start_dataset_job(
        self,
        dataset_name: str,
        cluster_config: Any = None,
        environment: str | None = None,
        extra_config: Mapping[str, Any] | None = None,
        compute_mode: str | None = None,
        job_retry_times: int | None = None,
    ) -> Any:
        """Start a job that reads the same answer again, bucket by bucket, and keeps it as a dataset.

        Args:
            dataset_name: Unique in the workspace.
            cluster_config: Of other platforms; None here.
            environment: Of other platforms; None here.
            extra_config: `{"bucket_rows": ...}`, rows of the spine whose features are in memory at a time.
            compute_mode: Of other platforms; None here.
            job_retry_times: How often the job is tried again after an error; 9 times by default.

        Returns:
            A `DatasetJob`.

        Raises:
            NotADatasetFrame: The frame is of another method, or was made with mock_inputs.
            DatasetExists: There is a dataset of that name, or a job makes it.
            TectonValidationError: A setting that has no meaning here.

        Source: Job Types, Dataset Generation.
        """
        if self._origin is None:
            raise NotADatasetFrame(why="this frame is not the answer of a read that can be repeated")
        given = {"cluster_config": cluster_config, "environment": environment, "compute_mode": compute_mode}
        unknown = [name for name, value in given.items() if value is not None]
        unknown += [f"extra_config[{name!r}]" for name in extra_config or {} if name != "bucket_rows"]
        if unknown:
            raise TectonValidationError(f"{', '.join(unknown)} has no meaning here; leave it out")
        bucket_rows = (extra_config or {}).get("bucket_rows")
        return self._origin.start(dataset_name, bucket_rows=bucket_rows, job_retry_times=job_retry_times)

    def __len__(self) -> int:
        return int(self._features.num_rows)

    def __repr__(self) -> str:
        return f"FeatureFrame({len(self):,} rows: {', '.join(self.columns)})"


def column_names(frame: Any) -> list[str]:
    """Return the names of a frame's columns.

    Raises:
        SpineError: It is no frame.
    """
    if isinstance(frame, pa.Table | pa.RecordBatch):
        return list(frame.schema.names)
    if hasattr(frame, "collect_schema"):
        return list(frame.collect_schema().names())
    if hasattr(frame, "columns"):
        return list(map(str, frame.columns))
    raise SpineError(f"a {type(frame).__name__} is no frame; give a pandas, polars or Arrow table")


def _spine_as_arrow(spine: Any) -> pa.Table:
    try:
        return to_arrow(spine)
    except UNCONVERTIBLE:
        raise SpineError(
            "a column of the spine holds objects that Arrow has no type for; use to_pandas(), or convert it"
        ) from None
