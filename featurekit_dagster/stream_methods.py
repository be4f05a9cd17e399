"""What a feature view offers to look at its stream."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from featurekit_dagster.domain.feature_view import FeatureView

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

    from featurekit_dagster.execution.stream_preview import StreamRun
    from featurekit_dagster.sdk import Workspace


class StreamMethods:
    """The methods of a view that concern its stream."""

    _workspace: Workspace
    declaration: FeatureView

    def run_stream(
        self,
        output_temp_table: str,
        checkpoint_dir: str | Path | None = None,
        *,
        connection: duckdb.DuckDBPyConnection | None = None,
    ) -> StreamRun:
        """Begin to write the rows of the view's transformation to a DuckDB table, as its stream brings them.

        It goes on in the background until `stop()` of what is returned, or the end of its `with` block. Nothing of the
        workspace is written, and the view's own loop is not disturbed.

        Args:
            output_temp_table: Name of the table; one with the same columns is replaced.
            checkpoint_dir: A folder in which the positions are kept, so that the next run with it goes on there; by
                default a run begins at the source's `initial_stream_position`.
            connection: Where the table is; by default the connection that `duckdb.sql` uses.

        Raises:
            ReadError: The view follows no stream, its events are pushed, or another table has that name.
            StreamUnavailable: The stream cannot be reached.

        Source: SDK page, run_stream. There it is a Spark table.
        """
        import duckdb  # noqa: PLC0415 - declarations are listed without it

        from featurekit_dagster.execution.stream_preview import (  # noqa: PLC0415
            StreamPreview,
            StreamRun,
            kept_positions,
        )

        name = self.declaration.name
        checkpoint = None if checkpoint_dir is None else Path(checkpoint_dir) / f"{self._workspace.name}.{name}.json"
        positions = None if checkpoint is None else kept_positions(checkpoint)
        preview = StreamPreview(self.declaration, self._workspace.stores, positions)
        return StreamRun(
            self.declaration, preview, connection or duckdb.default_connection(), output_temp_table, checkpoint
        )

    def dead_letters(self) -> pd.DataFrame:
        """Return the events of the view's stream that could not become rows, by source partition and in their order.

        Returns:
            One row per event: `partition`, its `number` among the dead letters of the partition, `refused_at`, the
            `reason`, which names fields and never values, and the `payload` as it came.
        """
        return self._workspace.stores.dead_letters(self.declaration).read().to_pandas()
