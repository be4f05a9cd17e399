"""The rows that a stream view makes of its stream, to look at: nothing is stored but in a DuckDB table of the caller.

It reads beside the view's loop, which it does not disturb: it holds no lease and moves no checkpoint.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

from featurekit_dagster.arrow_types import arrow_schema
from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.errors import ReadError
from featurekit_dagster.execution.stream_events import EventProcessor
from featurekit_dagster.intervals import to_us
from featurekit_dagster.sql_text import quoted
from featurekit_dagster.streams.readers import open_reader
from featurekit_dagster.streams.watermark import Watermark

if TYPE_CHECKING:
    from featurekit_dagster.stores.workspace_stores import WorkspaceStores

MOST_EVENTS = 5_000
_POLL = timedelta(milliseconds=250)
_ROWS = "featurekit_rows"


def check_readable(view: FeatureView) -> None:
    """Refuse views whose stream cannot be read beside their loop.

    Raises:
        ReadError: The view follows no stream, or events are pushed to it.
    """
    source = view.stream_source
    if source is None:
        raise ReadError(f"{view.name} is no stream feature view, so there is no stream to run; use run")
    if source.is_push:
        raise ReadError(
            f"{view.name}: events are sent to its push source {source.name!r}, and only Kafka, Kinesis and Redis "
            "streams can be run; read what was sent with get_online_features"
        )


class StreamPreview:
    """What comes of a view's stream, poll by poll, late and repeated events left out.

    Args:
        view: A stream feature view that `check_readable` accepts.
        stores: The stores of its workspace; nothing is written there.
        positions: Where to go on, by source partition; by default the source's `initial_stream_position`.

    Raises:
        ReadError: The view's stream cannot be read so.
        StreamUnavailable: The stream cannot be reached.
    """

    def __init__(
        self, view: FeatureView, stores: WorkspaceStores, positions: Mapping[str, str | None] | None = None
    ) -> None:
        check_readable(view)
        assert view.stream_source is not None
        self._clock: Callable[[], datetime] = stores.clock
        self._processor = EventProcessor(view)
        self._reader = open_reader(view.stream_source, stores.home, workspace=stores.workspace)
        self.positions = {name: (positions or {}).get(name) for name in self._reader.partitions()}
        self._reader.seek(self.positions)
        delay = view.stream_source.stream_config.watermark_delay_threshold
        delay_us = None if delay is None else delay // timedelta(microseconds=1)
        self._watermark = Watermark.starting(delay_us, dict.fromkeys(self.positions), to_us(self._clock()))
        self._marks: dict[bytes, int] = {}
        self.refused = 0

    def poll(self, timeout: timedelta = _POLL) -> pa.Table:
        """Return the rows of what comes next; none if nothing came in time."""
        batches, now = self._reader.poll(MOST_EVENTS, timeout), self._clock()
        found = self._processor.process(batches, self._watermark, now, self._seen)
        self._watermark = found.watermark
        self._marks |= dict(found.marks)
        droppable = found.watermark.at(to_us(now))
        if droppable is not None:
            self._marks = {mark: us for mark, us in self._marks.items() if us > droppable}
        self.refused += len(found.letters)
        self.positions |= {batch.partition: batch.position for batch in batches}
        return found.rows

    def _seen(self, marks: Sequence[bytes]) -> Collection[bytes]:
        return self._marks.keys() & set(marks)

    def close(self) -> None:
        """Let go of the stream."""
        self._reader.close()


class StreamRun:
    """A stream that runs into a DuckDB table until it is stopped, in the background; also a context.

    Args:
        preview: Where rows come from; closed at the end.
        connection: Where the table is.
        table: Its name.
        checkpoint: A file that keeps the positions for the next run, or None.

    Raises:
        ReadError: A table of that name has other columns.
    """

    def __init__(
        self,
        view: FeatureView,
        preview: StreamPreview,
        connection: duckdb.DuckDBPyConnection,
        table: str,
        checkpoint: Path | None,
    ) -> None:
        self.table, self.rows, self.error = table, 0, None
        self._preview, self._checkpoint = preview, checkpoint
        self._connection = connection.cursor()  # a thread of its own needs one, on the same tables
        self._create(view)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"run_stream {view.name}", daemon=True)
        self._thread.start()

    error: BaseException | None

    def __repr__(self) -> str:
        return f"<stream into table {self.table!r}: {self.rows:,} rows, {'running' if self.is_running else 'ended'}>"

    @property
    def is_running(self) -> bool:
        """Whether rows are still to come."""
        return self._thread.is_alive()

    @property
    def refused(self) -> int:
        """How many events could not become rows."""
        return self._preview.refused

    def stop(self) -> None:
        """End the run; the table stays.

        Raises:
            FeatureKitError: What ended it before.
        """
        self._stop.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def __enter__(self) -> StreamRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _create(self, view: FeatureView) -> None:
        empty = arrow_schema(view.columns).empty_table()
        try:
            columns = self._connection.table(self.table).columns
        except duckdb.CatalogException:
            columns = empty.column_names
        if columns != empty.column_names:
            raise ReadError(
                f"{view.name}: there is a table {self.table!r} with other columns, which is not replaced; give another "
                "output_temp_table"
            )
        self._with(empty, f"CREATE OR REPLACE TABLE {quoted(self.table)} AS FROM {_ROWS}")

    def _with(self, rows: pa.Table, statement: str) -> None:
        self._connection.register(_ROWS, rows)
        self._connection.execute(statement)
        self._connection.unregister(_ROWS)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                rows = self._preview.poll()
                if rows.num_rows:
                    self._with(rows, f"INSERT INTO {quoted(self.table)} FROM {_ROWS}")
                    self.rows += rows.num_rows
                if self._checkpoint is not None:
                    keep_positions(self._checkpoint, self._preview.positions)
        except Exception as error:  # noqa: BLE001 - it is raised where the run is stopped
            self.error = error
        finally:
            self._preview.close()
            self._connection.close()


def kept_positions(checkpoint: Path) -> dict[str, str | None]:
    """Return the positions that a file keeps; none if there is no such file."""
    if not checkpoint.exists():
        return {}
    found: dict[str, str | None] = json.loads(checkpoint.read_text(encoding="utf-8"))
    return found


def keep_positions(checkpoint: Path, positions: Mapping[str, str | None]) -> None:
    """Write positions to a file, which is whole at any time."""
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    draft = checkpoint.with_suffix(".tmp")
    draft.write_text(json.dumps(dict(positions)), encoding="utf-8")
    os.replace(draft, checkpoint)
