"""The methods of a feature view by which people read its history: for events, for a span of time, tile by tile."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from featurekit_dagster.dataset_handles import DatasetJob, DatasetOrigin, saved
from featurekit_dagster.domain.feature_view import FeatureReference, FeatureView
from featurekit_dagster.errors import ReadError
from featurekit_dagster.planning.dataset_request import DatasetKind
from featurekit_dagster.serving.frame import FeatureFrame
from featurekit_dagster.serving.historical import entity_keys, features_for_spine
from featurekit_dagster.serving.history import history
from featurekit_dagster.serving.partials import partial_aggregates
from featurekit_dagster.serving.progress import shown_progress
from featurekit_dagster.serving.ranges import check_max_lookback, check_open_range, check_range, features_in_range
from featurekit_dagster.serving.stored import StoredRows

if TYPE_CHECKING:
    from featurekit_dagster.sdk import Workspace


class ReadingMethods:
    """What a feature view of a workspace answers about the past.

    Source: SDK page.
    """

    _workspace: Workspace
    declaration: FeatureView

    def get_features_for_events(
        self,
        events: Any,
        timestamp_key: str | None = None,
        from_source: bool | None = None,
        mock_inputs: Mapping[str, Any] | None = None,
        *,
        allow_gaps: bool = False,
    ) -> FeatureFrame:
        """Return the events with what could have been known at their times, as columns `<view>__<feature>`.

        One row per event, in the same order, with all its columns.

        Args:
            events: pandas, polars or Arrow frame, or a `FeatureFrame`, with the join keys and a time column.
            timestamp_key: The time column; may be left out when there is only one.
            from_source: True computes from the source, False reads the offline store, None reads it where the view
                writes it.
            mock_inputs: Parameter of the view's function to a frame that is used instead of its source; the features
                are then computed, and nothing stored is read.
            allow_gaps: Answer NULL, instead of refusing, where something is not materialized.

        Raises:
            SpineError: A column is missing or of the wrong type.
            ReadError: The view cannot be read from there.
            NotMaterialized: Something needed is not materialized, and gaps are not allowed.
        """
        return self._for_spine(events, timestamp_key, from_source, "__", allow_gaps, mock_inputs)

    def get_historical_features(
        self,
        spine: Any = None,
        timestamp_key: str | None = None,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        entities: Any = None,
        from_source: bool | None = False,
        save: bool = False,
        save_as: str | None = None,
        *,
        allow_gaps: bool = False,
    ) -> FeatureFrame:
        """Return the spine with its features as columns `<view>.<feature>`, or the feature values of a time range.

        Without a spine: for a view without aggregates every row with `start_time <= timestamp < end_time`; for
        aggregates one row per join key and tile that has data, as of the tile's end, or per join key and time of an
        event where there are no tiles; each with `_effective_timestamp`. Without any argument: everything that is
        there.

        Args:
            spine: As in `get_features_for_events`.
            timestamp_key: The spine's time column; only with a spine.
            start_time: First instant, raised to `feature_start_time`; naive is UTC; only without a spine.
            end_time: First instant after, naive is UTC; only without a spine.
            entities: A frame of join keys to keep; only without a spine.
            from_source: True computes from the source; False, the default, reads the offline store.
            save: Whether to keep the answer as a dataset; the frame says its name as `dataset_name`.
            save_as: Name of that dataset; a name is made up without one.
            allow_gaps: As in `get_features_for_events`.

        Raises:
            ReadError: Arguments that exclude each other, or a view that cannot be read from there.
            NotMaterialized: Something needed is not materialized.
            DatasetExists: There is a dataset of that name.

        Source: SDK page, get_historical_features.
        """
        if spine is not None:
            if start_time is not None or end_time is not None or entities is not None:
                name = self.declaration.name
                raise ReadError(f"{name}: start_time, end_time and entities are given beside a spine; leave them out")
            frame = self._for_spine(spine, timestamp_key, from_source, ".", allow_gaps)
            return saved(frame, self.declaration.name, save=save, save_as=save_as)
        if timestamp_key is not None:
            raise ReadError(f"{self.declaration.name}: timestamp_key is given without a spine; leave it out")
        start, end = check_open_range(self.declaration, start_time, end_time)
        keys = entity_keys(self.declaration, entities)
        stored = self._stored(from_source)
        with shown_progress("reading features", 1):
            frame = FeatureFrame(history(stored, start, end, keys))
        origin = self._origin(DatasetKind.HISTORY, keys, from_source, start_us=start, end_us=end)
        return saved(frame.with_origin(origin), self.declaration.name, save=save, save_as=save_as)

    def get_features_in_range(
        self,
        start_time: datetime,
        end_time: datetime,
        entities: Any = None,
        max_lookback: timedelta | None = None,
        from_source: bool | None = None,
        mock_inputs: Mapping[str, Any] | None = None,
    ) -> FeatureFrame:
        """Return join keys, features, `_valid_from` and `_valid_to`: how long each value was what a reader saw.

        Half-open and disjoint per key, inside `[start_time, end_time]`. Rows of aggregates that are all at their
        defaults are left out. A row expires at `effective time + ttl` here, which differs from the point-in-time rule
        when ttl is not a multiple of the schedule.

        Args:
            start_time: First instant, raised to `feature_start_time`; naive is UTC.
            end_time: First instant after; naive is UTC.
            entities: A frame of join keys to keep.
            max_lookback: How far before `start_time` rows are searched that are still valid in the range; not for
                aggregates. Rows further back are missed, which leaves entities out and changes no value.
            from_source: True computes from the source, False reads the offline store, None reads it where the view
                writes it.
            mock_inputs: As in `get_features_for_events`.

        Raises:
            ReadError: An empty range, one before the features begin, or a `max_lookback` that does not fit.
            NotMaterialized: Something needed is not materialized.
        """
        start, end = check_range(self.declaration, start_time, end_time)
        lookback = check_max_lookback(self.declaration, max_lookback)
        keys = entity_keys(self.declaration, entities)
        stored = self._stored(from_source, mock_inputs)
        with shown_progress("reading features", 1):
            frame = FeatureFrame(features_in_range(stored, start, end, keys, lookback))
        if mock_inputs:
            return frame
        origin = self._origin(
            DatasetKind.RANGE, keys, from_source, start_us=start, end_us=end, max_lookback_us=lookback
        )
        return frame.with_origin(origin)

    def get_partial_aggregates(
        self,
        start_time: datetime,
        end_time: datetime,
        entities: Any = None,
        from_source: bool | None = None,
        mock_inputs: Mapping[str, Any] | None = None,
    ) -> FeatureFrame:
        """Return the tiles of a span: join keys, partial columns, `_interval_start_time`, `_interval_end_time`.

        The secondary key, if there is one, stands after the join keys. An `end_time` on the tile grid still adds the
        tile that begins at it.

        Args:
            start_time: First instant, raised to `feature_start_time`; naive is UTC.
            end_time: Last instant of interest; naive is UTC.
            entities: A frame of join keys to keep.
            from_source: As in `get_features_in_range`.
            mock_inputs: As in `get_features_for_events`.

        Raises:
            ReadError: The view has no tiles, because it has no aggregates or stores events; or the range is empty.
            NotMaterialized: Something needed is not materialized.
        """
        start, end = check_range(self.declaration, start_time, end_time)
        keys = entity_keys(self.declaration, entities)
        stored = self._stored(from_source, mock_inputs)
        with shown_progress("reading tiles", 1):
            return FeatureFrame(partial_aggregates(stored, start, end, keys))

    def _stored(self, from_source: bool | None, mocks: Mapping[str, Any] | None = None) -> StoredRows:
        return StoredRows.choose(self.declaration, self._workspace.stores, from_source, mocks)

    def create_dataset(
        self,
        name: str,
        spine: Any,
        timestamp_key: str | None = None,
        from_source: bool | None = None,
        *,
        allow_gaps: bool = False,
        bucket_rows: int | None = None,
        job_retry_times: int | None = None,
    ) -> DatasetJob:
        """Start a job that keeps a spine with its features as a dataset, without reading any feature here.

        The rows are those of `get_features_for_events`; however many there are, the job holds one bucket at a time.

        Args:
            name: Of the dataset, unique in the workspace.
            spine: A frame, the path of a .parquet or .csv file, or a query that DuckDB runs in this process.
            timestamp_key: As in `get_features_for_events`.
            from_source: As in `get_features_for_events`.
            allow_gaps: As in `get_features_for_events`.
            bucket_rows: Rows of the spine whose features are in memory at a time.
            job_retry_times: How often the job is tried again after an error; 9 times by default.

        Raises:
            DatasetExists: There is a dataset of that name, or a job makes it.
            SpineError: A column of the spine is missing or cannot be used.
            SourceError: The file cannot be read.
            QueryRefused: The query cannot be run.
            ReadError: The view cannot be read from there.
        """
        reference = FeatureReference(view=self.declaration)
        origin = DatasetOrigin.of_spine(self._workspace, (reference,), spine, timestamp_key, from_source, "__")
        return origin.allowing(allow_gaps).start(name, bucket_rows=bucket_rows, job_retry_times=job_retry_times)

    def _origin(self, kind: DatasetKind, keys: Any, from_source: bool | None, **span: int | None) -> DatasetOrigin:
        """Return where the answer for a time range comes from."""
        reference = FeatureReference(view=self.declaration)
        settings = {**span, "from_source": from_source, "has_entities": keys is not None}
        return DatasetOrigin(self._workspace, keys, {"kind": kind, "references": (reference,), **settings})

    def _for_spine(
        self,
        spine: Any,
        timestamp_key: str | None,
        from_source: bool | None,
        separator: str,
        allow_gaps: bool,
        mocks: Mapping[str, Any] | None = None,
    ) -> FeatureFrame:
        reference = FeatureReference(view=self.declaration)
        frame = features_for_spine(
            (reference,),
            self._workspace.stores,
            spine,
            timestamp_key,
            from_source=from_source,
            separator=separator,
            allow_gaps=allow_gaps,
            mocks=mocks,
        )
        if mocks:
            return frame
        origin = DatasetOrigin.of_spine(self._workspace, (reference,), spine, timestamp_key, from_source, separator)
        return frame.with_origin(origin.allowing(allow_gaps))
