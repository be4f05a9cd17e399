"""Datasets of a workspace, as people use them: the job that makes one, its rows, and how it came about."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from featurekit_dagster.domain.feature_view import FeatureReference
from featurekit_dagster.errors import NoSpine, ReadError, TectonValidationError
from featurekit_dagster.execution.dataset import (
    Reproduction,
    bucket_count,
    open_request,
    remove_dataset,
    reproduce_dataset,
)
from featurekit_dagster.execution.dataset_spine import spine_bucket
from featurekit_dagster.intervals import as_utc, format_time
from featurekit_dagster.planning.dataset_request import (
    BUCKET_ROWS,
    DatasetFeatures,
    DatasetKind,
    DatasetRequest,
    check_dataset_name,
)
from featurekit_dagster.planning.job_state import MANAGED, JobState
from featurekit_dagster.serving.frame import FeatureFrame

if TYPE_CHECKING:
    from featurekit_dagster.sdk import Workspace
    from featurekit_dagster.stores.ledger_records import JobRecord


class DatasetJob:
    """A job that makes a dataset.

    Source: Job Types, Dataset Generation.
    """

    def __init__(self, workspace: Workspace, job_id: str, name: str) -> None:
        self._workspace = workspace
        self.id = job_id
        self.dataset_name = name

    def __repr__(self) -> str:
        return f"<job {self.id!r} of dataset {self.dataset_name!r}: {self.state}>"

    @property
    def state(self) -> str:
        """A state of materialization jobs, such as RUNNING or SUCCESS."""
        return self._job.state

    @property
    def progress(self) -> tuple[int, int]:
        """How many buckets are stored, and how many there will be; nothing of either once the dataset is deleted."""
        datasets = self._workspace.stores.datasets
        found = open_request(datasets, self.dataset_name)
        if found is None or found[0] != self.id:
            return 0, 0
        return datasets.buckets(self.dataset_name), bucket_count(found[1], found[2])

    def wait_for_completion(self, timeout: timedelta | None = None) -> None:
        """Wait until the job has succeeded; without a daemon to start it, it is carried out in this process.

        One whose process has died on this host is gone on with.

        Args:
            timeout: How long to wait; None is for ever.

        Raises:
            JobFailedException: The job will not succeed by itself.
            JobTimeoutException: The time is over; the job goes on.
        """
        from featurekit_dagster.job_waiting import wait_for_job

        self._workspace.stores.ledger.abandon_dead(self._workspace.name)
        wait_for_job(self._workspace, self.id, timeout)

    def complete(self) -> None:
        """Wait as `wait_for_completion` does, without a word on who carries the job out.

        Raises:
            JobFailedException: The job will not succeed by itself.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*no Dagster daemon gives a sign of life")
            self.wait_for_completion()

    def get_dataset(self) -> Dataset | None:
        """Return the dataset; None unless the job has succeeded."""
        return self._workspace.get_dataset(self.dataset_name) if self.state == JobState.SUCCESS else None

    def cancel(self) -> None:
        """Ask for the job to be cancelled: a bucket that is being stored is finished, and `retry` goes on after it."""
        self._workspace.stores.ledger.cancel(self.id)

    def retry(self) -> None:
        """Ask for the job to be tried again after it has ended without success; it goes on at the next bucket.

        Raises:
            JobStateError: The job has not ended.
        """
        self._workspace.stores.ledger.retry(self.id)

    @property
    def _job(self) -> JobRecord:
        return self._workspace.stores.ledger.job(self.id)


class Dataset:
    """A named table of features that somebody asked for once.

    Source: Job Types, Dataset Generation; SDK page, get_historical_features (`save`, `save_as`).
    """

    def __init__(self, workspace: Workspace, name: str) -> None:
        self._workspace = workspace
        self._datasets = workspace.stores.datasets
        self.name = name
        self.manifest: Mapping[str, Any] = self._datasets.manifest(name)
        self._request = DatasetRequest.from_record(self.manifest["request"])

    def __repr__(self) -> str:
        return f"<dataset {self.name!r} of workspace {self._workspace.name!r}: {self.row_count:,} rows>"

    @property
    def row_count(self) -> int:
        """Number of rows."""
        return int(self.manifest["rows"])

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in order."""
        return [column["name"] for column in self.manifest["columns"]]

    @property
    def features(self) -> list[str]:
        """Names of the columns that are features, in order."""
        return [column["name"] for column in self.manifest["columns"] if column["is_feature"]]

    @property
    def statistics(self) -> dict[str, dict[str, Any]]:
        """What the values of each feature look like: null rate, range, quantiles, histogram, as the type allows."""
        return {
            column["name"]: {"null_rate": column["null_rate"], **column["statistics"]}
            for column in self.manifest["columns"]
            if column["is_feature"]
        }

    @property
    def storage_location(self) -> str:
        """Path or URI of its Delta table, whose column `_featurekit_row` gives the order of the rows."""
        return self._datasets.location(self.name)

    @property
    def is_archived(self) -> bool:
        """Whether it is left out of lists."""
        return self._datasets.is_archived(self.name)

    def to_dataframe(self, start_time: datetime | None = None, end_time: datetime | None = None) -> FeatureFrame:
        """Return the rows in their order, or those with `start_time <= time < end_time`.

        Args:
            start_time: First instant, naive is UTC.
            end_time: First instant after, naive is UTC.

        Raises:
            ReadError: A time is given for a dataset without a time column.
        """
        pieces = self._datasets.pieces(self.name, self._request.bucket_rows, self.row_count)
        chosen = [_between(piece, self._time_column(start_time, end_time), start_time, end_time) for piece in pieces]
        return FeatureFrame(pa.concat_tables(chosen) if chosen else self._datasets.schema(self.name).empty_table())

    def _time_column(self, start_time: datetime | None, end_time: datetime | None) -> str:
        if start_time is None and end_time is None:
            return ""
        if self._request.timestamp_key is None:
            raise ReadError(f"dataset {self.name!r} has no time column; leave out start_time and end_time")
        return self._request.timestamp_key

    def get_spine_dataframe(self) -> FeatureFrame:
        """Return the spine that the dataset was made from.

        Raises:
            NoSpine: It was made from a time range.
        """
        if self._request.kind is not DatasetKind.EVENTS:
            raise NoSpine(name=self.name)
        buckets = range(int(self.manifest["buckets"]))
        return FeatureFrame(pa.concat_tables(spine_bucket(self._datasets, self.name, each) for each in buckets))

    def get_events_dataframe(self) -> FeatureFrame:
        """Return the spine that the dataset was made from; the newer name of `get_spine_dataframe`."""
        return self.get_spine_dataframe()

    def archive(self) -> None:
        """Leave the dataset out of lists; its rows stay, and its name stays taken."""
        self._datasets.archive(self.name, format_time(self._workspace.now()))

    def unarchive(self) -> None:
        """Show the dataset in lists again."""
        self._datasets.archive(self.name, None)

    def delete(self) -> None:
        """Delete the dataset with everything that is kept of it; its name is free then."""
        remove_dataset(self._workspace.stores, self.name)

    def reproduce(self) -> Reproduction:
        """Make the rows again from the versions that the manifest names, storing nothing, and compare contents.

        Views that were computed from their sources are computed from what these hold now.

        Raises:
            VersionGone: Maintenance has deleted a version that it was made of.
            DatasetChanged: A view is declared otherwise now.
        """
        from featurekit_dagster.orchestration.datasets import dataset_reader

        repo, stores = self._workspace.repo, self._workspace.stores
        return reproduce_dataset(self.name, repo, stores, partial(dataset_reader, repo=repo, stores=stores))


def _between(table: pa.Table, column: str, start_time: datetime | None, end_time: datetime | None) -> pa.Table:
    for time, keeps in ((start_time, pc.greater_equal), (end_time, pc.less)):
        if time is not None:
            moment = as_utc(time) if table.schema.field(column).type.tz else as_utc(time).replace(tzinfo=None)
            table = table.filter(keeps(table[column], pa.scalar(moment, table.schema.field(column).type)))
    return table


@dataclass(frozen=True, slots=True)
class DatasetOrigin:
    """What an answer was made of, so that a job can make it again.

    Args:
        workspace: The workspace.
        spine: The frame that was given; of a time range its join keys, or None.
        settings: Arguments of `DatasetRequest`, all but the name and the size of buckets; `references` as they are
            declared.
    """

    workspace: Workspace
    spine: Any
    settings: Mapping[str, Any]

    @classmethod
    def of_spine(
        cls,
        workspace: Workspace,
        references: Sequence[FeatureReference],
        spine: Any,
        timestamp_key: str | None,
        from_source: bool | None,
        separator: str,
        service: str | None = None,
    ) -> DatasetOrigin:
        """Return the origin of features of a spine."""
        settings = {
            "kind": DatasetKind.EVENTS,
            "references": tuple(references),
            "service": service,
            "separator": separator,
            "timestamp_key": timestamp_key,
            "from_source": from_source,
        }
        return cls(workspace, spine, settings)

    def allowing(self, allow_gaps: bool) -> DatasetOrigin:
        """Return the same origin of an answer with or without gaps."""
        return replace(self, settings={**self.settings, "allow_gaps": allow_gaps})

    def start(self, name: str, *, bucket_rows: int | None = None, job_retry_times: int | None = None) -> DatasetJob:
        """Start a job that keeps the same answer as a dataset; see `FeatureFrame.start_dataset_job`."""
        from featurekit_dagster.orchestration.datasets import queue_dataset

        policy = MANAGED
        if job_retry_times is not None:
            if type(job_retry_times) is not int or job_retry_times < 0:
                raise TectonValidationError(f"job_retry_times is {job_retry_times!r}; give a whole number from 0 on")
            policy = replace(MANAGED, max_attempts=job_retry_times + 1)
        rows = BUCKET_ROWS if bucket_rows is None else bucket_rows
        references = tuple(map(DatasetFeatures.of, self.settings["references"]))
        request = DatasetRequest(name=name, bucket_rows=rows, **{**self.settings, "references": references})
        workspace = self.workspace
        job = queue_dataset(workspace, workspace.stores, request, self.spine, trigger="manual", policy=policy)
        return DatasetJob(workspace, job.id, name)


def saved(frame: FeatureFrame, of: str, *, save: bool, save_as: str | None) -> FeatureFrame:
    """Return an answer, kept as a dataset if that was asked for.

    Args:
        frame: The answer.
        of: Name of the view or service, with which a made up name begins.
        save: Whether it is kept.
        save_as: Under which name; then it is kept in any case.

    Raises:
        DatasetExists: There is a dataset of that name.
        JobFailedException: The dataset could not be made.
    """
    if not save and save_as is None:
        return frame
    name = f"{of}-{uuid.uuid4().hex[:12]}" if save_as is None else save_as
    check_dataset_name(name)
    frame.start_dataset_job(name).complete()
    frame.dataset_name = name
    return frame
