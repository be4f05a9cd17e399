"""A feature view whose sources are files of test events, for a workspace that is thrown away.

Everything else is as declared: the function, the grid, windows, schema. What names a store of the user's is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.domain.sources import BatchSource, FileConfig, FilteredSource, SourceRange
from featurekit_dagster.execution.integration_events import InputEvents
from featurekit_dagster.intervals import Interval, floor_time


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewUnderTest:
    """A view with test events for sources.

    Args:
        view: The view; a stream view without a batch side still has none.
        history: The same view with the test events as its batch side; `view` itself where it has one.
        events: What each parameter of its function is handed.
        interval: The batch intervals that the events lie in.
    """

    view: FeatureView
    history: FeatureView
    events: Mapping[str, InputEvents]
    interval: Interval

    @property
    def tables(self) -> dict[str, object]:
        """The events per parameter, as frames that stand in for the sources."""
        return {name: given.rows for name, given in self.events.items()}


def view_under_test(
    view: FeatureView, events: Sequence[InputEvents], interval: Interval, folder: Path
) -> ViewUnderTest:
    """Write events to files and return the view that reads them, served from the start of the interval.

    Args:
        view: The declaration.
        events: What each parameter of its function is handed.
        interval: The batch intervals that the events lie in.
        folder: Where the files are put.
    """
    by_name = {given.parameter: given for given in events}
    inputs = {name: _file_range(view, given, folder) for name, given in by_name.items()}
    served = replace(view, feature_start_time=interval.start, manual_trigger_backfill_end_time=None, online_store=None)
    served = replace(served, publish=None, max_backfill_interval=None)
    history = replace(served, inputs=inputs)
    return ViewUnderTest(view=history if view.inputs else served, history=history, events=by_name, interval=interval)


def _file_range(view: FeatureView, events: InputEvents, folder: Path) -> SourceRange:
    file = folder / f"{events.parameter}.parquet"
    pq.write_table(events.rows, file)
    used = view.inputs.get(events.parameter)
    delay = timedelta(0) if used is None else used.source.data_delay
    config = FileConfig(uri=str(file), file_format="parquet", timestamp_field=events.time_column, data_delay=delay)
    if used is None:
        assert view.stream_source is not None
        return FilteredSource(BatchSource(name=view.stream_source.name, batch_config=config))
    return replace(used, source=BatchSource(name=used.source.name, batch_config=config))


def interval_of_events(view: FeatureView, events: Sequence[InputEvents]) -> Interval | None:
    """Return the batch intervals that hold all events whose time is known; None where no time is."""
    columns = [given.rows[given.time_column] for given in events if given.time_column and given.rows.num_rows]
    times = [end.as_py() for column in columns for end in pc.min_max(column).values()]
    if not times:
        return None
    schedule = view.batch_schedule
    return Interval(floor_time(min(times), schedule), floor_time(max(times), schedule) + schedule)
